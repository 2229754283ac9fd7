//! Requests that run together against the same ones alone.

use bitllama_core::ModelConfig;
use bitllama_runtime::{Decoder, GenerationOptions, KvCache, Sampling, Settings};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::testing;

fn config() -> ModelConfig {
    ModelConfig { max_position_embeddings: 640, ..testing::tiny_config() }
}

/// An engine of a model whose products are whole numbers, as those of `bitllama serve` are.
fn engine(limits: Limits) -> Engine {
    Engine::start(decoder(1), testing::byte_tokenizer(), None, limits)
}

fn decoder(seed: u64) -> Decoder {
    let weight = |spec: &_| Ok(testing::random_weight(spec, Some(bitllama_core::Scheme::Int4), seed));
    Decoder::new(config(), weight).unwrap().with_settings(Settings::fast())
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let options = GenerationOptions { max_tokens, ..GenerationOptions::default() };
    Request { prompt, options, logprobs: None, prompt_logprobs: false, ignore_eos: true, constraint: None, tools: None }
}

/// A prompt of bytes that depends on `seed`.
fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2654435761).wrapping_add(seed * 97) >> 7) % 256).collect()
}

/// Everything that comes of a request.
#[derive(Debug, Default, PartialEq)]
struct Found {
    tokens: Vec<u32>,
    text: String,
    cached: usize,
    prompt_logprobs: usize,
    stop: Option<Stop>,
}

fn wait(mut events: UnboundedReceiver<Event>) -> Found {
    let mut found = Found::default();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Prompt(prompt) => {
                (found.cached, found.prompt_logprobs) = (prompt.cached, prompt.logprobs.len());
            }
            Event::Token(token) => {
                found.tokens.push(token.token);
                found.text.push_str(&token.text);
            }
            Event::Done(done) => {
                assert_eq!(done.tokens, found.tokens.len());
                found.text.push_str(&done.text);
                found.stop = Some(done.stop);
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    found
}

fn alone(request: Request) -> Found {
    wait(engine(Limits::default()).submit(request).unwrap())
}

/// The same result, wherever the positions of its prompt came from.
fn assert_same(found: &Found, alone: &Found, what: &str) {
    assert_eq!((&found.tokens, &found.text, found.stop), (&alone.tokens, &alone.text, alone.stop), "{what}");
}

#[test]
fn requests_together_have_the_tokens_of_each_alone() {
    let engine = engine(Limits { chunk: 37, batch: 5, ..Limits::default() });
    let requests: Vec<Request> =
        (0..12).map(|i| request(prompt(20 + 41 * i as usize % 300, i), 5 + 9 * i as usize % 40)).collect();
    let events: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    for (index, (request, events)) in requests.into_iter().zip(events).enumerate() {
        assert_same(&wait(events), &alone(request), &format!("request {index}"));
    }
}

#[test]
fn tokens_that_a_draft_guesses_are_those_without_it() {
    // A draft that is always right, and one that is never.
    for (seed, share) in [(1, 0.9..1.01), (2, 0.0..0.3)] {
        let limits = Limits { chunk: 37, batch: 5, ..Limits::default() };
        let engine = Engine::start(decoder(1), testing::byte_tokenizer(), Some(decoder(seed)), limits);
        let requests: Vec<Request> = (0..9)
            .map(|i| {
                let mut request = request(prompt(20 + 41 * i as usize % 300, i), 5 + 31 * i as usize % 150);
                request.logprobs = (i % 2 == 0).then_some(1);
                request
            })
            .collect();
        let events: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        for (index, (request, events)) in requests.into_iter().zip(events).enumerate() {
            assert_same(&wait(events), &alone(request), &format!("request {index}"));
        }
        // Alone, more is guessed than in company; and what was generated is cached as ever.
        let long = request(prompt(60, 3), 300);
        let found = wait(engine.submit(long.clone()).unwrap());
        assert_same(&found, &alone(long), "alone");
        let going = request([&prompt(60, 3)[..], &found.tokens, &[7, 8]].concat(), 20);
        let again = wait(engine.submit(going.clone()).unwrap());
        assert!(again.cached >= 60 + 299, "{}", again.cached);
        assert_same(&again, &alone(going), "after what was generated");
        let value = |name: &str| engine.metrics().values().iter().find(|(other, _)| *other == name).unwrap().1;
        let guessed = value("bitllama_draft_tokens_total");
        let accepted = value("bitllama_draft_tokens_accepted_total");
        assert!(guessed > 0.0 && share.contains(&(accepted / guessed)), "{accepted} of {guessed}");
        // Samples have their own distribution, and end as others.
        let mut warm = request(prompt(30, 1), 50);
        warm.options.sampling = Sampling { temperature: 1.5, seed: 4, ..Sampling::default() };
        assert_eq!(wait(engine.submit(warm).unwrap()).tokens.len(), 50);
    }
}

#[test]
fn memory_that_requests_share_counts_once() {
    let one = KvCache::bytes_for(&config(), Settings::fast().kv, 512);
    // Room for three texts of 512 positions, but ten that begin the same way.
    let engine = engine(Limits { kv_bytes: 3 * one, ..Limits::default() });
    let beginning = prompt(500, 1);
    wait(engine.submit(request(beginning.clone(), 1)).unwrap());
    let requests: Vec<Request> = (0..4).map(|i| request([&beginning[..], &prompt(3, i)].concat(), 9)).collect();
    let events: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    for (request, events) in requests.into_iter().zip(events) {
        let found = wait(events);
        assert_eq!(found.cached, 500);
        assert_same(&found, &alone(request), "of those that share");
    }
    let bytes = engine.metrics().values().iter().find(|(name, _)| *name == "bitllama_kv_cache_bytes").unwrap().1;
    assert!(bytes <= 3.0 * one as f64, "{bytes} bytes of {}", 3 * one);
}

#[test]
fn sampled_requests_go_by_their_seeds() {
    let engine = engine(Limits::default());
    let warm = |seed| {
        let mut request = request(prompt(30, 1), 20);
        request.options.sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        request
    };
    let found: Vec<Found> = [1, 2, 1].map(|seed| engine.submit(warm(seed)).unwrap()).into_iter().map(wait).collect();
    assert_eq!(found[0].tokens, found[2].tokens);
    assert_ne!(found[0].tokens, found[1].tokens);
    assert_eq!(found[1].tokens, alone(warm(2)).tokens);
}

#[test]
fn a_beginning_that_was_computed_is_not_computed_again_and_changes_nothing() {
    let engine = engine(Limits::default());
    let shared = prompt(333, 7);
    let first = wait(engine.submit(request(shared.clone(), 10)).unwrap());
    assert_eq!(first.cached, 0);
    for (tail, cached) in [(prompt(5, 1), 333), (prompt(90, 2), 333), (Vec::new(), 332)] {
        let request = request([&shared[..], &tail].concat(), 25);
        let found = wait(engine.submit(request.clone()).unwrap());
        assert_eq!(found.cached, cached, "of {} tokens", request.prompt.len());
        assert_same(&found, &alone(request), "after a cached beginning");
    }
    // A conversation goes on: what was generated is cached too.
    let going = request([&shared[..], &first.tokens, &prompt(9, 3)].concat(), 5);
    let found = wait(engine.submit(going.clone()).unwrap());
    assert!(found.cached >= 333 + 9, "{}", found.cached);
    assert_same(&found, &alone(going), "after what was generated");
    // Several at once, of which the first computes the beginning for all.
    let others: Vec<Request> = (0..4).map(|i| request([&prompt(200, 11)[..], &prompt(3, i)].concat(), 8)).collect();
    let events: Vec<_> = others.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let found: Vec<Found> = events.into_iter().map(wait).collect();
    assert_eq!(found.iter().filter(|found| found.cached >= 200).count(), 3, "{found:?}");
    others.into_iter().zip(&found).for_each(|(request, found)| assert_same(found, &alone(request), "at once"));
}

#[test]
fn requests_wait_their_turn_where_memory_ends_and_have_the_same_tokens() {
    let positions = 400;
    let bytes = KvCache::bytes_for(&config(), Settings::fast().kv, positions + 256);
    let engine = engine(Limits { kv_bytes: 2 * bytes, ..Limits::default() });
    // Each needs more than half of what there is in the end, so that some lose their positions on the way.
    let requests: Vec<Request> = (0..5).map(|i| request(prompt(100 + i as usize, i), 300)).collect();
    let events: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    for (index, (request, events)) in requests.into_iter().zip(events).enumerate() {
        assert_same(&wait(events), &alone(request), &format!("request {index}"));
    }
    let refused = engine.submit(request(prompt(10, 0), 630));
    assert!(refused.is_ok(), "630 positions fit");
    let engine = super::tests::engine(Limits { kv_bytes: bytes / 4, ..Limits::default() });
    assert!(matches!(engine.submit(request(prompt(300, 0), 300)), Err(Refused::Memory { .. })));
}

#[test]
fn a_request_ends_at_its_length_a_stop_string_or_the_end_of_the_context() {
    let whole = alone(request(prompt(20, 3), 40));
    assert_eq!((whole.stop, whole.tokens.len()), (Some(Stop::MaxTokens), 40));
    let start = whole.text.char_indices().nth(6).unwrap().0;
    let stop: String = whole.text[start..].chars().take(2).collect();
    let mut stopped = request(prompt(20, 3), 40);
    stopped.options.stop = vec![stop.clone()];
    let found = alone(stopped);
    assert_eq!(found.stop, Some(Stop::StopString));
    assert_eq!(found.text, whole.text[..whole.text.find(&stop).unwrap()]);
    let long = alone(request(prompt(600, 3), 1000));
    assert_eq!(long.tokens.len(), 41);
    let nothing = alone(request(prompt(20, 3), 0));
    assert_eq!((nothing.stop, nothing.tokens.len()), (Some(Stop::MaxTokens), 0));
}

#[test]
fn probabilities_of_a_prompt_are_given_for_all_tokens_but_the_first() {
    let mut asked = request(prompt(150, 3), 1);
    (asked.logprobs, asked.prompt_logprobs) = (Some(2), true);
    let engine = engine(Limits { chunk: 32, ..Limits::default() });
    for _ in 0..2 {
        let found = wait(engine.submit(asked.clone()).unwrap());
        assert_eq!((found.prompt_logprobs, found.cached), (149, 0));
    }
}

#[test]
fn a_full_queue_refuses_and_cancelled_requests_make_room() {
    let engine = engine(Limits { batch: 1, queue: 2, ..Limits::default() });
    let long = || request(prompt(100, 1), 500);
    let mut taken = Vec::new();
    let refused = loop {
        match engine.submit(long()) {
            Ok(events) => taken.push(events),
            Err(refused) => break refused,
        }
        assert!(taken.len() < 10, "nothing was refused");
    };
    assert!(matches!(refused, Refused::QueueFull(_)));
    drop(taken);
    // The engine notices before its next pass.
    let short = request(prompt(10, 1), 3);
    let start = std::time::Instant::now();
    let events = loop {
        match engine.submit(short.clone()) {
            Ok(events) => break events,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
        assert!(start.elapsed().as_secs() < 20, "cancelled requests still wait");
    };
    assert_eq!(wait(events).tokens.len(), 3);
    assert!(matches!(engine.submit(request(vec![9999], 1)), Err(Refused::Invalid(_))));
    assert!(matches!(engine.submit(request(Vec::new(), 1)), Err(Refused::Invalid(_))));
    assert!(matches!(engine.submit(request(prompt(641, 1), 1)), Err(Refused::Context { .. })));
    engine.drain();
    assert!(matches!(engine.submit(short), Err(Refused::Stopping)));
}
