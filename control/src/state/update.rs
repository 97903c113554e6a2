//! What a proxy is told: everything at first, then what changed for it.

use super::table::{Change, Table};
use super::{MeshState, Scope};
use duet_core::api::Update;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// One kind of thing, as far as it is told.
struct Told<T> {
    changed: Vec<T>,
    removed: Vec<String>,
}

// === impl MeshState ===

impl MeshState {
    /// All that `scope` lets a proxy hear, the first update of every watch.
    pub fn snapshot(&self, scope: &Scope) -> Update {
        let nothing = Self::default();
        Update {
            snapshot: true,
            ..self.difference(scope, &nothing, scope)
        }
    }

    /// What a proxy that heard `before` within `before_scope` must be told to know
    /// `self` within `scope`. `None` when there is nothing to tell; a new version
    /// alone is nothing.
    pub fn delta(&self, scope: &Scope, before: &Self, before_scope: &Scope) -> Option<Update> {
        let update = self.difference(scope, before, before_scope);
        let nothing = Update {
            version: update.version,
            trust_domain: before.trust_domain.clone(),
            ..Update::default()
        };
        (update != nothing).then_some(update)
    }

    fn difference(&self, scope: &Scope, before: &Self, before_scope: &Scope) -> Update {
        let scopes = (before_scope, scope);
        let workloads = told(&before.workloads, &self.workloads, scopes);
        let services = told(&before.services, &self.services, scopes);
        let policies = told(&before.policies, &self.policies, scopes);
        let (hidden, unhidden) = hiding(&before.guarded, &self.guarded, scopes);
        Update {
            version: self.version,
            trust_domain: self.trust_domain.clone(),
            workloads: workloads.changed,
            removed_workloads: workloads.removed,
            services: services.changed,
            removed_services: services.removed,
            policies: policies.changed,
            removed_policies: policies.removed,
            hidden,
            unhidden,
            ..Update::default()
        }
    }
}

/// With the scope unchanged, what changed of what is in it. With another scope,
/// what did not change itself may have come into it or gone out of it.
fn told<T: Clone + PartialEq>(
    before: &Table<Arc<str>, T>,
    after: &Table<Arc<str>, T>,
    scopes: (&Scope, &Scope),
) -> Told<T> {
    let mut told = Told {
        changed: Vec::new(),
        removed: Vec::new(),
    };
    let mut tell = |change: Change<'_, Arc<str>, T>| {
        let namespace = change.key.split_once('/').map_or("", |(name, _)| name);
        let before = change.before.filter(|_| scopes.0.contains(namespace));
        let after = change.after.filter(|_| scopes.1.contains(namespace));
        match (before, after) {
            (Some(_), None) => told.removed.push(change.key.to_string()),
            (before, Some(after)) if before != Some(after) => {
                told.changed.push(T::clone(after));
            }
            _ => {}
        }
    };
    if scopes.0 == scopes.1 {
        after.changes(before).for_each(&mut tell);
    } else {
        after.beside(before).for_each(&mut tell);
    }
    told
}

/// Addresses that are to be refused from now on, and those that no longer are.
fn hiding(
    before: &Table<IpAddr, BTreeSet<Arc<str>>>,
    after: &Table<IpAddr, BTreeSet<Arc<str>>>,
    scopes: (&Scope, &Scope),
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut hidden, mut unhidden) = (Vec::new(), Vec::new());
    let mut tell = |change: Change<'_, IpAddr, BTreeSet<Arc<str>>>| {
        let was = change.before.is_some_and(|owners| scopes.0.hides(owners));
        let is = change.after.is_some_and(|owners| scopes.1.hides(owners));
        if is && !was {
            hidden.push(bytes(change.key));
        } else if was && !is {
            unhidden.push(bytes(change.key));
        }
    };
    match scopes {
        (Scope::Everything, Scope::Everything) => {}
        (one, another) if one == another => after.changes(before).for_each(&mut tell),
        _ => after.beside(before).for_each(&mut tell),
    }
    (hidden, unhidden)
}

fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
