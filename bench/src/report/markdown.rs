//! `summary.md`: what a pull request's comment or a chat can show.

use std::fmt::Write;

use super::costs;
use super::rows::{Cell, Table};
use crate::analysis::{Concern, words};
use crate::results::{Basis, Foreign, Results, State};

/// GitHub-flavoured Markdown: banner, verdicts, parity, comparisons folded.
pub fn summary(results: &Results) -> String {
    let mut text = String::from("# Duet bench\n\n");
    banner(&mut text, results);
    verdicts(&mut text, results);
    costs(&mut text, results);
    parity(&mut text, results);
    comparisons(&mut text, results);
    foreign(&mut text, results);
    voids(&mut text, results);
    machine(&mut text, results);
    if results.status.state == State::Void {
        // Headings survive where a table is cut out of its page.
        text = text.replace("\n## ", "\n## 🟥 VOID: ");
        text = text.replace("\n### ", "\n### 🟥 VOID: ");
    }
    text
}

fn banner(text: &mut String, results: &Results) {
    let alert = match results.status.state {
        State::Valid => "> [!NOTE]\n> **Valid run.**",
        State::Smoke => {
            "> [!WARNING]\n> **Smoke run:** it shows that everything works and claims nothing."
        }
        State::Void => "> [!CAUTION]\n> **🟥 VOID RUN:** nothing may be concluded from it.",
    };
    let _ = writeln!(text, "{alert}");
    for reason in &results.status.reasons {
        let _ = writeln!(text, "> - {}", escaped(reason));
    }
    let _ = writeln!(
        text,
        "\n{} · profile {} · seed {} · {} · {:.0} s · {}\n",
        words::moment(&results.started),
        super::html::profile_name(results.profile),
        results.seed,
        results.cluster,
        results.duration_s,
        escaped(&results.machine.cpu),
    );
}

fn verdicts(text: &mut String, results: &Results) {
    text.push_str("## Verdicts\n\n");
    for concern in Concern::ALL {
        let all = results.analysis.verdicts.iter();
        let mut verdicts = all
            .filter(|verdict| Concern::of(&verdict.scenario) == concern)
            .peekable();
        if verdicts.peek().is_none() {
            continue;
        }
        let _ = writeln!(
            text,
            "### {}\n\n| | question | answer |\n|---|---|---|",
            concern.question()
        );
        for verdict in verdicts {
            let mark = match verdict.basis {
                Basis::Claimed | Basis::Counted => "",
                Basis::NotResolved => " ~",
                Basis::NotMeasured => " –",
            };
            let _ = writeln!(
                text,
                "| {}{mark} | **{}** | {} |",
                verdict.scenario,
                escaped(&verdict.question),
                escaped(&verdict.answer)
            );
        }
        text.push('\n');
    }
    text.push_str(
        "Brackets are 95 % intervals over blocks. `~`: nothing can be claimed. A difference is claimed only if its \
         interval excludes no difference and it is larger than what an arm shows against itself.\n\n",
    );
}

fn costs(text: &mut String, results: &Results) {
    if let Some(table) = costs::summary(results) {
        let _ = writeln!(text, "## What it would cost\n\n{table}");
    }
}

fn parity(text: &mut String, results: &Results) {
    if results.parity.is_empty() {
        return;
    }
    text.push_str("## What was held equal\n\n|  |");
    for arm in &results.arms {
        let _ = write!(text, " {} |", arm.name);
    }
    text.push_str(" |\n|---|");
    text.push_str(&"---|".repeat(results.arms.len() + 1));
    text.push('\n');
    for row in &results.parity {
        let verdict = match (row.equal, &row.note) {
            (true, _) => "equal".to_string(),
            (false, Some(note)) => escaped(note),
            (false, None) if row.is_rounded() => "equal but for rounding".into(),
            (false, None) => "**not equal**".into(),
        };
        let values: Vec<String> = row.values.iter().map(|value| escaped(value)).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {verdict} |",
            escaped(&row.what),
            values.join(" | ")
        );
    }
    text.push('\n');
}

fn comparisons(text: &mut String, results: &Results) {
    text.push_str("## Comparisons\n\n");
    for scenario in &results.scenarios {
        let table = Table::of(results, scenario);
        if table.rows.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "<details><summary>{} {}</summary>\n",
            scenario.id,
            escaped(&scenario.title)
        );
        let mut heads = vec!["metric".to_string(), "at".into()];
        heads.extend(table.baselines.iter().cloned());
        heads.extend(
            table
                .arms
                .iter()
                .map(|(arm, base)| format!("{arm} (vs {base})")),
        );
        heads.extend(
            table
                .rivals
                .iter()
                .map(|(arm, rival)| format!("{arm} ÷ {rival}")),
        );
        heads.push("floor".into());
        let _ = writeln!(text, "| {} |", heads.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(heads.len()));
        for row in &table.rows {
            let mut cells = vec![escaped(&row.metric), escaped(&row.point)];
            cells.extend(row.baselines.iter().cloned());
            cells.extend(
                row.arms
                    .iter()
                    .map(|cell| format!("{} {}", cell.value, shown(cell)).trim().to_string()),
            );
            cells.extend(row.rivals.iter().map(shown));
            cells.push(row.floor.clone());
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text.push_str("\n</details>\n\n");
    }
}

fn shown(cell: &Cell) -> String {
    format!("{} {}", cell.effect, cell.sign).trim().to_string()
}

fn foreign(text: &mut String, results: &Results) {
    if results.foreign.is_empty() {
        return;
    }
    text.push_str(
        "## Foreign measurements\n\nImported from other load generators, for contrast; not paired with any block, and in no \
         comparison or verdict.\n\n| name | tool | load and clock | requests/s |",
    );
    for (name, _) in Foreign::SHOWN {
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|---|---|--:|--:|--:|--:|--:|\n");
    for one in &results.foreign {
        let quantiles: Vec<String> = Foreign::SHOWN
            .iter()
            .map(|(_, q)| {
                one.quantile(*q)
                    .map_or("–".into(), |us| words::quantity(us, "µs"))
            })
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            escaped(&one.name),
            escaped(&one.tool),
            escaped(&one.load),
            words::number(one.rate),
            quantiles.join(" | ")
        );
    }
    text.push('\n');
}

fn voids(text: &mut String, results: &Results) {
    let lines: Vec<String> = results
        .analysis
        .voids
        .iter()
        .filter(|share| share.void > 0)
        .map(|share| {
            let gates: Vec<String> = share
                .gates
                .iter()
                .map(|(gate, n)| format!("{gate} {n}"))
                .collect();
            format!(
                "- {} {}: {} of {} ({})",
                share.scenario,
                share.arm,
                share.void,
                words::plural(share.trials, "trial"),
                gates.join(", ")
            )
        })
        .collect();
    if !lines.is_empty() {
        let _ = writeln!(text, "## 🟥 Void trials\n\n{}\n", lines.join("\n"));
    }
}

fn machine(text: &mut String, results: &Results) {
    let m = &results.machine;
    let kubernetes = m.kubernetes.as_ref().map_or(String::new(), |kubernetes| {
        let nodes: Vec<&str> = kubernetes.nodes.iter().map(|n| n.name.as_str()).collect();
        format!(
            "\n\nKubernetes {} on {}",
            kubernetes.version,
            nodes.join(", ")
        )
    });
    let _ = writeln!(
        text,
        "## Machine\n\nkernel {} · {} × {} · {} MiB · cgroup {} · {} · generator {} · {} · {}{kubernetes}\n\n`{}`",
        m.kernel,
        m.cores,
        m.cpu,
        m.memory_mib,
        m.cgroup_layout,
        m.congestion_control,
        m.scheduler,
        m.tls_suite,
        m.rustc,
        results.command.join(" ")
    );
}

/// What would end a table cell or start a tag.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('\n', " ")
}
