//! Density: what sidecars hold more than the agent, by number of pods. Where it crosses zero the
//! agent becomes the cheaper one.

use super::super::svg::{Axis, Plot, Scale, Side, Size};
use super::{Figure, both, range, style};
use crate::analysis::{Table, block_lines, words};
use crate::results::{Estimate, Placement, Results, keys};
use crate::stats::{Line, covering_interval, median};

/// Curves are drawn through so many points.
const STEPS: u32 = 24;

/// A metric of R1, what the figure is called, and its unit.
const METRICS: [(&str, &str, &str); 2] = [
    (keys::PROXY_MEMORY, "Memory", "MiB"),
    (keys::IDLE_CPU, "Idle CPU", "millicores"),
];

struct Curve {
    agent: String,
    points: Vec<(f64, Estimate)>,
}

pub fn figures(results: &Results) -> Vec<Figure> {
    METRICS
        .iter()
        .filter_map(|metric| figure(results, metric))
        .collect()
}

fn figure(results: &Results, (metric, what, unit): &(&str, &str, &'static str)) -> Option<Figure> {
    let scenario = results.scenario("R1")?;
    let table = Table::of(scenario);
    let arms = |placement| {
        let originals = results.arms.iter().filter(|arm| arm.copy_of.is_none());
        originals.filter(move |arm| arm.placement == placement)
    };
    let sidecar = arms(Placement::Sidecar).next()?;
    let (_, most_pods) = range(table.points().iter().map(|point| point.x))?;
    let theirs = block_lines(&table, metric, &sidecar.name);
    let curves: Vec<Curve> = arms(Placement::Agent)
        .filter_map(|agent| {
            let gaps: Vec<Line> = block_lines(&table, metric, &agent.name)
                .iter()
                .filter_map(|(block, mine)| {
                    let theirs = theirs.get(block)?;
                    Some(Line {
                        base: theirs.base - mine.base,
                        slope: theirs.slope - mine.slope,
                    })
                })
                .collect();
            let points: Vec<(f64, Estimate)> = (0..=STEPS)
                .map(|step| f64::from(step) * most_pods / f64::from(STEPS))
                .filter_map(|pods| Some((pods, at(&gaps, pods)?)))
                .collect();
            (!points.is_empty()).then(|| Curve {
                agent: agent.name.clone(),
                points,
            })
        })
        .collect();
    curves.first()?;
    let (wide, narrow) = both(|size| draw(size, &curves, most_pods, unit));
    Some(Figure {
        title: format!(
            "R1 Density: {} that sidecars take more than the agent",
            what.to_lowercase()
        ),
        caption: format!(
            "{what} of a node's idle sidecars less that of its agent. Above zero the agent is the cheaper one. Paired by \
             block, each block with a line of its own; bands are 95 % intervals."
        ),
        wide,
        narrow,
        arms: curves.into_iter().map(|curve| curve.agent).collect(),
    })
}

fn at(gaps: &[Line], pods: f64) -> Option<Estimate> {
    let values: Vec<f64> = gaps.iter().map(|gap| gap.base + gap.slope * pods).collect();
    Some(Estimate {
        value: median(&values)?,
        interval: covering_interval(&values),
    })
}

fn draw(size: Size, curves: &[Curve], most_pods: f64, unit: &'static str) -> maud::Markup {
    let ends = curves
        .iter()
        .flat_map(|curve| &curve.points)
        .flat_map(|(_, estimate)| {
            let bounds = estimate.interval;
            [
                bounds.map_or(estimate.value, |b| b.low),
                bounds.map_or(estimate.value, |b| b.high),
            ]
        });
    let (low, high) = range(ends.chain([0.0])).unwrap_or((0.0, 1.0));
    let x = Axis::new(
        Scale::linear(0.0, most_pods),
        "pods on the node",
        words::number,
    );
    let y = Axis::new(Scale::linear(low, high * 1.05), unit, words::number);
    let mut plot = Plot::new(size, x, y);
    plot.line("zero", &[(0.0, 0.0), (most_pods, 0.0)]);
    for curve in curves {
        let (class, _) = style(&curve.agent);
        let band: Vec<(f64, f64, f64)> = curve
            .points
            .iter()
            .filter_map(|(pods, e)| e.interval.map(|b| (*pods, b.low, b.high)))
            .collect();
        if band.len() > 1 {
            plot.band(&class, &band);
        }
        let line: Vec<(f64, f64)> = curve
            .points
            .iter()
            .map(|(pods, e)| (*pods, e.value))
            .collect();
        plot.line(&class, &line);
        // Where the sign changes for the last time.
        let crossing = line.windows(2).rev().find_map(|pair| {
            let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
            (y0 < 0.0 && y1 >= 0.0).then(|| x0 + (x1 - x0) * -y0 / (y1 - y0))
        });
        if let Some(pods) = crossing {
            let side = if pods < most_pods * 0.6 {
                Side::Right
            } else {
                Side::Left
            };
            plot.rule(pods, &format!("N* = {}", pods.ceil()), side);
        }
    }
    plot.finish("What sidecars take more than the agent, against the number of pods")
}
