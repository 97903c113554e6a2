//! Where experiments take place: one live cluster per arm, the same pods and
//! services in each.
//!
//! All arms' beds of a shape live at the same time and idle while another one is
//! measured: so an arm's place in a block costs it no cold start, and the
//! machine is in the same state for each.

use super::{Failure, Lab};
use crate::accounting::BpfPrograms;
use crate::arm::Arm;
use crate::cluster::{
    BPFFS, Endpoint, Limits, NetnsCluster, ParityRow, Part, PodSpec, ProcessHandle, Proxy,
    ServiceSpec, Spawn,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Which pods there are and what they may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A client and a server on node 1, another server on node 2; ample limits.
    Pair,
    /// A victim and an aggressor, each a client and a server, on node 1; tight
    /// limits.
    Neighbours,
    /// This many clients on node 1, one server on node 2.
    Fleet(u32),
    /// A client on node 1, a server on node 2, and two such outside the mesh.
    Wire,
}

/// The port behind every service.
const APP_PORT: u16 = 8080;
/// How long an application takes to listen, at most.
const APP_START: Duration = Duration::from_secs(10);

/// Cores of all proxies of a node in shapes that are not about scarcity.
const AMPLE_MILLIS: u32 = 2000;
/// Cores of all proxies of a node where neighbours compete: a quarter of a core
/// for each of four pods, little enough that the machine itself does not become
/// the bottleneck first.
const SCARCE_MILLIS: u32 = 1000;
/// Cores of each application where neighbours compete.
const SCARCE_APP_MILLIS: u32 = 400;
/// Memory of all proxies of a node.
const PROXY_MEMORY: u64 = 1 << 30;

impl Shape {
    /// Limits, the same for every arm.
    pub fn limits(self) -> Limits {
        let (proxies, app) = match self {
            Self::Neighbours => (SCARCE_MILLIS, Some(SCARCE_APP_MILLIS)),
            _ => (AMPLE_MILLIS, None),
        };
        Limits {
            app_cpu_millis: app,
            app_memory: None,
            proxy_total_cpu_millis: Some(proxies),
            proxy_total_memory: Some(PROXY_MEMORY),
        }
    }

    /// Meshed pods on node 1.
    pub fn meshed_pods(self) -> u32 {
        match self {
            Self::Pair => 2,
            Self::Neighbours => 4,
            Self::Fleet(pods) => pods,
            Self::Wire => 1,
        }
    }

    /// For notes and rows.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pair => "latency and efficiency",
            Self::Neighbours => "noisy neighbour",
            Self::Fleet(_) => "faults and keys",
            Self::Wire => "plaintext",
        }
    }

    fn pods(self) -> Vec<PodSpec> {
        let pod = |name: &str, node: u32| PodSpec::new(name).node(node).service_account(name);
        match self {
            Self::Pair => vec![pod("client", 1), pod("near", 1), pod("far", 2)],
            Self::Neighbours => vec![
                pod("victim-client", 1),
                pod("victim", 1),
                pod("aggressor-client", 1),
                pod("aggressor", 1),
            ],
            Self::Fleet(pods) => (0..pods)
                .map(fleet_pod)
                .chain([pod("backend", 2)])
                .collect(),
            Self::Wire => vec![
                pod("client", 1),
                pod("server", 2),
                pod("plain-client", 1).meshed(false),
                pod("plain-server", 2).meshed(false),
            ],
        }
    }

    /// Pods with an application, each behind a service of the same name.
    fn servers(self) -> &'static [&'static str] {
        match self {
            Self::Pair => &["near", "far"],
            Self::Neighbours => &["victim", "aggressor"],
            Self::Fleet(_) => &["backend"],
            Self::Wire => &["server", "plain-server"],
        }
    }
}

/// The `n`th client of a fleet, with an identity of its own.
pub fn fleet_pod(n: u32) -> PodSpec {
    let name = fleet_name(n);
    PodSpec::new(name.clone()).node(1).service_account(name)
}

/// Its name.
pub fn fleet_name(n: u32) -> String {
    format!("app-{n}")
}

/// A live cluster of one arm.
pub struct Bed {
    /// Whose.
    pub arm: Arm,
    /// The cluster.
    pub cluster: NetnsCluster,
    /// How long it took to stand.
    pub took: Duration,
    // Dropped before the cluster, which would end them anyway.
    _apps: Vec<ProcessHandle>,
}

impl Bed {
    /// Builds a cluster and starts its applications.
    pub fn build(lab: &Lab<'_>, shape: Shape, arm: Arm) -> Result<Self, Failure> {
        let started = Instant::now();
        lab.interrupt.check()?;
        lab.progress
            .doing(&format!("building a cluster for {arm} ({})", shape.title()));
        let cluster = NetnsCluster::builder(arm.placement())
            .name(arm.name())
            .limits(shape.limits())
            .pods(shape.pods())
            .services(shape.servers().iter().map(|name| {
                ServiceSpec::new(*name)
                    .port_as(80, APP_PORT, "http")
                    .port_as(81, APP_PORT, "kubernetes.io/h2c")
                    .port_as(82, APP_PORT, "grpc")
                    .pods([*name])
            }))
            .start()?;
        let apps = shape
            .servers()
            .iter()
            .map(|pod| serve(&cluster, pod))
            .collect::<Result<Vec<_>, _>>()?;
        for (pod, app) in shape.servers().iter().zip(&apps) {
            await_app(lab, pod, app)?;
        }
        Ok(Self {
            arm,
            cluster,
            took: started.elapsed(),
            _apps: apps,
        })
    }

    /// The address of a service, for a protocol as the generator names it.
    pub fn url(&self, service: &str, protocol: &str, path: &str) -> Result<String, Failure> {
        let port = match protocol {
            "http2" => 81,
            "grpc" => 82,
            _ => 80,
        };
        let address = self.cluster.service(service)?.v4;
        Ok(format!("http://{address}:{port}{path}"))
    }

    /// The proxies of a node.
    pub fn proxies_on(&self, node: u32) -> Vec<Proxy> {
        self.cluster
            .proxies()
            .into_iter()
            .filter(|proxy| proxy.node == node)
            .collect()
    }

    /// Quota periods in which the generators of a pod were held back. There is
    /// no quota on them; this shows it.
    pub fn generator_throttled(&self, pod: &str) -> Result<u64, Failure> {
        let cgroup = self.cluster.pod(pod)?.part(Part::Load);
        Ok(cgroup.cpu()?.throttled_periods)
    }

    /// The kernel programs of all agents of this bed.
    pub fn bpf_programs(&self) -> BpfPrograms {
        if self.arm != Arm::Agent {
            return BpfPrograms::default();
        }
        let versions = self.cluster.nodes().into_iter().flat_map(|node| {
            let base = format!("{BPFFS}/duet-{}-{}", self.cluster.id(), node.name);
            std::fs::read_dir(base).into_iter().flatten().flatten()
        });
        BpfPrograms::behind_links(
            versions.flat_map(|version| ["links", "pods"].map(|kind| version.path().join(kind))),
        )
    }

    /// What the parity table says of node 1.
    pub fn parity(&self, shape: Shape) -> Parity {
        let proxies = self.proxies_on(1);
        Parity {
            arm: self.arm,
            shape,
            proxies: proxies.len() as u32,
            workers: proxies.iter().map(workers).sum(),
            rows: shape
                .limits()
                .parity(self.arm.placement(), shape.meshed_pods()),
        }
    }
}

/// What one arm was given on node 1.
#[derive(Clone, Debug)]
pub struct Parity {
    /// Which arm.
    pub arm: Arm,
    /// In which bed.
    pub shape: Shape,
    /// Proxies of the node.
    pub proxies: u32,
    /// Worker threads of all of them, as they say themselves.
    pub workers: Option<u32>,
    /// Limits.
    pub rows: Vec<ParityRow>,
}

fn workers(proxy: &Proxy) -> Option<u32> {
    let (_, metrics) = proxy.get(Endpoint::Metrics, "/metrics").ok()?;
    metrics
        .lines()
        .filter(|line| line.starts_with("duet_workers"))
        .find_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .map(|workers| workers as u32)
}

fn serve(cluster: &NetnsCluster, pod: &str) -> Result<ProcessHandle, Failure> {
    let program = std::env::current_exe().map_err(Failure::OwnPath)?;
    let port = APP_PORT.to_string();
    Ok(cluster.spawn(
        Spawn::in_pod(pod, Part::App, program)
            .args(["serve", "--http", &port, "--pod", pod])
            .name(format!("{pod}.serve"))
            .split_output(),
    )?)
}

fn await_app(lab: &Lab<'_>, pod: &str, app: &ProcessHandle) -> Result<(), Failure> {
    let problem = |problem: String| Failure::Pod {
        pod: pod.to_owned(),
        problem,
    };
    let listening = lab.interrupt.wait_for(Instant::now() + APP_START, || {
        match app.try_wait() {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return Some(false),
        }
        app.stdout_text()
            .is_ok_and(|said| said.contains("serving"))
            .then_some(true)
    })?;
    match listening {
        Some(true) => Ok(()),
        Some(false) => Err(problem(format!(
            "the application ended: {}",
            app.stderr_text().unwrap_or_default().trim()
        ))),
        None => Err(problem(format!(
            "the application does not listen after {APP_START:?}"
        ))),
    }
}

/// The beds that are standing.
#[derive(Default)]
pub struct Beds {
    standing: RefCell<Vec<(Shape, Rc<Bed>)>>,
    parity: RefCell<Vec<Parity>>,
}

impl Beds {
    /// The bed of that shape and arm; built if it does not stand yet.
    pub fn get(&self, lab: &Lab<'_>, shape: Shape, arm: Arm) -> Result<Rc<Bed>, Failure> {
        let found = self
            .standing
            .borrow()
            .iter()
            .find(|(standing, bed)| *standing == shape && bed.arm == arm)
            .map(|(_, bed)| bed.clone());
        if let Some(bed) = found {
            return Ok(bed);
        }
        let bed = Rc::new(Bed::build(lab, shape, arm)?);
        self.parity.borrow_mut().push(bed.parity(shape));
        self.standing.borrow_mut().push((shape, bed.clone()));
        Ok(bed)
    }

    /// Removes all beds but those of these shapes.
    pub fn keep_only(&self, shapes: &[Shape]) {
        self.standing
            .borrow_mut()
            .retain(|(shape, _)| shapes.contains(shape));
    }

    /// What every bed that ever stood was given.
    pub fn parity(&self) -> Vec<Parity> {
        self.parity.borrow().clone()
    }
}
