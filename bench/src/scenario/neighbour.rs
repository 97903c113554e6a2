//! I1: how much one service's flood slows its neighbours down.
//!
//! On the victim's node another client floods another server with multiples of a pod's share of
//! proxy. With sidecars each pod has its own share of processor; with an agent all share the sum.
//! Clients, servers and kernel burn the machine's processors in every arm, so the arm without a
//! mesh is the control: what a placement causes is the slowdown beyond that one's.

use super::bed::Shape;
use super::drive::Drive;
use super::steady::PATH;
use super::victim::{self, LOSSES_NOTE, Quota};
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Metric, Point, Trial};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the aggressor waits for an answer: it is not patient, and what it
/// has given up must not reach into the next trial.
const IMPATIENCE: Duration = Duration::from_millis(400);

#[derive(Default)]
pub struct Neighbour {
    quota: Quota,
}

impl Experiment for Neighbour {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I1]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        victim::metrics()
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        Quota::prepare_estimate(plan, Id::I1)
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let floods = plan.pace.aggression.iter().filter(|w| **w > 0).count() as u32;
        victim::estimate(plan) * plan.pace.aggression.len() as u32 + IMPATIENCE * floods
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
            ("w".to_owned(), json!(plan.pace.aggression)),
            (
                "placement".to_owned(),
                json!("victim and aggressor, clients and servers, on one node"),
            ),
        ]);
        parameters
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "The quota is the capacity of one client and one server behind the proxies' limits of \
             one pod each; w = 1 asks for exactly that."
                .to_owned(),
            LOSSES_NOTE.to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let mut trials = Vec::new();
        for w in lab.plan.pace.aggression {
            let began = Instant::now();
            let point = Point::at(format!("w={w}"), f64::from(*w));
            let measured =
                victim::measure(lab, visit, Id::I1, &self.quota, point, |bed, begin| {
                    if *w == 0 {
                        return Ok(None);
                    }
                    let url = bed.url("aggressor", "http1", PATH)?;
                    let rate = self.quota.rate * f64::from(*w);
                    let mut aggressor = Drive::new("aggressor-client", &url, rate);
                    let purpose = format!("aggressor {w}");
                    aggressor.seed = lab.plan.schedule(Id::I1, visit.block, &purpose);
                    // Enough that a slow answer does not slow the flood down.
                    aggressor.connections = 64;
                    aggressor.timeout = IMPATIENCE;
                    aggressor.window = self.quota.window(lab.plan);
                    aggressor.start(bed, begin).map(Some)
                })?;
            let (mut trial, flood) = measured;
            if let Some(flood) = flood {
                let flood = flood.report(lab.interrupt)?;
                for (key, value) in [
                    ("aggressor_offered", flood.offered as f64),
                    ("aggressor_completed", flood.completed as f64),
                    ("aggressor_core_share", flood.generator.core_share()),
                ] {
                    trial.values.insert(key.to_owned(), value);
                }
            }
            trial.duration_s = began.elapsed().as_secs_f64();
            trials.push((Id::I1, trial));
        }
        Ok(trials)
    }
}
