//! From a description to a cluster that is up.

use super::assembly::{Inner, Plans};
use super::error::{ClusterError, Result};
use super::live::NetnsCluster;
use super::peering::PeerMesh;
use super::spec::{Limits, Placement, PodSpec, ServiceSpec};
use crate::peer::Peer;
use std::path::PathBuf;
use std::time::Duration;

/// How long control plane and proxies may take to be ready. A debug build with
/// fifty sidecars on two busy cores takes a good part of it.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster to be.
#[must_use = "a cluster is only made by `start`"]
pub struct Builder {
    placement: Placement,
    nodes: u32,
    pods: Vec<PodSpec>,
    services: Vec<ServiceSpec>,
    peer: Option<&'static Peer>,
    plans: Plans,
}

impl Builder {
    pub(super) fn new(placement: Placement) -> Self {
        Self {
            placement,
            nodes: 2,
            pods: Vec::new(),
            services: Vec::new(),
            peer: None,
            plans: Plans {
                name: placement.to_string(),
                limits: Limits::default(),
                proxy_args: Vec::new(),
                proxy_env: Vec::new(),
                peer: None,
                certificates: None,
                ready_timeout: READY_TIMEOUT,
                keep_logs: None,
                on_step: Box::new(|_| {}),
            },
        }
    }

    /// What steps and errors call it; the placement by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.plans.name = name.into();
        self
    }

    /// How many nodes there are: 2 by default.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    pub fn limits(mut self, limits: Limits) -> Self {
        self.plans.limits = limits;
        self
    }

    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    pub fn pods(mut self, pods: impl IntoIterator<Item = PodSpec>) -> Self {
        self.pods.extend(pods);
        self
    }

    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }

    pub fn services(mut self, services: impl IntoIterator<Item = ServiceSpec>) -> Self {
        self.services.extend(services);
        self
    }

    /// One more argument for every `duet-sidecar run` and `duet-agent run`.
    pub fn proxy_arg(mut self, arg: impl Into<String>) -> Self {
        self.plans.proxy_args.push(arg.into());
        self
    }

    /// A variable in every proxy's environment.
    pub fn proxy_env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.plans.proxy_env.push((key.into(), value.into()));
        self
    }

    /// This proxy in every meshed pod, instead of Duet's.
    pub fn peer(mut self, peer: Option<&'static Peer>) -> Self {
        self.peer = peer;
        self
    }

    /// How long workloads' certificates live; duet-control's own choice by default.
    pub fn certificates(mut self, lifetime: Option<Duration>) -> Self {
        self.plans.certificates = lifetime;
        self
    }

    /// How long control plane and proxies may take to be ready.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.plans.ready_timeout = timeout;
        self
    }

    /// Where the logs of all processes go when the cluster is removed.
    pub fn keep_logs(mut self, dir: impl Into<PathBuf>) -> Self {
        self.plans.keep_logs = Some(dir.into());
        self
    }

    /// Is told what is being done, a few words at a time.
    pub fn on_step(mut self, on_step: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.plans.on_step = Box::new(on_step);
        self
    }

    /// Makes the cluster and waits until control plane and proxies are ready. If
    /// anything fails, all that was made is removed again.
    pub fn start(self) -> Result<NetnsCluster> {
        if !nix::unistd::geteuid().is_root() {
            return Err(ClusterError::Unsupported(
                "network namespaces and cgroups need root: run this as root".to_owned(),
            ));
        }
        if !(1..=200).contains(&self.nodes) {
            return Err(ClusterError::Unsupported(format!(
                "a cluster has 1 to 200 nodes, not {}",
                self.nodes
            )));
        }
        let mut plans = self.plans;
        plans.peer = self.peer.map(PeerMesh::new).transpose()?;
        let inner = Inner::claim(self.placement, self.nodes, plans)?;
        let cluster = NetnsCluster::new(inner);
        cluster.inner().build(self.pods, self.services)?;
        Ok(cluster)
    }
}
