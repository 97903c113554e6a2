//! A mesh under test: a cluster with an application in every pod.
//!
//! With `DUET_TEST_LOGS=<directory>` the proxies' logs are kept there.
#![allow(dead_code, reason = "each test uses its part of it")]

pub mod app;
pub mod by_hand;
mod checks;
pub mod dashboard;
pub mod hbone;
pub mod http;
pub mod load;
pub mod moody;
pub mod opaque;
pub mod programs;
pub mod unending;

pub use checks::Checks;

use anyhow::{Context, Result, ensure};
use app::App;
use duet_bench::cluster::{
    CaptureReport, Endpoint, NetnsCluster, Placement, PodSpec, Proxy, Restart, ServiceSpec,
    WireCapture, binary,
};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// One cluster at a time: they would take the machine from each other.
static MACHINE: Mutex<()> = Mutex::new(());

pub struct Mesh {
    // In this order they go.
    apps: HashMap<String, Arc<App>>,
    runtime: Runtime,
    pub cluster: NetnsCluster,
    _machine: MutexGuard<'static, ()>,
}

/// For news to reach a proxy, on a slow machine.
const DISCOVERY: Duration = Duration::from_secs(20);

/// The tests of a file: what `run` tests, in both placements.
#[allow(unused_macros, reason = "some tests have one placement")]
macro_rules! in_both_placements {
    ($run:ident) => {
        #[test]
        fn with_sidecars() {
            $run(duet_bench::cluster::Placement::Sidecar);
        }

        #[test]
        fn with_agents() {
            $run(duet_bench::cluster::Placement::Agent);
        }
    };
}
#[allow(unused_imports, reason = "some tests have one placement")]
pub(crate) use in_both_placements;

/// A capture on all nodes at once.
pub struct Wire(Vec<WireCapture>);

// === impl Mesh ===

impl Mesh {
    /// `None` where the machine does not allow it, which is said.
    pub fn start(
        placement: Placement,
        pods: impl IntoIterator<Item = PodSpec>,
        services: impl IntoIterator<Item = ServiceSpec>,
    ) -> Option<Self> {
        Self::start_with(placement, &[], pods, services)
    }

    /// With these further arguments for every proxy.
    pub fn start_with(
        placement: Placement,
        proxy_args: &[&str],
        pods: impl IntoIterator<Item = PodSpec>,
        services: impl IntoIterator<Item = ServiceSpec>,
    ) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            // Not eprintln, whose output a test that passes does not show.
            let why = "skipped: needs root, for namespaces, nftables and eBPF";
            let _ = writeln!(std::io::stderr(), "{why}");
            return None;
        }
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut builder = NetnsCluster::builder(placement).pods(pods);
        for service in services {
            builder = builder.service(service);
        }
        for arg in proxy_args {
            builder = builder.proxy_arg(*arg);
        }
        if let Some(logs) = std::env::var_os("DUET_TEST_LOGS") {
            let binary = std::env::current_exe().unwrap();
            let test = format!("{}.{placement}", binary.file_stem().unwrap().display());
            builder = builder.keep_logs(Path::new(&logs).join(test));
        }
        let cluster = builder.start().unwrap_or_else(|error| panic!("{error}"));
        let runtime = Runtime::new().unwrap();
        let _inside = runtime.enter();
        let apps = cluster
            .pods()
            .iter()
            .map(|pod| (pod.name.clone(), Arc::new(App::start(&cluster, &pod.name))))
            .collect();
        drop(_inside);
        Some(Self {
            apps,
            runtime,
            cluster,
            _machine: machine,
        })
    }

    pub fn block_on<T>(&self, test: impl Future<Output = T>) -> T {
        self.runtime.block_on(test)
    }

    pub fn app(&self, pod: &str) -> &Arc<App> {
        &self.apps[pod]
    }

    pub fn watch(&self, marker: &[u8]) -> Wire {
        let nodes = self.cluster.nodes();
        Wire(
            nodes
                .iter()
                .map(|node| WireCapture::start(&node.netns, &[marker]).unwrap())
                .collect(),
        )
    }

    /// The proxy that serves a pod.
    pub fn proxy(&self, pod: &str) -> Proxy {
        self.cluster.proxy_of(pod).unwrap()
    }

    /// How often the pod's proxy had to refuse, for this reason.
    pub fn failures(&self, pod: &str, reason: &str) -> u64 {
        let labels = [
            format!("workload=\"{pod}\""),
            format!("reason=\"{reason}\""),
        ];
        self.count(pod, "duet_failures_total", &labels)
    }

    /// How often this policy decided so about the pod.
    pub fn decisions(&self, pod: &str, policy: &str, decision: &str) -> u64 {
        let labels = [
            format!("workload=\"{pod}\""),
            format!("policy=\"{policy}\""),
            format!("decision=\"{decision}\""),
        ];
        self.count(pod, "duet_policy_decisions_total", &labels)
    }

    pub fn count(&self, pod: &str, metric: &str, labels: &[String]) -> u64 {
        let (_, metrics) = self.proxy(pod).get(Endpoint::Metrics, "/metrics").unwrap();
        metrics
            .lines()
            .filter(|line| line.split('{').next() == Some(metric))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    pub fn kill_proxy(&self, pod: &str, signal: Signal) {
        let proxy = self.proxy(pod).name;
        self.cluster
            .kill_proxy(&proxy, signal, Restart::Never)
            .unwrap();
    }

    pub fn proxy_ends(&self, pod: &str, within: Duration) -> bool {
        let proxy = self.proxy(pod).name;
        self.cluster.wait_dead(&proxy, within).unwrap()
    }

    pub fn start_proxy(&self, pod: &str) {
        let proxy = self.proxy(pod).name;
        self.cluster.start_proxy(&proxy).unwrap();
    }

    /// Another agent takes over from this pod's.
    pub fn hand_over(&self, pod: &str) {
        let proxy = self.proxy(pod).name;
        self.cluster.hand_over(&proxy).unwrap();
    }

    pub fn read_mesh_yaml(&self) -> String {
        std::fs::read_to_string(self.cluster.control().unwrap().mesh_yaml).unwrap()
    }

    /// At once: whoever reads sees the old one or the new one.
    pub fn write_mesh_yaml(&self, text: &str) {
        let path = self.cluster.control().unwrap().mesh_yaml;
        let draft = path.with_extension("test");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, &path).unwrap();
    }

    /// The same, and the proxies of these pods know of it.
    pub async fn describe(&self, text: &str, pods: &[&str]) -> Result<()> {
        if text == self.read_mesh_yaml() {
            return Ok(());
        }
        let version = |pod: &str| -> Result<u64> {
            let (_, config) = self.proxy(pod).get(Endpoint::Admin, "/config")?;
            let config: serde_json::Value = serde_json::from_str(&config)?;
            config["directory"]["version"].as_u64().context("a version")
        };
        let before: Vec<_> = pods.iter().map(|pod| version(pod)).collect::<Result<_>>()?;
        self.write_mesh_yaml(text);
        let deadline = Instant::now() + DISCOVERY;
        for (pod, before) in pods.iter().zip(before) {
            while version(pod)? <= before {
                ensure!(
                    Instant::now() < deadline,
                    "{pod}'s proxy hears nothing of it"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    pub fn add_pod(&self, pod: PodSpec) -> Arc<App> {
        let pod = self.cluster.add_pod(pod).unwrap();
        Arc::new(App::start(&self.cluster, &pod.name))
    }

    /// Enrols a pod with its node's agent.
    pub fn join(&self, pod: &str) {
        let pod = self.cluster.pod(pod).unwrap();
        let netns = pod.netns.path();
        self.agent(
            pod.node,
            "enrol",
            &pod.workload(),
            &["--netns".as_ref(), netns.as_os_str()],
        );
    }

    pub fn leave(&self, pod: &str) {
        let pod = self.cluster.pod(pod).unwrap();
        self.agent(pod.node, "remove", &pod.workload(), &[]);
    }

    fn agent(&self, node: u32, verb: &str, workload: &str, more: &[&OsStr]) {
        let agent = self.cluster.proxy(&format!("agent:node-{node}")).unwrap();
        let output = Command::new(binary("duet-agent").unwrap())
            .arg(verb)
            .arg("--socket")
            .arg(agent.socket.unwrap())
            .args(["--workload", workload])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{verb} {workload}: {output:?}");
    }
}

// === impl Wire ===

impl Wire {
    pub fn stop(self) -> CaptureReport {
        let mut sum = CaptureReport::default();
        for capture in self.0 {
            let seen = capture.stop().unwrap();
            sum.packets += seen.packets;
            sum.tcp_payload_bytes += seen.tcp_payload_bytes;
            sum.lost += seen.lost;
            sum.plaintext_packets += seen.plaintext_packets;
            sum.plaintext_bytes += seen.plaintext_bytes;
            sum.examples.extend(seen.examples);
        }
        sum
    }
}
