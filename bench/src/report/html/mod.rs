//! `report.html`: one file, no network, readable on paper and on a phone. Verdicts first, then
//! figures, then what they rest on, then everything that was measured, folded.

mod evidence;
mod raw;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::costs;
use super::figures::{self, Figure, Series};
use crate::analysis::{Concern, words};
use crate::results::{Basis, Profile, Results, State, Verdict};

pub const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Behind the four questions.
const CONTENTS: [(&str, &str); 4] = [
    ("costs", "Your costs"),
    ("figures", "Figures"),
    ("evidence", "Evidence"),
    ("method", "Method"),
];

/// The whole page.
pub fn page(results: &Results) -> String {
    let figures = figures::all(results);
    let (first, rest) = match figures.split_first() {
        Some((first, rest)) => (Some(first), rest),
        None => (None, &figures[..]),
    };
    let void = results.status.state == State::Void;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { @if void { "VOID · " } "Duet bench: sidecar or node agent" }
                style { (PreEscaped(STYLE)) }
            }
            body class=[void.then_some("void")] {
                main {
                    (head(results))
                    (banner(results))
                    (verdicts(results))
                    @if let Some(figure) = first { section class="glance" id="glance" { (drawn(figure)) } }
                    (in_numbers(results))
                    (costs::section(results))
                    @if !rest.is_empty() {
                        section id="figures" {
                            h2 { "Figures" }
                            div class="figures" { @for figure in rest { (drawn(figure)) } }
                        }
                    }
                    div id="evidence" {
                        (evidence::parity(results))
                        (evidence::comparisons(results))
                        (evidence::foreign(results))
                        (evidence::voids(results))
                        (evidence::machine(results))
                        (raw::blocks(results))
                    }
                    div id="method" { (evidence::method(results)) }
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
            nav {
                @for concern in Concern::ALL { @if asked(results, concern) {
                    a href={ "#" (concern.anchor()) } { (concern.question()) }
                } }
                @for (anchor, word) in CONTENTS { a href={ "#" (anchor) } { (word) } }
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
    let of = |concern: Concern| {
        let all = results.analysis.verdicts.iter();
        all.filter(move |verdict| Concern::of(&verdict.scenario) == concern)
    };
    html! {
        section {
            h2 { "Verdicts" }
            p class="lead" {
                "Brackets are 95 % intervals over blocks. " b { "~" }
                " means that nothing can be claimed: the interval includes no difference, or the difference is no larger \
                 than what an arm shows against itself."
            }
            @for concern in Concern::ALL {
                @if asked(results, concern) {
                    section class="concern" id=(concern.anchor()) {
                        h3 { (concern.question()) }
                        @for verdict in of(concern) { (row(results, verdict)) }
                    }
                }
            }
        }
    }
}

fn asked(results: &Results, concern: Concern) -> bool {
    let mut verdicts = results.analysis.verdicts.iter();
    verdicts.any(|verdict| Concern::of(&verdict.scenario) == concern)
}

/// A dot plot for each of the four questions.
fn in_numbers(results: &Results) -> Markup {
    let plots: Vec<Figure> = Concern::ALL
        .into_iter()
        .filter_map(|concern| figures::dots(results, concern))
        .collect();
    html! {
        @if !plots.is_empty() {
            section id="numbers" {
                h2 { "The questions in numbers" }
                p class="lead" {
                    "Medians over blocks, each row from zero to its largest value. Further left is better, unless the row says \
                     otherwise. Lines are 95 % intervals; without one there were too few blocks."
                }
                @for plot in &plots { div class="glance" { (drawn(plot)) } }
            }
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
                h4 { (verdict.question) }
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

/// A headline from run to run, for lists of runs.
pub fn trend(title: &str, unit: &str, series: &[Series]) -> Markup {
    drawn(&figures::trend(title, unit, series))
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
            @if !figure.caption.is_empty() { p class="caption" { (figure.caption) } }
        }
    }
}
