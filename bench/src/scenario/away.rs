//! F4: the control plane, certificate authority and discovery in one, is away.
//!
//! Requests over kept and over new connections go on while it is ended; what fails is counted, and when it first
//! did. Then a proxy is killed: whether it can start again without a control plane is what decides if an outage of
//! the one becomes an outage of the other. Last, the control plane comes back.

use super::bed::{self, Shape};
use super::drive::Drive;
use super::kill::{BEFORE, FINE, RATE};
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::{Restart, monotonic_ns};
use crate::load::report::LoadReport;
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Load while it is away.
const AWAY: Duration = Duration::from_secs(6);
/// A proxy that is ready by itself within this, without a control plane, restarts alone.
const ALONE: Duration = Duration::from_secs(5);
/// How long a proxy may take to be ready once the control plane is back.
const BACK: Duration = Duration::from_secs(60);

pub struct Away;

impl Away {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Away {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::F4]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::AWAY_FAILED,
                "requests that failed while it was away",
                "requests",
                Kind::Count,
            ),
            Metric::value(
                keys::AWAY_REQUESTS,
                "requests while it was away",
                "requests",
                Kind::Count,
            ),
            Metric::value(
                keys::FIRST_FAILURE,
                "until the first request failed",
                "ms",
                Kind::Latency,
            )
            .higher_is_better(),
            Metric::value(
                keys::RESTARTS_ALONE,
                "killed proxies that became ready without it",
                "proxies",
                Kind::Count,
            )
            .higher_is_better(),
            Metric::value(
                keys::BACK_WITH_CONTROL,
                "from its return until that proxy was ready",
                "ms",
                Kind::Latency,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::F4, &[Id::F1, Id::F2])
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        BEFORE + AWAY + ALONE + Duration::from_secs(3)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("requests_per_s_and_generator".to_owned(), json!(RATE)),
            (
                "generators".to_owned(),
                json!("one over kept connections, one with a new connection for each request"),
            ),
            ("away_ms".to_owned(), json!(AWAY.as_millis())),
            ("alone_ms".to_owned(), json!(ALONE.as_millis())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Certificates outlive the absence; what happens when they do not is not seen here.".to_owned(),
            "The control plane is ended with SIGTERM and comes back with its state; no pod is made or removed \
             meanwhile."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let began = Instant::now();
        let outcome = absence(lab, &bed, visit);
        if outcome.is_err() {
            // The next visit needs one.
            let _ = bed.cluster.control(true);
        }
        let (values, voids, notes) = outcome?;
        let trial = Trial {
            repeat: visit.block,
            values,
            voids,
            notes,
            ..lab.trial(visit.arm, Point::only(), began, [])
        };
        Ok(vec![(Id::F4, trial)])
    }
}

type Outcome = (BTreeMap<String, f64>, Vec<Void>, Vec<String>);

fn absence(lab: &Lab<'_>, bed: &Bed, visit: Visit) -> Result<Outcome, Failure> {
    let begin = Drive::appointment(bed, Duration::from_millis(500));
    let url = bed.url("backend", "http1", PATH)?;
    let mut generators = Vec::new();
    for (pod, fresh) in [(0, false), (1, true)] {
        let name = bed::fleet_name(pod);
        let mut one = Drive::new(&name, &url, RATE);
        one.seed = lab.plan.schedule(Id::F4, visit.block, &name);
        one.fresh = fresh;
        one.window = BEFORE + AWAY;
        one.bin = FINE;
        generators.push(one.start(bed, begin)?);
    }
    lab.interrupt
        .sleep_until(begin + BEFORE.as_nanos() as u64)?;
    let left_ns = monotonic_ns();
    bed.cluster.control(false)?;
    let mut seen = Seen::default();
    for generator in generators {
        seen.add(&generator.report(lab.interrupt)?, left_ns);
    }
    let mut values = BTreeMap::from([
        (keys::AWAY_REQUESTS.to_owned(), seen.requests as f64),
        (keys::AWAY_FAILED.to_owned(), seen.failed as f64),
    ]);
    if let Some(first_ms) = seen.first_failure_ms {
        values.insert(keys::FIRST_FAILURE.to_owned(), first_ms);
    }

    let unlucky = bed::fleet_name(lab.plan.pace.fault_pods - 1);
    let proxy = bed.cluster.proxy_of(&unlucky)?.name;
    bed.cluster.kill(&proxy, Restart::AtOnce)?;
    bed.cluster.await_death(&proxy, Duration::from_secs(5))?;
    let alone = bed.cluster.await_ready(&proxy, ALONE).is_ok();
    lab.interrupt.check()?;
    values.insert(keys::RESTARTS_ALONE.to_owned(), f64::from(u8::from(alone)));
    bed.cluster.control(true)?;
    let back = Instant::now();
    bed.cluster.await_ready(&proxy, BACK)?;
    if !alone {
        values.insert(
            keys::BACK_WITH_CONTROL.to_owned(),
            back.elapsed().as_secs_f64() * 1000.0,
        );
    }
    bed.cluster.forget_death(&proxy)?;
    Ok((values, seen.voids(), vec![format!("killed {proxy}")]))
}

/// What the generators saw.
#[derive(Default)]
struct Seen {
    failed_before: u64,
    requests: u64,
    failed: u64,
    first_failure_ms: Option<f64>,
}

impl Seen {
    fn add(&mut self, report: &LoadReport, left_ns: u64) {
        let timeline = &report.timeline;
        for (bin, (offered, failed)) in timeline.offered.iter().zip(&timeline.error).enumerate() {
            let at_ns = timeline.start_ns + bin as u64 * timeline.bin_ns;
            if at_ns < left_ns {
                self.failed_before += u64::from(*failed);
                continue;
            }
            self.requests += u64::from(*offered);
            self.failed += u64::from(*failed);
            if *failed > 0 {
                let ms = (at_ns - left_ns) as f64 / 1e6;
                let earlier = self.first_failure_ms.unwrap_or(f64::INFINITY);
                self.first_failure_ms = Some(ms.min(earlier));
            }
        }
    }

    fn voids(&self) -> Vec<Void> {
        if self.failed_before == 0 {
            return Vec::new();
        }
        vec![Void {
            gate: "not well before the fault".to_owned(),
            measured: self.failed_before as f64,
            limit: 0.0,
            message: format!(
                "{} requests failed before the control plane was ended",
                self.failed_before
            ),
        }]
    }
}
