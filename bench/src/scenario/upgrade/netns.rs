//! The same without a kubelet: what it would do is done by the cluster's own supervisor.

use super::{AROUND, LONG_LIVED, LONG_LIVED_RATE, NEW};
use crate::results::{Point, Trial, keys};
use crate::scenario::bed::Shape;
use crate::scenario::{Drive, Failure, Id, Lab, Visit};
use std::time::{Duration, Instant};

/// Load before, during and after; what was open is drained within it.
pub const WINDOW: Duration = Duration::from_secs(10);

pub fn visit(lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
    let bed = lab.bed(Shape::Upgraded, visit.arm)?;
    let began = Instant::now();
    let seed = lab.plan.schedule(Id::U1, visit.block, "");
    let begin = Drive::appointment(&bed, Duration::from_millis(500));
    let mut fresh = Drive::new("client", &bed.url("web", "http1", "/")?, NEW);
    fresh.fresh = true;
    fresh.seed = seed;
    fresh.window = WINDOW;
    let mut long = Drive::new("client", &bed.url("web", "tcp", "")?, LONG_LIVED_RATE);
    long.protocol = "tcp";
    long.connections = LONG_LIVED;
    long.seed = seed.wrapping_add(1);
    long.window = WINDOW;
    let fresh = fresh.start(&bed, begin)?;
    let long = long.start(&bed, begin)?;
    lab.interrupt
        .sleep_until(begin + AROUND.as_nanos() as u64)?;
    let ordered = Instant::now();
    let restarted = bed.cluster.upgrade("web")?;
    let wall = ordered.elapsed();
    let fresh = fresh.report(lab.interrupt)?;
    let long = long.report(lab.interrupt)?;
    let values = [
        (keys::NEW_CONNECTIONS, fresh.offered as f64),
        (keys::NEW_CONNECTIONS_FAILED, fresh.failed() as f64),
        (keys::LONG_LIVED, f64::from(LONG_LIVED)),
        (keys::LONG_LIVED_RESET, long.connection_counts.lost as f64),
        (keys::APPS_RESTARTED, f64::from(restarted)),
        (keys::UPGRADE_WALL, wall.as_secs_f64()),
        ("frames_lost", long.failed() as f64),
    ];
    let mut trial = lab.trial(visit.arm, Point::only(), began, values);
    trial.notes = fresh
        .errors
        .iter()
        .chain(&long.errors)
        .map(|(kind, count)| format!("{count} × {kind:?}"))
        .collect();
    Ok(vec![(Id::U1, trial)])
}
