//! The thread that stands where a kubelet would: it notices a death, starts the next, and notes when.

use super::{Endpoint, Enrolment, Life, PROBE_EVERY, Restart, Supervised};
use crate::cluster::clock::monotonic_ns;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::mesh;
use crate::cluster::process::{Process, ending};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::PidfdFlags;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A proxy that takes longer to be ready is asked less often, so that asking is not what it waits for.
const LONG: Duration = Duration::from_secs(1);
const PROBE_SELDOM: Duration = Duration::from_millis(50);
/// A proxy that dies this often in a row before it was ever ready stays dead.
const STILLBIRTHS_MAX: u32 = 5;
/// After a stillbirth: doubled each time, as a kubelet backs off.
const BACKOFF: Duration = Duration::from_millis(100);
/// How often a supervisor without a child is looked at for the next one.
const LOOK_FOR_CHILD: Duration = Duration::from_millis(2);
/// Of an agent.
const HANDOVERS: &str = "duet_agent_handovers_total";

impl Supervised {
    pub(super) fn spawn_once(&self) -> Result<Arc<Process>> {
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

    pub(super) fn supervise(self: Arc<Self>, first: Arc<Process>) {
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
            let metrics = mesh::get(&self.netns, Endpoint::Metrics.port(), "/metrics");
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
}

/// The proxy of a supervisor, once it is one: before, a child is a shell's or the supervisor's own copy.
pub(super) fn child_of(pid: u32) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_added_up_over_its_labels() {
        let metrics = "# HELP a_total x\na_total{b=\"1\"} 2\na_total{b=\"2\"} 3\nb_total 7\n";
        assert_eq!(counted(metrics, "a_total"), 5.0);
        assert_eq!(counted(metrics, "c_total"), 0.0);
    }
}
