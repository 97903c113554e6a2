//! Everything at a glance: agent ÷ sidecar for the headline of each scenario, with interval and
//! noise floor.

use maud::{Markup, html};

use super::super::rows::Reading;
use super::super::svg::{Scale, Shape, Size};
use super::{Figure, both, range};
use crate::analysis::words;
use crate::results::{Claim, Comparison, Effect, HEADLINE_LOAD, Placement, Results, keys};

/// Of one scenario, so that there is room for all.
const ROWS_EACH: usize = 4;
/// This figure has the page's width to itself.
const WIDTH: f64 = 1040.0;

pub fn figure(results: &Results) -> Option<Figure> {
    let rows = rows(results);
    let first = rows.first()?;
    let (arm, rival) = (first.arm.clone(), first.baseline.clone());
    let ends = rows.iter().flat_map(|c| {
        let estimate = c.estimate.map(|e| (e.value, e.interval));
        estimate
            .into_iter()
            .flat_map(|(value, interval)| match interval {
                Some(bounds) => vec![bounds.low, bounds.high],
                None => vec![value],
            })
    });
    let (low, high) = range(ends.chain([0.8, 1.25]))?;
    let (wide, narrow) = both(|size| draw(size, &rows, low, high));
    Some(Figure {
        title: format!("{arm} ÷ {rival}, at a glance"),
        caption: format!(
            "Left of 1 the {arm}'s figure is smaller, right of 1 larger. Bars are 95 % intervals; the grey band is what an arm shows \
             against itself. Filled marks are claims, rings are not (~)."
        ),
        wide,
        narrow,
        arms: Vec::new(),
    })
}

/// The first metrics of each scenario that are compared by ratio, at its last point or, for
/// latency, at the one nearest to half of capacity.
fn rows(results: &Results) -> Vec<&Comparison> {
    let mut rows = Vec::new();
    // R4 is R1 again, and where its lines cross.
    for scenario in results.scenarios.iter().filter(|one| one.id != "R4") {
        let rivals: Vec<&Comparison> = results
            .analysis
            .comparisons
            .iter()
            .filter(|c| c.scenario == scenario.id && c.effect == Effect::Ratio)
            .filter(|c| c.estimate.is_some())
            .filter(|c| {
                let placed = |name: &str| results.arm(name).map(|arm| arm.placement);
                placed(&c.arm) == Some(Placement::Agent)
                    && placed(&c.baseline) == Some(Placement::Sidecar)
            })
            .collect();
        // Where an aggressor sweeps, the slowdown is the finding, not the latency behind it.
        let swept = rivals.iter().any(|c| c.metric.starts_with("slowdown_"));
        let mut series: Vec<(&str, &str)> = Vec::new();
        for comparison in &rivals {
            let key = (comparison.metric.as_str(), comparison.point.series.as_str());
            let wanted = !swept || comparison.metric.starts_with("slowdown_");
            if wanted && !series.contains(&key) && !is_detail(&comparison.metric) {
                series.push(key);
            }
        }
        let mut of_scenario = Vec::new();
        for (metric, name) in series {
            let distance = |c: &Comparison| match scenario.id.as_str() {
                "L1" | "L2" | "R2" => (c.point.x - HEADLINE_LOAD).abs(),
                _ => -c.point.x,
            };
            let best = rivals
                .iter()
                .filter(|c| c.metric == metric && c.point.series == name)
                .min_by(|a, b| distance(a).total_cmp(&distance(b)));
            of_scenario.extend(best);
        }
        of_scenario.truncate(ROWS_EACH);
        rows.append(&mut of_scenario);
    }
    rows
}

/// Tails that are too noisy for a headline, and parts of a whole that has its own row.
fn is_detail(metric: &str) -> bool {
    metric.ends_with("p99")
        || metric.starts_with("service_")
        || keys::RECOVERY_PARTS.contains(&metric)
}

fn draw(size: Size, rows: &[&Comparison], low: f64, high: f64) -> Markup {
    const STEP: f64 = 30.0;
    const TOP: f64 = 22.0;
    let narrow = size == Size::Narrow;
    // On a phone the label stands above its bar.
    let (width, left, step) = if narrow {
        (size.width(), 10.0, 62.0)
    } else {
        (WIDTH, 470.0, STEP)
    };
    let right = if narrow { width - 10.0 } else { width - 80.0 };
    let height = TOP + rows.len() as f64 * step + 10.0;
    let scale = Scale::log(low, high);
    let x = |value: f64| ((left + scale.share(value) * (right - left)) * 10.0).round() / 10.0;
    html! {
        svg class={ "plot " (size.class()) } viewBox={ "0 0 " (width) " " (height) } role="img"
            aria-label="Ratio of agent to sidecar per metric with intervals" {
            @for tick in scale.round_values(if narrow { 4 } else { 6 }) {
                line class="grid" x1=(x(tick)) x2=(x(tick)) y1=(TOP) y2=(height - 6.0) {}
                text class="tick" x=(x(tick)) y=(TOP - 8.0) text-anchor="middle" { (tick_text(tick)) }
            }
            line class="axis one" x1=(x(1.0)) x2=(x(1.0)) y1=(TOP) y2=(height - 6.0) {}
            @for (i, row) in rows.iter().enumerate() {
                @let y = TOP + i as f64 * step + if narrow { 46.0 } else { step / 2.0 };
                @if narrow {
                    text class="name" x=(left) y=(y - 28.0) { (cut(&format!("{} {}", row.scenario, row.label), 38)) }
                    text class="quiet" x=(left) y=(y - 13.0) { (row.point.title()) }
                    text class="value" x=(right) y=(y - 28.0) text-anchor="end" { (short(row)) }
                } @else {
                    text class="name" x=(left - 12.0) y=(y + 4.0) text-anchor="end" { (label(row)) }
                    text class="value" x=(right + 8.0) y=(y + 4.0) { (short(row)) }
                }
                @if let Some(floor) = row.floor {
                    @let (from, to) = (x(1.0 / floor), x(floor));
                    rect class="floor" x=(from) y=(y - 8.0) width=(((to - from) * 10.0).round() / 10.0) height="16" {}
                }
                @if let Some(estimate) = row.estimate {
                    @if let Some(bounds) = estimate.interval {
                        line class="whisker" x1=(x(bounds.low)) x2=(x(bounds.high)) y1=(y) y2=(y) {}
                    }
                    (mark(row).draw(class(row), x(estimate.value), y, &tip(row)))
                }
            }
        }
    }
}

/// Metric and point, as far as there is room.
fn label(row: &Comparison) -> String {
    const ROOM: usize = 66;
    let text = format!("{} {}", row.scenario, row.label);
    let point = row.point.title();
    let full = if point.is_empty() {
        text.clone()
    } else {
        format!("{text}, {point}")
    };
    if full.chars().count() <= ROOM {
        full
    } else {
        cut(&text, ROOM)
    }
}

fn cut(text: &str, room: usize) -> String {
    match text.char_indices().nth(room) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_string(),
    }
}

fn short(row: &Comparison) -> String {
    match (row.estimate, row.claim) {
        (None, _) => "–".into(),
        (Some(estimate), Claim::NoClaim) => format!("{} ~", words::ratio(estimate.value)),
        (Some(estimate), Claim::Equivalent) => format!("{} ≈", words::ratio(estimate.value)),
        (Some(estimate), Claim::Higher) => format!("{} ↑", words::ratio(estimate.value)),
        (Some(estimate), Claim::Lower) => format!("{} ↓", words::ratio(estimate.value)),
    }
}

fn tip(row: &Comparison) -> String {
    format!(
        "{} {}: {}",
        row.label,
        row.point.title(),
        words::finding(row)
    )
}

fn mark(row: &Comparison) -> Shape {
    match row.claim {
        Claim::NoClaim => Shape::Ring,
        _ => Shape::Diamond,
    }
}

fn class(row: &Comparison) -> &'static str {
    match Reading::of(row) {
        Reading::Better => "better",
        Reading::Worse => "worse",
        Reading::Same => "same",
        Reading::Open => "open",
    }
}

/// 0.5, 2, 10: round, without the zeros of a measured ratio.
fn tick_text(value: f64) -> String {
    format!("{}×", (value * 1000.0).round() / 1000.0)
}
