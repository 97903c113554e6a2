//! Every trial of every block, folded.

use maud::{Markup, html};

use crate::analysis::words;
use crate::results::{Block, Results, Scenario, Trial};

/// Rows per scenario that the page carries; the rest is in results.json.
const MOST_ROWS: usize = 600;

pub fn blocks(results: &Results) -> Markup {
    html! {
        section {
            h2 { "Raw values by block" }
            p class="lead" { "In the order in which the arms ran. Void trials are red; their reasons are in the last column." }
            @for scenario in &results.scenarios {
                details {
                    summary {
                        b { (scenario.id) } " " (scenario.title)
                        span class="quiet" { " " (words::plural(scenario.blocks.len() as u32, "block")) ", "
                            (words::plural(scenario.trials().count() as u32, "trial")) }
                    }
                    (table(scenario))
                }
            }
        }
    }
}

fn table(scenario: &Scenario) -> Markup {
    let trials: Vec<(&Block, &Trial)> = scenario
        .blocks
        .iter()
        .flat_map(|block| block.trials.iter().map(move |trial| (block, trial)))
        .collect();
    let loaded = trials.iter().any(|(_, trial)| trial.load.is_some());
    html! {
        div class="scroll tall" {
            table class="numbers raw" {
                thead { tr {
                    th class="n" { "block" } th { "arm" } th { "at" }
                    @for metric in &scenario.metrics { th class="n" { (metric.label) } }
                    @if loaded { th class="n" { "offered" } th class="n" { "answered" } th class="n" { "late" } }
                    th { "void, notes" }
                } }
                tbody { @for (block, trial) in trials.iter().take(MOST_ROWS) { tr class=(if trial.is_void() { "void" } else { "" }) {
                    td class="n" { (block.index) @if trial.repeat > 0 { "." (trial.repeat) } }
                    td { (trial.arm) } td class="at" { (trial.point.title()) }
                    @for (metric, value) in scenario.metrics.iter().zip(scenario.values(trial)) {
                        td class="n" { (value.map_or("–".into(), |value| words::quantity(value, &metric.unit))) }
                    }
                    @if loaded {
                        @if let Some(load) = &trial.load {
                            td class="n" { (load.offered) } td class="n" { (load.completed) } td class="n" { (load.late) }
                        } @else { td {} td {} td {} }
                    }
                    td class="why" { (why(trial)) }
                } } }
            }
        }
        @if trials.len() > MOST_ROWS {
            p class="quiet" { (trials.len() - MOST_ROWS) " more rows are in results.json." }
        }
    }
}

fn why(trial: &Trial) -> String {
    let voids = trial.voids.iter().map(|void| void.message.clone());
    let parts: Vec<String> = voids.chain(trial.notes.iter().cloned()).collect();
    parts.join("; ")
}
