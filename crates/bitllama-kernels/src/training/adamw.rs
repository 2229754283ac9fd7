//! AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>) in one pass over a parameter, its gradient and both
//! moments, in place.

use rayon::prelude::*;

use super::PART;
use crate::isa::Isa;
use crate::simd::{Simd, for_isa};

/// What a step of AdamW is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Of the first moment.
    pub beta_1: f32,
    /// Of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Times the learning rate is taken off a parameter, as a share of it.
    pub weight_decay: f32,
    /// Gradients are multiplied with it first: what clipping leaves of them.
    pub gradient_scale: f32,
    /// The number of this step, the first is 1.
    pub time: i32,
}

/// Moves `parameter` by its `gradient` and both moments, all of one length. Moments of the first step start at zero. Each
/// number is computed by the same operations in the same order, and rounded at each, as by
/// `burn::optim::AdamW`, so results are the same to the bit.
///
/// # Panics
/// If the lengths differ.
pub fn step(isa: Isa, step: &Step, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    let len = parameter.len();
    assert!(gradient.len() == len && first.len() == len && second.len() == len, "lengths differ");
    let parts = parameter.par_chunks_mut(PART).zip(gradient.par_chunks(PART));
    parts.zip(first.par_chunks_mut(PART).zip(second.par_chunks_mut(PART))).for_each(
        |((parameter, gradient), (first, second))| {
            for_isa!(
                isa,
                step_all(step: &Step, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32])
            );
        },
    );
}

#[inline(always)]
fn step_all<S: Simd>(
    _: S,
    step: &Step,
    parameter: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let (factor_1, factor_2) = (1.0 - step.beta_1, 1.0 - step.beta_2);
    let (bias_1, bias_2) = (1.0 - step.beta_1.powi(step.time), 1.0 - step.beta_2.powi(step.time));
    let (lr, decay) = (step.lr as f32, step.lr * step.weight_decay as f64);
    // Without decay a multiplication by 1, which changes nothing.
    let kept = (1.0 - decay) as f32;
    let moments = first.iter_mut().zip(second);
    for ((parameter, gradient), (first, second)) in parameter.iter_mut().zip(gradient).zip(moments) {
        let gradient = *gradient * step.gradient_scale;
        *first = *first * step.beta_1 + gradient * factor_1;
        *second = *second * step.beta_2 + gradient * gradient * factor_2;
        let delta = (*first / bias_1) / ((*second / bias_2).sqrt() + step.epsilon);
        *parameter = *parameter * kept - delta * lr;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_paper() {
        let len = PART + 37;
        let start: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        for isa in Isa::available() {
            let (mut parameter, mut first, mut second) = (start.clone(), vec![0.0; len], vec![0.0; len]);
            let mut exact: Vec<[f64; 3]> = start.iter().map(|x| [*x as f64, 0.0, 0.0]).collect();
            for time in 1..=5 {
                let gradient: Vec<f32> =
                    (0..len).map(|i| ((i * 31 + time as usize * 17) % 97) as f32 / 48.0 - 1.0).collect();
                let told = Step {
                    lr: 1e-2,
                    beta_1: 0.9,
                    beta_2: 0.95,
                    epsilon: 1e-8,
                    weight_decay: 0.1,
                    gradient_scale: 0.5,
                    time,
                };
                step(isa, &told, &mut parameter, &gradient, &mut first, &mut second);
                for ([x, m, v], g) in exact.iter_mut().zip(&gradient) {
                    let g = 0.5 * *g as f64;
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.95 * *v + 0.05 * g * g;
                    let (m, v) = (*m / (1.0 - 0.9f64.powi(time)), *v / (1.0 - 0.95f64.powi(time)));
                    *x -= 1e-2 * 0.1 * *x + 1e-2 * m / (v.sqrt() + 1e-8);
                }
            }
            for (got, [expected, ..]) in parameter.iter().zip(&exact) {
                assert!((*got as f64 - expected).abs() < 1e-5, "{isa}: {got} {expected}");
            }
        }
    }
}
