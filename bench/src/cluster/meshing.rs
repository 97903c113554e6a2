//! Where the mesh comes in: the control plane, and a proxy for every pod or for
//! every node. The only part of a cluster that differs between placements.

use super::assembly::{Inner, lock};
use super::binaries::{binary, runnable_by_all};
use super::error::{ClusterError, Result};
use super::mesh::{CONTROL_PORT, ControlPlane, HEALTH_PORT, Subject, get, issue_token};
use super::process::{Part, Process, Spawn, ending, run_tool};
use super::proxy::{AgentApi, Enrolment, Plan, Supervised};
use super::spec::Placement;
use super::topology::{PodEntry, agent_name, sidecar_name};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Whom sidecars run as: not root, and exempt from redirection.
pub const PROXY_UID: u32 = 2102;

/// How many sidecars are started before the first of them is ready.
const STARTING_AT_ONCE: usize = 4;

/// How often the control plane is asked whether it is ready.
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// How long connections live on after a handover: an experiment cannot wait for the minute that is usual.
pub const HANDOVER_DRAIN: &str = "3s";

/// Of an agent, as deploy/base/agent.yaml gives it: whoever takes it over has these, and no scenario may count others.
const AGENT_CAPABILITIES: [&str; 2] = ["sys_admin", "sys_ptrace"];

impl Inner {
    /// Gives new pods their proxies and waits for them.
    pub(super) fn mesh_pods(&self, entries: &[PodEntry]) -> Result<()> {
        let meshed = entries.iter().filter(|entry| entry.spec.meshed);
        match self.placement {
            Placement::None => Ok(()),
            Placement::Sidecar => {
                let mut started: Vec<Arc<Supervised>> = Vec::new();
                for entry in meshed {
                    // A few at a time: fifty at once would only wait for each other.
                    if let Some(earlier) = started.len().checked_sub(STARTING_AT_ONCE) {
                        started[earlier].wait_ready(self.plans.ready_timeout)?;
                    }
                    self.step(&format!("sidecar of {}", entry.spec.name));
                    let _making = self.making()?;
                    let sidecar = match &self.plans.peer {
                        Some(mesh) => self.peer(mesh, entry)?,
                        None => self.sidecar(entry)?,
                    };
                    self.topology()
                        .proxies
                        .insert(sidecar.name.clone(), sidecar.clone());
                    sidecar.start()?;
                    started.push(sidecar);
                }
                started
                    .iter()
                    .try_for_each(|sidecar| sidecar.wait_ready(self.plans.ready_timeout))
            }
            Placement::Agent => {
                let mut enrolled = Vec::new();
                for entry in meshed {
                    let name = agent_name(entry.spec.node);
                    let agent = self.topology().proxy(&name)?;
                    self.step(&format!("enrolment of {}", entry.spec.name));
                    agent.wait_ready(self.plans.ready_timeout)?;
                    let pod = self.pod(entry);
                    let enrolment = Enrolment {
                        workload: pod.workload(),
                        netns: pod.netns.path(),
                        pod: pod.name,
                    };
                    {
                        let _making = self.making()?;
                        agent.enrol(enrolment.clone())?;
                    }
                    enrolled.push((agent, enrolment));
                }
                enrolled.iter().try_for_each(|(agent, enrolment)| {
                    agent.wait_serving(enrolment, self.plans.ready_timeout)
                })
            }
        }
    }
    pub(super) fn start_control(&self) -> Result<()> {
        let Some(plane) = self.control_plane() else {
            return Err(ClusterError::Unsupported(
                "there is no mesh here, and so no control plane".to_owned(),
            ));
        };
        if plane.pid.is_some() {
            return Ok(());
        }
        let process = {
            let _making = self.making()?;
            let mut spawn = Spawn::in_control(binary("duet-control")?)
                .arg("--source")
                .arg(&plane.mesh_yaml)
                .arg("--listen")
                .arg(format!("0.0.0.0:{CONTROL_PORT}"))
                .arg("--state-dir")
                .arg(&plane.state_dir)
                .arg("--health")
                .arg(format!("127.0.0.1:{HEALTH_PORT}"));
            if let Some(lifetime) = self.plans.certificates {
                spawn = spawn
                    .arg("--cert-lifetime")
                    .arg(format!("{}s", lifetime.as_secs()));
            }
            let (netns, cgroup) = self.place(&spawn.place)?;
            self.spawner
                .spawn(&spawn, &netns, &cgroup.dirs(), &self.logs())?
        };
        *lock(&self.control) = Some(process.clone());
        let begun = Instant::now();
        loop {
            let missing = match get(&self.control_netns, HEALTH_PORT, "/ready") {
                Ok((200, _)) => break,
                Ok((_, why)) => why,
                Err(error) => error.to_string(),
            };
            let ended = process.try_wait()?;
            if ended.is_some() || begun.elapsed() > self.plans.ready_timeout {
                let log = process.log().to_owned();
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("nothing").to_owned();
                return Err(ClusterError::NotReady {
                    who: "duet-control".to_owned(),
                    after: begun.elapsed(),
                    missing: match ended {
                        Some(status) => format!("it {} and said last: {last}", ending(status)),
                        None => format!("{missing} (it said last: {last})"),
                    },
                    log,
                });
            }
            thread::sleep(PROBE_EVERY);
        }
        // Its own directory is private; what it signs with, the proxies must see.
        fs::copy(plane.state_dir.join("root.pem"), &plane.trust_bundle)
            .and_then(|_| {
                fs::set_permissions(&plane.trust_bundle, fs::Permissions::from_mode(0o644))
            })
            .map_err(ClusterError::io("copy the control plane's trust bundle"))
    }

    pub(super) fn control_plane(&self) -> Option<ControlPlane> {
        if !self.has_control() {
            return None;
        }
        let dir = self.state.dir();
        let address = (self.addresses.control().v4, CONTROL_PORT).into();
        let running =
            |process: &Arc<Process>| matches!(process.try_wait(), Ok(None)).then(|| process.pid());
        Some(ControlPlane {
            url: format!("https://{address}"),
            address,
            trust_bundle: dir.join("root.pem"),
            state_dir: dir.join("control"),
            mesh_yaml: self.mesh_yaml(),
            pid: lock(&self.control).as_ref().and_then(running),
        })
    }

    pub(super) fn mesh_yaml(&self) -> PathBuf {
        self.state.dir().join("mesh.yaml")
    }

    pub(super) fn token(&self, subject: &Subject, uid: u32) -> Result<PathBuf> {
        let plane = self.control_plane().ok_or_else(|| {
            ClusterError::Unsupported("there is no mesh here, and so no tokens".to_owned())
        })?;
        let path = self.token_path(subject, uid);
        issue_token(&plane.state_dir, subject, uid, &path)?;
        Ok(path)
    }

    pub(super) fn token_path(&self, subject: &Subject, uid: u32) -> PathBuf {
        let name = match subject {
            Subject::Workload(name) => format!("workload-{}", name.replace('/', ".")),
            Subject::Node(name) => format!("node-{name}"),
        };
        let dir = self.state.dir().join("tokens");
        dir.join(format!("{name}.{uid}"))
    }

    pub(super) fn proxy_spawn(
        &self,
        mut spawn: Spawn,
        subject: &Subject,
        uid: u32,
    ) -> Result<Spawn> {
        let Some(plane) = self.control_plane() else {
            return Ok(spawn);
        };
        spawn = spawn
            .arg("--control")
            .arg(plane.url)
            .arg("--trust-bundle")
            .arg(plane.trust_bundle)
            .arg("--token-file")
            .arg(self.token(subject, uid)?)
            .args(&self.plans.proxy_args);
        for (key, value) in &self.plans.proxy_env {
            spawn = spawn.env(key, value);
        }
        Ok(spawn)
    }

    pub(super) fn sidecar(&self, entry: &PodEntry) -> Result<Arc<Supervised>> {
        let pod = self.pod(entry);
        let program = binary("duet-sidecar")?;
        let uid = PROXY_UID.to_string();
        let init = ["init", "--proxy-uid", &uid];
        run_tool(&program, &init, "", Some(&pod.netns))?;
        let program = runnable_by_all(&program, &self.state.scratch)?;
        let spawn = Spawn::in_pod(&pod.name, Part::Proxy, program)
            .uid(PROXY_UID)
            .args(["run", "--workload", &pod.workload()]);
        Ok(Supervised::new(Plan {
            name: sidecar_name(&pod.name),
            placement: Placement::Sidecar,
            node: pod.node,
            spawn: self.proxy_spawn(spawn, &Subject::Workload(pod.workload()), PROXY_UID)?,
            cgroup: pod.part(Part::Proxy),
            logs: self.logs(),
            spawner: self.spawner.clone(),
            agent: None,
            pods: vec![Enrolment {
                workload: pod.workload(),
                netns: pod.netns.path(),
                pod: pod.name,
            }],
            netns: pod.netns,
        }))
    }

    pub(super) fn agent(&self, number: u32) -> Result<Arc<Supervised>> {
        let node = self.node(number)?;
        let program = binary("duet-agent")?;
        let socket = self.state.dir().join(format!("{}.sock", node.name));
        let Some(bpf_cgroup) = &node.bpf_cgroup else {
            return Err(ClusterError::Unsupported(
                "no cgroup v2 tree is mounted, and eBPF programs attach to nothing else: mount one with `mount -t cgroup2 none DIR`"
                    .to_owned(),
            ));
        };
        let cgroup = self.agent_cgroup(number);
        cgroup.make()?;
        let spawn = Spawn::in_node(number, &program)
            .only_capabilities(&AGENT_CAPABILITIES)
            .args(["supervise", "--node", &node.name, "--socket"])
            .arg(&socket)
            .args(["--handover-drain-timeout", HANDOVER_DRAIN])
            .arg("--bpffs")
            .arg(&self.state.bpffs[number as usize - 1])
            .arg("--cgroup")
            .arg(bpf_cgroup);
        Ok(Supervised::new(Plan {
            name: agent_name(number),
            placement: Placement::Agent,
            node: number,
            spawn: self.proxy_spawn(spawn, &Subject::Node(node.name), 0)?,
            netns: node.netns,
            cgroup,
            logs: self.logs(),
            spawner: self.spawner.clone(),
            agent: Some(AgentApi {
                binary: program,
                socket,
            }),
            pods: Vec::new(),
        }))
    }
}
