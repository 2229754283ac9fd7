//! Products of each scheme and precision on each instruction set of this processor, on one thread, in billions of weights
//! times tokens a second (criterion's `Gelem/s`). A name is `weights/precision/instruction set/tokens`, so that a part of them can be
//! chosen. Weights are a scheme with one scale a row (`int4`), with scales of groups of 64 or 128 columns (`int4-g64`), or with
//! zero points too (`int4-g64z`):
//!
//! ```text
//! cargo bench -p bitllama-kernels -- 'ternary/int8/.*/1$'
//! cargo bench -p bitllama-kernels -- 'int4(-g64z?)?/int8/avx512/24$'
//! BITLLAMA_BENCH=4096x4096 cargo bench -p bitllama-kernels -- ternary
//! ```
//!
//! `BITLLAMA_BENCH` is `out_features x in_features`. Packed, the default stays in the cache of most cores, so that kernels
//! are measured and not memory; `bitllama bench --kernels` compares with both.

use std::time::Duration;

use bitllama_core::{DenseMatrix, Error, PackedMatrix, Scheme};
use bitllama_kernels::{Input, Isa, Matrix, Pool, Precision, products};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// One token, a few, and more than a tile of any instruction set.
const TOKENS: [usize; 4] = [1, 4, 24, 128];

/// Columns that share a scale; `None`: all of a row.
const GROUPS: [Option<usize>; 3] = [None, Some(64), Some(128)];

fn shape() -> [usize; 2] {
    let Ok(shape) = std::env::var("BITLLAMA_BENCH") else { return [2048, 2048] };
    let sides = shape.split_once('x').and_then(|(rows, columns)| Some([rows.parse().ok()?, columns.parse().ok()?]));
    sides.filter(|sides| !sides.contains(&0)).unwrap_or_else(|| panic!("BITLLAMA_BENCH={shape} is not like 2048x2048"))
}

/// Fields that look random, a scale for each `group` columns of a row, and zero points in the middle of them if asked for.
fn packed(scheme: Scheme, shape: [usize; 2], group: usize, zero_points: bool) -> Matrix {
    let mut state = 1u64;
    let scales = shape[0] * shape[1].div_ceil(group);
    let zero_points = zero_points.then(|| vec![(scheme.levels() / 2) as i32; scales]);
    let packed = PackedMatrix::from_fields(scheme, shape, vec![0.01; scales], zero_points, |_, out| {
        for field in out {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *field = ((state >> 40) % u64::from(scheme.levels())) as u8;
        }
        Ok::<_, Error>(())
    });
    Matrix::from(packed.unwrap_or_else(|error| panic!("{scheme}, groups of {group}: {error}")))
}

/// Activations without outliers.
fn activations(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect()
}

fn matrix(criterion: &mut Criterion, name: &str, matrix: &Matrix, precisions: &[Precision]) {
    let pool = Pool::new(1);
    for precision in precisions {
        for isa in Isa::available() {
            let mut group = criterion.benchmark_group(format!("{name}/{precision}/{isa}"));
            group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
            // Portable code is a reference; hundreds of milliseconds a run say no more than one.
            for n in TOKENS.into_iter().filter(|n| isa != Isa::Scalar || *n == 1) {
                let mut input = Input::new(isa, *precision);
                input.set(&pool, &activations(n * matrix.columns()), matrix.columns(), &[matrix]);
                let mut out = vec![0.0; n * matrix.rows()];
                group.throughput(Throughput::Elements((matrix.rows() * matrix.columns() * n) as u64));
                group.bench_function(n.to_string(), |bencher| {
                    bencher.iter(|| products(&pool, &input, &mut [(matrix, &mut out)]));
                });
            }
        }
    }
}

fn kernels(criterion: &mut Criterion) {
    let shape = shape();
    for scheme in Scheme::ALL {
        let precisions = match scheme {
            Scheme::Binary => &Precision::ALL[..],
            _ => &[Precision::F32, Precision::Int8],
        };
        for group in GROUPS {
            let name = group.map_or(scheme.to_string(), |group| format!("{scheme}-g{group}"));
            let group = group.unwrap_or(shape[1]);
            matrix(criterion, &name, &packed(scheme, shape, group, false), precisions);
            if scheme.has_zero_points() {
                let mark = if name.contains('-') { "z" } else { "-z" };
                matrix(criterion, &format!("{name}{mark}"), &packed(scheme, shape, group, true), precisions);
            }
        }
    }
    let full = DenseMatrix { data: activations(shape[0] * shape[1]), columns: shape[1] };
    matrix(criterion, "f32", &Matrix::Full(full), &[Precision::F32]);
}

criterion_group!(benches, kernels);
criterion_main!(benches);
