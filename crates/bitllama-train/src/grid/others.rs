//! Models of other tools to compare with: a CSV with a line for each model and text, whose columns are the fields of [`Other`].
//! `experiments/peers/llama_cpp_rows.py` fills one.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bitllama_core::excerpt;

use super::config::Grid;
use super::results::Other;

/// The lines of the file that a grid names, if it names one.
///
/// # Errors
/// A file that cannot be read; a line with a field that is missing or no number, or of a text that the grid has not.
pub fn read(grid: &Grid) -> Result<Vec<Other>> {
    let Some(path) = &grid.others else { return Ok(Vec::new()) };
    lines(path, |text| grid.eval.texts.contains_key(text)).with_context(|| format!("{}", path.display()))
}

fn lines(path: &Path, is_text: impl Fn(&str) -> bool) -> Result<Vec<Other>> {
    let file = std::fs::File::open(path)?;
    let mut all = Vec::new();
    for (index, line) in csv::Reader::from_reader(file).into_deserialize().enumerate() {
        let other: Other = line?;
        ensure!(is_text(&other.text), "line {}: the grid has no text `{}`", index + 2, excerpt(&other.text));
        all.push(other);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &str = "tool,model,bits_per_weight,bytes,text,perplexity,perplexity_error,mean_kld,mean_kld_error,same_top,\
                           rms_delta_p,prompt_tokens_per_second,decode_tokens_per_second\n";

    fn read(line: &str) -> Result<Vec<Other>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("others.csv");
        std::fs::write(&path, format!("{COLUMNS}{line}\n")).unwrap();
        lines(&path, |text| text == "emma")
    }

    #[test]
    fn fields_may_be_empty_but_not_missing_or_wrong() {
        let found = read("llama.cpp,Q4_0,4.5,1000,emma,39.6,1.5,,,,,,50").unwrap();
        assert_eq!((found.len(), found[0].perplexity, found[0].mean_kld), (1, 39.6, None));
        assert_eq!(found[0].decode_tokens_per_second, Some(50.0));
        for (line, cause) in [
            ("llama.cpp,Q4_0,4.5", "record 1 (line: 2"),
            ("llama.cpp,Q4_0,many,1000,emma,39.6,1.5,,,,,,", "line: 2"),
            ("llama.cpp,Q4_0,4.5,1000,other,39.6,1.5,,,,,,", "line 2: the grid has no text `other`"),
        ] {
            let error = format!("{:#}", read(line).unwrap_err());
            assert!(error.contains(cause), "{error}");
        }
    }
}
