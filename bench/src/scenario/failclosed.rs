//! F5: whether anything leaves in plaintext while a proxy is dead.
//!
//! A client keeps asking with a random marker in the request's path, while all
//! packets on all interfaces of both nodes are searched for it. A capture that
//! sees nothing proves nothing by itself, so two pods outside the mesh send
//! another marker at the same time: if that one is not seen, the trial is void.

use super::bed::Shape;
use super::drive::Drive;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::cluster::{CaptureReport, Restart};
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Requests per second, each on a new connection.
const RATE: f64 = 50.0;
const WINDOW: Duration = Duration::from_millis(1_000);
/// How long a killed proxy may take to be gone.
const GONE: Duration = Duration::from_secs(5);

pub struct FailClosed;

/// Whose proxy is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dead {
    Nobody,
    Clients,
    Servers,
}

impl Dead {
    fn point(self) -> Point {
        match self {
            Self::Nobody => Point::at("proxies alive", 0.0),
            Self::Clients => Point::at("client's proxy dead", 1.0),
            Self::Servers => Point::at("server's proxy dead", 2.0),
        }
    }

    /// The pod whose proxy is killed.
    fn pod(self) -> Option<&'static str> {
        match self {
            Self::Nobody => None,
            Self::Clients => Some("client"),
            Self::Servers => Some("server"),
        }
    }
}

impl Experiment for FailClosed {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::F5]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Wire]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::PLAINTEXT_BYTES,
                "plaintext on the wire",
                "bytes",
                Kind::Count,
            ),
            Metric::value(
                keys::ATTEMPTS_ANSWERED,
                "requests answered",
                "requests",
                Kind::Count,
            ),
            Metric::value(keys::ATTEMPTS, "requests tried", "requests", Kind::Count),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::F5).len())
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        (WINDOW + Duration::from_millis(400)) * 3 + plan.renewing() * 2
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("requests_per_s".to_owned(), json!(RATE)),
            ("window_ms".to_owned(), json!(WINDOW.as_millis())),
            (
                "captured".to_owned(),
                json!("all interfaces of both nodes; a forwarded packet counts once per interface"),
            ),
        ])
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Wire, visit.arm)?;
        let cases: &[Dead] = if visit.arm.meshed() {
            &[Dead::Nobody, Dead::Clients, Dead::Servers]
        } else {
            &[Dead::Nobody]
        };
        let mut trials = Vec::new();
        for dead in cases {
            let killed = match dead.pod() {
                Some(pod) => Some(kill(&bed, pod)?),
                None => None,
            };
            let outcome = watch(lab, &bed, visit, *dead);
            if let Some(proxy) = killed {
                bed.cluster.revive(&proxy)?;
            }
            trials.push((Id::F5, outcome?));
        }
        Ok(trials)
    }
}

fn kill(bed: &Bed, pod: &str) -> Result<String, Failure> {
    let proxy = bed.cluster.proxy_of(pod)?.name;
    bed.cluster.kill(&proxy, Restart::Never)?;
    if bed.cluster.await_death(&proxy, GONE)? {
        Ok(proxy)
    } else {
        Err(Failure::Pod {
            pod: pod.to_owned(),
            problem: format!("{proxy} still lives {GONE:?} after SIGKILL"),
        })
    }
}

fn watch(lab: &Lab<'_>, bed: &Bed, visit: Visit, dead: Dead) -> Result<Trial, Failure> {
    let began = Instant::now();
    let point = dead.point();
    let purpose = format!("F5/{}/{}/{}", visit.arm, visit.block, point.label);
    let marker = format!("marker{:016x}", lab.plan.number(&purpose));
    let control = format!("control{:016x}", lab.plan.number(&purpose));
    let begin = Drive::appointment(bed, Duration::ZERO);
    let start = |client: &str, server: &str, text: &str| {
        let path = format!("/bytes/64?{text}");
        let mut one = Drive::new(client, &bed.url(server, "http1", &path)?, RATE);
        one.fresh = true;
        one.seed = lab.plan.schedule(Id::F5, visit.block, &point.label);
        one.window = WINDOW;
        one.start(bed, begin)
    };
    let nodes = || 1..=bed.cluster.nodes();
    let captures: Vec<_> = nodes()
        .map(|node| bed.cluster.capture(node, &[marker.as_bytes()]))
        .collect();
    let controls: Vec<_> = nodes()
        .map(|node| bed.cluster.capture(node, &[control.as_bytes()]))
        .collect();
    let generator = start("client", "server", &marker)?;
    let plain = start("plain-client", "plain-server", &control)?;
    let report = generator.report(lab.interrupt)?;
    plain.report(lab.interrupt)?;
    lab.interrupt.sleep(Duration::from_millis(50))?;
    let mut seen = CaptureReport::default();
    let mut examples = Vec::new();
    for capture in captures {
        let found = capture?.stop()?;
        seen.packets += found.packets;
        seen.bytes += found.bytes;
        seen.lost += found.lost;
        seen.plaintext_packets += found.plaintext_packets;
        seen.plaintext_bytes += found.plaintext_bytes;
        examples.extend(found.examples);
    }
    let mut control_packets = 0;
    for capture in controls {
        control_packets += capture?.stop()?.plaintext_packets;
    }

    let mut voids = Vec::new();
    if control_packets == 0 {
        voids.push(Void {
            gate: "capture control".to_owned(),
            measured: 0.0,
            limit: 1.0,
            message: "the capture did not see what was sent outside the mesh; it proves nothing"
                .to_owned(),
        });
    }
    if seen.lost > 0 {
        voids.push(Void {
            gate: "capture lost packets".to_owned(),
            measured: seen.lost as f64,
            limit: 0.0,
            message: format!("{} packets were not seen; none may be missed", seen.lost),
        });
    }
    if visit.arm == Arm::None && seen.plaintext_packets == 0 {
        voids.push(Void {
            gate: "positive control".to_owned(),
            measured: 0.0,
            limit: 1.0,
            message: "without a mesh the marker was not seen either".to_owned(),
        });
    }
    let values = [
        (keys::PLAINTEXT_BYTES, seen.plaintext_bytes as f64),
        ("plaintext_packets", seen.plaintext_packets as f64),
        (keys::ATTEMPTS, report.offered as f64),
        (keys::ATTEMPTS_ANSWERED, report.completed as f64),
        ("control_packets", control_packets as f64),
        ("captured_packets", seen.packets as f64),
        ("captured_bytes", seen.bytes as f64),
    ];
    Ok(Trial {
        arm: visit.arm.name().to_owned(),
        point,
        repeat: 0,
        started_s: began.duration_since(lab.started).as_secs_f64(),
        duration_s: began.elapsed().as_secs_f64(),
        load: Some((&report).into()),
        histograms: Default::default(),
        values: values
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        timelines: Vec::new(),
        voids,
        notes: examples
            .into_iter()
            .take(3)
            .map(|example| format!("in plaintext: {example}"))
            .collect(),
    })
}
