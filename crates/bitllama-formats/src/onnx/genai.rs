//! `genai_config.json`, from which ONNX Runtime GenAI knows what a graph takes and gives
//! (<https://onnxruntime.ai/docs/genai/reference/config.html>).

use bitllama_core::ModelConfig;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::attention::is_grouped;
use super::decoder::{LOGITS, MASK, TOKENS, past, present};
use super::{GRAPH, Options};
use crate::tokenizer::own_bos;

/// The config. Search is greedy, as `bitllama run` generates, until a program asks for something else.
pub(super) fn config(config: &ModelConfig, tokenizer: &Tokenizer, options: &Options) -> Value {
    let ends: Vec<u32> = config.end_tokens().collect();
    let context = config.short_context();
    let mut model = json!({
        "context_length": context,
        "decoder": {
            "session_options": {
                "log_id": "onnxruntime-genai",
                // Products with dequantized matrices keep their inputs in f32, too, where ONNX Runtime fuses the two.
                "session.qdq_matmulnbits_accuracy_level": "1",
                "provider_options": [],
            },
            "filename": GRAPH,
            "head_size": config.head_dim,
            "hidden_size": config.hidden_size,
            "inputs": {
                "input_ids": TOKENS,
                "attention_mask": MASK,
                "past_key_names": past("%d", "key"),
                "past_value_names": past("%d", "value"),
            },
            "outputs": {
                "logits": LOGITS,
                "present_key_names": present("%d", "key"),
                "present_value_names": present("%d", "value"),
            },
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "num_key_value_heads": config.num_key_value_heads,
        },
        // The decoder of no family in particular: names of families make GenAI do more than the graph says.
        "type": "decoder",
        "vocab_size": config.vocab_size,
    });
    if let Some(bos) = own_bos(tokenizer).ok().flatten().or(config.bos_token_id) {
        model["bos_token_id"] = bos.into();
    }
    if let Some(first) = ends.first() {
        model["pad_token_id"] = (*first).into();
        model["eos_token_id"] = json!(ends);
    }
    json!({
        "model": model,
        "search": {
            "do_sample": false,
            "early_stopping": true,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            // `GroupQueryAttention` appends to the cache where it is.
            "past_present_share_buffer": !options.opset_only && is_grouped(config),
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    })
}
