//! The decoder against a naive one in f64, and generation and evaluation on it.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::testing;
use crate::testing::{byte_tokenizer, random_weight, tiny_config};
use bitllama_core::weights::WeightSpec;
use bitllama_core::{ModelConfig, RopeScaling, Scheme, rope};
use bitllama_formats::StoredWeight;
use bitllama_runtime::evaluate::{LogitModel, Options, compare, perplexity};
use bitllama_runtime::{
    Decoder, Error, GenerationOptions, LogitsOf, Sampling, Session, Settings, Stop, generate, generate_in,
    generate_with_draft,
};

const TOKENS: [u32; 11] = [256, 5, 77, 5, 200, 3, 3, 19, 101, 0, 42];

/// The schemes of the tests' models, by weight: some of each.
fn mixed(spec: &WeightSpec) -> Option<Scheme> {
    match spec.name.as_str() {
        "embed_tokens.weight" => Some(Scheme::Int8),
        "lm_head.weight" => Some(Scheme::Int4),
        name if name.contains("mlp") => Some(Scheme::Ternary),
        name if name.contains("q_proj") => Some(Scheme::Binary),
        name if name.contains("v_proj") => Some(Scheme::Int3),
        _ => None,
    }
}

fn decoder(config: &ModelConfig, scheme: fn(&WeightSpec) -> Option<Scheme>) -> Decoder {
    Decoder::new(config.clone(), |spec| Ok(random_weight(spec, scheme(spec), 1))).unwrap()
}

fn all_logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    decoder.forward(tokens, &mut decoder.new_cache(), LogitsOf::All).unwrap()
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "off by {worst}");
}

/// The forward pass as its formulas stand, position by position, in f64.
fn naive_logits(config: &ModelConfig, scheme: fn(&WeightSpec) -> Option<Scheme>, tokens: &[u32]) -> Vec<f32> {
    let weights: HashMap<String, (Vec<usize>, Vec<f32>)> = bitllama_core::weights::specs(config)
        .into_iter()
        .map(|spec| {
            let data = match random_weight(&spec, scheme(&spec), 1) {
                StoredWeight::Full(data) => data,
                StoredWeight::Packed(packed) => packed.dequantize().data,
                StoredWeight::Rows(rows) => rows.to_f32(),
            };
            (spec.name, (spec.shape, data))
        })
        .collect();
    let linear = |name: &str, x: &[f64]| -> Vec<f64> {
        let (shape, data) = &weights[name];
        data.chunks(shape[1]).map(|row| row.iter().zip(x).map(|(w, x)| *w as f64 * x).sum()).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + config.rms_norm_eps;
        x.iter().zip(&weights[name].1).map(|(x, w)| x / mean.sqrt() * *w as f64).collect()
    };
    let (d, frequencies) = (config.head_dim, rope::inverse_frequencies(config));
    let rotated = |x: &[f64], position: usize| -> Vec<f64> {
        let angle = |i: usize| position as f64 * frequencies[i % (d / 2)] as f64;
        let turned = |head: &[f64], i: usize| match i < d / 2 {
            true => head[i] * angle(i).cos() - head[i + d / 2] * angle(i).sin(),
            false => head[i] * angle(i).cos() + head[i - d / 2] * angle(i).sin(),
        };
        x.chunks(d).flat_map(|head| (0..d).map(|i| turned(head, i)).collect::<Vec<_>>()).collect()
    };
    let group = config.num_attention_heads / config.num_key_value_heads;
    let hidden = config.hidden_size;
    let mut xs: Vec<Vec<f64>> = tokens
        .iter()
        .map(|t| weights["embed_tokens.weight"].1[*t as usize * hidden..][..hidden].iter().map(|x| *x as f64).collect())
        .collect();
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("layers.{layer}.{part}.weight");
        let project = |part: &str, xs: &[Vec<f64>]| -> Vec<Vec<f64>> {
            xs.iter().map(|x| linear(&name(part), &norm(&name("input_layernorm"), x))).collect()
        };
        let turn = |rows: Vec<Vec<f64>>| rows.iter().enumerate().map(|(p, x)| rotated(x, p)).collect::<Vec<_>>();
        let q = turn(project("self_attn.q_proj", &xs));
        let k = turn(project("self_attn.k_proj", &xs));
        let v = project("self_attn.v_proj", &xs);
        for t in 0..xs.len() {
            let mut mixed = Vec::new();
            for head in 0..config.num_attention_heads {
                let own = |row: &[f64]| row[head / group * d..][..d].to_vec();
                let query = &q[t][head * d..][..d];
                let score =
                    |s: usize| own(&k[s]).iter().zip(query).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt();
                let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
                let total: f64 = weights.iter().sum();
                mixed.extend((0..d).map(|i| (0..=t).map(|s| weights[s] / total * own(&v[s])[i]).sum::<f64>()));
            }
            let mixed = if config.sub_norm { norm(&name("self_attn.attn_sub_norm"), &mixed) } else { mixed };
            let out = linear(&name("self_attn.o_proj"), &mixed);
            xs[t].iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
        for x in &mut xs {
            let normed = norm(&name("post_attention_layernorm"), x);
            let (gate, up) = (linear(&name("mlp.gate_proj"), &normed), linear(&name("mlp.up_proj"), &normed));
            let product: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let product = if config.sub_norm { norm(&name("mlp.ffn_sub_norm"), &product) } else { product };
            x.iter_mut().zip(linear(&name("mlp.down_proj"), &product)).for_each(|(x, d)| *x += d);
        }
    }
    let head = if config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
    xs.iter().flat_map(|x| linear(head, &norm("norm.weight", x))).map(|x| x as f32).collect()
}

#[test]
fn logits_are_those_of_the_formulas() {
    let mut config = tiny_config();
    let schemes: [fn(&WeightSpec) -> Option<Scheme>; 2] = [|_| None, mixed];
    for tied in [true, false] {
        config.tie_word_embeddings = tied;
        for scaling in [None, Some(RopeScaling::Linear { factor: 3.0 })] {
            config.rope_scaling = scaling;
            for scheme in schemes {
                for sub_norm in [false, true] {
                    config.sub_norm = sub_norm;
                    let expected = naive_logits(&config, scheme, &TOKENS);
                    assert_close(&all_logits(&decoder(&config, scheme), &TOKENS), &expected, 1e-4);
                }
            }
        }
    }
}

#[test]
fn a_batch_is_the_same_as_token_by_token_or_in_parts() {
    let decoder = decoder(&ModelConfig { sub_norm: true, ..tiny_config() }, mixed);
    let whole = all_logits(&decoder, &TOKENS);
    for part in [1, 4] {
        let mut cache = decoder.new_cache();
        let parts: Vec<f32> =
            TOKENS.chunks(part).flat_map(|p| decoder.forward(p, &mut cache, LogitsOf::All).unwrap()).collect();
        assert_close(&parts, &whole, 1e-4);
        assert_eq!(cache.len(), TOKENS.len());
    }
}

#[test]
fn only_the_logits_asked_for() {
    let decoder = decoder(&tiny_config(), mixed);
    let whole = all_logits(&decoder, &TOKENS);
    for (of, first) in
        [(LogitsOf::Last, 10), (LogitsOf::From(7), 7), (LogitsOf::From(11), 11), (LogitsOf::From(99), 11)]
    {
        let logits = decoder.forward(&TOKENS, &mut decoder.new_cache(), of).unwrap();
        assert_close(&logits, &whole[first * 258..], 1e-4);
    }
}

#[test]
fn endings_share_what_stands_in_front_of_them() {
    let mut decoder = decoder(&tiny_config(), mixed);
    for split in [0, 1, 7] {
        let (beginning, rest) = TOKENS.split_at(split);
        let endings = [rest, &rest[..2], &rest[1..]];
        let found = decoder.logits_of_endings(beginning, &endings).unwrap();
        assert_eq!(found.len(), endings.len());
        for (found, ending) in found.iter().zip(endings) {
            let alone = decoder.logits_from(&[beginning, ending].concat(), split).unwrap();
            assert_close(found, &alone, 1e-4);
        }
    }
    assert!(
        decoder.logits_of_endings(&[1; 60], &[&[2, 3], &[2; 5]]).unwrap_err().to_string().contains("context of 64")
    );
}

#[test]
fn a_cleared_cache_begins_anew() {
    let decoder = decoder(&tiny_config(), mixed);
    let mut cache = decoder.new_cache();
    let first = decoder.forward(&TOKENS, &mut cache, LogitsOf::All).unwrap();
    cache.clear();
    assert!(cache.is_empty());
    assert_eq!(decoder.forward(&TOKENS, &mut cache, LogitsOf::All).unwrap(), first);
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_cache_as_it_was() {
    let decoder = decoder(&tiny_config(), mixed);
    let mut cache = decoder.new_cache();
    decoder.forward(&TOKENS, &mut cache, LogitsOf::Last).unwrap();
    let error = decoder.forward(&[1; 54], &mut cache, LogitsOf::Last).unwrap_err();
    assert!(matches!(error, Error::Context { positions: 65, limit: 64 }), "{error}");
    let error = decoder.forward(&[258], &mut cache, LogitsOf::Last).unwrap_err();
    assert!(matches!(error, Error::Token { token: 258, vocab_size: 258 }), "{error}");
    assert_eq!(cache.len(), TOKENS.len());
    decoder.forward(&[1; 53], &mut cache, LogitsOf::Last).unwrap();
}

#[test]
fn weights_of_another_shape_are_refused() {
    let broken = |name: &str| {
        Decoder::new(tiny_config(), |spec| {
            let mut spec = spec.clone();
            if spec.name.contains(name) {
                spec.shape[0] += 1;
            }
            Ok(random_weight(&spec, mixed(&spec), 1))
        })
    };
    for name in ["embed_tokens", "layers.1.mlp.up_proj", "layers.0.self_attn.o_proj", "norm.weight"] {
        let message = broken(name).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
    assert!(broken("nothing").is_ok());
}

#[test]
fn generation_is_deterministic_streams_all_text_and_stops() {
    let (mut config, tokenizer) = (tiny_config(), byte_tokenizer());
    config.eos_token_ids.clear();
    let decoder = decoder(&config, mixed);
    let run = |max_tokens, sampling| {
        let mut streamed = String::new();
        let generation = generate(
            &decoder,
            &tokenizer,
            "héllo",
            &GenerationOptions { max_tokens, sampling, stop: Vec::new() },
            |piece| {
                streamed.push_str(piece);
                ControlFlow::Continue(())
            },
        );
        let generation = generation.unwrap();
        assert_eq!(generation.text, streamed);
        generation
    };
    let greedy = run(20, Sampling::default());
    assert_eq!((greedy.stop, greedy.tokens.len(), greedy.prompt_tokens), (Stop::MaxTokens, 20, 6));
    assert_eq!(greedy.tokens, run(20, Sampling::default()).tokens);
    let mut cache = decoder.new_cache();
    let prompt = bitllama_runtime::text::encode(&tokenizer, None, "héllo").unwrap();
    let all = decoder.forward(&[&prompt[..], &greedy.tokens].concat(), &mut cache, LogitsOf::All).unwrap();
    for (row, token) in all.chunks(258).skip(prompt.len() - 1).zip(&greedy.tokens) {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(row[*token as usize] >= best - 1e-4, "greedy takes the likeliest token");
    }
    let warm = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    assert_eq!(run(20, warm.clone()).tokens, run(20, warm.clone()).tokens);
    assert_ne!(run(20, warm.clone()).tokens, run(20, Sampling { seed: 4, ..warm.clone() }).tokens);

    assert_eq!(run(0, warm.clone()).stop, Stop::MaxTokens);
    let long = run(1000, warm);
    // The last token needs no place of its own: nothing is computed from it.
    assert_eq!((long.stop, long.tokens.len()), (Stop::ContextFull, 64 - 6 + 1));
}

#[test]
fn generation_ends_at_an_end_token_or_when_nobody_listens() {
    let (mut config, tokenizer) = (tiny_config(), byte_tokenizer());
    let warm = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    let options = GenerationOptions { max_tokens: 30, sampling: warm, stop: Vec::new() };
    let run =
        |config: &ModelConfig, flow| generate(&decoder(config, mixed), &tokenizer, "ab", &options, |_| flow).unwrap();
    let whole = run(&config, ControlFlow::Continue(()));
    config.eos_token_ids = vec![whole.tokens[9], 257];
    let ended = run(&config, ControlFlow::Continue(()));
    let end = whole.tokens.iter().position(|t| *t == whole.tokens[9]).unwrap();
    assert_eq!((ended.stop, ended.tokens.as_slice()), (Stop::EndOfText, &whole.tokens[..end]));
    assert_eq!(run(&config, ControlFlow::Break(())).stop, Stop::Interrupted);

    // Without the end token, up to a string that the text has.
    config.eos_token_ids = vec![257];
    let cut = whole.text.char_indices().nth(4).unwrap().0;
    let stop: String = whole.text[cut..].chars().take(2).collect();
    let options = GenerationOptions { stop: vec!["no such text".into(), stop.clone()], ..options.clone() };
    let mut streamed = String::new();
    let stopped = generate(&decoder(&config, mixed), &tokenizer, "ab", &options, |piece| {
        streamed.push_str(piece);
        ControlFlow::Continue(())
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.stop, &stopped.text), (Stop::StopString, &streamed));
    assert_eq!(stopped.text, whole.text[..whole.text.find(&stop).unwrap()]);
}

#[test]
fn prompts_that_cannot_be_continued_are_refused() {
    let tokenizer = byte_tokenizer();
    let mut config = tiny_config();
    config.bos_token_id = None;
    let options = GenerationOptions { max_tokens: 1, ..GenerationOptions::default() };
    let run = |text: &str| {
        let go = |_: &str| ControlFlow::Continue(());
        generate(&decoder(&config, mixed), &tokenizer, text, &options, go).map(|_| ())
    };
    assert!(matches!(run(""), Err(Error::EmptyPrompt)));
    assert!(matches!(run(&"a".repeat(65)), Err(Error::Context { positions: 65, limit: 64 })));
    run(&"a".repeat(64)).unwrap();
}

#[test]
fn a_model_compared_with_itself_and_with_another() {
    let tokens: Vec<u32> = (0..100).map(|i| i * 37 % 256).collect();
    let options = Options { ctx: 32, chunks: None, bos: Some(256) };
    let (mut full, mut low) = (decoder(&tiny_config(), |_| None), decoder(&tiny_config(), mixed));
    let alone = perplexity(&mut low, &tokens, options, |_| ()).unwrap();
    assert_eq!((alone.chunks, alone.tokens_scored), (3, 3 * 15));
    assert!(alone.perplexity > 1.0 && alone.error > 0.0);
    let mut again = decoder(&tiny_config(), mixed);
    let same = compare(&mut again, &mut low, &tokens, options, |_| ()).unwrap();
    assert_eq!((same.mean_kld, same.same_top, same.student), (0.0, 1.0, alone));
    let other = compare(&mut low, &mut full, &tokens, options, |_| ()).unwrap();
    assert!(other.mean_kld > 0.0 && other.same_top < 1.0 && other.student == alone);
    assert!(other.kld.median <= other.kld.p90 && other.kld.p99_9 <= other.kld.max);
}

#[test]
fn a_draft_changes_no_greedy_text_and_no_rule() {
    // Whole numbers with any number of guesses; sums in f32 with few.
    for (scheme, settings) in [(Some(Scheme::Int4), Settings::fast()), (None, Settings::default())] {
        check_draft(|seed| {
            let config = ModelConfig { max_position_embeddings: 200, ..testing::tiny_config() };
            let weight = |spec: &_| Ok(testing::random_weight(spec, scheme, seed));
            Decoder::new(config, weight).unwrap().with_settings(settings.clone())
        });
    }
}

fn check_draft(decoder: impl Fn(u64) -> Decoder) {
    let (model, tokenizer) = (decoder(1), testing::byte_tokenizer());
    let all = |_: &str| ControlFlow::Continue(());
    for draft in [decoder(1), decoder(2)] {
        for (prompt, max_tokens) in [("a", 0), ("a", 1), ("a", 2), ("some text", 37), ("some text", 1000)] {
            for sampling in [
                Sampling::default(),
                Sampling { frequency_penalty: 0.7, repetition_penalty: 1.3, ..Sampling::default() },
            ] {
                let options = GenerationOptions { max_tokens, sampling, ..GenerationOptions::default() };
                let alone = generate(&model, &tokenizer, prompt, &options, all).unwrap();
                let with = generate_with_draft(&model, Some(&draft), &tokenizer, prompt, &options, all).unwrap();
                assert_eq!((&with.tokens, &with.text, with.stop), (&alone.tokens, &alone.text, alone.stop));
                let counts = with.draft.unwrap();
                let passes = alone.tokens.len().saturating_sub(1);
                assert!(counts.passes + counts.accepted >= passes && counts.accepted <= counts.guessed, "{counts:?}");
                // A stop string amid guesses ends the text where it would.
                let Some((at, _)) = alone.text.char_indices().nth(20) else { continue };
                let stop: String = alone.text[at..].chars().take(3).collect();
                let options = GenerationOptions { stop: vec![stop], ..options };
                let alone = generate(&model, &tokenizer, prompt, &options, all).unwrap();
                let with = generate_with_draft(&model, Some(&draft), &tokenizer, prompt, &options, all).unwrap();
                assert_eq!((&with.text, with.stop), (&alone.text, alone.stop));
            }
        }
        // Samples come out the same way each time.
        let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
        let options = GenerationOptions { max_tokens: 60, sampling, ..GenerationOptions::default() };
        let run = || generate_with_draft(&model, Some(&draft), &tokenizer, "x", &options, all).unwrap().tokens;
        assert_eq!(run(), run());
    }
    // A session goes on after its answers, as without a draft.
    let (draft, options) = (decoder(1), GenerationOptions { max_tokens: 30, ..GenerationOptions::default() });
    let (mut plain, mut guessed) = (Session::new(&model, 200), Session::new(&model, 200).with_draft(&draft));
    for prompt in [&[1, 2, 3][..], &[1, 2, 3, 4, 5], &[9, 9]] {
        let alone = generate_in(&mut plain, &tokenizer, prompt, &options, all).unwrap();
        let with = generate_in(&mut guessed, &tokenizer, prompt, &options, all).unwrap();
        assert_eq!(with.tokens, alone.tokens);
    }
}
