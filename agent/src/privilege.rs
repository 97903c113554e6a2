//! What the agent may do: two capabilities, and the system calls that it makes.
//!
//! It gives up everything else before its first thread starts, wherever it was started.
//! What it is left with is a root that cannot start a program, read another's memory,
//! change a mount, or enter any namespace but of a network.
//!
//! The process that proxies keeps the right to enter network namespaces. Each connection
//! that it makes, to a peer or to the application, begins as a socket in the workload's
//! own; made by another process, it would cost a round trip and a passed file on the way
//! of every connection. `agent/tests/privilege.rs` tells what.

use crate::put::{Stamp, put};
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One capability that there is no doing without.
#[derive(Debug)]
pub struct Needed {
    capability: Capability,
    pub name: &'static str,
    /// Without it, the agent cannot...
    pub what: &'static str,
}

pub const NEEDED: [Needed; 2] = [
    Needed {
        capability: Capability::CAP_SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        what: "enter pods' network namespaces, or load eBPF programs",
    },
    Needed {
        capability: Capability::CAP_SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        what: "find pods' network namespaces (/proc/PID/ns/net)",
    },
];

#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error(
        "{} is missing, and without it the agent cannot {}: add it to the container's capabilities",
        .0.name, .0.what
    )]
    Missing(&'static Needed),
    #[error("cannot read or give up capabilities: {0}")]
    Capabilities(#[from] CapsError),
    #[error("cannot give up the way to others (no_new_privs): {0}")]
    NoNewPrivileges(#[from] nix::errno::Errno),
    #[error("cannot restrict its own system calls (seccomp): {0}")]
    Seccomp(String),
}

/// Which of [`NEEDED`] this process does not have.
pub fn missing() -> Result<Vec<&'static Needed>, PrivilegeError> {
    let has = caps::read(None, CapSet::Effective)?;
    let missing = |needed: &&Needed| !has.contains(&needed.capability);
    Ok(NEEDED.iter().filter(missing).collect())
}

/// Gives up all other capabilities, and the way to any. Before there are threads: each
/// has its own.
pub fn give_up_capabilities() -> Result<(), PrivilegeError> {
    if let Some(first) = missing()?.first() {
        return Err(PrivilegeError::Missing(first));
    }
    let kept: CapsHashSet = NEEDED.iter().map(|one| one.capability).collect();
    // Only with CAP_SETPCAP, which a container does not have. What it does have is the
    // runtime's choice then, and there is no way to more.
    for other in caps::runtime::thread_all_supported().difference(&kept) {
        let _ = caps::drop(None, CapSet::Bounding, *other);
    }
    set_no_new_privs()?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// Gives up all system calls that a proxying agent does not make. Threads that it starts
/// inherit this; others it must not have yet.
pub fn give_up_system_calls() -> Result<(), PrivilegeError> {
    let filter = || -> Result<BpfProgram, BackendError> {
        let filter = SeccompFilter::new(
            rules()?,
            // As on a kernel that does not know the call: libraries fall back on another.
            SeccompAction::Errno(libc::ENOSYS as u32),
            SeccompAction::Allow,
            std::env::consts::ARCH.try_into()?,
        )?;
        filter.try_into()
    };
    let filter = filter().map_err(|error| PrivilegeError::Seccomp(error.to_string()))?;
    apply_filter(&filter).map_err(|error| PrivilegeError::Seccomp(error.to_string()))
}

/// Which values of one of its arguments a call may have.
enum Allowed {
    OneOf(&'static [u64]),
    /// Bits that are looked at, and how they have to be.
    Bits {
        mask: u64,
        set: u64,
    },
}

struct Limited {
    name: &'static str,
    call: i64,
    argument: u8,
    allowed: Allowed,
}

/// Of bpf(2). Maps: make, look up, update, delete, next, take, freeze. Programs: load,
/// list, open, query. Links: make, update, detach. All: pin, open what is pinned, look at;
/// and load type information.
const BPF_COMMANDS: [u64; 18] = [
    0, 1, 2, 3, 4, 21, 22, 5, 11, 13, 16, 28, 29, 34, 6, 7, 15, 18,
];

const FAMILIES: [u64; 4] = [
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// All that make a namespace.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

const LIMITED: [Limited; 4] = [
    Limited {
        name: "socket",
        call: libc::SYS_socket,
        argument: 0,
        allowed: Allowed::OneOf(&FAMILIES),
    },
    Limited {
        name: "bpf",
        call: libc::SYS_bpf,
        argument: 0,
        allowed: Allowed::OneOf(&BPF_COMMANDS),
    },
    Limited {
        name: "setns",
        call: libc::SYS_setns,
        argument: 1,
        allowed: Allowed::OneOf(&[libc::CLONE_NEWNET as u64]),
    },
    // A BPF file system, and nothing that changes what is mounted already.
    Limited {
        name: "mount",
        call: libc::SYS_mount,
        argument: 3,
        allowed: Allowed::OneOf(&[libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC]),
    },
];

/// Threads; no processes. clone3 hides its flags, so clone has to do.
const THREADS: Limited = Limited {
    name: "clone",
    call: libc::SYS_clone,
    argument: 0,
    allowed: Allowed::Bits {
        mask: (NEW_NAMESPACES | libc::CLONE_THREAD) as u64,
        set: libc::CLONE_THREAD as u64,
    },
};

/// The supervisor's one child as well.
const PROCESSES: Limited = Limited {
    allowed: Allowed::Bits {
        mask: NEW_NAMESPACES as u64,
        set: 0,
    },
    ..THREADS
};

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().map(|(_, call)| (*call, Vec::new())).collect();
    for limited in LIMITED.iter().chain([&THREADS]) {
        rules.insert(limited.call, limited.rules()?);
    }
    Ok(rules)
}

/// The same for a container runtime, which has to let the supervisor start its child, as
/// `deploy/seccomp/duet-agent.json` has it: what runc and containerd read.
pub fn profile() -> Value {
    let free = FREE.iter().map(|(name, _)| name.trim_start_matches("SYS_"));
    let mut free: Vec<&str> = free.chain(SUPERVISORS).collect();
    free.sort_unstable();
    let allowed = json!({ "names": free, "action": "SCMP_ACT_ALLOW" });
    let limited = LIMITED.iter().chain([&PROCESSES]);
    let limited = limited.flat_map(Limited::of_profile);
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": std::iter::once(allowed).chain(limited).collect::<Vec<_>>(),
    })
}

/// How the names of their files begin, before the version.
pub const PROFILE: &str = "duet-agent-";

/// Puts it into the kubelet's directory of profiles. Those of other versions stay: their
/// agents may have to start again.
pub fn install_profile(directory: &Path) -> io::Result<PathBuf> {
    let place = directory.join(format!("{PROFILE}{}.json", env!("CARGO_PKG_VERSION")));
    put(&place, Stamp::of(&place)?, 0o644, |file| {
        writeln!(file, "{:#}", profile())
    })?;
    Ok(place)
}

// === impl Limited ===

impl Limited {
    fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let rule = |operator, value| {
            let length = match self.allowed {
                Allowed::OneOf(_) => SeccompCmpArgLen::Dword,
                Allowed::Bits { .. } => SeccompCmpArgLen::Qword,
            };
            let condition = SeccompCondition::new(self.argument, length, operator, value)?;
            SeccompRule::new(vec![condition])
        };
        match self.allowed {
            Allowed::OneOf(values) => {
                let rules = values.iter().map(|&value| rule(SeccompCmpOp::Eq, value));
                rules.collect()
            }
            Allowed::Bits { mask, set } => Ok(vec![rule(SeccompCmpOp::MaskedEq(mask), set)?]),
        }
    }

    /// One entry for each value.
    fn of_profile(&self) -> Vec<Value> {
        let entry = |mut argument: Value| {
            argument["index"] = self.argument.into();
            json!({ "names": [self.name], "action": "SCMP_ACT_ALLOW", "args": [argument] })
        };
        match self.allowed {
            Allowed::OneOf(values) => {
                let equal = |value| json!({ "op": "SCMP_CMP_EQ", "value": value });
                values.iter().map(|value| entry(equal(value))).collect()
            }
            Allowed::Bits { mask, set } => {
                let masked = json!({ "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": set });
                vec![entry(masked)]
            }
        }
    }
}

/// What else the supervisor calls, and a runtime on its way to it.
const SUPERVISORS: [&str; 8] = [
    "capset",
    "execve",
    "kill",
    "pidfd_open",
    "signalfd4",
    "vfork",
    "wait4",
    "waitid",
];

/// Names and numbers.
macro_rules! calls {
    ($($(#[$on:meta])* $call:ident,)*) => {
        &[$($(#[$on])* (stringify!($call), libc::$call),)*]
    };
}

/// The calls that take any arguments.
const FREE: &[(&str, i64)] = calls![
    // Memory.
    SYS_brk,
    SYS_madvise,
    SYS_mincore,
    SYS_mlock,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munlock,
    SYS_munmap,
    // Threads and signals.
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_get_robust_list,
    SYS_getcpu,
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_membarrier,
    SYS_prctl,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_sigaltstack,
    SYS_tgkill,
    // Time.
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_gettimeofday,
    SYS_nanosleep,
    // Files.
    SYS_chdir,
    SYS_close,
    SYS_close_range,
    SYS_copy_file_range,
    SYS_dup,
    SYS_dup3,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_flock,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getcwd,
    SYS_getdents64,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_inotify_rm_watch,
    SYS_ioctl,
    SYS_lseek,
    SYS_mkdirat,
    SYS_newfstatat,
    SYS_openat,
    SYS_pread64,
    SYS_pwrite64,
    SYS_read,
    SYS_readlinkat,
    SYS_readv,
    SYS_renameat,
    SYS_renameat2,
    SYS_sendfile,
    SYS_splice,
    SYS_statfs,
    SYS_statx,
    SYS_umask,
    SYS_unlinkat,
    SYS_utimensat,
    SYS_write,
    SYS_writev,
    // Sockets and waiting.
    SYS_accept,
    SYS_accept4,
    SYS_bind,
    SYS_connect,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_listen,
    SYS_pipe2,
    SYS_ppoll,
    SYS_pselect6,
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_socketpair,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    // Itself.
    SYS_capget,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getrandom,
    SYS_getresgid,
    SYS_getresuid,
    SYS_getrusage,
    SYS_getuid,
    SYS_prlimit64,
    SYS_seccomp,
    SYS_sysinfo,
    SYS_uname,
    // What other machines have under other names.
    #[cfg(target_arch = "x86_64")]
    SYS_access,
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    SYS_getdents,
    #[cfg(target_arch = "x86_64")]
    SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    SYS_open,
    #[cfg(target_arch = "x86_64")]
    SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    SYS_poll,
    #[cfg(target_arch = "x86_64")]
    SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    SYS_rename,
    #[cfg(target_arch = "x86_64")]
    SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    SYS_select,
    #[cfg(target_arch = "x86_64")]
    SYS_stat,
    #[cfg(target_arch = "x86_64")]
    SYS_time,
    #[cfg(target_arch = "x86_64")]
    SYS_unlink,
];
