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
    fn new([batch, seq, heads, kv_heads, head_dim]: [usize; 5], document: usize) -> Self {
        let shape = Shape { batch, seq, heads, kv_heads, head_dim };
        let angle = |i: usize| {
            let (position, element) = (i / (head_dim / 2), i % (head_dim / 2));
            position as f32 * 1e4f32.powf(-2.0 * element as f32 / head_dim as f32)
        };
        let angles = seq * head_dim / 2;
        let document = if document == 0 { seq } else { document };
        Self {
            shape,
            qkv: numbers(1, batch * seq * shape.width()).into_iter().map(|x| 3.0 * x).collect(),
            cos: (0..angles).map(|i| angle(i).cos()).collect(),
            sin: (0..angles).map(|i| angle(i).sin()).collect(),
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
        let Shape { batch, seq, heads, kv_heads, head_dim } = self.shape;
        let (width, half, scale) = (self.shape.width(), head_dim / 2, 1.0 / (head_dim as f64).sqrt());
        let turn = |x: &[f64], position: usize, sign: f64| -> Vec<f64> {
            let angle = |d: usize| {
                let at = position * half + d % half;
                (f64::from(self.cos[at]), sign * f64::from(self.sin[at]))
            };
            (0..head_dim)
                .map(|d| {
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
                let scores: Vec<f64> = seen.clone().map(|j| scale * dot(&q[t], &k[j])).collect();
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
                for (j, p) in seen.zip(&p) {
                    let ds = scale * p * (dot(&g, head(j, columns[2])) - product);
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

#[test]
fn agrees_with_the_definition() {
    for (sizes, document) in CASES {
        let case = Case::new(sizes, document);
        let [out, log_sum_exp, d_qkv] = case.reference(&case.qkv.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        for isa in Isa::available() {
            let results = case.run(isa);
            let name = |what| format!("{what} of {:?}, documents of {document}, {isa}", case.shape);
            assert_close(&results.out, &out, &name("out"));
            assert_close(&results.log_sum_exp, &log_sum_exp, &name("log_sum_exp"));
            assert_close(&results.d_qkv, &d_qkv, &name("d_qkv"));
        }
    }
}

#[test]
fn the_gradient_is_that_of_differences() {
    let case = Case::new([1, 37, 4, 2, 8], 20);
    let qkv: Vec<f64> = case.qkv.iter().map(|x| f64::from(*x)).collect();
    let loss = |qkv: &[f64]| -> f64 {
        case.reference(qkv)[0].iter().zip(&case.d_out).map(|(out, g)| out * f64::from(*g)).sum()
    };
    let d_qkv = case.run(Isa::best()).d_qkv;
    const STEP: f64 = 1e-4;
    for i in (0..qkv.len()).step_by(61) {
        let moved = |step: f64| {
            let mut qkv = qkv.clone();
            qkv[i] += step;
            loss(&qkv)
        };
        let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        assert!((f64::from(d_qkv[i]) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{} {expected}", d_qkv[i]);
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
