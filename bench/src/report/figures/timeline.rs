//! Goodput around a fault, in the bins in which requests were meant to be sent.

use std::collections::BTreeMap;

use super::super::svg::{Axis, Plot, Scale, Side, Size};
use super::{Figure, both, drawn, style};
use crate::analysis::words;
use crate::results::{Results, Scenario};
use crate::stats::median;

/// Bins by start in ms; of each, the share answered in every injection.
type Bins = BTreeMap<i64, Vec<f64>>;

/// Shown at least this long after the kill.
const SHORTEST_AFTER_MS: i64 = 1000;

/// A scenario, and what was done to a proxy there.
const FAULTS: [(&str, &str); 2] = [("F1", "kill"), ("F2", "hang")];

pub fn figures(results: &Results) -> Vec<Figure> {
    FAULTS
        .iter()
        .filter_map(|(id, fault)| figure(results, id, fault))
        .collect()
}

fn figure(results: &Results, id: &str, fault: &str) -> Option<Figure> {
    let scenario = results.scenario(id)?;
    let arms: Vec<(String, Bins, f64)> = drawn(results)
        .filter_map(|arm| {
            let (bins, width) = bins(scenario, &arm.name)?;
            Some((arm.name.clone(), bins, width))
        })
        .collect();
    let (_, first, _) = arms.first()?;
    let start = *first.keys().next()?;
    let measured = first.keys().next_back().copied().unwrap_or(0);
    let end = last_trouble(&arms).min(measured).max(SHORTEST_AFTER_MS);
    let (wide, narrow) = both(|size| draw(size, &arms, (start, end), fault));
    Some(Figure {
        title: format!("{id} Goodput of the node's pods around a {fault}"),
        caption: format!(
            "Answered share of what all meshed pods of the node asked for, per bin of intended time. The line is \
             the median over {fault}s, the band reaches from the worst {fault} to the best."
        ),
        wide,
        narrow,
        arms: arms.into_iter().map(|(name, _, _)| name).collect(),
    })
}

fn bins(scenario: &Scenario, arm: &str) -> Option<(Bins, f64)> {
    let mut bins = Bins::new();
    let mut width = None;
    let trials = scenario
        .trials()
        .filter(|trial| trial.arm == arm && !trial.is_void());
    for trial in trials {
        let mut sums: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
        for timeline in &trial.timelines {
            width = Some(timeline.bin_ms);
            for (i, (offered, ok)) in timeline.offered.iter().zip(&timeline.ok).enumerate() {
                // Counted from the bin in which the kill fell.
                let first = (timeline.first_bin_ms / timeline.bin_ms).ceil() as i64;
                let bin = (first + i as i64) * timeline.bin_ms as i64;
                let sum = sums.entry(bin).or_default();
                *sum = (sum.0 + u64::from(*offered), sum.1 + u64::from(*ok));
            }
        }
        for (bin, (offered, ok)) in sums {
            if offered > 0 {
                let share = ok as f64 / offered as f64;
                bins.entry(bin).or_default().push(share);
            }
        }
    }
    Some((bins, width?))
}

/// End of the last bin after the kill in which any injection lost something, and half as long
/// again.
fn last_trouble(arms: &[(String, Bins, f64)]) -> i64 {
    let last = arms
        .iter()
        .flat_map(|(_, bins, _)| bins)
        .filter(|(start, shares)| **start >= 0 && shares.iter().any(|share| *share < 0.99))
        .map(|(start, _)| *start)
        .max();
    last.map_or(0, |start| start + start / 2 + 300)
}

fn draw(
    size: Size,
    arms: &[(String, Bins, f64)],
    (start, end): (i64, i64),
    fault: &str,
) -> maud::Markup {
    let seconds = |ms: f64| format!("{} s", ms / 1000.0).replace('-', "−");
    let step = match end - start {
        ..=4000 => 500,
        4001..=10_000 => 1000,
        _ => 2000,
    };
    let ticks = (start / step..=end / step).map(|i| (i * step) as f64);
    let x = Axis::new(
        Scale::linear(start as f64, end as f64),
        format!("time since the {fault}"),
        seconds,
    )
    .with_ticks(ticks.collect());
    let y = Axis::new(Scale::linear(0.0, 1.0), "goodput", words::percent);
    let mut plot = Plot::new(size, x, y);
    plot.rule(0.0, fault, Side::Left);
    for (arm, bins, width) in arms {
        let (class, _) = style(arm);
        let shown: Vec<(f64, &Vec<f64>)> = bins
            .iter()
            .filter(|(bin, _)| **bin < end)
            .map(|(bin, shares)| (*bin as f64, shares))
            .collect();
        let several = shown.iter().any(|(_, shares)| shares.len() > 1);
        if several {
            let band: Vec<(f64, f64, f64)> = shown
                .iter()
                .flat_map(|(bin, shares)| {
                    let low = shares.iter().copied().fold(1.0, f64::min);
                    let high = shares.iter().copied().fold(0.0, f64::max);
                    [(*bin, low, high), (bin + width, low, high)]
                })
                .collect();
            plot.band(&class, &band);
        }
        let line: Vec<(f64, f64)> = shown
            .iter()
            .filter_map(|(bin, shares)| Some((*bin, median(shares)?)))
            .collect();
        plot.steps(&class, &line, *width);
    }
    plot.finish(&format!(
        "Goodput of all pods of the node in bins around the {fault} of a proxy"
    ))
}
