//! Attention of inference on one thread, at the shapes of known models: a token at some depths, and a prompt; with and
//! without a window of 512 and a cap. Median microseconds of a call for each kind of keys and values.
//!
//! ```text
//! cargo bench -p bitllama-kernels --bench attention
//! ```

mod timing;

use std::time::Duration;

use bitllama_kernels::attention::{Scoring, Sequence, attention};
use bitllama_kernels::kv::{KvKind, LayerKv};
use bitllama_kernels::{Isa, Pool};
use timing::seconds;

/// Names, heads, key-value heads and elements of a head.
const MODELS: [(&str, usize, usize, usize); 3] =
    [("SmolLM2 135M", 9, 3, 64), ("Gemma 3 270M", 4, 1, 256), ("Llama 3.1 8B", 32, 8, 128)];

/// Positions, and those that are tokens of the call.
const SIZES: [(usize, usize); 3] = [(512, 1), (8192, 1), (2048, 2048)];

const WINDOW: usize = 512;

/// Time that a figure may take.
const TIME: Duration = Duration::from_millis(200);

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect()
}

fn main() {
    let (pool, isa) = (Pool::new(1), Isa::current());
    println!("{:40} {:>12} {:>12} {:>12} {:>12}   us on {isa}", "", "f32", "f16", "int8", "int4");
    for (model, heads, kv_heads, head_dim) in MODELS {
        let plain = Scoring::new(head_dim);
        let ways = [
            ("", plain),
            (", window", Scoring { window: Some(WINDOW), ..plain }),
            (", cap", Scoring { cap: Some(50.0), ..plain }),
        ];
        for ((len, n), (way, scoring)) in SIZES.into_iter().flat_map(|size| ways.map(|way| (size, way))) {
            let q = numbers(n * heads * head_dim);
            let mut out = vec![0.0; q.len()];
            let medians = KvKind::ALL.map(|kind| {
                let mut kv = LayerKv::with_window(kind, kv_heads, head_dim, scoring.window);
                let rows = numbers(n * kv_heads * head_dim);
                (0..len / n).for_each(|_| kv.append(&rows, &rows));
                let [median, _] =
                    seconds(TIME, || attention(&pool, isa, &q, heads, &scoring, &[Sequence { kv: &kv, n }], &mut out));
                median * 1e6
            });
            let name = format!("{model}, {n} of {len} positions{way}");
            println!("{name:40} {:12.1} {:12.1} {:12.1} {:12.1}", medians[0], medians[1], medians[2], medians[3]);
        }
    }
}
