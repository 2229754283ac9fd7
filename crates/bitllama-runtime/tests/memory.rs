//! Memory of tokenizing a long line, in a process of its own.

use std::path::Path;

use bitllama_runtime::memory;
use bitllama_runtime::text::encode;
use tokenizers::Tokenizer;

#[test]
fn a_long_line_takes_a_few_times_its_size() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let book = std::fs::read_to_string(root.join("data/austen/sense-and-sensibility.txt")).unwrap();
    let line = book.replace('\n', " ").repeat(5);
    let tokenizer = Tokenizer::from_file(root.join("models/nano/tokenizer.json")).unwrap();
    memory::reset_peak();
    let Some(before) = memory::peak() else { return };
    let tokens = encode(&tokenizer, None, &line).unwrap();
    let taken = memory::peak().unwrap() - before;
    assert!(tokens.len() > line.len() / 5);
    // One encoding of it all takes a hundred times its size.
    assert!(taken < 16 * line.len() as u64 + (128 << 20), "{} MB for {} MB", taken >> 20, line.len() >> 20);
}
