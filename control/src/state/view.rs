//! The mesh as a proxy knows it.

use super::key;
use duet_core::api::{AuthorizationPolicy, Service, Update, Workload};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What a proxy holds after the updates it has received, keyed by "namespace/name".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub version: u64,
    pub trust_domain: String,
    pub workloads: BTreeMap<String, Workload>,
    pub services: BTreeMap<String, Service>,
    pub policies: BTreeMap<String, AuthorizationPolicy>,
    /// Addresses that the proxy refuses.
    pub hidden: BTreeSet<IpAddr>,
}

// === impl View ===

impl View {
    /// What a proxy does with an update.
    pub fn apply(&mut self, update: Update) {
        if update.snapshot {
            *self = Self::default();
        }
        self.version = update.version;
        self.trust_domain = update.trust_domain;
        for name in update.removed_workloads {
            self.workloads.remove(&name);
        }
        for name in update.removed_services {
            self.services.remove(&name);
        }
        for name in update.removed_policies {
            self.policies.remove(&name);
        }
        for workload in update.workloads {
            self.workloads
                .insert(key(&workload.namespace, &workload.name), workload);
        }
        for service in update.services {
            self.services
                .insert(key(&service.namespace, &service.name), service);
        }
        for policy in update.policies {
            self.policies
                .insert(key(&policy.namespace, &policy.name), policy);
        }
        for address in update.unhidden.iter().filter_map(|bytes| address(bytes)) {
            self.hidden.remove(&address);
        }
        self.hidden
            .extend(update.hidden.iter().filter_map(|bytes| address(bytes)));
    }
}

/// Of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
