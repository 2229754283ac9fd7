//! Gated activations (Shazeer 2020, <https://arxiv.org/abs/2002.05202>) over gates and values that lie side by side, as one
//! product with both matrices leaves them.

use bitllama_core::HiddenAct;
use rayon::prelude::*;

use super::rows_of_part;
use super::runs::{for_lanes, load, store};
use crate::isa::Isa;
use crate::operators::exp_lanes;
use crate::simd::{Simd, for_isa};

/// `act(gate) * up` into `out` (`[n, width]`), for `gate_up` (`[n, 2 * width]`): in each row the gates, then the values.
///
/// # Panics
/// If `gate_up` is not twice as long as `out`, or they are no rows of `width`.
pub fn forward(isa: Isa, act: HiddenAct, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width), "not the same rows");
    let rows = rows_of_part(2 * width);
    let parts = gate_up.par_chunks(rows * 2 * width).zip(out.par_chunks_mut(rows * width));
    parts.for_each(|(gate_up, out)| {
        for_isa!(isa, forward_rows(act: HiddenAct, gate_up: &[f32], width: usize, out: &mut [f32]));
    });
}

/// The gradient `d_gate_up` (`[n, 2 * width]`, overwritten) of [`forward`] for `d_out` (`[n, width]`).
///
/// # Panics
/// If the lengths disagree.
pub fn backward(isa: Isa, act: HiddenAct, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    assert!(gate_up.len() == 2 * d_out.len() && d_out.len().is_multiple_of(width), "not the same rows");
    assert_eq!(gate_up.len(), d_gate_up.len(), "the gradient is of another length");
    let rows = rows_of_part(4 * width);
    let inputs = gate_up.par_chunks(rows * 2 * width).zip(d_out.par_chunks(rows * width));
    inputs.zip(d_gate_up.par_chunks_mut(rows * 2 * width)).for_each(|((gate_up, d_out), d_gate_up)| {
        for_isa!(
            isa,
            backward_rows(act: HiddenAct, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32])
        );
    });
}

#[inline(always)]
fn forward_rows<S: Simd>(s: S, act: HiddenAct, gate_up: &[f32], width: usize, out: &mut [f32]) {
    match act {
        HiddenAct::Silu => forward_with::<S, Silu>(s, gate_up, width, out),
        HiddenAct::GeluTanh => forward_with::<S, GeluTanh>(s, gate_up, width, out),
        HiddenAct::Relu2 => forward_with::<S, Relu2>(s, gate_up, width, out),
    }
}

#[inline(always)]
fn forward_with<S: Simd, A: Act>(s: S, gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = gate_up.split_at(width);
        for_lanes!(width, place => {
            let value = A::value(s, load(s, &gate[place.clone()]));
            store(s, s.mul(value, load(s, &up[place.clone()])), &mut out[place]);
        });
    }
}

#[inline(always)]
fn backward_rows<S: Simd>(s: S, act: HiddenAct, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    match act {
        HiddenAct::Silu => backward_with::<S, Silu>(s, gate_up, width, d_out, d_gate_up),
        HiddenAct::GeluTanh => backward_with::<S, GeluTanh>(s, gate_up, width, d_out, d_gate_up),
        HiddenAct::Relu2 => backward_with::<S, Relu2>(s, gate_up, width, d_out, d_gate_up),
    }
}

#[inline(always)]
fn backward_with<S: Simd, A: Act>(s: S, gate_up: &[f32], width: usize, d_out: &[f32], d_gate_up: &mut [f32]) {
    let rows = gate_up.chunks_exact(2 * width).zip(d_out.chunks_exact(width));
    for ((gate_up, d_out), d_gate_up) in rows.zip(d_gate_up.chunks_exact_mut(2 * width)) {
        let (gate, up) = gate_up.split_at(width);
        let (d_gate, d_up) = d_gate_up.split_at_mut(width);
        for_lanes!(width, place => {
            let (gate, up) = (load(s, &gate[place.clone()]), load(s, &up[place.clone()]));
            let d_out = load(s, &d_out[place.clone()]);
            let (value, slope) = A::value_and_slope(s, gate);
            store(s, s.mul(s.mul(d_out, up), slope), &mut d_gate[place.clone()]);
            store(s, s.mul(d_out, value), &mut d_up[place]);
        });
    }
}

/// A function of a gate, and its derivative.
trait Act {
    fn value<S: Simd>(s: S, x: S::Floats) -> S::Floats;
    fn value_and_slope<S: Simd>(s: S, x: S::Floats) -> (S::Floats, S::Floats);
}

/// [`HiddenAct::Silu`]: `x sigma(x)`.
struct Silu;

impl Act for Silu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::Floats) -> S::Floats {
        s.mul(x, sigmoid(s, x))
    }

    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::Floats) -> (S::Floats, S::Floats) {
        let sigma = sigmoid(s, x);
        let value = s.mul(x, sigma);
        // d silu / dx = sigma (1 + x (1 - sigma)) = sigma + silu (1 - sigma).
        (value, s.mul_add(value, s.sub(s.splat(1.0), sigma), sigma))
    }
}

/// [`HiddenAct::GeluTanh`]: as `(1 + tanh(u)) / 2 = sigma(2 u)`, it is `x sigma(v)` with `v = 2 sqrt(2 / pi) (x + 0.044715 x^3)`.
struct GeluTanh;

impl GeluTanh {
    /// `2 sqrt(2 / pi)`, and that times 0.044715.
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_82;
}

impl Act for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::Floats) -> S::Floats {
        let v = s.mul(x, s.mul_add(s.mul(x, x), s.splat(Self::CUBIC), s.splat(Self::LINEAR)));
        s.mul(x, sigmoid(s, v))
    }

    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::Floats) -> (S::Floats, S::Floats) {
        let square = s.mul(x, x);
        let v = s.mul(x, s.mul_add(square, s.splat(Self::CUBIC), s.splat(Self::LINEAR)));
        let sigma = sigmoid(s, v);
        let value = s.mul(x, sigma);
        // d gelu / dx = sigma + x sigma (1 - sigma) dv / dx.
        let of_v = s.mul_add(square, s.splat(3.0 * Self::CUBIC), s.splat(Self::LINEAR));
        (value, s.mul_add(s.mul(value, of_v), s.sub(s.splat(1.0), sigma), sigma))
    }
}

/// [`HiddenAct::Relu2`]: `max(x, 0)^2`.
struct Relu2;

impl Act for Relu2 {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::Floats) -> S::Floats {
        let x = s.max(x, s.splat(0.0));
        s.mul(x, x)
    }

    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::Floats) -> (S::Floats, S::Floats) {
        let x = s.max(x, s.splat(0.0));
        (s.mul(x, x), s.add(x, x))
    }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    s.div(s.splat(1.0), s.add(s.splat(1.0), exp_lanes(s, s.sub(s.splat(0.0), x))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        for (act, (rows, width)) in
            HiddenAct::ALL.into_iter().flat_map(|act| [(1, 1), (3, 5), (2, 16), (70, 1037)].map(|size| (act, size)))
        {
            let gate_up: Vec<f32> = (0..rows * 2 * width).map(|i| ((i * 7919) % 1009) as f32 / 60.0 - 8.0).collect();
            let d_out: Vec<f32> = (0..rows * width).map(|i| ((i * 104_729) % 997) as f32 / 500.0 - 1.0).collect();
            for isa in Isa::available() {
                let (mut out, mut d_gate_up) = (vec![f32::NAN; rows * width], vec![f32::NAN; gate_up.len()]);
                forward(isa, act, &gate_up, width, &mut out);
                backward(isa, act, &gate_up, width, &d_out, &mut d_gate_up);
                for i in 0..out.len() {
                    let place = i / width * 2 * width + i % width;
                    let (gate, up, d) = (gate_up[place] as f64, gate_up[place + width] as f64, d_out[i] as f64);
                    let slope = (act.value(gate + 1e-6) - act.value(gate - 1e-6)) / 2e-6;
                    let close = |got: f32, expected: f64| {
                        assert!(
                            (got as f64 - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                            "{isa} {act:?} of {gate}: {got} {expected}"
                        );
                    };
                    close(out[i], act.value(gate) * up);
                    close(d_gate_up[place], d * up * slope);
                    close(d_gate_up[place + width], d * act.value(gate));
                }
            }
        }
    }

    #[test]
    fn gates_far_from_zero_stay_finite() {
        let gates = [-1e6f32, -1e3, -100.0, -0.0, 100.0, 1e3, 1e6];
        let gate_up: Vec<f32> = gates.iter().copied().chain(gates.map(|_| 1.0)).collect();
        for act in HiddenAct::ALL {
            for isa in Isa::available() {
                let (mut out, mut d_gate_up) = ([f32::NAN; 7], [f32::NAN; 14]);
                forward(isa, act, &gate_up, 7, &mut out);
                backward(isa, act, &gate_up, 7, &[1.0; 7], &mut d_gate_up);
                let slope = if act == HiddenAct::Relu2 { 2e6 } else { 1.0 };
                let zero = |x: f32| x.abs() < 1e-20;
                assert!(zero(out[0]) && zero(out[3]) && zero(d_gate_up[0]), "{isa} {act:?}: {out:?} {d_gate_up:?}");
                assert_eq!(d_gate_up[6], slope, "{isa} {act:?}");
                assert!(d_gate_up.iter().all(|x| x.is_finite()), "{isa} {act:?}: {d_gate_up:?}");
            }
        }
    }
}
