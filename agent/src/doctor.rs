//! What the agent needs of a machine, tried one by one.

use crate::bpffs;
use crate::cgroup::Cgroup;
use crate::interception;
use crate::netns;
use crate::privilege;
use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use duet_ebpf::names;
use std::path::Path;

/// One thing that was tried.
#[derive(Debug)]
pub struct Finding {
    pub what: String,
    /// What is wrong, and what to do about it.
    pub missing: Option<String>,
}

pub fn examine(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![
        finding("root", root()),
        finding("capabilities", capabilities()),
        finding(
            "network namespace cookies (SO_NETNS_COOKIE, Linux 5.14)",
            netns::current_cookie()
                .map(drop)
                .map_err(|error| format!("{error}: a newer kernel is needed")),
        ),
        finding(
            "cgroup v2",
            Cgroup::open(cgroup)
                .map(drop)
                .map_err(|error| error.to_string()),
        ),
        finding("BPF file system", file_system(bpffs)),
        finding("eBPF programs and maps of the kinds that it uses", kinds()),
    ];
    let rehearsed = match interception::rehearse() {
        Ok(rehearsed) => rehearsed,
        Err(error) => {
            findings.push(finding("eBPF object", Err(one_line(&error))));
            return findings;
        }
    };
    for (program, outcome) in rehearsed {
        findings.push(finding(
            &format!("eBPF program {program} ({})", needs(program)),
            outcome.map_err(|error| one_line(&error)),
        ));
    }
    findings
}

fn finding(what: &str, outcome: Result<(), String>) -> Finding {
    Finding {
        what: what.to_owned(),
        missing: outcome.err(),
    }
}

fn root() -> Result<(), String> {
    match nix::unistd::geteuid().as_raw() {
        0 => Ok(()),
        uid => Err(format!("runs as uid {uid}: run it as root")),
    }
}

fn capabilities() -> Result<(), String> {
    let missing = privilege::missing().map_err(|error| error.to_string())?;
    let missing: Vec<String> = missing
        .iter()
        .map(|one| format!("{}, without which it cannot {}", one.name, one.what))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(missing.join("; ")),
    }
}

fn file_system(bpffs: &Path) -> Result<(), String> {
    let known = std::fs::read_to_string("/proc/filesystems")
        .map_err(|error| format!("cannot read /proc/filesystems: {error}"))?;
    if bpffs::is_bpffs(bpffs) || known.lines().any(|line| line.ends_with("\tbpf")) {
        Ok(())
    } else {
        Err("the kernel has none: CONFIG_BPF_SYSCALL is needed".to_owned())
    }
}

fn kinds() -> Result<(), String> {
    let programs = [
        (
            ProgramType::CgroupSockAddr,
            "cgroup_sock_addr (CONFIG_CGROUP_BPF)",
        ),
        (ProgramType::SockOps, "sock_ops (CONFIG_INET)"),
        (ProgramType::SkLookup, "sk_lookup (CONFIG_INET, Linux 5.9)"),
    ];
    let programs = programs.map(|(kind, what)| {
        let supported = is_program_supported(kind).map_err(|error| one_line(&error));
        (supported, what)
    });
    let maps = [
        (MapType::Hash, "hash (CONFIG_BPF_SYSCALL)"),
        (MapType::SockHash, "sockhash (CONFIG_INET)"),
        (
            MapType::SkStorage,
            "sk_storage (CONFIG_BPF_SYSCALL, Linux 5.2)",
        ),
    ];
    let maps = maps.map(|(kind, what)| {
        let supported = is_map_supported(kind).map_err(|error| one_line(&error));
        (supported, what)
    });
    let missing: Vec<String> = programs
        .into_iter()
        .chain(maps)
        .filter_map(|(supported, what)| match supported {
            Ok(true) => None,
            Ok(false) => Some(what.to_owned()),
            Err(error) => Some(format!("{what}, which cannot be tried: {error}")),
        })
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "the kernel has no {}; or something keeps bpf(2) from this process (seccomp, lockdown)",
            missing.join(", no ")
        )),
    }
}

/// What a program wants of the kernel, beyond eBPF itself.
fn needs(program: &str) -> &'static str {
    match program {
        names::CONNECT4 | names::CONNECT6 => {
            "CONFIG_CGROUP_BPF; socket storage and netns cookies in connect hooks, Linux 5.8"
        }
        names::GETPEERNAME4 | names::GETPEERNAME6 | names::GETSOCKNAME4 | names::GETSOCKNAME6 => {
            "CONFIG_CGROUP_BPF, Linux 5.8"
        }
        names::SOCKOPS => "CONFIG_CGROUP_BPF to attach it; socket storage in sockops, Linux 5.8",
        names::SK_LOOKUP => "CONFIG_INET, Linux 5.9",
        _ => "Linux 5.9",
    }
}

/// The verifier's log is long; the reason is in the first line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!(
            "{text}: {}",
            cause.to_string().lines().next().unwrap_or_default()
        );
        source = cause.source();
    }
    text
}
