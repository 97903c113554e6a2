//! R3: what a connection costs that nobody uses.
//!
//! A client opens many connections, asks once on each and keeps them. Memory of the proxies on its node is read
//! before, when all have been idle for a while, and again some time after all of them are closed: what does not come back is
//! kept by the allocator or has leaked, and either way the node does not have it.

use super::bed::{self, Shape};
use super::drive::Drive;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::results::{Kind, Metric, Point, Profile, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// In this time every connection is used once.
const ROUND: Duration = Duration::from_secs(8);
/// Beyond the round: the schedule is random.
const SLACK: Duration = Duration::from_secs(1);
/// Many first requests come at once, and who gives one up closes its connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// And then for so long none. A proxy may take some seconds to find that a connection is idle.
const IDLE: Duration = Duration::from_secs(20);
/// From asking for a thousand connections to having them, at most.
const OPENING_THOUSAND: Duration = Duration::from_millis(600);
/// Of the connections, those that have to have served a request.
const USED: f64 = 0.99;
/// Before the end, while the generator still holds its connections.
const LOOK: Duration = Duration::from_millis(300);
const KIB: f64 = 1024.0;

pub struct Hold;

impl Hold {
    fn connections(plan: &Plan) -> u32 {
        match plan.profile {
            Profile::Smoke => 500,
            Profile::Quick => 2000,
            Profile::Full => 10_000,
        }
    }

    /// From closing to the last look.
    fn closed(plan: &Plan) -> Duration {
        Duration::from_secs(match plan.profile {
            Profile::Smoke | Profile::Full => 5,
            Profile::Quick => 10,
        })
    }

    fn opening(plan: &Plan) -> Duration {
        OPENING_THOUSAND * Self::connections(plan).div_ceil(1000)
    }
}

impl Experiment for Hold {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::R3]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Fleet(1)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::KIB_PER_CONNECTION,
                "memory of the proxies per idle connection",
                "KiB",
                Kind::Memory,
            ),
            Metric::value(
                keys::HELD_AFTER_CLOSE,
                "memory still held after all are closed",
                "MiB",
                Kind::Memory,
            )
            .by(crate::results::Compare::Difference),
            Metric::value(
                keys::FDS_AFTER_CLOSE,
                "file descriptors still held after all are closed",
                "descriptors",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::R3).len())
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        Self::opening(plan) + ROUND + SLACK + IDLE + Self::closed(plan) + Duration::from_millis(500)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("connections".to_owned(), json!(Self::connections(plan))),
            ("body_bytes".to_owned(), json!(1024)),
            (
                "path".to_owned(),
                json!("HTTP/1.1, client on node 1, server on node 2"),
            ),
            (
                "memory".to_owned(),
                json!("anonymous pages and kernel memory of the proxies of node 1"),
            ),
            ("idle_s".to_owned(), json!(IDLE.as_secs())),
            ("closed_s".to_owned(), json!(Self::closed(plan).as_secs())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Each connection has served one request: a proxy that has never been asked anything has nothing to \
             remember."
                .to_owned(),
            "What an earlier block left in an allocator is there to be used again, so later blocks show less than \
             the first."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Fleet(1), visit.arm)?;
        let began = Instant::now();
        let connections = Self::connections(lab.plan);
        let before = held(&bed)?;
        let mut drive = Drive::new(
            &bed::fleet_name(0),
            &bed.url("backend", "http1", PATH)?,
            f64::from(connections) / ROUND.as_secs_f64(),
        );
        drive.connections = connections;
        drive.timeout = PATIENCE;
        drive.seed = lab.plan.schedule(Id::R3, visit.block, "");
        drive.window = ROUND + SLACK;
        drive.hold = IDLE;
        let begin = Drive::appointment(&bed, Self::opening(lab.plan));
        let generator = drive.start(&bed, begin)?;
        let end_ns = begin + (drive.window + drive.hold).as_nanos() as u64;
        lab.interrupt
            .sleep_until(end_ns.saturating_sub(LOOK.as_nanos() as u64))?;
        let during = held(&bed)?;
        let report = generator.report(lab.interrupt)?;
        lab.interrupt.sleep(Self::closed(lab.plan))?;
        let after = held(&bed)?;

        let values = BTreeMap::from([
            (
                keys::KIB_PER_CONNECTION.to_owned(),
                during.bytes_beyond(&before) / KIB / f64::from(connections),
            ),
            (
                keys::HELD_AFTER_CLOSE.to_owned(),
                after.bytes_beyond(&before) / KIB / KIB,
            ),
            (
                keys::FDS_AFTER_CLOSE.to_owned(),
                after.files.saturating_sub(before.files) as f64,
            ),
            (
                "fds_per_connection".to_owned(),
                during.files.saturating_sub(before.files) as f64 / f64::from(connections),
            ),
            ("completed".to_owned(), report.completed as f64),
        ]);
        let mut voids = Vec::new();
        let used = report.completed as f64 / f64::from(connections);
        if used < USED || report.connection_counts.lost > 0 {
            voids.push(Void {
                gate: "connections held".to_owned(),
                measured: used,
                limit: USED,
                message: format!(
                    "{} requests on {connections} connections, of which {} were lost: not all of them were idle",
                    report.completed, report.connection_counts.lost
                ),
            });
        }
        Ok(vec![(
            Id::R3,
            Trial {
                arm: visit.arm.name().to_owned(),
                point: Point::at(format!("{connections} connections"), f64::from(connections)),
                repeat: 0,
                started_s: began.duration_since(lab.started).as_secs_f64(),
                duration_s: began.elapsed().as_secs_f64(),
                load: None,
                histograms: Default::default(),
                values,
                timelines: Vec::new(),
                voids,
                notes: Vec::new(),
            },
        )])
    }
}

/// What the proxies of node 1 hold.
struct Held {
    bytes: u64,
    files: u64,
}

impl Held {
    fn bytes_beyond(&self, before: &Self) -> f64 {
        self.bytes as f64 - before.bytes as f64
    }
}

fn held(bed: &Bed) -> Result<Held, Failure> {
    let all = bed.cluster.holdings(1)?;
    Ok(Held {
        bytes: all
            .iter()
            .map(|one| one.rollup.anonymous + one.charged.kernel)
            .sum(),
        files: all.iter().map(|one| one.open_files).sum(),
    })
}
