//! Who is where: what duet-control last said of workloads and services.
//!
//! Lookups are by address and happen for each request, so each map answers in one
//! probe and an update touches only what it names. Endpoints outlive updates that
//! do not change them, and keep what the balancer has learnt of them.

use crate::api;
use crate::balance::Endpoint;
use crate::capture::{OrigDst, WorkloadName};
use crate::detect::Protocol;
use crate::identity::Identity;
use arc_swap::ArcSwap;
use dashmap::DashMap;
use serde::Serialize;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Debug)]
pub struct Directory {
    workloads: DashMap<WorkloadName, Arc<Workload>>,
    by_address: DashMap<IpAddr, Arc<Workload>>,
    services: DashMap<String, HashSet<SocketAddr>>,
    ports: DashMap<SocketAddr, Arc<ServicePort>>,
    /// The source's version, and 0 until the first snapshot.
    version: watch::Sender<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub name: WorkloadName,
    pub identity: Identity,
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub transport: Transport,
    pub mtls: Mtls,
    pub opaque_ports: Vec<u16>,
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Plaintext,
    Hbone,
    Duet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    Permissive,
    Strict,
}

#[derive(Debug)]
pub struct ServicePort {
    /// "namespace/name".
    pub service: String,
    pub protocol: Option<Protocol>,
    /// Connections hold on to it, and go on with the new endpoints.
    endpoints: Arc<ArcSwap<Vec<Arc<Endpoint>>>>,
}

/// What an original destination turned out to be.
#[derive(Debug, Clone)]
pub enum Destination {
    Service(Arc<ServicePort>),
    /// That very address: a pod, or a place outside the mesh.
    Address(Arc<Endpoint>),
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            workloads: DashMap::new(),
            by_address: DashMap::new(),
            services: DashMap::new(),
            ports: DashMap::new(),
            version: watch::Sender::new(0),
        }
    }
}

impl Directory {
    /// Changes whenever an update was applied; 0 means nothing is known yet.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub fn workload(&self, name: &WorkloadName) -> Option<Arc<Workload>> {
        self.workloads.get(name).map(|found| found.clone())
    }

    pub fn at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.by_address.get(&ip).map(|found| found.clone())
    }

    pub fn resolve(&self, to: OrigDst) -> Destination {
        if let Some(port) = self.ports.get(&to.0) {
            return Destination::Service(port.clone());
        }
        let workload = self
            .by_address
            .get(&to.0.ip())
            .map(|found| found.name.clone());
        Destination::Address(Arc::new(Endpoint::new(to.0, workload)))
    }

    /// What is known of the protocol spoken at `to`, without looking at a byte.
    pub fn protocol(&self, to: OrigDst, destination: &Destination) -> Option<Protocol> {
        if let Destination::Service(port) = destination
            && port.protocol.is_some()
        {
            return port.protocol;
        }
        let opaque = |ip| {
            self.at(ip)
                .is_some_and(|workload| workload.opaque_ports.contains(&to.0.port()))
        };
        if opaque(to.0.ip()) {
            return Some(Protocol::Opaque);
        }
        Protocol::from_port(to.0.port())
    }

    pub fn apply(&self, update: api::Update) {
        let mut stale_workloads = HashSet::new();
        let mut stale_services = HashSet::new();
        if update.snapshot {
            stale_workloads.extend(self.workloads.iter().map(|entry| entry.key().clone()));
            stale_services.extend(self.services.iter().map(|entry| entry.key().clone()));
        }
        stale_workloads.extend(
            update
                .removed_workloads
                .iter()
                .filter_map(|name| name.parse().ok()),
        );
        stale_services.extend(update.removed_services);

        for workload in update.workloads {
            let name = format!("{}/{}", workload.namespace, workload.name);
            match Workload::read(workload, &update.trust_domain) {
                Ok(workload) => {
                    stale_workloads.remove(&workload.name);
                    self.put_workload(workload);
                }
                Err(reason) => {
                    // What was known of it stays: forgotten, it would be reached in plaintext.
                    if let Ok(name) = name.parse() {
                        stale_workloads.remove(&name);
                    }
                    tracing::warn!(%reason, "ignored a workload");
                }
            }
        }
        for service in update.services {
            let name = format!("{}/{}", service.namespace, service.name);
            stale_services.remove(&name);
            self.put_service(name, service);
        }
        for name in stale_workloads {
            self.remove_workload(&name);
        }
        for name in stale_services {
            self.remove_service(&name);
        }
        // Version 0 is reserved for "nothing yet".
        self.version.send_replace(update.version.max(1));
    }

    fn put_workload(&self, workload: Workload) {
        let new = Arc::new(workload);
        let old = self.workloads.insert(new.name.clone(), new.clone());
        for ip in &new.addresses {
            self.by_address.insert(*ip, new.clone());
        }
        for ip in old.iter().flat_map(|old| &old.addresses) {
            if !new.addresses.contains(ip) {
                self.by_address
                    .remove_if(ip, |_, found| found.name == new.name);
            }
        }
    }

    fn remove_workload(&self, name: &WorkloadName) {
        if let Some((_, old)) = self.workloads.remove(name) {
            for ip in &old.addresses {
                // The address may belong to a newer pod by now.
                self.by_address
                    .remove_if(ip, |_, found| found.name == *name);
            }
        }
    }

    fn put_service(&self, name: String, service: api::Service) {
        let mut kept = HashSet::new();
        for ip in service.addresses.iter().filter_map(|text| parse_ip(text)) {
            for port in &service.ports {
                let Ok(number) = u16::try_from(port.port) else {
                    continue;
                };
                let address = SocketAddr::new(ip, number);
                kept.insert(address);
                let old = self.ports.get(&address).map(|found| found.clone());
                let endpoints = read_endpoints(port, ip.is_ipv4(), old.as_deref());
                let protocol = Protocol::from_app_protocol(&port.app_protocol);
                let shared = match old {
                    Some(old) if old.service == name => {
                        old.endpoints.store(Arc::new(endpoints));
                        if old.protocol == protocol {
                            continue;
                        }
                        old.endpoints.clone()
                    }
                    // The address is another service's now.
                    Some(old) => {
                        old.endpoints.store(Arc::default());
                        Arc::new(ArcSwap::from_pointee(endpoints))
                    }
                    None => Arc::new(ArcSwap::from_pointee(endpoints)),
                };
                let new = ServicePort {
                    service: name.clone(),
                    protocol,
                    endpoints: shared,
                };
                self.ports.insert(address, Arc::new(new));
            }
        }
        let old = self
            .services
            .insert(name.clone(), kept.clone())
            .unwrap_or_default();
        self.forget_ports(&name, old.difference(&kept));
    }

    fn remove_service(&self, name: &str) {
        if let Some((_, addresses)) = self.services.remove(name) {
            self.forget_ports(name, addresses.iter());
        }
    }

    fn forget_ports<'a>(&self, service: &str, addresses: impl Iterator<Item = &'a SocketAddr>) {
        for address in addresses {
            let removed = self
                .ports
                .remove_if(address, |_, found| found.service == service);
            if let Some((_, port)) = removed {
                port.endpoints.store(Arc::default());
            }
        }
    }

    /// For /config.
    pub fn dump(&self) -> serde_json::Value {
        let workloads: Vec<_> = self
            .workloads
            .iter()
            .map(|workload| {
                serde_json::json!({
                    "name": workload.name.to_string(),
                    "identity": workload.identity.to_string(),
                    "node": workload.node,
                    "addresses": workload.addresses,
                    "transport": workload.transport,
                    "mtls": workload.mtls,
                    "opaquePorts": workload.opaque_ports,
                })
            })
            .collect();
        let services: Vec<_> = self
            .ports
            .iter()
            .map(|entry| {
                serde_json::json!({
                    "name": entry.service,
                    "address": entry.key(),
                    "protocol": entry.protocol.map(Protocol::as_str),
                    "endpoints": entry.endpoints().iter().map(|endpoint| endpoint.address).collect::<Vec<_>>(),
                })
            })
            .collect();
        serde_json::json!({
            "version": *self.version.borrow(),
            "workloads": workloads,
            "services": services,
        })
    }
}

impl ServicePort {
    pub fn endpoints(&self) -> arc_swap::Guard<Arc<Vec<Arc<Endpoint>>>> {
        self.endpoints.load()
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Endpoints of the service address's own family; all, if there are none.
fn read_endpoints(
    port: &api::ServicePort,
    ipv4: bool,
    old: Option<&ServicePort>,
) -> Vec<Arc<Endpoint>> {
    let old = old.map(|old| old.endpoints.load_full()).unwrap_or_default();
    let mut all: Vec<Arc<Endpoint>> = Vec::with_capacity(port.endpoints.len());
    for endpoint in &port.endpoints {
        let (Some(ip), Ok(number)) = (parse_ip(&endpoint.address), u16::try_from(endpoint.port))
        else {
            tracing::warn!(address = endpoint.address, "ignored an endpoint");
            continue;
        };
        let address = SocketAddr::new(ip, number);
        let workload: Option<WorkloadName> = endpoint.workload.parse().ok();
        let same = |known: &&Arc<Endpoint>| known.address == address && known.workload == workload;
        all.push(match old.iter().find(same) {
            Some(known) => known.clone(),
            None => Arc::new(Endpoint::new(address, workload)),
        });
    }
    let own: Vec<_> = all
        .iter()
        .filter(|one| one.address.is_ipv4() == ipv4)
        .cloned()
        .collect();
    if own.is_empty() { all } else { own }
}

impl Workload {
    fn read(workload: api::Workload, trust_domain: &str) -> Result<Self, String> {
        let name: WorkloadName = format!("{}/{}", workload.namespace, workload.name)
            .parse()
            .map_err(|error| format!("{error}"))?;
        let addresses = workload
            .addresses
            .iter()
            .map(|text| parse_ip(text).ok_or_else(|| format!("{name}: {text:?} is no address")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            identity: Identity::new(trust_domain, &workload.namespace, &workload.service_account),
            addresses,
            transport: match workload.protocol() {
                api::MeshProtocol::None => Transport::Plaintext,
                api::MeshProtocol::Hbone => Transport::Hbone,
                api::MeshProtocol::Duet => Transport::Duet,
            },
            mtls: match workload.mtls() {
                api::Mtls::Permissive => Mtls::Permissive,
                api::Mtls::Strict => Mtls::Strict,
            },
            opaque_ports: workload
                .opaque_ports
                .iter()
                .filter_map(|port| u16::try_from(*port).ok())
                .collect(),
            node: workload.node,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, address: &str) -> api::Workload {
        api::Workload {
            namespace: "default".into(),
            name: name.into(),
            service_account: name.into(),
            addresses: vec![address.into()],
            protocol: api::MeshProtocol::Duet as i32,
            ..Default::default()
        }
    }

    fn service(endpoints: &[(&str, &str)]) -> api::Service {
        api::Service {
            namespace: "default".into(),
            name: "web".into(),
            addresses: vec!["10.96.0.1".into()],
            ports: vec![api::ServicePort {
                port: 80,
                endpoints: endpoints
                    .iter()
                    .map(|(address, workload)| api::Endpoint {
                        address: (*address).into(),
                        port: 8080,
                        workload: (*workload).into(),
                    })
                    .collect(),
                ..Default::default()
            }],
        }
    }

    fn web() -> OrigDst {
        OrigDst::new("10.96.0.1:80".parse().unwrap())
    }

    fn endpoints(directory: &Directory) -> Vec<Arc<Endpoint>> {
        match directory.resolve(web()) {
            Destination::Service(port) => port.endpoints().to_vec(),
            Destination::Address(_) => Vec::new(),
        }
    }

    #[test]
    fn a_snapshot_replaces_everything() {
        let directory = Directory::default();
        directory.apply(api::Update {
            snapshot: true,
            version: 1,
            workloads: vec![workload("a", "10.0.0.1"), workload("b", "10.0.0.2")],
            services: vec![service(&[("10.0.0.1", "default/a")])],
            ..Default::default()
        });
        assert_eq!(endpoints(&directory).len(), 1);
        directory.apply(api::Update {
            snapshot: true,
            version: 2,
            workloads: vec![workload("b", "10.0.0.1")],
            ..Default::default()
        });
        assert!(endpoints(&directory).is_empty());
        assert!(
            directory
                .workload(&WorkloadName::new("default", "a"))
                .is_none()
        );
        let now_b = directory
            .at("10.0.0.1".parse().unwrap())
            .expect("b took a's address");
        assert_eq!(now_b.name.name(), "b");
        assert!(directory.at("10.0.0.2".parse().unwrap()).is_none());
    }

    #[test]
    fn an_endpoint_keeps_its_history_over_an_update() {
        let directory = Directory::default();
        let update = |endpoints: &[(&str, &str)]| api::Update {
            services: vec![service(endpoints)],
            version: 1,
            ..Default::default()
        };
        directory.apply(update(&[("10.0.0.1", "default/a")]));
        let Destination::Service(held) = directory.resolve(web()) else {
            panic!("a service")
        };
        let before = endpoints(&directory);
        directory.apply(update(&[
            ("10.0.0.2", "default/b"),
            ("10.0.0.1", "default/a"),
        ]));
        let after = endpoints(&directory);
        assert!(
            after
                .iter()
                .any(|endpoint| Arc::ptr_eq(endpoint, &before[0]))
        );
        assert_eq!(
            held.endpoints().len(),
            2,
            "a live connection sees the change too"
        );
        directory.apply(api::Update {
            removed_services: vec!["default/web".into()],
            version: 2,
            ..Default::default()
        });
        assert!(held.endpoints().is_empty());
    }

    #[test]
    fn addresses_of_the_same_family_are_preferred() {
        let directory = Directory::default();
        directory.apply(api::Update {
            services: vec![service(&[
                ("10.0.0.1", "default/a"),
                ("fd00::1", "default/a"),
            ])],
            ..Default::default()
        });
        let found = endpoints(&directory);
        assert_eq!(found.len(), 1);
        assert!(found[0].address.is_ipv4());
    }
}
