//! JUnit's XML, as CI systems read it.
//!
//! A gate fails its case only if the run is void: a single void trial is what gates are for. A verdict passes if it
//! claims or counts something, fails if it counts what must not be (plaintext on the wire), and is skipped if
//! nothing may be said.

use crate::results::{Basis, Placement, Results, State, keys};
use crate::run::gates;
use std::collections::BTreeMap;

/// What became of one case.
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

pub(crate) struct Case {
    pub class: String,
    pub name: String,
    pub outcome: Outcome,
    /// For whoever opens it.
    pub said: String,
}

/// One suite of a file.
pub(crate) struct Suite {
    pub name: String,
    pub cases: Vec<Case>,
}

/// Counts that must be nothing with a mesh: (scenario, metric).
const MUST_BE_ZERO: [(&str, &str); 1] = [("F5", keys::PLAINTEXT_BYTES)];

pub fn of_run(results: &Results) -> String {
    render(&[run(results), gates_of(results), verdicts(results)])
}

fn run(results: &Results) -> Suite {
    let reasons = results.status.reasons.join("; ");
    let outcome = match results.status.state {
        State::Valid => Outcome::Passed,
        State::Smoke => Outcome::Skipped("a smoke run claims nothing".to_owned()),
        State::Void => Outcome::Failed(reasons.clone()),
    };
    Suite {
        name: "run".to_owned(),
        cases: vec![Case {
            class: "run".to_owned(),
            name: "the run is valid".to_owned(),
            outcome,
            said: reasons,
        }],
    }
}

fn gates_of(results: &Results) -> Suite {
    let mut broken: BTreeMap<&str, u32> = gates::NAMES.iter().map(|name| (*name, 0)).collect();
    for (gate, count) in results.analysis.voids.iter().flat_map(|one| &one.gates) {
        *broken.entry(gate).or_default() += count;
    }
    let trials: u32 = results.analysis.voids.iter().map(|one| one.trials).sum();
    let void = results.status.state == State::Void;
    let case = |(gate, count): (&str, u32)| {
        let said = format!("{count} of {trials} trials are void by it");
        Case {
            class: "gates".to_owned(),
            name: gate.to_owned(),
            outcome: if void && count > 0 {
                Outcome::Failed(said.clone())
            } else {
                Outcome::Passed
            },
            said,
        }
    };
    Suite {
        name: "gates".to_owned(),
        cases: broken.into_iter().map(case).collect(),
    }
}

fn verdicts(results: &Results) -> Suite {
    let case = |verdict: &crate::results::Verdict| Case {
        class: format!("verdicts.{}", verdict.scenario),
        name: verdict.question.clone(),
        outcome: match (forbidden(results, &verdict.scenario), verdict.basis) {
            (Some(what), _) => Outcome::Failed(what),
            (None, Basis::Claimed | Basis::Counted) => Outcome::Passed,
            (None, Basis::NotResolved) => Outcome::Skipped("nothing may be claimed".to_owned()),
            (None, Basis::NotMeasured) => Outcome::Skipped("not measured".to_owned()),
        },
        said: verdict.answer.clone(),
    };
    Suite {
        name: "verdicts".to_owned(),
        cases: results.analysis.verdicts.iter().map(case).collect(),
    }
}

/// What a scenario counted that must not be, in an arm with a mesh and a trial that counts.
fn forbidden(results: &Results, id: &str) -> Option<String> {
    let (_, metric) = MUST_BE_ZERO.iter().find(|(of, _)| *of == id)?;
    let scenario = results.scenario(id)?;
    let meshed = |arm: &str| {
        results
            .arm(arm)
            .is_some_and(|arm| arm.placement != Placement::None)
    };
    scenario
        .trials()
        .filter(|trial| !trial.is_void() && meshed(&trial.arm))
        .find_map(|trial| {
            let count = *trial.values.get(*metric)?;
            (count > 0.0).then(|| {
                let at = trial.point.title();
                format!("{}: {metric} is {count} at {at}; it must be 0", trial.arm)
            })
        })
}

pub(crate) fn render(suites: &[Suite]) -> String {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"duet-bench\">\n",
    );
    for suite in suites {
        let count = |wanted: fn(&Outcome) -> bool| {
            suite
                .cases
                .iter()
                .filter(|case| wanted(&case.outcome))
                .count()
        };
        out += &format!(
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\">\n",
            escaped(&suite.name),
            suite.cases.len(),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        );
        for case in &suite.cases {
            out += &format!(
                "    <testcase classname=\"{}\" name=\"{}\">",
                escaped(&case.class),
                escaped(&case.name)
            );
            match &case.outcome {
                Outcome::Passed => {}
                Outcome::Failed(why) => out += &format!("<failure message=\"{}\"/>", escaped(why)),
                Outcome::Skipped(why) => out += &format!("<skipped message=\"{}\"/>", escaped(why)),
            }
            if !case.said.is_empty() {
                out += &format!("<system-out>{}</system-out>", escaped(&case.said));
            }
            out += "</testcase>\n";
        }
        out += "  </testsuite>\n";
    }
    out + "</testsuites>\n"
}

/// For text and attributes; what XML cannot hold at all is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' => out += "&#10;",
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}
