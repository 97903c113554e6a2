//! Effects of one arm against another, block by block.

use super::{Bounds, median, median_interval, wilcoxon_signed_rank};

/// What n paired effects say together.
#[derive(Clone, Debug, PartialEq)]
pub struct Paired {
    pub effects: Vec<f64>,
    /// Their median.
    pub estimate: f64,
    /// 95 %; absent below [`super::MIN_BLOCKS`].
    pub interval: Option<Bounds>,
    /// Exact Wilcoxon signed-rank, two-sided; absent if all effects are zero.
    pub p: Option<f64>,
}

/// ln(arm ÷ baseline) of each block's pair. `None` if any value is not positive: such a metric
/// has to be compared by [`differences`], for all its blocks alike.
pub fn log_ratios(pairs: &[(f64, f64)]) -> Option<Vec<f64>> {
    pairs
        .iter()
        .map(|&(arm, baseline)| (arm > 0.0 && baseline > 0.0).then(|| (arm / baseline).ln()))
        .collect()
}

/// arm − baseline of each block's pair.
pub fn differences(pairs: &[(f64, f64)]) -> Vec<f64> {
    pairs
        .iter()
        .map(|&(arm, baseline)| arm - baseline)
        .collect()
}

/// Median, interval and test of paired effects; `None` of none.
pub fn paired(effects: Vec<f64>, seed: u64) -> Option<Paired> {
    Some(Paired {
        estimate: median(&effects)?,
        interval: median_interval(&effects, seed),
        p: wilcoxon_signed_rank(&effects),
        effects,
    })
}

/// Equivalence by inclusion: two one-sided tests at 2.5 % each (the 95 % interval, stricter than
/// the usual 90 %) both reject exactly when the interval lies inside ±margin.
pub fn within_margin(interval: Bounds, margin: f64) -> bool {
    -margin < interval.low && interval.high < margin
}
