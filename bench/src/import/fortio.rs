//! Fortio's JSON, in seconds: its own percentiles, which are interpolated within buckets, or the
//! buckets' upper ends where it was run without any.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Found;

const LOAD: &str =
    "closed loop over a fixed number of connections; timed from the send; percentiles interpolated";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    version: String,
    #[serde(rename = "ActualQPS")]
    actual_qps: f64,
    /// ns
    actual_duration: f64,
    duration_histogram: Histogram,
    /// By HTTP status, or "SERVING" for gRPC; −1 for a connection's failure.
    #[serde(default)]
    ret_codes: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Histogram {
    count: u64,
    #[serde(default)]
    data: Vec<Bucket>,
    percentiles: Option<Vec<Percentile>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Bucket {
    end: f64,
    percent: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Percentile {
    percentile: f64,
    value: f64,
}

pub fn parse(text: &str) -> Result<Found, String> {
    let report: Report = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let good = |code: &str| matches!(code, "SERVING" | "OK") || code.starts_with(['2', '3']);
    let failed = report.ret_codes.iter();
    let failed = failed
        .filter(|(code, _)| !good(code))
        .map(|(_, count)| count)
        .sum();
    let histogram = report.duration_histogram;
    let mut quantiles: Vec<(f64, f64)> = histogram
        .percentiles
        .unwrap_or_default()
        .iter()
        .map(|one| (one.percentile / 100.0, one.value * 1e6))
        .collect();
    if quantiles.is_empty() {
        let ends = histogram.data.iter();
        quantiles = ends
            .map(|bucket| (bucket.percent / 100.0, bucket.end * 1e6))
            .collect();
    }
    Ok(Found {
        tool: format!("fortio {}", report.version),
        load: LOAD,
        requests: histogram.count,
        failed,
        rate: report.actual_qps,
        duration_s: report.actual_duration / 1e9,
        quantiles,
    })
}
