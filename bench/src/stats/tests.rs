//! Known answers from published tables, and properties that no table can show.

use hdrhistogram::Histogram;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{found} is not within {tolerance} of {expected}"
    );
}

// === quantiles ===

#[test]
fn quantiles_are_nearest_rank_and_need_a_hundred_samples_beyond() {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    for value in 1..=1000 {
        histogram.record(value).unwrap();
    }
    assert_eq!(quantile(&histogram, 0.5), Some(500));
    assert_eq!(quantile(&histogram, 0.9), Some(900));
    assert_eq!(quantile(&histogram, 0.91), None);
    assert!(quantile_is_printable(10_000, 0.99));
    assert!(!quantile_is_printable(9_999, 0.99));
    assert!(quantile_is_printable(200, 0.5));
}

// === Wilcoxon ===

/// Effects of magnitude 1…n whose positive ranks sum to `w`.
fn signed_ranks(n: u32, w: u32) -> Vec<f64> {
    let mut left = w;
    let mut effects: Vec<f64> = (1..=n)
        .rev()
        .map(|rank| {
            let positive = rank <= left;
            left -= if positive { rank } else { 0 };
            f64::from(rank) * if positive { 1.0 } else { -1.0 }
        })
        .collect();
    effects.reverse();
    effects
}

/// Critical values at a two-sided 5 % from McCornack, "Extended tables of the Wilcoxon matched
/// pair signed rank statistic", JASA 60 (1965), 864–871: T itself is significant, T + 1 is not.
#[test]
fn wilcoxon_agrees_with_mccornacks_table() {
    for (n, critical) in [
        (6, 0),
        (8, 3),
        (10, 8),
        (12, 13),
        (15, 25),
        (20, 52),
        (25, 89),
    ] {
        let at = wilcoxon_signed_rank(&signed_ranks(n, critical)).unwrap();
        let beyond = wilcoxon_signed_rank(&signed_ranks(n, critical + 1)).unwrap();
        assert!(at <= 0.05 && beyond > 0.05, "n = {n}: {at}, {beyond}");
    }
    assert_eq!(wilcoxon_signed_rank(&signed_ranks(6, 0)), Some(0.03125));
    assert_eq!(
        wilcoxon_signed_rank(&signed_ranks(10, 8)),
        Some(0.048828125)
    );
}

/// Hollander & Wolfe (1973), p. 29 f.: Hamilton depression scale, one-sided p = 0.01953.
#[test]
#[expect(
    clippy::approx_constant,
    reason = "a measurement that happens to be 3.14"
)]
fn wilcoxon_gives_hollander_and_wolfes_answer() {
    let before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
    let after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];
    let pairs: Vec<(f64, f64)> = before.into_iter().zip(after).collect();
    close(
        wilcoxon_signed_rank(&differences(&pairs)).unwrap(),
        0.0390625,
        1e-12,
    );
}

/// Cushny & Peebles' sleep data as Student (1908) used them: ten pairs, one of them zero, all
/// others of one sign.
#[test]
fn wilcoxon_drops_zeros() {
    let extra = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];
    close(wilcoxon_signed_rank(&extra).unwrap(), 2.0 / 512.0, 1e-12);
    assert_eq!(wilcoxon_signed_rank(&[0.0, 0.0]), None);
}

/// The permutation distribution by SciPy 1.x (`wilcoxon(…, method=PermutationMethod(inf))`), and
/// its asymptotic method for more than fifty.
#[test]
fn wilcoxon_agrees_with_scipy() {
    let tied = [1.0, -1.0, 2.0, 2.0, -3.0, 4.0, 5.0, 5.0];
    close(wilcoxon_signed_rank(&tied).unwrap(), 0.125, 1e-12);
    let many: Vec<f64> = (0..60)
        .map(f64::from)
        .map(|i| ((i * 0.7) % 4.0) - 1.5 + i * 0.001)
        .collect();
    close(
        wilcoxon_signed_rank(&many).unwrap(),
        0.009460053581968523,
        1e-9,
    );
}

// === Mann-Whitney, Hodges-Lehmann ===

/// Hollander & Wolfe (1973), p. 69 f.: permeability of the chorioamnion, at term and earlier.
const AT_TERM: [f64; 10] = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
const EARLIER: [f64; 5] = [1.15, 0.88, 0.90, 0.74, 1.21];

#[test]
fn mann_whitney_gives_hollander_and_wolfes_answer() {
    // One-sided 0.1272 in the book.
    close(
        mann_whitney(&AT_TERM, &EARLIER).unwrap(),
        0.2544122544122544,
        1e-12,
    );
    let (shift, interval) = hodges_lehmann(&EARLIER, &AT_TERM).unwrap();
    let interval = interval.unwrap();
    close(shift, 0.305, 1e-12);
    close(interval.low, -0.15, 1e-12);
    close(interval.high, 0.76, 1e-12);
}

/// Mann & Whitney, Annals of Mathematical Statistics 18 (1947), table I: P(U ≤ 5) = 0.021 and
/// P(U ≤ 6) = 0.032 for n = m = 6; P(U ≤ 2) = 0.016 for n = m = 5.
#[test]
fn mann_whitney_agrees_with_their_own_table() {
    let sides = |n: usize, u: usize| {
        // a below b throughout, then the largest of a moved up past u of b.
        let mut a: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let b: Vec<f64> = (0..n).map(|i| 100.0 + i as f64).collect();
        let full = u / n;
        for value in a.iter_mut().rev().take(full) {
            *value += 1000.0;
        }
        a[n - 1 - full] = 99.5 + (u % n) as f64;
        mann_whitney(&a, &b).unwrap() / 2.0
    };
    close(sides(6, 5), 0.021, 5e-4);
    close(sides(6, 6), 0.032, 5e-4);
    close(sides(5, 2), 0.016, 5e-4);
}

#[test]
fn mann_whitney_agrees_with_scipy_on_ties_and_on_many() {
    let p = mann_whitney(&[1.0, 2.0, 2.0, 3.0, 5.0], &[2.0, 4.0, 4.0, 6.0, 7.0]).unwrap();
    close(p, 0.14285714285714285, 1e-12);
    let a: Vec<f64> = (0..40).map(|i| f64::from(i) * 0.37 % 5.0).collect();
    let b: Vec<f64> = (0..35).map(|i| (f64::from(i) * 0.61 % 5.0) + 0.8).collect();
    close(mann_whitney(&a, &b).unwrap(), 0.055252006748829414, 1e-6);
}

#[test]
fn three_against_three_has_no_interval_at_95_percent() {
    let (shift, interval) = hodges_lehmann(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).unwrap();
    assert_eq!((shift, interval), (10.0, None));
    close(
        mann_whitney(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).unwrap(),
        0.1,
        1e-12,
    );
}

// === proportions, families ===

/// Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine
/// 17 (1998), table I, method 5.
#[test]
fn clopper_pearson_agrees_with_newcombes_table() {
    for (k, n, low, high) in [
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ] {
        let found = clopper_pearson(k, n, 0.95);
        close(found.low, low, 5e-5);
        close(found.high, high, 5e-5);
    }
}

#[test]
fn none_of_thirty_still_allows_a_tenth() {
    close(upper_bound_of_none(30), 0.095, 5e-4);
}

/// Fisher's tea-tasting lady (The Design of Experiments, 1935): three of four right, both ways;
/// and two tables by SciPy.
#[test]
fn fisher_exact_known_answers() {
    close(fisher_exact(3, 4, 1, 4), 34.0 / 70.0, 1e-9);
    close(fisher_exact(8, 10, 1, 6), 0.034965034965034975, 1e-9);
    close(fisher_exact(1, 10, 11, 14), 0.0027594561852200836, 1e-9);
}

/// The worked example that R's `p.adjust` and most texts on Holm (1979) use.
#[test]
fn holm_known_answer() {
    let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (found, expected) in adjusted.into_iter().zip([0.03, 0.06, 0.06, 0.02]) {
        close(found, expected, 1e-12);
    }
}

// === lines, planning ===

/// Anscombe, "Graphs in statistical analysis", American Statistician 27 (1973), first set.
#[test]
fn least_squares_gives_anscombes_line() {
    let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
    let y = [
        8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68,
    ];
    let points: Vec<(f64, f64)> = x.into_iter().zip(y).collect();
    let line = fit_line(&points).unwrap();
    close(line.base, 3.0, 1e-3);
    close(line.slope, 0.5, 1e-3);
    assert_eq!(fit_line(&[(1.0, 2.0), (1.0, 3.0)]), None);
}

#[test]
fn lines_cross_where_they_should() {
    let sidecars = Line {
        base: 0.0,
        slope: 8.0,
    };
    let agent = Line {
        base: 20.0,
        slope: 3.0,
    };
    close(sidecars.overtaken_by(&agent), 4.0, 1e-12);
    assert_eq!(agent.overtaken_by(&sidecars), f64::INFINITY);
}

#[test]
fn blocks_follow_the_normal_sample_size() {
    // 7.849 for a mean at σ = δ (any textbook), × π/2 for a median.
    assert_eq!(blocks_for_difference(1.0, 1.0), Some(13));
    assert_eq!(blocks_for_difference(0.01, 1.0), Some(MIN_BLOCKS as u32));
    assert_eq!(blocks_for_difference(1.0, 0.0), None);
    assert_eq!(blocks_for_difference(1.0, 1e-6), None);
    assert!(blocks_for_equivalence(0.1, 0.0, 0.1) > blocks_for_difference(0.1, 0.1));
}

#[test]
fn six_blocks_claim_only_what_all_six_agree_on() {
    let mostly_up = [0.2, 0.3, 0.25, 0.31, 0.22, -0.01];
    assert!(median_interval(&mostly_up, 7).unwrap().contains(0.0));
    let all_up = [0.2, 0.3, 0.25, 0.31, 0.22, 0.01];
    assert!(!median_interval(&all_up, 7).unwrap().contains(0.0));
    assert_eq!(median_interval(&all_up[..5], 7), None);
}

// === properties ===

fn blocks_of(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.1_f64..1000.0, 0.1_f64..1000.0), n)
}

proptest! {
    #[test]
    fn ratios_do_not_depend_on_the_unit(pairs in blocks_of(6..14), factor in 0.001_f64..1000.0) {
        let scaled: Vec<_> = pairs.iter().map(|(a, b)| (a * factor, b * factor)).collect();
        let (one, other) = (
            paired(log_ratios(&pairs).unwrap(), 1).unwrap(),
            paired(log_ratios(&scaled).unwrap(), 1).unwrap(),
        );
        prop_assert!((one.estimate - other.estimate).abs() < 1e-9);
        prop_assert!((one.interval.unwrap().low - other.interval.unwrap().low).abs() < 1e-9);
    }

    #[test]
    fn swapping_the_arms_turns_the_sign(pairs in blocks_of(6..14)) {
        let swapped: Vec<_> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
        let one = paired(log_ratios(&pairs).unwrap(), 1).unwrap();
        let other = paired(log_ratios(&swapped).unwrap(), 1).unwrap();
        prop_assert!((one.estimate + other.estimate).abs() < 1e-9);
        prop_assert!((one.p.unwrap() - other.p.unwrap()).abs() < 1e-9);
    }

    #[test]
    fn an_interval_holds_its_median_and_stays_in_range(
        values in prop::collection::vec(-10.0_f64..10.0, 6..30), seed: u64,
    ) {
        let interval = median_interval(&values, seed).unwrap();
        prop_assert!(interval.contains(median(&values).unwrap()));
        prop_assert!(values.contains(&interval.low) || values.len() > 6);
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        prop_assert!(smallest <= interval.low && interval.high <= largest);
    }

    /// The page's interval lies within the report's, which adds a bootstrap's.
    #[test]
    fn order_statistics_are_part_of_every_interval(
        values in prop::collection::vec(-10.0_f64..10.0, 6..30), seed: u64,
    ) {
        let (part, whole) = (covering_interval(&values).unwrap(), median_interval(&values, seed).unwrap());
        prop_assert!(whole.low <= part.low && part.high <= whole.high);
        prop_assert!(part.contains(median(&values).unwrap()));
    }

    #[test]
    fn the_seed_decides_the_interval(values in prop::collection::vec(-1.0_f64..1.0, 12), seed: u64) {
        prop_assert_eq!(median_interval(&values, seed), median_interval(&values, seed));
    }

    #[test]
    fn p_values_are_probabilities_and_symmetric(
        a in prop::collection::vec(-5.0_f64..5.0, 1..9), b in prop::collection::vec(-5.0_f64..5.0, 1..9),
    ) {
        if let Some(p) = mann_whitney(&a, &b) {
            prop_assert!(0.0 < p && p <= 1.0);
            prop_assert!((p - mann_whitney(&b, &a).unwrap()).abs() < 1e-9);
        }
        let negated: Vec<f64> = a.iter().map(|v| -v).collect();
        if let Some(p) = wilcoxon_signed_rank(&a) {
            prop_assert!(0.0 < p && p <= 1.0);
            prop_assert_eq!(Some(p), wilcoxon_signed_rank(&negated));
        }
    }

    #[test]
    fn the_shift_follows_the_data(
        a in prop::collection::vec(-5.0_f64..5.0, 4..9),
        b in prop::collection::vec(-5.0_f64..5.0, 4..9),
        by in -9.0_f64..9.0,
    ) {
        let moved: Vec<f64> = b.iter().map(|v| v + by).collect();
        let (before, _) = hodges_lehmann(&a, &b).unwrap();
        let (after, interval) = hodges_lehmann(&a, &moved).unwrap();
        prop_assert!((after - before - by).abs() < 1e-9);
        prop_assert!(interval.unwrap().contains(after));
    }

    #[test]
    fn holm_keeps_order_and_only_raises(p in prop::collection::vec(0.0_f64..1.0, 1..20)) {
        let adjusted = holm(&p);
        for (i, one) in p.iter().enumerate() {
            prop_assert!(adjusted[i] >= *one && adjusted[i] <= 1.0);
            for (j, other) in p.iter().enumerate() {
                prop_assert!(one > other || adjusted[i] <= adjusted[j]);
            }
        }
    }

    #[test]
    fn a_proportion_lies_in_its_interval(n in 1_u64..200, share in 0.0_f64..=1.0) {
        let k = (share * n as f64).round() as u64;
        let interval = clopper_pearson(k, n, 0.95);
        let mirrored = clopper_pearson(n - k, n, 0.95);
        prop_assert!(interval.contains(k as f64 / n as f64));
        prop_assert!((interval.low - (1.0 - mirrored.high)).abs() < 1e-9);
    }

    #[test]
    fn exact_points_give_back_their_line(base in -50.0_f64..50.0, slope in -9.0_f64..9.0) {
        let points: Vec<_> = (0..5).map(|x| (f64::from(x), base + slope * f64::from(x))).collect();
        let line = fit_line(&points).unwrap();
        prop_assert!((line.base - base).abs() < 1e-9 && (line.slope - slope).abs() < 1e-9);
    }
}

/// How often an interval holds the true median, of samples whose median is known: exponential ones,
/// lopsided as latencies are, and of few blocks, where a bootstrap alone covers too seldom.
#[test]
fn intervals_cover_as_often_as_they_say() {
    const RUNS: u64 = 500;
    for n in [6_usize, 8, 12] {
        let mut draw = ChaCha8Rng::seed_from_u64(n as u64);
        let truth = std::f64::consts::LN_2;
        let covered = (0..RUNS)
            .filter(|run| {
                let mut value = || -draw.random_range(f64::MIN_POSITIVE..1.0).ln();
                let sample: Vec<f64> = (0..n).map(|_| value()).collect();
                median_interval(&sample, *run).unwrap().contains(truth)
            })
            .count();
        // 95 % less three standard errors of 500 runs.
        let share = covered as f64 / RUNS as f64;
        assert!(share >= 0.92, "n = {n}: {share}");
    }
}
