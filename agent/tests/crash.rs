//! A proxying process that dies or hangs, and a supervisor that does.

mod daemon;
mod discovery;
mod load;
mod world;

use daemon::{Agent, Control, enrol, eventually, is_enrolled, log_of, told};
use discovery::Discovery;
use load::{Load, StopAtEnd, exchange, hold, is_refusal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::LimitValue;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use world::{TestPod, Wire, World, tell, test};

/// From a proxy's death until the next one serves: the median of some.
const RECOVERED_WITHIN: Duration = Duration::from_millis(300);

const CRASHES: &str = "duet_agent_proxy_restarts_total{reason=\"crash\"}";
const HANGS: &str = "duet_agent_proxy_restarts_total{reason=\"hang\"}";
const CUT_BY_CRASH: &str = "duet_agent_connections_cut_total{reason=\"crash\"}";
const CUT_BY_HANG: &str = "duet_agent_connections_cut_total{reason=\"hang\"}";

/// How long a client that connects just now has to wait for its answer. The process may
/// have taken it along, if it accepted in its last moment; it is never refused.
fn wait_of_one(pod: &TestPod, to: SocketAddr) -> Duration {
    let began = Instant::now();
    while let Err(error) = pod.run(|| exchange(to)) {
        assert!(!is_refusal(&error.to_string()), "{error}");
    }
    began.elapsed()
}

/// Whether every thread is: until the first of them heeds the signal, the others go on.
fn is_stopped(process: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    })
}

fn supervised(world: &World, discovery: &Discovery) -> Agent {
    let agent = Agent::supervised(world, &discovery.control());
    eventually(|| agent.ready().0 == 200);
    agent
}

#[test]
fn a_killed_proxy_refuses_nobody() {
    test("a_killed_proxy_refuses_nobody", |world| {
        let discovery = Discovery::start(world);
        let _processes = discovery.place_both(world);
        let [here, there] = [&world.a, &world.b].map(|pod| {
            let server = pod.serve((Ipv4Addr::UNSPECIFIED, 0));
            SocketAddr::new(pod.v4, server.port())
        });
        let agent = supervised(world, &discovery);
        let wire = Wire::tap(&world.b);
        let load = Load::default();
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&load);
            load.client(scope, &world.a, there, Duration::from_millis(5));
            load.client(scope, &world.b, here, Duration::from_millis(5));
            load.watch(scope, &wire);
            load.more(50);
            let mut waits = Vec::new();
            for round in 1..=5 {
                let mut open = hold(&world.a, there);
                // Longer than the supervisor takes to hear of it.
                std::thread::sleep(3 * duet_agent::keeper::BEAT);
                let cut = agent.metric(CUT_BY_CRASH);
                kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
                waits.push(wait_of_one(&world.a, there));
                let ended = open.read_to_end(&mut Vec::new());
                let waited = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                assert!(!waited, "what was open goes with its process");
                eventually(|| agent.metric(CRASHES) == f64::from(round));
                // The client's end and the server's.
                assert!(agent.metric(CUT_BY_CRASH) >= cut + 2.0);
                load.more(20);
            }
            let (served, lost) = (load.served(), load.failed().len());
            waits.sort_unstable();
            tell(&format!(
                "killed 5 times: a new connection waited {waits:?}; {served} others served, {lost} \
                 lost that were open, {} refused",
                load.refused().len()
            ));
            assert!(waits[2] < RECOVERED_WITHIN, "{waits:?}");
        });
        assert_eq!(load.refused(), Vec::<String>::new(), "{}", log_of(world));
        assert_eq!(load.plaintext(), 0);
        eventually(|| agent.ready().0 == 200);
        assert!(is_enrolled(world, "web-a") && is_enrolled(world, "web-b"));
        assert!(agent.stop().success());
    });
}

#[test]
fn a_proxy_that_hangs_is_replaced() {
    test("a_proxy_that_hangs_is_replaced", |world| {
        let discovery = Discovery::start(world);
        let _processes = discovery.place_both(world);
        let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let to = SocketAddr::new(world.b.v4, server.port());
        let agent = supervised(world, &discovery);
        let _open = hold(&world.a, to);
        // On a machine that is busy as well.
        std::thread::sleep(6 * duet_agent::keeper::BEAT);
        let hung = agent.proxy().unwrap();
        kill(hung, Signal::SIGSTOP).unwrap();
        eventually(|| is_stopped(hung));
        let wait = wait_of_one(&world.a, to);
        tell(&format!("stopped: a new connection waited {wait:?}"));
        eventually(|| agent.metric(HANGS) == 1.0);
        assert_eq!(agent.metric(CUT_BY_HANG), 2.0);
        assert_eq!(agent.metric(CRASHES), 0.0);
        assert_ne!(agent.proxy(), Some(hung));
    });
}

#[test]
fn with_the_supervisor_dead_connections_are_refused_and_nothing_leaves() {
    test(
        "with_the_supervisor_dead_connections_are_refused_and_nothing_leaves",
        |world| {
            let to = SocketAddr::new(world.b.v4, 9);
            let agent = Agent::supervised(world, &Control::away());
            enrol(world, "default/web-0", &world.a);
            // Its listeners are closed here as well, so that it can come back.
            told(world, "remove", &["--workload", "default/web-0"]);
            enrol(world, "default/web-0", &world.a);
            let wire = Wire::tap(&world.b);
            let proxy = agent.proxy().unwrap();
            agent.kill();
            eventually(|| !fs::exists(format!("/proc/{proxy}")).unwrap());
            for _ in 0..20 {
                let error = world.a.ask(to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            }
            assert_eq!(wire.count(b""), 0, "packets on the wire");
            let agent = Agent::supervised(world, &Control::away());
            assert!(told(world, "list", &[]).ends_with("\tenrolled\n"));
            assert_eq!(agent.metric(CRASHES), 0.0);
        },
    );
}

#[test]
fn a_supervisor_keeps_as_many_listeners_as_it_is_allowed_to() {
    test(
        "a_supervisor_keeps_as_many_listeners_as_it_is_allowed_to",
        |world| {
            // As a container runtime starts it.
            let maximum = getrlimit(Resource::Nofile).maximum;
            let usual = Rlimit {
                current: Some(1024),
                maximum,
            };
            setrlimit(Resource::Nofile, usual).unwrap();
            let agent = Agent::supervised(world, &Control::away());
            let process = procfs::process::Process::new(agent.pid().as_raw()).unwrap();
            let limit = process.limits().unwrap().max_open_files;
            let soft = match limit.soft_limit {
                LimitValue::Unlimited => None,
                LimitValue::Value(limit) => Some(limit),
            };
            assert_eq!(soft, maximum);
        },
    );
}

#[test]
fn what_a_user_has_written_wrong_is_not_tried_again() {
    test(
        "what_a_user_has_written_wrong_is_not_tried_again",
        |world| {
            let control = Control {
                url: "nonsense".to_owned(),
                ..Control::away()
            };
            let status = Agent::launch(world, &control, "supervise", &[]).end();
            assert_eq!(status.code(), Some(78));
            assert_eq!(log_of(world).lines().count(), 1, "{}", log_of(world));
        },
    );
}
