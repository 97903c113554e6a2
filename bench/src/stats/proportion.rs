//! Counts: k of n, two counts against each other, and many tests at once.

use statrs::function::beta::beta_reg;
use statrs::function::factorial::ln_binomial;

use super::Bounds;

/// Clopper and Pearson's exact two-sided interval of a proportion. `k` ≤ `n`, `n` > 0; of no
/// observations at all the interval is everything.
pub fn clopper_pearson(k: u64, n: u64, confidence: f64) -> Bounds {
    if n == 0 {
        return Bounds {
            low: 0.0,
            high: 1.0,
        };
    }
    let tail = (1.0 - confidence) / 2.0;
    let (hits, misses) = (k as f64, (n - k) as f64);
    Bounds {
        // P(X ≥ k | p) = I_p(k, n−k+1)
        low: if k == 0 {
            0.0
        } else {
            solve(|p| beta_reg(hits, misses + 1.0, p) - tail)
        },
        // P(X ≤ k | p) = 1 − I_p(k+1, n−k)
        high: if k == n {
            1.0
        } else {
            solve(|p| beta_reg(hits + 1.0, misses, p) - (1.0 - tail))
        },
    }
}

/// What none of n still allows, one-sided at 95 %: 0 of 30 allows 9.5 %.
pub fn upper_bound_of_none(n: u64) -> f64 {
    if n == 0 {
        return 1.0;
    }
    1.0 - 0.05_f64.powf(1.0 / n as f64)
}

/// The zero of a function that rises over 0…1.
fn solve(rising: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if rising(middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// Fisher's exact test of k₁ of n₁ against k₂ of n₂, two-sided: the probability of all tables
/// with these margins that are no likelier than the one seen.
pub fn fisher_exact(k1: u64, n1: u64, k2: u64, n2: u64) -> f64 {
    let hits = k1 + k2;
    let ln_probability =
        |k: u64| ln_binomial(n1, k) + ln_binomial(n2, hits - k) - ln_binomial(n1 + n2, hits);
    let seen = ln_probability(k1);
    let sum: f64 = (hits.saturating_sub(n2)..=hits.min(n1))
        .map(ln_probability)
        .filter(|ln| *ln <= seen + 1e-7)
        .map(f64::exp)
        .sum();
    sum.min(1.0)
}

/// Holm's step-down adjustment: the family-wise p of each, in the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut running: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        running = running.max((p.len() - rank) as f64 * p[index]).min(1.0);
        adjusted[index] = running;
    }
    adjusted
}
