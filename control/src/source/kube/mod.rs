//! Kubernetes as the source: its API server says who is where.
//!
//! In reading order: `pod`, `namespace`, `service`, `policy` are what is kept of the
//! objects; `watch` is how they arrive, `model` what the mesh is in consequence. Only pods
//! that are in the mesh become workloads. Changes that come together are told
//! together: a rollout is a few updates and not one for each pod.
//!
//! With the API server away the last state stays in force. Of nodes only the zone is
//! heard of, and nothing waits for it.

mod client;
mod complaint;
mod model;
mod namespace;
mod objects;
mod pod;
mod policy;
mod probes;
mod route;
mod service;
mod standing;
mod status;
mod traffic;
mod trouble;
mod watch;

pub use client::{Answer, Cluster, ClusterArgs, MIN_VERSION};
pub use route::CONTROLLER;
pub use standing::{ASK_INTERVAL, MAX_SKEW_SECONDS};
pub use status::StatusWriter;
pub use trouble::Trouble;

use super::{Rejected, Source};
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::state::MeshState;
use futures_util::StreamExt;
use model::Model;
use standing::Standing;
use status::Wanted;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;
use watch::{Heard, Kind, Progress, Watches};

/// Trust domain, unless another is given.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// What follows a change within this time is told with it...
const QUIET: Duration = Duration::from_millis(20);
/// ...but it is not kept back for longer than this.
const MAX_DELAY: Duration = Duration::from_millis(100);

/// Pauses between questions at an API server that has not answered yet.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);

pub struct KubeSource {
    cluster: Cluster,
    model: Model,
    standing: Option<Standing>,
    /// Kinds that have not been listed yet.
    awaited: BTreeSet<Kind>,
    /// `None` until the API server has answered.
    watches: Option<Watches>,
    asking: Option<AbortOnDropHandle<()>>,
    /// What was yielded last.
    last: Option<MeshState>,
    statuses: tokio::sync::watch::Sender<Wanted>,
}

// === impl KubeSource ===

impl KubeSource {
    pub fn new(cluster: Cluster, trust_domain: &str) -> Self {
        Self {
            standing: None,
            model: Model::new(trust_domain),
            awaited: Kind::ALL
                .into_iter()
                .filter(|kind| kind.is_needed())
                .collect(),
            watches: None,
            asking: None,
            last: None,
            statuses: tokio::sync::watch::Sender::default(),
            cluster,
        }
    }

    /// What writes the statuses of routes and policies that this source watches.
    ///
    /// # Panics
    /// When called twice with one registry.
    pub fn status_writer(&self, metrics: &Metrics) -> StatusWriter {
        let client = self.cluster.client.clone();
        StatusWriter::new(client, self.statuses.subscribe(), metrics)
    }

    /// Waits for the API server, however long it takes.
    async fn reach(&mut self) -> Result<(), Rejected> {
        let standing = self.standing();
        let mut pause = MIN_PAUSE;
        let answer = loop {
            match self.cluster.ask().await {
                Ok(answer) => break answer,
                Err(trouble) => standing.unanswered(&trouble),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        };
        let (url, version) = (&self.cluster.url, &answer.version);
        if answer.number.is_some_and(|number| number < MIN_VERSION) {
            let (major, minor) = MIN_VERSION;
            return Err(Rejected::new(format!(
                "the API server at {url} is Kubernetes {version}, without native sidecars \
                 (KEP-753): upgrade the cluster to {major}.{minor} or newer"
            )));
        }
        info!(url, version, "the API server answers");
        standing.answered(&answer);
        let asking = standing.keep_asking(self.cluster.clone());
        self.asking = Some(AbortOnDropHandle::new(tokio::spawn(asking)));
        self.watches = Some(watch::everything(&self.cluster.client));
        Ok(())
    }

    fn standing(&mut self) -> Standing {
        let standing = self.standing.get_or_insert_with(|| {
            Standing::new(&self.cluster.url, &Metrics::new(), Readiness::default())
        });
        standing.clone()
    }

    fn hear(&mut self, heard: Heard) {
        let standing = self.standing();
        match &heard {
            Heard::Failed(..) => {}
            heard if heard.is(Progress::Listed) => {
                standing.listed(heard.kind());
                self.awaited.remove(&heard.kind());
            }
            heard if heard.is(Progress::Listing) => {}
            heard => standing.heard(heard.kind()),
        }
        match heard {
            Heard::Namespace(change) => self.model.namespace(change),
            Heard::Node(change) => self.model.node(change),
            Heard::Pod(change) => self.model.pod(change),
            Heard::Service(change) => self.model.service(change),
            Heard::Slice(change) => self.model.slice(change),
            Heard::Policy(change) => self.model.policy(change),
            Heard::Route(kind, change) => self.model.route(kind, change),
            Heard::Failed(kind, trouble) => {
                // Without the definition there can be no policies.
                if kind.is_optional() && matches!(trouble, Trouble::Absent(_)) {
                    self.awaited.remove(&kind);
                }
                standing.failed(kind, trouble);
            }
        }
    }

    /// Takes in what comes until it is time to tell of it.
    async fn hear_on(&mut self) {
        let mut began = None;
        loop {
            let watches = self.watches.as_mut().expect("the API server was reached");
            let heard = match began {
                None => watches.next().await,
                Some(began) => {
                    let until = (Instant::now() + QUIET).min(began + MAX_DELAY);
                    // What is there already may not keep everybody waiting.
                    if until <= Instant::now() {
                        return;
                    }
                    match timeout_at(until, watches.next()).await {
                        Ok(heard) => heard,
                        Err(_) => return,
                    }
                }
            };
            self.hear(heard.expect("watches go on for ever"));
            if self.awaited.is_empty() {
                began.get_or_insert_with(Instant::now);
            }
        }
    }
}

impl Source for KubeSource {
    fn report_to(&mut self, metrics: &Metrics, readiness: &Readiness) {
        let standing = Standing::new(&self.cluster.url, metrics, readiness.clone());
        self.standing = Some(standing);
    }

    async fn next(&mut self) -> Result<MeshState, Rejected> {
        if self.watches.is_none() {
            self.reach().await?;
        }
        loop {
            self.hear_on().await;
            self.model.flush();
            let statuses = self.model.statuses();
            self.statuses.send_if_modified(|known| {
                let news = *known != statuses;
                *known = statuses;
                news
            });
            let state = self.model.flush();
            if self.last.as_ref().is_none_or(|last| !last.same_mesh(state)) {
                self.last = Some(state.clone());
                return Ok(state.clone());
            }
        }
    }
}
