//! What the agent may do, and what becomes of it with less.

mod daemon;
mod world;

use daemon::{Agent, BINARY, Control, ask, enrol, eventually, log_of, told};
use duet_agent::netns::Netns;
use duet_agent::passing;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use world::{World, tell, test};

const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// The agent's binary as a container with these capabilities has it.
fn with_capabilities(kept: &[&str], arguments: &[&str]) -> Output {
    let bounding = kept
        .iter()
        .fold("-all".to_owned(), |set, one| format!("{set},+{one}"));
    Command::new("setpriv")
        .args(["--inh-caps", "-all", "--bounding-set", &bounding])
        .args(["--no-new-privs", "--", BINARY])
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_capability_that_is_missing_is_named() {
    test("each_capability_that_is_missing_is_named", |_| {
        for (kept, missing) in [
            ("sys_ptrace", "CAP_SYS_ADMIN"),
            ("sys_admin", "CAP_SYS_PTRACE"),
        ] {
            for verb in ["run", "supervise"] {
                let mut arguments = vec![verb, "--node", "node-1"];
                arguments.extend(["--control", "https://127.0.0.1:1", "--trust-bundle"]);
                arguments.extend(["/dev/null", "--token-file", "/dev/null"]);
                let output = with_capabilities(&[kept], &arguments);
                assert_eq!(output.status.code(), Some(78));
                let said = text(&output.stderr);
                assert_eq!(said.lines().count(), 1, "{said}");
                let expected = format!("duet-agent {verb}: {missing} is missing, and without it");
                assert!(said.starts_with(&expected), "{said}");
            }
            let output = with_capabilities(&[kept], &["doctor"]);
            assert_eq!(output.status.code(), Some(1));
            let said = text(&output.stdout);
            let expected = format!("missing  capabilities: {missing}, without which");
            assert!(said.contains(&expected), "{said}");
        }
        let output = with_capabilities(&["sys_admin", "sys_ptrace"], &["doctor"]);
        assert!(output.status.success(), "{}", text(&output.stdout));
    });
}

/// What a process has left.
fn left(pid: Pid) -> (u64, u64, u32) {
    let process = Process::new(pid.as_raw()).unwrap();
    let status = process.status().unwrap();
    // Of all its threads: each has its own.
    for task in process.tasks().unwrap().flatten() {
        let of_task = task.status().unwrap();
        assert_eq!(of_task.capeff, status.capeff);
        assert_eq!(of_task.seccomp, status.seccomp);
    }
    assert_eq!(status.nonewprivs, Some(1));
    assert_eq!(status.capprm, status.capeff);
    assert_eq!(status.capamb, Some(0));
    (
        status.capeff,
        status.capbnd.unwrap(),
        status.seccomp.unwrap(),
    )
}

#[test]
fn whatever_it_is_started_with_it_keeps_what_it_needs() {
    test(
        "whatever_it_is_started_with_it_keeps_what_it_needs",
        |world| {
            const FILTERED: u32 = 2;
            let needed = SYS_ADMIN | SYS_PTRACE;
            let agent = Agent::supervised(world, &Control::away());
            enrol(world, "default/web-0", &world.a);
            let proxy = agent.proxy().unwrap();
            assert_eq!(left(proxy), (needed, needed, FILTERED));
            // It starts the other, which takes a system call that the other has not.
            let (effective, bounding, _) = left(agent.pid());
            assert_eq!((effective, bounding), (needed, needed));
            // And it works.
            let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
            let connect = || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5));
            assert!(world.a.run(connect).is_ok());
            eventually(|| ask(world, "list", &[]).status.success());
            assert!(!log_of(world).contains("no inotify"));
            assert!(agent.stop().success(), "{}", log_of(world));
        },
    );
}

/// The profile of deploy/, applied to whatever this thread starts, as runc applies it to
/// a container.
#[cfg(target_arch = "x86_64")]
fn confine(profile: &Value) {
    let header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";
    let header = std::fs::read_to_string(header).expect("linux-libc-dev is installed");
    let number = |name: &Value| -> i64 {
        let define = format!("#define __NR_{} ", name.as_str().unwrap());
        let mut lines = header.lines();
        let line = lines.find_map(|line| line.strip_prefix(&define));
        line.unwrap_or_else(|| panic!("{define}")).parse().unwrap()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for entry in profile["syscalls"].as_array().unwrap() {
        assert_eq!(entry["action"], "SCMP_ACT_ALLOW");
        for name in entry["names"].as_array().unwrap() {
            let rules = rules.entry(number(name)).or_default();
            for argument in entry["args"].as_array().into_iter().flatten() {
                let value = |key: &str| argument[key].as_u64().unwrap();
                let (operator, value) = match argument["op"].as_str().unwrap() {
                    "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, value("value")),
                    "SCMP_CMP_MASKED_EQ" => {
                        (SeccompCmpOp::MaskedEq(value("value")), value("valueTwo"))
                    }
                    other => panic!("{other}"),
                };
                let index = argument["index"].as_u64().unwrap() as u8;
                let length = SeccompCmpArgLen::Qword;
                let condition = SeccompCondition::new(index, length, operator, value).unwrap();
                rules.push(SeccompRule::new(vec![condition]).unwrap());
            }
        }
    }
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let otherwise = profile["defaultErrnoRet"].as_u64().unwrap() as u32;
    let otherwise = SeccompAction::Errno(otherwise);
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64);
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&filter).unwrap();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_shipped_seccomp_profile_is_this_agents_and_enough() {
    let path = "../deploy/seccomp/duet-agent.json";
    let shipped = std::fs::read_to_string(path).unwrap();
    let shipped: Value = serde_json::from_str(&shipped).unwrap();
    let print = Command::new(BINARY).arg("seccomp-profile").output();
    let printed: Value = serde_json::from_slice(&print.unwrap().stdout).unwrap();
    assert_eq!(
        shipped, printed,
        "duet-agent seccomp-profile > deploy/seccomp/duet-agent.json"
    );
    let kubelets = tempfile::tempdir().unwrap();
    let file = concat!("duet-agent-", env!("CARGO_PKG_VERSION"), ".json");
    // As often as agents start.
    for _ in 0..2 {
        let mut install = Command::new(BINARY);
        install
            .arg("seccomp-profile")
            .arg("--install")
            .arg(kubelets.path());
        assert!(install.status().unwrap().success());
        let installed = std::fs::read(kubelets.path().join(file)).unwrap();
        assert_eq!(
            shipped,
            serde_json::from_slice::<Value>(&installed).unwrap()
        );
    }
    std::fs::write(kubelets.path().join("another.json"), "{}").unwrap();
    let removed = duet_agent::cleanup::remove_profiles(kubelets.path()).unwrap();
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert!(!kubelets.path().join(file).exists());
    assert!(kubelets.path().join("another.json").exists());
    test(
        "the_shipped_seccomp_profile_is_this_agents_and_enough",
        |world| {
            let launch = || {
                confine(&shipped);
                // It is in force, and the agent does not notice.
                let denied = nix::sched::unshare(CloneFlags::CLONE_NEWUTS);
                assert_eq!(denied, Err(Errno::ENOSYS));
                Agent::supervised(world, &Control::away())
            };
            let agent = std::thread::scope(|scope| scope.spawn(launch).join().unwrap());
            enrol(world, "default/web-0", &world.a);
            let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
            let connect = || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5));
            assert!(world.a.run(connect).is_ok());
            kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
            let crashes = "duet_agent_proxy_restarts_total{reason=\"crash\"}";
            eventually(|| agent.metric(crashes) == 1.0);
            eventually(|| told(world, "list", &[]).contains("\tenrolled"));
            assert!(world.a.run(connect).is_ok());
            assert!(!log_of(world).contains("no inotify"));
            assert!(agent.stop().success(), "{}", log_of(world));
        },
    );
}

/// Why the process that proxies enters namespaces itself.
#[test]
fn what_a_socket_costs_by_itself_and_from_another_process() {
    test(
        "what_a_socket_costs_by_itself_and_from_another_process",
        |world| {
            const SOCKETS: u32 = 2000;
            let _runtime = tokio::runtime::Runtime::new().unwrap();
            let _entered = _runtime.enter();
            let open = |world: &World| Netns::open(&world.a.path).unwrap();
            let netns = open(world);
            let began = Instant::now();
            for _ in 0..SOCKETS {
                netns.within(TcpSocket::new_v4).unwrap().unwrap();
            }
            let itself = began.elapsed() / SOCKETS;
            // One that makes sockets for the other, as quickly as it can.
            let (here, there) = UnixStream::pair().unwrap();
            let other = std::thread::spawn(move || {
                while let Ok(Some(((), _))) = passing::receive::<()>(&there) {
                    let socket = netns.within(TcpSocket::new_v4).unwrap().unwrap();
                    passing::send(&there, &(), &[socket.as_fd()]).unwrap();
                }
            });
            let began = Instant::now();
            for _ in 0..SOCKETS {
                passing::send(&here, &(), &[]).unwrap();
                let (_, files) = passing::receive::<()>(&here).unwrap().unwrap();
                assert_eq!(files.len(), 1);
            }
            let passed = began.elapsed() / SOCKETS;
            drop(here);
            other.join().unwrap();
            tell(&format!(
                "a socket in a pod's namespace: {itself:.1?} by setns, {passed:.1?} by asking another"
            ));
        },
    );
}
