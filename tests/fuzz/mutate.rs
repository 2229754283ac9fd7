//! Damage: what disks, networks and people who mean harm do to a file.

use rand::Rng;
use rand::seq::IndexedRandom;

/// Whole numbers at the edges of what types hold.
const NUMBERS: [u64; 14] = [
    0,
    1,
    7,
    0x7f,
    0xff,
    0xffff,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

/// Words that mean something to one of the readers.
const WORDS: [&str; 28] = [
    "-1",
    "0",
    "1e308",
    "1e-320",
    "NaN",
    "inf",
    "9223372036854775807",
    "18446744073709551616",
    "0.5",
    "true",
    "null",
    "\"\"",
    "[]",
    "{}",
    "{ scheme = \"int4\" }",
    "\"ternary\"",
    "\"../x\"",
    "*",
    "\\u0000",
    "\u{feff}",
    "\n",
    "\r\n",
    "\0",
    "=",
    ".",
    ",",
    "'",
    "\u{202e}",
];

/// One of the seeds with one to eight damages, of at most `longest` bytes.
pub fn mutated(seeds: &[Vec<u8>], longest: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = seeds.choose(rng).cloned().unwrap_or_default();
    for _ in 0..1 << rng.random_range(0..4) {
        damage(&mut bytes, seeds, rng);
    }
    bytes.truncate(longest);
    bytes
}

fn damage(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut impl Rng) {
    let at = rng.random_range(0..=bytes.len());
    let end = (at + 1 + rng.random_range(0..16)).min(bytes.len()).max(at);
    match rng.random_range(0..13) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => drop(bytes.splice(at..at, (0..end - at).map(|_| b' ').collect::<Vec<_>>())),
        5 => {
            let part = bytes[at..end].to_vec();
            drop(bytes.splice(at..at, part.repeat(1 << rng.random_range(0..10))));
        }
        6 => overwrite(bytes, at, &pick(&NUMBERS, rng).to_le_bytes()[..8 >> rng.random_range(0..4)]),
        7 => drop(bytes.splice(at..end, pick(&WORDS, rng).bytes())),
        8 => replace_number(bytes, at, rng),
        9 => replace_string(bytes, at, rng),
        10 => {
            let bracket = *pick(b"[{(\".", rng);
            drop(bytes.splice(at..at, vec![bracket; 1 << rng.random_range(0..16)]));
        }
        11 => {
            let other = pick(seeds, rng);
            let from = rng.random_range(0..=other.len());
            let to = (from + rng.random_range(0..256)).min(other.len());
            drop(bytes.splice(at..end, other[from..to].iter().copied()));
        }
        _ => {
            // A later part of the file in place of an earlier one.
            let from = rng.random_range(0..=bytes.len());
            let part = bytes[from..(from + end - at).min(bytes.len())].to_vec();
            overwrite(bytes, at, &part);
        }
    }
}

fn pick<'a, T>(all: &'a [T], rng: &mut impl Rng) -> &'a T {
    &all[rng.random_range(0..all.len())]
}

fn overwrite(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..].iter_mut().zip(part).for_each(|(byte, new)| *byte = *new);
}

/// The next decimal number from `at` on becomes another.
fn replace_number(bytes: &mut Vec<u8>, at: usize, rng: &mut impl Rng) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|start| at + start) else { return };
    let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = match rng.random_range(0..3) {
        0 => pick(&WORDS[..9], rng).to_string(),
        1 => pick(&NUMBERS, rng).to_string(),
        _ => rng.random_range(0..1000u32).to_string(),
    };
    drop(bytes.splice(start..start + length, number.into_bytes()));
}

/// The next quoted string from `at` on becomes long, empty or a word.
fn replace_string(bytes: &mut Vec<u8>, at: usize, rng: &mut impl Rng) {
    let Some(start) = bytes[at..].iter().position(|byte| *byte == b'"').map(|start| at + start + 1) else { return };
    let Some(length) = bytes[start..].iter().position(|byte| *byte == b'"') else { return };
    let string = match rng.random_range(0..4) {
        0 => String::new(),
        1 => "x".repeat(1 << rng.random_range(0..16)),
        2 => "a.".repeat(1 << rng.random_range(0..15)),
        _ => pick(&WORDS, rng).to_string(),
    };
    drop(bytes.splice(start..start + length, string.into_bytes()));
}
