//! Where experiments take place: one live cluster per arm, the same pods and
//! services in each.
//!
//! All arms' beds of a shape live at the same time and idle while another one is
//! measured: so an arm's place in a block costs it no cold start, and the
//! machine is in the same state for each.

use super::{Failure, Lab};
use crate::arm::Arm;
use crate::cluster::{Cluster, ECHO_PORT, Given, Limits, PodSpec, ServiceSpec, Wish};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Which pods there are and what they may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A client and a server on node 1, another server on node 2; ample limits.
    Pair,
    /// A victim and an aggressor, each a client and a server, on node 1; tight
    /// limits. Outside the mesh, a stranger on node 2.
    Neighbours,
    /// A client and three servers, each on the other node than the one before.
    Chain,
    /// So many clients on node 1, each with a server of its own on node 2; tight limits.
    Tenants(u32),
    /// This many clients on node 1, one server on node 2.
    Fleet(u32),
    /// The same with certificates that live for a minute.
    Renewing(u32),
    /// A client on node 1, a server on node 2, and two such outside the mesh.
    Wire,
    /// A client and a server on node 1, the server to be replaced.
    Upgraded,
}

/// The port behind every service.
const APP_PORT: u16 = 8080;

/// Cores of all proxies of a node in shapes that are not about scarcity.
const AMPLE_MILLIS: u32 = 2000;
/// Cores of all proxies of a node where neighbours compete: a quarter of a core
/// for each of four pods, little enough that the machine itself does not become
/// the bottleneck first.
const SCARCE_MILLIS: u32 = 1000;
/// Cores of all proxies of a node that equal tenants saturate: so little that their limit is what is shared and not
/// the machine, whose scheduler would be fair for them.
const SHARED_MILLIS: u32 = 120;
/// Cores of each application where neighbours compete.
const SCARCE_APP_MILLIS: u32 = 400;
/// What it takes to start a generator in every bed at once, beyond one's own.
pub const STARTING_MANY: Duration = Duration::from_millis(700);
/// Of certificates that are renewed all the time.
pub const SHORT_LIFE: Duration = Duration::from_secs(60);
/// Memory of all proxies of a node.
const PROXY_MEMORY: u64 = 1 << 30;

impl Shape {
    /// Limits, the same for every arm.
    pub fn limits(self) -> Limits {
        let (proxies, app) = match self {
            Self::Neighbours => (SCARCE_MILLIS, Some(SCARCE_APP_MILLIS)),
            Self::Tenants(_) => (SHARED_MILLIS, Some(SCARCE_APP_MILLIS)),
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
            Self::Pair | Self::Chain | Self::Upgraded => 2,
            Self::Neighbours => 4,
            Self::Fleet(pods) | Self::Renewing(pods) | Self::Tenants(pods) => pods,
            Self::Wire => 1,
        }
    }

    /// For notes and rows.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pair => "latency and efficiency",
            Self::Neighbours => "noisy neighbour",
            Self::Chain => "a chain",
            Self::Tenants(_) => "fair shares",
            Self::Fleet(_) => "faults and keys",
            Self::Renewing(_) => "short-lived certificates",
            Self::Wire => "plaintext",
            Self::Upgraded => "upgrades",
        }
    }

    /// The cluster of this shape for an arm.
    fn wish(self, arm: Arm) -> Wish {
        let servers = self.servers();
        let opaque = arm.redirects_only();
        let declared = |protocol: &'static str| if opaque { "tcp" } else { protocol };
        let services = servers.iter().map(|name| {
            ServiceSpec::new(name.as_str())
                .port_as(80, APP_PORT, declared("http"))
                .port_as(81, APP_PORT, declared("kubernetes.io/h2c"))
                .port_as(82, APP_PORT, declared("grpc"))
                .port_as(83, ECHO_PORT, "tcp")
                .pods([name.as_str()])
        });
        let pods = self.pods().into_iter().map(|pod| match opaque {
            true => pod.unannounced().opaque_ports([APP_PORT, ECHO_PORT]),
            false => pod,
        });
        Wish {
            name: arm.name().to_owned(),
            placement: arm.placement(),
            classic: arm == Arm::ClassicSidecar,
            peer: arm.peer(),
            proxy_args: arm.proxy_args().to_vec(),
            limits: self.limits(),
            pods: pods.collect(),
            services: services.collect(),
            servers: servers
                .iter()
                .map(|name| (name.clone(), APP_PORT))
                .collect(),
            certificates: matches!(self, Self::Renewing(_)).then_some(SHORT_LIFE),
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
                pod("stranger", 2).meshed(false),
            ],
            Self::Upgraded => vec![pod("client", 1), pod("web", 1)],
            Self::Chain => vec![
                pod("client", 1),
                pod("hop-1", 2),
                pod("hop-2", 1),
                pod("hop-3", 2),
            ],
            Self::Tenants(pods) => (0..pods)
                .flat_map(|n| [fleet_pod(n), pod(&tenant_server(n), 2)])
                .collect(),
            Self::Fleet(pods) | Self::Renewing(pods) => (0..pods)
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
    fn servers(self) -> Vec<String> {
        let named: &[&str] = match self {
            Self::Pair => &["near", "far"],
            Self::Neighbours => &["victim", "aggressor"],
            Self::Chain => &["hop-1", "hop-2", "hop-3"],
            Self::Tenants(pods) => return (0..pods).map(tenant_server).collect(),
            Self::Fleet(_) | Self::Renewing(_) => &["backend"],
            Self::Wire => &["server", "plain-server"],
            Self::Upgraded => &["web"],
        };
        named.iter().map(|name| (*name).to_owned()).collect()
    }
}

/// The server that a tenant has for itself.
pub fn tenant_server(n: u32) -> String {
    format!("server-{n}")
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
    pub cluster: Box<dyn Cluster>,
    /// How long it took to stand.
    pub took: Duration,
}

impl Bed {
    /// Builds a cluster and starts its applications.
    pub fn build(lab: &Lab<'_>, shape: Shape, arm: Arm) -> Result<Self, Failure> {
        let mut built = Self::build_all(lab, shape, &[arm])?;
        built
            .pop()
            .ok_or_else(|| Failure::Capacity("no cluster was built".to_owned()))
    }

    /// The same for several arms, at once where that is quicker.
    fn build_all(lab: &Lab<'_>, shape: Shape, arms: &[Arm]) -> Result<Vec<Self>, Failure> {
        let started = Instant::now();
        lab.interrupt.check()?;
        let names: Vec<&str> = arms.iter().map(|arm| arm.name()).collect();
        lab.progress.doing(&format!(
            "building a cluster for {} ({})",
            names.join(", "),
            shape.title()
        ));
        let wishes: Vec<Wish> = arms.iter().map(|arm| shape.wish(*arm)).collect();
        let built = lab.site.build_all(&wishes)?;
        let took = started.elapsed();
        Ok(arms
            .iter()
            .zip(built)
            .map(|(arm, cluster)| Self {
                arm: *arm,
                cluster,
                took,
            })
            .collect())
    }

    /// The address of a service, for a protocol as the generator names it.
    pub fn url(&self, service: &str, protocol: &str, path: &str) -> Result<String, Failure> {
        let port = match protocol {
            "http2" => 81,
            "grpc" => 82,
            "tcp" => 83,
            _ => 80,
        };
        let address = SocketAddr::new(self.cluster.address(service)?, port);
        let scheme = if protocol == "tcp" { "tcp" } else { "http" };
        Ok(format!("{scheme}://{address}{path}"))
    }

    /// What the parity table says of node 1.
    pub fn parity(&self, shape: Shape) -> Result<Parity, Failure> {
        Ok(Parity {
            arm: self.arm,
            shape,
            given: self.cluster.given(1)?,
        })
    }
}

/// What one arm was given on node 1.
#[derive(Clone, Debug)]
pub struct Parity {
    /// Which arm.
    pub arm: Arm,
    /// In which bed.
    pub shape: Shape,
    /// What its proxies were given.
    pub given: Given,
}

/// The beds that are standing.
#[derive(Default)]
pub struct Beds {
    standing: RefCell<Vec<(Shape, Rc<Bed>)>>,
    parity: RefCell<Vec<Parity>>,
    /// What one pod's share of proxy carries where neighbours compete, and whether that was found out.
    quota: Cell<Option<(f64, bool)>>,
}

impl Beds {
    /// The bed of that shape and arm; built if it does not stand yet.
    pub fn get(&self, lab: &Lab<'_>, shape: Shape, arm: Arm) -> Result<Rc<Bed>, Failure> {
        let mut beds = self.stand(lab, shape, &[arm])?;
        beds.pop()
            .ok_or_else(|| Failure::Capacity("no cluster stands".to_owned()))
    }

    /// The beds of that shape of all these arms; those that do not stand yet are built.
    pub fn stand(
        &self,
        lab: &Lab<'_>,
        shape: Shape,
        arms: &[Arm],
    ) -> Result<Vec<Rc<Bed>>, Failure> {
        let missing: Vec<Arm> = arms
            .iter()
            .copied()
            .filter(|arm| self.standing(shape, *arm).is_none())
            .collect();
        if !missing.is_empty() {
            for bed in Bed::build_all(lab, shape, &missing)? {
                self.parity.borrow_mut().push(bed.parity(shape)?);
                self.standing.borrow_mut().push((shape, Rc::new(bed)));
            }
        }
        Ok(arms
            .iter()
            .filter_map(|arm| self.standing(shape, *arm))
            .collect())
    }

    fn standing(&self, shape: Shape, arm: Arm) -> Option<Rc<Bed>> {
        self.standing
            .borrow()
            .iter()
            .find(|(standing, bed)| *standing == shape && bed.arm == arm)
            .map(|(_, bed)| bed.clone())
    }

    /// Removes all beds but those of these shapes.
    pub fn keep_only(&self, shapes: &[Shape]) {
        self.standing
            .borrow_mut()
            .retain(|(shape, _)| shapes.contains(shape));
    }

    /// The quota of the neighbours' beds, once it is known.
    pub fn quota(&self) -> Option<(f64, bool)> {
        self.quota.get()
    }

    /// Remembers it for the rest of the run.
    pub fn set_quota(&self, quota: (f64, bool)) {
        self.quota.set(Some(quota));
    }

    /// What every bed that ever stood was given.
    pub fn parity(&self) -> Vec<Parity> {
        self.parity.borrow().clone()
    }
}
