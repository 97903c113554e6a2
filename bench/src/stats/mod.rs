//! Inference over blocks: pure functions, no I/O, no knowledge of scenarios.
//!
//! # What is honest with few blocks
//!
//! The unit is the block (all arms once, same schedule), never the request: ten thousand
//! requests within one block share that block's weather. A run therefore has 6 to 12
//! independent observations per comparison, and three things follow.
//!
//! * **Fewer than six blocks claim nothing.** The range of n paired effects covers their median
//!   with probability 1 − 2^(1−n): 93.75 % for n = 5, 96.9 % for n = 6. No method that assumes
//!   no distribution can give a 95 % interval from five blocks, so [`median_interval`] gives
//!   none, and the smallest two-sided Wilcoxon p there is 0.0625.
//! * **A percentile bootstrap alone is too optimistic at six.** It resamples six numbers and
//!   rarely reaches the outermost ones, so its nominal 95 % covers less. The interval used
//!   here is the hull of the bootstrap's and of the order statistics whose exact coverage is
//!   ≥ 95 %. At n = 6 that is the whole range: a difference is claimed only if all six blocks
//!   agree on its sign. From n ≈ 20 the two nearly coincide.
//! * **Holm cannot be satisfied at six.** The smallest exact p is 0.03125; over a family of two
//!   it becomes 0.0625. A rule "Holm-adjusted p < 0.05" would forbid every claim of a quick run
//!   whatever the data say, so claims rest on the interval *and* on the noise floor that an arm
//!   against itself shows; p and Holm's p are printed beside them. A reader who wants family-wise
//!   error control runs twelve blocks or more (smallest p 0.00049) and reads that column.
//!
//! Nothing here removes an outlier.

mod bootstrap;
mod line;
mod mann_whitney;
mod median;
mod paired;
mod power;
mod proportion;
mod quantile;
mod wilcoxon;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use bootstrap::{covering_interval, median_interval, subseed};
pub use line::{Line, fit_line};
pub use mann_whitney::{hodges_lehmann, mann_whitney};
pub use median::{deviation, median, ranks};
pub use paired::{Paired, differences, log_ratios, paired, within_margin};
pub use power::{
    blocks_for_difference, blocks_for_equivalence, blocks_to_narrow, difference_shown,
};
pub use proportion::{clopper_pearson, fisher_exact, holm, upper_bound_of_none};
pub use quantile::{quantile, quantile_is_printable};
pub use wilcoxon::wilcoxon_signed_rank;

/// Fewest blocks that can carry a 95 % interval for a median without assuming a distribution.
pub const MIN_BLOCKS: usize = 6;

/// Confidence of every interval in the reports.
pub const CONFIDENCE: f64 = 0.95;

/// An interval, ends included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    pub low: f64,
    pub high: f64,
}

impl Bounds {
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// The end farther from zero, as a magnitude.
    pub fn reach(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    /// Both ends through a rising function (exp, to come back from logarithms).
    pub fn map(self, rising: impl Fn(f64) -> f64) -> Bounds {
        Bounds {
            low: rising(self.low),
            high: rising(self.high),
        }
    }

    fn hull(self, other: Bounds) -> Bounds {
        Bounds {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
        }
    }
}
