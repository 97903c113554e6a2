use super::*;
use clap::CommandFactory;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn names_are_checked_while_parsing() {
    let parse = |arguments: &[&str]| {
        Cli::try_parse_from(["duet-bench"].iter().chain(arguments)).map(|_| ())
    };
    assert!(parse(&["run", "--scenarios", "L1,i1", "--arms", "none,aa"]).is_ok());
    let wrong = parse(&["run", "--scenarios", "L9"])
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("L9") && wrong.contains("X1"), "{wrong}");
    assert!(parse(&["run", "--arms", "both"]).is_err());
    assert!(parse(&["run", "--profile", "huge"]).is_err());
}

#[test]
fn arms_and_scenarios_keep_the_reports_order() {
    let chosen = plan(
        ClusterKind::Netns,
        Profile::Quick,
        1,
        &[Id::X1, Id::L1],
        &[Arm::Agent, Arm::None],
    );
    assert_eq!(chosen.scenarios, [Id::L1, Id::X1]);
    assert_eq!(chosen.arms, [Arm::None, Arm::Agent]);
}

#[test]
fn what_needs_a_kubelet_is_asked_where_there_is_one() {
    let all = |cluster| plan(cluster, Profile::Smoke, 1, &[], &[]);
    let here = all(ClusterKind::Netns);
    assert!(!here.scenarios.iter().any(|id| id.needs_kubelet()));
    assert!(!here.arms.contains(&Arm::ClassicSidecar));
    let there = all(ClusterKind::Kube);
    assert!(there.scenarios.contains(&Id::S1) && !there.scenarios.contains(&Id::F2));
    let whole = plan(ClusterKind::Kube, Profile::Full, 1, &[], &[]);
    assert!(whole.scenarios.contains(&Id::F2) && !whole.scenarios.contains(&Id::F3));
    let installed = Arm::ALL
        .into_iter()
        .filter(|arm| *arm != Arm::AgentTenancy && !arm.redirects_only());
    assert_eq!(there.arms, installed.collect::<Vec<_>>());
    let timed = plan(ClusterKind::Kube, Profile::Smoke, 1, &[Id::L1], &[]);
    assert!(!timed.arms.contains(&Arm::ClassicSidecar));
}

#[test]
fn what_takes_long_is_asked_by_name_or_in_a_full_run() {
    let quick = plan(ClusterKind::Netns, Profile::Quick, 1, &[], &[]);
    assert!(!quick.scenarios.contains(&Id::F2) && quick.scenarios.contains(&Id::X2));
    let named = plan(ClusterKind::Netns, Profile::Quick, 1, &[Id::F2], &[]);
    assert_eq!(named.scenarios, [Id::F2]);
    let full = plan(ClusterKind::Netns, Profile::Full, 1, &[], &[]);
    let here = |id: &&Id| !id.needs_kubelet();
    assert_eq!(
        full.scenarios,
        Id::ALL.iter().filter(here).copied().collect::<Vec<_>>()
    );
}

/// Of everything that there is, with the time for void blocks.
#[test]
fn a_quick_run_takes_minutes_and_a_full_one_an_hour() {
    for (profile, minutes) in [(Profile::Quick, 8), (Profile::Full, 60)] {
        let plan = plan(ClusterKind::Netns, profile, 1, &[], &[]);
        let all: Vec<_> = crate::scenario::experiments()
            .into_iter()
            .filter(|experiment| plan.wants(experiment.scenarios()))
            .collect();
        let takes = run::estimate(&plan, &all) + plan.pace.spare;
        let most = Duration::from_secs(60 * minutes);
        assert!(takes <= most, "{profile:?}: {takes:?} of {most:?}");
    }
}
