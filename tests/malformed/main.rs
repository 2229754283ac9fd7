//! Malformed inputs, each with the exact error that it gives.
//!
//! Inputs are made here, by damage to good ones; what they give stands in `expected/GROUP.txt`, a line each, the input's folder as
//! `$`. After a change of words, `BLESS=1 cargo test --release -p bitllama-train --test malformed` writes these files anew: read
//! their difference. Each input must give one line, no panic, and no more memory than 64 MB and twice its size.

#[path = "../common/memory.rs"]
mod memory;

mod artifacts;
mod edit;
mod flags;
mod gguf;
mod models;
mod npz;
mod recipes;
mod runs;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bitllama_runtime::one_line;
use memory::{Counting, allowed, peak_of};

#[global_allocator]
static MEMORY: Counting = Counting;

/// One test at a time: the allocator counts for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Inputs of one kind.
pub struct Group {
    name: &'static str,
    /// A line for each input: its name and what it gave.
    lines: Vec<String>,
    /// What must not be, whatever the words are.
    faults: Vec<String>,
}

impl Group {
    /// Tries an input: `read` makes it in a folder of its own and reads it.
    pub fn input<T, E: Into<anyhow::Error>>(&mut self, name: &str, read: impl FnOnce(&Path) -> Result<T, E>) {
        let folder = tempfile::tempdir().unwrap();
        let read = || panic::catch_unwind(AssertUnwindSafe(|| read(folder.path()).map(drop).map_err(E::into)));
        let (result, peak) = peak_of(read);
        let message = match result {
            Ok(Ok(())) => return self.fault(name, "is read as if it were good"),
            Ok(Err(error)) => one_line(error.as_ref()),
            Err(_) => return self.fault(name, "panics"),
        };
        if peak > allowed(size(folder.path())) {
            self.fault(name, &format!("takes {} MB", peak >> 20));
        }
        self.said(name, &message, folder.path());
    }

    /// Notes what an input gave.
    pub fn said(&mut self, name: &str, message: &str, folder: &Path) {
        if message.len() > 600 || message.contains('\n') || message.ends_with('.') {
            self.fault(name, &format!("gives no short line without a full stop: {message}"));
        }
        let message = without_machine(&message.replace(&folder.display().to_string(), "$"));
        self.lines.push(format!("{name}: {message}"));
    }

    /// Notes what is wrong with how an input is taken.
    pub fn fault(&mut self, name: &str, what: &str) {
        self.faults.push(format!("{name} {what}"));
    }

    fn expected(&self) -> PathBuf {
        root().join("tests/malformed/expected").join(format!("{}.txt", self.name))
    }

    fn compare(&self) {
        let found: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        if std::env::var_os("BLESS").is_some() {
            fs::write(self.expected(), &found).unwrap();
        }
        let expected = fs::read_to_string(self.expected()).unwrap_or_default().replace("\r\n", "\n");
        let differing: Vec<String> = differences(&expected, &found);
        assert!(
            differing.is_empty(),
            "{}: not what is expected, see BLESS above:\n{}",
            self.name,
            differing.join("\n")
        );
        assert!(self.faults.is_empty(), "{}:\n{}", self.name, self.faults.join("\n"));
    }
}

/// A message that says how much memory this machine has, on any machine.
fn without_machine(message: &str) -> String {
    let Some((before, after)) = message.split_once("this machine has ") else { return message.to_string() };
    let rest = after.split_once(" GB").map_or(after, |(_, rest)| rest);
    format!("{before}this machine has N GB{rest}")
}

fn differences(expected: &str, found: &str) -> Vec<String> {
    let only = |mark: &str, here: &str, there: &str| {
        let missing = here.lines().filter(|line| !there.lines().any(|other| other == *line));
        missing.map(|line| format!("{mark} {line}")).collect::<Vec<_>>()
    };
    [only("-", expected, found), only("+", found, expected)].concat()
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size(&path) } else { fs::metadata(path).unwrap().len() as usize }).sum()
}

fn group(name: &'static str, inputs: fn(&mut Group)) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut group = Group { name, lines: Vec::new(), faults: Vec::new() };
    // Panics are reported with the input's name.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    inputs(&mut group);
    panic::set_hook(hook);
    group.compare();
}

macro_rules! groups {
    ($($name:ident: $inputs:path),* $(,)?) => {
        $(#[test]
        fn $name() {
            group(stringify!($name), $inputs);
        })*

        #[test]
        fn there_are_two_hundred() {
            let count = |name| fs::read_to_string(root().join(format!("tests/malformed/expected/{name}.txt"))).unwrap().lines().count();
            let all: usize = [$(stringify!($name)),*].map(count).iter().sum();
            assert!(all >= 200, "{all}");
        }
    };
}

groups! {
    recipe: recipes::recipe,
    set: recipes::set,
    grid: recipes::grid,
    config: models::config,
    safetensors: models::safetensors,
    tokenizer: models::tokenizer,
    gguf: gguf::gguf,
    arrays: npz::arrays,
    manifest: artifacts::manifest,
    runs: runs::runs,
    tasks: runs::tasks,
    flags: flags::flags,
    texts: flags::texts,
}
