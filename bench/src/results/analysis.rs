//! What [`crate::analysis::analyse`] derives: comparisons, curves, verdicts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scenario::{Better, Kind};
use super::trial::Point;
use crate::stats::Bounds;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// One row per question, in the order in which a platform owner asks them.
    pub verdicts: Vec<Verdict>,
    /// Each metric × point × pair of arms.
    pub comparisons: Vec<Comparison>,
    /// I1 and its kin: the victim's slowdown per arm.
    pub slowdowns: Vec<Slowdown>,
    /// R1: memory = a + b·pods per arm.
    pub memory_lines: Vec<MemoryLine>,
    pub crossovers: Vec<Crossover>,
    /// F1 and its kin, per arm.
    pub faults: Vec<FaultSummary>,
    /// Void trials per scenario and arm.
    pub voids: Vec<VoidShare>,
}

/// A median over blocks and its 95 % interval; no interval where the blocks are too few for one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    pub value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Bounds>,
}

/// What may be said of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    Higher,
    Lower,
    /// The interval lies within the margin below which a difference does not matter.
    Equivalent,
    /// `~`
    NoClaim,
}

/// The scale of a comparison's interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// arm ÷ baseline.
    Ratio,
    /// arm − baseline, in the metric's unit.
    Difference,
}

/// One metric at one point, one arm against another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    pub scenario: String,
    /// A metric's key, or `slowdown_<key>` for a victim's L(w) ÷ L(0).
    pub metric: String,
    pub label: String,
    pub unit: String,
    pub kind: Kind,
    pub better: Better,
    pub point: Point,
    pub arm: String,
    pub baseline: String,
    /// Blocks in which both arms gave a valid value.
    pub blocks: u32,
    /// Blocks lost to a void trial of either.
    pub void_blocks: u32,
    /// Median of the per-block values, for orientation; the comparison is of pairs.
    pub arm_value: Option<f64>,
    pub baseline_value: Option<f64>,
    pub effect: Effect,
    /// Median of the paired effects and its interval; absent without a pair.
    pub estimate: Option<Estimate>,
    /// Exact Wilcoxon signed-rank, two-sided.
    pub p: Option<f64>,
    /// The same after Holm over the scenario's family of comparisons with the same baseline.
    pub p_holm: Option<f64>,
    /// What an arm against itself can show, on the same scale (a ratio ≥ 1, or a difference ≥ 0).
    pub floor: Option<f64>,
    pub claim: Claim,
    /// Why no more can be said, where it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Blocks that would settle it one way or the other, at the noise seen here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_needed: Option<u32>,
}

/// A victim's slowdown under an aggressor, in one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slowdown {
    pub scenario: String,
    pub arm: String,
    pub series: String,
    /// `p50`, `p90`.
    pub metric: String,
    /// By rising w; at w = 0 the slowdown is 1 by definition.
    pub points: Vec<SlowdownPoint>,
    /// ∫ (S − 1) dw ÷ the span of w: the mean slowdown over the sweep, 0 = perfect.
    pub integral: Option<Estimate>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlowdownPoint {
    pub w: f64,
    /// Blocks behind it.
    pub blocks: u32,
    /// S_q(w) = L_q(w) ÷ L_q(0), per block. Its excess over the arm without a mesh is among the
    /// comparisons as `slowdown_<metric>`.
    pub slowdown: Option<Estimate>,
    /// The victim's goodput.
    pub goodput: Option<Estimate>,
}

/// R1's line for one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryLine {
    pub scenario: String,
    pub arm: String,
    /// MiB with no pod at all (extrapolated).
    pub base: Estimate,
    /// MiB per pod.
    pub per_pod: Estimate,
    pub blocks: u32,
    /// Median over blocks at each measured count of pods: (pods, MiB).
    pub measured: Vec<(f64, f64)>,
}

/// The least number of pods from which the agent takes less than the sidecars.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Crossover {
    pub scenario: String,
    pub metric: String,
    /// Absent where the lines do not cross for a positive number of pods.
    pub pods: Option<Estimate>,
    /// Said in words.
    pub sentence: String,
}

/// F1 for one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultSummary {
    pub scenario: String,
    pub arm: String,
    pub injections: u32,
    /// Pods hit in the middle and in the worst injection.
    pub pods_hit: Option<Spread>,
    pub pods_meshed: Option<f64>,
    pub requests_lost: Option<Spread>,
    pub unavailability_pod_s: Option<Spread>,
    /// Over the injections after which every pod recovered within the trial.
    pub recover_ms: Option<Spread>,
    /// Injections after which some pod had not recovered when the trial ended.
    pub not_recovered: u32,
    /// Medians of the parts of the recovery, in their order.
    pub parts_ms: Vec<(String, f64)>,
    /// Injections that hit more than one pod. The injection is the unit: the pods of one node
    /// fall together and are no independent evidence.
    pub hit_others: Proportion,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    pub median: f64,
    pub max: f64,
}

/// k of n with Clopper-Pearson's interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Proportion {
    pub hits: u64,
    pub of: u64,
    pub low: f64,
    pub high: f64,
}

/// Void trials of an arm in a scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VoidShare {
    pub scenario: String,
    pub arm: String,
    pub void: u32,
    pub trials: u32,
    /// Gate → trials it voided.
    pub gates: std::collections::BTreeMap<String, u32>,
}

/// What an answer rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A claim: interval and noise floor allow it.
    Claimed,
    /// Counted, not inferred: bytes on a wire, keys in a process.
    Counted,
    /// Measured, but nothing may be claimed.
    NotResolved,
    /// The scenario was not run, or all of it is void.
    NotMeasured,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub scenario: String,
    /// "What does a mesh add to a request?"
    pub question: String,
    /// One plain sentence with its uncertainty.
    pub answer: String,
    pub basis: Basis,
    /// The same in a few words per arm, for the terminal: (arm, "1.3× [1.2, 1.5]").
    pub figures: Vec<(String, String)>,
}
