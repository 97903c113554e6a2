//! Just enough of a plot: two axes, lines, bands, marks. Colours and dashes come from the page's
//! style sheet by class, so that light, dark and print need no second drawing.

use maud::{Markup, PreEscaped, html};

/// The page draws each figure twice and shows one: text of the wide drawing would be unreadable
/// on a phone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Wide,
    Narrow,
}

impl Size {
    pub fn width(self) -> f64 {
        match self {
            Size::Wide => 560.0,
            Size::Narrow => 350.0,
        }
    }

    pub fn class(self) -> &'static str {
        match self {
            Size::Wide => "wide",
            Size::Narrow => "narrow",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// From zero (or lower) to a round number above the largest value.
    pub fn linear(low: f64, high: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        Scale {
            low,
            high,
            log: false,
        }
    }

    /// Both ends must be positive; they are opened a little so that marks do not touch the frame.
    pub fn log(low: f64, high: f64) -> Scale {
        let (low, high) = (low.max(1e-9), high.max(low.max(1e-9) * 1.05));
        let room = (high / low).powf(0.04);
        Scale {
            low: low / room,
            high: high * room,
            log: true,
        }
    }

    /// Position in 0…1; values beyond the scale stay at its end.
    pub fn share(&self, value: f64) -> f64 {
        let at = |v: f64| if self.log { v.max(1e-12).ln() } else { v };
        ((at(value) - at(self.low)) / (at(self.high) - at(self.low))).clamp(0.0, 1.0)
    }

    /// Round values on the scale, about so many.
    pub fn round_values(&self, about: usize) -> Vec<f64> {
        if self.log {
            self.log_ticks(about)
        } else {
            self.linear_ticks(about)
        }
    }

    fn linear_ticks(&self, about: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / about as f64;
        let magnitude = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|m| m * magnitude)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    /// The densest of some usual subdivisions of decades whose labels do not touch.
    fn log_ticks(&self, about: usize) -> Vec<f64> {
        const SUBDIVISIONS: [&[f64]; 5] = [
            &[
                1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
            ],
            &[1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 1.5, 2.0, 3.0, 5.0],
            &[1.0, 2.0, 5.0],
            &[1.0],
        ];
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let within = |steps: &[f64]| -> Vec<f64> {
            decades
                .clone()
                .flat_map(|decade| steps.iter().map(move |s| s * 10_f64.powi(decade)))
                .filter(|tick| self.low <= *tick && *tick <= self.high)
                .collect()
        };
        let apart = 0.6 / about as f64;
        let airy = |ticks: &Vec<f64>| {
            ticks
                .windows(2)
                .all(|pair| self.share(pair[1]) - self.share(pair[0]) >= apart)
        };
        SUBDIVISIONS
            .iter()
            .map(|steps| within(steps))
            .find(airy)
            .unwrap_or_else(|| within(&[1.0]))
    }
}

pub struct Axis {
    pub scale: Scale,
    pub label: String,
    pub show: fn(f64) -> String,
    /// Ticks to use instead of computed ones.
    pub ticks: Option<Vec<f64>>,
}

impl Axis {
    pub fn new(scale: Scale, label: impl Into<String>, show: fn(f64) -> String) -> Axis {
        Axis {
            scale,
            label: label.into(),
            show,
            ticks: None,
        }
    }

    pub fn with_ticks(mut self, ticks: Vec<f64>) -> Axis {
        self.ticks = Some(ticks);
        self
    }

    fn tick_values(&self, about: usize) -> Vec<f64> {
        self.ticks
            .clone()
            .unwrap_or_else(|| self.scale.round_values(about))
    }
}

pub struct Plot {
    size: Size,
    height: f64,
    x: Axis,
    y: Axis,
    body: Vec<Markup>,
}

/// Of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

const LEFT: f64 = 58.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 46.0;

impl Plot {
    pub fn new(size: Size, x: Axis, y: Axis) -> Plot {
        let height = match size {
            Size::Wide => 300.0,
            Size::Narrow => 280.0,
        };
        Plot {
            size,
            height,
            x,
            y,
            body: Vec::new(),
        }
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + self.x.scale.share(x) * (self.size.width() - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        self.height - BOTTOM - self.y.scale.share(y) * (self.height - TOP - BOTTOM)
    }

    fn points(&self, points: impl IntoIterator<Item = (f64, f64)>) -> String {
        let pairs: Vec<String> = points
            .into_iter()
            .map(|(x, y)| format!("{:.1},{:.1}", self.px(x), self.py(y)))
            .collect();
        pairs.join(" ")
    }

    pub fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let path = self.points(points.iter().copied());
        self.body
            .push(html! { polyline class={ "line " (class) } points=(path) {} });
    }

    /// Stairs: each y holds from its x to the next.
    pub fn steps(&mut self, class: &str, points: &[(f64, f64)], width: f64) {
        let path = self.points(points.iter().flat_map(|(x, y)| [(*x, *y), (x + width, *y)]));
        self.body
            .push(html! { polyline class={ "line " (class) } points=(path) {} });
    }

    /// (x, low, high)
    pub fn band(&mut self, class: &str, points: &[(f64, f64, f64)]) {
        let there = points.iter().map(|(x, _, high)| (*x, *high));
        let back = points.iter().rev().map(|(x, low, _)| (*x, *low));
        let path = self.points(there.chain(back));
        self.body
            .push(html! { polygon class={ "band " (class) } points=(path) {} });
    }

    pub fn mark(&mut self, class: &str, shape: Shape, x: f64, y: f64, tip: &str) {
        let mark = shape.draw(class, self.px(x), self.py(y), tip);
        self.body.push(mark);
    }

    /// A vertical rule with a word beside it: to the right at its top, or to the left at half
    /// height.
    pub fn rule(&mut self, x: f64, word: &str, side: Side) {
        let (px, top, bottom) = (round(self.px(x)), TOP, self.height - BOTTOM);
        let (anchor, at, height) = match side {
            Side::Left => ("end", px - 6.0, (top + bottom) / 2.0),
            Side::Right => ("start", px + 6.0, top + 12.0),
        };
        self.body.push(html! {
            line class="rule" x1=(px) x2=(px) y1=(top) y2=(bottom) {}
            text class="note" x=(at) y=(height) text-anchor=(anchor) { (word) }
        });
    }

    pub fn finish(self, description: &str) -> Markup {
        let (width, height) = (self.size.width(), self.height);
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        let about = match self.size {
            Size::Wide => 6,
            Size::Narrow => 4,
        };
        let y_ticks = self.y.tick_values(6);
        let x_ticks = self.x.tick_values(about);
        html! {
            svg class={ "plot " (self.size.class()) } viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(description) {
                @for tick in &y_ticks {
                    line class="grid" x1=(LEFT) x2=(right) y1=(round(self.py(*tick))) y2=(round(self.py(*tick))) {}
                    text class="tick" x=(LEFT - 7.0) y=(round(self.py(*tick) + 4.0)) text-anchor="end" { ((self.y.show)(*tick)) }
                }
                @for tick in &x_ticks {
                    line class="grid" x1=(round(self.px(*tick))) x2=(round(self.px(*tick))) y1=(TOP) y2=(bottom) {}
                    text class="tick" x=(round(self.px(*tick))) y=(bottom + 18.0) text-anchor="middle" { ((self.x.show)(*tick)) }
                }
                line class="axis" x1=(LEFT) x2=(right) y1=(bottom) y2=(bottom) {}
                text class="label" x="2" y="14" { (self.y.label) }
                text class="label" x=(right) y=(height - 6.0) text-anchor="end" { (self.x.label) }
                @for part in &self.body { (part) }
            }
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Arms differ by shape too, for those who do not see the colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Ring,
    Disc,
    Square,
    Triangle,
    Diamond,
}

impl Shape {
    pub fn draw(self, class: &str, x: f64, y: f64, tip: &str) -> Markup {
        let (x, y) = (round(x), round(y));
        let path = match self {
            Shape::Ring | Shape::Disc => {
                let hollow = if self == Shape::Ring { "ring" } else { "dot" };
                return html! {
                    circle class={ (hollow) " " (class) } cx=(x) cy=(y) r="4" data-tip=(tip) { title { (tip) } }
                };
            }
            Shape::Square => format!("M{} {}h7.4v7.4h-7.4z", round(x - 3.7), round(y - 3.7)),
            Shape::Triangle => format!("M{x} {}l4.8 8.4h-9.6z", round(y - 5.2)),
            Shape::Diamond => format!("M{x} {}l5 5l-5 5l-5 -5z", round(y - 5.0)),
        };
        html! { path class={ "dot " (class) } d=(path) data-tip=(tip) { title { (tip) } } }
    }

    /// The mark alone, for a legend.
    pub fn swatch(self, class: &str) -> Markup {
        html! {
            svg class="swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" {
                polyline class={ "line " (class) } points="0,6 26,6" {}
                (PreEscaped(self.draw(class, 13.0, 6.0, "").into_string().replace("<title></title>", "").replace(" data-tip=\"\"", "")))
            }
        }
    }
}
