//! Every scenario has an answer, made of the metrics that it declares itself.

use crate::results::synthetic::{histogram, unanalysed};
use crate::results::*;
use crate::scenario::{Id, experiments};
use std::collections::BTreeMap;

use super::analyse;

const ARMS: [&str; 4] = ["none", "sidecar", "agent", "aa"];

/// A value of each arm; `aa` is the sidecar again, and no block is quite like the other.
fn of(arm: &str, block: u32, [none, sidecar, agent]: [f64; 3]) -> f64 {
    let weather = 1.0 + 0.004 * f64::from(block % 3);
    let copy = if arm == "aa" {
        1.0 + 0.003 * (f64::from(block % 2) - 0.5)
    } else {
        1.0
    };
    let value = match arm {
        "none" => none,
        "agent" => agent,
        _ => sidecar,
    };
    value * weather * copy
}

/// Six blocks of one scenario, analysed as a run of its own.
fn answer(
    id: Id,
    points: &[Point],
    values: impl Fn(&Point) -> Vec<(&'static str, [f64; 3])>,
    median_us: Option<fn(&Point) -> [f64; 3]>,
) -> (Results, Verdict) {
    let metrics = experiments()
        .iter()
        .find(|experiment| experiment.scenarios().contains(&id))
        .expect("somebody asks it")
        .metrics(id);
    let arms: Vec<&str> = ARMS
        .into_iter()
        .filter(|name| {
            let arm = name.parse().expect("an arm");
            id.runs_in(arm, Profile::Full)
        })
        .collect();
    let trial = |arm: &str, block: u32, point: &Point| Trial {
        arm: arm.to_owned(),
        point: point.clone(),
        repeat: 0,
        started_s: 0.0,
        duration_s: 1.0,
        load: median_us.map(|_| LoadCounts {
            offered: 2000,
            sent: 2000,
            completed: 2000,
            ..LoadCounts::default()
        }),
        histograms: Histograms {
            response: median_us
                .map(|of_point| histogram(2000, of(arm, block, of_point(point)), 0.3)),
            ..Histograms::default()
        },
        values: values(point)
            .into_iter()
            .map(|(key, values)| (key.to_owned(), of(arm, block, values)))
            .collect(),
        timelines: Vec::new(),
        voids: Vec::new(),
        notes: Vec::new(),
    };
    let blocks = (0..6)
        .map(|index| Block {
            index,
            order: arms.iter().map(|arm| (*arm).to_owned()).collect(),
            trials: arms
                .iter()
                .flat_map(|arm| points.iter().map(move |point| (arm, point)))
                .map(|(arm, point)| trial(arm, index, point))
                .collect(),
        })
        .collect();
    let mut results = unanalysed(Profile::Quick, 5);
    results.scenarios = vec![Scenario {
        id: id.name().to_owned(),
        title: id.title().to_owned(),
        question: id.question().to_owned(),
        parameters: BTreeMap::new(),
        metrics,
        blocks,
        notes: Vec::new(),
    }];
    analyse(&mut results);
    let verdict = results
        .analysis
        .verdicts
        .first()
        .cloned()
        .expect("a verdict");
    (results, verdict)
}

fn says(verdict: &Verdict, basis: Basis, words: &[&str]) {
    assert_eq!(verdict.basis, basis, "{verdict:?}");
    for word in words {
        assert!(
            verdict.answer.contains(word),
            "no {word:?} in {:?}",
            verdict.answer
        );
    }
    assert!(!verdict.figures.is_empty(), "{verdict:?}");
    assert!(!verdict.question.is_empty(), "{verdict:?}");
}

fn sweep(labels: &[(&str, f64)]) -> Vec<Point> {
    labels
        .iter()
        .map(|(label, x)| Point::at(*label, *x))
        .collect()
}

#[test]
fn bulk_and_chains() {
    let points = sweep(&[("1 stream", 1.0), ("8 streams", 8.0)]);
    let values = |_: &Point| {
        vec![
            (keys::BULK_RATE, [20.0, 4.0, 5.0]),
            ("proxy_cpu_s_per_gb", [0.0, 2.0, 1.5]),
        ]
    };
    let (_, verdict) = answer(Id::L4, &points, values, None);
    says(
        &verdict,
        Basis::Claimed,
        &["8 streams", "Gbit/s", "behind sidecars", "1.25×"],
    );

    let points = sweep(&[("1 service", 1.0), ("2 services", 2.0), ("3 services", 3.0)]);
    let values = |point: &Point| match point.x {
        3.0 => vec![(keys::US_PER_HOP, [200.0, 900.0, 800.0])],
        _ => Vec::new(),
    };
    let (_, verdict) = answer(Id::L5, &points, values, Some(|_| [300.0, 900.0, 900.0]));
    says(
        &verdict,
        Basis::Claimed,
        &["Each further service added", "904 µs behind sidecars"],
    );
}

#[test]
fn density_and_attribution() {
    let points = sweep(&[("1 pods", 1.0), ("8 pods", 8.0)]);
    let values = |point: &Point| {
        vec![
            (keys::PROXY_MEMORY, [0.0, 8.0 * point.x, 16.0 + point.x]),
            (keys::IDLE_CPU, [0.0, 2.0 * point.x, 5.0 + point.x]),
        ]
    };
    let (results, verdict) = answer(Id::R4, &points, values, None);
    let pods: Vec<f64> = results
        .analysis
        .crossovers
        .iter()
        .filter_map(|crossing| Some(crossing.pods?.value))
        .collect();
    assert_eq!(pods.len(), 2, "{:?}", results.analysis.crossovers);
    assert!(
        (pods[0] - 16.0 / 7.0).abs() < 0.1 && (pods[1] - 5.0).abs() < 0.2,
        "{pods:?}"
    );
    says(
        &verdict,
        Basis::Claimed,
        &["less memory", "from 3 pods on", "less processor time"],
    );

    let values = |_: &Point| {
        vec![
            (keys::CPU_ATTRIBUTED, [0.0, 1.0, 0.0]),
            (keys::MEMORY_ATTRIBUTED, [0.0, 1.0, 0.0]),
        ]
    };
    let (_, verdict) = answer(Id::R5, &[Point::only()], values, None);
    says(
        &verdict,
        Basis::Counted,
        &["100.4 % behind sidecars", "0 % behind the agent"],
    );
}

#[test]
fn neighbours() {
    let none = |_: &Point| Vec::new();
    let slowed: fn(&Point) -> [f64; 3] = |point| match point.x {
        0.0 => [300.0, 600.0, 600.0],
        _ => [310.0, 640.0, 1900.0],
    };
    let floods = sweep(&[("w=0", 0.0), ("w=4", 4.0)]);
    let (_, verdict) = answer(Id::I2, &floods, none, Some(slowed));
    says(
        &verdict,
        Basis::Claimed,
        &[
            "TLS handshakes",
            "4×",
            "behind sidecars",
            "Agent against sidecars",
        ],
    );
    let elephant = sweep(&[("alone", 0.0), ("8 streams", 8.0)]);
    let (_, verdict) = answer(Id::I5, &elephant, none, Some(slowed));
    says(&verdict, Basis::Claimed, &["bulk transfer over 8 streams"]);

    let slow: Vec<Point> = ["heads that never end", "answers hardly read"]
        .into_iter()
        .flat_map(|way| {
            [("alone", 0.0), ("200 slow", 200.0)]
                .map(|(label, x)| Point::at(label, x).in_series(way))
        })
        .collect();
    let held = |_: &Point| {
        vec![
            (keys::SLOW_HELD, [0.0, 30.0, 40.0]),
            (keys::GROWTH, [0.0, 0.0, 2.0]),
        ]
    };
    let (_, verdict) = answer(Id::I4, &slow, held, Some(slowed));
    let words = [
        "heads that never end",
        "answers hardly read",
        "MiB behind the agent",
        "MiB/min",
    ];
    says(&verdict, Basis::Claimed, &words);

    let limits = sweep(&[("500m", 0.0), ("50m", 450.0)]);
    let affected = |point: &Point| {
        let pods = if point.x > 0.0 { 1.0 } else { 0.0 };
        vec![(keys::PODS_AFFECTED, [0.0, pods, 2.0 * pods])]
    };
    let (_, verdict) = answer(Id::I7, &limits, affected, Some(slowed));
    says(
        &verdict,
        Basis::Claimed,
        &["50m of processor", "Of two clients, affected"],
    );

    let shares = |_: &Point| {
        vec![
            (keys::JAIN, [1.0, 0.99, 0.7]),
            (keys::MIN_MAX, [1.0, 0.95, 0.2]),
            (keys::ALL_ANSWERED, [9000.0, 4000.0, 4500.0]),
        ]
    };
    let (_, verdict) = answer(Id::I6, &[Point::only()], shares, None);
    says(
        &verdict,
        Basis::Claimed,
        &["Jain's index", "behind the agent"],
    );

    let poison = sweep(&[("clean", 0.0), ("poisoned", 1.0)]);
    let times = |point: &Point| {
        let factor = 1.0 + 9.0 * point.x;
        vec![
            (keys::CONFIGURED, [0.0, 200.0 * factor, 210.0 * factor]),
            (keys::POD_START, [0.0, 300.0, 310.0]),
        ]
    };
    let (_, verdict) = answer(Id::I9, &poison, times, None);
    says(
        &verdict,
        Basis::Counted,
        &["another service's change took", "a pod's start"],
    );
}

#[test]
fn faults_and_lives() {
    let loops = |_: &Point| {
        vec![
            (keys::AVAILABILITY, [0.0, 0.95, 0.7]),
            (keys::WORST_AVAILABILITY, [0.0, 0.4, 0.6]),
            (keys::PODS_HIT, [0.0, 1.0, 12.0]),
        ]
    };
    let (_, verdict) = answer(Id::F3, &[Point::only()], loops, None);
    says(
        &verdict,
        Basis::Counted,
        &[
            "died five times",
            "the worst of them",
            "pods behind the agent",
        ],
    );

    let churn = sweep(&[("quiet", 0.0), ("a pod a second", 1.0), ("afterwards", 2.0)]);
    let left = |point: &Point| {
        if point.x < 2.0 {
            return Vec::new();
        }
        vec![
            (keys::CHURNED, [0.0, 8.0, 8.0]),
            (keys::LEFT_NAMESPACES, [0.0, 0.0, 0.0]),
            (keys::LEFT_ENTRIES, [0.0, 0.0, 0.0]),
            (keys::LEFT_FILES, [0.0, 0.0, 2.0]),
        ]
    };
    let (_, verdict) = answer(Id::S5, &churn, left, Some(|_| [300.0, 600.0, 700.0]));
    says(
        &verdict,
        Basis::Counted,
        &["0 namespaces", "A bystander's median"],
    );

    let renewed = |_: &Point| {
        vec![
            (keys::RENEWING_FAILED, [0.0, 0.0, 0.0]),
            (keys::RENEWED, [0.0, 8.0, 8.0]),
            (keys::OLD_KEYS, [0.0, 0.0, 0.0]),
            (keys::RENEWING_CPU, [0.0, 30.0, 20.0]),
        ]
    };
    let (_, verdict) = answer(Id::U2, &[Point::only()], renewed, None);
    says(
        &verdict,
        Basis::Counted,
        &["Renewed were", "0 requests behind sidecars"],
    );
}

#[test]
fn attackers() {
    let forged = |_: &Point| {
        vec![
            (keys::FORGERIES, [0.0, 9.0, 9.0]),
            (keys::FORGERIES_ACCEPTED, [0.0, 0.0, 0.0]),
        ]
    };
    let (_, verdict) = answer(Id::X3, &[Point::only()], forged, None);
    says(&verdict, Basis::Counted, &["0 of 54.2", "behind the agent"]);
    let ways = |_: &Point| {
        vec![
            (keys::WAYS, [0.0, 5.0, 6.0]),
            (keys::WAYS_OPEN, [0.0, 0.0, 0.0]),
        ]
    };
    let (_, verdict) = answer(Id::X4, &[Point::only()], ways, None);
    says(&verdict, Basis::Counted, &["0 of 5"]);
}
