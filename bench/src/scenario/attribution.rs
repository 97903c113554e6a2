//! R5: is a pod charged for what it makes its proxy use?
//!
//! One client asks one server, both on node 1, over many connections. What the node's proxies use
//! meanwhile is somebody's bill: the kernel writes it to the control group that each proxy is in. The
//! share of it that lands in the two pods that caused it is what quotas, autoscalers and cost
//! reports see of the truth.

use super::bed::Shape;
use super::drive::Drive;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::Charge;
use crate::results::{Compare, Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const RATE: f64 = 300.0;
const CONNECTIONS: u32 = 200;
const WINDOW: Duration = Duration::from_secs(2);
/// Less than this, µs, and nothing was used that could be charged.
const LEAST_CPU: u64 = 10_000;
const CAUSING: [&str; 2] = ["client", "near"];

pub struct Attribution;

impl Experiment for Attribution {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::R5]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        [
            (
                keys::CPU_ATTRIBUTED,
                "of the proxies' processor time, charged to the pods that caused it",
            ),
            (
                keys::MEMORY_ATTRIBUTED,
                "of the proxies' memory, charged to those pods",
            ),
        ]
        .map(|(key, label)| {
            Metric::value(key, label, "share", Kind::Count)
                .by(Compare::Difference)
                .higher_is_better()
        })
        .into()
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        if plan.wants(&[Id::L1, Id::L2, Id::R2]) {
            return Duration::ZERO;
        }
        plan.building(plan.arms_of(Id::R5).len())
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        WINDOW + Duration::from_millis(700)
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("requests_per_s".to_owned(), json!(RATE)),
            ("connections".to_owned(), json!(CONNECTIONS)),
            ("window_ms".to_owned(), json!(WINDOW.as_millis())),
            ("causing".to_owned(), json!(CAUSING)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "What a proxy counts of itself, by workload, is not looked at: no quota and no autoscaler goes by it."
                .to_owned(),
            "Memory is all that the proxies hold at the window's end, not only what the load added.".to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let began = Instant::now();
        let mut drive = Drive::new("client", &bed.url("near", "http1", PATH)?, RATE);
        drive.seed = lab.plan.schedule(Id::R5, visit.block, "");
        drive.connections = CONNECTIONS;
        drive.window = WINDOW;
        let begin = Drive::appointment(&bed, Duration::from_millis(300));
        let generator = drive.start(&bed, begin)?;
        lab.interrupt.sleep_until(begin)?;
        let before = cpu(&bed)?;
        lab.interrupt
            .sleep_until(begin + WINDOW.as_nanos() as u64)?;
        let after = bed.cluster.charges(1)?;
        let report = generator.report(lab.interrupt)?;
        let used: Vec<(bool, u64)> = after
            .iter()
            .map(|one| {
                let earlier = before.get(&one.proxy).copied().unwrap_or(0);
                (causing(one), one.cpu_us.saturating_sub(earlier))
            })
            .collect();
        let held: Vec<(bool, u64)> = after.iter().map(|one| (causing(one), one.memory)).collect();
        let all: u64 = used.iter().map(|(_, us)| us).sum();
        let mut values = vec![
            ("proxies_cpu_us", all as f64),
            ("completed", report.completed as f64),
        ];
        values.extend(share(&used).map(|share| (keys::CPU_ATTRIBUTED, share)));
        values.extend(share(&held).map(|share| (keys::MEMORY_ATTRIBUTED, share)));
        let mut trial = lab.trial(visit.arm, Point::only(), began, values);
        if all < LEAST_CPU {
            trial.voids.push(Void {
                gate: "something to charge".to_owned(),
                measured: all as f64,
                limit: LEAST_CPU as f64,
                message: format!("the proxies used {all} µs: nothing that could be charged"),
            });
        }
        Ok(vec![(Id::R5, trial)])
    }
}

/// Of each proxy so far.
fn cpu(bed: &Bed) -> Result<BTreeMap<String, u64>, Failure> {
    let all = bed.cluster.charges(1)?;
    Ok(all.into_iter().map(|one| (one.proxy, one.cpu_us)).collect())
}

fn causing(charge: &Charge) -> bool {
    let pod = charge.pod.as_deref();
    pod.is_some_and(|pod| CAUSING.contains(&pod))
}

/// What is charged to those that caused it, of all.
fn share(of: &[(bool, u64)]) -> Option<f64> {
    let all: u64 = of.iter().map(|(_, amount)| amount).sum();
    let theirs: u64 = of
        .iter()
        .filter(|(caused, _)| *caused)
        .map(|(_, amount)| amount)
        .sum();
    (all > 0).then(|| theirs as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lands_on_the_node_is_charged_to_nobody() {
        assert_eq!(share(&[(true, 30), (true, 10)]), Some(1.0));
        assert_eq!(share(&[(false, 40)]), Some(0.0));
        assert_eq!(share(&[(true, 10), (false, 30)]), Some(0.25));
        assert_eq!(share(&[(true, 0)]), None);
    }
}
