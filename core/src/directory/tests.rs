use super::*;
use crate::breaker::State;

fn workload(name: &str, address: &str) -> api::Workload {
    api::Workload {
        namespace: "default".into(),
        name: name.into(),
        service_account: name.into(),
        addresses: vec![address.into()],
        protocol: api::MeshProtocol::Duet as i32,
        ..Default::default()
    }
}

fn service(endpoints: &[(&str, &str)]) -> api::Service {
    api::Service {
        namespace: "default".into(),
        name: "web".into(),
        addresses: vec!["10.96.0.1".into()],
        ports: vec![api::ServicePort {
            port: 80,
            endpoints: endpoints
                .iter()
                .map(|(address, workload)| api::Endpoint {
                    address: (*address).into(),
                    port: 8080,
                    workload: (*workload).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn web() -> OrigDst {
    OrigDst::new("10.96.0.1:80".parse().unwrap())
}

fn endpoints(directory: &Directory) -> Vec<Arc<Endpoint>> {
    match directory.resolve(web()) {
        Destination::Service(port) => port.endpoints().to_vec(),
        Destination::Address(_) | Destination::OutOfReach(_) => Vec::new(),
    }
}

#[test]
fn a_snapshot_replaces_everything() {
    let directory = Directory::default();
    directory.apply(api::Update {
        snapshot: true,
        version: 1,
        workloads: vec![workload("a", "10.0.0.1"), workload("b", "10.0.0.2")],
        services: vec![service(&[("10.0.0.1", "default/a")])],
        ..Default::default()
    });
    assert_eq!(endpoints(&directory).len(), 1);
    directory.apply(api::Update {
        snapshot: true,
        version: 2,
        workloads: vec![workload("b", "10.0.0.1")],
        ..Default::default()
    });
    assert!(endpoints(&directory).is_empty());
    assert!(
        directory
            .workload(&WorkloadName::new("default", "a"))
            .is_none()
    );
    let now_b = directory
        .at("10.0.0.1".parse().unwrap())
        .expect("b took a's address");
    assert_eq!(now_b.name.name(), "b");
    assert!(directory.at("10.0.0.2".parse().unwrap()).is_none());
}

#[test]
fn an_endpoint_keeps_its_history_over_an_update() {
    let directory = Directory::default();
    let update = |endpoints: &[(&str, &str)]| api::Update {
        services: vec![service(endpoints)],
        version: 1,
        ..Default::default()
    };
    directory.apply(update(&[("10.0.0.1", "default/a")]));
    let Destination::Service(held) = directory.resolve(web()) else {
        panic!("a service")
    };
    let before = endpoints(&directory);
    directory.apply(update(&[
        ("10.0.0.2", "default/b"),
        ("10.0.0.1", "default/a"),
    ]));
    let after = endpoints(&directory);
    assert!(
        after
            .iter()
            .any(|endpoint| Arc::ptr_eq(endpoint, &before[0]))
    );
    assert_eq!(
        held.endpoints().len(),
        2,
        "a live connection sees the change too"
    );
    directory.apply(api::Update {
        removed_services: vec!["default/web".into()],
        version: 2,
        ..Default::default()
    });
    assert!(held.endpoints().is_empty());
}

fn policy(name: &str, rules: usize) -> api::AuthorizationPolicy {
    api::AuthorizationPolicy {
        namespace: "default".into(),
        name: name.into(),
        action: api::authorization_policy::Action::Deny as i32,
        rules: vec![Default::default(); rules],
    }
}

fn selected(name: &str, address: &str, policies: &[&str]) -> api::Workload {
    api::Workload {
        policies: policies.iter().map(|name| (*name).to_owned()).collect(),
        ..workload(name, address)
    }
}

#[test]
fn a_workload_is_authorized_by_the_policies_that_are_known() {
    let directory = Directory::default();
    let name = WorkloadName::new("default", "a");
    let followed = directory.follow(&name);
    let now = || {
        let now = followed.borrow().clone().expect("known");
        assert_eq!(directory.workload(&name).as_ref(), Some(&now));
        assert_eq!(
            directory.at("10.0.0.1".parse().unwrap()).as_ref(),
            Some(&now)
        );
        now.authorization.clone()
    };
    directory.apply(api::Update {
        snapshot: true,
        version: 1,
        workloads: vec![selected("a", "10.0.0.1", &["default/p"])],
        policies: vec![policy("p", 0)],
        ..Default::default()
    });
    let first = now().expect("selected");
    // Only the policy is told of.
    directory.apply(api::Update {
        version: 2,
        policies: vec![policy("p", 1)],
        ..Default::default()
    });
    let second = now().expect("selected");
    assert_ne!(first, second);
    // The same again, as after a reconnection.
    directory.apply(api::Update {
        snapshot: true,
        version: 3,
        workloads: vec![selected("a", "10.0.0.1", &["default/p"])],
        policies: vec![policy("p", 1)],
        ..Default::default()
    });
    assert!(Arc::ptr_eq(&second, &now().expect("selected")));
    directory.apply(api::Update {
        version: 4,
        removed_policies: vec!["default/p".into()],
        ..Default::default()
    });
    let unknown = now().expect("it is still named");
    assert_ne!(second, unknown);
    directory.apply(api::Update {
        version: 5,
        workloads: vec![selected("a", "10.0.0.1", &[])],
        ..Default::default()
    });
    assert!(now().is_none());
}

#[test]
fn a_follower_hears_of_changes_only() {
    let directory = Directory::default();
    let mut followed = directory.follow(&WorkloadName::new("default", "a"));
    let mut changed = || {
        let changed = followed.has_changed().unwrap();
        followed.mark_unchanged();
        changed
    };
    let update = |workloads| api::Update {
        snapshot: true,
        version: 1,
        workloads,
        ..Default::default()
    };
    directory.apply(update(vec![workload("a", "10.0.0.1")]));
    assert!(changed());
    directory.apply(update(vec![
        workload("a", "10.0.0.1"),
        workload("b", "10.0.0.2"),
    ]));
    assert!(!changed());
    directory.apply(update(vec![]));
    assert!(changed());
}

#[test]
fn what_is_hidden_is_no_outsider() {
    let directory = Directory::default();
    let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    let hidden = |ip: IpAddr| matches!(directory.occupant(ip), Occupant::Hidden);
    directory.apply(api::Update {
        snapshot: true,
        version: 1,
        hidden: vec![vec![10, 0, 0, 1], vec![10, 96, 0, 1]],
        ..Default::default()
    });
    assert!(hidden(v4) && !hidden(v6));
    assert!(matches!(
        directory.resolve(web()),
        Destination::OutOfReach(address) if address == web().0
    ));
    // Out of hiding: known instead.
    directory.apply(api::Update {
        version: 2,
        workloads: vec![workload("a", "10.0.0.1")],
        services: vec![service(&[("10.0.0.1", "default/a")])],
        unhidden: vec![vec![10, 0, 0, 1], vec![10, 96, 0, 1]],
        ..Default::default()
    });
    assert!(matches!(directory.occupant(v4), Occupant::Workload(_)));
    assert_eq!(endpoints(&directory).len(), 1);
    // And back, with another beside it.
    directory.apply(api::Update {
        version: 3,
        removed_workloads: vec!["default/a".into()],
        removed_services: vec!["default/web".into()],
        hidden: vec![
            vec![10, 0, 0, 1],
            vec![10, 96, 0, 1],
            std::net::Ipv6Addr::from_bits(0xfd << 120 | 1)
                .octets()
                .into(),
        ],
        ..Default::default()
    });
    assert!(hidden(v4) && hidden(v6));
    // A snapshot leaves nothing of what was.
    directory.apply(api::Update {
        snapshot: true,
        version: 4,
        hidden: vec![vec![10, 0, 0, 2]],
        ..Default::default()
    });
    assert!(matches!(directory.occupant(v4), Occupant::Outsider));
    assert!(hidden("10.0.0.2".parse().unwrap()));
}

/// Whoever looks while updates go by never takes one of the mesh for an outsider.
#[test]
fn nothing_is_an_outsider_on_its_way_in_or_out_of_hiding() {
    let directory = Directory::default();
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let seen = api::Update {
        version: 1,
        workloads: vec![workload("a", "10.0.0.1")],
        unhidden: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    let unseen = api::Update {
        version: 1,
        removed_workloads: vec!["default/a".into()],
        hidden: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    directory.apply(seen.clone());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let found = directory.occupant(ip);
                assert!(!matches!(found, Occupant::Outsider), "after {looks} looks");
                looks += 1;
            }
        });
        for round in 0..20_000 {
            let update = if round % 2 == 0 { &unseen } else { &seen };
            let mut update = update.clone();
            update.version = round + 2;
            directory.apply(update);
            if looking.is_finished() {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn addresses_of_the_same_family_are_preferred() {
    let directory = Directory::default();
    directory.apply(api::Update {
        services: vec![service(&[
            ("10.0.0.1", "default/a"),
            ("fd00::1", "default/a"),
        ])],
        ..Default::default()
    });
    let found = endpoints(&directory);
    assert_eq!(found.len(), 1);
    assert!(found[0].address.is_ipv4());
}

#[test]
fn what_is_out_stays_out_over_an_update_and_is_told() {
    let directory = Arc::new(Directory::default());
    let update = |endpoints: &[(&str, &str)]| api::Update {
        services: vec![service(endpoints)],
        version: 1,
        ..Default::default()
    };
    let registry = prometheus::Registry::new();
    crate::telemetry::expose_endpoints(&registry, &directory);
    directory.apply(update(&[("10.0.0.1", "default/a")]));
    assert!(registry.gather().is_empty(), "nothing happened yet");
    for _ in 0..7 {
        endpoints(&directory)[0].begin().judged(false);
    }
    directory.apply(update(&[
        ("10.0.0.2", "default/b"),
        ("10.0.0.1", "default/a"),
    ]));
    let states: Vec<_> = endpoints(&directory).iter().map(|it| it.state()).collect();
    assert_eq!(states, [State::In, State::Out]);
    let told = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    for line in [
        "duet_endpoints{port=\"80\",service=\"default/web\",state=\"in\"} 1",
        "duet_endpoints{port=\"80\",service=\"default/web\",state=\"out\"} 1",
        "duet_endpoints{port=\"80\",service=\"default/web\",state=\"probation\"} 0",
        "duet_endpoint_trips_total{port=\"80\",service=\"default/web\"} 1",
    ] {
        assert!(told.contains(line), "{line} is missing: {told}");
    }

    let mut without = service(&[("10.0.0.1", "default/a")]);
    without.failure_accrual = Some(api::FailureAccrual {
        off: true,
        ..Default::default()
    });
    directory.apply(api::Update {
        services: vec![without],
        ..update(&[])
    });
    assert_eq!(endpoints(&directory)[0].state(), State::In);
}

#[test]
fn what_a_service_says_of_its_requests_is_followed() {
    let directory = Directory::default();
    let update = |service: api::Service| api::Update {
        services: vec![service],
        version: 1,
        ..Default::default()
    };
    directory.apply(update(service(&[("10.0.0.1", "default/a")])));
    let held = directory.resolve(web());
    assert!(held.traffic().is_none());
    let mut routed = service(&[("10.0.0.1", "default/a")]);
    routed.timeouts = Some(api::Timeouts {
        request_ms: 1000,
        ..Default::default()
    });
    directory.apply(update(routed.clone()));
    let compiled = held
        .traffic()
        .expect("connections that stand go on with it");
    // An endpoint more is no reason to compile it again.
    routed.ports[0].endpoints.push(api::Endpoint {
        address: "10.0.0.2".into(),
        port: 8080,
        workload: "default/b".into(),
        ..Default::default()
    });
    directory.apply(update(routed));
    assert_eq!(endpoints(&directory).len(), 2);
    assert!(Arc::ptr_eq(&compiled, &held.traffic().unwrap()));
    directory.apply(update(service(&[("10.0.0.1", "default/a")])));
    assert!(held.traffic().is_none());

    let found = |port, ipv4| directory.service_port("default/web", port, ipv4);
    assert!(found(80, true).is_some() && found(80, false).is_some());
    assert!(found(81, true).is_none());
    assert!(directory.service_port("default/other", 80, true).is_none());
}
