//! JUnit's XML: one case for each change. It fails if the change is a regression, and is skipped if nothing may
//! be said of it.

use super::changes::{Change, Comparison};
use super::text::{detail, effect, heading};
use crate::export::junit::{Case, Outcome, Suite, render as xml};
use crate::results::{Claim, State};

pub fn render(comparison: &Comparison) -> String {
    let files = comparison.files.iter().map(|file| Case {
        class: "files".to_owned(),
        name: file.name.clone(),
        outcome: if file.state == State::Void {
            Outcome::Failed(format!("the run is void: {}", file.reasons.join("; ")))
        } else {
            Outcome::Passed
        },
        said: file.reasons.join("; "),
    });
    let changes = comparison.changes.iter().map(|change| Case {
        class: format!("changes.{}.{}", change.scenario, change.arm),
        name: heading(comparison, change),
        outcome: outcome(change),
        said: format!("{} {}", effect(change), detail(change)),
    });
    let missing = comparison.missing.iter().map(|missing| Case {
        class: "missing".to_owned(),
        name: missing.clone(),
        outcome: Outcome::Failed("not measured any more".to_owned()),
        said: String::new(),
    });
    xml(&[
        Suite {
            name: "files".to_owned(),
            cases: files.collect(),
        },
        Suite {
            name: "changes".to_owned(),
            cases: missing.chain(changes).collect(),
        },
    ])
}

fn outcome(change: &Change) -> Outcome {
    if change.regression {
        Outcome::Failed(format!("regression: {}", effect(change)))
    } else if change.claim == Claim::NoClaim {
        let why = change.reason.clone();
        Outcome::Skipped(why.unwrap_or_else(|| "nothing can be claimed".to_owned()))
    } else {
        Outcome::Passed
    }
}
