use super::*;
use crate::load::report::{
    ConnectionCounts, EncodedHistogram, GeneratorCost, LoadHistograms, Timeline, Warmup,
    new_histogram,
};
use std::collections::BTreeMap;

fn clean() -> LoadReport {
    let empty = EncodedHistogram::encode(&new_histogram());
    LoadReport {
        url: "http://10.96.0.10/".to_owned(),
        protocol: "http1".to_owned(),
        rate: 1000.0,
        seed: 1,
        connections: 4,
        new_connection_per_request: false,
        timeout_ms: 1000,
        interrupted: false,
        start_ns: 0,
        window_s: 1.0,
        warmup: Warmup::default(),
        offered: 1000,
        sent: 1000,
        completed: 1000,
        completed_in_window: 1000,
        errors: BTreeMap::new(),
        received_bytes: 0,
        late_sends: 0,
        waited_for_connection: 0,
        mean_concurrency: 0.0,
        connection_counts: ConnectionCounts::default(),
        generator: GeneratorCost {
            cpu_user_s: 0.1,
            cpu_system_s: 0.1,
            waited_s: Some(0.0),
            wall_s: 1.0,
        },
        histograms: LoadHistograms {
            response: empty.clone(),
            service: empty.clone(),
            lateness: empty,
            connect: None,
            first_byte: None,
        },
        timeline: Timeline::default(),
    }
}

#[test]
fn books_that_disagree_void_a_trial() {
    let mut responses = new_histogram();
    responses.record_n(2_000_000, 1000).expect("within range");
    let mut report = clean();
    report.histograms.response = EncodedHistogram::encode(&responses);
    // 1000 requests/s of 2 ms each.
    report.mean_concurrency = 2.0;
    assert!(check(&report, &Conditions::default(), Losses::Void).is_empty());
    report.mean_concurrency = 2.1;
    assert_eq!(
        names(&report, Conditions::default(), Losses::Finding),
        ["Little's law"]
    );
}

fn names(report: &LoadReport, conditions: Conditions, losses: Losses) -> Vec<String> {
    check(report, &conditions, losses)
        .into_iter()
        .map(|void| void.gate)
        .collect()
}

#[test]
fn a_clean_trial_counts() {
    assert!(check(&clean(), &Conditions::default(), Losses::Void).is_empty());
}

#[test]
fn lost_requests_void_a_latency_trial_and_are_a_fault_trials_finding() {
    let mut report = clean();
    report.completed = 985;
    assert_eq!(
        names(&report, Conditions::default(), Losses::Void),
        ["achieved"]
    );
    assert!(names(&report, Conditions::default(), Losses::Finding).is_empty());
    report.completed = 990;
    assert!(names(&report, Conditions::default(), Losses::Void).is_empty());
}

#[test]
fn nothing_offered_is_nothing_achieved() {
    let mut report = clean();
    report.offered = 0;
    report.sent = 0;
    report.completed = 0;
    assert_eq!(
        names(&report, Conditions::default(), Losses::Void),
        ["achieved"]
    );
}

#[test]
fn each_gate_trips_just_beyond_its_limit() {
    let mut late = clean();
    late.late_sends = 20;
    assert!(names(&late, Conditions::default(), Losses::Void).is_empty());
    late.late_sends = 21;
    assert_eq!(
        names(&late, Conditions::default(), Losses::Void),
        ["late sends"]
    );

    let mut hot = clean();
    hot.generator.cpu_user_s = 0.61;
    assert_eq!(
        names(&hot, Conditions::default(), Losses::Void),
        ["generator saturated"]
    );

    let mut stalled = clean();
    stalled.generator.waited_s = Some(GENERATOR_STALL + 0.01);
    assert_eq!(
        names(&stalled, Conditions::default(), Losses::Void),
        ["pressure stall"]
    );

    let with = |conditions| names(&clean(), conditions, Losses::Finding);
    assert_eq!(
        with(Conditions {
            steal: 0.021,
            ..Conditions::default()
        }),
        ["steal"]
    );
    assert_eq!(
        with(Conditions {
            generator_throttled: 1,
            ..Conditions::default()
        }),
        ["generator throttled"]
    );
}

#[test]
fn a_void_says_what_was_measured_and_what_is_allowed() {
    let mut report = clean();
    report.late_sends = 31;
    let voids = check(&report, &Conditions::default(), Losses::Void);
    assert_eq!(
        voids[0].message,
        "3.1 % of sends were over 1 ms late; 2.0 % are allowed"
    );
}
