//! For a terminal: one line per arm, grouped by metric and point.

use super::changes::{Change, Comparison};
use crate::analysis::words;
use crate::results::{Better, Claim, Effect, Estimate, State};

/// `colour` is for a terminal.
pub fn render(comparison: &Comparison, colour: bool) -> String {
    let paint = |text: &str, code: &str| {
        if colour && !code.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    };
    let mut out = String::new();
    for file in &comparison.files {
        let state = match file.state {
            State::Valid => String::new(),
            State::Smoke => "  smoke".into(),
            State::Void => paint(&format!("  VOID: {}", file.reasons.join("; ")), "1;31"),
        };
        out += &format!("{}  {}{state}\n", file.name, file.started);
    }
    let mut title = "";
    let mut head = String::new();
    for change in &comparison.changes {
        if title != change.scenario {
            out += &format!(
                "\n{}\n",
                paint(&format!("{} {}", change.scenario, change.title), "1")
            );
            title = &change.scenario;
            head.clear();
        }
        let this = heading(comparison, change);
        if head != this {
            out += &format!("  {this}\n");
            head = this;
        }
        let code = match reads(change) {
            Some(true) => "34",
            Some(false) if change.regression => "1;31",
            Some(false) => "33",
            None => "",
        };
        let effect = format!("{} {}", effect(change), sign(change));
        out += &format!(
            "    {:<9} {:>9} → {:>9}   {}   {}\n",
            change.arm,
            words::quantity(change.old.median, &change.unit),
            words::quantity(change.new.median, &change.unit),
            paint(&format!("{effect:<28}"), code),
            detail(change)
        );
    }
    for missing in &comparison.missing {
        out += &format!("{} {missing}\n", paint("MISSING", "1;31"));
    }
    out += &format!("\n{}\n", summary(comparison));
    for note in &comparison.notes {
        out += &format!("note: {note}\n");
    }
    out
}

/// "median response, 50 %" and, with more than two files, which of them.
pub fn heading(comparison: &Comparison, change: &Change) -> String {
    let mut heading = change.label.clone();
    let point = change.point.title();
    if !point.is_empty() {
        heading += &format!(", {point}");
    }
    if comparison.files.len() > 2 {
        heading += &format!(" ({})", comparison.files[change.file].name);
    }
    heading
}

/// "1.05× [1.02, 1.08]" or "+3 keys".
pub fn effect(change: &Change) -> String {
    match (&change.estimate, change.effect) {
        (None, _) => "–".into(),
        (Some(estimate), Effect::Ratio) => words::ratio_estimate(estimate),
        (Some(estimate), Effect::Difference) => difference(estimate, &change.unit),
    }
}

fn difference(estimate: &Estimate, unit: &str) -> String {
    let plus = if estimate.value > 0.0 { "+" } else { "" };
    format!("{plus}{}", words::quantity_estimate(estimate, unit))
}

pub fn sign(change: &Change) -> &'static str {
    match change.claim {
        Claim::Higher => "↑",
        Claim::Lower => "↓",
        Claim::Equivalent => "=",
        Claim::NoClaim => "~",
    }
}

/// Whether a claim is for the better.
pub fn reads(change: &Change) -> Option<bool> {
    match (change.claim, change.better) {
        (Claim::NoClaim | Claim::Equivalent, _) => None,
        (Claim::Higher, Better::Higher) | (Claim::Lower, Better::Lower) => Some(true),
        (Claim::Higher, Better::Lower) | (Claim::Lower, Better::Higher) => Some(false),
    }
}

/// "p=0.002 n=6+6; reason".
pub fn detail(change: &Change) -> String {
    let mut detail = match change.p {
        Some(p) => format!("{} ", words::p_value(p).replace(' ', "")),
        None => String::new(),
    };
    detail += &format!("n={}+{}", change.old.blocks, change.new.blocks);
    if change.regression {
        detail += "  REGRESSION";
    }
    if let Some(reason) = &change.reason {
        detail += &format!("; {reason}");
    }
    detail
}

/// "3 of 72 changes are claimed: 1 better, 2 worse, of which 1 regression beyond 10 %."
pub fn summary(comparison: &Comparison) -> String {
    let count = |wanted: Option<bool>| {
        comparison
            .changes
            .iter()
            .filter(|change| reads(change) == wanted)
            .count()
    };
    let (better, worse) = (count(Some(true)), count(Some(false)));
    let regressions = comparison.changes.iter().filter(|c| c.regression).count();
    let void = if comparison
        .files
        .iter()
        .any(|file| file.state == State::Void)
    {
        "A file is void: nothing is claimed. "
    } else {
        ""
    };
    format!(
        "{void}{} of {} changes are claimed: {better} better, {worse} worse; {regressions} {} beyond {}. \
         ~ means that nothing can be claimed.",
        better + worse,
        comparison.changes.len(),
        if regressions == 1 {
            "regression"
        } else {
            "regressions"
        },
        words::percent(comparison.threshold)
    )
}
