//! I7: how low the proxies' processor limit may be, and who feels it.
//!
//! A client asks for 30 % of a share of 250m, and a neighbour for a third of that, while the limit
//! of each pod's share goes from 500m down to 50m; the agent has the sum. A limit is spent within
//! a tenth of a second and then nobody is served until the next, so a tight one shows as latency
//! long before it shows as throughput. With sidecars it meets the pod that needs more than its
//! share; an agent's pods lend each other what they do not use, and wait together once it is gone.

use super::bed::Shape;
use super::drive::Drive;
use super::steady::PATH;
use super::victim::{self, LOSSES_NOTE, Quota};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::load::report::LoadReport;
use crate::results::{Compare, Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Of one pod's share, thousandths of a core; the first is what the others are held against.
const LIMITS: [u32; 3] = [500, 100, 50];
/// The neighbour's load, as a share of a pod's capacity.
const NEIGHBOUR: f64 = 0.10;
/// A pod is affected if its median is so many times that under the loosest limit.
const AFFECTED: f64 = 1.5;

#[derive(Default)]
pub struct Squeeze {
    quota: Quota,
}

impl Experiment for Squeeze {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I7]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let mut metrics = victim::metrics();
        metrics.extend([
            Metric::value(
                keys::THROTTLED,
                "periods a second in which a proxy was held back",
                "periods/s",
                Kind::Count,
            )
            .by(Compare::Difference),
            Metric::value(
                keys::PODS_AFFECTED,
                "of two clients, those whose median rose by half or more",
                "pods",
                Kind::Count,
            ),
        ]);
        metrics
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        Quota::prepare_estimate(plan, Id::I7)
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        victim::estimate(plan) * LIMITS.len() as u32
    }

    fn recall(&mut self, parameters: &BTreeMap<String, serde_json::Value>) {
        self.quota.recall(parameters);
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        self.quota.prepare(lab, arms).map(drop)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        let mut parameters = self.quota.parameters(plan);
        parameters.extend([
            ("limits_millicores_and_pod".to_owned(), json!(LIMITS)),
            (
                "neighbour_requests_per_s".to_owned(),
                json!((self.quota.rate * NEIGHBOUR).round()),
            ),
        ]);
        parameters
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "x is what is missing of 500m: at 0 the limit is 500m, at 450 it is 50m.".to_owned(),
            LOSSES_NOTE.to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Neighbours, visit.arm)?;
        let measured = self.all(lab, &bed, visit);
        // The next visit, and other scenarios, find the bed as it was.
        if let Some(usual) = Shape::Neighbours.limits().proxy_total_cpu_millis {
            bed.cluster.limit_processors(usual)?;
        }
        measured
    }
}

impl Squeeze {
    fn all(&self, lab: &Lab<'_>, bed: &Bed, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let mut trials = Vec::new();
        let mut loosest = None;
        for limit in LIMITS {
            let began = Instant::now();
            bed.cluster
                .limit_processors(limit * Shape::Neighbours.meshed_pods())?;
            let point = Point::at(format!("{limit}m"), f64::from(LIMITS[0] - limit));
            let beside = |bed: &Bed, begin: u64| {
                let url = bed.url("aggressor", "http1", PATH)?;
                let mut one = Drive::new("aggressor-client", &url, self.quota.rate * NEIGHBOUR);
                one.seed = lab.plan.schedule(Id::I7, visit.block, "neighbour");
                one.window = self.quota.window(lab.plan);
                one.start(bed, begin)
            };
            let (mut trial, neighbour) =
                victim::measure(lab, visit, Id::I7, &self.quota, point, beside)?;
            let neighbour = neighbour.report(lab.interrupt)?;
            let medians = [
                trial
                    .histograms
                    .response
                    .as_ref()
                    .and_then(|h| h.decode().ok()),
                neighbour.histograms.response.decode().ok(),
            ]
            .map(|histogram| histogram.map_or(0, |histogram| histogram.value_at_quantile(0.5)));
            let loosest = *loosest.get_or_insert(medians);
            let affected = medians
                .iter()
                .zip(loosest)
                .filter(|(now, then)| **now as f64 >= AFFECTED * *then as f64)
                .count();
            let periods = trial.values.get("proxy_throttled_periods").copied();
            for (key, value) in [
                (keys::PODS_AFFECTED, affected as f64),
                (
                    keys::THROTTLED,
                    periods.unwrap_or(0.0) / window_s(&trial, &neighbour),
                ),
                ("neighbour_p50_us", medians[1] as f64 / 1000.0),
            ] {
                trial.values.insert(key.to_owned(), value);
            }
            trial.duration_s = began.elapsed().as_secs_f64();
            trials.push((Id::I7, trial));
        }
        Ok(trials)
    }
}

/// The window's length, which both had.
fn window_s(trial: &Trial, neighbour: &LoadReport) -> f64 {
    let counted = trial.load.as_ref().map(|load| load.wall_s);
    counted
        .filter(|wall| *wall > 0.0)
        .unwrap_or(neighbour.window_s)
}
