//! What does it cost me: latency, connections, memory, CPU.

use super::super::words;
use super::{Case, basis_of, subject};
use crate::results::{Arm, Basis, Claim, Comparison, MemoryLine, Point, Verdict, keys};

pub fn added_latency(case: &Case) -> Option<Verdict> {
    let point = case.scenario.headline()?;
    let against = case.against_none("p50", &point);
    let (_, first) = against.first()?;
    let place = match point.title() {
        title if title.is_empty() => String::new(),
        title => format!(" ({title})"),
    };
    let costs: Vec<String> = against
        .iter()
        .map(|(arm, comparison)| {
            let p90 = case
                .against_none("p90", &point)
                .into_iter()
                .find(|(other, _)| other.name == arm.name)
                .map(|(_, c)| format!("; p90 {}", words::effect(c)))
                .unwrap_or_default();
            format!(
                "{} took {} that{}{p90}.",
                subject(arm),
                words::finding(comparison),
                added(comparison)
            )
        })
        .collect();
    let mut verdict = case.verdict(
        "What does a mesh add to a request?",
        basis_of(against.iter().map(|(_, comparison)| *comparison)),
        format!(
            "The median response without a mesh was {}{place}. {}",
            words::quantity(first.baseline_value?, &first.unit),
            sentences(&costs)
        ),
    );
    verdict.figures = figures(&against);
    Some(verdict)
}

pub fn faster_of_two(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let rivals: Vec<&Comparison> = points
        .iter()
        .filter_map(|point| case.rivals("p50", point))
        .filter(|comparison| comparison.estimate.is_some())
        .collect();
    let first = rivals.first()?;
    let count = |claim| rivals.iter().filter(|c| c.claim == claim).count();
    let mut values: Vec<f64> = rivals
        .iter()
        .filter_map(|c| Some(c.estimate?.value))
        .collect();
    values.sort_by(f64::total_cmp);
    let range = match values.as_slice() {
        [one] => words::ratio(*one),
        [low, .., high] => {
            let (low, high) = (words::ratio(*low), words::ratio(*high));
            match low == high {
                true => low,
                false => format!("{low} to {high}"),
            }
        }
        [] => return None,
    };
    let answer = if let [only] = rivals.as_slice() {
        format!(
            "At the median, at the one point measured, the {} took {} the time of {}s.",
            first.arm,
            words::finding(only),
            first.baseline
        )
    } else {
        let outcomes = [
            (Claim::Higher, "longer"),
            (Claim::Lower, "shorter"),
            (Claim::Equivalent, "the same within 10 %"),
            (Claim::NoClaim, "nothing can be claimed"),
        ];
        let outcomes: Vec<String> = outcomes
            .into_iter()
            .filter(|(claim, _)| count(*claim) > 0)
            .map(|(claim, outcome)| format!("{outcome} at {}", count(claim)))
            .collect();
        format!(
            "At the median the {} took {range} the time of {}s over {} points: {}.",
            first.arm,
            first.baseline,
            rivals.len(),
            outcomes.join(", ")
        )
    };
    let mut verdict = case.verdict(
        "Agent or sidecars: which answers sooner?",
        basis_of(rivals.iter().copied()),
        answer,
    );
    verdict.figures = vec![(format!("{} ÷ {}", first.arm, first.baseline), range)];
    Some(verdict)
}

pub fn new_connections(case: &Case) -> Option<Verdict> {
    let point = case.scenario.headline()?;
    let against = case.against_none("first_byte_p50", &point);
    let (_, first) = against.first()?;
    let costs: Vec<String> = against
        .iter()
        .map(|(arm, comparison)| {
            format!(
                "{} took {} that{}.",
                subject(arm),
                words::finding(comparison),
                added(comparison)
            )
        })
        .collect();
    let cpu: Vec<String> = case
        .arms()
        .filter_map(|arm| {
            let value = value_of(case, keys::CPU_PER_CONNECTION, &point, &arm.name)?;
            Some(format!("{value} with {}", subject(arm)))
        })
        .collect();
    let cpu = if cpu.is_empty() {
        String::new()
    } else {
        format!(" CPU per connection, beyond idle: {}.", words::list(&cpu))
    };
    let mut verdict = case.verdict(
        "What does a mesh add to a new connection?",
        basis_of(against.iter().map(|(_, comparison)| *comparison)),
        format!(
            "From connect to first byte, the median without a mesh was {}. {}{cpu}",
            words::quantity(first.baseline_value?, &first.unit),
            sentences(&costs)
        ),
    );
    verdict.figures = figures(&against);
    Some(verdict)
}

pub fn capacity(case: &Case) -> Option<Verdict> {
    let point = case.scenario.headline()?;
    let against = case.against_none(keys::CAPACITY, &point);
    let rivals = case.rivals(keys::CAPACITY, &point);
    let rates: Vec<String> = case
        .arms()
        .filter_map(|arm| {
            let rate = value_of(case, keys::CAPACITY, &point, &arm.name)?;
            Some(format!("{rate} with {}", subject(arm)))
        })
        .collect();
    if rates.is_empty() {
        return None;
    }
    let costs: Vec<String> = against
        .iter()
        .map(|(arm, c)| {
            format!(
                "{} carried {} of that without a mesh.",
                subject(arm),
                words::finding(c)
            )
        })
        .collect();
    let rivalry = rivals
        .map(|c| format!(" Agent against sidecars: {}.", words::finding(c)))
        .unwrap_or_default();
    let mut verdict = case.verdict(
        "How much does this machine carry within the objective?",
        basis_of(against.iter().map(|(_, c)| *c).chain(rivals)),
        format!(
            "The highest rate with p99 within the objective was {}. {}{rivalry}",
            words::list(&rates),
            sentences(&costs)
        ),
    );
    verdict.figures = figures(&against);
    Some(verdict)
}

pub fn idle_connections(case: &Case) -> Option<Verdict> {
    let point = case.scenario.points().into_iter().next()?;
    let rivals = case.rivals(keys::KIB_PER_CONNECTION, &point);
    let of = |key: &str| -> Vec<(String, String)> {
        case.meshes()
            .filter_map(|arm| {
                let values: Vec<f64> = case
                    .scenario
                    .trials()
                    .filter(|trial| trial.arm == arm.name && !trial.is_void())
                    .filter_map(|trial| trial.values.get(key).copied())
                    .collect();
                let unit = &case.scenario.metric(key)?.unit;
                Some((
                    arm.name.clone(),
                    words::quantity(crate::stats::median(&values)?, unit),
                ))
            })
            .collect()
    };
    let each = of(keys::KIB_PER_CONNECTION);
    let said = |values: &[(String, String)]| -> String {
        let texts: Vec<String> = values
            .iter()
            .filter_map(|(name, value)| {
                Some(format!("{value} with {}", subject(case.results.arm(name)?)))
            })
            .collect();
        words::list(&texts)
    };
    if each.is_empty() {
        return None;
    }
    let rivalry = rivals
        .map(|c| format!(" Agent against sidecars: {}.", words::finding(c)))
        .unwrap_or_default();
    let mut verdict = case.verdict(
        "What does an idle connection hold?",
        rivals.map_or(Basis::NotResolved, |c| basis_of([c])),
        format!(
            "With {} kept by one client, each took {} of the proxies' memory on its node. Some time after all were \
             closed, still held: {}.{rivalry}",
            point.title(),
            said(&each),
            said(&of(keys::HELD_AFTER_CLOSE))
        ),
    );
    verdict.figures = each;
    Some(verdict)
}

pub fn memory(case: &Case) -> Option<Verdict> {
    let lines: Vec<_> = case
        .analysis
        .memory_lines
        .iter()
        .filter(|line| line.scenario == case.scenario.id)
        .collect();
    let first = lines.first()?;
    let sentence = |line: &&MemoryLine| {
        let arm = case.results.arm(&line.arm)?;
        let base = if has_base(line) {
            format!("{} plus ", words::quantity(line.base.value, "MiB"))
        } else {
            String::new()
        };
        Some(format!(
            "{} {base}{} per pod{}",
            subject(arm),
            words::quantity(line.per_pod.value, "MiB"),
            words::brackets(line.per_pod.interval, words::number)
        ))
    };
    let parts: Vec<String> = lines.iter().filter_map(sentence).collect();
    let crossing = case
        .analysis
        .crossovers
        .iter()
        .find(|crossover| crossover.scenario == case.scenario.id)
        .map(|crossover| format!("; {}", crossover.sentence))
        .unwrap_or_default();
    let (basis, hedge) = match first.per_pod.interval {
        Some(_) => (Basis::Claimed, String::new()),
        None => (
            Basis::NotResolved,
            format!(" ({}: no interval)", words::plural(first.blocks, "block")),
        ),
    };
    let mut verdict = case.verdict(
        "How much memory do idle proxies hold?",
        basis,
        format!(
            "Idle proxies of a node hold: {}{crossing}{hedge}.",
            parts.join(", ")
        ),
    );
    verdict.figures = lines
        .iter()
        .map(|line| {
            let slope = words::number(line.per_pod.value);
            let text = if has_base(line) {
                format!("{} + {slope}·N MiB", words::number(line.base.value))
            } else {
                format!("{slope}·N MiB")
            };
            (line.arm.clone(), text)
        })
        .collect();
    Some(verdict)
}

/// Less than half a MiB at no pods is the line's error, not something held.
fn has_base(line: &MemoryLine) -> bool {
    line.base.value.abs() >= 0.5
}

pub fn cpu_per_request(case: &Case) -> Option<Verdict> {
    let point = &case.scenario.headline()?;
    let metric = [keys::NODE_CPU_PER_REQUEST, keys::PROXY_CPU_PER_REQUEST]
        .into_iter()
        .find(|key| {
            case.arms()
                .any(|arm| value_of(case, key, point, &arm.name).is_some())
        })?;
    let costs: Vec<String> = case
        .arms()
        .filter_map(|arm| {
            Some(format!(
                "{} with {}",
                value_of(case, metric, point, &arm.name)?,
                subject(arm)
            ))
        })
        .collect();
    let what = if metric == keys::NODE_CPU_PER_REQUEST {
        "Beyond idle, application, kernel and proxies together"
    } else {
        "The proxies"
    };
    let rivals = case.rivals(metric, point);
    let rivalry = rivals
        .map(|c| format!(" Agent against sidecars: {}.", words::finding(c)))
        .unwrap_or_default();
    let against = case.against_none(metric, point);
    let mut verdict = case.verdict(
        "How much CPU does a request take?",
        basis_of(rivals.into_iter().chain(against.iter().map(|(_, c)| *c))),
        format!("{what} took {} per request.{rivalry}", words::list(&costs)),
    );
    verdict.figures = case
        .arms()
        .filter_map(|arm| Some((arm.name.clone(), value_of(case, metric, point, &arm.name)?)))
        .collect();
    Some(verdict)
}

fn figures(against: &[(&Arm, &Comparison)]) -> Vec<(String, String)> {
    let mut figures = Vec::new();
    if let Some((_, first)) = against.first()
        && let Some(value) = first.baseline_value
    {
        figures.push((first.baseline.clone(), words::quantity(value, &first.unit)));
    }
    figures.extend(against.iter().map(|(arm, comparison)| {
        let mark = if comparison.claim == Claim::NoClaim {
            "~ "
        } else {
            ""
        };
        (
            arm.name.clone(),
            format!("{mark}{}", words::effect(comparison)),
        )
    }));
    figures
}

/// The median value of an arm, from whichever comparison holds it.
fn value_of(case: &Case, metric: &str, point: &Point, arm: &str) -> Option<String> {
    let value = case
        .comparisons()
        .filter(|c| c.metric == metric && c.point == *point)
        .find_map(|c| {
            if c.arm == arm {
                Some((c.arm_value?, &c.unit))
            } else if c.baseline == arm {
                Some((c.baseline_value?, &c.unit))
            } else {
                None
            }
        });
    value.map(|(value, unit)| words::quantity(value, unit))
}

/// " (+340 µs)": the difference of the two medians, for orientation.
fn added(comparison: &Comparison) -> String {
    let (Some(arm), Some(baseline)) = (comparison.arm_value, comparison.baseline_value) else {
        return String::new();
    };
    let sign = if arm > baseline { "+" } else { "" };
    format!(
        " ({sign}{})",
        words::quantity(arm - baseline, &comparison.unit)
    )
}

fn sentences(clauses: &[String]) -> String {
    let clauses: Vec<String> = clauses.iter().map(|clause| capitalised(clause)).collect();
    clauses.join(" ")
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}
