//! What is kept of a service and of its endpoint slices.

use super::complaint::Complaints;
use super::traffic::Traffic;
use duet_core::api::TrafficDistribution;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Empty for a headless service: its clients connect to the pods.
    pub addresses: Vec<String>,
    /// TCP only.
    pub ports: Vec<Port>,
    pub distribution: TrafficDistribution,
    pub traffic: Traffic,
    pub complaints: Complaints,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub port: u32,
    pub name: String,
    pub app_protocol: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// "namespace/name" of the service it belongs to.
    pub service: Arc<str>,
    /// Names, as the service's ports have them, and numbers. TCP only.
    pub ports: Box<[(Box<str>, u32)]>,
    pub backends: Box<[Backend]>,
    pub complaints: Complaints,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: Box<str>,
    pub condition: Condition,
    /// Empty: not known.
    pub node: Box<str>,
    /// Whose clients it is for: those it is hinted for, or else its own.
    pub zones: Box<[Box<str>]>,
    pub is_hinted: bool,
    /// Whose the address is; nobody's that is known, in a slice made by hand.
    pub pod: Option<PodRef>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// "namespace/name".
    pub name: Arc<str>,
    /// Empty in a slice made by hand.
    pub uid: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Ready,
    /// On its way out, and still able to answer.
    Draining,
    Down,
}

// === impl Service ===

impl Service {
    /// `None` for an ExternalName: that is a name and no destination.
    pub fn read(service: core::Service) -> Option<Self> {
        let spec = service.spec?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let mut complaints = Complaints::default();
        if spec.session_affinity.as_deref() == Some("ClientIP") {
            complaints.add(
                "sessionAffinity: ClientIP is not supported, requests from meshed clients are \
                 balanced over all endpoints: take it out, or keep the clients out of the mesh"
                    .to_owned(),
            );
        }
        if spec.internal_traffic_policy.as_deref() == Some("Local") {
            complaints.add(
                "internalTrafficPolicy: Local is not supported, meshed clients also reach \
                 endpoints on other nodes: take it out, or keep the clients out of the mesh"
                    .to_owned(),
            );
        }
        let distribution = match spec.traffic_distribution.as_deref() {
            None => TrafficDistribution::Anywhere,
            Some("PreferSameZone" | "PreferClose") => TrafficDistribution::SameZone,
            Some("PreferSameNode") => TrafficDistribution::SameNode,
            Some(other) => {
                complaints.add(format!(
                    "trafficDistribution: {other:?} is not known, requests from meshed clients are \
                     balanced over all endpoints: write PreferSameZone or PreferSameNode"
                ));
                TrafficDistribution::Anywhere
            }
        };
        let addresses = spec
            .cluster_ips
            .unwrap_or_default()
            .into_iter()
            .chain(spec.cluster_ip)
            .filter(|address| !address.is_empty() && address != "None");
        let mut unique: Vec<String> = Vec::new();
        for address in addresses {
            if !unique.contains(&address) {
                unique.push(address);
            }
        }
        let annotations = service.metadata.annotations.unwrap_or_default();
        let ports = spec.ports.unwrap_or_default().into_iter();
        Some(Self {
            addresses: unique,
            distribution,
            traffic: Traffic::read(&annotations, &mut complaints),
            ports: ports
                .filter(|port| is_tcp(port.protocol.as_deref()))
                .filter_map(|port| {
                    Some(Port {
                        port: u16::try_from(port.port).ok()?.into(),
                        name: port.name.unwrap_or_default(),
                        app_protocol: port.app_protocol.unwrap_or_default(),
                    })
                })
                .collect(),
            complaints,
        })
    }
}

// === impl Slice ===

impl Slice {
    /// `None` for a slice that belongs to no service.
    pub fn read(slice: discovery::EndpointSlice) -> Option<Self> {
        let namespace = slice.metadata.namespace.unwrap_or_default();
        let labels = slice.metadata.labels?;
        let service = labels.get("kubernetes.io/service-name")?;
        let mut complaints = Complaints::default();
        if slice.address_type == "FQDN" {
            complaints.add(
                "addressType: FQDN is not supported and left out: write IPv4 or IPv6 addresses"
                    .to_owned(),
            );
        }
        let endpoints = slice.endpoints.unwrap_or_default().into_iter();
        let ports = slice.ports.unwrap_or_default().into_iter();
        Some(Self {
            service: format!("{namespace}/{service}").into(),
            ports: ports
                .filter(|port| is_tcp(port.protocol.as_deref()))
                .filter_map(|port| {
                    let number = u16::try_from(port.port?).ok()?;
                    Some((port.name.unwrap_or_default().into(), number.into()))
                })
                .collect(),
            backends: endpoints
                .filter(|_| complaints.is_empty())
                .filter_map(|endpoint| Backend::read(endpoint, &namespace))
                .collect(),
            complaints,
        })
    }
}

// === impl Backend ===

impl Backend {
    fn read(endpoint: discovery::Endpoint, namespace: &str) -> Option<Self> {
        let conditions = endpoint.conditions.unwrap_or_default();
        // As the API has it: not said is ready; serving is as ready, if not said.
        let ready = conditions.ready != Some(false);
        let serving = conditions.serving.unwrap_or(ready);
        let condition = match (ready, serving, conditions.terminating) {
            (true, _, _) => Condition::Ready,
            (false, true, Some(true)) => Condition::Draining,
            _ => Condition::Down,
        };
        let target = endpoint
            .target_ref
            .filter(|target| target.kind.as_deref() == Some("Pod"));
        let pod = target.and_then(|target| {
            let namespace = target.namespace.as_deref().unwrap_or(namespace);
            Some(PodRef {
                name: format!("{namespace}/{}", target.name?).into(),
                uid: target.uid.unwrap_or_default().into(),
            })
        });
        let hints = endpoint.hints.unwrap_or_default().for_zones;
        let hinted = hints
            .unwrap_or_default()
            .into_iter()
            .map(|zone| zone.name.into());
        let hinted: Box<[Box<str>]> = hinted.collect();
        let is_hinted = !hinted.is_empty();
        let own = endpoint.zone.into_iter().map(Box::from);
        Some(Self {
            node: endpoint.node_name.unwrap_or_default().into(),
            zones: if is_hinted { hinted } else { own.collect() },
            is_hinted,
            // They are alike to the API, and kube-proxy takes the first too.
            address: endpoint.addresses.into_iter().next()?.into(),
            condition,
            pod,
        })
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}
