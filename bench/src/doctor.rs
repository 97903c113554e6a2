//! What this machine lacks, in one line each.
//!
//! Every check tries the thing itself where that leaves no trace, rather than
//! guess from versions: it makes a namespace and writes a rule in it, makes a
//! cgroup and limits it.

use crate::cluster::{BPFFS, CONGESTION_CONTROL, Cgroup, Layout, binary, has_bpffs};
use nix::sched::{CloneFlags, unshare};
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

/// Namespace cookies of sockets, SO_NETNS_COOKIE: the newest of what agent mode
/// needs.
const KERNEL_MIN: (u32, u32) = (5, 14);

/// The rules that clusters and sidecars are made of.
const RULES: &str = "\
table inet duet-doctor {
  chain services {
    ip daddr 192.0.2.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 192.0.2.2, 1 : 192.0.2.3 } : 8080
    ip6 daddr 2001:db8::1 tcp dport 80 dnat ip6 to numgen random mod 2 map { 0 : 2001:db8::2, 1 : 2001:db8::3 } : 8080
  }
  chain in { type nat hook prerouting priority dstnat; policy accept; jump services; }
  chain out { type nat hook output priority -100; policy accept; meta skuid != 2102 meta l4proto tcp redirect to :15001; }
  chain post { type nat hook postrouting priority srcnat; policy accept; ct status dnat masquerade; }
}
";

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Ok,
    /// It runs, but something will be missing or less exact.
    Warning,
    /// Nothing can be measured here.
    Problem,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty if there is nothing to do.
    pub remedy: String,
}

/// Looks at everything that a cluster and its scenarios need. What only root can
/// try is left out without root: that one finding says enough.
pub fn examine() -> Vec<Check> {
    let mut checks = vec![root(), kernel()];
    checks.extend(programs());
    if can_run(&checks[..1]) {
        checks.extend([namespaces(), rules(), cgroups(), bpf(), ports()]);
    }
    checks.extend([
        congestion_control(),
        conntrack(),
        pressure(),
        bpf_statistics(),
    ]);
    checks.extend(binaries());
    checks
}

/// True if no finding is a problem.
pub fn can_run(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status < Status::Problem)
}

/// The first problem, as one line; none if a cluster can be made here.
pub fn first_problem() -> Option<String> {
    examine()
        .into_iter()
        .find(|check| check.status == Status::Problem)
        .map(|check| format!("{}: {}: {}", check.name, check.detail, check.remedy))
}

// === impl Check ===

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warning,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn problem(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Problem,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Problem => "problem",
        };
        write!(f, "{status:<8} {:<18} {}", self.name, self.detail)?;
        if !self.remedy.is_empty() {
            write!(f, ": {}", self.remedy)?;
        }
        Ok(())
    }
}

fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        Check::ok("user", "root")
    } else {
        Check::problem(
            "user",
            "not root",
            "namespaces, cgroups and eBPF need it: run it with sudo",
        )
    }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        Check::ok("kernel", release)
    } else {
        Check::problem(
            "kernel",
            release,
            format!(
                "agent mode needs Linux {}.{} or newer",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
        )
    }
}

fn programs() -> Vec<Check> {
    [
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("setpriv", "util-linux"),
        ("chrt", "util-linux"),
        ("taskset", "util-linux"),
    ]
    .into_iter()
    .map(|(program, package)| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        match std::env::split_paths(&path).find(|dir| dir.join(program).is_file()) {
            Some(dir) => Check::ok(program, dir.join(program).display().to_string()),
            None => Check::problem(program, "not found", format!("install {package}")),
        }
    })
    .collect()
}

fn binaries() -> Vec<Check> {
    ["duet-control", "duet-sidecar", "duet-agent"]
        .into_iter()
        .map(|program| match binary(program) {
            Err(error) => Check::problem(
                program,
                "not found",
                error
                    .to_string()
                    .split_once(": ")
                    .map_or(String::new(), |(_, remedy)| remedy.to_owned()),
            ),
            Ok(path) => match Command::new(&path).arg("--version").output() {
                Ok(output) if output.status.success() => Check::ok(
                    program,
                    String::from_utf8_lossy(&output.stdout).trim().to_owned(),
                ),
                Ok(output) => Check::problem(
                    program,
                    format!("--version ends with {}", output.status),
                    "build it anew",
                ),
                Err(error) => Check::problem(program, error.to_string(), "build it anew"),
            },
        })
        .collect()
}

/// Makes a namespace that lives as long as a thread.
fn in_new_namespace<T: Send>(f: impl FnOnce() -> T + Send) -> nix::Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(|| unshare(CloneFlags::CLONE_NEWNET).map(|()| f()))
            .join()
            .unwrap_or(Err(nix::Error::UnknownErrno))
    })
}

fn namespaces() -> Check {
    match in_new_namespace(|| ()) {
        Ok(()) => Check::ok("network namespaces", "can be made"),
        Err(errno) => Check::problem(
            "network namespaces",
            errno.desc(),
            "the kernel needs CONFIG_NET_NS, and the process CAP_SYS_ADMIN",
        ),
    }
}

fn rules() -> Check {
    let write = || -> Result<(), String> {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        if let Some(mut stdin) = nft.stdin.take() {
            let _ = stdin.write_all(RULES.as_bytes());
        }
        let output = nft.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(said.lines().next().unwrap_or("nft failed").to_owned())
    };
    match in_new_namespace(write) {
        Ok(Ok(())) => Check::ok(
            "nftables rules",
            "dnat, redirect, masquerade and numgen, IPv4 and IPv6",
        ),
        Ok(Err(said)) => Check::problem(
            "nftables rules",
            said,
            "the kernel needs nf_tables with nat, redirect, masquerade and numgen",
        ),
        Err(errno) => Check::problem("nftables rules", errno.desc(), "see network namespaces"),
    }
}

fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => return Check::problem(NAME, "none are mounted", error.to_string()),
    };
    let probe = format!("duet-doctor-{}", std::process::id());
    let limit = || -> Result<(), crate::cluster::ClusterError> {
        let group = Cgroup::at(&probe)?.child("probe");
        group.make()?;
        group.set_cpu_millis(Some(100))?;
        group.set_memory(Some(64 << 20))?;
        group.cpu()?;
        group.memory()?;
        Ok(())
    };
    let limited = limit();
    let removed = Cgroup::at(&probe).and_then(|group| group.remove());
    match limited.and(removed) {
        Ok(()) if layout.unified.is_none() => Check::warning(
            NAME,
            layout.describe(),
            "agent mode attaches to cgroup v2: `mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`",
        ),
        Ok(()) => Check::ok(
            NAME,
            format!("{}; limits and counters work", layout.describe()),
        ),
        Err(error) => Check::problem(
            NAME,
            layout.describe(),
            format!(
                "limits cannot be set ({error}): give this process the cpu and memory controllers"
            ),
        ),
    }
}

fn bpf() -> Check {
    const NAME: &str = "eBPF";
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"))
    {
        return Check::problem(
            NAME,
            "this kernel has no bpffs",
            "it needs CONFIG_BPF_SYSCALL",
        );
    }
    if !Path::new(BPFFS).is_dir() {
        return Check::problem(
            NAME,
            format!("{BPFFS} does not exist"),
            "mount sysfs on /sys",
        );
    }
    // Loading and attaching is the agent's trade: ask it, if it is there.
    let Ok(agent) = binary("duet-agent") else {
        return Check::warning(NAME, "not tried", "duet-agent is not built yet");
    };
    match Command::new(agent).arg("doctor").output() {
        Ok(output) if output.status.success() => {
            let mounted = if has_bpffs() {
                "bpffs is mounted"
            } else {
                "bpffs is mounted when needed"
            };
            Check::ok(NAME, format!("programs load and attach; {mounted}"))
        }
        Ok(output) => {
            let text = [output.stderr, output.stdout].concat();
            let text = String::from_utf8_lossy(&text);
            let said = text
                .lines()
                .find(|line| line.starts_with("missing"))
                .or_else(|| text.lines().next())
                .unwrap_or("it said nothing")
                .trim_start_matches("missing")
                .trim()
                .to_owned();
            Check::problem(NAME, said, "`duet-agent doctor` says more")
        }
        Err(error) => Check::problem(NAME, error.to_string(), "build duet-agent anew"),
    }
}

fn congestion_control() -> Check {
    if *CONGESTION_CONTROL == "cubic" {
        Check::ok("congestion control", "cubic")
    } else {
        Check::warning(
            "congestion control",
            *CONGESTION_CONTROL,
            "to use cubic instead: `sysctl -w net.ipv4.tcp_allowed_congestion_control=\"reno cubic\"`",
        )
    }
}

/// A new connection per request leaves each one in the table for two minutes.
fn conntrack() -> Check {
    const NAME: &str = "conntrack";
    const ENOUGH: u64 = 131_072;
    let max = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    match max.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(max) if max < ENOUGH => Check::warning(
            NAME,
            format!("room for {max} connections"),
            format!("L2 may fill it: `sysctl -w net.netfilter.nf_conntrack_max={ENOUGH}`"),
        ),
        Some(max) => Check::ok(NAME, format!("room for {max} connections")),
        // Not loaded yet: the first rule loads it.
        None => Check::ok(NAME, "loaded when needed"),
    }
}

/// Everything listens inside namespaces of its own, so no port of the machine's can be
/// taken; only the loopback probe needs the namespace's own loopback.
fn ports() -> Check {
    let bind = || {
        [15_000, 15_001, 15_006, 15_008, 15_010, 15_020, 15_021]
            .into_iter()
            .find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_err())
    };
    match in_new_namespace(bind) {
        Ok(None) => Check::ok("ports", "15000-15021 are free in every new namespace"),
        Ok(Some(port)) => Check::problem(
            "ports",
            format!("{port} cannot be bound in a new namespace"),
            "something binds ports in every namespace: stop it",
        ),
        Err(errno) => Check::problem("ports", errno.desc(), "see network namespaces"),
    }
}

fn pressure() -> Check {
    if Path::new("/proc/pressure/cpu").exists() {
        Check::ok("pressure", "the kernel tells")
    } else {
        Check::warning(
            "pressure",
            "the kernel does not tell",
            "trials cannot be voided for it; it needs CONFIG_PSI and perhaps `psi=1`",
        )
    }
}

/// eBPF's own cost is shown from the kernel's statistics.
fn bpf_statistics() -> Check {
    if Path::new("/proc/sys/kernel/bpf_stats_enabled").exists() {
        Check::ok("bpf statistics", "run time of programs can be counted")
    } else {
        Check::warning(
            "bpf statistics",
            "the kernel keeps none",
            "the cost of eBPF cannot be shown apart",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let check = Check::problem("nft", "not found", "install nftables");
        assert_eq!(
            check.to_string(),
            "problem  nft                not found: install nftables"
        );
        assert!(!can_run(&[Check::ok("user", "root"), check]));
        assert!(can_run(&[Check::warning("pressure", "none", "")]));
    }
}
