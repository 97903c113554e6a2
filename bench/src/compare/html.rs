//! The comparison as a page in the report's style.

use maud::{DOCTYPE, PreEscaped, html};

use super::changes::Comparison;
use super::text::{detail, effect, heading, reads, sign, summary};
use crate::analysis::words;
use crate::report::STYLE;
use crate::results::State;

fn void(comparison: &Comparison) -> bool {
    let mut files = comparison.files.iter();
    files.any(|file| file.state == State::Void)
}

pub fn render(comparison: &Comparison) -> String {
    let mut scenarios: Vec<(&str, &str)> = Vec::new();
    for change in &comparison.changes {
        let scenario = (change.scenario.as_str(), change.title.as_str());
        if !scenarios.contains(&scenario) {
            scenarios.push(scenario);
        }
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Duet bench: comparison" }
                style { (PreEscaped(STYLE)) }
            }
            body class=[void(comparison).then_some("void")] { main {
                header {
                    p class="kicker" { "Duet bench" }
                    h1 { "Comparison" }
                    @for file in &comparison.files {
                        p class="meta" { b { (file.name) } " " (file.started) }
                    }
                }
                @for file in &comparison.files { @if file.state == State::Void {
                    section class="banner void" {
                        h2 { (file.name) " is void" }
                        ul { @for reason in &file.reasons { li { (reason) } } }
                    }
                } }
                @for warning in &comparison.warnings { section class="banner smoke" { p { (warning) } } }
                @if !comparison.missing.is_empty() {
                    section class="banner void" { h2 { "Missing" } ul { @for missing in &comparison.missing { li { (missing) } } } }
                }
                section { p { (summary(comparison)) } }
                @for (id, title) in scenarios {
                    section {
                        h2 { (id) " " (title) }
                        div class="scroll" { table class="numbers" {
                            thead { tr {
                                th { "metric" } th { "arm" } th class="n" { "old" } th class="n" { "new" }
                                th class="n" { "change" } th {}
                            } }
                            tbody { @for change in comparison.changes.iter().filter(|c| c.scenario == id) { tr {
                                td { (heading(comparison, change)) } td { (change.arm) }
                                td class="n" { (words::quantity(change.old.median, &change.unit)) }
                                td class="n" { (words::quantity(change.new.median, &change.unit)) }
                                @let class = match reads(change) { Some(true) => "n better", Some(false) => "n worse", None => "n open" };
                                td class=(class) { (effect(change)) " " b { (sign(change)) } }
                                td class="quiet" { (detail(change)) }
                            } } }
                        } }
                    }
                }
                @if !comparison.notes.is_empty() {
                    section { h2 { "Notes" } ul { @for note in &comparison.notes { li { (note) } } } }
                }
            } }
        }
    };
    page.into_string()
}
