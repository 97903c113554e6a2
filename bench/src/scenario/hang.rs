//! F2: a proxy hangs for ten seconds.
//!
//! As F1, but with SIGSTOP: the process is there, its sockets accept, and nothing comes back. No client is refused;
//! each has to run into its own time-out. An agent's supervisor misses its child's heartbeat and replaces it; a
//! sidecar goes on after ten seconds as if nothing had been.

use super::bed::Shape;
use super::kill::{self, BEFORE, CONNECTIONS, Hit, RATE};
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::results::{Kind, Metric, Trial, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For how long it is stopped.
const HANG: Duration = Duration::from_secs(10);
/// Load after that: what was held up is worked off, and ten good bins have to follow.
const AFTER: Duration = Duration::from_secs(4);

pub struct Hang;

impl Hang {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Hang {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::F2]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(keys::PODS_HIT, "pods hit", "pods", Kind::Count),
            Metric::value(
                keys::BLAST_RADIUS,
                "share of the node's meshed pods hit",
                "share",
                Kind::Count,
            ),
            Metric::value(
                keys::REQUESTS_LOST,
                "requests lost",
                "requests",
                Kind::Count,
            ),
            Metric::value(
                keys::UNAVAILABILITY,
                "unavailability over all pods",
                "pod·s",
                Kind::Count,
            ),
            Metric::value(
                keys::TIME_TO_RECOVER,
                "from the stop until all pods are well again",
                "ms",
                Kind::Latency,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::F2, &[Id::F1])
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        BEFORE + HANG + AFTER + Duration::from_millis(800)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("requests_per_s_and_pod".to_owned(), json!(RATE)),
            ("connections_per_pod".to_owned(), json!(CONNECTIONS)),
            (
                "signal".to_owned(),
                json!("SIGSTOP, and SIGCONT after hang_ms"),
            ),
            ("hang_ms".to_owned(), json!(HANG.as_millis())),
            ("before_ms".to_owned(), json!(BEFORE.as_millis())),
            ("after_ms".to_owned(), json!(AFTER.as_millis())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "An agent's supervisor kills a proxy that has said nothing for three seconds and starts another; \
             nobody does so for a sidecar. A liveness probe would, after its own patience, and then it is F1."
                .to_owned(),
            "A pod is hit if a request failed or nothing was answered well for 100 ms: in F1 one late request is \
             enough, but here the window is so long that a busy machine would hit everybody."
                .to_owned(),
            "Clients give up after a second; what they lose is bounded by that."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let proxy = kill::unlucky(lab, &bed, Id::F2, visit)?;
        let began = Instant::now();
        let window = BEFORE + HANG + AFTER;
        let (reports, stopped) = kill::under_load(lab, &bed, Id::F2, visit, window, || {
            let stopped = bed.cluster.pause(&proxy.name)?;
            let slept = lab.interrupt.sleep_until(stopped + HANG.as_nanos() as u64);
            // Also if the run is interrupted: what hangs cannot be ended in good order.
            bed.cluster.unpause(&proxy.name)?;
            slept?;
            Ok(stopped)
        })?;
        let lives = [];
        let mut trial = kill::trial(
            lab,
            visit,
            began,
            &proxy,
            &reports,
            &lives,
            (stopped, Hit::Silent),
        );
        trial.notes.insert(0, format!("stopped {}", proxy.name));
        Ok(vec![(Id::F2, trial)])
    }
}
