//! I8: one pod makes its proxy run out of memory.
//!
//! A pod opens hundreds of connections and sends large bodies over them. Its proxy's
//! memory limit is lowered first to a little more than the proxy uses, so that the
//! bomb need not be large; what follows is the kernel's and the kubelet's own
//! doing. The question is who else was behind that proxy.

use super::bed::{self, Shape};
use super::drive::Drive;
use super::kill::{self, View};
use super::steady::PATH;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::cluster::Placement;
use crate::cluster::kube::{KubeSite, LOAD, Observed, PROXY};
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What the proxy may use beyond what it uses.
const HEADROOM: u64 = 4 << 20;
/// The bomb: connections, requests per second, bytes of each.
const CONNECTIONS: u32 = 400;
const REQUESTS: f64 = 400.0;
const BODY: u32 = 256 << 10;
/// How long the bomb goes on.
const BOMB: Duration = Duration::from_secs(4);
const READY: Duration = Duration::from_secs(60);

pub struct Exhaustion;

impl Exhaustion {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Exhaustion {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I8]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let count = |key, label, unit| Metric::value(key, label, unit, Kind::Count);
        vec![
            count(keys::PODS_HIT, "pods hit", "pods"),
            count(
                keys::PROXIES_KILLED,
                "proxies killed for want of memory",
                "proxies",
            ),
            count(keys::APPS_RESTARTED, "applications started again", "pods"),
            count(keys::REQUESTS_LOST, "requests lost", "requests"),
            Metric::value(
                keys::TIME_TO_RECOVER,
                "time until all pods are well again",
                "ms",
                Kind::Latency,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::I8).len())
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        plan.pace.fault_window + plan.renewing() + Duration::from_secs(2)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("headroom_mib".to_owned(), json!(HEADROOM >> 20)),
            ("bomb_connections".to_owned(), json!(CONNECTIONS)),
            ("bomb_requests_per_s".to_owned(), json!(REQUESTS)),
            ("bomb_body_kib".to_owned(), json!(BODY >> 10)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "The pod that bombs is among the pods hit: it has done it to itself.".to_owned(),
            "With the limit that the proxy is installed with the same bomb has to be larger; who is \
             behind the proxy stays the same."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let kube = lab.kube()?;
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let pods = lab.plan.pace.fault_pods;
        let purpose = format!("I8/{}/{}", visit.arm, visit.block);
        let bomber = bed::fleet_name((lab.plan.number(&purpose) % u64::from(pods)) as u32);
        let proxy = bed.cluster.proxy_of(&bomber)?;
        let before = kube.applications(visit.arm.name())?;
        let began = Instant::now();

        let warmup = Duration::from_millis(300) + Duration::from_millis(15) * pods;
        let begin = Drive::appointment(&bed, warmup);
        let url = bed.url("backend", "http1", PATH)?;
        let mut generators = Vec::new();
        for pod in 0..pods {
            let name = bed::fleet_name(pod);
            let mut one = Drive::new(&name, &url, kill::RATE);
            one.seed = lab.plan.schedule(Id::I8, visit.block, &name);
            one.connections = kill::CONNECTIONS;
            one.window = lab.plan.pace.fault_window;
            one.bin = kill::FINE;
            generators.push((name, one.start(&bed, begin)?));
        }
        let strike = begin + kill::BEFORE.as_nanos() as u64;
        let mut bomb = Drive::new(&bomber, &bed.url("backend", "http1", "/echo")?, REQUESTS);
        bomb.seed = lab.plan.number(&purpose);
        bomb.connections = CONNECTIONS;
        bomb.window = BOMB;
        bomb.body = Some(BODY);
        let bomb = bomb.start(&bed, strike)?;
        lab.interrupt.sleep_until(strike)?;
        bed.cluster.starve(&proxy.name, HEADROOM)?;
        let died = bed
            .cluster
            .await_death(&proxy.name, lab.plan.pace.fault_window)?;
        let mut reports = Vec::new();
        for (name, generator) in generators {
            reports.push((name, generator.report(lab.interrupt)?));
        }
        // What became of the bomb is not the question.
        let _ = bomb.report(lab.interrupt);
        if died {
            bed.cluster.await_ready(&proxy.name, READY)?;
        }
        let lives = bed.cluster.lives(&proxy.name)?;
        let after = kube.applications(visit.arm.name())?;
        let killed_proxies = if visit.arm.placement() == Placement::Agent {
            starved(&kube.agent_pods()?, agent_container(kube))
        } else {
            starved(&after, PROXY)
        };
        bed.cluster.forget_death(&proxy.name)?;

        let killed = lives.first().and_then(|life| life.killed).unwrap_or(strike);
        let views: Vec<View<'_>> = reports
            .iter()
            .map(|(name, report)| View::of(name, report, killed))
            .collect();
        let mut values = kill::outcome(&views, &lives, killed);
        values.insert(keys::PROXIES_KILLED.to_owned(), killed_proxies as f64);
        values.insert(
            keys::APPS_RESTARTED.to_owned(),
            restarted(&before, &after) as f64,
        );
        let mut voids = kill::voids(&views);
        if !died {
            voids.push(Void {
                gate: "out of memory".to_owned(),
                measured: 0.0,
                limit: 1.0,
                message: "the bomb did not exhaust the proxy's memory".to_owned(),
            });
        }
        let timelines = views
            .iter()
            .map(|view| view.timeline(proxy.pods.contains(&view.name().to_owned())))
            .collect();
        Ok(vec![(
            Id::I8,
            Trial {
                arm: visit.arm.name().to_owned(),
                point: Point::only(),
                repeat: visit.block,
                started_s: began.duration_since(lab.started).as_secs_f64(),
                duration_s: began.elapsed().as_secs_f64(),
                load: None,
                histograms: Default::default(),
                values,
                timelines,
                voids,
                notes: vec![format!("{bomber} exhausted {}", proxy.name)],
            },
        )])
    }
}

fn agent_container(kube: &KubeSite) -> &str {
    kube.agents().map_or("", |agents| agents.container.as_str())
}

/// Pods of which that container was last ended by the kernel for want of memory.
fn starved(pods: &[Pod], container: &str) -> usize {
    pods.iter()
        .filter(|pod| {
            let last = pod
                .status_of(container)
                .and_then(|status| status.last_state.as_ref()?.terminated.as_ref());
            last.is_some_and(|ended| ended.reason.as_deref() == Some("OOMKilled"))
        })
        .count()
}

/// Applications of which a container was started again.
fn restarted(before: &[Pod], after: &[Pod]) -> usize {
    let restarts = |pod: &Pod| pod.status_of(LOAD).map_or(0, |status| status.restart_count);
    after
        .iter()
        .filter(|new| {
            let old = before.iter().find(|old| old.uid() == new.uid());
            old.is_some_and(|old| restarts(new) > restarts(old))
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_verdict_counts() {
        let pod = |reason: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {},
                "status": {"initContainerStatuses": [{
                    "name": PROXY, "image": "", "imageID": "", "ready": true, "restartCount": 1,
                    "lastState": {"terminated": {"exitCode": 137, "reason": reason}},
                }]},
            }))
            .expect("a pod")
        };
        assert_eq!(starved(&[pod("OOMKilled"), pod("Error")], PROXY), 1);
        assert_eq!(starved(&[pod("OOMKilled")], LOAD), 0);
    }
}
