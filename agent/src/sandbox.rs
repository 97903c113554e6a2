//! Where a pod's network namespace is.
//!
//! Whatever the runtime, a kubelet keeps every process of a pod below one cgroup
//! that is named after the pod's UID. So a process says whose it is, and /proc leads
//! from there to its network namespace: no runtime's socket, no CRI, and it works
//! for pods that were there before the agent.
//!
//! | kubelet's driver | cgroup, below wherever the kubelet was told to begin |
//! |---|---|
//! | cgroupfs | `kubepods/burstable/pod<uid>/<container>` |
//! | systemd | `kubepods-burstable-pod<uid, - as _>.slice/cri-containerd-<container>.scope` |
//! | systemd, containerd not told | `…/kubepods-burstable-pod<uid>.slice:cri-containerd:<container>` |
//!
//! CRI-O's and cri-dockerd's differ in the last part only. With version 1 one
//! hierarchy is enough, with version 2 there is but one; seen from a cgroup namespace
//! of the agent's own a path begins with `/..` and is otherwise the same.

use crate::cgroup::Cgroup;
use crate::netns::{FileId, Netns, NetnsError};
use duet_core::Placed;
use nix::time::{ClockId, clock_gettime};
use procfs::ProcError;
use procfs::process::Process;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The network namespace of a pod, and since when there is one.
#[derive(Debug)]
pub struct Sandbox {
    pub netns: Netns,
    /// When its first process that still runs was started, from the boot on: the
    /// sandbox's own (pause), or with CRI-O, which does without one, a container's.
    /// In steps of 10 ms.
    pub started: Duration,
}

/// Why a pod has no namespace that could be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum Unfound {
    #[error("none of its processes runs here yet")]
    NoProcess,
    #[error("its processes are in the node's own network namespace")]
    HostNetwork,
    #[error("its network namespace has no address yet")]
    NoAddress,
    #[error(
        "its network namespace has {}, and duet-control says {}", list(.found), list(.told)
    )]
    OtherAddress {
        found: Vec<IpAddr>,
        told: Vec<IpAddr>,
    },
    #[error(
        "process {pid} is outside cgroup {}, whose processes alone are redirected: mount the \
         node's /sys/fs/cgroup, or name another with --cgroup",
        cgroup.display()
    )]
    OutsideCgroup { pid: i32, cgroup: PathBuf },
    #[error("{error}{}", remedy(error))]
    Netns { error: NetnsError },
    #[error("cannot read its addresses: {0}")]
    Addresses(io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("cannot read /proc: {0}")]
    Proc(#[from] ProcError),
    #[error(
        "cannot tell the node's own network namespace, /proc/1/ns/net: {0}: give the agent \
         CAP_SYS_PTRACE"
    )]
    Host(io::Error),
    #[error(
        "the node's processes cannot be seen from a container of its own: give the agent's pod hostPID: true"
    )]
    OwnProcesses,
}

/// The sandboxes of `pods`, by UID: one pass over all processes, which reads one
/// small file of each. It blocks for about 10 µs for each process of the machine.
pub fn find(
    pods: &[Placed],
    cgroup: &Cgroup,
) -> Result<HashMap<String, Result<Sandbox, Unfound>>, ScanError> {
    if is_first() {
        return Err(ScanError::OwnProcesses);
    }
    let host = host_netns().map_err(ScanError::Host)?;
    let wanted: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
    let mut found: HashMap<String, Vec<i32>> = HashMap::new();
    for process in procfs::process::all_processes()?.flatten() {
        // It may have ended meanwhile.
        let Some(uid) = cgroups(process.pid).as_deref().and_then(pod_uid) else {
            continue;
        };
        if wanted.contains(uid.as_str()) {
            found.entry(uid).or_default().push(process.pid);
        }
    }
    let sandboxes = pods.iter().map(|pod| {
        let processes = found.get(&pod.uid).map_or(&[][..], Vec::as_slice);
        (pod.uid.clone(), choose(pod, processes, host, cgroup))
    });
    Ok(sandboxes.collect())
}

/// Whether this is the first process, or its supervisor is.
fn is_first() -> bool {
    let program = |pid: &str| FileId::of(format!("/proc/{pid}/exe").as_ref());
    let is_of_first = || {
        std::os::unix::process::parent_id() == 1
            && matches!((program("1"), program("self")), (Ok(first), Ok(own)) if first == own)
    };
    std::process::id() == 1 || is_of_first()
}

/// The namespace of the node itself, which is never a pod's to be redirected: that
/// of the first process. Where that hides, kernel threads are in it as well.
pub fn host_netns() -> io::Result<FileId> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let is_kernels = |pid| {
        let stat = Process::new(pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.flags & PF_KTHREAD != 0)
    };
    let init = FileId::of("/proc/1/ns/net".as_ref());
    init.or_else(|error| match is_kernels(2) {
        true => FileId::of("/proc/2/ns/net".as_ref()),
        false => Err(error),
    })
}

/// The oldest process's namespace that fits. Later ones may have made their own:
/// a container engine inside a pod does.
fn choose(
    pod: &Placed,
    processes: &[i32],
    host: FileId,
    cgroup: &Cgroup,
) -> Result<Sandbox, Unfound> {
    let mut by_age: Vec<(Duration, i32)> = processes
        .iter()
        .filter_map(|&pid| Some((started(pid)?, pid)))
        .collect();
    by_age.sort_unstable();
    let mut seen = HashSet::from([host]);
    let mut unfound = Unfound::NoProcess;
    for (started, pid) in by_age {
        match examine(pod, (pid, started), host, &mut seen, cgroup) {
            Ok(Some(netns)) => return Ok(Sandbox { netns, started }),
            Ok(None) => {}
            // The sandbox's is the one to be told of.
            Err(why) => {
                if matches!(unfound, Unfound::NoProcess | Unfound::HostNetwork) {
                    unfound = why;
                }
            }
        }
    }
    Err(unfound)
}

/// The namespace of one process, unless it was seen before or the process is gone.
fn examine(
    pod: &Placed,
    (pid, since): (i32, Duration),
    host: FileId,
    seen: &mut HashSet<FileId>,
    cgroup: &Cgroup,
) -> Result<Option<Netns>, Unfound> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let opened = Netns::open(&path);
    let Some(text) = cgroups(pid) else {
        return Ok(None);
    };
    // The number may have become another process's before the file was opened.
    if started(pid) != Some(since) || pod_uid(&text).as_deref() != Some(&*pod.uid) {
        return Ok(None);
    }
    let netns = match opened {
        // It is ending.
        Err(NetnsError::Open { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        opened => opened.map_err(|error| Unfound::Netns { error })?,
    };
    if netns.file_id() == host {
        return Err(Unfound::HostNetwork);
    }
    if !seen.insert(netns.file_id()) {
        return Ok(None);
    }
    let mut found: Vec<IpAddr> = netns
        .addresses()
        .map_err(Unfound::Addresses)?
        .into_iter()
        .filter(|ip| !is_link_local(ip))
        .collect();
    found.sort_unstable();
    // The UID is proof enough while the platform has told of no address, as it does
    // only once the pod's containers run; by then the pod must be enrolled.
    if found.is_empty() {
        Err(Unfound::NoAddress)
    } else if !pod.addresses.is_empty() && !pod.addresses.iter().any(|ip| found.contains(ip)) {
        let told = pod.addresses.clone();
        Err(Unfound::OtherAddress { found, told })
    } else if !cgroup.holds(&text) {
        Err(Unfound::OutsideCgroup {
            pid,
            cgroup: cgroup.path().to_owned(),
        })
    } else {
        Ok(Some(netns))
    }
}

/// Which capability it is that is missing.
fn remedy(error: &NetnsError) -> &'static str {
    let (error, remedy) = match error {
        NetnsError::Open { error, .. } => (error, ": give the agent CAP_SYS_PTRACE"),
        NetnsError::Enter { error, .. } => (error, ": give the agent CAP_SYS_ADMIN"),
        _ => return "",
    };
    match error.kind() {
        io::ErrorKind::PermissionDenied => remedy,
        _ => "",
    }
}

/// Is there as soon as a link is up, which says nothing.
fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn list(ips: &[IpAddr]) -> String {
    let texts: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
    texts.join(", ")
}

/// From the boot on.
fn started(pid: i32) -> Option<Duration> {
    let ticks = Process::new(pid).ok()?.stat().ok()?.starttime;
    Some(Duration::from_secs(ticks).div_f64(procfs::ticks_per_second() as f64))
}

/// How long the machine has run, on the clock of [`Sandbox::started`].
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// How long this thread has had a processor.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// When this process was started.
pub fn own_start() -> Option<Duration> {
    started(i32::try_from(std::process::id()).ok()?)
}

fn cgroups(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
}

/// The UID of the pod that a process is of, from its /proc/PID/cgroup.
///
/// The outermost cgroup that is named as a pod's decides: a pod may make others
/// below its own, and name them as it likes.
pub fn pod_uid(cgroups: &str) -> Option<String> {
    cgroups.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').find_map(uid_in)
    })
}

/// From one part of a path.
fn uid_in(part: &str) -> Option<String> {
    let uid = match part.split_once(".slice") {
        Some((slice, rest)) => {
            if !rest.is_empty() && !rest.starts_with(':') {
                return None;
            }
            let uid = slice.rsplit_once("-pod").map(|(_, uid)| uid);
            uid.or_else(|| slice.strip_prefix("pod"))?.replace('_', "-")
        }
        None => part.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

/// RFC 4122's, or the MD5 sum that a kubelet gives a static pod.
fn is_uid(text: &str) -> bool {
    let hex = text
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    hex && (groups == [8, 4, 4, 4, 12] || groups == [32])
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "1640a224-79e9-41aa-a24d-6c6c89a1d474";
    const OTHER: &str = "00000000-0000-4000-8000-000000000000";

    #[test]
    fn every_kubelets_cgroups_are_understood() {
        let escaped = UID.replace('-', "_");
        for (path, shape) in [
            (
                format!("/kubepods/burstable/pod{UID}/309f9927cf7e"),
                "cgroupfs",
            ),
            (format!("/kubepods/pod{UID}/309f9927cf7e"), "guaranteed"),
            (
                format!("/duet-kube/node-1/kubepods/besteffort/pod{UID}/309f"),
                "with a cgroupRoot",
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-309f.scope"
                ),
                "systemd, containerd",
            ),
            (
                format!("/kubepods.slice/kubepods-pod{escaped}.slice/crio-309f.scope/container"),
                "systemd, CRI-O",
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{escaped}.slice/docker-309f.scope"
                ),
                "systemd, cri-dockerd",
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{escaped}.slice:cri-containerd:309f"
                ),
                "systemd, containerd not told",
            ),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice/cri-containerd-309f.scope"
                ),
                "kind",
            ),
            (
                format!("/../../kubepods-besteffort-pod{escaped}.slice/cri-containerd-309f.scope"),
                "from a cgroup namespace",
            ),
        ] {
            let v1 = format!("9:name=systemd:/\n4:memory:{path}\n0::/\n");
            let v2 = format!("0::{path}\n");
            for text in [v1, v2] {
                assert_eq!(pod_uid(&text).as_deref(), Some(UID), "{shape}: {text}");
            }
        }
        let static_pod = "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/309f";
        assert_eq!(
            pod_uid(static_pod).as_deref(),
            Some("0123456789abcdef0123456789abcdef")
        );
    }

    #[test]
    fn a_pod_cannot_pass_for_another() {
        let own = format!("0::/kubepods/pod{UID}/309f/kubepods/pod{OTHER}/1");
        assert_eq!(pod_uid(&own).as_deref(), Some(UID));
    }

    #[test]
    fn what_only_looks_like_a_pod_is_none() {
        for path in [
            "/",
            "/system.slice/kubelet.service",
            "/machine.slice/libpod-309f9927cf7e.scope",
            "/user.slice/podman-1234.scope",
            "/kubepods/podinfo/309f",
            "/system.slice/my-podcast.slice",
            "/kubepods-pod1640a224_79e9_41aa_a24d_6c6c89a1d474.slicer/1",
        ] {
            assert_eq!(pod_uid(&format!("0::{path}\n")), None, "{path}");
        }
        assert_eq!(pod_uid(""), None);
        assert_eq!(pod_uid("nonsense"), None);
        // Behind a podman in which the cluster itself runs.
        let nested = format!("0::/user.slice/podman-1.scope/kubepods/pod{UID}/309f");
        assert_eq!(pod_uid(&nested).as_deref(), Some(UID));
    }
}
