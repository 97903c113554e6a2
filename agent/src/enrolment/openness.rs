//! Workloads whose connections go around the mesh, in plaintext, while nobody is there to
//! take them: by the operator's choice for a namespace, and never otherwise. The kernel
//! counts them, so none goes unseen, whoever was there to see.

use super::Members;
use crate::maps::Maps;
use duet_core::WorkloadName;
use duet_ebpf::NetnsCookie;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};
use std::collections::{HashMap, HashSet};

/// Stands for every namespace.
const ALL: &str = "*";

pub struct Openness {
    namespaces: Vec<String>,
    passed: IntCounterVec,
    /// What has been counted already.
    seen: Mutex<HashMap<NetnsCookie, u64>>,
    /// Those for whom the kernel could not be told.
    failing: Mutex<HashSet<NetnsCookie>>,
}

impl Openness {
    pub fn new(namespaces: Vec<String>, registry: &Registry) -> Result<Self, prometheus::Error> {
        let passed = IntCounterVec::new(
            Opts::new(
                "duet_agent_failed_open_total",
                "Connections that went around the mesh in plaintext, out of workloads or into \
                 them, because no agent was there and their namespace is one that fails open \
                 (--fail-open-namespaces).",
            ),
            &["namespace"],
        )?;
        registry.register(Box::new(passed.clone()))?;
        if !namespaces.is_empty() {
            let namespaces = namespaces.join(",");
            tracing::warn!(
                namespaces,
                "fail open: their connections go in plaintext while no agent is there"
            );
        }
        Ok(Self {
            namespaces,
            passed,
            seen: Mutex::default(),
            failing: Mutex::default(),
        })
    }

    /// Sets what becomes of a workload's connections without an agent.
    pub(super) fn set(&self, maps: &Maps, netns: NetnsCookie, of: &WorkloadName) {
        let mut named = self.namespaces.iter();
        let is_open = named.any(|one| one == ALL || one == of.namespace());
        let set = maps.set_open(netns, is_open);
        let mut failing = self.failing.lock();
        match set {
            Ok(()) => drop(failing.remove(&netns)),
            // It is tried again with every sweep.
            Err(error) => {
                if failing.insert(netns) {
                    tracing::error!(workload = %of, is_open, %error, "fail open: not as it should be");
                }
            }
        }
    }

    /// Counts what has passed since it was asked last. An earlier agent may have chosen
    /// otherwise for those that this one could not take up.
    pub(super) fn count(&self, maps: &Maps, members: &Members) {
        let mut seen = self.seen.lock();
        let mut before = std::mem::take(&mut *seen);
        for (netns, workload) in members.namespaces() {
            if let Some(passed) = maps.passed(netns) {
                let more = passed.saturating_sub(before.remove(&netns).unwrap_or_default());
                if more > 0 {
                    let counter = self.passed.with_label_values(&[workload.namespace()]);
                    counter.inc_by(more);
                    tracing::warn!(%workload, connections = more, "went around the mesh");
                }
                seen.insert(netns, passed);
            }
            self.set(maps, netns, workload);
        }
        let is_there = |netns: &NetnsCookie| members.namespaces().any(|(one, _)| one == *netns);
        self.failing.lock().retain(is_there);
    }
}
