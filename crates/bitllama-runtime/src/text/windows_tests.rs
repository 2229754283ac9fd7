use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;

/// Small, so that short texts have many windows.
const SMALL: Sizes = Sizes { window: 1500, overlap: 500, run: 12, at_once: 3 };

/// Words of the texts, and material of the vocabularies.
const WORDS: [&str; 24] = [
    "the",
    "and",
    "Emma",
    "of",
    "walked",
    "unbelievable",
    "'s",
    "42",
    "1234567",
    "—",
    "é",
    "naïve",
    "日本語",
    "🦙",
    "e\u{301}",
    "ﬁn",
    "\u{1f468}\u{200d}\u{1f469}",
    "Ω",
    "xyzzy",
    "!?",
    "</s>",
    "\u{fdfa}",
    "don't",
    "İ",
];
const SPACES: [&str; 8] = [" ", " ", " ", "  ", "\n", "\r\n\r\n", "\t", "\u{a0}"];

fn words(bytes: usize, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
        text.push_str(SPACES[rng.random_range(0..SPACES.len())]);
    }
    text
}

/// Texts that are no prose.
fn odd_texts() -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let letters: String = (0..9000).map(|_| rng.random_range('a'..='e')).collect();
    vec![
        "a".repeat(9000),
        " ".repeat(9000),
        "\n".repeat(5001),
        "ab".repeat(4501),
        "🦙".repeat(2003),
        format!("é{}", "e\u{301}".repeat(3000)),
        format!("a{}", "\u{301}".repeat(4000)),
        letters,
        "1".repeat(7001),
        "one line\r\n".repeat(900),
        format!("{}{}{}", words(3000, 1), "aaaab".repeat(1200), words(3000, 2)),
        format!("   {}   ", words(6000, 3)),
    ]
}

/// Pieces that the words fall into, each character and byte among them, without a rule behind it.
fn pieces(mark: &str, seed: u64) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut pieces: Vec<String> = Vec::new();
    for word in WORDS.iter().chain(&["a", "b", "c", "d", "aa", "aaa", "ab", "1", "11"]) {
        let characters: Vec<char> = format!("{mark}{word}").chars().collect();
        pieces.extend(characters.iter().map(char::to_string));
        for _ in 0..4 {
            let start = rng.random_range(0..characters.len());
            let end = rng.random_range(start..characters.len()) + 1;
            pieces.push(characters[start..end].iter().collect());
        }
        pieces.push(characters.iter().collect());
    }
    let mut seen = std::collections::HashSet::new();
    pieces.retain(|piece| !piece.is_empty() && seen.insert(piece.clone()));
    pieces
}

fn tokenizer(normalizer: Value, pre_tokenizer: Value, model: Value) -> Tokenizer {
    let json = json!({
        "version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": null, "model": model,
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// A BPE of pieces that are built up from the left, shortest first.
fn bpe(characters: &[String], pieces: &[String], unknown: bool) -> Value {
    let mut vocab: Vec<String> = characters.to_vec();
    let mut merges = Vec::new();
    let mut by_length = pieces.to_vec();
    by_length.sort_by_key(|piece| piece.chars().count());
    for piece in by_length {
        let characters: Vec<char> = piece.chars().collect();
        for end in 2..=characters.len() {
            let (left, right) = (characters[..end - 1].iter().collect::<String>(), characters[end - 1].to_string());
            let whole = format!("{left}{right}");
            if !vocab.contains(&whole) {
                vocab.push(whole);
                merges.push(json!([left, right]));
            }
        }
    }
    let unk = unknown.then(|| {
        vocab.push("<unk>".into());
        "<unk>"
    });
    let vocab: serde_json::Map<_, _> = vocab.into_iter().zip(0..).map(|(piece, id)| (piece, json!(id))).collect();
    json!({ "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unk, "fuse_unk": unknown })
}

fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let byte_level =
        |regex| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let mut alphabet: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort_unstable();
    let of_bytes: Vec<String> =
        pieces("Ġ", 1).into_iter().filter(|p| p.chars().all(|c| alphabet.contains(&c.into()))).collect();
    let bytes = bpe(&alphabet, &of_bytes, false);
    let split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = json!({ "type": "Split", "pattern": { "Regex": split }, "behavior": "Isolated", "invert": false });
    let marked = pieces("▁", 2);
    let characters: Vec<String> = marked.iter().filter(|p| p.chars().count() == 1).cloned().collect();
    let sentence = bpe(&characters, &marked, true);
    let prepend = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
    ] });
    let metaspace =
        |split| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": split });
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let unigram: Vec<Value> = std::iter::once(json!(["<unk>", 0.0]))
        .chain(marked.iter().map(|piece| json!([piece, -rng.random_range(2.0..9.0f64)])))
        .collect();
    let unigram = json!({ "type": "Unigram", "unk_id": 0, "vocab": unigram, "byte_fallback": false });
    let word_pieces: serde_json::Map<_, _> = std::iter::once("[UNK]".to_string())
        .chain(characters.iter().flat_map(|c| [c.clone(), format!("##{c}")]))
        .chain(["walk", "##ed", "un", "##believ", "##able"].map(String::from))
        .zip(0..)
        .map(|(piece, id)| (piece, json!(id)))
        .collect();
    let word_piece = json!({ "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": word_pieces });
    let bert = json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": true,
        "lowercase": true });
    let kind = |name: &str| json!({ "type": name });
    vec![
        ("gpt-2", tokenizer(Value::Null, byte_level(true), bytes.clone())),
        (
            "llama 3",
            tokenizer(
                kind("NFC"),
                json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] }),
                bytes.clone(),
            ),
        ),
        ("bytes in one word", tokenizer(kind("NFKC"), byte_level(false), bytes)),
        ("llama 2", tokenizer(prepend, Value::Null, sentence.clone())),
        ("metaspace", tokenizer(kind("NFKD"), metaspace(true), sentence)),
        ("unigram", tokenizer(kind("NFKC"), metaspace(true), unigram.clone())),
        ("unigram in one word", tokenizer(Value::Null, metaspace(false), unigram)),
        ("word pieces", tokenizer(bert, kind("BertPreTokenizer"), word_piece)),
    ]
}

/// The ids by windows, and in how many pieces they came.
fn by_windows(tokenizer: &Tokenizer, text: &str, sizes: Sizes) -> (Vec<u32>, usize) {
    let (mut ids, mut calls) = (Vec::new(), 0);
    for_ids(tokenizer, text, sizes, &mut |some| {
        ids.extend_from_slice(some);
        calls += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    (ids, calls)
}

#[test]
fn windows_give_the_ids_of_the_whole_text() {
    for (name, tokenizer) in tokenizers() {
        let prose: Vec<String> = (0..6).map(|seed| words(20_000, seed)).collect();
        for (number, text) in prose.iter().chain(&odd_texts()).enumerate() {
            let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
            let (ids, calls) = by_windows(&tokenizer, text, SMALL);
            assert!(ids == whole.get_ids(), "{name}, text {number}");
            // Prose is really cut, unless it is one word to a Unigram.
            let cut = if name == "unigram in one word" { calls == 1 } else { calls > 15 };
            assert!(number >= prose.len() || cut, "{name}: {calls} pieces");
        }
    }
}

#[test]
fn reading_stops_where_enough_was_read() {
    let (_, tokenizer) = tokenizers().remove(0);
    let text = words(20_000, 1);
    let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
    let mut ids = Vec::new();
    for_ids(&tokenizer, &text, SMALL, &mut |some| {
        ids.extend_from_slice(some);
        if ids.len() < 700 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .unwrap();
    assert!(ids.len() >= 700 && ids.len() < 2000 && whole.get_ids().starts_with(&ids), "{}", ids.len());
}

#[test]
fn a_tokenizer_that_looks_far_ahead_gets_the_whole_text() {
    // Words end at each `x` if a full stop ends the text, and never without it.
    let far =
        json!({ "type": "Split", "pattern": { "Regex": r"(?s)x(?=.*\.$)" }, "behavior": "Removed", "invert": false });
    let model = json!({ "type": "WordLevel", "vocab": { "<unk>": 0 }, "unk_token": "<unk>" });
    let tokenizer = tokenizer(Value::Null, far, model);
    let text = format!("{}.", "x y ".repeat(1000));
    assert_eq!(by_windows(&tokenizer, &text, SMALL), (vec![0; 1000], 1));
}
