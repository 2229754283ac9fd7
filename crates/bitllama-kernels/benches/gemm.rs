//! Products of a linear layer in training, in billions of floating point operations a second and in percent of what the
//! threads reach with everything in registers: with the `gemm` crate, with [`bitllama_kernels::gemm()`] in `f32`, in `bf16`
//! and in 12-bit block floating point. The last column says how much faster than in `f32` block floating point is.
//!
//! ```text
//! cargo bench -p bitllama-kernels --bench gemm -- 1 2        # with one thread, then with two
//! ```
//!
//! A figure is the median of some runs, and the best of them after a slash. On a machine that does other work, compare the
//! columns of a row with each other: what it does meanwhile is spread over all of them.

use std::time::Instant;

use bitllama_kernels::Isa;
use bitllama_kernels::gemm::{Precision, View, bf16_pairs, gemm};
use gemm::Parallelism;

/// Tokens of a step; input and output features of the layers of SmolLM2-135M, and of a wide one of TinyLlama.
const LAYERS: [(usize, usize, usize); 6] =
    [(1024, 576, 960), (1024, 576, 576), (1024, 576, 3072), (1024, 1536, 576), (256, 576, 49152), (1024, 2048, 5632)];

/// What is measured.
const COLUMNS: [&str; 4] = ["gemm crate", "f32", "bf16", "bfp12"];

/// Runs of a product.
const RUNS: usize = 9;

#[derive(Clone, Copy)]
struct Product<'a> {
    name: &'static str,
    a: View<'a>,
    b: View<'a>,
    /// Strides of the factors for the `gemm` crate: down a column and along a row.
    strides: [[isize; 2]; 2],
    data: [&'a [f32]; 2],
}

fn main() {
    let threads: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let isa = Isa::current();
    println!("{isa}, bf16 multiplied in pairs: {}", bf16_pairs(isa));
    for threads in if threads.is_empty() { vec![1, 2] } else { threads } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| all(isa, threads));
    }
}

fn all(isa: Isa, threads: usize) {
    let peaks = [Precision::F32, Precision::Bfp12]
        .map(|precision| (0..20).map(|_| bitllama_kernels::gemm::peak(isa, precision)).fold(0.0, f64::max));
    let [peak, whole] = peaks.map(|peak| peak / 1e9);
    println!("\n{threads} threads: {peak:.0} GFLOP/s in registers, {whole:.0} in block floating point");
    println!("{:32} {}", "m x k x n", COLUMNS.map(|name| format!("{name:>16}")).join(" "));
    for (tokens, inputs, outputs) in LAYERS {
        // The head's weight is stored as the embedding: outputs times inputs.
        let transposed = outputs > 10_000;
        let [x, weight, gradient] = [tokens * inputs, inputs * outputs, tokens * outputs]
            .map(|len| (0..len).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect::<Vec<f32>>());
        let matrix = |data, shape: [usize; 2]| View::row_major(data, shape);
        let (x_view, gradient_view) = (matrix(&x[..], [tokens, inputs]), matrix(&gradient[..], [tokens, outputs]));
        let (weight_view, weight_strides) = match transposed {
            true => (matrix(&weight[..], [outputs, inputs]).transposed(), [1, inputs as isize]),
            false => (matrix(&weight[..], [inputs, outputs]), [outputs as isize, 1]),
        };
        let (x_strides, gradient_strides) = ([inputs as isize, 1], [outputs as isize, 1]);
        let flipped = |[down, along]: [isize; 2]| [along, down];
        let forward = Product {
            name: "y = x W",
            a: x_view,
            b: weight_view,
            strides: [x_strides, weight_strides],
            data: [&x, &weight],
        };
        let backward = Product {
            name: "dx = dy W^T",
            a: gradient_view,
            b: weight_view.transposed(),
            strides: [gradient_strides, flipped(weight_strides)],
            data: [&gradient, &weight],
        };
        let of_weight = match transposed {
            true => Product {
                name: "dE = dy^T x",
                a: gradient_view.transposed(),
                b: x_view,
                strides: [flipped(gradient_strides), x_strides],
                data: [&gradient, &x],
            },
            false => Product {
                name: "dW = x^T dy",
                a: x_view.transposed(),
                b: gradient_view,
                strides: [flipped(x_strides), gradient_strides],
                data: [&x, &gradient],
            },
        };
        for product in [forward, backward, of_weight] {
            measure(isa, peaks, product);
        }
    }
}

fn measure(isa: Isa, peaks: [f64; 2], product: Product) {
    let Product { name, a, b, strides, data } = product;
    let (m, k, n) = (a.rows(), a.columns(), b.columns());
    let mut out = vec![0.0f32; m * n];
    let mut seconds = [const { Vec::new() }; COLUMNS.len()];
    // In turns, so that what else the machine does is the same for all.
    for _ in 0..RUNS {
        for (which, seconds) in seconds.iter_mut().enumerate() {
            let start = Instant::now();
            match which {
                0 => reference([m, k, n], strides, data, &mut out),
                1 => gemm(isa, Precision::F32, a, b, &mut out, n, false),
                2 => gemm(isa, Precision::Bf16, a, b, &mut out, n, false),
                _ => gemm(isa, Precision::Bfp12, a, b, &mut out, n, false),
            }
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let operations = 2.0 * (m * k * n) as f64;
    seconds.iter_mut().for_each(|seconds| seconds.sort_by(f64::total_cmp));
    let faster = [RUNS / 2, 0].map(|run| seconds[1][run] / seconds[3][run]);
    let figures = std::array::from_fn::<_, { COLUMNS.len() }, _>(|which| {
        let (seconds, peak) = (&seconds[which], peaks[usize::from(which >= 3)]);
        let [median, best] = [seconds[RUNS / 2], seconds[0]].map(|seconds| operations / seconds);
        format!("{:.0}/{:.0} {:.0}/{:.0}%", median / 1e9, best / 1e9, 100.0 * median / peak, 100.0 * best / peak)
    });
    print!("{:32}", format!("{name:12} {m} x {k} x {n}"));
    println!("{} {:5.2}/{:.2}", figures.map(|figure| format!(" {figure:>16}")).concat(), faster[0], faster[1]);
}

/// The same product with the `gemm` crate.
fn reference([m, k, n]: [usize; 3], strides: [[isize; 2]; 2], data: [&[f32]; 2], out: &mut [f32]) {
    let threads = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    let ([a_down, a_along], [b_down, b_along]) = (strides[0], strides[1]);
    assert_eq!(out.len(), m * n);
    // SAFETY: the strides are those of matrices `[m, k]` and `[k, n]` that fill their slices, and `out` is `[m, n]`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            data[0].as_ptr(),
            a_along,
            a_down,
            data[1].as_ptr(),
            b_along,
            b_down,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            threads,
        );
    }
}
