//! What another load generator measured, for contrast.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// No arm: it has no blocks, and its load and its clock are another tool's. No comparison and no
/// verdict reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// As whoever imported it calls it.
    pub name: String,
    /// "fortio 1.69".
    pub tool: String,
    /// How its load came about and from when its times count.
    pub load: String,
    /// Name of the file, and its SHA-256.
    pub file: String,
    pub sha256: String,
    /// Timed requests.
    pub requests: u64,
    pub failed: u64,
    /// Requests/s.
    pub rate: f64,
    pub duration_s: f64,
    /// (share, µs), rising: at most so long took that share of the requests.
    pub quantiles: Vec<(f64, f64)>,
}

impl Foreign {
    /// What tables show.
    pub const SHOWN: [(&str, f64); 4] =
        [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

    /// The time that a share of the requests did not exceed; absent where n·(1−q) < 100, or where
    /// the tool does not tell.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if !crate::stats::quantile_is_printable(self.requests, q) {
            return None;
        }
        // Told for this very share, or for one so near above it that no digit changes.
        let told = self
            .quantiles
            .iter()
            .find(|(share, _)| *share >= q - 1e-9)?;
        ((1.0 - told.0) >= 0.9 * (1.0 - q)).then_some(told.1)
    }

    /// (1 ÷ (1 − q), µs), as far as it may be printed.
    pub fn spectrum(&self) -> Vec<(f64, f64)> {
        self.quantiles
            .iter()
            .filter(|(share, _)| crate::stats::quantile_is_printable(self.requests, *share))
            .map(|(share, us)| (1.0 / (1.0 - share), *us))
            .collect()
    }
}
