//! A victim beside somebody who takes more than their share: what all such scenarios have in common.
//!
//! The victim asks its server for 30 % of what a pod's share of proxy carries, on the same schedule
//! whoever is beside it. What becomes of its response time against that alone is the slowdown.

use super::bed::{self, Shape};
use super::capacity;
use super::drive::Drive;
use super::meter;
use super::steady::PATH;
use super::{Bed, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Metric, Point, Stage, Trial};
use crate::run::Plan;
use crate::run::gates::Losses;
use crate::run::plan::Probe;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The victim's load, as a share of a pod's capacity.
const SHARE: f64 = 0.30;
/// A pod's capacity where it is not sought, requests/s.
const FIXED_QUOTA: f64 = 700.0;
/// Requests that a median takes, and what chance may leave out of a schedule.
const FOR_A_MEDIAN: f64 = 250.0;
/// Of the windows that are longer for it.
const LONGEST: Duration = Duration::from_secs(6);
/// How long whoever is beside the victim has been at it before the victim is measured.
pub const ONSET: Duration = Duration::from_millis(300);

/// As the parameters call what was found out.
const QUOTA: &str = "quota_requests_per_s";
const SOUGHT: &str = "quota_sought";

/// What one pod's share of proxy carries.
pub struct Quota {
    pub rate: f64,
    sought: bool,
    /// Of the same run's first part.
    recalled: Option<f64>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            rate: FIXED_QUOTA,
            sought: false,
            recalled: None,
        }
    }
}

impl Quota {
    pub fn recall(&mut self, parameters: &BTreeMap<String, Value>) {
        if parameters.get(SOUGHT) == Some(&json!(true)) {
            self.recalled = parameters.get(QUOTA).and_then(Value::as_f64);
        }
    }

    /// What the parameters say of it.
    pub fn parameters(&self, plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("body_bytes".to_owned(), json!(1024)),
            (QUOTA.to_owned(), json!(self.rate)),
            (SOUGHT.to_owned(), json!(self.sought)),
            (
                "victim_requests_per_s".to_owned(),
                json!((self.rate * SHARE).round()),
            ),
            ("window_ms".to_owned(), json!(self.window(plan).as_millis())),
        ])
    }

    /// The profile's window, or a longer one where the victim asks so seldom that its median could not be printed.
    pub fn window(&self, plan: &Plan) -> Duration {
        let needed = Duration::from_secs_f64(FOR_A_MEDIAN / (self.rate * SHARE));
        plan.pace.window.max(needed.min(LONGEST))
    }

    /// How long [`Self::prepare`] takes, about.
    pub fn prepare_estimate(plan: &Plan, id: Id) -> Duration {
        let others = [Id::I1, Id::I2, Id::I4, Id::I5, Id::I7];
        let first = others.into_iter().find(|other| plan.wants(&[*other]));
        if first != Some(id) {
            return Duration::ZERO;
        }
        let probing = plan.pace.probe.map_or(Duration::ZERO, |probe| {
            (probe.warmup + probe.step + Duration::from_millis(250)) * (6 + probe.refinements)
        });
        plan.building(plan.arms_of(id).len()) + plan.pace.settle + probing
    }

    /// Beds that stand and are warm, and the quota: found once in a run.
    pub fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<Vec<Rc<Bed>>, Failure> {
        let beds = lab.stand(Shape::Neighbours, arms)?;
        if let Some(known) = lab.beds.quota() {
            (self.rate, self.sought) = known;
            return Ok(beds);
        }
        lab.progress.doing("warming up");
        let mut warming = Vec::new();
        for bed in &beds {
            for name in ["victim", "aggressor"] {
                let url = bed.url(name, "http1", PATH)?;
                let mut drive = Drive::new(&format!("{name}-client"), &url, 50.0);
                drive.window = lab.plan.pace.settle;
                let begin = Drive::appointment(bed, bed::STARTING_MANY);
                warming.push(drive.start(bed, begin)?);
            }
        }
        for generator in warming {
            generator.report(lab.interrupt)?;
        }
        if let Some((bed, probe)) = prober(lab.plan, &beds) {
            self.rate = match self.recalled {
                Some(known) => known,
                None => {
                    lab.progress
                        .doing("seeking the capacity of one pod's share");
                    let url = bed.url("victim", "http1", PATH)?;
                    let drive = Drive::new("victim-client", &url, 1.0);
                    capacity::find(lab, bed, &drive, probe)?.round()
                }
            };
            self.sought = true;
            lab.progress.line(&format!(
                "capacity of one pod's share ({}): {:.0} requests/s",
                bed.arm, self.rate
            ));
        }
        lab.beds.set_quota((self.rate, self.sought));
        Ok(beds)
    }
}

/// The bed in which capacities are sought: of an arm whose pods have shares.
pub fn prober<'b>(plan: &Plan, beds: &'b [Rc<Bed>]) -> Option<(&'b Rc<Bed>, Probe)> {
    let bed = [Arm::Sidecar, Arm::Agent]
        .into_iter()
        .find_map(|arm| beds.iter().find(|bed| bed.arm == arm))?;
    Some((bed, plan.pace.probe?))
}

/// What is read of a victim.
pub fn metrics() -> Vec<Metric> {
    vec![
        Metric::quantile(Stage::Response, 0.5),
        Metric::quantile(Stage::Response, 0.9),
        Metric::goodput(),
    ]
}

/// How long one of its trials takes, about.
pub fn estimate(plan: &Plan) -> Duration {
    plan.pace.warmup.max(ONSET) + plan.pace.window + Duration::from_millis(250)
}

/// Measures the victim. What `beside` starts is given the window's beginning, and back with the trial.
pub fn measure<T>(
    lab: &Lab<'_>,
    visit: Visit,
    id: Id,
    quota: &Quota,
    point: Point,
    beside: impl FnOnce(&Bed, u64) -> Result<T, Failure>,
) -> Result<(Trial, T), Failure> {
    let bed = lab.bed(Shape::Neighbours, visit.arm)?;
    let began = Instant::now();
    let url = bed.url("victim", "http1", PATH)?;
    let mut victim = Drive::new("victim-client", &url, quota.rate * SHARE);
    // The same schedule whoever is beside it.
    victim.seed = lab.plan.schedule(id, visit.block, "victim");
    victim.warmup = lab.plan.pace.warmup.max(ONSET);
    victim.window = quota.window(lab.plan);
    let begin = Drive::appointment(&bed, victim.warmup);
    let other = beside(&bed, begin)?;
    let generator = victim.start(&bed, begin)?;
    let (report, used) = meter::measure(lab, generator)?;
    let trial = meter::trial(lab, &bed, point, began, &report, &used, Losses::Finding);
    Ok((trial, other))
}

/// The note that all of them need.
pub const LOSSES_NOTE: &str =
    "The achieved gate does not apply: what the victim loses is the finding.";
