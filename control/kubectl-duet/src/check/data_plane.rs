//! Pods, agents, and what every proxy says of itself.

use crate::check::{Group, Verdict, some};
use crate::cluster::{AGENT, Error, SYSTEM};
use crate::mesh::{Placement, is_over};
use crate::output::from_now;
use crate::proxy::{ProxyPod, Told};
use crate::status::certificate::Certificate;
use crate::status::gather::{Control, Mesh};
use crate::status::{rollout_pods, unenrolled_pods};
use k8s_openapi::api::apps::v1::DaemonSet;
use std::collections::{BTreeMap, BTreeSet};

/// Proxies renew at 70 ± 5 % of a certificate's life. One with less than this share
/// left could not be renewed.
const CERTIFICATE_LATE: f64 = 0.2;

pub fn agents(group: &mut Group, mesh: &Mesh) {
    let what = "an agent is ready on every node";
    let wanted = mesh
        .pods
        .iter()
        .filter(|(pod, standing)| standing.placement == Placement::Agent && !is_over(pod));
    let nodes: BTreeSet<String> = wanted
        .filter_map(|(pod, _)| pod.spec.as_ref()?.node_name.clone())
        .collect();
    let Some((set, agents)) = &mesh.agents else {
        return match nodes.len() {
            0 => group.ok("agents", "there are none, and nobody asks for one"),
            _ => group.fail(
                what,
                format!("there is no DaemonSet {AGENT}, and pods ask for mode agent"),
                "install the agent's overlay, or label them sidecar",
            ),
        };
    };
    ready_agents(group, what, set);
    let without: Vec<String> = nodes
        .into_iter()
        .filter(|node| agents.on(node).is_none())
        .collect();
    group.none_of(
        Verdict::Failed,
        "nodes with pods in mode agent have one",
        "all",
        &without,
        format!("what keeps DaemonSet {AGENT} from these nodes, a taint or a nodeSelector?"),
    );
}

fn ready_agents(group: &mut Group, what: &str, set: &DaemonSet) {
    let status = set.status.clone().unwrap_or_default();
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let found = format!("{ready} of {wanted}");
    let remedy =
        format!("`kubectl -n {SYSTEM} get pods -o wide`, and the logs of those that are not");
    if ready < wanted {
        group.fail(what, found, remedy);
    } else if updated < wanted {
        group.warn(
            what,
            format!("{found}, {updated} of them new"),
            "wait for the rollout to end",
        );
    } else {
        group.ok(what, found);
    }
}

pub fn pods(group: &mut Group, mesh: &Mesh) {
    let line =
        |(namespace, pod, why): (String, String, String)| format!("{namespace}/{pod} ({why})");
    let unenrolled: Vec<_> = unenrolled_pods(mesh).map(line).collect();
    let meshed = mesh
        .pods
        .iter()
        .filter(|(pod, standing)| standing.is_meshed() && !is_over(pod));
    group.none_of(
        Verdict::Failed,
        "every pod in the mesh is enrolled",
        format!("all {}", meshed.count()),
        &unenrolled,
        "others do not reach them over the mesh: `kubectl duet status` has the reasons",
    );
    let stale: Vec<_> = rollout_pods(mesh).map(line).collect();
    group.none_of(
        Verdict::Warning,
        "every pod is as its labels ask",
        "",
        &stale,
        "`kubectl rollout restart` their owners",
    );
}

type Answer = (ProxyPod, Result<Told, Error>);

pub fn answers(group: &mut Group, told: &[Answer]) {
    let silent: Vec<_> = told
        .iter()
        .filter_map(|(_, told)| Some(told.as_ref().err()?.to_string()))
        .collect();
    group.none_of(
        Verdict::Failed,
        "every proxy answers",
        format!("all {}", told.len()),
        &silent,
        "look at their logs; may you create pods/portforward?",
    );
    let waiting: Vec<_> = told
        .iter()
        .filter_map(|(proxy, told)| {
            let missing = &told.as_ref().ok()?.missing;
            (!missing.is_empty()).then(|| format!("{}: {}", proxy.name(), missing.join(", ")))
        })
        .collect();
    group.none_of(
        Verdict::Failed,
        "every proxy is ready",
        "",
        &waiting,
        "each names what it waits for",
    );
}

pub fn builds(group: &mut Group, control: &Control, told: &[Answer]) {
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    let mut cores: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, told) in told {
        let Ok(told) = told else { continue };
        *versions.entry(&told.version).or_default() += 1;
        *cores.entry(&told.core).or_default() += 1;
    }
    let counted = |all: &BTreeMap<&str, usize>| {
        let all: Vec<_> = all
            .iter()
            .map(|(one, count)| format!("{one} ({count})"))
            .collect();
        some(&all)
    };
    let remedy = "roll out the workloads and agents that are behind";
    let what = "proxies are one version, duet-control's";
    let is_controls = |version: &&str| {
        control
            .builds
            .values()
            .any(|build| build.version == **version)
    };
    if versions.len() > 1 || !versions.keys().all(is_controls) {
        group.warn(what, counted(&versions), remedy);
    } else {
        group.ok(what, counted(&versions));
    }
    let what = "proxies are one core, whatever their placement";
    if cores.len() > 1 {
        group.warn(what, counted(&cores), remedy);
    } else {
        group.ok(what, counted(&cores));
    }
}

pub fn certificates(group: &mut Group, told: &[Answer]) {
    let (mut bad, mut late, mut all) = (Vec::new(), Vec::new(), 0);
    for (proxy, told) in told {
        let Ok(told) = told else { continue };
        for held in &told.identities {
            all += 1;
            let who = format!("{} of {}", held.identity, proxy.name());
            let (Some(begins), Some(ends)) = (held.not_before, held.not_after) else {
                bad.push(format!("{who} has none yet"));
                continue;
            };
            let left = ends - told.time;
            if left <= 0 {
                bad.push(format!("{who} ended {}", from_now(ends, told.time)));
            } else if (left as f64) < CERTIFICATE_LATE * (ends - begins) as f64 {
                late.push(format!("{who} ends {}", from_now(ends, told.time)));
            }
        }
    }
    let remedy = "their proxies' logs say why duet-control does not certify them";
    let good = format!("all {all}");
    group.none_of(
        Verdict::Failed,
        "every identity has a certificate",
        good,
        &bad,
        remedy,
    );
    group.none_of(
        Verdict::Warning,
        "certificates are renewed in time",
        "",
        &late,
        remedy,
    );
}

pub fn roots(group: &mut Group, told: &[Answer], bundle: &[Certificate]) {
    let expected: BTreeSet<&str> = bundle
        .iter()
        .map(|root| root.fingerprint.as_str())
        .collect();
    let other: Vec<_> = told
        .iter()
        .filter_map(|(proxy, told)| {
            let held = &told.as_ref().ok()?.identities;
            let differs = held
                .iter()
                .filter_map(|held| held.roots.as_ref())
                .any(|roots| {
                    let roots: BTreeSet<&str> = roots.iter().map(String::as_str).collect();
                    roots != expected
                });
            differs.then(|| proxy.name())
        })
        .collect();
    group.none_of(
        Verdict::Warning,
        "proxies trust the mesh's roots and no others",
        format!("{} of them", expected.len()),
        &other,
        "a change of roots reaches them within seconds; if it does not, they do not hear duet-control",
    );
}

#[cfg(test)]
mod tests;
