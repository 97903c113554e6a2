//! I4: what clients that are slow on purpose do to the others, and to memory.
//!
//! Two ways of being slow: requests whose head never ends, and answers that are hardly read. Either
//! asks for next to no processor time; it wants a proxy to hold something for each. The victim is
//! measured beside them as beside a flood, and so is the memory of the node's proxies: what they
//! hold for the slow ones, and by how much it still grows.

use super::bed::Shape;
use super::press::Press;
use super::victim::{self, LOSSES_NOTE, ONSET, Quota};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Compare, Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Slow connections.
const CONNECTIONS: u32 = 200;
/// From the first of them to the window: all stand and have filled what there is to fill.
const STANDING: Duration = Duration::from_millis(1200);
const HTTP: u16 = 80;
const MIB: f64 = 1_048_576.0;
/// As `duet-bench stress` has them, and as the report does.
const WAYS: [(&str, &str); 2] = [
    ("slow-head", "heads that never end"),
    ("slow-reader", "answers hardly read"),
];

#[derive(Default)]
pub struct Slow {
    quota: Quota,
}

impl Experiment for Slow {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I4]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let mut metrics = victim::metrics();
        metrics.extend([
            Metric::value(
                keys::SLOW_HELD,
                "memory of the node's proxies beyond that before",
                "MiB",
                Kind::Memory,
            )
            .by(Compare::Difference),
            Metric::value(keys::GROWTH, "still growing by", "MiB/min", Kind::Memory)
                .by(Compare::Difference),
            Metric::value(
                "slow_standing",
                "slow connections that stood at the end",
                "connections",
                Kind::Count,
            ),
        ]);
        metrics
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        Quota::prepare_estimate(plan, Id::I4)
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let alone = victim::estimate(plan);
        let beside = alone + STANDING - plan.pace.warmup.max(ONSET).min(STANDING);
        (alone + beside) * WAYS.len() as u32
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
            ("slow_connections".to_owned(), json!(CONNECTIONS)),
            ("standing_before_ms".to_owned(), json!(STANDING.as_millis())),
        ]);
        parameters
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Growth is that within the window, extrapolated to a minute: a bound that is reached before it shows \
             as none."
                .to_owned(),
            LOSSES_NOTE.to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let mut trials = Vec::new();
        for (kind, name) in WAYS {
            for connections in [0, CONNECTIONS] {
                let trial = self.beside(lab, visit, (kind, name), connections)?;
                trials.push((Id::I4, trial));
            }
        }
        Ok(trials)
    }
}

impl Slow {
    fn beside(
        &self,
        lab: &Lab<'_>,
        visit: Visit,
        (kind, name): (&'static str, &str),
        connections: u32,
    ) -> Result<Trial, Failure> {
        let began = Instant::now();
        let bed = lab.bed(Shape::Neighbours, visit.arm)?;
        let before = held(&bed)?;
        let label = match connections {
            0 => "alone".to_owned(),
            some => format!("{some} slow"),
        };
        let point = Point::at(label, f64::from(connections)).in_series(name);
        let pressing = match connections {
            0 => None,
            connections => {
                let plan = lab.plan;
                let longer = self.quota.window(plan).saturating_sub(plan.pace.window);
                // And what asking takes, before and after.
                let window = STANDING
                    + victim::estimate(plan)
                    + longer
                    + plan.pace.warmup
                    + bed.cluster.lead() * 4;
                let press = Press {
                    kind,
                    pod: "aggressor-client",
                    to: SocketAddr::new(bed.cluster.address("aggressor")?, HTTP),
                    connections,
                    rate: None,
                    window,
                };
                let pressing = press.start(&bed, crate::cluster::monotonic_ns())?;
                lab.interrupt.sleep(STANDING)?;
                Some(pressing)
            }
        };
        let (from, held_first) = (Instant::now(), held(&bed)?);
        let (mut trial, ()) =
            victim::measure(lab, visit, Id::I4, &self.quota, point, |_, _| Ok(()))?;
        let held_last = held(&bed)?;
        let minutes = from.elapsed().as_secs_f64() / 60.0;
        let mut value = |key: &str, value: f64| {
            trial.values.insert(key.to_owned(), value);
        };
        if bed.arm.meshed() {
            value(keys::SLOW_HELD, (held_last - before) / MIB);
            value(keys::GROWTH, (held_last - held_first) / MIB / minutes);
        }
        if let Some(pressing) = pressing {
            let report = pressing.report(lab)?;
            value("slow_standing", report.standing as f64);
            value("slow_cut", report.failed as f64);
        }
        trial.duration_s = began.elapsed().as_secs_f64();
        Ok(trial)
    }
}

/// Memory of the node's proxies, bytes.
fn held(bed: &Bed) -> Result<f64, Failure> {
    let all = bed.cluster.charges(1)?;
    Ok(all.iter().map(|one| one.memory as f64).sum())
}
