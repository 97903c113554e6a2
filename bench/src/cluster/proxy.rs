//! A proxy and its supervisor: starts it, notices its death, starts it again,
//! and notes when each of these happened.
//!
//! The supervisor stands where a kubelet would, but without its delay: the first
//! restart of a container is immediate there too, and what the kubelet adds on
//! top depends on the cluster, not on the placement.
//!
//! An agent brings a supervisor of its own (`duet-agent supervise`), whose child is the
//! proxy. That one is what is killed, hangs and is searched for keys here, and each
//! child is a life; only a proxy that is to stay dead takes its supervisor along.

use super::clock::monotonic_ns;
use super::error::{ClusterError, Result};
use super::mesh::get_here;
use super::netns::Netns;
use super::process::{Process, Spawn, Spawner, ending, run_tool};
use super::spec::Placement;
use crate::cluster::Cgroup;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::PidfdFlags;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a proxy that is not ready is asked: the resolution of `ready`. One
/// that takes long is asked less often, so that asking is not what it waits for.
const PROBE_EVERY: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(1);
const PROBE_SELDOM: Duration = Duration::from_millis(50);
/// A proxy that dies this often in a row before it was ever ready stays dead.
const STILLBIRTHS_MAX: u32 = 5;
/// After a stillbirth: doubled each time, as a kubelet backs off.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long the start of a proxy waits for the end of the one before.
const DYING_TIME: Duration = Duration::from_secs(30);
/// How often a supervisor without a child is looked at for the next one.
const LOOK_FOR_CHILD: Duration = Duration::from_millis(2);
/// Of an agent.
const HANDOVERS: &str = "duet_agent_handovers_total";
/// How much of a log an error quotes.
const QUOTED_LINES: usize = 3;

/// What happens after a proxy's death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// It is started again as soon as its death is noticed.
    #[default]
    AtOnce,
    /// It stays dead until `start_proxy`.
    Never,
}

/// One incarnation of a proxy. Times are CLOCK_MONOTONIC in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    pub pid: u32,
    pub spawned: u64,
    /// `/ready` said 200.
    pub ready: Option<u64>,
    /// `kill_proxy` sent a signal that ends it.
    pub killed: Option<u64>,
    /// The supervisor noticed its death.
    pub noticed: Option<u64>,
}

/// One of a proxy's own HTTP endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Admin,
    Metrics,
    Health,
}

/// A proxy, as it is now.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `sidecar:<pod>` or `agent:<node>`.
    pub name: String,
    pub placement: Placement,
    pub node: u32,
    /// The pods it serves.
    pub pods: Vec<String>,
    /// None while it is dead.
    pub pid: Option<u32>,
    pub netns: Netns,
    pub cgroup: Cgroup,
    pub log: Option<PathBuf>,
    /// The agent's local API.
    pub socket: Option<PathBuf>,
}

/// A pod as the agent is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enrolment {
    pub pod: String,
    pub workload: String,
    pub netns: PathBuf,
}

/// What an agent needs beside its process.
#[derive(Debug)]
pub(crate) struct AgentApi {
    pub binary: PathBuf,
    pub socket: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Supervised {
    pub name: String,
    pub placement: Placement,
    pub node: u32,
    pub netns: Netns,
    pub cgroup: Cgroup,
    pub spawn: Spawn,
    pub logs: PathBuf,
    pub spawner: Arc<Spawner>,
    pub agent: Option<AgentApi>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    process: Option<Arc<Process>>,
    lives: Vec<Life>,
    restart: Restart,
    pods: Vec<Enrolment>,
    /// The last answer to "are you ready?", or why there is none.
    missing: String,
    log: Option<PathBuf>,
    thread: Option<JoinHandle<()>>,
}

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Admin => 15000,
            Self::Metrics => 15020,
            Self::Health => super::mesh::HEALTH_PORT,
        }
    }
}

// === impl Life ===

impl Life {
    /// From the kill to its notice.
    pub fn detection_ns(&self) -> Option<u64> {
        self.noticed?.checked_sub(self.killed?)
    }

    fn new(pid: u32, spawned: u64) -> Self {
        Self {
            pid,
            spawned,
            ready: None,
            killed: None,
            noticed: None,
        }
    }

    fn is_running(&self) -> bool {
        self.killed.is_none() && self.noticed.is_none()
    }

    fn is_ready(&self) -> bool {
        self.ready.is_some() && self.is_running()
    }

    /// From its start to its readiness.
    pub fn start_ns(&self) -> Option<u64> {
        self.ready?.checked_sub(self.spawned)
    }
}

// === impl Proxy ===

impl Proxy {
    /// Asks one of the proxy's own endpoints, from inside its namespace.
    pub fn get(&self, endpoint: Endpoint, path: &str) -> Result<(u16, String)> {
        super::mesh::get(&self.netns, endpoint.port(), path)
    }
}

// === impl Supervised ===

/// All that is known of a proxy before it runs.
pub(crate) struct Plan {
    pub name: String,
    pub placement: Placement,
    pub node: u32,
    pub netns: Netns,
    pub cgroup: Cgroup,
    pub spawn: Spawn,
    pub logs: PathBuf,
    pub spawner: Arc<Spawner>,
    pub agent: Option<AgentApi>,
    pub pods: Vec<Enrolment>,
}

impl Supervised {
    pub(crate) fn new(plan: Plan) -> Arc<Self> {
        Arc::new(Self {
            name: plan.name,
            placement: plan.placement,
            node: plan.node,
            netns: plan.netns,
            cgroup: plan.cgroup,
            spawn: plan.spawn,
            logs: plan.logs,
            spawner: plan.spawner,
            agent: plan.agent,
            state: Mutex::new(State {
                process: None,
                lives: Vec::new(),
                restart: Restart::AtOnce,
                pods: plan.pods,
                missing: "it has not been started".to_owned(),
                log: None,
                thread: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Starts it and the thread that watches over it. It need not be ready when
    /// this returns.
    pub(crate) fn start(self: &Arc<Self>) -> Result<()> {
        let dying = {
            let state = self.lock();
            let supervised = state.thread.is_some() && state.restart == Restart::AtOnce;
            if supervised || state.lives.last().is_some_and(Life::is_running) {
                return Ok(());
            }
            state.process.is_some()
        };
        if dying && !self.wait_dead(DYING_TIME) {
            return Err(ClusterError::Unsupported(format!(
                "{} was told to end and has not: it cannot be started yet",
                self.name
            )));
        }
        let finished = self.lock().thread.take();
        if let Some(thread) = finished {
            let _ = thread.join();
        }
        let first = self.spawn_once()?;
        let mut state = self.lock();
        state.restart = Restart::AtOnce;
        let this = self.clone();
        state.thread = Some(
            thread::Builder::new()
                .name("proxy-supervisor".to_owned())
                .spawn(move || this.supervise(first))
                .map_err(ClusterError::io("start a supervisor thread"))?,
        );
        Ok(())
    }

    /// The process that proxies, while there is one.
    fn proxying(&self, process: &Process) -> Option<u32> {
        match self.agent {
            Some(_) => child_of(process.pid()),
            None => Some(process.pid()),
        }
    }

    /// Sends a signal; afterwards it is started again, or not. Returns when the
    /// signal was sent.
    pub(crate) fn kill(&self, signal: Signal, restart: Restart) -> Result<u64> {
        let mut state = self.lock();
        let not_running = || ClusterError::Unsupported(format!("{} is not running", self.name));
        let process = state.process.clone().ok_or_else(not_running)?;
        let ends = !matches!(
            signal,
            Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGHUP
        );
        if ends {
            state.restart = restart;
        }
        let to_child = self.agent.is_some() && (restart == Restart::AtOnce || !ends);
        let child = match to_child {
            true => Some(self.proxying(&process).ok_or_else(not_running)?),
            false => None,
        };
        let at = monotonic_ns();
        match child {
            Some(child) => nix::sys::signal::kill(Pid::from_raw(child as i32), signal).map_err(
                ClusterError::errno(format!("send {signal} to {}", self.name)),
            )?,
            None => {
                process.signal(signal)?;
            }
        }
        if ends && let Some(life) = state.lives.last_mut() {
            life.killed.get_or_insert(at);
        }
        Ok(at)
    }

    /// Ends it for good and waits for that.
    pub(crate) fn end(&self, grace: Duration) {
        let (process, thread) = {
            let mut state = self.lock();
            state.restart = Restart::Never;
            (state.process.clone(), state.thread.take())
        };
        if let Some(process) = process {
            if !grace.is_zero() {
                let _ = process.signal(Signal::SIGTERM);
                let _ = process.wait_timeout(grace);
            }
            process.kill();
        }
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    pub(crate) fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut state = self.lock();
        loop {
            if state.lives.last().is_some_and(Life::is_ready) {
                return Ok(());
            }
            let over = state.process.is_none() && state.restart == Restart::Never;
            let left = timeout.saturating_sub(begun.elapsed());
            if over || left.is_zero() {
                let log = state.log.clone().unwrap_or_default();
                return Err(ClusterError::NotReady {
                    who: self.name.clone(),
                    after: begun.elapsed(),
                    missing: format!("{}{}", state.missing, quote(&log)),
                    log,
                });
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Waits until it is dead and the supervisor has seen it.
    pub(crate) fn wait_dead(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while state.process.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        true
    }

    pub(crate) fn lives(&self) -> Vec<Life> {
        self.lock().lives.clone()
    }

    pub(crate) fn describe(&self) -> Proxy {
        let state = self.lock();
        Proxy {
            name: self.name.clone(),
            placement: self.placement,
            node: self.node,
            pods: state.pods.iter().map(|pod| pod.pod.clone()).collect(),
            pid: state
                .process
                .as_ref()
                .and_then(|process| self.proxying(process)),
            netns: self.netns.clone(),
            cgroup: self.cgroup.clone(),
            log: state.log.clone(),
            socket: self.agent.as_ref().map(|agent| agent.socket.clone()),
        }
    }

    /// The agent serves one more pod.
    pub(crate) fn enrol(&self, pod: Enrolment) -> Result<()> {
        // Known before it is told, so that an agent that dies meanwhile is told
        // when it comes back.
        self.lock().pods.push(pod.clone());
        match &self.agent {
            Some(agent) => agent.enrol(&pod),
            None => Ok(()),
        }
    }

    /// The agent serves one pod less. A dead agent is not asked: it will not be
    /// told of the pod when it comes back.
    pub(crate) fn dismiss(&self, pod: &str) -> Result<()> {
        let (workload, alive) = {
            let mut state = self.lock();
            let Some(at) = state.pods.iter().position(|known| known.pod == pod) else {
                return Ok(());
            };
            (state.pods.remove(at).workload, state.process.is_some())
        };
        match &self.agent {
            Some(agent) if alive => agent.dismiss(&workload),
            _ => Ok(()),
        }
    }

    fn spawn_once(&self) -> Result<Arc<Process>> {
        let process =
            self.spawner
                .spawn(&self.spawn, &self.netns, &self.cgroup.dirs(), &self.logs)?;
        let mut state = self.lock();
        state.log = Some(process.log().to_owned());
        if self.agent.is_none() {
            state
                .lives
                .push(Life::new(process.pid(), process.started()));
        }
        state.process = Some(process.clone());
        state.missing = "it has not answered yet".to_owned();
        Ok(process)
    }

    fn supervise(self: Arc<Self>, first: Arc<Process>) {
        // Probes go out from the proxy's own namespace.
        if let Err(error) = self.netns.enter() {
            let mut state = self.lock();
            state.missing = error.to_string();
            state.restart = Restart::Never;
            return;
        }
        let mut process = first;
        let mut stillbirths = 0;
        loop {
            let was_ready = match self.agent {
                Some(_) => self.follow_children(&process),
                None => self.follow(&process, process.pid()),
            };
            let ended = process.wait();
            let noticed = monotonic_ns();
            stillbirths = if was_ready { 0 } else { stillbirths + 1 };
            let again = {
                let mut state = self.lock();
                let is_replaced = state
                    .process
                    .as_ref()
                    .is_some_and(|current| !Arc::ptr_eq(current, &process));
                if is_replaced {
                    return;
                }
                if let Some(life) = state.lives.last_mut() {
                    life.noticed.get_or_insert(noticed);
                }
                state.missing =
                    ended.map_or_else(|e| e.to_string(), |status| format!("it {}", ending(status)));
                state.process = None;
                if stillbirths >= STILLBIRTHS_MAX {
                    state.restart = Restart::Never;
                }
                state.restart == Restart::AtOnce
            };
            self.changed.notify_all();
            if !again {
                return;
            }
            if stillbirths > 0 {
                thread::sleep(BACKOFF * 2u32.pow(stillbirths - 1));
                if self.lock().restart == Restart::Never {
                    return;
                }
            }
            match self.spawn_once() {
                Ok(next) => process = next,
                Err(error) => {
                    let mut state = self.lock();
                    state.missing = error.to_string();
                    state.restart = Restart::Never;
                    drop(state);
                    self.changed.notify_all();
                    return;
                }
            }
        }
    }

    /// Follows one proxying process after the other, until their supervisor ends. True if any became ready.
    fn follow_children(&self, process: &Process) -> bool {
        let mut was_ready = false;
        let mut last = None;
        loop {
            let child = loop {
                if !matches!(process.try_wait(), Ok(None)) {
                    return was_ready;
                }
                // The last one is there until its parent has taken note of its end.
                match child_of(process.pid()).filter(|child| last != Some(*child)) {
                    Some(child) => break child,
                    None => thread::sleep(LOOK_FOR_CHILD),
                }
            };
            last = Some(child);
            self.lock().lives.push(Life::new(child, monotonic_ns()));
            // Held before it is asked for the first time, so that its number is its own.
            let ended = Ended::of(child);
            was_ready |= self.follow(process, child);
            if let Some(ended) = ended {
                ended.wait();
            }
            let noticed = monotonic_ns();
            let mut state = self.lock();
            if let Some(life) = state.lives.iter_mut().rev().find(|life| life.pid == child) {
                life.noticed = Some(noticed);
            }
            state.missing = "its proxying process has ended".to_owned();
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Puts another agent in this one's place: the next takes over from it while both run.
    pub(crate) fn hand_over(self: &Arc<Self>, within: Duration) -> Result<()> {
        let handovers = || {
            let metrics = super::mesh::get(&self.netns, Endpoint::Metrics.port(), "/metrics");
            metrics.map(|(_, text)| counted(&text, HANDOVERS))
        };
        let before = handovers()?;
        let next = self.spawn_once()?;
        let this = self.clone();
        let thread = thread::Builder::new()
            .name("proxy-supervisor".to_owned())
            .spawn(move || this.supervise(next))
            .map_err(ClusterError::io("start a supervisor thread"))?;
        let last = self.lock().thread.replace(thread);
        // While both run either may answer; the new one knows of one handover more.
        let begun = Instant::now();
        while !handovers().is_ok_and(|now| now > before) {
            if begun.elapsed() > within {
                return Err(ClusterError::NotReady {
                    who: format!("the successor of {}", self.name),
                    after: begun.elapsed(),
                    missing: "it has not taken over".to_owned(),
                    log: self.lock().log.clone().unwrap_or_default(),
                });
            }
            thread::sleep(PROBE_EVERY);
        }
        // It ends with the process that has handed over, some time after this.
        drop(last);
        Ok(())
    }

    /// Asks until it is ready or dead. True if it became ready.
    fn follow(&self, process: &Process, proxying: u32) -> bool {
        let begun = Instant::now();
        let mut enrolled = false;
        loop {
            if !matches!(process.try_wait(), Ok(None)) || self.proxying(process) != Some(proxying) {
                return false;
            }
            if !enrolled {
                match self.enrol_all() {
                    Ok(()) => enrolled = true,
                    Err(error) => self.lock().missing = error.to_string(),
                }
            }
            if enrolled {
                let pods = self.lock().pods.clone();
                match self.serves_here(&pods) {
                    Ok(()) => break,
                    Err(missing) => self.lock().missing = missing,
                }
            }
            thread::sleep(if begun.elapsed() < LONG {
                PROBE_EVERY
            } else {
                PROBE_SELDOM
            });
        }
        let mut state = self.lock();
        if let Some(life) = state
            .lives
            .iter_mut()
            .rev()
            .find(|life| life.pid == proxying)
        {
            life.ready = Some(monotonic_ns());
        }
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Whether the proxy is ready, asked from its namespace: /ready says so, and
    /// each pod has its certificate. A sidecar's /ready covers its one pod; an
    /// agent is ready with any number of pods, so it is asked for them, too.
    fn serves_here(&self, pods: &[Enrolment]) -> Result<(), String> {
        match get_here(Endpoint::Health.port(), "/ready") {
            Ok((200, _)) => {}
            Ok((_, why)) => return Err(one_line(&why)),
            Err(error) => return Err(format!("its health endpoint: {error}")),
        }
        if self.agent.is_none() || pods.is_empty() {
            return Ok(());
        }
        match get_here(Endpoint::Admin.port(), "/config") {
            Ok((200, config)) => uncertified(&config, pods.iter().map(|pod| pod.workload.as_str())),
            Ok((status, _)) => Err(format!("/config answered with {status}")),
            Err(error) => Err(format!("its admin endpoint: {error}")),
        }
    }

    /// Waits until an agent has a pod's certificate.
    pub(crate) fn wait_serving(&self, pod: &Enrolment, timeout: Duration) -> Result<()> {
        let begun = Instant::now();
        let pods = std::slice::from_ref(pod);
        self.netns.run(|| {
            loop {
                let Err(missing) = self.serves_here(pods) else {
                    return Ok(());
                };
                if begun.elapsed() > timeout {
                    return Err(ClusterError::NotReady {
                        who: format!("{} for {}", self.name, pod.workload),
                        after: begun.elapsed(),
                        missing,
                        log: self.lock().log.clone().unwrap_or_default(),
                    });
                }
                thread::sleep(PROBE_EVERY);
            }
        })?
    }

    /// Tells a new agent of the pods that are there, as far as it has not found
    /// them by itself.
    fn enrol_all(&self) -> Result<()> {
        let Some(agent) = &self.agent else {
            return Ok(());
        };
        // A dead agent leaves its socket behind, so it must be listening, too.
        UnixStream::connect(&agent.socket).map_err(ClusterError::io(format!(
            "its socket {}",
            agent.socket.display()
        )))?;
        let pods = self.lock().pods.clone();
        if pods.is_empty() {
            return Ok(());
        }
        let listed = agent.call(&["list", "--socket", &agent.socket.to_string_lossy()])?;
        let unserved = |pod: &&Enrolment| {
            !listed.lines().any(|line| {
                line.split('\t').next() == Some(&pod.workload) && line.ends_with("\tenrolled")
            })
        };
        pods.iter()
            .filter(unserved)
            .try_for_each(|pod| agent.enrol(pod))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The proxy of a supervisor, once it is one: before, a child is a shell's or the supervisor's own copy.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .find(|child: &u32| {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .any(|arg| arg == b"--supervised")
        })
}

/// Of the series with this name, added up.
fn counted(metrics: &str, name: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Tells of the end of a process that is nobody's child here.
struct Ended(OwnedFd);

impl Ended {
    fn of(pid: u32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(pid as i32)?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .ok()
            .map(Self)
    }

    fn wait(&self) {
        let mut files = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        while poll(&mut files, PollTimeout::NONE) == Err(nix::Error::EINTR) {}
    }
}

// === impl AgentApi ===

impl AgentApi {
    fn enrol(&self, pod: &Enrolment) -> Result<()> {
        self.call(&[
            "enrol",
            "--socket",
            &self.socket.to_string_lossy(),
            "--workload",
            &pod.workload,
            "--netns",
            &pod.netns.to_string_lossy(),
        ])
        .map(drop)
    }

    fn dismiss(&self, workload: &str) -> Result<()> {
        self.call(&[
            "remove",
            "--socket",
            &self.socket.to_string_lossy(),
            "--workload",
            workload,
        ])
        .map(drop)
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let said = run_tool(&self.binary, args, "", None)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

/// Which of the workloads have no certificate yet, by a proxy's own account.
pub(crate) fn uncertified<'a>(
    config: &str,
    workloads: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let config: serde_json::Value =
        serde_json::from_str(config).map_err(|error| format!("/config is not JSON: {error}"))?;
    let list = |key: &str| config[key].as_array().cloned().unwrap_or_default();
    let (served, identities) = (list("workloads"), list("identities"));
    for wanted in workloads {
        let identity = served
            .iter()
            .find(|workload| workload["name"] == wanted)
            .and_then(|workload| workload["identity"].as_str());
        let certified = identity.is_some_and(|identity| {
            identities
                .iter()
                .any(|held| held["identity"] == identity && !held["certificate"].is_null())
        });
        if !certified {
            return Err(format!("identity: no certificate for {wanted}"));
        }
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The last lines of a log, for an error: the cluster's directory, with the log
/// in it, may be gone by the time somebody reads it.
fn quote(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(QUOTED_LINES).collect();
    if lines.is_empty() {
        return String::new();
    }
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!(" (it said last: {})", lines.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_served_once_it_has_a_certificate() {
        let pods = || ["default/web-0"].into_iter();
        let config = |certificate: &str| {
            format!(
                r#"{{"workloads": [{{"name": "default/web-0", "identity": "spiffe://td/a"}}],
                    "identities": [{{"identity": "spiffe://td/a", "certificate": {certificate}}}]}}"#
            )
        };
        assert_eq!(uncertified(&config(r#""PEM""#), pods()), Ok(()));
        assert_eq!(
            uncertified(&config("null"), pods()),
            Err("identity: no certificate for default/web-0".to_owned())
        );
        assert!(uncertified(r#"{"workloads": []}"#, pods()).is_err());
    }

    #[test]
    fn a_series_is_added_up_over_its_labels() {
        let metrics = "# HELP a_total x\na_total{b=\"1\"} 2\na_total{b=\"2\"} 3\nb_total 7\n";
        assert_eq!(counted(metrics, "a_total"), 5.0);
        assert_eq!(counted(metrics, "c_total"), 0.0);
    }

    #[test]
    fn lives_tell_how_long_it_took() {
        let life = Life {
            pid: 1,
            spawned: 10,
            ready: Some(30),
            killed: Some(100),
            noticed: Some(101),
        };
        assert_eq!(life.start_ns(), Some(20));
        assert_eq!(life.detection_ns(), Some(1));
        assert!(!life.is_ready());
    }
}
