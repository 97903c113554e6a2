//! Each distribution of responses as Fortio's JSON, times in seconds.
//!
//! Fortio knows one run of one client. A distribution here is that of one arm at one point, its valid blocks
//! merged: to be looked at, not to be inferred from. Fortio's own load is closed and timed from the send; this one
//! is open and timed from when a request was due, which `Labels` says.

use crate::results::{Point, Results, Scenario, Stage, Trial};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// As Fortio prints them.
const PERCENTILES: [f64; 6] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9];
/// Upper ends of its buckets grow by this factor; Fortio's own are of about this width.
const BUCKET_GROWTH: f64 = 1.1;
const NS: f64 = 1e9;

/// (name of the file without its ending, what it holds)
pub fn runs(results: &Results) -> Vec<(String, Value)> {
    let mut runs = Vec::new();
    for scenario in &results.scenarios {
        for point in scenario.points() {
            for arm in &results.arms {
                let run = run(results, scenario, &point, &arm.name);
                let name = [scenario.id.as_str(), &arm.name, &point.title()].join(" ");
                runs.extend(run.map(|run| (file_name(&name), run)));
            }
        }
    }
    runs
}

fn run(results: &Results, scenario: &Scenario, point: &Point, arm: &str) -> Option<Value> {
    let trials: Vec<&Trial> = scenario
        .trials()
        .filter(|trial| trial.arm == arm && trial.point == *point && !trial.is_void())
        .filter(|trial| trial.histograms.response.is_some())
        .collect();
    let mut merged: Option<Histogram<u64>> = None;
    for trial in &trials {
        let histogram = trial.histograms.get(Stage::Response)?.decode().ok()?;
        match &mut merged {
            Some(sum) => sum.add(&histogram).ok()?,
            None => merged = Some(histogram),
        }
    }
    let histogram = merged.filter(|histogram| !histogram.is_empty())?;
    let loads = || trials.iter().filter_map(|trial| trial.load.as_ref());
    let wall: f64 = loads().map(|load| load.wall_s).sum();
    let offered: u64 = loads().map(|load| load.offered).sum();
    let completed: u64 = loads().map(|load| load.completed).sum();
    let mut codes = BTreeMap::from([("200".to_owned(), completed)]);
    for (kind, count) in loads().flat_map(|load| &load.errors) {
        *codes.entry(kind.clone()).or_default() += count;
    }
    Some(json!({
        "RunType": "HTTP",
        "Labels": format!(
            "duet-bench {} {arm} {}: open loop, timed from when each request was due, {} blocks merged",
            scenario.id,
            point.title(),
            trials.len()
        ),
        "StartTime": results.started,
        "RequestedQPS": format!("{:.1}", offered as f64 / wall.max(f64::MIN_POSITIVE)),
        "RequestedDuration": humantime::format_duration(std::time::Duration::from_secs_f64(wall.max(0.0))).to_string(),
        "ActualQPS": completed as f64 / wall.max(f64::MIN_POSITIVE),
        "ActualDuration": (wall * NS).round() as u64,
        "NumThreads": 1,
        "Version": format!("duet-bench {}", results.version),
        "DurationHistogram": distribution(&histogram),
        "Exactly": 0,
        "RetCodes": codes,
    }))
}

fn distribution(histogram: &Histogram<u64>) -> Value {
    let count = histogram.len();
    let mut data = Vec::new();
    let (mut start, mut below) = (histogram.min(), 0);
    let mut end = start as f64 * BUCKET_GROWTH;
    while below < count {
        let upper = (end as u64).min(histogram.max());
        let inside = histogram.count_between(0, upper) - below;
        if inside > 0 {
            below += inside;
            data.push(json!({
                "Start": start as f64 / NS,
                "End": upper as f64 / NS,
                "Percent": 100.0 * below as f64 / count as f64,
                "Count": inside,
            }));
            start = upper;
        }
        if upper >= histogram.max() {
            break;
        }
        end *= BUCKET_GROWTH;
    }
    let percentile = |percent: &f64| {
        json!({
            "Percentile": percent,
            "Value": histogram.value_at_quantile(percent / 100.0) as f64 / NS,
        })
    };
    let printable = |percent: &&f64| crate::stats::quantile_is_printable(count, **percent / 100.0);
    json!({
        "Count": count,
        "Min": histogram.min() as f64 / NS,
        "Max": histogram.max() as f64 / NS,
        "Sum": histogram.mean() * count as f64 / NS,
        "Avg": histogram.mean() / NS,
        "StdDev": histogram.stdev() / NS,
        "Data": data,
        "Percentiles": PERCENTILES.iter().filter(printable).map(percentile).collect::<Vec<_>>(),
    })
}

/// Letters, digits and dashes.
fn file_name(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.join("-")
}
