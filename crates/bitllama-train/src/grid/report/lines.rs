//! `results.csv`: a line for each model and text, for other programs. Names are as they were given.

use anyhow::Result;
use bitllama_runtime::evaluate::Comparison;
use serde::{Deserialize, Serialize};

use crate::grid::results::{Cell, Other, Results};

/// What is known of one model on one text. Fields that it does not have stay empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// `teacher`, `cell` or `other`.
    kind: String,
    /// Of the grid, or another tool's model.
    scheme: String,
    /// Of the grid, the teacher's name, or another tool.
    method: String,
    seed: Option<u64>,
    text: String,
    bits_per_weight: f64,
    bytes: u64,
    perplexity: f64,
    perplexity_error: f64,
    nll: Option<f64>,
    tokens_scored: Option<usize>,
    chunks: Option<usize>,
    teacher_perplexity: Option<f64>,
    teacher_perplexity_error: Option<f64>,
    mean_kld: Option<f64>,
    mean_kld_error: Option<f64>,
    kld_median: Option<f64>,
    kld_p90: Option<f64>,
    kld_p95: Option<f64>,
    kld_p99: Option<f64>,
    kld_p99_9: Option<f64>,
    kld_max: Option<f64>,
    rms_delta_p: Option<f64>,
    rms_delta_p_error: Option<f64>,
    mean_delta_p: Option<f64>,
    mean_delta_p_error: Option<f64>,
    same_top: Option<f64>,
    same_top_error: Option<f64>,
    prompt_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    peak_memory_bytes: Option<u64>,
    steps: Option<usize>,
    tokens: Option<u64>,
    seconds: Option<f64>,
    joules: Option<f64>,
    /// Where it was timed.
    machine: Option<String>,
}

/// All of it: commas, quotes where needed.
///
/// # Errors
/// None that results can cause.
pub fn csv(results: &Results) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for line in lines(results) {
        writer.serialize(line)?;
    }
    Ok(writer.into_inner()?)
}

fn lines(results: &Results) -> Vec<Line> {
    let teacher = &results.teacher;
    let mut lines: Vec<Line> = teacher
        .texts
        .iter()
        .map(|(text, perplexity)| Line {
            kind: "teacher".into(),
            method: teacher.name.clone(),
            text: text.clone(),
            bits_per_weight: teacher.bits_per_weight,
            bytes: teacher.bytes,
            perplexity: perplexity.perplexity,
            perplexity_error: perplexity.error,
            nll: Some(perplexity.nll),
            tokens_scored: Some(perplexity.tokens_scored),
            chunks: Some(perplexity.chunks),
            ..Line::default()
        })
        .collect();
    let cells = results.cells.iter().flat_map(|cell| cell.texts.iter().map(|(text, found)| of_cell(cell, text, found)));
    lines.extend(cells);
    lines.extend(results.others.iter().map(of_other));
    lines
}

fn of_cell(cell: &Cell, text: &str, found: &Comparison) -> Line {
    Line {
        kind: "cell".into(),
        scheme: cell.scheme.clone(),
        method: cell.method.clone(),
        seed: Some(cell.seed),
        text: text.into(),
        bits_per_weight: cell.bits_per_weight,
        bytes: cell.artifact_bytes,
        perplexity: found.student.perplexity,
        perplexity_error: found.student.error,
        nll: Some(found.student.nll),
        tokens_scored: Some(found.student.tokens_scored),
        chunks: Some(found.student.chunks),
        teacher_perplexity: Some(found.teacher.perplexity),
        teacher_perplexity_error: Some(found.teacher.error),
        mean_kld: Some(found.mean_kld),
        mean_kld_error: Some(found.mean_kld_error),
        kld_median: Some(found.kld.median),
        kld_p90: Some(found.kld.p90),
        kld_p95: Some(found.kld.p95),
        kld_p99: Some(found.kld.p99),
        kld_p99_9: Some(found.kld.p99_9),
        kld_max: Some(found.kld.max),
        rms_delta_p: Some(found.rms_delta_p),
        rms_delta_p_error: Some(found.rms_delta_p_error),
        mean_delta_p: Some(found.mean_delta_p),
        mean_delta_p_error: Some(found.mean_delta_p_error),
        same_top: Some(found.same_top),
        same_top_error: Some(found.same_top_error),
        prompt_tokens_per_second: Some(cell.speed.prompt),
        decode_tokens_per_second: Some(cell.speed.decode),
        peak_memory_bytes: cell.speed.peak_memory,
        steps: Some(cell.training.steps),
        tokens: Some(cell.training.tokens),
        seconds: Some(cell.training.seconds),
        joules: cell.training.joules,
        machine: Some(cell.machine.clone()),
    }
}

fn of_other(other: &Other) -> Line {
    Line {
        kind: "other".into(),
        scheme: other.model.clone(),
        method: other.tool.clone(),
        text: other.text.clone(),
        bits_per_weight: other.bits_per_weight,
        bytes: other.bytes,
        perplexity: other.perplexity,
        perplexity_error: other.perplexity_error,
        mean_kld: other.mean_kld,
        mean_kld_error: other.mean_kld_error,
        rms_delta_p: other.rms_delta_p,
        same_top: other.same_top,
        prompt_tokens_per_second: other.prompt_tokens_per_second,
        decode_tokens_per_second: other.decode_tokens_per_second,
        ..Line::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn read(bytes: &[u8]) -> Vec<Line> {
        csv::Reader::from_reader(bytes).deserialize().map(|line| line.unwrap()).collect()
    }

    #[test]
    fn comes_back_as_it_was() {
        for results in [sample::results(), sample::hostile(), sample::empty()] {
            let bytes = csv(&results).unwrap();
            assert_eq!(read(&bytes), lines(&results));
        }
        let bytes = csv(&sample::results()).unwrap();
        let line = &read(&bytes)[2];
        let cell = &sample::results().cells[0];
        assert_eq!((line.kind.as_str(), line.seed, &line.scheme), ("cell", Some(cell.seed), &cell.scheme));
        assert_eq!(line.perplexity, cell.texts[0].student.perplexity);
    }

    #[test]
    fn names_are_quoted_where_needed() {
        let text = String::from_utf8(csv(&sample::hostile()).unwrap()).unwrap();
        assert!(text.starts_with("kind,scheme,method,seed,text,") && text.ends_with('\n'), "{text}");
        assert!(text.contains(r#","<b>a|b**, ""c""","#), "{text}");
    }
}
