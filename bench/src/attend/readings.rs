//! What the kernel counts on a node, for the containers that are asked about.

use super::protocol::{Charged, Held, Hello, Look, Page};
use super::{Attendant, at};
use crate::accounting::{
    BpfPrograms, CpuPressure, MachineCpu, ProcessCpu, Rollup, map_entries, open_files,
};
use crate::cluster::{self, Belongings, Cgroup, monotonic_ns};
use nix::sched::{CloneFlags, setns};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

/// How deep in bpffs an agent keeps the folders of its links.
const PINS_DEEPEST: usize = 4;

impl Attendant {
    pub(super) fn hello(&self) -> Hello {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after_colon = |path: &str, key: &str| {
            text(path)
                .lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            core: duet_core::CORE_FINGERPRINT.to_owned(),
            opt_level: duet_core::OPT_LEVEL.to_owned(),
            boot: text("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: after_colon("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores: thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_mib: after_colon("/proc/meminfo", "MemTotal")
                .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            cgroups: self
                .containers
                .as_ref()
                .ok()
                .map(|containers| containers.layout().describe().to_owned()),
            congestion_control: text("/proc/sys/net/ipv4/tcp_congestion_control")
                .trim()
                .to_owned(),
            digest: own_digest().unwrap_or_default(),
        }
    }

    pub(super) fn look(
        &self,
        at_ns: Option<u64>,
        proxies: &[String],
        generator: Option<&str>,
        pods: &[String],
        programs: bool,
    ) -> Result<Look, String> {
        // Found beforehand, so that the look itself is quick.
        let containers = self.containers()?;
        let proxies = all(proxies, |id| containers.container(id))?;
        let generator = generator.map(|id| containers.container(id)).transpose()?;
        let pods = all(pods, |uid| containers.pod(uid))?;
        let programs = if programs {
            BpfPrograms::behind_links(pins(&self.bpffs))
        } else {
            BpfPrograms::default()
        };
        at(at_ns)?;
        let mut look = Look {
            at_ns: monotonic_ns(),
            machine: MachineCpu::read().map_err(said)?,
            pressure: CpuPressure::read(),
            bpf: programs.used().map_err(said)?,
            ..Look::default()
        };
        for proxy in &proxies {
            let cpu = proxy.cpu().map_err(said)?;
            look.proxies_us += cpu.usage_us;
            look.proxies_throttled += cpu.throttled_periods;
        }
        if let Some(generator) = generator {
            look.generator_throttled = generator.cpu().map_err(said)?.throttled_periods;
        }
        for pod in &pods {
            look.pods_us += pod.cpu().map_err(said)?.usage_us;
        }
        Ok(look)
    }

    pub(super) fn ran(&self, containers: &[String]) -> Result<u64, String> {
        let mut ns = 0;
        for id in containers {
            let cgroup = self.containers()?.container(id)?;
            for pid in cgroup.pids_below() {
                ns += ProcessCpu::read(pid).map_err(said)?.ran.as_nanos() as u64;
            }
        }
        Ok(ns)
    }

    pub(super) fn holdings(&self, containers: &[String]) -> Result<Vec<Held>, String> {
        all(containers, |id| {
            let cgroup = self.containers()?.container(id)?;
            let pids = cgroup.pids_below();
            let rollups = all(&pids, |pid| Rollup::read(*pid).map_err(said))?;
            let files = all(&pids, |pid| open_files(*pid).map_err(said))?;
            Ok(Held {
                rollup: rollups.into_iter().sum(),
                open_files: files.into_iter().sum(),
                charged: cgroup.memory().map_err(said)?,
            })
        })
    }

    pub(super) fn charges(
        &self,
        containers: &[String],
        pods: &[String],
    ) -> Result<Vec<Charged>, String> {
        let known = self.containers()?;
        let groups = all(pods, |uid| known.pod(uid))?;
        all(containers, |id| {
            let cgroup = known.container(id)?;
            let mut groups = pods.iter().zip(&groups);
            let pays = groups.find(|(_, group)| cgroup.is_within(group));
            let rollups = all(&cgroup.pids_below(), |pid| Rollup::read(*pid).map_err(said))?;
            let anonymous: u64 = rollups.iter().map(|one| one.anonymous).sum();
            Ok(Charged {
                cpu_us: cgroup.cpu().map_err(said)?.usage_us,
                memory: cgroup.memory().map_err(said)?.kernel + anonymous,
                pod: pays.map(|(uid, _)| uid.clone()),
            })
        })
    }

    pub(super) fn belongings(
        &self,
        containers: &[String],
        programs: bool,
    ) -> Result<Belongings, String> {
        let mut files = 0;
        for id in containers {
            for pid in self.containers()?.container(id)?.pids_below() {
                files += open_files(pid).map_err(said)?;
            }
        }
        let maps: BTreeSet<_> = pins(&self.bpffs)
            .iter()
            .filter(|_| programs)
            .filter_map(|pins| Some(pins.parent()?.join("maps")))
            .collect();
        let entries = maps.iter().map(|maps| map_entries(maps).map_err(said));
        Ok(Belongings {
            namespaces: networks().len() as u64,
            map_entries: entries.sum::<Result<u64, String>>()?,
            files,
        })
    }

    pub(super) fn get(&self, container: &str, port: u16, path: &str) -> Result<Page, String> {
        let cgroup = self.containers()?.container(container)?;
        let pid = first_process(&cgroup)
            .ok_or_else(|| format!("container {container} has no process"))?;
        in_network_of(pid, || cluster::get_here(port, path))?
            .map(|(status, body)| Page { status, body })
            .map_err(|error| format!("GET http://127.0.0.1:{port}{path}: {error}"))
    }
}

/// All networks of the node: those that a process is in, and those that a mount keeps, as runtimes
/// do while a pod is there.
fn networks() -> BTreeSet<u64> {
    let (mut networks, mut mounts) = (BTreeSet::new(), BTreeSet::new());
    for process in procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(namespaces) = process.namespaces() else {
            continue;
        };
        let namespace = |kind: &str| namespaces.0.get(OsStr::new(kind)).map(|one| one.identifier);
        networks.extend(namespace("net"));
        // One process knows the mounts of all that share its namespace.
        let Some(of) = namespace("mnt").filter(|of| !mounts.contains(of)) else {
            continue;
        };
        let Ok(known) = process.mountinfo() else {
            continue;
        };
        mounts.insert(of);
        let kept = known.into_iter().filter(|mount| mount.fs_type == "nsfs");
        networks.extend(kept.filter_map(|mount| {
            let number = mount.root.strip_prefix("net:[")?.strip_suffix(']')?;
            number.parse::<u64>().ok()
        }));
    }
    networks
}

/// The process that has been in a group for longest.
fn first_process(cgroup: &Cgroup) -> Option<u32> {
    by_age(cgroup).first().copied()
}

/// The process of a proxy that holds its keys: a supervisor is there before it.
pub(super) fn proxying_process(cgroup: &Cgroup) -> Option<u32> {
    by_age(cgroup).last().copied()
}

/// The oldest first.
fn by_age(cgroup: &Cgroup) -> Vec<u32> {
    let began = |pid: u32| {
        let process = procfs::process::Process::new(pid as i32).ok()?;
        Some((process.stat().ok()?.starttime, pid))
    };
    let mut processes: Vec<_> = cgroup.pids_below().into_iter().filter_map(began).collect();
    processes.sort_unstable();
    processes.into_iter().map(|(_, pid)| pid).collect()
}

/// Moves the calling thread into a process's network, for good.
pub(super) fn enter_network_of(pid: u32) -> Result<(), String> {
    let path = format!("/proc/{pid}/ns/net");
    let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| format!("enter {path}: {error}"))
}

/// Runs `f` on a thread of its own in a process's network.
fn in_network_of<T: Send>(pid: u32, f: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        scope
            .spawn(|| enter_network_of(pid).map(|()| f()))
            .join()
            .unwrap_or_else(|_| Err("the visit to another network panicked".to_owned()))
    })
}

/// Every folder of pinned links in a bpffs.
fn pins(bpffs: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![(bpffs.to_owned(), 0)];
    while let Some((dir, depth)) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if depth >= PINS_DEEPEST || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == "links" || entry.file_name() == "pods" {
                found.push(entry.path());
            } else {
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

fn own_digest() -> Option<String> {
    let program = fs::read(std::env::current_exe().ok()?).ok()?;
    let digest = Sha256::digest(program);
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn all<A, T>(these: &[A], each: impl Fn(&A) -> Result<T, String>) -> Result<Vec<T>, String> {
    these.iter().map(each).collect()
}

pub(super) fn said(error: impl ToString) -> String {
    error.to_string()
}
