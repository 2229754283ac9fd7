//! The gradients of quantizers: what passes to the weights, and what to scales that are trained.
//!
//! All are straight-through estimators (Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>): rounding itself counts as
//! the identity. With `v = w / scale` and the level `q` that it is rounded to (in units of the scale), gradients of
//! `q * scale` are:
//!
//! | method | to w | to the scale |
//! |---|---|---|
//! | `absmean`, `twn`, `minmax` | 1 | none: the scale counts as a constant |
//! | `learned` | 1 | q |
//! | `elastic` | 1 where \|v\| <= 1, else 0 | q / sqrt(n) |
//! | `lsq` | 1 within the codes, else 0 | (q - v within the codes, else q) / sqrt(n Qp); with minimums, v = (w + minimum) / scale |
//! | `seq` | 1 where \|v\| <= 0.99, else 0 | (q - v there, else q, or sign(v) in ternary) / sqrt(n) |
//!
//! `n` is the number of weights that share the scale, `Qp` the largest code. Sources: LSQ,
//! <https://arxiv.org/abs/1902.08153>, equations 3 and 5; ParetoQ, <https://arxiv.org/abs/2502.02631>, `utils_quant.py` of
//! its code for `elastic` and `seq`, where `n` is the size of the matrix: for the optimizers here, which are indifferent
//! to the length of a gradient, that is the same.

use bitllama_core::rounding::{Offsets, Quantized, Scales, alpha_codes};
use bitllama_core::{Method, Quantizer, RowMatrix, Scheme};

/// The part of a stretched range in which weights have a gradient: ParetoQ's `clip_val`.
const STRETCHED: f32 = 0.99;

/// What a gradient is multiplied by on its way.
pub struct Factors<M> {
    /// To each weight; `None` is 1.
    pub weight: Option<M>,
    /// From each weight to its trained scale; `None` where none is trained.
    pub scale: Option<M>,
}

/// The factors of a rounded matrix of rows of `n` weights. `trained` are the scales as they are trained, `None` where they are
/// not.
pub fn factors<M: RowMatrix>(
    quantizer: &Quantizer,
    n: usize,
    weight: M,
    trained: Option<Scales<M>>,
    rounded: Quantized<M>,
) -> Factors<M> {
    let Some(Scales { scales, offsets }) = trained.filter(|_| quantizer.method.trains_scales()) else {
        return Factors { weight: None, scale: None };
    };
    let scheme = quantizer.scheme;
    let (low, high) = match &offsets {
        Some(_) => (0.0, (scheme.levels() - 1) as f32),
        None => scheme.code_range(),
    };
    // A minimum is a constant: what is scaled is the distance from it.
    let scaled = match &rounded.offsets {
        Some(Offsets::Minimums(minimums)) => weight.add_rows(minimums.clone()),
        _ => weight,
    };
    let v = scaled.div_rows(scales.clamp(f32::MIN_POSITIVE, f32::MAX));
    // In codes or fields, and the level in units of the trained scale.
    let (position, level) = match offsets {
        Some(Offsets::ZeroPoints(points)) => {
            (v.clone().add_rows(points.clone()), rounded.codes.add_rows(points.scale(-1.0)))
        }
        Some(Offsets::Minimums(_)) => (v.clone(), rounded.codes),
        None => (v.clone(), rounded.codes.scale(1.0 / alpha_codes(quantizer))),
    };
    let less = |a: M, b: M| a.add(b.scale(-1.0));
    let n = n as f32;
    let (weight, scale) = match quantizer.method {
        Method::Absmean | Method::Twn | Method::Minmax => (None, None),
        Method::Learned => (None, Some(level)),
        Method::Elastic => (Some(v.within(-1.0, 1.0)), Some(level.scale(1.0 / n.sqrt()))),
        Method::Lsq => {
            let inside = position.within(low, high);
            let scale = less(level, v.mul(inside.clone())).scale(1.0 / (n * high).sqrt());
            (Some(inside), Some(scale))
        }
        Method::Seq => {
            let inside = v.clone().within(-STRETCHED, STRETCHED);
            // ParetoQ's code takes 1 for the last level of ternary here, where its value is 2/3.
            let last = if scheme == Scheme::Ternary { 1.5 } else { 1.0 };
            let weight_of_level = inside.clone().scale(1.0 - last).shift(last);
            let scale = less(level.mul(weight_of_level), v.mul(inside.clone())).scale(1.0 / n.sqrt());
            (Some(inside), Some(scale))
        }
    };
    Factors { weight, scale }
}
