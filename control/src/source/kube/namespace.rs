//! What a namespace says for all of its pods.

use super::complaint::Complaints;
use crate::injector::names;
use duet_core::api::Mtls;
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeSet;

/// A namespace or pod label's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Sidecar,
    Agent,
    None,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub mode: Option<Mode>,
    pub mtls: Option<Mtls>,
    /// The namespaces that its workloads hear of beside their own; `None`: all.
    pub reach: Option<BTreeSet<String>>,
    pub complaints: Complaints,
}

// === impl Mode ===

impl Mode {
    /// The choice that a label's value stands for. One that is not known places
    /// nobody: the injector refuses such pods.
    pub fn read(value: &str, complaints: &mut Complaints) -> Self {
        match value {
            "sidecar" => Self::Sidecar,
            "agent" => Self::Agent,
            "none" => Self::None,
            other => {
                complaints.add(format!(
                    "label {}: {other:?} is not known: write sidecar, agent or none",
                    names::MODE
                ));
                Self::None
            }
        }
    }
}

/// What is not known is taken as strict: whoever writes this annotation means to
/// keep somebody out.
pub fn mtls(value: &str, complaints: &mut Complaints) -> Mtls {
    match value {
        "permissive" => Mtls::Permissive,
        "strict" => Mtls::Strict,
        other => {
            complaints.add(format!(
                "annotation {}: {other:?} is not known and taken as strict: write strict or \
                 permissive",
                names::MTLS
            ));
            Mtls::Strict
        }
    }
}

// === impl Namespace ===

impl Namespace {
    pub fn read(namespace: &core::Namespace) -> Self {
        let mut complaints = Complaints::default();
        let metadata = &namespace.metadata;
        let annotation = |name: &str| metadata.annotations.as_ref()?.get(name);
        let label = metadata
            .labels
            .as_ref()
            .and_then(|all| all.get(names::MODE));
        Self {
            mode: label.map(|value| Mode::read(value, &mut complaints)),
            mtls: annotation(names::MTLS).map(|value| mtls(value, &mut complaints)),
            reach: annotation(names::REACH).map(|value| reach(value, &mut complaints)),
            complaints,
        }
    }
}

fn reach(value: &str, complaints: &mut Complaints) -> BTreeSet<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let mut names = BTreeSet::new();
    for name in value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        if name.bytes().all(plain) {
            names.insert(name.to_owned());
        } else {
            complaints.add(format!(
                "annotation {}: {name:?} is no namespace and left out: write names of \
                 namespaces, with commas between them",
                names::REACH
            ));
        }
    }
    names
}
