//! From what the API server says of single objects to one state of the mesh.
//!
//! Each object that changes marks the workloads and services that it may concern,
//! and [`Model::flush`] computes those anew, so that a change costs what it touches,
//! in a mesh of any size. Objects of different kinds arrive in any order. What is
//! not known yet could be in the mesh, so it is held back: a pod until its namespace
//! has been heard of, an endpoint until its pod has.

use super::complaint::Complaints;
use super::namespace::Namespace;
use super::objects::{Change, Index, Name, Objects};
use super::pod::Pod;
use super::policy::Policy;
use super::route::{self, Route, Routes};
use super::service::{Backend, Condition, Port, Service, Slice};
use super::status::Wanted;
use super::watch::Kind;
use crate::crd::AuthorizationPolicy;
use crate::state::{Backends, MeshState};
use duet_core::api::{self, Endpoint, ServicePort, TrafficDistribution, Workload};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tracing::warn;

pub struct Model {
    namespaces: Objects<Namespace>,
    /// Their zones.
    nodes: Objects<Box<str>>,
    pods: Objects<Pod>,
    services: Objects<Service>,
    slices: Objects<Slice>,
    policies: Objects<Policy>,

    /// A service's slices.
    slices_of: Index<Name>,
    /// The slices that name a pod.
    slices_with: Index<Name>,
    /// The slices that have an address and no pod for it.
    slices_at: Index<IpAddr>,
    /// The meshed pods that have an address.
    holders: Index<IpAddr>,
    /// The addresses that a meshed pod has, as `holders` knows them.
    held: HashMap<Name, BTreeSet<IpAddr>>,

    /// Nodes that are in another zone than they were.
    stale_nodes: BTreeSet<Name>,
    /// Pods whose workloads are to be computed.
    stale_pods: BTreeSet<Name>,
    stale_services: BTreeSet<Name>,
    /// Policies whose status may not be as it should be.
    stale_policies: BTreeSet<Name>,
    /// How many workloads a policy selects.
    selected: HashMap<Name, usize>,
    http_routes: Routes,
    grpc_routes: Routes,
    /// Statuses that are to be written.
    wanted: Wanted,
    state: MeshState,
}

/// What is behind an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// Nobody knows yet.
    Unknown,
    /// Nobody of the mesh.
    Outside,
    /// A workload, in the mesh or about to be.
    Workload,
}

// === impl Model ===

impl Model {
    pub fn new(trust_domain: &str) -> Self {
        Self {
            namespaces: Objects::default(),
            nodes: Objects::default(),
            pods: Objects::default(),
            services: Objects::default(),
            slices: Objects::default(),
            policies: Objects::default(),
            slices_of: Index::default(),
            slices_with: Index::default(),
            slices_at: Index::default(),
            holders: Index::default(),
            held: HashMap::new(),
            stale_nodes: BTreeSet::new(),
            stale_pods: BTreeSet::new(),
            stale_services: BTreeSet::new(),
            stale_policies: BTreeSet::new(),
            selected: HashMap::new(),
            http_routes: Routes::new(route::Kind::Http),
            grpc_routes: Routes::new(route::Kind::Grpc),
            wanted: Wanted::default(),
            state: MeshState::new(trust_domain),
        }
    }

    pub fn namespace(&mut self, change: Change<Namespace>) {
        for (name, new) in self.namespaces.steps(change) {
            let said = |namespace: &Namespace| (namespace.mode, namespace.mtls);
            let reach = new.as_ref().and_then(|new| new.reach.clone());
            self.state.set_reach(&name, reach);
            let old = self.namespaces.set(&name, new);
            let new = self.namespaces.get(&name);
            tell("namespace", &name, old.as_ref(), new, |it| &it.complaints);
            if old.as_ref().map(said) != new.map(said) {
                let pods = self.pods.in_namespace(&name);
                let pods: Vec<Name> = pods.map(|(pod, _)| pod.clone()).collect();
                for pod in &pods {
                    self.stale_services_with(pod);
                }
                self.stale_pods.extend(pods);
            }
        }
    }

    pub fn node(&mut self, change: Change<Box<str>>) {
        for (name, new) in self.nodes.steps(change) {
            self.nodes.set(&name, new);
            self.stale_nodes.insert(name);
        }
    }

    pub fn pod(&mut self, change: Change<Pod>) {
        for (name, new) in self.pods.steps(change) {
            let old = self.pods.set(&name, new);
            let new = self.pods.get(&name);
            tell("pod", &name, old.as_ref(), new, |it| &it.complaints);
            // What its services' endpoints are told of it.
            let place = |pod: &Pod| (pod.uid.clone(), pod.places_itself(), pod.weight);
            if old.as_ref().map(place) != new.map(place) {
                self.stale_services_with(&name);
            }
            self.stale_pods.insert(name);
        }
    }

    pub fn service(&mut self, change: Change<Service>) {
        for (name, new) in self.services.steps(change) {
            let old = self.services.set(&name, new);
            let new = self.services.get(&name);
            tell("service", &name, old.as_ref(), new, |it| &it.complaints);
            self.http_routes.service_changed(&name);
            self.grpc_routes.service_changed(&name);
            self.stale_services.insert(name);
        }
    }

    pub fn slice(&mut self, change: Change<Slice>) {
        for (name, new) in self.slices.steps(change) {
            let old = self.slices.set(&name, new);
            if let Some(old) = &old {
                self.slices_of.remove(&old.service, &name);
                self.stale_services.insert(old.service.clone());
                for backend in &old.backends {
                    match (&backend.pod, address(backend)) {
                        (Some(pod), _) => self.slices_with.remove(&pod.name, &name),
                        (None, Some(address)) => self.slices_at.remove(&address, &name),
                        (None, None) => {}
                    }
                }
            }
            let new = self.slices.get(&name);
            if let Some(new) = new {
                self.slices_of.add(new.service.clone(), &name);
                self.stale_services.insert(new.service.clone());
                for backend in &new.backends {
                    match (&backend.pod, address(backend)) {
                        (Some(pod), _) => self.slices_with.add(pod.name.clone(), &name),
                        (None, Some(address)) => self.slices_at.add(address, &name),
                        (None, None) => {}
                    }
                }
            }
            tell("endpoint slice", &name, old.as_ref(), new, |it| {
                &it.complaints
            });
        }
    }

    pub fn policy(&mut self, change: Change<AuthorizationPolicy>) {
        let change = change.map(|name, policy| Policy::read(&policy, self.policies.get(name)));
        for (name, new) in self.policies.steps(change) {
            let old = self.policies.set(&name, new);
            let new = self.policies.get(&name);
            match new {
                Some(new) => self.state.put_policy(new.told.clone()),
                None => self.state.remove_policy(&name),
            }
            self.stale_policies.insert(name.clone());
            let problem = new.and_then(|new| new.problem.as_ref());
            if let Some(problem) = problem
                && old.as_ref().and_then(|old| old.problem.as_ref()) != Some(problem)
            {
                warn!("authorization policy {name}: {problem}; what it said before stays in force");
            }
            if old.as_ref().map(|old| &old.labels) != new.map(|new| &new.labels) {
                let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
                let pods = self.pods.in_namespace(namespace);
                self.stale_pods.extend(pods.map(|(pod, _)| pod.clone()));
            }
        }
    }

    pub fn route(&mut self, kind: Kind, change: Change<Route>) {
        let touched = match kind {
            Kind::GrpcRoutes => self.grpc_routes.hear(change),
            _ => self.http_routes.hear(change),
        };
        self.stale_services.extend(touched);
    }

    /// The mesh as all objects have it now.
    pub fn flush(&mut self) -> &MeshState {
        if !self.stale_nodes.is_empty() {
            let nodes = std::mem::take(&mut self.stale_nodes);
            let pods = self
                .pods
                .iter()
                .filter(|(_, pod)| nodes.contains(pod.node()));
            self.stale_pods.extend(pods.map(|(name, _)| name.clone()));
        }
        while let Some(name) = self.stale_pods.pop_first() {
            self.compute_workload(&name);
        }
        for name in std::mem::take(&mut self.stale_services) {
            match self.compute_service(&name) {
                Some((service, backends)) => self.state.put_service(service, backends),
                None => self.state.remove_service(&name),
            }
        }
        &self.state
    }

    /// The statuses that are not as they should be, as of the last [`Self::flush`].
    pub fn statuses(&mut self) -> Wanted {
        let mut judged = Vec::new();
        for name in std::mem::take(&mut self.stale_policies) {
            let workloads = self.selected.get(&name).copied().unwrap_or_default();
            let policy = self.policies.get(&name);
            let writing = policy.and_then(|policy| policy.judged(workloads));
            judged.push(((Kind::Policies, name), writing));
        }
        for (kind, routes) in [
            (Kind::HttpRoutes, &mut self.http_routes),
            (Kind::GrpcRoutes, &mut self.grpc_routes),
        ] {
            let all = routes.judge(&self.services);
            judged.extend(all.map(|(name, writing)| ((kind, name), writing)));
        }
        for (key, writing) in judged {
            match writing {
                Some(writing) => {
                    Arc::make_mut(&mut self.wanted).insert(key, writing);
                }
                None if self.wanted.contains_key(&key) => {
                    Arc::make_mut(&mut self.wanted).remove(&key);
                }
                None => {}
            }
        }
        self.wanted.clone()
    }

    fn compute_workload(&mut self, name: &Name) {
        let old = self.state.workloads.get(name).cloned();
        let mut new = self.workload(name);
        let holding = match (&new, self.pods.get(name)) {
            (Some(_), Some(pod)) => pod.addresses().iter().copied().collect(),
            _ => BTreeSet::new(),
        };
        self.hold(name, &holding);
        if let Some(new) = &mut new {
            let own = holding.iter().filter(|address| self.has(name, address));
            new.addresses = own.map(ToString::to_string).collect();
        }
        let addresses = |workload: Option<&Workload>| {
            workload.map_or_else(Vec::new, |workload| workload.addresses.clone())
        };
        if addresses(old.as_deref()) != addresses(new.as_ref()) {
            // What it lost somebody may gain, and the other way round.
            let others = holding.iter().flat_map(|address| self.holders.get(address));
            let others: Vec<Name> = others.filter(|other| *other != name).cloned().collect();
            self.stale_pods.extend(others);
        }
        if old.is_some() != new.is_some() {
            self.stale_services_with(name);
        }
        let selecting = |workload: Option<&Workload>| -> BTreeSet<String> {
            let policies = workload.map(|workload| workload.policies.iter().cloned());
            policies.into_iter().flatten().collect()
        };
        let (before, after) = (selecting(old.as_deref()), selecting(new.as_ref()));
        for policy in before.symmetric_difference(&after) {
            let policy: Name = policy.as_str().into();
            let selected = self.selected.entry(policy.clone()).or_default();
            if after.contains(&*policy) {
                *selected += 1;
            } else {
                *selected = selected.saturating_sub(1);
            }
            self.stale_policies.insert(policy);
        }
        match new {
            Some(new) => self.state.put_workload(new),
            None => self.state.remove_workload(name),
        }
    }

    /// Without its addresses, which others may have too.
    fn workload(&self, name: &Name) -> Option<Workload> {
        let (namespace, _) = name.split_once('/')?;
        let pod = self.pods.get(name)?;
        let mut workload = pod.workload(name, self.namespaces.get(namespace)?)?;
        let policies = self.policies.in_namespace(namespace);
        let policies = policies.filter(|(_, policy)| policy.selects(&pod.labels));
        workload.zone = self
            .nodes
            .get(&workload.node)
            .map_or("", |zone| &**zone)
            .to_owned();
        workload.policies = policies.map(|(policy, _)| policy.to_string()).collect();
        Some(workload)
    }

    /// Notes that the pod has these addresses now, and no others.
    fn hold(&mut self, name: &Name, holding: &BTreeSet<IpAddr>) {
        let held = if holding.is_empty() {
            self.held.remove(name)
        } else {
            self.held.insert(name.clone(), holding.clone())
        };
        let held = held.unwrap_or_default();
        for address in held.symmetric_difference(holding) {
            if holding.contains(address) {
                self.holders.add(*address, name);
            } else {
                self.holders.remove(address, name);
                self.stale_pods.extend(self.holders.get(address).cloned());
            }
            for slice in self.slices_at.get(address) {
                let service = self.slices.get(slice).map(|slice| slice.service.clone());
                self.stale_services.extend(service);
            }
        }
    }

    /// Whether the address is this pod's and no other's.
    fn has(&self, name: &Name, address: &IpAddr) -> bool {
        let precedence = |name: &Name| self.pods.get(name).map(Pod::precedence);
        let first = self
            .holders
            .get(address)
            .max_by_key(|other| (precedence(other), (*other).clone()));
        first == Some(name)
    }

    fn stale_services_with(&mut self, pod: &Name) {
        let slices = self.slices_with.get(pod);
        let services = slices.filter_map(|slice| Some(self.slices.get(slice)?.service.clone()));
        self.stale_services.extend(services);
    }

    /// `None` for what is not there, or is no destination: without an address of its
    /// own, clients connect to its pods.
    fn compute_service(&self, name: &Name) -> Option<(api::Service, Backends)> {
        let service = self.services.get(name)?;
        if service.addresses.is_empty() {
            return None;
        }
        let (namespace, own_name) = name.split_once('/')?;
        let slices = self.slices_of.get(name);
        let slices: Vec<&Slice> = slices.filter_map(|slice| self.slices.get(slice)).collect();
        let backends = || slices.iter().flat_map(|slice| &slice.backends);
        let plain = backends().next().is_some()
            && backends().all(|backend| self.behind(backend) == Behind::Outside);
        // Hints that all of them have are heeded whoever made them, as kube-proxy does.
        let mut ready = backends()
            .filter(|one| one.condition == Condition::Ready)
            .peekable();
        let distribution = match service.distribution {
            TrafficDistribution::Anywhere
                if ready.peek().is_some() && ready.all(|backend| backend.is_hinted) =>
            {
                TrafficDistribution::SameZone
            }
            said => said,
        };
        let told = api::Service {
            namespace: namespace.to_owned(),
            name: own_name.to_owned(),
            addresses: service.addresses.clone(),
            ports: service
                .ports
                .iter()
                .map(|port| ServicePort {
                    port: port.port,
                    name: port.name.clone(),
                    app_protocol: port.app_protocol.clone(),
                    endpoints: self.endpoints(port, &slices, distribution),
                })
                .collect(),
            failure_accrual: service.traffic.failure_accrual,
            timeouts: service.traffic.timeouts,
            retry: service.traffic.retry.clone(),
            retry_budget: service.traffic.retry_budget,
            traffic_distribution: distribution.into(),
            slow_start_ms: service.traffic.slow_start_ms,
            routes: [&self.http_routes, &self.grpc_routes]
                .into_iter()
                .flat_map(|routes| routes.of(name, &self.services))
                .collect(),
        };
        let backends = if plain {
            Backends::Plain
        } else {
            Backends::Guarded
        };
        Some((told, backends))
    }

    /// Those that are ready; if there are none, those on their way out that still
    /// answer, as kube-proxy has it.
    fn endpoints(
        &self,
        port: &Port,
        slices: &[&Slice],
        distribution: TrafficDistribution,
    ) -> Vec<Endpoint> {
        // Said only where it matters.
        let (by_zone, by_node) = match distribution {
            TrafficDistribution::Anywhere => (false, false),
            TrafficDistribution::SameZone => (true, false),
            TrafficDistribution::SameNode => (true, true),
        };
        // Sorted, and named once, whatever the slices repeat (KEP-752).
        let (mut ready, mut draining) = (BTreeMap::new(), BTreeMap::new());
        for slice in slices {
            let numbers = slice.ports.iter().filter(|(name, _)| **name == *port.name);
            for (_, number) in numbers {
                for backend in &slice.backends {
                    let chosen = match backend.condition {
                        Condition::Ready => &mut ready,
                        Condition::Draining => &mut draining,
                        Condition::Down => continue,
                    };
                    let workload = match (self.behind(backend), &backend.pod) {
                        (Behind::Unknown, _) => continue,
                        (Behind::Workload, Some(pod)) => pod.name.to_string(),
                        _ => String::new(),
                    };
                    let pod = backend
                        .pod
                        .as_ref()
                        .and_then(|pod| self.pods.get(&pod.name));
                    let endpoint = Endpoint {
                        address: backend.address.to_string(),
                        port: *number,
                        workload,
                        zones: if by_zone {
                            backend.zones.iter().map(ToString::to_string).collect()
                        } else {
                            Vec::new()
                        },
                        node: if by_node {
                            backend.node.to_string()
                        } else {
                            String::new()
                        },
                        weight: pod.map_or(0, |pod| pod.weight),
                    };
                    chosen.insert((&backend.address, *number), endpoint);
                }
            }
        }
        let chosen = if ready.is_empty() { draining } else { ready };
        chosen.into_values().collect()
    }

    fn behind(&self, backend: &Backend) -> Behind {
        let Some(named) = &backend.pod else {
            let meshed =
                address(backend).is_some_and(|address| self.holders.get(&address).next().is_some());
            return if meshed {
                Behind::Workload
            } else {
                Behind::Outside
            };
        };
        let Some(pod) = self.pods.get(&named.name) else {
            return Behind::Unknown;
        };
        let same = named.uid.is_empty() || named.uid == pod.uid;
        let namespace = named.name.split_once('/').map_or("", |(name, _)| name);
        match self.namespaces.get(namespace) {
            Some(_) if same && self.state.workloads.contains_key(&named.name) => Behind::Workload,
            // Meshed, and not yet or no longer a workload.
            Some(said) if same && !pod.is_meshed(said) => Behind::Outside,
            _ => Behind::Unknown,
        }
    }
}

/// Logs what an object says that cannot be meant, unless it said so before.
fn tell<T>(
    kind: &str,
    name: &Name,
    old: Option<&T>,
    new: Option<&T>,
    complaints: impl Fn(&T) -> &Complaints,
) {
    if let Some(new) = new {
        complaints(new).tell(kind, name, old.map(&complaints));
    }
}

fn address(backend: &Backend) -> Option<IpAddr> {
    let address: IpAddr = backend.address.parse().ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
