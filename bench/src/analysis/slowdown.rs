//! A victim beside an aggressor: S_q(w) = L_q(w) ÷ L_q(0), within a block.

use std::collections::BTreeMap;

use super::Study;
use super::table::Table;
use crate::results::{Estimate, Kind, Point, Slowdown, SlowdownPoint, Source, keys};
use crate::stats::{median, median_interval};

/// S_q at a point per block; empty where the victim alone (x = 0) was not measured.
pub fn slowdowns_by_block(
    table: &Table,
    metric: &str,
    point: &Point,
    arm: &str,
) -> BTreeMap<u32, f64> {
    let alone = table
        .points()
        .iter()
        .find(|other| other.series == point.series && other.x == 0.0);
    let Some(alone) = alone else {
        return BTreeMap::new();
    };
    let reference: BTreeMap<u32, f64> = table.values(metric, alone, arm).into_iter().collect();
    table
        .values(metric, point, arm)
        .into_iter()
        .filter_map(|(block, value)| {
            let alone = *reference.get(&block)?;
            (alone > 0.0).then(|| (block, value / alone))
        })
        .collect()
}

impl Study<'_> {
    /// The points with an aggressor, in a scenario that has the victim alone as well.
    pub(super) fn swept_points(&self) -> Vec<Point> {
        if !self.scenario.id.starts_with('I') {
            return Vec::new();
        }
        let points = self.table.points();
        let swept = |point: &&Point| {
            point.x > 0.0
                && points
                    .iter()
                    .any(|other| other.series == point.series && other.x == 0.0)
        };
        points.iter().filter(swept).cloned().collect()
    }
}

pub fn of(study: &Study) -> Vec<Slowdown> {
    let swept = study.swept_points();
    let mut series: Vec<&str> = swept.iter().map(|point| point.series.as_str()).collect();
    series.dedup();
    let quantiles = study.scenario.metrics.iter().filter(|metric| {
        metric.kind == Kind::Latency && matches!(metric.source, Source::Quantile { .. })
    });
    let mut found = Vec::new();
    for metric in quantiles {
        for series in &series {
            let points: Vec<&Point> = study
                .table
                .points()
                .iter()
                .filter(|point| point.series == *series)
                .collect();
            for arm in study.arms() {
                let curve = Slowdown {
                    scenario: study.scenario.id.clone(),
                    arm: arm.name.clone(),
                    series: series.to_string(),
                    metric: metric.key.clone(),
                    points: points
                        .iter()
                        .map(|point| point_of(study, &metric.key, point, &arm.name))
                        .collect(),
                    integral: integral(study, &metric.key, &points, &arm.name),
                };
                if curve.points.iter().any(|point| point.slowdown.is_some()) {
                    found.push(curve);
                }
            }
        }
    }
    found
}

fn point_of(study: &Study, metric: &str, point: &Point, arm: &str) -> SlowdownPoint {
    let slowdowns: Vec<f64> = slowdowns_by_block(&study.table, metric, point, arm)
        .into_values()
        .collect();
    let goodput: Vec<f64> = study
        .table
        .values(keys::GOODPUT, point, arm)
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    let label = format!("{metric}/{}/{arm}", point.title());
    SlowdownPoint {
        w: point.x,
        blocks: slowdowns.len() as u32,
        slowdown: estimate(&slowdowns, study.seed(&format!("slowdown/{label}"))),
        goodput: estimate(&goodput, study.seed(&format!("goodput/{label}"))),
    }
}

/// Median over blocks of ∫(S − 1)dw ÷ span, by trapezoids, for blocks that have every point.
fn integral(study: &Study, metric: &str, points: &[&Point], arm: &str) -> Option<Estimate> {
    let curves: Vec<(f64, BTreeMap<u32, f64>)> = points
        .iter()
        .map(|point| {
            (
                point.x,
                slowdowns_by_block(&study.table, metric, point, arm),
            )
        })
        .collect();
    let (first, last) = (curves.first()?, curves.last()?);
    let span = last.0 - first.0;
    let areas: Vec<f64> = first
        .1
        .keys()
        .filter_map(|block| {
            let steps = curves.windows(2).map(|pair| {
                let (left, right) = (pair[0].1.get(block)?, pair[1].1.get(block)?);
                Some((pair[1].0 - pair[0].0) * ((left + right) / 2.0 - 1.0))
            });
            Some(steps.sum::<Option<f64>>()? / span)
        })
        .collect();
    estimate(&areas, study.seed(&format!("integral/{metric}/{arm}")))
}

/// Median and, where there are blocks enough, its interval.
pub fn estimate(values: &[f64], seed: u64) -> Option<Estimate> {
    Some(Estimate {
        value: median(values)?,
        interval: median_interval(values, seed),
    })
}
