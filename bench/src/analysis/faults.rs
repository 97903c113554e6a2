//! Injected faults: what one of them costs in the middle case and in the worst.

use super::Study;
use crate::results::{FaultSummary, Proportion, Spread, Trial, keys};
use crate::stats::{CONFIDENCE, clopper_pearson, median};

pub fn of(study: &Study) -> Vec<FaultSummary> {
    study
        .arms()
        .filter_map(|arm| {
            let trials: Vec<&Trial> = study
                .scenario
                .trials()
                .filter(|trial| trial.arm == arm.name && !trial.is_void())
                .filter(|trial| trial.values.contains_key(keys::PODS_HIT))
                .collect();
            (!trials.is_empty()).then(|| summary(&study.scenario.id, &arm.name, &trials))
        })
        .collect()
}

fn summary(scenario: &str, arm: &str, trials: &[&Trial]) -> FaultSummary {
    let all = |key: &str| -> Vec<f64> {
        trials
            .iter()
            .filter_map(|trial| trial.values.get(key).copied())
            .collect()
    };
    let spread = |key: &str| {
        let values = all(key);
        Some(Spread {
            median: median(&values)?,
            max: values.into_iter().reduce(f64::max)?,
        })
    };
    let hits = all(keys::PODS_HIT)
        .iter()
        .filter(|pods| **pods > 1.0)
        .count() as u64;
    let of = trials.len() as u64;
    let bounds = clopper_pearson(hits, of, CONFIDENCE);
    let parts = keys::RECOVERY_PARTS.iter().filter_map(|key| {
        let name = key.trim_end_matches("_ms").replace('_', " ");
        Some((name, median(&all(key))?))
    });
    FaultSummary {
        scenario: scenario.to_string(),
        arm: arm.to_string(),
        injections: of as u32,
        pods_hit: spread(keys::PODS_HIT),
        pods_meshed: median(&all(keys::PODS_MESHED)),
        requests_lost: spread(keys::REQUESTS_LOST),
        unavailability_pod_s: spread(keys::UNAVAILABILITY),
        recover_ms: spread(keys::TIME_TO_RECOVER),
        not_recovered: not_recovered(trials),
        parts_ms: parts.collect(),
        hit_others: Proportion {
            hits,
            of,
            low: bounds.low,
            high: bounds.high,
        },
    }
}

/// A trial that saw pods hit and has no time to recover ended before they did.
fn not_recovered(trials: &[&Trial]) -> u32 {
    trials
        .iter()
        .filter(|trial| {
            trial
                .values
                .get(keys::PODS_HIT)
                .is_some_and(|pods| *pods > 0.0)
        })
        .filter(|trial| !trial.values.contains_key(keys::TIME_TO_RECOVER))
        .count() as u32
}
