//! SciPy and statsmodels as an oracle: `expected.json` holds their answers, `expected.py` made it.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Expected {
    made_by: String,
    wilcoxon: Vec<Effects>,
    mann_whitney: Vec<Sides>,
    hodges_lehmann: Vec<Shift>,
    proportions: Vec<OfMany>,
    fisher: Vec<Tables>,
    holm: Vec<Family>,
    lines: Vec<Points>,
    order_statistics: Vec<Order>,
    spread: Vec<Spread>,
    planning: Vec<Plan>,
}

#[derive(Deserialize)]
struct Effects {
    effects: Vec<f64>,
    p: f64,
}

#[derive(Deserialize)]
struct Sides {
    a: Vec<f64>,
    b: Vec<f64>,
    p: f64,
}

#[derive(Deserialize)]
struct Shift {
    a: Vec<f64>,
    b: Vec<f64>,
    shift: f64,
    low: f64,
    high: f64,
}

#[derive(Deserialize)]
struct OfMany {
    k: u64,
    n: u64,
    low: f64,
    high: f64,
    of_none: f64,
}

#[derive(Deserialize)]
struct Tables {
    k1: u64,
    n1: u64,
    k2: u64,
    n2: u64,
    p: f64,
}

#[derive(Deserialize)]
struct Family {
    p: Vec<f64>,
    adjusted: Vec<f64>,
}

#[derive(Deserialize)]
struct Points {
    points: Vec<(f64, f64)>,
    base: f64,
    slope: f64,
}

#[derive(Deserialize)]
struct Order {
    n: u32,
    k: u32,
}

#[derive(Deserialize)]
struct Spread {
    values: Vec<f64>,
    median: f64,
    deviation: f64,
}

#[derive(Deserialize)]
struct Plan {
    deviation: f64,
    size: f64,
    blocks: u32,
}

fn expected() -> Expected {
    let expected: Expected = serde_json::from_str(include_str!("expected.json")).unwrap();
    assert!(expected.made_by.contains("SciPy 1."));
    expected
}

/// Within a billionth of the larger one, or of 1.
#[track_caller]
fn same(found: f64, expected: f64, what: &str) {
    let allowed = 1e-9 * expected.abs().max(1.0);
    assert!(
        (found - expected).abs() <= allowed,
        "{what}: {found} and not {expected}"
    );
}

#[test]
fn wilcoxon_signed_rank_is_scipys() {
    for case in expected().wilcoxon {
        let found = wilcoxon_signed_rank(&case.effects).unwrap();
        same(found, case.p, &format!("{:?}", case.effects));
    }
}

#[test]
fn mann_whitney_is_scipys() {
    for case in expected().mann_whitney {
        let found = mann_whitney(&case.a, &case.b).unwrap();
        same(found, case.p, &format!("{:?} {:?}", case.a, case.b));
    }
}

#[test]
fn the_shifts_interval_inverts_scipys_test() {
    for case in expected().hodges_lehmann {
        let (shift, interval) = hodges_lehmann(&case.a, &case.b).unwrap();
        let interval = interval.unwrap();
        same(shift, case.shift, "shift");
        same(interval.low, case.low, "low end");
        same(interval.high, case.high, "high end");
    }
}

#[test]
fn intervals_of_proportions_are_scipys() {
    for case in expected().proportions {
        let found = clopper_pearson(case.k, case.n, 0.95);
        same(found.low, case.low, &format!("{} of {}", case.k, case.n));
        same(found.high, case.high, &format!("{} of {}", case.k, case.n));
        same(upper_bound_of_none(case.n), case.of_none, "none");
    }
}

#[test]
fn fisher_exact_is_scipys() {
    for case in expected().fisher {
        let found = fisher_exact(case.k1, case.n1, case.k2, case.n2);
        same(found, case.p, &format!("{} of {}", case.k1, case.n1));
    }
}

#[test]
fn holm_is_statsmodels() {
    for case in expected().holm {
        for (found, expected) in holm(&case.p).into_iter().zip(case.adjusted) {
            same(found, expected, "Holm");
        }
    }
}

#[test]
fn lines_are_scipys() {
    for case in expected().lines {
        let line = fit_line(&case.points).unwrap();
        same(line.base, case.base, "base");
        same(line.slope, case.slope, "slope");
    }
}

#[test]
fn the_order_statistics_that_cover_a_median_are_the_binomials() {
    for case in expected().order_statistics {
        let values: Vec<f64> = (1..=case.n).map(f64::from).collect();
        let expected = (case.k > 0).then(|| Bounds {
            low: f64::from(case.k),
            high: f64::from(case.n + 1 - case.k),
        });
        assert_eq!(covering_interval(&values), expected, "n = {}", case.n);
    }
}

#[test]
fn medians_and_deviations_are_numpys() {
    for case in expected().spread {
        same(median(&case.values).unwrap(), case.median, "median");
        same(
            deviation(&case.values).unwrap(),
            case.deviation,
            "deviation",
        );
    }
}

#[test]
fn planned_blocks_are_the_normal_sample_size() {
    for case in expected().planning {
        let found = blocks_for_difference(case.deviation, case.size);
        assert_eq!(found, Some(case.blocks));
    }
}
