//! What it costs beyond single requests: bulk transfers, chains of services, density, and on whose
//! bill it lands.

use super::super::words;
use super::{Case, basis_of, subject};
use crate::results::{Basis, Claim, Verdict, keys};
use crate::stats::median;

pub fn transfer(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let rates: Vec<String> = points
        .iter()
        .filter_map(|point| {
            let rate = case.said(keys::BULK_RATE, Some(point), median)?;
            Some(format!(
                "{}: {}",
                point.label,
                words::list(&rate.in_words())
            ))
        })
        .collect();
    let most = points.last()?;
    let rivals = case.rivals(keys::BULK_RATE, most);
    let rivalry = rivals
        .map(|c| {
            format!(
                " Agent against sidecars over {}: {}.",
                most.label,
                words::finding(c)
            )
        })
        .unwrap_or_default();
    let cpu = case
        .said("proxy_cpu_s_per_gb", Some(most), median)
        .map(|cpu| {
            format!(
                " A gigabyte took of the proxies' processors {}.",
                words::list(&cpu.in_words())
            )
        })
        .unwrap_or_default();
    let against = case.against_none(keys::BULK_RATE, most);
    let mut verdict = case.verdict(
        "How fast do large answers come?",
        basis_of(rivals.into_iter().chain(against.iter().map(|(_, c)| *c))),
        format!("Received over {}.{cpu}{rivalry}", rates.join("; ")),
    );
    verdict.figures = case.said(keys::BULK_RATE, Some(most), median)?.figures("");
    Some(verdict)
}

pub fn hops(case: &Case) -> Option<Verdict> {
    let point = case
        .scenario
        .points()
        .into_iter()
        .max_by(|a, b| a.x.total_cmp(&b.x))?;
    let each = case.said(keys::US_PER_HOP, Some(&point), median)?;
    let rivals = case.rivals(keys::US_PER_HOP, &point);
    let against = case.against_none(keys::US_PER_HOP, &point);
    let findings: Vec<String> = against
        .iter()
        .map(|(arm, c)| format!("{} {} that", subject(arm), words::finding(c)))
        .collect();
    let findings = match findings.as_slice() {
        [] => String::new(),
        some => format!(" Against no mesh: {}.", some.join(", ")),
    };
    let rivalry = rivals
        .map(|c| format!(" Agent against sidecars: {}.", words::finding(c)))
        .unwrap_or_default();
    let mut verdict = case.verdict(
        "What does one more service on the way add?",
        basis_of(rivals.into_iter().chain(against.iter().map(|(_, c)| *c))),
        format!(
            "Each further service added to the median {}.{findings}{rivalry}",
            words::list(&each.in_words())
        ),
    );
    verdict.figures = each.figures("each");
    Some(verdict)
}

/// Memory and idle processor by their lines, processor under load by R2.
pub fn density(case: &Case) -> Option<Verdict> {
    let crossings: Vec<_> = case
        .analysis
        .crossovers
        .iter()
        .filter(|crossing| crossing.scenario == case.scenario.id)
        .collect();
    if crossings.is_empty() {
        return None;
    }
    let sentences: Vec<String> = crossings.iter().map(|one| one.sentence.clone()).collect();
    let under_load = case
        .analysis
        .comparisons
        .iter()
        .filter(|c| c.scenario == "R2" && c.metric == keys::PROXY_CPU_PER_REQUEST)
        .find(|c| (c.arm.as_str(), c.baseline.as_str()) == ("agent", "sidecar"))
        .map(|c| {
            let each = match c.claim {
                Claim::Lower => "so more requests move that point down",
                Claim::Higher => "so more requests move that point up",
                Claim::Equivalent | Claim::NoClaim => {
                    "so requests do not move that point as far as can be said"
                }
            };
            format!(
                " For a request the agent takes {} the processor of sidecars, {each}.",
                words::finding(c)
            )
        })
        .unwrap_or_default();
    let basis = match crossings
        .iter()
        .all(|one| one.pods.is_none_or(|pods| pods.interval.is_none()))
    {
        true => Basis::NotResolved,
        false => Basis::Claimed,
    };
    let mut verdict = case.verdict(
        "From how many pods on a node is the agent cheaper?",
        basis,
        format!("Idle, {}.{under_load}", sentences.join("; ")),
    );
    verdict.figures = crossings
        .iter()
        .map(|one| {
            let pods = one.pods.map_or("never".to_owned(), |pods| {
                format!("from {}", pods.value.ceil())
            });
            let what = case
                .scenario
                .metric(&one.metric)
                .map_or("", |metric| metric.unit.as_str());
            (what.to_owned(), pods)
        })
        .collect();
    Some(verdict)
}

pub fn attribution(case: &Case) -> Option<Verdict> {
    let cpu = case.said(keys::CPU_ATTRIBUTED, None, median)?;
    let memory = case.said(keys::MEMORY_ATTRIBUTED, None, median)?;
    let mut verdict = case.verdict(
        "Is a pod charged for what it makes its proxy use?",
        Basis::Counted,
        format!(
            "Charged to the pods that caused it were, of the proxies' processor time, {}; of their memory {}.",
            words::list(&cpu.in_words()),
            words::list(&memory.in_words())
        ),
    );
    verdict.figures = cpu.figures("of the CPU");
    Some(verdict)
}
