//! What the verdicts rest on: parity, comparisons, voids, machine, method.

use maud::{Markup, html};

use super::super::rows::{Cell, Row, Table};
use crate::analysis::words;
use crate::results::{Claim, Foreign, KubernetesNode, Pressure, Results, Scenario, State};
use crate::stats::MIN_BLOCKS;

pub fn parity(results: &Results) -> Markup {
    html! {
        @if !results.parity.is_empty() {
            section {
                h2 { "What was held equal" }
                p class="lead" { "The arms differ in where the proxy stands. Everything else should not." }
                div class="scroll" {
                    table class="parity" {
                        thead { tr {
                            th {} @for arm in &results.arms { th { (arm.name) } } th { "parity" }
                        } }
                        tbody { @for row in &results.parity { tr {
                            th scope="row" { (row.what) }
                            @for value in &row.values { td { (value) } }
                            td { @match (row.equal, &row.note) {
                                (true, _) => span class="same" { "✓ equal" },
                                (false, Some(note)) => span class="quiet" { (note) },
                                (false, None) if row.is_rounded() => span class="quiet" { "equal but for rounding" },
                                (false, None) => span class="worse" { "✗ not equal" },
                            } }
                        } } }
                    }
                }
                dl class="arms" { @for arm in &results.arms { dt { (arm.name) } dd { (arm.description) } } }
            }
        }
    }
}

pub fn comparisons(results: &Results) -> Markup {
    html! {
        section {
            h2 { "Comparisons" }
            p class="lead" {
                "Median of the paired effects of the blocks with its 95 % interval. "
                span class="better" { "↑↓ blue" } " is a claim for the arm, " span class="worse" { "orange" }
                " against it, " span class="same" { "≈" } " practically the same, " span class="open" { "~" }
                " no claim. Hover a cell for blocks, p-values and what would settle it."
            }
            @for scenario in &results.scenarios { (comparison(results, scenario)) }
        }
    }
}

fn comparison(results: &Results, scenario: &Scenario) -> Markup {
    let table = Table::of(results, scenario);
    let mine = || {
        results
            .analysis
            .comparisons
            .iter()
            .filter(|c| c.scenario == scenario.id)
            .filter(|c| results.arm(&c.arm).is_some_and(|arm| arm.copy_of.is_none()))
    };
    let claimed = mine().filter(|c| c.claim != Claim::NoClaim).count();
    html! {
        @if !table.rows.is_empty() {
            details {
                summary {
                    b { (scenario.id) } " " (scenario.title)
                    span class="quiet" { " " (claimed) " of " (mine().count()) " comparisons claimed" }
                }
                p class="quiet" { (scenario.question) }
                @for note in &scenario.notes { p class="note" { (note) } }
                div class="scroll" {
                    table class="numbers" {
                        thead { tr {
                            th { "metric" } th { "at" }
                            @for name in &table.baselines { th class="n" { (name) } }
                            @for (arm, baseline) in &table.arms { th class="n" { (arm) br; "÷ " (baseline) } }
                            @for (arm, rival) in &table.rivals { th class="n" { (arm) br; "÷ " (rival) } }
                            th class="n" { "floor" }
                        } }
                        tbody { @for (i, row) in table.rows.iter().enumerate() {
                            (line(row, i > 0 && table.rows[i - 1].metric == row.metric))
                        } }
                    }
                }
                @if !scenario.parameters.is_empty() {
                    p class="quiet" { "Fixed for all arms: "
                        @for (i, (name, value)) in scenario.parameters.iter().enumerate() {
                            @if i > 0 { "; " } (name) " " (shown(value))
                        }
                    }
                }
            }
        }
    }
}

fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number
            .as_f64()
            .map_or_else(|| number.to_string(), words::number),
        other => other.to_string(),
    }
}

fn line(row: &Row, repeated: bool) -> Markup {
    html! {
        tr class=(if repeated { "" } else { "first" }) {
            th scope="row" { @if !repeated { (row.metric) } }
            td class="at" { (row.point) }
            @for value in &row.baselines { td class="n" { (value) } }
            @for cell in row.arms.iter().chain(&row.rivals) { (effect(cell)) }
            td class="n quiet" { (row.floor) }
        }
    }
}

fn effect(cell: &Cell) -> Markup {
    let class = cell.reading.map_or("", |reading| reading.word());
    html! {
        td class="n" title=(cell.detail) {
            @if !cell.value.is_empty() { (cell.value) br; }
            span class=(class) { (cell.effect) @if !cell.sign.is_empty() { " " b { (cell.sign) } } }
        }
    }
}

pub fn voids(results: &Results) -> Markup {
    let shares: Vec<_> = results
        .analysis
        .voids
        .iter()
        .filter(|s| s.void > 0)
        .collect();
    html! {
        section {
            h2 { "Void trials" }
            @if shares.is_empty() {
                p { "None: every trial passed the gates that were fixed beforehand." }
            } @else {
                p class="lead" { "Kept in the results, left out of every comparison together with their pair." }
                div class="scroll" {
                    table class="voids" {
                        thead { tr { th { "scenario" } th { "arm" } th class="n" { "void" } th class="n" { "trials" } th { "gates" } } }
                        tbody { @for share in shares { tr {
                            td { (share.scenario) } td { (share.arm) }
                            td class="n" { (share.void) } td class="n" { (share.trials) }
                            td { @for (i, (gate, count)) in share.gates.iter().enumerate() {
                                @if i > 0 { ", " } (gate) " " (count)
                            } }
                        } } }
                    }
                }
            }
        }
    }
}

pub fn foreign(results: &Results) -> Markup {
    html! {
        @if !results.foreign.is_empty() {
            section class="foreign" {
                h2 { "Foreign measurements" }
                p class="lead" {
                    "Imported from other load generators, for contrast. No arms: not paired with any block, under another load \
                     and by another clock. No comparison and no verdict reads them."
                }
                div class="scroll" { table class="numbers" {
                    thead { tr {
                        th { "name" } th { "tool" } th { "load and clock" } th class="n" { "requests/s" } th class="n" { "requests" }
                        th class="n" { "failed" } @for (name, _) in Foreign::SHOWN { th class="n" { (name) } } th { "file" }
                    } }
                    tbody { @for one in &results.foreign { tr {
                        th scope="row" { (one.name) } td { (one.tool) } td { (one.load) }
                        td class="n" { (words::number(one.rate)) } td class="n" { (one.requests) } td class="n" { (one.failed) }
                        @for (_, q) in Foreign::SHOWN {
                            td class="n" { (one.quantile(q).map_or("–".into(), |us| words::quantity(us, "µs"))) }
                        }
                        td title={ "SHA-256 " (one.sha256) } { (one.file) }
                    } } }
                } }
            }
        }
    }
}

pub fn machine(results: &Results) -> Markup {
    let m = &results.machine;
    let mut rows: Vec<(&str, String)> = vec![
        ("kernel", m.kernel.clone()),
        ("CPU", format!("{} × {}", m.cores, m.cpu)),
        ("memory", words::quantity(m.memory_mib as f64, "MiB")),
        ("cgroups", m.cgroup_layout.clone()),
        ("congestion control", m.congestion_control.clone()),
        ("generator's scheduler", m.scheduler.clone()),
    ];
    if let Some(governor) = &m.governor {
        rows.push(("CPU governor", governor.clone()));
    }
    if let Some(kubernetes) = &m.kubernetes {
        rows.push(("Kubernetes", kubernetes.version.clone()));
        rows.extend(kubernetes.nodes.iter().map(|node| ("node", in_words(node))));
    }
    rows.extend([
        ("TLS suite", m.tls_suite.clone()),
        ("compiler", m.rustc.clone()),
        ("pressure before", pressure(&m.pressure_before)),
        ("pressure after", pressure(&m.pressure_after)),
        ("command", results.command.join(" ")),
    ]);
    html! {
        section {
            h2 { "Machine" }
            div class="scroll" {
                table class="plain" { tbody {
                    @for (what, value) in rows { tr { th scope="row" { (what) } td { (value) } } }
                    @for arm in &results.arms {
                        @if let Some(core) = &arm.core_fingerprint {
                            tr { th scope="row" { (arm.name) } td {
                                "core=" code { (core) }
                                @if let Some(level) = &arm.opt_level { " opt=" (level) }
                                @if let Some(workers) = arm.workers { " · " (words::plural(workers, "worker thread")) }
                                @if let Some(limits) = &arm.limits {
                                    " · " (words::plural(limits.proxies, "proxy").replace("proxys", "proxies")) ", together "
                                    (words::number(limits.cpu_millicores_sum)) "m CPU, " (words::quantity(limits.memory_mib_sum, "MiB"))
                                }
                            } }
                        }
                    }
                    @for (name, digest) in &m.binaries { tr { th scope="row" { (name) } td { code class="digest" { (digest) } } } }
                } }
            }
        }
    }
}

/// A node in a line.
fn in_words(node: &KubernetesNode) -> String {
    let machine = match &node.same_machine_as {
        Some(other) => format!("the same machine as {other}"),
        None => format!(
            "{} × {}, {}, kernel {}",
            node.cores,
            node.cpu,
            words::quantity(node.memory_mib as f64, "MiB"),
            node.kernel
        ),
    };
    let clock = if node.clock_uncertainty_us > 0.0 {
        format!(
            ", clock known to ±{}",
            words::quantity(node.clock_uncertainty_us, "µs")
        )
    } else {
        String::new()
    };
    format!(
        "{}: {machine}; {}, {}{clock}",
        node.name, node.system, node.runtime
    )
}

fn pressure(pressure: &Pressure) -> String {
    let part = |name: &str, line: Option<crate::results::PressureLine>| {
        line.map(|line| format!("{name} {:.1} %", line.some))
    };
    let parts: Vec<String> = [
        part("cpu", pressure.cpu),
        part("memory", pressure.memory),
        part("io", pressure.io),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        "–".into()
    } else {
        parts.join(", ")
    }
}

pub fn method(results: &Results) -> Markup {
    html! {
        section class="method" {
            h2 { "Method" }
            p { "The load is open: one seeded Poisson schedule per block, the same for all arms. Response time runs from the \
                 moment a request was meant to be sent, so that a stalled system cannot hide its queue. Time-outs stay in the \
                 distribution. Percentiles are never averaged; one is printed only where at least 100 samples lie beyond it." }
            p { "The unit of inference is the block: all arms once, in random order. Each comparison is the median over blocks \
                 of the logarithm of the ratio (or of the difference). Its interval is the hull of a seeded percentile bootstrap \
                 over blocks and of the order statistics whose coverage is at least 95 % by counting. Fewer than "
                (MIN_BLOCKS) " blocks have no such interval, so they claim nothing. With exactly six, the interval is the whole \
                 range: all six must agree on the sign." }
            p { "The arm " code { "aa" } " is a second copy of the sidecar arm. The noise floor of a metric is the outer end of \
                 its interval against the original. A difference is claimed only if its interval excludes no difference and it \
                 is larger than that floor. “Practically the same” needs the whole interval within ±10 % (times, CPU) or ±5 % (memory)." }
            p { "Wilcoxon's signed-rank p-values are exact; beside them stands Holm's adjustment over a scenario's comparisons of \
                 the same two arms. With six blocks the smallest p is 0.031, so Holm's can hardly fall below 0.05 there: claims rest \
                 on interval and floor, and family-wise certainty needs more blocks." }
            p { "Counts (bytes on the wire, keys in memory, pods hit by a kill) are reported as seen. Pods of one node fall together, \
                 so the kill is the unit and not the pod. None seen in n trials is given with what that still allows." }
            @if results.machine.kubernetes.is_some() {
                p { "Nodes and pods were a Kubernetes cluster's, steered through its API server. Generators run in the pods; windows begin, \
                     and the kernel's counters are read by a privileged pod on each node, at instants fixed beforehand on the node's own \
                     clock. Where nodes are several machines, an instant on one is known on another to within half of the quickest round \
                     trip, shown above. Generators run in the scheduling class shown above. A killed proxy is \
                     restarted by the kubelet, and its pod is replaced before the next kill, because a kubelet backs off." }
            }
            p { "What one machine exaggerates, what is not measured and how to argue with any of it stands in " code { "bench/METHOD.md" }
                 " in the source of duet-bench." }
            p { "Both placements run the same core, checked by fingerprint. Nothing was deleted as an outlier: the raw histograms and every \
                 void trial are in " code { "results.json" } "." }
            @if results.status.state != State::Valid {
                p class="worse" { "This run claims nothing: see the banner." }
            }
        }
    }
}
