//! Who gets hurt when something goes wrong: hoarded connections, a dead or hanging proxy, a control
//! plane that is away.

use super::super::words;
use super::{Case, behind};
use crate::results::{Basis, FaultSummary, Spread, Verdict, keys};
use crate::stats::median;

/// Recovery is judged in bins of this length.
const BIN_MS: f64 = 100.0;

pub fn hoarder(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let worst = points.iter().max_by(|a, b| a.x.total_cmp(&b.x))?;
    let seen: Vec<(&crate::results::Arm, f64, f64)> = case
        .arms()
        .filter_map(|arm| {
            let sum = |key: &str| -> f64 {
                let trials = case.scenario.trials();
                trials
                    .filter(|trial| trial.arm == arm.name && !trial.is_void())
                    .filter(|trial| trial.point == *worst)
                    .filter_map(|trial| trial.values.get(key))
                    .sum()
            };
            let asked = sum(keys::CONNECTS);
            (asked > 0.0).then(|| (arm, asked, sum(keys::CONNECTS_FAILED)))
        })
        .collect();
    seen.first()?;
    let failed: Vec<String> = seen
        .iter()
        .map(|(arm, asked, failed)| {
            format!(
                "{} of {} {}",
                words::number(*failed),
                words::number(*asked),
                behind(arm)
            )
        })
        .collect();
    let slower: Vec<String> = case
        .against_none("slowdown_first_byte_p50", worst)
        .into_iter()
        .map(|(arm, c)| format!("{} {}", words::finding(c), behind(arm)))
        .collect();
    let slower = if slower.is_empty() {
        String::new()
    } else {
        format!(
            " Beyond what it is without a mesh, their first byte was slowed down {}.",
            words::list(&slower)
        )
    };
    let mut verdict = case.verdict(
        "A neighbour hoards connections: can the others still connect?",
        Basis::Counted,
        format!(
            "With {} by a neighbour, of the victim's new connections failed {}.{slower}",
            worst.label,
            words::list(&failed)
        ),
    );
    verdict.figures = seen
        .iter()
        .map(|(arm, asked, failed)| {
            (
                arm.name.clone(),
                format!(
                    "{}/{} failed",
                    words::number(*failed),
                    words::number(*asked)
                ),
            )
        })
        .collect();
    Some(verdict)
}

pub fn killed_proxy(case: &Case) -> Option<Verdict> {
    let words = Words {
        question: "A proxy dies: who notices, and for how long?",
        one: "kill",
        proxy: |arm| format!("a killed {arm}"),
    };
    fault(case, &words)
}

pub fn hung_proxy(case: &Case) -> Option<Verdict> {
    let words = Words {
        question: "A proxy hangs for ten seconds: who waits with it?",
        one: "hang",
        proxy: |arm| {
            let article = if arm.starts_with('a') { "an" } else { "a" };
            format!("{article} {arm} that hung for 10 s")
        },
    };
    fault(case, &words)
}

/// How a fault is told of.
struct Words {
    question: &'static str,
    /// One injection.
    one: &'static str,
    /// The proxy of an arm that it was done to.
    proxy: fn(&str) -> String,
}

fn fault(case: &Case, told: &Words) -> Option<Verdict> {
    let faults: Vec<(&crate::results::Arm, &FaultSummary)> =
        case.meshes()
            .filter_map(|arm| {
                let summary =
                    case.analysis.faults.iter().find(|fault| {
                        fault.scenario == case.scenario.id && fault.arm == arm.name
                    })?;
                Some((arm, summary))
            })
            .collect();
    let (_, first) = faults.first()?;
    let per_arm: Vec<String> = faults
        .iter()
        .map(|(arm, fault)| {
            format!(
                "{} hit {}",
                (told.proxy)(&arm.name),
                consequences(fault, told.one)
            )
        })
        .collect();
    let others: Vec<String> = faults
        .iter()
        .map(|(arm, fault)| format!("{} {}", reached_others(fault, told.one), behind(arm)))
        .collect();
    let mut verdict = case.verdict(
        told.question,
        Basis::Counted,
        format!(
            "In {} each, {}. More than one pod was hit in {}.",
            words::plural(first.injections, told.one),
            per_arm.join("; "),
            words::list(&others)
        ),
    );
    verdict.figures = faults
        .iter()
        .map(|(arm, fault)| {
            let pods = fault
                .pods_hit
                .map_or("–".into(), |s| words::number(s.median));
            let of = fault.pods_meshed.map_or("–".into(), words::number);
            let time = fault
                .recover_ms
                .map_or("–".into(), |s| bin_or_more(s.median));
            (arm.name.clone(), format!("{pods}/{of} pods, {time}"))
        })
        .collect();
    Some(verdict)
}

pub fn crash_loop(case: &Case) -> Option<Verdict> {
    let all = case.said(keys::AVAILABILITY, None, median)?;
    let worst = case.said(keys::WORST_AVAILABILITY, None, median)?;
    let hit = case.said(keys::PODS_HIT, None, median)?;
    let mut verdict = case.verdict(
        "A proxy dies again and again: what still works?",
        Basis::Counted,
        format!(
            "While one proxy died five times, all pods of its node were available {}; the worst of them {}. Hit were {}.",
            words::list(&all.in_words()),
            words::list(&worst.in_words()),
            words::list(&hit.in_words())
        ),
    );
    verdict.figures = all.figures("available");
    Some(verdict)
}

pub fn absent_control(case: &Case) -> Option<Verdict> {
    let sum = |arm: &str, key: &str| -> Option<f64> {
        let values: Vec<f64> = case
            .scenario
            .trials()
            .filter(|trial| trial.arm == arm && !trial.is_void())
            .filter_map(|trial| trial.values.get(key).copied())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    };
    let trials = |arm: &str| {
        let good = case.scenario.trials();
        good.filter(|trial| trial.arm == arm && !trial.is_void())
            .count() as u32
    };
    let seen: Vec<(&crate::results::Arm, f64, f64, f64)> = case
        .meshes()
        .filter_map(|arm| {
            let of = |key| sum(&arm.name, key);
            let requests = of(keys::AWAY_REQUESTS)?;
            let failed = of(keys::AWAY_FAILED)?;
            Some((arm, requests, failed, of(keys::RESTARTS_ALONE)?))
        })
        .collect();
    let requests: Vec<String> = seen
        .iter()
        .map(|(arm, requests, failed, _)| {
            format!(
                "{} of {} requests failed {}",
                words::number(*failed),
                words::number(*requests),
                behind(arm)
            )
        })
        .collect();
    let alone: Vec<String> = seen
        .iter()
        .map(|(arm, _, _, alone)| {
            format!(
                "{} of {} {}",
                words::number(*alone),
                trials(&arm.name),
                behind(arm)
            )
        })
        .collect();
    seen.first()?;
    let mut verdict = case.verdict(
        "The control plane is away: what still works?",
        Basis::Counted,
        format!(
            "While it was away, {}. A proxy killed meanwhile came back without it in {}.",
            words::list(&requests),
            words::list(&alone)
        ),
    );
    verdict.figures = seen
        .iter()
        .map(|(arm, _, failed, alone)| {
            let restarts = if *alone > 0.0 {
                "restarts"
            } else {
                "no restart"
            };
            (
                arm.name.clone(),
                format!("{} failed, {restarts}", words::number(*failed)),
            )
        })
        .collect();
    Some(verdict)
}

/// "1 of 8 pods, lost 12 requests (worst 14) and was over after 310 ms (worst 402 ms)".
fn consequences(fault: &FaultSummary, one: &str) -> String {
    let pods = fault.pods_hit.map_or("–".into(), |s| spread(s, ""));
    let meshed = fault
        .pods_meshed
        .map(|pods| format!(" of {}", words::number(pods)))
        .unwrap_or_default();
    let lost = fault
        .requests_lost
        .map(|s| {
            format!(
                ", lost {}",
                spread(s, "requests").replace(" requests)", ")")
            )
        })
        .unwrap_or_default();
    let time = fault
        .recover_ms
        .map(|s| format!(" and was over {}", after(s)))
        .unwrap_or_default();
    let stuck = match fault.not_recovered {
        0 => String::new(),
        n => format!(
            " ({n} of {}: not over when the trial ended)",
            words::plural(fault.injections, one)
        ),
    };
    format!("{pods}{meshed} pods{lost}{time}{stuck}")
}

fn spread(spread: Spread, unit: &str) -> String {
    let median = words::quantity(spread.median, unit);
    if spread.max == spread.median {
        median
    } else {
        format!("{median} (worst {})", words::quantity(spread.max, unit))
    }
}

/// "after 310 ms (worst 402 ms)", "within 100 ms (worst 200 ms)".
fn after(spread: Spread) -> String {
    let median = match bin_or_more(spread.median) {
        short if spread.median < BIN_MS => short.replace('<', "within"),
        long => format!("after {long}"),
    };
    if spread.max == spread.median {
        median
    } else {
        format!("{median} (worst {})", bin_or_more(spread.max))
    }
}

/// A recovery that is complete in the bin of the kill took no longer than that bin.
fn bin_or_more(ms: f64) -> String {
    if ms < BIN_MS {
        format!("< {}", words::quantity(BIN_MS, "ms"))
    } else {
        words::quantity(ms, "ms")
    }
}

/// "0 of 10 (up to 26 % cannot be excluded)".
fn reached_others(fault: &FaultSummary, one: &str) -> String {
    let seen = fault.hit_others;
    if seen.hits == 0 {
        let most = crate::stats::upper_bound_of_none(seen.of);
        format!(
            "0 of {} (up to {} of {one}s cannot be excluded)",
            seen.of,
            words::percent(most)
        )
    } else {
        format!("{} of {}", seen.hits, seen.of)
    }
}
