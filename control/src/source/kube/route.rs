//! HTTPRoutes and GRPCRoutes that have a Service as their parent.
//!
//! A proxy balances over the endpoints of the service that was asked for and knows of
//! no other way. A route that says just that is accepted. For any other the status says
//! what is not supported, field by field; it changes nothing. So what is read is the
//! object as it is, and whatever is not known to be harmless is reported: a field that
//! a later version of the API adds is not passed over in silence.

use super::objects::{Change, Index, Name, Objects};
use super::service::Service;
use super::status::{Writing, condition, find};
use kube::api::DynamicObject;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What a status names as its author.
pub const CONTROLLER: &str = "duet.dev/control";

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    generation: i64,
    resource_version: String,
    spec: Value,
    /// `status.parents`, everybody's.
    parents: Vec<Value>,
}

/// The routes of one kind, and which of them are to be judged again.
#[derive(Default)]
pub struct Routes {
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
        let backends = rules.flat_map(|rule| rule["backendRefs"].as_array().into_iter().flatten());
        let named = self.services().chain(backends);
        named.map(|one| name_of(one, namespace)).collect()
    }

    /// What `status.parents` should be; `None` if it is.
    fn judged(&self, name: &str, services: &Objects<Service>) -> Option<Writing> {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        let ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
        let others = self.parents.iter().filter(|entry| !ours(entry));
        let mut wanted: Vec<Value> = others.cloned().collect();
        for parent in self.services() {
            let known = self.parents.iter().filter(ours);
            let known = known
                .into_iter()
                .find(|entry| entry["parentRef"] == *parent);
            let known = known.map_or(&Value::Null, |entry| &entry["conditions"]);
            let verdict = self.judge(parent, namespace, services);
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

    fn judge(&self, parent: &Value, namespace: &str, services: &Objects<Service>) -> Verdict {
        Verdict {
            accepted: self.accepted(parent, namespace, services),
            resolved: self.resolved(namespace, services),
        }
    }

    fn accepted(
        &self,
        parent: &Value,
        namespace: &str,
        services: &Objects<Service>,
    ) -> Result<(), Refusal> {
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
        let ports: BTreeSet<u64> = match parent["port"].as_u64() {
            Some(port) => [port].into(),
            None => service.ports.iter().map(|port| port.port.into()).collect(),
        };
        let known = |port: &u64| {
            service
                .ports
                .iter()
                .any(|known| u64::from(known.port) == *port)
        };
        if let Some(port) = ports.iter().find(|port| !known(port)) {
            return no_parent(format!("Service {name} has no TCP port {port}"));
        }
        for (field, value) in self.spec.as_object().into_iter().flatten() {
            if !["parentRefs", "rules"].contains(&&**field) && !is_absent(value) {
                return Err(unsupported(&format!("spec.{field}")));
            }
        }
        let rules = self.spec["rules"].as_array();
        let rules = rules.filter(|rules| !rules.is_empty());
        let Some(rules) = rules else {
            return Err(unsupported(
                "a route without rules, which refuses everything,",
            ));
        };
        for (index, rule) in rules.iter().enumerate() {
            rule_says_nothing(
                rule,
                &format!("spec.rules[{index}]"),
                &name,
                namespace,
                &ports,
            )?;
        }
        Ok(())
    }

    fn resolved(&self, namespace: &str, services: &Objects<Service>) -> Result<(), Refusal> {
        let rules = self.spec["rules"].as_array().into_iter().flatten();
        for (index, rule) in rules.enumerate() {
            let backends = rule["backendRefs"].as_array().into_iter().flatten();
            for (number, backend) in backends.enumerate() {
                let field = format!("spec.rules[{index}].backendRefs[{number}]");
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

/// Whether the rule asks for what happens anyway: everything goes to the endpoints of
/// the service itself.
fn rule_says_nothing(
    rule: &Value,
    field: &str,
    parent: &Name,
    namespace: &str,
    ports: &BTreeSet<u64>,
) -> Result<(), Refusal> {
    for (name, value) in rule.as_object().into_iter().flatten() {
        match &**name {
            // Its name changes nothing, and these two are looked at below.
            "name" | "matches" | "backendRefs" => {}
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&format!("{field}.{name}"))),
        }
    }
    let matches = rule["matches"].as_array().into_iter().flatten();
    for (index, one) in matches.enumerate() {
        for (name, value) in one.as_object().into_iter().flatten() {
            // The API server's default.
            let everything =
                name == "path" && value["type"] == "PathPrefix" && value["value"] == "/";
            if !everything && !is_absent(value) {
                return Err(unsupported(&format!("{field}.matches[{index}].{name}")));
            }
        }
    }
    let field = format!("{field}.backendRefs");
    let backends = rule["backendRefs"].as_array().map_or(&[][..], |all| all);
    let [backend] = backends else {
        return Err(unsupported(&match backends.len() {
            0 => format!("{field}: a rule without backends, which refuses everything,"),
            many => format!("{field}: splitting traffic between {many} backends"),
        }));
    };
    let field = format!("{field}[0]");
    for (name, value) in backend.as_object().into_iter().flatten() {
        match &**name {
            "group" | "kind" | "namespace" | "name" | "port" => {}
            "weight" if value.as_u64() != Some(0) => {}
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&format!("{field}.{name}"))),
        }
    }
    if !is_service(backend) || name_of(backend, namespace) != *parent {
        return Err(unsupported(&format!(
            "{field}: another backend than the parent itself"
        )));
    }
    if backend["port"]
        .as_u64()
        .is_none_or(|port| *ports != [port].into())
    {
        return Err(unsupported(&format!(
            "{field}.port: another port than the parent's, or one for several,"
        )));
    }
    Ok(())
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
    pub fn hear(&mut self, change: Change<Route>) {
        for (name, new) in self.objects.steps(change) {
            let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
            let old = self.objects.set(&name, new);
            for service in old.iter().flat_map(|old| old.named(namespace)) {
                self.naming.remove(&service, &name);
            }
            let new = self.objects.get(&name);
            for service in new.iter().flat_map(|new| new.named(namespace)) {
                self.naming.add(service, &name);
            }
            self.stale.insert(name);
        }
    }

    pub fn service_changed(&mut self, service: &Name) {
        self.stale.extend(self.naming.get(service).cloned());
    }

    /// What is to be written of those that may have changed; `None` where nothing is.
    pub fn judge(
        &mut self,
        services: &Objects<Service>,
    ) -> impl Iterator<Item = (Name, Option<Writing>)> {
        let stale = std::mem::take(&mut self.stale).into_iter();
        stale.map(|name| {
            let route = self.objects.get(&name);
            let writing = route.and_then(|route| route.judged(&name, services));
            (name, writing)
        })
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
