//! Processor time: of the machine from `/proc/stat`, of one process from its
//! threads' `schedstat`.
//!
//! The machine's figure includes softirq, where a good part of a mesh's network
//! path runs and which no cgroup is charged for. `schedstat` counts nanoseconds,
//! where `/proc/<pid>/stat` counts ticks of 10 ms, and it also says how long the
//! threads were runnable without running.

use super::{Error, lacks, read};
use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::Duration;

/// The machine's processors since boot, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineCpu {
    /// Everything but idle and waiting for disks, seconds.
    pub busy_s: f64,
    /// Interrupts handled outside any process, seconds; part of `busy_s`.
    pub softirq_s: f64,
    /// Taken by the hypervisor, seconds; not part of `busy_s`.
    pub steal_s: f64,
    /// All states together, seconds.
    pub total_s: f64,
    /// Context switches.
    pub switches: u64,
}

const STAT: &str = "/proc/stat";

impl MachineCpu {
    /// Reads `/proc/stat`.
    pub fn read() -> Result<Self, Error> {
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .ok()
            .flatten()
            .unwrap_or(100);
        Self::parse(&read(STAT)?, hz as f64)
    }

    fn parse(text: &str, hz: f64) -> Result<Self, Error> {
        let cpu: Vec<f64> = text
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))
            .ok_or_else(lacks(STAT, "\"cpu\" line"))?
            .split_whitespace()
            .map_while(|field| field.parse::<f64>().ok())
            .collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = cpu[..] else {
            return Err(lacks(STAT, "eight processor states")());
        };
        let switches = text
            .lines()
            .find_map(|line| line.strip_prefix("ctxt "))
            .and_then(|n| n.trim().parse().ok())
            .ok_or_else(lacks(STAT, "\"ctxt\" line"))?;
        let busy = user + nice + system + irq + softirq;
        Ok(Self {
            busy_s: busy / hz,
            softirq_s: softirq / hz,
            steal_s: steal / hz,
            total_s: (busy + idle + iowait + steal) / hz,
            switches,
        })
    }

    /// The share of the machine's time that the hypervisor took, 0 to 1.
    pub fn steal_share(&self) -> f64 {
        if self.total_s > 0.0 {
            self.steal_s / self.total_s
        } else {
            0.0
        }
    }
}

impl Add for MachineCpu {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            busy_s: self.busy_s + other.busy_s,
            softirq_s: self.softirq_s + other.softirq_s,
            steal_s: self.steal_s + other.steal_s,
            total_s: self.total_s + other.total_s,
            switches: self.switches + other.switches,
        }
    }
}

impl std::iter::Sum for MachineCpu {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl Sub for MachineCpu {
    type Output = Self;
    fn sub(self, earlier: Self) -> Self {
        Self {
            busy_s: self.busy_s - earlier.busy_s,
            softirq_s: self.softirq_s - earlier.softirq_s,
            steal_s: self.steal_s - earlier.steal_s,
            total_s: self.total_s - earlier.total_s,
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }
}

/// One process's threads since they started. Threads that have ended are not in
/// it, so it suits processes whose threads stay: the proxies and the generator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessCpu {
    /// On a processor.
    pub ran: Duration,
    /// Runnable, waiting for a processor or for quota.
    pub waited: Duration,
}

impl ProcessCpu {
    /// Sums `/proc/<pid>/task/*/schedstat`.
    pub fn read(pid: u32) -> Result<Self, Error> {
        let tasks = std::path::PathBuf::from(format!("/proc/{pid}/task"));
        let entries = std::fs::read_dir(&tasks).map_err(|source| Error::Read {
            path: tasks.clone(),
            source,
        })?;
        let mut sum = Self::default();
        for task in entries.flatten() {
            let path = task.path().join("schedstat");
            // A thread may end between the listing and the reading.
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            let (ran, waited) = Self::parse(&text).ok_or_else(lacks(path, "run and wait times"))?;
            sum.ran += ran;
            sum.waited += waited;
        }
        Ok(sum)
    }

    /// The calling thread alone.
    pub fn of_this_thread() -> Result<Self, Error> {
        const SCHEDSTAT: &str = "/proc/thread-self/schedstat";
        let (ran, waited) =
            Self::parse(&read(SCHEDSTAT)?).ok_or_else(lacks(SCHEDSTAT, "run and wait times"))?;
        Ok(Self { ran, waited })
    }

    fn parse(text: &str) -> Option<(Duration, Duration)> {
        let mut fields = text.split_whitespace().map(str::parse::<u64>);
        let ran = fields.next()?.ok()?;
        let waited = fields.next()?.ok()?;
        Some((Duration::from_nanos(ran), Duration::from_nanos(waited)))
    }
}

impl Sub for ProcessCpu {
    type Output = Self;
    fn sub(self, earlier: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(earlier.ran),
            waited: self.waited.saturating_sub(earlier.waited),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softirq_is_busy_and_steal_is_not() {
        let before = MachineCpu::parse(
            "cpu  100 0 50 1000 10 0 20 5 0 0\ncpu0 1 1\nctxt 7000\n",
            100.0,
        )
        .unwrap();
        let after = MachineCpu::parse(
            "cpu  200 0 100 1300 10 0 70 55 0 0\ncpu0 1 1\nctxt 9000\n",
            100.0,
        )
        .unwrap();
        let used = after - before;
        assert!((used.busy_s - 2.0).abs() < 1e-9);
        assert!((used.softirq_s - 0.5).abs() < 1e-9);
        assert!((used.steal_share() - 0.5 / 5.5).abs() < 1e-9);
        assert_eq!(used.switches, 2000);
    }

    #[test]
    fn a_foreign_format_is_an_error() {
        assert!(MachineCpu::parse("cpu  1 2 3\nctxt 4\n", 100.0).is_err());
        assert!(MachineCpu::parse("cpu  1 2 3 4 5 6 7 8\n", 100.0).is_err());
        assert!(ProcessCpu::parse("12").is_none());
    }

    #[test]
    fn this_process_has_run() {
        let before = ProcessCpu::read(std::process::id()).unwrap();
        let mut x = 1u64;
        let until = std::time::Instant::now() + Duration::from_millis(60);
        while std::time::Instant::now() < until {
            x = std::hint::black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
        }
        let used = ProcessCpu::read(std::process::id()).unwrap() - before;
        assert!(used.ran > Duration::from_millis(5), "{used:?}");
    }
}
