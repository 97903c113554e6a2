//! The conditions under which a trial counts, fixed before it runs.
//!
//! A trial that breaks one is recorded with everything it measured and marked
//! void; it is never repeated until it looks better and never deleted.
//!
//! *Achieved* is a gate only where load is meant to be carried (latency,
//! efficiency). Under a fault or an aggressor, lost requests are the finding.
//!
//! *Pressure stall* is that of the generator: the share of the window in which its
//! threads were ready to run and did not, by the scheduler's own count. The
//! machine's figure
//! cannot serve on few cores: with two of them, applications, proxies and
//! generator wait for each other in every arm and more so in the costlier one,
//! so that a limit on it would void precisely what is to be measured. The
//! machine's figure is recorded with each trial all the same.

use crate::load::report::LoadReport;
use crate::results::Void;

/// What they are called in the results.
pub const NAMES: [&str; 7] = [
    "achieved",
    "late sends",
    "steal",
    "pressure stall",
    "generator saturated",
    "generator throttled",
    "Little's law",
];

/// Fewest completed of offered requests.
pub const ACHIEVED: f64 = 0.99;
/// Most sends over 1 ms late, of all sends.
pub const LATE_SENDS: f64 = 0.02;
/// Most of the machine's time taken by the hypervisor.
pub const STEAL: f64 = 0.02;
/// Most of the window in which the generator waited for a processor. It runs in a
/// real-time class and hardly ever waits; where it does, something else on the
/// machine outranks it and the schedule is no longer its own.
pub const GENERATOR_STALL: f64 = 0.05;
/// Most of one core that the generator may use: beyond it, it is what is
/// measured.
pub const GENERATOR_CORE: f64 = 0.70;
/// How far mean concurrency may lie from rate × mean response (Little's law): ten
/// times the resolution of the histogram that the mean is taken from. More is an
/// error of the generator's books, not of the machine.
pub const LITTLES_LAW: f64 = 0.02;

/// What was seen around one trial, beside the generator's own report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditions {
    /// Share of the machine's time taken by the hypervisor.
    pub steal: f64,
    /// Quota periods in which the generator was held back.
    pub generator_throttled: u64,
}

/// Whether requests that get lost are a fault of the trial or its finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Losses {
    /// The load is one that every arm must carry.
    Void,
    /// Something was done to the system that may cost requests.
    Finding,
}

/// The gates that this trial did not pass.
pub fn check(report: &LoadReport, conditions: &Conditions, losses: Losses) -> Vec<Void> {
    let mut voids = Vec::new();
    let mut gate = |broken: bool, gate: &str, measured: f64, limit: f64, message: String| {
        if broken {
            voids.push(Void {
                gate: gate.to_owned(),
                measured,
                limit,
                message,
            });
        }
    };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);

    if losses == Losses::Void {
        let achieved = if report.offered == 0 {
            0.0
        } else {
            report.completed as f64 / report.offered as f64
        };
        gate(
            achieved < ACHIEVED,
            "achieved",
            achieved,
            ACHIEVED,
            format!(
                "{} of the offered requests were completed; {} are required",
                percent(achieved),
                percent(ACHIEVED)
            ),
        );
    }
    let late = report.late_share();
    gate(
        late > LATE_SENDS,
        "late sends",
        late,
        LATE_SENDS,
        format!(
            "{} of sends were over 1 ms late; {} are allowed",
            percent(late),
            percent(LATE_SENDS)
        ),
    );
    if let Some(stall) = report.generator.stall_share() {
        gate(
            stall > GENERATOR_STALL,
            "pressure stall",
            stall,
            GENERATOR_STALL,
            format!(
                "the generator waited for a processor in {} of the window; {} are allowed",
                percent(stall),
                percent(GENERATOR_STALL)
            ),
        );
    }
    let core = report.generator.core_share();
    gate(
        core > GENERATOR_CORE,
        "generator saturated",
        core,
        GENERATOR_CORE,
        format!(
            "the generator used {} of a core; {} are allowed",
            percent(core),
            percent(GENERATOR_CORE)
        ),
    );
    gate(
        conditions.generator_throttled > 0,
        "generator throttled",
        conditions.generator_throttled as f64,
        0.0,
        format!(
            "the generator was held back by its quota in {} periods; none is allowed",
            conditions.generator_throttled
        ),
    );
    if let Some(ratio) = report.littles_law() {
        gate(
            (ratio - 1.0).abs() > LITTLES_LAW,
            "Little's law",
            ratio,
            1.0 + LITTLES_LAW,
            format!(
                "mean concurrency was {ratio:.3} times rate × mean response; {} apart is allowed",
                percent(LITTLES_LAW)
            ),
        );
    }
    voids.extend(stolen(conditions.steal));
    if report.interrupted {
        voids.push(Void {
            gate: "interrupted".to_owned(),
            measured: 1.0,
            limit: 0.0,
            message: "the generator was stopped before the window ended".to_owned(),
        });
    }
    voids
}

/// The gate on what the hypervisor takes of the machine.
pub fn stolen(share: f64) -> Option<Void> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    (share > STEAL).then(|| Void {
        gate: "steal".to_owned(),
        measured: share,
        limit: STEAL,
        message: format!(
            "the hypervisor took {} of the machine's time; {} are allowed",
            percent(share),
            percent(STEAL)
        ),
    })
}

#[cfg(test)]
#[path = "gates_tests.rs"]
mod tests;
