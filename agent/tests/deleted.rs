//! Pods that were deleted by force, and whose processes run on: through handovers, crashes,
//! and where others fail open.

mod daemon;
mod discovery;
mod load;
mod world;

use daemon::{
    Agent, PATIENT, ask, enrol, eventually, is_enrolled, is_serving, log_of, next, next_with, told,
};
use discovery::Discovery;
use duet_agent::enrolment::SWEEP;
use duet_core::api::Placement;
use duet_ebpf::names;
use load::{Load, StopAtEnd, exchange, hold};
use nix::sys::signal::{Signal, kill};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use world::{PATIENCE, TestPod, Wire, World, entries_at, leads_to_the_agent, tell, test};

const CRASHES: &str = "duet_agent_proxy_restarts_total{reason=\"crash\"}";

/// With it, whoever is not deleted goes around an agent that is away.
const FAIL_OPEN: [&str; 2] = ["--fail-open-namespaces", "default"];
const FAILED_OPEN: &str = "duet_agent_failed_open_total{namespace=\"default\"}";

/// Whether a deleted pod is refused, as far as the agent knows.
fn is_shut(world: &World, name: &str) -> bool {
    let why = "refused: it was deleted, and its network namespace is still there";
    told(world, "list", &[])
        .lines()
        .any(|line| line.starts_with(&format!("default/{name}\t")) && line.ends_with(why))
}

/// All that somebody has met who is let nowhere.
fn assert_refused(load: &Load) {
    assert_eq!(load.served(), 0);
    let failed = load.failed();
    let other = failed.iter().find(|why| !why.contains("refused"));
    assert_eq!(other, None);
}

#[test]
fn a_deleted_pod_stays_refused_through_handovers() {
    test("a_deleted_pod_stays_refused_through_handovers", |world| {
        let discovery = Discovery::start(world);
        let [process, _other] = discovery.place_both_for_life(world);
        let servers = [
            SocketAddr::new(world.b.v4, 0),
            SocketAddr::new(world.b.v6, 0),
        ];
        let servers = servers.map(|server| {
            let bound = world.b.serve(server);
            SocketAddr::new(server.ip(), bound.port())
        });
        let control = discovery.control();
        let mut agent = Agent::launch(world, &control, "run", &PATIENT);
        eventually(|| is_serving(world, &agent));
        hold(&world.a, servers[0]);
        discovery.take_away("web-a");
        eventually(|| is_shut(world, "web-a"));

        // What runs in it goes on.
        let (load, wire) = (Load::default(), Wire::tap(&world.b));
        let agent = std::thread::scope(|scope| {
            let _stop = StopAtEnd(&load);
            for server in servers {
                load.client(scope, &world.a, server, Duration::from_millis(2));
            }
            load.fails(50);
            for verb in ["supervise", "run", "supervise"] {
                agent = next(world, &control, agent, verb);
                load.fails(50);
                eventually(|| is_shut(world, "web-a") && is_enrolled(world, "web-b"));
            }
            kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
            eventually(|| agent.metric(CRASHES) == 1.0);
            load.fails(50);
            eventually(|| is_shut(world, "web-a") && is_enrolled(world, "web-b"));
            agent
        });
        assert_refused(&load);
        assert_eq!(wire.count(b""), 0, "packets on the wire");
        tell(&format!("{} connections refused", load.failed().len()));
        let refused = "duet_agent_workloads{reason=\"deleted\",state=\"refused\"}";
        assert_eq!(agent.metric(refused), 1.0);

        // The last of them forgets it when its namespace is gone.
        drop(process);
        let netns = world.a.path.file_name().unwrap();
        let deleted = Command::new("ip")
            .args(["netns", "del"])
            .arg(netns)
            .status();
        assert!(deleted.unwrap().success());
        eventually(|| agent.metric(refused) == 0.0);
        assert!(is_enrolled(world, "web-b"));
    });
}

#[test]
fn a_deleted_pod_is_refused_where_others_fail_open() {
    test("a_deleted_pod_is_refused_where_others_fail_open", |world| {
        let discovery = Discovery::start(world);
        let _processes = discovery.place_both_for_life(world);
        let [here, there] = [&world.a, &world.b].map(|pod| {
            let server = pod.serve((Ipv4Addr::UNSPECIFIED, 0));
            SocketAddr::new(pod.v4, server.port())
        });
        let open = || entries_at::<8>(&world.bpffs.join("v1/maps").join(names::OPEN));
        let control = discovery.control();
        let mut agent = Agent::launch(world, &control, "run", &FAIL_OPEN);
        eventually(|| is_serving(world, &agent));
        assert_eq!(open(), 2);
        discovery.take_away("web-a");
        eventually(|| is_shut(world, "web-a"));

        let (load, wire) = (Load::default(), Wire::tap(&world.b));
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&load);
            load.client(scope, &world.a, there, Duration::from_millis(2));
            for (more, is_open) in [(&FAIL_OPEN[..], 1), (&[], 0), (&FAIL_OPEN, 1)] {
                agent = next_with(world, &control, agent, "run", more);
                eventually(|| is_shut(world, "web-a") && is_enrolled(world, "web-b"));
                load.fails(50);
                // Longer than it takes to be looked at.
                std::thread::sleep(SWEEP);
                assert_eq!(open(), is_open);
            }
            agent.kill();
            load.fails(50);
            assert_eq!(wire.count(b""), 0, "packets on the wire");
            // The other goes out, and is not let in.
            world.b.ask(here).unwrap_err();
            assert_ne!(wire.count(b""), 0, "the choice is in effect");
            // Nor does one that comes later open it.
            let agent = Agent::launch(world, &control, "run", &FAIL_OPEN);
            eventually(|| agent.metric(FAILED_OPEN) == 1.0);
            agent.kill();
            load.fails(50);
        });
        assert_refused(&load);
        assert_eq!(wire.count(b""), 0, "packets on the wire");
    });
}

/// Connects until it is over. Returns how often that led to the agent, and how often nowhere.
fn what_is_met(pod: &TestPod, to: SocketAddr, is_over: &AtomicBool) -> [usize; 2] {
    let mut met = [0; 2];
    while !is_over.load(Relaxed) {
        match pod.run(|| TcpStream::connect_timeout(&to, PATIENCE)) {
            Ok(stream) => {
                assert!(leads_to_the_agent(&stream));
                met[0] += 1;
            }
            // It was in the queue of a listener that was closed.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                met[1] += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    met
}

/// Ends what looks at it also where a test fails, which would otherwise wait for it.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_pod_that_is_deleted_during_a_handover_is_refused_after_it() {
    test(
        "a_pod_that_is_deleted_during_a_handover_is_refused_after_it",
        |world| {
            let discovery = Discovery::start(world);
            let uid = world.uid(1);
            let _process = world.pause(&uid, Some(&world.a));
            discovery.place_for_life("web-a", &uid, &[world.a.v4, world.a.v6]);
            let addresses = [world.b.v4, world.b.v6];
            discovery.put("web-9", "", &addresses, "node-1", Placement::Agent);
            let control = discovery.control();
            let agent = Agent::launch(world, &control, "run", &FAIL_OPEN);
            eventually(|| ask(world, "list", &[]).status.success());
            enrol(world, "default/web-9", &world.b);
            // Until then it goes to the other in plaintext, which is let in.
            eventually(|| is_enrolled(world, "web-a"));
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(world.b.v4, server.port());
            eventually(|| world.a.run(|| exchange(to)).is_ok());

            // The next agent waits for a certificate that nobody gives it.
            discovery.take_away("web-9");
            let is_over = AtomicBool::new(false);
            let agent = std::thread::scope(|scope| {
                let meets = scope.spawn(|| what_is_met(&world.a, to, &is_over));
                let handover = scope.spawn(|| {
                    let _over = SetAtEnd(&is_over);
                    let agent = next_with(world, &control, agent, "run", &FAIL_OPEN);
                    eventually(|| is_shut(world, "web-a"));
                    std::thread::sleep(SWEEP);
                    agent
                });
                let issued = "certificate issued identity=spiffe://test.local/ns/default/sa/web-a ";
                eventually(|| log_of(world).matches(issued).count() == 2);
                assert!(!log_of(world).contains("handed over"));
                discovery.take_away("web-a");
                let agent = handover.join().unwrap();
                let [redirected, refused] = meets.join().unwrap();
                assert!(redirected > 0 && refused > 0, "{redirected} {refused}");
                tell(&format!(
                    "{redirected} connections redirected, then {refused} refused"
                ));
                agent
            });
            agent.kill();
            let refused = world.a.ask(to).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        },
    );
}
