//! What is traded for what, and the points that nothing beats.

use super::view::{Entry, Figure, View};

/// A figure that is plotted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Bits per weight.
    Bits,
    /// Of the artifact.
    Bytes,
    /// Tokens a second one after the other.
    Decode,
    /// On a text.
    Perplexity,
    /// Mean KL divergence from the teacher on a text.
    Kld,
}

impl Measure {
    /// Of a model on a text, where it has a finite one.
    pub fn of(self, entry: &Entry, text: &str) -> Option<Figure> {
        let figure = match self {
            Self::Bits => Some(Figure::new(entry.bits, None)),
            Self::Bytes => Some(Figure::new(entry.bytes, None)),
            Self::Decode => entry.decode,
            Self::Perplexity => entry.texts.get(text).map(|on_text| on_text.perplexity),
            Self::Kld => entry.texts.get(text).and_then(|on_text| on_text.kld),
        };
        figure.filter(|figure| figure.value.is_finite())
    }

    /// In a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bits => "bits per weight",
            Self::Bytes => "artifact size",
            Self::Decode => "decode speed",
            Self::Perplexity => "perplexity",
            Self::Kld => "mean KLD",
        }
    }

    /// Whether a larger one is better.
    pub fn more_is_better(self) -> bool {
        self == Self::Decode
    }
}

/// Quality against what it costs: one plot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trade {
    /// Name of the plot's file, without `.svg`.
    pub file: &'static str,
    /// What it costs.
    pub cost: Measure,
    /// What one gets.
    pub quality: Measure,
}

/// All plots.
pub const TRADES: [Trade; 3] = [
    Trade { file: "perplexity-bits", cost: Measure::Bits, quality: Measure::Perplexity },
    Trade { file: "kld-bytes", cost: Measure::Bytes, quality: Measure::Kld },
    Trade { file: "perplexity-speed", cost: Measure::Decode, quality: Measure::Perplexity },
];

impl Trade {
    /// Its title: `Perplexity against bits per weight`.
    pub fn title(self) -> String {
        let title = format!("{} against {}", self.quality.name(), self.cost.name());
        title[..1].to_uppercase() + &title[1..]
    }

    /// The models that have both figures on a text: those of the grid, then other tools'.
    pub fn points<'a>(self, view: &'a View, text: &str) -> Vec<Point<'a>> {
        let point = |entry: &'a Entry| {
            let (x, y) = (self.cost.of(entry, text)?, self.quality.of(entry, text)?);
            Some(Point { entry, x, y })
        };
        view.cells.iter().chain(&view.others).filter_map(point).collect()
    }

    /// Which of the points are on the Pareto front, by rising x: no other point is at least as good in both and better
    /// in one.
    pub fn front(self, points: &[Point]) -> Vec<usize> {
        let cost = |point: &Point| if self.cost.more_is_better() { -point.x.value } else { point.x.value };
        let beats = |a: &Point, b: &Point| {
            let (cost_a, cost_b, worse_a, worse_b) = (cost(a), cost(b), a.y.value, b.y.value);
            cost_a <= cost_b && worse_a <= worse_b && (cost_a < cost_b || worse_a < worse_b)
        };
        let unbeaten = |point: &Point| !points.iter().any(|other| beats(other, point));
        let mut front: Vec<usize> = (0..points.len()).filter(|index| unbeaten(&points[*index])).collect();
        front.sort_by(|a, b| points[*a].x.value.total_cmp(&points[*b].x.value));
        front
    }
}

/// A model in a plot.
#[derive(Debug, Clone, Copy)]
pub struct Point<'a> {
    /// The model.
    pub entry: &'a Entry,
    /// Its cost.
    pub x: Figure,
    /// Its quality.
    pub y: Figure,
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// The front of points of the first two of a plot.
    fn front(trade: Trade, points: &[(f64, f64)]) -> Vec<usize> {
        let view = View::new(&sample::results());
        let point =
            |(x, y): &(f64, f64)| Point { entry: &view.teacher, x: Figure::new(*x, None), y: Figure::new(*y, None) };
        trade.front(&points.iter().map(point).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_beats_the_front() {
        let points = [(4.0, 2.0), (1.0, 9.0), (2.0, 9.0), (2.0, 5.0), (3.0, 6.0), (8.0, 2.0)];
        assert_eq!(front(TRADES[0], &points), [1, 3, 0]);
        // Speed counts the other way round: (8, 2) is the fastest and as good as the best.
        assert_eq!(front(TRADES[2], &points), [5]);
        assert_eq!(front(TRADES[2], &[(5.0, 3.0), (9.0, 4.0), (4.0, 4.0)]), [0, 1]);
    }

    #[test]
    fn equal_points_are_both_on_it() {
        assert_eq!(front(TRADES[0], &[(1.0, 1.0), (1.0, 1.0)]), [0, 1]);
        assert_eq!(front(TRADES[0], &[]), [0usize; 0]);
    }

    #[test]
    fn what_is_missing_or_not_finite_is_no_point() {
        let mut view = View::new(&sample::results());
        let all = TRADES[0].points(&view, "wikitext-2").len();
        view.cells[0].bits = f64::NAN;
        view.cells[1].texts.clear();
        assert_eq!(TRADES[0].points(&view, "wikitext-2").len(), all - 2);
        assert_eq!(TRADES[0].title(), "Perplexity against bits per weight");
    }
}
