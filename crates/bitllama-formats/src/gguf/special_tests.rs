use super::super::testing::{Writer, tiny};
use super::*;

fn model(writer: &Writer) -> crate::Model {
    let (folder, path) = writer.file();
    let model = crate::gguf::open(&path).unwrap();
    drop(folder);
    model
}

/// [`tiny`], with the names and kinds of some tokens changed.
fn with(changes: &[(usize, &str, i32)]) -> Writer {
    let mut tokens = ["<s>", "</s>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "12", "c", "<|x|>"];
    let mut kinds = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4];
    for (id, text, kind) in changes {
        (tokens[*id], kinds[*id]) = (text, *kind);
    }
    let mut writer = tiny();
    writer.texts("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &kinds);
    writer
}

#[test]
fn generations_end_where_llama_cpp_ends_them() {
    let ends = |writer: &Writer| {
        let config = model(writer).config;
        (config.eos_token_ids, config.end_token_ids)
    };
    assert_eq!(ends(&tiny()), (vec![1], vec![]));
    assert_eq!(ends(&with(&[(11, "<|im_end|>", 3)])), (vec![1], vec![11]));
    assert_eq!(ends(&with(&[(11, "<end_of_turn>", 4)])), (vec![1], vec![11]));
    assert_eq!(ends(&with(&[(11, "<eos>", 3)])), (vec![1], vec![11]));
    // A tag of HTML, as Gemma has them.
    assert_eq!(ends(&with(&[(1, "<eos>", 3), (11, "</s>", 4)])), (vec![1], vec![]));
    // A piece of text with that name ends nothing.
    assert_eq!(ends(&with(&[(10, "<|im_end|>", 1)])), (vec![1], vec![]));
    let mut chat = with(&[(11, "<|eot_id|>", 3)]);
    chat.u32("tokenizer.ggml.eos_token_id", 0)
        .u32("tokenizer.ggml.eot_token_id", 11)
        .u32("tokenizer.ggml.eom_token_id", 9);
    assert_eq!(ends(&chat), (vec![0], vec![11, 9, 1]));
    chat.remove("tokenizer.ggml.token_type");
    assert_eq!(ends(&chat), (vec![0], vec![11, 9]), "without kinds, names tell nothing");
}

#[test]
fn sentence_piece_models_have_bos_1_and_eos_2_where_nothing_is_said() {
    let mut writer = with(&[(0, "<unk>", 2), (1, "<s>", 3), (2, "</s>", 3)]);
    writer.text("tokenizer.ggml.model", "llama").f32s("tokenizer.ggml.scores", &[0.0; 12]);
    writer.remove("tokenizer.ggml.bos_token_id").remove("tokenizer.ggml.eos_token_id");
    let found = model(&writer);
    assert_eq!((found.config.bos_token_id, &found.config.eos_token_ids[..]), (Some(1), &[2][..]));
    assert_eq!(crate::tokenizer::own_bos(&found.tokenizer), Ok(Some(1)));
    writer.bool("tokenizer.ggml.add_bos_token", false);
    assert_eq!(crate::tokenizer::own_bos(&model(&writer).tokenizer), Ok(None));
}

#[test]
fn a_bos_that_is_wanted_and_not_there_is_refused() {
    let mut writer = tiny();
    writer.remove("tokenizer.ggml.bos_token_id").bool("tokenizer.ggml.add_bos_token", true);
    let (_folder, path) = writer.file();
    let message = crate::gguf::open(&path).err().unwrap().to_string();
    assert!(message.contains("tokenizer.ggml.add_bos_token is true, but there is no bos_token_id"), "{message}");
}

#[test]
fn chat_templates_become_those_of_a_tokenizer_config() {
    let config = |writer: &Writer| {
        let companions = model(writer).companions;
        companions.get(TOKENIZER_CONFIG).map(|bytes| serde_json::from_slice::<Value>(bytes).unwrap())
    };
    assert_eq!(config(&tiny()), None);
    let mut writer = tiny();
    writer.text("tokenizer.chat_template", "{{ messages }}\n");
    let found = config(&writer).unwrap();
    assert_eq!(found["chat_template"], "{{ messages }}\n");
    assert_eq!((&found["bos_token"], &found["eos_token"]), (&json!("<s>"), &json!("</s>")));
    writer.texts("tokenizer.chat_templates", &["tools"]).text("tokenizer.chat_template.tools", "T");
    let named = json!([{ "name": "tools", "template": "T" }, { "name": "default", "template": "{{ messages }}\n" }]);
    assert_eq!(config(&writer).unwrap()["chat_template"], named);
}
