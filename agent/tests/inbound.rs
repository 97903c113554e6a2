//! Connections that arrive in an enrolled pod.

mod world;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use world::{Outbound, TestAgent, test};

#[test]
fn what_comes_from_outside_is_steered_with_its_address_kept() {
    test(
        "what_comes_from_outside_is_steered_with_its_address_kept",
        |world| {
            let v4 = world.a.serve((Ipv4Addr::UNSPECIFIED, 0));
            let v6 = world.a.serve((Ipv6Addr::UNSPECIFIED, 0));
            let agent = TestAgent::start(world);
            let _enrolled = agent.enrol(&world.a, Outbound::Report);
            for (to, from) in [
                (SocketAddr::new(world.a.v4, v4.port()), world.b.v4),
                (SocketAddr::new(world.a.v6, v6.port()), world.b.v6),
            ] {
                let said = world.b.ask(to).unwrap();
                let (agent, application) = said.split_once('\n').unwrap();
                assert_eq!(agent, format!("inbound {to} {from}"));
                // The agent reaches the application from the pod's own address,
                // without meeting itself again.
                assert!(application.starts_with(&format!("{to} ")), "{application}");
                let peer: SocketAddr = application.split_once(' ').unwrap().1.parse().unwrap();
                assert_eq!(peer.ip(), to.ip());
            }
        },
    );
}

#[test]
fn every_port_is_steered_whether_somebody_listens_or_not() {
    test(
        "every_port_is_steered_whether_somebody_listens_or_not",
        |world| {
            let agent = TestAgent::start(world);
            let _enrolled = agent.enrol(&world.a, Outbound::Report);
            for port in [1, 80, 15020, 15021, 65535] {
                let to = SocketAddr::new(world.a.v4, port);
                let said = world.b.ask(to).unwrap();
                let expected = format!("inbound {to} {}\nConnection refused", world.b.v4);
                assert!(said.starts_with(&expected), "{said}");
            }
        },
    );
}

#[test]
fn the_mesh_port_leads_to_the_mesh_listener_from_inside_too() {
    test(
        "the_mesh_port_leads_to_the_mesh_listener_from_inside_too",
        |world| {
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            for ip in [world.a.v4, world.a.v6] {
                let to = SocketAddr::new(ip, 15008);
                assert_eq!(world.b.ask(to).unwrap(), "mesh");
                // A workload that calls itself through a service.
                let socket = enrolled.kernel.socket(to).unwrap();
                agent.runtime.block_on(socket.connect(to)).unwrap();
            }
        },
    );
}

#[test]
fn the_agents_other_ports_cannot_be_reached_from_outside() {
    test(
        "the_agents_other_ports_cannot_be_reached_from_outside",
        |world| {
            let agent = TestAgent::start(world);
            let _enrolled = agent.enrol(&world.a, Outbound::Report);
            for ip in [world.a.v4, world.a.v6] {
                for port in [15001, 15006] {
                    let error = world.b.ask(SocketAddr::new(ip, port)).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip} {port}");
                }
            }
        },
    );
}

#[test]
fn from_pod_to_pod_through_the_agent_twice() {
    test("from_pod_to_pod_through_the_agent_twice", |world| {
        let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let agent = TestAgent::start(world);
        let _a = agent.enrol(&world.a, Outbound::Relay);
        let _b = agent.enrol(&world.b, Outbound::Relay);
        let to = SocketAddr::new(world.b.v4, server.port());
        let said = world.a.ask(to).unwrap();
        let (agent, application) = said.split_once('\n').unwrap();
        assert_eq!(agent, format!("inbound {to} {}", world.a.v4));
        assert!(application.starts_with(&format!("{to} {}:", world.b.v4)));
    });
}
