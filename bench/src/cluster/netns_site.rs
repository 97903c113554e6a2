//! The netns cluster as experiments see it.

use super::capture::{CaptureReport, WireCapture};
use super::clock::monotonic_ns;
use super::error::{ClusterError, Result};
use super::live::NetnsCluster;
use super::netns_tools;
use super::process::{Part, ProcessHandle, Spawn};
use super::proxy::{Endpoint, Life, Proxy, Restart};
use super::site::{
    Belongings, Capture, Charge, Cluster, Counters, Generator, Given, Handshakes, Holding, Load,
    ProxyRef, Running, Site, Tool, Whereabouts, Wish,
};
use super::spec::{Limits, Placement, PodSpec};
use super::state::BPFFS;
use crate::accounting::{
    BpfPrograms, BpfStats, Certified, CpuPressure, KeyScan, KnownKeys, MachineCpu, Privileges,
    ProcessCpu, Rollup, open_files, scan_control, scan_process,
};
use crate::load::LoadReport;
use crate::perf::HANDSHAKES;
use crate::results;
use crate::run::Interrupt;
use nix::sys::signal::Signal;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Scheduling class of every generator, in all arms. Under the ordinary class a
/// generator on a busy machine is late for its own schedule, and what it then
/// measures is itself.
pub const GENERATOR_CLASS: &str = "SCHED_FIFO 10";
const GENERATOR_PRIORITY: u8 = 10;
/// How long a generator takes to start, at most, on a loaded machine.
const STARTING: Duration = Duration::from_millis(150);
/// How long after the window's end a report may take: the time-out of the last
/// request and some.
const REPORTING: Duration = Duration::from_secs(15);
/// How long an application or a proxy may take to end in good order.
const GRACE: Duration = Duration::from_secs(10);
/// Where the applications of pods that were rolled serve HTTP: as in `scenario::bed`.
const APP_PORT: u16 = 8080;
/// Ends the name of the other of two pods that take turns.
const ROLLED: &str = "-next";
/// How long an application takes to listen, at most.
const APP_START: Duration = Duration::from_secs(10);

/// This machine.
#[derive(Debug)]
pub struct NetnsSite {
    interrupt: Interrupt,
}

/// A cluster with its applications.
struct Standing {
    // Dropped before the cluster, which would end them anyway.
    apps: RefCell<BTreeMap<String, ProcessHandle>>,
    cluster: NetnsCluster,
    interrupt: Interrupt,
}

struct NetnsBed(Rc<Standing>);

struct NetnsGenerator {
    bed: Rc<Standing>,
    process: ProcessHandle,
    load: Load,
    stopped: Cell<bool>,
}

// === impl NetnsSite ===

impl NetnsSite {
    /// Waits end when `interrupt` does.
    pub fn new(interrupt: Interrupt) -> Self {
        Self { interrupt }
    }
}

impl Site for NetnsSite {
    fn build(&self, wish: &Wish) -> Result<Box<dyn Cluster>> {
        let builder = NetnsCluster::builder(wish.placement)
            .name(&wish.name)
            .peer(wish.peer)
            .limits(wish.limits)
            .certificates(wish.certificates)
            .pods(wish.pods.iter().cloned())
            .services(wish.services.iter().cloned());
        let cluster = wish
            .proxy_args
            .iter()
            .fold(builder, |builder, arg| builder.proxy_arg(*arg))
            .start()?;
        let mut apps = BTreeMap::new();
        for (pod, port) in &wish.servers {
            apps.insert(pod.clone(), serve(&cluster, pod, *port)?);
        }
        for (pod, app) in &apps {
            await_app(&self.interrupt, pod, app)?;
        }
        Ok(Box::new(NetnsBed(Rc::new(Standing {
            apps: RefCell::new(apps),
            cluster,
            interrupt: self.interrupt.clone(),
        }))))
    }

    fn machine(&self) -> Result<MachineCpu> {
        Ok(MachineCpu::read()?)
    }

    fn cores(&self) -> f64 {
        std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
    }

    fn bpf_stats(&self) -> Result<Box<dyn Debug>> {
        Ok(Box::new(BpfStats::enable()?))
    }
}

fn await_app(interrupt: &Interrupt, pod: &str, app: &ProcessHandle) -> Result<()> {
    let problem = |problem: String| ClusterError::Pod {
        pod: pod.to_owned(),
        problem,
    };
    let listening = interrupt.wait_for(Instant::now() + APP_START, || {
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

/// The port beside its HTTP port on which an application echoes bytes.
pub const ECHO_PORT: u16 = 9090;

fn serve(cluster: &NetnsCluster, pod: &str, port: u16) -> Result<ProcessHandle> {
    let port = port.to_string();
    cluster.spawn(
        Spawn::in_pod(pod, Part::App, own_program()?)
            .args([
                "serve",
                "--http",
                &port,
                "--tcp",
                &ECHO_PORT.to_string(),
                "--pod",
                pod,
            ])
            .name(format!("{pod}.serve"))
            .split_output(),
    )
}

pub(super) fn own_program() -> Result<std::path::PathBuf> {
    std::env::current_exe().map_err(ClusterError::io("where is this program?"))
}

// === impl Standing ===

impl Standing {
    fn proxies_on(&self, node: u32) -> Vec<Proxy> {
        self.cluster
            .proxies()
            .into_iter()
            .filter(|proxy| proxy.node == node)
            .collect()
    }

    /// Puts another pod in one's place, as a Deployment with one pod too many does: the new one is ready, gets
    /// the service's connections, and then the old one is told to end, application and proxy in a kubelet's order.
    fn roll(&self, service: &str, old: &str) -> Result<()> {
        let cluster = &self.cluster;
        let was = cluster.pod(old)?;
        let new = match old.strip_suffix(ROLLED) {
            Some(first) => first.to_owned(),
            None => format!("{old}{ROLLED}"),
        };
        let spec = PodSpec::new(&new)
            .node(was.node)
            .service_account(was.service_account);
        cluster.add_pod(spec)?;
        let app = serve(cluster, &new, APP_PORT)?;
        await_app(&self.interrupt, &new, &app)?;
        let after: Vec<String> = cluster
            .service(service)?
            .pods
            .into_iter()
            .map(|pod| if pod == old { new.clone() } else { pod })
            .collect();
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        cluster.set_service_pods(service, &after)?;
        self.apps.borrow_mut().insert(new, app);
        let ending = self.apps.borrow_mut().remove(old);
        if let Some(ending) = ending {
            ending.stop(GRACE)?;
        }
        let proxy = cluster.proxy_of(old)?.name;
        cluster.kill_proxy(&proxy, Signal::SIGTERM, Restart::Never)?;
        cluster.wait_dead(&proxy, GRACE)?;
        cluster.remove_pod(old)
    }

    /// The kernel programs of all agents.
    fn bpf_programs(&self) -> BpfPrograms {
        if self.cluster.placement() != Placement::Agent {
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
}

// === impl NetnsBed ===

impl Cluster for NetnsBed {
    fn address(&self, service: &str) -> Result<IpAddr> {
        Ok(self.0.cluster.service(service)?.v4.into())
    }

    fn pod_address(&self, pod: &str) -> Result<IpAddr> {
        Ok(self.0.cluster.pod(pod)?.v4.into())
    }

    fn back(&self, service: &str, pods: &[&str]) -> Result<()> {
        self.0.cluster.set_service_pods(service, pods)
    }

    fn start(&self, tool: &Tool) -> Result<Box<dyn Running>> {
        netns_tools::start(&self.0.cluster, tool)
    }

    fn charges(&self, node: u32) -> Result<Vec<Charge>> {
        netns_tools::charges(&self.0.cluster, node)
    }

    fn belongings(&self, node: u32) -> Result<Belongings> {
        netns_tools::belongings(&self.0.cluster, node)
    }

    fn limit_processors(&self, millis: u32) -> Result<()> {
        self.0.cluster.limit_processors(millis)
    }

    fn burden(&self, services: &str) -> Result<()> {
        self.0.cluster.burden(services)
    }

    fn whereabouts(&self, proxy: &str) -> Result<Whereabouts> {
        netns_tools::whereabouts(&self.0.cluster, proxy)
    }

    fn nodes(&self) -> u32 {
        self.0.cluster.nodes().len() as u32
    }

    fn lead(&self) -> Duration {
        STARTING
    }

    fn generate(&self, load: &Load) -> Result<Box<dyn Generator>> {
        let spawn = Spawn::in_pod(&load.pod, Part::Load, own_program()?)
            .arg("load")
            .args(&load.arguments)
            .args(["--start-at", &load.begin_ns.to_string()])
            .fifo(GENERATOR_PRIORITY)
            .split_output();
        Ok(Box::new(NetnsGenerator {
            bed: self.0.clone(),
            process: self.0.cluster.spawn(spawn)?,
            load: load.clone(),
            stopped: Cell::new(false),
        }))
    }

    fn proxies(&self, node: u32) -> Result<Vec<ProxyRef>> {
        Ok(self
            .0
            .proxies_on(node)
            .into_iter()
            .map(ProxyRef::from)
            .collect())
    }

    fn proxy_of(&self, pod: &str) -> Result<ProxyRef> {
        Ok(self.0.cluster.proxy_of(pod)?.into())
    }

    fn service_account(&self, pod: &str) -> Result<String> {
        Ok(self.0.cluster.pod(pod)?.service_account)
    }

    fn add_pods(&self, pods: Vec<PodSpec>) -> Result<()> {
        self.0.cluster.add_pods(pods)
    }

    fn remove_pod(&self, pod: &str) -> Result<()> {
        self.0.cluster.remove_pod(pod)
    }

    fn ran(&self, node: u32) -> Result<Duration> {
        self.0
            .proxies_on(node)
            .iter()
            .flat_map(|proxy| proxy.cgroup.pids())
            .map(|pid| Ok(ProcessCpu::read(pid)?.ran))
            .sum()
    }

    fn shake_hands(
        &self,
        from: &str,
        identity: &str,
        to: &str,
        time: Duration,
    ) -> Result<Handshakes> {
        let cluster = &self.0.cluster;
        let dir = cluster.certify(identity)?;
        let proxy = cluster.proxy_of(to)?;
        let before = proxy.cgroup.cpu()?.usage_us;
        let client = Spawn::in_pod(from, Part::Load, own_program()?)
            .args([
                HANDSHAKES,
                "--to",
                &format!("{}:15008", cluster.pod(to)?.v4),
            ])
            .args(["--time", &format!("{}ms", time.as_millis())])
            .arg("--identity")
            .arg(dir);
        let output = cluster.exec(client)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let made = said.trim().parse().map_err(|_| ClusterError::Generator {
            pod: from.to_owned(),
            problem: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })?;
        Ok(Handshakes {
            made,
            proxy_us: proxy.cgroup.cpu()?.usage_us - before,
        })
    }

    fn pids(&self, node: u32) -> Result<Vec<u32>> {
        let proxies = self.0.proxies_on(node);
        Ok(proxies.iter().filter_map(|proxy| proxy.pid).collect())
    }

    fn holdings(&self, node: u32) -> Result<Vec<Holding>> {
        self.0
            .proxies_on(node)
            .iter()
            .map(|proxy| {
                let mut holding = Holding {
                    charged: proxy.cgroup.memory()?,
                    ..Holding::default()
                };
                let mut rollups = Vec::new();
                // An agent's supervisor is a part of it.
                for pid in proxy.cgroup.pids() {
                    rollups.push(Rollup::read(pid)?);
                    holding.open_files += open_files(pid)?;
                }
                holding.rollup = netns_tools::of_one_program(&rollups);
                Ok(holding)
            })
            .collect()
    }

    fn given(&self, node: u32) -> Result<Given> {
        let proxies = self.0.proxies_on(node);
        let limits = self.0.cluster.limits();
        let meshed = self
            .0
            .cluster
            .pods()
            .iter()
            .filter(|pod| pod.meshed && pod.node == node)
            .count();
        Ok(Given {
            proxies: proxies.len() as u32,
            workers: proxies.iter().map(workers).sum(),
            limits: in_numbers(&limits, proxies.len() as u32),
            rows: limits.parity(self.0.cluster.placement(), meshed as u32),
        })
    }

    fn kill(&self, proxy: &str, restart: Restart) -> Result<u64> {
        self.0.cluster.kill_proxy(proxy, Signal::SIGKILL, restart)
    }

    fn pause(&self, proxy: &str) -> Result<u64> {
        let cluster = &self.0.cluster;
        cluster.kill_proxy(proxy, Signal::SIGSTOP, Restart::AtOnce)
    }

    fn unpause(&self, proxy: &str) -> Result<()> {
        let cluster = &self.0.cluster;
        cluster
            .kill_proxy(proxy, Signal::SIGCONT, Restart::AtOnce)
            .map(drop)
    }

    fn upgrade(&self, service: &str) -> Result<u32> {
        let cluster = &self.0.cluster;
        let pods = cluster.service(service)?.pods;
        if cluster.placement() == Placement::Agent {
            for node in cluster.nodes() {
                cluster.hand_over(&format!("agent:{}", node.name))?;
            }
            return Ok(0);
        }
        for pod in &pods {
            self.0.roll(service, pod)?;
        }
        Ok(pods.len() as u32)
    }

    fn privileges(&self, proxy: &str) -> Result<Privileges> {
        let proxy = self.0.cluster.proxy(proxy)?;
        let pid = proxy.pid.ok_or_else(|| {
            ClusterError::Unsupported(format!("{} is dead: it may do nothing", proxy.name))
        })?;
        let node = self.0.cluster.node(proxy.node)?;
        Ok(Privileges::read(pid, &node.netns.path())?)
    }

    fn control(&self, there: bool) -> Result<()> {
        if there {
            self.0.cluster.start_control()
        } else {
            self.0.cluster.stop_control()
        }
    }

    fn starve(&self, _proxy: &str, _headroom: u64) -> Result<()> {
        Err(ClusterError::Unsupported(
            "who dies for want of memory is a kubelet's affair: --cluster kube".to_owned(),
        ))
    }

    fn await_death(&self, proxy: &str, within: Duration) -> Result<bool> {
        self.0.cluster.wait_dead(proxy, within)
    }

    fn revive(&self, proxy: &str) -> Result<()> {
        self.0.cluster.start_proxy(proxy)
    }

    fn await_ready(&self, proxy: &str, within: Duration) -> Result<()> {
        self.0.cluster.wait_proxy_ready(proxy, within)
    }

    fn lives(&self, proxy: &str) -> Result<Vec<Life>> {
        self.0.cluster.lives(proxy)
    }

    fn renew_agent(&self, _node: u32) -> Result<()> {
        // Each cluster has agents of its own.
        Ok(())
    }

    fn forget_death(&self, _proxy: &str) -> Result<()> {
        // The supervisor restarts at once, however often.
        Ok(())
    }

    fn capture(&self, node: u32, markers: &[&[u8]]) -> Result<Box<dyn Capture>> {
        Ok(Box::new(self.0.cluster.capture(node, markers)?))
    }

    fn identities(&self, proxy: &str) -> Result<Vec<Certified>> {
        let (_, page) = self
            .0
            .cluster
            .proxy(proxy)?
            .get(Endpoint::Admin, "/config")?;
        certified(proxy, &page)
    }

    fn scan(&self, proxy: &str, known: &[Certified], limit: Duration) -> Result<KeyScan> {
        let pid = self.0.cluster.proxy(proxy)?.pid.ok_or_else(|| {
            ClusterError::Unsupported(format!("{proxy} is dead, so it has no memory to search"))
        })?;
        Ok(scan_process(pid, &KnownKeys::of(known), limit)?)
    }

    fn scan_control(&self, known: &[Certified], limit: Duration) -> Result<bool> {
        scan_control(&KnownKeys::of(known), limit).map_err(|problem| {
            ClusterError::Unsupported(format!("the key scan's own control: {problem}"))
        })
    }
}

impl From<Proxy> for ProxyRef {
    fn from(proxy: Proxy) -> Self {
        Self {
            name: proxy.name,
            pods: proxy.pods,
        }
    }
}

fn in_numbers(limits: &Limits, proxies: u32) -> Option<results::Limits> {
    let cpu = f64::from(limits.proxy_cpu_millis(proxies)?);
    let memory = limits.proxy_memory(proxies)? as f64 / 1_048_576.0;
    (proxies > 0).then(|| results::Limits {
        proxies,
        cpu_millicores_each: cpu,
        cpu_millicores_sum: cpu * f64::from(proxies),
        memory_mib_each: memory,
        memory_mib_sum: memory * f64::from(proxies),
    })
}

fn workers(proxy: &Proxy) -> Option<u32> {
    let (_, metrics) = proxy.get(Endpoint::Metrics, "/metrics").ok()?;
    workers_in(&metrics)
}

/// Worker threads, as a proxy's metrics have them.
pub(super) fn workers_in(metrics: &str) -> Option<u32> {
    metrics
        .lines()
        .filter(|line| line.starts_with("duet_workers"))
        .find_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .map(|workers| workers as u32)
}

/// The identities in a proxy's /config.
pub(super) fn certified(proxy: &str, page: &str) -> Result<Vec<Certified>> {
    let page: serde_json::Value = serde_json::from_str(page)
        .map_err(|error| ClusterError::Unsupported(format!("/config of {proxy}: {error}")))?;
    Ok(page["identities"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| {
            Some(Certified {
                identity: one["identity"].as_str()?.to_owned(),
                certificate: one["certificate"].as_str()?.to_owned(),
            })
        })
        .collect())
}

// === impl NetnsGenerator ===

impl NetnsGenerator {
    fn end_ns(&self) -> u64 {
        self.load.begin_ns + self.load.window.as_nanos() as u64
    }

    fn look(&self, programs: &BpfPrograms) -> Result<Counters> {
        let cluster = &self.bed.cluster;
        let mut counters = Counters {
            at_ns: monotonic_ns(),
            machine: MachineCpu::read()?,
            pressure: CpuPressure::read(),
            // There is no quota on generators; this shows it.
            generator_throttled: cluster
                .pod(&self.load.pod)?
                .part(Part::Load)
                .cpu()?
                .throttled_periods,
            bpf: programs.used()?,
            ..Counters::default()
        };
        for proxy in cluster.proxies() {
            let cpu = proxy.cgroup.cpu()?;
            counters.proxies_us += cpu.usage_us;
            counters.proxies_throttled += cpu.throttled_periods;
        }
        // A node on which nothing was started has no cgroup.
        counters.arm_us = cluster
            .nodes()
            .iter()
            .filter_map(|node| node.cgroup.cpu().ok())
            .map(|cpu| cpu.usage_us)
            .sum();
        Ok(counters)
    }
}

impl Generator for NetnsGenerator {
    fn watch(&self, interrupt: &Interrupt) -> Result<[Counters; 2]> {
        let programs = self.bed.bpf_programs();
        interrupt.sleep_until(self.load.begin_ns)?;
        let before = self.look(&programs)?;
        interrupt.sleep_until(self.end_ns())?;
        Ok([before, self.look(&programs)?])
    }

    fn stop(&self) -> Result<()> {
        self.stopped.set(true);
        self.process.signal(Signal::SIGTERM).map(drop)
    }

    fn report(self: Box<Self>, interrupt: &Interrupt) -> Result<LoadReport> {
        if !self.stopped.get() {
            interrupt.sleep_until(self.end_ns())?;
        }
        let failed = |problem: String| ClusterError::Generator {
            pod: self.load.pod.clone(),
            problem,
        };
        let ended = interrupt.wait_for(Instant::now() + REPORTING, || {
            self.process.try_wait().transpose()
        })?;
        match ended {
            Some(status) if status.as_ref().is_ok_and(|status| status.success()) => {}
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => {
                let said = self.process.stderr_text().unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                return Err(failed(last.to_owned()));
            }
        }
        let text = self.process.stdout_text()?;
        serde_json::from_str(&text).map_err(|error| failed(format!("its report: {error}")))
    }
}

impl Capture for WireCapture {
    fn stop(self: Box<Self>) -> Result<CaptureReport> {
        WireCapture::stop(*self)
    }
}
