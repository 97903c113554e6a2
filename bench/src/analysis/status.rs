//! Whether a run's numbers may be used at all.

use std::collections::BTreeMap;

use super::words;
use crate::results::{Profile, Results, State, Status, VoidShare};
use crate::stats::fisher_exact;

/// Two arms whose void shares differ by more, and not by chance, did not meet the same conditions.
const LOPSIDED: f64 = 0.20;
const LOPSIDED_BY_CHANCE: f64 = 0.05;
/// More void trials than this, and what is left is a selection.
const MOST_VOID: f64 = 1.0 / 3.0;

pub fn void_shares(results: &Results) -> Vec<VoidShare> {
    let mut shares = Vec::new();
    for scenario in &results.scenarios {
        for arm in &results.arms {
            let trials: Vec<_> = scenario.trials().filter(|t| t.arm == arm.name).collect();
            if trials.is_empty() {
                continue;
            }
            let mut gates = BTreeMap::new();
            for void in trials.iter().flat_map(|trial| &trial.voids) {
                *gates.entry(void.gate.clone()).or_insert(0) += 1;
            }
            shares.push(VoidShare {
                scenario: scenario.id.clone(),
                arm: arm.name.clone(),
                void: trials.iter().filter(|trial| trial.is_void()).count() as u32,
                trials: trials.len() as u32,
                gates,
            });
        }
    }
    shares
}

pub fn of(results: &Results, voids: &[VoidShare]) -> Status {
    let mut fatal = broken_parity(results);
    if let Some(why) = &results.interrupted {
        fatal.push(format!("the run is not complete: {why}"));
    }
    let unoptimised = unoptimised(results);
    let gates = gates(results, voids);
    let mut notes: Vec<String> = counted(voids).into_iter().collect();
    if results.profile == Profile::Smoke {
        notes.extend(unoptimised);
        notes.extend(gates);
    } else {
        fatal.extend(unoptimised);
        fatal.extend(gates);
    }
    let state = match (fatal.is_empty(), results.profile) {
        (false, _) => State::Void,
        (true, Profile::Smoke) => State::Smoke,
        (true, _) => State::Valid,
    };
    fatal.extend(notes);
    Status {
        state,
        reasons: fatal,
    }
}

/// Arms that claim to be the same core and are not, and rows of the parity table that differ
/// without a reason given and by more than rounding.
fn broken_parity(results: &Results) -> Vec<String> {
    let mut broken: Vec<String> = mismatched_cores(results).into_iter().collect();
    for row in &results.parity {
        if !row.equal && row.note.is_none() && !row.is_rounded() {
            broken.push(format!("not equal between arms: {}", row.what));
        }
    }
    broken
}

/// The arms whose cores differ, in one line.
pub fn mismatched_cores(results: &Results) -> Option<String> {
    let cores: Vec<(&str, &str, &str)> = results
        .arms
        .iter()
        .filter_map(|arm| {
            let level = arm.opt_level.as_deref().unwrap_or("");
            Some((arm.name.as_str(), arm.core_fingerprint.as_deref()?, level))
        })
        .collect();
    let first = cores.first()?;
    let other = cores
        .iter()
        .find(|core| (core.1, core.2) != (first.1, first.2))?;
    Some(format!(
        "arms were built from different cores: {} has core={} opt={}, {} has core={} opt={}",
        first.0, first.1, first.2, other.0, other.1, other.2
    ))
}

fn unoptimised(results: &Results) -> Option<String> {
    let arm = results
        .arms
        .iter()
        .find(|arm| arm.opt_level.as_deref() == Some("0"))?;
    Some(format!(
        "{} was built without optimisation (opt=0)",
        arm.name
    ))
}

fn gates(results: &Results, voids: &[VoidShare]) -> Vec<String> {
    let mut reasons = Vec::new();
    let (void, trials) = total(voids.iter());
    if f64::from(void) > MOST_VOID * f64::from(trials) {
        reasons.push(format!(
            "{void} of {trials} trials are void; what is left is a selection"
        ));
    }
    reasons.extend(lopsided(results, voids, LOPSIDED_BY_CHANCE));
    // Of the many that there are, one would be by chance.
    let chance = LOPSIDED_BY_CHANCE / results.scenarios.len().max(1) as f64;
    for scenario in &results.scenarios {
        let its = voids.iter().filter(|share| share.scenario == scenario.id);
        let its: Vec<VoidShare> = its.cloned().collect();
        let found = lopsided(results, &its, chance);
        reasons.extend(found.iter().map(|why| format!("{}: {why}", scenario.id)));
    }
    reasons
}

/// Pairs of arms of which one lost more trials than the other, and not by chance.
fn lopsided(results: &Results, voids: &[VoidShare], chance: f64) -> Vec<String> {
    let arms: Vec<(&str, u32, u32)> = results
        .arms
        .iter()
        .map(|arm| {
            let (void, trials) = total(voids.iter().filter(|share| share.arm == arm.name));
            (arm.name.as_str(), void, trials)
        })
        .filter(|(_, _, trials)| *trials > 0)
        .collect();
    let mut found = Vec::new();
    for (i, one) in arms.iter().enumerate() {
        for other in &arms[i + 1..] {
            let share = |arm: &(&str, u32, u32)| f64::from(arm.1) / f64::from(arm.2);
            let p = fisher_exact(one.1.into(), one.2.into(), other.1.into(), other.2.into());
            if (share(one) - share(other)).abs() > LOPSIDED && p < chance {
                found.push(format!(
                    "voids are lopsided: {} of {} trials of {}, {} of {} of {} ({})",
                    one.1,
                    one.2,
                    one.0,
                    other.1,
                    other.2,
                    other.0,
                    words::p_value(p)
                ));
            }
        }
    }
    found
}

/// One line on the void trials, if there are any.
fn counted(voids: &[VoidShare]) -> Option<String> {
    let (void, trials) = total(voids.iter());
    if void == 0 {
        return None;
    }
    let mut gates: BTreeMap<&str, u32> = BTreeMap::new();
    for (gate, count) in voids.iter().flat_map(|share| &share.gates) {
        *gates.entry(gate).or_insert(0) += count;
    }
    let gates: Vec<String> = gates
        .into_iter()
        .map(|(gate, count)| format!("{gate} {count}"))
        .collect();
    Some(format!(
        "{void} of {trials} trials are void and left out ({})",
        gates.join(", ")
    ))
}

fn total<'a>(shares: impl Iterator<Item = &'a VoidShare>) -> (u32, u32) {
    shares.fold((0, 0), |(void, trials), share| {
        (void + share.void, trials + share.trials)
    })
}
