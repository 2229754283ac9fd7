//! `report.html`: one file, without scripts or anything from elsewhere.

use super::pareto::Trade;
use super::table::{self, BEHIND, BEST, Kind, NAMES, SPREADS, Table};
use super::view::View;
use super::words::{gaps, words};
use crate::grid::results::Results;

/// How the page looks; light or dark as the reader's system says. The plots bring their own colours.
const STYLE: &str = include_str!("style.css");

/// The whole report. `plots` are the SVG of each text and trade.
pub fn html(results: &Results, view: &View, plots: &[(&str, Trade, String)]) -> String {
    let title = escape(&results.title);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p class=\"about\">{}; teacher {}; {}",
        escape(&results.date),
        escape(&view.teacher.method),
        escape(&results.machine)
    );
    out += &results.revision.as_ref().map_or(String::new(), |revision| format!("; revision {}", escape(revision)));
    out += &format!("</p>\n<h2>Results</h2>\n{}", written(&table::main(view)));
    out += &format!("<p class=\"note\">Bold: {}; {}</p>\n", escape(BEST), escape(SPREADS));

    let words = words(view);
    let pairs = |pairs: &[(String, String)]| {
        let lines = pairs.iter().map(|(name, said)| format!("<li><b>{}</b>: {}</li>\n", escape(name), escape(said)));
        format!("<ul>\n{}</ul>\n", lines.collect::<String>())
    };
    out += "<h2>Which bits, and at what cost</h2>\n";
    if words.schemes.is_empty() {
        out += "<p>No cell has been measured yet.</p>\n";
    } else {
        out += &format!("<p>On {}. Computed from the table.</p>\n{}", escape(&view.texts[0]), pairs(&words.schemes));
        out += &list(&words.limits);
        out += &format!("<p>The Pareto fronts, other tools' models included:</p>\n{}", pairs(&words.fronts));
        for text in &view.texts {
            out += &format!("<h2>Plots: {}</h2>\n", escape(text));
            for (_, _, svg) in plots.iter().filter(|plot| plot.0 == text) {
                out += &format!("<figure>\n{svg}</figure>\n");
            }
        }
    }
    let ranks = table::by_rank(view);
    if !ranks.rows.is_empty() {
        out += &format!("<h2>Methods by rank</h2>\n{}", written(&ranks));
        out += &format!("<p class=\"note\">Behind the best: {}</p>\n", escape(BEHIND));
    }
    for text in &view.texts {
        let details = table::details(view, text);
        if !details.rows.is_empty() {
            out += &format!("<h2>Divergence from the teacher on {}</h2>\n{}", escape(text), written(&details));
        }
    }
    let costs = table::costs(view);
    if !costs.rows.is_empty() {
        out += &format!("<h2>Cost</h2>\n{}", written(&costs));
    }
    for (heading, lines) in gaps(results) {
        out += &format!("<h2>Cells {heading}</h2>\n{}", list(&lines));
    }
    out += &format!("<h2>Made by</h2>\n<pre><code>{}</code></pre>\n", escape(results.command.trim_end()));
    out + "</main>\n</body>\n</html>\n"
}

fn written(table: &Table) -> String {
    let class = |column: usize| if column < NAMES { " class=\"name\"" } else { "" };
    let heading = |(column, name): (usize, &String)| {
        // The text under the figure, or the column would be as wide as both.
        let name = name
            .split_once(", ")
            .map_or(escape(name), |(figure, text)| format!("{}<br><small>{}</small>", escape(figure), escape(text)));
        format!("<th scope=\"col\"{}>{name}</th>", class(column))
    };
    let mut out = "<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr>".to_string();
    out += &table.columns.iter().enumerate().map(heading).collect::<String>();
    out += "</tr></thead>\n<tbody>\n";
    for row in &table.rows {
        let kind = match row.kind {
            Kind::Teacher => " class=\"teacher\"",
            Kind::Scheme => " class=\"scheme\"",
            Kind::Method => "",
            Kind::Other => " class=\"other\"",
        };
        let item = |(column, item): (usize, &table::Item)| {
            let text = escape(&item.text);
            let text = if item.best { format!("<strong>{text}</strong>") } else { text };
            format!("<td{}>{text}</td>", class(column))
        };
        out += &format!("<tr{kind}>{}</tr>\n", row.items.iter().enumerate().map(item).collect::<String>());
    }
    out + "</tbody>\n</table>\n</div>\n"
}

fn list(lines: &[String]) -> String {
    format!("<ul>\n{}</ul>\n", lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect::<String>())
}

/// Text in an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{plots, sample};
    use super::*;

    fn page(results: &Results) -> String {
        let view = View::new(results);
        html(results, &view, &plots(&view).unwrap())
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let page = page(&sample::results());
        for outside in ["<script", "<link", "<img", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.replace("http://www.w3.org/2000/svg", "").find("http").is_none());
        assert_eq!(page.matches("<svg ").count(), 6);
        assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    }

    #[test]
    fn hostile_names_stay_names() {
        let page = page(&sample::hostile());
        assert!(!page.contains("<b>a|b") && !page.contains("<script"), "{page}");
        assert!(page.contains("&lt;b&gt;a|b**, &quot;c&quot;"), "{page}");
    }

    #[test]
    fn of_an_empty_grid() {
        let page = page(&sample::empty());
        assert!(page.contains("No cell has been measured yet.") && !page.contains("<figure>"));
    }
}
