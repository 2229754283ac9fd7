//! The shared library as C programs see it: the header compiles as C and C++, and `tests/c/bitllama_dlopen.c` loads the
//! library and calls every function. Needs a C compiler: `$CC`, else `cc`.
#![cfg(unix)]

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common;
use tempfile::TempDir;

fn compiler(variable: &str, default: &str) -> Option<Command> {
    let compiler = std::env::var_os(variable).unwrap_or_else(|| default.into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("skipped: there is no `{}`, set {variable} to a compiler", compiler.display());
        return None;
    }
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]).arg(crate_folder().join("include"));
    Some(command)
}

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that cargo built for this test: beside the test's own executable.
fn library() -> PathBuf {
    let library = std::env::current_exe().unwrap().with_file_name(format!("{DLL_PREFIX}bitllama{DLL_SUFFIX}"));
    assert!(library.is_file(), "{} was not built", library.display());
    library
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

#[test]
fn a_c_program_loads_the_library_and_calls_every_function() {
    let Some(mut cc) = compiler("CC", "cc") else { return };
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("bitllama_dlopen");
    let source = crate_folder().join("../../tests/c/bitllama_dlopen.c");
    succeeds(cc.arg("-std=c11").arg(source).arg("-o").arg(&program).args(["-ldl", "-lm"]));
    let artifact = common::artifact(folder.path(), 1);
    let said = succeeds(Command::new(program).arg(library()).arg(artifact).arg(folder.path()));
    assert_eq!(said, "ok\n");
}

#[test]
fn the_header_is_c_plus_plus_too() {
    let Some(mut cxx) = compiler("CXX", "c++") else { return };
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("header.cpp");
    std::fs::write(&source, "#include \"bitllama.h\"\nint main() { return BITLLAMA_EXACT - 1; }\n").unwrap();
    succeeds(cxx.args(["-std=c++11", "-fsyntax-only"]).arg(source));
}
