//! The machine with nothing asked of it, and what a load costs beyond that.
//!
//! A node's processor time per request is that of the whole machine beyond idle:
//! only so is the kernel's part outside any process in it. On a machine that is
//! busy with something else this difference is noise, even negative. There the
//! arm's own processes are added up instead, and softirq time beyond idle, and the
//! results say so.

use super::MachineCpu;
use std::time::Duration;

/// An idle machine uses less than this share of its processors.
const QUIET: f64 = 0.10;

/// What the machine does by itself, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Baseline {
    /// Cores busy.
    pub busy_cores: f64,
    /// Cores in softirq.
    pub softirq_cores: f64,
    /// Cores there are.
    pub cores: f64,
}

impl Baseline {
    /// Of a window in which machines with so many cores used this.
    pub fn of(used: MachineCpu, wall: Duration, cores: f64) -> Self {
        let wall = wall.as_secs_f64();
        Self {
            busy_cores: used.busy_s / wall,
            softirq_cores: used.softirq_s / wall,
            cores,
        }
    }

    /// Whether the machine had nothing else to do.
    pub fn quiet(&self) -> bool {
        self.busy_cores <= QUIET * self.cores
    }

    /// Processor time beyond idle, seconds, for a load during which the machine
    /// used `machine` within `wall` and the arm's processes `arm`.
    pub fn beyond(&self, machine: MachineCpu, arm: Duration, wall: Duration) -> f64 {
        let wall = wall.as_secs_f64();
        if self.quiet() {
            machine.busy_s - self.busy_cores * wall
        } else {
            arm.as_secs_f64() + (machine.softirq_s - self.softirq_cores * wall).max(0.0)
        }
    }

    /// What a reader has to know, if the machine was not quiet.
    pub fn note(&self) -> Option<String> {
        (!self.quiet()).then(|| {
            format!(
                "The machine was not idle: {:.1} of {} cores were busy with other work. Processor \
                 time of the machine is therefore that of the arm's own processes and softirq.",
                self.busy_cores, self.cores
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(busy_s: f64, softirq_s: f64) -> MachineCpu {
        MachineCpu {
            busy_s,
            softirq_s,
            ..MachineCpu::default()
        }
    }

    #[test]
    fn a_quiet_machine_is_measured_whole() {
        let idle = Baseline {
            busy_cores: 0.1,
            softirq_cores: 0.0,
            cores: 2.0,
        };
        let cost = idle.beyond(
            used(1.2, 0.3),
            Duration::from_millis(700),
            Duration::from_secs(2),
        );
        assert!((cost - 1.0).abs() < 1e-9);
        assert_eq!(idle.note(), None);
    }

    #[test]
    fn on_a_busy_machine_the_others_do_not_count() {
        let busy = Baseline {
            busy_cores: 1.9,
            softirq_cores: 0.05,
            cores: 2.0,
        };
        let cost = busy.beyond(
            used(3.9, 0.3),
            Duration::from_millis(700),
            Duration::from_secs(2),
        );
        assert!((cost - 0.9).abs() < 1e-9);
        assert!(busy.note().is_some());
    }
}
