//! What the mesh is at one moment, and how one moment becomes the next.
//!
//! The state is kept in the words of the API, so that nothing is translated on
//! its way to a proxy. It is cheap to clone and cheap to compare with an earlier
//! clone ([`Table`]), because every proxy is told the difference between what it
//! heard last and what is true now, within its [`Scope`]. A proxy that holds state
//! `a` and receives [`MeshState::delta`] from `a` to `b` holds `b`: [`View::apply`]
//! is what it does, and a property test holds the two together.

mod scope;
mod table;
mod update;
mod view;

pub use scope::Scope;
pub use table::Table;
pub use view::View;

use duet_core::api::{AuthorizationPolicy, MeshProtocol, Service, Workload};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Everything that discovery tells, keyed by "namespace/name".
#[derive(Clone, Debug, Default)]
pub struct MeshState {
    /// Grows with each change, over restarts too; see [`next_version`].
    pub version: u64,
    pub trust_domain: String,
    pub workloads: Table<Arc<str>, Workload>,
    pub services: Table<Arc<str>, Service>,
    pub policies: Table<Arc<str>, AuthorizationPolicy>,
    /// What namespaces hear of beside themselves; those that are not here hear of
    /// everything.
    reach: Table<Arc<str>, BTreeSet<String>>,
    /// "namespace/name" of the workloads and services that are only to be reached
    /// through the mesh, by address. More than one, where an address is already
    /// somebody else's before its last owner is gone.
    guarded: Table<IpAddr, BTreeSet<Arc<str>>>,
    /// How many workloads of which namespaces are on a node.
    nodes: Table<Arc<str>, BTreeMap<String, usize>>,
}

/// Whether a service may be reached past the mesh by those who do not hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backends {
    /// Somebody behind it is in the mesh, or nobody knows who is behind it.
    Guarded,
    /// Everybody behind it is known not to be in the mesh.
    Plain,
}

/// The version that follows `previous`: milliseconds since the epoch, so that a
/// restarted control plane goes on counting upwards without having stored anything.
pub fn next_version(previous: u64) -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
    now.max(previous.saturating_add(1))
}

// === impl MeshState ===

impl MeshState {
    /// A mesh without anybody in it.
    pub fn new(trust_domain: impl Into<String>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            ..Self::default()
        }
    }

    pub fn put_workload(&mut self, workload: Workload) {
        let name = key(&workload.namespace, &workload.name);
        if self.workloads.get(&name).map(|known| &**known) == Some(&workload) {
            return;
        }
        let name: Arc<str> = name.into();
        self.count(&workload, 1);
        let guarded = addresses(&workload.addresses, is_meshed(&workload));
        let old = self.workloads.insert(name.clone(), Arc::new(workload));
        if let Some(old) = &old {
            self.count(old, -1);
        }
        let unguarded = old.map(|old| addresses(&old.addresses, true));
        self.guard(&name, unguarded.unwrap_or_default(), guarded);
    }

    pub fn remove_workload(&mut self, name: &str) {
        if let Some(old) = self.workloads.remove(name) {
            self.count(&old, -1);
            self.guard(
                &name.into(),
                addresses(&old.addresses, true),
                BTreeSet::new(),
            );
        }
    }

    pub fn put_service(&mut self, service: Service, backends: Backends) {
        let name: Arc<str> = key(&service.namespace, &service.name).into();
        let guarded = addresses(&service.addresses, backends == Backends::Guarded);
        let mut unguarded = BTreeSet::new();
        if self.services.get(&name).map(|known| &**known) == Some(&service) {
            unguarded = addresses(&service.addresses, true);
        } else if let Some(old) = self.services.insert(name.clone(), Arc::new(service)) {
            unguarded = addresses(&old.addresses, true);
        }
        self.guard(&name, unguarded, guarded);
    }

    pub fn remove_service(&mut self, name: &str) {
        if let Some(old) = self.services.remove(name) {
            let unguarded = addresses(&old.addresses, true);
            self.guard(&name.into(), unguarded, BTreeSet::new());
        }
    }

    pub fn put_policy(&mut self, policy: AuthorizationPolicy) {
        let name = key(&policy.namespace, &policy.name);
        if self.policies.get(&name).map(|known| &**known) != Some(&policy) {
            self.policies.insert(name.into(), Arc::new(policy));
        }
    }

    pub fn remove_policy(&mut self, name: &str) {
        self.policies.remove(name);
    }

    /// The namespaces that the workloads of `namespace` hear of beside their own;
    /// `None`: all.
    pub fn set_reach(&mut self, namespace: &str, reach: Option<BTreeSet<String>>) {
        match reach {
            Some(reach) if self.reach.get(namespace).map(|known| &**known) != Some(&reach) => {
                self.reach.insert(namespace.into(), Arc::new(reach));
            }
            Some(_) => {}
            None => drop(self.reach.remove(namespace)),
        }
    }

    /// Whether the two differ in their version at most.
    pub fn same_mesh(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.workloads == other.workloads
            && self.services == other.services
            && self.policies == other.policies
            && self.reach == other.reach
            && self.guarded == other.guarded
    }

    /// The SPIFFE ID of a workload of this mesh.
    pub fn spiffe_id(&self, workload: &Workload) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, workload.namespace, workload.service_account
        )
    }

    fn guard(&mut self, owner: &Arc<str>, unguarded: BTreeSet<IpAddr>, guarded: BTreeSet<IpAddr>) {
        for address in unguarded.difference(&guarded) {
            let Some(owners) = self.guarded.find(address) else {
                continue;
            };
            let mut left = BTreeSet::clone(owners);
            if !left.remove(owner) {
                continue;
            }
            if left.is_empty() {
                self.guarded.remove(address);
            } else {
                self.guarded.insert(*address, Arc::new(left));
            }
        }
        for address in guarded {
            let owners = self.guarded.find(&address);
            let mut owners = owners.map_or_else(BTreeSet::new, |owners| BTreeSet::clone(owners));
            if owners.insert(owner.clone()) {
                self.guarded.insert(address, Arc::new(owners));
            }
        }
    }

    fn count(&mut self, workload: &Workload, change: isize) {
        if workload.node.is_empty() {
            return;
        }
        let counts = self.nodes.get(&workload.node);
        let mut counts = counts.map_or_else(BTreeMap::new, |counts| BTreeMap::clone(counts));
        let count = counts.entry(workload.namespace.clone()).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            counts.remove(&workload.namespace);
        }
        if counts.is_empty() {
            self.nodes.remove(&*workload.node);
        } else {
            self.nodes.insert((*workload.node).into(), Arc::new(counts));
        }
    }
}

/// How workloads and services are named in the API.
pub fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn is_meshed(workload: &Workload) -> bool {
    workload.protocol() != MeshProtocol::None
}

/// `texts` as addresses, if `wanted`. What is no address is no proxy's destination.
fn addresses(texts: &[String], wanted: bool) -> BTreeSet<IpAddr> {
    let texts = if wanted { texts } else { &[] };
    let parsed = texts.iter().filter_map(|text| text.parse().ok());
    parsed
        .map(|address: IpAddr| address.to_canonical())
        .collect()
}

#[cfg(test)]
mod tests;
