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
use super::netns::Netns;
use super::process::{Process, Spawn, Spawner, run_tool};
use super::spec::Placement;
use crate::cluster::Cgroup;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

mod readiness;
mod watch;

pub(crate) use readiness::uncertified;

/// How often a proxy that is not ready is asked: the resolution of `ready`.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// How long the start of a proxy waits for the end of the one before.
const DYING_TIME: Duration = Duration::from_secs(30);
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
            Some(_) => watch::child_of(process.pid()),
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
            // It drains, and waits for nobody's connections when it is told again.
            for _ in 0..2 {
                if !grace.is_zero() && process.signal(Signal::SIGTERM).is_ok() {
                    let _ = process.wait_timeout(grace);
                }
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
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
