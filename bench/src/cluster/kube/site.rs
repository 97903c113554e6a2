//! A Kubernetes cluster as the ground that a run's beds stand on.
//!
//! A run has one namespace per arm and one for its readers, all with its id in
//! their names and labels. A bed is some pods and services in its arm's
//! namespace. What the arms are given is the same in sum: the agents' limits
//! are whatever the mesh was installed with, so sidecars share exactly that.

use super::api::{Kube, is_absent};
use super::bed::KubeBed;
use super::mesh::{AgentSet, Given};
use super::nodes::{self, NodeSide, PROMPT};
use super::objects::{self, MODE, RUN};
use super::owner;
use super::pods::{self, Observed};
use crate::accounting::MachineCpu;
use crate::attend::protocol::Ask;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::netns_site::GENERATOR_CLASS;
use crate::cluster::site::{Cluster, Site, Wish};
use crate::cluster::spec::{Limits, Placement};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::rc::Rc;
use std::time::Duration;

/// What a server's port is called.
pub const APP_PORT_NAME: &str = "http";
/// How long readers may take: their image may have to be pulled.
const READERS: Duration = Duration::from_secs(120);
/// How long duet-control may take to put its trust bundle into a new namespace.
const BUNDLE: Duration = Duration::from_secs(30);
/// The ConfigMap that it puts there.
const TRUST_BUNDLE: &str = "duet-trust-bundle";
/// How long the pods of an earlier bed may take to go.
const LEAVING: Duration = Duration::from_secs(60);
/// How long a run waits for its namespaces to be gone.
const REMOVED: Duration = Duration::from_secs(60);

/// A Kubernetes cluster that a run has settled in.
#[derive(Clone, Debug)]
pub struct KubeSite(pub(super) Rc<Settled>);

/// What a run has in a cluster.
#[derive(Debug)]
pub struct Settled {
    pub kube: Kube,
    /// The run's id.
    pub run: String,
    pub image: String,
    pub nodes: Vec<NodeSide>,
    /// None where no node proxies are installed.
    pub agents: Option<AgentSet>,
    /// Generators are to have a real-time class.
    pub realtime_wanted: bool,
    realtime_refused: Cell<bool>,
    owner: String,
    spaces: RefCell<BTreeMap<String, String>>,
    beds: Cell<u32>,
    /// Selectors of what is being deleted, by namespace.
    leaving: RefCell<Vec<(String, String)>>,
}

/// How a run is to settle.
#[derive(Clone, Debug)]
pub struct Settling {
    /// The image that pods run.
    pub image: String,
    /// Nodes by name; the first two that take pods by default.
    pub nodes: Vec<String>,
    /// Whether generators are to have a real-time class.
    pub realtime: bool,
}

impl KubeSite {
    /// Takes nodes into use: a namespace, a reader on each. What was made is removed
    /// when the last copy is dropped.
    pub fn settle(kube: Kube, settling: &Settling) -> Result<Self> {
        let candidates = choose(&kube, settling)?;
        let run = format!("{:06x}", rand::random::<u32>() & 0xff_ffff);
        super::registry::register(&kube, &run);
        let mut settled = Settled {
            agents: AgentSet::find(&kube)?,
            kube,
            run,
            image: settling.image.clone(),
            nodes: Vec::new(),
            realtime_wanted: settling.realtime,
            realtime_refused: Cell::new(false),
            owner: owner::this_process(),
            spaces: RefCell::default(),
            beds: Cell::new(0),
            leaving: RefCell::default(),
        };
        let space = settled.make_space("nodes", &[(MODE, "none")])?;
        let numbered = || (1..).zip(&candidates);
        let pods: Api<Pod> = Api::namespaced(settled.kube.client.clone(), &space);
        for (number, candidate) in numbered() {
            let reader = nodes::reader(number, &candidate.name, &settled.image, &settled.run);
            settled.kube.ask(
                &format!("make a privileged reader on {}", candidate.name),
                pods.create(&PostParams::default(), &reader),
            )?;
        }
        pods::await_all(
            &settled.kube,
            &space,
            &format!("{RUN}={}", settled.run),
            candidates.len(),
            READERS,
            Observed::is_ready,
        )?;
        let mut met: Vec<NodeSide> = Vec::new();
        for (number, candidate) in numbered() {
            let mut node = NodeSide::meet(&settled.kube, &space, number, candidate)?;
            node.first_of_machine = met.iter().all(|other| other.hello.boot != node.hello.boot);
            met.push(node);
        }
        settled.nodes = met;
        Ok(Self(Rc::new(settled)))
    }

    /// The connection.
    pub fn kube(&self) -> &Kube {
        &self.0.kube
    }

    /// The run's id, which is part of the name of every namespace.
    pub fn run_id(&self) -> &str {
        &self.0.run
    }

    /// The nodes in use.
    pub fn nodes(&self) -> &[NodeSide] {
        &self.0.nodes
    }

    /// The node of that number; the last one where there are fewer.
    pub fn node(&self, number: u32) -> &NodeSide {
        self.0.node(number)
    }

    /// The node proxies that are installed.
    pub fn agents(&self) -> Option<&AgentSet> {
        self.0.agents.as_ref()
    }

    /// The scheduling class that generators have had.
    pub fn generator_class(&self) -> &'static str {
        if self.0.realtime_wanted && !self.0.realtime_refused.get() {
            GENERATOR_CLASS
        } else {
            "SCHED_OTHER"
        }
    }

    /// The image that pods run.
    pub fn image(&self) -> &str {
        &self.0.image
    }

    /// An arm's namespace, made if need be.
    pub fn space(&self, arm: &str, placement: Placement) -> Result<String> {
        self.0.space(arm, placement)
    }

    /// The run's pods in an arm's namespace.
    pub fn applications(&self, arm: &str) -> Result<Vec<Pod>> {
        let spaces = self.0.spaces.borrow();
        let Some(space) = spaces.get(arm) else {
            return Ok(Vec::new());
        };
        pods::list(&self.0.kube, space, &format!("{RUN}={}", self.0.run))
    }

    /// Removes all namespaces of the run and waits until they are gone.
    pub fn remove(&self) {
        self.0.remove(true);
    }
}

/// The nodes that are wanted, or the first two.
fn choose(kube: &Kube, settling: &Settling) -> Result<Vec<nodes::Candidate>> {
    let usable = nodes::candidates(kube)?;
    if settling.nodes.is_empty() {
        return Ok(usable.into_iter().take(2).collect());
    }
    settling
        .nodes
        .iter()
        .map(|name| {
            let found = usable.iter().find(|candidate| candidate.name == *name);
            found.cloned().ok_or_else(|| {
                let known = usable.iter().map(|candidate| candidate.name.as_str());
                ClusterError::unknown("ready node", name, known)
            })
        })
        .collect()
}

// === impl Settled ===

impl Settled {
    pub fn node(&self, number: u32) -> &NodeSide {
        let last = self.nodes.len().saturating_sub(1);
        &self.nodes[(number.saturating_sub(1) as usize).min(last)]
    }

    /// Whether there is a namespace for that arm, and which.
    pub fn space(&self, arm: &str, placement: Placement) -> Result<String> {
        if let Some(space) = self.spaces.borrow().get(arm) {
            return Ok(space.clone());
        }
        let space = self.make_space(arm, &[(MODE, placement.as_str())])?;
        if placement == Placement::Sidecar {
            self.await_bundle(&space)?;
        }
        Ok(space)
    }

    fn make_space(&self, arm: &str, labels: &[(&str, &str)]) -> Result<String> {
        let name = format!("duet-bench-{arm}-{}", self.run);
        let spaces: Api<Namespace> = Api::all(self.kube.client.clone());
        // Readers are privileged, injected redirections and generators have a capability.
        let labels = [
            labels,
            &[("pod-security.kubernetes.io/enforce", "privileged")],
        ]
        .concat();
        let made = objects::namespace(&name, &self.run, &self.owner, &labels);
        self.kube.ask(
            &format!("make namespace {name}"),
            spaces.create(&PostParams::default(), &made),
        )?;
        self.spaces
            .borrow_mut()
            .insert(arm.to_owned(), name.clone());
        Ok(name)
    }

    /// Pods that start before it is there wait for a kubelet's next attempt, which
    /// comes later each time.
    fn await_bundle(&self, space: &str) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.kube.client.clone(), space);
        let found = self.kube.look(BUNDLE, || {
            self.kube
                .ask("look for the trust bundle", maps.get_opt(TRUST_BUNDLE))
        })?;
        match found {
            Some(_) => Ok(()),
            None => Err(ClusterError::Unsupported(format!(
                "duet-control has put no ConfigMap {TRUST_BUNDLE} into {space} within {BUNDLE:?}: \
                 `kubectl -n duet-system logs deploy/duet-control`"
            ))),
        }
    }

    /// Some generator could not have its class.
    pub fn realtime_refused(&self) {
        self.realtime_refused.set(true);
    }

    /// A name for the next bed.
    pub fn next_bed(&self) -> String {
        let number = self.beds.get() + 1;
        self.beds.set(number);
        format!("b{number}")
    }

    /// What the proxies of a node are given together, in every arm.
    pub fn totals(&self, limits: &Limits) -> Given {
        match &self.agents {
            Some(agents) => agents.limits,
            None => Given {
                cpu_request_millis: None,
                cpu_millis: limits.proxy_total_cpu_millis.map(f64::from),
                memory: limits.proxy_total_memory.map(|bytes| bytes as f64),
            },
        }
    }

    /// Something is being deleted that the next bed must not meet.
    pub fn leaves(&self, space: &str, selector: String) {
        self.leaving.borrow_mut().push((space.to_owned(), selector));
    }

    /// Waits until all that is being deleted is gone.
    pub fn await_gone(&self) -> Result<()> {
        for (space, selector) in self.leaving.take() {
            let gone = self.kube.look(LEAVING, || {
                let left = pods::list(&self.kube, &space, &selector)?;
                Ok(left.is_empty().then_some(()))
            })?;
            if gone.is_none() {
                return Err(ClusterError::Unsupported(format!(
                    "pods of {space} with {selector} are still there {LEAVING:?} after their deletion"
                )));
            }
        }
        Ok(())
    }

    /// Removes the namespaces, and waits for that if asked to.
    fn remove(&self, wait: bool) {
        let spaces: Api<Namespace> = Api::all(self.kube.client.clone());
        let names: Vec<String> = std::mem::take(&mut *self.spaces.borrow_mut())
            .into_values()
            .collect();
        for name in &names {
            let deleted = self
                .kube
                .ask_anyway(&format!("remove namespace {name}"), async {
                    match spaces.delete(name, &DeleteParams::default()).await {
                        Err(error) if !is_absent(&error) => Err(error),
                        _ => Ok(()),
                    }
                });
            if let Err(error) = deleted {
                eprintln!(
                    "duet-bench: {error}; `duet-bench clean --cluster kube --context {}` tries again",
                    self.kube.context
                );
            }
        }
        super::registry::forget(&self.run);
        if !wait || names.is_empty() {
            return;
        }
        let gone = self.kube.look(REMOVED, || {
            for name in &names {
                let there = self
                    .kube
                    .ask("look for a namespace", spaces.get_opt(name))?;
                if there.is_some() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        // An interrupted run does not wait: the cluster goes on by itself.
        if matches!(gone, Ok(None)) {
            eprintln!(
                "duet-bench: namespaces {} are still being removed after {REMOVED:?}",
                names.join(", ")
            );
        }
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        self.remove(false);
    }
}

// === impl Site ===

impl Site for KubeSite {
    fn build(&self, wish: &Wish) -> Result<Box<dyn Cluster>> {
        let mut built = self.build_all(std::slice::from_ref(wish))?;
        built
            .pop()
            .ok_or_else(|| ClusterError::Unsupported("no bed was made".to_owned()))
    }

    fn build_all(&self, wishes: &[Wish]) -> Result<Vec<Box<dyn Cluster>>> {
        self.0.await_gone()?;
        let beds = wishes
            .iter()
            .map(|wish| KubeBed::begin(&self.0, wish))
            .collect::<Result<Vec<_>>>()?;
        for bed in &beds {
            bed.finish()?;
        }
        Ok(beds
            .into_iter()
            .map(|bed| Box::new(bed) as Box<dyn Cluster>)
            .collect())
    }

    fn machine(&self) -> Result<MachineCpu> {
        self.0
            .nodes
            .iter()
            .filter(|node| node.first_of_machine)
            .map(|node| node.reader().call(Ask::Machine, PROMPT))
            .sum()
    }

    fn cores(&self) -> f64 {
        self.0
            .nodes
            .iter()
            .filter(|node| node.first_of_machine)
            .map(|node| f64::from(node.hello.cores))
            .sum()
    }

    fn bpf_stats(&self) -> Result<Box<dyn Debug>> {
        let guard = BpfStatsOn(self.0.clone());
        for node in &self.0.nodes {
            let () = node.reader().call(Ask::BpfStats { on: true }, PROMPT)?;
        }
        Ok(Box::new(guard))
    }
}

/// Keeps the nodes' BPF statistics on.
#[derive(Debug)]
struct BpfStatsOn(Rc<Settled>);

impl Drop for BpfStatsOn {
    fn drop(&mut self) {
        for node in &self.0.nodes {
            // A reader that has gone has taken them with it.
            let _ = node
                .reader()
                .call::<()>(Ask::BpfStats { on: false }, PROMPT);
        }
    }
}
