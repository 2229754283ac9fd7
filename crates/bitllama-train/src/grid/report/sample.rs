//! Results to test with, like those of a real grid.

use bitllama_runtime::evaluate::{Comparison, Percentiles, Perplexity};
use indexmap::IndexMap;

use crate::grid::results::{Cell, Other, Results, Speed, Teacher, Training};
use crate::seeded;
use rand::Rng;

/// Texts with the teacher's perplexity.
const TEXTS: [(&str, f64); 2] = [("wikitext-2", 18.93), ("held out", 12.41)];

/// Name, bits per weight, tokens a second, and how much each method is above the teacher in log-perplexity.
const SCHEMES: [(&str, f64, f64, [f64; 4]); 6] = [
    ("int8", 8.63, 71.0, [0.002, 0.0015, 0.004, 0.001]),
    ("int4", 4.71, 118.0, [0.21, 0.11, 0.045, 0.028]),
    ("int3", 3.74, 131.0, [1.35, 0.62, 0.105, 0.072]),
    ("int2", 2.78, 149.0, [6.4, 3.1, 0.34, 0.23]),
    ("ternary", 2.35, 153.0, [7.3, 5.2, 0.42, 0.31]),
    ("binary", 1.79, 162.0, [10.9, 8.1, 0.78, 0.61]),
];
const METHODS: [&str; 4] = ["round to nearest", "scale search", "QAT, cross-entropy", "QAT, distillation"];
const WEIGHTS: f64 = 134_515_008.0;

fn perplexity(nll: f64) -> Perplexity {
    Perplexity { perplexity: nll.exp(), error: 0.011 * nll.exp(), nll, tokens_scored: 24_576, chunks: 96 }
}

/// A student so much worse than the teacher, in nats.
fn comparison(teacher: f64, gap: f64) -> Comparison {
    let kld = 0.8 * gap + 0.0004;
    let same_top = (1.0 - 0.33 * kld.sqrt()).max(0.02);
    Comparison {
        student: perplexity(teacher.ln() + gap),
        teacher: perplexity(teacher.ln()),
        mean_kld: kld,
        mean_kld_error: 0.02 * kld,
        kld: Percentiles {
            median: 0.4 * kld,
            p90: 2.5 * kld,
            p95: 3.9 * kld,
            p99: 8.2 * kld,
            p99_9: 17.0 * kld,
            max: 41.0 * kld,
        },
        rms_delta_p: 0.1 * kld.sqrt(),
        rms_delta_p_error: 0.002 * kld.sqrt(),
        mean_delta_p: -0.02 * kld.min(3.0),
        mean_delta_p_error: 0.001,
        same_top,
        same_top_error: 0.003,
        // Chunks differ far more than what a student makes of each of them.
        chunk_nll: (0..96u32)
            .map(|chunk| {
                let chunk = chunk as f64;
                teacher.ln() + 0.3 * (2.4 * chunk).sin() + gap * (1.0 + 0.1 * (1.7 * chunk).cos())
            })
            .collect(),
    }
}

fn cell(scheme: &str, method: &str, seed: u64, bits: f64, decode: f64, gap: f64) -> Cell {
    let mut random = seeded(seed, &format!("{scheme} {method}"), 0);
    let mut noise = |width: f64| 1.0 + width * (random.random::<f64>() - 0.5);
    let trained = method.starts_with("QAT") || method == "full precision";
    let gap = gap * if trained { noise(0.12) } else { 1.0 };
    Cell {
        scheme: scheme.into(),
        method: method.into(),
        seed,
        bits_per_weight: bits,
        artifact_bytes: (WEIGHTS * bits / 8.0) as u64 + 2_104_556,
        texts: TEXTS.iter().map(|(text, teacher)| (text.to_string(), comparison(*teacher, gap))).collect(),
        machine: "AMD EPYC, 2 cores, 24 GiB, linux".into(),
        speed: Speed {
            prompt: 5.1 * decode * noise(0.05),
            decode: decode * noise(0.05),
            peak_memory: Some((WEIGHTS * bits / 8.0 * 1.4) as u64),
        },
        training: match trained {
            true => Training { steps: 1000, tokens: 4_096_000, seconds: 3120.0 * noise(0.02), joules: Some(241_000.0) },
            false => Training { steps: 0, tokens: 0, seconds: 6.1 * noise(0.1), joules: None },
        },
    }
}

/// Seven schemes, four methods and the control, three seeds, llama.cpp beside them; one cell has failed, two are missing.
pub fn results() -> Results {
    let mut cells = Vec::new();
    for (scheme, bits, decode, gaps) in SCHEMES {
        for (method, gap) in METHODS.into_iter().zip(gaps) {
            let seeds = (0..3).filter(|seed| (scheme, method, *seed) != ("binary", "scale search", 2));
            cells.extend(seeds.map(|seed| cell(scheme, method, seed, bits, decode, gap)));
        }
    }
    cells.push(cell("f32", "full precision", 0, 32.0, 14.2, 0.004));
    let others = [
        ("Q8_0", 8.52, 41.0, 0.001),
        ("Q4_K_M", 5.36, 60.0, 0.035),
        ("Q4_0", 4.95, 63.0, 0.09),
        ("TQ2_0", 2.9, 88.0, 7.1),
    ];
    Results {
        format_version: 1,
        title: "SmolLM2-135M, what each bit costs".into(),
        date: "2026-11-23".into(),
        machine: "two cores of an Intel Xeon (Sapphire Rapids), 24 GiB".into(),
        revision: Some("0123abcd".into()),
        command: "bitllama-train grid --config recipes/grid.toml\nbitllama-train report runs/grid".into(),
        teacher: Teacher {
            name: "SmolLM2-135M-Instruct".into(),
            bits_per_weight: 16.0,
            bytes: 2 * WEIGHTS as u64,
            texts: TEXTS.iter().map(|(text, value)| (text.to_string(), perplexity(value.ln()))).collect(),
        },
        cells,
        failed: IndexMap::from([(
            "binary, scale search, seed 2".to_string(),
            "runs/grid/binary-search-2: the loss is not finite at step 12".to_string(),
        )]),
        missing: vec!["f32, full precision, seed 1".into(), "f32, full precision, seed 2".into()],
        others: others
            .into_iter()
            .flat_map(|other| TEXTS.map(|(text, teacher)| of_llama(other, text, teacher)))
            .collect(),
    }
}

fn of_llama((model, bits, decode, gap): (&str, f64, f64, f64), text: &str, teacher: f64) -> Other {
    let found = comparison(teacher, gap);
    Other {
        tool: "llama.cpp".into(),
        model: model.into(),
        bits_per_weight: bits,
        bytes: (WEIGHTS * bits / 8.0) as u64,
        text: text.into(),
        perplexity: found.student.perplexity,
        perplexity_error: found.student.error,
        mean_kld: Some(found.mean_kld),
        mean_kld_error: Some(found.mean_kld_error),
        same_top: Some(found.same_top),
        rms_delta_p: Some(found.rms_delta_p),
        prompt_tokens_per_second: Some(2.3 * decode),
        decode_tokens_per_second: Some(decode),
    }
}

/// Nothing but a teacher.
pub fn empty() -> Results {
    Results { cells: vec![], failed: IndexMap::new(), missing: vec![], others: vec![], ..results() }
}

/// Names that mean something to HTML, Markdown and CSV.
pub fn hostile() -> Results {
    let hostile = "<b>a|b**, \"c\"";
    let mut results = results();
    results.title = "<script>alert('t')</script> | x".into();
    results.machine = "a\nb | <script>".into();
    results.command = "```\na|b & 'c'".into();
    results.failed.insert(hostile.into(), "<script>\n| no".into());
    for cell in results.cells.iter_mut().take(3) {
        cell.scheme = hostile.into();
        cell.method = "'m' & [x](y) `z`".into();
        cell.texts = cell.texts.iter().map(|(text, found)| (format!("{text}|<b>"), found.clone())).collect();
    }
    results.others[0].model = hostile.into();
    results.others[0].tool = "<script>".into();
    results
}
