//! Plain bars for plain numbers: keys per process, CPU per request.

use maud::{Markup, html};

use super::super::svg::Size;
use super::{Figure, both, drawn, style};
use crate::analysis::words;
use crate::results::{Point, Results, Scenario, keys};
use crate::stats::median;

struct Bar {
    arm: String,
    value: f64,
    text: String,
}

pub fn figures(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    figures.extend(exposed_keys(results));
    figures.extend(per_request(
        results,
        keys::NODE_CPU_PER_REQUEST,
        "R2 CPU per request, everything",
        "Median over blocks of busy − idle CPU per request: application, kernel and proxies together.",
    ));
    figures.extend(per_request(
        results,
        keys::PROXY_CPU_PER_REQUEST,
        "R2 CPU of the proxies per request",
        "Median over blocks of the proxies' own CPU per request.",
    ));
    figures
}

fn exposed_keys(results: &Results) -> Option<Figure> {
    let scenario = results.scenario("X1")?;
    let points = scenario.points();
    let point = points.iter().max_by(|a, b| a.x.total_cmp(&b.x))?;
    let bars: Vec<Bar> = drawn(results)
        .filter_map(|arm| {
            let value = middle(scenario, keys::KEYS_MAX, point, &arm.name)?;
            let of = middle(scenario, keys::IDENTITIES, point, &arm.name)
                .map(|n| format!(" of {}", words::number(n)))
                .unwrap_or_default();
            Some(Bar {
                arm: arm.name.clone(),
                value,
                text: format!("{}{of}", words::number(value)),
            })
        })
        .collect();
    let most = drawn(results)
        .filter_map(|arm| middle(scenario, keys::IDENTITIES, point, &arm.name))
        .fold(0.0, f64::max);
    let place = match point.title() {
        title if title.is_empty() => String::new(),
        title => format!(" ({title})"),
    };
    figure(
        format!("X1 Private keys in the most exposed proxy process{place}"),
        "Distinct workload keys found by scanning one process's memory: what an attacker gets who takes over one proxy.",
        bars,
        most,
    )
}

fn per_request(results: &Results, key: &str, title: &str, caption: &str) -> Option<Figure> {
    let scenario = results.scenario("R2")?;
    let unit = &scenario.metric(key)?.unit;
    let point = &scenario.headline()?;
    let bars: Vec<Bar> = drawn(results)
        .filter_map(|arm| {
            let value = middle(scenario, key, point, &arm.name)?;
            Some(Bar {
                arm: arm.name.clone(),
                value,
                text: words::quantity(value, unit),
            })
        })
        .filter(|bar| bar.value > 0.0)
        .collect();
    figure(title.into(), caption, bars, 0.0)
}

fn middle(scenario: &Scenario, key: &str, point: &Point, arm: &str) -> Option<f64> {
    let values: Vec<f64> = scenario
        .trials()
        .filter(|trial| trial.arm == arm && trial.point == *point && !trial.is_void())
        .filter_map(|trial| trial.values.get(key).copied())
        .collect();
    median(&values)
}

/// `most` is the length of the scale where it is more than the longest bar.
fn figure(title: String, caption: &str, bars: Vec<Bar>, most: f64) -> Option<Figure> {
    let longest = bars.iter().map(|bar| bar.value).fold(most, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let (wide, narrow) = both(|size| draw(size, &bars, longest, &title));
    Some(Figure {
        title,
        caption: caption.into(),
        wide,
        narrow,
        arms: Vec::new(),
    })
}

fn draw(size: Size, bars: &[Bar], longest: f64, title: &str) -> Markup {
    const STEP: f64 = 34.0;
    const NAMES: f64 = 76.0;
    let (width, height) = (size.width(), bars.len() as f64 * STEP + 8.0);
    let room = width - NAMES - 90.0;
    html! {
        svg class={ "plot " (size.class()) } viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(title) {
            @for (i, bar) in bars.iter().enumerate() {
                @let y = i as f64 * STEP + 4.0;
                @let length = (bar.value / longest * room * 10.0).round() / 10.0;
                text class="name" x=(NAMES - 8.0) y=(y + 19.0) text-anchor="end" { (bar.arm) }
                rect class="track" x=(NAMES) y=(y + 3.0) width=(room) height="22" rx="2" {}
                rect class={ "bar " (style(&bar.arm).0) } x=(NAMES) y=(y + 3.0) width=(length) height="22" rx="2"
                    data-tip={ (bar.arm) ": " (bar.text) } { title { (bar.arm) ": " (bar.text) } }
                text class="value" x=(NAMES + room + 8.0) y=(y + 19.0) { (bar.text) }
            }
        }
    }
}
