//! An axis: where a figure stands on it, and its ticks.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use super::super::format;
use super::super::pareto::Measure;

/// A linear axis, or a logarithmic one where the figures differ by more than [`RATIO`].
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    measure: Measure,
    logarithmic: bool,
    /// In axis space: the figures, or their decimal logarithms.
    pub low: f64,
    /// Above `low`.
    pub high: f64,
    /// In axis space.
    ticks: Vec<f64>,
}

/// The largest figure over the smallest from which an axis is logarithmic.
const RATIO: f64 = 4.0;
/// Decades that a logarithmic axis goes down from its largest figure.
const DECADES: f64 = 7.0;
/// Figures beyond stand at its end: differences between larger ones are not finite.
const LARGEST: f64 = 1e300;
/// Share of its length that an axis leaves free at both ends.
const MARGIN: f64 = 0.06;

impl Axis {
    /// For finite figures; `most` is where it ends at the latest.
    pub fn new(measure: Measure, figures: &[f64], most: f64) -> Self {
        let shown: Vec<f64> = figures.iter().map(|figure| figure.min(most).clamp(-LARGEST, LARGEST)).collect();
        let largest = shown.iter().copied().reduce(f64::max).unwrap_or(1.0);
        let smallest = shown.iter().copied().reduce(f64::min).unwrap_or(0.0);
        // What is not above 0 has no place on a logarithmic axis, and does not decide whether there is one.
        let floor = shown.iter().copied().filter(|figure| *figure > 0.0).reduce(f64::min).unwrap_or(largest);
        let logarithmic = largest > 0.0 && largest / floor > RATIO;
        let (low, high) = match logarithmic {
            true => (floor.log10().max(largest.log10() - DECADES), largest.log10()),
            false => (smallest, largest),
        };
        let margin = match high - low {
            0.0 if low == 0.0 => 1.0,
            0.0 => 0.1 * low.abs(),
            range => MARGIN * range,
        };
        let (low, high) = match (low - margin, high + margin) {
            (low, high) if low < high => (low, high),
            (low, high) => (low - 1.0, high + 1.0),
        };
        let mut axis = Self { measure, logarithmic, low, high, ticks: vec![] };
        axis.ticks = if logarithmic { axis.decimal_ticks() } else { axis.linear_ticks() };
        axis
    }

    /// Where a figure stands, in axis space, at an end if it is beyond; `None` if it is too small for the logarithm.
    pub fn place(&self, figure: f64) -> Option<f64> {
        let place = match self.logarithmic {
            true if figure <= 0.0 || figure.log10() < self.low => return None,
            true => figure.log10(),
            false => figure,
        };
        Some(place.clamp(self.low, self.high))
    }

    /// The same of the end of an error bar, which ends with the axis.
    pub fn end(&self, figure: f64) -> f64 {
        self.place(figure).unwrap_or(self.low)
    }

    /// What stands at a tick.
    fn label(&self, tick: f64) -> String {
        let figure = if self.logarithmic { 10f64.powf(tick) } else { tick };
        match self.measure {
            Measure::Bytes => format::trimmed(figure / 1e6),
            _ => format::trimmed(figure),
        }
    }

    /// What stands along it.
    pub fn title(&self) -> String {
        let title = match self.measure {
            Measure::Bits => "bits per weight, everything counted",
            Measure::Bytes => "size of the artifact, MB",
            Measure::Decode => "decode, tokens/s",
            Measure::Perplexity => "perplexity",
            Measure::Kld => "mean KL divergence from the teacher, nats",
        };
        format!("{title}{}", if self.logarithmic { " (logarithmic)" } else { "" })
    }

    /// Of a step of 1, 2 or 5 times a power of ten, about six of them.
    fn linear_ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let Some(step) = step.filter(|step| *step > 0.0) else { return vec![] };
        let first = (self.low / step).ceil();
        (0..20).map(|index| (first + index as f64) * step).take_while(|tick| *tick <= self.high).collect()
    }

    /// The finest series of which there are not too many: bits by doubling, else parts of decades.
    fn decimal_ticks(&self) -> Vec<f64> {
        let all: Vec<f64> = (1..=9).map(f64::from).collect();
        let halves = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let series: [&[f64]; 5] = [&halves, &all, &[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 5.0], &[1.0]];
        let within = |tick: &f64| (self.low..=self.high).contains(tick);
        if self.measure == Measure::Bits {
            let doubled: Vec<f64> = (-4..=10).map(|power| 2f64.powi(power).log10()).filter(within).collect();
            if doubled.len() > 2 {
                return doubled;
            }
        }
        let decades = (self.low.floor() as i32..=self.high.ceil() as i32).collect::<Vec<_>>();
        let ticks = |series: &[f64]| -> Vec<f64> {
            let of_decade =
                |decade: &i32| series.iter().map(move |part| *decade as f64 + part.log10()).collect::<Vec<_>>();
            decades.iter().flat_map(of_decade).filter(within).collect()
        };
        series.into_iter().map(ticks).find(|ticks| ticks.len() <= 10).unwrap_or_default()
    }
}

/// For plotters: values are those of axis space, key points the ticks, without finer ones between them.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { vec![] } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, tick: &f64) -> String {
        self.label(*tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_or_logarithmic() {
        let axis = Axis::new(Measure::Perplexity, &[16.0, 20.0, 40.0], f64::MAX);
        assert!(!axis.logarithmic && axis.ticks == [15.0, 20.0, 25.0, 30.0, 35.0, 40.0], "{axis:?}");
        let axis = Axis::new(Measure::Perplexity, &[16.0, 20.0, 1e6], f64::MAX);
        assert!(axis.logarithmic && axis.title().contains("logarithmic"));
        assert_eq!(
            axis.ticks.iter().map(|tick| axis.label(*tick)).collect::<Vec<_>>(),
            ["10", "100", "1000", "10000", "1e5", "1e6"]
        );
        let axis = Axis::new(Measure::Bits, &[1.3, 32.0], f64::MAX);
        assert_eq!(axis.ticks.iter().map(|tick| axis.label(*tick)).collect::<Vec<_>>(), ["2", "4", "8", "16", "32"]);
    }

    #[test]
    fn figures_stand_within() {
        let axis = Axis::new(Measure::Kld, &[0.0, 1e-12, 0.01, 3.0], f64::MAX);
        assert_eq!((axis.place(0.0), axis.place(1e-12)), (None, None));
        assert_eq!(axis.end(-1.0), axis.low);
        let axis = Axis::new(Measure::Perplexity, &[16.0, 1e6], 800.0);
        assert!(axis.place(1e6) == Some(axis.high) && axis.high < 3.1);
    }

    #[test]
    fn extreme_and_equal_figures() {
        for figures in [
            &[][..],
            &[0.0],
            &[7.0],
            &[7.0, 7.0, 7.0],
            &[f64::MAX],
            &[f64::MAX, f64::MAX / 2.0],
            &[f64::MIN_POSITIVE, f64::MAX],
            &[5e-324],
            &[-1.0, 1.0],
            &[1e300, 1e300 * (1.0 + 1e-15)],
        ] {
            let axis = Axis::new(Measure::Perplexity, figures, f64::MAX);
            assert!(axis.low.is_finite() && axis.high.is_finite() && axis.low < axis.high, "{figures:?}: {axis:?}");
            assert!(axis.ticks.len() <= 20 && axis.ticks.iter().all(|tick| tick.is_finite()), "{figures:?}: {axis:?}");
            assert!(figures.iter().filter_map(|figure| axis.place(*figure)).all(f64::is_finite));
        }
    }
}
