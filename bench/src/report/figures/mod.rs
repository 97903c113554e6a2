//! The figures, one idea per file. Each draws itself for a wide page and for a narrow one, from
//! the analysis where there is one and from merged histograms only for display.

mod bars;
mod density;
mod dots;
mod foreign;
mod forest;
mod memory;
mod slowdown;
mod spectrum;
mod timeline;
mod trend;

pub use dots::figure as dots;
use maud::Markup;
pub use trend::{Series, figure as trend};

use super::svg::{Shape, Size};
use crate::results::{Arm, Results};

/// A figure, its heading, and how to read it.
pub struct Figure {
    pub title: String,
    pub caption: String,
    pub wide: Markup,
    pub narrow: Markup,
    /// Names in the legend; empty where the figure names its arms itself.
    pub arms: Vec<String>,
}

/// Every figure that the results have data for, in the order of the page.
pub fn all(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    figures.extend(forest::figure(results));
    figures.extend(slowdown::figures(results));
    figures.extend(timeline::figures(results));
    figures.extend(spectrum::figures(results));
    figures.extend(memory::figure(results));
    figures.extend(density::figures(results));
    figures.extend(bars::figures(results));
    figures.extend(foreign::figure(results));
    figures
}

/// Before the name of what is no arm; no arm's name has a colon.
const FOREIGN: &str = "foreign: ";

/// Class and mark of an arm, the same in every figure.
pub fn style(arm: &str) -> (String, Shape) {
    if arm.starts_with(FOREIGN) {
        return ("foreign".into(), Shape::Ring);
    }
    let (number, shape) = match arm {
        "none" => (0, Shape::Ring),
        "sidecar" => (1, Shape::Disc),
        "agent" => (2, Shape::Square),
        "aa" => (3, Shape::Triangle),
        "agent+tenancy" => (4, Shape::Diamond),
        "classic" => (5, Shape::Triangle),
        "envoy-http" => (5, Shape::Diamond),
        "redirect-sidecar" => (6, Shape::Disc),
        "redirect-agent" => (7, Shape::Square),
        other => (
            5 + other.bytes().map(usize::from).sum::<usize>() % 3,
            Shape::Diamond,
        ),
    };
    (format!("arm-{number}"), shape)
}

fn both(draw: impl Fn(Size) -> Markup) -> (Markup, Markup) {
    (draw(Size::Wide), draw(Size::Narrow))
}

/// Arms to be drawn: a second copy of an arm only clutters.
fn drawn(results: &Results) -> impl Iterator<Item = &Arm> {
    results.arms.iter().filter(|arm| arm.copy_of.is_none())
}

/// Smallest and largest of some numbers.
fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold(None, |seen, value| match seen {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        })
}
