//! A real-time class for generators: under the ordinary one a generator on a busy
//! node is late for its own schedule, and what it then measures is itself.
//!
//! It takes CAP_SYS_NICE, which a generator's container is given, and nothing else
//! of root's. Where the cpu controller is version 1 and shares out real-time, a
//! container's group is given none; there the attendant is moved to that
//! hierarchy's root, and is counted where it was all the same.

use super::Attendant;
use super::readings::said;
use std::fs;
use std::thread;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Of SCHED_FIFO, as on every other cluster.
const PRIORITY: u8 = 10;

/// Puts the calling thread into the class, if it may; whatever it starts inherits it.
pub fn enter() -> bool {
    let Ok(priority) = ThreadPriorityValue::try_from(PRIORITY) else {
        return false;
    };
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(priority),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    )
    .is_ok()
}

/// Whether a thread of this process may.
pub fn possible() -> bool {
    thread::spawn(enter).join().unwrap_or(false)
}

impl Attendant {
    /// Frees the attendants in these containers.
    pub(super) fn unbind(&self, containers: &[String]) -> Result<(), String> {
        for id in containers {
            let cgroup = self.containers()?.container(id)?;
            for pid in cgroup.pids_below().into_iter().filter(|pid| attends(*pid)) {
                cgroup.free_for_realtime(pid).map_err(said)?;
            }
        }
        Ok(())
    }
}

fn attends(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .any(|word| word == super::ATTEND.as_bytes())
    })
}
