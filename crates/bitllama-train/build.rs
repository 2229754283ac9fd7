//! Notes the git revision, so that a run can say which code made it.

use std::path::Path;
use std::process::Command;

fn main() {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let revision = output.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    println!("cargo:rustc-env=GIT_REVISION={}", revision.as_deref().map_or("unknown", str::trim));
    // The log of HEAD grows with every commit and checkout; where there is none, this is no git checkout.
    for watched in ["..", "../../Cargo.lock", "../../.git/logs/HEAD"] {
        if Path::new(watched).exists() {
            println!("cargo:rerun-if-changed={watched}");
        }
    }
}
