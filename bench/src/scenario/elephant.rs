//! I5: how much one service's bulk transfer slows its neighbours' small requests down.
//!
//! The elephant downloads without end over eight connections; the mice are the victim's requests.
//! Bytes are no requests: a limit on these does not hold the elephant back, and an event loop that
//! serves one stream's bytes to the end serves nobody else meanwhile.

use super::bed::Shape;
use super::press::Press;
use super::victim::{self, LOSSES_NOTE, Quota};
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Metric, Point, Stage, Trial};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const STREAMS: u32 = 8;
const HTTP: u16 = 80;

#[derive(Default)]
pub struct Elephant {
    quota: Quota,
}

impl Experiment for Elephant {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I5]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let mut metrics = victim::metrics();
        metrics.insert(2, Metric::quantile(Stage::Response, 0.99));
        metrics
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        Quota::prepare_estimate(plan, Id::I5)
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        victim::estimate(plan) * 2
    }

    fn recall(&mut self, parameters: &BTreeMap<String, serde_json::Value>) {
        self.quota.recall(parameters);
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        self.quota.prepare(lab, arms).map(drop)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        let mut parameters = self.quota.parameters(plan);
        parameters.insert("streams".to_owned(), json!(STREAMS));
        parameters
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "p99 is shown where ten thousand requests are behind it, which takes longer windows than a run of an \
             hour has; p90 stands for the tail."
                .to_owned(),
            LOSSES_NOTE.to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let mut trials = Vec::new();
        for streams in [0, STREAMS] {
            let began = Instant::now();
            let label = match streams {
                0 => "alone".to_owned(),
                some => format!("{some} streams"),
            };
            let point = Point::at(label, f64::from(streams));
            let measured =
                victim::measure(lab, visit, Id::I5, &self.quota, point, |bed, begin| {
                    if streams == 0 {
                        return Ok(None);
                    }
                    let press = Press {
                        kind: "bulk",
                        pod: "aggressor-client",
                        to: SocketAddr::new(bed.cluster.address("aggressor")?, HTTP),
                        connections: streams,
                        rate: None,
                        window: self.quota.window(lab.plan),
                    };
                    press.start(bed, begin).map(Some)
                })?;
            let (mut trial, elephant) = measured;
            if let Some(elephant) = elephant {
                let report = elephant.report(lab)?;
                let rate = 8.0 * report.bytes as f64 / 1e9 / report.counted_s;
                trial.values.insert("elephant_gbit_per_s".to_owned(), rate);
            }
            trial.duration_s = began.elapsed().as_secs_f64();
            trials.push((Id::I5, trial));
        }
        Ok(trials)
    }
}
