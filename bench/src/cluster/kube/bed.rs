//! A bed: pods and services of one arm, and everything an experiment asks of them.

use super::generator::KubeGenerator;
use super::mesh::Given as Share;
use super::nodes::{NodeSide, PROMPT};
use super::objects::{self, BED, LOAD, PodWish, RUN};
use super::pods::{self, Observed, PROXY};
use super::session::{Post, Session};
use super::site::Settled;
use crate::accounting::{Certified, KeyScan};
use crate::attend::Reached;
use crate::attend::protocol::{Ask, Held, Limited, Page, Succession};
use crate::cluster::capture::CaptureReport;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::netns_site::{certified, workers_in};
use crate::cluster::proxy::{Life, Restart};
use crate::cluster::site::{Capture, Cluster, Generator, Given, Holding, Load, ProxyRef, Wish};
use crate::cluster::spec::{ParityRow, Placement, PodSpec};
use crate::results;
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

/// How long a bed's pods may take to be ready.
const READY: Duration = Duration::from_secs(120);
/// How long a server may take to be reached from everywhere, once all are ready.
const REACHED: Duration = Duration::from_secs(30);
/// From asking for a generator to its window: exec is not in it, but the API server is.
const LEAD: Duration = Duration::from_millis(250);
/// What a bed's generators request of a node together, thousandths of a core. It is
/// their weight among the bed's processes, and it is little, because the beds of all
/// arms stand at once.
const GENERATORS_MILLIS: u32 = 100;
/// What a node's proxies request together where no agent says, thousandths.
const PROXIES_MILLIS: f64 = 100.0;
/// The least memory a sidecar is given.
const SIDECAR_MEMORY_MIN: f64 = 33_554_432.0;

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const MIB: f64 = 1_048_576.0;

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

    /// The proxies of all nodes, as they are now.
    pub fn stationed(&self) -> Result<Vec<Stationed>> {
        match self.wish.placement {
            Placement::None => Ok(Vec::new()),
            Placement::Sidecar => self
                .observed()?
                .into_iter()
                .filter(|(placed, _)| placed.spec.meshed)
                .map(|(placed, pod)| {
                    let container = running(&pod, PROXY)?;
                    Ok(Stationed {
                        proxy: ProxyRef {
                            name: format!("sidecar:{}", placed.spec.name),
                            pods: vec![placed.spec.name.clone()],
                        },
                        node: placed.node,
                        pod,
                        container,
                        program: "duet-sidecar",
                    })
                })
                .collect(),
            Placement::Agent => {
                let agents = self.site.agents.as_ref().ok_or_else(|| {
                    ClusterError::Unsupported("no agents are installed".to_owned())
                })?;
                let pods = agents.pods(&self.site.kube)?;
                self.site
                    .nodes
                    .iter()
                    .map(|node| {
                        let pod = pods
                            .iter()
                            .find(|pod| pod.on_node() == node.name && !pod.is_leaving())
                            .cloned()
                            .ok_or_else(|| {
                                ClusterError::Unsupported(format!("{} has no agent", node.name))
                            })?;
                        Ok(Stationed {
                            proxy: ProxyRef {
                                name: format!("agent:{}", node.name),
                                pods: self.meshed_on(node.number),
                            },
                            node: node.number,
                            container: running(&pod, &agents.container)?,
                            pod,
                            program: "duet-agent",
                        })
                    })
                    .collect()
            }
        }
    }

    fn meshed_on(&self, node: u32) -> Vec<String> {
        self.pods
            .borrow()
            .iter()
            .filter(|pod| pod.node == node && pod.spec.meshed)
            .map(|pod| pod.spec.name.clone())
            .collect()
    }

    fn stationed_on(&self, node: u32) -> Result<Vec<Stationed>> {
        let mut all = self.stationed()?;
        all.retain(|one| one.node == node);
        Ok(all)
    }

    pub fn stationed_as(&self, proxy: &str) -> Result<Stationed> {
        let all = self.stationed()?;
        all.iter()
            .find(|one| one.proxy.name == proxy)
            .cloned()
            .ok_or_else(|| {
                ClusterError::unknown(
                    "proxy",
                    proxy,
                    all.iter().map(|one| one.proxy.name.as_str()),
                )
            })
    }

    fn page(&self, of: &Stationed, port: u16, path: &str) -> Result<Page> {
        self.node(of.node).reader().call(
            Ask::Get {
                container: of.container.clone(),
                port,
                path: path.to_owned(),
            },
            PROMPT,
        )
    }

    fn containers_on(&self, node: u32) -> Result<Vec<String>> {
        let all = self.stationed_on(node)?;
        Ok(all.into_iter().map(|one| one.container).collect())
    }

    /// Workloads that a proxy's successor must serve to count as ready: an agent's
    /// pods. A sidecar says so itself.
    fn awaited(&self, proxy: &Stationed) -> Vec<String> {
        if self.wish.placement != Placement::Agent {
            return Vec::new();
        }
        proxy
            .proxy
            .pods
            .iter()
            .map(|pod| format!("{}/{}", self.space, self.named(pod)))
            .collect()
    }

    fn death(&self, proxy: &str) -> Result<Death> {
        self.deaths
            .borrow()
            .get(proxy)
            .copied()
            .ok_or_else(|| ClusterError::Unsupported(format!("{proxy} was not killed")))
    }

    fn succession(&self, proxy: &str, within: Duration) -> Result<Succession> {
        let death = self.death(proxy)?;
        self.node(death.node).reader().call(
            Ask::Lives {
                kill: death.kill,
                within_ms: within.as_millis() as u64,
            },
            within + PROMPT,
        )
    }

    /// Takes a pod away and waits until it is gone.
    fn take_away(&self, pod: &str) -> Result<Placed> {
        let placed = self.placed(pod)?;
        let kube = &self.site.kube;
        let api: Api<Pod> = Api::namespaced(kube.client.clone(), &self.space);
        kube.ask(
            &format!("remove pod {}/{}", self.space, placed.name),
            api.delete(&placed.name, &DeleteParams::default()),
        )?;
        self.sessions.borrow_mut().remove(pod);
        self.pods
            .borrow_mut()
            .retain(|other| other.name != placed.name);
        let gone = kube.look(READY, || {
            let there = kube.ask("look for a pod", api.get_opt(&placed.name))?;
            Ok(there.is_none().then_some(()))
        })?;
        match gone {
            Some(()) => Ok(placed),
            None => Err(ClusterError::Pod {
                pod: format!("{}/{}", self.space, placed.name),
                problem: format!("it is still there {READY:?} after its deletion"),
            }),
        }
    }

    fn replace_agent(&self, node: u32) -> Result<()> {
        let agents = self
            .site
            .agents
            .as_ref()
            .ok_or_else(|| ClusterError::Unsupported("no agents are installed".to_owned()))?;
        agents.replace_on(&self.site.kube, &self.node(node).name)
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

    /// Puts a fresh proxy where one was killed: a kubelet waits ten seconds before it
    /// restarts a container for the second time, and longer each time after.
    fn renew(&self, proxy: &str) -> Result<()> {
        let Some(death) = self.deaths.borrow_mut().remove(proxy) else {
            return Ok(());
        };
        let () = self
            .node(death.node)
            .reader()
            .call(Ask::Release { kill: death.kill }, PROMPT)?;
        match proxy.strip_prefix("sidecar:") {
            Some(pod) => {
                let placed = self.take_away(pod)?;
                self.make_pods(vec![placed.spec])?;
            }
            None => self.replace_agent(death.node)?,
        }
        self.await_complete()
    }
}

/// The id of a container that runs.
fn running(pod: &Pod, container: &str) -> Result<String> {
    pod.container_id(container)
        .map(str::to_owned)
        .ok_or_else(|| ClusterError::Pod {
            pod: pod.called().to_owned(),
            problem: format!("it has no container {container} that runs: is the injector at work?"),
        })
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

// === impl Cluster ===

impl Cluster for KubeBed {
    fn address(&self, service: &str) -> Result<IpAddr> {
        let known = &self.0.addresses;
        known.get(service).copied().ok_or_else(|| {
            ClusterError::unknown("service", service, known.keys().map(String::as_str))
        })
    }

    fn nodes(&self) -> u32 {
        self.0.site.nodes.len() as u32
    }

    fn lead(&self) -> Duration {
        LEAD
    }

    fn generate(&self, load: &Load) -> Result<Box<dyn Generator>> {
        Ok(Box::new(KubeGenerator::start(&self.0, load)?))
    }

    fn proxies(&self, node: u32) -> Result<Vec<ProxyRef>> {
        let all = self.0.stationed_on(node)?;
        Ok(all.into_iter().map(|one| one.proxy).collect())
    }

    fn proxy_of(&self, pod: &str) -> Result<ProxyRef> {
        self.0.placed(pod)?;
        self.0
            .stationed()?
            .into_iter()
            .map(|one| one.proxy)
            .find(|proxy| proxy.pods.iter().any(|served| served == pod))
            .ok_or_else(|| ClusterError::Unsupported(format!("pod {pod} has no proxy")))
    }

    fn service_account(&self, pod: &str) -> Result<String> {
        let placed = self.0.placed(pod)?;
        Ok(self.0.named(&placed.spec.service_account))
    }

    fn add_pods(&self, pods: Vec<PodSpec>) -> Result<()> {
        if pods.is_empty() {
            return Ok(());
        }
        self.0.make_pods(pods)?;
        self.0.await_ready()?;
        self.0.prefer_generators()
    }

    fn remove_pod(&self, pod: &str) -> Result<()> {
        self.0.take_away(pod).map(drop)
    }

    fn ran(&self, node: u32) -> Result<Duration> {
        let containers = self.0.containers_on(node)?;
        let reader = self.0.node(node).reader();
        Ok(Duration::from_nanos(
            reader.call(Ask::Ran { containers }, PROMPT)?,
        ))
    }

    fn holdings(&self, node: u32) -> Result<Vec<Holding>> {
        let containers = self.0.containers_on(node)?;
        let reader = self.0.node(node).reader();
        let held: Vec<Held> = reader.call(Ask::Holdings { containers }, PROMPT)?;
        Ok(held
            .into_iter()
            .map(|one| Holding {
                rollup: one.rollup,
                open_files: one.open_files,
                charged: one.charged,
            })
            .collect())
    }

    fn given(&self, node: u32) -> Result<Given> {
        let proxies = self.0.stationed_on(node)?;
        let shares: Vec<Share> = proxies
            .iter()
            .map(|one| match &self.0.site.agents {
                Some(agents) if self.0.wish.placement == Placement::Agent => one
                    .pod
                    .container(&agents.container)
                    .map(Share::of)
                    .unwrap_or_default(),
                _ => Share::of_sidecar(&one.pod).unwrap_or_default(),
            })
            .collect();
        let workers = proxies.iter().map(|one| {
            let page = self.0.page(one, METRICS, "/metrics").ok()?;
            workers_in(&page.body)
        });
        Ok(Given {
            proxies: proxies.len() as u32,
            workers: workers.sum(),
            limits: in_numbers(&shares),
            rows: rows(&shares),
        })
    }

    fn kill(&self, proxy: &str, restart: Restart) -> Result<u64> {
        let one = self.0.stationed_as(proxy)?;
        let node = self.0.node(one.node);
        let asked = node.reader().ask::<u64>(Ask::Kill {
            workloads: self.0.awaited(&one),
            container: one.container,
            program: one.program.to_owned(),
            hold: restart == Restart::Never,
        })?;
        let death = Death {
            node: one.node,
            kill: asked.id,
        };
        let killed = asked.wait(&self.0.site.kube, PROMPT)?;
        self.0.deaths.borrow_mut().insert(proxy.to_owned(), death);
        Ok(node.clock(&self.0.site.kube)?.ours(killed))
    }

    fn starve(&self, proxy: &str, headroom: u64) -> Result<()> {
        let one = self.0.stationed_as(proxy)?;
        let asked = self.0.node(one.node).reader().ask::<Limited>(Ask::Starve {
            workloads: self.0.awaited(&one),
            container: one.container,
            program: one.program.to_owned(),
            headroom,
        })?;
        let death = Death {
            node: one.node,
            kill: asked.id,
        };
        asked.wait(&self.0.site.kube, PROMPT)?;
        self.0.deaths.borrow_mut().insert(proxy.to_owned(), death);
        Ok(())
    }

    fn await_death(&self, proxy: &str, within: Duration) -> Result<bool> {
        let death = self.0.death(proxy)?;
        self.0.node(death.node).reader().call(
            Ask::Dead {
                kill: death.kill,
                within_ms: within.as_millis() as u64,
            },
            within + PROMPT,
        )
    }

    fn revive(&self, proxy: &str) -> Result<()> {
        self.0.renew(proxy)
    }

    fn await_ready(&self, proxy: &str, within: Duration) -> Result<()> {
        match self.0.succession(proxy, within)?.missing {
            None => Ok(()),
            Some(missing) => Err(ClusterError::Pod {
                pod: proxy.to_owned(),
                problem: format!("not ready {within:?} after it was killed: {missing}"),
            }),
        }
    }

    fn lives(&self, proxy: &str) -> Result<Vec<Life>> {
        let death = self.0.death(proxy)?;
        let clock = self.0.node(death.node).clock(&self.0.site.kube)?;
        let lives = self.0.succession(proxy, Duration::ZERO)?.lives;
        Ok(lives
            .into_iter()
            .map(|life| Life {
                pid: life.pid,
                spawned: clock.ours(life.spawned),
                ready: life.ready.map(|at| clock.ours(at)),
                killed: life.killed.map(|at| clock.ours(at)),
                noticed: life.noticed.map(|at| clock.ours(at)),
            })
            .collect())
    }

    fn renew_agent(&self, node: u32) -> Result<()> {
        if self.0.wish.placement != Placement::Agent {
            return Ok(());
        }
        self.0.replace_agent(node)?;
        self.0.await_complete()
    }

    fn forget_death(&self, proxy: &str) -> Result<()> {
        self.0.renew(proxy)
    }

    fn capture(&self, node: u32, markers: &[&[u8]]) -> Result<Box<dyn Capture>> {
        let markers = markers
            .iter()
            .map(|marker| String::from_utf8_lossy(marker).into_owned())
            .collect();
        let asked = self
            .0
            .node(node)
            .reader()
            .ask::<()>(Ask::Capture { markers })?;
        let capture = asked.id;
        asked.wait(&self.0.site.kube, PROMPT)?;
        Ok(Box::new(KubeCapture {
            bed: self.0.clone(),
            node,
            capture,
        }))
    }

    fn identities(&self, proxy: &str) -> Result<Vec<Certified>> {
        let one = self.0.stationed_as(proxy)?;
        certified(proxy, &self.0.page(&one, ADMIN, "/config")?.body)
    }

    fn scan(&self, proxy: &str, known: &[Certified], limit: Duration) -> Result<KeyScan> {
        let one = self.0.stationed_as(proxy)?;
        self.0.node(one.node).reader().call(
            Ask::Scan {
                container: one.container,
                known: known.to_vec(),
                limit_ms: limit.as_millis() as u64,
            },
            limit + PROMPT,
        )
    }

    fn scan_control(&self, known: &[Certified], limit: Duration) -> Result<bool> {
        self.0.node(1).reader().call(
            Ask::ScanControl {
                known: known.to_vec(),
                limit_ms: limit.as_millis() as u64,
            },
            limit + PROMPT,
        )
    }
}

struct KubeCapture {
    bed: Rc<Standing>,
    node: u32,
    capture: u64,
}

impl Capture for KubeCapture {
    fn stop(self: Box<Self>) -> Result<CaptureReport> {
        self.bed.node(self.node).reader().call(
            Ask::EndCapture {
                capture: self.capture,
            },
            PROMPT,
        )
    }
}

fn in_numbers(shares: &[Share]) -> Option<results::Limits> {
    let cpu: Vec<f64> = shares.iter().map(|s| s.cpu_millis).collect::<Option<_>>()?;
    let memory: Vec<f64> = shares.iter().map(|s| s.memory).collect::<Option<_>>()?;
    let proxies = shares.len();
    (proxies > 0).then(|| results::Limits {
        proxies: proxies as u32,
        cpu_millicores_each: cpu.iter().sum::<f64>() / proxies as f64,
        cpu_millicores_sum: cpu.iter().sum(),
        memory_mib_each: memory.iter().sum::<f64>() / proxies as f64 / MIB,
        memory_mib_sum: memory.iter().sum::<f64>() / MIB,
    })
}

/// Sums as the containers' own specifications have them.
fn rows(shares: &[Share]) -> Vec<ParityRow> {
    let row = |label, of: fn(&Share) -> Option<f64>, shown: fn(f64) -> String| {
        let each: Option<Vec<f64>> = shares.iter().map(of).collect();
        let said = |value: Option<f64>| value.map_or("no limit".to_owned(), shown);
        ParityRow {
            label,
            per_proxy: said(each.as_ref().and_then(|all| all.first().copied())),
            proxies: shares.len() as u32,
            sum: said(each.map(|all| all.iter().sum())),
        }
    };
    vec![
        row(
            "proxy CPU request per node",
            |share| share.cpu_request_millis,
            |millis| format!("{millis:.0}m"),
        ),
        row(
            "proxy CPU limit per node",
            |share| share.cpu_millis,
            |millis| format!("{millis:.0}m"),
        ),
        row(
            "proxy memory limit per node",
            |share| share.memory,
            |bytes| format!("{:.1} MiB", bytes / MIB),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_without_a_limit_makes_the_sum_unlimited() {
        let limited = Share {
            cpu_request_millis: Some(25.0),
            cpu_millis: Some(250.0),
            memory: Some(64.0 * MIB),
        };
        let free = Share {
            memory: None,
            ..limited
        };
        let table = rows(&[limited, free]);
        assert_eq!(table[0].sum, "50m");
        assert_eq!(table[1].sum, "500m");
        assert_eq!(table[2].sum, "no limit");
        assert_eq!(in_numbers(&[limited, free]), None);
        assert_eq!(
            in_numbers(&[limited; 4]).expect("limits").memory_mib_sum,
            256.0
        );
    }
}
