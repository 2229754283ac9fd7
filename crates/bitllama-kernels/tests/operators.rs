//! Operators and attention on every instruction set of this processor against the same in f64.

use bitllama_core::HiddenAct;
use bitllama_kernels::attention::{Scoring, Sequence, attention};
use bitllama_kernels::isa::Isa;
use bitllama_kernels::kv::{KvKind, LayerKv};
use bitllama_kernels::operators::{self, Rotary};
use bitllama_kernels::pool::Pool;
use proptest::prelude::*;

/// Numbers between -1 and 1 that look random and depend on `seed` alone.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Panics unless every element of `got` is within `bound` of `exact`.
fn assert_near(got: &[f32], exact: &[f64], bound: impl Fn(f64) -> f64, what: &str) {
    assert_eq!(got.len(), exact.len());
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let bound = bound(*exact);
        assert!((f64::from(*got) - exact).abs() <= bound, "{what}, element {i}: {got} instead of {exact} ± {bound}");
    }
}

/// Within `ulps` roundings of the result.
fn relative(ulps: f64) -> impl Fn(f64) -> f64 {
    move |exact| ulps * f64::from(f32::EPSILON) * exact.abs() + 1e-37
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

fn gates_and_sets() -> impl Iterator<Item = (HiddenAct, Isa)> {
    HiddenAct::ALL.into_iter().flat_map(|act| Isa::available().map(move |isa| (act, isa)))
}

/// How far `act(x)` may be from its definition, which rounds, too.
fn gate_bound(act: HiddenAct, x: f64) -> f64 {
    // What the exponential is of is rounded to an `f32`.
    let exponent = match act {
        HiddenAct::GeluTanh => (1.6 * (x + 0.044_715 * x.powi(3))).abs(),
        HiddenAct::Silu | HiddenAct::Relu2 => 0.0,
    };
    f64::from(f32::EPSILON) * (6.0 + 2.0 * exponent) * act.value(x).abs() + f64::EPSILON * x.abs() + 1e-36
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gates(len in 0usize..400, scale in 0.1f32..200.0, seed in any::<u64>()) {
        let gate: Vec<f32> = noise(len, seed).iter().map(|x| x * scale).collect();
        let up = noise(len, seed ^ 1);
        for (act, isa) in gates_and_sets() {
            let mut out = gate.clone();
            operators::gated(isa, act, &mut out, &up);
            for ((out, gate), up) in out.iter().zip(&gate).zip(&up) {
                let (gate, up) = (f64::from(*gate), f64::from(*up));
                assert_near(&[*out], &[act.value(gate) * up], |_| gate_bound(act, gate) * up.abs() + 1e-36, act.name());
            }
        }
    }

    #[test]
    fn biases_factors_and_caps(n in 0usize..5, width in 1usize..100, scale in 0.1f32..500.0, seed in any::<u64>()) {
        let x: Vec<f32> = noise(n * width, seed).iter().map(|x| x * scale).collect();
        let bias = noise(width, seed ^ 1);
        let biased: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % width]).collect();
        let scaled: Vec<f32> = x.iter().map(|x| x * 0.37).collect();
        let capped: Vec<f64> = x.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
        for isa in Isa::available() {
            let mut out = x.clone();
            operators::add_bias(isa, &mut out, &bias);
            assert_eq!(out, biased);
            out.copy_from_slice(&x);
            operators::scale(isa, &mut out, 0.37);
            assert_eq!(out, scaled);
            out.copy_from_slice(&x);
            operators::soft_cap(isa, &mut out, 30.0);
            assert_near(&out, &capped, relative(6.0), "cap");
        }
    }

    #[test]
    fn norms(n in 0usize..4, hidden in 1usize..300, seed in any::<u64>()) {
        let (x, y, weight) = (noise(n * hidden, seed), noise(n * hidden, seed ^ 1), noise(hidden, seed ^ 2));
        let normed = |x: &[f32]| -> Vec<f64> {
            x.chunks_exact(hidden)
                .flat_map(|row| {
                    let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / hidden as f64;
                    let inverse = 1.0 / (square + f64::from(1e-5f32)).sqrt();
                    row.iter().zip(&weight).map(move |(x, w)| f64::from(*x) * inverse * f64::from(*w))
                })
                .collect()
        };
        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; x.len()];
            operators::rms_norm(isa, &x, &weight, 1e-5, &mut out);
            assert_near(&out, &normed(&x), relative(16.0), "norm");
            let mut stream = x.clone();
            operators::add_rms_norm(isa, &mut stream, 1.0, &y, &weight, 1e-5, &mut out);
            assert_eq!(stream, sum);
            assert_near(&out, &normed(&sum), relative(16.0), "norm of a sum");
            operators::rms_norm_in_place(isa, &mut stream, &weight, 1e-5);
            assert_eq!(stream, out, "in place");
            let mut stream = x.clone();
            operators::add_rms_norm(isa, &mut stream, 0.22, &y, &weight, 1e-5, &mut out);
            let weighted = x.iter().zip(&y).map(|(x, y)| f64::from(*x) + f64::from(0.22f32) * f64::from(*y));
            assert_near(&stream, &weighted.collect::<Vec<_>>(), |_| 1.3e-7, "weighted sum");
            assert_near(&out, &normed(&stream), relative(16.0), "norm of a weighted sum");
        }
    }

    #[test]
    fn rotations(
        n in 0usize..5, heads in 1usize..5, half in 1usize..66, rest in prop_oneof![Just(0usize), 0usize..70],
        first in 0usize..9, seed in any::<u64>(),
    ) {
        let head_dim = 2 * half + rest;
        let x = noise(n * heads * head_dim, seed);
        let angles = noise((first + n) * half, seed ^ 1);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let mut exact = wide(&x);
        for (index, head) in exact.chunks_exact_mut(head_dim).enumerate() {
            for i in 0..half {
                let (a, b, at) = (head[i], head[i + half], (first + index / heads) * half + i);
                let (cos, sin) = (f64::from(cos[at]), f64::from(sin[at]));
                (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        for isa in Isa::available() {
            let mut out = x.clone();
            let rotary = Rotary { rotary_dim: 2 * half, cos: &cos, sin: &sin };
            operators::rotate(isa, &mut out, heads, head_dim, first, rotary);
            assert_near(&out, &exact, |_| 3e-7, "rotation");
            for (out, x) in out.chunks_exact(head_dim).zip(x.chunks_exact(head_dim)) {
                assert_eq!(out[2 * half..], x[2 * half..], "what does not turn");
            }
        }
    }

    #[test]
    fn sums_and_products(len in 0usize..400, scale in 0.1f32..200.0, seed in any::<u64>()) {
        let gate: Vec<f32> = noise(len, seed).iter().map(|x| x * scale).collect();
        let up = noise(len, seed ^ 1);
        let sum: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| f64::from(*g) + f64::from(*u)).collect();
        let scaled: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| f64::from(*g) + 0.3f32 as f64 * f64::from(*u)).collect();
        let (product, size) = gate.iter().zip(&up).map(|(g, u)| f64::from(*g) * f64::from(*u))
            .fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        for isa in Isa::available() {
            let mut out = gate.clone();
            operators::add(isa, &mut out, &up);
            assert_near(&out, &sum, relative(0.51), "sum");
            out.copy_from_slice(&gate);
            operators::add_scaled(isa, 0.3, &up, &mut out);
            assert_near(&out, &scaled, |exact| relative(1.0)(exact) + 1e-7, "scaled sum");
            let bound = f64::from(f32::EPSILON) * 8.0 * size + 1e-30;
            assert!((f64::from(operators::dot(isa, &gate, &up)) - product).abs() <= bound);
        }
    }

    #[test]
    fn softmax(len in 1usize..400, scale in 0.1f32..100.0, hidden in 0usize..400, seed in any::<u64>()) {
        let mut x: Vec<f32> = noise(len, seed).iter().map(|x| x * scale).collect();
        x[len - hidden.min(len - 1)..].fill(f32::NEG_INFINITY);
        let exponentials: Vec<f64> = x.iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        let exact: Vec<f64> = exponentials.iter().map(|e| e / sum).collect();
        for isa in Isa::available() {
            let mut out = x.clone();
            operators::softmax(isa, &mut out);
            assert_near(&out, &exact, relative(16.0 + f64::from(scale)), "softmax");
            assert!(x.iter().zip(&out).all(|(x, p)| *x != f32::NEG_INFINITY || *p == 0.0));
        }
    }
}

#[test]
fn exponentials_within_two_units_and_at_the_ends() {
    let x: Vec<f32> = (0..200_003).map(|i| -87.3 + i as f32 * (175.6 / 200_003.0)).collect();
    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x).exp()).collect();
    for isa in Isa::available() {
        let mut out = x.clone();
        operators::exp(isa, &mut out);
        assert_near(&out, &exact, relative(2.0), "exp");
        assert!(out.is_sorted(), "{isa}: not monotone");
        let mut ends = [f32::NEG_INFINITY, -1e30, -100.0, 0.0, 100.0, f32::INFINITY, f32::NAN];
        operators::exp(isa, &mut ends);
        assert_eq!(ends[..4], [0.0, 0.0, 0.0, 1.0], "{isa}");
        assert!(ends[4] > 2e38 && ends[4].is_finite() && ends[5] == ends[4] && ends[6].is_nan(), "{isa}: {ends:?}");
    }
}

#[test]
fn hyperbolic_tangents_within_four_units_near_zero_and_far_from_it() {
    let mut x: Vec<f32> = (0..200_003).map(|i| (i as f32 - 100_001.0) * 1e-4).collect();
    x.extend((0..400).flat_map(|i| [0.9f32.powi(i), -0.9f32.powi(i)]));
    x.extend([0.625f32.next_down(), 0.625, 0.625f32.next_up(), -0.625f32.next_down(), -0.625, -0.625f32.next_up()]);
    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x).tanh()).collect();
    for isa in Isa::available() {
        let mut out = x.clone();
        operators::soft_cap(isa, &mut out, 1.0);
        assert_near(&out, &exact, relative(4.0), "tanh");
        let mut ends = [f32::NEG_INFINITY, -1e30, 0.0, 1e30, f32::INFINITY, f32::NAN];
        operators::soft_cap(isa, &mut ends, 1.0);
        assert_eq!(ends[..5], [-1.0, -1.0, 0.0, 1.0, 1.0], "{isa}");
        assert!(ends[5].is_nan(), "{isa}");
    }
}

#[test]
fn gates_do_not_hide_what_is_no_number() {
    for (act, isa) in HiddenAct::ALL.into_iter().flat_map(|act| Isa::available().map(move |isa| (act, isa))) {
        let mut gate = [f32::NAN, 1.0, f32::INFINITY, -1e30];
        operators::gated(isa, act, &mut gate, &[1.0, f32::NAN, 1.0, 1.0]);
        assert!(gate[0].is_nan() && gate[1].is_nan() && gate[2] == f32::INFINITY, "{act:?} on {isa}: {gate:?}");
        assert!(gate[3].abs() < 1e-6, "{act:?} on {isa}: {gate:?}");
    }
}

/// Shapes of a batch.
#[derive(Debug, Clone)]
struct Shape {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    /// Positions in all, and those that are tokens of the batch.
    sequences: Vec<(usize, usize)>,
    kind: KvKind,
    scoring: Scoring,
}

/// A cap that changes scores, and a window of one position or several.
fn scoring() -> impl Strategy<Value = (Option<f32>, Option<usize>)> {
    let cap = prop_oneof![Just(None), (0.5f32..50.0).prop_map(Some)];
    let window = prop_oneof![Just(None), (1usize..40).prop_map(Some), (40usize..700).prop_map(Some)];
    (cap, window)
}

fn shape() -> impl Strategy<Value = Shape> {
    let sequence = (0usize..600, 1usize..70).prop_map(|(past, n)| (past + n, n));
    let decoding = (1usize..600).prop_map(|len| (len, 1));
    let sequences = prop_oneof![
        prop::collection::vec(sequence, 1..3),
        prop::collection::vec(decoding, 1..4),
        (600usize..3000, 1usize..4).prop_map(|(len, n)| vec![(len, n)]),
    ];
    (1usize..4, 1usize..9, 1usize..131, sequences, 0usize..4, scoring()).prop_map(
        |(kv_heads, group, head_dim, sequences, kind, (cap, window))| Shape {
            kv_heads,
            group,
            head_dim,
            sequences,
            kind: KvKind::ALL[kind],
            scoring: Scoring { cap, window, ..Scoring::new(head_dim) },
        },
    )
}

/// Keys and values of all positions of one sequence, the last `n` appended together, which are kept as far as they are
/// seen, or all of them.
fn filled_to(shape: &Shape, window: Option<usize>, len: usize, n: usize, seed: u64) -> LayerKv {
    let row = shape.kv_heads * shape.head_dim;
    let (keys, values) = (noise(len * row, seed ^ 3), noise(len * row, seed ^ 4));
    let mut kv = LayerKv::with_window(shape.kind, shape.kv_heads, shape.head_dim, window);
    let split = (len - n) * row;
    for (keys, values) in keys[..split].chunks(150 * row).zip(values[..split].chunks(150 * row)) {
        kv.append(keys, values);
    }
    kv.append(&keys[split..], &values[split..]);
    kv
}

fn filled(shape: &Shape, len: usize, n: usize, seed: u64) -> LayerKv {
    filled_to(shape, shape.scoring.window, len, n, seed)
}

/// Attention in f64 over keys and values as they are stored.
fn reference(shape: &Shape, q: &[f32], kv: &LayerKv) -> Vec<f64> {
    let Shape { kv_heads, group, head_dim, scoring: Scoring { scale, cap, window }, .. } = *shape;
    let (heads, len, first) = (kv_heads * group, kv.len(), kv.first());
    let n = q.len() / (heads * head_dim);
    let mut row = vec![0.0; head_dim];
    let mut rows = |values: bool, head: usize| -> Vec<Vec<f64>> {
        (first..len)
            .map(|position| {
                match values {
                    true => kv.value_into(head, position, &mut row),
                    false => kv.key_into(head, position, &mut row),
                }
                wide(&row)
            })
            .collect()
    };
    let stored: Vec<_> = (0..kv_heads).map(|head| (rows(false, head), rows(true, head))).collect();
    let mut out = Vec::new();
    for (index, q) in q.chunks_exact(head_dim).enumerate() {
        let (keys, values) = &stored[index % heads / group];
        let visible = len - n + index / heads + 1;
        let seen = window.map_or(0, |window| visible.saturating_sub(window)) - first..visible - first;
        let (keys, values) = (&keys[seen.clone()], &values[seen]);
        let score = |k: &Vec<f64>| {
            let score = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum::<f64>() * f64::from(scale);
            cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..head_dim).map(|d| weights.iter().zip(values).map(|(w, v)| w * v[d]).sum::<f64>() / sum));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_is_that_of_each_sequence_alone(shape in shape(), seed in any::<u64>()) {
        let heads = shape.kv_heads * shape.group;
        let caches: Vec<LayerKv> =
            shape.sequences.iter().zip(seed..).map(|((len, n), seed)| filled(&shape, *len, *n, seed)).collect();
        let sequences: Vec<Sequence> =
            caches.iter().zip(&shape.sequences).map(|(kv, (_, n))| Sequence { kv, n: *n }).collect();
        let tokens: usize = sequences.iter().map(|s| s.n).sum();
        let q: Vec<f32> = noise(tokens * heads * shape.head_dim, seed).iter().map(|x| x * 3.0).collect();
        let mut parts = Vec::new();
        let mut rest = &q[..];
        for sequence in &sequences {
            let (part, next) = rest.split_at(sequence.n * heads * shape.head_dim);
            parts.push(part);
            rest = next;
        }
        let exact: Vec<f64> =
            parts.iter().zip(&caches).flat_map(|(q, kv)| reference(&shape, q, kv)).collect();
        let pool = Pool::new(3);
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; q.len()];
            attention(&pool, isa, &q, heads, &shape.scoring, &sequences, &mut out);
            // Values are within 1, and so are their means.
            assert_near(&out, &exact, |_| 4e-6, &format!("attention on {isa}"));

            let one = Pool::new(1);
            let mut alone = vec![f32::NAN; q.len()];
            let mut rest = &mut alone[..];
            for (sequence, q) in sequences.iter().zip(&parts) {
                let (out, next) = rest.split_at_mut(q.len());
                attention(&one, isa, q, heads, &shape.scoring, std::slice::from_ref(sequence), out);
                rest = next;
            }
            assert_eq!(out, alone, "{isa}: the result depends on threads or other sequences");
        }
    }

    #[test]
    fn a_prompt_is_its_tokens_one_by_one_and_in_any_passes(
        kv_heads in 1usize..3, group in 1usize..9, head_dim in 1usize..70, past in 0usize..1200, n in 1usize..70,
        kind in 0usize..4, (cap, window) in scoring(), cut in 0.0f64..1.0, seed in any::<u64>(),
    ) {
        let kind = KvKind::ALL[kind];
        let scoring = Scoring { cap, window, ..Scoring::new(head_dim) };
        let shape = Shape { kv_heads, group, head_dim, sequences: Vec::new(), kind, scoring };
        let (heads, row) = (kv_heads * group, kv_heads * head_dim);
        let mut kv = filled(&shape, past, 0, seed);
        let (keys, values) = (noise(n * row, seed ^ 5), noise(n * row, seed ^ 6));
        let q = noise(n * heads * head_dim, seed);
        let pool = Pool::new(2);
        kv.hold(past);
        for isa in Isa::available() {
            kv.append(&keys, &values);
            let mut batch = vec![f32::NAN; q.len()];
            attention(&pool, isa, &q, heads, &scoring, &[Sequence { kv: &kv, n }], &mut batch);
            kv.truncate(past);
            for (token, (q, batch)) in q.chunks_exact(heads * head_dim).zip(batch.chunks_exact(heads * head_dim)).enumerate() {
                kv.append(&keys[token * row..][..row], &values[token * row..][..row]);
                let mut out = vec![f32::NAN; q.len()];
                attention(&pool, isa, q, heads, &scoring, &[Sequence { kv: &kv, n: 1 }], &mut out);
                assert_eq!(batch, out, "{isa}: token {token} alone");
            }
            kv.truncate(past);
            // In two passes, cut anywhere.
            let first = (n as f64 * cut) as usize;
            let mut passes = vec![f32::NAN; q.len()];
            let mut done = 0;
            for tokens in [first, n - first] {
                let (from, to) = (done * heads * head_dim, (done + tokens) * heads * head_dim);
                kv.append(&keys[done * row..][..tokens * row], &values[done * row..][..tokens * row]);
                attention(&pool, isa, &q[from..to], heads, &scoring, &[Sequence { kv: &kv, n: tokens }], &mut passes[from..to]);
                done += tokens;
            }
            assert_eq!(batch, passes, "{isa}: cut at {first}");
            kv.truncate(past);
        }
    }

    #[test]
    fn what_is_dropped_changes_nothing(shape in shape(), seed in any::<u64>()) {
        let heads = shape.kv_heads * shape.group;
        let pool = Pool::new(2);
        for (len, n) in &shape.sequences {
            let q = noise(n * heads * shape.head_dim, seed);
            let [kept, all] = [shape.scoring.window, None].map(|window| filled_to(&shape, window, *len, *n, seed));
            for isa in Isa::available() {
                let [of_kept, of_all] = [&kept, &all].map(|kv| {
                    let mut out = vec![f32::NAN; q.len()];
                    attention(&pool, isa, &q, heads, &shape.scoring, &[Sequence { kv, n: *n }], &mut out);
                    out
                });
                assert_eq!(of_kept, of_all, "{isa}");
            }
        }
    }

    #[test]
    fn stored_numbers_are_near(len in 1usize..40, kv_heads in 1usize..4, head_dim in 1usize..300, seed in any::<u64>()) {
        let row = kv_heads * head_dim;
        let (keys, values) = (noise(len * row, seed), noise(len * row, seed ^ 1));
        for (kind, error) in KvKind::ALL.into_iter().zip([0.0, 0.0005, 0.004, 0.0715]) {
            let mut kv = LayerKv::new(kind, kv_heads, head_dim);
            kv.append(&noise(row, 7), &noise(row, 8));
            kv.clear();
            kv.reserve(len);
            let bytes = kv.bytes();
            kv.append(&keys, &values);
            assert_eq!((kv.len(), kv.bytes()), (len, bytes));
            let (mut key, mut value) = (vec![0.0; head_dim], vec![0.0; head_dim]);
            for (index, (k, v)) in keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate() {
                kv.key_into(index % kv_heads, index / kv_heads, &mut key);
                kv.value_into(index % kv_heads, index / kv_heads, &mut value);
                assert_near(&key, &wide(k), |_| error, "key");
                assert_near(&value, &wide(v), |_| error, "value");
            }
        }
    }
}

#[test]
fn scores_too_far_apart_for_an_exponential() {
    let (head_dim, len) = (32, 700);
    let mut kv = LayerKv::new(KvKind::F32, 1, head_dim);
    for position in 0..len {
        let far = if position == 300 { 1e4 } else { -1e4 };
        kv.append(&vec![far; head_dim], &vec![position as f32; head_dim]);
    }
    for isa in Isa::available() {
        let mut out = vec![f32::NAN; head_dim];
        attention(
            &Pool::new(1),
            isa,
            &vec![1.0; head_dim],
            1,
            &Scoring::new(head_dim),
            &[Sequence { kv: &kv, n: 1 }],
            &mut out,
        );
        assert_eq!(out, vec![300.0; head_dim], "{isa}");
    }
}
