//! Agents that take over from one another, with the real binary, a real duet-control
//! and traffic that does not stop.

mod daemon;
mod discovery;
mod load;
mod world;

use daemon::{Agent, Control, ask, enrol, eventually, is_enrolled, log_of, refused, told, try_get};
use discovery::Discovery;
use duet_agent::enrolment::SWEEP;
use duet_agent::handover::{self, Predecessor};
use duet_agent::interception::{Before, Interception};
use load::{Load, StopAtEnd, hold};
use nix::sys::signal::{Signal, kill};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use world::{Wire, World, tell, test};

const HANDOVERS: &str = "duet_agent_handovers_total";
const CRASHES: &str = "duet_agent_proxy_restarts_total{reason=\"crash\"}";
const CUT: &str = "duet_agent_connections_cut_total{reason=\"handover\"}";

/// How many handovers the first test makes, unless it is told otherwise.
const ROUNDS: u32 = 6;

/// The next agent, once it has everything.
fn next(world: &World, control: &Control, last: Agent, verb: &str) -> Agent {
    let count = last.metric(HANDOVERS);
    let agent = Agent::launch(world, control, verb, &[]);
    eventually(|| agent.metric(HANDOVERS) == count + 1.0);
    let status = last.end();
    assert!(status.success(), "{status}: {}", log_of(world));
    agent
}

/// Whether it is this agent that has both workloads.
fn is_serving(world: &World, agent: &Agent) -> bool {
    let ready = try_get(agent.health, "/ready");
    ready.is_ok_and(|(status, _)| status == 200)
        // One without a predecessor is ready a moment before it can be asked.
        && ask(world, "list", &[]).status.success()
        && ["web-a", "web-b"]
            .iter()
            .all(|name| is_enrolled(world, name))
}

#[test]
fn no_new_connection_fails_through_many_handovers() {
    test("no_new_connection_fails_through_many_handovers", |world| {
        let discovery = Discovery::start(world);
        let _processes = discovery.place_both(world);
        let servers = [&world.a, &world.b].map(|pod| {
            let v4 = pod.serve((Ipv4Addr::UNSPECIFIED, 0)).port();
            let v6 = pod.serve((Ipv6Addr::UNSPECIFIED, 0)).port();
            [SocketAddr::new(pod.v4, v4), SocketAddr::new(pod.v6, v6)]
        });
        let control = discovery.control();
        let agent = Agent::start_with(world, &control);
        eventually(|| agent.ready().0 == 200);
        let wire = Wire::tap(&world.b);
        let load = Load::default();
        let rounds = std::env::var("DUET_TEST_HANDOVERS");
        let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
        let agent = std::thread::scope(|scope| {
            let mut agent = agent;
            let _stop = StopAtEnd(&load);
            for (pod, to) in [(&world.a, &servers[1]), (&world.b, &servers[0])] {
                for address in to {
                    load.client(scope, pod, *address, Duration::from_millis(5));
                }
            }
            load.watch(scope, &wire);
            load.more(100);
            let (began, before) = (Instant::now(), load.served());
            for round in 1..=rounds {
                // A supervised one and one without change places.
                let verb = if round % 2 == 0 { "run" } else { "supervise" };
                agent = next(world, &control, agent, verb);
                load.more(50);
            }
            let took = began.elapsed();
            load.stop();
            let (served, failed) = (load.served(), load.failed().len());
            let rate = (served - before) as f64 / took.as_secs_f64();
            tell(&format!(
                "{rounds} handovers in {took:.1?} under {rate:.0} new connections a second: {served} \
                 served, {failed} failed, the slowest took {:?}",
                load.slowest()
            ));
            agent
        });
        assert_eq!(load.plaintext(), 0);
        assert_eq!(load.failed(), Vec::<String>::new(), "{}", log_of(world));
        assert_eq!(agent.metric(HANDOVERS), f64::from(rounds));
        assert_eq!(agent.ready().0, 200);
        assert!(is_enrolled(world, "web-a") && is_enrolled(world, "web-b"));
    });
}

#[test]
fn what_is_open_at_the_end_of_the_drain_is_counted() {
    test("what_is_open_at_the_end_of_the_drain_is_counted", |world| {
        let discovery = Discovery::start(world);
        let _processes = discovery.place_both(world);
        let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let to = SocketAddr::new(world.b.v4, server.port());
        let control = discovery.control();
        let agent = Agent::start_with(world, &control);
        eventually(|| agent.ready().0 == 200);
        let mut finished = hold(&world.a, to);
        let mut open = hold(&world.a, to);
        let agent = std::thread::scope(|scope| {
            let handover = scope.spawn(|| next(world, &control, agent, "run"));
            // It may end while the earlier process drains.
            eventually(|| log_of(world).contains("handed over"));
            finished.shutdown(std::net::Shutdown::Write).unwrap();
            finished.read_to_end(&mut Vec::new()).unwrap();
            handover.join().unwrap()
        });
        // Both its ends were here: the client's, and the server's.
        eventually(|| agent.metric(CUT) == 2.0);
        assert!(open.read_to_end(&mut Vec::new()).is_err() || open.write(b"?").is_err());
        hold(&world.a, to);
    });
}

#[test]
fn a_successor_that_dies_leaves_everything_to_its_predecessor() {
    test(
        "a_successor_that_dies_leaves_everything_to_its_predecessor",
        |world| {
            let discovery = Discovery::start(world);
            let _processes = discovery.place_both(world);
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(world.b.v4, server.port());
            let agent = Agent::start_with(world, &discovery.control());
            eventually(|| agent.ready().0 == 200);

            let socket = world.scratch().join("agent.sock");
            let predecessor = Predecessor::find(&socket).unwrap().unwrap();
            let estate = predecessor.ask(&handover::request(None)).unwrap();
            assert_eq!(estate.doors.len(), 2);
            assert_eq!(estate.served.len(), 2);
            let before = Before::Agent(estate.lock);
            // It has put its own programs into the links.
            Interception::after(before, &world.bpffs, Some(&world.cgroup)).unwrap();
            let path = world.a.path.to_str().unwrap();
            let asked = ["--workload", "default/web-9", "--netns", path];
            let error = refused(world, "enrol", &asked);
            assert!(error.contains("hands over to another"), "{error}");
            let other = Predecessor::find(&socket).unwrap().unwrap();
            let error = other.ask(&handover::request(None)).err().unwrap();
            assert!(
                error.to_string().contains("hands over to another"),
                "{error}"
            );
            hold(&world.a, to);

            drop((predecessor, estate.doors, estate.api));
            eventually(|| log_of(world).contains("this one goes on"));
            hold(&world.a, to);
            std::thread::sleep(SWEEP);
            assert_eq!(agent.ready().0, 200, "{}", agent.ready().1);
            assert!(is_enrolled(world, "web-a") && is_enrolled(world, "web-b"));
            let error = refused(world, "enrol", &asked);
            assert!(error.contains("already enrolled"), "{error}");
        },
    );
}

#[test]
fn a_predecessor_that_stays_is_not_in_the_way_of_those_after_it() {
    test(
        "a_predecessor_that_stays_is_not_in_the_way_of_those_after_it",
        |world| {
            let discovery = Discovery::start(world);
            let _processes = discovery.place_both(world);
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(world.b.v4, server.port());
            let control = discovery.control();
            let mut old = Agent::launch(world, &control, "supervise", &["--stay"]);
            eventually(|| ask(world, "list", &[]).status.success() && old.ready().0 == 200);
            let new = Agent::launch(world, &control, "supervise", &[]);
            eventually(|| new.metric(HANDOVERS) == 1.0 && is_serving(world, &new));
            hold(&world.a, to);

            kill(new.proxy().unwrap(), Signal::SIGKILL).unwrap();
            eventually(|| new.metric(CRASHES) == 1.0 && is_serving(world, &new));
            hold(&world.a, to);

            let proxy = new.proxy().unwrap();
            new.kill();
            eventually(|| !std::fs::exists(format!("/proc/{proxy}")).unwrap());
            // Nobody is where an agent would be asked.
            assert!(!ask(world, "list", &[]).status.success());
            let third = Agent::launch(world, &control, "supervise", &[]);
            eventually(|| is_serving(world, &third));
            hold(&world.a, to);
            assert!(old.is_running(), "{}", log_of(world));
            assert!(old.stop().success());
            hold(&world.a, to);
            assert!(is_serving(world, &third));
        },
    );
}

#[test]
fn another_version_is_refused_in_one_line_and_nothing_changes() {
    test(
        "another_version_is_refused_in_one_line_and_nothing_changes",
        |world| {
            let discovery = Discovery::start(world);
            let control = discovery.control();
            let agent = Agent::start_with(world, &control);
            let socket = world.scratch().join("agent.sock");
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream
                .write_all(b"{\"verb\":\"handover\",\"version\":2,\"layout\":\"v1\"}\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("it speaks version 1 of the handover, and version 2"));
            assert_eq!(answer.lines().count(), 1);
            told(world, "list", &[]);
            assert!(agent.stop().success());

            // One that knows of no handovers at all.
            let old = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let old = std::thread::spawn(move || {
                let (mut stream, _) = old.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                let answer = b"{\"ok\":false,\"error\":\"not a request: unknown variant\"}\n";
                stream.write_all(answer).unwrap();
            });
            let before = log_of(world).len();
            let status = Agent::launch(world, &control, "run", &[]).end();
            assert_eq!(status.code(), Some(78));
            let log = log_of(world).split_off(before);
            let told = log
                .lines()
                .filter(|line| line.starts_with("duet-agent run: "));
            let told: Vec<&str> = told.collect();
            assert_eq!(told.len(), 1, "{log}");
            assert!(
                told[0].contains("does not hand over: not a request"),
                "{log}"
            );
            old.join().unwrap();
        },
    );
}

#[test]
fn a_pods_agent_stays_until_it_is_told_to_end_and_gets_nothing_back() {
    test(
        "a_pods_agent_stays_until_it_is_told_to_end_and_gets_nothing_back",
        |world| {
            let discovery = Discovery::start(world);
            let control = discovery.control();
            let launch = |name: &str| {
                let more = ["--stay", "--instance", name];
                Agent::launch(world, &control, "supervise", &more)
            };
            let mut old = launch("agent-old");
            eventually(|| ask(world, "list", &[]).status.success() && old.ready().0 == 200);
            let mut new = launch("agent-new");
            eventually(|| new.metric(HANDOVERS) == 1.0);
            eventually(|| old.ready() == (503, "draining\n".to_owned()));
            eventually(|| log_of(world).contains("drained"));
            std::thread::sleep(Duration::from_millis(300));
            assert!(old.is_running(), "{}", log_of(world));
            // Its container is started again, for whatever reason.
            let again = launch("agent-old").end();
            assert_eq!(again.code(), Some(78));
            let why = "it took over from agent-old itself, and does not give back";
            assert!(log_of(world).contains(why), "{}", log_of(world));
            assert!(new.is_running());
            assert!(old.stop().success());
            enrol(world, "default/web-0", &world.a);
            assert!(new.stop().success());
            let to = SocketAddr::new(world.b.v4, 9);
            let refused = world.a.ask(to).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        },
    );
}
