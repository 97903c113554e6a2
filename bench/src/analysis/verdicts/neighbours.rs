//! Who gets hurt by a neighbour: floods, slow clients, bulk transfers, tight limits, unequal
//! shares, excessive configuration.

use super::super::words;
use super::{Case, basis_of, behind};
use crate::results::{Basis, Placement, Point, SlowdownPoint, Verdict, keys};
use crate::stats::median;

pub fn noisy_neighbour(case: &Case) -> Option<Verdict> {
    let worst = worst(case, None)?;
    let quota = words::number(worst.x);
    let circumstance = format!("With one neighbour flooding at {quota}× its quota");
    slowed(
        case,
        "How much does one flooding neighbour hurt the others?",
        &circumstance,
        &worst,
    )
}

pub fn handshakes(case: &Case) -> Option<Verdict> {
    let worst = worst(case, None)?;
    let quota = words::number(worst.x);
    let circumstance = format!(
        "With a stranger's TLS handshakes at one neighbour, {quota}× what a pod's share of proxy completes,"
    );
    slowed(
        case,
        "How much does a flood of handshakes at one pod hurt the others?",
        &circumstance,
        &worst,
    )
}

pub fn elephant(case: &Case) -> Option<Verdict> {
    let worst = worst(case, None)?;
    let circumstance = format!("Beside a neighbour's bulk transfer over {}", worst.label);
    slowed(
        case,
        "How much does a bulk transfer hurt small requests beside it?",
        &circumstance,
        &worst,
    )
}

pub fn slow_clients(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let mut series: Vec<&str> = points.iter().map(|point| point.series.as_str()).collect();
    series.dedup();
    let mut answers = Vec::new();
    let mut bases = Vec::new();
    for series in series {
        let Some(worst) = worst(case, Some(series)) else {
            continue;
        };
        let circumstance = format!("With {} clients of a neighbour ({series})", worst.label);
        let Some(one) = slowed(case, "", &circumstance, &worst) else {
            continue;
        };
        let held = case.said(keys::SLOW_HELD, Some(&worst), median);
        let growth = case.said(keys::GROWTH, Some(&worst), median);
        let memory = held.zip(growth).map_or(String::new(), |(held, growth)| {
            format!(
                " The node's proxies held {} more, growing by {}.",
                words::list(&held.in_words()),
                words::list(&growth.in_words())
            )
        });
        answers.push(one.answer + &memory);
        bases.push((one.basis, one.figures));
    }
    let (basis, figures) = bases.pop()?;
    let claimed = basis == Basis::Claimed || bases.iter().any(|(b, _)| *b == Basis::Claimed);
    let basis = if claimed { Basis::Claimed } else { basis };
    let question = "What do clients that are slow on purpose do to the others?";
    let mut verdict = case.verdict(question, basis, answers.join(" "));
    verdict.figures = figures;
    Some(verdict)
}

pub fn tight_limit(case: &Case) -> Option<Verdict> {
    let worst = worst(case, None)?;
    let circumstance = format!(
        "With {} of processor for each pod's share of proxy instead of 500m",
        worst.label
    );
    let question = "How low may the proxies' processor limit be?";
    let mut verdict = slowed(case, question, &circumstance, &worst)?;
    let affected: Vec<String> = case
        .scenario
        .points()
        .iter()
        .filter(|point| point.x > 0.0)
        .filter_map(|point| {
            let pods = case.said(keys::PODS_AFFECTED, Some(point), median)?;
            Some(format!(
                "at {} {}",
                point.label,
                words::list(&pods.in_words())
            ))
        })
        .collect();
    if !affected.is_empty() {
        verdict.answer += &format!(" Of two clients, affected were {}.", affected.join("; "));
    }
    Some(verdict)
}

pub fn fair_shares(case: &Case) -> Option<Verdict> {
    let jain = case.said(keys::JAIN, None, median)?;
    let least = case.said(keys::MIN_MAX, None, median)?;
    let rate = case.said(keys::ALL_ANSWERED, None, median)?;
    let rivals = case.rivals(keys::JAIN, &Point::only());
    let rivalry = rivals
        .map(|c| {
            format!(
                " Agent against sidecars, Jain's index: {}.",
                words::finding(c)
            )
        })
        .unwrap_or_default();
    let mut verdict = case.verdict(
        "When all ask for more than there is, does each get its share?",
        rivals.map_or(Basis::Counted, |c| basis_of([c])),
        format!(
            "Of equal tenants, all saturating, the least got {} of what the most got (Jain's index {}); together they got \
             {}.{rivalry}",
            words::list(&least.in_words()),
            words::list(&jain.in_words()),
            words::list(&rate.in_words())
        ),
    );
    verdict.figures = jain.figures("Jain");
    Some(verdict)
}

pub fn poison(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let (clean, poisoned) = (points.first()?, points.last()?);
    let clean_change = case.said(keys::CONFIGURED, Some(clean), median)?;
    let change = case.said(keys::CONFIGURED, Some(poisoned), median);
    let changed = change
        .as_ref()
        .map_or("was not heard of in time".to_owned(), |change| {
            format!(
                "took {} until it was heard of",
                words::list(&change.in_words())
            )
        });
    let clean_start = case.said(keys::POD_START, Some(clean), median)?;
    let start = case.said(keys::POD_START, Some(poisoned), median)?;
    let mut verdict = case.verdict(
        "What does one tenant's excessive configuration do to the others?",
        Basis::Counted,
        format!(
            "Beside it, another service's change {changed} (without it {}), and a pod's start {} (without it {}).",
            words::list(&clean_change.in_words()),
            words::list(&start.in_words()),
            words::list(&clean_start.in_words())
        ),
    );
    verdict.figures = start.figures("to start");
    Some(verdict)
}

/// The point with the most of whatever it is, of the first series or that one.
fn worst(case: &Case, series: Option<&str>) -> Option<Point> {
    let points = case.scenario.points();
    let series = series.unwrap_or(&points.first()?.series);
    points
        .iter()
        .filter(|point| point.series == *series)
        .max_by(|a, b| a.x.total_cmp(&b.x))
        .filter(|point| point.x > 0.0)
        .cloned()
}

/// What became of a victim's median at a point, in each arm and beyond the arm without a mesh.
fn slowed(case: &Case, question: &str, circumstance: &str, worst: &Point) -> Option<Verdict> {
    let seen: Vec<_> = case
        .arms()
        .filter_map(|arm| Some((arm, at(case, &arm.name, worst)?)))
        .collect();
    let slowdown = |placement: Option<Placement>| -> Vec<String> {
        seen.iter()
            .filter(|(arm, _)| (arm.placement == Placement::None) == placement.is_some())
            .filter_map(|(arm, point)| {
                let text = words::ratio_estimate(point.slowdown.as_ref()?);
                Some(match placement {
                    Some(_) => format!("{} {text}", behind(arm)),
                    None => format!("{text} {}", behind(arm)),
                })
            })
            .collect()
    };
    let meshes = words::list(&slowdown(None));
    let control = slowdown(Some(Placement::None))
        .first()
        .map(|text| format!("; {text}"))
        .unwrap_or_default();
    if meshes.is_empty() {
        return None;
    }
    let goodput: Vec<String> = seen
        .iter()
        .filter_map(|(arm, point)| {
            Some(format!(
                "{} {}",
                words::percent(point.goodput?.value),
                behind(arm)
            ))
        })
        .collect();
    let goodput = if goodput.is_empty() {
        String::new()
    } else {
        format!(" Its goodput was {}.", words::list(&goodput))
    };
    let rivals = case.rivals("slowdown_p50", worst);
    let rivalry = rivals
        .map(|c| format!(" Agent against sidecars: {}.", words::finding(c)))
        .unwrap_or_default();
    let against = case.against_none("slowdown_p50", worst);
    let mut verdict = case.verdict(
        question,
        basis_of(rivals.into_iter().chain(against.iter().map(|(_, c)| *c))),
        format!("{circumstance} the victim's median rose {meshes}{control}.{goodput}{rivalry}"),
    );
    verdict.figures = seen
        .iter()
        .filter_map(|(arm, point)| {
            Some((
                arm.name.clone(),
                words::ratio_estimate(point.slowdown.as_ref()?),
            ))
        })
        .collect();
    Some(verdict)
}

fn at<'a>(case: &Case<'a>, arm: &str, worst: &Point) -> Option<&'a SlowdownPoint> {
    case.analysis
        .slowdowns
        .iter()
        .find(|curve| {
            curve.scenario == case.scenario.id
                && curve.arm == arm
                && curve.metric == "p50"
                && curve.series == worst.series
        })?
        .points
        .iter()
        .find(|point| point.w == worst.x)
}
