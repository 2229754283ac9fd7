//! The main table for a terminal.

use super::table::{self, BEST, Kind, NAMES, SPREADS, Table};
use super::view::View;
use super::words;
use crate::grid::results::Results;

/// Title, main table, what failed and what is missing.
pub fn terminal(results: &Results) -> String {
    let view = View::new(results);
    let mut out = format!("{}, {}\n\n", super::format::plain(&results.title), super::format::plain(&results.date));
    out += &aligned(&table::main(&view));
    out += &format!("\n* {BEST}\n{SPREADS}\n");
    for (heading, lines) in words::gaps(results) {
        out += &format!("\n{heading}:\n");
        lines.iter().for_each(|line| out += &format!("  {line}\n"));
    }
    out
}

/// Names to the left, numbers to the right, a line between teacher, schemes and other tools.
fn aligned(table: &Table) -> String {
    let shown = |item: &table::Item| format!("{}{}", item.text, if item.best { "*" } else { "" });
    let lines: Vec<Vec<String>> = table.rows.iter().map(|row| row.items.iter().map(shown).collect()).collect();
    // Long headings stand on two lines: the figure, and below it the text.
    let headings: Vec<(&str, &str)> =
        table.columns.iter().map(|name| name.split_once(", ").unwrap_or((name, ""))).collect();
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|column| {
            let (above, below) = headings[column];
            let items = lines.iter().map(|line| line[column].chars().count());
            items.chain([above.chars().count(), below.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |items: &[&str]| {
        let padded = items.iter().zip(&widths).enumerate().map(|(column, (item, width))| match column < NAMES {
            true => format!("{item:<width$}"),
            false => format!("{item:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)) + "\n";
    let mut out = line(&headings.iter().map(|heading| heading.0).collect::<Vec<_>>());
    out += &line(&headings.iter().map(|heading| heading.1).collect::<Vec<_>>());
    let mut before = None;
    for (row, items) in table.rows.iter().zip(&lines) {
        if row.kind != Kind::Method && before != Some(Kind::Other) {
            out += &rule;
        }
        out += &line(&items.iter().map(String::as_str).collect::<Vec<_>>());
        before = Some(row.kind);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let text = terminal(&sample::results());
        let lines: Vec<&str> = text.lines().collect();
        let width = lines.iter().find(|line| line.starts_with("---")).unwrap().chars().count();
        // The last column is flush right: every row of figures ends where the rules end.
        let rows: Vec<&&str> = lines.iter().filter(|line| line.starts_with("int")).collect();
        assert!(rows.len() == 16 && rows.iter().all(|row| row.chars().count() == width), "{text}");
        assert!(text.contains("failed") && text.contains("binary, scale search, seed 2: "), "{text}");
        assert!(lines.iter().any(|line| line.starts_with("teacher")));
    }

    #[test]
    fn of_an_empty_grid() {
        let text = terminal(&sample::empty());
        assert!(text.contains("teacher") && !text.contains("failed"), "{text}");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let mut results = sample::results();
        results.cells[0].scheme = "a\u{1b}[31m\nb".into();
        assert!(!terminal(&results).contains('\u{1b}'));
    }
}
