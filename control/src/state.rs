//! What the mesh is at one moment, and how one moment becomes the next.
//!
//! The state is kept in the words of the API, so that nothing is translated on
//! its way to a proxy. A proxy that holds state `a` and receives
//! [`MeshState::delta_from`]`(a)` of `b` holds `b`: [`MeshState::apply`] is what it
//! does, and a property test holds the two together.

use duet_core::api::{Service, Update, Workload};
use std::collections::BTreeMap;

/// Everything that discovery tells, keyed by "namespace/name".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshState {
    /// Grows with each change, over restarts too; see [`next_version`].
    pub version: u64,
    pub trust_domain: String,
    pub workloads: BTreeMap<String, Workload>,
    pub services: BTreeMap<String, Service>,
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
    /// The whole state, the first update of every watch.
    pub fn snapshot(&self) -> Update {
        Update {
            snapshot: true,
            version: self.version,
            trust_domain: self.trust_domain.clone(),
            workloads: self.workloads.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            removed_workloads: Vec::new(),
            removed_services: Vec::new(),
            ..Update::default()
        }
    }

    /// What a proxy that holds `before` must be told to hold `self`. `None` when
    /// there is nothing to tell; a new version alone is nothing.
    pub fn delta_from(&self, before: &Self) -> Option<Update> {
        if self.same_mesh(before) {
            return None;
        }
        Some(Update {
            snapshot: false,
            version: self.version,
            trust_domain: self.trust_domain.clone(),
            workloads: changed(&before.workloads, &self.workloads),
            services: changed(&before.services, &self.services),
            removed_workloads: removed(&before.workloads, &self.workloads),
            removed_services: removed(&before.services, &self.services),
            ..Update::default()
        })
    }

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
        for workload in update.workloads {
            self.workloads
                .insert(key(&workload.namespace, &workload.name), workload);
        }
        for service in update.services {
            self.services
                .insert(key(&service.namespace, &service.name), service);
        }
    }

    /// Whether the two differ in their version at most.
    pub fn same_mesh(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.workloads == other.workloads
            && self.services == other.services
    }

    /// The SPIFFE ID of a workload of this mesh.
    pub fn spiffe_id(&self, workload: &Workload) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, workload.namespace, workload.service_account
        )
    }
}

/// How workloads and services are named in the API.
pub fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn changed<T: Clone + PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
) -> Vec<T> {
    after
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value))
        .map(|(_, value)| value.clone())
        .collect()
}

fn removed<T>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> Vec<String> {
    before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use duet_core::api::{Endpoint, ServicePort};
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn workloads() -> impl Strategy<Value = Vec<Workload>> {
        // Few names, so that two states share some of them.
        btree_set(0..8u8, 0..8)
            .prop_flat_map(|names| {
                names
                    .into_iter()
                    .map(|name| {
                        (0..3u8, 0..3u8, 0..2i32).prop_map(move |(node, address, mtls)| Workload {
                            namespace: format!("ns{}", name % 2),
                            name: format!("w{name}"),
                            node: format!("node-{node}"),
                            addresses: vec![format!("10.0.{name}.{address}")],
                            mtls,
                            ..Workload::default()
                        })
                    })
                    .collect::<Vec<_>>()
            })
            .boxed()
    }

    fn services() -> impl Strategy<Value = Vec<Service>> {
        btree_set(0..6u8, 0..6).prop_flat_map(|names| {
            names
                .into_iter()
                .map(|name| {
                    vec(0..4u8, 0..4).prop_map(move |endpoints| Service {
                        namespace: "default".into(),
                        name: format!("s{name}"),
                        addresses: vec![format!("10.96.0.{name}")],
                        ports: vec![ServicePort {
                            port: 80,
                            endpoints: endpoints
                                .iter()
                                .map(|last| Endpoint {
                                    address: format!("10.0.0.{last}"),
                                    port: 8080,
                                    workload: String::new(),
                                })
                                .collect(),
                            ..ServicePort::default()
                        }],
                    })
                })
                .collect::<Vec<_>>()
        })
    }

    prop_compose! {
        fn states()(
            version in 1..1000u64,
            domain in 0..2u8,
            workloads in workloads(),
            services in services(),
        ) -> MeshState {
            let mut state = MeshState::default();
            state.apply(Update {
                snapshot: true,
                version,
                trust_domain: format!("td{domain}"),
                workloads,
                services,
                ..Update::default()
            });
            state
        }
    }

    proptest! {
        #[test]
        fn a_delta_leads_from_one_state_to_the_next(a in states(), b in states()) {
            let mut held = a.clone();
            match b.delta_from(&a) {
                Some(delta) => {
                    held.apply(delta);
                    prop_assert_eq!(held, b);
                }
                None => prop_assert!(a.same_mesh(&b)),
            }
        }

        #[test]
        fn a_snapshot_leads_anywhere(a in states(), b in states()) {
            let mut held = a;
            held.apply(b.snapshot());
            prop_assert_eq!(held, b);
        }

        #[test]
        fn a_delta_names_nothing_that_stayed(a in states(), b in states()) {
            for workload in b.delta_from(&a).into_iter().flat_map(|delta| delta.workloads) {
                let name = key(&workload.namespace, &workload.name);
                prop_assert_ne!(a.workloads.get(&name), Some(&workload));
            }
        }
    }

    #[test]
    fn versions_grow_even_when_the_clock_does_not() {
        let far = u64::MAX - 10;
        assert_eq!(next_version(far), far + 1);
        assert!(next_version(0) > 1_600_000_000_000);
    }
}
