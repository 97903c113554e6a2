//! U2: certificates that live for a minute.
//!
//! Proxies renew at about 70 % of a certificate's life, so within a little more than a minute of load
//! every one is renewed at least once. What is counted: requests that failed, over kept and over new
//! connections; the proxies' processor time; and, by the same search of memory as X1's, keys of
//! certificates that have run out.

use super::bed::{self, SHORT_LIFE, Shape};
use super::drive::Drive;
use super::kill::RATE;
use super::press::spent;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::accounting::Certified;
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A whole life, and some: what was valid at the beginning has then run out.
const WINDOW: Duration = SHORT_LIFE.saturating_add(Duration::from_secs(5));
/// Time that one process's memory may take.
const LIMIT: Duration = Duration::from_secs(10);
const PODS: u32 = 8;

pub struct Renewing;

impl Experiment for Renewing {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::U2]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Renewing(PODS)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let count = |key, label, unit| Metric::value(key, label, unit, Kind::Count);
        vec![
            count(keys::RENEWING_FAILED, "requests that failed", "requests"),
            count(
                keys::RENEWED,
                "identities with a new certificate",
                "identities",
            ),
            count(
                keys::OLD_KEYS,
                "keys of expired certificates in memory",
                "keys",
            ),
            Metric::value(
                keys::RENEWING_CPU,
                "processor use of all proxies meanwhile",
                "millicores",
                Kind::Cpu,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::U2).len()) * 2
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        WINDOW + Duration::from_secs(4)
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(PODS)),
            (
                "certificates_live_s".to_owned(),
                json!(SHORT_LIFE.as_secs()),
            ),
            ("window_s".to_owned(), json!(WINDOW.as_secs())),
            ("requests_per_s_and_generator".to_owned(), json!(RATE)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Sixty seconds is the definition's; a mesh's own default is a day. Renewals cost the same then, and are \
             1440 times rarer."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Renewing(PODS), visit.arm)?;
        let began = Instant::now();
        let old = held(&bed)?;
        let control = bed.cluster.scan_control(&old, LIMIT)?;

        let begin = Drive::appointment(&bed, Duration::from_millis(300));
        let url = bed.url("backend", "http1", PATH)?;
        let mut generators = Vec::new();
        for (pod, fresh) in [(0, false), (1, true)] {
            let name = bed::fleet_name(pod);
            let mut one = Drive::new(&name, &url, RATE);
            one.seed = lab.plan.schedule(Id::U2, visit.block, &name);
            one.fresh = fresh;
            one.window = WINDOW;
            generators.push(one.start(&bed, begin)?);
        }
        let (from, before) = (Instant::now(), spent(&bed)?);
        let mut failed = 0;
        for generator in generators {
            failed += generator.report(lab.interrupt)?.failed();
        }
        let cores = (spent(&bed)? - before) as f64 / 1e6 / from.elapsed().as_secs_f64();

        let new: BTreeSet<String> = held(&bed)?.into_iter().map(|one| one.certificate).collect();
        let renewed = old
            .iter()
            .filter(|one| !new.contains(&one.certificate))
            .count();
        let mut still = 0;
        for proxy in bed.cluster.proxies(1)? {
            still += bed.cluster.scan(&proxy.name, &old, LIMIT)?.found.len();
        }
        let values = [
            (keys::RENEWING_FAILED, failed as f64),
            (keys::RENEWED, renewed as f64),
            (keys::OLD_KEYS, still as f64),
            (keys::RENEWING_CPU, 1000.0 * cores),
            (keys::IDENTITIES, old.len() as f64),
        ];
        let mut trial = lab.trial(visit.arm, Point::only(), began, values);
        let mut void = |gate: &str, measured: usize, limit: usize, message: &str| {
            trial.voids.push(Void {
                gate: gate.to_owned(),
                measured: measured as f64,
                limit: limit as f64,
                message: message.to_owned(),
            });
        };
        if !control {
            let message = "the scan did not find the key that a process was known to hold";
            void("scan control", 0, 1, message);
        }
        if renewed < old.len() {
            let message =
                "not every certificate was renewed within its life: what is expired is not known";
            void("all renewed", renewed, old.len(), message);
        }
        Ok(vec![(Id::U2, trial)])
    }
}

/// Every identity that a proxy of node 1 holds.
fn held(bed: &Bed) -> Result<Vec<Certified>, Failure> {
    let mut all = Vec::new();
    for proxy in bed.cluster.proxies(1)? {
        all.extend(bed.cluster.identities(&proxy.name)?);
    }
    Ok(all)
}
