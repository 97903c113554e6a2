//! Two files, no pairs: Mann-Whitney's test and the shift of Hodges and Lehmann.

use statrs::distribution::{ContinuousCDF, Normal};

use super::median::median_of_sorted;
use super::{Bounds, CONFIDENCE, ranks};

/// Up to this many values together the distribution is counted.
const EXACT_UP_TO: usize = 60;

/// Two-sided p that `a` and `b` come from one distribution. Exact, ties included (the
/// permutation distribution of the shared ranks), up to 60 values together; above, the normal
/// approximation with tie and continuity correction. `None` if either side is empty or all
/// values are equal.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    if all.iter().all(|value| *value == all[0]) {
        return None;
    }
    let ranks = ranks(&all);
    let sum_a: u64 = ranks[..a.len()].iter().sum();
    if all.len() > EXACT_UP_TO {
        return Some(by_normal(&ranks, a.len(), sum_a));
    }
    let ways = rank_sum_ways(&ranks, a.len());
    let everything: f64 = ways.iter().sum();
    let low: f64 = ways[..=sum_a as usize].iter().sum();
    let high: f64 = ways[sum_a as usize..].iter().sum();
    Some((2.0 * low.min(high) / everything).min(1.0))
}

/// The shift b − a: the median of all pairwise differences, and the interval that inverts the
/// exact test (as if there were no ties). The interval is absent where the two sides are too
/// small to have one at 95 % (3 against 3, for example).
pub fn hodges_lehmann(a: &[f64], b: &[f64]) -> Option<(f64, Option<Bounds>)> {
    let mut shifts: Vec<f64> = a
        .iter()
        .flat_map(|before| b.iter().map(move |after| after - before))
        .collect();
    shifts.sort_by(f64::total_cmp);
    let estimate = median_of_sorted(&shifts)?;
    let cut = cut_off(a.len(), b.len());
    let interval = (cut > 0).then(|| Bounds {
        low: shifts[cut - 1],
        high: shifts[shifts.len() - cut],
    });
    Some((estimate, interval))
}

/// The largest c with P(U < c) ≤ 2.5 %: the interval runs from the c-th smallest shift to the
/// c-th largest.
fn cut_off(m: usize, n: usize) -> usize {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    if m + n > EXACT_UP_TO {
        let (m, n) = (m as f64, n as f64);
        let spread = (m * n * (m + n + 1.0) / 12.0).sqrt();
        return (m * n / 2.0 - standard_normal().inverse_cdf(1.0 - tail) * spread).floor() as usize;
    }
    let untied: Vec<u64> = (1..=(m + n) as u64).map(|rank| 2 * rank).collect();
    let ways = rank_sum_ways(&untied, m);
    let everything: f64 = ways.iter().sum();
    let least = m * (m + 1);
    let mut below = 0.0;
    let mut cut = 0;
    while cut <= m * n {
        below += ways[least + 2 * cut];
        if below / everything > tail {
            break;
        }
        cut += 1;
    }
    cut
}

/// How many choices of `m` ranks have each sum (of doubled ranks).
fn rank_sum_ways(doubled: &[u64], m: usize) -> Vec<f64> {
    let total: usize = doubled.iter().sum::<u64>() as usize;
    let mut ways = vec![vec![0.0; total + 1]; m + 1];
    ways[0][0] = 1.0;
    for &rank in doubled {
        for taken in (0..m).rev() {
            let (fewer, more) = ways.split_at_mut(taken + 1);
            for sum in 0..=total - rank as usize {
                more[0][sum + rank as usize] += fewer[taken][sum];
            }
        }
    }
    ways.swap_remove(m)
}

fn by_normal(doubled: &[u64], m: usize, sum: u64) -> f64 {
    let total = doubled.len() as f64;
    let (m, n) = (m as f64, total - m as f64);
    let mean_rank = (total + 1.0) / 2.0;
    let scatter: f64 = doubled
        .iter()
        .map(|&rank| (rank as f64 / 2.0 - mean_rank).powi(2))
        .sum();
    let variance = m * n * scatter / (total * (total - 1.0));
    let distance = (sum as f64 / 2.0 - m * mean_rank).abs();
    let z = (distance - 0.5).max(0.0) / variance.sqrt();
    (2.0 * standard_normal().sf(z)).min(1.0)
}

fn standard_normal() -> Normal {
    Normal::new(0.0, 1.0).expect("the standard normal exists")
}
