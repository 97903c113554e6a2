//! Agents that come, die, come back, share a machine and clean up after
//! themselves.

mod world;

use duet_agent::cgroup::Cgroup;
use duet_agent::cleanup::cleanup;
use duet_agent::interception::{Interception, ON_CGROUP};
use duet_agent::netns::Netns;
use duet_agent::record::Record;
use duet_agent::sys::{AttachPoint, effective_programs};
use duet_ebpf::names;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use world::{Outbound, TestAgent, TestPod, Wire, World, entries, test};

fn on_cgroup(world: &World) -> Vec<usize> {
    let cgroup = Cgroup::open(Some(&world.cgroup)).unwrap();
    ON_CGROUP
        .map(|(_, point)| effective_programs(cgroup.as_fd(), point).unwrap().len())
        .to_vec()
}

fn on_netns(pod: &TestPod) -> usize {
    let netns = Netns::open(&pod.path).unwrap();
    effective_programs(netns.as_fd(), AttachPoint::SkLookup)
        .unwrap()
        .len()
}

fn plus(counts: &[usize], more: usize) -> Vec<usize> {
    counts.iter().map(|count| count + more).collect()
}

#[test]
fn with_the_agent_dead_connections_are_refused_and_nothing_leaves() {
    test(
        "with_the_agent_dead_connections_are_refused_and_nothing_leaves",
        |world| {
            let here = world.a.serve((Ipv4Addr::UNSPECIFIED, 0));
            let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let out = SocketAddr::new(world.b.v4, there.port());
            let into = SocketAddr::new(world.a.v4, here.port());
            let wire = Wire::tap(&world.b);
            assert!(world.a.ask(out).is_ok());
            assert_ne!(wire.count(b""), 0, "the tap sees what there is");

            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Relay);
            assert!(world.a.ask(out).is_ok());
            assert!(world.b.ask(into).is_ok());
            drop(enrolled);
            agent.die();

            let wire = Wire::tap(&world.b);
            for to in [out, "[fd77::2]:80".parse().unwrap()] {
                let error = world.a.ask(to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            }
            assert_eq!(wire.count(b""), 0, "packets on the wire");

            // Whatever listens in the pod, it is not reached; not on the mesh port
            // either.
            world.a.serve((Ipv4Addr::UNSPECIFIED, 15008));
            let mesh = SocketAddr::new(world.a.v4, 15008);
            for to in [into, mesh] {
                let error = world.b.ask(to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            }
            // The pod's own affairs go on.
            assert!(world.a.ask(into).is_ok());
            assert!(
                world
                    .a
                    .ask((Ipv4Addr::LOCALHOST, here.port()).into())
                    .is_ok()
            );
        },
    );
}

#[test]
fn the_next_agent_takes_over_without_doubling() {
    test("the_next_agent_takes_over_without_doubling", |world| {
        let before = on_cgroup(world);
        let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
        for _ in 0..3 {
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            assert_eq!(on_cgroup(world), plus(&before, 1));
            assert_eq!(on_netns(&world.a), 1);
            agent.interception.verify().unwrap();
            enrolled.pod().verify().unwrap();
            assert_eq!(world.a.ask(to).unwrap(), to.to_string());
            assert_eq!(agent.interception.maps().enrolled().unwrap().len(), 1);
            drop(enrolled);
            agent.die();
        }
    });
}

#[test]
fn an_agent_notices_that_its_programs_are_gone() {
    test("an_agent_notices_that_its_programs_are_gone", |world| {
        let agent = TestAgent::start(world);
        let enrolled = agent.enrol(&world.a, Outbound::Report);
        let layout = agent.interception.layout();
        duet_agent::interception::unpin(&layout.link(names::CONNECT6)).unwrap();
        let why = agent.interception.verify().unwrap_err();
        assert!(why.contains(names::CONNECT6), "{why}");
        let netns = Netns::open(&world.a.path).unwrap();
        duet_agent::interception::unpin(&layout.pod(netns.cookie())).unwrap();
        assert!(enrolled.pod().verify().is_err());
    });
}

#[test]
fn two_agents_share_a_cgroup() {
    test("two_agents_share_a_cgroup", |world| {
        let before = on_cgroup(world);
        let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let first = TestAgent::start(world);
        let other = world.bpffs.join("other");
        let second = TestAgent::with(std::sync::Arc::new(
            Interception::start(&other, Some(&world.cgroup)).unwrap(),
        ));
        assert_eq!(on_cgroup(world), plus(&before, 2));
        let _a = first.enrol(&world.a, Outbound::Relay);
        let _b = second.enrol(&world.b, Outbound::Report);

        let to = SocketAddr::new(world.b.v4, server.port());
        let said = world.a.ask(to).unwrap();
        assert!(
            said.starts_with(&format!("inbound {to} {}\n", world.a.v4)),
            "{said}"
        );
        let elsewhere: SocketAddr = "10.96.0.10:80".parse().unwrap();
        assert_eq!(world.b.ask(elsewhere).unwrap(), elsewhere.to_string());
        first.interception.verify().unwrap();
        second.interception.verify().unwrap();
    });
}

#[test]
fn one_directory_belongs_to_one_agent() {
    test("one_directory_belongs_to_one_agent", |world| {
        let _agent = world.interception();
        let error = Interception::start(&world.bpffs, Some(&world.cgroup)).err();
        let error = error.unwrap().to_string();
        assert!(error.starts_with("another duet-agent has"), "{error}");
        let error = cleanup(&world.bpffs, &world.scratch().join("agent.sock")).unwrap_err();
        assert!(
            error.to_string().starts_with("another duet-agent has"),
            "{error}"
        );
    });
}

#[test]
fn removal_leaves_the_pod_as_it_was() {
    test("removal_leaves_the_pod_as_it_was", |world| {
        let here = world.a.serve((Ipv4Addr::UNSPECIFIED, 0));
        let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let agent = TestAgent::start(world);
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        // The first time, threads and lazily opened files come into being.
        agent.enrol(&world.a, Outbound::Relay).remove();
        let before = descriptors();
        for _ in 0..20 {
            let enrolled = agent.enrol(&world.a, Outbound::Relay);
            let out = SocketAddr::new(world.b.v4, there.port());
            assert!(world.a.ask(out).unwrap().starts_with(&format!("{out} ")));
            assert_eq!(entries::<24>(&agent.interception, names::OWN), 3);
            assert_eq!(entries::<8>(&agent.interception, names::APPEARANCE), 1);
            assert_eq!(entries::<16>(&agent.interception, names::LISTENERS), 4);
            // By the operator's choice.
            let netns = Netns::open(&world.a.path).unwrap().cookie();
            agent.interception.maps().set_open(netns, true).unwrap();
            assert_eq!(entries::<8>(&agent.interception, names::OPEN), 1);
            enrolled.remove();
            assert_eq!(entries::<8>(&agent.interception, names::ENROLLED), 0);
            assert_eq!(entries::<24>(&agent.interception, names::OWN), 0);
            assert_eq!(entries::<8>(&agent.interception, names::APPEARANCE), 0);
            assert_eq!(entries::<32>(&agent.interception, names::TARGETS), 0);
            assert_eq!(entries::<16>(&agent.interception, names::LISTENERS), 0);
            assert_eq!(entries::<8>(&agent.interception, names::OPEN), 0);
            assert_eq!(on_netns(&world.a), 0);

            let said = world.a.ask(out).unwrap();
            assert!(
                said.starts_with(&format!("{out} {}:", world.a.v4)),
                "{said}"
            );
            let into = SocketAddr::new(world.a.v4, here.port());
            let said = world.b.ask(into).unwrap();
            assert!(
                said.starts_with(&format!("{into} {}:", world.b.v4)),
                "{said}"
            );
        }
        // Relayed connections close in their own time.
        let start = std::time::Instant::now();
        while descriptors() > before {
            let open = descriptors();
            assert!(start.elapsed() < world::PATIENCE, "{open} > {before}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
}

#[test]
fn traffic_flows_while_a_pod_is_enrolled_and_removed() {
    test(
        "traffic_flows_while_a_pod_is_enrolled_and_removed",
        |world| {
            let here = world.a.serve((Ipv4Addr::UNSPECIFIED, 0));
            let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let out = SocketAddr::new(world.b.v4, there.port());
            let into = SocketAddr::new(world.a.v4, here.port());
            let agent = TestAgent::start(world);
            let stop = AtomicBool::new(false);
            let asked = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for (pod, to) in [(&world.a, out), (&world.b, into)] {
                    let (stop, asked) = (&stop, &asked);
                    scope.spawn(move || {
                        while !stop.load(Relaxed) {
                            let said = pod.ask(to).unwrap();
                            assert!(said.contains(&format!("{to} ")), "{said}");
                            asked.fetch_add(1, Relaxed);
                        }
                    });
                }
                let more = |count: usize| {
                    let until = asked.load(Relaxed) + count;
                    while asked.load(Relaxed) < until {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                };
                for _ in 0..5 {
                    more(20);
                    let mut enrolled = agent.enrol(&world.a, Outbound::Relay);
                    more(20);
                    // What has been redirected is still served.
                    enrolled.end_redirection();
                    more(20);
                }
                stop.store(true, Relaxed);
            });
        },
    );
}

#[test]
fn a_pod_may_do_without_ipv6() {
    test("a_pod_may_do_without_ipv6", |world| {
        let disable = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
        world.a.run(|| std::fs::write(disable, "1").unwrap());
        let agent = TestAgent::start(world);
        let _enrolled = agent.enrol(&world.a, Outbound::Report);
        let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
        assert_eq!(world.a.ask(to).unwrap(), to.to_string());
        assert_eq!(entries::<16>(&agent.interception, names::LISTENERS), 2);
        // It comes back, and is refused rather than let through.
        world.a.run(|| std::fs::write(disable, "0").unwrap());
        assert!(world.a.ask("[fd77::2]:80".parse().unwrap()).is_err());
    });
}

#[test]
fn a_failed_enrolment_leaves_nothing() {
    test("a_failed_enrolment_leaves_nothing", |world| {
        world.a.serve((Ipv4Addr::LOCALHOST, 15008));
        let agent = TestAgent::start(world);
        let _entered = agent.runtime.enter();
        let netns = Netns::open(&world.a.path).unwrap();
        let record = Record::by_hand(&netns, "default/web-0".parse().unwrap());
        let error = duet_agent::pod::Pod::enrol(&agent.interception, netns, &record).err();
        let error = error.unwrap().to_string();
        assert!(error.contains("127.0.0.1:15008"), "{error}");
        assert!(error.contains("another process of the pod"), "{error}");
        assert_eq!(entries::<8>(&agent.interception, names::ENROLLED), 0);
        assert_eq!(entries::<24>(&agent.interception, names::OWN), 0);
        assert_eq!(entries::<8>(&agent.interception, names::APPEARANCE), 0);
        assert_eq!(on_netns(&world.a), 0);
    });
}

#[test]
fn pins_of_another_layout_are_taken_over_with_the_door_shut() {
    test(
        "pins_of_another_layout_are_taken_over_with_the_door_shut",
        |world| {
            let before = on_cgroup(world);
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            drop(enrolled);
            agent.die();
            let [v1, v0] = ["v1", "v0"].map(|version| world.bpffs.join(version));
            std::fs::rename(&v1, &v0).unwrap();

            let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
            let stop = AtomicBool::new(false);
            let agent = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        let error = world.a.ask(to).unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                    }
                });
                let agent = TestAgent::start(world);
                stop.store(true, Relaxed);
                agent
            });
            assert!(!v0.exists());
            assert_eq!(on_cgroup(world), plus(&before, 1), "the same links");
            let error = world.b.ask(SocketAddr::new(world.a.v4, 80)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            let known = agent.interception.maps().enrolled().unwrap();
            let record = Record::read(&known[0].1).unwrap();
            assert_eq!((known.len(), &record.path), (1, &world.a.path));
            let _enrolled = agent.enrol(&world.a, Outbound::Report);
            assert_eq!(on_netns(&world.a), 1);
            assert_eq!(world.a.ask(to).unwrap(), to.to_string());
        },
    );
}

#[test]
fn what_somebody_has_undone_is_done_again() {
    test("what_somebody_has_undone_is_done_again", |world| {
        let agent = TestAgent::start(world);
        let mut enrolled = agent.enrol(&world.a, Outbound::Report);
        let interception = &agent.interception;
        let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let pins = || {
            let layout = interception.layout();
            let directories = [layout.links(), layout.pods(), layout.maps()];
            let entries = directories.map(|one| std::fs::read_dir(one).unwrap().count());
            entries.to_vec()
        };
        assert_eq!(pins(), [7, 1, 8]);

        // Detached, and the pins with it.
        let layout = interception.layout();
        duet_agent::interception::unpin(&layout.link(names::CONNECT4)).unwrap();
        assert!(interception.verify().is_err());
        assert!(interception.heal().unwrap());
        interception.verify().unwrap();
        let netns = Netns::open(&world.a.path).unwrap();
        duet_agent::interception::unpin(&layout.pod(netns.cookie())).unwrap();
        enrolled.pod_mut().steer_again().unwrap();
        assert_eq!(pins(), [7, 1, 8]);

        // Unmounted: all goes on, and is pinned again in a new file system.
        let detach = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(&world.bpffs, detach).unwrap();
        assert_eq!(world.a.ask(to).unwrap(), to.to_string());
        assert_eq!(interception.pin_again().unwrap(), 7 + 1 + 8);
        assert_eq!(pins(), [7, 1, 8]);
        assert_eq!(interception.pin_again().unwrap(), 0);
        assert!(!interception.heal().unwrap());
        let error = Interception::start(&world.bpffs, Some(&world.cgroup)).err();
        let error = error.unwrap().to_string();
        assert!(error.starts_with("another duet-agent has"), "{error}");
        drop(enrolled);
        agent.die();
        let error = world.a.ask(to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_cgroup_that_is_deleted_and_made_again_is_found() {
    test(
        "a_cgroup_that_is_deleted_and_made_again_is_found",
        |world| {
            let cgroup = world.cgroup.join("pods");
            std::fs::create_dir(&cgroup).unwrap();
            let agent = TestAgent::with(std::sync::Arc::new(
                Interception::start(&world.bpffs, Some(&cgroup)).unwrap(),
            ));
            assert!(!agent.interception.heal().unwrap());
            std::fs::remove_dir(&cgroup).unwrap();
            std::fs::create_dir(&cgroup).unwrap();
            assert!(agent.interception.heal().unwrap());
            agent.interception.verify().unwrap();
            assert!(!agent.interception.heal().unwrap());
            std::fs::remove_dir(&cgroup).unwrap();
            let why = agent.interception.heal().unwrap_err().to_string();
            assert!(why.starts_with("cannot open cgroup"), "{why}");
            // As one whose successor has given up.
            std::fs::create_dir(&cgroup).unwrap();
            agent.interception.reattach().unwrap();
            agent.interception.verify().unwrap();
        },
    );
}

#[test]
fn cleanup_leaves_nothing() {
    test("cleanup_leaves_nothing", |world| {
        let before = on_cgroup(world);
        let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let out = SocketAddr::new(world.b.v4, there.port());
        let agent = TestAgent::start(world);
        let enrolled = agent.enrol(&world.a, Outbound::Relay);
        drop(enrolled);
        agent.die();
        assert!(world.a.ask(out).is_err());

        let socket = world.scratch().join("agent.sock");
        let removed = cleanup(&world.bpffs, &socket).unwrap();
        // Links, one pod, maps, the mount.
        assert_eq!(removed.len(), 7 + 1 + 8 + 1, "{removed:#?}");
        assert!(!world.bpffs.exists());
        assert_eq!(on_cgroup(world), before);
        assert_eq!(on_netns(&world.a), 0);
        let said = world.a.ask(out).unwrap();
        assert!(
            said.starts_with(&format!("{out} {}:", world.a.v4)),
            "{said}"
        );

        assert_eq!(
            cleanup(&world.bpffs, &socket).unwrap(),
            Vec::<String>::new()
        );
    });
}
