//! Generation of several sequences in step, for corpora.

use rayon::prelude::*;

use crate::model::{Decoder, LogitsOf};
use crate::sampling::{Sampler, Sampling};
use crate::{Result, Sequence};

/// Where a sequence starts, and how it goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// At least one token.
    pub tokens: Vec<u32>,
    /// How tokens are chosen after the first `greedy` ones, which are the likeliest.
    pub sampling: Sampling,
    /// Tokens that are not left to chance.
    pub greedy: usize,
}

/// Continues each start to `length` tokens in all, its own included, or to one of the model's `end_tokens`, which is left
/// out; all together, one token of each in every pass over the weights. What comes out depends on all starts: f32 products
/// may sum in another order for another number of rows.
///
/// # Errors
/// As [`crate::generate()`].
pub fn generate_batch(decoder: &Decoder, starts: &[Start], length: usize) -> Result<Vec<Vec<u32>>> {
    struct Active {
        index: usize,
        sampler: Sampler,
        likeliest: Sampler,
        greedy: usize,
        /// What the next pass reads.
        next: Vec<u32>,
    }
    let mut out: Vec<Vec<u32>> = starts.iter().map(|start| start.tokens.clone()).collect();
    let mut active = Vec::new();
    for (index, start) in starts.iter().enumerate().filter(|(_, start)| start.tokens.len() < length) {
        let (sampler, likeliest) =
            (Sampler::new(start.sampling.clone())?.after(&start.tokens), Sampler::new(Sampling::default())?);
        active.push(Active { index, sampler, likeliest, greedy: start.greedy, next: start.tokens.clone() });
    }
    let mut caches: Vec<_> = active.iter().map(|_| decoder.new_cache_for(length)).collect();
    let (ends, vocab) = (decoder.config().end_tokens().collect::<Vec<_>>(), decoder.config().vocab_size);
    while !active.is_empty() {
        let sequences = active.iter().zip(&mut caches);
        let mut batch: Vec<Sequence> =
            sequences.map(|(one, cache)| Sequence { tokens: &one.next, cache, logits: LogitsOf::Last }).collect();
        let logits = decoder.forward_batch(&mut batch)?;
        let chosen: Vec<u32> = active
            .par_iter_mut()
            .zip(logits.par_chunks_exact(vocab))
            .map(|(one, logits)| match one.greedy {
                0 => one.sampler.sample(logits),
                _ => {
                    one.greedy -= 1;
                    one.likeliest.sample(logits)
                }
            })
            .collect::<Result<_>>()?;
        let mut going = Vec::new();
        for ((mut one, cache), token) in active.into_iter().zip(caches).zip(chosen) {
            if ends.contains(&token) {
                continue;
            }
            out[one.index].push(token);
            if out[one.index].len() < length {
                one.next = vec![token];
                going.push((one, cache));
            }
        }
        (active, caches) = going.into_iter().unzip();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn start(token: u32, seed: u64) -> Start {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        Start { tokens: vec![token], sampling, greedy: 2 }
    }

    #[test]
    fn sequences_are_those_of_one_alone() {
        let decoder = Decoder::new(testing::tiny_config(), |spec| Ok(testing::random_weight(spec, None, 1))).unwrap();
        let starts: Vec<Start> = (0..5).map(|i| start(3 + i, i as u64)).collect();
        let together = generate_batch(&decoder, &starts, 12).unwrap();
        for (start, found) in starts.iter().zip(&together) {
            assert_eq!(found.first(), start.tokens.first());
            assert!(
                found.len() <= 12 && !found[1..].iter().any(|t| decoder.config().end_tokens().any(|end| end == *t))
            );
            assert_eq!(&generate_batch(&decoder, std::slice::from_ref(start), 12).unwrap()[0], found);
        }
        assert_eq!(together, generate_batch(&decoder, &starts, 12).unwrap());
        let others: Vec<Start> = (0..5).map(|i| start(3 + i, 100 + i as u64)).collect();
        assert_ne!(together, generate_batch(&decoder, &others, 12).unwrap());
        assert_eq!(
            generate_batch(&decoder, &starts, 1).unwrap(),
            starts.iter().map(|s| s.tokens.clone()).collect::<Vec<_>>()
        );
    }
}
