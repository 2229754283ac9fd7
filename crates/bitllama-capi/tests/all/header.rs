//! `include/bitllama.h` is committed, so that it can be read and used without a build, and is what cbindgen makes of the
//! sources. A test makes it: as a build script, cbindgen would be compiled by everyone who builds the library.

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_that_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let sources = ["error", "matmul", "model"].map(|module| root.join(format!("src/{module}.rs")));
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), |b, source| b.with_src(source));
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap().replace("\r\n", "\n");
    let path = root.join("include/bitllama.h");
    if std::env::var_os("BITLLAMA_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(committed == made, "make it anew: BITLLAMA_WRITE_HEADER=1 cargo test -p bitllama-capi --test all header");
}
