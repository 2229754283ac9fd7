//! The plots, as SVG that is legible on light and dark ground.

mod axis;
mod draw;
mod labels;
mod legend;
mod points;
mod style;

pub use draw::svg;
