//! Against the definition in `f64`, with scores and probabilities in full.

use super::*;

/// Numbers in -1 .. 1 that look random.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

struct Case {
    shape: Shape,
    qkv: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    first: Vec<u32>,
    d_out: Vec<f32>,
}

struct Results {
    out: Vec<f32>,
    log_sum_exp: Vec<f32>,
    d_qkv: Vec<f32>,
}

impl Case {
    /// Documents of `document` tokens, or one of a whole sequence if that is 0.
    fn new(sizes: [usize; 5], document: usize) -> Self {
        Self::of(Shape::new(sizes), document, 1.0)
    }

    /// As [`Case::new`], with `factor` on both tables.
    fn of(shape: Shape, document: usize, factor: f32) -> Self {
        let Shape { batch, seq, heads, head_dim, rotary_dim, .. } = shape;
        let angle = |i: usize| {
            let (position, element) = (i / (rotary_dim / 2), i % (rotary_dim / 2));
            position as f32 * 1e4f32.powf(-2.0 * element as f32 / rotary_dim as f32)
        };
        let angles = seq * rotary_dim / 2;
        let document = if document == 0 { seq } else { document };
        Self {
            shape,
            qkv: numbers(1, batch * seq * shape.width()).into_iter().map(|x| 3.0 * x).collect(),
            cos: (0..angles).map(|i| factor * angle(i).cos()).collect(),
            sin: (0..angles).map(|i| factor * angle(i).sin()).collect(),
            // Documents of the second sequence begin elsewhere.
            first: (0..batch * seq)
                .map(|t| {
                    let (position, shift) = (t % seq, t / seq * 7 % document);
                    ((position + shift) / document * document).saturating_sub(shift) as u32
                })
                .collect(),
            d_out: numbers(2, batch * seq * heads * head_dim),
        }
    }

    fn run(&self, isa: Isa) -> Results {
        let Shape { batch, seq, heads, head_dim, .. } = self.shape;
        // What is written over.
        let mut out = vec![f32::NAN; batch * seq * heads * head_dim];
        let mut log_sum_exp = vec![f32::NAN; batch * heads * seq];
        let mut d_qkv = vec![f32::NAN; self.qkv.len()];
        let Self { shape, qkv, cos, sin, first, d_out } = self;
        forward(isa, shape, qkv, cos, sin, first, &mut out, &mut log_sum_exp);
        backward(isa, shape, qkv, cos, sin, first, &out, &log_sum_exp, d_out, &mut d_qkv);
        Results { out, log_sum_exp, d_qkv }
    }

    /// Output, logarithms and gradient by the definition.
    fn reference(&self, qkv: &[f64]) -> [Vec<f64>; 3] {
        let Shape { batch, seq, heads, kv_heads, head_dim, rotary_dim, scale, cap } = self.shape;
        let (width, half, scale) = (self.shape.width(), rotary_dim / 2, f64::from(scale));
        let bound = |x: f64| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
        // The derivative, of a score that is bound already.
        let slope = |x: f64| cap.map_or(1.0, |cap| 1.0 - (x / f64::from(cap)).powi(2));
        let turn = |x: &[f64], position: usize, sign: f64| -> Vec<f64> {
            let angle = |d: usize| {
                let at = position * half + d % half;
                (f64::from(self.cos[at]), sign * f64::from(self.sin[at]))
            };
            (0..head_dim)
                .map(|d| {
                    if d >= rotary_dim {
                        return x[d];
                    }
                    let (cos, sin) = angle(d);
                    if d < half { x[d] * cos - x[d + half] * sin } else { x[d] * cos + x[d - half] * sin }
                })
                .collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let add = |to: &mut [f64], a: f64, x: &[f64]| to.iter_mut().zip(x).for_each(|(to, x)| *to += a * x);
        let mut out = vec![0.0; batch * seq * heads * head_dim];
        let mut log_sum_exp = vec![0.0; batch * heads * seq];
        let mut d_qkv = vec![0.0; qkv.len()];
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let kv = heads + h / (heads / kv_heads);
            let columns = [h, kv, kv + kv_heads].map(|head| head * head_dim);
            let head = |t: usize, column: usize| &qkv[(b * seq + t) * width + column..][..head_dim];
            let turned = |column: usize| (0..seq).map(|t| turn(head(t, column), t, 1.0)).collect::<Vec<_>>();
            let (q, k) = (turned(columns[0]), turned(columns[1]));
            let mut d = [(); 2].map(|()| vec![vec![0.0; head_dim]; seq]);
            for t in 0..seq {
                let seen = self.first[b * seq + t] as usize..t + 1;
                let scores: Vec<f64> = seen.clone().map(|j| bound(scale * dot(&q[t], &k[j]))).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                log_sum_exp[(b * heads + h) * seq + t] = max + sum.ln();
                let at = ((b * seq + t) * heads + h) * head_dim;
                let g: Vec<f64> = self.d_out[at..][..head_dim].iter().map(|x| f64::from(*x)).collect();
                let p: Vec<f64> = scores.iter().map(|x| (x - max).exp() / sum).collect();
                for (j, p) in seen.clone().zip(&p) {
                    add(&mut out[at..][..head_dim], *p, head(j, columns[2]));
                    add(&mut d_qkv[(b * seq + j) * width + columns[2]..][..head_dim], *p, &g);
                }
                let product = dot(&g, &out[at..][..head_dim]);
                for ((j, p), score) in seen.zip(&p).zip(&scores) {
                    let ds = scale * slope(*score) * p * (dot(&g, head(j, columns[2])) - product);
                    add(&mut d[0][t], ds, &k[j]);
                    add(&mut d[1][j], ds, &q[t]);
                }
            }
            for (d, column) in d.iter().zip(columns) {
                for (t, d) in d.iter().enumerate() {
                    add(&mut d_qkv[(b * seq + t) * width + column..][..head_dim], 1.0, &turn(d, t, -1.0));
                }
            }
        }
        [out, log_sum_exp, d_qkv]
    }
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = 2e-5 * (1.0 + expected.abs());
        assert!((f64::from(*got) - expected).abs() < bound, "{what}: {got} is not {expected} at {i}");
    }
}

/// Batch, seq, heads, kv_heads, head_dim; tokens of a document.
const CASES: [([usize; 5], usize); 14] = [
    ([1, 1, 1, 1, 8], 0),
    ([2, 5, 3, 1, 8], 0),
    ([2, 33, 2, 2, 64], 0),
    ([1, 100, 3, 1, 80], 0),
    ([2, 100, 6, 2, 64], 17),
    ([1, 130, 4, 2, 16], 40),
    ([2, 100, 2, 1, 6], 1),
    ([1, 97, 5, 1, 32], 0),
    ([1, 70, 9, 1, 16], 33),
    ([3, 200, 1, 1, 16], 90),
    // Blocks of the largest number of tokens.
    ([4, 130, 8, 8, 16], 0),
    ([4, 150, 12, 6, 8], 60),
    // Of the largest number of queries.
    ([11, 65, 12, 3, 8], 0),
    ([2, 40, 17, 1, 8], 11),
];

#[track_caller]
fn assert_defined(case: &Case, what: &str) {
    let [out, log_sum_exp, d_qkv] = case.reference(&case.qkv.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
    for isa in Isa::available() {
        let results = case.run(isa);
        let name = |part| format!("{part} of {:?}, {what}, {isa}", case.shape);
        assert_close(&results.out, &out, &name("out"));
        assert_close(&results.log_sum_exp, &log_sum_exp, &name("log_sum_exp"));
        assert_close(&results.d_qkv, &d_qkv, &name("d_qkv"));
    }
}

#[test]
fn agrees_with_the_definition() {
    for (sizes, document) in CASES {
        assert_defined(&Case::new(sizes, document), &format!("documents of {document}"));
    }
}

/// Shapes that differ from Llama's in what scores are multiplied with and bound by and in what is turned, with a factor on the
/// angles.
fn shapes() -> impl Iterator<Item = (Shape, f32)> {
    let shape = |sizes: [usize; 5], rotary_dim, scale, cap| Shape { rotary_dim, scale, cap, ..Shape::new(sizes) };
    [
        // As Gemma 2, as Phi 3 with longrope, as the layers of SmolLM3 without rotary embedding, as Granite.
        (shape([1, 100, 4, 2, 32], 32, 0.3, Some(1.5)), 1.0),
        (shape([2, 70, 3, 3, 48], 36, 0.144, None), 1.19),
        (shape([2, 100, 6, 2, 16], 0, 0.25, None), 1.0),
        (shape([1, 130, 4, 1, 64], 64, 0.015_625, None), 1.0),
        // All of it, and heads of an odd length.
        (shape([3, 65, 4, 2, 7], 4, 0.7, Some(0.8)), 1.4),
        (shape([1, 97, 2, 1, 80], 32, 0.2, Some(30.0)), 0.9),
        (shape([1, 33, 2, 2, 5], 0, 0.4, Some(2.0)), 1.0),
    ]
    .into_iter()
}

#[test]
fn scales_caps_and_partial_rotations_agree_with_the_definition() {
    for (shape, factor) in shapes() {
        for document in [0, 29] {
            assert_defined(
                &Case::of(shape, document, factor),
                &format!("documents of {document}, angles times {factor}"),
            );
        }
    }
}

/// `first` of a sequence whose tokens see `window` positions, their own included.
fn within(window: usize, case: &mut Case) {
    let seq = case.shape.seq;
    for (token, first) in case.first.iter_mut().enumerate() {
        *first = (*first).max((token % seq + 1).saturating_sub(window) as u32);
    }
}

#[test]
fn windows_agree_with_the_definition() {
    for window in [1, 2, 15, 16, 17, 64, 100, 129] {
        for (sizes, document) in
            [([1, 300, 3, 1, 16], 0), ([2, 200, 4, 2, 8], 90), ([3, 333, 8, 8, 8], 0), ([1, 150, 17, 1, 8], 0)]
        {
            let mut case = Case::new(sizes, document);
            within(window, &mut case);
            assert_defined(&case, &format!("windows of {window}, documents of {document}"));
        }
    }
}

/// No more is asked of `first` than that each token sees itself.
#[test]
fn tokens_that_see_less_than_those_before_them_agree_with_the_definition() {
    let mut case = Case::new([2, 260, 2, 1, 8], 0);
    for (token, first) in case.first.iter_mut().enumerate() {
        *first = (token % 260 * (token * 7919 % 97) / 97) as u32;
    }
    case.first[200..300].fill(0);
    assert_defined(&case, "first as it comes");
}

#[test]
fn the_gradient_is_that_of_differences() {
    assert_differences(&Case::new([1, 37, 4, 2, 8], 20));
    for (shape, factor) in shapes() {
        let mut case = Case::of(Shape { batch: 1, seq: shape.seq.min(40), ..shape }, 0, factor);
        within(11, &mut case);
        assert_differences(&case);
    }
}

#[track_caller]
fn assert_differences(case: &Case) {
    let qkv: Vec<f64> = case.qkv.iter().map(|x| f64::from(*x)).collect();
    let loss = |qkv: &[f64]| -> f64 {
        case.reference(qkv)[0].iter().zip(&case.d_out).map(|(out, g)| out * f64::from(*g)).sum()
    };
    let of_isas: Vec<Vec<f32>> = Isa::available().map(|isa| case.run(isa).d_qkv).collect();
    const STEP: f64 = 1e-4;
    for i in (0..qkv.len()).step_by(1 + qkv.len() / 40) {
        let moved = |step: f64| {
            let mut qkv = qkv.clone();
            qkv[i] += step;
            loss(&qkv)
        };
        let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        for d_qkv in &of_isas {
            let bound = 1e-4 * (1.0 + expected.abs());
            assert!((f64::from(d_qkv[i]) - expected).abs() < bound, "{:?}: {} {expected}", case.shape, d_qkv[i]);
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    let mut case = Case::new([1, 80, 2, 1, 16], 30);
    case.qkv.iter_mut().for_each(|x| *x *= 30.0);
    for isa in Isa::available() {
        let Results { out, log_sum_exp, d_qkv } = case.run(isa);
        assert!(out.iter().chain(&log_sum_exp).chain(&d_qkv).all(|x| x.is_finite()), "{isa}");
    }
}

#[test]
fn every_number_of_threads_gives_the_same() {
    for (sizes, document) in [([2, 150, 6, 2, 64], 0), ([1, 210, 2, 2, 16], 50)] {
        let case = Case::new(sizes, document);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let Results { out, log_sum_exp, d_qkv } = pool.install(|| case.run(Isa::best()));
            [out, log_sum_exp, d_qkv].map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let expected = run(1);
        for threads in [1, 2, 3] {
            assert!(run(threads) == expected, "{threads} threads, {:?}", case.shape);
        }
    }
}

#[test]
#[should_panic(expected = "does not see itself")]
fn a_token_sees_itself() {
    let mut case = Case::new([1, 4, 1, 1, 8], 0);
    case.first[2] = 3;
    case.run(Isa::best());
}
