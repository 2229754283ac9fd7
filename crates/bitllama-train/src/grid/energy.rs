//! What the machine says of the energy it uses: Intel's and AMD's RAPL counters under `/sys/class/powercap`, which Linux may
//! allow to read, and those of NVIDIA's GPUs, which NVML has from Volta on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nvml_wrapper::Nvml;

const POWERCAP: &str = "/sys/class/powercap";

/// The driver's library, where there is one.
static NVML: LazyLock<Option<Nvml>> = LazyLock::new(|| Nvml::init().ok());

/// Counters of processor packages and GPUs at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Energy(Vec<Counter>);

/// Ordered by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Counter {
    /// A folder, or a GPU's UUID.
    name: String,
    microjoules: u64,
    /// Where it starts anew, if it does.
    range: Option<u64>,
}

impl Energy {
    /// The counters now; `None` where there are none or they may not be read.
    pub fn now() -> Option<Self> {
        let mut counters = packages(POWERCAP.as_ref())?;
        counters.extend(NVML.as_ref().and_then(gpus).unwrap_or_default());
        Self::of(counters)
    }

    fn of(mut counters: Vec<Counter>) -> Option<Self> {
        counters.sort();
        (!counters.is_empty()).then_some(Self(counters))
    }

    /// Joules since `earlier`, if the counters are the same ones and started anew once at most.
    pub fn since(&self, earlier: &Self) -> Option<f64> {
        if self.0.len() != earlier.0.len() {
            return None;
        }
        let spent = self.0.iter().zip(&earlier.0).map(|(now, before)| match before.microjoules {
            _ if now.name != before.name => None,
            from if now.microjoules >= from => Some(now.microjoules - from),
            from => Some((now.range? - from) + now.microjoules),
        });
        spent.sum::<Option<u64>>().map(|microjoules| microjoules as f64 / 1e6)
    }
}

/// Those of processor packages; none where there are none, `None` where they may not be read.
fn packages(folder: &Path) -> Option<Vec<Counter>> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Packages only: what is inside of them (`package-0:core`) is counted with them.
        if fs::read_to_string(path.join("name")).is_ok_and(|name| name.starts_with("package-")) {
            found.push(Counter {
                name: path.display().to_string(),
                microjoules: number(path.join("energy_uj"))?,
                range: Some(number(path.join("max_energy_range_uj"))?),
            });
        }
    }
    Some(found)
}

/// Those of GPUs that have one.
fn gpus(nvml: &Nvml) -> Option<Vec<Counter>> {
    let mut found = Vec::new();
    for index in 0..nvml.device_count().ok()? {
        let device = nvml.device_by_index(index).ok()?;
        let (Ok(name), Ok(millijoules)) = (device.uuid(), device.total_energy_consumption()) else { continue };
        found.push(Counter { name, microjoules: millijoules * 1000, range: None });
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_added_up_over_the_end_of_their_range() {
        let folder = tempfile::tempdir().unwrap();
        let read = || Energy::of(packages(folder.path()).unwrap());
        assert_eq!(read(), None);
        let write = |zone: &str, name: &str, energy: u64| {
            let zone = folder.path().join(zone);
            fs::create_dir_all(&zone).unwrap();
            for (file, text) in [("name", name), ("energy_uj", &energy.to_string()), ("max_energy_range_uj", "1000000")]
            {
                fs::write(zone.join(file), format!("{text}\n")).unwrap();
            }
        };
        let set = |first: u64, second: u64| {
            write("intel-rapl:0", "package-0", first);
            write("intel-rapl:0:0", "core", 5);
            write("intel-rapl:1", "package-1", second);
            read().unwrap()
        };
        let (before, after) = (set(100_000, 900_000), set(300_000, 100_000));
        assert_eq!(after.since(&before), Some(0.4));
        fs::remove_dir_all(folder.path().join("intel-rapl:1")).unwrap();
        assert_eq!(read().unwrap().since(&before), None);
    }
}
