//! What a grid found, for people and for programs.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use bitllama_formats::atomic;

use super::results::{Cell, Results};

/// All figures, in the grid's folder.
pub const RESULTS: &str = "results.json";

/// Writes all figures into the grid's folder.
///
/// # Errors
/// If they cannot be written.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    Ok(atomic::write_bytes(&folder.join(RESULTS), format!("{:#}\n", serde_json::to_value(results)?).as_bytes())?)
}

/// The main figures as a table: a line for each scheme and method, means over seeds, and how far seeds are from their mean.
pub fn terminal(results: &Results) -> String {
    let texts: Vec<&String> = results.teacher.texts.keys().collect();
    let mut lines = vec![vec![String::new(), "bits/weight".into()]];
    lines[0].extend(texts.iter().flat_map(|text| [format!("perplexity, {text}"), "mean KLD".into()]));
    lines[0].extend(["bytes", "prompt tok/s", "decode tok/s", "tokens", "seconds"].map(String::from));
    let mut teacher = vec!["teacher".to_string(), format!("{:.2}", results.teacher.bits_per_weight)];
    for perplexity in results.teacher.texts.values() {
        teacher.extend([format!("{:.2}", perplexity.perplexity), String::new()]);
    }
    teacher.push(results.teacher.bytes.to_string());
    lines.push(teacher);
    let mut left = &results.cells[..];
    while let Some(first) = left.first() {
        let same = |cell: &Cell| (&cell.scheme, &cell.method) == (&first.scheme, &first.method);
        let (seeds, others) = left.split_at(left.iter().take_while(|cell| same(cell)).count());
        left = others;
        let mean = |of: &dyn Fn(&Cell) -> f64| Spread::of(seeds.iter().map(of));
        let mut line = vec![format!("{} {}", first.scheme, first.method), format!("{:.2}", first.bits_per_weight)];
        for text in &texts {
            let found = |of: fn(&bitllama_runtime::evaluate::Comparison) -> f64| {
                mean(&|cell| cell.texts.get(*text).map_or(f64::NAN, of))
            };
            line.push(found(|figures| figures.student.perplexity).shown(2));
            line.push(found(|figures| figures.mean_kld).shown(4));
        }
        line.push(first.artifact_bytes.to_string());
        line.push(format!("{:.0}", mean(&|cell| cell.speed.prompt).mean));
        line.push(format!("{:.0}", mean(&|cell| cell.speed.decode).mean));
        line.push(first.training.tokens.to_string());
        line.push(format!("{:.0}", mean(&|cell| cell.training.seconds).mean));
        lines.push(line);
    }
    let mut text = aligned(&lines);
    if results.cells.iter().any(|cell| cell.seed != results.cells[0].seed) {
        text.push_str("\n(±: standard deviation over seeds)");
    }
    for (name, why) in &results.failed {
        let _ = write!(text, "\n{name} failed: {why}");
    }
    if !results.missing.is_empty() {
        let _ = write!(text, "\n{} runs are not finished: {}", results.missing.len(), results.missing.join(", "));
    }
    text
}

/// Mean and standard deviation of what differs between seeds.
struct Spread {
    mean: f64,
    /// `None` of one number.
    deviation: Option<f64>,
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let numbers: Vec<f64> = numbers.collect();
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
        Self { mean, deviation: (numbers.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) }
    }

    fn shown(&self, digits: usize) -> String {
        let deviation = self.deviation.map_or(String::new(), |deviation| format!(" ± {deviation:.digits$}"));
        format!("{:.digits$}{deviation}", self.mean)
    }
}

/// Columns side by side, the first to the left, all others to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|entry| entry.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |entries: &Vec<String>| {
        let entries = entries.iter().zip(&widths).enumerate();
        let padded = entries.map(|(column, (entry, width))| match column {
            0 => format!("{entry:<width$}"),
            _ => format!("  {entry:>width$}"),
        });
        padded.collect::<String>().trim_end().to_string()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_entry() {
        let lines = [vec!["".into(), "a".into()], vec!["é".into(), "12".into(), "x".into()]].map(Vec::from);
        assert_eq!(aligned(&lines), "    a\né  12  x");
    }

    #[test]
    fn seeds_have_a_mean_and_a_deviation() {
        assert_eq!(Spread::of([1.0, 3.0].into_iter()).shown(1), "2.0 ± 1.4");
        assert_eq!(Spread::of([1.0].into_iter()).shown(2), "1.00");
    }
}
