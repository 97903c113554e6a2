//! F3: a proxy dies again and again.
//!
//! As F1, but five times, one death every three seconds, or as soon as the proxy is back if that
//! takes longer. What counts is how much of the time the pods could be used: all of the node's, and
//! the worst of them.

use super::bed::Shape;
use super::kill::{self, BEFORE, Hit, RATE};
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::cluster::Restart;
use crate::results::{Compare, Kind, Metric, Timeline, Trial, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const DEATHS: u32 = 5;
/// From one to the next.
const EVERY: Duration = Duration::from_secs(3);
/// How long a killed proxy may take to be ready again.
const READY: Duration = Duration::from_secs(30);
/// Load before the first, and through all of them.
const WINDOW: Duration = Duration::from_secs(1 + 3 * DEATHS as u64);

pub struct CrashLoop;

impl CrashLoop {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for CrashLoop {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::F3]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let share = |key, label| {
            Metric::value(key, label, "share", Kind::Count)
                .by(Compare::Difference)
                .higher_is_better()
        };
        vec![
            share(keys::AVAILABILITY, "availability of all pods of the node"),
            share(keys::WORST_AVAILABILITY, "availability of the worst pod"),
            Metric::value(keys::PODS_HIT, "pods hit", "pods", Kind::Count),
            Metric::value(
                keys::REQUESTS_LOST,
                "requests lost",
                "requests",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::F3, &[Id::F1, Id::F2])
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        WINDOW + Duration::from_millis(800)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("requests_per_s_and_pod".to_owned(), json!(RATE)),
            ("deaths".to_owned(), json!(DEATHS)),
            ("every_ms".to_owned(), json!(EVERY.as_millis())),
            ("window_ms".to_owned(), json!(WINDOW.as_millis())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Whoever restarts the proxy does so at once here. A kubelet waits longer each time (10 s, 20 s, …): \
             what the pods behind a dead proxy lose grows with that, and who they are does not change."
                .to_owned(),
            "Availability is the share of requests answered well, within 100 ms, from the first death on."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let proxy = kill::unlucky(lab, &bed, Id::F3, visit)?;
        let began = Instant::now();
        let mut deaths = 0;
        let (reports, first) = kill::under_load(lab, &bed, Id::F3, visit, WINDOW, || {
            let first = bed.cluster.kill(&proxy.name, Restart::AtOnce)?;
            deaths = 1;
            let end = first + (WINDOW - BEFORE).as_nanos() as u64;
            while deaths < DEATHS {
                let next = first + EVERY.as_nanos() as u64 * u64::from(deaths);
                lab.interrupt.sleep_until(next)?;
                bed.cluster.await_ready(&proxy.name, READY)?;
                if crate::cluster::monotonic_ns() > end {
                    break;
                }
                bed.cluster.kill(&proxy.name, Restart::AtOnce)?;
                deaths += 1;
            }
            Ok(first)
        })?;
        bed.cluster.await_ready(&proxy.name, READY)?;
        bed.cluster.forget_death(&proxy.name)?;
        let counts = (first, Hit::Silent);
        let mut trial = kill::trial(lab, visit, began, &proxy, &reports, &[], counts);
        // Within the loop nobody recovers; what comes after it is F1's.
        trial.values.remove(keys::TIME_TO_RECOVER);
        trial.notes = vec![format!("killed {} {deaths} times", proxy.name)];
        let shares: Vec<f64> = trial.timelines.iter().filter_map(available).collect();
        if !shares.is_empty() {
            let all = shares.iter().sum::<f64>() / shares.len() as f64;
            let worst = shares.iter().copied().fold(1.0, f64::min);
            trial.values.insert(keys::AVAILABILITY.to_owned(), all);
            trial
                .values
                .insert(keys::WORST_AVAILABILITY.to_owned(), worst);
        }
        trial.values.insert("deaths".to_owned(), f64::from(deaths));
        Ok(vec![(Id::F3, trial)])
    }
}

/// Answered well of what was offered from the event on.
fn available(timeline: &Timeline) -> Option<f64> {
    let before = (-timeline.first_bin_ms / timeline.bin_ms).round().max(0.0) as usize;
    let sum = |bins: &[u32]| {
        bins.iter()
            .skip(before)
            .copied()
            .map(u64::from)
            .sum::<u64>()
    };
    let offered = sum(&timeline.offered);
    (offered > 0).then(|| sum(&timeline.ok) as f64 / offered as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_counts_from_the_first_death() {
        let mut timeline = Timeline {
            name: "app-0".to_owned(),
            expected_hit: true,
            first_bin_ms: -200.0,
            bin_ms: 100.0,
            offered: vec![5; 6],
            ok: vec![0, 0, 5, 5, 0, 5],
        };
        assert_eq!(available(&timeline), Some(0.75));
        timeline.offered.truncate(2);
        assert_eq!(available(&timeline), None);
    }
}
