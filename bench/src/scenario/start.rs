//! S1, S2, S6: what an application meets that starts inside a mesh.
//!
//! Its first act is to ask a server. If its proxy is not there yet, that fails, and
//! an application that is not written for it crashes. An init container asks
//! before any ordinary container runs. And who lists the pods sees what the mesh
//! has made of them.

use super::bed::Shape;
use super::steady::PATH;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::cluster::kube::{APP, Observed, Stage, exit_code};
use crate::errand::Errand;
use crate::results::{Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use crate::stats::median;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long an application goes on asking.
const ASKS_FOR: Duration = Duration::from_secs(30);
/// How long an init container does: nothing that comes later could help it.
const INIT_ASKS_FOR: Duration = Duration::from_secs(5);
/// How long a pod may take from being asked for to its application's end.
const ENDED: Duration = Duration::from_secs(90);
const FIRST: &str = "first";
const INIT: &str = "init";

pub struct Start;

impl Experiment for Start {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::S1, Id::S2, Id::S6]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, scenario: Id) -> Vec<Metric> {
        let count = |key, label, unit| Metric::value(key, label, unit, Kind::Count);
        match scenario {
            Id::S2 => vec![
                count(
                    keys::INITS_ANSWERED,
                    "init containers that were answered",
                    "pods",
                )
                .higher_is_better(),
            ],
            Id::S6 => vec![
                count(
                    keys::CONTAINERS_SHOWN,
                    "containers in a pod's listing",
                    "containers",
                ),
                count(
                    keys::LOGS_ARE_THE_APPS,
                    "`kubectl logs` shows the application's",
                    "yes",
                )
                .higher_is_better(),
            ],
            _ => vec![
                count(
                    keys::STARTS_WITH_FAILURE,
                    "pods with a failed request before the first success",
                    "pods",
                ),
                count(
                    keys::FAILURES_BEFORE_SUCCESS,
                    "failed requests before the first success",
                    "requests",
                ),
                Metric::value(
                    keys::FIRST_EGRESS,
                    "from the application's first line to its first answer",
                    "ms",
                    Kind::Latency,
                ),
                Metric::value(
                    keys::ASKED_TO_ANSWERED,
                    "from asking for the pod to its first answer",
                    "ms",
                    Kind::Latency,
                ),
            ],
        }
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::S1).len())
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_secs(6)
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[crate::arm::Arm]) -> Result<(), Failure> {
        lab.stand(Shape::Pair, arms)?;
        Ok(())
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("pods_at_once".to_owned(), json!(plan.pace.starts)),
            ("asks_for_s".to_owned(), json!(ASKS_FOR.as_secs())),
            ("init_asks_for_s".to_owned(), json!(INIT_ASKS_FOR.as_secs())),
        ])
    }

    fn notes(&self, scenario: Id) -> Vec<String> {
        match scenario {
            Id::S6 => vec![
                "Containers as the READY column counts them: those of the pod, and init containers \
                 that are always restarted."
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let began = Instant::now();
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let url = bed.url("near", "http1", PATH)?;
        let stage = lab.stage(visit.arm)?;
        let count = lab.plan.pace.starts;
        let mut asked = BTreeMap::new();
        for number in 0..count {
            for (kind, pod) in [
                (FIRST, first(&stage, &url, number)),
                (INIT, with_init(&stage, &url, number)),
            ] {
                let (made, at) = stage.make::<Pod>(pod)?;
                asked.insert((kind, made.called().to_owned()), at);
            }
        }
        let first = ended(&stage, FIRST, APP, count)?;
        let init = ended(&stage, INIT, INIT, count)?;

        let mut words: Vec<(Errand, u64)> = Vec::new();
        for pod in &first {
            let at = asked.get(&(FIRST, pod.called().to_owned())).copied();
            if let (Some(errand), Some(at)) = (stage.last_words(pod, APP)?, at) {
                words.push((errand, at));
            }
        }
        let answered = init
            .iter()
            .filter(|pod| exit_code(pod, INIT) == Some(0))
            .count();
        let seen = first.first().map(Seen::of).unwrap_or_default();
        let trial = |values: BTreeMap<String, f64>, notes: Vec<String>| Trial {
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
        };
        let met: Vec<String> = words
            .iter()
            .filter_map(|(errand, _)| errand.reached.as_ref()?.first_failure.clone())
            .take(1)
            .map(|failure| format!("the first failure: {failure}"))
            .collect();
        Ok(vec![
            (Id::S1, trial(egress(&words), met)),
            (
                Id::S2,
                trial(
                    BTreeMap::from([
                        (keys::INITS.to_owned(), init.len() as f64),
                        (keys::INITS_ANSWERED.to_owned(), answered as f64),
                    ]),
                    Vec::new(),
                ),
            ),
            (Id::S6, trial(seen.values(), vec![seen.in_words()])),
        ])
    }
}

fn first(stage: &Stage, url: &str, number: u32) -> Value {
    let within = format!("{}s", ASKS_FOR.as_secs());
    let app = stage.container(APP, &["errand", "--url", url, "--within", &within]);
    pod(stage, FIRST, number, json!([app]), json!([]))
}

fn with_init(stage: &Stage, url: &str, number: u32) -> Value {
    let within = format!("{}s", INIT_ASKS_FOR.as_secs());
    let init = stage.container(INIT, &["errand", "--url", url, "--within", &within]);
    let app = stage.container(APP, &["errand"]);
    pod(stage, INIT, number, json!([app]), json!([init]))
}

fn pod(stage: &Stage, kind: &str, number: u32, containers: Value, inits: Value) -> Value {
    let mut metadata = stage.pod_metadata(kind);
    metadata["name"] = json!(stage.named(&format!("{kind}-{number}")));
    let mut spec = stage.pod_spec(1, containers);
    spec["restartPolicy"] = json!("Never");
    spec["initContainers"] = inits;
    json!({"metadata": metadata, "spec": spec})
}

/// The pods of a kind, once that container of each has ended.
fn ended(stage: &Stage, kind: &str, container: &str, count: u32) -> Result<Vec<Pod>, Failure> {
    let mut last = Vec::new();
    let all = stage.watch(kind, ENDED, |pods| {
        last = pods.to_vec();
        let over = pods.iter().all(|pod| exit_code(pod, container).is_some());
        (over && pods.len() >= count as usize).then(|| pods.to_vec())
    })?;
    all.ok_or_else(|| {
        let stuck = last.iter().find(|pod| exit_code(pod, container).is_none());
        Failure::Pod {
            pod: stuck.map_or("?".to_owned(), |pod| pod.called().to_owned()),
            problem: format!(
                "container {container} has not ended after {ENDED:?}: {}",
                stuck.map_or("it was not made".to_owned(), Observed::missing)
            ),
        }
    })
}

fn egress(words: &[(Errand, u64)]) -> BTreeMap<String, f64> {
    let reached = || {
        words
            .iter()
            .filter_map(|(errand, _)| errand.reached.as_ref())
    };
    let ms = |from: u64, until: u64| until.saturating_sub(from) as f64 / 1e6;
    let first: Vec<f64> = words
        .iter()
        .filter_map(|(errand, _)| Some(ms(errand.started_ns, errand.reached.as_ref()?.success_ns?)))
        .collect();
    let whole: Vec<f64> = words
        .iter()
        .filter_map(|(errand, asked)| Some(ms(*asked, errand.reached.as_ref()?.success_ns?)))
        .collect();
    let mut values = BTreeMap::from([
        (keys::STARTS.to_owned(), words.len() as f64),
        (
            keys::STARTS_WITH_FAILURE.to_owned(),
            reached().filter(|one| one.failures > 0).count() as f64,
        ),
        (
            keys::FAILURES_BEFORE_SUCCESS.to_owned(),
            reached().map(|one| f64::from(one.failures)).sum(),
        ),
    ]);
    if let Some(ms) = median(&first) {
        values.insert(keys::FIRST_EGRESS.to_owned(), ms);
    }
    if let Some(ms) = median(&whole) {
        values.insert(keys::ASKED_TO_ANSWERED.to_owned(), ms);
    }
    values
}

/// What `kubectl` shows of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    /// As the READY column counts.
    containers: usize,
    /// Init containers that end.
    inits: usize,
    /// Whose log is shown unasked.
    log_of: String,
}

impl Seen {
    fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let stays = inits
            .iter()
            .filter(|init| init.restart_policy.as_deref() == Some("Always"))
            .count();
        let chosen = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get("kubectl.kubernetes.io/default-container").cloned());
        Self {
            containers: spec.containers.len() + stays,
            inits: inits.len() - stays,
            log_of: chosen
                .or_else(|| Some(spec.containers.first()?.name.clone()))
                .unwrap_or_default(),
        }
    }

    fn values(&self) -> BTreeMap<String, f64> {
        BTreeMap::from([
            (keys::CONTAINERS_SHOWN.to_owned(), self.containers as f64),
            (
                keys::LOGS_ARE_THE_APPS.to_owned(),
                f64::from(u8::from(self.log_of == APP)),
            ),
            ("init_containers".to_owned(), self.inits as f64),
        ])
    }

    fn in_words(&self) -> String {
        format!(
            "READY counts {} containers; `kubectl logs` shows that of {}",
            self.containers, self.log_of
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::Reached;

    #[test]
    fn a_native_sidecar_is_counted_and_an_init_container_is_not() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {},
            "spec": {
                "initContainers": [
                    {"name": "duet-init"}, {"name": "duet-proxy", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "app"}],
            },
        }))
        .expect("a pod");
        let seen = Seen::of(&pod);
        assert_eq!((seen.containers, seen.inits), (2, 1));
        assert_eq!(seen.values()[keys::LOGS_ARE_THE_APPS], 1.0);
    }

    #[test]
    fn who_was_never_answered_has_no_time() {
        let errand = |success_ns| Errand {
            started_ns: 1_000_000,
            reached: Some(Reached {
                began_ns: 1_000_000,
                failures: 3,
                first_failure: None,
                success_ns,
            }),
            ended_ns: 9_000_000,
        };
        let values = egress(&[(errand(Some(5_000_000)), 0), (errand(None), 0)]);
        assert_eq!(values[keys::STARTS], 2.0);
        assert_eq!(values[keys::STARTS_WITH_FAILURE], 2.0);
        assert_eq!(values[keys::FAILURES_BEFORE_SUCCESS], 6.0);
        assert_eq!(values[keys::FIRST_EGRESS], 4.0);
        assert_eq!(values[keys::ASKED_TO_ANSWERED], 5.0);
        assert!(!egress(&[(errand(None), 0)]).contains_key(keys::FIRST_EGRESS));
    }
}
