//! `status`: the control plane, and how each namespace is meshed.

pub mod certificate;
pub mod gather;

use crate::cli::{Global, Output};
use crate::cluster::{Cluster, Error};
use crate::mesh::{MODE, Placement, Standing, is_over};
use crate::output::{from_now, print, print_json, since, table};
use certificate::Certificate;
use gather::{Build, Control, Mesh};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;

/// Pods that a table names; JSON has them all.
const NAMED: usize = 20;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    control: ControlStatus,
    namespaces: Vec<NamespaceStatus>,
    /// Pods in the mesh whose proxy takes no traffic.
    unenrolled: Vec<Named>,
    /// Pods that are not as their labels ask.
    needs_rollout: Vec<Named>,
    /// Proxies that do not say anything.
    silent: Vec<Named>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ControlStatus {
    replicas: i32,
    ready: i32,
    leader: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader_renewed: Option<String>,
    builds: BTreeMap<String, Build>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<Certificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority_error: Option<String>,
    clock_ahead_seconds: f64,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceStatus {
    name: String,
    /// The label, as it is.
    mode: Option<String>,
    sidecar: usize,
    agent: usize,
    unmeshed: usize,
    unenrolled: usize,
    needs_rollout: usize,
    versions: BTreeSet<String>,
    cores: BTreeSet<String>,
    /// When the first of its certificates ends, seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_expiry: Option<i64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Named {
    namespace: String,
    pod: String,
    why: String,
}

pub async fn run(cluster: &Cluster, global: &Global) -> Result<ExitCode, Error> {
    let control = Control::gather(cluster).await?;
    let mesh = Mesh::gather(cluster, global.namespace.as_deref()).await?;
    let everyone = global.all_namespaces || global.namespace.is_some();
    let now = Timestamp::now();
    let status = Status {
        control: ControlStatus::of(&control),
        namespaces: namespaces(&mesh, everyone),
        unenrolled: unenrolled(&mesh),
        needs_rollout: needs_rollout(&mesh),
        silent: silent(&mesh),
    };
    match global.output {
        Output::Json => print_json(&status)?,
        Output::Table | Output::Wide => print(&status.render(&control, now))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Those that have to do with the mesh, or all.
fn namespaces(mesh: &Mesh, everyone: bool) -> Vec<NamespaceStatus> {
    let mut all: BTreeMap<&str, NamespaceStatus> = mesh
        .namespaces
        .iter()
        .map(|(name, namespace)| {
            let status = NamespaceStatus {
                name: name.clone(),
                mode: namespace.labels().get(MODE).cloned(),
                ..NamespaceStatus::default()
            };
            (name.as_str(), status)
        })
        .collect();
    for (pod, standing) in &mesh.pods {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(status) = all.get_mut(namespace).filter(|_| !is_over(pod)) else {
            continue;
        };
        match standing.placement {
            Placement::Sidecar => status.sidecar += 1,
            Placement::Agent => status.agent += 1,
            Placement::None => status.unmeshed += 1,
        }
        status.unenrolled += usize::from(standing.missing.is_some());
        status.needs_rollout += usize::from(standing.needs_rollout());
    }
    for (_, told) in &mesh.told {
        let Ok(told) = told else { continue };
        let expiry: HashMap<&str, i64> = told
            .identities
            .iter()
            .filter_map(|held| Some((held.identity.as_str(), held.not_after?)))
            .collect();
        for served in &told.workloads {
            let namespace = served.name.split('/').next().unwrap_or_default();
            let Some(status) = all.get_mut(namespace) else {
                continue;
            };
            status.versions.insert(told.version.clone());
            status.cores.insert(told.core.clone());
            let ends = served.identity.as_deref().and_then(|id| expiry.get(id));
            status.first_expiry = status.first_expiry.into_iter().chain(ends.copied()).min();
        }
    }
    let concerned =
        |status: &NamespaceStatus| status.mode.is_some() || status.sidecar + status.agent > 0;
    all.into_values()
        .filter(|status| everyone || concerned(status))
        .collect()
}

pub fn unenrolled_pods(mesh: &Mesh) -> impl Iterator<Item = (String, String, String)> {
    let why = |standing: &Standing| match (&standing.wanted, &standing.missing) {
        (_, Some(missing)) => Some(format!("{}: {missing}", standing.placement)),
        (Err(unknown), None) => Some(unknown.clone()),
        _ => None,
    };
    mesh.pods.iter().filter_map(move |(pod, standing)| {
        let why = why(standing).filter(|_| !is_over(pod))?;
        Some((pod.namespace().unwrap_or_default(), pod.name_any(), why))
    })
}

fn unenrolled(mesh: &Mesh) -> Vec<Named> {
    unenrolled_pods(mesh).map(Named::from).collect()
}

fn needs_rollout(mesh: &Mesh) -> Vec<Named> {
    rollout_pods(mesh).map(Named::from).collect()
}

pub fn rollout_pods(mesh: &Mesh) -> impl Iterator<Item = (String, String, String)> {
    mesh.pods.iter().filter_map(|(pod, standing)| {
        let wanted = standing.wanted.as_ref().ok()?;
        (standing.needs_rollout() && !is_over(pod)).then(|| {
            let why = format!("it is {}, its labels ask for {wanted}", standing.placement);
            (pod.namespace().unwrap_or_default(), pod.name_any(), why)
        })
    })
}

fn silent(mesh: &Mesh) -> Vec<Named> {
    let failed = mesh.told.iter().filter_map(|(proxy, told)| {
        let error = told.as_ref().err()?;
        Some((
            proxy.namespace.clone(),
            proxy.pod.clone(),
            error.to_string(),
        ))
    });
    failed.map(Named::from).collect()
}

// === impl Named ===

impl From<(String, String, String)> for Named {
    fn from((namespace, pod, why): (String, String, String)) -> Self {
        Self {
            namespace,
            pod,
            why,
        }
    }
}

// === impl ControlStatus ===

impl ControlStatus {
    fn of(control: &Control) -> Self {
        let (replicas, ready) = control.replicas();
        let leader = control.leader();
        Self {
            replicas,
            ready,
            leader: leader.map(|(holder, _)| holder.to_owned()),
            leader_renewed: leader.and_then(|(_, renewed)| Some(renewed?.to_string())),
            builds: control.builds.clone(),
            authority: control.authority.as_ref().ok().map(|(one, _)| one.clone()),
            authority_error: control.authority.as_ref().err().cloned(),
            clock_ahead_seconds: control.clock_ahead,
        }
    }

    fn render(&self, control: &Control, now: Timestamp) -> String {
        let mut text = "CONTROL PLANE\n".to_owned();
        let mut line = |what: &str, is: String| text += &format!("  {what:<10}{is}\n");
        line(
            "replicas",
            format!("{} of {} ready", self.ready, self.replicas),
        );
        line(
            "leader",
            match control.leader() {
                Some((holder, Some(renewed))) => {
                    format!("{holder}, heard of {} ago", since(renewed, control.now))
                }
                Some((holder, None)) => holder.to_owned(),
                None => "none".to_owned(),
            },
        );
        let builds: BTreeSet<_> = self.builds.values().collect();
        let mut version = builds
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        if builds.is_empty() {
            "none answers".clone_into(&mut version);
        } else if builds.len() > 1 {
            version += "  MIXED";
        }
        line("version", version);
        line(
            "CA",
            match &control.authority {
                Ok((certificate, from)) => format!(
                    "{}, ends {} ({from})",
                    certificate.subject,
                    from_now(certificate.not_after, now.as_second())
                ),
                Err(why) => why.clone(),
            },
        );
        let ahead = self.clock_ahead_seconds;
        line(
            "clock",
            match ahead {
                0.0 => "the API server's agrees with this machine's".to_owned(),
                _ if ahead > 0.0 => {
                    format!("the API server's is {ahead:.1}s ahead of this machine's")
                }
                _ => format!("the API server's is {:.1}s behind this machine's", -ahead),
            },
        );
        text
    }
}

// === impl Status ===

impl Status {
    fn render(&self, control: &Control, now: Timestamp) -> String {
        let mut text = self.control.render(control, now);
        text.push('\n');
        if self.namespaces.is_empty() {
            text += "No namespace is in the mesh: label one with duet.dev/mode=sidecar or agent.\n";
        } else {
            text += &render_namespaces(&self.namespaces, now);
        }
        for (title, named) in [
            ("NOT ENROLLED", &self.unenrolled),
            ("NEEDS A ROLLOUT", &self.needs_rollout),
            ("SILENT PROXIES", &self.silent),
        ] {
            if named.is_empty() {
                continue;
            }
            text += &format!("\n{title}\n");
            let rows = named
                .iter()
                .take(NAMED)
                .map(|one| [one.namespace.clone(), one.pod.clone(), one.why.clone()]);
            text += &table(["NAMESPACE", "POD", "WHY"], rows);
            if named.len() > NAMED {
                text += &format!("and {} more: -o json has them all\n", named.len() - NAMED);
            }
        }
        text
    }
}

fn render_namespaces(namespaces: &[NamespaceStatus], now: Timestamp) -> String {
    let header = [
        "NAMESPACE",
        "MODE",
        "SIDECAR",
        "AGENT",
        "UNMESHED",
        "NOT ENROLLED",
        "NEEDS ROLLOUT",
        "VERSION",
        "CORE",
        "CERTIFICATES",
    ];
    let rows = namespaces.iter().map(|status| {
        let expiry = status
            .first_expiry
            .map(|ends| match ends > now.as_second() {
                true => format!("end {}", from_now(ends, now.as_second())),
                false => format!("ended {}", from_now(ends, now.as_second())),
            });
        [
            status.name.clone(),
            status.mode.clone().unwrap_or_else(|| "-".to_owned()),
            status.sidecar.to_string(),
            status.agent.to_string(),
            status.unmeshed.to_string(),
            status.unenrolled.to_string(),
            status.needs_rollout.to_string(),
            joined(&status.versions),
            joined(&status.cores),
            expiry.unwrap_or_else(|| "-".to_owned()),
        ]
    });
    table(header, rows)
}

/// More than one is worth a word.
fn joined(values: &BTreeSet<String>) -> String {
    match values.len() {
        0 => "-".to_owned(),
        1 => values.iter().next().cloned().unwrap_or_default(),
        _ => {
            let all: Vec<_> = values.iter().map(String::as_str).collect();
            format!("MIXED: {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
