//! What the machine says of the energy it uses: Intel's and AMD's RAPL counters under `/sys/class/powercap`, which Linux may
//! allow to read.

use std::fs;
use std::path::{Path, PathBuf};

const POWERCAP: &str = "/sys/class/powercap";

/// Counters of processor packages at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Energy {
    /// Folder, microjoules, and where the counter starts anew.
    packages: Vec<(PathBuf, u64, u64)>,
}

impl Energy {
    /// The counters now; `None` where there are none or they may not be read.
    pub fn now() -> Option<Self> {
        Self::under(POWERCAP.as_ref())
    }

    fn under(folder: &Path) -> Option<Self> {
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
        let mut packages = Vec::new();
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            // Packages only: what is inside of them (`package-0:core`) is counted with them.
            let is_package = fs::read_to_string(path.join("name")).is_ok_and(|name| name.starts_with("package-"));
            if is_package {
                let (now, range) = (number(path.join("energy_uj"))?, number(path.join("max_energy_range_uj"))?);
                packages.push((path, now, range));
            }
        }
        packages.sort();
        (!packages.is_empty()).then_some(Self { packages })
    }

    /// Joules since `earlier`, if the counters started anew once at most.
    pub fn since(&self, earlier: &Self) -> Option<f64> {
        let mut microjoules = 0;
        for ((path, now, range), (of, before, _)) in self.packages.iter().zip(&earlier.packages) {
            if path != of {
                return None;
            }
            microjoules += if now >= before { now - before } else { (range - before) + now };
        }
        (self.packages.len() == earlier.packages.len()).then_some(microjoules as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_added_up_over_the_end_of_their_range() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Energy::under(folder.path()), None);
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
            Energy::under(folder.path()).unwrap()
        };
        let (before, after) = (set(100_000, 900_000), set(300_000, 100_000));
        assert_eq!(after.since(&before), Some(0.4));
    }
}
