//! I2: how much a flood of TLS handshakes at one pod slows its neighbours down.
//!
//! A stranger on another node, outside the mesh and without a certificate, opens the mesh's port of
//! the aggressor's server again and again. TLS 1.3 has the server agree on a key and sign before it
//! learns that the client has nothing to show, so each costs a proxy a whole handshake: the
//! pod's own proxy, or the node's. Without a mesh nobody speaks TLS there: the same connections
//! meet the application's port, and that arm is the control for all that is not TLS.

use super::bed::Shape;
use super::drive::Drive;
use super::press::Press;
use super::victim::{self, LOSSES_NOTE, ONSET, Quota};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::results::{Metric, Point, Trial};
use crate::run::Plan;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Where mesh peers are let in.
const MESH_PORT: u16 = 15008;
const APP_PORT: u16 = 8080;
/// Handshakes at the same time: enough that waiting for one does not slow the flood down.
const AT_ONCE: u32 = 64;
/// A pod's capacity where it is not sought, handshakes/s.
const FIXED_QUOTA: f64 = 200.0;
/// For how long it is sought.
const SEEKING: Duration = Duration::from_secs(2);
/// What has begun before the window's end is not the next trial's.
const CALM: Duration = Duration::from_millis(300);

const FLOOD_QUOTA: &str = "quota_handshakes_per_s";

pub struct Handshakes {
    quota: Quota,
    /// What one pod's share of proxy does, handshakes/s.
    flood: f64,
    recalled: Option<f64>,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self {
            quota: Quota::default(),
            flood: FIXED_QUOTA,
            recalled: None,
        }
    }
}

impl Experiment for Handshakes {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I2]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Neighbours]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        victim::metrics()
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        Quota::prepare_estimate(plan, Id::I2) + SEEKING
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        (victim::estimate(plan) + CALM) * plan.pace.floods.len() as u32
    }

    fn recall(&mut self, parameters: &BTreeMap<String, Value>) {
        self.quota.recall(parameters);
        self.recalled = parameters.get(FLOOD_QUOTA).and_then(Value::as_f64);
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        let beds = self.quota.prepare(lab, arms)?;
        if let Some((bed, _)) = victim::prober(lab.plan, &beds) {
            self.flood = match self.recalled {
                Some(known) => known,
                None => seek(lab, bed)?,
            };
            lab.progress.line(&format!(
                "handshakes of one pod's share ({}): {:.0} a second",
                bed.arm, self.flood
            ));
        }
        Ok(())
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, Value> {
        let mut parameters = self.quota.parameters(plan);
        parameters.extend([
            (FLOOD_QUOTA.to_owned(), json!(self.flood)),
            ("w".to_owned(), json!(plan.pace.floods)),
            (
                "flood".to_owned(),
                json!("TLS 1.3, no client certificate, no resumption, at port 15008 of the aggressor's server; \
                       without a mesh at the application's port"),
            ),
        ]);
        parameters
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "The quota is what one pod's share of proxy completes when asked for as much as can be.".to_owned(),
            "The flood comes from another node, but from this machine: its own half of each handshake takes \
             processor from all, in every arm but the one without a mesh."
                .to_owned(),
            LOSSES_NOTE.to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let mut trials = Vec::new();
        for w in lab.plan.pace.floods {
            let began = Instant::now();
            let point = Point::at(format!("w={w}"), f64::from(*w));
            let measured =
                victim::measure(lab, visit, Id::I2, &self.quota, point, |bed, begin| {
                    if *w == 0 {
                        return Ok(None);
                    }
                    let rate = Some(self.flood * f64::from(*w));
                    flood(bed, rate, self.quota.window(lab.plan))?
                        .start(bed, begin)
                        .map(Some)
                })?;
            let (mut trial, pressing) = measured;
            if let Some(pressing) = pressing {
                let report = pressing.report(lab)?;
                for (key, value) in [
                    ("handshakes_done", report.done as f64),
                    ("handshakes_failed", report.failed as f64),
                ] {
                    trial.values.insert(key.to_owned(), value);
                }
                lab.interrupt.sleep(CALM)?;
            }
            trial.duration_s = began.elapsed().as_secs_f64();
            trials.push((Id::I2, trial));
        }
        Ok(trials)
    }
}

fn flood(bed: &Bed, rate: Option<f64>, window: Duration) -> Result<Press<'static>, Failure> {
    let port = if bed.arm.meshed() {
        MESH_PORT
    } else {
        APP_PORT
    };
    Ok(Press {
        kind: "handshakes",
        pod: "stranger",
        to: SocketAddr::new(bed.cluster.pod_address("aggressor")?, port),
        connections: AT_ONCE,
        rate,
        window,
    })
}

/// What one pod's share of proxy completes when it is asked for all it can.
fn seek(lab: &Lab<'_>, bed: &Bed) -> Result<f64, Failure> {
    lab.progress
        .doing("seeking the handshakes of one pod's share");
    let window = SEEKING - ONSET;
    let begin = Drive::appointment(bed, ONSET);
    let report = flood(bed, None, window)?.start(bed, begin)?.report(lab)?;
    let rate = report.done as f64 / report.counted_s;
    if rate < 1.0 {
        return Err(Failure::Capacity(format!(
            "arm {} completes no handshake at port {MESH_PORT}",
            bed.arm
        )));
    }
    Ok(rate.round())
}
