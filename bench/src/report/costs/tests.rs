//! The sums, and that the page's script does the same ones.

use std::io::Write;
use std::process::Command;

use super::*;
use crate::report::html;
use crate::results::Profile;
use crate::results::synthetic::run;

fn model() -> Model {
    Model::of(&run(Profile::Full, 5)).unwrap()
}

fn close(found: f64, expected: f64, share: f64) {
    assert!(
        (found - expected).abs() <= share * expected.abs(),
        "{found} is not within {share} of {expected}"
    );
}

/// The synthetic run has 8.2·N MiB and 0.4 + 0.9·N millicores for sidecars, 14.5 + 1.3·N and
/// 1.6 + 0.2·N for the agent, and 61, 148 and 139 µs for a request.
#[test]
fn what_was_put_in_comes_out_as_money() {
    let model = model();
    let names: Vec<&str> = model.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["sidecar", "agent", "agent − sidecar"]);
    assert!(model.beyond_none);
    let reader = Reader {
        nodes: 4.0,
        pods_per_node: 20.0,
        requests: 10_000.0,
        core_hour: 0.05,
        gib_hour: 0.01,
    };
    let sidecar = model.rows[0].cost(&reader).unwrap();
    close(sidecar.gib.value, 4.0 * 8.2 * 20.0 / 1024.0, 0.03);
    let cores = 4.0 * (0.4 + 0.9 * 20.0) / 1000.0 + 10_000.0 * 87e-6;
    close(sidecar.cores.value, cores, 0.03);
    let money = 730.0 * (sidecar.cores.value * 0.05 + sidecar.gib.value * 0.01);
    close(sidecar.money.value, money, 1e-9);
    let less = model.rows[2].cost(&reader).unwrap();
    close(less.gib.value, 4.0 * (14.5 - 6.9 * 20.0) / 1024.0, 0.05);
    assert!(less.money.interval.unwrap().high < 0.0);
    for row in &model.rows {
        let cost = row.cost(&reader).unwrap();
        for estimate in [cost.cores, cost.gib, cost.money] {
            assert!(estimate.interval.unwrap().contains(estimate.value));
        }
    }
}

#[test]
fn twice_the_nodes_and_requests_cost_twice() {
    let reader = Reader::default();
    let twice = Reader {
        nodes: 2.0 * reader.nodes,
        requests: 2.0 * reader.requests,
        ..reader
    };
    for row in &model().rows {
        let (one, two) = (row.cost(&reader).unwrap(), row.cost(&twice).unwrap());
        close(two.money.value, 2.0 * one.money.value, 1e-9);
        close(two.gib.value, 2.0 * one.gib.value, 1e-9);
    }
}

#[test]
fn no_claim_without_blocks_or_in_a_void_run() {
    let rows = |results: &Results| html(results).contains("<td>costs less</td>");
    assert!(rows(&run(Profile::Full, 5)));
    assert!(!rows(&run(Profile::Smoke, 5)));
    let mut void = run(Profile::Full, 5);
    void.interrupted = Some("a signal".into());
    crate::analysis::analyse(&mut void);
    assert!(!rows(&void) && html(&void).contains("void run: no claim"));
}

#[test]
fn a_run_without_its_ingredients_says_so() {
    let mut results = run(Profile::Smoke, 5);
    results.scenarios.retain(|scenario| scenario.id != "R1");
    crate::analysis::analyse(&mut results);
    assert_eq!(Model::of(&results), None);
    assert!(html(&results).contains("this run has not measured both"));
}

/// The bill as it stands in the page, and as Chromium shows it once the script has run.
#[test]
fn the_script_does_the_same_sums() {
    let chromium = ["chromium", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(chromium) = chromium else {
        // Not eprintln, whose output a test that passes does not show.
        let _ = writeln!(std::io::stderr(), "skipped: needs chromium");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    let page = html(&run(Profile::Full, 5));
    std::fs::write(&path, &page).unwrap();
    let shown = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!(
            "--user-data-dir={}",
            dir.path().join("profile").display()
        ))
        .arg(&path)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let bill = |page: &str| {
        let from = page.find("id=\"bill\"").unwrap();
        let rows = &page[from..from + page[from..].find("</table>").unwrap()];
        rows[rows.find("<tbody>").unwrap()..].to_string()
    };
    assert!(bill(&page).contains("GiB ["));
    assert_eq!(bill(&shown), bill(&page));
    assert!(
        shown.contains("<form id=\"reader\">"),
        "the form is still hidden"
    );
}
