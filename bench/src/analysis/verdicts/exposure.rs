//! What does an attacker get: plaintext, keys, privileges.

use super::super::words;
use super::{Case, behind, subject};
use crate::results::{Arm, Basis, Placement, Trial, Verdict, keys};
use crate::stats::{median, upper_bound_of_none};

pub fn fail_open(case: &Case) -> Option<Verdict> {
    let seen: Vec<(&Arm, Leak)> = case
        .arms()
        .filter_map(|arm| {
            // Without a mesh there is no proxy to be dead: its trials are the capture's control.
            let any = || Leak::of(case, &arm.name, false).filter(|_| !is_mesh(arm));
            Some((arm, Leak::of(case, &arm.name, true).or_else(any)?))
        })
        .collect();
    let alive: Vec<String> = case
        .meshes()
        .filter_map(|arm| Some((arm, Leak::of(case, &arm.name, false)?)))
        .filter(|(_, leak)| leak.bytes > 0.0)
        .map(|(arm, leak)| format!("{} {}", leak.in_words(), behind(arm)))
        .collect();
    let meshes: Vec<&(&Arm, Leak)> = seen.iter().filter(|(arm, _)| is_mesh(arm)).collect();
    if meshes.is_empty() {
        return None;
    }
    let open = meshes.iter().any(|(_, leak)| leak.trials_leaking > 0);
    let per_arm: Vec<String> = meshes
        .iter()
        .map(|(arm, leak)| format!("{} {}", leak.in_words(), behind(arm)))
        .collect();
    let control = seen
        .iter()
        .find(|(arm, _)| !is_mesh(arm))
        .map(|(_, leak)| {
            if leak.bytes > 0.0 {
                format!(
                    " The same capture saw {} without a mesh, so it sees plaintext where there is some.",
                    words::quantity(leak.bytes, "bytes")
                )
            } else {
                " The capture saw nothing without a mesh either: it proves nothing.".into()
            }
        })
        .unwrap_or_default();
    let word = if open {
        "It fails open"
    } else {
        "It fails closed"
    };
    let fewest = meshes
        .iter()
        .map(|(_, leak)| leak.trials)
        .min()
        .unwrap_or(0);
    let caution = if open {
        String::new()
    } else {
        format!(
            " Nothing in {} still allows a leak in up to {} of such faults.",
            words::plural(fewest as u32, "trial"),
            words::percent(upper_bound_of_none(fewest))
        )
    };
    let alive = if alive.is_empty() {
        String::new()
    } else {
        format!(
            " Even with every proxy alive there was plaintext: {}.",
            words::list(&alive)
        )
    };
    let mut verdict = case.verdict(
        "With the proxy dead, does traffic leave in plaintext?",
        Basis::Counted,
        format!(
            "{word}: {}.{alive}{control}{caution}",
            words::list(&per_arm)
        ),
    );
    verdict.figures = seen
        .iter()
        .map(|(arm, leak)| (arm.name.clone(), words::quantity(leak.bytes, "bytes")))
        .collect();
    Some(verdict)
}

fn is_mesh(arm: &Arm) -> bool {
    arm.placement != Placement::None
}

/// Plaintext seen in the trials of an arm together.
struct Leak {
    bytes: f64,
    trials: u64,
    trials_leaking: u64,
    attempts: f64,
    answered: Option<f64>,
}

impl Leak {
    /// Of the trials with a proxy dead (x > 0), or of those with all alive.
    fn of(case: &Case, arm: &str, dead: bool) -> Option<Leak> {
        let trials: Vec<&Trial> = good_trials(case, arm, keys::PLAINTEXT_BYTES)
            .filter(|trial| (trial.point.x > 0.0) == dead)
            .collect();
        let all = |key: &str| -> Vec<f64> {
            trials
                .iter()
                .filter_map(|trial| trial.values.get(key).copied())
                .collect()
        };
        let bytes = all(keys::PLAINTEXT_BYTES);
        let answered = all(keys::ATTEMPTS_ANSWERED);
        (!trials.is_empty()).then(|| Leak {
            bytes: bytes.iter().sum(),
            trials: trials.len() as u64,
            trials_leaking: bytes.iter().filter(|bytes| **bytes > 0.0).count() as u64,
            attempts: all(keys::ATTEMPTS).iter().sum(),
            answered: (!answered.is_empty()).then(|| answered.iter().sum()),
        })
    }

    /// "0 bytes of plaintext in 12 trials (480 requests tried, 0 answered)".
    fn in_words(&self) -> String {
        let answered = self
            .answered
            .map(|answered| format!(", {answered:.0} answered"))
            .unwrap_or_default();
        let attempts = if self.attempts > 0.0 {
            format!(" ({:.0} requests tried{answered})", self.attempts)
        } else {
            String::new()
        };
        let leaking = if self.trials_leaking == 0 {
            String::new()
        } else {
            format!("{} of ", self.trials_leaking)
        };
        format!(
            "{} of plaintext in {leaking}{}{attempts}",
            words::quantity(self.bytes, "bytes"),
            words::plural(self.trials as u32, "trial")
        )
    }
}

pub fn keys_in_memory(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let point = points.iter().max_by(|a, b| a.x.total_cmp(&b.x))?;
    let value = |arm: &str, key: &str| {
        let values: Vec<f64> = good_trials(case, arm, key)
            .filter(|trial| trial.point == *point)
            .map(|trial| trial.values[key])
            .collect();
        Some((median(&values)?, values.len() as u32))
    };
    let seen: Vec<(&Arm, f64, u32)> = case
        .meshes()
        .filter_map(|arm| {
            let (found, scans) = value(&arm.name, keys::KEYS_MAX)?;
            Some((arm, found, scans))
        })
        .collect();
    let (first, _, scans) = *seen.first()?;
    let keys_there = value(&first.name, keys::IDENTITIES)
        .map(|(count, _)| {
            format!(
                "Of the {} workload keys on the node, one",
                words::number(count)
            )
        })
        .unwrap_or("One".into());
    let per_arm: Vec<String> = seen
        .iter()
        .map(|(arm, found, _)| format!("{} {}", words::number(*found), behind(arm)))
        .collect();
    let left: Vec<String> = seen
        .iter()
        .filter_map(|(arm, _, _)| {
            let (count, _) = value(&arm.name, keys::KEYS_AFTER_REMOVAL)?;
            Some(format!("{} with {}", words::number(count), subject(arm)))
        })
        .collect();
    let left = if left.is_empty() {
        String::new()
    } else {
        format!(
            " Keys still found after their pod was removed: {}.",
            words::list(&left)
        )
    };
    let mut verdict = case.verdict(
        "What does an attacker get who reads one proxy's memory?",
        Basis::Counted,
        format!(
            "{keys_there} proxy process holds {} ({} each).{left}",
            words::list(&per_arm),
            words::plural(scans, "scan")
        ),
    );
    verdict.figures = seen
        .iter()
        .map(|(arm, found, _)| {
            let noun = if *found == 1.0 { "key" } else { "keys" };
            (
                arm.name.clone(),
                format!("{} {noun}", words::number(*found)),
            )
        })
        .collect();
    Some(verdict)
}

pub fn privileges(case: &Case) -> Option<Verdict> {
    let seen: Vec<(&Arm, String, String)> = case
        .meshes()
        .filter_map(|arm| {
            let trial = good_trials(case, &arm.name, keys::CAPABILITIES).last()?;
            let value = |key: &str| trial.values.get(key).copied().unwrap_or(0.0);
            let names: Vec<String> = trial
                .values
                .keys()
                .filter_map(|key| key.strip_prefix(keys::CAPABILITY_PREFIX))
                .map(|name| format!("CAP_{}", name.to_uppercase()))
                .collect();
            let may = match names.len() {
                0 => "no capability".to_owned(),
                1..=6 => words::list(&names),
                many => format!("{many} capabilities"),
            };
            let user = if value(keys::ROOT_PROXIES) > 0.0 {
                "root"
            } else {
                "an unprivileged user"
            };
            let network = if value(keys::NODE_NETWORK_PROXIES) > 0.0 {
                "in the node's network"
            } else {
                "in its pod's network"
            };
            let short = match names.len() {
                0 => format!("{user}, no capability"),
                1 => format!("{user}, 1 capability"),
                many => format!("{user}, {many} capabilities"),
            };
            Some((arm, format!("{user} with {may}, {network}"), short))
        })
        .collect();
    seen.first()?;
    let per_arm: Vec<String> = seen
        .iter()
        .map(|(arm, what, _)| format!("{} {what}", behind(arm)))
        .collect();
    let mut verdict = case.verdict(
        "What may someone do on the node who takes over a proxy?",
        Basis::Counted,
        format!(
            "The most privileged proxy process is {}.",
            per_arm.join("; ")
        ),
    );
    verdict.figures = seen
        .iter()
        .map(|(arm, _, short)| (arm.name.clone(), short.clone()))
        .collect();
    Some(verdict)
}

fn good_trials<'a>(case: &Case<'a>, arm: &str, key: &str) -> impl Iterator<Item = &'a Trial> {
    case.scenario
        .trials()
        .filter(move |trial| trial.arm == arm && !trial.is_void())
        .filter(move |trial| trial.values.contains_key(key))
}

pub fn forgeries(case: &Case) -> Option<Verdict> {
    let tried = case.said(keys::FORGERIES, None, super::sum)?;
    let accepted = case.said(keys::FORGERIES_ACCEPTED, None, super::sum)?;
    let of: Vec<String> = accepted
        .values
        .iter()
        .filter_map(|(arm, accepted)| {
            let tried = tried.of(arm)?;
            Some(format!(
                "{} of {} {}",
                words::number(*accepted),
                words::number(tried),
                behind(arm)
            ))
        })
        .collect();
    let which: Vec<String> = case
        .scenario
        .trials()
        .flat_map(|trial| &trial.notes)
        .filter(|note| note.starts_with("accepted:"))
        .cloned()
        .collect();
    let which = match which.first() {
        None => String::new(),
        Some(first) => format!(" First of them: {first}."),
    };
    let mut verdict = case.verdict(
        "Does the mesh believe somebody who claims to be another?",
        Basis::Counted,
        format!(
            "Foreign identities, foreign destinations, borrowed certificates and marked sockets: accepted were {}.{which}",
            words::list(&of)
        ),
    );
    verdict.figures = accepted.figures("accepted");
    Some(verdict)
}

pub fn ways_to_a_key(case: &Case) -> Option<Verdict> {
    let tried = case.said(keys::WAYS, None, median)?;
    let open = case.said(keys::WAYS_OPEN, None, |values| {
        values.iter().copied().reduce(f64::max)
    })?;
    let of: Vec<String> = open
        .values
        .iter()
        .filter_map(|(arm, open)| {
            let tried = tried.of(arm)?;
            Some(format!(
                "{} of {} {}",
                words::number(*open),
                words::number(tried),
                behind(arm)
            ))
        })
        .collect();
    let mut verdict = case.verdict(
        "Can a taken-over application get at a proxy's key?",
        Basis::Counted,
        format!(
            "Of the ways that were tried, open were {}.",
            words::list(&of)
        ),
    );
    verdict.figures = open.figures("open");
    Some(verdict)
}
