//! Changes that were put in are found, noise is not, and the exit code says which.

use std::path::{Path, PathBuf};

use super::*;
use crate::results::synthetic::{run as made_up, unanalysed};
use crate::results::{Claim, Kind, Kubernetes, KubernetesNode, Profile, Void, keys};

struct Files {
    dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Files {
    fn of(all: &[&Results]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let paths = all
            .iter()
            .enumerate()
            .map(|(i, results)| {
                let path = dir.path().join(format!("run{i}.json"));
                results::write(results, &path).unwrap();
                path
            })
            .collect();
        Files { dir, paths }
    }

    fn args(&self) -> CompareArgs {
        CompareArgs {
            files: self.paths.clone(),
            format: Format::Text,
            threshold: 10.0,
            thresholds: None,
            force: false,
            loose: false,
        }
    }

    fn compare(&self) -> Comparison {
        compare(&self.args()).unwrap()
    }
}

/// Every value of a metric in an arm times a factor.
fn scaled(mut results: Results, metric: &str, arm: &str, factor: f64) -> Results {
    for trial in results
        .scenarios
        .iter_mut()
        .flat_map(|s| &mut s.blocks)
        .flat_map(|b| &mut b.trials)
    {
        if trial.arm == arm
            && let Some(value) = trial.values.get_mut(metric)
        {
            *value *= factor;
        }
    }
    results
}

fn change<'a>(comparison: &'a Comparison, metric: &str, arm: &str) -> &'a Change {
    let found = comparison
        .changes
        .iter()
        .rev()
        .find(|c| c.metric == metric && c.arm == arm);
    found.unwrap_or_else(|| panic!("no change of {metric} in {arm}"))
}

#[test]
fn a_run_against_itself_is_fine() {
    let run = made_up(Profile::Quick, 5);
    let comparison = Files::of(&[&run, &run]).compare();
    assert_eq!(comparison.exit_code(), 0);
    assert!(
        comparison
            .changes
            .iter()
            .all(|c| !matches!(c.claim, Claim::Higher | Claim::Lower))
    );
}

#[test]
fn two_runs_of_the_same_thing_show_no_regression() {
    let (one, other) = (made_up(Profile::Quick, 5), made_up(Profile::Quick, 6));
    let comparison = Files::of(&[&one, &other]).compare();
    assert_eq!(
        comparison.exit_code(),
        0,
        "{}",
        text::render(&comparison, false)
    );
}

#[test]
fn a_regression_is_found_and_an_improvement_is_none() {
    let old = made_up(Profile::Quick, 5);
    let slower = scaled(
        unanalysed(Profile::Quick, 6),
        keys::NODE_CPU_PER_REQUEST,
        "agent",
        1.5,
    );
    let worse = Files::of(&[&old, &slower]).compare();
    let found = change(&worse, keys::NODE_CPU_PER_REQUEST, "agent");
    assert!(found.regression && found.claim == Claim::Higher);
    assert!(
        found.estimate.unwrap().interval.unwrap().contains(1.5),
        "{found:?}"
    );
    assert_eq!(worse.exit_code(), 1);
    assert_eq!(Files::of(&[&slower, &old]).compare().exit_code(), 0);
}

#[test]
fn the_threshold_decides_what_is_a_regression() {
    let old = made_up(Profile::Quick, 5);
    let slower = scaled(
        unanalysed(Profile::Quick, 6),
        keys::NODE_CPU_PER_REQUEST,
        "agent",
        1.5,
    );
    let files = Files::of(&[&old, &slower]);
    let mut args = files.args();
    args.threshold = 80.0;
    let lenient = compare(&args).unwrap();
    assert_eq!(
        change(&lenient, keys::NODE_CPU_PER_REQUEST, "agent").claim,
        Claim::Higher
    );
    assert_eq!(lenient.exit_code(), 0);
}

#[test]
fn the_machines_own_change_is_drift() {
    let old = made_up(Profile::Quick, 5);
    let slower = scaled(
        unanalysed(Profile::Quick, 6),
        keys::NODE_CPU_PER_REQUEST,
        "none",
        1.5,
    );
    let comparison = Files::of(&[&old, &slower]).compare();
    assert_eq!(comparison.exit_code(), 0);
    assert!(
        comparison.notes.iter().any(|note| note.contains("drifted")),
        "{:?}",
        comparison.notes
    );
}

#[test]
fn counts_need_no_interval() {
    let old = made_up(Profile::Quick, 5);
    let exposed = scaled(
        unanalysed(Profile::Quick, 5),
        keys::KEYS_MAX,
        "sidecar",
        8.0,
    );
    let comparison = Files::of(&[&old, &exposed]).compare();
    assert!(change(&comparison, keys::KEYS_MAX, "sidecar").regression);

    let mut leaking = unanalysed(Profile::Quick, 5);
    let f5 = leaking.scenarios.iter_mut().find(|s| s.id == "F5").unwrap();
    let trial = f5.blocks[2]
        .trials
        .iter_mut()
        .rev()
        .find(|t| t.arm == "agent")
        .unwrap();
    trial.values.insert(keys::PLAINTEXT_BYTES.into(), 9.0);
    let comparison = Files::of(&[&old, &leaking]).compare();
    assert!(change(&comparison, keys::PLAINTEXT_BYTES, "agent").regression);
    assert_eq!(comparison.exit_code(), 1);
}

#[test]
fn smoke_runs_can_be_compared_and_claim_no_time() {
    let (one, other) = (made_up(Profile::Smoke, 5), made_up(Profile::Smoke, 6));
    let comparison = Files::of(&[&one, &other]).compare();
    assert_eq!(comparison.exit_code(), 0);
    assert!(comparison.changes.iter().all(|c| c.claim == Claim::NoClaim));
    assert!(text::render(&comparison, false).contains('~'));
}

#[test]
fn times_of_another_machine_are_claimed_only_by_force() {
    let old = made_up(Profile::Quick, 5);
    let mut other = scaled(
        unanalysed(Profile::Quick, 6),
        keys::NODE_CPU_PER_REQUEST,
        "agent",
        3.0,
    );
    other.machine.cpu = "Another CPU".into();
    let files = Files::of(&[&old, &other]);
    let careful = files.compare();
    assert!(
        careful.warnings[0].contains("Another CPU"),
        "{:?}",
        careful.warnings
    );
    assert_eq!(
        change(&careful, keys::NODE_CPU_PER_REQUEST, "agent").claim,
        Claim::NoClaim
    );
    let mut args = files.args();
    args.force = true;
    let forced = compare(&args).unwrap();
    assert!(forced.warnings.is_empty());
    assert_eq!(
        change(&forced, keys::NODE_CPU_PER_REQUEST, "agent").claim,
        Claim::Higher
    );
}

#[test]
fn a_void_file_claims_nothing_and_says_so_in_every_format() {
    let old = made_up(Profile::Quick, 5);
    let mut void = unanalysed(Profile::Quick, 6);
    for trial in void
        .scenarios
        .iter_mut()
        .flat_map(|s| &mut s.blocks)
        .flat_map(|b| &mut b.trials)
    {
        if (trial.started_s as u64).is_multiple_of(2) {
            trial.voids.push(Void {
                gate: "steal".into(),
                measured: 0.2,
                limit: 0.02,
                message: "steal".into(),
            });
        }
    }
    let comparison = Files::of(&[&old, &void]).compare();
    assert_eq!(comparison.exit_code(), 2);
    assert!(comparison.changes.iter().all(|c| c.claim == Claim::NoClaim));
    assert!(text::render(&comparison, true).contains("\u{1b}[1;31m  VOID"));
    assert!(markdown::render(&comparison).contains("🟥 VOID"));
    assert!(html::render(&comparison).contains("banner void"));
    assert!(
        serde_json::to_string(&comparison)
            .unwrap()
            .contains("\"state\":\"void\"")
    );
}

#[test]
fn different_cores_in_one_file_are_refused() {
    let old = made_up(Profile::Smoke, 5);
    let mut mixed = made_up(Profile::Smoke, 6);
    mixed.arms[2].core_fingerprint = Some("another".into());
    let files = Files::of(&[&old, &mixed]);
    let error = compare(&files.args()).unwrap_err().to_string();
    assert!(
        error.contains("run1.json") && error.contains("different cores"),
        "{error}"
    );
    assert!(!error.contains('\n'));
}

#[test]
fn unreadable_and_unrelated_files_are_refused_in_one_line() {
    let run = made_up(Profile::Smoke, 5);
    let mut unrelated = made_up(Profile::Smoke, 5);
    unrelated.scenarios.clear();
    let files = Files::of(&[&run, &unrelated]);
    let error = compare(&files.args()).unwrap_err().to_string();
    assert!(
        error.contains("nothing") || error.contains("no scenario"),
        "{error}"
    );
    let mut args = files.args();
    args.files[1] = files.dir.path().join("absent");
    let error = compare(&args).unwrap_err().to_string();
    assert!(error.contains("absent") && !error.contains('\n'), "{error}");
}

#[test]
fn what_has_no_partner_is_named() {
    let run = made_up(Profile::Smoke, 5);
    assert!(!text::render(&Files::of(&[&run, &run]).compare(), false).contains("only in"));
    let mut other = run.clone();
    let scenario = &mut other.scenarios[0];
    for trial in scenario
        .blocks
        .iter_mut()
        .flat_map(|block| &mut block.trials)
    {
        trial.point.label = "elsewhere".to_owned();
    }
    let id = scenario.id.clone();
    let notes = Files::of(&[&run, &other]).compare().notes;
    let note = format!("{id}: only in run1.json, and so not compared: ");
    let found = notes.iter().find(|one| one.starts_with(&note));
    assert!(
        found.is_some_and(|one| one.ends_with("elsewhere")),
        "{notes:?}"
    );
}

#[test]
fn a_run_on_kubernetes_stands_beside_one_on_namespaces_and_what_differs_is_said() {
    let run = made_up(Profile::Smoke, 5);
    let mut other = run.clone();
    other.machine.kubernetes = Some(Kubernetes {
        version: "v1.36.2".to_owned(),
        nodes: vec![KubernetesNode::default(); 2],
    });
    let comparison = Files::of(&[&run, &other]).compare();
    let changed = |id: &str| comparison.changes.iter().any(|c| c.scenario == id);
    assert!(changed("L1") && changed("R1"), "{:?}", comparison.changes);
    let has = |of: &[String], what: &str| of.iter().any(|one| one.contains(what));
    let machines = "network namespaces against Kubernetes v1.36.2 with 2 nodes";
    assert!(
        has(&comparison.warnings, machines),
        "{:?}",
        comparison.warnings
    );
    assert!(
        has(&comparison.notes, "without tenancy"),
        "{:?}",
        comparison.notes
    );
}

#[test]
fn three_files_are_each_held_against_the_first() {
    let run = made_up(Profile::Smoke, 5);
    let comparison = Files::of(&[&run, &run, &run]).compare();
    assert!(comparison.changes.iter().any(|c| c.file == 1));
    assert!(comparison.changes.iter().any(|c| c.file == 2));
    assert!(text::render(&comparison, false).contains("(run2.json)"));
}

#[test]
fn runs_are_named_by_what_tells_them_apart() {
    let run = made_up(Profile::Smoke, 5);
    let named = |paths: [&str; 2]| {
        let runs: Vec<_> = paths
            .iter()
            .map(|p| (Path::new(p).to_path_buf(), run.clone()))
            .collect();
        names(&runs)
    };
    assert_eq!(named(["out/a", "out/b"]), ["a", "b"]);
    assert_eq!(
        named(["a/out/results.json", "b/out/results.json"]),
        ["a/out", "b/out"]
    );
    assert_eq!(named(["a", "a"]), ["#1", "#2"]);
}

/// As [`Files::compare`], with a thresholds file of this text.
fn with_thresholds(files: &Files, text: &str) -> Result<Comparison, CompareError> {
    let path = files.dir.path().join("thresholds.json");
    std::fs::write(&path, text).unwrap();
    compare(&CompareArgs {
        thresholds: Some(path),
        ..files.args()
    })
}

#[test]
fn a_thresholds_file_decides_by_scenario_metric_and_arm() {
    let old = made_up(Profile::Quick, 5);
    let metric = keys::NODE_CPU_PER_REQUEST;
    let slower = scaled(unanalysed(Profile::Quick, 6), metric, "agent", 1.5);
    let files = Files::of(&[&old, &slower]);
    let code = |text: &str| with_thresholds(&files, text).unwrap().exit_code();
    assert_eq!(code("{}"), 1);
    assert_eq!(code(r#"{"default": 300}"#), 0);
    let rule = |rest: &str| format!(r#"{{"default": 300, "rules": [{rest}]}}"#);
    assert_eq!(code(&rule(r#"{"scenario": "r2", "percent": 5}"#)), 1);
    assert_eq!(code(&rule(r#"{"scenario": "L1", "percent": 5}"#)), 0);
    assert_eq!(code(&rule(r#"{"arm": "sidecar", "percent": 5}"#)), 0);
    // The first that matches decides.
    let ignored = format!(r#"{{"metric": "{metric}", "ignore": true}}, {{"percent": 1}}"#);
    let comparison = with_thresholds(&files, &rule(&ignored)).unwrap();
    assert!(!change(&comparison, metric, "agent").regression);
    let misspelt = with_thresholds(&files, &rule(r#"{"metric": "p05", "percent": 5}"#)).unwrap();
    assert!(misspelt.warnings.iter().any(|one| one.contains("rule 1")));
}

#[test]
fn a_wrong_thresholds_file_is_named_with_what_to_write() {
    let run = made_up(Profile::Quick, 5);
    let files = Files::of(&[&run, &run]);
    for (text, wanted) in [
        (r#"{"rules": [{"percnt": 5}]}"#, "percnt"),
        (r#"{"rules": [{"metric": "p50"}]}"#, "rule 1: give percent"),
        (r#"{"rules": [{"percent": -1}]}"#, "rule 1: give per cent"),
        (r#"{"default": -3}"#, "default: give"),
        ("nonsense", "write {"),
    ] {
        let said = with_thresholds(&files, text).unwrap_err().to_string();
        assert!(
            said.contains("thresholds.json") && said.contains(wanted),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
    }
}

#[test]
fn junit_has_a_case_for_each_change_and_fails_regressions() {
    let old = made_up(Profile::Quick, 5);
    let metric = keys::NODE_CPU_PER_REQUEST;
    let slower = scaled(unanalysed(Profile::Quick, 6), metric, "agent", 1.5);
    let comparison = Files::of(&[&old, &slower]).compare();
    let xml = junit::render(&comparison);
    let cases = xml.matches("<testcase ").count();
    assert_eq!(cases, comparison.files.len() + comparison.changes.len());
    let regressions = comparison
        .changes
        .iter()
        .filter(|one| one.regression)
        .count();
    assert!(regressions > 0);
    assert_eq!(xml.matches("<failure ").count(), regressions);
}

/// A smoke run claims nothing, and still has to show what a kept one showed.
fn loosely(old: &Results, new: &Results, percent: f64) -> Comparison {
    let files = Files::of(&[old, new]);
    let mut args = files.args();
    (args.loose, args.threshold) = (true, percent);
    compare(&args).unwrap()
}

#[test]
fn a_loose_comparison_takes_counts_and_memory_and_no_times() {
    let (one, other) = (made_up(Profile::Smoke, 5), made_up(Profile::Smoke, 6));
    let fine = loosely(&one, &other, 25.0);
    assert!(
        fine.changes
            .iter()
            .all(|c| matches!(c.kind, Kind::Count | Kind::Memory))
    );
    let wrong: Vec<&Change> = fine.changes.iter().filter(|c| c.regression).collect();
    // Requests lost follow the time of the restart, which is random here.
    assert!(
        wrong.iter().all(|c| c.metric == keys::REQUESTS_LOST),
        "{wrong:?}"
    );

    let slower = scaled(
        unanalysed(Profile::Smoke, 5),
        keys::TIME_TO_RECOVER,
        "agent",
        9.0,
    );
    assert_eq!(loosely(&one, &slower, 25.0).exit_code(), 0);
    let larger = scaled(
        unanalysed(Profile::Smoke, 5),
        keys::PROXY_MEMORY,
        "agent",
        1.5,
    );
    let larger = loosely(&one, &larger, 25.0);
    assert!(change(&larger, keys::PROXY_MEMORY, "agent").regression);
    assert_eq!(larger.exit_code(), 1);
}

#[test]
fn loosely_a_finding_that_vanished_is_as_bad_as_one_that_grew() {
    let one = made_up(Profile::Smoke, 5);
    let none_hit = scaled(unanalysed(Profile::Smoke, 5), keys::PODS_HIT, "agent", 0.0);
    let comparison = loosely(&one, &none_hit, 25.0);
    assert!(change(&comparison, keys::PODS_HIT, "agent").regression);
    assert_eq!(comparison.exit_code(), 1);

    let mut without = unanalysed(Profile::Smoke, 5);
    let x1 = without.scenarios.iter_mut().find(|s| s.id == "X1").unwrap();
    for block in &mut x1.blocks {
        block.trials.retain(|trial| trial.arm != "agent");
    }
    let comparison = loosely(&one, &without, 25.0);
    assert_eq!(comparison.missing, ["X1 agent: not measured in run1.json"]);
    assert_eq!(comparison.exit_code(), 1);
    for rendered in [
        text::render(&comparison, false),
        markdown::render(&comparison),
        html::render(&comparison),
        junit::render(&comparison),
    ] {
        assert!(rendered.contains("X1 agent: not measured"), "{rendered}");
    }
}
