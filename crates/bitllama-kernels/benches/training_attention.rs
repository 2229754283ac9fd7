//! Attention for training, forward and backward, at the sizes of SmolLM2-135M, over all of the past, over a window of it and
//! with a soft cap, on all threads of rayon: median time, and billions of floating point operations a second, counted as those
//! of the pairs in sight (two products forward, five backward), beside what the processor does with everything in registers.
//!
//! ```text
//! cargo bench -p bitllama-kernels --bench training_attention
//! BITLLAMA_ISA=avx2 RAYON_NUM_THREADS=1 cargo bench -p bitllama-kernels --bench training_attention
//! ```

mod timing;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitllama_kernels::Isa;
use bitllama_kernels::training::attention::{Shape, backward, forward};
use timing::seconds;

/// Batch and tokens of a sequence, positions that a token sees at most, and a cap of scores.
const SIZES: [(usize, usize, usize, Option<f32>); 7] = [
    (4, 256, 256, None),
    (1, 512, 512, None),
    (1, 1024, 1024, None),
    (1, 2048, 2048, None),
    (4, 1024, 1024, None),
    (1, 2048, 128, None),
    (1, 2048, 2048, Some(50.0)),
];

/// Time that a figure may take.
const TIME: Duration = Duration::from_millis(1500);

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect()
}

/// Operations of one thread's multiply-adds on registers, and the loop.
const TURNS: usize = 1 << 18;

macro_rules! peak {
    ($name:ident, $features:literal, $splat:ident, $multiply_add:ident, $lanes:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name() -> usize {
            use std::arch::x86_64::*;
            let (a, b) = ($splat(black_box(0.999)), $splat(black_box(0.001)));
            let mut sums = [$splat(0.5); 12];
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = $multiply_add(*sum, a, b);
                }
            }
            black_box(sums);
            2 * $lanes * sums.len() * TURNS
        }
    };
}
peak!(peak_avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, 16);
peak!(peak_avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, 8);

/// Operations a second of all threads, if there is a loop for `isa`.
fn peak(isa: Isa) -> Option<f64> {
    let run: fn() -> usize = match isa {
        // SAFETY: the instruction set is available.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => || unsafe { peak_avx512() },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => || unsafe { peak_avx2() },
        _ => return None,
    };
    let operations: usize = rayon::broadcast(|_| run()).into_iter().sum();
    let best = (0..20).map(|_| {
        let start = Instant::now();
        rayon::broadcast(|_| run());
        start.elapsed().as_secs_f64()
    });
    Some(operations as f64 / best.fold(f64::INFINITY, f64::min))
}

fn main() {
    let isa = Isa::current();
    let peak = peak(isa);
    let threads = rayon::current_num_threads();
    println!("{isa}, {threads} threads, peak {:.0} GFLOP/s", peak.unwrap_or(f64::NAN) / 1e9);
    for (batch, seq, window, cap) in SIZES {
        let shape = Shape { cap, ..Shape::new([batch, seq, 9, 3, 64]) };
        let tokens = batch * seq;
        let qkv = numbers(tokens * (9 + 2 * 3) * 64);
        let angles: Vec<f32> = (0..seq * 32).map(|i| (i / 32) as f32 * 0.7f32.powi((i % 32) as i32)).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let first: Vec<u32> = (0..tokens).map(|token| (token % seq + 1).saturating_sub(window) as u32).collect();
        let (mut out, mut log_sum_exp) = (vec![0.0; tokens * 9 * 64], vec![0.0; tokens * 9]);
        let (d_out, mut d_qkv) = (numbers(out.len()), vec![0.0; qkv.len()]);
        let medians = [
            seconds(TIME, || forward(isa, &shape, &qkv, &cos, &sin, &first, &mut out, &mut log_sum_exp)),
            seconds(TIME, || {
                backward(isa, &shape, &qkv, &cos, &sin, &first, &out, &log_sum_exp, &d_out, &mut d_qkv);
            }),
        ]
        .map(|[median, _]| median);
        // The pairs in sight, times the elements of a head, times a multiplication and an addition.
        let pairs: usize = first.iter().enumerate().map(|(token, first)| token % seq + 1 - *first as usize).sum();
        let product = (9 * pairs * 64 * 2) as f64;
        for (name, seconds, products) in [("forward", medians[0], 2.0), ("backward", medians[1], 5.0)] {
            let rate = product * products / seconds;
            let share = peak.map_or(f64::NAN, |peak| 100.0 * rate / peak);
            let bound = if cap.is_some() { "capped" } else { "" };
            println!(
                "{batch} x {seq:4} of {window:4} {bound:6} {name:8} {:8.3} ms {:6.1} GFLOP/s {share:5.1} %",
                1e3 * seconds,
                rate / 1e9
            );
        }
    }
}
