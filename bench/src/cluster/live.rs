//! A cluster that is up, and all that can be asked of it.

use super::assembly::{Inner, lock};
use super::builder::Builder;
use super::capture::WireCapture;
use super::error::{ClusterError, Result};
use super::mesh::{ControlPlane, Subject};
use super::process::{ProcessHandle, Spawn};
use super::proxy::{Life, Proxy, Restart};
use super::spec::{Limits, Placement, PodSpec};
use super::topology::{Node, Pod, Service};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

/// Nodes, pods and a mesh. Dropping it removes them all.
#[derive(Debug)]
pub struct NetnsCluster {
    inner: Arc<Inner>,
}

// === impl NetnsCluster ===

impl NetnsCluster {
    /// A cluster with two nodes and nothing on them, to be described further.
    pub fn builder(placement: Placement) -> Builder {
        Builder::new(placement)
    }

    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Unique on the machine: part of the name of everything it made.
    pub fn id(&self) -> &str {
        &self.inner.state.id
    }

    pub fn name(&self) -> &str {
        &self.inner.plans.name
    }

    pub fn placement(&self) -> Placement {
        self.inner.placement
    }

    pub fn limits(&self) -> Limits {
        *lock(&self.inner.limits)
    }

    /// Its files: logs, tokens, sockets. Gone with the cluster.
    pub fn dir(&self) -> PathBuf {
        self.inner.state.dir()
    }

    pub fn nodes(&self) -> Vec<Node> {
        let numbers = self.inner.nodes.iter().map(|(number, _)| *number);
        numbers
            .filter_map(|number| self.node(number).ok())
            .collect()
    }

    pub fn node(&self, number: u32) -> Result<Node> {
        self.inner.node(number)
    }

    pub fn pods(&self) -> Vec<Pod> {
        let topology = self.inner.topology();
        topology
            .pods
            .iter()
            .map(|pod| self.inner.pod(pod))
            .collect()
    }

    pub fn pod(&self, name: &str) -> Result<Pod> {
        Ok(self.inner.pod(self.inner.topology().pod(name)?))
    }

    pub fn service(&self, name: &str) -> Result<Service> {
        let topology = self.inner.topology();
        let (number, service) = topology.service(name)?;
        let address = self.inner.addresses.service(number as u16);
        Ok(Service {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            v4: address.v4,
            v6: address.v6,
            ports: service.ports.clone(),
            pods: service.pods.clone(),
        })
    }

    /// Makes one more pod and waits until its proxy is ready. Where there is a sum of
    /// limits for the node's proxies, all sidecars of the node share it anew.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Pod> {
        let name = spec.name.clone();
        self.inner.add_pods(vec![spec])?;
        self.pod(&name)
    }

    /// Makes several pods at once, which is quicker than one by one.
    pub fn add_pods(&self, specs: Vec<PodSpec>) -> Result<()> {
        self.inner.add_pods(specs)
    }

    /// Takes a pod out of its services, then ends its processes and removes it.
    pub fn remove_pod(&self, name: &str) -> Result<()> {
        self.inner.remove_pod(name)
    }

    /// Puts these pods behind a service, and no others.
    pub fn set_service_pods(&self, service: &str, pods: &[&str]) -> Result<()> {
        let _changing = lock(&self.inner.changing);
        {
            let mut topology = self.inner.topology();
            let (number, _) = topology.service(service)?;
            topology.services[number].pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
        }
        self.inner.publish()
    }

    /// Starts a process; it is killed when the handle is dropped.
    pub fn spawn(&self, spawn: Spawn) -> Result<ProcessHandle> {
        let (netns, cgroup) = self.inner.place(&spawn.place)?;
        let cgroups = if spawn.is_outside {
            Vec::new()
        } else if spawn.is_realtime() {
            cgroup.realtime_dirs()?
        } else {
            cgroup.dirs()
        };
        let _making = self.inner.making()?;
        let logs = self.inner.logs();
        let process = self.inner.spawner.spawn(&spawn, &netns, &cgroups, &logs)?;
        Ok(ProcessHandle::new(process))
    }

    /// Runs a process to its end and collects what it wrote.
    pub fn exec(&self, spawn: Spawn) -> Result<Output> {
        let process = self.spawn(spawn.split_output())?;
        let status = process.wait()?;
        Ok(Output {
            status,
            stdout: process.stdout_text()?.into_bytes(),
            stderr: process.stderr_text()?.into_bytes(),
        })
    }

    /// Runs `f` on a thread inside a pod's namespace. What it connects is *not*
    /// captured by an agent: see the module's documentation.
    pub fn run_in_pod<T: Send>(&self, pod: &str, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.pod(pod)?.netns.run(f)
    }

    /// Runs `f` on a thread inside a node's namespace.
    pub fn run_in_node<T: Send>(&self, node: u32, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.node(node)?.netns.run(f)
    }

    /// Runs `f` on a thread inside the control plane's namespace.
    pub fn run_in_control<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.control_netns.run(f)
    }

    /// A directory with certificate, key and root of a pod's identity.
    pub fn certify(&self, pod: &str) -> Result<PathBuf> {
        self.inner.certify(pod)
    }

    pub fn proxies(&self) -> Vec<Proxy> {
        let topology = self.inner.topology();
        topology
            .proxies
            .values()
            .map(|proxy| proxy.describe())
            .collect()
    }

    pub fn proxy(&self, name: &str) -> Result<Proxy> {
        Ok(self.inner.topology().proxy(name)?.describe())
    }

    /// The proxy that serves a pod.
    pub fn proxy_of(&self, pod: &str) -> Result<Proxy> {
        self.inner.topology().pod(pod)?;
        self.proxies()
            .into_iter()
            .find(|proxy| proxy.pods.iter().any(|served| served == pod))
            .ok_or_else(|| ClusterError::Unsupported(format!("pod {pod} has no proxy")))
    }

    /// Sends a proxy a signal and returns when that was, on CLOCK_MONOTONIC in ns. If
    /// it dies of it, it is started again, or not.
    pub fn kill_proxy(&self, name: &str, signal: Signal, restart: Restart) -> Result<u64> {
        let proxy = self.inner.topology().proxy(name)?;
        proxy.kill(signal, restart)
    }

    /// Waits until a proxy is dead and its supervisor has seen it. False if it is
    /// still alive after `timeout`.
    pub fn wait_dead(&self, name: &str, timeout: Duration) -> Result<bool> {
        let proxy = self.inner.topology().proxy(name)?;
        Ok(proxy.wait_dead(timeout))
    }

    /// Starts a proxy that was to stay dead, and waits until it is ready.
    pub fn start_proxy(&self, name: &str) -> Result<()> {
        let proxy = self.inner.topology().proxy(name)?;
        {
            let _making = self.inner.making()?;
            proxy.start()?;
        }
        proxy.wait_ready(self.inner.plans.ready_timeout)
    }

    /// Puts another agent in the place of this one, which hands over to it.
    pub fn hand_over(&self, name: &str) -> Result<()> {
        let proxy = self.inner.topology().proxy(name)?;
        proxy.hand_over(self.inner.plans.ready_timeout)
    }

    pub fn wait_proxy_ready(&self, name: &str, timeout: Duration) -> Result<()> {
        let proxy = self.inner.topology().proxy(name)?;
        proxy.wait_ready(timeout)
    }

    /// A proxy's incarnations, the first one first.
    pub fn lives(&self, name: &str) -> Result<Vec<Life>> {
        Ok(self.inner.topology().proxy(name)?.lives())
    }

    /// None if there is no mesh.
    pub fn control(&self) -> Option<ControlPlane> {
        self.inner.control_plane()
    }

    /// Ends the control plane with SIGTERM; it stays away until `start_control`.
    pub fn stop_control(&self) -> Result<()> {
        if let Some(process) = lock(&self.inner.control).take() {
            ProcessHandle::new(process).stop(Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// Starts the control plane and waits until it is ready.
    pub fn start_control(&self) -> Result<()> {
        self.inner.start_control()
    }

    pub fn restart_control(&self) -> Result<()> {
        self.stop_control()?;
        self.start_control()
    }

    /// Gives all proxies of a node so much processor together from now on; in thousandths of a core.
    pub fn limit_processors(&self, millis: u32) -> Result<()> {
        let _changing = lock(&self.inner.changing);
        lock(&self.inner.limits).proxy_total_cpu_millis = Some(millis);
        self.inner.share_limits()
    }

    /// Puts these services, as duet-control's file has them, beside the cluster's own.
    pub fn burden(&self, services: &str) -> Result<()> {
        let _changing = lock(&self.inner.changing);
        services.clone_into(&mut lock(&self.inner.burden));
        self.inner.publish()
    }

    /// A fresh token, in a file that only `uid` can read.
    pub fn token(&self, subject: &Subject, uid: u32) -> Result<PathBuf> {
        self.inner.token(subject, uid)
    }

    /// Watches all interfaces of a node for packets that hold a marker.
    pub fn capture(&self, node: u32, markers: &[&[u8]]) -> Result<WireCapture> {
        WireCapture::start(&self.node(node)?.netns, markers)
    }

    /// Removes it all, as dropping does, but says if something resisted.
    pub fn remove(self) -> Result<()> {
        self.inner.remove()
    }
}

impl Drop for NetnsCluster {
    fn drop(&mut self) {
        if let Err(error) = self.inner.remove() {
            eprintln!(
                "duet-bench: cluster {} could not be removed: {error}; `duet-bench clean` tries again",
                self.inner.state.id
            );
        }
    }
}
