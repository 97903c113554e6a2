//! Prometheus' text exposition format, for a textfile collector: one sample of each, of one run.

use crate::analysis::Table;
use crate::results::{Claim, Effect, Results, State};
use crate::stats::median;

/// Samples of one metric; all of them stand together, as the format wants it.
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Vec<(String, f64)>,
}

pub fn render(results: &Results) -> String {
    let mut families = vec![run(results), info(results)];
    families.extend(measured(results));
    families.extend(compared(results));
    families.push(voids(results));
    let mut out = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        out += &format!("# HELP {} {}\n", family.name, family.help);
        out += &format!("# TYPE {} gauge\n", family.name);
        for (labels, value) in &family.samples {
            out += &format!("{}{{{labels}}} {value}\n", family.name);
        }
    }
    out
}

fn run(results: &Results) -> Family {
    let state = |state: State| f64::from(u8::from(results.status.state == state));
    let samples = [
        ("valid", State::Valid),
        ("smoke", State::Smoke),
        ("void", State::Void),
    ];
    Family {
        name: "duet_bench_run_state",
        help: "1 for the state that the run is in; nothing may be concluded from a void or smoke run.",
        samples: samples
            .into_iter()
            .map(|(name, one)| (labels(&[("state", name)]), state(one)))
            .collect(),
    }
}

fn info(results: &Results) -> Family {
    let seed = results.seed.to_string();
    let text = labels(&[
        ("version", &results.version),
        ("cluster", &results.cluster),
        ("seed", &seed),
        ("started", &results.started),
        ("kernel", &results.machine.kernel),
        ("cpu", &results.machine.cpu),
    ]);
    Family {
        name: "duet_bench_run_info",
        help: "What was run where; the value is the wall time of the run in seconds.",
        samples: vec![(text, results.duration_s)],
    }
}

/// The middle of the valid blocks, for each arm.
fn measured(results: &Results) -> Vec<Family> {
    let mut values = Family {
        name: "duet_bench_value",
        help: "Median over the valid blocks, in the metric's unit.",
        samples: Vec::new(),
    };
    let mut blocks = Family {
        name: "duet_bench_blocks",
        help: "Valid blocks behind duet_bench_value.",
        samples: Vec::new(),
    };
    for scenario in &results.scenarios {
        let table = Table::of(scenario);
        for metric in &scenario.metrics {
            for point in table.points() {
                for arm in table.arms() {
                    let seen: Vec<f64> = table
                        .values(&metric.key, point, arm)
                        .into_iter()
                        .map(|(_, value)| value)
                        .collect();
                    let Some(middle) = median(&seen) else {
                        continue;
                    };
                    let labels = labels(&[
                        ("scenario", &scenario.id),
                        ("metric", &metric.key),
                        ("unit", &metric.unit),
                        ("series", &point.series),
                        ("point", &point.label),
                        ("arm", arm),
                    ]);
                    blocks.samples.push((labels.clone(), seen.len() as f64));
                    values.samples.push((labels, middle));
                }
            }
        }
    }
    vec![values, blocks]
}

fn compared(results: &Results) -> Vec<Family> {
    let family = |name, help| Family {
        name,
        help,
        samples: Vec::new(),
    };
    let mut effect = family(
        "duet_bench_effect",
        "Median paired effect of an arm against a baseline: their ratio, or their difference.",
    );
    let mut low = family(
        "duet_bench_effect_low",
        "Lower end of the 95 % interval of duet_bench_effect.",
    );
    let mut high = family(
        "duet_bench_effect_high",
        "Upper end of the 95 % interval of duet_bench_effect.",
    );
    let mut claim = family(
        "duet_bench_claim",
        "What may be claimed of duet_bench_effect: 1 higher, -1 lower, 0 the same; absent where nothing may.",
    );
    for comparison in &results.analysis.comparisons {
        let Some(estimate) = comparison.estimate else {
            continue;
        };
        let labels = labels(&[
            ("scenario", &comparison.scenario),
            ("metric", &comparison.metric),
            ("series", &comparison.point.series),
            ("point", &comparison.point.label),
            ("arm", &comparison.arm),
            ("baseline", &comparison.baseline),
            (
                "effect",
                match comparison.effect {
                    Effect::Ratio => "ratio",
                    Effect::Difference => "difference",
                },
            ),
        ]);
        effect.samples.push((labels.clone(), estimate.value));
        if let Some(interval) = estimate.interval {
            low.samples.push((labels.clone(), interval.low));
            high.samples.push((labels.clone(), interval.high));
        }
        let claimed = match comparison.claim {
            Claim::Higher => 1.0,
            Claim::Lower => -1.0,
            Claim::Equivalent => 0.0,
            Claim::NoClaim => continue,
        };
        claim.samples.push((labels, claimed));
    }
    vec![effect, low, high, claim]
}

fn voids(results: &Results) -> Family {
    let shares = results.analysis.voids.iter();
    Family {
        name: "duet_bench_void_trials",
        help: "Trials that broke a gate fixed beforehand.",
        samples: shares
            .map(|share| {
                let text = labels(&[("scenario", &share.scenario), ("arm", &share.arm)]);
                (text, f64::from(share.void))
            })
            .collect(),
    }
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let escaped = |value: &str| {
        value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    pairs.join(",")
}
