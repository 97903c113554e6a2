//! What a run leaves behind: `results.json`.
//!
//! The file is the source; every report derives from it, so it keeps the raw material (one
//! encoded histogram per trial, every count, every void) and never a percentile that was
//! averaged. The types are serde's and schemars', so the schema that is checked in cannot
//! drift from what is written: a test compares the two.
//!
//! Who fills what: a run fills everything but [`Results::analysis`] and [`Results::status`];
//! [`crate::analysis::analyse`] fills those two from the rest and may be repeated at will.

mod analysis;
mod file;
mod foreign;
pub mod keys;
mod machine;
mod scenario;
mod trial;

#[cfg(test)]
pub mod synthetic;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use analysis::{
    Analysis, Basis, Claim, Comparison, Crossover, Effect, Estimate, FaultSummary, MemoryLine,
    Proportion, Slowdown, SlowdownPoint, Spread, Verdict, VoidShare,
};
pub use file::{FileError, file_of, read, schema, schema_text, text, write};
pub use foreign::Foreign;
pub use machine::{Kubernetes, KubernetesNode, Machine, Pressure, PressureLine};
pub use scenario::{Better, Block, Compare, HEADLINE_LOAD, Kind, Metric, Scenario, Source};
pub use trial::{
    Histogram, HistogramError, Histograms, LoadCounts, Point, Stage, Timeline, Trial, Void,
};

/// Written into every file; a reader refuses any other.
pub const SCHEMA: &str = "duet.bench/v1";

/// One run, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Duet bench results")]
pub struct Results {
    /// Always `duet.bench/v1`.
    pub schema: String,
    /// Version of duet-bench that wrote the file.
    pub version: String,
    /// Start of the run, RFC 3339, UTC.
    pub started: String,
    /// Wall time of the whole run.
    pub duration_s: f64,
    pub profile: Profile,
    /// Everything random in the run follows from this number.
    pub seed: u64,
    /// `netns` or `kube`.
    pub cluster: String,
    /// The command line, to be repeated.
    pub command: Vec<String>,
    pub machine: Machine,
    pub arms: Vec<Arm>,
    /// What was held equal between the arms, and what was not.
    pub parity: Vec<ParityRow>,
    pub scenarios: Vec<Scenario>,
    /// Why the run ended early, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<String>,
    /// Anything a reader has to know that has no field of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What other load generators measured, for contrast.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<Foreign>,
    /// Derived from the rest.
    #[serde(default)]
    pub analysis: Analysis,
    /// Derived from the rest.
    #[serde(default)]
    pub status: Status,
}

/// How long a run is, and therefore what it may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One block: shows that everything works, claims nothing.
    Smoke,
    /// Six blocks or more.
    Quick,
    /// Twelve blocks or more.
    Full,
}

/// One way of running the workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// `none`, `sidecar`, `agent`, `aa`, or a peer's name.
    pub name: String,
    /// One sentence.
    pub description: String,
    pub placement: Placement,
    /// The arm of which this one is a second copy (`aa` names `sidecar`): their difference is
    /// the noise floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
    /// As printed by the binary; absent where no Duet proxy runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_fingerprint: Option<String>,
    /// Optimisation level of the binary, as printed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opt_level: Option<String>,
    /// Worker threads of all the proxies of a node, together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// Where the proxy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    None,
    Sidecar,
    Agent,
    /// Somebody else's proxy, by configuration.
    External,
}

/// Limits of an arm's proxies on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Proxies of the node.
    pub proxies: u32,
    /// Thousandths of a core, each proxy.
    pub cpu_millicores_each: f64,
    /// Thousandths of a core, all proxies of the node: equal between arms.
    pub cpu_millicores_sum: f64,
    pub memory_mib_each: f64,
    /// Equal between arms.
    pub memory_mib_sum: f64,
}

/// One thing that should be equal, and its value per arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParityRow {
    /// "TLS suite", "sum of CPU limits", …
    pub what: String,
    /// In the order of [`Results::arms`]; `–` where the thing does not apply.
    pub values: Vec<String>,
    pub equal: bool,
    /// Why it may differ, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Where the thing does not apply to an arm.
pub const NOT_APPLICABLE: &str = "–";
/// A limit in whole millicores for each of a node's proxies: their sums differ by less.
const ROUNDING: f64 = 0.01;

// === impl ParityRow ===

impl ParityRow {
    /// Whether its values are amounts of one unit that differ by rounding alone.
    pub fn is_rounded(&self) -> bool {
        let values = self.values.iter().filter(|value| *value != NOT_APPLICABLE);
        let amounts = values.clone().filter_map(|value| {
            let end = value.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (amount, unit) = value.split_at(end);
            Some((amount.parse::<f64>().ok()?, unit))
        });
        let (amounts, units): (Vec<_>, Vec<_>) = amounts.unzip();
        let least = amounts.iter().copied().fold(f64::INFINITY, f64::min);
        let most = amounts.iter().copied().fold(0.0, f64::max);
        units.windows(2).all(|two| two[0] == two[1])
            && amounts.len() == values.count()
            && most <= least * (1.0 + ROUNDING)
    }
}

/// Whether the numbers may be used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Status {
    pub state: State,
    /// Why, one line each; may be non-empty for a valid run too (single void trials).
    pub reasons: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Valid,
    /// The gates, the parity or an interruption forbid any conclusion.
    Void,
    /// Too short for claims by design.
    #[default]
    Smoke,
}

impl Results {
    /// The arm of that name.
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// The scenario of that id ("L1").
    pub fn scenario(&self, id: &str) -> Option<&Scenario> {
        self.scenarios.iter().find(|scenario| scenario.id == id)
    }
}
