use super::*;
use crate::auth::Caller;
use duet_core::WorkloadName;
use duet_core::api::{Endpoint, ServicePort};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];

fn namespace() -> impl Strategy<Value = String> {
    (0..NAMESPACES.len()).prop_map(|index| NAMESPACES[index].to_owned())
}

/// Few names and addresses, so that two states share some of them, and so that an
/// address changes hands and sometimes has two owners.
fn workloads() -> impl Strategy<Value = Vec<Workload>> {
    vec(
        (namespace(), 0..4u8, 0..3u8, 0..12u8, 0..3i32, 0..2i32),
        0..12,
    )
    .prop_map(|drawn| {
        drawn
            .into_iter()
            .map(
                |(namespace, name, node, address, protocol, mtls)| Workload {
                    namespace,
                    name: format!("w{name}"),
                    node: format!("node-{node}"),
                    addresses: vec![format!("10.0.0.{address}")],
                    protocol,
                    mtls,
                    ..Workload::default()
                },
            )
            .collect()
    })
}

fn services() -> impl Strategy<Value = Vec<(Service, Backends)>> {
    let backends = prop_oneof![Just(Backends::Guarded), Just(Backends::Plain)];
    vec((namespace(), 0..4u8, vec(0..4u8, 0..4), backends), 0..8).prop_map(|drawn| {
        drawn
            .into_iter()
            .map(|(namespace, name, endpoints, backends)| {
                let service = Service {
                    addresses: vec![format!("10.96.0.{name}")],
                    namespace,
                    name: format!("s{name}"),
                    ports: vec![ServicePort {
                        port: 80,
                        endpoints: endpoints
                            .iter()
                            .map(|last| Endpoint {
                                address: format!("10.0.0.{last}"),
                                port: 8080,
                                ..Endpoint::default()
                            })
                            .collect(),
                        ..ServicePort::default()
                    }],
                    ..Service::default()
                };
                (service, backends)
            })
            .collect()
    })
}

prop_compose! {
    fn states()(
        version in 1..1000u64,
        domain in 0..2u8,
        workloads in workloads(),
        services in services(),
        policies in vec((namespace(), 0..3u8, 0..3i32), 0..4),
        reach in btree_map(namespace(), btree_set(namespace(), 0..3), 0..4),
    ) -> MeshState {
        let mut state = MeshState {
            version,
            trust_domain: format!("td{domain}"),
            ..MeshState::default()
        };
        for workload in workloads {
            state.put_workload(workload);
        }
        for (service, backends) in services {
            state.put_service(service, backends);
        }
        for (namespace, name, action) in policies {
            state.put_policy(AuthorizationPolicy {
                namespace,
                name: format!("p{name}"),
                action,
                ..AuthorizationPolicy::default()
            });
        }
        for (namespace, reach) in reach {
            state.set_reach(&namespace, Some(reach));
        }
        state
    }
}

/// `to`, reached from `from` by single edits, as a source does it.
fn edited(from: &MeshState, to: &MeshState) -> MeshState {
    let mut state = from.clone();
    state.version = to.version;
    state.trust_domain.clone_from(&to.trust_domain);
    for (name, workload) in to.workloads.iter() {
        assert_eq!(**name, key(&workload.namespace, &workload.name));
        state.put_workload(Workload::clone(workload));
    }
    for name in from.workloads.keys() {
        if !to.workloads.contains_key(name) {
            state.remove_workload(name);
        }
    }
    for (name, service) in to.services.iter() {
        let guarded = addresses(&service.addresses, true).iter().all(|address| {
            to.guarded
                .find(address)
                .is_some_and(|all| all.contains(name))
        });
        let backends = if guarded {
            Backends::Guarded
        } else {
            Backends::Plain
        };
        state.put_service(Service::clone(service), backends);
    }
    for name in from.services.keys() {
        if !to.services.contains_key(name) {
            state.remove_service(name);
        }
    }
    for policy in to.policies.values() {
        state.put_policy(AuthorizationPolicy::clone(policy));
    }
    for name in from.policies.keys() {
        if !to.policies.contains_key(name) {
            state.remove_policy(name);
        }
    }
    for namespace in NAMESPACES {
        let reach = to.reach.get(namespace).map(|reach| BTreeSet::clone(reach));
        state.set_reach(namespace, reach);
    }
    state
}

fn callers() -> impl Strategy<Value = Caller> {
    prop_oneof![
        (namespace(), 0..4u8).prop_map(|(namespace, name)| Caller::Workload(WorkloadName::new(
            &namespace,
            &format!("w{name}")
        ))),
        (0..3u8).prop_map(|node| Caller::Node(format!("node-{node}"))),
    ]
}

/// What the caller may know, counted out from the definition.
fn expected(state: &MeshState, caller: &Caller) -> View {
    let scope = state.scope_of(caller);
    let visible = |namespace: &String| scope.contains(namespace);
    let mut view = View {
        version: state.version,
        trust_domain: state.trust_domain.clone(),
        ..View::default()
    };
    let mut known = BTreeSet::new();
    for (name, workload) in state.workloads.iter() {
        if visible(&workload.namespace) {
            let workload = Workload::clone(workload);
            if is_meshed(&workload) {
                known.extend(addresses(&workload.addresses, true));
            }
            view.workloads.insert(name.to_string(), workload);
        } else if is_meshed(workload) {
            view.hidden.extend(addresses(&workload.addresses, true));
        }
    }
    for (name, service) in state.services.iter() {
        let own = addresses(&service.addresses, true)
            .into_iter()
            .filter(|address| {
                let owners = state.guarded.find(address);
                owners.is_some_and(|owners| owners.contains(name))
            });
        if visible(&service.namespace) {
            known.extend(own);
            view.services
                .insert(name.to_string(), Service::clone(service));
        } else {
            view.hidden.extend(own);
        }
    }
    for (name, policy) in state.policies.iter() {
        if visible(&policy.namespace) {
            view.policies
                .insert(name.to_string(), AuthorizationPolicy::clone(policy));
        }
    }
    view.hidden.retain(|address| !known.contains(address));
    view
}

proptest! {
    #[test]
    fn a_snapshot_is_what_the_caller_may_know(
        a in states(), b in states(), first in callers(), caller in callers(),
    ) {
        let mut held = View::default();
        held.apply(a.snapshot(&a.scope_of(&first)));
        held.apply(b.snapshot(&b.scope_of(&caller)));
        prop_assert_eq!(held, expected(&b, &caller));
    }

    #[test]
    fn a_delta_leads_from_one_state_to_the_next(
        a in states(), b in states(), caller in callers(), by_edits in any::<bool>(),
    ) {
        let b = if by_edits { edited(&a, &b) } else { b };
        let (before, after) = (a.scope_of(&caller), b.scope_of(&caller));
        let mut held = expected(&a, &caller);
        match b.delta(&after, &a, &before) {
            Some(delta) => {
                held.apply(delta);
                prop_assert_eq!(held, expected(&b, &caller));
            }
            None => {
                held.version = b.version;
                prop_assert_eq!(held, expected(&b, &caller));
            }
        }
    }

    #[test]
    fn edits_lead_where_building_anew_does(a in states(), b in states()) {
        let edited = edited(&a, &b);
        prop_assert!(edited.same_mesh(&b), "{edited:?}\n{b:?}");
        prop_assert_eq!(edited.nodes, b.nodes);
    }

    #[test]
    fn a_delta_names_nothing_that_stayed(a in states(), b in states(), caller in callers()) {
        let delta = b.delta(&b.scope_of(&caller), &a, &a.scope_of(&caller));
        let (before, after) = (expected(&a, &caller), expected(&b, &caller));
        let delta = delta.unwrap_or_default();
        for workload in delta.workloads {
            let name = key(&workload.namespace, &workload.name);
            prop_assert_ne!(before.workloads.get(&name), Some(&workload));
        }
        for name in delta.removed_workloads {
            prop_assert!(before.workloads.contains_key(&name));
        }
        prop_assert_eq!(
            delta.hidden.len() + delta.unhidden.len(),
            before.hidden.symmetric_difference(&after.hidden).count()
        );
    }

    #[test]
    fn nothing_meshed_is_neither_told_nor_refused(state in states(), caller in callers()) {
        let mut held = View::default();
        held.apply(state.snapshot(&state.scope_of(&caller)));
        let mut told = BTreeSet::new();
        for workload in held.workloads.values() {
            told.extend(addresses(&workload.addresses, true));
        }
        for workload in state.workloads.values().filter(|workload| is_meshed(workload)) {
            for address in addresses(&workload.addresses, true) {
                prop_assert!(
                    told.contains(&address) || held.hidden.contains(&address),
                    "{address} of {} would be reached in plaintext",
                    workload.name
                );
            }
        }
    }
}

fn workload(namespace: &str, name: &str, node: &str) -> Workload {
    Workload {
        namespace: namespace.into(),
        name: name.into(),
        node: node.into(),
        protocol: MeshProtocol::Duet.into(),
        ..Workload::default()
    }
}

fn reach(names: &[&str]) -> Option<BTreeSet<String>> {
    Some(names.iter().map(ToString::to_string).collect())
}

#[test]
fn a_node_hears_what_its_workloads_hear_together() {
    let mut state = MeshState::default();
    state.put_workload(workload("a", "one", "node-1"));
    state.put_workload(workload("b", "two", "node-1"));
    state.put_workload(workload("d", "three", "node-2"));
    let node = |name: &str| Caller::Node(name.into());
    let only = |names: &[&str]| Scope::Namespaces(reach(names).unwrap());
    assert_eq!(state.scope_of(&node("node-1")), Scope::Everything);

    state.set_reach("a", reach(&["c"]));
    state.set_reach("b", reach(&[]));
    assert_eq!(state.scope_of(&node("node-1")), only(&["a", "b", "c"]));
    assert_eq!(state.scope_of(&node("node-2")), Scope::Everything);
    assert_eq!(state.scope_of(&node("empty")), Scope::Everything);

    state.remove_workload("a/one");
    assert_eq!(state.scope_of(&node("node-1")), only(&["b"]));
    state.set_reach("b", None);
    assert_eq!(state.scope_of(&node("node-1")), Scope::Everything);
}

#[test]
fn versions_grow_even_when_the_clock_does_not() {
    let far = u64::MAX - 10;
    assert_eq!(next_version(far), far + 1);
    assert!(next_version(0) > 1_600_000_000_000);
}
