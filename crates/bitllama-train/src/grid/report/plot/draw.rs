//! One plot: title, legend, axes, the teacher's line, the Pareto front, and the points on top.

use anyhow::Result;
use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, IntoFont, ShapeStyle, TextStyle};

use super::super::format;
use super::super::html::escape;
use super::super::pareto::{Measure, Point, Trade};
use super::super::view::View;
use super::axis::Axis;
use super::labels::Rect;
use super::legend::{self, legend};
use super::points::{Placed, draw_points, placed};
use super::style::{Colour, GRID, INK, PAPER, SOFT, rules};

/// In pixels, where it is not scaled.
pub const SIZE: (u32, u32) = (920, 600);
/// How many times the lowest perplexity is still shown where it stands. Models beyond have failed, and showing by how
/// much would leave no room for the others.
const MOST: f64 = 60.0;
/// Of what stands at axes and in the legend.
pub const TEXT: f64 = 13.0;

/// Where a plot is drawn, in pixels.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// From the left, from the top.
pub type Pixel = (i32, i32);

/// A trade on a text, a whole SVG file.
///
/// # Errors
/// None that results can cause.
pub fn svg(view: &View, text: &str, trade: Trade) -> Result<String> {
    let title = format!("{}, {text}", trade.title());
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        area.fill(&PAPER.light)?;
        area.draw(&Text::new(cut(&title, 90), (24, 18), text_style(18.0, INK, FontStyle::Bold)))?;
        draw(&area, view, text, trade)?;
        area.present()?;
    }
    // A picture with a name, and dark where the reader's system is.
    let named = format!("<svg class=\"plot\" role=\"img\" aria-label=\"{}\" ", escape(&title));
    Ok(out.replacen("<svg ", &named, 1).replacen(">\n", &format!(">\n<style>\n{}</style>\n", rules()), 1))
}

fn draw(area: &Area, view: &View, text: &str, trade: Trade) -> Result<()> {
    let points = trade.points(view, text);
    let front = trade.front(&points);
    let teacher = (trade.quality == Measure::Perplexity).then(|| trade.quality.of(&view.teacher, text)).flatten();
    let teacher = teacher.map(|teacher| teacher.value);
    let top = legend::draw(area, &legend(view, &points, teacher.is_some(), front.len() > 1))?;

    let qualities: Vec<f64> = points.iter().map(|point| point.y.value).chain(teacher).collect();
    let lowest = qualities.iter().copied().reduce(f64::min).unwrap_or(1.0);
    let most = if trade.quality == Measure::Perplexity { MOST * lowest } else { f64::MAX };
    let x = Axis::new(trade.cost, &points.iter().map(|point| point.x.value).collect::<Vec<_>>(), f64::MAX);
    let y = Axis::new(trade.quality, &qualities, most);

    let note = note(&points, &x, &y, most);
    let mut chart = ChartBuilder::on(area)
        .margin_top(top)
        .margin_right(26)
        .margin_left(10)
        .margin_bottom(if note.is_empty() { 10 } else { 34 })
        .x_label_area_size(50)
        .y_label_area_size(64)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID.light)
        .axis_style(SOFT.light)
        .label_style(text_style(TEXT, SOFT, FontStyle::Normal))
        .axis_desc_style(text_style(TEXT, INK, FontStyle::Normal))
        .x_desc(x.title())
        .y_desc(y.title())
        .draw()?;
    let (columns, rows) = chart.plotting_area().get_pixel_range();
    let pixel = |x: f64, y: f64| chart.backend_coord(&(x, y));
    let at_bottom = (24, SIZE.1 as i32 - 26);
    area.draw(&Text::new(cut(&note, 150), at_bottom, text_style(12.0, SOFT, FontStyle::Normal)))?;
    if points.is_empty() {
        let centre = ((columns.start + columns.end) / 2, (rows.start + rows.end) / 2);
        let style = text_style(15.0, SOFT, FontStyle::Normal).pos(Pos::new(HPos::Center, VPos::Center));
        area.draw(&Text::new("nothing has been measured yet", centre, style))?;
    }

    let mut obstacles = Vec::new();
    if let Some(place) = teacher.and_then(|teacher| y.place(teacher)) {
        let height = pixel(x.low, place).1;
        dashes(area, columns.start..columns.end, height)?;
        obstacles.push((line_between((columns.start, height), (columns.end, height)), 0.5));
    }
    let placed: Vec<Option<Placed>> =
        points.into_iter().map(|point| placed(view, point, &x, &y, most, &pixel)).collect();
    for ends in front.windows(2) {
        let (Some(from), Some(to)) = (&placed[ends[0]], &placed[ends[1]]) else { continue };
        let (from, to) = (from.at, to.at);
        // What can be had for less than the next point costs is what the cheaper one gives.
        let corner = if trade.cost.more_is_better() { (from.0, to.1) } else { (to.0, from.1) };
        area.draw(&PathElement::new([from, corner, to], stroke(SOFT, 1)))?;
        obstacles.extend([(line_between(from, corner), 0.5), (line_between(corner, to), 0.5)]);
    }
    let bounds = Rect {
        x0: f64::from(columns.start) + 3.0,
        y0: f64::from(rows.start) - 2.0,
        x1: f64::from(columns.end) + 20.0,
        y1: f64::from(rows.end) - 3.0,
    };
    draw_points(area, &placed.into_iter().flatten().collect::<Vec<_>>(), obstacles, bounds)
}

/// What a reader does not see from the points.
fn note(points: &[Point], x: &Axis, y: &Axis, most: f64) -> String {
    let hidden = |point: &&Point| x.place(point.x.value).is_none() || y.place(point.y.value).is_none();
    let named =
        |point: &Point| format!("{} {} ({})", point.entry.scheme, point.entry.method, format::number(point.y.value));
    let left_out: Vec<String> = points.iter().filter(hidden).map(named).collect();
    let mut notes = Vec::new();
    if points.iter().any(|point| point.y.value > most) {
        notes.push(format!("↑: beyond the axis, at more than {MOST} times the lowest"));
    }
    if !left_out.is_empty() {
        notes.push(format!("too small for the axis: {}", left_out.join(", ")));
    }
    notes.join("; ")
}

/// A dashed line across: the teacher's.
pub fn dashes(area: &Area, columns: std::ops::Range<i32>, height: i32) -> Result<()> {
    for start in columns.clone().step_by(10) {
        area.draw(&PathElement::new([(start, height), ((start + 6).min(columns.end), height)], stroke(INK, 2)))?;
    }
    Ok(())
}

fn line_between(from: Pixel, to: Pixel) -> Rect {
    Rect {
        x0: f64::from(from.0.min(to.0)) - 1.5,
        y0: f64::from(from.1.min(to.1)) - 1.5,
        x1: f64::from(from.0.max(to.0)) + 1.5,
        y1: f64::from(from.1.max(to.1)) + 1.5,
    }
}

/// Of a line.
pub fn stroke(colour: Colour, width: u32) -> ShapeStyle {
    colour.light.stroke_width(width)
}

/// Of letters this high, in pixels.
pub fn text_style(size: f64, colour: Colour, style: FontStyle) -> TextStyle<'static> {
    // plotters takes the height of a line.
    ("system-ui, sans-serif", 1.24 * size, style).into_font().color(&colour.light)
}

/// About how wide a text is, in pixels. There are no fonts here to measure it with.
pub fn width(text: &str, size: f64) -> f64 {
    0.57 * size * text.chars().count() as f64
}

/// At most so many characters.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.into() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::super::pareto::TRADES;
    use super::super::super::sample;
    use super::super::super::view::Figure;
    use super::*;

    /// All plots of all texts, each looked over.
    fn checked(view: &View) -> Vec<String> {
        let texts = if view.texts.is_empty() { vec!["none".to_string()] } else { view.texts.clone() };
        let plots = texts.iter().flat_map(|text| TRADES.map(|trade| svg(view, text, trade).unwrap()));
        plots
            .inspect(|plot| {
                for bad in ["NaN", "nan", "inf\"", "2147483647", "-2147483648", "not finite"] {
                    assert!(!plot.contains(bad), "{bad}: {plot}");
                }
                assert!(plot.starts_with("<svg class=\"plot\" ") && plot.trim_end().ends_with("</svg>"));
            })
            .collect()
    }

    #[test]
    fn every_method_and_tool_is_in_the_legend() {
        let view = View::new(&sample::results());
        let plot = svg(&view, "wikitext-2", TRADES[0]).unwrap();
        for name in view.methods().into_iter().chain(view.tools()).chain(["teacher", "Pareto front"]) {
            assert!(plot.contains(name), "{name}");
        }
        assert!(plot.contains("binary ↑ ") && plot.contains("↑: beyond the axis"), "{plot}");
    }

    #[test]
    fn of_full_empty_and_hostile_results() {
        checked(&View::new(&sample::results()));
        assert!(checked(&View::new(&sample::empty()))[0].contains("nothing has been measured yet"));
        let plots = checked(&View::new(&sample::hostile()));
        assert!(
            plots[0].contains("&lt;b&gt;")
                && plots.iter().all(|plot| !plot.contains("<b>") && !plot.contains("<script"))
        );
    }

    #[test]
    fn of_extreme_missing_and_equal_figures() {
        let view = View::new(&sample::results());
        let with = |change: &dyn Fn(usize, &mut Figure)| {
            let mut view = view.clone();
            for (index, entry) in view.cells.iter_mut().enumerate() {
                for on_text in entry.texts.values_mut() {
                    change(index, &mut on_text.perplexity);
                    on_text.kld.iter_mut().for_each(|kld| change(index, kld));
                }
                entry.decode.iter_mut().for_each(|decode| change(index, decode));
            }
            checked(&view);
        };
        for value in [0.0, -1.0, 5e-324, 1e-300, 1e300, f64::MAX, f64::NAN, f64::INFINITY] {
            with(&|_, figure| *figure = Figure::new(value, Some(value)));
            with(&|index, figure| {
                if index == 3 {
                    *figure = Figure::new(value, Some(f64::NAN))
                }
            });
        }
        with(&|_, figure| *figure = Figure::new(7.0, None));

        // One point, and none with a speed or a divergence.
        let mut one = view.clone();
        one.cells.truncate(1);
        one.others.clear();
        checked(&one);
        one.teacher.texts.clear();
        one.cells[0].decode = None;
        one.cells[0].texts.values_mut().for_each(|on_text| on_text.kld = None);
        checked(&one);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!((cut("abc", 3).as_str(), cut("abcd", 3).as_str()), ("abc", "ab…"));
    }
}
