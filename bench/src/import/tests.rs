//! Files as the tools write them, and files that they cannot have written.

use std::fs;
use std::path::Path;

use super::*;
use crate::export;
use crate::report::{html, markdown};
use crate::results::synthetic::run as made_up;
use crate::results::{Profile, Results};

/// As `wrk2 -R2000 --latency` writes it, most of the spectrum left out.
const WRK2: &str = "\
Running 10s test @ http://127.0.0.1:8080
  1 threads and 16 connections
  Thread calibration: mean lat.: 1.464ms, rate sampling interval: 10ms
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.44ms  706.00us  12.92ms   68.59%
    Req/Sec     2.11k   212.65     3.44k    72.73%
  Latency Distribution (HdrHistogram - Recorded Latency)
 50.000%    1.37ms
 99.000%    3.02ms
100.000%   12.93ms

  Detailed Percentile spectrum:
       Value   Percentile   TotalCount 1/(1-Percentile)

       0.067     0.000000            1         1.00
       1.371     0.500000         9968         2.00
       2.419     0.900000        17940        10.00
       3.019     0.990000        19735       100.00
      12.927     1.000000        19935          inf
#[Mean    =        1.440, StdDeviation   =        0.706]
#[Max     =       12.920, Total count    =        19935]
#[Buckets =           27, SubBuckets     =         2048]
----------------------------------------------------------
  20004 requests in 10.00s, 1.43MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 4
Requests/sec:   2000.28
Transfer/sec:    146.49KB
";

/// As `oha --output-format json` writes it, parts left out that are not read.
const OHA: &str = r#"{
  "summary": {"successRate": 0.99, "total": 5.0, "slowest": 0.05, "fastest": 0.0001, "average": 0.0013,
    "requestsPerSec": 4000.5, "totalData": 20480000, "sizePerRequest": 1024, "sizePerSec": 4096000.0},
  "responseTimeHistogram": {"0.0001": 1},
  "latencyPercentiles": {"p10": 0.0005, "p25": 0.0008, "p50": 0.0011, "p75": 0.0016, "p90": 0.0021, "p95": 0.003,
    "p99": 0.0052, "p99.9": 0.02, "p99.99": null},
  "rps": {"mean": 4000.0},
  "details": {"DNSDialup": {"average": 0.0001}},
  "statusCodeDistribution": {"200": 19900, "503": 100},
  "errorDistribution": {"deadline has elapsed": 3}
}"#;

/// As `fortio load -json` writes it.
const FORTIO: &str = r#"{
  "RunType": "HTTP", "Labels": "", "StartTime": "2026-01-02T03:04:05Z", "RequestedQPS": "1000", "RequestedDuration": "5s",
  "ActualQPS": 999.6, "ActualDuration": 5001812345, "NumThreads": 4, "Version": "1.60.3",
  "DurationHistogram": {"Count": 5000, "Min": 0.0002, "Max": 0.02, "Sum": 4.1, "Avg": 0.00082, "StdDev": 0.0004,
    "Data": [{"Start": 0.0002, "End": 0.001, "Percent": 80, "Count": 4000}, {"Start": 0.001, "End": 0.02, "Percent": 100, "Count": 1000}],
    "Percentiles": [{"Percentile": 50, "Value": 0.0007}, {"Percentile": 90, "Value": 0.0015}, {"Percentile": 99, "Value": 0.004},
      {"Percentile": 99.9, "Value": 0.015}]},
  "Exactly": 0, "RetCodes": {"200": 4990, "503": 8, "-1": 2}, "URL": "http://127.0.0.1:8080/"
}"#;

fn args(file: &Path, format: Format, into: &Path) -> ImportArgs {
    ImportArgs {
        file: file.into(),
        format,
        name: "mine".into(),
        into: into.into(),
    }
}

fn parse(text: &str, format: Format) -> Result<Foreign, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("theirs.txt");
    fs::write(&file, text).unwrap();
    read(&args(&file, format, dir.path())).map_err(|error| {
        let message = error.to_string();
        assert!(
            message.contains("theirs.txt") && !message.contains('\n'),
            "{message}"
        );
        message
    })
}

fn close(found: Option<f64>, expected: f64) {
    let found = found.unwrap();
    assert!(
        (found / expected - 1.0).abs() < 1e-9,
        "{found} and not {expected}"
    );
}

#[test]
fn wrk2s_spectrum_counts_from_when_a_request_was_due() {
    let found = parse(WRK2, Format::Wrk2).unwrap();
    assert_eq!((found.requests, found.failed), (19_935, 7));
    close(Some(found.rate), 2000.28);
    close(Some(found.duration_s), 10.0);
    close(found.quantile(0.5), 1371.0);
    close(found.quantile(0.9), 2419.0);
    close(found.quantile(0.99), 3019.0);
    // 19.9 beyond it are too few.
    assert_eq!(found.quantile(0.999), None);
    assert!(found.load.contains("due"), "{}", found.load);
}

#[test]
fn ohas_and_fortios_seconds_become_microseconds() {
    let oha = parse(OHA, Format::Oha).unwrap();
    assert_eq!((oha.requests, oha.failed), (20_000, 103));
    close(oha.quantile(0.5), 1100.0);
    close(oha.quantile(0.99), 5200.0);
    assert_eq!(oha.quantile(0.999), None);
    let fortio = parse(FORTIO, Format::Fortio).unwrap();
    assert_eq!((fortio.requests, fortio.failed), (5000, 10));
    assert_eq!(fortio.tool, "fortio 1.60.3");
    close(fortio.quantile(0.9), 1500.0);
    assert_eq!(fortio.quantile(0.99), None, "50 beyond it are too few");
    for found in [oha, fortio] {
        assert!(found.load.contains("closed loop"), "{}", found.load);
    }
}

#[test]
fn what_this_bench_exports_for_fortio_it_reads_again() {
    let results = made_up(Profile::Quick, 5);
    let runs: Vec<serde_json::Value> =
        serde_json::from_str(&export::text(export::Format::Fortio, &results)).unwrap();
    let found = parse(&runs[0].to_string(), Format::Fortio).unwrap();
    let told = runs[0]["DurationHistogram"]["Percentiles"][0]["Value"]
        .as_f64()
        .unwrap();
    close(found.quantile(0.5), told * 1e6);
}

#[test]
fn what_no_tool_can_have_written_is_refused_in_a_line() {
    let falling = FORTIO.replace("\"Value\": 0.0015", "\"Value\": 0.0001");
    let nothing = FORTIO.replace("\"Count\": 5000", "\"Count\": 0");
    let wrk = WRK2.replace("(HdrHistogram - Recorded Latency)", "");
    let cut = &WRK2[..WRK2.len() - 60];
    for (text, format, why) in [
        ("", Format::Wrk2, "--latency"),
        (wrk.as_str(), Format::Wrk2, "without a 2"),
        (cut, Format::Wrk2, "Requests/sec"),
        ("", Format::Oha, "oha's JSON"),
        ("{}", Format::Oha, "summary"),
        (OHA, Format::Fortio, "Version"),
        (falling.as_str(), Format::Fortio, "do not rise"),
        (nothing.as_str(), Format::Fortio, "no request was timed"),
    ] {
        let message = parse(text, format).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
    for wrong in ["", "a b", "a|b", "<b>", &"x".repeat(33)] {
        assert!(name(wrong).is_err(), "{wrong}");
    }
}

/// A run, and a file beside it, imported.
fn imported(before: &Results) -> (Results, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    results::write(before, &dir.path().join("results.json")).unwrap();
    let file = dir.path().join("theirs.json");
    fs::write(&file, OHA).unwrap();
    let (after, _) = run(&args(&file, Format::Oha, dir.path())).unwrap();
    (after, dir)
}

#[test]
fn a_foreign_measurement_is_shown_and_decides_nothing() {
    let before = made_up(Profile::Quick, 5);
    let (after, dir) = imported(&before);
    assert_eq!(after.analysis, before.analysis);
    assert_eq!(after.status, before.status);
    let page = html(&after);
    for text in [
        "foreign: mine",
        "Foreign measurements beside L1",
        "not paired",
        "closed loop",
        "theirs.json",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(markdown(&after).contains("| mine | oha |"));
    assert!(!html(&before).contains("Foreign"));
    assert_eq!(results::read(dir.path()).unwrap().foreign.len(), 1);
}

#[test]
fn names_are_taken_once_and_published_runs_stay_as_they_are() {
    let (_, dir) = imported(&made_up(Profile::Smoke, 5));
    let file = dir.path().join("theirs.json");
    let mut again = args(&file, Format::Oha, dir.path());
    for taken in ["mine", "agent"] {
        again.name = taken.into();
        let message = run(&again).unwrap_err().to_string();
        assert!(message.contains("choose another"), "{message}");
    }
    fs::rename(
        dir.path().join("results.json"),
        dir.path().join("results.json.gz"),
    )
    .unwrap();
    again.name = "other".into();
    let message = run(&again).unwrap_err().to_string();
    assert!(message.contains("published results stay"), "{message}");
}
