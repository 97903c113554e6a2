//! Pods that discovery gives to the agent and takes away again, with the real
//! binary and a real duet-control.

mod daemon;
mod discovery;
mod world;

use daemon::{Agent, enrol, eventually, log_of, refused, told};
use discovery::Discovery;
use duet_agent::netns::Netns;
use duet_core::api::Placement;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use world::{PATIENCE, Process, TestPod, World, leads_to_the_agent, test};

fn list(world: &World) -> String {
    told(world, "list", &[])
}

fn is_enrolled(world: &World, name: &str, process: &Process) -> bool {
    let line = format!("default/{name}\t/proc/{}/ns/net\tenrolled", process.pid());
    list(world).lines().any(|listed| listed == line)
}

fn connect(pod: &TestPod, to: SocketAddr) -> std::io::Result<TcpStream> {
    pod.run(|| TcpStream::connect_timeout(&to, PATIENCE))
}

fn is_redirected(pod: &TestPod, to: SocketAddr) -> bool {
    let stream = connect(pod, to).unwrap();
    leads_to_the_agent(&stream)
}

fn records(world: &World) -> usize {
    let pods = world.bpffs.join("v1/pods");
    fs::read_dir(pods).unwrap().count()
}

#[test]
fn a_pod_is_enrolled_when_it_comes_and_let_go_when_it_goes() {
    test(
        "a_pod_is_enrolled_when_it_comes_and_let_go_when_it_goes",
        |world| {
            let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let out = SocketAddr::new(world.b.v4, there.port());
            let discovery = Discovery::start(world);
            // Neither is this agent's.
            let (sidecars, elsewhere) = (world.uid(8), world.uid(9));
            discovery.put("s", &sidecars, &[], "node-1", Placement::Sidecar);
            discovery.put("e", &elsewhere, &[], "node-2", Placement::Agent);
            let _others = [&sidecars, &elsewhere].map(|uid| world.pause(uid, Some(&world.b)));
            let agent = Agent::start_with(world, &discovery.control());
            eventually(|| agent.ready().0 == 200);
            assert_eq!(list(world), "");

            let uid = world.uid(1);
            discovery.place("web-0", &uid, &[]);
            let line = "default/web-0\t-\tpending: none of its processes runs here yet\n";
            eventually(|| list(world) == line);
            assert_eq!(
                agent.metric("duet_agent_workloads{reason=\"no_process\",state=\"pending\"}"),
                1.0
            );
            assert_eq!(agent.ready().0, 200, "one pod is no reason");
            assert!(!is_redirected(&world.a, out));

            let process = world.pause(&uid, Some(&world.a));
            let began = Instant::now();
            eventually(|| is_redirected(&world.a, out));
            assert!(began.elapsed() < Duration::from_secs(1));
            assert!(is_enrolled(world, "web-0", &process), "{}", list(world));
            let gaps = "duet_agent_enrolment_gap_seconds";
            assert_eq!(agent.metric(&format!("{gaps}_count")), 1.0);
            assert!(agent.metric(&format!("{gaps}_sum")) < 1.0);
            assert_eq!(
                agent.metric("duet_agent_workloads{reason=\"\",state=\"enrolled\"}"),
                1.0
            );
            // It is enrolled before those that wait are counted anew.
            eventually(|| {
                agent.metric("duet_agent_workloads{reason=\"no_process\",state=\"pending\"}") == 0.0
            });

            // Its address becomes known.
            discovery.place("web-0", &uid, &[world.a.v4, world.a.v6]);
            let error = refused(world, "remove", &["--workload", "default/web-0"]);
            assert!(error.contains("duet.dev/mode: none"), "{error}");
            assert!(is_enrolled(world, "web-0", &process));

            assert_eq!(agent.metric("duet_agent_report_failures_total"), 0.0);
            discovery.take_away("web-0");
            eventually(|| list(world).is_empty());
            assert!(!is_redirected(&world.a, out));
            assert_eq!(records(world), 0);
            assert_eq!(
                agent.metric("duet_agent_workloads{reason=\"\",state=\"enrolled\"}"),
                0.0
            );
            drop(process);

            let before = agent.descriptors();
            for n in 2..7 {
                let uid = world.uid(n);
                let process = world.pause(&uid, Some(&world.a));
                discovery.place("web-0", &uid, &[]);
                eventually(|| is_enrolled(world, "web-0", &process));
                discovery.take_away("web-0");
                eventually(|| list(world).is_empty());
            }
            assert_eq!(records(world), 0);
            eventually(|| agent.descriptors() <= before);
        },
    );
}

/// As with `kubectl delete --force`: the API server forgets a pod whose containers run on.
#[test]
fn a_deleted_pod_is_refused_while_its_namespace_is_there() {
    test(
        "a_deleted_pod_is_refused_while_its_namespace_is_there",
        |world| {
            let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let out = SocketAddr::new(world.b.v4, there.port());
            let discovery = Discovery::start(world);
            let (uid, next) = (world.uid(1), world.uid(2));
            discovery.place_for_life("web-0", &uid, &[world.a.v4, world.a.v6]);
            let process = world.pause(&uid, Some(&world.a));
            let agent = Agent::start_with(world, &discovery.control());
            eventually(|| is_enrolled(world, "web-0", &process));
            assert!(is_redirected(&world.a, out));

            let refuses = |from: &TestPod, to: SocketAddr| {
                let error = connect(from, to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            };
            let refused = "refused: it was deleted, and its network namespace is still there";
            discovery.take_away("web-0");
            eventually(|| list(world).contains(refused));
            refuses(&world.a, out);
            refuses(&world.b, SocketAddr::new(world.a.v4, 80));
            let labels = "{reason=\"deleted\",state=\"refused\"}";
            assert_eq!(agent.metric(&format!("duet_agent_workloads{labels}")), 1.0);

            // Another pod has its name, and another agent comes.
            discovery.place_for_life("web-0", &next, &[world.b.v4, world.b.v6]);
            let second = world.pause(&next, Some(&world.b));
            eventually(|| is_enrolled(world, "web-0", &second));
            assert!(list(world).contains(refused), "{}", list(world));
            agent.kill();
            refuses(&world.a, out);
            let agent = Agent::start_with(world, &discovery.control());
            eventually(|| agent.ready().0 == 200);
            assert!(is_enrolled(world, "web-0", &second));
            assert!(list(world).contains(refused), "{}", list(world));
            refuses(&world.a, out);

            // Somebody detaches its link.
            let cookie = Netns::open(&world.a.path).unwrap().cookie();
            let pin = world.bpffs.join(format!("v1/pods/{cookie}"));
            duet_agent::interception::unpin(&pin).unwrap();
            eventually(|| pin.exists());
            refuses(&world.a, out);

            // As the runtime does when it removes the sandbox.
            drop(process);
            assert_eq!(records(world), 2);
            let netns = world.a.path.file_name().unwrap();
            let deleted = Command::new("ip")
                .args(["netns", "del"])
                .arg(netns)
                .status();
            assert!(deleted.unwrap().success());
            eventually(|| list(world).lines().count() == 1);
            assert!(is_enrolled(world, "web-0", &second));
            assert_eq!(records(world), 1);
        },
    );
}

#[test]
fn an_agent_that_comes_back_compares_what_was_with_what_is() {
    test(
        "an_agent_that_comes_back_compares_what_was_with_what_is",
        |world| {
            let out = SocketAddr::new(world.b.v4, 9);
            let mut discovery = Discovery::start(world);
            let (old, new) = (world.uid(1), world.uid(2));
            discovery.place("web-0", &old, &[world.a.v4]);
            let process = world.pause(&old, Some(&world.a));
            let agent = Agent::start_with(world, &discovery.control());
            eventually(|| is_enrolled(world, "web-0", &process));
            assert_eq!(agent.metric("duet_agent_late_enrolments_total"), 1.0);
            assert_eq!(agent.metric("duet_agent_enrolment_gap_seconds_count"), 0.0);
            agent.kill();
            let error = connect(&world.a, out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

            // With nobody to ask, it serves whom the earlier one did.
            discovery.go_away();
            let agent = Agent::start_with(world, &discovery.control());
            assert!(is_enrolled(world, "web-0", &process));
            assert!(is_redirected(&world.a, out));
            let (status, why) = agent.ready();
            assert_eq!(status, 503);
            assert!(why.contains("discovery: no snapshot"), "{why}");
            discovery.come_back();
            eventually(|| agent.ready().0 == 200);
            assert!(is_enrolled(world, "web-0", &process));
            assert_eq!(agent.metric("duet_agent_late_enrolments_total"), 0.0);

            // A StatefulSet's next pod has the name, and nothing else.
            agent.kill();
            drop(process);
            let process = world.pause(&new, Some(&world.b));
            discovery.place("web-0", &new, &[world.b.v4]);
            let agent = Agent::start_with(world, &discovery.control());
            eventually(|| is_enrolled(world, "web-0", &process));
            assert_eq!(list(world).lines().count(), 1);
            assert_eq!(records(world), 1);
            assert!(is_redirected(&world.b, SocketAddr::new(world.a.v4, 9)));

            // It is gone when the next agent comes.
            agent.kill();
            discovery.take_away("web-0");
            let _agent = Agent::start_with(world, &discovery.control());
            eventually(|| list(world).is_empty());
            assert_eq!(records(world), 0);
        },
    );
}

#[test]
fn the_next_pod_of_the_name_replaces_the_last() {
    test("the_next_pod_of_the_name_replaces_the_last", |world| {
        let discovery = Discovery::start(world);
        let (old, new) = (world.uid(1), world.uid(2));
        discovery.place("web-0", &old, &[world.a.v4]);
        let first = world.pause(&old, Some(&world.a));
        let _agent = Agent::start_with(world, &discovery.control());
        eventually(|| is_enrolled(world, "web-0", &first));
        let second = world.pause(&new, Some(&world.b));
        discovery.place("web-0", &new, &[world.b.v4]);
        eventually(|| is_enrolled(world, "web-0", &second));
        assert_eq!(list(world).lines().count(), 1);
        assert_eq!(records(world), 1);
        // What is left of the first is nobody's.
        let to = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let to = SocketAddr::new(world.b.v4, to.port());
        assert!(!connect(&world.a, to).is_ok_and(|one| leads_to_the_agent(&one)));
    });
}

#[test]
fn between_two_processes_the_door_stays_shut() {
    test("between_two_processes_the_door_stays_shut", |world| {
        let discovery = Discovery::start(world);
        let uid = world.uid(1);
        discovery.place("web-0", &uid, &[world.a.v4]);
        let process = world.pause(&uid, Some(&world.a));
        let agent = Agent::start_with(world, &discovery.control());
        eventually(|| is_enrolled(world, "web-0", &process));

        // Without a sandbox process the namespace is empty until the next start.
        drop(process);
        let out = SocketAddr::new(world.b.v4, 9);
        let end = Instant::now() + 2 * duet_agent::enrolment::SWEEP;
        while Instant::now() < end {
            assert!(is_redirected(&world.a, out), "{}", log_of(world));
            std::thread::sleep(Duration::from_millis(50));
        }
        let process = world.pause(&uid, Some(&world.a));
        eventually(|| is_enrolled(world, "web-0", &process));
        // It was the same namespace all the time.
        assert_eq!(agent.metric("duet_agent_enrolment_gap_seconds_count"), 0.0);
        assert!(is_redirected(&world.a, out));
    });
}

#[test]
fn a_new_sandbox_of_the_same_pod_is_followed() {
    test("a_new_sandbox_of_the_same_pod_is_followed", |world| {
        let discovery = Discovery::start(world);
        let uid = world.uid(1);
        discovery.place("web-0", &uid, &[world.a.v4]);
        let process = world.pause(&uid, Some(&world.a));
        let agent = Agent::start_with(world, &discovery.control());
        eventually(|| is_enrolled(world, "web-0", &process));
        drop(process);
        let process = world.pause(&uid, Some(&world.b));
        discovery.place("web-0", &uid, &[world.b.v4]);
        eventually(|| is_enrolled(world, "web-0", &process));
        assert_eq!(records(world), 1);
        eventually(|| agent.metric("duet_agent_enrolment_gap_seconds_count") == 1.0);
    });
}

#[test]
fn a_pod_that_cannot_be_enrolled_is_told_of_and_holds_nobody_up() {
    test(
        "a_pod_that_cannot_be_enrolled_is_told_of_and_holds_nobody_up",
        |world| {
            let discovery = Discovery::start(world);
            let (taken, host, wrong) = (world.uid(1), world.uid(2), world.uid(3));
            // Somebody in the pod has the proxy's port.
            let _taken = world.a.serve((Ipv4Addr::LOCALHOST, 15001));
            discovery.place("taken", &taken, &[world.a.v4]);
            discovery.place("host", &host, &[]);
            discovery.place("wrong", &wrong, &[Ipv4Addr::new(10, 77, 0, 9).into()]);
            let _processes = [
                world.pause(&taken, Some(&world.a)),
                world.pause(&host, None),
                world.pause(&wrong, Some(&world.b)),
            ];
            let agent = Agent::start_with(world, &discovery.control());
            let says = |name: &str, what: &str| {
                let start = format!("default/{name}\t-\t{what}");
                eventually(|| list(world).lines().any(|line| line.starts_with(&start)));
            };
            says(
                "taken",
                "failed: cannot listen on 127.0.0.1:15001 in /proc/",
            );
            says("host", "pending: its processes are in the node's own");
            says(
                "wrong",
                "failed: its network namespace has 10.77.0.2, fd77::2, and",
            );
            for (reason, state) in [
                ("redirection", "failed"),
                ("host_network", "pending"),
                ("other_address", "failed"),
            ] {
                let labels = format!("{{reason=\"{reason}\",state=\"{state}\"}}");
                let workloads = agent.metric(&format!("duet_agent_workloads{labels}"));
                assert_eq!(workloads, 1.0, "{labels}");
            }
            assert_eq!(records(world), 0);

            // A rollout waits a while and then goes on.
            let (status, why) = agent.ready();
            assert_eq!(status, 503);
            assert!(
                why.contains("pods not enrolled yet: default/host (its"),
                "{why}"
            );
            let start = Instant::now();
            while agent.ready().0 != 200 {
                let limit = duet_agent::reconcile::START_WITHIN + PATIENCE;
                assert!(start.elapsed() < limit, "{}", agent.ready().1);
                std::thread::sleep(Duration::from_millis(100));
            }
            let log = log_of(world);
            let of_taken = log
                .lines()
                .filter(|line| line.contains("workload=default/taken"));
            assert_eq!(of_taken.count(), 1, "{log}");

            // What is corrected is found.
            discovery.place("wrong", &wrong, &[world.b.v4]);
            eventually(|| list(world).contains("/ns/net\tenrolled"));
        },
    );
}

#[test]
fn what_was_enrolled_by_hand_is_not_discoverys_to_end() {
    test(
        "what_was_enrolled_by_hand_is_not_discoverys_to_end",
        |world| {
            let discovery = Discovery::start(world);
            discovery.put("web-0", "", &[world.a.v4], "node-1", Placement::Unplaced);
            let agent = Agent::start_with(world, &discovery.control());
            enrol(world, "default/web-0", &world.a);
            discovery.take_away("web-0");
            discovery.place("other", &world.uid(1), &[]);
            eventually(|| list(world).contains("default/other"));
            let by_hand = format!("default/web-0\t{}\tenrolled", world.a.path.display());
            assert!(list(world).contains(&by_hand));
            agent.kill();
            let _agent = Agent::start_with(world, &discovery.control());
            eventually(|| list(world).contains("default/other"));
            assert!(list(world).contains(&by_hand));

            // Until discovery says that it is its own.
            let uid = world.uid(2);
            let process = world.pause(&uid, Some(&world.a));
            discovery.place("web-0", &uid, &[world.a.v4]);
            eventually(|| is_enrolled(world, "web-0", &process));
            discovery.take_away("web-0");
            eventually(|| !list(world).contains("default/web-0"));
        },
    );
}

/// The kubelet asks a new pod as soon as it has an address, and tells of that later.
#[test]
fn a_connection_waits_until_the_pods_address_is_told() {
    test(
        "a_connection_waits_until_the_pods_address_is_told",
        |world| {
            let server = world.a.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(world.a.v4, server.port());
            let discovery = Discovery::start(world);
            let uid = world.uid(1);
            let process = world.pause(&uid, Some(&world.a));
            discovery.place("web-0", &uid, &[]);
            let _agent = Agent::start_with(world, &discovery.control());
            eventually(|| is_enrolled(world, "web-0", &process));
            thread::scope(|scope| {
                let asking = scope.spawn(|| world.b.ask(to));
                thread::sleep(Duration::from_millis(500));
                assert!(!asking.is_finished(), "{:?}", asking.join());
                discovery.place("web-0", &uid, &[world.a.v4]);
                let said = asking.join().unwrap();
                assert!(said.is_ok_and(|said| said.starts_with(&to.to_string())));
            });
        },
    );
}
