//! What life cycles are observed on: single pods, Jobs and Deployments in an arm's
//! namespace, beside its beds.
//!
//! Everything on a stage is made through it and carries its label, so dropping the
//! stage removes it all.

use super::api::Kube;
use super::mesh::{AGENT, AgentSet, SYSTEM};
use super::nodes::{NodeSide, PROMPT};
use super::objects::{self, BED, LOAD, RUN, SIDECAR_KIND, object};
use super::pods::{self, Observed};
use super::session::{Pending, Post, Session};
use super::site::{KubeSite, Settled};
use crate::attend::protocol::Ask;
use crate::cluster::clock::monotonic_ns;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::spec::Placement;
use crate::errand::Errand;
use crate::load::LoadReport;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// The name a thing was given on a stage.
const NAME: &str = "duet.dev/bench-name";
/// From one look at something that is timed to the next.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// A place in an arm's namespace.
#[derive(Debug)]
pub struct Stage {
    site: Rc<Settled>,
    space: String,
    label: String,
    placement: Placement,
    classic: bool,
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// The controller has not seen it, or is at it.
    Going,
    /// Every pod is of the new kind and available.
    Done,
}

impl KubeSite {
    /// A stage in an arm's namespace.
    pub fn stage(&self, arm: &str, placement: Placement, classic: bool) -> Result<Stage> {
        Ok(Stage {
            site: self.0.clone(),
            space: self.0.space(arm, placement)?,
            label: self.0.next_bed(),
            placement,
            classic,
        })
    }

    /// Replaces all agents, a few at a time, as a new version would.
    pub fn restart_agents(&self) -> Result<()> {
        let sets: Api<DaemonSet> = Api::namespaced(self.kube().client.clone(), SYSTEM);
        self.kube()
            .ask("restart the agents", sets.restart(AGENT))
            .map(drop)
    }

    /// How far that is.
    pub fn agents_rollout(&self) -> Result<Rollout> {
        let sets: Api<DaemonSet> = Api::namespaced(self.kube().client.clone(), SYSTEM);
        let set = self.kube().ask("look at the agents", sets.get(AGENT))?;
        let status = set.status.unwrap_or_default();
        let seen = status.observed_generation == set.metadata.generation;
        let wanted = status.desired_number_scheduled;
        let new = status.updated_number_scheduled.unwrap_or(0);
        let available = status.number_available.unwrap_or(0);
        Ok(if seen && new == wanted && available == wanted {
            Rollout::Done
        } else {
            Rollout::Going
        })
    }

    /// How often each container of the agents has been restarted, and their pods' uids.
    pub fn agent_pods(&self) -> Result<Vec<Pod>> {
        match self.agents() {
            Some(agents) => AgentSet::pods(agents, self.kube()),
            None => Ok(Vec::new()),
        }
    }
}

// === impl Stage ===

impl Stage {
    /// The connection.
    pub fn kube(&self) -> &Kube {
        &self.site.kube
    }

    /// The node of that number.
    pub fn node(&self, number: u32) -> &NodeSide {
        self.site.node(number)
    }

    /// What something is called in Kubernetes.
    pub fn named(&self, name: &str) -> String {
        format!("{name}-{}", self.label)
    }

    fn selector(&self) -> String {
        format!("{RUN}={},{BED}={}", self.site.run, self.label)
    }

    fn labels(&self, name: &str) -> Value {
        let mut labels = objects::labels(&self.site.run, &self.label);
        labels[NAME] = json!(name);
        labels
    }

    /// Name and labels of a pod, or of those of a template.
    pub fn pod_metadata(&self, name: &str) -> Value {
        let mut annotations = BTreeMap::new();
        if self.placement == Placement::Sidecar {
            annotations.insert("duet.dev/proxy-cpu-request", "10m");
            annotations.insert("duet.dev/proxy-memory-request", "16Mi");
        }
        if self.classic {
            annotations.insert(SIDECAR_KIND, "classic");
        }
        json!({
            "name": self.named(name), "labels": self.labels(name), "annotations": annotations,
        })
    }

    /// Name and labels of anything else.
    pub fn metadata(&self, name: &str) -> Value {
        json!({"name": self.named(name), "labels": self.labels(name)})
    }

    /// What chooses the pods of that name.
    pub fn choosing(&self, name: &str) -> Value {
        json!({BED: self.label, NAME: name})
    }

    /// A container of the run's image.
    pub fn container(&self, name: &str, arguments: &[&str]) -> Value {
        objects::container(name, &self.site.image, arguments)
    }

    /// A pod's specification: these containers, on that node.
    pub fn pod_spec(&self, node: u32, containers: Value) -> Value {
        objects::pod_spec(&self.node(node).name, "default", containers)
    }

    /// Makes something; returns when it was asked for.
    pub fn make<K>(&self, what: Value) -> Result<(K, u64)>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let api: Api<K> = Api::namespaced(self.kube().client.clone(), &self.space);
        let made: K = object(what);
        let asked = monotonic_ns();
        let kind = K::kind(&());
        let made = self.kube().ask(
            &format!("make a {kind} in {}", self.space),
            api.create(&PostParams::default(), &made),
        )?;
        Ok((made, asked))
    }

    /// Makes a service for the pods of a name and gives its address.
    pub fn make_service(&self, name: &str, ports: &[(u16, &str)]) -> Result<IpAddr> {
        let ports: Vec<Value> = ports
            .iter()
            .map(|(port, protocol)| {
                json!({"name": format!("p{port}"), "port": port, "appProtocol": protocol})
            })
            .collect();
        let (made, _) = self.make::<Service>(json!({
            "metadata": self.metadata(name),
            "spec": {"selector": self.choosing(name), "ports": ports},
        }))?;
        made.spec
            .and_then(|spec| spec.cluster_ip?.parse().ok())
            .ok_or_else(|| {
                ClusterError::Unsupported(format!("service {name} has no virtual address"))
            })
    }

    /// The pods of a name, as they are now.
    pub fn pods(&self, name: &str) -> Result<Vec<Pod>> {
        let selector = format!("{},{NAME}={name}", self.selector());
        pods::list(self.kube(), &self.space, &selector)
    }

    /// Waits until as many pods of a name as wanted are ready.
    pub fn await_ready(&self, name: &str, expected: usize, within: Duration) -> Result<Vec<Pod>> {
        let selector = format!("{},{NAME}={name}", self.selector());
        let good = |pod: &Pod| pod.is_ready();
        pods::await_all(self.kube(), &self.space, &selector, expected, within, good)
    }

    /// Looks at the pods of a name until `done` has something to say of them.
    pub fn watch<T>(
        &self,
        name: &str,
        within: Duration,
        mut done: impl FnMut(&[Pod]) -> Option<T>,
    ) -> Result<Option<T>> {
        self.kube()
            .look_every(LOOK_EVERY, within, || Ok(done(&self.pods(name)?)))
    }

    /// A Job or whatever else has a status, as it is now.
    pub fn get<K>(&self, name: &str) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api: Api<K> = Api::namespaced(self.kube().client.clone(), &self.space);
        let name = self.named(name);
        self.kube().ask(&format!("look at {name}"), api.get(&name))
    }

    /// Deletes a pod, as a person would; returns when that was asked for.
    pub fn delete_pod(&self, pod: &str) -> Result<u64> {
        let api: Api<Pod> = Api::namespaced(self.kube().client.clone(), &self.space);
        let asked = monotonic_ns();
        self.kube().ask(
            &format!("delete pod {pod}"),
            api.delete(pod, &DeleteParams::default()),
        )?;
        Ok(asked)
    }

    /// Replaces the pods of a Deployment, as a new version would.
    pub fn restart(&self, deployment: &str) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.kube().client.clone(), &self.space);
        self.kube()
            .ask("restart a Deployment", api.restart(&self.named(deployment)))
            .map(drop)
    }

    /// How far that is.
    pub fn rollout(&self, deployment: &str) -> Result<Rollout> {
        let made: Deployment = self.get(deployment)?;
        let status = made.status.unwrap_or_default();
        let wanted = made.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let seen = status.observed_generation == made.metadata.generation;
        let all = [
            status.replicas,
            status.updated_replicas,
            status.available_replicas,
        ];
        let done = seen && all.iter().all(|count| count.unwrap_or(0) == wanted);
        Ok(if done { Rollout::Done } else { Rollout::Going })
    }

    /// An attendant in a pod's container for load.
    pub fn attendant(&self, pod: &str) -> Session {
        Session::new(
            self.kube(),
            Post {
                namespace: self.space.clone(),
                pod: pod.to_owned(),
                container: LOAD.to_owned(),
                arguments: Vec::new(),
            },
        )
    }

    /// Starts a generator through an attendant on a node.
    pub fn load(
        &self,
        attendant: &Session,
        node: u32,
        arguments: Vec<String>,
        begin_ns: u64,
    ) -> Result<Pending<LoadReport>> {
        let clock = self.node(node).clock(self.kube())?;
        attendant.ask(Ask::Load {
            arguments,
            begin_ns: clock.theirs(begin_ns),
        })
    }

    /// Watches for the end of each container of a pod.
    pub fn ends(&self, pod: &Pod, within: Duration) -> Result<Ends> {
        let containers = pod
            .statuses()
            .into_iter()
            .filter(|status| {
                status
                    .state
                    .as_ref()
                    .is_some_and(|state| state.running.is_some())
            })
            .filter_map(|status| {
                let id = pod.container_id(&status.name)?;
                Some((status.name.clone(), id.to_owned()))
            })
            .collect();
        let node = self
            .site
            .nodes
            .iter()
            .find(|node| node.name == pod.on_node())
            .map_or(1, |node| node.number);
        let ends = self.node(node).reader().ask(Ask::Ends {
            containers,
            within_ms: within.as_millis() as u64,
        })?;
        Ok(Ends { ends, node, within })
    }

    /// When the last processes of those containers were gone, on our clock.
    pub fn ended(&self, ends: Ends) -> Result<BTreeMap<String, u64>> {
        let clock = self.node(ends.node).clock(self.kube())?;
        let ended = ends.ends.wait(self.kube(), ends.within + PROMPT)?;
        Ok(ended
            .into_iter()
            .map(|(name, at)| (name, clock.ours(at)))
            .collect())
    }

    /// The last words of an errand that ran in a pod, times on our clock.
    pub fn last_words(&self, pod: &Pod, container: &str) -> Result<Option<Errand>> {
        let words = pod
            .status_of(container)
            .and_then(|status| status.state.as_ref()?.terminated.as_ref()?.message.clone());
        let Some(words) = words else {
            return Ok(None);
        };
        let Ok(mut errand) = serde_json::from_str::<Errand>(&words) else {
            return Ok(None);
        };
        let node = self
            .site
            .nodes
            .iter()
            .find(|node| node.name == pod.on_node())
            .map_or(1, |node| node.number);
        let clock = self.node(node).clock(self.kube())?;
        errand.started_ns = clock.ours(errand.started_ns);
        errand.ended_ns = clock.ours(errand.ended_ns);
        if let Some(reached) = &mut errand.reached {
            reached.began_ns = clock.ours(reached.began_ns);
            reached.success_ns = reached.success_ns.map(|at| clock.ours(at));
        }
        Ok(Some(errand))
    }
}

/// Containers whose ends are watched for.
#[derive(Debug)]
pub struct Ends {
    ends: Pending<BTreeMap<String, u64>>,
    node: u32,
    within: Duration,
}

/// A container's exit code, once it has one.
pub fn exit_code(pod: &Pod, container: &str) -> Option<i32> {
    let status = pod.status_of(container)?;
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

impl Drop for Stage {
    fn drop(&mut self) {
        let selector = self.selector();
        let chosen = ListParams::default().labels(&selector);
        let client = &self.site.kube.client;
        let removed =
            self.site
                .kube
                .ask_anyway(&format!("clear a stage of {}", self.space), async {
                    // Owners first, or they make new pods.
                    let background = DeleteParams::background();
                    let cron: Api<CronJob> = Api::namespaced(client.clone(), &self.space);
                    cron.delete_collection(&background, &chosen).await?;
                    let jobs: Api<Job> = Api::namespaced(client.clone(), &self.space);
                    jobs.delete_collection(&background, &chosen).await?;
                    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &self.space);
                    deployments.delete_collection(&background, &chosen).await?;
                    let services: Api<Service> = Api::namespaced(client.clone(), &self.space);
                    services.delete_collection(&background, &chosen).await?;
                    let soon = DeleteParams::background().grace_period(1);
                    let pods: Api<Pod> = Api::namespaced(client.clone(), &self.space);
                    pods.delete_collection(&soon, &chosen).await?;
                    Ok(())
                });
        match removed {
            Ok(()) => self.site.leaves(&self.space, selector),
            // The namespace takes them along.
            Err(error) => eprintln!("duet-bench: {error}"),
        }
    }
}
