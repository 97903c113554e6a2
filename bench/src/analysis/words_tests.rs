//! What the newer questions are answered with.

use super::analyse;
use crate::results::synthetic::unanalysed;
use crate::results::*;

fn verdict<'a>(results: &'a Results, id: &str) -> &'a Verdict {
    let mut verdicts = results.analysis.verdicts.iter();
    verdicts.find(|verdict| verdict.scenario == id).unwrap()
}

/// A scenario with the trials of another one, each with what `values` gives its arm instead.
fn asked_instead(
    results: &mut Results,
    (like, id): (&str, &str),
    values: impl Fn(&str) -> Vec<(&'static str, f64)>,
) {
    let mut scenario = results.scenario(like).unwrap().clone();
    scenario.id = id.to_owned();
    for trial in scenario
        .blocks
        .iter_mut()
        .flat_map(|block| &mut block.trials)
    {
        let given = values(&trial.arm).into_iter();
        trial.values = given.map(|(key, value)| (key.to_owned(), value)).collect();
        trial.point = Point::only();
    }
    let keys: Vec<&str> = values("sidecar").into_iter().map(|(key, _)| key).collect();
    scenario.metrics = keys
        .into_iter()
        .map(|key| Metric::value(key, key, "things", Kind::Memory))
        .collect();
    results.scenarios.push(scenario);
}

#[test]
fn privileges_are_named() {
    let mut results = unanalysed(Profile::Quick, 5);
    asked_instead(&mut results, ("X1", "X2"), |arm| match arm {
        "agent" => vec![
            (keys::CAPABILITIES, 2.0),
            (keys::ROOT_PROXIES, 1.0),
            (keys::NODE_NETWORK_PROXIES, 1.0),
            ("cap_net_admin", 1.0),
            ("cap_bpf", 1.0),
        ],
        _ => vec![
            (keys::CAPABILITIES, 0.0),
            (keys::ROOT_PROXIES, 0.0),
            (keys::NODE_NETWORK_PROXIES, 0.0),
        ],
    });
    analyse(&mut results);
    let said = &verdict(&results, "X2").answer;
    let agent = "behind the agent root with CAP_BPF and CAP_NET_ADMIN, in the node's network";
    let sidecar = "behind sidecars an unprivileged user with no capability, in its pod's network";
    assert!(said.contains(agent) && said.contains(sidecar), "{said}");
}

#[test]
fn an_absent_control_plane_is_told_with_what_still_worked() {
    let mut results = unanalysed(Profile::Quick, 5);
    asked_instead(&mut results, ("X1", "F4"), |arm| {
        let failed = if arm == "agent" { 2.0 } else { 0.0 };
        vec![
            (keys::AWAY_REQUESTS, 100.0),
            (keys::AWAY_FAILED, failed),
            (keys::RESTARTS_ALONE, 0.0),
        ]
    });
    analyse(&mut results);
    let told = verdict(&results, "F4");
    assert!(
        told.answer
            .contains("0 of 200 requests failed behind sidecars"),
        "{}",
        told.answer
    );
    assert!(
        told.answer
            .contains("4 of 200 requests failed behind the agent"),
        "{}",
        told.answer
    );
    assert!(
        told.answer.contains("came back without it in 0 of 2"),
        "{}",
        told.answer
    );
}

#[test]
fn a_hang_is_told_like_a_kill() {
    let mut results = unanalysed(Profile::Quick, 5);
    let mut hang = results.scenario("F1").unwrap().clone();
    hang.id = "F2".to_owned();
    results.scenarios.push(hang);
    analyse(&mut results);
    let told = verdict(&results, "F2");
    assert!(
        told.answer.contains("an agent that hung for 10 s hit"),
        "{}",
        told.answer
    );
    assert!(told.answer.contains("hangs each"), "{}", told.answer);
    assert!(!told.answer.contains("kill"), "{}", told.answer);
}

#[test]
fn capacity_and_idle_connections_compare_the_two_placements() {
    let mut results = unanalysed(Profile::Quick, 5);
    asked_instead(&mut results, ("L2", "R3"), |arm| {
        let each = if arm == "agent" { 30.0 } else { 20.0 };
        vec![
            (keys::KIB_PER_CONNECTION, each),
            (keys::HELD_AFTER_CLOSE, 3.0),
        ]
    });
    asked_instead(&mut results, ("L2", "L3"), |arm| {
        vec![(keys::CAPACITY, if arm == "none" { 8000.0 } else { 4000.0 })]
    });
    analyse(&mut results);
    let idle = verdict(&results, "R3");
    assert!(idle.answer.contains("1.50×"), "{}", idle.answer);
    assert_eq!(idle.basis, Basis::Claimed);
    let capacity = verdict(&results, "L3");
    assert!(
        capacity.answer.contains("8000") && capacity.answer.contains("0.50×"),
        "{}",
        capacity.answer
    );
}
