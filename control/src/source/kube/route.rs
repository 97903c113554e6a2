//! HTTPRoutes and GRPCRoutes that have a Service as their parent.
//!
//! A route is told to the proxies as a whole or not at all: what asks for something that
//! they cannot do changes nothing, and its status says what that is, field by field
//! ([`read`]). A backend that is not there, or may not be named, is another matter: its
//! part of the requests is refused, as Gateway API has it.

mod read;

pub use read::Kind;

use super::objects::{Change, Index, Name, Objects};
use super::service::Service;
use super::status::{Writing, condition, find};
use duet_core::api;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What a status names as its author.
pub const CONTROLLER: &str = "duet.dev/control";

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    generation: i64,
    resource_version: String,
    /// As the API writes it, which sorts by age.
    created: String,
    spec: Value,
    /// `status.parents`, everybody's.
    parents: Vec<Value>,
}

/// The routes of one kind, and which of them are to be judged again.
pub struct Routes {
    kind: Kind,
    objects: Objects<Route>,
    /// The routes that name a service.
    naming: Index<Name>,
    stale: BTreeSet<Name>,
}

/// A verdict on one parent: the conditions Accepted and ResolvedRefs.
struct Verdict {
    accepted: Result<(), Refusal>,
    resolved: Result<(), Refusal>,
}

/// Reason and message of a condition that does not hold.
type Refusal = (&'static str, String);

// === impl Route ===

impl Route {
    pub fn read(route: DynamicObject) -> Self {
        let spec = route.data.get("spec").cloned().unwrap_or_default();
        let parents = route.data.pointer("/status/parents");
        Self {
            generation: route.metadata.generation.unwrap_or_default(),
            resource_version: route.metadata.resource_version.unwrap_or_default(),
            created: route
                .metadata
                .creation_timestamp
                .map(|time| time.0.to_string())
                .unwrap_or_default(),
            spec,
            parents: parents
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
        }
    }

    /// The parents that are services.
    fn services(&self) -> impl Iterator<Item = &Value> {
        let parents = self.spec["parentRefs"].as_array().into_iter().flatten();
        parents.filter(|parent| parent["group"] == "" && parent["kind"] == "Service")
    }

    /// The services that it names, as parents or backends, from `namespace`.
    fn named(&self, namespace: &str) -> BTreeSet<Name> {
        let rules = self.spec["rules"].as_array().into_iter().flatten();
        let backends = rules.flat_map(backends).map(|(_, backend)| backend);
        let named = self.services().chain(backends);
        named.map(|one| name_of(one, namespace)).collect()
    }

    /// What `status.parents` should be; `None` if it is.
    fn judged(&self, kind: Kind, name: &str, services: &Objects<Service>) -> Option<Writing> {
        let ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
        let others = self.parents.iter().filter(|entry| !ours(entry));
        let mut wanted: Vec<Value> = others.cloned().collect();
        for parent in self.services() {
            let known = self.parents.iter().filter(ours);
            let known = known
                .into_iter()
                .find(|entry| entry["parentRef"] == *parent);
            let known = known.map_or(&Value::Null, |entry| &entry["conditions"]);
            let verdict = self.judge(kind, parent, name, services);
            let conditions = [
                ("Accepted", &verdict.accepted),
                ("ResolvedRefs", &verdict.resolved),
            ]
            .map(|(kind, outcome)| {
                let (reason, message) = match outcome {
                    Ok(()) => (kind, ""),
                    Err((reason, message)) => (*reason, message.as_str()),
                };
                let known = find(known, kind);
                condition(
                    known,
                    kind,
                    outcome.is_ok(),
                    reason,
                    message,
                    self.generation,
                )
            });
            wanted.push(json!({
                "parentRef": parent,
                "controllerName": CONTROLLER,
                "conditions": conditions,
            }));
        }
        // In the order that is there, a route that is as it should be is left alone.
        let same = wanted.len() == self.parents.len()
            && wanted.iter().all(|entry| self.parents.contains(entry));
        (!same).then(|| Writing {
            resource_version: self.resource_version.clone(),
            status: json!({ "parents": wanted }),
        })
    }

    /// What it says of the requests to `service`.
    fn told(
        &self,
        kind: Kind,
        name: &str,
        service: &Name,
        services: &Objects<Service>,
    ) -> Vec<api::Route> {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        let mut all = Vec::new();
        for parent in self.services() {
            if name_of(parent, namespace) != *service {
                continue;
            }
            let port = parent["port"].as_u64();
            for mut route in self
                .accepted(kind, parent, name, services)
                .unwrap_or_default()
            {
                route.ports = port
                    .and_then(|port| u32::try_from(port).ok())
                    .into_iter()
                    .collect();
                all.push(route);
            }
        }
        all
    }

    fn judge(
        &self,
        kind: Kind,
        parent: &Value,
        name: &str,
        services: &Objects<Service>,
    ) -> Verdict {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        Verdict {
            accepted: self.accepted(kind, parent, name, services).map(drop),
            resolved: self.resolved(namespace, services),
        }
    }

    fn accepted(
        &self,
        kind: Kind,
        parent: &Value,
        own_name: &str,
        services: &Objects<Service>,
    ) -> Result<Vec<api::Route>, Refusal> {
        let namespace = own_name
            .split_once('/')
            .map_or("", |(namespace, _)| namespace);
        let name = name_of(parent, namespace);
        let no_parent = |problem: String| Err(("NoMatchingParent", problem));
        let Some(service) = services.get(&name) else {
            return no_parent(format!(
                "there is no Service {name}, or it is an ExternalName"
            ));
        };
        if service.addresses.is_empty() {
            return no_parent(format!(
                "Service {name} is headless: its clients connect to its pods, which no route \
                 changes"
            ));
        }
        if name.split_once('/').map(|(namespace, _)| namespace) != Some(namespace) {
            return Err(unsupported(
                "spec.parentRefs: a route for a Service of another namespace",
            ));
        }
        if !is_absent(&parent["sectionName"]) {
            return Err(unsupported("spec.parentRefs: sectionName"));
        }
        let known = |port: u64| {
            let mut ports = service.ports.iter();
            ports.any(|known| u64::from(known.port) == port)
        };
        if let Some(port) = parent["port"].as_u64()
            && !known(port)
        {
            return no_parent(format!("Service {name} has no TCP port {port}"));
        }
        read::routes(kind, &self.spec, own_name, namespace)
    }

    fn resolved(&self, namespace: &str, services: &Objects<Service>) -> Result<(), Refusal> {
        let rules = self.spec["rules"].as_array().into_iter().flatten();
        for (index, rule) in rules.enumerate() {
            for (field, backend) in backends(rule) {
                let field = format!("spec.rules[{index}].{field}");
                if !is_service(backend) {
                    return Err(("InvalidKind", format!("{field}: it is no Service")));
                }
                let name = name_of(backend, namespace);
                if !name.starts_with(&format!("{namespace}/")) {
                    let problem = format!(
                        "{field}: Service {name} is in another namespace, and ReferenceGrants are \
                         not supported"
                    );
                    return Err(("RefNotPermitted", problem));
                }
                let Some(service) = services.get(&name) else {
                    let problem = format!("{field}: there is no Service {name}");
                    return Err(("BackendNotFound", problem));
                };
                let port = backend["port"].as_u64();
                if !service
                    .ports
                    .iter()
                    .any(|known| port == Some(known.port.into()))
                {
                    let port =
                        port.map_or_else(|| "without number".to_owned(), |it| it.to_string());
                    let problem = format!("{field}: Service {name} has no TCP port {port}");
                    return Err(("BackendNotFound", problem));
                }
            }
        }
        Ok(())
    }
}

/// All that a rule sends requests to, copies included, and where it says so.
fn backends(rule: &Value) -> impl Iterator<Item = (String, &Value)> {
    let all = move |key: &'static str| rule[key].as_array().into_iter().flatten().enumerate();
    let backends = all("backendRefs").map(|(n, one)| (format!("backendRefs[{n}]"), one));
    let mirrors = all("filters").filter_map(|(n, filter)| {
        let one = filter.pointer("/requestMirror/backendRef")?;
        Some((format!("filters[{n}].requestMirror.backendRef"), one))
    });
    backends.chain(mirrors)
}

fn unsupported(what: &str) -> Refusal {
    let problem = format!(
        "{what} is not supported, and the route has no effect: requests are balanced over the \
         Service's own endpoints"
    );
    ("UnsupportedValue", problem)
}

/// Not given, or given and empty.
fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_service(backend: &Value) -> bool {
    let is = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    is(&backend["group"], "").is_empty() && is(&backend["kind"], "Service") == "Service"
}

/// "namespace/name" of what a reference names.
fn name_of(reference: &Value, namespace: &str) -> Name {
    let namespace = reference["namespace"].as_str().unwrap_or(namespace);
    let name = reference["name"].as_str().unwrap_or_default();
    format!("{namespace}/{name}").into()
}

// === impl Routes ===

impl Routes {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            objects: Objects::default(),
            naming: Index::default(),
            stale: BTreeSet::new(),
        }
    }

    /// The services whose routes may be others now.
    pub fn hear(&mut self, change: Change<Route>) -> BTreeSet<Name> {
        let mut touched = BTreeSet::new();
        for (name, new) in self.objects.steps(change) {
            let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
            let old = self.objects.set(&name, new);
            for service in old.iter().flat_map(|old| old.named(namespace)) {
                self.naming.remove(&service, &name);
                touched.insert(service);
            }
            let new = self.objects.get(&name);
            for service in new.iter().flat_map(|new| new.named(namespace)) {
                touched.insert(service.clone());
                self.naming.add(service, &name);
            }
            self.stale.insert(name);
        }
        touched
    }

    pub fn service_changed(&mut self, service: &Name) {
        self.stale.extend(self.naming.get(service).cloned());
    }

    /// What is said of the requests to a service, the oldest first.
    pub fn of(&self, service: &Name, services: &Objects<Service>) -> Vec<api::Route> {
        let naming = self.naming.get(service);
        let mut all: Vec<_> = naming
            .filter_map(|name| Some((name, self.objects.get(name)?)))
            .collect();
        all.sort_by_key(|(name, route)| (&route.created, *name));
        all.into_iter()
            .flat_map(|(name, route)| route.told(self.kind, name, service, services))
            .collect()
    }

    /// What is to be written of those that may have changed; `None` where nothing is.
    pub fn judge(
        &mut self,
        services: &Objects<Service>,
    ) -> impl Iterator<Item = (Name, Option<Writing>)> {
        let stale = std::mem::take(&mut self.stale).into_iter();
        stale.map(|name| {
            let route = self.objects.get(&name);
            let writing = route.and_then(|route| route.judged(self.kind, &name, services));
            (name, writing)
        })
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
