//! S4: what is lost when a pod is deleted under load.
//!
//! One of two servers is deleted while a client asks both. As platform teams have
//! it, its containers stay for a few seconds (preStop), so that everybody hears of
//! its leaving first; meanwhile it goes on making requests of its own. A proxy
//! that ends before its application, or stops one direction early, costs requests
//! that would have gone well without it.

use super::bed::Shape;
use super::drive::Drive;
use super::steady::PATH;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::cluster::kube::{APP, LOAD, Observed, PROXY, Stage};
use crate::cluster::monotonic_ns;
use crate::load::LoadReport;
use crate::results::{Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Requests per second to the servers, over kept connections and over new ones
/// each, and from the pod that leaves.
const RATE: f64 = 50.0;
/// Load before the deletion.
const BEFORE: Duration = Duration::from_secs(1);
/// How long the containers stay after the deletion.
const PRE_STOP: Duration = Duration::from_secs(3);
/// How much of that the pod goes on asking.
const EGRESS_AFTER: Duration = Duration::from_millis(2_300);
/// How long the servers are asked after the deletion.
const INGRESS_AFTER: Duration = Duration::from_millis(5_500);
/// How long a deleted pod may take to be gone.
const GONE: Duration = Duration::from_secs(40);
const READY: Duration = Duration::from_secs(90);
const SERVERS: &str = "servers";
const PORT: u16 = 8080;

pub struct Deletion;

impl Experiment for Deletion {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::S4]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let requests = |key, label| Metric::value(key, label, "requests", Kind::Count);
        vec![
            requests(keys::INGRESS_FAILED, "failed requests to the servers"),
            requests(
                keys::EGRESS_FAILED,
                "failed requests of the pod that was deleted",
            ),
            Metric::value(
                keys::PROXY_OUTLIVED,
                "from the application's end to its proxy's",
                "ms",
                Kind::Latency,
            )
            .higher_is_better(),
        ]
    }

    fn prepare_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_secs(1)
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        BEFORE + INGRESS_AFTER + Duration::from_secs(7)
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("servers".to_owned(), json!(2)),
            ("requests_per_s".to_owned(), json!(RATE)),
            ("pre_stop_s".to_owned(), json!(PRE_STOP.as_secs())),
            (
                "egress_after_ms".to_owned(),
                json!(EGRESS_AFTER.as_millis()),
            ),
            (
                "ingress_after_ms".to_owned(),
                json!(INGRESS_AFTER.as_millis()),
            ),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Every container of the application has a preStop hook that waits; the proxy is the \
             mesh's own affair."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let began = Instant::now();
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let stage = lab.stage(visit.arm)?;
        for number in 0..2 {
            stage.make::<Pod>(server(&stage, number))?;
        }
        let address = stage.make_service(SERVERS, &[(PORT, "http")])?;
        let pods = stage.await_ready(SERVERS, 2, READY)?;
        let leaver = pods
            .iter()
            .find(|pod| pod.called() == stage.named("server-0"))
            .ok_or_else(|| Failure::Pod {
                pod: stage.named("server-0"),
                problem: "somebody has removed it".to_owned(),
            })?;
        let attendant = stage.attendant(leaver.called());
        attendant.open()?;

        let seed = lab.plan.schedule(Id::S4, visit.block, "");
        let url = format!("http://{address}:{PORT}{PATH}");
        let warmup = Duration::from_millis(500);
        let begin = Drive::appointment(&bed, warmup);
        let mut kept = Drive::new("client", &url, RATE);
        kept.seed = seed;
        kept.connections = 4;
        kept.window = BEFORE + INGRESS_AFTER;
        let mut fresh = kept.clone();
        fresh.fresh = true;
        fresh.seed = seed.wrapping_add(1);
        let mut out = Drive::new(LOAD, &bed.url("near", "http1", PATH)?, RATE);
        out.seed = seed.wrapping_add(2);
        out.connections = 4;
        out.window = BEFORE + EGRESS_AFTER;
        let egress = stage.load(&attendant, 1, out.arguments(), begin)?;
        let ingress = [kept.start(&bed, begin)?, fresh.start(&bed, begin)?];
        let ends = stage.ends(leaver, BEFORE + GONE)?;
        lab.interrupt
            .sleep_until(begin + BEFORE.as_nanos() as u64)?;
        let deleted = stage.delete_pod(leaver.called())?;

        let mut reports = Vec::new();
        for generator in ingress {
            reports.push(generator.report(lab.interrupt)?);
        }
        // Whoever ends the pod before its generator has spoken has ended it too early.
        let egress = egress.wait(stage.kube(), PRE_STOP + Duration::from_secs(5));
        let ended = stage.ended(ends)?;
        let gone = stage.watch(SERVERS, GONE, |pods| {
            let there = pods.iter().any(|pod| pod.uid() == leaver.uid());
            (!there).then(monotonic_ns)
        })?;
        lab.interrupt.check()?;
        let mut notes = Vec::new();
        let egress = match egress {
            Ok(report) => Some(report),
            Err(error) => {
                notes.push(format!("no report of the pod that was deleted: {error}"));
                None
            }
        };
        let mut values = losses(&reports, egress.as_ref());
        values.extend(order(&ended));
        if let Some(gone) = gone {
            let ms = gone.saturating_sub(deleted) as f64 / 1e6;
            values.insert("gone_ms".to_owned(), ms);
        }
        let errors = reports
            .iter()
            .chain(&egress)
            .flat_map(|report| &report.errors);
        for (kind, count) in errors {
            notes.push(format!("{count} × {kind:?}"));
        }
        Ok(vec![(
            Id::S4,
            Trial {
                arm: visit.arm.name().to_owned(),
                point: Point::only(),
                repeat: 0,
                started_s: began.duration_since(lab.started).as_secs_f64(),
                duration_s: began.elapsed().as_secs_f64(),
                load: None,
                histograms: Default::default(),
                values,
                timelines: Vec::new(),
                voids: Vec::new(),
                notes,
            },
        )])
    }
}

fn server(stage: &Stage, number: u32) -> Value {
    let port = PORT.to_string();
    let seconds = format!("{}s", PRE_STOP.as_secs());
    let wait = [
        "/duet-bench",
        "errand",
        "--linger",
        &seconds,
        "--report",
        "/dev/null",
    ];
    let stays = json!({"preStop": {"exec": {"command": wait}}});
    let mut app = stage.container(APP, &["serve", "--http", &port]);
    app["lifecycle"] = stays.clone();
    app["readinessProbe"] = json!({"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1});
    // The generator reports after its window, so its container stays a little longer.
    let mut load = stage.container(LOAD, &["idle", "--linger", "2s"]);
    load["lifecycle"] = stays;
    let mut metadata = stage.pod_metadata(SERVERS);
    metadata["name"] = json!(stage.named(&format!("server-{number}")));
    let mut spec = stage.pod_spec(1, json!([app, load]));
    spec["terminationGracePeriodSeconds"] = json!(20);
    json!({"metadata": metadata, "spec": spec})
}

fn losses(ingress: &[LoadReport], egress: Option<&LoadReport>) -> BTreeMap<String, f64> {
    let sum = |of: fn(&LoadReport) -> u64| ingress.iter().map(of).sum::<u64>() as f64;
    let mut values = BTreeMap::from([
        (keys::INGRESS.to_owned(), sum(|report| report.offered)),
        (keys::INGRESS_FAILED.to_owned(), sum(LoadReport::failed)),
    ]);
    if let Some(egress) = egress {
        values.insert(keys::EGRESS.to_owned(), egress.offered as f64);
        values.insert(keys::EGRESS_FAILED.to_owned(), egress.failed() as f64);
    }
    values
}

/// Which of a pod's containers ended when, the applications' against the proxy's.
fn order(ended: &BTreeMap<String, u64>) -> BTreeMap<String, f64> {
    let apps = ended
        .iter()
        .filter(|(name, _)| *name != PROXY)
        .map(|(_, at)| *at)
        .max();
    match (apps, ended.get(PROXY)) {
        (Some(apps), Some(proxy)) => BTreeMap::from([(
            keys::PROXY_OUTLIVED.to_owned(),
            (*proxy as f64 - apps as f64) / 1e6,
        )]),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_ends_first_is_negative() {
        let ended = |proxy: u64| {
            BTreeMap::from([
                (APP.to_owned(), 5_000_000),
                (LOAD.to_owned(), 7_000_000),
                (PROXY.to_owned(), proxy),
            ])
        };
        assert_eq!(order(&ended(9_000_000))[keys::PROXY_OUTLIVED], 2.0);
        assert_eq!(order(&ended(1_000_000))[keys::PROXY_OUTLIVED], -6.0);
        let bare = BTreeMap::from([(APP.to_owned(), 1)]);
        assert!(order(&bare).is_empty());
    }
}
