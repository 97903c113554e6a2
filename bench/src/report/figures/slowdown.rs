//! A victim's slowdown as its neighbour floods, with bands.

use super::super::svg::{Axis, Plot, Scale};
use super::{Figure, both, range, style};
use crate::analysis::words;
use crate::results::{Estimate, Results, Slowdown, SlowdownPoint};

/// Per scenario and series: the median's slowdown, p90's, and the victim's goodput.
pub fn figures(results: &Results) -> Vec<Figure> {
    let mut keys: Vec<(String, String, String)> = Vec::new();
    for curve in drawn_curves(results) {
        let key = (
            curve.scenario.clone(),
            curve.series.clone(),
            curve.metric.clone(),
        );
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut figures = Vec::new();
    for (scenario, series, metric) in &keys {
        let curves: Vec<&Slowdown> = drawn_curves(results)
            .filter(|c| (&c.scenario, &c.series, &c.metric) == (scenario, series, metric))
            .collect();
        let place = if series.is_empty() {
            String::new()
        } else {
            format!(" ({series})")
        };
        let label = metric.replace("p50", "median");
        figures.extend(figure(
            &curves,
            format!("{scenario} Slowdown of a victim's {label}{place}"),
            "How many times longer the victim waits than when alone, against the neighbour's load in multiples of its \
             quota. 1 is perfect isolation. Bands are 95 % intervals over blocks; without a band there were too few.",
            |point| point.slowdown,
            times,
            true,
        ));
        if metric == "p50" {
            figures.extend(figure(
                &curves,
                format!("{scenario} Victim's goodput{place}"),
                "Share of the victim's requests that were answered well within a second.",
                |point| point.goodput,
                words::percent,
                false,
            ));
        }
    }
    figures
}

/// 1×, 1.5×, 5.23×
fn times(value: f64) -> String {
    format!("{}×", (value * 100.0).round() / 100.0)
}

fn drawn_curves(results: &Results) -> impl Iterator<Item = &Slowdown> {
    results.analysis.slowdowns.iter().filter(|curve| {
        results
            .arm(&curve.arm)
            .is_some_and(|arm| arm.copy_of.is_none())
    })
}

fn figure(
    curves: &[&Slowdown],
    title: String,
    caption: &str,
    pick: fn(&SlowdownPoint) -> Option<Estimate>,
    show: fn(f64) -> String,
    log: bool,
) -> Option<Figure> {
    let estimates = || {
        curves
            .iter()
            .flat_map(|curve| &curve.points)
            .filter_map(pick)
    };
    let ends = estimates().flat_map(|e| match e.interval {
        Some(bounds) => vec![bounds.low, bounds.high],
        None => vec![e.value],
    });
    let (low, high) = range(ends)?;
    let (_, widest) = range(curves.iter().flat_map(|c| &c.points).map(|p| p.w))?;
    let (wide, narrow) = both(|size| {
        let y = if log {
            Scale::log(low.min(0.95), high.max(1.5))
        } else {
            Scale::linear((low * 10.0).floor().min(9.0) / 10.0, 1.0)
        };
        let steps: Vec<f64> = curves[0].points.iter().map(|point| point.w).collect();
        let x = Axis::new(
            Scale::linear(0.0, widest),
            "neighbour's load ÷ its quota",
            |w| format!("{w}×"),
        )
        .with_ticks(steps);
        let mut plot = Plot::new(size, x, Axis::new(y, "", show));
        for curve in curves {
            draw(&mut plot, curve, pick, show);
        }
        plot.finish(&title)
    });
    Some(Figure {
        title,
        caption: caption.into(),
        wide,
        narrow,
        arms: curves.iter().map(|curve| curve.arm.clone()).collect(),
    })
}

fn draw(
    plot: &mut Plot,
    curve: &Slowdown,
    pick: fn(&SlowdownPoint) -> Option<Estimate>,
    show: fn(f64) -> String,
) {
    let (class, shape) = style(&curve.arm);
    let points: Vec<(f64, Estimate)> = curve
        .points
        .iter()
        .filter_map(|point| Some((point.w, pick(point)?)))
        .collect();
    let band: Vec<(f64, f64, f64)> = points
        .iter()
        .filter_map(|(w, estimate)| estimate.interval.map(|b| (*w, b.low, b.high)))
        .collect();
    if band.len() > 1 {
        plot.band(&class, &band);
    }
    let line: Vec<(f64, f64)> = points.iter().map(|(w, e)| (*w, e.value)).collect();
    plot.line(&class, &line);
    for (w, estimate) in points {
        let tip = format!(
            "{} at {w}×: {}{}",
            curve.arm,
            show(estimate.value),
            words::brackets(estimate.interval, show)
        );
        plot.mark(&class, shape, w, estimate.value, &tip);
    }
}
