//! What an experiment asks of a cluster, whatever nodes and pods are made of.
//!
//! An experiment names pods, services and proxies as it named them when it wished
//! for the cluster, counts nodes from 1, and tells time in nanoseconds of *this*
//! machine's CLOCK_MONOTONIC. Who stands behind these traits translates: names
//! into a namespace's, times into a far machine's.

use super::capture::CaptureReport;
use super::cgroup::MemoryUsage;
use super::error::{ClusterError, Result};
use super::proxy::{Life, Restart};
use super::spec::{Limits, ParityRow, Placement, PodSpec, ServiceSpec};
use crate::accounting::{BpfUse, Certified, CpuPressure, KeyScan, MachineCpu, Privileges, Rollup};
use crate::load::LoadReport;
use crate::peer::Peer;
use crate::results;
use crate::run::Interrupt;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The machines that clusters are made on.
pub trait Site {
    /// Makes a cluster and waits until all in it is ready.
    fn build(&self, wish: &Wish) -> Result<Box<dyn Cluster>>;

    /// Makes several, at once where that is quicker.
    fn build_all(&self, wishes: &[Wish]) -> Result<Vec<Box<dyn Cluster>>> {
        wishes.iter().map(|wish| self.build(wish)).collect()
    }

    /// All its machines' processors since they started.
    fn machine(&self) -> Result<MachineCpu>;

    /// All its machines' cores.
    fn cores(&self) -> f64;

    /// Has its kernels time BPF programs, until what is returned is dropped.
    fn bpf_stats(&self) -> Result<Box<dyn Debug>>;
}

/// A cluster to be made.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What messages call it.
    pub name: String,
    /// Where the proxies stand.
    pub placement: Placement,
    /// Sidecars as ordinary containers, as before native sidecars.
    pub classic: bool,
    /// Somebody else's proxies in the place of sidecars.
    pub peer: Option<&'static Peer>,
    /// What the proxies are told beside the usual; on Kubernetes they are as they were installed.
    pub proxy_args: Vec<&'static str>,
    /// What each party may use.
    pub limits: Limits,
    /// Pods.
    pub pods: Vec<PodSpec>,
    /// Services, each with an address of its own.
    pub services: Vec<ServiceSpec>,
    /// Pods that run `duet-bench serve --http` on this port.
    pub servers: Vec<(String, u16)>,
    /// Of workloads' certificates; duet-control's own choice by default.
    pub certificates: Option<Duration>,
}

/// Nodes, pods and a mesh, standing. Dropping it removes what it is made of.
pub trait Cluster {
    /// A service's virtual address.
    fn address(&self, service: &str) -> Result<IpAddr>;

    /// A pod's own address.
    fn pod_address(&self, pod: &str) -> Result<IpAddr> {
        Err(only_here("the address of", pod))
    }

    /// Puts these pods behind a service, and no others.
    fn back(&self, service: &str, _pods: &[&str]) -> Result<()> {
        Err(only_here("the pods behind", service))
    }

    /// Nodes, from 1 to this.
    fn nodes(&self) -> u32;

    /// How long before its window a generator has to be asked for.
    fn lead(&self) -> Duration;

    /// Starts a generator.
    fn generate(&self, load: &Load) -> Result<Box<dyn Generator>>;

    /// Starts a program of this suite in a pod.
    fn start(&self, tool: &Tool) -> Result<Box<dyn Running>> {
        Err(only_here("programs in", &tool.pod))
    }

    /// The proxies that stand on a node.
    fn proxies(&self, node: u32) -> Result<Vec<ProxyRef>>;

    /// The proxy that serves a pod.
    fn proxy_of(&self, pod: &str) -> Result<ProxyRef>;

    /// The service account of a pod, which is its identity's name.
    fn service_account(&self, pod: &str) -> Result<String>;

    /// Makes pods and waits until they are ready.
    fn add_pods(&self, pods: Vec<PodSpec>) -> Result<()>;

    /// Removes a pod.
    fn remove_pod(&self, pod: &str) -> Result<()>;

    /// Makes a pod, and waits for nothing that others wait for.
    fn begin_pod(&self, pod: PodSpec) -> Result<()> {
        self.add_pods(vec![pod])
    }

    /// The same for its end. Whether it had become ready.
    fn end_pod(&self, pod: &str) -> Result<bool> {
        self.remove_pod(pod)?;
        Ok(true)
    }

    /// Waits until all pods that were ended are gone.
    fn await_ended(&self) -> Result<()> {
        Ok(())
    }

    /// Processor time of a node's proxies since they started.
    fn ran(&self, node: u32) -> Result<Duration>;

    /// Has a client in one pod, with the identity of a second, make full mTLS handshakes with the
    /// proxy of a third for so long.
    fn shake_hands(
        &self,
        from: &str,
        identity: &str,
        to: &str,
        time: Duration,
    ) -> Result<Handshakes> {
        let _ = (identity, to, time);
        Err(only_here("handshakes of", from))
    }

    /// The processes of a node's proxies.
    fn pids(&self, node: u32) -> Result<Vec<u32>> {
        Err(only_here("the processes of", &format!("node {node}")))
    }

    /// What each proxy of a node holds.
    fn holdings(&self, node: u32) -> Result<Vec<Holding>>;

    /// What each proxy of a node has used, and whom the kernel charges for it.
    fn charges(&self, node: u32) -> Result<Vec<Charge>> {
        Err(only_here("who pays on", &format!("node {node}")))
    }

    /// What there is of the mesh on a node.
    fn belongings(&self, node: u32) -> Result<Belongings>;

    /// Gives the proxies of each node so much processor together, in thousandths of a core.
    fn limit_processors(&self, _millis: u32) -> Result<()> {
        Err(only_here("limiting", "proxies"))
    }

    /// Puts a tenant's configuration beside everybody's, as it is written for duet-control; or
    /// takes it away.
    fn burden(&self, _services: &str) -> Result<()> {
        Err(only_here("burdening", "duet-control"))
    }

    /// Where a proxy's secrets and its control plane are.
    fn whereabouts(&self, proxy: &str) -> Result<Whereabouts> {
        Err(only_here("the files of", proxy))
    }

    /// What a node's proxies were given.
    fn given(&self, node: u32) -> Result<Given>;

    /// Sends a proxy SIGKILL; returns when that was.
    fn kill(&self, proxy: &str, restart: Restart) -> Result<u64>;

    /// Stops a proxy without ending it (SIGSTOP); returns when that was.
    fn pause(&self, proxy: &str) -> Result<u64> {
        Err(only_here("stopping", proxy))
    }

    /// Lets it go on.
    fn unpause(&self, proxy: &str) -> Result<()> {
        Err(only_here("resuming", proxy))
    }

    /// Replaces the proxy that serves this service's pods, as an operator would, and waits until
    /// that is done: the agents of its nodes hand over to others, or the pods are rolled. Returns
    /// how many applications were started again.
    fn upgrade(&self, service: &str) -> Result<u32> {
        Err(only_here("upgrading the proxies of", service))
    }

    /// What a proxy's process may do.
    fn privileges(&self, proxy: &str) -> Result<Privileges> {
        Err(only_here("the privileges of", proxy))
    }

    /// Takes the mesh's control plane away, or brings it back and waits until it is ready.
    fn control(&self, there: bool) -> Result<()> {
        Err(only_here(
            if there { "starting" } else { "ending" },
            "the control plane",
        ))
    }

    /// Lowers a proxy's memory limit to what it uses and so many bytes more, and
    /// watches it die of that.
    fn starve(&self, proxy: &str, headroom: u64) -> Result<()>;

    /// Waits until a proxy is dead. False if it still lives after `within`.
    fn await_death(&self, proxy: &str, within: Duration) -> Result<bool>;

    /// Starts a proxy that was to stay dead and waits until it is ready.
    fn revive(&self, proxy: &str) -> Result<()>;

    /// Waits until a proxy that was killed is ready again.
    fn await_ready(&self, proxy: &str, within: Duration) -> Result<()>;

    /// A proxy's incarnations around its death.
    fn lives(&self, proxy: &str) -> Result<Vec<Life>>;

    /// Puts a fresh agent on a node, if it has one that has served others before.
    fn renew_agent(&self, node: u32) -> Result<()>;

    /// Lets whoever restarts a proxy forget that it has died.
    fn forget_death(&self, proxy: &str) -> Result<()>;

    /// Watches all interfaces of a node for packets that hold a marker.
    fn capture(&self, node: u32, markers: &[&[u8]]) -> Result<Box<dyn Capture>>;

    /// The identities that a proxy holds, each with its certificate.
    fn identities(&self, proxy: &str) -> Result<Vec<Certified>>;

    /// Searches a proxy's memory for the private keys of these certificates.
    fn scan(&self, proxy: &str, known: &[Certified], limit: Duration) -> Result<KeyScan>;

    /// Whether the same search finds the key of a process that is known to hold
    /// one, and no other.
    fn scan_control(&self, known: &[Certified], limit: Duration) -> Result<bool>;
}

/// What only clusters of network namespaces can do so far.
fn only_here(what: &str, whom: &str) -> ClusterError {
    ClusterError::Unsupported(format!("{what} {whom}: only with --cluster netns"))
}

/// A program of this suite to be run.
#[derive(Clone, Debug)]
pub struct Tool {
    /// The pod it runs in.
    pub pod: String,
    /// For `duet-bench`, without the window's beginning.
    pub arguments: Vec<String>,
    /// When that is, if there is one.
    pub begin_ns: Option<u64>,
    /// As whom.
    pub user: User,
}

/// As whom a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The application: root in its pod, in the pod's control group.
    Application,
    /// An application without privileges.
    Nobody,
    /// Whoever holds the proxy's place: it is not redirected.
    Proxy,
}

/// A program at work.
pub trait Running {
    /// Waits until it has ended; returns what it printed.
    fn finish(self: Box<Self>, interrupt: &Interrupt, within: Duration) -> Result<String>;
}

/// What a proxy has used, and whom the kernel charges for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The proxy.
    pub proxy: String,
    /// The pod in whose control group it is; none if in the node's.
    pub pod: Option<String>,
    /// Processor time, µs.
    pub cpu_us: u64,
    /// Anonymous and kernel memory, bytes.
    pub memory: u64,
}

/// What there is of the mesh on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belongings {
    /// Network namespaces.
    pub namespaces: u64,
    /// Entries of the kernel programs' maps.
    pub map_entries: u64,
    /// Open file descriptors of the proxies.
    pub files: u64,
}

/// Where a proxy's secrets and its control plane are.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    /// Its process.
    pub pid: u32,
    /// What it proves itself with to the control plane.
    pub token: PathBuf,
    /// The control plane, as the proxy is told of it.
    pub control: String,
    /// By whom that is signed.
    pub trust_bundle: PathBuf,
    /// An agent's local API.
    pub socket: Option<PathBuf>,
}

/// A generator to be started.
#[derive(Clone, Debug)]
pub struct Load {
    /// The pod it runs in.
    pub pod: String,
    /// For `duet-bench load`, without the window's beginning.
    pub arguments: Vec<String>,
    /// When its window begins.
    pub begin_ns: u64,
    /// The window's length.
    pub window: Duration,
}

/// A generator at work.
pub trait Generator {
    /// Waits for its window and reads what is counted at both ends.
    fn watch(&self, interrupt: &Interrupt) -> Result<[Counters; 2]>;

    /// Has it end its window early.
    fn stop(&self) -> Result<()>;

    /// Waits for its report.
    fn report(self: Box<Self>, interrupt: &Interrupt) -> Result<LoadReport>;
}

/// One look at everything that is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// When.
    pub at_ns: u64,
    /// All machines.
    pub machine: MachineCpu,
    /// Waiting for processors, where the generator runs.
    pub pressure: Option<CpuPressure>,
    /// Quota periods in which the generator was held back.
    pub generator_throttled: u64,
    /// All proxies, µs.
    pub proxies_us: u64,
    /// Quota periods in which a proxy was held back.
    pub proxies_throttled: u64,
    /// All processes of the cluster, µs.
    pub arm_us: u64,
    /// Kernel programs of the proxies.
    pub bpf: BpfUse,
}

/// Handshakes that were made, and what the server's proxy used for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handshakes {
    /// How many.
    pub made: u64,
    /// µs.
    pub proxy_us: u64,
}

/// A proxy and whom it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRef {
    /// `sidecar:<pod>` or `agent:<node>`.
    pub name: String,
    /// The pods it serves.
    pub pods: Vec<String>,
}

/// What one proxy holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holding {
    /// Its process's memory.
    pub rollup: Rollup,
    /// Its open file descriptors.
    pub open_files: u64,
    /// What its cgroup is charged.
    pub charged: MemoryUsage,
}

/// What the proxies of a node were given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// How many they are.
    pub proxies: u32,
    /// Worker threads of all of them, as they say themselves.
    pub workers: Option<u32>,
    /// In numbers, where there are limits.
    pub limits: Option<results::Limits>,
    /// For the parity table.
    pub rows: Vec<ParityRow>,
}

/// A capture under way.
pub trait Capture {
    /// Ends it, once all that has arrived is read.
    fn stop(self: Box<Self>) -> Result<CaptureReport>;
}
