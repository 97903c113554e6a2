//! The real binary: started, asked, killed, started again, cleaned up after.
//!
//! There is no control plane here: connections that the agent accepts wait. That
//! is enough to tell them from refused ones, and nothing may leave either way.

mod daemon;
mod world;

use daemon::{Agent, BINARY, Control, ask, enrol, eventually, log_of, refused, told};
use duet_agent::enrolment::SWEEP;
use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use world::{PATIENCE, TestPod, Wire, has_programs, leads_to_the_agent, tell, test};

fn connect(pod: &TestPod, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    pod.run(|| TcpStream::connect_timeout(&to, PATIENCE))
}

#[test]
fn killed_and_started_again_it_serves_whom_it_served() {
    test(
        "killed_and_started_again_it_serves_whom_it_served",
        |world| {
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let out = SocketAddr::new(world.b.v4, server.port()).to_string();
            let agent = Agent::start(world);
            enrol(world, "default/web-0", &world.a);
            enrol(world, "default/web-0", &world.a);
            let listed = format!("default/web-0\t{}\tenrolled\n", world.a.path.display());
            assert_eq!(told(world, "list", &[]), listed);
            let wire = Wire::tap(&world.b);
            let waiting = connect(&world.a, &out).unwrap();
            assert_eq!(waiting.peer_addr().unwrap().to_string(), out);

            agent.kill();
            for _ in 0..20 {
                let error = connect(&world.a, &out).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            }
            let error = refused(world, "list", &[]);
            assert!(
                error.starts_with("duet-agent list: no agent listens on"),
                "{error}"
            );

            let agent = Agent::start(world);
            assert_eq!(told(world, "list", &[]), listed);
            connect(&world.a, &out).unwrap();
            assert_eq!(wire.count(b""), 0, "packets on the wire");

            told(world, "remove", &["--workload", "default/web-0"]);
            assert_eq!(told(world, "list", &[]), "");
            assert!(!leads_to_the_agent(&connect(&world.a, &out).unwrap()));
            drop(agent);
        },
    );
}

#[test]
fn told_to_stop_it_leaves_the_door_shut_and_cleanup_opens_it() {
    test(
        "told_to_stop_it_leaves_the_door_shut_and_cleanup_opens_it",
        |world| {
            let server = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
            let out = SocketAddr::new(world.b.v4, server.port()).to_string();
            let agent = Agent::start(world);
            enrol(world, "default/web-0", &world.a);
            let cleanup = || {
                ask(
                    world,
                    "cleanup",
                    &["--bpffs", world.bpffs.to_str().unwrap()],
                )
            };
            assert_eq!(cleanup().status.code(), Some(78), "while it runs");

            assert!(agent.stop().success());
            assert!(!world.scratch().join("agent.sock").exists());
            let error = connect(&world.a, &out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

            let output = cleanup();
            assert!(output.status.success());
            let removed = String::from_utf8(output.stdout).unwrap();
            assert!(removed.lines().all(|line| line.starts_with("removed ")));
            assert_eq!(removed.lines().count(), 17, "{removed}");
            assert!(!world.bpffs.exists());
            assert!(!leads_to_the_agent(&connect(&world.a, &out).unwrap()));
        },
    );
}

#[test]
fn a_deleted_namespace_is_removed_by_itself() {
    test("a_deleted_namespace_is_removed_by_itself", |world| {
        let delete = |pod: &TestPod| {
            let name = pod.path.file_name().unwrap();
            let status = Command::new("ip").args(["netns", "del"]).arg(name).status();
            assert!(status.unwrap().success());
        };
        let agent = Agent::start(world);
        enrol(world, "default/web-0", &world.a);
        enrol(world, "default/web-1", &world.b);
        delete(&world.a);
        eventually(|| !told(world, "list", &[]).contains("web-0"));
        agent.kill();
        delete(&world.b);
        let _agent = Agent::start(world);
        eventually(|| told(world, "list", &[]).is_empty());
        eventually(|| {
            let pods = world.bpffs.join("v1/pods");
            fs::read_dir(pods).unwrap().next().is_none()
        });
    });
}

#[test]
fn what_the_kernel_programs_cost_is_told_where_the_kernel_counts_it() {
    test(
        "what_the_kernel_programs_cost_is_told_where_the_kernel_counts_it",
        |world| {
            let _counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
            let agent = Agent::start(world);
            enrol(world, "default/web-0", &world.a);
            let connected = |name: &str, metric: &str| {
                agent.metric(&format!("duet_agent_bpf_{metric}{{program=\"{name}\"}}"))
            };
            let to = SocketAddr::new(world.b.v4, 9).to_string();
            let into = SocketAddr::new(world.a.v4, 9);
            let _streams = [0; 5].map(|_| connect(&world.a, &to).unwrap());
            let _ = world.b.run(|| TcpStream::connect_timeout(&into, PATIENCE));
            for (name, runs) in [("duet_connect4", 5.0), ("duet_sk_lookup", 1.0)] {
                eventually(|| connected(name, "runs_total") >= runs);
                assert!(connected(name, "run_seconds_total") > 0.0, "{name}");
            }
            // What has been counted is not forgotten with the pod.
            told(world, "remove", &["--workload", "default/web-0"]);
            assert!(connected("duet_sk_lookup", "runs_total") >= 1.0);
        },
    );
}

#[test]
fn mistakes_are_told_in_one_line() {
    test("mistakes_are_told_in_one_line", |world| {
        let _agent = Agent::start(world);
        enrol(world, "default/web-0", &world.a);
        let path = world.a.path.to_str().unwrap();
        for (verb, arguments, expected) in [
            (
                "enrol",
                vec!["--workload", "default/web-1", "--netns", path],
                "already enrolled as default/web-0",
            ),
            (
                "enrol",
                vec!["--workload", "default/web-1", "--netns", "/proc/self/stat"],
                "is not a network namespace",
            ),
            (
                "enrol",
                vec!["--workload", "default/web-1", "--netns", "/nowhere"],
                "cannot open network namespace /nowhere",
            ),
            (
                "enrol",
                vec![
                    "--workload",
                    "default/web-1",
                    "--netns",
                    "/proc/self/ns/net",
                ],
                "is the agent's own network namespace",
            ),
            (
                "remove",
                vec!["--workload", "default/web-1"],
                "default/web-1 is not enrolled",
            ),
        ] {
            let error = refused(world, verb, &arguments);
            assert!(error.contains(expected), "{error}");
        }
        let usage = ask(world, "remove", &["--workload", "web-1"]);
        assert_eq!(usage.status.code(), Some(64));
    });
}

#[test]
fn the_socket_is_roots_alone() {
    test("the_socket_is_roots_alone", |world| {
        use std::os::unix::fs::PermissionsExt;
        let _agent = Agent::start(world);
        let socket = world.scratch().join("agent.sock");
        let mode = fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Even with the file open to all.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        nix::unistd::seteuid(65534.into()).unwrap();
        let answer = duet_agent::api::ask(&socket, &duet_agent::api::Request::List);
        nix::unistd::seteuid(0.into()).unwrap();
        let answer = answer.unwrap_err().to_string();
        assert_eq!(answer, "uid 65534 may not ask this agent for anything");
    });
}

/// Whether a new process in `cgroup`, and in the pod, is redirected: nobody else is where
/// it wants to go.
fn is_redirected_in(cgroup: &Path, pod: &TestPod) -> bool {
    let client = pod.run(|| {
        Command::new("bash")
            .args([
                "-c",
                "read -r && timeout 5 bash -c 'exec 3<>/dev/tcp/10.96.0.10/80'",
            ])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    });
    let mut client = client.unwrap();
    fs::write(cgroup.join("cgroup.procs"), client.id().to_string()).unwrap();
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    client.wait().unwrap().success()
}

#[test]
fn who_is_enrolled_after_the_cgroup_was_made_again_is_redirected_from_the_start() {
    test(
        "who_is_enrolled_after_the_cgroup_was_made_again_is_redirected_from_the_start",
        |world| {
            let below = world.below("pods");
            let _agent = Agent::start(&below);
            enrol(world, "default/web-0", &world.a);
            assert!(is_redirected_in(&below.cgroup, &world.a));
            for pod in 1..=5 {
                eventually(|| fs::remove_dir(&below.cgroup).is_ok());
                fs::create_dir(&below.cgroup).unwrap();
                let name = format!("default/web-{pod}");
                enrol(world, &name, &world.b);
                assert!(
                    is_redirected_in(&below.cgroup, &world.b),
                    "{}",
                    log_of(world)
                );
                told(world, "remove", &["--workload", &name]);
            }
            // Who was enrolled before, in a moment.
            eventually(|| fs::remove_dir(&below.cgroup).is_ok());
            fs::create_dir(&below.cgroup).unwrap();
            let began = Instant::now();
            eventually(|| is_redirected_in(&below.cgroup, &world.a));
            assert!(began.elapsed() < SWEEP, "{:?}", began.elapsed());
        },
    );
}

/// Deletes a cgroup, and the one above it, and makes them again. Returns how long it then
/// takes until all programs are on it.
fn make_again(cgroup: &Path) -> Duration {
    for gone in [cgroup, cgroup.parent().unwrap()] {
        eventually(|| fs::remove_dir(gone).is_ok());
    }
    fs::create_dir_all(cgroup).unwrap();
    let began = Instant::now();
    while !has_programs(cgroup) {
        assert!(began.elapsed() < SWEEP, "it is not found");
        std::thread::sleep(Duration::from_micros(50));
    }
    began.elapsed()
}

#[test]
fn a_cgroup_made_again_has_the_programs_told_of_it_or_not() {
    test(
        "a_cgroup_made_again_has_the_programs_told_of_it_or_not",
        |world| {
            let below = world.below("above").below("pods");
            let after = |what: &str, agent: Agent| {
                let mut took: Vec<Duration> = (0..20)
                    .map(|round| {
                        // Anywhere between two looks.
                        std::thread::sleep(Duration::from_millis(100 + 7 * round));
                        make_again(&below.cgroup)
                    })
                    .collect();
                drop(agent);
                took.sort();
                let (middle, most) = (took[took.len() / 2], took[took.len() - 1]);
                tell(&format!(
                    "from mkdir to the programs, {what}: {middle:.1?} in the middle, {most:.1?} at most"
                ));
                middle
            };
            let told = after("told by inotify", Agent::start(&below));
            let looking = daemon::without_inotify(|| Agent::start(&below));
            assert!(log_of(world).contains("no inotify"));
            assert!(told < after("by looking", looking));
        },
    );
}

#[test]
fn doctor_finds_this_machine_fit() {
    test("doctor_finds_this_machine_fit", |_| {
        let output = Command::new(BINARY).arg("doctor").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        assert_eq!(text.lines().count(), 14, "{text}");
    });
}

/// A kernel that refuses a system call with one argument, as an older one would.
fn doctor_without(call: i64, argument: u8, value: u64, errno: Errno) -> String {
    let length = SeccompCmpArgLen::Dword;
    let condition = SeccompCondition::new(argument, length, SeccompCmpOp::Eq, value).unwrap();
    let rule = SeccompRule::new(vec![condition]).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, vec![rule])]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    let examine = || {
        // Of this thread and its children.
        seccompiler::apply_filter(&filter).unwrap();
        Command::new(BINARY).arg("doctor").output().unwrap()
    };
    let output = std::thread::scope(|scope| scope.spawn(examine).join().unwrap());
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn doctor_says_what_the_kernel_lacks() {
    test("doctor_says_what_the_kernel_lacks", |_| {
        const SO_NETNS_COOKIE: u64 = 71;
        const BPF_PROG_LOAD: u64 = 5;
        let missing = |text: &str| -> Vec<String> {
            let missing = text
                .lines()
                .filter_map(|line| line.strip_prefix("missing  "));
            missing.map(str::to_owned).collect()
        };
        let no_cookies = doctor_without(
            nix::libc::SYS_getsockopt,
            2,
            SO_NETNS_COOKIE,
            Errno::ENOPROTOOPT,
        );
        assert_eq!(
            missing(&no_cookies),
            [
                "network namespace cookies (SO_NETNS_COOKIE, Linux 5.14): Protocol not available \
              (os error 92): a newer kernel is needed"
            ]
        );
        let no_programs = doctor_without(nix::libc::SYS_bpf, 0, BPF_PROG_LOAD, Errno::EINVAL);
        let lacking = missing(&no_programs).join("\n");
        for needs in [
            "no cgroup_sock_addr (CONFIG_CGROUP_BPF), no sock_ops (CONFIG_INET), no sk_lookup",
            "eBPF object: ",
        ] {
            assert!(lacking.contains(needs), "{no_programs}");
        }
        assert!(!lacking.contains("no hash"), "{no_programs}");
    });
}

const PASSED: &str = "duet_agent_failed_open_total{namespace=\"open\"}";

#[test]
fn a_namespace_that_fails_open_goes_around_an_agent_that_is_away_and_is_counted() {
    test(
        "a_namespace_that_fails_open_goes_around_an_agent_that_is_away_and_is_counted",
        |world| {
            let [here, there] = [&world.a, &world.b].map(|pod| {
                let server = pod.serve((Ipv4Addr::UNSPECIFIED, 0));
                SocketAddr::new(pod.v4, server.port())
            });
            let server = world.b.serve((Ipv6Addr::UNSPECIFIED, 0));
            let there6 = SocketAddr::new(world.b.v6, server.port());
            let start = |more: &[&str]| {
                let agent = Agent::launch(world, &Control::away(), "run", more);
                eventually(|| ask(world, "list", &[]).status.success());
                agent
            };
            let is_redirected =
                || leads_to_the_agent(&connect(&world.a, &there.to_string()).unwrap());
            let agent = start(&["--fail-open-namespaces", "other,open"]);
            enrol(world, "open/web-0", &world.a);
            assert!(is_redirected(), "while the agent is there");
            agent.kill();
            for (pod, to, from) in [
                (&world.a, there, world.a.v4),
                (&world.a, there6, world.a.v6),
                (&world.b, here, world.b.v4),
            ] {
                let said = pod.ask(to).unwrap();
                let expected = format!("{to} {}", SocketAddr::new(from, 0));
                assert!(said.starts_with(expected.trim_end_matches('0')), "{said}");
            }
            // Who connects to the mesh port wants to be sure of whom it reaches.
            let mesh = SocketAddr::new(world.a.v4, 15008);
            let squatter = world.a.run(|| TcpListener::bind("0.0.0.0:15008"));
            let error = world.b.ask(mesh).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            drop(squatter);

            let agent = start(&["--fail-open-namespaces", "*"]);
            assert!(is_redirected());
            eventually(|| agent.metric(PASSED) == 3.0);
            assert!(log_of(world).contains("went around the mesh"));
            agent.kill();
            // Without the choice the door is shut again.
            start(&[]).kill();
            for (pod, to) in [(&world.a, there), (&world.a, there6), (&world.b, here)] {
                let error = pod.ask(to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            }
        },
    );
}
