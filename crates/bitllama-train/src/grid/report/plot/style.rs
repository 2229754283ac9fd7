//! Colours and markers.

use std::fmt::Write;

use plotters::style::RGBColor;

/// A colour on white, and its counterpart on black.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colour {
    /// What is drawn; the dark counterpart is a style rule over it.
    pub light: RGBColor,
    dark: RGBColor,
}

const fn colour(light: u32, dark: u32) -> Colour {
    Colour { light: rgb(light), dark: rgb(dark) }
}

const fn rgb(hex: u32) -> RGBColor {
    RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

/// Behind everything.
pub const PAPER: Colour = colour(0xffffff, 0x0d1117);
/// Text.
pub const INK: Colour = colour(0x1f2328, 0xe6edf3);
/// Axes, and what is said of them.
pub const SOFT: Colour = colour(0x59636e, 0x9198a1);
/// The grid of the axes.
pub const GRID: Colour = colour(0xe4e8ec, 0x262c36);
/// From a name to its point.
pub const LEADER: Colour = colour(0x9aa4ae, 0x5d6672);

/// Of methods: colours of Okabe and Ito that people with any kind of colour vision tell apart ("Color Universal
/// Design", 2008), lighter on black.
const METHODS: [Colour; 6] = [
    colour(0xe69f00, 0xf0b429),
    colour(0xcc79a7, 0xe29ac4),
    colour(0x009e73, 0x2fc39a),
    colour(0x0072b2, 0x56b4e9),
    colour(0xd55e00, 0xf0703c),
    colour(0x4b4b4b, 0xb8b8b8),
];

/// Shapes of markers.
const SHAPES: [Shape; 6] =
    [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond, Shape::Upended, Shape::Pentagon];

/// What a point looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Round.
    Circle,
    /// On its side.
    Square,
    /// On its corner.
    Diamond,
    /// Corner up.
    Triangle,
    /// Corner down.
    Upended,
    /// Corner up.
    Pentagon,
}

/// A marker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marker {
    /// Its outline.
    pub shape: Shape,
    /// Of its face, or of its outline if hollow.
    pub colour: Colour,
    /// With the paper showing through: models of other tools.
    pub hollow: bool,
}

/// Of the method at a place in the grid's order.
pub fn method(index: usize) -> Marker {
    // After the last colour the shapes go on by one, so that no pair comes back soon.
    let shape = SHAPES[(index + index / METHODS.len()) % SHAPES.len()];
    Marker { shape, colour: METHODS[index % METHODS.len()], hollow: false }
}

/// Of another tool.
pub fn tool(index: usize) -> Marker {
    Marker { shape: SHAPES[(index + 3) % SHAPES.len()], colour: SOFT, hollow: true }
}

impl Shape {
    /// Corners around a point; all shapes have about the same area.
    pub fn corners(self, (x, y): (i32, i32), radius: f64) -> Vec<(i32, i32)> {
        let (count, turn, scale) = match self {
            Self::Circle => (20, 0.0, 1.0),
            Self::Square => (4, 0.125, 1.25),
            Self::Diamond => (4, 0.0, 1.3),
            Self::Triangle => (3, 0.75, 1.4),
            Self::Upended => (3, 0.25, 1.4),
            Self::Pentagon => (5, 0.75, 1.15),
        };
        let corner = |index: usize| {
            let (sin, cos) = (std::f64::consts::TAU * (index as f64 / count as f64 + turn)).sin_cos();
            let at = |centre: i32, part: f64| centre + (radius * scale * part).round() as i32;
            (at(x, cos), at(y, sin))
        };
        (0..count).map(corner).collect()
    }
}

/// Rules that give every colour its dark counterpart where the reader's system is dark. They hold for a plot in a page
/// and for one that is a picture by itself.
pub fn rules() -> String {
    let mut out = "@media (prefers-color-scheme: dark) {\n".to_string();
    for colour in [PAPER, INK, SOFT, GRID, LEADER].iter().chain(&METHODS) {
        let (light, dark) = (hex(colour.light), hex(colour.dark));
        for attribute in ["fill", "stroke"] {
            // Writing to a string does not fail.
            _ = writeln!(out, ".plot [{attribute}=\"{light}\"] {{ {attribute}: {dark}; }}");
        }
    }
    out + "}\n"
}

/// As the SVG writer has it.
fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_look_different() {
        let markers: Vec<Marker> = (0..12).map(method).collect();
        for (index, marker) in markers.iter().enumerate() {
            assert!(!markers[..index].contains(marker), "{index}");
        }
        assert!(tool(0).hollow && tool(0) != tool(1));
    }

    #[test]
    fn every_colour_has_a_counterpart() {
        let rules = rules();
        assert!(rules.contains(".plot [fill=\"#FFFFFF\"] { fill: #0D1117; }"), "{rules}");
        assert_eq!(rules.matches("stroke: ").count(), 11);
    }
}
