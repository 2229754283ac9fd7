//! `bitllama bench --kernels`: every kernel by itself, against what the machine allows.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use bitllama_core::{DenseMatrix, Granularity, Quantizer, ScaleFormat, Scheme};
use bitllama_formats::StoredWeight;
use bitllama_kernels::bandwidth::{Stream, streaming_bytes};
use bitllama_kernels::{Input, Isa, Matrix, Pool, Precision, peak, products};
use bitllama_runtime::bench::{Speed, random_weight};
use serde::Serialize;

/// `[out_features, in_features]`: in cache with few bits, a layer of a 1B model, and one that only memory holds.
const SHAPES: [[usize; 2]; 3] = [[2048, 2048], [5632, 2048], [32768, 4096]];
/// Rows of activations: decoding, a few sequences, a prompt.
const BATCHES: [usize; 3] = [1, 4, 128];
/// Weights of fewer bytes are read out of a cache when they are read again.
const IN_CACHE: usize = 32 << 20;
/// Columns that share an f16 scale in the rows for groups.
const GROUP: usize = 64;
/// Reads of each probe of a cache or of memory.
const READS: usize = 5;
/// A kernel is run for at least so long, and the fastest run counts.
const TIME: Duration = Duration::from_millis(120);

/// One kernel, timed.
#[derive(Debug, Serialize)]
struct Row {
    scheme: &'static str,
    /// Columns that share a scale; 0 where all of a row do, and in f32.
    group_size: usize,
    activations: &'static str,
    isa: &'static str,
    threads: usize,
    out_features: usize,
    in_features: usize,
    tokens: usize,
    /// Products of a weight with an activation, 10^9 a second.
    giga_weights_per_second: f64,
    /// Bytes of weights, 10^9 a second.
    gigabytes_per_second: f64,
    /// Streaming reads beside the run, of memory or of the cache that holds the weights, 10^9 bytes a second.
    gigabytes_per_second_streamed: f64,
    /// Share of what bounds the kernel ([`Row::bound`]).
    of_bound: f64,
    /// `reads`: of the weights, from memory or the cache that holds them; `compute`: products of bytes.
    bound: &'static str,
}

/// What the machine can do with a number of threads.
#[derive(Debug, Serialize)]
struct Machine {
    threads: usize,
    /// Streaming reads of more than any cache holds, GB/s, before the kernels run.
    memory: f64,
    /// Products of bytes in registers, 10^9 a second, by instruction set.
    int8_peak: Vec<(&'static str, f64)>,
}

#[derive(Serialize)]
struct Report {
    machines: Vec<Machine>,
    kernels: Vec<Row>,
}

/// Times every kernel with each number of threads.
pub fn run(threads: &[usize], json: bool) -> anyhow::Result<()> {
    let memory = Stream::new(Pool::global(), streaming_bytes());
    let mut report = Report { machines: Vec::new(), kernels: Vec::new() };
    for threads in threads {
        let pool = Pool::new(*threads);
        let int8_peak = Isa::available().map(|isa| (isa.name(), peak::int8_products(isa, &pool) / 1e9)).collect();
        report.machines.push(Machine { threads: *threads, memory: gigabytes_per_second(&memory, &pool), int8_peak });
    }
    if !json {
        print_machines(&report.machines)?;
    }
    for shape in SHAPES {
        for quantizer in formats() {
            let weight = match random_weight(quantizer, shape, 0)? {
                StoredWeight::Packed(packed) => packed.into(),
                StoredWeight::Full(data) => Matrix::Full(DenseMatrix { data, columns: shape[1] }),
                StoredWeight::Rows(rows) => Matrix::Stored(rows),
            };
            for (threads, machine) in threads.iter().zip(&report.machines) {
                let pool = Pool::new(*threads);
                // What holds the weights: a cache, or memory.
                let streamed = match weight.bytes() < IN_CACHE {
                    true => gigabytes_per_second(&Stream::new(&pool, weight.bytes()), &pool),
                    false => gigabytes_per_second(&memory, &pool),
                };
                for (isa, precision, tokens) in combinations(quantizer.map(|quantizer| quantizer.scheme)) {
                    let row = time(&pool, &weight, quantizer, isa, precision, tokens, machine, streamed);
                    if !json {
                        print_row(&row)?;
                    }
                    report.kernels.push(row);
                }
            }
        }
    }
    if json { crate::print_json(&report) } else { Ok(()) }
}

fn gigabytes_per_second(stream: &Stream, pool: &Pool) -> f64 {
    Speed::of(stream.probe(pool, READS)).median / 1e9
}

/// The weights to time: each scheme with one scale per row, and with one per group, as models are shipped; then f32.
fn formats() -> impl Iterator<Item = Option<Quantizer>> {
    let packed = Scheme::ALL.into_iter().flat_map(|scheme| {
        let plain = Quantizer::from(scheme);
        let groups = plain.with_granularity(Granularity::Group(GROUP)).with_scales(ScaleFormat::F16);
        [plain.with_granularity(Granularity::Row), groups]
    });
    packed.map(Some).chain([None])
}

/// What is worth timing for a scheme. The portable kernels are not made to be fast.
fn combinations(scheme: Option<Scheme>) -> Vec<(Isa, Precision, usize)> {
    let precisions = match scheme {
        None => &Precision::ALL[..1],
        Some(Scheme::Binary) => &Precision::ALL[..],
        Some(_) => &Precision::ALL[..2],
    };
    let fast = Isa::available().filter(|isa| *isa != Isa::Scalar || Isa::best() == Isa::Scalar);
    let all = fast.flat_map(|isa| precisions.iter().map(move |precision| (isa, *precision)));
    all.flat_map(|(isa, precision)| BATCHES.map(|tokens| (isa, precision, tokens))).collect()
}

#[allow(clippy::too_many_arguments)]
fn time(
    pool: &Pool,
    weight: &Matrix,
    quantizer: Option<Quantizer>,
    isa: Isa,
    precision: Precision,
    tokens: usize,
    machine: &Machine,
    streamed: f64,
) -> Row {
    let (rows, columns) = (weight.rows(), weight.columns());
    let x: Vec<f32> = (0..tokens * columns).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect();
    let mut input = Input::new(isa, precision);
    input.set(pool, &x, columns, &[weight]);
    let mut out = vec![0.0; tokens * rows];
    let (start, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || start.elapsed() < TIME {
        let start = Instant::now();
        products(pool, &input, &mut [(weight, &mut out)]);
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    let products = (rows * columns * tokens) as f64 / best / 1e9;
    let bytes = weight.bytes() as f64 / best / 1e9;
    let peak = machine.int8_peak.iter().find(|(name, _)| *name == isa.name() && precision == Precision::Int8);
    let of_compute = peak.map_or(0.0, |(_, peak)| products / peak);
    let of_memory = bytes / streamed;
    let (of_bound, bound) = if of_compute > of_memory { (of_compute, "compute") } else { (of_memory, "reads") };
    Row {
        scheme: quantizer.map_or("f32", |quantizer| quantizer.scheme.name()),
        group_size: match quantizer.map(|quantizer| quantizer.granularity) {
            Some(Granularity::Group(size)) => size,
            _ => 0,
        },
        activations: precision.name(),
        isa: isa.name(),
        threads: pool.threads(),
        out_features: rows,
        in_features: columns,
        tokens,
        giga_weights_per_second: products,
        gigabytes_per_second: bytes,
        gigabytes_per_second_streamed: streamed,
        of_bound,
        bound,
    }
}

fn print_machines(machines: &[Machine]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for Machine { threads, memory, int8_peak } in machines {
        let peaks = int8_peak.iter().map(|(isa, peak)| format!("{isa} {peak:.0}")).collect::<Vec<_>>().join(", ");
        writeln!(out, "{threads} threads: memory {memory:.1} GB/s, int8 products in registers: {peaks} G/s")?;
    }
    writeln!(
        out,
        "\n| weights     |  shape      | activations | isa    | threads | tokens | G weights/s |   GB/s | of bound      |"
    )?;
    writeln!(
        out,
        "|-------------|-------------|-------------|--------|--------:|-------:|------------:|-------:|---------------|"
    )
}

fn print_row(row: &Row) -> io::Result<()> {
    let shape = format!("{}x{}", row.out_features, row.in_features);
    let weights = match row.group_size {
        0 => row.scheme.to_string(),
        size => format!("{}-g{size}", row.scheme),
    };
    let share = format!("{:.0} % {}", 100.0 * row.of_bound, row.bound);
    writeln!(
        io::stdout().lock(),
        "| {weights:<11} | {shape:<11} | {:<11} | {:<6} | {:>7} | {:>6} | {:>11.1} | {:>6.1} | {share:<13} |",
        row.activations,
        row.isa,
        row.threads,
        row.tokens,
        row.giga_weights_per_second,
        row.gigabytes_per_second
    )
}
