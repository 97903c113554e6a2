//! Where experiments take place: one live cluster per arm, the same pods and
//! services in each.
//!
//! All arms' beds of a shape live at the same time and idle while another one is
//! measured: so an arm's place in a block costs it no cold start, and the
//! machine is in the same state for each.

use super::{Failure, Lab};
use crate::arm::Arm;
use crate::cluster::{Cluster, Given, Limits, PodSpec, ServiceSpec, Wish};
use std::cell::RefCell;
use std::net::SocketAddr;
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

    /// The cluster of this shape for an arm.
    fn wish(self, arm: Arm) -> Wish {
        let services = self.servers().iter().map(|name| {
            ServiceSpec::new(*name)
                .port_as(80, APP_PORT, "http")
                .port_as(81, APP_PORT, "kubernetes.io/h2c")
                .port_as(82, APP_PORT, "grpc")
                .pods([*name])
        });
        let servers = self.servers().iter();
        Wish {
            name: arm.name().to_owned(),
            placement: arm.placement(),
            classic: arm == Arm::ClassicSidecar,
            peer: arm.peer(),
            proxy_args: arm.proxy_args().to_vec(),
            limits: self.limits(),
            pods: self.pods(),
            services: services.collect(),
            servers: servers.map(|name| ((*name).to_owned(), APP_PORT)).collect(),
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
            _ => 80,
        };
        let address = SocketAddr::new(self.cluster.address(service)?, port);
        Ok(format!("http://{address}{path}"))
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

    /// What every bed that ever stood was given.
    pub fn parity(&self) -> Vec<Parity> {
        self.parity.borrow().clone()
    }
}
