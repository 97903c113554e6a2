//! Connections that an enrolled pod opens.

mod world;

use duet_core::Direction;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, sendto, setsockopt, socket,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::io::AsyncReadExt;
use world::{Outbound, PATIENCE, TestAgent, entries, leads_to_the_agent, read_all, test};

fn mapped(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V4(v4) = address else {
        panic!("{address} is IPv6 already")
    };
    (v4.ip().to_ipv6_mapped(), v4.port()).into()
}

fn stream_socket() -> OwnedFd {
    let flags = SockFlag::empty();
    socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap()
}

#[test]
fn the_original_destination_is_exact() {
    test("the_original_destination_is_exact", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        // Nobody need be there: the agent is asked before the destination is.
        for to in [
            "10.96.0.10:80",
            "10.77.0.2:65535",
            "[fd77::2]:443",
            "[2001:db8::1]:1",
        ] {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(world.a.ask(to).unwrap(), to.to_string());
        }
        let v4: SocketAddr = "10.96.0.11:8080".parse().unwrap();
        assert_eq!(world.a.ask(mapped(v4)).unwrap(), v4.to_string());
    });
}

#[test]
fn many_at_once_are_told_apart() {
    test("many_at_once_are_told_apart", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let pod = &world.a;
                scope.spawn(move || {
                    for i in 0..100u16 {
                        let to = SocketAddr::from(([10, 96, thread, 1], 1000 + i));
                        assert_eq!(pod.ask(to).unwrap(), to.to_string());
                    }
                });
            }
        });
        let waiting = || entries::<32>(&agent.interception, duet_ebpf::names::TARGETS);
        assert_eq!(waiting(), 0);
    });
}

#[test]
fn the_application_sees_whom_it_asked_for() {
    test("the_application_sees_whom_it_asked_for", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let v4: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let v6: SocketAddr = "[fd77::99]:81".parse().unwrap();
        for to in [v4, v6] {
            let peer = world.a.run(|| TcpStream::connect(to).unwrap().peer_addr());
            assert_eq!(peer.unwrap(), to);
        }
        let peer = world
            .a
            .run(|| TcpStream::connect(mapped(v4)).unwrap().peer_addr());
        assert_eq!(peer.unwrap(), mapped(v4));
    });
}

#[test]
fn the_application_sees_its_own_address() {
    test("the_application_sees_its_own_address", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let v4: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let v6: SocketAddr = "[fd77::99]:81".parse().unwrap();
        let local = |to: SocketAddr| {
            let stream = world.a.run(|| TcpStream::connect(to)).unwrap();
            assert!(leads_to_the_agent(&stream));
            stream.local_addr().unwrap()
        };
        assert_eq!(local(v4).ip(), world.a.v4);
        assert_eq!(local(v6).ip(), world.a.v6);
        let IpAddr::V4(a4) = world.a.v4 else { panic!() };
        assert_eq!(local(mapped(v4)).ip(), IpAddr::from(a4.to_ipv6_mapped()));

        // The port is the socket's own, and what it has chosen for itself stays.
        let own = world.a.serve((Ipv4Addr::LOCALHOST, 0));
        world.a.run(|| {
            let bound = |ip: Ipv4Addr| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                (socket, SocketAddr::from((ip, port)))
            };
            let shown = |socket: &Socket| socket.local_addr().unwrap().as_socket().unwrap();
            for (ip, to) in [(a4, v4), (Ipv4Addr::LOCALHOST, own)] {
                let (socket, chosen) = bound(ip);
                socket.connect(&to.into()).unwrap();
                assert_eq!(shown(&socket), chosen);
            }
            // Nobody reaches the outside from loopback.
            for ip in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST] {
                let (socket, chosen) = bound(ip);
                assert_eq!(shown(&socket), chosen);
                socket.connect(&v4.into()).unwrap();
                assert_eq!(shown(&socket), SocketAddr::from((a4, chosen.port())));
            }
        });
    });
}

/// A pod that gives itself more and more must not use up the node's room for them.
#[test]
fn of_very_many_addresses_that_of_the_default_route_stays_a_pods_own() {
    test(
        "of_very_many_addresses_that_of_the_default_route_stays_a_pods_own",
        |world| {
            let agent = TestAgent::start(world);
            // All lower than the pod's.
            for i in 0..300u16 {
                let [high, low] = i.to_be_bytes();
                world
                    .a
                    .ip(&format!("addr add 10.9.{high}.{low}/32 dev eth0"));
            }
            world
                .a
                .ip(&format!("route add default dev eth0 src {}", world.a.v4));
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            let own = agent
                .interception
                .maps()
                .own(enrolled.pod().netns().cookie());
            assert_eq!(own.len(), 256);
            assert!(own.contains(&world.a.v4));
            let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
            let stream = world.a.run(|| TcpStream::connect(to)).unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), world.a.v4);
        },
    );
}

/// As happens to a pod whose addresses are given to it while it runs.
#[test]
fn an_address_that_changes_is_seen_to_have_changed() {
    test("an_address_that_changes_is_seen_to_have_changed", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let local = || {
            let stream = world.a.run(|| TcpStream::connect(to)).unwrap();
            stream.local_addr().unwrap().ip()
        };
        let becomes = |ip: IpAddr| {
            let start = std::time::Instant::now();
            while local() != ip {
                assert!(start.elapsed() < PATIENCE, "{} instead of {ip}", local());
            }
        };
        assert_eq!(local(), world.a.v4);
        // No way leads out: it is the lowest.
        let other = Ipv4Addr::new(10, 9, 9, 9).into();
        world.a.ip(&format!("addr add {other}/32 dev eth0"));
        becomes(other);
        world
            .a
            .ip(&format!("route add default dev eth0 src {}", world.a.v4));
        becomes(world.a.v4);
    });
}

#[test]
fn a_socket_that_is_bound_first_is_found_too() {
    test("a_socket_that_is_bound_first_is_found_too", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        for (from, to) in [
            (world.a.v4, SocketAddr::from(([10, 96, 0, 10], 80))),
            (world.a.v6, "[2001:db8::1]:80".parse().unwrap()),
        ] {
            let said = world.a.run(|| {
                let domain = Domain::for_address(to);
                let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
                socket.connect_timeout(&to.into(), PATIENCE).unwrap();
                read_all(socket.into()).unwrap()
            });
            assert_eq!(said, to.to_string());
        }
    });
}

#[test]
fn multipath_tcp_does_not_slip_through() {
    test("multipath_tcp_does_not_slip_through", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let said = world.a.run(|| {
            let socket = match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
                Ok(socket) => socket,
                Err(error) => {
                    world::tell(&format!("not tried, this kernel has no MPTCP: {error}"));
                    return to.to_string();
                }
            };
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            read_all(socket.into()).unwrap()
        });
        assert_eq!(said, to.to_string());
    });
}

#[test]
fn fast_open_does_not_slip_through() {
    test("fast_open_does_not_slip_through", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let to = SockaddrIn::new(10, 96, 0, 10, 80);
        let said = world.a.run(|| {
            let fd = stream_socket();
            let flags = MsgFlags::from_bits_retain(nix::libc::MSG_FASTOPEN);
            // sendto(2) connects by itself.
            sendto(fd.as_raw_fd(), b"hello", &to, flags).unwrap();
            read_all(TcpStream::from(fd)).unwrap()
        });
        assert_eq!(said, to.to_string());
    });
}

/// The socket option, with which connect(2) itself sends nothing.
#[test]
fn fast_open_on_connect_does_not_slip_through() {
    test("fast_open_on_connect_does_not_slip_through", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let to = SockaddrIn::new(10, 96, 0, 10, 80);
        let said = world.a.run(|| {
            let fd = stream_socket();
            setsockopt(&fd, sockopt::TcpFastOpenConnect, &true).unwrap();
            connect(fd.as_raw_fd(), &to).unwrap();
            let mut stream = TcpStream::from(fd);
            stream.write_all(b"hello").unwrap();
            read_all(stream).unwrap()
        });
        assert_eq!(said, to.to_string());
    });
}

/// Begins to connect, and does not wait.
fn connecting(to: SocketAddr) -> Socket {
    let domain = Domain::for_address(to);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)).unwrap();
    if let Err(error) = socket.connect(&to.into()) {
        assert_eq!(
            error.raw_os_error(),
            Some(nix::libc::EINPROGRESS),
            "{error}"
        );
    }
    socket
}

fn connected(socket: Socket) -> TcpStream {
    let mut file = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut file, PollTimeout::from(5000u16)), Ok(1));
    assert!(socket.take_error().unwrap().is_none());
    socket.set_nonblocking(false).unwrap();
    socket.into()
}

#[test]
fn who_does_not_wait_for_its_connection_is_redirected_too() {
    test(
        "who_does_not_wait_for_its_connection_is_redirected_too",
        |world| {
            let agent = TestAgent::start(world);
            let _enrolled = agent.enrol(&world.a, Outbound::Report);
            for to in ["10.96.0.10:80", "[2001:db8::1]:80"] {
                let to: SocketAddr = to.parse().unwrap();
                let stream = world.a.run(|| connected(connecting(to)));
                assert_eq!(stream.peer_addr().unwrap(), to);
                assert_eq!(read_all(stream).unwrap(), to.to_string());
            }
        },
    );
}

/// RFC 8305: both families at once, and the slower one is dropped.
#[test]
fn of_two_that_race_the_one_that_is_kept_is_served() {
    test("of_two_that_race_the_one_that_is_kept_is_served", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let v4: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        for round in 0..50 {
            let said = world.a.run(|| {
                let (first, second) = (connecting(v6), connecting(v4));
                let (kept, lost) = match round % 2 {
                    0 => (first, second),
                    _ => (second, first),
                };
                drop(lost);
                read_all(connected(kept)).unwrap()
            });
            assert_eq!(said, [v6, v4][round % 2].to_string());
        }
        let waiting = || entries::<32>(&agent.interception, duet_ebpf::names::TARGETS);
        let start = std::time::Instant::now();
        while waiting() > 0 {
            assert!(start.elapsed() < PATIENCE, "{} left", waiting());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
}

/// A connection from one and the same address and port, whatever went before.
fn ask_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    // It is reset at its end, and its port free at once.
    socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    socket.into()
}

#[test]
fn one_port_in_two_pods_and_again_and_again_is_told_apart() {
    test(
        "one_port_in_two_pods_and_again_and_again_is_told_apart",
        |world| {
            let agent = TestAgent::start(world);
            let _a = agent.enrol(&world.a, Outbound::Report);
            let _b = agent.enrol(&world.b, Outbound::Report);
            // The agent sees one and the same pair of addresses and ports in both.
            let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000));
            for round in 0..100 {
                let [a, b] = [1, 2].map(|pod| SocketAddr::from(([10, 96, pod, 1], 1000 + round)));
                let first = world.a.run(|| ask_from(from, a));
                let second = world.b.run(|| ask_from(from, b));
                assert_eq!(read_all(first).unwrap(), a.to_string());
                assert_eq!(read_all(second).unwrap(), b.to_string());
            }
        },
    );
}

/// Connections, unless the test is told otherwise.
const CONNECTIONS: usize = 4000;

#[test]
fn many_a_minute_and_no_destination_is_lost() {
    test("many_a_minute_and_no_destination_is_lost", |world| {
        let agent = TestAgent::start(world);
        let _a = agent.enrol(&world.a, Outbound::Report);
        let _b = agent.enrol(&world.b, Outbound::Report);
        let wanted = std::env::var("DUET_TEST_CONNECTIONS");
        let wanted = wanted.map_or(CONNECTIONS, |wanted| wanted.parse().unwrap());
        let (next, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let began = std::time::Instant::now();
        std::thread::scope(|scope| {
            for pod in [&world.a, &world.b].repeat(4) {
                scope.spawn(|| {
                    let one = || {
                        let number = next.fetch_add(1, Relaxed);
                        let [_, a, b, c] = (number as u32).to_be_bytes();
                        let to = SocketAddr::from(([10, 100 + a, b, c], 80));
                        (number < wanted).then(|| {
                            let told = TcpStream::connect_timeout(&to, PATIENCE).and_then(read_all);
                            let right = told.is_ok_and(|told| told == to.to_string());
                            wrong.fetch_add(usize::from(!right), Relaxed);
                        })
                    };
                    pod.run(|| while one().is_some() {});
                });
            }
        });
        let took = began.elapsed();
        let rate = wanted as f64 / took.as_secs_f64() * 60.0;
        world::tell(&format!(
            "{wanted} connections in {took:.1?}, {rate:.0} a minute: {} destinations lost or wrong",
            wrong.load(Relaxed),
        ));
        assert_eq!(wrong.load(Relaxed), 0);
        // An idle machine does 770 000, without optimisation.
        assert!(rate >= 50_000.0, "{rate:.0} a minute are not many");
        assert_eq!(
            entries::<32>(&agent.interception, duet_ebpf::names::TARGETS),
            0
        );
    });
}

#[test]
fn loopback_and_own_addresses_are_left_alone() {
    test("loopback_and_own_addresses_are_left_alone", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let v4 = world.a.serve((Ipv4Addr::UNSPECIFIED, 0));
        let v6 = world.a.serve((Ipv6Addr::UNSPECIFIED, 0));
        for (ip, port) in [
            (IpAddr::from(Ipv4Addr::LOCALHOST), v4.port()),
            ([127, 1, 2, 3].into(), v4.port()),
            (world.a.v4, v4.port()),
            (Ipv6Addr::LOCALHOST.into(), v6.port()),
            (world.a.v6, v6.port()),
        ] {
            let to = SocketAddr::new(ip, port);
            let said = world.a.ask(to).unwrap();
            assert!(said.starts_with(&format!("{to} ")), "{to}: {said}");
        }
        // connect(2) takes the unspecified address for loopback.
        let said = world
            .a
            .ask((Ipv4Addr::UNSPECIFIED, v4.port()).into())
            .unwrap();
        assert!(said.starts_with("127.0.0.1:"), "{said}");
        let to = mapped((Ipv4Addr::LOCALHOST, v4.port()).into());
        assert!(world.a.ask(to).unwrap().starts_with("127.0.0.1:"));
    });
}

#[test]
fn an_address_that_comes_later_is_the_pods_own_too() {
    test("an_address_that_comes_later_is_the_pods_own_too", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let to: SocketAddr = "10.77.0.9:8080".parse().unwrap();
        assert_eq!(world.a.ask(to).unwrap(), to.to_string());

        let netns = world.a.path.file_name().unwrap().to_str().unwrap();
        let ip = |verb: &str| {
            let status = std::process::Command::new("ip")
                .args(["-n", netns, "addr", verb, "10.77.0.9/24", "dev", "eth0"])
                .status();
            assert!(status.unwrap().success());
        };
        let eventually = |what: &dyn Fn() -> bool| {
            let start = std::time::Instant::now();
            while !what() {
                assert!(start.elapsed() < PATIENCE);
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        };
        ip("add");
        let refused = || {
            world
                .a
                .ask(to)
                .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        };
        eventually(&refused);
        ip("del");
        eventually(&|| world.a.ask(to).is_ok_and(|said| said == to.to_string()));
    });
}

#[test]
fn udp_is_left_alone() {
    test("udp_is_left_alone", |world| {
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let server = world.b.run(|| UdpSocket::bind((world.b.v4, 0)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = server.local_addr().unwrap();
        let client = world.a.run(|| {
            let client = UdpSocket::bind((world.a.v4, 0)).unwrap();
            client.connect(to).unwrap();
            client.send(b"hello").unwrap();
            assert_eq!(client.peer_addr().unwrap(), to);
            client
        });
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        assert_eq!(from, client.local_addr().unwrap());
    });
}

#[test]
fn the_agents_own_sockets_are_exempt_and_a_mark_is_not_enough() {
    test(
        "the_agents_own_sockets_are_exempt_and_a_mark_is_not_enough",
        |world| {
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Relay);
            let server = world.b.serve((world.b.v4, 0));

            // Through the agent, which connects from the pod's own address.
            let said = world.a.ask(server).unwrap();
            assert!(
                said.starts_with(&format!("{server} {}:", world.a.v4)),
                "{said}"
            );

            // The agent's own way out, without a loop.
            let socket = enrolled.kernel.socket(server).unwrap();
            let stream = agent.runtime.block_on(socket.connect(server)).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), server);
            assert_eq!(stream.local_addr().unwrap().ip(), world.a.v4);
            assert!(!leads_to_the_agent(&stream));

            // An application with every capability cannot pretend to be the agent.
            assert!(world.a.run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_mark(15001).unwrap();
                socket.connect(&server.into()).unwrap();
                leads_to_the_agent(&socket)
            }));
        },
    );
}

#[test]
fn a_socket_that_is_used_again_forgets() {
    test("a_socket_that_is_used_again_forgets", |world| {
        let agent = TestAgent::start(world);
        let (pod, capture) = agent.capture(&world.a);
        // No listener: the first attempt is refused, as with the agent dead.
        drop((pod, capture));
        let own = world.a.serve((Ipv4Addr::LOCALHOST, 0));
        world.a.run(|| {
            let fd = stream_socket();
            let refused = connect(fd.as_raw_fd(), &SockaddrIn::new(10, 96, 0, 10, 80));
            assert_eq!(refused, Err(nix::errno::Errno::ECONNREFUSED));
            let SocketAddr::V4(own) = own else { panic!() };
            connect(fd.as_raw_fd(), &SockaddrIn::from(own)).unwrap();
            let stream = TcpStream::from(fd);
            assert_eq!(stream.peer_addr().unwrap(), own.into());
        });
        assert_eq!(
            entries::<32>(&agent.interception, duet_ebpf::names::TARGETS),
            0
        );
    });
}

#[test]
fn whoever_connects_to_the_agent_itself_is_told_from_the_redirected() {
    test(
        "whoever_connects_to_the_agent_itself_is_told_from_the_redirected",
        |world| {
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            let itself = SocketAddr::from((Ipv4Addr::LOCALHOST, 15001));
            assert_eq!(world.a.ask(itself).unwrap(), "not redirected");
            drop(enrolled);
        },
    );
}

#[test]
fn connections_that_nobody_accepts_leave_no_entry() {
    test("connections_that_nobody_accepts_leave_no_entry", |world| {
        let agent = TestAgent::start(world);
        let (pod, capture) = agent.capture(&world.a);
        let waiting = || entries::<32>(&agent.interception, duet_ebpf::names::TARGETS);
        let streams: Vec<TcpStream> = world.a.run(|| {
            (0..50)
                .map(|i| TcpStream::connect(SocketAddr::from(([10, 96, 0, 1], 80 + i))).unwrap())
                .collect()
        });
        assert_eq!(waiting(), 50);

        // One is accepted, and its entry read; it is said once.
        let kernel = capture.kernel.clone();
        let (accepted, _) = agent
            .runtime
            .block_on(capture.outbound[0].accept())
            .unwrap();
        kernel.original_dst(&accepted, Direction::Outbound).unwrap();
        assert!(kernel.original_dst(&accepted, Direction::Outbound).is_err());
        assert_eq!(waiting(), 49);

        drop(streams);
        drop(accepted);
        drop(capture);
        // Most are reset when their listeners go; whose end was acknowledged is not.
        let netns = pod.netns().cookie();
        pod.remove();
        agent.interception.maps().forget_targets(netns).unwrap();
        let start = std::time::Instant::now();
        while waiting() > 0 {
            assert!(start.elapsed() < PATIENCE, "{} left", waiting());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
}

/// As syslog and graphite clients do. What they sent was acknowledged.
#[test]
fn a_client_that_writes_and_closes_before_the_agent_accepts_is_not_lost() {
    test(
        "a_client_that_writes_and_closes_before_the_agent_accepts_is_not_lost",
        |world| {
            let agent = TestAgent::start(world);
            let (_pod, capture) = agent.capture(&world.a);
            let to: SocketAddr = "10.96.0.10:514".parse().unwrap();
            world.a.run(|| {
                let mut client = TcpStream::connect(to).unwrap();
                client.write_all(b"<13>message").unwrap();
            });
            // Time for the client's end to be gone for good, FIN_WAIT2 and all.
            std::thread::sleep(std::time::Duration::from_millis(100));
            agent.runtime.block_on(async {
                let listener = &capture.outbound[0];
                let (mut stream, _) = listener.accept().await.unwrap();
                let found = capture.kernel.original_dst(&stream, Direction::Outbound);
                assert_eq!(found.unwrap().0, to);
                let mut said = String::new();
                stream.read_to_string(&mut said).await.unwrap();
                assert_eq!(said, "<13>message");
            });
            assert_eq!(
                entries::<32>(&agent.interception, duet_ebpf::names::TARGETS),
                0
            );
        },
    );
}
