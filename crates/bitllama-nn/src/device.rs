//! Names of devices, as `--device` and recipes spell them, and the Burn backends compiled in.

use burn::tensor::Device;

/// A device name that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such name.
    #[error("unknown device `{0}`, expected flex, ndarray, tch, cuda, cuda:N or wgpu")]
    Unknown(String),
    /// A known backend that is not compiled in.
    #[error(
        "device `{name}` needs the cargo feature `{feature}`, which this binary was built without; build it with \
         `cargo build --release --features {feature}` (compiled in: {})",
        compiled_in().join(", ")
    )]
    NotCompiledIn {
        /// The name as given.
        name: String,
        /// The feature that is missing.
        feature: &'static str,
    },
}

/// The backends of this binary, by name.
pub fn compiled_in() -> Vec<&'static str> {
    let features = [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("tch", cfg!(feature = "tch")),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    features.into_iter().filter(|(_, enabled)| *enabled).map(|(name, _)| name).collect()
}

/// The backend to use where none is named: the first that is compiled in.
pub fn default_name() -> &'static str {
    compiled_in().first().copied().unwrap_or("flex")
}

/// The device of a name, without autodiff.
///
/// # Errors
/// [`DeviceError`] for an unknown name or a backend that is not compiled in.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => {
            let index = index.parse::<usize>().map_err(|_| DeviceError::Unknown(name.to_string()))?;
            (backend, Some(index))
        }
        None => (name, None),
    };
    let missing = |feature| Err(DeviceError::NotCompiledIn { name: name.to_string(), feature });
    // The second arm of a backend is reached only where the first is not compiled in.
    #[allow(unreachable_patterns)]
    match (backend, index) {
        #[cfg(feature = "flex")]
        ("flex", None) => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)]
        ("ndarray", None) => Ok(Device::ndarray()),
        #[cfg(feature = "tch")]
        #[allow(deprecated)]
        ("tch", None) => Ok(Device::libtorch()),
        #[cfg(feature = "cuda")]
        ("cuda", index) => Ok(Device::cuda(index.unwrap_or(0))),
        #[cfg(feature = "wgpu")]
        ("wgpu", None) => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        ("flex", None) => missing("flex"),
        ("ndarray", None) => missing("ndarray"),
        ("tch", None) => missing("tch"),
        ("cuda", _) => missing("cuda"),
        ("wgpu", None) => missing("wgpu"),
        _ => Err(DeviceError::Unknown(name.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compiled_backend_has_a_device_and_the_others_name_their_feature() {
        for name in ["flex", "ndarray", "tch", "cuda:0", "wgpu"] {
            let backend = name.split(':').next().unwrap();
            if compiled_in().contains(&backend) {
                assert!(device(name).is_ok(), "{name}");
            } else {
                let message = device(name).unwrap_err().to_string();
                assert!(message.contains(&format!("--features {backend}")), "{message}");
            }
        }
        for name in ["gpu", "cuda:x", "flex:0", ""] {
            assert_eq!(device(name).unwrap_err(), DeviceError::Unknown(name.into()));
        }
    }
}
