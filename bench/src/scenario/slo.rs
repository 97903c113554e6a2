//! L3: how many requests per second an arm carries within the objective.
//!
//! The search that L1 uses to choose its rates, made anew in every block and kept: so arms are compared within
//! blocks, and the arm against itself shows how coarse the search is.

use super::bed::Shape;
use super::capacity;
use super::drive::Drive;
use super::steady::PATH;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::results::{Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use crate::run::plan::{OBJECTIVE, Probe};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Steps of a search, about: doublings from the first rate, and a failure or two.
const STEPS: u32 = 8;
/// Shorter than where rates are chosen: the search is made anew in every block, and blocks show how coarse it is.
const PROBE: Probe = Probe {
    warmup: Duration::from_millis(100),
    step: Duration::from_millis(600),
    refinements: 2,
};
/// Bisections at least: neighbouring answers are then a factor of 2^(1/4) apart.
const REFINEMENTS: u32 = 2;

pub struct Capacity;

impl Capacity {
    fn probe(plan: &Plan) -> Probe {
        let refinements = plan.pace.probe.map_or(0, |probe| probe.refinements);
        Probe {
            refinements: refinements.max(REFINEMENTS),
            ..PROBE
        }
    }
}

impl Experiment for Capacity {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::L3]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::CAPACITY,
                "highest rate within the objective",
                "requests/s",
                Kind::Latency,
            )
            .higher_is_better(),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        if plan.wants(&[Id::L1, Id::L2, Id::R2]) {
            return Duration::ZERO;
        }
        plan.building(plan.arms_of(Id::L3).len())
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let probe = Self::probe(plan);
        (probe.warmup + probe.step + Duration::from_millis(250)) * (STEPS + probe.refinements)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        let probe = Self::probe(plan);
        BTreeMap::from([
            ("body_bytes".to_owned(), json!(1024)),
            (
                "objective".to_owned(),
                json!(format!(
                    "p99 within {} ms, at most 0.1 % errors, 99 % achieved",
                    OBJECTIVE.as_millis()
                )),
            ),
            ("path".to_owned(), json!("HTTP/1.1, same node")),
            ("step_ms".to_owned(), json!(probe.step.as_millis())),
            ("bisections".to_owned(), json!(probe.refinements)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Generator, client, server and proxies share this machine's processors: it is what the machine \
             carries with all of them on it, not what a proxy alone would."
                .to_owned(),
            "The generator's limit of 70 % of a core ends the search too.".to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let began = Instant::now();
        let drive = Drive::new("client", &bed.url("near", "http1", PATH)?, 1.0);
        let purpose = format!("L3/{}", visit.block);
        let found = capacity::find_for(lab, &bed, &drive, Self::probe(lab.plan), &purpose);
        let capacity = match found {
            Ok(capacity) => Some(capacity),
            // Not even the first rate: the arm says nothing in this block.
            Err(Failure::Capacity(_)) => None,
            Err(failure) => return Err(failure),
        };
        Ok(vec![(
            Id::L3,
            Trial {
                arm: visit.arm.name().to_owned(),
                point: Point::only(),
                repeat: 0,
                started_s: began.duration_since(lab.started).as_secs_f64(),
                duration_s: began.elapsed().as_secs_f64(),
                load: None,
                histograms: Default::default(),
                values: capacity
                    .map(|rate| (keys::CAPACITY.to_owned(), rate))
                    .into_iter()
                    .collect(),
                timelines: Vec::new(),
                voids: Vec::new(),
                notes: Vec::new(),
            },
        )])
    }
}
