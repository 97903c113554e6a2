//! Percentile spectrum: how long the slowest 1 in 10, 100, 1000 took.

use hdrhistogram::Histogram;

use super::super::svg::{Axis, Plot, Scale, Size};
use super::{Figure, both, drawn, range, style};
use crate::analysis::words;
use crate::results::{HEADLINE_LOAD, Point, Results, Scenario, Stage};
use crate::stats::quantile_is_printable;

/// Per arm, (1 ÷ (1 − q), µs).
pub type Curve = (String, Vec<(f64, f64)>);

/// One figure per series of L1, at the load nearest to half of capacity, and one for L2.
pub fn figures(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (id, stage) in [("L1", Stage::Response), ("L2", Stage::FirstByte)] {
        let Some(scenario) = results.scenario(id) else {
            continue;
        };
        for point in headline_points(scenario) {
            figures.extend(figure(results, scenario, &point, stage));
        }
    }
    figures
}

/// Of each series the point nearest to the headline's load.
fn headline_points(scenario: &Scenario) -> Vec<Point> {
    let off = |point: &Point| (point.x - HEADLINE_LOAD).abs();
    let mut chosen: Vec<Point> = Vec::new();
    for point in scenario.points() {
        match chosen.iter_mut().find(|known| known.series == point.series) {
            Some(known) if off(&point) < off(known) => *known = point,
            Some(_) => {}
            None => chosen.push(point),
        }
    }
    chosen
}

fn figure(results: &Results, scenario: &Scenario, point: &Point, stage: Stage) -> Option<Figure> {
    let curves: Vec<Curve> = drawn(results)
        .filter_map(|arm| Some((arm.name.clone(), curve(scenario, &arm.name, point, stage)?)))
        .collect();
    let (low, high) = range(curves.iter().flat_map(|c| &c.1).map(|(_, us)| *us))?;
    let (_, deepest) = range(curves.iter().flat_map(|c| &c.1).map(|(depth, _)| *depth))?;
    let (wide, narrow) = both(|size| draw(size, &curves, (low, high), deepest));
    let place = match point.title() {
        title if title.is_empty() => String::new(),
        title => format!(": {title}"),
    };
    Some(Figure {
        title: format!("{} {}{place}", scenario.id, stage.label()),
        caption: "Percentile spectrum. Further right is rarer: 1 in 10, 1 in 100, 1 in 1000 requests took at least \
                  this long. Blocks are merged for display only; each line ends where fewer than 100 samples remain."
            .into(),
        wide,
        narrow,
        arms: curves.into_iter().map(|(arm, _)| arm).collect(),
    })
}

/// Merged over the valid trials.
pub fn curve(
    scenario: &Scenario,
    arm: &str,
    point: &Point,
    stage: Stage,
) -> Option<Vec<(f64, f64)>> {
    let mut merged: Option<Histogram<u64>> = None;
    let trials = scenario
        .trials()
        .filter(|trial| trial.arm == arm && trial.point == *point && !trial.is_void());
    for trial in trials {
        let Some(histogram) = trial.histograms.get(stage).and_then(|h| h.decode().ok()) else {
            continue;
        };
        match &mut merged {
            Some(sum) => sum.add(&histogram).ok()?,
            None => merged = Some(histogram),
        }
    }
    let merged = merged?;
    let curve: Vec<(f64, f64)> = (0..=160)
        .map(|step| 10_f64.powf(f64::from(step) / 40.0))
        .filter(|depth| quantile_is_printable(merged.len(), 1.0 - 1.0 / depth))
        .map(|depth| {
            let ns = merged.value_at_quantile(1.0 - 1.0 / depth);
            (depth, ns as f64 / 1000.0)
        })
        .collect();
    (curve.len() > 1).then_some(curve)
}

pub fn draw(size: Size, curves: &[Curve], (low, high): (f64, f64), deepest: f64) -> maud::Markup {
    let percentiles = [1.0, 2.0, 10.0, 100.0, 1000.0, 10_000.0];
    let ticks = percentiles.into_iter().filter(|d| *d <= deepest * 1.01);
    let x =
        Axis::new(Scale::log(1.0, deepest), "percentile", percentile).with_ticks(ticks.collect());
    let y = Axis::new(Scale::log(low, high), "time (log)", |us| {
        words::quantity(us, "µs")
    });
    let mut plot = Plot::new(size, x, y);
    for (arm, points) in curves {
        let (class, shape) = style(arm);
        plot.line(&class, points);
        for depth in percentiles.into_iter().filter(|d| *d >= 2.0) {
            let nearest = points.iter().find(|(d, _)| *d >= depth * 0.999);
            if let Some((d, us)) = nearest {
                let tip = format!(
                    "{arm} {}: {}",
                    percentile(depth),
                    words::quantity(*us, "µs")
                );
                plot.mark(&class, shape, *d, *us, &tip);
            }
        }
    }
    plot.finish("Percentile spectrum of response times, one line per arm")
}

fn percentile(depth: f64) -> String {
    let percent = 100.0 * (1.0 - 1.0 / depth);
    match depth {
        d if d < 1.5 => "min".into(),
        _ => format!("p{}", (percent * 1000.0).round() / 1000.0),
    }
}
