//! What the kernel would let someone do who takes over a process, from `/proc/<pid>/status` and `/proc/<pid>/ns`.

use super::{Error, lacks, read};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A process's privileges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Effective user.
    pub uid: u32,
    /// Effective capabilities, as a mask.
    pub capabilities: u64,
    /// Capabilities that it, or what it executes, could ever have.
    pub bounding: u64,
    /// It cannot gain privileges by executing something.
    pub no_new_privileges: bool,
    /// System calls are filtered.
    pub seccomp: bool,
    /// It is in the node's network namespace, not in one pod's.
    pub node_network: bool,
}

/// By number, from linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

impl Privileges {
    /// Of a process; `node` is the network namespace of its node.
    pub fn read(pid: u32, node: &Path) -> Result<Self, Error> {
        let status = format!("/proc/{pid}/status");
        let mut privileges = Self::parse(&read(&status)?, &status)?;
        let inode = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            let metadata = std::fs::metadata(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?;
            Ok::<_, Error>((metadata.dev(), metadata.ino()))
        };
        let own = format!("/proc/{pid}/ns/net");
        privileges.node_network = inode(Path::new(&own))? == inode(node)?;
        Ok(privileges)
    }

    fn parse(status: &str, path: &str) -> Result<Self, Error> {
        let field = |name: &'static str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .ok_or_else(lacks(path, name))
        };
        let mask = |name| u64::from_str_radix(field(name)?, 16).map_err(|_| lacks(path, name)());
        Ok(Self {
            // Real, effective, saved, file system.
            uid: field("Uid")?
                .split_whitespace()
                .nth(1)
                .and_then(|uid| uid.parse().ok())
                .ok_or_else(lacks(path, "Uid"))?,
            capabilities: mask("CapEff")?,
            bounding: mask("CapBnd")?,
            no_new_privileges: field("NoNewPrivs")? == "1",
            seccomp: field("Seccomp")? != "0",
            node_network: false,
        })
    }

    /// Names of the effective capabilities, without `CAP_`, in lower case.
    pub fn names(&self) -> Vec<String> {
        (0..u64::BITS)
            .filter(|bit| self.capabilities & (1 << bit) != 0)
            .map(|bit| {
                let known = CAPABILITIES.get(bit as usize);
                known.map_or_else(|| format!("capability_{bit}"), |name| (*name).to_owned())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tduet-agent\nUid:\t1000\t0\t0\t0\nCapInh:\t0000000000000000\n\
        CapEff:\t0000008000201000\nCapBnd:\t0000008000201000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn names_and_masks_agree() {
        let privileges = Privileges::parse(STATUS, "/proc/1/status").unwrap();
        assert_eq!(privileges.names(), ["net_admin", "sys_admin", "bpf"]);
        assert_eq!(privileges.uid, 0);
        assert!(privileges.no_new_privileges && privileges.seccomp);
    }

    #[test]
    fn a_line_that_is_not_there_is_named() {
        let error = Privileges::parse("Uid:\t0\t0\t0\t0\n", "/proc/7/status").unwrap_err();
        assert_eq!(error.to_string(), "/proc/7/status: no CapEff in it");
    }

    #[test]
    fn this_process_is_in_its_own_network() {
        let own = Privileges::read(std::process::id(), Path::new("/proc/self/ns/net")).unwrap();
        assert!(own.node_network);
    }
}
