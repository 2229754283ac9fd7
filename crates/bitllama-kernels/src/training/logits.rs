//! Logits of what a head's product gives: times a factor (Granite's `logits_scaling`, one over it) and bound by a soft cap (Gemma
//! 2's `final_logit_softcapping`, <https://arxiv.org/abs/2408.00118>); in place, a row at a time.

use super::runs::{for_lanes, load, store};
use crate::isa::Isa;
use crate::operators::tanh_lanes;
use crate::simd::{Simd, for_isa};

/// How logits come from the product: `cap * tanh(scale * x / cap)`, or `scale * x` without a cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Factor of the product.
    pub scale: f32,
    /// What no logit exceeds, if so.
    pub cap: Option<f32>,
}

impl Bound {
    /// Whether logits are the product as it is.
    pub fn is_none(&self) -> bool {
        self.scale == 1.0 && self.cap.is_none()
    }

    /// Puts logits in place of what the product gave.
    pub fn forward(&self, isa: Isa, x: &mut [f32]) {
        match self.cap {
            _ if self.is_none() => {}
            Some(cap) => {
                let inner = self.scale / cap;
                for_isa!(isa, bind(inner: f32, cap: f32, x: &mut [f32]));
            }
            None => {
                let scale = self.scale;
                for_isa!(isa, scaled(scale: f32, x: &mut [f32]));
            }
        }
    }

    /// Puts the gradient of what the product gave in place of that of `logits`, which [`Bound::forward`] made.
    ///
    /// # Panics
    /// If the lengths differ and there is a cap.
    pub fn backward(&self, isa: Isa, logits: &[f32], gradient: &mut [f32]) {
        let scale = self.scale;
        match self.cap {
            _ if self.is_none() => {}
            Some(cap) => {
                assert_eq!(logits.len(), gradient.len(), "logits and gradient differ in length");
                for_isa!(isa, released(scale: f32, cap: f32, logits: &[f32], gradient: &mut [f32]));
            }
            None => for_isa!(isa, scaled(scale: f32, gradient: &mut [f32])),
        }
    }
}

#[inline(always)]
fn scaled<S: Simd>(s: S, scale: f32, x: &mut [f32]) {
    for_lanes!(x.len(), place => {
        store(s, s.mul(load(s, &x[place.clone()]), s.splat(scale)), &mut x[place]);
    });
}

#[inline(always)]
fn bind<S: Simd>(s: S, inner: f32, cap: f32, x: &mut [f32]) {
    for_lanes!(x.len(), place => {
        let tanh = tanh_lanes(s, s.mul(load(s, &x[place.clone()]), s.splat(inner)));
        store(s, s.mul(tanh, s.splat(cap)), &mut x[place]);
    });
}

#[inline(always)]
fn released<S: Simd>(s: S, scale: f32, cap: f32, logits: &[f32], gradient: &mut [f32]) {
    for_lanes!(logits.len(), place => {
        let tanh = s.mul(load(s, &logits[place.clone()]), s.splat(1.0 / cap));
        // The derivative of tanh is 1 - tanh^2.
        let slope = s.mul(s.sub(s.splat(1.0), s.mul(tanh, tanh)), s.splat(scale));
        store(s, s.mul(load(s, &gradient[place.clone()]), slope), &mut gradient[place]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        let x: Vec<f32> = (0..75).map(|i| (i * 37 % 75) as f32 - 37.0).collect();
        let d: Vec<f32> = (0..75).map(|i| (i * 53 % 75) as f32 / 37.0 - 1.0).collect();
        for (scale, cap) in [(1.0, None), (0.125, None), (1.0, Some(30.0)), (0.5, Some(7.0))] {
            let bound = Bound { scale, cap };
            let defined = |x: f64| {
                let x = f64::from(scale) * x;
                cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
            };
            for isa in Isa::available() {
                let (mut logits, mut gradient) = (x.clone(), d.clone());
                bound.forward(isa, &mut logits);
                bound.backward(isa, &logits, &mut gradient);
                for (i, x) in x.iter().map(|x| f64::from(*x)).enumerate() {
                    let expected = defined(x);
                    assert!(
                        (f64::from(logits[i]) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                        "{isa} {bound:?} {x}"
                    );
                    let expected = f64::from(d[i]) * (defined(x + 1e-5) - defined(x - 1e-5)) / 2e-5;
                    assert!(
                        (f64::from(gradient[i]) - expected).abs() < 1e-5,
                        "{isa} {bound:?} {x}: {} {expected}",
                        gradient[i]
                    );
                }
            }
        }
    }
}
