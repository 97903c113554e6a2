//! L5: what every further service on the way adds.
//!
//! A request goes to one service, or through one or two others to a last one, each on the other
//! node than the one before. The slope over one, two and three services, block by block, is what
//! one more of them adds: the service itself, its client, and the mesh between them.

use super::bed::{STARTING_MANY, Shape};
use super::drive::Drive;
use super::meter;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Kind, Metric, Point, Stage, Trial, keys};
use crate::run::Plan;
use crate::run::gates::Losses;
use crate::stats::{fit_line, quantile};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const HOPS: [u32; 3] = [1, 2, 3];
/// Requests per second: three hundred in the shortest window, and far below what any arm can do.
const RATE: f64 = 200.0;
const HTTP: u16 = 80;
const LAST: &str = "bytes/1024";

pub struct Chain;

impl Chain {
    fn settle(plan: &Plan) -> Duration {
        plan.pace.settle / 3
    }
}

impl Experiment for Chain {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::L5]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Chain]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::quantile(Stage::Response, 0.5),
            Metric::value(
                keys::US_PER_HOP,
                "added to the median by each further service",
                "µs",
                Kind::Latency,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::L5).len()) + Self::settle(plan)
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        (plan.pace.warmup + plan.pace.window + Duration::from_millis(250)) * HOPS.len() as u32
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        let beds = lab.stand(Shape::Chain, arms)?;
        lab.progress.doing("warming up");
        let mut warming = Vec::new();
        for bed in &beds {
            let mut drive = Drive::new("client", &url(bed, HOPS[2])?, RATE / 3.0);
            drive.window = Self::settle(lab.plan);
            warming.push(drive.start(bed, Drive::appointment(bed, STARTING_MANY))?);
        }
        for generator in warming {
            generator.report(lab.interrupt)?;
        }
        Ok(())
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("body_bytes".to_owned(), json!(1024)),
            ("requests_per_s".to_owned(), json!(RATE)),
            ("window_ms".to_owned(), json!(plan.pace.window.as_millis())),
            (
                "path".to_owned(),
                json!("HTTP/1.1; every service on the other node than its client"),
            ),
        ])
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Chain, visit.arm)?;
        let mut medians = Vec::new();
        let mut trials = Vec::new();
        for hops in HOPS {
            let began = Instant::now();
            let mut drive = Drive::new("client", &url(&bed, hops)?, RATE);
            // The same schedule for every length.
            drive.seed = lab.plan.schedule(Id::L5, visit.block, "");
            drive.warmup = lab.plan.pace.warmup;
            drive.window = lab.plan.pace.window;
            let generator = drive.start(&bed, Drive::appointment(&bed, drive.warmup))?;
            let (report, used) = meter::measure(lab, generator)?;
            let plural = if hops == 1 { "" } else { "s" };
            let point = Point::at(format!("{hops} service{plural}"), f64::from(hops));
            let mut trial = meter::trial(lab, &bed, point, began, &report, &used, Losses::Void);
            let response = report.histograms.response.decode().ok();
            if let Some(ns) = response.and_then(|response| quantile(&response, 0.5)) {
                medians.push((f64::from(hops), ns as f64 / 1000.0));
            }
            // The slope takes all three.
            if medians.len() == HOPS.len()
                && let Some(line) = fit_line(&medians)
            {
                trial.values.insert(keys::US_PER_HOP.to_owned(), line.slope);
            }
            trials.push((Id::L5, trial));
        }
        // A slope is worth no more than the worst of its points.
        let void = trials.iter().flat_map(|(_, trial)| trial.voids.clone());
        let void: Vec<_> = void.collect();
        if let Some((_, last)) = trials.last_mut() {
            last.voids = void;
        }
        Ok(trials)
    }
}

/// Through so many services.
fn url(bed: &Bed, hops: u32) -> Result<String, Failure> {
    let mut addresses = Vec::new();
    for hop in 1..=hops {
        addresses.push(SocketAddr::new(
            bed.cluster.address(&format!("hop-{hop}"))?,
            HTTP,
        ));
    }
    let mut url = String::from("http://");
    for (at, address) in addresses.iter().enumerate() {
        if at > 0 {
            url += "via/";
        }
        url += &format!("{address}/");
    }
    Ok(url + LAST)
}
