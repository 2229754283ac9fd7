use super::super::testing::{Writer, tiny};
use super::*;

fn open(writer: &Writer) -> Result<Tokenizer> {
    let (_folder, path) = writer.file();
    tokenizer(&Gguf::open(&path)?)
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn smollm_splits_digits_one_by_one_and_other_splits_do_not() {
    let mut writer = tiny();
    let smollm = open(&writer).unwrap();
    assert_eq!(ids(&smollm, "ab ab12"), [7, 8, 5, 6]);
    writer.text("tokenizer.ggml.pre", "gpt-2");
    assert_eq!(ids(&open(&writer).unwrap(), "ab ab12"), [7, 8, 9]);
    writer.text("tokenizer.ggml.pre", "qwen2");
    assert_eq!(ids(&open(&writer).unwrap(), "ab ab12"), [7, 8, 5, 6]);
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let tokenizer = open(&tiny()).unwrap();
    let found = ids(&tokenizer, "<s>ab<|x|>ab</s>");
    assert_eq!(found, [0, 7, 11, 7, 1]);
    assert_eq!(tokenizer.decode(&found, true).unwrap(), "ab<|x|>ab");
    assert_eq!(tokenizer.decode(&found, false).unwrap(), "<s>ab<|x|>ab</s>");
    assert_eq!(tokenizer.get_vocab_size(true), 12);
}

#[test]
fn control_tokens_of_phi_swallow_the_white_space_beside_them() {
    let mut writer = tiny();
    writer.text("general.architecture", "phi3").text("tokenizer.ggml.pre", "gpt-4o");
    assert_eq!(ids(&open(&writer).unwrap(), "a </s> b"), [2, 4, 1, 4, 3], "Phi 4 mini");
    writer.text("tokenizer.ggml.pre", "dbrx");
    assert_eq!(ids(&open(&writer).unwrap(), "a </s> b<|x|> b"), [2, 1, 3, 11, 4, 3], "Phi 4");
    let mut writer = sentence_piece_file();
    writer.text("general.architecture", "phi3");
    assert_eq!(ids(&open(&writer).unwrap(), "a</s> \n b<s> b"), [1, 6, 2, 9, 11, 1, 9, 9, 11], "Phi 3");
}

#[test]
fn bos_goes_in_front_where_the_metadata_or_the_family_say_so() {
    let mut writer = tiny();
    writer.bool("tokenizer.ggml.add_bos_token", true);
    assert_eq!(ids(&open(&writer).unwrap(), "ab"), [0, 7]);
    writer.bool("tokenizer.ggml.add_eos_token", true);
    assert_eq!(ids(&open(&writer).unwrap(), "ab"), [0, 7, 1]);
    writer.remove("tokenizer.ggml.add_bos_token").remove("tokenizer.ggml.add_eos_token");
    writer.text("tokenizer.ggml.pre", "llama-bpe");
    // Up to three digits stay together, and a whole word that is a token is taken without merging.
    assert_eq!(ids(&open(&writer).unwrap(), "ab12"), [0, 7, 9]);
}

/// Six pieces, in the order and with the scores that SentencePiece gives: the later, the lower.
pub(super) fn sentence_piece_file() -> Writer {
    let mut writer = tiny();
    // Whose embedding has fewer rows.
    writer.without_tensors();
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "▁a", "▁ab", "bc", "▁", "a", "b", "c"];
    let scores = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -1e3, -1e3, -1e3, -1e3];
    writer.text("tokenizer.ggml.model", "llama").remove("tokenizer.ggml.pre").remove("tokenizer.ggml.merges");
    writer.texts("tokenizer.ggml.tokens", &tokens).f32s("tokenizer.ggml.scores", &scores);
    writer.i32s("tokenizer.ggml.token_type", &[2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1]);
    writer.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
    writer
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let mut writer = sentence_piece_file();
    let tokenizer = open(&writer).unwrap();
    // "bc" has the best score, so "▁ab" is not reached in "abc".
    assert_eq!(ids(&tokenizer, "abc"), [1, 6, 8]);
    assert_eq!(ids(&tokenizer, "ab a"), [1, 7, 6]);
    assert_eq!(ids(&tokenizer, "é\n"), [1, 9, 4, 5, 3]);
    assert_eq!(ids(&tokenizer, "日"), [1, 9, 0], "bytes that are no tokens are unknown");
    assert_eq!(tokenizer.decode(&[6, 8, 9, 4, 5, 3], true).unwrap(), "abc é\n");
    writer.bool("tokenizer.ggml.add_space_prefix", false).bool("tokenizer.ggml.add_bos_token", false);
    assert_eq!(ids(&open(&writer).unwrap(), "abc"), [10, 8]);
}

#[test]
fn a_rebuilt_tokenizer_survives_tokenizer_json() {
    for writer in [tiny(), sentence_piece_file()] {
        let tokenizer = open(&writer).unwrap();
        let again = Tokenizer::from_bytes(tokenizer.to_string(false).unwrap()).unwrap();
        for text in ["ab ab12", "<s>abc é\n", ""] {
            assert_eq!(ids(&tokenizer, text), ids(&again, text), "{text}");
        }
    }
}

#[test]
fn each_fault_is_named() {
    type Spoil = fn(&mut Writer);
    let faults: [(&str, Spoil); 8] = [
        ("tokenizer.ggml.pre = nonsense is not supported", |w| _ = w.text("tokenizer.ggml.pre", "nonsense")),
        ("has no tokenizer.ggml.pre", |w| _ = w.remove("tokenizer.ggml.pre")),
        ("tokenizer.ggml.model = bert", |w| _ = w.text("tokenizer.ggml.model", "bert")),
        ("has no metadata tokenizer.ggml.tokens", |w| _ = w.remove("tokenizer.ggml.tokens")),
        ("no list of 12 integers", |w| _ = w.i32s("tokenizer.ggml.token_type", &[1])),
        ("cannot be built", |w| _ = w.texts("tokenizer.ggml.merges", &["x y"])),
        ("tokenizer.ggml.merges has `xy`, not two tokens", |w| _ = w.texts("tokenizer.ggml.merges", &["xy"])),
        ("`a` twice", |w| _ = w.texts("tokenizer.ggml.tokens", &["a"; 12])),
    ];
    for (word, spoil) in faults {
        let mut writer = tiny();
        spoil(&mut writer);
        let message = open(&writer).expect_err("must not open").to_string();
        assert!(message.contains(word) && message.contains("model.gguf") && !message.contains('\n'), "{message}");
    }
}
