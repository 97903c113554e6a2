//! The file source's format: from YAML to a [`MeshState`].
//!
//! Every scalar is read as text with its place and understood here, so that a
//! mistake is reported in the file's own words: the line, the field, and what to
//! write instead. All mistakes are collected; the first is told, the others are
//! counted. Nothing is guessed and no field is skipped, because a mesh that
//! quietly ignores `mtsl: strict` is worse than one that does not start.

mod policy;
mod route;
mod traffic;

use super::Rejected;
use crate::state::{Backends, MeshState, key};
use crate::traffic::{MAX_WEIGHT, number};
use duet_core::api::{
    Endpoint, MeshProtocol, Mtls, Service, ServicePort, TrafficDistribution, Workload,
};
use policy::{PolicyEntry, ProbeEntry};
use route::RouteEntry;
use serde::Deserialize;
use serde_saphyr::{Error, Spanned};
use std::collections::HashMap;
use std::net::IpAddr;
use traffic::{AccrualEntry, BudgetEntry, BudgetsEntry, LimitsEntry, RetryEntry, TimeoutsEntry};

/// Trust domain of a file that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "duet.local";
/// Namespace of a workload or service that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Service account of a workload that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// As for every name in Kubernetes (RFC 1123 subdomain).
pub const MAX_NAME_BYTES: usize = 253;

/// YAML nodes in one file. serde-saphyr's own 250 000 would stop at about
/// 12 000 workloads; the file's size is limited before.
const MAX_NODES: usize = 8_000_000;

/// The words are those of Kubernetes (KEP-4444, KEP-3015).
const DISTRIBUTIONS: [(&str, TrafficDistribution); 4] = [
    ("Anywhere", TrafficDistribution::Anywhere),
    ("PreferSameZone", TrafficDistribution::SameZone),
    ("PreferSameNode", TrafficDistribution::SameNode),
    ("PreferClose", TrafficDistribution::SameZone),
];

/// What a port may say of its protocol; the words are those of Kubernetes.
const APP_PROTOCOLS: [&str; 4] = ["http", "kubernetes.io/h2c", "grpc", "tcp"];

/// Reads a mesh file. `path` is what the errors call it.
///
/// # Errors
/// One line, `path:line: field: problem: remedy`, of the first mistake.
pub fn parse(path: &str, text: &str) -> Result<MeshState, Rejected> {
    if text.trim().is_empty() {
        return Err(Rejected::new(format!(
            "{path}:1: the file is empty: write `workloads: []` for a mesh without workloads"
        )));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: MAX_NODES, max_events: 2 * MAX_NODES },
        with_snippet: false,
    };
    let file: MeshFile = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| malformed(path, text, &error))?;

    let mut reading = Reading::default();
    let state = reading.mesh(&file);
    reading.mistakes.sort_by_key(|mistake| mistake.line);
    match reading.mistakes.as_slice() {
        [] => Ok(state),
        [first, others @ ..] => Err(Rejected::new(format!(
            "{path}:{}: {}{}",
            first.line,
            first.problem,
            match others.len() {
                0 => String::new(),
                1 => " (and 1 more mistake)".to_owned(),
                more => format!(" (and {more} more mistakes)"),
            }
        ))),
    }
}

type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MeshFile {
    trust_domain: Option<Text>,
    workloads: Vec<WorkloadEntry>,
    #[serde(default)]
    services: Vec<ServiceEntry>,
    #[serde(default)]
    policies: Vec<PolicyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WorkloadEntry {
    namespace: Option<Text>,
    name: Text,
    service_account: Option<Text>,
    node: Option<Text>,
    zone: Option<Text>,
    weight: Option<Text>,
    #[serde(default)]
    addresses: Vec<Text>,
    mesh: Option<Text>,
    mtls: Option<Text>,
    #[serde(default)]
    opaque_ports: Vec<Text>,
    #[serde(default)]
    probes: Vec<ProbeEntry>,
    limits: Option<LimitsEntry>,
    budgets: Option<BudgetsEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceEntry {
    namespace: Option<Text>,
    name: Text,
    #[serde(default)]
    addresses: Vec<Text>,
    ports: Vec<PortEntry>,
    #[serde(default)]
    workloads: Vec<Text>,
    failure_accrual: Option<AccrualEntry>,
    timeouts: Option<TimeoutsEntry>,
    retry: Option<RetryEntry>,
    retry_budget: Option<BudgetEntry>,
    traffic_distribution: Option<Text>,
    slow_start: Option<Text>,
    #[serde(default)]
    routes: Vec<RouteEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PortEntry {
    port: Text,
    target_port: Option<Text>,
    name: Option<Text>,
    app_protocol: Option<Text>,
}

struct Mistake {
    line: u64,
    problem: String,
}

/// The reading of one file: what went wrong, and what was taken by whom.
#[derive(Default)]
struct Reading {
    mistakes: Vec<Mistake>,
    /// Whose an address is, "workload default/web-0", and on which line.
    addresses: HashMap<IpAddr, (String, u64)>,
    /// Of workloads that are not as others, by name.
    weights: HashMap<String, u32>,
    /// Backends of routes, whose services may come later in the file.
    backends: Vec<NamedBackend>,
}

struct NamedBackend {
    field: String,
    line: u64,
    service: String,
    port: String,
}

// === impl Reading ===

impl Reading {
    fn mesh(&mut self, file: &MeshFile) -> MeshState {
        let mut state = MeshState::new(self.name(
            "trustDomain",
            file.trust_domain.as_ref(),
            DEFAULT_TRUST_DOMAIN,
        ));
        let mut lines = HashMap::new();
        for (index, entry) in file.workloads.iter().enumerate() {
            let workload = self.workload(&format!("workloads[{index}]"), entry);
            let name = key(&workload.namespace, &workload.name);
            match lines.get(&name) {
                Some(first) => self.wrong(
                    &entry.name,
                    format!(
                        "workloads[{index}].name: the workload {name} is already on line {first}: \
                         give each workload its own name"
                    ),
                ),
                None => {
                    if let Some(text) = &entry.weight {
                        let weight =
                            self.word(&format!("workloads[{index}].weight"), Some(text), |text| {
                                number(text, 1..=MAX_WEIGHT)
                            });
                        self.weights.insert(name.clone(), weight);
                    }
                    lines.insert(name.clone(), line(&entry.name));
                    state.put_workload(workload);
                }
            }
        }
        lines.clear();
        for (index, entry) in file.services.iter().enumerate() {
            let service = self.service(&format!("services[{index}]"), entry, &state);
            let name = key(&service.namespace, &service.name);
            match lines.get(&name) {
                Some(first) => self.wrong(
                    &entry.name,
                    format!(
                        "services[{index}].name: the service {name} is already on line {first}: \
                         give each service its own name"
                    ),
                ),
                None => {
                    lines.insert(name.clone(), line(&entry.name));
                    state.put_service(service, Backends::Guarded);
                }
            }
        }
        self.check_backends(&state);
        self.policies(&file.policies, &mut state);
        state
    }

    fn workload(&mut self, field: &str, entry: &WorkloadEntry) -> Workload {
        let namespace = self.name(
            &format!("{field}.namespace"),
            entry.namespace.as_ref(),
            DEFAULT_NAMESPACE,
        );
        let name = self.name(&format!("{field}.name"), Some(&entry.name), "");
        let protocol = self.one_of(
            &format!("{field}.mesh"),
            entry.mesh.as_ref(),
            &[
                ("duet", MeshProtocol::Duet),
                ("hbone", MeshProtocol::Hbone),
                ("none", MeshProtocol::None),
            ],
        );
        let mtls = self.one_of(
            &format!("{field}.mtls"),
            entry.mtls.as_ref(),
            &[("permissive", Mtls::Permissive), ("strict", Mtls::Strict)],
        );
        if let (MeshProtocol::None, Mtls::Strict, Some(at)) = (protocol, mtls, &entry.mtls) {
            self.wrong(
                at,
                format!(
                    "{field}.mtls: strict cannot hold with `mesh: none`, nothing would enforce \
                     it: write `mesh: duet`, or leave mtls out"
                ),
            );
        }
        let owner = format!("workload {}", key(&namespace, &name));
        let addresses = self.addresses(&format!("{field}.addresses"), &entry.addresses, &owner);
        let mut opaque_ports = Vec::new();
        for (index, text) in entry.opaque_ports.iter().enumerate() {
            opaque_ports.extend(self.port(&format!("{field}.opaquePorts[{index}]"), text));
        }
        Workload {
            service_account: self.name(
                &format!("{field}.serviceAccount"),
                entry.service_account.as_ref(),
                DEFAULT_SERVICE_ACCOUNT,
            ),
            node: self.name(&format!("{field}.node"), entry.node.as_ref(), ""),
            zone: self.name(&format!("{field}.zone"), entry.zone.as_ref(), ""),
            namespace,
            name,
            addresses,
            protocol: protocol.into(),
            mtls: mtls.into(),
            opaque_ports,
            probes: self.probes(&format!("{field}.probes"), &entry.probes),
            limits: self.limits(&format!("{field}.limits"), entry.limits.as_ref()),
            budgets: self.budgets(&format!("{field}.budgets"), entry.budgets.as_ref()),
            ..Workload::default()
        }
    }

    fn service(&mut self, field: &str, entry: &ServiceEntry, state: &MeshState) -> Service {
        let namespace = self.name(
            &format!("{field}.namespace"),
            entry.namespace.as_ref(),
            DEFAULT_NAMESPACE,
        );
        let name = self.name(&format!("{field}.name"), Some(&entry.name), "");
        let owner = format!("service {}", key(&namespace, &name));
        let addresses = self.addresses(&format!("{field}.addresses"), &entry.addresses, &owner);

        let mut backends: Vec<&Workload> = Vec::new();
        for (index, text) in entry.workloads.iter().enumerate() {
            let field = format!("{field}.workloads[{index}]");
            let full = if text.value.contains('/') {
                text.value.clone()
            } else {
                key(&namespace, &text.value)
            };
            match state.workloads.get(&full) {
                None => self.wrong(
                    text,
                    format!(
                        "{field}: there is no workload {full}: add it under `workloads`, or write \
                         the name of one, as name or namespace/name"
                    ),
                ),
                Some(workload) if backends.contains(&&**workload) => self.wrong(
                    text,
                    format!("{field}: {full} is given twice: write it once"),
                ),
                Some(workload) => backends.push(workload),
            }
        }

        let distribution = self.one_of(
            &format!("{field}.trafficDistribution"),
            entry.traffic_distribution.as_ref(),
            &DISTRIBUTIONS,
        );
        let mut ports: Vec<ServicePort> = Vec::new();
        if entry.ports.is_empty() {
            self.wrong(
                &entry.name,
                format!("{field}.ports: a service without ports reaches nothing: add `- port: 80`"),
            );
        }
        for (index, entry) in entry.ports.iter().enumerate() {
            let field = format!("{field}.ports[{index}]");
            let port = self.service_port(&field, entry, &backends, distribution);
            if ports.iter().any(|other| other.port == port.port) && port.port != 0 {
                self.wrong(
                    &entry.port,
                    format!(
                        "{field}.port: {} is given twice: write each port once",
                        port.port
                    ),
                );
            }
            ports.push(port);
        }
        let accrual = entry.failure_accrual.as_ref();
        let failure_accrual =
            accrual.map(|said| self.accrual(&format!("{field}.failureAccrual"), said));
        let mut service = Service {
            namespace,
            name,
            addresses,
            ports,
            failure_accrual,
            timeouts: self.timeouts(&format!("{field}.timeouts"), entry.timeouts.as_ref()),
            retry: self.retry(&format!("{field}.retry"), entry.retry.as_ref()),
            retry_budget: self.budget(&format!("{field}.retryBudget"), entry.retry_budget.as_ref()),
            traffic_distribution: distribution.into(),
            slow_start_ms: self.word(
                &format!("{field}.slowStart"),
                entry.slow_start.as_ref(),
                crate::traffic::millis,
            ),
            routes: Vec::new(),
        };
        service.routes = self.routes(&format!("{field}.routes"), &entry.routes, &service);
        service
    }

    /// Port 0 stands for one that was reported.
    fn service_port(
        &mut self,
        field: &str,
        entry: &PortEntry,
        backends: &[&Workload],
        distribution: TrafficDistribution,
    ) -> ServicePort {
        let port = self
            .port(&format!("{field}.port"), &entry.port)
            .unwrap_or_default();
        let target = match &entry.target_port {
            Some(text) => self
                .port(&format!("{field}.targetPort"), text)
                .unwrap_or_default(),
            None => port,
        };
        // Said only where it matters.
        let is_near_first = distribution != TrafficDistribution::Anywhere;
        let near = |text: &String| is_near_first.then(|| text.clone());
        let endpoints = backends.iter().flat_map(|workload| {
            let name = key(&workload.namespace, &workload.name);
            let weight = self.weights.get(&name).copied().unwrap_or_default();
            let all = workload.addresses.iter();
            all.map(move |address| Endpoint {
                address: address.clone(),
                port: target,
                workload: name.clone(),
                zones: near(&workload.zone).into_iter().collect(),
                node: near(&workload.node).unwrap_or_default(),
                weight,
            })
        });
        let endpoints = endpoints.collect();
        let choices = APP_PROTOCOLS.map(|name| (name, name));
        ServicePort {
            port,
            name: self.name(&format!("{field}.name"), entry.name.as_ref(), ""),
            app_protocol: match &entry.app_protocol {
                None => String::new(),
                given => self
                    .one_of(&format!("{field}.appProtocol"), given.as_ref(), &choices)
                    .to_owned(),
            },
            endpoints,
        }
    }

    /// What names may hold goes into SPIFFE IDs, metrics and logs as it is.
    fn name(&mut self, field: &str, given: Option<&Text>, default: &str) -> String {
        let Some(text) = given else {
            return default.to_owned();
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let value = &text.value;
        let good = value.len() <= MAX_NAME_BYTES
            && value
                .bytes()
                .all(|byte| plain(byte) || b"-.".contains(&byte))
            && value.bytes().next().is_some_and(plain)
            && value.bytes().last().is_some_and(plain);
        if !good {
            self.wrong(
                text,
                format!(
                    "{field}: {value:?} is not a name: write lower-case letters, digits, `-` and \
                     `.`, a letter or digit at both ends, at most {MAX_NAME_BYTES}"
                ),
            );
        }
        value.clone()
    }

    fn port(&mut self, field: &str, text: &Text) -> Option<u32> {
        match text.value.parse::<u16>() {
            Ok(port) if port != 0 => Some(port.into()),
            _ => {
                self.wrong(
                    text,
                    format!(
                        "{field}: {:?} is not a port: write a number from 1 to 65535",
                        text.value
                    ),
                );
                None
            }
        }
    }

    fn addresses(&mut self, field: &str, given: &[Text], owner: &str) -> Vec<String> {
        let mut good = Vec::new();
        for (index, text) in given.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let address = match text.value.parse::<IpAddr>() {
                Ok(address) => address.to_canonical(),
                Err(_) => {
                    self.wrong(
                        text,
                        format!(
                            "{field}: {:?} is not an address: write an IPv4 or IPv6 address such \
                             as 10.71.1.2 or \"fd71:1::2\", without port or prefix length",
                            text.value
                        ),
                    );
                    continue;
                }
            };
            if address.is_unspecified() || address.is_multicast() {
                self.wrong(
                    text,
                    format!("{field}: {address} is nobody's own: write the {owner}'s address"),
                );
            } else if let Some((other, first)) = self.addresses.get(&address) {
                let problem = format!(
                    "{field}: {address} already belongs to the {other} (line {first}): give the \
                     {owner} its own address"
                );
                self.wrong(text, problem);
            } else {
                self.addresses
                    .insert(address, (owner.to_owned(), line(text)));
                good.push(address.to_string());
            }
        }
        good
    }

    /// The first choice is the default.
    fn one_of<T: Copy>(&mut self, field: &str, given: Option<&Text>, choices: &[(&str, T)]) -> T {
        let default = choices[0].1;
        let Some(text) = given else {
            return default;
        };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text.value) {
            return *choice;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.wrong(
            text,
            format!(
                "{field}: {:?} is not known: write one of {}",
                text.value,
                names.join(", ")
            ),
        );
        default
    }

    fn wrong<T>(&mut self, at: &Spanned<T>, problem: String) {
        self.mistakes.push(Mistake {
            line: line(at),
            problem,
        });
    }
}

fn line<T>(at: &Spanned<T>) -> u64 {
    at.referenced.line()
}

/// A mistake in the file's structure, which the YAML reader found. The line
/// itself is quoted, because the reader knows places, not field names.
fn malformed(path: &str, text: &str, error: &Error) -> Rejected {
    let error = error.without_snippet();
    let place = error.location().map(|location| location.line());
    let quoted = place
        .and_then(|line| {
            text.lines()
                .nth(usize::try_from(line).ok()?.checked_sub(1)?)
        })
        .map(str::trim)
        .unwrap_or_default();
    let problem = match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => format!(
            "unknown field `{field}`: write one of {}",
            expected.join(", ")
        ),
        Error::SerdeMissingField { field, .. } => {
            format!("`{field}` is missing from what ends with `{quoted}`: add it")
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("`{key}` is given twice: keep one")
        }
        Error::NullIntoString { .. } => {
            format!("`{quoted}` has no value: write one, or leave the field out")
        }
        Error::MultipleDocuments { .. } => {
            "a second YAML document: write one mesh per file, without `---`".to_owned()
        }
        other => format!(
            "`{quoted}`: {}",
            other.render_with_formatter(&serde_saphyr::UserMessageFormatter)
        ),
    };
    Rejected::new(match place {
        Some(line) => format!("{path}:{line}: {problem}"),
        None => format!("{path}: {problem}"),
    })
}

#[cfg(test)]
#[path = "mesh_yaml_tests.rs"]
mod tests;
