//! What a reader must be able to rely on in every report.

use super::*;
use crate::results::synthetic::{run, unanalysed};
use crate::results::{Basis, Profile, Void};

#[test]
fn a_report_is_written_whole_and_rendered_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out/a");
    let mut results = unanalysed(Profile::Smoke, 5);
    let written = write(&mut results, &out).unwrap();
    let page = fs::read_to_string(&written.html).unwrap();
    fs::remove_file(&written.html).unwrap();
    for path in [&out, &written.json] {
        let (again, files) = rerender(path).unwrap();
        assert_eq!(again, results);
        assert_eq!(fs::read_to_string(&files.html).unwrap(), page);
    }
}

#[test]
fn the_page_needs_no_network_and_stays_small() {
    let page = html(&run(Profile::Full, 5));
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    for reference in ["http:", "https:", "src=", "@import", "url(", "<link"] {
        assert!(
            !page.contains(reference),
            "the page refers to something: {reference}"
        );
    }
}

#[test]
fn the_page_says_the_verdicts_before_any_figure() {
    let results = run(Profile::Quick, 5);
    let page = html(&results);
    let first_figure = page.find("<figure").unwrap();
    let bare = |text: &str| text.replace(['\u{a0}', ' '], "").replace('&', "&amp;");
    let before = bare(&page[..first_figure].replace("&amp;", "&"));
    for verdict in &results.analysis.verdicts {
        assert!(
            before.contains(&bare(&verdict.answer)),
            "{}",
            verdict.answer
        );
    }
}

#[test]
fn every_scenario_gets_an_answer_and_its_evidence() {
    let results = run(Profile::Quick, 5);
    let (page, summary) = (html(&results), markdown(&results));
    for scenario in &results.scenarios {
        assert!(
            results
                .analysis
                .verdicts
                .iter()
                .any(|v| v.scenario == scenario.id)
        );
        assert!(page.contains(&scenario.title), "{}", scenario.title);
        assert!(summary.contains(&scenario.title), "{}", scenario.title);
    }
    assert!(
        results
            .analysis
            .verdicts
            .iter()
            .all(|v| v.basis != Basis::NotMeasured)
    );
}

#[test]
fn a_scenario_without_valid_trials_is_not_measured() {
    let mut results = unanalysed(Profile::Quick, 5);
    let f5 = results.scenarios.iter_mut().find(|s| s.id == "F5").unwrap();
    f5.blocks.clear();
    f5.notes.push("packet sockets are not allowed here".into());
    crate::analysis::analyse(&mut results);
    let verdict = results
        .analysis
        .verdicts
        .iter()
        .find(|v| v.scenario == "F5")
        .unwrap();
    assert_eq!(verdict.basis, Basis::NotMeasured);
    assert!(verdict.answer.contains("packet sockets are not allowed"));
    let (page, summary) = (html(&results), markdown(&results));
    assert!(page.contains("not measured") && summary.contains("Not measured"));
}

#[test]
fn a_run_with_nothing_in_it_still_gives_reports() {
    let mut results = unanalysed(Profile::Smoke, 5);
    results.scenarios.clear();
    results.arms.clear();
    results.parity.clear();
    crate::analysis::analyse(&mut results);
    assert!(html(&results).contains("Smoke run"));
    assert!(markdown(&results).contains("Smoke run"));
    assert!(!verdict_table(&results, false).is_empty());
}

#[test]
fn a_void_run_is_red_everywhere() {
    let mut results = unanalysed(Profile::Quick, 5);
    results.interrupted = Some("a signal".into());
    crate::analysis::analyse(&mut results);
    assert!(html(&results).contains("banner void"));
    assert!(markdown(&results).contains("🟥 VOID RUN"));
    assert!(banner(&results, true).contains("\u{1b}[1;31mVOID"));
}

#[test]
fn a_void_trial_is_red_in_a_valid_run_too() {
    let mut results = unanalysed(Profile::Quick, 5);
    results.scenarios[0].blocks[0].trials[0].voids.push(Void {
        gate: "steal".into(),
        measured: 0.05,
        limit: 0.02,
        message: "the hypervisor took 5.0 %".into(),
    });
    crate::analysis::analyse(&mut results);
    let page = html(&results);
    assert!(page.contains("tr class=\"void\"") && page.contains("the hypervisor took 5.0 %"));
    assert!(markdown(&results).contains("🟥 Void trials"));
    assert!(banner(&results, false).contains("void and left out"));
}

#[test]
fn the_terminal_table_fits_a_hundred_columns() {
    for profile in [Profile::Smoke, Profile::Quick] {
        let table = verdict_table(&run(profile, 5), false);
        for line in table.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        assert!(!table.contains('\u{1b}'));
    }
}

#[test]
fn what_a_scenario_says_cannot_break_the_page_or_the_table() {
    let mut results = unanalysed(Profile::Smoke, 5);
    results.scenarios[0].title = "<script>alert(1)</script> | x".into();
    results.status.reasons.push("a | b".into());
    crate::analysis::analyse(&mut results);
    assert!(!html(&results).contains("<script>alert"));
    assert!(!markdown(&results).contains("<script>alert"));
}
