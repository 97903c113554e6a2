//! oha's JSON: a summary and a few percentiles, in seconds.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Found;

const LOAD: &str =
    "closed loop, unless it was run with -q; timed from the send, unless with --latency-correction";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    summary: Summary,
    /// "p50": seconds; null where there was no success.
    latency_percentiles: BTreeMap<String, Option<f64>>,
    status_code_distribution: BTreeMap<String, u64>,
    #[serde(default)]
    error_distribution: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    /// Of the run, s.
    total: f64,
    requests_per_sec: f64,
}

pub fn parse(text: &str) -> Result<Found, String> {
    let report: Report = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let answered: u64 = report.status_code_distribution.values().sum();
    let good = |status: &str| status.starts_with('2') || status.starts_with('3');
    let refused = report.status_code_distribution.iter();
    let refused: u64 = refused
        .filter(|(status, _)| !good(status))
        .map(|(_, count)| count)
        .sum();
    let quantiles = report
        .latency_percentiles
        .iter()
        .filter_map(|(name, seconds)| {
            let percent: f64 = name.strip_prefix('p')?.parse().ok()?;
            Some((percent / 100.0, (*seconds)? * 1e6))
        });
    Ok(Found {
        tool: "oha".into(),
        load: LOAD,
        requests: answered,
        failed: refused + report.error_distribution.values().sum::<u64>(),
        rate: report.summary.requests_per_sec,
        duration_s: report.summary.total,
        quantiles: quantiles.collect(),
    })
}
