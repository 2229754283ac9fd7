//! What the numbers say, in sentences that are computed from them. Plain text, nothing escaped.

use super::format::{above, bytes, count, duration, figure, number, percent, plain, short};
use super::pareto::{Measure, Point, TRADES, Trade};
use super::ranking::ranking;
use super::view::{Entry, Figure, View};
use crate::grid::results::Results;

/// Which bits, and at what cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Words {
    /// A scheme, and what is to be said of it.
    pub schemes: Vec<(String, String)>,
    /// The fewest bits for a given loss.
    pub limits: Vec<String>,
    /// A trade, and the points that nothing beats.
    pub fronts: Vec<(String, String)>,
}

/// Percent above the teacher's perplexity that somebody may accept.
const LIMITS: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0];

/// On the main text.
pub fn words(view: &View) -> Words {
    let Some(text) = view.texts.first() else { return Words { schemes: vec![], limits: vec![], fronts: vec![] } };
    let schemes = view.schemes().into_iter().filter_map(|name| Some((name.to_string(), scheme(view, name, text)?)));
    let fronts = TRADES.into_iter().filter_map(|trade| Some((trade.title(), front(view, trade, text)?)));
    Words { schemes: schemes.collect(), limits: limits(view, text), fronts: fronts.collect() }
}

/// What has no figures: headings with lines.
pub fn gaps(results: &Results) -> Vec<(&'static str, Vec<String>)> {
    let failed = results.failed.iter().map(|(cell, reason)| format!("{}: {}", plain(cell), plain(reason))).collect();
    let missing = results.missing.iter().map(|cell| plain(cell)).collect();
    let gaps: [(&str, Vec<String>); 2] = [("failed", failed), ("not run yet", missing)];
    gaps.into_iter().filter(|(_, lines)| !lines.is_empty()).collect()
}

/// The best method of a scheme, what it gives and what it costs.
fn scheme(view: &View, name: &str, text: &str) -> Option<String> {
    let ranked = ranking(view, name, text);
    let best = ranked.first()?.entry;
    let perplexity = perplexity(best, text)?;
    let mut out = match ranked.len() {
        1 => format!("{} (no other method was measured)", best.method),
        _ => format!("{} is best", best.method),
    };
    out += &format!(": perplexity {} on {text}", figure(perplexity));
    if let Some(teacher) = self::perplexity(&view.teacher, text) {
        out += &format!(", {} the teacher's", above(perplexity.value, teacher.value));
    }
    let on_text = best.texts.get(text)?;
    if let Some(same) = on_text.same_top {
        out += &format!("; the teacher's likeliest token at {} % of positions", percent(Figure::new(same.value, None)));
    }
    out += &format!(". {} bits per weight, {}: {}", number(best.bits), bytes(best.bytes), smaller(view, best));
    out += &best.cost.map_or(String::new(), |cost| match cost.tokens > 0.0 {
        true => format!(", after training on {} tokens in {}", count(cost.tokens), duration(cost.seconds)),
        false => format!(", made in {} without training", duration(cost.seconds)),
    });
    out += ".";
    if let Some((next, behind)) = ranked.get(1).and_then(|next| Some((next, next.behind?))) {
        let more =
            if behind.value < 10.0 { format!("{} % more", short(100.0 * behind.value)) } else { "far more".into() };
        let doubt = match next.is_clear() {
            Some(false) => ", which is within twice the error of the difference",
            _ => "",
        };
        let own = self::perplexity(next.entry, text).map_or(String::new(), |own| format!(" with {}", figure(own)));
        out += &format!(" Next is {}{own}, {more}{doubt}.", next.entry.method);
    }
    for other in &view.texts[1..] {
        if let Some(best_there) = view.ranked(name, other).first().filter(|there| there.method != best.method) {
            out += &format!(" On {other} it is {}.", best_there.method);
        }
    }
    Some(out)
}

/// `3.6 times smaller than the teacher's 16.00 bits`.
fn smaller(view: &View, entry: &Entry) -> String {
    let ratio = view.teacher.bytes / entry.bytes;
    let teacher = format!("than the teacher of {} bits", number(view.teacher.bits));
    match ratio {
        _ if !ratio.is_finite() || ratio <= 0.0 => "its size is not known".into(),
        _ if ratio >= 1.0 => format!("{ratio:.1} times smaller {teacher}"),
        _ => format!("{:.1} times larger {teacher}", 1.0 / ratio),
    }
}

/// For each loss that somebody may accept, the cell of the fewest bits.
fn limits(view: &View, text: &str) -> Vec<String> {
    let Some(teacher) = perplexity(&view.teacher, text) else { return vec![] };
    let within = |limit: f64| {
        let below =
            |entry: &&Entry| perplexity(entry, text).is_some_and(|p| p.value <= teacher.value * (1.0 + limit / 100.0));
        view.cells.iter().filter(below).min_by(|a, b| a.bits.total_cmp(&b.bits))
    };
    let mut lines = Vec::new();
    let unmet = LIMITS.into_iter().take_while(|limit| within(*limit).is_none()).last();
    if let Some(limit) = unmet.filter(|_| !view.cells.is_empty()) {
        lines.push(format!("No cell of the grid is within {limit} % of the teacher's perplexity."));
    }
    let mut before: Option<&Entry> = None;
    for (limit, entry) in LIMITS.into_iter().filter_map(|limit| Some((limit, within(limit)?))) {
        if before != Some(entry) {
            lines.push(format!(
                "Within {limit} % of the teacher's perplexity, the fewest bits are those of {}: {} bits per weight, {}.",
                called(entry),
                number(entry.bits),
                bytes(entry.bytes)
            ));
        }
        before = Some(entry);
    }
    lines
}

/// The points of a trade that nothing beats, and the schemes that have none.
fn front(view: &View, trade: Trade, text: &str) -> Option<String> {
    let points = trade.points(view, text);
    let front = trade.front(&points);
    if front.is_empty() {
        return None;
    }
    let named = |index: &usize| {
        let Point { entry, x, y } = points[*index];
        let cost = match trade.cost {
            Measure::Bytes => bytes(x.value),
            Measure::Decode => format!("{} tokens/s", number(x.value)),
            _ => format!("{} bits", number(x.value)),
        };
        format!("{} ({cost}, {})", called(entry), number(y.value))
    };
    let mut out = format!("nothing beats {}.", list(&front.iter().map(named).collect::<Vec<_>>()));
    let on_it = |scheme: &str| {
        front.iter().any(|index| points[*index].entry.seeds > 0 && points[*index].entry.scheme == scheme)
    };
    let off: Vec<String> = view.schemes().into_iter().filter(|name| !on_it(name)).map(String::from).collect();
    if !off.is_empty() {
        out += &format!(" Of {} no method is on the front.", list(&off));
    }
    Some(out)
}

fn perplexity(entry: &Entry, text: &str) -> Option<Figure> {
    Measure::Perplexity.of(entry, text)
}

fn called(entry: &Entry) -> String {
    format!("{} {} {}", entry.scheme, if entry.seeds > 0 { "with" } else { "of" }, entry.method)
}

/// `a, b and c`.
fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn said<'a>(pairs: &'a [(String, String)], name: &str) -> &'a str {
        &pairs.iter().find(|pair| pair.0 == name).unwrap().1
    }

    #[test]
    fn what_is_said_follows_the_numbers() {
        let mut results = sample::results();
        let before = words(&View::new(&results));
        assert!(said(&before.schemes, "int4").starts_with("QAT, distillation is best"), "{before:?}");
        assert!(said(&before.schemes, "int4").contains("times smaller than the teacher of 16.00 bits"));
        assert!(
            said(&before.schemes, "f32").contains("no other method") && said(&before.schemes, "f32").contains("larger")
        );
        // Rounding to nearest is made the best.
        for cell in results.cells.iter_mut().filter(|c| c.scheme == "int4" && c.method == "round to nearest") {
            cell.texts["wikitext-2"].student.perplexity = 5.0;
        }
        let after = words(&View::new(&results));
        let int4 = said(&after.schemes, "int4");
        assert!(int4.starts_with("round to nearest is best") && int4.contains("% below the teacher's"), "{int4}");
        assert!(int4.contains("On held out it is QAT, distillation"), "{int4}");
    }

    #[test]
    fn limits_name_the_fewest_bits() {
        let mut results = sample::results();
        let teacher = results.teacher.texts["wikitext-2"].perplexity;
        results.cells.iter_mut().for_each(|c| c.texts["wikitext-2"].student.perplexity = teacher * 3.0);
        assert_eq!(
            words(&View::new(&results)).limits,
            ["No cell of the grid is within 50 % of the teacher's perplexity."]
        );
        results.cells[5].texts["wikitext-2"].student.perplexity = teacher * 1.015;
        results.cells.truncate(6);
        results.cells[5].scheme = "only".into();
        let limits = words(&View::new(&results)).limits;
        assert!(limits.len() == 2 && limits[1].contains("Within 2 %") && limits[1].contains("only with"), "{limits:?}");
    }

    #[test]
    fn fronts_and_gaps() {
        let results = sample::results();
        let words = words(&View::new(&results));
        assert_eq!(words.fronts.len(), TRADES.len());
        assert!(words.fronts[0].1.contains("binary with QAT, distillation"), "{words:?}");
        let gaps = gaps(&results);
        assert_eq!(gaps.iter().map(|gap| gap.0).collect::<Vec<_>>(), ["failed", "not run yet"]);
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a; b and c");
    }

    #[test]
    fn of_an_empty_grid_nothing_is_said() {
        let words = words(&View::new(&sample::empty()));
        assert!(words.schemes.is_empty() && words.limits.is_empty() && words.fronts.is_empty(), "{words:?}");
        assert!(gaps(&sample::empty()).is_empty());
    }
}
