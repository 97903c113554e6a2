//! A headline from run to run.

use super::super::svg::{Axis, Plot, Scale};
use super::{Figure, both, range, style};
use crate::analysis::words;
use crate::results::Estimate;

/// One arm's headlines: (number of the run, value, the run's name).
pub struct Series {
    pub arm: String,
    pub points: Vec<(f64, Estimate, String)>,
}

pub fn figure(title: &str, unit: &str, series: &[Series]) -> Figure {
    let points = || series.iter().flat_map(|one| &one.points);
    let high = |estimate: &Estimate| estimate.interval.map_or(estimate.value, |b| b.high);
    let (first, last) = range(points().map(|point| point.0)).unwrap_or((0.0, 1.0));
    let most = points().map(|point| high(&point.1)).fold(0.0, f64::max);
    let (wide, narrow) = both(|size| {
        let runs = Axis::new(Scale::linear(first - 0.5, last + 0.5), "run", words::number);
        let y = Axis::new(Scale::linear(0.0, most * 1.08), unit, words::number);
        let mut plot = Plot::new(size, runs, y);
        for one in series {
            let (class, shape) = style(&one.arm);
            let bounds = |(x, estimate, _): &(f64, Estimate, String)| {
                let bounds = estimate.interval?;
                Some((*x, bounds.low, bounds.high))
            };
            let band: Vec<(f64, f64, f64)> = one.points.iter().filter_map(bounds).collect();
            if band.len() > 1 && band.len() == one.points.len() {
                plot.band(&class, &band);
            }
            let line: Vec<(f64, f64)> = one.points.iter().map(|p| (p.0, p.1.value)).collect();
            plot.line(&class, &line);
            for (x, estimate, run) in &one.points {
                let value = words::quantity_estimate(estimate, unit);
                let tip = format!("{}, {run}: {value}", one.arm);
                plot.mark(&class, shape, *x, estimate.value, &tip);
            }
        }
        plot.finish(&format!("{title}, from run to run"))
    });
    Figure {
        title: title.into(),
        caption: String::new(),
        wide,
        narrow,
        arms: series.iter().map(|one| one.arm.clone()).collect(),
    }
}
