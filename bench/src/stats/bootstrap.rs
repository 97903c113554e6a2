//! The interval of a median over blocks: seeded percentile bootstrap and order statistics.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::median::middle;
use super::{Bounds, CONFIDENCE, MIN_BLOCKS};

/// Enough that the 2.5 % point rests on fifty resamples.
const RESAMPLES: usize = 2000;

/// A seed for one comparison of a run, so that adding a scenario does not move the intervals of
/// another (FNV-1a of the label, from the run's seed).
pub fn subseed(seed: u64, label: &str) -> u64 {
    label
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// 95 % interval of the median: the hull of the seeded percentile bootstrap's and of the order
/// statistics whose coverage is exactly known. `None` below [`MIN_BLOCKS`] values; the module's
/// documentation says why, and why the hull.
pub fn median_interval(values: &[f64], seed: u64) -> Option<Bounds> {
    if values.len() < MIN_BLOCKS {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let resampled = percentile_bootstrap(&sorted, seed);
    Some(order_statistics(&sorted)?.hull(resampled))
}

/// The part of [`median_interval`] that needs no random numbers: a page can compute it too.
pub fn covering_interval(values: &[f64]) -> Option<Bounds> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    order_statistics(&sorted)
}

/// Percentile interval of the median. Resampling draws positions in the sorted values, so that
/// counting how often each was drawn replaces sorting every resample.
fn percentile_bootstrap(sorted: &[f64], seed: u64) -> Bounds {
    let n = sorted.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0_usize; n];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            drawn.fill(0);
            for _ in 0..n {
                drawn[rng.random_range(0..n)] += 1;
            }
            middle(
                value_at_rank(sorted, &drawn, n.div_ceil(2)),
                value_at_rank(sorted, &drawn, n / 2 + 1),
            )
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let last = (RESAMPLES - 1) as f64;
    Bounds {
        low: medians[(tail * last).floor() as usize],
        high: medians[((1.0 - tail) * last).ceil() as usize],
    }
}

/// The `rank`-th smallest (from 1) of a resample that drew each sorted value so many times.
fn value_at_rank(sorted: &[f64], drawn: &[usize], rank: usize) -> f64 {
    let mut seen = 0;
    for (value, times) in sorted.iter().zip(drawn) {
        seen += times;
        if seen >= rank {
            return *value;
        }
    }
    sorted[sorted.len() - 1]
}

/// The narrowest [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] that covers the median with at least 95 %: coverage is
/// 1 − 2·P(Binomial(n, ½) < k).
fn order_statistics(sorted: &[f64]) -> Option<Bounds> {
    let n = sorted.len();
    let mut probability = 0.5_f64.powi(n as i32);
    let mut below = 0.0;
    let mut best = None;
    for k in 1..=n.div_ceil(2) {
        below += probability;
        if 1.0 - 2.0 * below < CONFIDENCE {
            break;
        }
        best = Some(Bounds {
            low: sorted[k - 1],
            high: sorted[n - k],
        });
        probability *= (n + 1 - k) as f64 / k as f64;
    }
    best
}
