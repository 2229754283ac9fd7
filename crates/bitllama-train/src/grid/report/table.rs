//! The tables of the report, for whatever writes them out.

use super::format::{bytes, count, duration, figure, number, percent};
use super::ranking::ranking;
use super::view::{Entry, OnText, View};

/// A table of plain text, nothing escaped.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The first [`NAMES`] are names, the others numbers.
    pub columns: Vec<String>,
    /// In order.
    pub rows: Vec<Row>,
}

/// Columns of names: scheme and method.
pub const NAMES: usize = 2;

/// A row of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it is of.
    pub kind: Kind,
    /// As many as there are columns.
    pub items: Vec<Item>,
}

/// What a row is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The model learned from.
    Teacher,
    /// The first of a scheme.
    Scheme,
    /// A further method of a scheme.
    Method,
    /// Another tool's model.
    Other,
}

/// A field of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What stands there.
    pub text: String,
    /// Whether it is the best perplexity of its scheme.
    pub best: bool,
}

/// In place of a figure that is not there.
const NONE: &str = "–";

/// What `±` means in [`main`] and [`details`].
pub const SPREADS: &str = "± is the sample standard deviation over seeds where there are two or more of them, and the \
figure's own standard error on the text where there is one, as for the teacher and other tools' models.";

/// What is marked in [`main`].
pub const BEST: &str = "the best perplexity of each scheme";

/// Quality, size and speed: the table to read first.
pub fn main(view: &View) -> Table {
    let mut columns = names();
    columns.extend(["seeds", "bits/weight"].map(String::from));
    for (unit, texts) in [("perplexity", &view.texts), ("mean KLD", &view.texts), ("same top, %", &view.texts)] {
        columns.extend(texts.iter().map(|text| format!("{unit}, {text}")));
    }
    columns.extend(["decode tokens/s", "size", "trained tokens", "time"].map(String::from));
    let row = |entry: &Entry| {
        let mut items = vec![item(if entry.seeds > 0 { entry.seeds.to_string() } else { NONE.into() })];
        items.push(item(number(entry.bits)));
        items.extend(view.texts.iter().map(|text| Item {
            text: on_text(entry, text, |on_text| Some(figure(on_text.perplexity))),
            best: is_best(view, entry, text),
        }));
        items.extend(view.texts.iter().map(|text| item(on_text(entry, text, |on_text| on_text.kld.map(figure)))));
        items.extend(view.texts.iter().map(|text| item(on_text(entry, text, |on_text| on_text.same_top.map(percent)))));
        items.push(item(entry.decode.map_or(NONE.into(), figure)));
        items.push(item(bytes(entry.bytes)));
        items.push(item(entry.cost.map_or(NONE.into(), |cost| count(cost.tokens))));
        items.push(item(entry.cost.map_or(NONE.into(), |cost| duration(cost.seconds))));
        items
    };
    table(view, columns, row)
}

/// What [`by_rank`] says of itself.
pub const BEHIND: &str = "how far a perplexity lies above the best one of its scheme, ± its standard error: from the differences in \
the same chunks of the text, and from the scatter over seeds where a method of the scheme has several. Below twice the error two \
methods cannot be told apart.";

/// The methods of each scheme by their perplexity on the first text, for schemes with two or more.
pub fn by_rank(view: &View) -> Table {
    let mut columns = names();
    columns.push("seeds".into());
    for text in &view.texts {
        columns.extend([format!("perplexity, {text}"), format!("behind the best, %, {text}")]);
    }
    let mut rows = Vec::new();
    for scheme in view.schemes() {
        let places: Vec<_> = view.texts.iter().map(|text| ranking(view, scheme, text)).collect();
        let Some(first) = places.first().filter(|first| first.len() > 1) else { continue };
        for (index, entry) in first.iter().map(|place| place.entry).enumerate() {
            let mut items =
                [&entry.scheme, &entry.method, &entry.seeds.to_string()].map(|text| item(text.clone())).to_vec();
            for (text, places) in view.texts.iter().zip(&places) {
                let behind = places.iter().find(|place| place.entry == entry).and_then(|place| place.behind);
                items.push(Item {
                    text: on_text(entry, text, |on_text| Some(figure(on_text.perplexity))),
                    best: is_best(view, entry, text),
                });
                items.push(item(behind.map_or(NONE.into(), percent)));
            }
            rows.push(Row { kind: if index == 0 { Kind::Scheme } else { Kind::Method }, items });
        }
    }
    Table { columns, rows }
}

/// How far from the teacher on one text: the distribution of the divergence, and differences in probability.
pub fn details(view: &View, text: &str) -> Table {
    let mut columns = names();
    let figures = ["KLD median", "90 %", "95 %", "99 %", "99.9 %", "maximum", "RMS Δp, %", "mean Δp, %"];
    columns.extend(figures.map(String::from));
    table(view, columns, |entry| {
        let percentiles = entry.texts.get(text).and_then(|on_text| on_text.percentiles);
        let values = percentiles.map(|p| [p.median, p.p90, p.p95, p.p99, p.p99_9, p.max]);
        let mut items: Vec<Item> = match values {
            Some(values) => values.into_iter().map(|value| item(number(value))).collect(),
            None => vec![item(NONE.into()); 6],
        };
        items.push(item(on_text(entry, text, |on_text| on_text.rms_delta_p.map(percent))));
        items.push(item(on_text(entry, text, |on_text| on_text.mean_delta_p.map(percent))));
        items
    })
}

/// What it takes to make them and to run them.
pub fn costs(view: &View) -> Table {
    let mut columns = names();
    let figures =
        ["steps", "trained tokens", "time", "energy, kJ", "prompt tokens/s", "decode tokens/s", "peak memory"];
    columns.extend(figures.map(String::from));
    table(view, columns, |entry| {
        let cost = |value: &dyn Fn(&super::view::Cost) -> Option<String>| {
            item(entry.cost.as_ref().and_then(value).unwrap_or(NONE.into()))
        };
        vec![
            cost(&|cost| Some(format!("{:.0}", cost.steps))),
            cost(&|cost| Some(count(cost.tokens))),
            cost(&|cost| Some(duration(cost.seconds))),
            cost(&|cost| cost.joules.map(|joules| number(joules / 1e3))),
            item(entry.prompt.map_or(NONE.into(), figure)),
            item(entry.decode.map_or(NONE.into(), figure)),
            item(entry.peak_memory.map_or(NONE.into(), bytes)),
        ]
    })
}

fn names() -> Vec<String> {
    ["scheme", "method"].map(String::from).to_vec()
}

/// The teacher's row, the grid's, other tools'; without those that have none of the figures.
fn table(view: &View, columns: Vec<String>, figures: impl Fn(&Entry) -> Vec<Item>) -> Table {
    let mut rows = Vec::new();
    let mut add = |kind: Kind, entry: &Entry| {
        let figures = figures(entry);
        if figures.iter().any(|item| item.text != NONE) {
            let mut items = vec![item(entry.scheme.clone()), item(entry.method.clone())];
            items.extend(figures);
            rows.push(Row { kind, items });
        }
    };
    add(Kind::Teacher, &view.teacher);
    for scheme in view.schemes() {
        for (index, entry) in view.cells.iter().filter(|entry| entry.scheme == scheme).enumerate() {
            add(if index == 0 { Kind::Scheme } else { Kind::Method }, entry);
        }
    }
    view.others.iter().for_each(|entry| add(Kind::Other, entry));
    Table { columns, rows }
}

fn item(text: String) -> Item {
    Item { text, best: false }
}

fn on_text(entry: &Entry, text: &str, show: impl Fn(&OnText) -> Option<String>) -> String {
    entry.texts.get(text).and_then(show).unwrap_or(NONE.into())
}

fn is_best(view: &View, entry: &Entry, text: &str) -> bool {
    entry.seeds > 0 && view.ranked(&entry.scheme, text).first().is_some_and(|best| best.method == entry.method)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn one_best_a_scheme_and_text() {
        let view = View::new(&sample::results());
        let table = main(&view);
        for scheme in view.schemes() {
            let rows: Vec<&Row> = table.rows.iter().filter(|row| row.items[0].text == scheme).collect();
            let best = rows.iter().flat_map(|row| &row.items).filter(|item| item.best).count();
            assert_eq!(best, 2, "{scheme}");
        }
        assert_eq!(table.rows[0].kind, Kind::Teacher);
        assert!(
            table.rows.iter().skip(1).take(view.cells.len()).all(|row| matches!(row.kind, Kind::Scheme | Kind::Method))
        );
        assert_eq!(table.rows.last().unwrap().kind, Kind::Other);
    }

    #[test]
    fn every_row_has_every_column() {
        let view = View::new(&sample::results());
        for table in [main(&view), by_rank(&view), details(&view, "wikitext-2"), costs(&view)] {
            assert!(table.rows.len() > 20);
            assert!(table.rows.iter().all(|row| row.items.len() == table.columns.len()));
        }
        // The teacher has no divergence from itself.
        assert!(details(&view, "wikitext-2").rows.iter().all(|row| row.kind != Kind::Teacher));
    }

    #[test]
    fn the_best_is_first_and_schemes_with_one_method_have_no_rank() {
        let view = View::new(&sample::results());
        let table = by_rank(&view);
        for (index, row) in table.rows.iter().enumerate() {
            assert_ne!(row.items[0].text, "f32");
            assert_eq!(
                (row.kind == Kind::Scheme, row.items[4].text == NONE),
                (row.items[3].best, row.items[3].best),
                "{index}"
            );
        }
    }

    #[test]
    fn of_an_empty_grid_the_teacher_stays() {
        let view = View::new(&sample::empty());
        assert_eq!((main(&view).rows.len(), by_rank(&view).rows.len()), (1, 0));
    }
}
