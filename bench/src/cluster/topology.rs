//! Who is in a cluster: nodes, pods, services and their addresses.

use super::cgroup::Cgroup;
use super::error::{ClusterError, Result};
use super::netns::Netns;
use super::network::{Addresses, Pair};
use super::process::Part;
use super::proxy::Supervised;
use super::spec::{PodSpec, ServicePort, ServiceSpec};
use super::vip::Vip;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// Pods on one node are numbered from 2 to this.
const LAST_HOST: u16 = 250;
/// Services' addresses are numbered from 0 to this.
const SERVICES_MAX: usize = 240;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// From 1.
    pub number: u32,
    /// `node-<number>`.
    pub name: String,
    pub netns: Netns,
    /// Its addresses on the wire between the nodes.
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// All its pods, its agent and what else was started on it.
    pub cgroup: Cgroup,
    /// The same in the v2 tree, where programs attach.
    pub bpf_cgroup: Option<PathBuf>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub node: u32,
    pub meshed: bool,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// The whole pod: all its parts.
    pub cgroup: Cgroup,
}

/// A service and its virtual addresses.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub namespace: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub ports: Vec<ServicePort>,
    /// The pods behind it, by name; some may not exist yet.
    pub pods: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct PodEntry {
    pub spec: PodSpec,
    pub host: u16,
}

#[derive(Debug, Default)]
pub(crate) struct Topology {
    pub pods: Vec<PodEntry>,
    pub services: Vec<ServiceSpec>,
    pub proxies: BTreeMap<String, Arc<Supervised>>,
}

// === impl Pod ===

impl Pod {
    /// The cgroup of one of its parts.
    pub fn part(&self, part: Part) -> Cgroup {
        self.cgroup.child(part.as_str())
    }

    /// `namespace/name`.
    pub fn workload(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

// === impl PodSpec ===

impl PodSpec {
    pub(crate) fn workload(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

// === impl Topology ===

impl Topology {
    /// Gives a new pod its number on its node.
    pub(crate) fn admit(&mut self, spec: PodSpec, nodes: u32) -> Result<PodEntry> {
        let unfit = |why: String| Err(ClusterError::Unsupported(why));
        if !is_label(&spec.name) || !is_label(&spec.namespace) || !is_label(&spec.service_account) {
            return unfit(format!(
                "pod {:?}: names are made of a-z, 0-9 and '-', at most 63 of them",
                spec.name
            ));
        }
        if !(1..=nodes).contains(&spec.node) {
            return unfit(format!(
                "pod {} is to be on node {}: nodes are numbered 1 to {nodes}",
                spec.name, spec.node
            ));
        }
        if self.pods.iter().any(|pod| pod.spec.name == spec.name) {
            return unfit(format!("there is a pod {} already", spec.name));
        }
        let free = (2..=LAST_HOST).find(|host| {
            !self
                .pods
                .iter()
                .any(|pod| pod.spec.node == spec.node && pod.host == *host)
        });
        let Some(host) = free else {
            return unfit(format!("node {} is full", spec.node));
        };
        let entry = PodEntry { spec, host };
        self.pods.push(entry.clone());
        Ok(entry)
    }

    pub(crate) fn admit_service(&mut self, spec: ServiceSpec) -> Result<()> {
        if !is_label(&spec.name) || !is_label(&spec.namespace) {
            return Err(ClusterError::Unsupported(format!(
                "service {:?}: names are made of a-z, 0-9 and '-', at most 63 of them",
                spec.name
            )));
        }
        if self.services.iter().any(|known| known.name == spec.name) {
            return Err(ClusterError::Unsupported(format!(
                "there is a service {} already",
                spec.name
            )));
        }
        if self.services.len() == SERVICES_MAX {
            return Err(ClusterError::Unsupported(format!(
                "a cluster has at most {SERVICES_MAX} services"
            )));
        }
        self.services.push(spec);
        Ok(())
    }

    pub(crate) fn pod(&self, name: &str) -> Result<&PodEntry> {
        self.pods
            .iter()
            .find(|pod| pod.spec.name == name)
            .ok_or_else(|| {
                let known = self.pods.iter().map(|pod| pod.spec.name.as_str());
                ClusterError::unknown("pod", name, known)
            })
    }

    pub(crate) fn service(&self, name: &str) -> Result<(usize, &ServiceSpec)> {
        self.services
            .iter()
            .enumerate()
            .find(|(_, service)| service.name == name)
            .ok_or_else(|| {
                let known = self.services.iter().map(|service| service.name.as_str());
                ClusterError::unknown("service", name, known)
            })
    }

    pub(crate) fn proxy(&self, name: &str) -> Result<Arc<Supervised>> {
        self.proxies.get(name).cloned().ok_or_else(|| {
            ClusterError::unknown("proxy", name, self.proxies.keys().map(String::as_str))
        })
    }

    pub(crate) fn meshed_on(&self, node: u32) -> u32 {
        let meshed = |pod: &&PodEntry| pod.spec.meshed && pod.spec.node == node;
        self.pods.iter().filter(meshed).count() as u32
    }

    /// The services as the nodes' rules have them: with the pods there are.
    pub(crate) fn vips(&self, addresses: Addresses) -> Vec<Vip> {
        self.services
            .iter()
            .enumerate()
            .map(|(number, service)| Vip {
                address: addresses.service(number as u16),
                ports: service.ports.clone(),
                endpoints: self
                    .behind(service)
                    .map(|pod| addresses.pod(pod.spec.node, pod.host))
                    .collect::<Vec<Pair>>(),
            })
            .collect()
    }

    /// The pods behind a service that exist.
    pub(crate) fn behind<'a>(
        &'a self,
        service: &'a ServiceSpec,
    ) -> impl Iterator<Item = &'a PodEntry> {
        service.pods.iter().filter_map(|name| self.pod(name).ok())
    }
}

pub(super) fn node_name(number: u32) -> String {
    format!("node-{number}")
}

pub(super) fn agent_name(node: u32) -> String {
    format!("agent:{}", node_name(node))
}

pub(super) fn sidecar_name(pod: &str) -> String {
    format!("sidecar:{pod}")
}

/// What Kubernetes calls a DNS label. Names become parts of paths, namespaces and
/// rules, so nothing else gets in.
fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again() {
        let mut topology = Topology::default();
        assert_eq!(topology.admit(PodSpec::new("a"), 2).unwrap().host, 2);
        assert_eq!(topology.admit(PodSpec::new("b"), 2).unwrap().host, 3);
        assert_eq!(
            topology.admit(PodSpec::new("c").node(2), 2).unwrap().host,
            2
        );
        topology.pods.remove(0);
        assert_eq!(topology.admit(PodSpec::new("d"), 2).unwrap().host, 2);
        assert_eq!(topology.meshed_on(1), 2);
    }

    #[test]
    fn refuses_what_cannot_be() {
        let mut topology = Topology::default();
        topology.admit(PodSpec::new("a"), 1).unwrap();
        for wrong in [
            PodSpec::new("a"),
            PodSpec::new("b").node(2),
            PodSpec::new("b/../c"),
            PodSpec::new(""),
        ] {
            assert!(topology.admit(wrong, 1).is_err());
        }
        assert_eq!(
            topology.pod("z").unwrap_err().to_string(),
            "this cluster has no pod named \"z\"; it has a"
        );
    }

    #[test]
    fn a_service_may_wait_for_its_pods() {
        let mut topology = Topology::default();
        topology
            .admit_service(ServiceSpec::new("web").port(80, 8080).pods(["a", "later"]))
            .unwrap();
        topology.admit(PodSpec::new("a"), 1).unwrap();
        let vips = topology.vips(Addresses { index: 0 });
        assert_eq!(vips[0].endpoints.len(), 1);
    }
}
