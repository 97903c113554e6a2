//! X4: can somebody who has taken over an application get at a proxy's key?
//!
//! The application's container runs without privileges and in the pod's network. From there every way
//! that there might be is tried: the process's memory, environment and files in /proc, the token with
//! which the proxy proves itself (it would fetch another certificate), the proxy's own pages, and the
//! agent's local API. The same from the proxy's own place shows that the attempts work.

use super::bed::Shape;
use super::forgery::attempts;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::User;
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub struct Reachable;

impl Experiment for Reachable {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::X4]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::WAYS_OPEN,
                "ways to a key that are open",
                "ways",
                Kind::Count,
            ),
            Metric::value(keys::WAYS, "ways tried", "ways", Kind::Count),
            Metric::value(
                keys::KEYS_BEHIND,
                "identities behind an open way",
                "identities",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        if plan.wants(&[Id::X3]) {
            return Duration::ZERO;
        }
        plan.building(plan.arms_of(Id::X4).len())
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_secs(1)
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::new()
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Processes and files of all containers are in sight of each other here, so only users and capabilities \
             stand between; in a cluster their namespaces do so, too."
                .to_owned(),
            "Bugs of the kernel, the runtime or the proxy's parsers are not looked for.".to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let began = Instant::now();
        let proxy = bed.cluster.proxy_of("client")?.name;
        let arguments = arguments(&bed, &proxy)?;
        let tried = attempts(lab, &bed, "client", User::Nobody, arguments.clone())?;
        let control = attempts(lab, &bed, "client", User::Proxy, arguments)?;
        let open: Vec<&str> = tried
            .iter()
            .filter(|told| told.accepted)
            .map(|told| told.said.as_str())
            .collect();
        let behind = match open.as_slice() {
            [] => 0,
            _ => bed.cluster.identities(&proxy)?.len(),
        };
        let values = [
            (keys::WAYS, tried.len() as f64),
            (keys::WAYS_OPEN, open.len() as f64),
            (keys::KEYS_BEHIND, behind as f64),
        ];
        let mut trial = lab.trial(visit.arm, Point::only(), began, values);
        trial.notes = open.iter().map(|way| format!("open: {way}")).collect();
        if !control.iter().any(|told| told.accepted) {
            trial.voids.push(Void {
                gate: "way control".to_owned(),
                measured: 0.0,
                limit: 1.0,
                message:
                    "not even from the proxy's own place was a way open: the attempts show nothing"
                        .to_owned(),
            });
        }
        Ok(vec![(Id::X4, trial)])
    }
}

fn arguments(bed: &Bed, proxy: &str) -> Result<Vec<String>, Failure> {
    let at = bed.cluster.whereabouts(proxy)?;
    let mut arguments = vec!["key".to_owned()];
    for (flag, value) in [
        ("--pid", at.pid.to_string()),
        ("--token", at.token.display().to_string()),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    if let Some(socket) = at.socket {
        arguments.extend(["--socket".to_owned(), socket.display().to_string()]);
    }
    Ok(arguments)
}
