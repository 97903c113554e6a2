//! How much an arm carries: the highest rate whose p99 is within the objective,
//! with at most 0.1 % errors and 99 % achieved.
//!
//! Rates double until one fails; what lies between the last that held and the
//! first that did not is bisected. The answer is only used to choose rates at
//! which every arm is far from saturation, so a coarse one does.

use super::{Bed, Drive, Failure, Lab};
use crate::run::plan::{OBJECTIVE, Probe};

/// Where the search begins, requests/s.
const FIRST: f64 = 125.0;
/// Where it ends at the latest: no arm on one machine is expected beyond.
const LAST: f64 = 64_000.0;
/// Errors that a capacity may have.
const ERRORS: f64 = 0.001;
/// Of what was offered, what a capacity has to complete.
const ACHIEVED: f64 = 0.99;
/// The generator's own limit: beyond it, the search would measure the generator.
const GENERATOR_CORE: f64 = 0.70;

/// The capacity of a path through a bed, requests/s.
pub fn find(lab: &Lab<'_>, bed: &Bed, drive: &Drive, probe: Probe) -> Result<f64, Failure> {
    find_for(lab, bed, drive, probe, &format!("capacity/{}", bed.arm))
}

/// The same with schedules that follow from a purpose.
pub fn find_for(
    lab: &Lab<'_>,
    bed: &Bed,
    drive: &Drive,
    probe: Probe,
    purpose: &str,
) -> Result<f64, Failure> {
    let mut seed = lab.plan.number(purpose);
    search(FIRST, LAST, probe.refinements, |rate| {
        seed = seed.wrapping_add(1);
        let mut step = drive.clone();
        step.rate = rate;
        step.seed = seed;
        step.warmup = probe.warmup;
        step.window = probe.step;
        let report = step.run(bed, lab.interrupt)?;
        let p99 = report
            .histograms
            .response
            .decode()
            .ok()
            .filter(|histogram| !histogram.is_empty())
            .map(|histogram| histogram.value_at_quantile(0.99));
        let offered = report.offered as f64;
        Ok(p99.is_some_and(|ns| u128::from(ns) <= OBJECTIVE.as_nanos())
            && report.failed() as f64 <= ERRORS * offered
            && report.completed as f64 >= ACHIEVED * offered
            && report.generator.core_share() <= GENERATOR_CORE)
    })?
    .ok_or_else(|| {
        Failure::Capacity(format!(
            "arm {} does not even carry {FIRST} requests/s within {OBJECTIVE:?}: this machine is too busy or too slow",
            bed.arm
        ))
    })
}

fn search(
    first: f64,
    last: f64,
    refinements: u32,
    mut holds: impl FnMut(f64) -> Result<bool, Failure>,
) -> Result<Option<f64>, Failure> {
    // One bad moment must not fix a capacity: a rate fails only if it does so twice.
    let mut holds = |rate: f64| Ok::<bool, Failure>(holds(rate)? || holds(rate)?);
    let mut good = None;
    let mut rate = first;
    let mut bad = loop {
        if !holds(rate)? {
            break rate;
        }
        good = Some(rate);
        if rate >= last {
            return Ok(good);
        }
        rate = (rate * 2.0).min(last);
    };
    for _ in 0..refinements {
        let Some(low) = good else { break };
        let middle = (low * bad).sqrt();
        if holds(middle)? {
            good = Some(middle);
        } else {
            bad = middle;
        }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(of: f64, refinements: u32) -> Option<f64> {
        search(125.0, 64_000.0, refinements, |rate| Ok(rate <= of)).expect("no failure")
    }

    #[test]
    fn finds_it_from_below() {
        assert_eq!(capacity(1500.0, 0), Some(1000.0));
        let fine = capacity(1500.0, 6).unwrap();
        assert!((1470.0..=1500.0).contains(&fine), "{fine}");
    }

    #[test]
    fn has_ends() {
        assert_eq!(capacity(10.0, 3), None);
        assert_eq!(capacity(1e9, 3), Some(64_000.0));
    }

    #[test]
    fn one_bad_moment_is_forgiven() {
        let mut calls = 0;
        let found = search(125.0, 64_000.0, 0, |rate| {
            calls += 1;
            Ok(calls != 2 && rate <= 600.0)
        })
        .expect("no failure");
        assert_eq!(found, Some(500.0));
    }
}
