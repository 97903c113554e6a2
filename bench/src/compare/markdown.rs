//! For a pull request's comment: the claims open, everything else folded.

use super::changes::{Change, Comparison};
use super::text::{detail, effect, heading, reads, sign, summary};
use crate::analysis::words;
use crate::results::State;

pub fn render(comparison: &Comparison) -> String {
    let mut out = String::from("## Duet bench: comparison\n\n");
    for file in &comparison.files {
        let state = match file.state {
            State::Valid => String::new(),
            State::Smoke => " (smoke: claims nothing by itself)".into(),
            State::Void => format!(" **🟥 VOID:** {}", file.reasons.join("; ")),
        };
        out += &format!("- `{}` {}{state}\n", file.name, file.started);
    }
    for warning in &comparison.warnings {
        out += &format!("\n> [!WARNING]\n> {warning}\n");
    }
    for missing in &comparison.missing {
        out += &format!("\n> [!CAUTION]\n> {missing}\n");
    }
    out += &format!("\n{}\n\n", summary(comparison));
    let claimed: Vec<&Change> = comparison
        .changes
        .iter()
        .filter(|c| reads(c).is_some())
        .collect();
    if !claimed.is_empty() {
        out += &table(comparison, &claimed);
    }
    out += "\n<details><summary>Every comparison</summary>\n\n";
    out += &table(comparison, &comparison.changes.iter().collect::<Vec<_>>());
    out += "\n</details>\n";
    for note in &comparison.notes {
        out += &format!("\n- {note}");
    }
    out
}

fn table(comparison: &Comparison, changes: &[&Change]) -> String {
    let mut out =
        String::from("| | metric | arm | old | new | change | |\n|---|---|---|--:|--:|---|---|\n");
    for change in changes {
        let mark = match reads(change) {
            Some(true) => "🔵 ",
            Some(false) => "🟠 ",
            None => "",
        };
        out += &format!(
            "| {} | {} | {} | {} | {} | {mark}{} {} | {} |\n",
            change.scenario,
            heading(comparison, change).replace('|', "\\|"),
            change.arm,
            words::quantity(change.old.median, &change.unit),
            words::quantity(change.new.median, &change.unit),
            effect(change),
            sign(change),
            detail(change).replace("REGRESSION", "**regression**")
        );
    }
    out
}
