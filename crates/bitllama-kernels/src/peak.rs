//! How many products this machine computes when nothing but registers bounds it: the roof of the integer kernels.

use std::time::Instant;

use crate::product::by_isa;
use crate::simd::Simd;
use crate::{Isa, Pool};

/// Products of two bytes, added up, that the threads of `pool` compute a second with the instructions of `isa`: the
/// best of some runs of a loop with everything in registers but one number of four bytes.
///
/// # Panics
/// If `isa` is not available.
pub fn int8_products(isa: Isa, pool: &Pool) -> f64 {
    assert!(isa.is_available(), "this processor has no {isa}");
    const TURNS: usize = 200;
    let x: Vec<i8> = (0..4 * STEPS).map(|i| (i % 255) as i8).collect();
    let mut best = 0.0f64;
    for _ in 0..20 {
        let start = Instant::now();
        pool.for_each(pool.threads(), |_| {
            for _ in 0..TURNS {
                // SAFETY: `isa` is available; `x` has as many numbers as are read.
                let products: usize = unsafe { by_isa!(isa, peak(x.as_ptr())) };
                std::hint::black_box(products);
            }
        });
        // SAFETY: as above.
        let products: usize = unsafe { by_isa!(isa, peak(x.as_ptr())) };
        best = best.max((products * TURNS * pool.threads()) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Numbers of four bytes that [`run`] multiplies with.
const STEPS: usize = 896;

/// Multiplies registers of fields with `4 * STEPS` activations at `x`; returns the number of products.
///
/// # Safety
/// The processor has the instruction set of `S`, and `x` as many elements.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd>(x: *const i8) -> usize {
    /// Sums under way at a time: enough to hide latency, few enough for sixteen registers.
    const SUMS: usize = 14;
    let fields: [u8; 64] = std::hint::black_box(std::array::from_fn(|i| i as u8 % 2));
    // SAFETY: as promised by the caller; a register has at most 64 bytes.
    unsafe {
        let fields = S::load(fields.as_ptr());
        let mut sums = [S::partial_zero(); SUMS];
        for step in 0..STEPS / SUMS {
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = S::dot(*sum, fields, S::broadcast(x.add(4 * (step * SUMS + at))));
            }
        }
        let mut out = [0.0f32; 16];
        for sum in sums {
            S::store(out.as_mut_ptr(), S::to_floats(S::add_partial(S::int_splat(0), sum)));
            std::hint::black_box(&out);
        }
    }
    4 * S::ROWS * SUMS * (STEPS / SUMS)
}
