//! Logarithms of probabilities, of the model as it is: before temperature, penalties and cuts.

/// The probability of a token, and the likeliest tokens in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens with their logarithms, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprob {
    /// The probability of `token` by its `logits`, and the `top` likeliest.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let logprob = |token: u32| (f64::from(logits[token as usize] - max) - sum.ln()) as f32;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top < order.len() {
            order.select_nth_unstable_by(top, likelier);
            order.truncate(top);
        }
        order.sort_unstable_by(likelier);
        Self { token, logprob: logprob(token), top: order.into_iter().map(|token| (token, logprob(token))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_likeliest_come_first() {
        let logits = [0.0, 2f32.ln(), 5f32.ln(), 0.0];
        let found = TokenLogprob::of(&logits, 1, 2);
        assert!((found.logprob.exp() - 2.0 / 9.0).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(found.top[1].1, found.logprob);
        let all = TokenLogprob::of(&logits, 0, 9).top;
        assert_eq!(all.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 1, 0, 3]);
        assert!((all.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(TokenLogprob::of(&logits, 0, 0).top.is_empty());
    }
}
