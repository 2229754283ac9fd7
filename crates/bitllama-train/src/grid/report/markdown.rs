//! `report.md`.

use super::pareto::TRADES;
use super::table::{self, BEHIND, BEST, NAMES, SPREADS, Table};
use super::view::View;
use super::words::{gaps, words};
use crate::grid::results::Results;

/// The whole report; plots are files beside it.
pub fn markdown(results: &Results, view: &View) -> String {
    let mut out = format!("# {}\n\n", escape(&results.title));
    out +=
        &format!("{}; teacher {}; {}", escape(&results.date), escape(&view.teacher.method), escape(&results.machine));
    out += &results.revision.as_ref().map_or(String::new(), |revision| format!("; revision {}", escape(revision)));
    out += &format!(". Made by\n\n{}\n\n## Results\n\n", code(&results.command));
    out += &written(&table::main(view));
    out += &format!("\nBold: {BEST}; {SPREADS}\n");

    let words = words(view);
    let pairs = |pairs: &[(String, String)]| {
        let lines = pairs.iter().map(|(name, said)| format!("- **{}**: {}\n", escape(name), escape(said)));
        lines.collect::<String>()
    };
    out += "\n## Which bits, and at what cost\n\n";
    if words.schemes.is_empty() {
        out += "No cell has been measured yet.\n";
    } else {
        out += &format!("On {}. Computed from the table.\n\n{}", escape(&view.texts[0]), pairs(&words.schemes));
        out += "\n";
        words.limits.iter().for_each(|line| out += &format!("- {}\n", escape(line)));
        out += "\nThe Pareto fronts, other tools' models included:\n\n";
        out += &pairs(&words.fronts);
        out += "\n## Plots\n";
        for trade in TRADES {
            out += &format!("\n![{}]({}.svg)\n", trade.title(), trade.file);
        }
    }
    let ranks = table::by_rank(view);
    if !ranks.rows.is_empty() {
        out += &format!("\n## Methods by rank\n\n{}\nBehind the best: {BEHIND}\n", written(&ranks));
    }
    for text in &view.texts {
        let details = table::details(view, text);
        if !details.rows.is_empty() {
            out += &format!("\n## Divergence from the teacher on {}\n\n{}", escape(text), written(&details));
        }
    }
    let costs = table::costs(view);
    if !costs.rows.is_empty() {
        out += &format!("\n## Cost\n\n{}", written(&costs));
    }
    for (heading, lines) in gaps(results) {
        out += &format!("\n## Cells {heading}\n\n");
        lines.iter().for_each(|line| out += &format!("- {}\n", escape(line)));
    }
    out
}

/// As GitHub's tables.
fn written(table: &Table) -> String {
    let line = |items: Vec<String>| format!("| {} |\n", items.join(" | "));
    let mut out = line(table.columns.iter().map(|name| escape(name)).collect());
    out += &line((0..table.columns.len()).map(|column| if column < NAMES { "---" } else { "---:" }.into()).collect());
    for row in &table.rows {
        let item =
            |item: &table::Item| if item.best { format!("**{}**", escape(&item.text)) } else { escape(&item.text) };
        out += &line(row.items.iter().map(item).collect());
    }
    out
}

/// Text that Markdown shows as it is, on one line.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let characters: Vec<char> = super::format::plain(text).chars().collect();
    for (index, c) in characters.iter().enumerate() {
        // An underscore between letters means nothing: `Q4_K_M`.
        let within = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric());
        let inner = within(characters.get(index.wrapping_sub(1))) && within(characters.get(index + 1));
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '_' if inner => out.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' | '#' => out.extend(['\\', *c]),
            _ => out.push(*c),
        }
    }
    out
}

/// A block of code, fenced by more backticks than it has in a row.
fn code(text: &str) -> String {
    let mut fence = "```".to_string();
    while text.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}sh\n{}\n{fence}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// Fields of a line of a table.
    fn fields(line: &str) -> usize {
        line.replace("\\|", "").matches('|').count() - 1
    }

    #[test]
    fn tables_have_their_shape() {
        let results = sample::results();
        let text = markdown(&results, &View::new(&results));
        let mut tables = 0;
        for block in text.split("\n\n").filter(|block| block.starts_with('|')) {
            let lines: Vec<&str> = block.lines().take_while(|line| line.starts_with('|')).collect();
            assert!(lines.len() > 3 && lines.iter().all(|line| fields(line) == fields(lines[0])), "{block}");
            assert!(lines[1].starts_with("| --- | --- | ---: |"), "{}", lines[1]);
            tables += 1;
        }
        assert_eq!(tables, 5);
        assert!(text.contains("](perplexity-bits.svg)") && text.contains("## Cells failed"));
    }

    #[test]
    fn hostile_names_stay_names() {
        let results = sample::hostile();
        let text = markdown(&results, &View::new(&results));
        assert!(!text.contains("<b>") && !text.contains("<script"), "{text}");
        assert!(text.contains("&lt;b&gt;a\\|b\\*\\*, \"c\""), "{text}");
        let table: Vec<&str> =
            text.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|')).collect();
        assert!(table.len() > 2 && table.iter().all(|line| fields(line) == fields(table[0])), "{table:?}");
    }

    #[test]
    fn escapes() {
        assert_eq!(escape("Q4_K_M _x_ a\nb"), "Q4_K_M \\_x\\_ a b");
        assert_eq!(code("a ```b"), "````sh\na ```b\n````");
    }

    #[test]
    fn of_an_empty_grid() {
        let results = sample::empty();
        let text = markdown(&results, &View::new(&results));
        assert!(text.contains("No cell has been measured yet.") && !text.contains(".svg"), "{text}");
    }
}
