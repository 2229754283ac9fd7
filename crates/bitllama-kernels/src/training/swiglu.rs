//! SwiGLU (Shazeer 2020, <https://arxiv.org/abs/2002.05202>) over gates and values that lie side by side, as one product
//! with both matrices leaves them.

use rayon::prelude::*;

use super::rows_of_part;
use super::runs::{for_lanes, load, store};
use crate::isa::Isa;
use crate::operators::exp_lanes;
use crate::operators::lanes::{Simd, for_isa};

/// `silu(gate) * up` into `out` (`[n, width]`), for `gate_up` (`[n, 2 * width]`): in each row the gates, then the values.
///
/// # Panics
/// If `gate_up` is not twice as long as `out`, or they are no rows of `width`.
pub fn forward(isa: Isa, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width), "not the same rows");
    let rows = rows_of_part(2 * width);
    let parts = gate_up.par_chunks(rows * 2 * width).zip(out.par_chunks_mut(rows * width));
    parts.for_each(|(gate_up, out)| for_isa!(isa, forward_rows(gate_up: &[f32], width: usize, out: &mut [f32])));
}

/// The gradient `d_gate_up` (`[n, 2 * width]`, overwritten) of [`forward`] for `d_out` (`[n, width]`).
///
/// # Panics
/// If the lengths disagree.
pub fn backward(isa: Isa, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    assert!(gate_up.len() == 2 * d_out.len() && d_out.len().is_multiple_of(width), "not the same rows");
    assert_eq!(gate_up.len(), d_gate_up.len(), "the gradient is of another length");
    let rows = rows_of_part(4 * width);
    let inputs = gate_up.par_chunks(rows * 2 * width).zip(d_out.par_chunks(rows * width));
    inputs.zip(d_gate_up.par_chunks_mut(rows * 2 * width)).for_each(|((gate_up, d_out), d_gate_up)| {
        for_isa!(isa, backward_rows(gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]));
    });
}

#[inline(always)]
fn forward_rows<S: Simd>(s: S, gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = gate_up.split_at(width);
        for_lanes!(width, place => {
            let gate = load(s, &gate[place.clone()]);
            let silu = s.mul(gate, sigmoid(s, gate));
            store(s, s.mul(silu, load(s, &up[place.clone()])), &mut out[place]);
        });
    }
}

#[inline(always)]
fn backward_rows<S: Simd>(s: S, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    let rows = gate_up.chunks_exact(2 * width).zip(d_out.chunks_exact(width));
    for ((gate_up, d_out), d_gate_up) in rows.zip(d_gate_up.chunks_exact_mut(2 * width)) {
        let (gate, up) = gate_up.split_at(width);
        let (d_gate, d_up) = d_gate_up.split_at_mut(width);
        for_lanes!(width, place => {
            let (gate, up) = (load(s, &gate[place.clone()]), load(s, &up[place.clone()]));
            let d_out = load(s, &d_out[place.clone()]);
            let sigma = sigmoid(s, gate);
            let silu = s.mul(gate, sigma);
            // d silu / d gate = sigma (1 + gate (1 - sigma)) = sigma + silu (1 - sigma).
            let slope = s.mul_add(silu, s.sub(s.splat(1.0), sigma), sigma);
            store(s, s.mul(s.mul(d_out, up), slope), &mut d_gate[place.clone()]);
            store(s, s.mul(d_out, silu), &mut d_up[place]);
        });
    }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(s.splat(1.0), s.add(s.splat(1.0), exp_lanes(s, s.sub(s.splat(0.0), x))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        for (rows, width) in [(1, 1), (3, 5), (2, 16), (70, 1037)] {
            let gate_up: Vec<f32> = (0..rows * 2 * width).map(|i| ((i * 7919) % 1009) as f32 / 60.0 - 8.0).collect();
            let d_out: Vec<f32> = (0..rows * width).map(|i| ((i * 104_729) % 997) as f32 / 500.0 - 1.0).collect();
            for isa in Isa::available() {
                let (mut out, mut d_gate_up) = (vec![f32::NAN; rows * width], vec![f32::NAN; gate_up.len()]);
                forward(isa, &gate_up, width, &mut out);
                backward(isa, &gate_up, width, &d_out, &mut d_gate_up);
                for i in 0..out.len() {
                    let place = i / width * 2 * width + i % width;
                    let (gate, up, d) = (gate_up[place] as f64, gate_up[place + width] as f64, d_out[i] as f64);
                    let silu = |x: f64| x / (1.0 + (-x).exp());
                    let slope = (silu(gate + 1e-5) - silu(gate - 1e-5)) / 2e-5;
                    let close = |got: f32, expected: f64| {
                        assert!(
                            (got as f64 - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                            "{isa} {got} {expected}"
                        );
                    };
                    close(out[i], silu(gate) * up);
                    close(d_gate_up[place], d * up * slope);
                    close(d_gate_up[place + width], d * silu(gate));
                }
            }
        }
    }
}
