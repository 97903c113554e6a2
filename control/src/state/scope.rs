//! What a proxy hears of.
//!
//! By default everything. A namespace that says what it reaches
//! (`duet.dev/reach`) makes its proxies hear of that and of nothing else, which is
//! what keeps a sidecar small in a big cluster. What a proxy does not hear of it
//! would take for a place outside the mesh and reach in plaintext; so it is told
//! the bare addresses of the rest, and refuses them.

use super::MeshState;
use crate::auth::Caller;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The namespaces that a proxy hears of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Everything,
    Namespaces(BTreeSet<String>),
}

// === impl Scope ===

impl Scope {
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }

    /// Whether an address with these guarded owners must not be connected to. An
    /// owner that the proxy hears of comes first: it says how to reach it.
    pub(super) fn hides(&self, owners: &BTreeSet<Arc<str>>) -> bool {
        let heard_of = owners.iter().any(|owner| {
            let namespace = owner.split_once('/').map(|(namespace, _)| namespace);
            namespace.is_some_and(|namespace| self.contains(namespace))
        });
        !owners.is_empty() && !heard_of
    }
}

// === impl MeshState ===

impl MeshState {
    /// A workload's own namespace and what that reaches; for a node, all that its
    /// workloads hear of together. A node without workloads hears of everything,
    /// so that the first one to come finds everything known.
    pub fn scope_of(&self, caller: &Caller) -> Scope {
        if self.reach.is_empty() {
            return Scope::Everything;
        }
        let mut names = BTreeSet::new();
        let mut add = |namespace: &str| match self.reach.get(namespace) {
            Some(reach) => {
                names.insert(namespace.to_owned());
                names.extend(reach.iter().cloned());
                true
            }
            None => false,
        };
        let limited = match caller {
            Caller::Workload(name) => add(name.namespace()),
            Caller::Node(node) => self
                .nodes
                .get(node)
                .is_some_and(|counts| counts.keys().all(|namespace| add(namespace))),
        };
        if limited {
            Scope::Namespaces(names)
        } else {
            Scope::Everything
        }
    }
}
