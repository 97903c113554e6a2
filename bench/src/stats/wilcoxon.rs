//! Wilcoxon's signed-rank test, exact.

use statrs::distribution::{ContinuousCDF, Normal};

use super::ranks;

/// Up to here the distribution is counted; 2⁵⁰ sign patterns are still exact in an f64.
const EXACT_UP_TO: usize = 50;

/// Two-sided p that the effects are symmetric about zero. Zeros are dropped (Wilcoxon's own
/// rule); ties share ranks and the distribution is that of the tied ranks, so the p-value is
/// exact with ties too. Above 50 effects: normal approximation with continuity correction.
/// `None` if no effect differs from zero.
pub fn wilcoxon_signed_rank(effects: &[f64]) -> Option<f64> {
    let effects: Vec<f64> = effects.iter().copied().filter(|e| *e != 0.0).collect();
    if effects.is_empty() {
        return None;
    }
    let magnitudes: Vec<f64> = effects.iter().map(|e| e.abs()).collect();
    // Doubled, so integers.
    let ranks = ranks(&magnitudes);
    let total: u64 = ranks.iter().sum();
    let positive: u64 = ranks
        .iter()
        .zip(&effects)
        .filter(|(_, effect)| **effect > 0.0)
        .map(|(rank, _)| rank)
        .sum();
    let smaller = positive.min(total - positive);
    if effects.len() > EXACT_UP_TO {
        return Some(by_normal(&ranks, smaller, total));
    }
    let mut ways = vec![0.0; total as usize + 1];
    ways[0] = 1.0;
    let mut reached = 0;
    for &rank in &ranks {
        for sum in (0..=reached).rev() {
            ways[sum + rank as usize] += ways[sum];
        }
        reached += rank as usize;
    }
    let tail: f64 = ways[..=smaller as usize].iter().sum();
    Some((2.0 * tail / 2f64.powi(effects.len() as i32)).min(1.0))
}

fn by_normal(doubled: &[u64], smaller: u64, total: u64) -> f64 {
    let mean = total as f64 / 4.0;
    let variance: f64 = doubled
        .iter()
        .map(|&rank| (rank as f64 / 2.0).powi(2) / 4.0)
        .sum();
    let z = (smaller as f64 / 2.0 - mean + 0.5) / variance.sqrt();
    let normal = Normal::new(0.0, 1.0).expect("the standard normal exists");
    (2.0 * normal.cdf(z)).min(1.0)
}
