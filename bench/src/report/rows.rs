//! The comparison table's rows, the same for page and summary: one per metric and point, with
//! every arm's value and what may be said about it, in benchstat's manner.

use crate::analysis::words;
use crate::results::{Better, Claim, Comparison, Effect, Placement, Results, Scenario};

/// The columns of a scenario's table and its rows.
pub struct Table {
    /// Arms without a mesh: shown as a value only.
    pub baselines: Vec<String>,
    /// (arm, its baseline): value and effect.
    pub arms: Vec<(String, String)>,
    /// (arm, rival): effect only.
    pub rivals: Vec<(String, String)>,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub metric: String,
    pub point: String,
    pub baselines: Vec<String>,
    pub arms: Vec<Cell>,
    pub rivals: Vec<Cell>,
    /// "±6 %": what an arm shows against itself.
    pub floor: String,
}

#[derive(Clone, Default)]
pub struct Cell {
    /// The arm's median value; empty in a rivals' column.
    pub value: String,
    /// "1.31× [1.20, 1.52]"
    pub effect: String,
    pub reading: Option<Reading>,
    /// ↑ ↓ ≈ ~, or nothing where there is no estimate.
    pub sign: &'static str,
    /// Everything that is known, for a tooltip.
    pub detail: String,
}

/// How a comparison reads for somebody who has to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Better,
    Worse,
    Same,
    /// `~`
    Open,
}

impl Reading {
    pub fn of(comparison: &Comparison) -> Reading {
        match (comparison.claim, comparison.better) {
            (Claim::NoClaim, _) => Reading::Open,
            (Claim::Equivalent, _) => Reading::Same,
            (Claim::Higher, Better::Higher) | (Claim::Lower, Better::Lower) => Reading::Better,
            (Claim::Higher, Better::Lower) | (Claim::Lower, Better::Higher) => Reading::Worse,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Reading::Better => "better",
            Reading::Worse => "worse",
            Reading::Same => "same",
            Reading::Open => "open",
        }
    }
}

impl Table {
    pub fn of(results: &Results, scenario: &Scenario) -> Table {
        let all: Vec<&Comparison> = results
            .analysis
            .comparisons
            .iter()
            .filter(|c| c.scenario == scenario.id)
            .collect();
        let placement = |name: &str| results.arm(name).map(|arm| arm.placement);
        let is_copy = |c: &Comparison| {
            results
                .arm(&c.arm)
                .is_some_and(|arm| arm.copy_of.as_deref() == Some(&c.baseline))
        };
        let mut against_none: Vec<(String, String)> = Vec::new();
        let mut rivals: Vec<(String, String)> = Vec::new();
        for comparison in all.iter().filter(|c| !is_copy(c)) {
            let pair = (comparison.arm.clone(), comparison.baseline.clone());
            let list = if placement(&comparison.baseline) == Some(Placement::None) {
                &mut against_none
            } else {
                &mut rivals
            };
            if !list.contains(&pair) {
                list.push(pair);
            }
        }
        let mut baselines: Vec<String> = against_none.iter().map(|pair| pair.1.clone()).collect();
        baselines.dedup();
        if against_none.is_empty() {
            // No arm without a mesh here (idle proxies, keys): the rivals' own values are all there is.
            baselines = rivals
                .iter()
                .flat_map(|(arm, rival)| [rival.clone(), arm.clone()])
                .collect();
            baselines.dedup();
        }
        let mut table = Table {
            baselines,
            arms: against_none,
            rivals,
            rows: Vec::new(),
        };
        let mut seen: Vec<(&str, String)> = Vec::new();
        for comparison in &all {
            let id = (comparison.metric.as_str(), comparison.point.title());
            if seen.contains(&id) {
                continue;
            }
            let family: Vec<&Comparison> = all
                .iter()
                .copied()
                .filter(|c| c.metric == comparison.metric && c.point == comparison.point)
                .collect();
            table.rows.push(table.row(comparison, &family));
            seen.push(id);
        }
        table
    }

    fn row(&self, first: &Comparison, family: &[&Comparison]) -> Row {
        let find = |pair: &(String, String)| {
            family
                .iter()
                .find(|c| (&c.arm, &c.baseline) == (&pair.0, &pair.1))
        };
        let value_of = |name: &String| {
            family
                .iter()
                .find_map(|c| match name {
                    name if *name == c.arm => c.arm_value,
                    name if *name == c.baseline => c.baseline_value,
                    _ => None,
                })
                .map_or("–".into(), |value| words::quantity(value, &first.unit))
        };
        Row {
            metric: first.label.clone(),
            point: first.point.title(),
            baselines: self.baselines.iter().map(value_of).collect(),
            arms: self
                .arms
                .iter()
                .map(|pair| Cell {
                    value: value_of(&pair.0),
                    ..find(pair).map(|c| cell(c)).unwrap_or_default()
                })
                .collect(),
            rivals: self
                .rivals
                .iter()
                .map(|pair| find(pair).map(|c| cell(c)).unwrap_or_default())
                .collect(),
            floor: family
                .iter()
                .find_map(|c| Some((c.floor?, c.effect, &c.unit)))
                .map_or(String::new(), |(floor, effect, unit)| match effect {
                    Effect::Ratio => {
                        format!("±{}", words::percent(floor - 1.0))
                    }
                    Effect::Difference => {
                        format!("±{}", words::quantity(floor, unit))
                    }
                }),
        }
    }
}

fn cell(comparison: &Comparison) -> Cell {
    let mut detail = format!(
        "{} against {}: {}, {}",
        comparison.arm,
        comparison.baseline,
        words::effect(comparison),
        words::plural(comparison.blocks, "block")
    );
    if comparison.void_blocks > 0 {
        detail += &format!(", {} void", comparison.void_blocks);
    }
    if let (Some(p), Some(holm)) = (comparison.p, comparison.p_holm) {
        detail += &format!(
            ", {} (Holm {})",
            words::p_value(p),
            words::p_value(holm).trim_start_matches("p = ")
        );
    }
    if let Some(reason) = &comparison.reason {
        detail += &format!("; no claim: {reason}");
    }
    if let Some(blocks) = comparison.blocks_needed {
        detail += &format!("; about {blocks} blocks would settle it");
    }
    Cell {
        value: String::new(),
        effect: words::effect(comparison),
        reading: comparison.estimate.map(|_| Reading::of(comparison)),
        sign: comparison.estimate.map_or("", |_| sign(comparison.claim)),
        detail,
    }
}

fn sign(claim: Claim) -> &'static str {
    match claim {
        Claim::Higher => "↑",
        Claim::Lower => "↓",
        Claim::Equivalent => "≈",
        Claim::NoClaim => "~",
    }
}
