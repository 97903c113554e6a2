//! Who is where: what duet-control last said of workloads and services.
//!
//! Lookups are by address and happen for each request, so each map answers in one
//! probe and an update touches only what it names. Endpoints outlive updates that
//! do not change them, and keep what the balancer has learnt of them.

use crate::api;
use crate::balance::Endpoint;
use crate::breaker::Accrual;
use crate::capture::{OrigDst, WorkloadName};
use crate::detect::Protocol;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::policy::{Authorization, Policy, Probe};
use crate::tenancy::Budgets;
use crate::traffic::Traffic;
use dashmap::{DashMap, DashSet};
use serde::Serialize;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;

mod service;

pub use service::ServicePort;

#[derive(Debug)]
pub struct Directory {
    workloads: DashMap<WorkloadName, Arc<Workload>>,
    by_address: DashMap<IpAddr, Arc<Workload>>,
    services: DashMap<String, HashSet<SocketAddr>>,
    ports: DashMap<SocketAddr, Arc<ServicePort>>,
    policies: DashMap<String, Arc<Policy>>,
    /// Addresses in the mesh of which nothing else is told. What is neither here nor
    /// known is outside the mesh, so an address is always in one of the two while it
    /// goes from the one to the other.
    hidden: DashSet<IpAddr>,
    /// Workloads whose every change somebody waits for.
    followed: DashMap<WorkloadName, watch::Sender<Option<Arc<Workload>>>>,
    /// The source's version, and 0 until the first snapshot.
    version: watch::Sender<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub name: WorkloadName,
    pub identity: Identity,
    pub node: String,
    /// Empty: not known.
    pub zone: String,
    pub addresses: Vec<IpAddr>,
    pub transport: Transport,
    pub mtls: Mtls,
    pub opaque_ports: Vec<u16>,
    /// Kubernetes' pod UID; empty elsewhere.
    pub uid: String,
    pub placement: Placement,
    /// It stays where it is placed for as long as it runs.
    pub stamped: bool,
    pub probes: Vec<Probe>,
    pub limits: Limits,
    /// What it asks for of a proxy that it shares.
    pub budgets: Budgets,
    /// The names of the policies that select it.
    policies: Vec<String>,
    /// What they say; `None` if there are none.
    pub authorization: Option<Arc<Authorization>>,
}

/// Who proxies a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    Unplaced,
    Sidecar,
    Agent,
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

/// What an original destination turned out to be.
#[derive(Debug, Clone)]
pub enum Destination {
    Service(Arc<ServicePort>),
    /// That very address: a pod, or a place outside the mesh.
    Address(Arc<Endpoint>),
    /// In the mesh, and beyond what this proxy is told of: not to be connected to.
    OutOfReach(SocketAddr),
}

/// Who is at an address.
#[derive(Debug, Clone)]
pub enum Occupant {
    Workload(Arc<Workload>),
    /// Somebody of the mesh of whom this proxy is not told.
    Hidden,
    /// Nobody of the mesh.
    Outsider,
}

impl Destination {
    /// How its requests travel; `None`: nothing was said.
    pub fn traffic(&self) -> Option<Arc<Traffic>> {
        match self {
            Self::Service(port) => port.traffic(),
            Self::Address(_) | Self::OutOfReach(_) => None,
        }
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            workloads: DashMap::new(),
            by_address: DashMap::new(),
            services: DashMap::new(),
            ports: DashMap::new(),
            policies: DashMap::new(),
            hidden: DashSet::new(),
            followed: DashMap::new(),
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

    /// What is known of a workload, now and whenever it changes.
    pub fn follow(&self, name: &WorkloadName) -> watch::Receiver<Option<Arc<Workload>>> {
        self.followed.retain(|_, sender| !sender.is_closed());
        // The entry is locked while the workload is looked up, and an update sends to
        // it after storing, so that no change falls between.
        let entry = self.followed.entry(name.clone());
        entry
            .or_insert_with(|| watch::Sender::new(self.workload(name)))
            .subscribe()
    }

    /// The workloads on `node` that its agent is to proxy.
    pub fn of_agent(&self, node: &str) -> Vec<Arc<Workload>> {
        self.workloads
            .iter()
            .filter(|found| found.placement == Placement::Agent && found.node == node)
            .map(|found| found.clone())
            .collect()
    }

    pub fn at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.by_address.get(&ip).map(|found| found.clone())
    }

    /// Who is at an address, so that nobody of the mesh is taken for an outsider.
    pub fn occupant(&self, ip: IpAddr) -> Occupant {
        loop {
            let version = self.version.borrow().to_owned();
            match self.at(ip) {
                Some(workload) => return Occupant::Workload(workload),
                None if self.hidden.contains(&ip) => return Occupant::Hidden,
                // It may have come out of hiding between the two looks, and gone back before the third.
                None => match self.at(ip) {
                    Some(workload) => return Occupant::Workload(workload),
                    None if *self.version.borrow() == version => return Occupant::Outsider,
                    None => {}
                },
            }
        }
    }

    pub fn resolve(&self, to: OrigDst) -> Destination {
        let service = || self.ports.get(&to.0).map(|port| port.clone());
        if let Some(port) = service() {
            return Destination::Service(port);
        }
        let address = |workload| {
            let endpoint = Endpoint::new(to.0, workload, Accrual::default());
            Destination::Address(Arc::new(endpoint))
        };
        match self.occupant(to.0.ip()) {
            Occupant::Workload(workload) => address(Some(workload.name.clone())),
            Occupant::Hidden => Destination::OutOfReach(to.0),
            // As above.
            Occupant::Outsider => service().map_or_else(|| address(None), Destination::Service),
        }
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
        // Into hiding before what is known of them goes, and out of it only once they
        // are known.
        let hidden: HashSet<IpAddr> = addresses(&update.hidden).collect();
        for ip in &hidden {
            self.hidden.insert(*ip);
        }

        // Before the workloads that they select.
        let mut changed_policies = HashSet::new();
        let mut stale_policies: HashSet<String> = update.removed_policies.into_iter().collect();
        if update.snapshot {
            stale_policies.extend(self.policies.iter().map(|entry| entry.key().clone()));
        }
        for policy in update.policies {
            let name = format!("{}/{}", policy.namespace, policy.name);
            stale_policies.remove(&name);
            let before = self.policies.get(&name).map(|found| found.clone());
            let policy = Policy::compile(policy, before.clone());
            if before.is_none_or(|before| !Arc::ptr_eq(&before, &policy)) {
                self.policies.insert(name.clone(), policy);
                changed_policies.insert(name);
            }
        }

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
            self.put_service(name, &service);
        }
        for name in stale_workloads {
            self.remove_workload(&name);
        }
        for name in stale_services {
            self.remove_service(&name);
        }
        for name in stale_policies {
            if self.policies.remove(&name).is_some() {
                changed_policies.insert(name);
            }
        }
        self.authorize_again(&changed_policies);
        if update.snapshot {
            self.hidden.retain(|ip| hidden.contains(ip));
        }
        for ip in addresses(&update.unhidden) {
            self.hidden.remove(&ip);
        }
        // Version 0 is reserved for "nothing yet".
        self.version.send_replace(update.version.max(1));
    }

    fn put_workload(&self, mut workload: Workload) {
        let find = |name: &str| self.policies.get(name).map(|found| found.clone());
        let new = Authorization::new(&workload.policies, find);
        let known = self.workload(&workload.name);
        workload.authorization = match (known.and_then(|old| old.authorization.clone()), new) {
            (Some(old), Some(new)) if *old == new => Some(old),
            (_, new) => new.map(Arc::new),
        };
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
        self.tell_followers(&new.name, Some(&new));
    }

    /// Of workloads that `changed` policies select.
    fn authorize_again(&self, changed: &HashSet<String>) {
        if changed.is_empty() {
            return;
        }
        let selected = |workload: &Workload| {
            let names = &workload.policies;
            names.iter().any(|name| changed.contains(name))
        };
        let selected: Vec<_> = self
            .workloads
            .iter()
            .filter(|found| selected(found))
            .map(|found| Workload::clone(&found))
            .collect();
        for workload in selected {
            self.put_workload(workload);
        }
    }

    fn tell_followers(&self, name: &WorkloadName, now: Option<&Arc<Workload>>) {
        if let Some(followers) = self.followed.get(name) {
            followers.send_if_modified(|known| {
                let changed = known.as_ref() != now;
                if changed {
                    *known = now.cloned();
                }
                changed
            });
        }
    }

    fn remove_workload(&self, name: &WorkloadName) {
        if let Some((_, old)) = self.workloads.remove(name) {
            for ip in &old.addresses {
                // The address may belong to a newer pod by now.
                self.by_address
                    .remove_if(ip, |_, found| found.name == *name);
            }
            self.tell_followers(name, None);
        }
    }

    fn put_service(&self, name: String, service: &api::Service) {
        let mut kept = HashSet::new();
        for ip in service.addresses.iter().filter_map(|text| parse_ip(text)) {
            for port in &service.ports {
                let Ok(number) = u16::try_from(port.port) else {
                    continue;
                };
                let address = SocketAddr::new(ip, number);
                kept.insert(address);
                let old = self.ports.get(&address).map(|found| found.clone());
                if let Some(new) = ServicePort::read(service, port, ip.is_ipv4(), old.as_deref()) {
                    self.ports.insert(address, Arc::new(new));
                }
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
                port.close();
            }
        }
    }

    /// A port of a service by its name, if it can be at an address of this family.
    pub fn service_port(&self, service: &str, port: u16, ipv4: bool) -> Option<Arc<ServicePort>> {
        let address = {
            let addresses = self.services.get(service)?;
            let at = |family: bool| {
                let mut all = addresses.iter();
                all.find(|it| it.port() == port && it.is_ipv4() == family)
            };
            *at(ipv4).or_else(|| at(!ipv4))?
        };
        let found = self.ports.get(&address)?.clone();
        (found.service == service).then_some(found)
    }

    /// All ports of services, and where they are.
    pub fn ports(&self) -> impl Iterator<Item = (SocketAddr, Arc<ServicePort>)> {
        self.ports
            .iter()
            .map(|entry| (*entry.key(), entry.value().clone()))
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
                    "zone": workload.zone,
                    "addresses": workload.addresses,
                    "transport": workload.transport,
                    "mtls": workload.mtls,
                    "opaquePorts": workload.opaque_ports,
                    "uid": workload.uid,
                    "placement": workload.placement,
                    "stamped": workload.stamped,
                    "probes": workload.probes.iter().map(Probe::dump).collect::<Vec<_>>(),
                    "policies": policies(workload.authorization.as_deref()),
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
                    "out": entry.out(),
                })
            })
            .collect();
        serde_json::json!({
            "version": *self.version.borrow(),
            "workloads": workloads,
            "services": services,
            "hidden": self.hidden.len(),
        })
    }
}

/// What each policy of a workload does, for /config.
fn policies(authorization: Option<&Authorization>) -> serde_json::Value {
    let all = authorization.into_iter().flat_map(Authorization::policies);
    all.map(|(name, action)| (name.to_owned(), action.as_str().into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Of 4 or 16 bytes each.
fn addresses(texts: &[Vec<u8>]) -> impl Iterator<Item = IpAddr> {
    texts.iter().filter_map(|bytes| match bytes.len() {
        4 => <[u8; 4]>::try_from(&**bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(&**bytes)
            .ok()
            .map(|bytes| IpAddr::from(bytes).to_canonical()),
    })
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
            placement: match workload.placement() {
                api::Placement::Unplaced => Placement::Unplaced,
                api::Placement::Sidecar => Placement::Sidecar,
                api::Placement::Agent => Placement::Agent,
            },
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
            zone: workload.zone,
            uid: workload.uid,
            stamped: workload.stamped,
            probes: workload.probes.iter().filter_map(Probe::read).collect(),
            limits: workload.limits.map(Limits::read).unwrap_or_default(),
            budgets: workload.budgets.map(Budgets::read).unwrap_or_default(),
            policies: workload.policies,
            authorization: None,
            name,
        })
    }
}

#[cfg(test)]
mod tests;
