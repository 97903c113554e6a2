//! Proxies that are killed on purpose, and what the kubelet makes of it.
//!
//! Container statuses carry whole seconds, and a kubelet reports them when it
//! gets round to it. So the node itself is watched: the process is gone; the
//! kubelet has had a new container made (its control group appears, the first
//! thing that can be seen of its noticing); the new process runs; it is ready,
//! by its own account. Each within a few milliseconds.

use super::Attendant;
use super::protocol::{Limited, Succession};
use super::readings::{enter_network_of, said};
use crate::cluster::{Cgroup, HEALTH_PORT, Life, get_here, monotonic_ns, uncertified};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often is looked: the resolution of a life's times.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// A successor that takes long is asked less often, so that asking is not what it
/// waits for.
const LONG: Duration = Duration::from_secs(1);
const LOOK_SELDOM: Duration = Duration::from_millis(50);
/// For how long a death is watched at most.
const WATCHED_FOR: Duration = Duration::from_secs(300);
/// Where a proxy tells its configuration.
const ADMIN_PORT: u16 = 15000;

/// One death, watched by a thread of its own.
#[derive(Debug)]
pub struct Death {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    lives: Vec<Life>,
    dead: bool,
    hold: bool,
    released: bool,
    over: bool,
    missing: String,
}

struct Watch {
    pod: Cgroup,
    program: String,
    workloads: Vec<String>,
    pid: u32,
    /// Groups in the pod that were there before the kubelet acted.
    before: BTreeSet<String>,
}

impl Attendant {
    pub(super) fn kill(
        &self,
        id: u64,
        container: &str,
        program: &str,
        hold: bool,
        workloads: Vec<String>,
    ) -> Result<u64, String> {
        let cgroup = self.containers()?.container(container)?;
        let watch = Watch::of(&cgroup, program, workloads)?;
        let killed = monotonic_ns();
        kill(Pid::from_raw(watch.pid as i32), Signal::SIGKILL)
            .map_err(|error| format!("SIGKILL to {program}: {error}"))?;
        self.watch(id, watch, Some(killed), hold)?;
        Ok(killed)
    }

    pub(super) fn pause(&self, container: &str, over: bool) -> Result<u64, String> {
        let pid = self.proxying_process(container)?;
        self.stop(pid, over)
            .map_err(|error| format!("container {container}: {error}"))
    }

    pub(super) fn stop(&self, pid: u32, over: bool) -> Result<u64, String> {
        let signal = if over {
            Signal::SIGCONT
        } else {
            Signal::SIGSTOP
        };
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = monotonic_ns();
        kill(Pid::from_raw(pid as i32), signal).map_err(|error| format!("{signal}: {error}"))?;
        if over {
            stopped.remove(&pid);
        } else {
            stopped.insert(pid);
        }
        Ok(sent)
    }

    /// Lowers a container's limit, so that the next allocations exceed it.
    pub(super) fn starve(
        &self,
        id: u64,
        container: &str,
        program: &str,
        headroom: u64,
        workloads: Vec<String>,
    ) -> Result<Limited, String> {
        let cgroup = self.containers()?.container(container)?;
        let watch = Watch::of(&cgroup, program, workloads)?;
        let used = cgroup.memory().map_err(said)?.current;
        let limit = used + headroom;
        cgroup.set_memory(Some(limit)).map_err(said)?;
        self.watch(id, watch, None, false)?;
        Ok(Limited { used, limit })
    }

    fn watch(&self, id: u64, watch: Watch, killed: Option<u64>, hold: bool) -> Result<(), String> {
        let death = Arc::new(Death::of(watch.pid, killed, hold));
        self.deaths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, death.clone());
        thread::Builder::new()
            .name("death".to_owned())
            .spawn(move || {
                let missing = watch.follow(&death).err();
                let mut state = death.lock();
                if let Some(missing) = missing {
                    state.missing = missing;
                }
                state.over = true;
                drop(state);
                death.changed.notify_all();
            })
            .map_err(said)?;
        Ok(())
    }

    pub(super) fn dead(&self, kill: u64, within: Duration) -> Result<bool, String> {
        let death = self.death(kill)?;
        Ok(death.wait(within, |state| state.dead || state.over).dead)
    }

    pub(super) fn lives(&self, kill: u64, within: Duration) -> Result<Succession, String> {
        let death = self.death(kill)?;
        let ready = |state: &State| state.lives.last().is_some_and(|life| life.ready.is_some());
        let state = death.wait(within, |state| ready(state) || state.over);
        Ok(Succession {
            missing: (!ready(&state)).then(|| state.missing.clone()),
            lives: state.lives.clone(),
        })
    }

    pub(super) fn release(&self, kill: u64) -> Result<(), String> {
        let death = self.death(kill)?;
        death.lock().released = true;
        death.changed.notify_all();
        self.deaths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&kill);
        Ok(())
    }

    fn death(&self, kill: u64) -> Result<Arc<Death>, String> {
        self.deaths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&kill)
            .cloned()
            .ok_or_else(|| "nothing was killed by that question".to_owned())
    }

    /// When each of these containers had no process left.
    pub(super) fn ends(
        &self,
        containers: &BTreeMap<String, String>,
        within: Duration,
    ) -> Result<BTreeMap<String, u64>, String> {
        let mut alive = containers
            .iter()
            .map(|(name, id)| Ok((name.clone(), self.containers()?.container(id)?)))
            .collect::<Result<BTreeMap<String, Cgroup>, String>>()?;
        let deadline = Instant::now() + within;
        let mut ends = BTreeMap::new();
        while !alive.is_empty() && Instant::now() < deadline {
            alive.retain(|name, cgroup| {
                let running = !cgroup.pids_below().is_empty();
                if !running {
                    ends.insert(name.clone(), monotonic_ns());
                }
                running
            });
            thread::sleep(LOOK_EVERY);
        }
        Ok(ends)
    }
}

// === impl Death ===

impl Death {
    fn of(pid: u32, killed: Option<u64>, hold: bool) -> Self {
        Self {
            state: Mutex::new(State {
                lives: vec![Life {
                    pid,
                    spawned: 0,
                    ready: None,
                    killed,
                    noticed: None,
                }],
                dead: false,
                hold,
                released: false,
                over: false,
                missing: "it has not been started again".to_owned(),
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait(&self, within: Duration, done: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        self.changed
            .wait_timeout_while(self.lock(), within, |state| !done(state))
            .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }
}

// === impl Watch ===

impl Watch {
    /// Of the process in a container that runs a program.
    fn of(container: &Cgroup, program: &str, workloads: Vec<String>) -> Result<Self, String> {
        let pod = container.parent().ok_or("the container is in no pod")?;
        let pid = processes(container, program)
            .first()
            .copied()
            .ok_or_else(|| format!("container {} runs no {program}", container.name()))?;
        Ok(Self {
            before: pod.children().into_iter().collect(),
            pod,
            program: program.to_owned(),
            workloads,
            pid,
        })
    }

    /// Until the successor is ready; an error says what is missing.
    fn follow(mut self, death: &Death) -> Result<(), String> {
        let deadline = Instant::now() + WATCHED_FOR;
        let go_on = || {
            if death.lock().released {
                return Err("it is no longer watched".to_owned());
            }
            if Instant::now() > deadline {
                return Err(format!("nothing more happened within {WATCHED_FOR:?}"));
            }
            Ok(())
        };
        while running(self.pid) {
            go_on()?;
            thread::sleep(LOOK_EVERY);
        }
        let gone = monotonic_ns();
        death.change(|state| {
            state.dead = true;
            if let Some(life) = state.lives.first_mut() {
                life.killed.get_or_insert(gone);
            }
        });
        loop {
            let group = loop {
                go_on()?;
                if let Some(group) = self.new_group() {
                    break group;
                }
                thread::sleep(LOOK_EVERY);
            };
            let noticed = monotonic_ns();
            death.change(|state| {
                if let Some(life) = state.lives.first_mut() {
                    life.noticed.get_or_insert(noticed);
                }
                state.missing = "its new container has no process yet".to_owned();
            });
            let Some(pid) = self.first_process_of(&group, &go_on)? else {
                self.before.insert(group.name().to_owned());
                continue;
            };
            if death.lock().hold {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                self.before.insert(group.name().to_owned());
                continue;
            }
            let spawned = monotonic_ns();
            death.change(|state| {
                state.lives.truncate(1);
                state.lives.push(Life {
                    pid,
                    spawned,
                    ready: None,
                    killed: None,
                    noticed: None,
                });
                state.missing = "it has not answered yet".to_owned();
            });
            if self.becomes_ready(pid, death, &go_on)? {
                let ready = monotonic_ns();
                death.change(|state| {
                    if let Some(life) = state.lives.last_mut() {
                        life.ready = Some(ready);
                    }
                });
                return Ok(());
            }
            self.before.insert(group.name().to_owned());
        }
    }

    /// A group in the pod that was not there before.
    fn new_group(&self) -> Option<Cgroup> {
        self.pod
            .children()
            .into_iter()
            .find(|name| !self.before.contains(name))
            .map(|name| self.pod.child(&name))
    }

    /// The program's process in a new container; none if the container went away, or
    /// is another one's.
    fn first_process_of(
        &self,
        group: &Cgroup,
        go_on: &impl Fn() -> Result<(), String>,
    ) -> Result<Option<u32>, String> {
        loop {
            go_on()?;
            if let Some(pid) = processes(group, &self.program).first() {
                return Ok(Some(*pid));
            }
            if !self.pod.children().iter().any(|name| name == group.name()) {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// True once it is ready, false if it ends before.
    fn becomes_ready(
        &self,
        pid: u32,
        death: &Death,
        go_on: &impl Fn() -> Result<(), String>,
    ) -> Result<bool, String> {
        let begun = Instant::now();
        // A pod's containers share one network, so the next one is reached from it, too.
        enter_network_of(pid)?;
        while running(pid) {
            go_on()?;
            match self.serves_here() {
                Ok(()) => return Ok(true),
                Err(missing) => death.change(|state| state.missing = missing),
            }
            thread::sleep(if begun.elapsed() < LONG {
                LOOK_EVERY
            } else {
                LOOK_SELDOM
            });
        }
        Ok(false)
    }

    fn serves_here(&self) -> Result<(), String> {
        match get_here(HEALTH_PORT, "/ready") {
            Ok((200, _)) => {}
            Ok((_, why)) => return Err(why.split_whitespace().collect::<Vec<_>>().join(" ")),
            Err(error) => return Err(format!("its health endpoint: {error}")),
        }
        if self.workloads.is_empty() {
            return Ok(());
        }
        match get_here(ADMIN_PORT, "/config") {
            Ok((200, config)) => uncertified(&config, self.workloads.iter().map(String::as_str)),
            Ok((status, _)) => Err(format!("/config answered with {status}")),
            Err(error) => Err(format!("its admin endpoint: {error}")),
        }
    }
}

/// Processes of a group that run a program. Before it runs, a new container's
/// process is the runtime's own.
fn processes(cgroup: &Cgroup, program: &str) -> Vec<u32> {
    cgroup
        .pids_below()
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim_end() == program)
        })
        .collect()
}

/// Whether a process exists and is not merely waiting to be collected.
fn running(pid: u32) -> bool {
    procfs::process::Process::new(pid as i32)
        .and_then(|process| process.stat())
        .is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}
