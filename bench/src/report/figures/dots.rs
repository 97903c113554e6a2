//! One dot plot for each of a platform owner's questions: every arm's headline numbers, each row on
//! a scale of its own that begins at zero.

use maud::{Markup, html};

use super::super::svg::{Scale, Size};
use super::{Figure, both, drawn, style};
use crate::analysis::{Concern, Table, words};
use crate::results::{Better, Estimate, Metric, Point, Results, Scenario, keys};
use crate::stats::{covering_interval, median};

/// This figure has the page's width to itself.
const WIDTH: f64 = 1040.0;
/// Between the arms of a row.
const APART: f64 = 9.0;

struct Row {
    scenario: String,
    label: String,
    unit: String,
    better: Better,
    /// By arm, in the order of the run.
    dots: Vec<(String, Estimate)>,
}

pub fn figure(results: &Results, concern: Concern) -> Option<Figure> {
    let rows: Vec<Row> = results
        .scenarios
        .iter()
        .filter(|scenario| Concern::of(&scenario.id) == concern)
        .flat_map(|scenario| rows(results, scenario))
        .collect();
    rows.first()?;
    let present = |name: &String| rows.iter().any(|row| row.dots.iter().any(|d| d.0 == *name));
    let arms: Vec<String> = drawn(results)
        .map(|arm| arm.name.clone())
        .filter(|name| present(name))
        .collect();
    let (wide, narrow) = both(|size| draw(size, &rows, concern));
    Some(Figure {
        title: concern.question().into(),
        caption: String::new(),
        wide,
        narrow,
        arms,
    })
}

fn rows(results: &Results, scenario: &Scenario) -> Vec<Row> {
    if scenario.id.starts_with('I') {
        let slowdowns = slowdowns(results, scenario);
        if !slowdowns.is_empty() {
            return slowdowns;
        }
    }
    let table = Table::of(scenario);
    let Some(point) = telling_point(scenario) else {
        return Vec::new();
    };
    headlines(scenario)
        .into_iter()
        .filter_map(|metric| row(results, scenario, &table, metric, &point))
        .collect()
}

/// What a reader wants first; of a scenario that is not named, its first metric.
fn headlines(scenario: &Scenario) -> Vec<&Metric> {
    let wanted: &[&str] = match scenario.id.as_str() {
        "L1" => &["p50", "p90"],
        "L2" => &["first_byte_p50", keys::CPU_PER_CONNECTION],
        "R1" => &[keys::PROXY_MEMORY, keys::IDLE_CPU],
        "R2" => &[keys::NODE_CPU_PER_REQUEST],
        "R3" => &[keys::KIB_PER_CONNECTION, keys::HELD_AFTER_CLOSE],
        "L4" => &[keys::BULK_RATE, keys::CPU_PER_GB],
        // R1 again; its own finding is where the lines cross.
        "R4" => return Vec::new(),
        "R5" => return scenario.metrics.iter().take(2).collect(),
        "F1" | "F2" => &[keys::PODS_HIT, keys::REQUESTS_LOST, keys::TIME_TO_RECOVER],
        "X1" => &[keys::KEYS_MAX],
        "X2" => &[keys::CAPABILITIES, keys::ROOT_PROXIES],
        "U1" => &[
            keys::NEW_CONNECTIONS_FAILED,
            keys::LONG_LIVED_RESET,
            keys::APPS_RESTARTED,
            keys::UPGRADE_WALL,
        ],
        _ => &[],
    };
    let named: Vec<&Metric> = wanted
        .iter()
        .filter_map(|key| scenario.metric(key))
        .collect();
    if named.is_empty() {
        scenario.metrics.iter().take(1).collect()
    } else {
        named
    }
}

/// Half of capacity where a load is swept, else the last and worst.
fn telling_point(scenario: &Scenario) -> Option<Point> {
    match scenario.id.as_str() {
        "L1" | "L2" | "R2" => scenario.headline(),
        _ => scenario
            .points()
            .into_iter()
            .max_by(|a, b| a.x.total_cmp(&b.x)),
    }
}

fn row(
    results: &Results,
    scenario: &Scenario,
    table: &Table,
    metric: &Metric,
    point: &Point,
) -> Option<Row> {
    let dots: Vec<(String, Estimate)> = drawn(results)
        .filter_map(|arm| {
            let values = table.values(&metric.key, point, &arm.name);
            let values: Vec<f64> = values.into_iter().map(|(_, value)| value).collect();
            let estimate = Estimate {
                value: median(&values)?,
                interval: covering_interval(&values),
            };
            Some((arm.name.clone(), estimate))
        })
        .collect();
    dots.first()?;
    Some(Row {
        scenario: scenario.id.clone(),
        label: with_point(&metric.label, &point.title()),
        unit: metric.unit.clone(),
        better: metric.better,
        dots,
    })
}

/// How many times longer the victim waits beside the worst aggressor, and what it still gets.
fn slowdowns(results: &Results, scenario: &Scenario) -> Vec<Row> {
    let Some(worst) = telling_point(scenario) else {
        return Vec::new();
    };
    let curves = || {
        let all = results.analysis.slowdowns.iter();
        all.filter(|curve| curve.scenario == scenario.id && curve.series == worst.series)
    };
    let at_worst = |metric: &str, goodput: bool| -> Vec<(String, Estimate)> {
        drawn(results)
            .filter_map(|arm| {
                let curve = curves().find(|c| c.arm == arm.name && c.metric == metric)?;
                let point = curve.points.iter().find(|point| point.w == worst.x)?;
                let picked = if goodput {
                    point.goodput
                } else {
                    point.slowdown
                };
                Some((arm.name.clone(), picked?))
            })
            .collect()
    };
    let mut metrics: Vec<&str> = curves().map(|curve| curve.metric.as_str()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    let median_of = metrics
        .iter()
        .copied()
        .filter(|metric| metric.ends_with("p50"));
    let median_of: Vec<&str> = median_of.collect();
    let mut rows: Vec<Row> = median_of
        .iter()
        .map(|metric| Row {
            scenario: scenario.id.clone(),
            label: with_point("slowdown of the victim's median", &worst.title()),
            unit: "×".into(),
            better: Better::Lower,
            dots: at_worst(metric, false),
        })
        .collect();
    rows.extend(median_of.first().map(|metric| Row {
        scenario: scenario.id.clone(),
        label: with_point("victim's goodput", &worst.title()),
        unit: "share".into(),
        better: Better::Higher,
        dots: at_worst(metric, true),
    }));
    rows.retain(|row| !row.dots.is_empty());
    rows
}

fn with_point(label: &str, point: &str) -> String {
    if point.is_empty() {
        label.to_string()
    } else {
        format!("{label}, {point}")
    }
}

fn draw(size: Size, rows: &[Row], concern: Concern) -> Markup {
    let narrow = size == Size::Narrow;
    // On a phone the label stands above its row.
    let (width, left, above) = if narrow {
        (size.width(), 12.0, 34.0)
    } else {
        (WIDTH, 470.0, 0.0)
    };
    let right = width - if narrow { 12.0 } else { 110.0 };
    let height_of = |row: &Row| above + row.dots.len() as f64 * APART + 16.0;
    let mut top = 4.0;
    let mut drawn = Vec::new();
    for row in rows {
        drawn.push(band(row, (left, right), top, (above, height_of(row))));
        top += height_of(row);
    }
    html! {
        svg class={ "plot " (size.class()) } viewBox={ "0 0 " (width) " " (top + 4.0) } role="img"
            aria-label={ "Every arm's numbers: " (concern.question()) } {
            @for row in drawn { (row) }
        }
    }
}

/// One row: label, track, and a dot for each arm, one below the other.
fn band(row: &Row, (left, right): (f64, f64), top: f64, (above, height): (f64, f64)) -> Markup {
    let end = |estimate: &Estimate| estimate.interval.map_or(estimate.value, |b| b.high);
    let most = row
        .dots
        .iter()
        .map(|(_, estimate)| end(estimate))
        .fold(0.0, f64::max);
    let scale = Scale::linear(0.0, if most > 0.0 { most } else { 1.0 });
    let x = |value: f64| ((left + scale.share(value) * (right - left)) * 10.0).round() / 10.0;
    let (from, to) = (top + above + 4.0, top + height - 6.0);
    let middle = (from + to) / 2.0 + 4.0;
    let label = cut(
        &format!("{} {}", row.scenario, row.label),
        if above > 0.0 { 34 } else { 64 },
    );
    html! {
        rect class="track" x=(left) y=(from) width=(right - left) height=(to - from) rx="2" {}
        @if above > 0.0 {
            text class="name" x=(left) y=(from - 16.0) { (label) }
            text class="value" x=(right) y=(from - 16.0) text-anchor="end" { (words::quantity(most, &row.unit)) }
            @if row.better == Better::Higher { text class="quiet" x=(left) y=(from - 3.0) { "more is better" } }
        } @else if row.better == Better::Higher {
            text class="name" x=(left - 12.0) y=(middle - 7.0) text-anchor="end" { (label) }
            text class="quiet" x=(left - 12.0) y=(middle + 8.0) text-anchor="end" { "more is better" }
        } @else {
            text class="name" x=(left - 12.0) y=(middle) text-anchor="end" { (label) }
        }
        @if above == 0.0 { text class="value" x=(right + 8.0) y=(middle) { (words::quantity(most, &row.unit)) } }
        @for (i, (arm, estimate)) in row.dots.iter().enumerate() {
            @let y = from + 5.0 + APART * (i as f64 + 0.5);
            @let (class, shape) = style(arm);
            @if let Some(bounds) = estimate.interval {
                line class={ "whisker " (class) } x1=(x(bounds.low)) x2=(x(bounds.high)) y1=(y) y2=(y) {}
            }
            (shape.draw(&class, x(estimate.value), y, &format!(
                "{arm}: {} {}", row.label, words::quantity_estimate(estimate, &row.unit)
            )))
        }
    }
}

fn cut(text: &str, room: usize) -> String {
    match text.char_indices().nth(room) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_string(),
    }
}
