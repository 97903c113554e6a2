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

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};
use std::collections::BTreeMap;

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

/// Of bpf(2). Maps: make, look up, update, delete, next, take, freeze. Programs: load,
/// list, open, query. Links: make, update, detach. All: pin, open what is pinned, look at;
/// and load type information.
const BPF_COMMANDS: [u64; 18] = [
    0, 1, 2, 3, 4, 21, 22, 5, 11, 13, 16, 28, 29, 34, 6, 7, 15, 18,
];

/// All that make a namespace.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let is = |argument, value: u64| {
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, length, SeccompCmpOp::Eq, value)?;
        SeccompRule::new(vec![condition])
    };
    let one_of = |argument, values: &[u64]| {
        let rules = values.iter().map(|&value| is(argument, value));
        rules.collect::<Result<Vec<_>, _>>()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().map(|&call| (call, Vec::new())).collect();
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let families = families.map(|family| family as u64);
    rules.insert(libc::SYS_socket, one_of(0, &families)?);
    rules.insert(libc::SYS_bpf, one_of(0, &BPF_COMMANDS)?);
    rules.insert(libc::SYS_setns, one_of(1, &[libc::CLONE_NEWNET as u64])?);
    // A BPF file system, and nothing that changes what is mounted already.
    let plain = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    rules.insert(libc::SYS_mount, one_of(3, &[plain])?);
    // Threads; no processes. clone3 hides its flags, so clone has to do.
    let mask = (NEW_NAMESPACES | libc::CLONE_THREAD) as u64;
    let thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(mask),
        libc::CLONE_THREAD as u64,
    )?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]);
    Ok(rules)
}

/// The calls that take any arguments.
const FREE: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // Threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Files.
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets and waiting.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Itself.
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_seccomp,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // What other machines have under other names.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getdents,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];
