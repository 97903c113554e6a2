//! U1: what an upgrade of the proxy costs those that use it.
//!
//! With sidecars the proxy is a part of each pod, so the pods are replaced, and the
//! applications with them. An agent is replaced on its node, and the applications
//! stay. Both are ordered as an operator would, while a client opens connections
//! and keeps others open.

mod netns;

use super::bed::Shape;
use super::drive::Drive;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::cluster::Placement;
use crate::cluster::kube::{APP, KubeSite, Observed, Rollout, Stage};
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// New connections per second.
const NEW: f64 = 50.0;
/// Connections that stay open, and how often something is sent over any of them.
const LONG_LIVED: u32 = 16;
const LONG_LIVED_RATE: f64 = 32.0;
/// Load before the order and after its completion.
const AROUND: Duration = Duration::from_secs(2);
/// How long an upgrade may take.
const UPGRADE: Duration = Duration::from_secs(150);
const READY: Duration = Duration::from_secs(90);
const REPLICAS: u32 = 4;
const SERVERS: &str = "upgraded";
const HTTP: u16 = 8080;
const TCP: u16 = 9090;

pub struct Upgrade;

impl Experiment for Upgrade {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::U1]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let count = |key, label, unit| Metric::value(key, label, unit, Kind::Count);
        vec![
            count(
                keys::NEW_CONNECTIONS_FAILED,
                "new connections that failed",
                "connections",
            ),
            count(
                keys::LONG_LIVED_RESET,
                "open connections that were cut",
                "connections",
            ),
            count(keys::APPS_RESTARTED, "applications started again", "pods"),
            Metric::value(
                keys::UPGRADE_WALL,
                "from the order to its completion",
                "s",
                Kind::Latency,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::U1).len())
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        if plan.kubelet {
            Duration::from_secs(30)
        } else {
            netns::WINDOW + Duration::from_secs(1)
        }
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, Value> {
        let servers = if plan.kubelet { REPLICAS } else { 1 };
        BTreeMap::from([
            ("servers".to_owned(), json!(servers)),
            ("new_connections_per_s".to_owned(), json!(NEW)),
            ("long_lived".to_owned(), json!(LONG_LIVED)),
            ("around_s".to_owned(), json!(AROUND.as_secs())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "With sidecars the servers' pods are rolled; the client's own proxy could only be \
             upgraded by ending the client, and is not. With agents every node's is replaced, the \
             client's too."
                .to_owned(),
            "On network namespaces the next agent is of the same binary and takes over while both run, and open \
             connections are drained for three seconds instead of a minute; the server's pod is replaced by one that \
             is ready first, and told to end in a kubelet's order."
                .to_owned(),
            "Servers have no preStop hook. The new version is the old one: nothing but the \
             replacement is measured."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let began = Instant::now();
        let Some(kube) = lab.kube else {
            return netns::visit(lab, visit);
        };
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let stage = lab.stage(visit.arm)?;
        stage.make::<Deployment>(servers(kube, &stage))?;
        let address = stage.make_service(SERVERS, &[(HTTP, "http"), (TCP, "tcp")])?;
        let before = stage.await_ready(SERVERS, REPLICAS as usize, READY)?;

        let seed = lab.plan.schedule(Id::U1, visit.block, "");
        let begin = Drive::appointment(&bed, Duration::from_secs(1));
        let mut fresh = Drive::new("client", &format!("http://{address}:{HTTP}/"), NEW);
        fresh.fresh = true;
        fresh.seed = seed;
        fresh.window = AROUND + UPGRADE + AROUND;
        let mut long = Drive::new("client", &format!("tcp://{address}:{TCP}"), LONG_LIVED_RATE);
        long.protocol = "tcp";
        long.connections = LONG_LIVED;
        long.seed = seed.wrapping_add(1);
        long.window = fresh.window;
        let fresh = fresh.start(&bed, begin)?;
        let long = long.start(&bed, begin)?;
        lab.interrupt
            .sleep_until(begin + AROUND.as_nanos() as u64)?;

        let ordered = Instant::now();
        let agents = visit.arm.placement() == Placement::Agent;
        if agents {
            kube.restart_agents()?;
        } else {
            stage.restart(SERVERS)?;
        }
        let done = stage.kube().look(UPGRADE, || {
            let rollout = if agents {
                kube.agents_rollout()?
            } else {
                stage.rollout(SERVERS)?
            };
            Ok((rollout == Rollout::Done).then_some(()))
        })?;
        let wall = ordered.elapsed();
        lab.interrupt.sleep(AROUND)?;
        fresh.stop()?;
        long.stop()?;
        let fresh = fresh.report(lab.interrupt)?;
        let long = long.report(lab.interrupt)?;
        let after: Vec<Pod> = stage
            .pods(SERVERS)?
            .into_iter()
            .filter(|pod| !pod.is_leaving())
            .collect();

        let values = BTreeMap::from([
            (keys::NEW_CONNECTIONS.to_owned(), fresh.offered as f64),
            (
                keys::NEW_CONNECTIONS_FAILED.to_owned(),
                fresh.failed() as f64,
            ),
            (keys::LONG_LIVED.to_owned(), f64::from(LONG_LIVED)),
            (
                keys::LONG_LIVED_RESET.to_owned(),
                long.connection_counts.lost as f64,
            ),
            (
                keys::APPS_RESTARTED.to_owned(),
                restarted(&before, &after) as f64,
            ),
            (keys::UPGRADE_WALL.to_owned(), wall.as_secs_f64()),
            ("frames_lost".to_owned(), long.failed() as f64),
        ]);
        let voids = match done {
            Some(()) => Vec::new(),
            None => vec![Void {
                gate: "upgrade complete".to_owned(),
                measured: wall.as_secs_f64(),
                limit: UPGRADE.as_secs_f64(),
                message: format!("the upgrade was not complete after {UPGRADE:?}"),
            }],
        };
        let notes = fresh
            .errors
            .iter()
            .chain(&long.errors)
            .map(|(kind, count)| format!("{count} × {kind:?}"))
            .collect();
        Ok(vec![(
            Id::U1,
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
                voids,
                notes,
            },
        )])
    }
}

/// Where it takes place: with a kubelet servers of its own beside a bed, else a bed whose server may be replaced.
fn shape(plan: &Plan) -> Shape {
    if plan.kubelet {
        Shape::Pair
    } else {
        Shape::Upgraded
    }
}

fn servers(kube: &KubeSite, stage: &Stage) -> Value {
    let (http, tcp) = (HTTP.to_string(), TCP.to_string());
    let mut app = stage.container(APP, &["serve", "--http", &http, "--tcp", &tcp]);
    app["readinessProbe"] = json!({"httpGet": {"path": "/", "port": HTTP}, "periodSeconds": 1});
    let mut spec = stage.pod_spec(1, json!([app]));
    let nodes: Vec<&str> = kube.nodes().iter().map(|node| node.name.as_str()).collect();
    // On any of the run's nodes, as evenly as can be.
    spec["nodeName"] = Value::Null;
    let terms: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node]},
            ]})
        })
        .collect();
    spec["affinity"] = json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
    }});
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": stage.choosing(SERVERS)},
    }]);
    spec["terminationGracePeriodSeconds"] = json!(15);
    let mut metadata = stage.pod_metadata(SERVERS);
    metadata["name"] = Value::Null;
    json!({
        "metadata": stage.metadata(SERVERS),
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": stage.choosing(SERVERS)},
            "template": {"metadata": metadata, "spec": spec},
        },
    })
}

/// Applications of which a container was started again, or whose pod is another.
fn restarted(before: &[Pod], after: &[Pod]) -> usize {
    let restarts = |pod: &Pod| pod.status_of(APP).map_or(0, |status| status.restart_count);
    after
        .iter()
        .filter(|new| {
            let old = before.iter().find(|old| old.uid() == new.uid());
            old.is_none_or(|old| restarts(new) > restarts(old))
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_pod_and_another_container_are_both_restarts() {
        let pod = |uid: &str, restarts: i32| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"uid": uid},
                "status": {"containerStatuses": [{
                    "name": APP, "image": "", "imageID": "", "ready": true, "restartCount": restarts,
                }]},
            }))
            .expect("a pod")
        };
        let before = [pod("a", 0), pod("b", 1), pod("c", 0)];
        let after = [pod("a", 0), pod("b", 2), pod("d", 0)];
        assert_eq!(restarted(&before, &after), 2);
        assert_eq!(restarted(&before, &before), 0);
    }
}
