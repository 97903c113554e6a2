//! The kernel's counters at both ends of a measured window.

use super::{Bed, Failure, Lab};
use crate::accounting::{BpfUse, MachineCpu};
use crate::cluster::{Counters, Generator};
use crate::load::report::LoadReport;
use crate::results::{Histograms, LoadCounts, Point, Trial};
use crate::run::gates::{self, Conditions, Losses};
use std::time::{Duration, Instant};

/// What was used between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Between the looks.
    pub wall: Duration,
    /// By everything on the machine.
    pub machine: MachineCpu,
    /// By all proxies of the arm, µs.
    pub proxies_us: f64,
    /// Quota periods in which a proxy was held back.
    pub proxies_throttled: u64,
    /// By all processes of the measured cluster, applications and generator
    /// included.
    pub arm: Duration,
    /// By all others and by kernel threads: cores.
    pub foreign_cores: f64,
    /// In kernel programs of the arm's proxies.
    pub bpf: BpfUse,
    /// Share of the window in which anything at all waited for a processor.
    pub machine_stall: Option<f64>,
    /// What the gates look at.
    pub conditions: Conditions,
}

impl Used {
    fn between([earlier, later]: [Counters; 2]) -> Self {
        let wall = Duration::from_nanos(later.at_ns.saturating_sub(earlier.at_ns));
        let machine = later.machine - earlier.machine;
        let arm = Duration::from_micros(later.arm_us.saturating_sub(earlier.arm_us));
        Self {
            wall,
            machine,
            proxies_us: later.proxies_us.saturating_sub(earlier.proxies_us) as f64,
            proxies_throttled: later
                .proxies_throttled
                .saturating_sub(earlier.proxies_throttled),
            arm,
            foreign_cores: (machine.busy_s - arm.as_secs_f64()).max(0.0) / wall.as_secs_f64(),
            bpf: later.bpf - earlier.bpf,
            machine_stall: earlier
                .pressure
                .zip(later.pressure)
                .map(|(before, after)| after.share_since(before, wall)),
            conditions: Conditions {
                steal: machine.steal_share(),
                generator_throttled: later
                    .generator_throttled
                    .saturating_sub(earlier.generator_throttled),
            },
        }
    }
}

/// Waits for a generator's window, reads the counters at its ends, and returns
/// them with the generator's report.
pub fn measure(
    lab: &Lab<'_>,
    generator: Box<dyn Generator>,
) -> Result<(LoadReport, Used), Failure> {
    let counted = generator.watch(lab.interrupt)?;
    Ok((generator.report(lab.interrupt)?, Used::between(counted)))
}

/// A trial made of a report, with the gates applied.
pub fn trial(
    lab: &Lab<'_>,
    bed: &Bed,
    point: Point,
    began: Instant,
    report: &LoadReport,
    used: &Used,
    losses: Losses,
) -> Trial {
    let mut trial = Trial {
        arm: bed.arm.name().to_owned(),
        point,
        repeat: 0,
        started_s: began.duration_since(lab.started).as_secs_f64(),
        duration_s: began.elapsed().as_secs_f64(),
        load: Some(LoadCounts::from(report)),
        histograms: Histograms::from(&report.histograms),
        values: Default::default(),
        timelines: Vec::new(),
        voids: gates::check(report, &used.conditions, losses),
        notes: Vec::new(),
    };
    let mut value = |key: &str, value: f64| {
        trial.values.insert(key.to_owned(), value);
    };
    value("steal_share", used.conditions.steal);
    if let Some(stall) = report.generator.stall_share() {
        value("generator_stall_share", stall);
    }
    if let Some(stall) = used.machine_stall {
        value("machine_stall_share", stall);
    }
    value("foreign_cores", used.foreign_cores);
    value("generator_core_share", report.generator.core_share());
    value("mean_concurrency", report.mean_concurrency);
    if let Some(ratio) = report.littles_law() {
        value("littles_law", ratio);
    }
    if bed.arm.meshed() {
        value("proxy_throttled_periods", used.proxies_throttled as f64);
    }
    trial
}
