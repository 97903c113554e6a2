//! How a cluster is put together, changed and taken apart.

use super::cgroup::Cgroup;
use super::error::{ClusterError, Result};
use super::interrupt;
use super::mesh::{DescribedPod, DescribedService, write_description};
use super::netns::Netns;
use super::network::{
    Addresses, PodLink, join_node, join_pods, leave_pod, make_namespaces, make_wire,
    remove_namespaces,
};
use super::peering::PeerMesh;
use super::process::{Part, Place, Process, Spawner};
use super::spec::{Limits, Placement, PodSpec, ServiceSpec};
use super::state::{State, mount_bpffs};
use super::topology::{Node, Pod, PodEntry, Topology, agent_name, node_name, sidecar_name};
use super::vip;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Set where proxies are given time to end, at which those that count what they do write it
/// down (core/profile/train).
const GRACE: &str = "DUET_BENCH_GRACE";
const TO_END: Duration = Duration::from_secs(1);

/// How a cluster is to be run, whatever is in it.
pub(super) struct Plans {
    pub name: String,
    pub limits: Limits,
    pub proxy_args: Vec<String>,
    pub proxy_env: Vec<(String, String)>,
    pub peer: Option<PeerMesh>,
    pub certificates: Option<Duration>,
    pub ready_timeout: Duration,
    pub keep_logs: Option<PathBuf>,
    pub on_step: Box<dyn Fn(&str) + Send + Sync>,
}

pub(super) struct Inner {
    pub(super) state: State,
    pub(super) placement: Placement,
    pub(super) plans: Plans,
    pub(super) addresses: Addresses,
    pub(super) nodes: Vec<(u32, Netns)>,
    pub(super) control_netns: Netns,
    pub(super) cgroup: Cgroup,
    pub(super) spawner: Arc<Spawner>,
    pub(super) topology: Mutex<Topology>,
    pub(super) control: Mutex<Option<Arc<Process>>>,
    pub(super) limits: Mutex<Limits>,
    /// Services of nobody here, as text.
    pub(super) burden: Mutex<String>,
    /// Held while something is made, so that nothing is made while all is
    /// removed. True once that has happened.
    pub(super) removed: Mutex<bool>,
    /// Held over a whole change of the topology.
    pub(super) changing: Mutex<()>,
}

// === impl Inner ===

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.state.id)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Takes an id. From here on the cluster is on record and will be removed.
    pub(super) fn claim(placement: Placement, nodes: u32, plans: Plans) -> Result<Arc<Self>> {
        let state = State::claim(nodes)?;
        let inner = Arc::new(Self {
            placement,
            addresses: Addresses { index: state.index },
            nodes: (1..=nodes)
                .map(|node| {
                    (
                        node,
                        Netns::named(state.netns_name(&format!("node-{node}"))),
                    )
                })
                .collect(),
            control_netns: Netns::named(state.netns_name("control")),
            cgroup: state.cgroup()?,
            spawner: Arc::new(Spawner::start()?),
            topology: Mutex::new(Topology::default()),
            control: Mutex::new(None),
            limits: Mutex::new(plans.limits),
            burden: Mutex::default(),
            removed: Mutex::new(false),
            changing: Mutex::new(()),
            plans,
            state,
        });
        interrupt::register(&inner);
        Ok(inner)
    }

    pub(super) fn build(&self, mut pods: Vec<PodSpec>, services: Vec<ServiceSpec>) -> Result<()> {
        // A proxy is ready once it has an identity, and only members of the mesh are given one.
        let unannounced: Vec<String> = pods
            .iter_mut()
            .filter(|pod| !pod.announced)
            .map(|pod| {
                pod.announced = true;
                pod.name.clone()
            })
            .collect();
        self.step("nodes");
        {
            let mut topology = self.topology();
            for service in services {
                topology.admit_service(service)?;
            }
        }
        {
            let _making = self.making()?;
            let dir = self.state.dir();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))
                .map_err(ClusterError::io(format!("open {} to all", dir.display())))?;
            self.cgroup.child("control").make()?;
            let mut all = vec![&self.control_netns];
            all.extend(self.nodes.iter().map(|(_, netns)| netns));
            make_namespaces(&all)?;
            make_wire(self.addresses, &self.control_netns)?;
            join_node(self.addresses, &self.control_netns, &self.nodes)?;
        }
        if !self.has_control() {
            return self.add_pods(pods);
        }
        self.publish()?;
        self.step("control plane");
        self.start_control()?;
        if self.placement == Placement::Agent {
            self.step("agents");
            let _making = self.making()?;
            mount_bpffs()?;
            for node in self.nodes.iter().map(|(number, _)| *number) {
                let agent = self.agent(node)?;
                self.topology()
                    .proxies
                    .insert(agent.name.clone(), agent.clone());
                agent.start()?;
            }
        }
        self.add_pods(pods)?;
        let proxies: Vec<_> = self.topology().proxies.values().cloned().collect();
        proxies
            .iter()
            .try_for_each(|proxy| proxy.wait_ready(self.plans.ready_timeout))?;
        if unannounced.is_empty() {
            return Ok(());
        }
        for pod in &mut self.topology().pods {
            pod.spec.announced = !unannounced.contains(&pod.spec.name);
        }
        self.publish()
    }

    pub(super) fn add_pods(&self, specs: Vec<PodSpec>) -> Result<()> {
        if specs.is_empty() {
            return self.publish();
        }
        let _changing = lock(&self.changing);
        self.step(&format!("{} pods", specs.len()));
        let mut entries = Vec::new();
        for spec in specs {
            entries.push(self.topology().admit(spec, self.nodes.len() as u32)?);
        }
        {
            let _making = self.making()?;
            let links: Vec<PodLink> = entries
                .iter()
                .map(|entry| PodLink {
                    netns: self.pod(entry).netns,
                    node: entry.spec.node,
                    host: entry.host,
                })
                .collect();
            make_namespaces(&links.iter().map(|link| &link.netns).collect::<Vec<_>>())?;
            for (node, netns) in &self.nodes {
                let here: Vec<&PodLink> = links.iter().filter(|link| link.node == *node).collect();
                if !here.is_empty() {
                    join_pods(self.addresses, *node, netns, &here)?;
                }
            }
            for entry in &entries {
                let pod = self.pod(entry);
                for part in [Part::App, Part::Proxy, Part::Load] {
                    pod.part(part).make()?;
                }
                let app = pod.part(Part::App);
                let limits = *lock(&self.limits);
                if limits.app_cpu_millis.is_some() {
                    app.set_cpu_millis(limits.app_cpu_millis)?;
                }
                if limits.app_memory.is_some() {
                    app.set_memory(limits.app_memory)?;
                }
            }
            self.share_limits()?;
        }
        self.publish()?;
        self.mesh_pods(&entries)
    }
    pub(super) fn remove_pod(&self, name: &str) -> Result<()> {
        let _changing = lock(&self.changing);
        let entry = self.topology().pod(name)?.clone();
        self.topology().pods.retain(|pod| pod.spec.name != name);
        self.publish()?;
        let _making = self.making()?;
        let sidecar = self.topology().proxies.remove(&sidecar_name(name));
        if let Some(sidecar) = sidecar {
            sidecar.end(Duration::ZERO);
        }
        let pod = self.pod(&entry);
        pod.cgroup.kill_all()?;
        if self.placement == Placement::Agent {
            let agent = self.topology().proxy(&agent_name(entry.spec.node))?;
            agent.dismiss(name)?;
        }
        leave_pod(&self.node(pod.node)?.netns, entry.host)?;
        remove_namespaces(&[pod.netns.name().to_owned()])?;
        pod.cgroup.remove()?;
        self.share_limits()
    }

    /// Tells control plane and nodes who is there.
    pub(super) fn publish(&self) -> Result<()> {
        let _making = self.making()?;
        let topology = self.topology();
        let vips = topology.vips(self.addresses);
        for (_, netns) in &self.nodes {
            vip::install(netns, &vips)?;
        }
        if !self.has_control() {
            return Ok(());
        }
        let pods: Vec<DescribedPod<'_>> = topology
            .pods
            .iter()
            .map(|pod| DescribedPod {
                spec: &pod.spec,
                node: node_name(pod.spec.node),
                address: self.addresses.pod(pod.spec.node, pod.host),
            })
            .collect();
        let services: Vec<DescribedService<'_>> = topology
            .services
            .iter()
            .enumerate()
            .map(|(number, service)| DescribedService {
                name: &service.name,
                namespace: &service.namespace,
                address: self.addresses.service(number as u16),
                ports: &service.ports,
                workloads: topology
                    .behind(service)
                    .map(|pod| pod.spec.workload())
                    .collect(),
            })
            .collect();
        write_description(&self.mesh_yaml(), &pods, &services, &lock(&self.burden))
    }

    /// Shares each node's sum among the proxies that stand there.
    pub(super) fn share_limits(&self) -> Result<()> {
        let limits = *lock(&self.limits);
        if limits.proxy_total_cpu_millis.is_none() && limits.proxy_total_memory.is_none() {
            return Ok(());
        }
        let topology = self.topology();
        for (node, _) in &self.nodes {
            let proxies = Limits::proxies_per_node(self.placement, topology.meshed_on(*node));
            let groups: Vec<Cgroup> = match self.placement {
                Placement::None => Vec::new(),
                Placement::Agent => vec![self.agent_cgroup(*node)],
                Placement::Sidecar => topology
                    .pods
                    .iter()
                    .filter(|pod| pod.spec.meshed && pod.spec.node == *node)
                    .map(|pod| self.pod(pod).part(Part::Proxy))
                    .collect(),
            };
            for group in groups {
                group.make()?;
                group.set_cpu_millis(limits.proxy_cpu_millis(proxies))?;
                group.set_memory(limits.proxy_memory(proxies))?;
            }
        }
        Ok(())
    }

    // --- who is where ---

    /// Whether there is a mesh of Duet's.
    pub(super) fn has_control(&self) -> bool {
        self.placement != Placement::None && self.plans.peer.is_none()
    }

    pub(super) fn node(&self, number: u32) -> Result<Node> {
        let (number, netns) = self
            .nodes
            .iter()
            .find(|(known, _)| *known == number)
            .ok_or_else(|| {
                let known: Vec<String> = self.nodes.iter().map(|(n, _)| n.to_string()).collect();
                let known = known.iter().map(String::as_str);
                ClusterError::unknown("node", &number.to_string(), known)
            })?;
        let address = self.addresses.node(*number);
        let cgroup = self.cgroup.child(&node_name(*number));
        Ok(Node {
            number: *number,
            name: node_name(*number),
            netns: netns.clone(),
            v4: address.v4,
            v6: address.v6,
            bpf_cgroup: cgroup.unified_dir(),
            cgroup,
        })
    }

    pub(super) fn pod(&self, entry: &PodEntry) -> Pod {
        let PodEntry { spec, host } = entry;
        let address = self.addresses.pod(spec.node, *host);
        Pod {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
            node: spec.node,
            meshed: spec.meshed,
            netns: Netns::named(self.state.netns_name(&format!("pod-{}", spec.name))),
            v4: address.v4,
            v6: address.v6,
            cgroup: self
                .cgroup
                .child(&node_name(spec.node))
                .child(&format!("pod-{}", spec.name)),
        }
    }

    pub(super) fn agent_cgroup(&self, node: u32) -> Cgroup {
        self.cgroup.child(&node_name(node)).child("agent")
    }

    pub(super) fn place(&self, place: &Place) -> Result<(Netns, Cgroup)> {
        match place {
            Place::Pod(name, part) => {
                let pod = self.pod(self.topology().pod(name)?);
                let cgroup = pod.part(*part);
                Ok((pod.netns, cgroup))
            }
            Place::Node(number) => {
                let node = self.node(*number)?;
                let cgroup = node.cgroup.child("host");
                cgroup.make()?;
                Ok((node.netns, cgroup))
            }
            Place::Control => Ok((self.control_netns.clone(), self.cgroup.child("control"))),
        }
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.state.dir().join("logs")
    }

    pub(super) fn step(&self, what: &str) {
        (self.plans.on_step)(&format!("{}: {what}", self.plans.name));
    }

    pub(super) fn topology(&self) -> MutexGuard<'_, Topology> {
        lock(&self.topology)
    }

    // --- the end ---

    /// While the guard lives the cluster is not removed.
    pub(super) fn making(&self) -> Result<MutexGuard<'_, bool>> {
        let removed = lock(&self.removed);
        if *removed {
            return Err(ClusterError::Unsupported(format!(
                "cluster {} has been removed",
                self.state.id
            )));
        }
        Ok(removed)
    }

    /// Removes it all. Doing so again does nothing.
    pub(super) fn remove(&self) -> Result<()> {
        let mut removed = lock(&self.removed);
        if *removed {
            return Ok(());
        }
        *removed = true;
        let proxies: BTreeMap<_, _> = std::mem::take(&mut self.topology().proxies);
        if std::env::var_os(GRACE).is_some() {
            for proxy in proxies.values() {
                proxy.end(TO_END);
            }
        }
        self.spawner.close();
        for proxy in proxies.values() {
            proxy.end(Duration::ZERO);
        }
        if let Some(control) = lock(&self.control).take() {
            control.kill();
        }
        if let Some(dir) = &self.plans.keep_logs {
            // What cannot be kept is no reason to leave namespaces behind.
            let _ = copy_files(&self.logs(), dir);
        }
        self.state.remove()
    }
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
