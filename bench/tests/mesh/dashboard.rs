//! The dashboard in deploy/, held against what proxies really expose and against what
//! docs/METRICS.md says of it.

use super::Mesh;
use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Endpoint, Placement};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const DASHBOARD: &str = include_str!("../../../deploy/components/monitoring/dashboard.json");
const DOCUMENTED: &str = include_str!("../../../docs/METRICS.md");

/// Metrics without a series until what they count has happened once, which it has not in this mesh.
const UNTIL_IT_HAPPENS: [&str; 10] = [
    "duet_agent_bpf_run_seconds_total",
    "duet_agent_workloads",
    "duet_endpoints",
    "duet_failures_total",
    "duet_policy_decisions_total",
    "duet_requests_refused_total",
    "duet_retries_total",
    "duet_tcp_connections",
    "duet_timeouts_total",
    "process_open_fds",
];

/// Names of labels by metric.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// After some traffic between the two.
pub fn check(mesh: &Mesh, placement: Placement, pods: [&str; 2]) -> Result<()> {
    let mut exposed = Labels::new();
    for pod in pods {
        let (_, page) = mesh.proxy(pod).get(Endpoint::Metrics, "/metrics")?;
        exposition(&page, &mut exposed);
    }
    let documented = documented();

    let mut used = BTreeSet::new();
    for expression in expressions()? {
        for (metric, labels) in metrics(&expression) {
            let known = documented.get(&metric);
            let known = known.with_context(|| format!("docs/METRICS.md has no {metric}"))?;
            let shown = exposed.get(&metric).unwrap_or(known);
            for label in labels {
                ensure!(
                    known.contains(&label) && shown.contains(&label),
                    "{metric} has no label {label}: {expression}"
                );
            }
            used.insert(metric);
        }
    }
    ensure!(used.len() > 25, "{used:?}");
    // The control plane's are only held against what is documented.
    let elsewhere = |metric: &str| {
        metric.starts_with("duet_control_")
            || metric.starts_with("duet_agent_") && placement != Placement::Agent
    };
    let absent: Vec<&String> = used
        .iter()
        .filter(|metric| !exposed.contains_key(*metric))
        .filter(|metric| !elsewhere(metric) && !UNTIL_IT_HAPPENS.contains(&metric.as_str()))
        .collect();
    ensure!(absent.is_empty(), "nobody exposes {absent:?}");
    Ok(())
}

/// `name{label="value",…} 1`
fn exposition(page: &str, into: &mut Labels) {
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some(name) = line.split(['{', ' ']).next().filter(|name| is_ours(name)) else {
            continue;
        };
        let labels = into.entry(name.to_owned()).or_default();
        let inside = line.split_once('{').map_or("", |(_, rest)| rest);
        labels.extend(inside.split("=\"").filter_map(|part| {
            let label = part.rsplit([',', '"']).next()?;
            let fit = !label.is_empty() && label.chars().all(is_word);
            fit.then(|| label.to_owned())
        }));
    }
}

/// The tables' rows: | `metric` | kind | `label`, `label` | what |
fn documented() -> Labels {
    let mut labels = Labels::new();
    for line in DOCUMENTED.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, _, names, ..] = cells.as_slice() else {
            continue;
        };
        let ticked = |cell: &str| -> BTreeSet<String> {
            let parts = cell.split('`').skip(1).step_by(2);
            parts.map(str::to_owned).collect()
        };
        for metric in ticked(name) {
            let all = ticked(names);
            // What Prometheus makes of a histogram.
            if metric.ends_with("_seconds") {
                let bounded = all.iter().cloned().chain(["le".to_owned()]);
                labels.insert(format!("{metric}_bucket"), bounded.collect());
            }
            labels.insert(metric, all);
        }
    }
    // What every Prometheus client has is told in a sentence.
    for name in DOCUMENTED
        .split('`')
        .filter(|it| it.starts_with("process_"))
    {
        labels.entry(name.to_owned()).or_default();
    }
    labels
}

fn expressions() -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push(target["expr"].as_str().context("expr")?.to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().context("list")? {
        if let Some(query) = variable["definition"].as_str() {
            let inner = query
                .trim_start_matches("label_values(")
                .trim_end_matches(')');
            let (metric, label) = inner.rsplit_once(", ").context("label_values")?;
            found.push(format!("sum by ({label}) ({metric})"));
        }
    }
    Ok(found)
}

/// Metrics of an expression with the labels that it selects or groups them by.
fn metrics(expression: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found: Vec<(String, BTreeSet<String>)> = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(is_word) {
        let word_end = rest[at..]
            .find(|c| !is_word(c))
            .map_or(rest.len(), |end| at + end);
        let word = &rest[at..word_end];
        rest = &rest[word_end..];
        if !is_ours(word) {
            continue;
        }
        let selector = rest
            .strip_prefix('{')
            .and_then(|inside| inside.split_once('}'));
        let matchers = selector.map_or("", |(inside, _)| inside);
        let labels = matchers
            .split(',')
            .filter_map(|one| one.split(['=', '!']).next());
        let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
        found.push((word.to_owned(), labels.collect()));
    }
    // What a sum is by belongs to its first metric; a mode comes from the build's.
    for part in expression.split(" by (").skip(1) {
        let (labels, inner) = part.split_once(')').unwrap_or((part, ""));
        let of = |word: &str| inner.find(word).unwrap_or(usize::MAX);
        for label in labels.split(", ") {
            let nearest = found.iter_mut().min_by_key(|(metric, _)| of(metric));
            let joined = inner.contains(&format!("group_left ({label})"));
            if let (Some((_, all)), false) = (nearest, joined) {
                all.insert(label.to_owned());
            }
        }
    }
    found
}

fn is_ours(word: &str) -> bool {
    word.starts_with("duet_") || word.starts_with("process_")
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
