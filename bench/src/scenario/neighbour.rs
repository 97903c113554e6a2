//! I1 and I2: how much one service's flood slows its neighbours down.
//!
//! A victim asks its server for 30 % of what a pod's share of proxy carries; on
//! the same node another client floods another server with multiples of that
//! share. With sidecars each pod has its own share of processor; with an agent
//! all share the sum. Clients, servers and kernel burn the machine's processors
//! in every arm, so the arm without a mesh is the control: what a placement
//! causes is the slowdown beyond that one's.
//!
//! In I1 the flood is of requests over kept connections, in I2 each request has a
//! connection of its own.

use super::bed::Shape;
use super::capacity;
use super::drive::Drive;
use super::meter;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Metric, Point, Stage, Trial};
use crate::run::Plan;
use crate::run::gates::Losses;
use crate::run::plan::Probe;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The victim's load, as a share of a pod's capacity.
const VICTIM_SHARE: f64 = 0.30;
/// A pod's capacity where it is not sought, requests/s.
const FIXED_QUOTA: f64 = 700.0;
/// A pod's capacity of new connections where it is not sought, connections/s.
const FIXED_CONNECTIONS: f64 = 200.0;
/// How long the aggressor waits for an answer: it is not patient, and what it
/// has given up must not reach into the next trial.
const IMPATIENCE: Duration = Duration::from_millis(400);
/// How long the flood lasts before the victim is measured.
const ONSET: Duration = Duration::from_millis(300);

/// As the parameters call what was found out.
const QUOTA: &str = "quota_requests_per_s";
const FLOOD_QUOTA: &str = "flood_quota_per_s";
const SOUGHT: &str = "quota_sought";

/// What the aggressor floods with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// Over connections that it keeps.
    Requests,
    /// Each on a connection of its own.
    Connections,
}

pub struct Neighbour {
    flood: Flood,
    /// What one pod's share of proxy carries, requests/s.
    quota: f64,
    /// The same of what the aggressor floods with.
    flood_quota: f64,
    sought: bool,
    /// Both quotas of the same run's first part.
    recalled: Option<(f64, f64)>,
}

impl Neighbour {
    /// I1.
    pub fn requests() -> Self {
        Self::of(Flood::Requests)
    }

    /// I2.
    pub fn connections() -> Self {
        Self::of(Flood::Connections)
    }

    fn of(flood: Flood) -> Self {
        Self {
            flood,
            quota: FIXED_QUOTA,
            flood_quota: match flood {
                Flood::Requests => FIXED_QUOTA,
                Flood::Connections => FIXED_CONNECTIONS,
            },
            sought: false,
            recalled: None,
        }
    }

    fn id(&self) -> Id {
        match self.flood {
            Flood::Requests => Id::I1,
            Flood::Connections => Id::I2,
        }
    }

    fn prober(plan: &Plan) -> Option<(Arm, Probe)> {
        let arm = [Arm::Sidecar, Arm::Agent]
            .into_iter()
            .find(|arm| plan.arms.contains(arm))?;
        Some((arm, plan.pace.probe?))
    }
}

impl Experiment for Neighbour {
    fn scenarios(&self) -> &'static [Id] {
        match self.flood {
            Flood::Requests => &[Id::I1],
            Flood::Connections => &[Id::I2],
        }
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::quantile(Stage::Response, 0.5),
            Metric::quantile(Stage::Response, 0.9),
            Metric::goodput(),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        let building = plan.building(plan.arms_of(self.id()).len());
        let probing = plan.pace.probe.map_or(Duration::ZERO, |probe| {
            let searches = 1 + u32::from(self.flood == Flood::Connections);
            (probe.warmup + probe.step + Duration::from_millis(250))
                * (6 + probe.refinements)
                * searches
        });
        building + plan.pace.settle + probing
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let trial = plan.pace.warmup.max(ONSET) + plan.pace.window + Duration::from_millis(250);
        let floods = plan.pace.aggression.iter().filter(|w| **w > 0).count() as u32;
        trial * plan.pace.aggression.len() as u32 + IMPATIENCE * floods
    }

    fn recall(&mut self, parameters: &BTreeMap<String, serde_json::Value>) {
        if parameters.get(SOUGHT) != Some(&json!(true)) {
            return;
        }
        let number = |key| parameters.get(key).and_then(serde_json::Value::as_f64);
        self.recalled = number(QUOTA).map(|quota| (quota, number(FLOOD_QUOTA).unwrap_or(quota)));
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        let beds = lab.stand(Shape::Neighbours, arms)?;
        lab.progress.doing("warming up");
        let mut warming = Vec::new();
        for bed in &beds {
            for name in ["victim", "aggressor"] {
                let url = bed.url(name, "http1", PATH)?;
                let mut drive = Drive::new(&format!("{name}-client"), &url, 50.0);
                drive.window = lab.plan.pace.settle;
                warming.push(drive.start(bed, Drive::appointment(bed, Duration::ZERO))?);
            }
        }
        for generator in warming {
            generator.report(lab.interrupt)?;
        }
        if let Some((arm, probe)) = Self::prober(lab.plan)
            && let Some(bed) = beds.iter().find(|bed| bed.arm == arm)
        {
            let (quota, flood_quota) = match self.recalled {
                Some(known) => known,
                None => self.seek(lab, bed, probe)?,
            };
            self.quota = quota;
            self.flood_quota = flood_quota;
            self.sought = true;
            lab.progress.line(&format!(
                "capacity of one pod's share ({arm}): {quota:.0} requests/s, of the flood {flood_quota:.0}"
            ));
        }
        Ok(())
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("body_bytes".to_owned(), json!(1024)),
            (QUOTA.to_owned(), json!(self.quota)),
            (FLOOD_QUOTA.to_owned(), json!(self.flood_quota)),
            (SOUGHT.to_owned(), json!(self.sought)),
            (
                "victim_requests_per_s".to_owned(),
                json!((self.quota * VICTIM_SHARE).round()),
            ),
            ("w".to_owned(), json!(plan.pace.aggression)),
            ("window_ms".to_owned(), json!(plan.pace.window.as_millis())),
            (
                "placement".to_owned(),
                json!("victim and aggressor, clients and servers, on one node"),
            ),
        ])
    }

    fn notes(&self, scenario: Id) -> Vec<String> {
        let mut notes = vec![
            "The quota is the capacity of one client and one server behind the proxies' limits of \
             one pod each; w = 1 asks for exactly that."
                .to_owned(),
            "The achieved gate does not apply: what the victim loses is the finding.".to_owned(),
        ];
        if scenario == Id::I2 {
            notes.push(
                "The flood is of the application's connections. Proxies carry them over connections of their own                  that they keep, so this is TCP's handshake, interception and a new stream, not TLS's handshake."
                    .to_owned(),
            );
        }
        notes
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Neighbours, visit.arm)?;
        let pace = &lab.plan.pace;
        let mut trials = Vec::new();
        for w in pace.aggression {
            let began = Instant::now();
            let mut victim = Drive::new(
                "victim-client",
                &bed.url("victim", "http1", PATH)?,
                self.quota * VICTIM_SHARE,
            );
            // The same schedule for every w: only the neighbour changes.
            victim.seed = lab.plan.schedule(self.id(), visit.block, "victim");
            victim.warmup = pace.warmup.max(ONSET);
            victim.window = pace.window;
            let begin = Drive::appointment(&bed, victim.warmup);
            let flood = if *w > 0 {
                let mut aggressor = Drive::new(
                    "aggressor-client",
                    &bed.url("aggressor", "http1", PATH)?,
                    self.flood_quota * f64::from(*w),
                );
                aggressor.seed =
                    lab.plan
                        .schedule(self.id(), visit.block, &format!("aggressor {w}"));
                aggressor.fresh = self.flood == Flood::Connections;
                // Enough that a slow answer does not slow the flood down.
                aggressor.connections = 64;
                aggressor.timeout = IMPATIENCE;
                aggressor.window = pace.window;
                Some(aggressor.start(&bed, begin)?)
            } else {
                None
            };
            let generator = victim.start(&bed, begin)?;
            let (report, used) = meter::measure(lab, generator)?;
            let point = Point::at(format!("w={w}"), f64::from(*w));
            let mut trial = meter::trial(lab, &bed, point, began, &report, &used, Losses::Finding);
            if let Some(flood) = flood {
                let flood = flood.report(lab.interrupt)?;
                trial
                    .values
                    .insert("aggressor_offered".to_owned(), flood.offered as f64);
                trial
                    .values
                    .insert("aggressor_completed".to_owned(), flood.completed as f64);
                trial.values.insert(
                    "aggressor_core_share".to_owned(),
                    flood.generator.core_share(),
                );
            }
            trial.duration_s = began.elapsed().as_secs_f64();
            trials.push((self.id(), trial));
        }
        Ok(trials)
    }
}

impl Neighbour {
    /// What one pod's share carries: requests, and what the aggressor floods with.
    fn seek(&self, lab: &Lab<'_>, bed: &Bed, probe: Probe) -> Result<(f64, f64), Failure> {
        lab.progress
            .doing("seeking the capacity of one pod's share");
        let mut drive = Drive::new("victim-client", &bed.url("victim", "http1", PATH)?, 1.0);
        let quota = capacity::find(lab, bed, &drive, probe)?.round();
        if self.flood == Flood::Requests {
            return Ok((quota, quota));
        }
        drive.fresh = true;
        Ok((quota, capacity::find(lab, bed, &drive, probe)?.round()))
    }
}
