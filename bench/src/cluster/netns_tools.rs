//! What experiments do to a netns cluster beside load and faults: programs in pods, accounts of
//! who pays for what, and of what is left.

use super::binaries::runnable_by_all;
use super::error::{ClusterError, Result};
use super::live::NetnsCluster;
use super::mesh::Subject;
use super::meshing::PROXY_UID;
use super::netns_site::own_program;
use super::process::{Part, ProcessHandle, Spawn};
use super::proxy::Proxy;
use super::site::{Belongings, Charge, Running, Tool, User, Whereabouts};
use super::spec::Placement;
use super::state::BPFFS;
use crate::accounting::{Rollup, map_entries, open_files};
use crate::run::Interrupt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// An application without privileges: nobody whom any rule of the mesh names.
const NOBODY: u32 = 65534;

struct Started {
    pod: String,
    process: ProcessHandle,
}

pub(super) fn start(cluster: &NetnsCluster, tool: &Tool) -> Result<Box<dyn Running>> {
    let program = runnable_by_all(&own_program()?, &cluster.inner().state.scratch)?;
    let begin = tool
        .begin_ns
        .map(|at| ["--start-at".to_owned(), at.to_string()]);
    let spawn = Spawn::in_pod(&tool.pod, Part::Load, program)
        .args(&tool.arguments)
        .args(begin.iter().flatten())
        .split_output();
    let spawn = match (tool.user, cluster.placement()) {
        (User::Application, _) => spawn,
        (User::Nobody, _) => spawn.uid(NOBODY),
        // Whom each placement's redirection lets pass.
        (User::Proxy, Placement::Agent) => spawn.outside_cgroups(),
        (User::Proxy, _) => spawn.uid(PROXY_UID),
    };
    Ok(Box::new(Started {
        pod: tool.pod.clone(),
        process: cluster.spawn(spawn)?,
    }))
}

impl Running for Started {
    fn finish(self: Box<Self>, interrupt: &Interrupt, within: Duration) -> Result<String> {
        let failed = |problem: String| ClusterError::Pod {
            pod: self.pod.clone(),
            problem,
        };
        let ended = interrupt.wait_for(Instant::now() + within, || {
            self.process.try_wait().transpose()
        })?;
        match ended.transpose()? {
            Some(status) if status.success() => self.process.stdout_text(),
            Some(_) => {
                let said = self.process.stderr_text()?;
                Err(failed(
                    said.lines().last().unwrap_or("it said nothing").to_owned(),
                ))
            }
            None => Err(failed(format!(
                "its program has not ended after {within:?}"
            ))),
        }
    }
}

fn proxies_on(cluster: &NetnsCluster, node: u32) -> impl Iterator<Item = Proxy> {
    let all = cluster.proxies().into_iter();
    all.filter(move |proxy| proxy.node == node)
}

pub(super) fn charges(cluster: &NetnsCluster, node: u32) -> Result<Vec<Charge>> {
    let pods = cluster.pods();
    proxies_on(cluster, node)
        .map(|proxy| {
            let memory = proxy.cgroup.memory()?;
            let pays = pods.iter().find(|pod| proxy.cgroup.is_within(&pod.cgroup));
            Ok(Charge {
                pod: pays.map(|pod| pod.name.clone()),
                cpu_us: proxy.cgroup.cpu()?.usage_us,
                memory: memory.kernel + anonymous(&proxy)?,
                proxy: proxy.name,
            })
        })
        .collect()
}

fn anonymous(proxy: &Proxy) -> Result<u64> {
    let mut sum = 0;
    for pid in proxy.cgroup.pids() {
        sum += Rollup::read(pid)?.anonymous;
    }
    Ok(sum)
}

/// Processes of one program: its text is there once, however many run it.
pub(super) fn of_one_program(processes: &[Rollup]) -> Rollup {
    let mut sum: Rollup = processes.iter().copied().sum();
    let text = |one: &Rollup| one.rss.saturating_sub(one.anonymous);
    sum.rss = sum.anonymous + processes.iter().map(text).max().unwrap_or(0);
    sum
}

pub(super) fn belongings(cluster: &NetnsCluster, node: u32) -> Result<Belongings> {
    let prefix = cluster.inner().state.netns_name("");
    let namespaces = fs::read_dir("/run/netns")
        .map_err(ClusterError::io("list /run/netns"))?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .count();
    let mut files = 0;
    for pid in proxies_on(cluster, node).flat_map(|proxy| proxy.cgroup.pids()) {
        files += open_files(pid)?;
    }
    let name = cluster.node(node)?.name;
    let base = PathBuf::from(format!("{BPFFS}/duet-{}-{name}", cluster.id()));
    let mut entries = 0;
    for version in fs::read_dir(base).into_iter().flatten().flatten() {
        entries += map_entries(&version.path().join("maps"))?;
    }
    Ok(Belongings {
        namespaces: namespaces as u64,
        map_entries: entries,
        files,
    })
}

pub(super) fn whereabouts(cluster: &NetnsCluster, name: &str) -> Result<Whereabouts> {
    let proxy = cluster.proxy(name)?;
    let none = |what: &str| ClusterError::Unsupported(format!("{name} has no {what}"));
    let control = cluster.control().ok_or_else(|| none("control plane"))?;
    let (subject, uid) = match proxy.placement {
        Placement::Agent => (Subject::Node(cluster.node(proxy.node)?.name), 0),
        _ => {
            let pod = proxy.pods.first().ok_or_else(|| none("pod"))?;
            (Subject::Workload(cluster.pod(pod)?.workload()), PROXY_UID)
        }
    };
    Ok(Whereabouts {
        pid: proxy.pid.ok_or_else(|| none("process"))?,
        token: cluster.inner().token_path(&subject, uid),
        control: control.url,
        trust_bundle: control.trust_bundle,
        socket: proxy.socket.clone(),
    })
}
