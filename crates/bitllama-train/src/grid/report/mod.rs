//! The report of a grid: what was measured as JSON and CSV, tables in Markdown, HTML and on the terminal, plots.
//!
//! [`view`] puts the seeds of each scheme and method together; everything that is shown is made from that.

mod format;
mod html;
mod lines;
mod markdown;
mod pareto;
mod plot;
mod ranking;
#[cfg(test)]
mod sample;
mod table;
mod terminal;
mod view;
mod words;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bitllama_formats::output::{Growing, Kind};
use bitllama_formats::{atomic, json, version};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::results::{FORMAT_VERSION, Results};
use pareto::{TRADES, Trade};
use view::View;

pub use terminal::terminal;

/// What was measured, in the folder of a report.
pub const RESULTS_FILE: &str = "results.json";
/// The page to look at.
pub const PAGE_FILE: &str = "report.html";

/// Writes `results.json`, `results.csv`, `report.md`, `report.html` and the plots of the main text into a folder, which
/// is made if it is not there. Each file is whole or as it was, and all are made before the first is written.
///
/// # Errors
/// A folder that cannot be written, or in which a file of these names is not a report's.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    let files = files(results)?;
    atomic::create_folders(folder)?;
    let growing = Growing::new(folder, Kind::Grid);
    if !growing.is_recorded() && read(folder).is_ok() {
        // Of version 0.1.0, which kept no record.
        let own: Vec<PathBuf> = files.iter().map(|(name, _)| name.into()).collect();
        growing.adopt(&own, &[])?;
    }
    for (name, content) in files {
        growing.write(&name, &content)?;
    }
    Ok(())
}

/// Reads the results of a report.
///
/// # Errors
/// A folder without `results.json`, or one that is damaged.
pub fn read(folder: &Path) -> Result<Results> {
    let path = folder.join(RESULTS_FILE);
    let json = json::read(&path)?;
    version::check(&path, &json, FORMAT_VERSION)?;
    serde_json::from_value(json).with_context(|| format!("{}: not the results of a grid", path.display()))
}

/// Names and contents.
fn files(results: &Results) -> Result<Vec<(String, Vec<u8>)>> {
    let view = View::new(results);
    let plots = plots(&view)?;
    let mut json = serde_json::to_vec_pretty(results)?;
    json.push(b'\n');
    let mut files: Vec<(String, Vec<u8>)> = vec![
        (RESULTS_FILE.into(), json),
        ("results.csv".into(), lines::csv(results)?),
        ("report.md".into(), markdown::markdown(results, &view).into_bytes()),
        (PAGE_FILE.into(), html::html(results, &view, &plots).into_bytes()),
    ];
    for trade in TRADES {
        // Of a grid without any text the plots are empty.
        let of_main = plots.iter().find(|plot| plot.1 == trade).map(|plot| Ok(plot.2.clone()));
        let svg = of_main.unwrap_or_else(|| plot::svg(&view, "no text", trade))?;
        files.push((format!("{}.svg", trade.file), svg.into_bytes()));
    }
    Ok(files)
}

/// Text, trade and SVG; those of the main text first.
fn plots(view: &View) -> Result<Vec<(&str, Trade, String)>> {
    let all = view.texts.iter().flat_map(|text| TRADES.map(|trade| (text.as_str(), trade)));
    all.map(|(text, trade)| Ok((text, trade, plot::svg(view, text, trade)?))).collect()
}

/// Results that JSON can hold: those without numbers that are not finite, which moves the cells that have any to the
/// failed ones.
///
/// # Errors
/// A teacher without finite figures.
pub fn finite(mut results: Results) -> Result<Results> {
    ensure!(
        holds(&results.teacher),
        "the teacher's figures are not finite, so there is nothing to compare the grid with"
    );
    let reason = "its figures are not finite";
    for cell in results.cells.iter().filter(|cell| !holds(*cell)) {
        results.failed.insert(format!("{}, {}, seed {}", cell.scheme, cell.method, cell.seed), reason.into());
    }
    for other in results.others.iter().filter(|other| !holds(*other)) {
        results.failed.insert(format!("{} of {} on {}", other.model, other.tool, other.text), reason.into());
    }
    results.cells.retain(holds);
    results.others.retain(holds);
    Ok(results)
}

/// Whether JSON can hold it: a number that is not finite becomes `null`, which is no number.
fn holds<T: Serialize + DeserializeOwned>(value: &T) -> bool {
    serde_json::to_value(value).and_then(serde_json::from_value::<T>).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_all_its_files_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("deep/report");
        for results in [sample::results(), sample::hostile(), sample::empty()] {
            write(&results, &folder).unwrap();
            assert_eq!(read(&folder).unwrap(), results);
        }
        let mut names: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                ".bitllama-record",
                "kld-bytes.svg",
                "perplexity-bits.svg",
                "perplexity-speed.svg",
                "report.html",
                "report.md",
                "results.csv",
                "results.json"
            ]
        );
    }

    #[test]
    fn a_file_of_the_users_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (results, page) = (sample::results(), folder.path().join("report.md"));
        std::fs::write(&page, "mine").unwrap();
        let error = format!("{:#}", write(&results, folder.path()).unwrap_err());
        assert!(error.contains("report.md: not on record as written by this program"), "{error}");
        assert_eq!(std::fs::read(&page).unwrap(), b"mine");
        std::fs::remove_file(&page).unwrap();
        write(&results, folder.path()).unwrap();
        // A report of version 0.1.0, which kept no record, is one by its results.
        std::fs::remove_file(folder.path().join(".bitllama-record")).unwrap();
        write(&results, folder.path()).unwrap();
    }

    #[test]
    fn what_is_not_finite_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = sample::results();
        let count = results.cells.len();
        results.cells[2].texts[0].student.perplexity = f64::INFINITY;
        results.others[0].perplexity = f64::NAN;
        write(&finite(results.clone()).unwrap(), folder.path()).unwrap();
        let back = read(folder.path()).unwrap();
        assert_eq!((back.cells.len(), back.failed.len()), (count - 1, results.failed.len() + 2));
        assert!(back.failed.keys().any(|name| name == "int8, round to nearest, seed 2"), "{:?}", back.failed);

        results.teacher.texts[0].perplexity = f64::NAN;
        assert!(finite(results).unwrap_err().to_string().contains("teacher"));
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(format!("{:#}", read(folder.path()).unwrap_err()).contains("results.json"));
        std::fs::write(folder.path().join(RESULTS_FILE), "{}").unwrap();
        let error = format!("{:#}", read(folder.path()).unwrap_err());
        assert!(error.contains("results.json: not the results of a grid"), "{error}");
    }
}
