//! Effects that were put into made-up results come out again; noise does not.

use crate::results::synthetic::{run, unanalysed};
use crate::results::*;

use super::analyse;

fn comparison<'a>(
    results: &'a Results,
    id: &str,
    metric: &str,
    arm: &str,
    baseline: &str,
    x: f64,
) -> &'a Comparison {
    results
        .analysis
        .comparisons
        .iter()
        .find(|c| {
            (
                c.scenario.as_str(),
                c.metric.as_str(),
                c.arm.as_str(),
                c.baseline.as_str(),
            ) == (id, metric, arm, baseline)
                && c.point.x == x
        })
        .unwrap_or_else(|| panic!("no comparison {id} {metric} {arm}/{baseline}"))
}

fn verdict<'a>(results: &'a Results, id: &str) -> &'a Verdict {
    results
        .analysis
        .verdicts
        .iter()
        .find(|v| v.scenario == id)
        .unwrap()
}

#[test]
fn an_effect_that_is_there_is_claimed_and_estimated() {
    let results = run(Profile::Full, 5);
    assert_eq!(results.status.state, State::Valid, "{:?}", results.status);
    let found = comparison(&results, "L1", "p50", "sidecar", "none", 50.0);
    assert_eq!(found.claim, Claim::Higher);
    let interval = found.estimate.unwrap().interval.unwrap();
    assert!(interval.contains(1.9), "{found:?}");
    assert!(found.p.unwrap() < 0.01 && found.p_holm.unwrap() >= found.p.unwrap());
}

#[test]
fn six_blocks_claim_a_large_effect_though_holm_cannot() {
    let results = run(Profile::Quick, 5);
    let found = comparison(&results, "I1", "slowdown_p50", "agent", "sidecar", 8.0);
    assert_eq!(found.claim, Claim::Higher, "{found:?}");
    assert!(found.p_holm.unwrap() > 0.05);
}

#[test]
fn an_arm_against_itself_is_never_claimed() {
    for seed in 0..5 {
        let results = run(Profile::Quick, seed);
        let copies = results
            .analysis
            .comparisons
            .iter()
            .filter(|c| c.arm == "aa");
        for copy in copies {
            assert_eq!(copy.claim, Claim::NoClaim, "{copy:?}");
        }
    }
}

#[test]
fn a_difference_within_the_floor_is_not_claimed() {
    // Two sidecar copies that differ by 30 %: whatever the agent shows below that is noise.
    let mut results = unanalysed(Profile::Full, 5);
    for scenario in &mut results.scenarios {
        for trial in scenario.blocks.iter_mut().flat_map(|b| &mut b.trials) {
            if let (true, Some(cpu)) = (
                trial.arm == "aa",
                trial.values.get_mut(keys::CPU_PER_CONNECTION),
            ) {
                *cpu *= 1.3;
            }
        }
    }
    analyse(&mut results);
    let found = comparison(
        &results,
        "L2",
        keys::CPU_PER_CONNECTION,
        "agent",
        "sidecar",
        50.0,
    );
    assert_eq!(found.claim, Claim::NoClaim, "{found:?}");
    assert!(found.floor.unwrap() > 1.25);
    let large = comparison(
        &results,
        "L2",
        keys::CPU_PER_CONNECTION,
        "agent",
        "none",
        50.0,
    );
    assert_eq!(large.claim, Claim::Higher);
}

#[test]
fn without_a_copy_no_time_is_claimed() {
    let mut results = unanalysed(Profile::Full, 5);
    results.arms.retain(|arm| arm.name != "aa");
    analyse(&mut results);
    let timed = comparison(&results, "L1", "p50", "sidecar", "none", 50.0);
    assert_eq!(timed.claim, Claim::NoClaim);
    let memory = comparison(&results, "R1", keys::PROXY_MEMORY, "agent", "sidecar", 16.0);
    assert_eq!(memory.claim, Claim::Lower);
}

#[test]
fn equal_arms_are_found_equivalent() {
    let mut results = unanalysed(Profile::Full, 5);
    for scenario in &mut results.scenarios {
        for block in &mut scenario.blocks {
            for trial in &mut block.trials {
                if let Some(cpu) = trial.values.get_mut(keys::NODE_CPU_PER_REQUEST) {
                    *cpu = 100.0
                        + f64::from(block.index % 3)
                        + if trial.arm == "agent" {
                            f64::from(block.index % 2)
                        } else {
                            0.0
                        };
                }
            }
        }
    }
    analyse(&mut results);
    let found = comparison(
        &results,
        "R2",
        keys::NODE_CPU_PER_REQUEST,
        "agent",
        "sidecar",
        50.0,
    );
    assert_eq!(found.claim, Claim::Equivalent, "{found:?}");
}

#[test]
fn a_smoke_run_claims_nothing_and_says_so() {
    let results = run(Profile::Smoke, 5);
    assert_eq!(results.status.state, State::Smoke);
    assert!(
        results
            .analysis
            .comparisons
            .iter()
            .all(|c| c.claim == Claim::NoClaim)
    );
    for verdict in &results.analysis.verdicts {
        assert!(
            verdict.answer.starts_with("No claim, this is a smoke run."),
            "{}",
            verdict.answer
        );
    }
}

#[test]
fn a_void_trial_takes_its_pair_along() {
    let mut results = unanalysed(Profile::Full, 5);
    let scenario = results.scenarios.iter_mut().find(|s| s.id == "R2").unwrap();
    for trial in scenario.blocks.iter_mut().flat_map(|b| &mut b.trials) {
        trial.voids.clear();
    }
    let trial = scenario.blocks[3]
        .trials
        .iter_mut()
        .find(|t| t.arm == "agent")
        .unwrap();
    trial.voids.push(Void {
        gate: "steal".into(),
        measured: 0.05,
        limit: 0.02,
        message: "the hypervisor took 5 %".into(),
    });
    analyse(&mut results);
    let of = |arm, baseline| {
        comparison(
            &results,
            "R2",
            keys::NODE_CPU_PER_REQUEST,
            arm,
            baseline,
            50.0,
        )
    };
    assert_eq!(
        (of("agent", "none").blocks, of("agent", "none").void_blocks),
        (11, 1)
    );
    assert_eq!(
        (
            of("sidecar", "none").blocks,
            of("sidecar", "none").void_blocks
        ),
        (12, 0)
    );
}

#[test]
fn lopsided_voids_void_the_run() {
    let mut results = unanalysed(Profile::Quick, 5);
    for trial in results
        .scenarios
        .iter_mut()
        .flat_map(|s| &mut s.blocks)
        .flat_map(|b| &mut b.trials)
    {
        trial.voids.clear();
        if trial.arm == "agent"
            && trial.load.is_some()
            && (trial.started_s as u64).is_multiple_of(2)
        {
            trial.voids.push(Void {
                gate: "late sends".into(),
                measured: 0.03,
                limit: 0.02,
                message: "late".into(),
            });
        }
    }
    analyse(&mut results);
    assert_eq!(results.status.state, State::Void);
    assert!(
        results
            .status
            .reasons
            .iter()
            .any(|r| r.contains("lopsided")),
        "{:?}",
        results.status
    );
    assert!(
        results
            .analysis
            .comparisons
            .iter()
            .all(|c| c.claim == Claim::NoClaim)
    );
    assert!(
        verdict(&results, "L1")
            .answer
            .starts_with("No claim, the run is void.")
    );
}

#[test]
fn voids_that_are_lopsided_in_one_scenario_void_the_run() {
    let mut results = unanalysed(Profile::Quick, 5);
    for scenario in &mut results.scenarios {
        let lost = scenario.id == "L2";
        let trials = scenario.blocks.iter_mut().flat_map(|b| &mut b.trials);
        for trial in trials {
            trial.voids.clear();
            if lost && trial.arm == "agent" {
                trial.voids.push(Void {
                    gate: "late sends".into(),
                    measured: 0.03,
                    limit: 0.02,
                    message: "late".into(),
                });
            }
        }
    }
    analyse(&mut results);
    assert_eq!(results.status.state, State::Void);
    let reasons = &results.status.reasons;
    let of_it = |reason: &&String| reason.starts_with("L2: voids are lopsided");
    assert!(reasons.iter().any(|r| of_it(&r)), "{reasons:?}");
    // Of all trials they are few.
    let of_all = |reason: &&String| reason.starts_with("voids are lopsided");
    assert!(!reasons.iter().any(|r| of_all(&r)), "{reasons:?}");
}

#[test]
fn different_cores_void_the_run() {
    let mut results = unanalysed(Profile::Smoke, 5);
    results.arms[2].core_fingerprint = Some("another".into());
    analyse(&mut results);
    assert_eq!(results.status.state, State::Void);
    assert!(results.status.reasons[0].contains("different cores"));
}

#[test]
fn an_unoptimised_build_cannot_be_valid() {
    let mut results = unanalysed(Profile::Quick, 5);
    for arm in &mut results.arms {
        arm.opt_level = arm.opt_level.as_ref().map(|_| "0".into());
    }
    analyse(&mut results);
    assert_eq!(results.status.state, State::Void);
}

#[test]
fn memory_lines_and_their_crossing() {
    let results = run(Profile::Full, 5);
    let line = |arm: &str| {
        results
            .analysis
            .memory_lines
            .iter()
            .find(|l| l.arm == arm)
            .unwrap()
    };
    assert!(line("sidecar").per_pod.interval.unwrap().contains(8.2));
    assert!(line("agent").per_pod.interval.unwrap().contains(1.3));
    let crossing = results.analysis.crossovers[0].pods.unwrap();
    // 14.5 ÷ (8.2 − 1.3)
    assert!((crossing.value - 2.1).abs() < 0.3, "{crossing:?}");
}

#[test]
fn a_kill_is_counted_by_injection() {
    let results = run(Profile::Full, 5);
    let fault = |arm: &str| {
        results
            .analysis
            .faults
            .iter()
            .find(|f| f.arm == arm)
            .unwrap()
    };
    assert_eq!(
        (
            fault("sidecar").hit_others.hits,
            fault("sidecar").hit_others.of
        ),
        (0, 10)
    );
    assert_eq!(
        (
            fault("agent").hit_others.hits,
            fault("agent").pods_hit.unwrap().max
        ),
        (10, 8.0)
    );
    assert!(
        verdict(&results, "F1")
            .answer
            .contains("0 of 10 (up to 26 % of kills"),
        "{}",
        verdict(&results, "F1").answer
    );
}

#[test]
fn plaintext_is_called_by_its_name() {
    let closed = run(Profile::Quick, 5);
    assert!(
        verdict(&closed, "F5")
            .answer
            .starts_with("It fails closed: 0 bytes of plaintext in 12 trials")
    );
    let mut open = unanalysed(Profile::Quick, 5);
    let scenario = open.scenarios.iter_mut().find(|s| s.id == "F5").unwrap();
    let leaking = |t: &&mut Trial| t.arm == "agent" && t.point.x == 2.0;
    let trial = scenario.blocks[0].trials.iter_mut().find(leaking).unwrap();
    trial.values.insert(keys::PLAINTEXT_BYTES.into(), 512.0);
    analyse(&mut open);
    assert!(
        verdict(&open, "F5").answer.starts_with("It fails open"),
        "{}",
        verdict(&open, "F5").answer
    );
}

#[test]
fn the_noisy_neighbour_is_told_with_its_uncertainty() {
    let results = run(Profile::Full, 5);
    let answer = &verdict(&results, "I1").answer;
    assert!(
        answer
            .starts_with("With one neighbour flooding at 8× its quota the victim's median rose 1."),
        "{answer}"
    );
    assert!(
        answer.contains("] behind sidecars and ")
            && answer.contains("] behind the agent; without a mesh 1."),
        "{answer}"
    );
    let worst = |arm: &str| {
        let curves = &results.analysis.slowdowns;
        let curve = curves
            .iter()
            .find(|c| c.arm == arm && c.metric == "p50")
            .unwrap();
        curve
            .points
            .last()
            .unwrap()
            .slowdown
            .unwrap()
            .interval
            .unwrap()
    };
    assert!(worst("agent").contains(5.6) && worst("sidecar").contains(1.4));
    assert_eq!(verdict(&results, "I1").basis, Basis::Claimed);
}

#[test]
fn the_same_file_gives_the_same_analysis() {
    let once = run(Profile::Quick, 9);
    let mut twice = once.clone();
    analyse(&mut twice);
    assert_eq!(once, twice);
}

/// Arm, value, and further figures by name.
type Counted<'a> = (&'a str, f64, &'a [(&'a str, f64)]);

/// A scenario whose only block holds these trials: arm, x, values.
fn counted(results: &mut Results, id: &str, trials: &[Counted<'_>]) {
    let trials = trials
        .iter()
        .map(|(arm, x, values)| Trial {
            arm: (*arm).to_string(),
            point: Point::at(format!("at {x}"), *x),
            repeat: 0,
            started_s: 0.0,
            duration_s: 1.0,
            load: None,
            histograms: Default::default(),
            values: values.iter().map(|(k, v)| ((*k).to_string(), *v)).collect(),
            timelines: Vec::new(),
            voids: Vec::new(),
            notes: Vec::new(),
        })
        .collect();
    results.scenarios.push(Scenario {
        id: id.to_string(),
        title: id.to_string(),
        question: "?".to_string(),
        parameters: Default::default(),
        metrics: Vec::new(),
        blocks: vec![Block {
            index: 0,
            order: Vec::new(),
            trials,
        }],
        notes: Vec::new(),
    });
}

#[test]
fn lives_are_counted_and_said_of_how_many() {
    let mut results = unanalysed(Profile::Quick, 5);
    let job = |ended: f64| {
        [
            (keys::JOBS, 1.0),
            (keys::JOBS_ENDED, ended),
            (keys::EXIT_CODES_KEPT, ended),
        ]
    };
    counted(
        &mut results,
        "S3",
        &[
            ("none", 0.0, &job(1.0)),
            ("none", 3.0, &job(1.0)),
            ("sidecar", 0.0, &job(1.0)),
            ("agent", 0.0, &job(0.0)),
            ("agent", 100.0, &job(0.0)),
        ],
    );
    let upgrade = |failed: f64, cut: f64, restarted: f64| {
        [
            (keys::NEW_CONNECTIONS, 1000.0),
            (keys::NEW_CONNECTIONS_FAILED, failed),
            (keys::LONG_LIVED, 16.0),
            (keys::LONG_LIVED_RESET, cut),
            (keys::APPS_RESTARTED, restarted),
            (keys::UPGRADE_WALL, 21.0),
        ]
    };
    counted(
        &mut results,
        "U1",
        &[
            ("sidecar", 0.0, &upgrade(3.0, 40.0, 4.0)),
            ("agent", 0.0, &upgrade(0.0, 2.0, 0.0)),
        ],
    );
    analyse(&mut results);
    let jobs = &verdict(&results, "S3").answer;
    assert!(
        jobs.contains("2 of 2 [16 %, 100 %] without a mesh")
            && jobs.contains("0 of 1 [0 %, 97.5 %] behind the agent")
            && jobs.contains("A CronJob's first Job hung behind the agent"),
        "{jobs}"
    );
    let upgrade = &verdict(&results, "U1").answer;
    assert!(
        upgrade.contains("replacing the sidecars failed 3 of 1000")
            && upgrade
                .contains("cut 16 of 16 open ones, started 4 applications again and took 21 s")
            && upgrade.contains("cut 2 of 16 open ones, started 0 applications again"),
        "{upgrade}"
    );
    assert_eq!(verdict(&results, "U1").basis, Basis::Counted);
}
