//! What the report shows: the grid's cells put together over their seeds, beside the teacher and other tools' models.

use bitllama_runtime::evaluate::{Comparison, Percentiles, Perplexity};
use indexmap::IndexMap;

use super::format::plain;
use crate::grid::results::{Cell, Other, Results, Teacher};

/// Everything to show. Names are without control characters, not yet escaped.
#[derive(Debug, Clone)]
pub struct View {
    /// The model learned from.
    pub teacher: Entry,
    /// A scheme with a method, in the order of the grid.
    pub cells: Vec<Entry>,
    /// Models of other tools.
    pub others: Vec<Entry>,
    /// Names of the texts; the first is the main one.
    pub texts: Vec<String>,
}

/// A row of the table, a point of the plots.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Of the grid's scheme; `teacher`; or another tool's model.
    pub scheme: String,
    /// Of the grid's method; the teacher's name; or the other tool.
    pub method: String,
    /// Runs put together; 0 where it is no run of the grid.
    pub seeds: usize,
    /// Everything counted.
    pub bits: f64,
    /// Of the artifact, or of the weights as stored.
    pub bytes: f64,
    /// By text.
    pub texts: IndexMap<String, OnText>,
    /// Tokens a second of a prompt.
    pub prompt: Option<Figure>,
    /// Tokens a second one after the other.
    pub decode: Option<Figure>,
    /// Bytes, the largest of its runs.
    pub peak_memory: Option<f64>,
    /// Of the grid's cells, the mean of their runs.
    pub cost: Option<Cost>,
}

/// How good a model is on a text.
#[derive(Debug, Clone, PartialEq)]
pub struct OnText {
    /// By llama.cpp's protocol.
    pub perplexity: Figure,
    /// KL divergence from the teacher, nats.
    pub kld: Option<Figure>,
    /// Fraction of positions with the teacher's likeliest token.
    pub same_top: Option<Figure>,
    /// Root mean square of Δp, a fraction.
    pub rms_delta_p: Option<Figure>,
    /// Mean of Δp, a fraction.
    pub mean_delta_p: Option<Figure>,
    /// Of the divergence over positions, each the mean of the runs.
    pub percentiles: Option<Percentiles>,
    /// Mean negative log likelihood of a run, nats, by seed; empty of what is no run of the grid.
    pub nll: Vec<f64>,
    /// The same by chunk, the mean of the runs; empty where it is not known.
    pub chunk_nll: Vec<f64>,
}

impl Entry {
    /// Whether it depends on a seed.
    pub fn trained(&self) -> bool {
        self.cost.is_some_and(|cost| cost.steps > 0.0)
    }
}

/// What a cell took to make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Optimizer steps.
    pub steps: f64,
    /// Tokens trained on.
    pub tokens: f64,
    /// Seconds.
    pub seconds: f64,
    /// Of all runs that have it.
    pub joules: Option<f64>,
}

/// A number, and how far it could be off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The mean over seeds.
    pub value: f64,
    /// The sample standard deviation over seeds; where there is one run, the figure's own standard error, if it has one.
    pub spread: Option<f64>,
}

impl Figure {
    /// With its own standard error.
    pub fn new(value: f64, error: Option<f64>) -> Self {
        Self { value, spread: error }
    }

    /// Of runs, each with its own standard error; `None` of no runs.
    pub fn over(runs: &[Figure]) -> Option<Self> {
        let value = mean(runs.iter().map(|run| run.value))?;
        let spread = match runs {
            [one] => one.spread,
            _ => {
                let squares: f64 = runs.iter().map(|run| (run.value - value).powi(2)).sum();
                Some((squares / (runs.len() - 1) as f64).sqrt())
            }
        };
        Some(Self { value, spread })
    }
}

/// `None` of no values.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

impl View {
    /// Puts results together.
    pub fn new(results: &Results) -> Self {
        let mut groups: IndexMap<(String, String), Vec<&Cell>> = IndexMap::new();
        for cell in &results.cells {
            groups.entry((plain(&cell.scheme), plain(&cell.method))).or_default().push(cell);
        }
        let mut models: IndexMap<(String, String), Vec<&Other>> = IndexMap::new();
        for other in &results.others {
            models.entry((plain(&other.model), plain(&other.tool))).or_default().push(other);
        }
        let teacher = of_teacher(&results.teacher);
        let cells: Vec<Entry> =
            groups.into_iter().map(|((scheme, method), cells)| of_cells(scheme, method, &cells)).collect();
        let others: Vec<Entry> =
            models.into_iter().filter_map(|((model, tool), lines)| of_other(model, tool, &lines)).collect();
        let mut texts: Vec<String> = Vec::new();
        for entry in std::iter::once(&teacher).chain(&cells).chain(&others) {
            for text in entry.texts.keys() {
                if !texts.contains(text) {
                    texts.push(text.clone());
                }
            }
        }
        Self { teacher, cells, others, texts }
    }

    /// Names of the schemes, in the order of the grid.
    pub fn schemes(&self) -> Vec<&str> {
        unique(self.cells.iter().map(|entry| entry.scheme.as_str()))
    }

    /// Names of the methods, in the order of the grid.
    pub fn methods(&self) -> Vec<&str> {
        unique(self.cells.iter().map(|entry| entry.method.as_str()))
    }

    /// Names of the other tools.
    pub fn tools(&self) -> Vec<&str> {
        unique(self.others.iter().map(|entry| entry.method.as_str()))
    }

    /// Those of a scheme that have been scored on a text, the lowest perplexity first.
    pub fn ranked(&self, scheme: &str, text: &str) -> Vec<&Entry> {
        let of_scheme = self.cells.iter().filter(|entry| entry.scheme == scheme);
        let mut ranked: Vec<(&Entry, f64)> =
            of_scheme.filter_map(|entry| Some((entry, entry.texts.get(text)?.perplexity.value))).collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        ranked.into_iter().map(|(entry, _)| entry).collect()
    }
}

/// In the order in which they come first.
fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

fn of_teacher(teacher: &Teacher) -> Entry {
    let on_text = |p: &Perplexity| OnText {
        perplexity: Figure::new(p.perplexity, Some(p.error)),
        kld: None,
        same_top: None,
        rms_delta_p: None,
        mean_delta_p: None,
        percentiles: None,
        nll: vec![],
        chunk_nll: vec![],
    };
    Entry {
        scheme: "teacher".into(),
        method: plain(&teacher.name),
        seeds: 0,
        bits: teacher.bits_per_weight,
        bytes: teacher.bytes as f64,
        texts: teacher.texts.iter().map(|(text, perplexity)| (plain(text), on_text(perplexity))).collect(),
        prompt: None,
        decode: None,
        peak_memory: None,
        cost: None,
    }
}

/// Of one scheme and method; at least one.
fn of_cells(scheme: String, method: String, cells: &[&Cell]) -> Entry {
    let average = |value: &dyn Fn(&Cell) -> f64| mean(cells.iter().map(|cell| value(cell))).unwrap_or(f64::NAN);
    let speed = |value: &dyn Fn(&Cell) -> f64| {
        Figure::over(&cells.iter().map(|cell| Figure::new(value(cell), None)).collect::<Vec<_>>())
    };
    let mut texts: IndexMap<String, Vec<&Comparison>> = IndexMap::new();
    for cell in cells {
        for (text, comparison) in &cell.texts {
            texts.entry(plain(text)).or_default().push(comparison);
        }
    }
    Entry {
        scheme,
        method,
        seeds: cells.len(),
        bits: average(&|cell| cell.bits_per_weight),
        bytes: average(&|cell| cell.artifact_bytes as f64),
        texts: texts.into_iter().filter_map(|(text, runs)| Some((text, of_comparisons(&runs)?))).collect(),
        prompt: speed(&|cell| cell.speed.prompt),
        decode: speed(&|cell| cell.speed.decode),
        peak_memory: cells.iter().filter_map(|cell| cell.speed.peak_memory).max().map(|bytes| bytes as f64),
        cost: Some(Cost {
            steps: average(&|cell| cell.training.steps as f64),
            tokens: average(&|cell| cell.training.tokens as f64),
            seconds: average(&|cell| cell.training.seconds),
            joules: mean(cells.iter().filter_map(|cell| cell.training.joules)),
        }),
    }
}

fn of_comparisons(runs: &[&Comparison]) -> Option<OnText> {
    let figure = |value: &dyn Fn(&Comparison) -> (f64, f64)| {
        let figures: Vec<Figure> =
            runs.iter().map(|run| value(run)).map(|(v, error)| Figure::new(v, Some(error))).collect();
        Figure::over(&figures)
    };
    let percentile = |value: &dyn Fn(&Percentiles) -> f64| mean(runs.iter().map(|run| value(&run.kld)));
    Some(OnText {
        perplexity: figure(&|run| (run.student.perplexity, run.student.error))?,
        kld: figure(&|run| (run.mean_kld, run.mean_kld_error)),
        same_top: figure(&|run| (run.same_top, run.same_top_error)),
        rms_delta_p: figure(&|run| (run.rms_delta_p, run.rms_delta_p_error)),
        mean_delta_p: figure(&|run| (run.mean_delta_p, run.mean_delta_p_error)),
        percentiles: Some(Percentiles {
            median: percentile(&|kld| kld.median)?,
            p90: percentile(&|kld| kld.p90)?,
            p95: percentile(&|kld| kld.p95)?,
            p99: percentile(&|kld| kld.p99)?,
            p99_9: percentile(&|kld| kld.p99_9)?,
            max: percentile(&|kld| kld.max)?,
        }),
        nll: runs.iter().map(|run| run.student.nll).collect(),
        chunk_nll: by_chunk(runs),
    })
}

/// The mean over runs; empty if one of them does not have the same chunks.
fn by_chunk(runs: &[&Comparison]) -> Vec<f64> {
    let chunks = runs.first().map_or(0, |run| run.chunk_nll.len());
    if runs.iter().any(|run| run.chunk_nll.len() != chunks) {
        return vec![];
    }
    (0..chunks).filter_map(|chunk| mean(runs.iter().map(|run| run.chunk_nll[chunk]))).collect()
}

/// Of one model; its size and speed stand in each of its lines, those of the first count.
fn of_other(model: String, tool: String, lines: &[&Other]) -> Option<Entry> {
    let first = lines.first()?;
    let on_text = |line: &Other| OnText {
        perplexity: Figure::new(line.perplexity, Some(line.perplexity_error)),
        kld: line.mean_kld.map(|kld| Figure::new(kld, line.mean_kld_error)),
        same_top: line.same_top.map(|share| Figure::new(share, None)),
        rms_delta_p: line.rms_delta_p.map(|delta| Figure::new(delta, None)),
        mean_delta_p: None,
        percentiles: None,
        nll: vec![],
        chunk_nll: vec![],
    };
    let speed = |value: &dyn Fn(&Other) -> Option<f64>| {
        lines.iter().find_map(|line| value(line)).map(|rate| Figure::new(rate, None))
    };
    Some(Entry {
        scheme: model,
        method: tool,
        seeds: 0,
        bits: first.bits_per_weight,
        bytes: first.bytes as f64,
        texts: lines.iter().map(|line| (plain(&line.text), on_text(line))).collect(),
        prompt: speed(&|line| line.prompt_tokens_per_second),
        decode: speed(&|line| line.decode_tokens_per_second),
        peak_memory: None,
        cost: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn seeds_are_put_together() {
        let runs = [Figure::new(1.0, Some(9.0)), Figure::new(2.0, Some(9.0)), Figure::new(6.0, None)];
        let figure = Figure::over(&runs).unwrap();
        assert_eq!(figure.value, 3.0);
        // ((1-3)^2 + (2-3)^2 + (6-3)^2) / 2 = 7
        assert!((figure.spread.unwrap() - 7f64.sqrt()).abs() < 1e-12);
        // One run keeps its own error.
        assert_eq!(Figure::over(&runs[..1]), Some(runs[0]));
        assert_eq!(Figure::over(&[]), None);
    }

    #[test]
    fn cells_of_a_scheme_and_method_are_one_entry() {
        let results = sample::results();
        let view = View::new(&results);
        let entry = view.cells.iter().find(|e| e.scheme == "int4" && e.method == "QAT, distillation").unwrap();
        let runs: Vec<&Cell> =
            results.cells.iter().filter(|c| c.scheme == entry.scheme && c.method == entry.method).collect();
        assert_eq!((entry.seeds, runs.len()), (3, 3));
        let expected: f64 = runs.iter().map(|c| c.texts["wikitext-2"].student.perplexity).sum::<f64>() / 3.0;
        assert!((entry.texts["wikitext-2"].perplexity.value - expected).abs() < 1e-9);
        assert_eq!(view.texts, ["wikitext-2", "held out"]);
        assert_eq!(view.schemes().first(), Some(&"int8"));
        // Two lines of a model, one for each text.
        let model = &view.others[0];
        assert_eq!((model.scheme.as_str(), model.method.as_str(), model.texts.len()), ("Q8_0", "llama.cpp", 2));
    }

    #[test]
    fn ranked_by_perplexity() {
        let view = View::new(&sample::results());
        let ranked = view.ranked("int2", "wikitext-2");
        let values: Vec<f64> = ranked.iter().map(|entry| entry.texts["wikitext-2"].perplexity.value).collect();
        assert!(values.is_sorted() && values.len() == 4);
        assert!(view.ranked("int2", "no such text").is_empty());
    }
}
