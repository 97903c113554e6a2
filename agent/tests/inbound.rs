//! Connections that arrive in an enrolled pod.

mod world;

use aya::programs::loaded_programs;
use duet_agent::sys::{Arrival, test_run};
use duet_ebpf::{Ip, names};
use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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

fn arrival(from: IpAddr, to: SocketAddr, protocol: i32) -> Arrival {
    let (from, ip) = (Ip::from(from), Ip::from(to.ip()));
    let common = Arrival {
        protocol: protocol as u32,
        remote_port: 40_000u16.to_be(),
        local_port: to.port().into(),
        ..Arrival::default()
    };
    match to.is_ipv4() {
        true => Arrival {
            family: AF_INET as u32,
            remote_ip4: from.0[3],
            local_ip4: ip.0[3],
            ..common
        },
        false => Arrival {
            family: AF_INET6 as u32,
            remote_ip6: from.0,
            local_ip6: ip.0,
            ..common
        },
    }
}

/// The program itself, without a packet.
#[test]
fn the_program_decides_by_who_comes_from_where() {
    const DROP: u32 = 0;
    const PASS: u32 = 1;
    test("the_program_decides_by_who_comes_from_where", |world| {
        let agent = TestAgent::start(world);
        let enrolled = agent.enrol(&world.a, Outbound::Report);
        let programs = agent.interception.programs();
        let program = loaded_programs()
            .flatten()
            .find(|one| programs.get(&one.id()) == Some(&names::SK_LOOKUP))
            .unwrap();
        let program = program.fd().unwrap();
        let run = |from: IpAddr, to: SocketAddr, protocol| {
            let mut arrival = arrival(from, to, protocol);
            let verdict = world.a.run(|| test_run(program.as_fd(), &mut arrival));
            (verdict.unwrap(), arrival.cookie != 0)
        };
        for (own, other, loopback) in [
            (world.a.v4, world.b.v4, IpAddr::from(Ipv4Addr::LOCALHOST)),
            (world.a.v6, world.b.v6, IpAddr::from(Ipv6Addr::LOCALHOST)),
        ] {
            let to = |port| SocketAddr::new(own, port);
            for (from, port, protocol, expected) in [
                (other, 80, IPPROTO_TCP, (PASS, true)),
                (other, 15008, IPPROTO_TCP, (PASS, true)),
                (own, 15008, IPPROTO_TCP, (PASS, true)),
                // The agent's own ports, from outside.
                (other, 15001, IPPROTO_TCP, (DROP, false)),
                (other, 15006, IPPROTO_TCP, (DROP, false)),
                // The pod to itself, and the agent to the application.
                (own, 80, IPPROTO_TCP, (PASS, false)),
                (loopback, 80, IPPROTO_TCP, (PASS, false)),
                (other, 80, IPPROTO_UDP, (PASS, false)),
            ] {
                let found = run(from, to(port), protocol);
                assert_eq!(found, expected, "{from} to {own} {port} {protocol}");
            }
        }
        // Nobody listens any more.
        drop(enrolled);
        agent.die();
        for to in [
            SocketAddr::new(world.a.v4, 80),
            SocketAddr::new(world.a.v6, 80),
        ] {
            let from = if to.is_ipv4() { world.b.v4 } else { world.b.v6 };
            assert_eq!(run(from, to, IPPROTO_TCP), (DROP, false), "{to}");
        }
    });
}

/// As servers with a process for each core do.
#[test]
fn listeners_that_share_a_port_all_get_their_share() {
    test("listeners_that_share_a_port_all_get_their_share", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let mut address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let taken: [Arc<AtomicUsize>; 2] = Default::default();
        for taken in &taken {
            let listener: TcpListener = world.a.run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_reuse_port(true).unwrap();
                socket.bind(&address.into()).unwrap();
                socket.listen(16).unwrap();
                socket.into()
            });
            address = listener.local_addr().unwrap();
            let taken = taken.clone();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    taken.fetch_add(1, Relaxed);
                    let _ = stream.write_all(b"served\n");
                }
            });
        }
        for _ in 0..40 {
            let said = world
                .b
                .ask(SocketAddr::new(world.a.v4, address.port()))
                .unwrap();
            assert!(said.ends_with("served"), "{said}");
        }
        let taken = taken.map(|taken| taken.load(Relaxed));
        assert_eq!(taken.iter().sum::<usize>(), 40);
        assert!(taken.iter().all(|&taken| taken > 0), "{taken:?}");
    });
}
