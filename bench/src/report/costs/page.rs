//! The cost model in a page: a form, a table, and what it takes for granted.

use maud::{Markup, PreEscaped, html};
use serde_json::{Value, json};

use super::{Cost, HOURS_A_MONTH, Model, Reader, Row};
use crate::analysis::words;
use crate::results::{Estimate, Results, keys};
use crate::stats::{Line, median};

const SCRIPT: &str = include_str!("costs.js");

/// Nothing where the run has not measured what it takes.
pub fn section(results: &Results) -> Markup {
    let Some(model) = Model::of(results) else {
        return html! {
            section id="costs" {
                h2 { "What it would cost you" }
                p class="lead" { "R1 (memory of idle proxies) and R2 (CPU of a request) are what this is made of, and this \
                    run has not measured both." }
            }
        };
    };
    let reader = Reader::default();
    html! {
        section id="costs" {
            h2 { "What it would cost you" }
            p class="lead" {
                "What the proxies take, by this run's coefficients, for a cluster like yours. Brackets are 95 % intervals or wider."
            }
            // Without the script these numbers could be changed and nothing would follow.
            form id="reader" hidden {
                @for (name, label, value, step) in fields(&reader) {
                    label { (label) input name=(name) type="number" min="0" step=(step) value=(value); }
                }
            }
            p class="lead scripted-off" { "For " (in_words(&reader)) "." }
            div class="scroll" {
                table class="numbers costs" id="bill" {
                    thead { tr {
                        th { "mesh" } th class="n" { "cores" } th class="n" { "memory" } th class="n" { "money a month" } th {}
                    } }
                    tbody { @for row in &model.rows { (line(&model, row, &reader)) } }
                }
            }
            p class="note" id="beyond" hidden[reader.pods_per_node <= model.most_pods] {
                "More pods on a node than the " (words::number(model.most_pods)) " that were measured: the lines are drawn out."
            }
            details {
                summary { "The coefficients, and what this takes for granted" }
                (coefficients(&model))
                ul { @for assumption in assumptions(results, &model) { li { (assumption) } } }
            }
            script type="application/json" id="coefficients" { (PreEscaped(data(&model))) }
            script { (PreEscaped(SCRIPT)) }
        }
    }
}

/// The same for the default reader, as lines of Markdown.
pub fn summary(results: &Results) -> Option<String> {
    let model = Model::of(results)?;
    let reader = Reader::default();
    let mut text = format!(
        "For {}; put in your own numbers in report.html.\n\n| mesh | cores | memory | money a month | |\n|---|--:|--:|--:|---|\n",
        in_words(&reader)
    );
    for row in &model.rows {
        let Some(cost) = row.cost(&reader) else {
            continue;
        };
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            row.name,
            shown(&cost.cores, ""),
            shown(&cost.gib, "GiB"),
            shown(&cost.money, ""),
            ruling(&model, row, &cost)
        );
    }
    Some(text)
}

fn fields(reader: &Reader) -> [(&'static str, &'static str, f64, &'static str); 5] {
    [
        ("nodes", "nodes", reader.nodes, "1"),
        ("pods", "pods per node", reader.pods_per_node, "1"),
        (
            "requests",
            "requests/s in the whole mesh",
            reader.requests,
            "any",
        ),
        (
            "core",
            "price of a core for an hour",
            reader.core_hour,
            "any",
        ),
        ("gib", "price of a GiB for an hour", reader.gib_hour, "any"),
    ]
}

fn in_words(reader: &Reader) -> String {
    format!(
        "{} nodes with {} pods each and {} requests/s in the whole mesh, at {} for a core and {} for a GiB an hour",
        reader.nodes, reader.pods_per_node, reader.requests, reader.core_hour, reader.gib_hour
    )
}

fn line(model: &Model, row: &Row, reader: &Reader) -> Markup {
    let cost = row.cost(reader);
    let cell = |pick: fn(&Cost) -> Estimate, unit| {
        cost.as_ref()
            .map_or("–".into(), |cost| shown(&pick(cost), unit))
    };
    html! {
        tr class=(if row.difference { "first" } else { "" }) {
            th scope="row" { (row.name) }
            td class="n" { (cell(|cost| cost.cores, "")) }
            td class="n" { (cell(|cost| cost.gib, "GiB")) }
            td class="n" { (cell(|cost| cost.money, "")) }
            td { (cost.as_ref().map_or("", |cost| ruling(model, row, cost))) }
        }
    }
}

/// One decimal form for all, so that the page's script can write the same.
fn shown(estimate: &Estimate, unit: &str) -> String {
    let unit = if unit.is_empty() {
        String::new()
    } else {
        format!(" {unit}")
    };
    let brackets = words::brackets(estimate.interval, words::number);
    format!("{}{unit}{brackets}", words::number(estimate.value))
}

/// Which of the two costs less money, if that can be said.
fn ruling(model: &Model, row: &Row, cost: &Cost) -> &'static str {
    match (row.difference, model.silence, cost.money.interval) {
        (false, _, _) => "",
        (true, Some(silence), _) => silence,
        (true, None, Some(bounds)) if bounds.high < 0.0 => "costs less",
        (true, None, Some(bounds)) if bounds.low > 0.0 => "costs more",
        (true, None, Some(_)) => "~ no claim",
        (true, None, None) => "~ too few blocks",
    }
}

fn coefficients(model: &Model) -> Markup {
    let middle = |lines: &[Line], pick: fn(&Line) -> f64, unit: &str| {
        let values: Vec<f64> = lines.iter().map(pick).collect();
        median(&values).map_or("–".into(), |value| words::quantity(value, unit))
    };
    html! {
        div class="scroll" { table class="numbers" {
            thead { tr {
                th { "medians over blocks" }
                th class="n" { "memory of a node" } th class="n" { "and per pod" }
                th class="n" { "idle CPU of a node" } th class="n" { "and per pod" } th class="n" { "CPU of a request" }
                th class="n" { "blocks" }
            } }
            tbody { @for row in &model.rows { tr {
                th scope="row" { (row.name) }
                td class="n" { (middle(&row.memory, |line| line.base, "MiB")) }
                td class="n" { (middle(&row.memory, |line| line.slope, "MiB")) }
                td class="n" { (middle(&row.idle, |line| line.base, "millicores")) }
                td class="n" { (middle(&row.idle, |line| line.slope, "millicores")) }
                td class="n" { (median(&row.request).map_or("–".into(), |us| words::quantity(us, "µs"))) }
                td class="n" { (row.memory.len()) " and " (row.request.len()) }
            } } }
        } }
    }
}

fn assumptions(results: &Results, model: &Model) -> Vec<String> {
    let place = match model.point.title() {
        title if title.is_empty() => String::new(),
        title => format!(" ({title})"),
    };
    let whose = if model.beyond_none {
        "what the whole machine took beyond the same request without a mesh: proxies, kernel and eBPF"
    } else {
        "what the proxies themselves took"
    };
    let mut all = vec![
        format!(
            "A request is counted once and passes the client's proxy and the server's. Its CPU is {whose}, measured over kept \
             connections{place}. Other bodies and protocols, and above all new connections (L2), cost otherwise."
        ),
        "Memory is that of idle proxies. Connections and load add to it; R3 says how much where it was measured.".into(),
        format!(
            "Lines were measured up to {} pods on a node and are straight beyond.",
            words::number(model.most_pods)
        ),
        format!(
            "A core is one of this machine ({}). Yours may be faster or slower, for all meshes alike.",
            results.machine.cpu
        ),
        "This is use, not reservation: what you request for each sidecar is rounded up once per pod, and for an agent once \
         per node. The control plane is left out: it is the same for all."
            .into(),
        format!(
            "A month has {HOURS_A_MONTH} hours. Where parts are summed, the ends of their intervals are summed too, so \
             the result's interval is wider than 95 %. Differences are paired by block."
        ),
    ];
    let idle_known = model.rows.iter().all(|row| !row.idle.is_empty());
    if !idle_known {
        all.push(format!(
            "The idle proxies' CPU ({}) was not measured for every mesh; where it was not, it counts as nothing.",
            keys::IDLE_CPU
        ));
    }
    all
}

/// For the script. No string in it comes from outside but the arms' names.
fn data(model: &Model) -> String {
    let lines = |lines: &[Line]| -> Vec<Value> {
        lines
            .iter()
            .map(|line| json!([line.base, line.slope]))
            .collect()
    };
    let rows: Vec<Value> = model
        .rows
        .iter()
        .map(|row| {
            json!({
                "name": row.name,
                "difference": row.difference,
                "memory": lines(&row.memory),
                "idle": lines(&row.idle),
                "request": row.request,
            })
        })
        .collect();
    json!({ "hours": HOURS_A_MONTH, "mostPods": model.most_pods, "silence": model.silence, "rows": rows })
        .to_string()
        .replace('<', "\\u003c")
}
