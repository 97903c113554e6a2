//! What is kept of a pod, and the workload that it is.
//!
//! A pod's JSON has some 10 KB and the mesh needs a few hundred bytes of it, so
//! only those are kept, also of pods that are not in the mesh: their namespace may
//! be labelled later.

use super::complaint::Complaints;
use super::namespace::{Mode, Namespace, mtls};
use super::probes;
use super::traffic;
use crate::injector::names;
use duet_core::api::{Budgets, Limits, MeshProtocol, Mtls, Placement, Probe, Workload};
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub uid: Box<str>,
    service_account: Box<str>,
    /// Empty until it is scheduled.
    node: Box<str>,
    addresses: Box<[IpAddr]>,
    /// Seconds since the epoch.
    created: i64,
    terminating: bool,
    /// Its containers have ended and will not run again.
    finished: bool,
    host_network: bool,
    /// By the injector or by its containers, so for the whole of its life.
    stamp: Option<Placement>,
    mode: Option<Mode>,
    /// Another mesh takes HBONE for it, as Istio's ambient mode says of its pods.
    hbone: bool,
    /// An agent says that it has its connections.
    enrolled: bool,
    mtls: Option<Mtls>,
    opaque_ports: Box<[u32]>,
    probes: Box<[Probe]>,
    limits: Option<Limits>,
    budgets: Option<Budgets>,
    /// Of its endpoints; 0 if it says nothing.
    pub weight: u32,
    pub labels: BTreeMap<String, String>,
    pub complaints: Complaints,
}

// === impl Pod ===

impl Pod {
    pub fn read(pod: core::Pod) -> Self {
        let mut complaints = Complaints::default();
        let metadata = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        let inits = spec.init_containers.unwrap_or_default();

        let has_proxy = spec
            .containers
            .iter()
            .chain(&inits)
            .any(|container| container.name == names::PROXY_CONTAINER);
        let stamp = match annotations.get(names::PLACEMENT).map(String::as_str) {
            Some("sidecar") => Some(Placement::Sidecar),
            Some("agent") => Some(Placement::Agent),
            other => {
                if let Some(other) = other {
                    complaints.add(format!(
                        "annotation {}: {other:?} is not known and left out: the injector \
                         writes it, take it out of the pod's template",
                        names::PLACEMENT
                    ));
                }
                has_proxy.then_some(Placement::Sidecar)
            }
        };
        let long_lived = inits
            .iter()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let mut probes: Vec<Probe> = spec
            .containers
            .iter()
            .chain(long_lived)
            .filter(|container| container.name != names::PROXY_CONTAINER)
            .flat_map(probes::of)
            .collect();
        probes.sort_by(|a, b| (a.port, &a.path, a.grpc).cmp(&(b.port, &b.path, b.grpc)));
        probes.dedup();

        let conditions = status.conditions.unwrap_or_default();
        let addresses = status
            .pod_ips
            .into_iter()
            .flatten()
            .map(|ip| ip.ip)
            .chain(status.pod_ip);
        let mut unique: Vec<IpAddr> = Vec::new();
        for address in addresses.filter_map(|text| text.parse::<IpAddr>().ok()) {
            let address = address.to_canonical();
            if !unique.contains(&address) {
                unique.push(address);
            }
        }
        Self {
            uid: metadata.uid.unwrap_or_default().into(),
            service_account: spec
                .service_account_name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned())
                .into(),
            node: spec.node_name.unwrap_or_default().into(),
            addresses: unique.into(),
            created: metadata
                .creation_timestamp
                .map_or(0, |time| time.0.as_second()),
            terminating: metadata.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            host_network: spec.host_network == Some(true),
            stamp,
            mode: labels
                .get(names::MODE)
                .map(|value| Mode::read(value, &mut complaints)),
            hbone: annotations
                .get(names::ISTIO_REDIRECTION)
                .is_some_and(|value| value == "enabled")
                || labels
                    .get(names::ISTIO_TUNNEL)
                    .is_some_and(|value| value == "http"),
            enrolled: conditions
                .iter()
                .any(|condition| condition.type_ == names::ENROLLED && condition.status == "True"),
            mtls: annotations
                .get(names::MTLS)
                .map(|value| mtls(value, &mut complaints)),
            opaque_ports: annotations
                .get(names::OPAQUE_PORTS)
                .map(|value| ports(names::OPAQUE_PORTS, value, &mut complaints))
                .unwrap_or_default()
                .into(),
            probes: probes.into(),
            limits: traffic::limits(&annotations, &mut complaints),
            budgets: traffic::budgets(&annotations, &mut complaints),
            weight: traffic::weight(&annotations, &mut complaints),
            labels,
            complaints,
        }
    }

    /// What it has itself to say about who proxies it.
    pub fn places_itself(&self) -> (bool, Option<Placement>, Option<Mode>) {
        (self.host_network, self.stamp, self.mode)
    }

    /// Who proxies it.
    pub fn placement(&self, namespace: &Namespace) -> Placement {
        if self.host_network {
            return Placement::Unplaced;
        }
        match (self.stamp, self.mode.or(namespace.mode)) {
            (Some(stamp), _) => stamp,
            (None, Some(Mode::Agent)) => Placement::Agent,
            _ => Placement::Unplaced,
        }
    }

    /// Whether it is reached through a mesh, Duet's or one that has HBONE.
    pub fn is_meshed(&self, namespace: &Namespace) -> bool {
        self.placement(namespace) != Placement::Unplaced || (self.hbone && !self.host_network)
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    /// Addresses to be known by, while it has them.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whose an address is that two pods have: the one that lives, and among those
    /// the younger one, because addresses are given again once they are free.
    pub fn precedence(&self) -> (bool, i64) {
        (!self.terminating, self.created)
    }

    /// The workload that it is in the mesh, without addresses and policies; `None`
    /// if it is not in the mesh, not yet on a node, or finished.
    pub fn workload(&self, name: &str, namespace: &Namespace) -> Option<Workload> {
        let placement = self.placement(namespace);
        if !self.is_meshed(namespace) || self.finished || self.node.is_empty() {
            return None;
        }
        // A pod that was stamped never speaks plaintext, and one that ran before
        // its namespace was labelled does until it has been taken over.
        let protocol = if placement == Placement::Unplaced {
            MeshProtocol::Hbone
        } else if self.stamp.is_some() || self.enrolled {
            MeshProtocol::Duet
        } else {
            MeshProtocol::None
        };
        let mtls = self.mtls.or(namespace.mtls).unwrap_or(Mtls::Permissive);
        let (namespace, name) = name.split_once('/')?;
        Some(Workload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: self.service_account.to_string(),
            node: self.node.to_string(),
            protocol: protocol.into(),
            mtls: mtls.into(),
            opaque_ports: self.opaque_ports.to_vec(),
            uid: self.uid.to_string(),
            placement: placement.into(),
            stamped: self.stamp.is_some(),
            probes: self.probes.to_vec(),
            limits: self.limits,
            budgets: self.budgets,
            ..Workload::default()
        })
    }
}

fn ports(annotation: &str, value: &str, complaints: &mut Complaints) -> Vec<u32> {
    let mut ports = Vec::new();
    for text in value
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        match text.parse::<u16>() {
            Ok(port) if port != 0 => ports.push(port.into()),
            _ => complaints.add(format!(
                "annotation {annotation}: {text:?} is not a port and left out: write numbers \
                 from 1 to 65535, with commas between them"
            )),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}
