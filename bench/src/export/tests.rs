//! Each format as its readers would take it apart.

use super::*;
use crate::results::{Profile, State, Void, keys, synthetic};
use std::collections::BTreeSet;

fn results() -> Results {
    synthetic::run(Profile::Quick, 5)
}

#[test]
fn csv_has_every_trial_and_the_same_columns_in_each_line() {
    let mut results = results();
    results.scenarios[0].blocks[0].trials[0].voids.push(Void {
        gate: "late, or \"slow\"".to_owned(),
        measured: 1.0,
        limit: 0.0,
        message: String::new(),
    });
    let text = text(Format::Csv, &results);
    let lines: Vec<Vec<String>> = text.split_terminator("\r\n").map(fields).collect();
    assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    let at = |name: &str| lines[0].iter().position(|column| column == name).unwrap();
    assert_eq!(lines[1][at("void")], "late, or \"slow\"");
    let trials: BTreeSet<Vec<String>> = lines[1..]
        .iter()
        .map(|line| line[..at("metric")].to_vec())
        .collect();
    let made: usize = results
        .scenarios
        .iter()
        .map(|one| one.trials().count())
        .sum();
    assert_eq!(trials.len(), made);
    let value = |line: &Vec<String>| line[at("value")].parse::<f64>().unwrap();
    assert!(lines[1..].iter().all(|line| value(line).is_finite()));
}

/// As RFC 4180 has it.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let field = fields.last_mut().unwrap();
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                field.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

#[test]
fn prometheus_has_each_family_once_and_each_series_once() {
    let text = text(Format::Prometheus, &results());
    assert!(text.ends_with('\n'));
    let mut families = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.strip_suffix(" gauge").unwrap().to_owned();
            assert!(families.insert(current.clone()), "{current} twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&format!("{current}{{")), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name.to_owned()), "{name} twice");
        }
    }
    for family in ["duet_bench_value", "duet_bench_effect", "duet_bench_claim"] {
        assert!(families.contains(family), "{families:?}");
    }
}

#[test]
fn junit_fails_what_must_not_be_and_nothing_else() {
    let mut results = results();
    let well = text(Format::Junit, &results);
    assert!(!well.contains("<failure"), "{well}");
    for gate in crate::run::gates::NAMES {
        assert!(well.contains(&format!("name=\"{gate}\"")), "{gate}");
    }
    let leaking = results
        .scenarios
        .iter_mut()
        .find(|one| one.id == "F5")
        .and_then(|one| {
            one.blocks[0]
                .trials
                .iter_mut()
                .find(|trial| trial.arm == "agent")
        })
        .unwrap();
    leaking
        .values
        .insert(keys::PLAINTEXT_BYTES.to_owned(), 64.0);
    let leaks = text(Format::Junit, &results);
    assert_eq!(leaks.matches("<failure").count(), 1);
    assert!(leaks.contains("agent: plaintext_bytes is 64"), "{leaks}");

    results.status.state = State::Void;
    results.status.reasons = vec!["a < b & \"c\"".to_owned()];
    let void = text(Format::Junit, &results);
    assert!(void.contains("a &lt; b &amp; &quot;c&quot;"), "{void}");
}

#[test]
fn fortio_counts_add_up_and_percentiles_rise() {
    let runs = fortio::runs(&results());
    let names: BTreeSet<&String> = runs.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), runs.len(), "a file would be overwritten");
    for (name, run) in &runs {
        let histogram = &run["DurationHistogram"];
        let data = histogram["Data"].as_array().unwrap();
        let sum: u64 = data.iter().map(|one| one["Count"].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), histogram["Count"].as_u64(), "{name}");
        assert_eq!(data.last().unwrap()["Percent"], 100.0);
        let values: Vec<f64> = histogram["Percentiles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["Value"].as_f64().unwrap())
            .collect();
        assert!(values.is_sorted(), "{name}: {values:?}");
        assert!(histogram["Max"].as_f64() >= values.last().copied());
    }
}
