//! The nodes of a run, each with a reader: a privileged pod that sees the node's
//! processes, control groups and packets, and answers for them.
//!
//! A kubelet's own summary of what containers use is up to ten seconds old and an
//! average, which is longer than most of what is measured here. So the kernel's
//! counters are read on the node, at instants that are fixed beforehand.

use super::api::Kube;
use super::clock::Offset;
use super::objects::{self, BPF, CGROUPS, LOAD};
use super::session::{Post, Session};
use crate::attend::protocol::{Ask, Hello};
use crate::cluster::error::{ClusterError, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a node's clock is trusted to run like ours: two crystals drift apart
/// by some ten microseconds a second.
const TRUSTED_FOR: Duration = Duration::from_secs(20);
/// How long a reader may take to answer what it need not wait for.
pub const PROMPT: Duration = Duration::from_secs(15);

/// A node that takes part.
#[derive(Debug)]
pub struct NodeSide {
    /// From 1.
    pub number: u32,
    /// As Kubernetes has it.
    pub name: String,
    /// What it says of itself.
    pub hello: Hello,
    /// Whether no node before it is on the same machine.
    pub first_of_machine: bool,
    /// Container runtime and operating system, as Kubernetes has them.
    pub runtime: String,
    pub system: String,
    reader: Session,
    clock: Cell<Option<(Offset, Instant)>>,
    /// Whether it is on this very machine.
    here: bool,
}

/// A node as Kubernetes has it.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub name: String,
    pub runtime: String,
    pub system: String,
}

/// Nodes on which ordinary pods run, by name.
pub fn candidates(kube: &Kube) -> Result<Vec<Candidate>> {
    let nodes: Api<Node> = Api::all(kube.client.clone());
    let listed = kube.ask("list the nodes", nodes.list(&ListParams::default()))?;
    let mut usable: Vec<Candidate> = listed
        .items
        .iter()
        .filter(|node| takes_pods(node))
        .filter_map(|node| {
            let info = node.status.as_ref()?.node_info.as_ref()?;
            Some(Candidate {
                name: node.metadata.name.clone()?,
                runtime: info.container_runtime_version.clone(),
                system: info.os_image.clone(),
            })
        })
        .collect();
    usable.sort_by(|a, b| a.name.cmp(&b.name));
    if usable.is_empty() {
        return Err(ClusterError::Unsupported(format!(
            "none of {} nodes is ready, schedulable and without a taint that keeps pods away: `kubectl get nodes`",
            listed.items.len()
        )));
    }
    Ok(usable)
}

fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let ready = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let kept_away = spec
        .taints
        .iter()
        .flatten()
        .any(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute");
    ready && !kept_away && !spec.unschedulable.unwrap_or(false)
}

/// What a node's reader is called.
pub fn reader_name(number: u32) -> String {
    format!("reader-{number}")
}

impl NodeSide {
    /// Meets the reader that stands on a node.
    pub fn meet(kube: &Kube, namespace: &str, number: u32, candidate: &Candidate) -> Result<Self> {
        let reader = Session::new(
            kube,
            Post {
                namespace: namespace.to_owned(),
                pod: reader_name(number),
                container: LOAD.to_owned(),
                arguments: vec![
                    "--cgroups".to_owned(),
                    CGROUPS.to_owned(),
                    "--bpffs".to_owned(),
                    BPF.to_owned(),
                ],
            },
        );
        let hello: Hello = reader.call(Ask::Hello, PROMPT)?;
        if hello.cgroups.is_none() {
            return Err(ClusterError::Unsupported(format!(
                "no control groups are to be seen below {CGROUPS} in the reader on {}: is /sys/fs/cgroup elsewhere on that node?",
                candidate.name
            )));
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self {
            number,
            name: candidate.name.clone(),
            here: hello.boot == boot.trim(),
            hello,
            first_of_machine: true,
            runtime: candidate.runtime.clone(),
            system: candidate.system.clone(),
            reader,
            clock: Cell::new(None),
        })
    }

    /// Its reader.
    pub fn reader(&self) -> &Session {
        &self.reader
    }

    /// Its clock against ours.
    pub fn clock(&self, kube: &Kube) -> Result<Offset> {
        if self.here {
            return Ok(Offset::default());
        }
        if let Some((offset, measured)) = self.clock.get()
            && measured.elapsed() < TRUSTED_FOR
        {
            return Ok(offset);
        }
        let offset = Offset::measure(kube, &self.reader)?;
        self.clock.set(Some((offset, Instant::now())));
        Ok(offset)
    }
}

/// The reader pod of a node.
pub fn reader(number: u32, node: &str, image: &str, run: &str) -> k8s_openapi::api::core::v1::Pod {
    objects::reader(
        &reader_name(number),
        node,
        image,
        &objects::labels(run, "nodes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_nodes_that_take_ordinary_pods_are_used() {
        let node = |spec: serde_json::Value, ready: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n"}, "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .expect("a node")
        };
        let taint = |effect: &str| json!({"taints": [{"key": "k", "effect": effect}]});
        assert!(takes_pods(&node(json!({}), "True")));
        assert!(takes_pods(&node(taint("PreferNoSchedule"), "True")));
        assert!(!takes_pods(&node(taint("NoSchedule"), "True")));
        assert!(!takes_pods(&node(json!({"unschedulable": true}), "True")));
        assert!(!takes_pods(&node(json!({}), "Unknown")));
    }
}
