//! The agent's binary: started, asked, stopped, killed.

#![allow(dead_code, reason = "each test file uses some of it")]

use super::world::{PATIENCE, TestPod, World};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_duet-agent");

/// Where an agent finds duet-control, and what it needs for that.
pub struct Control {
    pub url: String,
    pub root_pem: String,
    pub token: String,
}

pub struct Agent {
    child: Child,
    pub metrics: SocketAddr,
    pub health: SocketAddr,
}

// === impl Control ===

impl Control {
    /// Nobody is there.
    pub fn away() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new(vec!["duet-control".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        Self {
            url: "https://127.0.0.1:1".to_owned(),
            root_pem: root.pem(),
            token: "none".to_owned(),
        }
    }
}

// === impl Agent ===

impl Agent {
    /// Starts it without a control plane, and waits until it can be asked.
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &Control::away())
    }

    pub fn start_with(world: &World, control: &Control) -> Self {
        Self::launch(world, control, "run", &[]).until_it_answers(world)
    }

    /// With a supervisor.
    pub fn supervised(world: &World, control: &Control) -> Self {
        Self::launch(world, control, "supervise", &[]).until_it_answers(world)
    }

    fn until_it_answers(mut self, world: &World) -> Self {
        let start = Instant::now();
        while !ask(world, "list", &[]).status.success() {
            assert!(self.is_running(), "{}", log_of(world));
            assert!(start.elapsed() < PATIENCE, "{}", log_of(world));
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    /// Only starts it: with an agent there, that one answers.
    pub fn launch(world: &World, control: &Control, verb: &str, more: &[&str]) -> Self {
        let bundle = world.scratch().join("root.pem");
        fs::write(&bundle, &control.root_pem).unwrap();
        let token = world.scratch().join("token");
        fs::write(&token, &control.token).unwrap();
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true);
        let log = log.open(world.scratch().join("log")).unwrap();
        let [metrics, health] = free_ports();
        let child = Command::new(BINARY)
            .args([verb, "--node", "node-1", "--socket"])
            .arg(world.scratch().join("agent.sock"))
            .arg("--bpffs")
            .arg(&world.bpffs)
            .arg("--cgroup")
            .arg(&world.cgroup)
            .args(["--control", &control.url, "--trust-bundle"])
            .arg(&bundle)
            .arg("--token-file")
            .arg(&token)
            .args(["--admin", "127.0.0.1:0"])
            .args(["--metrics", &metrics.to_string()])
            .args(["--health", &health.to_string()])
            .args(["--drain-timeout", "1s"])
            .args(more)
            // Unless the test says otherwise.
            .env("DUET_HANDOVER_DRAIN_TIMEOUT", "1s")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            child,
            metrics,
            health,
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for it to end by itself.
    pub fn end(mut self) -> ExitStatus {
        let start = Instant::now();
        while self.is_running() {
            assert!(start.elapsed() < 3 * PATIENCE, "it runs on");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.wait().unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// The process that proxies, of a supervised agent; none while there is none.
    pub fn proxy(&self) -> Option<Pid> {
        let supervisor = self.child.id() as i32;
        let processes = procfs::process::all_processes().unwrap().flatten();
        let mut processes = processes.filter_map(|process| process.stat().ok());
        let child = processes.find(|stat| stat.ppid == supervisor && stat.state != 'Z');
        child.map(|stat| Pid::from_raw(stat.pid))
    }

    /// SIGTERM.
    pub fn stop(self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.end()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(directory).unwrap().count()
    }

    /// The value of one series, 0 if it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let Ok((_, page)) = try_get(self.metrics, "/metrics") else {
            return 0.0;
        };
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// /ready's status and words.
    pub fn ready(&self) -> (u16, String) {
        get(self.health, "/ready")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is launched has no inotify, and looks for changes itself.
pub fn without_inotify<T: Send>(launch: impl FnOnce() -> T + Send) -> T {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_inotify_init1, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(Errno::EMFILE as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    let confined = || {
        // Of this thread and its children.
        apply_filter(&filter).unwrap();
        launch()
    };
    std::thread::scope(|scope| scope.spawn(confined).join().unwrap())
}

/// Two ports that are free now. The address is this test's alone, so that nobody else's
/// connection takes one before an agent does, or between two of them.
fn free_ports() -> [SocketAddr; 2] {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = (Ipv4Addr::new(127, 64 + high, middle, low), 0);
    [address, address]
        .map(|address| TcpListener::bind(address).unwrap())
        .map(|listener| listener.local_addr().unwrap())
}

pub fn get(from: SocketAddr, path: &str) -> (u16, String) {
    try_get(from, path).unwrap()
}

pub fn try_get(from: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(from)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, body.to_owned()))
}

pub fn log_of(world: &World) -> String {
    fs::read_to_string(world.scratch().join("log")).unwrap()
}

pub fn ask(world: &World, verb: &str, arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .arg(verb)
        .arg("--socket")
        .arg(world.scratch().join("agent.sock"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Standard output, of a verb that succeeds.
pub fn told(world: &World, verb: &str, arguments: &[&str]) -> String {
    let output = ask(world, verb, arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{verb}: {}", text(output.stderr));
    text(output.stdout)
}

/// Standard error, of a verb that does not.
pub fn refused(world: &World, verb: &str, arguments: &[&str]) -> String {
    let output = ask(world, verb, arguments);
    assert_eq!(output.status.code(), Some(78));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    error
}

/// Whether a pod that discovery gave to the agent is enrolled.
pub fn is_enrolled(world: &World, name: &str) -> bool {
    let list = told(world, "list", &[]);
    let line = list
        .lines()
        .find(|line| line.starts_with(&format!("default/{name}\t/")));
    line.is_some_and(|line| line.ends_with("\tenrolled"))
}

pub fn enrol(world: &World, name: &str, pod: &TestPod) {
    let path = pod.path.to_str().unwrap();
    told(world, "enrol", &["--workload", name, "--netns", path]);
}

#[track_caller]
pub fn eventually(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < 3 * PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub const HANDOVERS: &str = "duet_agent_handovers_total";

/// What is open is not cut because a busy machine takes its time.
pub const PATIENT: [&str; 2] = ["--handover-drain-timeout", "10s"];

/// The next agent, once it has everything.
pub fn next(world: &World, control: &Control, last: Agent, verb: &str) -> Agent {
    next_with(world, control, last, verb, &PATIENT)
}

pub fn next_with(
    world: &World,
    control: &Control,
    last: Agent,
    verb: &str,
    more: &[&str],
) -> Agent {
    let count = last.metric(HANDOVERS);
    let agent = Agent::launch(world, control, verb, more);
    eventually(|| agent.metric(HANDOVERS) == count + 1.0);
    let status = last.end();
    assert!(status.success(), "{status}: {}", log_of(world));
    agent
}

/// Whether it is this agent that has both workloads.
pub fn is_serving(world: &World, agent: &Agent) -> bool {
    let ready = try_get(agent.health, "/ready");
    ready.is_ok_and(|(status, _)| status == 200)
        // One without a predecessor is ready a moment before it can be asked.
        && ask(world, "list", &[]).status.success()
        && ["web-a", "web-b"]
            .iter()
            .all(|name| is_enrolled(world, name))
}
