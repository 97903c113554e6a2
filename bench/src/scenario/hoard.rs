//! I3: a neighbour opens connections and never uses them.
//!
//! Each costs a proxy a descriptor and memory and asks nothing of its processor. A victim on the same node goes on
//! opening connections of its own; what is counted is how many of these fail, how much later their first byte
//! comes, and how many connections the proxies really hold meanwhile.

use super::bed::Shape;
use super::drive::Drive;
use super::meter;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::results::{Kind, Metric, Point, Profile, Stage, Trial, keys};
use crate::run::Plan;
use crate::run::gates::Losses;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The victim's connections per second: below what a pod's share of proxy can open.
const RATE: f64 = 150.0;
/// Long enough that a median rests on two hundred of them.
const WINDOW: Duration = Duration::from_secs(2);
/// A generator has to ask for something; this is next to nothing.
const HOARDER_RATE: f64 = 1.0;
/// From asking for a thousand connections to having them, at most.
const OPENING_THOUSAND: Duration = Duration::from_millis(1200);

pub struct Hoard;

impl Hoard {
    fn connections(plan: &Plan) -> u32 {
        match plan.profile {
            Profile::Smoke => 500,
            Profile::Quick | Profile::Full => 2000,
        }
    }

    fn opening(plan: &Plan) -> Duration {
        OPENING_THOUSAND * Self::connections(plan).div_ceil(1000)
    }

    fn window(plan: &Plan) -> Duration {
        plan.pace.window.max(WINDOW)
    }
}

impl Experiment for Hoard {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I3]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::quantile(Stage::FirstByte, 0.5),
            Metric::quantile(Stage::FirstByte, 0.9),
            Metric::value(
                keys::CONNECTS_FAILED,
                "the victim's connections that failed",
                "connections",
                Kind::Count,
            ),
            Metric::value(
                keys::CONNECTS,
                "the victim's connections",
                "connections",
                Kind::Count,
            ),
            Metric::value(
                keys::HOARDED,
                "descriptors that the hoarder makes the proxies hold",
                "descriptors",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        if plan.wants(&[Id::I1, Id::I2]) {
            return Duration::ZERO;
        }
        plan.building(plan.arms_of(Id::I3).len())
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let trial = plan.pace.warmup + Self::window(plan) + Duration::from_millis(300);
        trial * 2 + Self::opening(plan)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("hoarded".to_owned(), json!(Self::connections(plan))),
            ("victim_connections_per_s".to_owned(), json!(RATE)),
            (
                "window_ms".to_owned(),
                json!(Self::window(plan).as_millis()),
            ),
            (
                "placement".to_owned(),
                json!("victim and hoarder, clients and servers, on one node"),
            ),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "The hoard is of a fixed size and does not grow until something fails: a machine's descriptors are \
             many, and the kernel's other limits would be met first."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Neighbours, visit.arm)?;
        let mut trials = Vec::new();
        for hoarded in [0, Self::connections(lab.plan)] {
            trials.push((Id::I3, beside(lab, &bed, visit, hoarded)?));
        }
        Ok(trials)
    }
}

/// The victim beside so many connections.
fn beside(lab: &Lab<'_>, bed: &Bed, visit: Visit, hoarded: u32) -> Result<Trial, Failure> {
    let began = Instant::now();
    let before = files(bed)?;
    let mut victim = Drive::new("victim-client", &bed.url("victim", "http1", PATH)?, RATE);
    victim.fresh = true;
    // The same schedule with and without the hoard.
    victim.seed = lab.plan.schedule(Id::I3, visit.block, "victim");
    victim.warmup = lab.plan.pace.warmup;
    victim.window = Hoard::window(lab.plan);
    let opening = if hoarded > 0 {
        Hoard::opening(lab.plan)
    } else {
        Duration::ZERO
    };
    let begin = Drive::appointment(bed, victim.warmup + opening);
    let hoard = if hoarded > 0 {
        let url = bed.url("aggressor", "http1", PATH)?;
        let mut hoarder = Drive::new("aggressor-client", &url, HOARDER_RATE);
        hoarder.connections = hoarded;
        hoarder.seed = lab.plan.schedule(Id::I3, visit.block, "hoarder");
        hoarder.window = victim.window;
        let hoard = hoarder.start(bed, begin)?;
        // The victim's own warm-up begins when the hoard stands.
        lab.interrupt.sleep(opening)?;
        Some(hoard)
    } else {
        None
    };
    let held = files(bed)?;
    let generator = victim.start(bed, begin)?;
    let (report, used) = meter::measure(lab, generator)?;
    if let Some(hoard) = hoard {
        hoard.report(lab.interrupt)?;
    }
    let point = Point::at(format!("{hoarded} connections hoarded"), f64::from(hoarded));
    let mut trial = meter::trial(lab, bed, point, began, &report, &used, Losses::Finding);
    for (key, value) in [
        (keys::CONNECTS, report.offered as f64),
        (keys::CONNECTS_FAILED, report.failed() as f64),
    ] {
        trial.values.insert(key.to_owned(), value);
    }
    if bed.arm.meshed() {
        trial
            .values
            .insert(keys::HOARDED.to_owned(), held.saturating_sub(before) as f64);
    }
    Ok(trial)
}

/// Descriptors of the node's proxies.
fn files(bed: &Bed) -> Result<u64, Failure> {
    let all = bed.cluster.holdings(1)?;
    Ok(all.iter().map(|one| one.open_files).sum())
}
