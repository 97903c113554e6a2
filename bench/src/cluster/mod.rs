//! Nodes and pods out of network namespaces, veths and cgroups, on one machine.
//!
//! A [`NetnsCluster`] is a small data centre: nodes on a wire, pods on nodes,
//! services with virtual addresses, and a mesh whose proxies stand in the pods, on
//! the nodes, or nowhere. The programs are the real ones, and what is around
//! them is alike in every [`Placement`]: the same links, routes, rules, limits
//! and settings. Several clusters exist beside each other, each with its own
//! id, networks, namespaces and cgroups.
//!
//! ```no_run
//! use duet_bench::cluster::{NetnsCluster, Part, Placement, PodSpec, ServiceSpec, Spawn, binary};
//!
//! # fn main() -> Result<(), duet_bench::cluster::ClusterError> {
//! let cluster = NetnsCluster::builder(Placement::Agent)
//!     .pod(PodSpec::new("client").node(1))
//!     .pod(PodSpec::new("web-0").node(2).service_account("web"))
//!     .service(ServiceSpec::new("web").port(80, 8080).pods(["web-0"]))
//!     .start()?;
//! let _serve = cluster.spawn(
//!     Spawn::in_pod("web-0", Part::App, binary("duet-bench")?).args(["serve", "--http", "8080"]),
//! )?;
//! cluster.kill_proxy("agent:node-1", nix::sys::signal::Signal::SIGKILL, Default::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! Calls block; share a cluster as `Arc` and call it from blocking tasks. Dropping it
//! removes everything it made, and so does [`remove_on_interrupt`] on Ctrl-C,
//! and [`clean_all`] after the harness itself was killed.
//!
//! **Code inside a pod.** [`NetnsCluster::run_in_pod`] runs a closure on a thread in the
//! pod's namespace. With [`Placement::Agent`] outbound redirection also goes by
//! cgroup, as on a real node, and a thread cannot be moved there alone: what it
//! accepts is the pod's, what it *connects* is not captured. A client has to be
//! a process of the pod: [`NetnsCluster::spawn`].

mod assembly;
mod binaries;
mod builder;
mod capture;
mod cgroup;
mod clock;
mod error;
mod interrupt;
pub mod kube;
mod live;
mod mesh;
mod meshing;
mod netns;
mod netns_site;
mod netns_tools;
mod network;
mod peering;
mod process;
mod proxy;
mod site;
mod spec;
mod state;
mod topology;
mod vip;

pub use self::binaries::binary;
pub use self::builder::Builder;
pub use self::capture::{CaptureReport, WireCapture};
pub use self::cgroup::{Cgroup, CpuUsage, Layout, MemoryUsage};
pub use self::clock::monotonic_ns;
pub use self::error::ClusterError;
pub use self::interrupt::{remove_all_of_this_process, remove_on_interrupt};
pub use self::live::NetnsCluster;
pub use self::mesh::{ControlPlane, Subject};
pub use self::meshing::{HANDOVER_DRAIN, PROXY_UID};
pub use self::netns::Netns;
pub use self::netns_site::{ECHO_PORT, GENERATOR_CLASS, NetnsSite};
pub use self::network::CONGESTION_CONTROL;
pub use self::process::{Part, ProcessHandle, Spawn};
pub use self::proxy::{Endpoint, Life, Proxy, Restart};
pub use self::site::{
    Belongings, Capture, Charge, Cluster, Counters, Generator, Given, Handshakes, Holding, Load,
    ProxyRef, Running, Site, Tool, User, Whereabouts, Wish,
};
pub use self::spec::{Limits, ParityRow, Placement, PodSpec, ServicePort, ServiceSpec};
pub use self::state::{CleanReport, clean_all};
pub use self::topology::{Node, Pod, Service};

pub use nix::sys::signal::Signal;

pub(crate) use self::mesh::{HEALTH_PORT, get_here};
pub(crate) use self::proxy::uncertified;
pub(crate) use self::state::{BPFFS, has_bpffs};
