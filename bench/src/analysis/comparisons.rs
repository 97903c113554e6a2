//! Every metric, at every point, for every pair of arms.

use super::Study;
use super::slowdown::slowdowns_by_block;
use super::table::Pairs;
use crate::results::{
    Arm, Better, Claim, Compare, Comparison, Effect, Estimate, Kind, Metric, Point, Source,
};
use crate::stats::{
    Bounds, MIN_BLOCKS, Paired, blocks_for_difference, blocks_for_equivalence, blocks_to_narrow,
    deviation, differences, holm, log_ratios, median, paired, within_margin,
};

/// What is compared: a metric as recorded, or one derived from it.
struct Subject<'a> {
    key: String,
    label: String,
    unit: &'a str,
    kind: Kind,
    better: Better,
    compare: Compare,
    points: Vec<Point>,
    pairs: PairsOf<'a>,
}

/// The pairs at a point of an arm and its baseline.
type PairsOf<'a> = Box<dyn Fn(&Point, &str, &str) -> Pairs + 'a>;

pub fn of(study: &Study) -> Vec<Comparison> {
    let mut found = Vec::new();
    for subject in subjects(study) {
        let floors = Floors::of(study, &subject);
        for point in &subject.points {
            for (arm, baseline) in study.pairs() {
                found.extend(compare(study, &subject, &floors, point, (arm, baseline)));
            }
        }
    }
    adjust(&mut found);
    found
}

fn subjects<'a>(study: &'a Study) -> Vec<Subject<'a>> {
    let mut subjects: Vec<Subject> = Vec::new();
    for metric in &study.scenario.metrics {
        subjects.push(Subject {
            key: metric.key.clone(),
            label: metric.label.clone(),
            unit: &metric.unit,
            kind: metric.kind,
            better: metric.better,
            compare: metric.compare,
            points: study.table.points().to_vec(),
            pairs: Box::new(|point, arm, baseline| {
                study.table.pairs(&metric.key, point, arm, baseline)
            }),
        });
        subjects.extend(slowdown_subject(study, metric));
    }
    subjects
}

/// A victim's slowdown is compared like a metric of its own: its ratio between an arm and no
/// mesh is the excess S* of the definition.
fn slowdown_subject<'a>(study: &'a Study, metric: &'a Metric) -> Option<Subject<'a>> {
    let quantile = matches!(metric.source, Source::Quantile { .. });
    let points: Vec<Point> = study.swept_points();
    (quantile && !points.is_empty()).then(|| Subject {
        key: format!("slowdown_{}", metric.key),
        label: format!("slowdown of the {}", metric.label),
        unit: "×",
        kind: metric.kind,
        better: Better::Lower,
        compare: Compare::Ratio,
        points,
        pairs: Box::new(|point, arm, baseline| {
            let theirs = slowdowns_by_block(&study.table, &metric.key, point, baseline);
            let mine = slowdowns_by_block(&study.table, &metric.key, point, arm);
            Pairs {
                values: mine
                    .iter()
                    .filter_map(|(block, value)| Some((*value, *theirs.get(block)?)))
                    .collect(),
                void_blocks: study
                    .table
                    .pairs(&metric.key, point, arm, baseline)
                    .void_blocks,
            }
        }),
    })
}

fn compare(
    study: &Study,
    subject: &Subject,
    floors: &Floors,
    point: &Point,
    (arm, baseline): (&Arm, &Arm),
) -> Option<Comparison> {
    let pairs = (subject.pairs)(point, &arm.name, &baseline.name);
    if pairs.values.is_empty() && pairs.void_blocks == 0 {
        return None;
    }
    let label = format!(
        "{}/{}/{}/{}",
        subject.key,
        point.title(),
        arm.name,
        baseline.name
    );
    let (effect, effects) = effects(subject.compare, &pairs.values);
    let result = paired(effects, study.seed(&label));
    let floor = floors.at(point, effect);
    let is_copy = arm.copy_of.as_deref() == Some(&baseline.name);
    let ruling = if is_copy {
        Ruling::silent("an arm against itself: the noise floor")
    } else {
        rule(study, subject, effect, result.as_ref(), floor)
    };
    let side =
        |pick: fn(&(f64, f64)) -> f64| median(&pairs.values.iter().map(pick).collect::<Vec<_>>());
    let back = |value: f64| match effect {
        Effect::Ratio => value.exp(),
        Effect::Difference => value,
    };
    Some(Comparison {
        scenario: study.scenario.id.clone(),
        metric: subject.key.clone(),
        label: subject.label.clone(),
        unit: subject.unit.to_string(),
        kind: subject.kind,
        better: subject.better,
        point: point.clone(),
        arm: arm.name.clone(),
        baseline: baseline.name.clone(),
        blocks: pairs.values.len() as u32,
        void_blocks: pairs.void_blocks,
        arm_value: side(|pair| pair.0),
        baseline_value: side(|pair| pair.1),
        effect,
        estimate: result.as_ref().map(|result| Estimate {
            value: back(result.estimate),
            interval: result.interval.map(|bounds| bounds.map(back)),
        }),
        p: result.as_ref().and_then(|result| result.p),
        p_holm: None,
        floor: floor.map(back),
        claim: ruling.claim,
        reason: ruling.reason,
        blocks_needed: ruling.blocks_needed,
    })
}

/// Effects on the scale on which they are inferred: logarithms of ratios, or differences.
fn effects(compare: Compare, pairs: &[(f64, f64)]) -> (Effect, Vec<f64>) {
    let ratios = match compare {
        Compare::Ratio => log_ratios(pairs),
        Compare::Difference | Compare::Count => None,
    };
    match ratios {
        Some(ratios) => (Effect::Ratio, ratios),
        None => (Effect::Difference, differences(pairs)),
    }
}

/// What copies of an arm show against it, per point: the outer end of the median effect's
/// interval, or the largest effect where there are too few blocks for an interval.
struct Floors(Vec<(Point, Effect, f64)>);

impl Floors {
    fn of(study: &Study, subject: &Subject) -> Floors {
        let mut floors = Vec::new();
        for (copy, original) in study.copies() {
            for point in &subject.points {
                let pairs = (subject.pairs)(point, &copy.name, &original.name).values;
                let (effect, effects) = effects(subject.compare, &pairs);
                let label = format!("floor/{}/{}", subject.key, point.title());
                let Some(result) = paired(effects, study.seed(&label)) else {
                    continue;
                };
                let reach = match result.interval {
                    Some(interval) => interval.reach(),
                    None => largest(&result.effects),
                };
                floors.push((point.clone(), effect, reach));
            }
        }
        Floors(floors)
    }

    /// The floor at a point; the worst of the other points where it has none at this one.
    fn at(&self, point: &Point, effect: Effect) -> Option<f64> {
        let same_scale = || self.0.iter().filter(|(_, scale, _)| *scale == effect);
        let here = same_scale().filter(|(known, _, _)| known == point);
        here.map(|(_, _, floor)| *floor)
            .reduce(f64::max)
            .or_else(|| same_scale().map(|(_, _, floor)| *floor).reduce(f64::max))
    }
}

fn largest(effects: &[f64]) -> f64 {
    effects
        .iter()
        .fold(0.0, |most, effect| effect.abs().max(most))
}

struct Ruling {
    claim: Claim,
    reason: Option<String>,
    blocks_needed: Option<u32>,
}

impl Ruling {
    fn silent(reason: impl Into<String>) -> Ruling {
        Ruling {
            claim: Claim::NoClaim,
            reason: Some(reason.into()),
            blocks_needed: None,
        }
    }

    fn of(claim: Claim) -> Ruling {
        Ruling {
            claim,
            reason: None,
            blocks_needed: None,
        }
    }
}

fn rule(
    study: &Study,
    subject: &Subject,
    effect: Effect,
    result: Option<&Paired>,
    floor: Option<f64>,
) -> Ruling {
    if let Some(silence) = study.silence {
        return Ruling::silent(silence);
    }
    let Some(result) = result else {
        return Ruling::silent("every block has a void trial");
    };
    let margin = margin(subject.kind, subject.unit, effect);
    let needed = blocks_needed(result, margin, floor);
    let Some(interval) = result.interval else {
        return Ruling {
            blocks_needed: needed,
            ..Ruling::silent(format!(
                "{} of the {MIN_BLOCKS} blocks that an interval needs",
                result.effects.len()
            ))
        };
    };
    let timed = matches!(subject.kind, Kind::Latency | Kind::Cpu);
    if timed && floor.is_none() {
        return Ruling::silent("no arm ran twice here, so the noise floor is unknown");
    }
    let beyond_floor = floor.is_none_or(|floor| result.estimate.abs() > floor);
    match (sign(interval), beyond_floor) {
        (Some(claim), true) => return Ruling::of(claim),
        (Some(_), false) => {
            return Ruling {
                blocks_needed: needed,
                ..Ruling::silent("no larger than what an arm shows against itself")
            };
        }
        (None, _) => {}
    }
    // Noise beyond the margin could hide a difference that matters as well as feign one.
    let quiet = |margin: f64| floor.is_none_or(|floor| floor < margin);
    match margin {
        Some(margin) if within_margin(interval, margin) && quiet(margin) => {
            Ruling::of(Claim::Equivalent)
        }
        _ if result.effects.iter().all(|effect| *effect == 0.0) => Ruling::of(Claim::Equivalent),
        _ => Ruling {
            blocks_needed: needed,
            ..Ruling::silent("the interval includes no difference")
        },
    }
}

fn sign(interval: Bounds) -> Option<Claim> {
    if interval.low > 0.0 {
        Some(Claim::Higher)
    } else if interval.high < 0.0 {
        Some(Claim::Lower)
    } else {
        None
    }
}

/// The difference below which nobody would choose otherwise, on the scale of inference.
fn margin(kind: Kind, unit: &str, effect: Effect) -> Option<f64> {
    match (effect, kind) {
        (Effect::Ratio, Kind::Latency | Kind::Cpu) => Some(1.10_f64.ln()),
        (Effect::Ratio, Kind::Memory) => Some(1.05_f64.ln()),
        (Effect::Difference, _) if unit == "share" => Some(0.01),
        _ => None,
    }
}

/// Whichever comes first: a difference can be shown however small it is, if the arm against itself
/// shows less, and one below the margin can be shown to be no more than that.
fn blocks_needed(result: &Paired, margin: Option<f64>, floor: Option<f64>) -> Option<u32> {
    let noise = deviation(&result.effects)?;
    let size = result.estimate.abs();
    // The floor is the end of an interval, and narrows as one.
    let shown = |blocks: Option<u32>, limit: f64| {
        let quiet = match floor {
            Some(floor) => blocks_to_narrow(result.effects.len(), floor, limit)?,
            None => 0,
        };
        Some(blocks?.max(quiet))
    };
    let different = shown(blocks_for_difference(noise, size), size);
    let equivalent = margin
        .filter(|margin| size < *margin)
        .and_then(|margin| shown(blocks_for_equivalence(noise, size, margin), margin));
    different.into_iter().chain(equivalent).min()
}

/// Holm over the family of a scenario's comparisons with the same pair of arms.
fn adjust(comparisons: &mut [Comparison]) {
    let mut families: Vec<(String, String)> = comparisons
        .iter()
        .map(|c| (c.arm.clone(), c.baseline.clone()))
        .collect();
    families.sort();
    families.dedup();
    for (arm, baseline) in families {
        let members: Vec<usize> = (0..comparisons.len())
            .filter(|&i| comparisons[i].arm == arm && comparisons[i].baseline == baseline)
            .filter(|&i| comparisons[i].p.is_some())
            .collect();
        let p: Vec<f64> = members.iter().filter_map(|&i| comparisons[i].p).collect();
        for (index, adjusted) in members.into_iter().zip(holm(&p)) {
            comparisons[index].p_holm = Some(adjusted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(effects: [f64; 6], floor: Option<f64>) -> Option<u32> {
        let result = paired(effects.to_vec(), 1).unwrap();
        blocks_needed(&result, Some(0.1), floor)
    }

    #[test]
    fn what_is_shown_first_settles_it() {
        // Close to the margin of 10 %: not to be told from it for long, but from nothing soon.
        let near = [0.04, 0.07, 0.08, 0.10, 0.11, 0.13];
        assert!(
            needed(near, None).unwrap() <= 12,
            "{:?}",
            needed(near, None)
        );
        // Close to nothing: the other way round.
        let nothing = [-0.04, -0.01, 0.0, 0.01, 0.01, 0.04];
        let equivalent = needed(nothing, None).unwrap();
        assert!(equivalent <= 12, "{equivalent}");
        // Not before an arm against itself shows less than half of what it does: four times six.
        assert_eq!(needed(nothing, Some(0.2)), Some(24));
        // Nobody plans so many.
        assert_eq!(needed(nothing, Some(10.0)), None);
    }
}
