//! `policies` of the file, and `probes` of its workloads.

use super::{DEFAULT_NAMESPACE, Reading, Text, line};
use crate::state::{MeshState, key};
use duet_core::api::authorization_policy::{Action, Operation, Rule, Source};
use duet_core::api::{AuthorizationPolicy, MeshProtocol, Probe, Workload};
use duet_core::policy::{IdentityPattern, Method, Namespace, Network, PathPattern};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

const ACTIONS: [(&str, Action); 3] = [
    ("allow", Action::Allow),
    ("deny", Action::Deny),
    ("audit", Action::Audit),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct PolicyEntry {
    namespace: Option<Text>,
    name: Text,
    action: Text,
    workloads: Option<Spanned<Vec<Text>>>,
    #[serde(default)]
    rules: Vec<RuleEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleEntry {
    from: Option<Spanned<Vec<Spanned<SourceEntry>>>>,
    to: Option<Spanned<Vec<Spanned<OperationEntry>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SourceEntry {
    identities: Option<Spanned<Vec<Text>>>,
    namespaces: Option<Spanned<Vec<Text>>>,
    ip_blocks: Option<Spanned<Vec<Text>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct OperationEntry {
    ports: Option<Spanned<Vec<Text>>>,
    methods: Option<Spanned<Vec<Text>>>,
    paths: Option<Spanned<Vec<Text>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ProbeEntry {
    port: Text,
    path: Option<Text>,
    grpc: Option<Text>,
}

// === impl Reading ===

impl Reading {
    /// Puts the policies into the mesh, and their names at the workloads they are for.
    pub(super) fn policies(&mut self, entries: &[PolicyEntry], state: &mut MeshState) {
        let mut lines = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let field = format!("policies[{index}]");
            let policy = self.policy(&field, entry);
            let name = key(&policy.namespace, &policy.name);
            if let Some(first) = lines.get(&name) {
                self.wrong(
                    &entry.name,
                    format!(
                        "{field}.name: the policy {name} is already on line {first}: give each \
                         policy its own name"
                    ),
                );
                continue;
            }
            lines.insert(name.clone(), line(&entry.name));
            for mut workload in self.selected(&field, entry, &policy.namespace, state) {
                workload.policies.push(name.clone());
                state.put_workload(workload);
            }
            state.put_policy(policy);
        }
    }

    fn policy(&mut self, field: &str, entry: &PolicyEntry) -> AuthorizationPolicy {
        let namespace = self.name(
            &format!("{field}.namespace"),
            entry.namespace.as_ref(),
            DEFAULT_NAMESPACE,
        );
        let name = self.name(&format!("{field}.name"), Some(&entry.name), "");
        let action = self.one_of(&format!("{field}.action"), Some(&entry.action), &ACTIONS);
        if entry.rules.is_empty() && action != Action::Allow {
            self.wrong(
                &entry.action,
                format!(
                    "{field}.rules: without rules {:?} matches nothing: add a rule; \
                     `rules: [{{}}]` matches everything",
                    entry.action.value
                ),
            );
        }
        let mut rules = Vec::with_capacity(entry.rules.len());
        for (index, rule) in entry.rules.iter().enumerate() {
            let field = format!("{field}.rules[{index}]");
            rules.push(Rule {
                from: self.all(&format!("{field}.from"), rule.from.as_ref(), Self::source),
                to: self.all(&format!("{field}.to"), rule.to.as_ref(), Self::operation),
            });
        }
        AuthorizationPolicy {
            namespace,
            name,
            action: action.into(),
            rules,
        }
    }

    /// The workloads that a policy names, or all meshed ones of its namespace.
    fn selected(
        &mut self,
        field: &str,
        entry: &PolicyEntry,
        namespace: &str,
        state: &MeshState,
    ) -> Vec<Workload> {
        let Some(names) = &entry.workloads else {
            return state
                .workloads
                .values()
                .filter(|workload| workload.namespace == namespace)
                .filter(|workload| workload.protocol() != MeshProtocol::None)
                .map(|workload| Workload::clone(workload))
                .collect();
        };
        let field = format!("{field}.workloads");
        let named = self.all(&field, Some(names), |reading, field, name| {
            let full = key(namespace, &name.value);
            match state.workloads.get(&full) {
                None => {
                    reading.wrong(
                        name,
                        format!(
                            "{field}: there is no workload {full}: write the name of one of the \
                             policy's own namespace"
                        ),
                    );
                    None
                }
                Some(workload) if workload.protocol() == MeshProtocol::None => {
                    reading.wrong(
                        name,
                        format!(
                            "{field}: {full} is not in the mesh, nothing would enforce the \
                             policy: write `mesh: duet` there, or leave it out here"
                        ),
                    );
                    None
                }
                Some(workload) => Some(workload.clone()),
            }
        });
        let mut selected: Vec<Arc<Workload>> = Vec::with_capacity(named.len());
        for (index, workload) in named.into_iter().flatten().enumerate() {
            if selected.contains(&workload) {
                self.wrong(
                    &names.value[index],
                    format!("{field}: it is given twice: write it once"),
                );
            } else {
                selected.push(workload);
            }
        }
        let owned = selected.iter().map(|workload| Workload::clone(workload));
        owned.collect()
    }

    fn source(&mut self, field: &str, entry: &Spanned<SourceEntry>) -> Source {
        let SourceEntry {
            identities,
            namespaces,
            ip_blocks,
        } = &entry.value;
        if identities.is_none() && namespaces.is_none() && ip_blocks.is_none() {
            self.wrong(
                entry,
                format!("{field}: an empty source is everybody: leave `from` out"),
            );
        }
        let field = |name| format!("{field}.{name}");
        Source {
            identities: self.words::<IdentityPattern>(&field("identities"), identities.as_ref()),
            namespaces: self.words::<Namespace>(&field("namespaces"), namespaces.as_ref()),
            ip_blocks: self.words::<Network>(&field("ipBlocks"), ip_blocks.as_ref()),
        }
    }

    fn operation(&mut self, field: &str, entry: &Spanned<OperationEntry>) -> Operation {
        let OperationEntry {
            ports,
            methods,
            paths,
        } = &entry.value;
        if ports.is_none() && methods.is_none() && paths.is_none() {
            self.wrong(
                entry,
                format!("{field}: an empty operation is everything: leave `to` out"),
            );
        }
        let field = |name| format!("{field}.{name}");
        Operation {
            ports: self
                .all(&field("ports"), ports.as_ref(), Self::port)
                .into_iter()
                .flatten()
                .collect(),
            methods: self.words::<Method>(&field("methods"), methods.as_ref()),
            paths: self.words::<PathPattern>(&field("paths"), paths.as_ref()),
        }
    }

    /// Words that a proxy will be able to read as `W`.
    fn words<W: FromStr<Err: ToString>>(
        &mut self,
        field: &str,
        given: Option<&Spanned<Vec<Text>>>,
    ) -> Vec<String> {
        self.all(field, given, |reading, field, word| {
            if let Err(error) = word.value.parse::<W>() {
                reading.wrong(word, format!("{field}: {}", error.to_string()));
            }
            word.value.clone()
        })
    }

    /// Each element. What is left out is "any" to a proxy, which what is empty must
    /// not become.
    fn all<T, U>(
        &mut self,
        field: &str,
        given: Option<&Spanned<Vec<T>>>,
        mut read: impl FnMut(&mut Self, &str, &T) -> U,
    ) -> Vec<U> {
        let Some(given) = given else {
            return Vec::new();
        };
        if given.value.is_empty() {
            self.wrong(
                given,
                format!("{field}: it is empty: leave it out if any will do"),
            );
        }
        let elements = given.value.iter().enumerate();
        elements
            .map(|(index, element)| read(self, &format!("{field}[{index}]"), element))
            .collect()
    }

    pub(super) fn probes(&mut self, field: &str, entries: &[ProbeEntry]) -> Vec<Probe> {
        let mut probes = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let port = self.port(&format!("{field}.port"), &entry.port);
            let grpc = format!("{field}.grpc");
            let grpc = self.one_of(
                &grpc,
                entry.grpc.as_ref(),
                &[("false", false), ("true", true)],
            );
            let path = match &entry.path {
                Some(text) if grpc => {
                    self.wrong(
                        text,
                        format!(
                            "{field}.path: gRPC's health check has none: leave path or grpc out"
                        ),
                    );
                    String::new()
                }
                Some(text) if !text.value.starts_with('/') => {
                    self.wrong(
                        text,
                        format!(
                            "{field}.path: {:?} is not a path: begin it with /",
                            text.value
                        ),
                    );
                    String::new()
                }
                Some(text) => text.value.clone(),
                None => String::new(),
            };
            probes.extend(port.map(|port| Probe { port, path, grpc }));
        }
        probes
    }
}
