//! A bed: pods and services of one arm, from their making to their end.
//!
//! Its proxies are found in `proxies`; what an experiment asks of it is in `asked`.

use super::nodes::{NodeSide, PROMPT};
use super::objects::{self, BED, LOAD, PodWish, RUN};
use super::pods::{self, Observed};
use super::session::{Post, Session};
use super::site::Settled;
use crate::attend::Reached;
use crate::attend::protocol::Ask;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::site::{ProxyRef, Wish};
use crate::cluster::spec::{Placement, PodSpec};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

mod asked;
mod proxies;

/// How long a bed's pods may take to be ready.
const READY: Duration = Duration::from_secs(120);
/// How long a server may take to be reached from everywhere, once all are ready.
const REACHED: Duration = Duration::from_secs(30);
/// What a bed's generators request of a node together, thousandths of a core. It is
/// their weight among the bed's processes, and it is little, because the beds of all
/// arms stand at once.
const GENERATORS_MILLIS: u32 = 100;
/// What a node's proxies request together where no agent says, thousandths.
const PROXIES_MILLIS: f64 = 100.0;
/// The least memory a sidecar is given.
const SIDECAR_MEMORY_MIN: f64 = 33_554_432.0;

/// A bed that stands.
#[derive(Debug)]
pub struct KubeBed(Rc<Standing>);

/// What a bed is made of.
#[derive(Debug)]
pub struct Standing {
    pub site: Rc<Settled>,
    /// The arm's namespace.
    pub space: String,
    /// The bed's own label.
    pub label: String,
    wish: Wish,
    pods: RefCell<Vec<Placed>>,
    addresses: BTreeMap<String, IpAddr>,
    sessions: RefCell<BTreeMap<String, Rc<Session>>>,
    deaths: RefCell<BTreeMap<String, Death>>,
}

/// A pod of a bed.
#[derive(Clone, Debug)]
pub struct Placed {
    pub spec: PodSpec,
    /// In Kubernetes.
    pub name: String,
    /// The number of its node.
    pub node: u32,
}

/// A proxy, and where its process is.
#[derive(Clone, Debug)]
pub struct Stationed {
    pub proxy: ProxyRef,
    pub node: u32,
    pub pod: Pod,
    pub container: String,
    program: &'static str,
}

/// A proxy that was killed.
#[derive(Clone, Copy, Debug)]
struct Death {
    node: u32,
    /// The question that killed it.
    kill: u64,
}

impl KubeBed {
    /// Asks for everything that the bed consists of.
    pub fn begin(site: &Rc<Settled>, wish: &Wish) -> Result<Self> {
        let space = site.space(&wish.name, wish.placement)?;
        let mut standing = Standing {
            site: site.clone(),
            space,
            label: site.next_bed(),
            wish: wish.clone(),
            pods: RefCell::default(),
            addresses: BTreeMap::new(),
            sessions: RefCell::default(),
            deaths: RefCell::default(),
        };
        standing.addresses = standing.make_services()?;
        standing.make_pods(wish.pods.clone())?;
        Ok(Self(Rc::new(standing)))
    }

    /// Waits until all of it is there.
    pub fn finish(&self) -> Result<()> {
        self.0.await_complete()
    }
}

// === impl Standing ===

impl Standing {
    fn labels(&self) -> serde_json::Value {
        objects::labels(&self.site.run, &self.label)
    }

    /// Chooses everything of this bed.
    pub fn selector(&self) -> String {
        format!("{RUN}={},{BED}={}", self.site.run, self.label)
    }

    /// What a thing of this bed is called in Kubernetes.
    pub fn named(&self, name: &str) -> String {
        format!("{name}-{}", self.label)
    }

    fn make_services(&self) -> Result<BTreeMap<String, IpAddr>> {
        let api: Api<Service> = Api::namespaced(self.site.kube.client.clone(), &self.space);
        let labels = self.labels();
        let made = self.site.kube.ask(
            &format!("make services in {}", self.space),
            try_join_all(self.wish.services.iter().map(|spec| {
                let service = objects::service(spec, &self.named(&spec.name), &self.label, &labels);
                let api = api.clone();
                async move { api.create(&PostParams::default(), &service).await }
            })),
        )?;
        self.wish
            .services
            .iter()
            .zip(made)
            .map(|(spec, service)| {
                let address = service
                    .spec
                    .and_then(|spec| spec.cluster_ip?.parse::<IpAddr>().ok());
                address
                    .map(|address| (spec.name.clone(), address))
                    .ok_or_else(|| {
                        ClusterError::Unsupported(format!(
                            "service {} has no virtual address",
                            spec.name
                        ))
                    })
            })
            .collect()
    }

    /// Asks for pods, each with a service account of its own.
    fn make_pods(&self, specs: Vec<PodSpec>) -> Result<()> {
        let kube = &self.site.kube;
        let placed: Vec<Placed> = specs
            .into_iter()
            .map(|spec| Placed {
                name: self.named(&spec.name),
                node: self.site.node(spec.node).number,
                spec,
            })
            .collect();
        let all: Vec<Placed> = self.pods.borrow().iter().chain(&placed).cloned().collect();
        let labels = self.labels();
        let accounts: BTreeSet<&str> = placed
            .iter()
            .map(|pod| pod.spec.service_account.as_str())
            .collect();
        let api: Api<ServiceAccount> = Api::namespaced(kube.client.clone(), &self.space);
        kube.ask(
            &format!("make service accounts in {}", self.space),
            try_join_all(accounts.into_iter().map(|account| {
                let made = objects::service_account(&self.named(account), &labels);
                let api = api.clone();
                async move {
                    match api.create(&PostParams::default(), &made).await {
                        // The account of a pod that was removed and comes back.
                        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                        Err(error) => Err(error),
                        Ok(_) => Ok(()),
                    }
                }
            })),
        )?;
        let pods: Vec<Pod> = placed
            .iter()
            .map(|pod| objects::pod(&self.pod_wish(pod, &all, &labels)))
            .collect();
        // Known before they are there, so that they are removed whatever happens.
        self.pods.borrow_mut().extend(placed);
        let api: Api<Pod> = Api::namespaced(kube.client.clone(), &self.space);
        kube.ask(
            &format!("make pods in {}", self.space),
            try_join_all(pods.iter().map(|pod| {
                let api = api.clone();
                async move { api.create(&PostParams::default(), pod).await }
            })),
        )?;
        Ok(())
    }

    fn pod_wish<'a>(
        &'a self,
        pod: &'a Placed,
        all: &[Placed],
        labels: &serde_json::Value,
    ) -> PodWish<'a> {
        let serves = self
            .wish
            .servers
            .iter()
            .find(|(name, _)| *name == pod.spec.name)
            .map(|(_, port)| *port);
        let generators = all
            .iter()
            .filter(|other| other.node == pod.node)
            .filter(|other| !self.wish.servers.iter().any(|(s, _)| *s == other.spec.name))
            .count()
            .max(1) as u32;
        let meshed = all
            .iter()
            .filter(|other| other.node == pod.node && other.spec.meshed)
            .count()
            .max(1);
        PodWish {
            spec: &pod.spec,
            name: pod.name.clone(),
            account: self.named(&pod.spec.service_account),
            node: &self.site.node(pod.node).name,
            image: &self.site.image,
            labels: labels.clone(),
            serves,
            app_cpu_millis: self.wish.limits.app_cpu_millis.filter(|_| serves.is_some()),
            load_cpu_millis: (GENERATORS_MILLIS / generators).max(10),
            realtime: self.site.realtime_wanted,
            annotations: self.annotations(pod, meshed),
        }
    }

    /// How a sidecar is to be, if there is to be one: its share of what a node's
    /// agent may use.
    fn annotations(&self, pod: &Placed, sharers: usize) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        if self.wish.placement != Placement::Sidecar || !pod.spec.meshed {
            return annotations;
        }
        let mut set = |key: &str, value: String| {
            annotations.insert(format!("duet.dev/{key}"), value);
        };
        let totals = self.site.totals(&self.wish.limits);
        let sharers = sharers as f64;
        let weight = totals.cpu_request_millis.unwrap_or(PROXIES_MILLIS) / sharers;
        set("proxy-cpu-request", format!("{}m", weight.floor().max(1.0)));
        set("proxy-memory-request", "16Mi".to_owned());
        if let Some(cpu) = totals.cpu_millis {
            set("proxy-cpu-limit", format!("{}m", (cpu / sharers).floor()));
        }
        if let Some(memory) = totals.memory {
            let share = (memory / sharers).max(SIDECAR_MEMORY_MIN);
            set("proxy-memory-limit", format!("{}", share.floor()));
        }
        if self.wish.classic {
            annotations.insert(objects::SIDECAR_KIND.to_owned(), "classic".to_owned());
        }
        annotations
    }

    fn await_ready(&self) -> Result<()> {
        let expected = self.pods.borrow().len();
        pods::await_all(
            &self.site.kube,
            &self.space,
            &self.selector(),
            expected,
            READY,
            Observed::is_ready,
        )
        .map(drop)
    }

    /// Endpoints and routes spread after pods are ready; an experiment begins once
    /// every server has answered every client.
    pub fn await_reached(&self) -> Result<()> {
        let clients: Vec<String> = self
            .clients()
            .into_iter()
            .map(|pod| pod.spec.name)
            .collect();
        let mut asked = Vec::new();
        for client in &clients {
            let session = self.session(client)?;
            for service in &self.wish.services {
                let Some(port) = service.ports.first() else {
                    continue;
                };
                let address = std::net::SocketAddr::new(self.addresses[&service.name], port.port);
                let reached = session.ask::<Reached>(Ask::Reach {
                    url: format!("http://{address}/"),
                    within_ms: REACHED.as_millis() as u64,
                })?;
                asked.push((client, &service.name, reached));
            }
        }
        for (client, service, reached) in asked {
            let reached = reached.wait(&self.site.kube, REACHED + PROMPT)?;
            if reached.success_ns.is_none() {
                return Err(ClusterError::Pod {
                    pod: format!("{}/{}", self.space, self.named(client)),
                    problem: format!(
                        "service {service} did not answer within {REACHED:?}: {}",
                        reached.first_failure.unwrap_or_default()
                    ),
                });
            }
        }
        Ok(())
    }

    /// The attendant in a pod.
    pub fn session(&self, pod: &str) -> Result<Rc<Session>> {
        let placed = self.placed(pod)?;
        let session = self
            .sessions
            .borrow_mut()
            .entry(pod.to_owned())
            .or_insert_with(|| {
                Rc::new(Session::new(
                    &self.site.kube,
                    Post {
                        namespace: self.space.clone(),
                        pod: placed.name.clone(),
                        container: LOAD.to_owned(),
                        arguments: Vec::new(),
                    },
                ))
            })
            .clone();
        Ok(session)
    }

    /// A pod of the bed.
    pub fn placed(&self, pod: &str) -> Result<Placed> {
        let pods = self.pods.borrow();
        pods.iter()
            .find(|placed| placed.spec.name == pod)
            .cloned()
            .ok_or_else(|| {
                let known = pods.iter().map(|placed| placed.spec.name.as_str());
                ClusterError::unknown("pod", pod, known)
            })
    }

    /// Where the proxies stand.
    pub fn placement(&self) -> Placement {
        self.wish.placement
    }

    pub fn node(&self, number: u32) -> &NodeSide {
        self.site.node(number)
    }

    /// The pods as Kubernetes has them now, in the bed's order.
    pub fn observed(&self) -> Result<Vec<(Placed, Pod)>> {
        let listed = pods::list(&self.site.kube, &self.space, &self.selector())?;
        self.pods
            .borrow()
            .iter()
            .map(|placed| {
                let pod = listed.iter().find(|pod| pod.called() == placed.name);
                pod.map(|pod| (placed.clone(), pod.clone()))
                    .ok_or_else(|| ClusterError::Pod {
                        pod: format!("{}/{}", self.space, placed.name),
                        problem: "somebody has removed it".to_owned(),
                    })
            })
            .collect()
    }

    /// Asks for a pod's end. With how it was then.
    fn end(&self, pod: &str) -> Result<(Placed, Option<Pod>)> {
        let placed = self.placed(pod)?;
        let kube = &self.site.kube;
        let api: Api<Pod> = Api::namespaced(kube.client.clone(), &self.space);
        let last = kube.ask(
            &format!("remove pod {}/{}", self.space, placed.name),
            api.delete(&placed.name, &DeleteParams::default()),
        )?;
        self.sessions.borrow_mut().remove(pod);
        self.pods
            .borrow_mut()
            .retain(|other| other.name != placed.name);
        Ok((placed, last.left()))
    }

    /// Waits until all pods that were ended are gone.
    fn await_ended(&self) -> Result<()> {
        let mut left = Vec::new();
        let gone = self.site.kube.look(READY, || {
            let listed = pods::list(&self.site.kube, &self.space, &self.selector())?;
            let kept = self.pods.borrow();
            left = listed.iter().map(|pod| pod.called().to_owned()).collect();
            left.retain(|name| kept.iter().all(|placed| placed.name != *name));
            Ok(left.is_empty().then_some(()))
        })?;
        gone.ok_or_else(|| ClusterError::Pod {
            pod: format!("{}/{}", self.space, left.join(", ")),
            problem: format!("still there {READY:?} after the deletion"),
        })
    }

    /// Takes a pod away and waits until it is gone.
    fn take_away(&self, pod: &str) -> Result<Placed> {
        let (placed, _) = self.end(pod)?;
        self.await_ended()?;
        Ok(placed)
    }

    /// Waits until all of it is there and of use.
    fn await_complete(&self) -> Result<()> {
        self.await_ready()?;
        self.prefer_generators()?;
        self.await_reached()
    }

    /// Pods in which load is generated.
    fn clients(&self) -> Vec<Placed> {
        self.pods
            .borrow()
            .iter()
            .filter(|pod| {
                !self
                    .wish
                    .servers
                    .iter()
                    .any(|(name, _)| *name == pod.spec.name)
            })
            .cloned()
            .collect()
    }

    /// Starts all attendants that are not there, at once: each takes a while.
    fn open_sessions(&self) -> Result<()> {
        let sessions = self
            .clients()
            .iter()
            .map(|client| self.session(&client.spec.name))
            .collect::<Result<Vec<_>>>()?;
        thread::scope(|scope| {
            let opening: Vec<_> = sessions
                .iter()
                .map(|session| {
                    let session: &Session = session;
                    scope.spawn(move || session.open())
                })
                .collect();
            opening.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(ClusterError::Unsupported(
                        "starting an attendant panicked".to_owned(),
                    ))
                })
            })
        })
    }

    /// Finds out whether generators can have a real-time class, after clearing away
    /// what stands between. Their containers were given the right to it.
    fn prefer_generators(&self) -> Result<()> {
        if !self.site.realtime_wanted {
            return Ok(());
        }
        let kube = &self.site.kube;
        self.open_sessions()?;
        let observed = self.observed()?;
        let mut asked = Vec::new();
        for node in &self.site.nodes {
            let containers: Vec<String> = observed
                .iter()
                .filter(|(placed, _)| placed.node == node.number)
                .filter_map(|(_, pod)| pod.container_id(LOAD).map(str::to_owned))
                .collect();
            if !containers.is_empty() {
                let () = node.reader().call(Ask::Unbind { containers }, PROMPT)?;
            }
        }
        for client in self.clients() {
            let session = self.session(&client.spec.name)?;
            asked.push(session.ask::<bool>(Ask::Realtime)?);
        }
        for answer in asked {
            if !answer.wait(kube, PROMPT)? {
                self.site.realtime_refused();
            }
        }
        Ok(())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.sessions.borrow_mut().clear();
        let kube = &self.site.kube;
        let selector = self.selector();
        let chosen = ListParams::default().labels(&selector);
        let removed = kube.ask_anyway(&format!("remove a bed of {}", self.space), async {
            let parameters = DeleteParams::default().grace_period(1);
            let pods: Api<Pod> = Api::namespaced(kube.client.clone(), &self.space);
            pods.delete_collection(&parameters, &chosen).await?;
            let plain = DeleteParams::default();
            let services: Api<Service> = Api::namespaced(kube.client.clone(), &self.space);
            services.delete_collection(&plain, &chosen).await?;
            let accounts: Api<ServiceAccount> = Api::namespaced(kube.client.clone(), &self.space);
            accounts.delete_collection(&plain, &chosen).await?;
            Ok(())
        });
        match removed {
            Ok(()) => self.site.leaves(&self.space, selector),
            // The namespace takes them along.
            Err(error) => eprintln!("duet-bench: {error}"),
        }
    }
}
