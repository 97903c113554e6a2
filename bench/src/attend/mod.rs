//! `duet-bench attend`: hands and eyes of a run inside somebody else's cluster.
//!
//! A run steers from outside. In every pod that generates load, and in one
//! privileged pod per node, it has an attendant: a process that it starts through
//! the API server's exec, asks on standard input and hears on standard output,
//! one JSON object per line (see [`protocol`]). So nothing listens anywhere, no
//! mesh is in the way, and an attendant is gone with its session.
//!
//! The API server is in the way of every question, so nothing is timed by when a
//! question arrives: windows begin, and counters are read, at instants that are
//! fixed beforehand on the node's own clock.

mod containers;
mod deaths;
mod loads;
pub mod protocol;
mod reach;
mod readings;
pub(crate) mod realtime;

pub use reach::{Reached, reach};

use self::containers::Containers;
use self::deaths::Death;
use self::protocol::{Ask, Question, Reply, decode, encode};
use self::readings::said;
use crate::accounting::{BpfStats, KnownKeys, MachineCpu, Privileges, scan_control, scan_process};
use crate::cluster::{WireCapture, monotonic_ns};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The hidden command.
pub const ATTEND: &str = "attend";
/// Questions that may be under way at once.
const AT_ONCE: usize = 256;
/// No question refers to an instant farther away than this.
const FARTHEST: Duration = Duration::from_secs(600);

/// Flags of `duet-bench attend`.
#[derive(Args, Clone, Debug)]
pub struct AttendArgs {
    /// Where the node's control groups are mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    cgroups: PathBuf,

    /// Where the node's BPF file system is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

#[derive(Debug)]
struct Attendant {
    containers: Result<Containers, String>,
    bpffs: PathBuf,
    /// Process of each generator, by the question that began it.
    generators: Mutex<HashMap<u64, u32>>,
    deaths: Mutex<HashMap<u64, Arc<Death>>>,
    /// Processes that are to go on when nobody asks any more.
    stopped: Mutex<HashSet<u32>>,
    captures: Mutex<HashMap<u64, WireCapture>>,
    bpf_stats: Mutex<Option<BpfStats>>,
}

/// Answers questions until standard input ends.
pub fn run(args: AttendArgs) -> Result<(), String> {
    let attendant = Arc::new(Attendant {
        containers: Containers::below(&args.cgroups),
        bpffs: args.bpffs,
        generators: Mutex::default(),
        deaths: Mutex::default(),
        stopped: Mutex::default(),
        captures: Mutex::default(),
        bpf_stats: Mutex::default(),
    });
    let under_way = Arc::new(AtomicUsize::new(0));
    for line in io::stdin().lock().lines() {
        let line = line.map_err(said)?;
        if line.trim().is_empty() {
            continue;
        }
        let question: Question = match decode(&line) {
            Ok(question) => question,
            Err(error) => {
                say(&Reply {
                    id: 0,
                    said: Err(format!("not a question: {error}")),
                });
                continue;
            }
        };
        if under_way.fetch_add(1, Ordering::SeqCst) >= AT_ONCE {
            under_way.fetch_sub(1, Ordering::SeqCst);
            say(&Reply {
                id: question.id,
                said: Err(format!("{AT_ONCE} questions are under way already")),
            });
            continue;
        }
        let (attendant, under_way) = (attendant.clone(), under_way.clone());
        thread::Builder::new()
            .name("question".to_owned())
            .spawn(move || {
                let id = question.id;
                say(&Reply {
                    id,
                    said: attendant.answer(question),
                });
                under_way.fetch_sub(1, Ordering::SeqCst);
            })
            .map_err(said)?;
    }
    attendant.dismiss();
    Ok(())
}

fn say(reply: &Reply) {
    let Ok(line) = encode(reply) else {
        return;
    };
    let mut stdout = io::stdout().lock();
    // Nobody listens any more: standard input will end, too.
    let _ = stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Waits for an instant.
fn at(instant_ns: Option<u64>) -> Result<(), String> {
    let left = instant_ns.map_or(0, |at_ns| at_ns.saturating_sub(monotonic_ns()));
    if Duration::from_nanos(left) > FARTHEST {
        return Err(format!("that instant is more than {FARTHEST:?} away"));
    }
    thread::sleep(Duration::from_nanos(left));
    Ok(())
}

impl Attendant {
    fn answer(&self, question: Question) -> Result<serde_json::Value, String> {
        let id = question.id;
        let ms = Duration::from_millis;
        match question.ask {
            Ask::Hello => json(self.hello()),
            Ask::Clock => json(monotonic_ns()),
            Ask::Machine => json(MachineCpu::read().map_err(said)?),
            Ask::Load {
                arguments,
                begin_ns,
            } => json(self.load(id, &arguments, begin_ns)?),
            Ask::Run {
                arguments,
                begin_ns,
            } => json(self.run(id, &arguments, begin_ns)?),
            Ask::Realtime => json(realtime::possible()),
            Ask::Unbind { containers } => json(self.unbind(&containers)?),
            Ask::StopLoad { load } => json(self.stop_load(load)?),
            Ask::Reach { url, within_ms } => json(reach(&url, ms(within_ms))?),
            Ask::Look {
                at_ns,
                proxies,
                generator,
                pods,
                programs,
            } => json(self.look(at_ns, &proxies, generator.as_deref(), &pods, programs)?),
            Ask::Ran { containers } => json(self.ran(&containers)?),
            Ask::Holdings { containers } => json(self.holdings(&containers)?),
            Ask::Charges { containers, pods } => json(self.charges(&containers, &pods)?),
            Ask::Belongings {
                containers,
                programs,
            } => json(self.belongings(&containers, programs)?),
            Ask::Get {
                container,
                port,
                path,
            } => json(self.get(&container, port, &path)?),
            Ask::BpfStats { on } => json(self.bpf_stats(on)?),
            Ask::Kill {
                container,
                program,
                hold,
                workloads,
            } => json(self.kill(id, &container, &program, hold, workloads)?),
            Ask::Pause { container, over } => json(self.pause(&container, over)?),
            Ask::Starve {
                container,
                program,
                headroom,
                workloads,
            } => json(self.starve(id, &container, &program, headroom, workloads)?),
            Ask::Dead { kill, within_ms } => json(self.dead(kill, ms(within_ms))?),
            Ask::Lives { kill, within_ms } => json(self.lives(kill, ms(within_ms))?),
            Ask::Release { kill } => json(self.release(kill)?),
            Ask::Ends {
                containers,
                within_ms,
            } => json(self.ends(&containers, ms(within_ms))?),
            Ask::Capture { markers } => json(self.capture(id, &markers)?),
            Ask::EndCapture { capture } => json(self.end_capture(capture)?),
            Ask::Privileges { container } => {
                let pid = self.proxying_process(&container)?;
                // This process is in its node's.
                json(Privileges::read(pid, Path::new("/proc/self/ns/net")).map_err(said)?)
            }
            Ask::Scan {
                container,
                known,
                limit_ms,
            } => {
                let pid = self.proxying_process(&container)?;
                json(scan_process(pid, &KnownKeys::of(&known), ms(limit_ms)).map_err(said)?)
            }
            Ask::ScanControl { known, limit_ms } => {
                json(scan_control(&KnownKeys::of(&known), ms(limit_ms))?)
            }
        }
    }

    fn containers(&self) -> Result<&Containers, String> {
        self.containers.as_ref().map_err(Clone::clone)
    }

    fn proxying_process(&self, container: &str) -> Result<u32, String> {
        let cgroup = self.containers()?.container(container)?;
        readings::proxying_process(&cgroup)
            .ok_or_else(|| format!("container {container} has no process"))
    }

    fn bpf_stats(&self, on: bool) -> Result<(), String> {
        let mut stats = self
            .bpf_stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *stats = if on {
            Some(BpfStats::enable().map_err(said)?)
        } else {
            None
        };
        Ok(())
    }

    fn capture(&self, id: u64, markers: &[String]) -> Result<(), String> {
        let markers: Vec<&[u8]> = markers.iter().map(String::as_bytes).collect();
        let capture = WireCapture::start_here(&markers).map_err(said)?;
        self.captures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, capture);
        Ok(())
    }

    fn end_capture(&self, id: u64) -> Result<crate::cluster::CaptureReport, String> {
        let capture = self
            .captures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id)
            .ok_or("no capture was begun by that question")?;
        capture.stop().map_err(said)
    }

    /// Ends what was started and would outlive the session.
    fn dismiss(&self) {
        let generators = self
            .generators
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for pid in generators.values() {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in stopped.iter() {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGCONT);
        }
    }
}

fn json(value: impl Serialize) -> Result<serde_json::Value, String> {
    serde_json::to_value(value).map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_it_stopped_goes_on_when_nobody_asks_any_more() {
        let attendant = Attendant {
            containers: Err("none here".to_owned()),
            bpffs: PathBuf::new(),
            generators: Mutex::default(),
            deaths: Mutex::default(),
            stopped: Mutex::default(),
            captures: Mutex::default(),
            bpf_stats: Mutex::default(),
        };
        // It would go on for longer than the test does.
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.split(") ").nth(1).unwrap().chars().next().unwrap()
        };
        let becomes = |stopped: bool| {
            let mut looks = 0;
            while (state() == 'T') != stopped {
                looks += 1;
                assert!(looks < 500, "it is in state {}", state());
                thread::sleep(Duration::from_millis(10));
            }
        };
        attendant.stop(child.id(), false).unwrap();
        becomes(true);
        attendant.dismiss();
        becomes(false);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
