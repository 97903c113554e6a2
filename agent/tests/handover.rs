//! Agents that take over from one another, with the real binary, a real duet-control
//! and traffic that does not stop.

mod daemon;
mod discovery;
mod load;
mod node;
mod scene;
mod world;

use daemon::{
    Agent, HANDOVERS, PATIENT, ask, enrol, eventually, is_enrolled, is_serving, log_of, next,
    refused, told, try_get,
};
use discovery::Discovery;
use duet_agent::enrolment::SWEEP;
use duet_agent::handover::{self, Predecessor};
use duet_agent::interception::{Before, Interception};
use duet_agent::passing::{self, OLDEST, VERSION};
use duet_core::api::Placement;
use load::{Load, StopAtEnd, exchange, hold};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scene::{PODS, Scene};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use world::{TestPod, World, has_programs, tell, test};

const CRASHES: &str = "duet_agent_proxy_restarts_total{reason=\"crash\"}";
const CUT: &str = "duet_agent_connections_cut_total{reason=\"handover\"}";

/// How many handovers the first test makes, unless it is told otherwise.
const ROUNDS: u32 = 20;

/// Between the connections of each of its 48 clients: 500 a second, of all of them.
const EVERY: Duration = Duration::from_millis(96);

#[test]
fn no_new_connection_fails_through_many_handovers() {
    test("no_new_connection_fails_through_many_handovers", |world| {
        let scene = Scene::new(world);
        let control = scene.discovery.control();
        let agent = Agent::launch(world, &control, "run", &PATIENT);
        eventually(|| scene.is_served(&agent));
        let load = Load::default();
        let rounds = std::env::var("DUET_TEST_HANDOVERS");
        let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
        let (agent, rate) = std::thread::scope(|scope| {
            let mut agent = agent;
            let _stop = StopAtEnd(&load);
            scene.calls(&load, scope, 4, EVERY);
            load.more(200);
            let (began, before) = (Instant::now(), load.served());
            for round in 1..=rounds {
                // A supervised one and one without change places.
                let verb = if round % 2 == 0 { "run" } else { "supervise" };
                agent = next(world, &control, agent, verb);
                load.more(100);
            }
            let took = began.elapsed();
            load.stop();
            let (served, failed) = (load.served(), load.failed().len());
            let rate = (served - before) as f64 / took.as_secs_f64();
            tell(&format!(
                "{rounds} handovers in {took:.1?} under {rate:.0} new connections a second over \
                 {PODS} pods: {served} served, {failed} failed, the slowest took {:?}",
                load.slowest()
            ));
            (agent, rate)
        });
        assert_eq!(load.failed(), Vec::<String>::new(), "{}", log_of(world));
        // 500 are asked for; a busy machine may not have that many to spare.
        assert!(rate > 250.0, "{rate:.0} connections a second are no load");
        assert_eq!(agent.metric(HANDOVERS), f64::from(rounds));
        assert!(scene.is_served(&agent));
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
            let estate = predecessor.ask(&handover::request(VERSION, None)).unwrap();
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
            let error = other.ask(&handover::request(VERSION, None)).err().unwrap();
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

/// Whether a process has a pod's network namespace open.
fn holds_namespaces(world: &World, process: Pid) -> bool {
    let inode = |pod: &TestPod| std::fs::metadata(&pod.path).unwrap().ino();
    let pods = [&world.a, &world.b].map(|pod| format!("net:[{}]", inode(pod)));
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let mut files = files
        .flatten()
        .flat_map(|file| std::fs::read_link(file.path()));
    files.any(|file| pods.iter().any(|pod| file.as_os_str() == pod.as_str()))
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
            // A pod that goes is not kept by it.
            eventually(|| !holds_namespaces(world, old.pid()));
            eventually(|| !holds_namespaces(world, old.proxy().unwrap()));
            assert!(holds_namespaces(world, new.proxy().unwrap()));

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
fn an_unknown_version_is_refused_in_one_line_and_nothing_changes() {
    test(
        "an_unknown_version_is_refused_in_one_line_and_nothing_changes",
        |world| {
            let discovery = Discovery::start(world);
            let control = discovery.control();
            let agent = Agent::start_with(world, &control);
            let socket = world.scratch().join("agent.sock");
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream
                .write_all(b"{\"verb\":\"handover\",\"version\":3,\"layout\":\"v1\"}\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let why = "it speaks versions 1 to 2 of the handover, and version 3";
            assert!(answer.contains(why), "{answer}");
            assert_eq!(answer.lines().count(), 1);
            told(world, "list", &[]);
            assert!(agent.stop().success());
        },
    );
}

#[test]
fn the_version_before_is_given_what_it_understands() {
    test("the_version_before_is_given_what_it_understands", |world| {
        let discovery = Discovery::start(world);
        let _processes = discovery.place_both(world);
        let agent = Agent::start_with(world, &discovery.control());
        eventually(|| agent.ready().0 == 200);
        let socket = world.scratch().join("agent.sock");
        for version in [OLDEST, VERSION] {
            let older = Predecessor::find(&socket).unwrap().unwrap();
            let estate = older.ask(&handover::request(version, None)).unwrap();
            for inherited in estate.doors.values() {
                assert_eq!(inherited.listeners.len(), 6);
                assert_eq!(inherited.file.is_some(), version == VERSION);
            }
            drop(older);
            let goes_on = || log_of(world).matches("this one goes on").count();
            eventually(|| goes_on() == version as usize);
        }
        assert!(agent.stop().success());
    });
}

/// An agent of the first version of the protocol, as far as others see it: it takes
/// everything from the agent that runs, and hands it to the next. The frames are as that
/// version wrote them.
struct First {
    api: UnixListener,
    lock: OwnedFd,
    doors: Vec<(Value, Vec<OwnedFd>)>,
    end: Value,
}

impl First {
    fn take_over(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .write_all(
                b"{\"verb\":\"handover\",\"version\":1,\"layout\":\"v1\",\"instance\":null}\n",
            )
            .unwrap();
        assert_eq!(line(&mut stream), "{\"ok\":true}");
        let (mut lock, mut api, mut doors) = (None, None, Vec::new());
        let end = loop {
            let (frame, mut files) = passing::receive::<Value>(&stream).unwrap().unwrap();
            if frame == "lock" {
                lock = files.pop();
            } else if frame == "api" {
                api = files.pop();
            } else if frame.get("end").is_some() {
                break frame;
            } else {
                let listeners = frame["door"]["listeners"].as_array().unwrap();
                assert_eq!(listeners.len(), files.len(), "it knows of nothing else");
                doors.push((frame, files));
            }
        };
        passing::send(&stream, &"taken", &[]).unwrap();
        let (closed, _) = passing::receive::<Value>(&stream).unwrap().unwrap();
        assert_eq!(closed, "closed");
        let api = UnixListener::from(api.unwrap());
        api.set_nonblocking(false).unwrap();
        Self {
            api,
            lock: lock.unwrap(),
            doors,
            end,
        }
    }

    /// Returns what it was asked before, in versions that it does not speak.
    fn hand_over(self) -> Vec<Value> {
        let mut refused = Vec::new();
        loop {
            let (mut stream, _) = self.api.accept().unwrap();
            let asked: Value = serde_json::from_str(&line(&mut stream)).unwrap();
            if asked["version"] != 1 {
                let why = "{\"ok\":false,\"error\":\"it speaks version 1 of the handover\"}\n";
                stream.write_all(why.as_bytes()).unwrap();
                refused.push(asked);
                continue;
            }
            let known = ["verb", "version", "layout", "instance"];
            let mut asked = asked.as_object().unwrap().keys();
            assert!(asked.all(|key| known.contains(&key.as_str())));
            stream.write_all(b"{\"ok\":true}\n").unwrap();
            passing::send(&stream, &"lock", &[self.lock.as_fd()]).unwrap();
            passing::send(&stream, &"api", &[self.api.as_fd()]).unwrap();
            for (frame, files) in &self.doors {
                let door = json!({ "door": {
                    "netns": frame["door"]["netns"],
                    "listeners": frame["door"]["listeners"],
                }});
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                passing::send(&stream, &door, &files).unwrap();
            }
            passing::send(&stream, &self.end, &[]).unwrap();
            let (taken, _) = passing::receive::<Value>(&stream).unwrap().unwrap();
            assert_eq!(taken, "taken");
            drop(self.doors);
            passing::send(&stream, &"closed", &[]).unwrap();
            passing::send(&stream, &json!({ "cut": { "connections": 3 } }), &[]).unwrap();
            return refused;
        }
    }
}

#[expect(
    clippy::unbuffered_bytes,
    reason = "what follows the line stays in the socket"
)]
fn line(stream: &mut UnixStream) -> String {
    let bytes = stream.bytes().map_while(Result::ok);
    let line = bytes.take_while(|byte| *byte != b'\n').collect();
    String::from_utf8(line).unwrap()
}

#[test]
fn the_first_version_takes_over_and_is_taken_over_from() {
    test(
        "the_first_version_takes_over_and_is_taken_over_from",
        |world| {
            let discovery = Discovery::start(world);
            let _processes = discovery.place_both(world);
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(world.b.v4, server.port());
            let control = discovery.control();
            let agent = Agent::start_with(world, &control);
            eventually(|| is_serving(world, &agent));
            let load = Load::default();
            std::thread::scope(|scope| {
                let _stop = StopAtEnd(&load);
                load.client(scope, &world.a, to, Duration::from_millis(20));
                load.more(20);
                let first = First::take_over(&world.scratch().join("agent.sock"));
                assert!(agent.end().success(), "{}", log_of(world));
                let next = Agent::launch(world, &control, "run", &PATIENT);
                let refused = first.hand_over();
                assert_eq!(refused.len(), 1, "{refused:?}");
                assert_eq!(refused[0]["version"], VERSION);
                eventually(|| is_serving(world, &next));
                load.more(20);
                load.stop();
                eventually(|| next.metric(CUT) == 3.0);
                assert_eq!(load.failed(), Vec::<String>::new(), "{}", log_of(world));
                assert!(next.stop().success());
            });
            tell(&format!(
                "version 1 in between: {} connections served, the slowest in {:.1?}",
                load.served(),
                load.slowest()
            ));
        },
    );
}

#[test]
fn one_that_is_refused_waits_and_begins_when_the_other_is_gone() {
    test(
        "one_that_is_refused_waits_and_begins_when_the_other_is_gone",
        |world| {
            let discovery = Discovery::start(world);
            let _processes = discovery.place_both(world);
            let socket = world.scratch().join("agent.sock");
            // One that knows of no handovers, and is asked in both versions.
            let old = UnixListener::bind(&socket).unwrap();
            let old = std::thread::spawn(move || {
                for version in ["\"version\":2", "\"version\":1"] {
                    let (mut stream, _) = old.accept().unwrap();
                    let mut asked = [0; 1024];
                    let length = stream.read(&mut asked).unwrap();
                    let answer = b"{\"ok\":false,\"error\":\"not a request: unknown variant\"}\n";
                    stream.write_all(answer).unwrap();
                    let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
                    assert!(asked.contains(version), "{asked}");
                }
            });
            let mut agent = Agent::launch(world, &discovery.control(), "run", &[]);
            let why = "does not hand over: not a request";
            eventually(|| {
                try_get(agent.health, "/ready").is_ok_and(|(_, said)| said.contains(why))
            });
            assert!(agent.is_running());
            old.join().unwrap();
            eventually(|| is_serving(world, &agent));
            assert_eq!(log_of(world).matches(why).count(), 1, "{}", log_of(world));
        },
    );
}

#[test]
fn a_pod_that_cannot_be_found_is_handed_over_all_the_same() {
    test(
        "a_pod_that_cannot_be_found_is_handed_over_all_the_same",
        |world| {
            let discovery = Discovery::start(world);
            let [process, _other] = discovery.place_both(world);
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(world.b.v4, server.port());
            let control = discovery.control();
            let agent = Agent::start_with(world, &control);
            eventually(|| agent.ready().0 == 200);
            // Between two containers of a pod without a sandbox: nothing leads to it.
            drop(process);
            let began = Instant::now();
            let agent = next(world, &control, agent, "supervise");
            tell(&format!("handed over in {:.1?}", began.elapsed()));
            eventually(|| is_serving(world, &agent));
            hold(&world.a, to);
            // Nor does the supervisor need a path.
            kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
            eventually(|| agent.metric(CRASHES) == 1.0 && is_serving(world, &agent));
            hold(&world.a, to);
        },
    );
}

#[test]
fn a_pod_without_a_certificate_does_not_keep_the_others_waiting() {
    test(
        "a_pod_without_a_certificate_does_not_keep_the_others_waiting",
        |world| {
            let discovery = Discovery::start(world);
            let uid = world.uid(1);
            let _process = world.pause(&uid, Some(&world.a));
            discovery.place("web-a", &uid, &[world.a.v4, world.a.v6]);
            let by_hand = || {
                let addresses = [world.b.v4, world.b.v6];
                discovery.put("web-9", "", &addresses, "node-1", Placement::Agent);
            };
            by_hand();
            let control = discovery.control();
            let agent = Agent::start_with(world, &control);
            enrol(world, "default/web-9", &world.b);
            eventually(|| agent.ready().0 == 200);
            // The one has its certificate still, and the next will have none.
            discovery.take_away("web-9");
            let began = Instant::now();
            let agent = next(world, &control, agent, "run");
            tell(&format!("handed over in {:.1?}", began.elapsed()));
            let log = log_of(world);
            assert!(log.contains("taken over without a certificate"), "{log}");
            assert!(is_enrolled(world, "web-a") && is_enrolled(world, "web-9"));
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            by_hand();
            let to = SocketAddr::new(world.b.v4, server.port());
            eventually(|| world.a.run(|| exchange(to)).is_ok());
            drop(agent);
        },
    );
}

#[test]
fn a_cgroup_made_again_in_the_middle_is_followed() {
    test("a_cgroup_made_again_in_the_middle_is_followed", |world| {
        let below = world.below("pods");
        let discovery = Discovery::start(world);
        let addresses = [world.b.v4, world.b.v6];
        discovery.put("web-9", "", &addresses, "node-1", Placement::Agent);
        let control = discovery.control();
        let agent = Agent::start_with(&below, &control);
        enrol(world, "default/web-9", &world.b);
        eventually(|| agent.ready().0 == 200);
        // The next waits for a certificate that it will not have.
        discovery.take_away("web-9");
        let next = Agent::launch(&below, &control, "run", &PATIENT);
        eventually(|| log_of(world).matches(" enrolled ").count() == 2);
        std::fs::remove_dir(&below.cgroup).unwrap();
        std::fs::create_dir(&below.cgroup).unwrap();
        let began = Instant::now();
        eventually(|| has_programs(&below.cgroup));
        assert!(began.elapsed() < SWEEP, "{:?}", began.elapsed());
        // The other is to take everything back, there.
        assert_eq!(next.metric(HANDOVERS), 0.0);
        next.kill();
        std::fs::remove_dir(&below.cgroup).unwrap();
        std::fs::create_dir(&below.cgroup).unwrap();
        eventually(|| has_programs(&below.cgroup));
        eventually(|| is_enrolled(world, "web-9") && agent.ready().0 == 200);
    });
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
            let again = launch("agent-old");
            let why = "it took over from agent-old itself, and does not give back";
            eventually(|| log_of(world).contains(why));
            assert!(again.stop().success());
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
