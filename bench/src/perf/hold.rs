//! Memory: of idle proxies, of connections that nobody uses, and what is left of it.

use super::table::Quantity;
use super::{Lab, Measured, Subject, Trouble};
use crate::arm::Arm;
use crate::cluster;
use crate::peer::Peer;
use crate::scenario::{Bed, Drive};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

const CONNECTIONS: u32 = 2000;
/// In this time every connection is opened and used once.
const ROUND: Duration = Duration::from_secs(8);
/// And then for so long none.
const IDLE: Duration = Duration::from_secs(20);
const OPENING: Duration = Duration::from_secs(3);
/// Before the generator's end, which closes its connections.
const LOOK: Duration = Duration::from_millis(300);
/// From closing to the last look.
const CLOSED: Duration = Duration::from_secs(30);
const KIB: f64 = 1024.0;

/// The client's proxy, or its node's.
pub fn idle(bed: &Bed, arm: Arm, measured: &mut Measured) -> Result<(), Trouble> {
    let subject = Subject { arm, opaque: false };
    for one in bed.cluster.holdings(1)? {
        let mib = |bytes: u64| bytes as f64 / KIB / KIB;
        let mut keep = |quantity, value| measured.insert((quantity, subject), vec![value]);
        keep(Quantity::IdleRss, mib(one.rollup.rss));
        keep(Quantity::IdleAnonymous, mib(one.rollup.anonymous));
    }
    let program = match (arm.program(), arm.peer()) {
        (Some(name), _) => Some(cluster::binary(name)?),
        (None, peer) => peer.and_then(Peer::program),
    };
    if let Some(bytes) = program.and_then(|path| stripped(&path)) {
        measured.insert((Quantity::Binary, subject), vec![bytes as f64 / 1e6]);
    }
    Ok(())
}

/// A program's size without its symbols, by binutils.
fn stripped(program: &Path) -> Option<u64> {
    let dir = tempfile::tempdir().ok()?;
    let path = dir.path().join("stripped");
    let strip = Command::new("strip")
        .arg("-o")
        .arg(&path)
        .arg(program)
        .status();
    strip.ok().filter(ExitStatus::success)?;
    Some(path.metadata().ok()?.len())
}

/// Of one kind after the other, of all arms at once: memory does not mind the noise.
pub fn connections(
    lab: &Lab<'_>,
    subjects: &[Subject],
    measured: &mut Measured,
) -> Result<(), Trouble> {
    for opaque in [false, true] {
        let subjects: Vec<Subject> = subjects
            .iter()
            .copied()
            .filter(|subject| subject.arm.meshed() && subject.opaque == opaque)
            .collect();
        let held = |lab: &Lab<'_>| -> Result<Vec<f64>, Trouble> {
            subjects
                .iter()
                .map(|subject| anonymous_kib(&lab.beds[&subject.arm]))
                .collect()
        };
        let before = held(lab)?;
        let mut generators = Vec::new();
        let mut end_ns = 0;
        for subject in &subjects {
            let bed = &lab.beds[&subject.arm];
            let mut drive = subject.drive(bed, f64::from(CONNECTIONS) / ROUND.as_secs_f64())?;
            drive.connections = CONNECTIONS;
            drive.window = ROUND;
            drive.hold = IDLE;
            let begin = Drive::appointment(bed, OPENING);
            end_ns = begin + (ROUND + IDLE).as_nanos() as u64;
            generators.push(drive.start(bed, begin)?);
        }
        lab.interrupt
            .sleep_until(end_ns.saturating_sub(LOOK.as_nanos() as u64))?;
        let during = held(lab)?;
        for generator in generators {
            generator.report(lab.interrupt)?;
        }
        lab.interrupt.sleep(CLOSED)?;
        let after = held(lab)?;
        for (at, subject) in subjects.iter().enumerate() {
            let each = |kib: f64| (kib - before[at]) / f64::from(CONNECTIONS);
            let mut keep = |quantity, value| measured.insert((quantity, *subject), vec![value]);
            keep(Quantity::KibPerConnection, each(during[at]));
            keep(Quantity::KibLeft, each(after[at]));
        }
    }
    Ok(())
}

fn anonymous_kib(bed: &Bed) -> Result<f64, Trouble> {
    let held = bed.cluster.holdings(1)?;
    Ok(held
        .iter()
        .map(|one| one.rollup.anonymous as f64 / KIB)
        .sum())
}
