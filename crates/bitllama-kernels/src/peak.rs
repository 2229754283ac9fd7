//! How many products this machine computes when nothing but registers bounds it: the roof of the integer kernels.

use std::time::Instant;

use crate::simd::{BYTES, LANES, Simd, for_isa};
use crate::{Isa, Pool};

/// Products of two bytes, added up, that the threads of `pool` compute a second with the instructions of `isa`: the
/// best of some runs of a loop with everything in registers but one number of four bytes.
///
/// # Panics
/// If `isa` is not available.
pub fn int8_products(isa: Isa, pool: &Pool) -> f64 {
    assert!(isa.is_available(), "this processor has no {isa}");
    const TURNS: usize = 200;
    let x: [[i8; 4]; STEPS] = std::array::from_fn(|i| std::array::from_fn(|j| ((4 * i + j) % 255) as i8));
    let x = &x;
    let mut best = 0.0f64;
    for _ in 0..20 {
        let start = Instant::now();
        pool.for_each(pool.threads(), |_| {
            for _ in 0..TURNS {
                std::hint::black_box(for_isa!(isa, multiply(x: &[[i8; 4]; STEPS]) -> usize));
            }
        });
        let products = for_isa!(isa, multiply(x: &[[i8; 4]; STEPS]) -> usize);
        best = best.max((products * TURNS * pool.threads()) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Quads of activations that [`multiply`] multiplies with.
const STEPS: usize = 896;

/// Multiplies registers of fields with the activations of `x`; returns the number of products.
#[inline(always)]
fn multiply<S: Simd>(s: S, x: &[[i8; 4]; STEPS]) -> usize {
    /// Sums under way at a time: enough to hide latency, few enough for the registers.
    const SUMS: usize = 28;
    let fields: [u8; BYTES] = std::hint::black_box(std::array::from_fn(|i| i as u8 % 2));
    let fields = s.load_bytes(&fields);
    let count = if S::STACKED { SUMS } else { SUMS / 4 };
    let mut sums = [s.no_dots(); SUMS];
    for x in x.chunks_exact(count) {
        for at in 0..count {
            sums[at] = s.dot(sums[at], fields, s.splat_quad(x[at]));
        }
    }
    let mut out = [0.0f32; LANES];
    for sum in sums {
        s.store(s.to_floats(s.add_dots(s.splat_int(0), sum)), &mut out);
        std::hint::black_box(&out);
    }
    BYTES * STEPS
}
