//! Which marker is which method.

use anyhow::Result;
use plotters::element::{PathElement, Text};
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::pareto::Point;
use super::super::view::View;
use super::draw::{Area, SIZE, TEXT, cut, dashes, stroke, text_style, width};
use super::points::draw_marker;
use super::style::{self, INK, Marker, SOFT};

/// A line of the legend.
pub struct Line {
    sign: Sign,
    name: String,
}

enum Sign {
    Marker(Marker),
    Teacher,
    Front,
}

/// From the left edge of the plot to the legend.
const LEFT: i32 = 26;
/// Of a row.
const HEIGHT: i32 = 24;

/// Of those methods and tools that have points, as they look in all plots of a report.
pub fn legend(view: &View, points: &[Point], teacher: bool, front: bool) -> Vec<Line> {
    let has = |method: &str, of_grid: bool| {
        points.iter().any(|point| point.entry.method == method && (point.entry.seeds > 0) == of_grid)
    };
    let mut lines = Vec::new();
    for (index, method) in view.methods().into_iter().enumerate().filter(|(_, method)| has(method, true)) {
        lines.push(Line { sign: Sign::Marker(style::method(index)), name: cut(method, 40) });
    }
    for (index, tool) in view.tools().into_iter().enumerate().filter(|(_, tool)| has(tool, false)) {
        lines.push(Line { sign: Sign::Marker(style::tool(index)), name: cut(tool, 40) });
    }
    if teacher {
        lines.push(Line { sign: Sign::Teacher, name: "teacher".into() });
    }
    if front {
        lines.push(Line { sign: Sign::Front, name: "Pareto front".into() });
    }
    lines
}

/// In rows below the title; the height at which they end.
pub fn draw(area: &Area, lines: &[Line]) -> Result<i32> {
    let (mut x, mut y) = (LEFT, 58);
    for Line { sign, name } in lines {
        let needed = 34 + width(name, TEXT) as i32;
        if x > LEFT && x + needed > SIZE.0 as i32 - 20 {
            (x, y) = (LEFT, y + HEIGHT);
        }
        let gap = match sign {
            Sign::Marker(marker) => {
                draw_marker(area, (x + 6, y), *marker)?;
                20
            }
            Sign::Teacher => {
                dashes(area, x..x + 26, y)?;
                34
            }
            Sign::Front => {
                area.draw(&PathElement::new(
                    [(x, y + 4), (x + 12, y + 4), (x + 12, y - 4), (x + 24, y - 4)],
                    stroke(SOFT, 1),
                ))?;
                32
            }
        };
        let style = text_style(TEXT, INK, FontStyle::Normal).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name.clone(), (x + gap, y), style))?;
        x += gap + width(name, TEXT) as i32 + 18;
    }
    Ok(y + 20)
}
