//! Damaged files against every reader, in process: no panic, no more memory than 64 MB and twice the input, no more than seconds.
//!
//! `cargo test` tries each reader on a few hundred damaged seeds; `scripts/fuzz.sh MINUTES` goes on for longer, with other
//! random numbers each time.

#[path = "../common/memory.rs"]
mod memory;
mod mutate;
mod targets;

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memory::{Counting, allowed, peak_of};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use targets::{TARGETS, Target, root};

#[global_allocator]
static MEMORY: Counting = Counting;

/// A reader that takes longer is found, unless the machine was busy with other things.
const SLOW: Duration = Duration::from_secs(5);
/// Inputs do not grow beyond this.
const LONGEST: usize = 1 << 20;

/// What a target is started from.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let corpus = root().join("tests/fuzz/corpus").join(target.name);
    let listed = fs::read_dir(&corpus).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = listed.chain(target.seeds.iter().map(|seed| root().join(seed))).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no seed", target.name);
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What is wrong with how a target takes an input, if anything is.
fn fault(target: &Target, folder: &Path, input: &[u8]) -> Option<String> {
    let start = Instant::now();
    let read = || panic::catch_unwind(AssertUnwindSafe(|| (target.read)(folder, input)));
    let (result, peak) = peak_of(read);
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        return Some(format!("panic: {}", text.unwrap_or("without a message")));
    }
    if peak > allowed(input.len()) {
        return Some(format!("took {} MB for {} bytes", peak >> 20, input.len()));
    }
    (start.elapsed() > SLOW).then(|| format!("took {:?}", start.elapsed()))
}

/// Runs a target on damaged seeds until `done` of the number of inputs so far; that number, and inputs with their faults.
fn fuzz(target: &Target, random: u64, done: impl Fn(usize) -> bool) -> (usize, Vec<(Vec<u8>, String)>) {
    let folder = scratch(target.name);
    (target.prepare)(&folder);
    let seeds = seeds(target);
    let mut rng = ChaCha8Rng::seed_from_u64(random);
    let (mut count, mut found) = (0, Vec::<(Vec<u8>, String)>::new());
    while !done(count) {
        let input = match seeds.get(count) {
            Some(seed) => seed.clone(),
            None => mutate::mutated(&seeds, LONGEST, &mut rng),
        };
        count += 1;
        if let Some(fault) = fault(target, &folder, &input) {
            // Of each fault the first input will do.
            let known = found.iter().any(|(_, other)| kind(other) == kind(&fault));
            if !known {
                found.push((input, fault));
            }
        }
    }
    drop(fs::remove_dir_all(&folder));
    (count, found)
}

/// A fault without its numbers.
fn kind(fault: &str) -> String {
    fault.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// The folder in which a target works, in memory where the system has such a place. Where the process dies, its last input stays
/// there.
fn scratch(name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = base.join(format!("bitllama-fuzz-{}", std::process::id())).join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The faults that many inputs lead to would be printed one by one.
fn silently<T>(work: impl FnOnce() -> T) -> T {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let result = work();
    panic::set_hook(hook);
    result
}

#[test]
fn damaged_seeds_are_refused_or_read() {
    let found: Vec<String> = silently(|| {
        let of_target = |target: &Target| {
            let (_, found) = fuzz(target, 0, |count| count >= 100);
            found.into_iter().map(|(_, fault)| format!("{}: {fault}", target.name)).collect::<Vec<_>>()
        };
        TARGETS.iter().flat_map(of_target).collect()
    });
    assert!(found.is_empty(), "{found:#?}");
}

/// `BITLLAMA_FUZZ_MINUTES` minutes of all targets, or of those named in `BITLLAMA_FUZZ_TARGETS`; findings go to
/// `target/fuzz/TARGET-N`.
#[test]
#[ignore = "takes as long as it is told to: scripts/fuzz.sh"]
fn for_minutes() {
    let minutes = std::env::var("BITLLAMA_FUZZ_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let wanted = std::env::var("BITLLAMA_FUZZ_TARGETS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|name| !name.is_empty()).collect();
    let chosen = |target: &&Target| wanted.is_empty() || wanted.contains(&target.name);
    let chosen: Vec<&Target> = TARGETS.iter().filter(chosen).collect();
    assert!(!chosen.is_empty(), "no target is named {wanted:?}");
    let each = Duration::from_secs_f64(60.0 * minutes / chosen.len() as f64);
    let findings = root().join("target/fuzz");
    let random = RandomState::new().hash_one(std::process::id());
    let mut all = 0;
    for target in chosen {
        println!("{} in {}", target.name, scratch(target.name).display());
        let start = Instant::now();
        let (count, found) = silently(|| fuzz(target, random, |_| start.elapsed() > each));
        println!("{:<14} {count:>9} inputs, {} findings", target.name, found.len());
        fs::create_dir_all(&findings).unwrap();
        for (number, (input, fault)) in found.iter().enumerate() {
            let path = findings.join(format!("{}-{number}", target.name));
            fs::write(&path, input).unwrap();
            println!("  {}: {fault}", path.display());
        }
        all += found.len();
    }
    assert_eq!(all, 0, "findings");
}
