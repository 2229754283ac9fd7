//! What the linker must know about the shared library.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |key: &str| env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let link = |argument: &str| println!("cargo::rustc-cdylib-link-arg={argument}");
    match (target("OS").as_str(), target("ENV").as_str()) {
        // Threads of the pool run code of the library as long as the process lives: `dlclose` must not unmap it.
        ("linux" | "android", _) => {
            link("-Wl,-soname,libbitllama.so");
            link("-Wl,-z,nodelete");
        }
        // Else programs linked with it would look for it in the folder that it was built in.
        ("macos", _) => link("-Wl,-install_name,@rpath/libbitllama.dylib"),
        // The binary `bitllama` of another crate has a `bitllama.pdb` in the same folder.
        ("windows", "msvc") => {
            link(&format!("/PDB:{}\\bitllama_capi.pdb", env::var("OUT_DIR").unwrap_or_else(|_| ".".into())));
        }
        _ => {}
    }
}
