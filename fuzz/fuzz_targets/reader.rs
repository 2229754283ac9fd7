//! One reader, named in `BITLLAMA_FUZZ_TARGET`, guided by coverage:
//!
//! ```sh
//! BITLLAMA_FUZZ_TARGET=gguf cargo +nightly fuzz run reader fuzz/corpus/gguf tests/fuzz/corpus/gguf -- -rss_limit_mb=512
//! ```

#![no_main]

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target};

/// The reader, and the folder that it works in.
fn chosen() -> &'static (&'static Target, PathBuf) {
    static CHOSEN: OnceLock<(&Target, PathBuf)> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("BITLLAMA_FUZZ_TARGET").unwrap_or_default();
        let names = TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
        let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
            panic!("set BITLLAMA_FUZZ_TARGET to one of {names}")
        };
        let folder = tempfile::tempdir().expect("a scratch folder").keep();
        (target.prepare)(&folder);
        (target, folder)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (target, folder) = chosen();
    (target.read)(folder, bytes);
});
