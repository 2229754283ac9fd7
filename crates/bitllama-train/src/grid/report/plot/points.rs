//! The points of a plot: markers, how far they could be off, and their names.

use anyhow::Result;
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle};

use super::super::format;
use super::super::pareto::Point;
use super::super::view::View;
use super::axis::Axis;
use super::draw::{Area, Pixel, cut, stroke, text_style, width};
use super::labels::{self, Label, Rect, Wish};
use super::style::{self, Colour, INK, LEADER, Marker, PAPER, Shape};

/// Of a marker.
const RADIUS: f64 = 6.0;
/// Of a name.
const NAME: f64 = 12.0;

/// A model where it stands.
pub struct Placed {
    /// Its marker's centre.
    pub at: Pixel,
    marker: Marker,
    name: String,
    /// Ends of the lines that say how far it could be off.
    across: Option<[Pixel; 2]>,
    upright: Option<[Pixel; 2]>,
}

/// Where a point stands, if it has a place on both axes. Those of more than `most` stand at the top.
pub fn placed(
    view: &View,
    point: Point,
    x: &Axis,
    y: &Axis,
    most: f64,
    pixel: &impl Fn(f64, f64) -> Pixel,
) -> Option<Placed> {
    let (place_x, place_y) = (x.place(point.x.value)?, y.place(point.y.value)?);
    let entry = point.entry;
    let index = |names: Vec<&str>| names.iter().position(|name| *name == entry.method).unwrap_or(0);
    let marker = if entry.seeds > 0 { style::method(index(view.methods())) } else { style::tool(index(view.tools())) };
    let name = cut(&entry.scheme, 24);
    let beyond = point.y.value > most;
    let spread = |spread: Option<f64>| spread.filter(|spread| *spread > 0.0 && spread.is_finite());
    Some(Placed {
        at: pixel(place_x, place_y),
        marker,
        name: if beyond { format!("{name} ↑ {}", format::short(point.y.value)) } else { name },
        across: spread(point.x.spread).map(|s| [-s, s].map(|s| pixel(x.end(point.x.value + s), place_y))),
        upright: spread(point.y.spread)
            .filter(|_| !beyond)
            .map(|s| [-s, s].map(|s| pixel(place_x, y.end(point.y.value + s)))),
    })
}

/// Spreads, then markers, then names: what is read stands on top.
pub fn draw_points(area: &Area, points: &[Placed], mut obstacles: Vec<(Rect, f64)>, bounds: Rect) -> Result<()> {
    for point in points {
        bar(area, point.across, (0, 4), point.marker.colour)?;
        bar(area, point.upright, (4, 0), point.marker.colour)?;
        let (x, y) = (f64::from(point.at.0), f64::from(point.at.1));
        obstacles.push((Rect::around(x, y, RADIUS + 1.0, RADIUS + 1.0), 1.0));
    }
    // The grid's own are drawn over other tools'.
    for hollow in [true, false] {
        for point in points.iter().filter(|point| point.marker.hollow == hollow) {
            draw_marker(area, point.at, point.marker)?;
        }
    }
    let wish = |point: &Placed| Wish {
        x: f64::from(point.at.0),
        y: f64::from(point.at.1),
        width: width(&point.name, NAME),
        height: NAME + 2.0,
    };
    let labels = labels::place(&points.iter().map(wish).collect::<Vec<_>>(), &obstacles, bounds);
    for (point, label) in points.iter().zip(labels).filter_map(|(point, label)| Some((point, label?))) {
        draw_name(area, point, label)?;
    }
    Ok(())
}

fn draw_name(area: &Area, point: &Placed, Label { rect, far }: Label) -> Result<()> {
    if far {
        // To the nearest place of the name's edge, from the edge of the marker.
        let (x, y) = (f64::from(point.at.0), f64::from(point.at.1));
        let (to_x, to_y) = (x.clamp(rect.x0, rect.x1), y.clamp(rect.y0, rect.y1));
        let length = (to_x - x).hypot(to_y - y).max(1.0);
        let start = |at: f64, to: f64| (at + (to - at) * (RADIUS + 1.0) / length).round() as i32;
        let ends = [(start(x, to_x), start(y, to_y)), (to_x.round() as i32, to_y.round() as i32)];
        area.draw(&PathElement::new(ends, stroke(LEADER, 1)))?;
    }
    let centre = (((rect.x0 + rect.x1) / 2.0).round() as i32, ((rect.y0 + rect.y1) / 2.0).round() as i32);
    let style = text_style(NAME, INK, FontStyle::Normal).pos(Pos::new(HPos::Center, VPos::Center));
    area.draw(&Text::new(point.name.clone(), centre, style))?;
    Ok(())
}

/// A line with a cap at both ends.
fn bar(area: &Area, ends: Option<[Pixel; 2]>, (cap_x, cap_y): Pixel, colour: Colour) -> Result<()> {
    let Some(ends) = ends else { return Ok(()) };
    area.draw(&PathElement::new(ends, stroke(colour, 1)))?;
    for (x, y) in ends {
        area.draw(&PathElement::new([(x - cap_x, y - cap_y), (x + cap_x, y + cap_y)], stroke(colour, 1)))?;
    }
    Ok(())
}

/// With a rim of paper, so that markers that lie over each other stay apart.
pub fn draw_marker(area: &Area, at: Pixel, Marker { shape, colour, hollow }: Marker) -> Result<()> {
    if shape == Shape::Circle {
        let radius = RADIUS as i32;
        area.draw(&Circle::new(at, radius + 1, PAPER.light.filled()))?;
        area.draw(&Circle::new(at, radius, if hollow { stroke(colour, 2) } else { colour.light.filled() }))?;
        return Ok(());
    }
    let corners = shape.corners(at, RADIUS);
    let outline: Vec<Pixel> = corners.iter().chain(&corners[..2]).copied().collect();
    area.draw(&Polygon::new(corners.clone(), if hollow { PAPER.light.filled() } else { colour.light.filled() }))?;
    area.draw(&PathElement::new(outline, if hollow { stroke(colour, 2) } else { stroke(PAPER, 1) }))?;
    Ok(())
}
