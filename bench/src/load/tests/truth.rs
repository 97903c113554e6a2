//! Does the report tell the truth? Quantiles against the responder's own record, and the time that a
//! closed loop would have left out.

use std::time::Duration;

use super::super::LoadArgs;
use super::super::clock::now_ns;
use super::super::error::ErrorKind;
use super::super::record::WARMUP_NUMBER;
use super::super::report::LoadReport;
use super::super::schedule::{Schedule, Stream};
use super::protocols::serve_on;
use super::responder::{Responder, Stall, closed_port, sleep_until};
use super::{MS, args, generate, load, ms};

/// Nearest-rank quantile.
fn quantile(sorted: &[u64], q: f64) -> u64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn dues(report: &LoadReport) -> Vec<u64> {
    let window_ns = (report.window_s * 1e9).round() as u64;
    Schedule::new(report.seed, Stream::Measured, report.rate)
        .until(window_ns)
        .collect()
}

/// 8 connections, 5 ms each, one stall of 100 ms: what the report says is what the responder did. The
/// difference is the answer's way back, which a busy machine can stretch: one calm run of four has to be close.
#[test]
fn quantiles_match_the_responders_record() {
    let worst = (0..4)
        .map(largest_excess)
        .inspect(|excess| eprintln!("{excess:?}"))
        .find(|excess| *excess <= 0.03);
    assert!(worst.is_some(), "no run within 3 %");
}

/// How far the reported quantiles lie above the responder's record, as a share; they must never lie below.
fn largest_excess(seed: u64) -> f64 {
    let start_ns = now_ns() + 100 * MS;
    let stall = Stall {
        from_ns: start_ns + 500 * MS,
        until_ns: start_ns + 600 * MS,
    };
    let responder = Responder::start(ms(5), Some(stall));
    let flags =
        format!("--protocol tcp --rate 400 --duration 1500ms --connections 8 --seed {seed}");
    let report = load(&Start(start_ns).of(args(responder.address, &flags)));
    assert_eq!(
        (report.completed, report.start_ns),
        (report.offered, start_ns)
    );

    let dues = dues(&report);
    let mut truth: Vec<u64> = responder
        .handled()
        .iter()
        .filter(|one| one.number < WARMUP_NUMBER)
        .map(|one| one.done_ns - (start_ns + dues[one.number as usize]))
        .collect();
    assert_eq!(truth.len(), dues.len());
    truth.sort_unstable();

    let response = report.histograms.response.decode().unwrap();
    let early_in_stall = dues
        .iter()
        .filter(|due| (500 * MS..550 * MS).contains(*due))
        .count() as u64;
    assert!(early_in_stall > 8, "more than there are connections");
    let slow = response.count_between(50 * MS, u64::MAX);
    assert!(
        slow >= early_in_stall,
        "{slow} responses of 50 ms or more, {early_in_stall} expected"
    );

    let excess = [0.1, 0.5, 0.9, 0.95, 0.99, 1.0].map(|q| {
        let (said, true_ns) = (
            response.value_at_quantile(q) as f64,
            quantile(&truth, q) as f64,
        );
        assert!(
            said >= true_ns * 0.998,
            "p{}: said {said}, true at least {true_ns}",
            q * 100.0
        );
        said / true_ns - 1.0
    });
    excess.into_iter().fold(0.0, f64::max)
}

/// An appointed start of the measured window.
struct Start(u64);

impl Start {
    fn of(self, mut args: LoadArgs) -> LoadArgs {
        args.start_at = Some(self.0);
        args
    }
}

/// One connection, half a second of stall: the requests due meanwhile are served fast afterwards, and their
/// response still counts from when they were due.
#[test]
fn a_stall_shows_in_the_response_of_requests_that_were_served_fast() {
    let start_ns = now_ns() + 200 * MS;
    let stall = Stall {
        from_ns: start_ns + 200 * MS,
        until_ns: start_ns + 700 * MS,
    };
    let responder = Responder::start(Duration::ZERO, Some(stall));
    let flags = "--protocol tcp --rate 200 --duration 1s --seed 5 --connections 1 --bin 10ms";
    let report = load(&Start(start_ns).of(args(responder.address, flags)));

    let dues = dues(&report);
    assert_eq!(
        report.offered,
        dues.len() as u64,
        "the stall delayed no part of the schedule"
    );
    let mut offered = vec![0; 100];
    dues.iter()
        .for_each(|due| offered[(due / (10 * MS)) as usize] += 1);
    assert_eq!(report.timeline.offered, offered);

    let in_stall = dues
        .iter()
        .filter(|due| (210 * MS..600 * MS).contains(*due))
        .count() as u64;
    let slow = |histogram: &super::super::report::EncodedHistogram| {
        histogram
            .decode()
            .unwrap()
            .count_between(100 * MS, u64::MAX)
    };
    assert!(in_stall > 50);
    assert!(slow(&report.histograms.response) >= in_stall);
    assert!(slow(&report.histograms.lateness) >= in_stall - 1);
    assert!(
        slow(&report.histograms.service) <= 3,
        "only the request that met the stall was served slowly"
    );
    assert!(report.waited_for_connection >= in_stall - 1);
    let stalled_bin = report.timeline.slowest_us[30];
    assert!(
        offered[30] == 0 || stalled_bin >= 390_000,
        "{stalled_bin} µs in the bin 400 ms before the end"
    );
}

/// A server that is away for the first 300 ms: nothing but refusals until then, nothing but answers soon after.
#[test]
fn recovery_is_seen_soon_after_the_server_returns() {
    for protocol in ["http1", "http2"] {
        let address = closed_port();
        let start_ns = now_ns() + 50 * MS;
        let back = std::thread::spawn(move || {
            sleep_until(start_ns + 300 * MS);
            serve_on(address.port());
            now_ns()
        });
        let flags = format!("--protocol {protocol} --rate 300 --duration 1s --bin 10ms");
        let report = load(&Start(start_ns).of(args(address, &flags)));
        let back_bin = ((back.join().unwrap() - start_ns) / (10 * MS)) as usize;

        assert_eq!(
            report.errors.keys().collect::<Vec<_>>(),
            [&ErrorKind::ConnectRefused],
            "{protocol}"
        );
        let timeline = &report.timeline;
        assert_eq!(
            timeline.ok[..30].iter().sum::<u32>(),
            0,
            "{protocol}: answers before the server was there"
        );
        let failures = &timeline.error[back_bin + 20..];
        assert!(
            failures.iter().all(|failed| *failed == 0),
            "{protocol}: still failing: {failures:?}"
        );
        assert!(report.connection_counts.failed_attempts >= report.failed().min(30));
    }
}

#[test]
fn a_report_survives_json() {
    let responder = Responder::start(Duration::ZERO, None);
    let report = load(&args(
        responder.address,
        "--protocol tcp --rate 100 --duration 200ms",
    ));
    let json = serde_json::to_string(&report).unwrap();
    let back: LoadReport = serde_json::from_str(&json).unwrap();
    assert_eq!(back.timeline, report.timeline);
    assert_eq!(
        back.histograms.response.decode().unwrap(),
        report.histograms.response.decode().unwrap()
    );
    assert_eq!(back.errors, report.errors);
}

#[test]
fn the_same_seed_offers_the_same_bins() {
    let responder = Responder::start(Duration::ZERO, None);
    let bins = |seed: u64| {
        let flags = format!("--protocol tcp --rate 300 --duration 300ms --bin 10ms --seed {seed}");
        load(&args(responder.address, &flags)).timeline.offered
    };
    assert_eq!(bins(7), bins(7));
    assert_ne!(bins(7), bins(8));
}

#[test]
fn warm_up_is_not_in_the_report() {
    let responder = Responder::start(Duration::ZERO, None);
    let mut args = args(
        responder.address,
        "--protocol tcp --rate 200 --duration 200ms --seed 3",
    );
    args.warmup = ms(500);
    args.warmup_max = ms(600);
    let report = load(&args);
    assert_eq!(report.offered, dues(&report).len() as u64);
    assert!(report.warmup.requests > 50);
    assert!(
        (0.45..2.0).contains(&report.warmup.seconds),
        "{}",
        report.warmup.seconds
    );
    assert_eq!(
        responder.handled().len() as u64,
        report.warmup.requests + report.completed
    );
}

#[test]
fn a_start_in_the_past_is_refused() {
    let responder = Responder::start(Duration::ZERO, None);
    let late = Start(now_ns() - 1).of(args(responder.address, "--protocol tcp --rate 10"));
    let error = generate(&late).unwrap_err().to_string();
    assert!(error.contains("--start-at lies"), "{error}");
}
