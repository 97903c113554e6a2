//! `report.html`: one file, no network, readable on paper and on a phone. Verdicts first, then
//! figures, then what they rest on, then everything that was measured, folded.

mod evidence;
mod raw;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::figures::{self, Figure};
use crate::analysis::words;
use crate::results::{Basis, Profile, Results, State, Verdict};

pub const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The whole page.
pub fn page(results: &Results) -> String {
    let figures = figures::all(results);
    let (first, rest) = match figures.split_first() {
        Some((first, rest)) => (Some(first), rest),
        None => (None, &figures[..]),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { "Duet bench: sidecar or node agent" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(results))
                    (banner(results))
                    (verdicts(results))
                    @if let Some(figure) = first { section class="glance" { (drawn(figure)) } }
                    @if !rest.is_empty() {
                        section {
                            h2 { "Figures" }
                            div class="figures" { @for figure in rest { (drawn(figure)) } }
                        }
                    }
                    (evidence::parity(results))
                    (evidence::comparisons(results))
                    (evidence::voids(results))
                    (evidence::machine(results))
                    (raw::blocks(results))
                    (evidence::method(results))
                }
                div id="tip" role="status" hidden {}
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

pub(super) fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Smoke => "smoke",
        Profile::Quick => "quick",
        Profile::Full => "full",
    }
}

fn head(results: &Results) -> Markup {
    let blocks = results
        .scenarios
        .iter()
        .map(|s| s.blocks.len())
        .max()
        .unwrap_or(0);
    html! {
        header {
            button id="theme" type="button" title="Light or dark" { "◐" }
            p class="kicker" { "Duet bench" }
            h1 { "Sidecar or node agent?" }
            p class="meta" {
                (words::moment(&results.started)) " · profile " b { (profile_name(results.profile)) }
                " · " (words::plural(blocks as u32, "block")) " · seed " (results.seed)
                " · " (results.cluster) " · " (duration(results.duration_s))
                " · duet-bench " (results.version)
            }
        }
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

fn banner(results: &Results) -> Markup {
    let (class, title, text) = match results.status.state {
        State::Valid => (
            "valid",
            "Valid run",
            "The gates fixed beforehand were passed; what is claimed below is larger than the noise of this machine.",
        ),
        State::Smoke => (
            "smoke",
            "Smoke run: nothing is claimed",
            "Too short for conclusions by design: it shows that everything works. Figures are what was seen once.",
        ),
        State::Void => (
            "void",
            "Void run: nothing may be concluded from it",
            "A gate fixed beforehand, or the parity between arms, was broken. The figures are shown to find out why.",
        ),
    };
    html! {
        section class={ "banner " (class) } {
            h2 { (title) }
            p { (text) }
            @if !results.status.reasons.is_empty() {
                ul { @for reason in &results.status.reasons { li { (reason) } } }
            }
            @for note in &results.notes { p class="note" { (note) } }
        }
    }
}

fn verdicts(results: &Results) -> Markup {
    html! {
        section {
            h2 { "Verdicts" }
            p class="lead" {
                "Brackets are 95 % intervals over blocks. " b { "~" }
                " means that nothing can be claimed: the interval includes no difference, or the difference is no larger \
                 than what an arm shows against itself."
            }
            div class="verdicts" { @for verdict in &results.analysis.verdicts { (row(results, verdict)) } }
        }
    }
}

fn row(results: &Results, verdict: &Verdict) -> Markup {
    let (class, word) = match verdict.basis {
        Basis::Claimed => ("claimed", "claimed"),
        Basis::Counted => ("counted", "counted"),
        Basis::NotResolved => ("open", "~ no claim"),
        Basis::NotMeasured => ("missing", "not measured"),
    };
    html! {
        article class="verdict" {
            div class="question" {
                span class="id" { (verdict.scenario) }
                h3 { (verdict.question) }
                span class={ "basis " (class) } { (word) }
            }
            p class="answer" { (words::unbroken(&verdict.answer)) }
            @if !verdict.figures.is_empty() {
                ul class="chips" {
                    @for (arm, figure) in &verdict.figures {
                        @let known = results.arm(arm).is_some();
                        li class=(if known { figures::style(arm).0 } else { String::new() }) {
                            span class="arm" { (arm) } " " span class="figure" { (figure) }
                        }
                    }
                }
            }
        }
    }
}

fn drawn(figure: &Figure) -> Markup {
    html! {
        figure {
            figcaption class="title" { (figure.title) }
            @if !figure.arms.is_empty() {
                ul class="legend" {
                    @for arm in &figure.arms {
                        @let (class, shape) = figures::style(arm);
                        li { (shape.swatch(&class)) (arm) }
                    }
                }
            }
            (figure.wide)
            (figure.narrow)
            p class="caption" { (figure.caption) }
        }
    }
}
