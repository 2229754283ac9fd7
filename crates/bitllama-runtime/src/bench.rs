//! How fast a decoder runs on this machine, by the tests of llama.cpp's `llama-bench`: prompt processing (pp) and text
//! generation (tg), with the memory bandwidth that bounds the latter.

mod random;
mod random_blocks;

use std::time::Instant;

use bitllama_kernels::Pool;
use bitllama_kernels::bandwidth::Stream;
use serde::Serialize;

pub use self::random::{random_decoder, random_weight};
pub use self::random_blocks::{formats_with_codes, random_block_decoder};
use crate::forward::Sequence;
use crate::model::{Decoder, LogitsOf};
use crate::{Error, KvCache, Result, memory};

/// What to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Tokens of the prompt test; 0 leaves it out.
    pub prompt: usize,
    /// Tokens of the generation test; 0 leaves it out.
    pub generate: usize,
    /// Tokens in the cache before each test.
    pub depth: usize,
    /// Sequences that generate together.
    pub sequences: usize,
    /// Times that each test is run, after one run to warm up.
    pub repetitions: usize,
}

/// Speeds of the repetitions of one test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the samples.
    pub sd: f64,
    /// Median.
    pub median: f64,
    /// Every repetition.
    pub samples: Vec<f64>,
}

/// One test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Test {
    /// `pp512`, `tg128`, `tg128x4` for four sequences; `@d100` behind it for a depth of 100.
    pub test: String,
    /// Tokens a second, over all sequences.
    pub tokens_per_second: Speed,
    /// Bytes a second read from memory, at the median: weights once a pass, and keys and values. For generation only.
    pub bytes_per_second: Option<f64>,
}

/// Times `decoder` as `options` say.
///
/// # Errors
/// [`Error::Options`] if nothing is to be timed, [`Error::Context`] if the tests do not fit into the model's context,
/// [`Error::Memory`] if their keys and values do not fit into memory.
pub fn run(decoder: &Decoder, options: Options) -> Result<Vec<Test>> {
    run_beside(decoder, options, || ())
}

/// As [`run`], calling `beside` before, between and after the tests.
///
/// # Errors
/// As [`run`].
pub fn run_beside(decoder: &Decoder, options: Options, mut beside: impl FnMut()) -> Result<Vec<Test>> {
    let Options { prompt, generate, depth, sequences, repetitions } = options;
    if repetitions == 0 || sequences == 0 || (prompt == 0 && generate == 0) {
        return Err(Error::Options("nothing to time: no tokens, no sequences or no repetitions".into()));
    }
    let (config, positions) = (decoder.config(), depth.saturating_add(prompt.max(generate)));
    if positions > config.max_position_embeddings {
        return Err(Error::Context { positions, limit: config.max_position_embeddings });
    }
    memory::ensure(KvCache::bytes_at_most(config, positions).saturating_mul(sequences as u128), 1)?;
    let at_depth = |name: String| if depth > 0 { format!("{name}@d{depth}") } else { name };
    let mut tests = Vec::new();
    beside();
    if prompt > 0 {
        let speed = repeat(repetitions, || time_prompt(decoder, prompt, depth))?;
        tests.push(Test { test: at_depth(format!("pp{prompt}")), tokens_per_second: speed, bytes_per_second: None });
        beside();
    }
    if generate > 0 {
        let mut cache_bytes = 0;
        let speed = repeat(repetitions, || time_generation(decoder, generate, depth, sequences, &mut cache_bytes))?;
        let name = if sequences > 1 { format!("tg{generate}x{sequences}") } else { format!("tg{generate}") };
        // On average half of the generated positions are there to be read.
        let bytes_a_pass = decoder.bytes_per_token() as f64 + cache_bytes as f64;
        let passes = speed.median / sequences as f64;
        let bytes_per_second = Some(passes * bytes_a_pass);
        tests.push(Test { test: at_depth(name), tokens_per_second: speed, bytes_per_second });
        beside();
    }
    Ok(tests)
}

/// Tokens without meaning, in the vocabulary.
fn token(decoder: &Decoder, index: usize) -> u32 {
    ((7919 * index + 11) % decoder.config().vocab_size) as u32
}

fn time_prompt(decoder: &Decoder, prompt: usize, depth: usize) -> Result<f64> {
    let mut cache = decoder.new_cache_for(depth + prompt);
    let tokens: Vec<u32> = (0..depth + prompt).map(|index| token(decoder, index)).collect();
    if depth > 0 {
        decoder.forward(&tokens[..depth], &mut cache, LogitsOf::Last)?;
    }
    let start = Instant::now();
    decoder.forward(&tokens[depth..], &mut cache, LogitsOf::Last)?;
    Ok(prompt as f64 / start.elapsed().as_secs_f64())
}

fn time_generation(
    decoder: &Decoder,
    generate: usize,
    depth: usize,
    sequences: usize,
    cache_bytes: &mut usize,
) -> Result<f64> {
    let mut caches: Vec<_> = (0..sequences).map(|_| decoder.new_cache_for(depth + generate)).collect();
    let before: Vec<u32> = (0..depth).map(|index| token(decoder, index)).collect();
    for cache in &mut caches {
        decoder.forward(&before, cache, LogitsOf::Last)?;
    }
    *cache_bytes = 0;
    let start = Instant::now();
    for step in 0..generate {
        if step == generate / 2 {
            *cache_bytes = caches.iter().map(|cache| cache.bytes()).sum();
        }
        let tokens: Vec<u32> = (0..sequences).map(|index| token(decoder, depth + step * sequences + index)).collect();
        let mut batch: Vec<Sequence> = tokens
            .chunks(1)
            .zip(&mut caches)
            .map(|(tokens, cache)| Sequence { tokens, cache, logits: LogitsOf::Last })
            .collect();
        decoder.forward_batch(&mut batch)?;
    }
    Ok((generate * sequences) as f64 / start.elapsed().as_secs_f64())
}

fn repeat(repetitions: usize, mut time: impl FnMut() -> Result<f64>) -> Result<Speed> {
    time()?;
    let samples: Vec<f64> = (0..repetitions).map(|_| time()).collect::<Result<_>>()?;
    Ok(Speed::of(samples))
}

impl Speed {
    /// Mean, deviation and median of at least one sample.
    pub fn of(samples: Vec<f64>) -> Self {
        let count = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let sd = if samples.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
        let mut sorted = samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { mean, sd, median: (low + high) / 2.0, samples }
    }
}

/// Times the tests of `options`, and reads `memory` with the decoder's threads before, between and after them: the tests, and
/// the bytes a second of these reads. Their median is what memory gave while the tests ran; on machines that others share it
/// changes by half within minutes.
///
/// # Errors
/// As [`run`].
pub fn run_beside_memory(decoder: &Decoder, options: Options, memory: &Stream) -> Result<(Vec<Test>, Speed)> {
    let pool: &Pool = decoder.pool();
    let mut reads = Vec::new();
    let tests = run_beside(decoder, options, || reads.extend(memory.probe(pool, READS)))?;
    Ok((tests, Speed::of(reads)))
}

/// Reads of each probe.
const READS: usize = 4;

#[cfg(test)]
mod tests {
    use bitllama_core::{BitPlan, Granularity, Quantizer, Rule, Scheme};

    use super::*;
    use crate::testing::tiny_config;

    #[test]
    fn mean_deviation_and_median() {
        let speed = Speed::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((speed.mean, speed.median), (2.5, 2.5));
        assert!((speed.sd - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Speed::of(vec![7.0]).sd, 0.0);
    }

    #[test]
    fn random_models_of_every_scheme_run_and_are_timed() {
        for scheme in Scheme::ALL.map(Some).into_iter().chain([None]) {
            let a_row = scheme.map(|scheme| Quantizer::from(scheme).with_granularity(Granularity::Row));
            let rules = [("layers.*", Rule::from(a_row)), ("embed_tokens", Rule::Quantizer(Scheme::Int8.into()))];
            let decoder = random_decoder(&tiny_config(), &BitPlan::new(rules).unwrap()).unwrap();
            let options = Options { prompt: 5, generate: 3, depth: 2, sequences: 2, repetitions: 2 };
            let memory = Stream::new(decoder.pool(), 1 << 20);
            let (tests, reads) = run_beside_memory(&decoder, options, &memory).unwrap();
            assert!(reads.samples.len() == 3 * READS && reads.median > 0.0);
            assert_eq!(tests.iter().map(|t| t.test.as_str()).collect::<Vec<_>>(), ["pp5@d2", "tg3x2@d2"]);
            for test in &tests {
                assert_eq!(test.tokens_per_second.samples.len(), 2);
                assert!(test.tokens_per_second.samples.iter().all(|speed| *speed > 0.0));
            }
            assert!(tests[1].bytes_per_second > Some(0.0));
            let logits = decoder.forward(&[1, 2, 3], &mut decoder.new_cache(), LogitsOf::All).unwrap();
            assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != 0.0), "{scheme:?}");
        }
    }

    #[test]
    fn what_cannot_be_timed_is_refused() {
        let decoder = random_decoder(&tiny_config(), &BitPlan::new([]).unwrap()).unwrap();
        let options = Options { prompt: 0, generate: 0, depth: 0, sequences: 1, repetitions: 1 };
        assert!(run(&decoder, options).is_err());
        assert!(matches!(run(&decoder, Options { prompt: 1000, ..options }), Err(Error::Context { .. })));
    }
}
