//! What changed between runs, and what of it may be claimed.

use std::path::PathBuf;

use serde::Serialize;

use super::{CompareArgs, Thresholds};
use crate::analysis::{Table, words};
use crate::results::{
    Arm, Better, Claim, Compare, Effect, Estimate, Kind, Metric, Placement, Point, Profile,
    Results, Scenario, State, keys,
};
use crate::stats::{hodges_lehmann, mann_whitney, median};

/// Every change, with what a reader has to know first.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub files: Vec<File>,
    pub warnings: Vec<String>,
    pub notes: Vec<String>,
    /// What a loose comparison looked for in vain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// A claimed change for the worse beyond this share is a regression, where no rule says otherwise.
    pub threshold: f64,
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, Serialize)]
pub struct File {
    pub name: String,
    pub path: PathBuf,
    pub started: String,
    pub profile: Profile,
    pub state: State,
    pub reasons: Vec<String>,
}

/// One metric of one arm at one point, in the first file and in another.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// Index of the newer file in [`Comparison::files`].
    pub file: usize,
    pub scenario: String,
    pub title: String,
    pub metric: String,
    pub label: String,
    pub unit: String,
    pub kind: Kind,
    pub better: Better,
    pub point: Point,
    pub arm: String,
    pub old: Side,
    pub new: Side,
    /// new ÷ old, or new − old.
    pub effect: Effect,
    pub estimate: Option<Estimate>,
    /// Mann-Whitney, two-sided, exact.
    pub p: Option<f64>,
    /// The larger of what an arm shows against itself in the two files.
    pub floor: Option<f64>,
    pub claim: Claim,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub regression: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Side {
    pub blocks: usize,
    pub median: f64,
}

pub fn of(runs: &[(PathBuf, Results)], thresholds: &Thresholds, args: &CompareArgs) -> Comparison {
    let mut comparison = Comparison {
        files: files(runs),
        warnings: Vec::new(),
        notes: Vec::new(),
        missing: Vec::new(),
        threshold: thresholds.default,
        changes: Vec::new(),
    };
    let Some(((_, old), newer)) = runs.split_first() else {
        return comparison;
    };
    for (file, (_, new)) in newer.iter().enumerate().map(|(i, run)| (i + 1, run)) {
        let name = &comparison.files[file].name;
        let differences = old.machine.differences(&new.machine);
        if !differences.is_empty() && !args.force && !args.loose {
            comparison.warnings.push(format!(
                "{} and {name} were measured on different machines ({}); times and CPU are not claimed without --force",
                comparison.files[0].name,
                differences.join("; ")
            ));
        }
        comparison
            .notes
            .extend(differing_parameters(old, new, name));
        if old.machine.kubernetes.is_some() != new.machine.kubernetes.is_some() {
            comparison.notes.push(TENANCY.to_owned());
        }
        let names = [&comparison.files[0].name, name];
        comparison.notes.extend(without_partner(old, new, names));
        let rules = Rules {
            file,
            thresholds,
            foreign: !differences.is_empty() && !args.force,
            loose: args.loose,
        };
        let changes = rules.changes(old, new);
        if args.loose {
            comparison.missing.extend(missing(old, &changes, name));
        }
        comparison.changes.extend(changes);
    }
    comparison.warnings.extend(thresholds.unused());
    comparison
        .notes
        .extend(drift(&comparison.changes, &comparison.files, old));
    comparison
}

fn files(runs: &[(PathBuf, Results)]) -> Vec<File> {
    let names = super::names(runs);
    runs.iter()
        .zip(names)
        .map(|((path, results), name)| File {
            name,
            path: path.clone(),
            started: words::moment(&results.started),
            profile: results.profile,
            state: results.status.state,
            reasons: results.status.reasons.clone(),
        })
        .collect()
}

/// What the old run has and the new one does not, by scenario and arm.
fn missing(old: &Results, changes: &[Change], name: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for scenario in &old.scenarios {
        let comparable = scenario.metrics.iter().any(|metric| !timed(metric.kind));
        let table = Table::of(scenario);
        let measured = |arm: &&Arm| {
            let has = |metric: &Metric, point: &Point| {
                !table.values(&metric.key, point, &arm.name).is_empty()
            };
            let mut metrics = scenario.metrics.iter().filter(|metric| !timed(metric.kind));
            metrics.any(|metric| table.points().iter().any(|point| has(metric, point)))
        };
        for arm in old
            .arms
            .iter()
            .filter(|arm| arm.copy_of.is_none() && comparable)
        {
            let found = |c: &Change| c.scenario == scenario.id && c.arm == arm.name;
            if measured(&arm) && !changes.iter().any(found) {
                missing.push(format!(
                    "{} {}: not measured in {name}",
                    scenario.id, arm.name
                ));
            }
        }
    }
    missing
}

fn timed(kind: Kind) -> bool {
    matches!(kind, Kind::Latency | Kind::Cpu)
}

/// What two runs fixed differently: rates that follow from capacity differ from run to run, and
/// a reader should see by how much.
fn differing_parameters(old: &Results, new: &Results, name: &str) -> Vec<String> {
    old.scenarios
        .iter()
        .filter_map(|before| {
            let after = new.scenario(&before.id)?;
            let differing: Vec<&str> = before
                .parameters
                .iter()
                .filter(|(key, value)| after.parameters.get(*key) != Some(value))
                .map(|(key, _)| key.as_str())
                .collect();
            (!differing.is_empty()).then(|| {
                format!(
                    "{}: {name} differs in what was fixed: {}",
                    before.id,
                    differing.join(", ")
                )
            })
        })
        .collect()
}

/// Between a run on network namespaces and one on Kubernetes.
const TENANCY: &str = "on network namespaces the arm agent is without tenancy; on Kubernetes it is as it was \
                       installed, with it unless that was turned off";

/// What only one of two runs has of a scenario that both ran: it is compared with nothing.
fn without_partner(old: &Results, new: &Results, names: [&String; 2]) -> Vec<String> {
    let said = |point: &Point| match point.title() {
        title if title.is_empty() => point.x.to_string(),
        title => title,
    };
    let alone = |here: &Scenario, there: &Scenario| -> Vec<String> {
        let theirs = there.points();
        let points = here.points().into_iter();
        let points = points.filter(|point| !theirs.contains(point));
        let known = |metric: &&Metric| there.metrics.iter().any(|other| other.key == metric.key);
        let metrics = here.metrics.iter().filter(|metric| !known(metric));
        points
            .map(|point| said(&point))
            .chain(metrics.map(|metric| metric.label.clone()))
            .collect()
    };
    let mut notes = Vec::new();
    for before in &old.scenarios {
        let Some(after) = new.scenario(&before.id) else {
            continue;
        };
        for (here, there, name) in [(before, after, names[0]), (after, before, names[1])] {
            let alone = alone(here, there);
            if !alone.is_empty() {
                let alone = alone.join("; ");
                let id = &before.id;
                notes.push(format!(
                    "{id}: only in {name}, and so not compared: {alone}"
                ));
            }
        }
    }
    notes
}

/// Where the arm without a mesh changed, so did the machine.
fn drift(changes: &[Change], files: &[File], old: &Results) -> Vec<String> {
    let bare = |change: &&Change| {
        let arm = old.arm(&change.arm);
        arm.is_some_and(|arm| arm.placement == Placement::None) && change.claim != Claim::NoClaim
    };
    let mut notes: Vec<String> = changes
        .iter()
        .filter(bare)
        .filter(|change| change.claim != Claim::Equivalent)
        .map(|change| {
            format!(
                "{}: the machine drifted: {} changed without a mesh in {}",
                change.scenario, change.label, files[change.file].name
            )
        })
        .collect();
    notes.dedup();
    notes
}

/// One metric at one point in two runs.
struct Subject<'a> {
    /// Old, new.
    runs: [&'a Results; 2],
    scenario: &'a Scenario,
    tables: &'a (Table, Table),
    metric: &'a Metric,
    point: &'a Point,
}

struct Rules<'a> {
    file: usize,
    thresholds: &'a Thresholds,
    /// Of another machine, and not forced.
    foreign: bool,
    loose: bool,
}

impl Rules<'_> {
    fn changes(&self, old: &Results, new: &Results) -> Vec<Change> {
        let mut changes = Vec::new();
        for before in &old.scenarios {
            let Some(after) = new.scenario(&before.id) else {
                continue;
            };
            let tables = (Table::of(before), Table::of(after));
            let arms = || old.arms.iter().filter(|arm| arm.copy_of.is_none());
            let shared = |metric: &&Metric| after.metric(&metric.key).is_some();
            let looked_at = |metric: &&Metric| !(self.loose && timed(metric.kind));
            for metric in before.metrics.iter().filter(shared).filter(looked_at) {
                for point in tables.0.points() {
                    let subject = Subject {
                        runs: [old, new],
                        scenario: before,
                        tables: &tables,
                        metric,
                        point,
                    };
                    changes.extend(arms().filter_map(|arm| self.change(&subject, arm)));
                }
            }
        }
        changes
    }

    fn change(&self, subject: &Subject, arm: &Arm) -> Option<Change> {
        let (metric, point) = (subject.metric, subject.point);
        let values = |table: &Table| -> Vec<f64> {
            let values = table.values(&metric.key, point, &arm.name);
            values.into_iter().map(|(_, value)| value).collect()
        };
        let (a, b) = (values(&subject.tables.0), values(&subject.tables.1));
        let side = |values: &[f64]| {
            Some(Side {
                blocks: values.len(),
                median: median(values)?,
            })
        };
        let (effect, a_scale, b_scale) = scale(metric, &a, &b);
        let mut change = Change {
            file: self.file,
            scenario: subject.scenario.id.clone(),
            title: subject.scenario.title.clone(),
            metric: metric.key.clone(),
            label: metric.label.clone(),
            unit: metric.unit.clone(),
            kind: metric.kind,
            better: metric.better,
            point: point.clone(),
            arm: arm.name.clone(),
            old: side(&a)?,
            new: side(&b)?,
            effect,
            estimate: None,
            p: mann_whitney(&a, &b),
            floor: subject
                .runs
                .iter()
                .filter_map(|run| floor(run, &subject.scenario.id, metric, point, effect))
                .reduce(f64::max),
            claim: Claim::NoClaim,
            reason: None,
            regression: false,
        };
        let void = |run: &&Results| run.status.state == State::Void;
        let silent = subject.runs.iter().any(void);
        self.judge(&mut change, (&a_scale, &b_scale), silent);
        change.regression = arm.placement != Placement::None && self.is_regression(&change);
        Some(change)
    }

    /// `a` and `b` are logarithms where the effect is a ratio.
    fn judge(&self, change: &mut Change, (a, b): (&[f64], &[f64]), silent: bool) {
        let Some((shift, interval)) = hodges_lehmann(a, b) else {
            return;
        };
        let back = |value: f64| match change.effect {
            Effect::Ratio => value.exp(),
            Effect::Difference => value,
        };
        change.estimate = Some(Estimate {
            value: back(shift),
            interval: interval.map(|bounds| bounds.map(back)),
        });
        let (claim, reason) = if silent {
            (Claim::NoClaim, Some("a file is void".to_string()))
        } else if self.loose {
            by_medians(shift)
        } else if let Some(seen) = counted(change, a, b) {
            seen
        } else if self.foreign && timed(change.kind) {
            (Claim::NoClaim, Some("different machines".into()))
        } else {
            inferred(change, shift, interval)
        };
        change.claim = claim;
        change.reason = reason;
    }

    fn is_regression(&self, change: &Change) -> bool {
        let worse = match change.better {
            Better::Lower => Claim::Higher,
            Better::Higher => Claim::Lower,
        };
        // Asked for each change, so that a rule without any is known.
        let threshold = self.thresholds.of(change);
        let differs = matches!(change.claim, Claim::Higher | Claim::Lower);
        let bad = change.claim == worse || (self.loose && differs);
        let estimate = change.estimate.filter(|_| bad);
        let (Some(estimate), Some(threshold)) = (estimate, threshold) else {
            return false;
        };
        match change.effect {
            Effect::Ratio => estimate.value.max(1.0 / estimate.value) > 1.0 + threshold,
            // Relative to the old value; from nothing, any change is beyond every threshold.
            Effect::Difference if change.old.median == 0.0 => true,
            Effect::Difference => estimate.value.abs() > threshold * change.old.median.abs(),
        }
    }
}

/// What is seen, and not inferred.
fn by_medians(shift: f64) -> (Claim, Option<String>) {
    let claim = match shift.total_cmp(&0.0) {
        _ if shift == 0.0 => Claim::Equivalent,
        std::cmp::Ordering::Less => Claim::Lower,
        _ => Claim::Higher,
    };
    (claim, Some("by the medians alone".into()))
}

/// Counts that need no inference.
fn counted(change: &Change, a: &[f64], b: &[f64]) -> Option<(Claim, Option<String>)> {
    if change.kind != Kind::Count {
        return None;
    }
    let leaks = |values: &[f64]| values.iter().filter(|bytes| **bytes > 0.0).count();
    if change.metric == keys::PLAINTEXT_BYTES && leaks(a) == 0 && leaks(b) > 0 {
        let reason = format!("plaintext in {} of {} blocks", leaks(b), b.len());
        return Some((Claim::Higher, Some(reason)));
    }
    let constant = |values: &[f64]| values.len() > 1 && values.iter().all(|v| *v == values[0]);
    if !constant(a) || !constant(b) {
        return None;
    }
    let claim = match b[0].total_cmp(&a[0]) {
        std::cmp::Ordering::Greater => Claim::Higher,
        std::cmp::Ordering::Less => Claim::Lower,
        std::cmp::Ordering::Equal => Claim::Equivalent,
    };
    Some((claim, None))
}

fn inferred(
    change: &Change,
    shift: f64,
    interval: Option<crate::stats::Bounds>,
) -> (Claim, Option<String>) {
    let Some(interval) = interval else {
        return (
            Claim::NoClaim,
            Some("too few blocks for an interval".into()),
        );
    };
    let beyond = change.floor.is_none_or(|floor| {
        let floor = match change.effect {
            Effect::Ratio => floor.ln(),
            Effect::Difference => floor,
        };
        shift.abs() > floor
    });
    if interval.contains(0.0) {
        (Claim::NoClaim, None)
    } else if !beyond {
        let reason = "no larger than what an arm shows against itself";
        (Claim::NoClaim, Some(reason.into()))
    } else if shift > 0.0 {
        (Claim::Higher, None)
    } else {
        (Claim::Lower, None)
    }
}

/// Both sides on the scale of inference: logarithms where every value allows it.
fn scale(metric: &Metric, a: &[f64], b: &[f64]) -> (Effect, Vec<f64>, Vec<f64>) {
    let positive = a.iter().chain(b).all(|value| *value > 0.0);
    if metric.compare == Compare::Ratio && positive {
        let ln = |values: &[f64]| values.iter().map(|value| value.ln()).collect();
        (Effect::Ratio, ln(a), ln(b))
    } else {
        (Effect::Difference, a.to_vec(), b.to_vec())
    }
}

fn floor(
    results: &Results,
    scenario: &str,
    metric: &Metric,
    point: &Point,
    effect: Effect,
) -> Option<f64> {
    results
        .analysis
        .comparisons
        .iter()
        .filter(|c| c.scenario == scenario && c.metric == metric.key && c.point == *point)
        .filter(|c| c.effect == effect)
        .find_map(|c| c.floor)
}
