//! What a cluster leaves on the machine, written down before it is made, and
//! how all of it is taken away again: by the cluster itself, or by
//! `duet-bench clean` after the harness was killed.
//!
//! Everything a cluster makes carries its id in its name, or lies below
//! something that does. So the record is short, complete from the start, and
//! never goes stale: namespaces by prefix, processes by membership of the
//! cluster's cgroup (a recycled pid is not a member), rules and links with
//! their namespace, pinned programs by directory.

use super::cgroup::Cgroup;
use super::error::{ClusterError, Result};
use super::netns::names_with_prefix;
use super::network::{MAX_CLUSTERS, remove_namespaces};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const RUN_DIR: &str = "/run/duet-bench";
const STATE_FILE: &str = "state.json";
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// Present while a bpffs is mounted that a cluster has mounted.
const BPFFS_MARK: &str = "bpffs-mounted";
/// What the kernel itself puts into every bpffs, if built with BPF_PRELOAD.
const BPFFS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];

/// One cluster's entry in /run/duet-bench.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub id: String,
    /// Numbers the cluster's networks.
    pub index: u16,
    owner: Owner,
    /// Namespaces: all whose names begin with this.
    netns_prefix: String,
    /// Below each cgroup hierarchy.
    cgroup: PathBuf,
    /// Directories in bpffs, one per node.
    pub bpffs: Vec<PathBuf>,
    /// Copies of programs, where other users need to run them.
    pub scratch: PathBuf,
}

/// The process that answers for a cluster; its start tells it from another
/// that was given the same pid later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    boot: String,
    pid: u32,
    /// Clock ticks since boot.
    started: u64,
}

/// What `clean` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanReport {
    /// Clusters that were removed.
    pub removed: Vec<String>,
    /// Clusters whose owner is still at work.
    pub left: Vec<String>,
}

// === impl State ===

impl State {
    /// Claims an id and a number for a cluster and writes the record.
    pub(crate) fn claim(nodes: u32) -> Result<Self> {
        let _lock = lock()?;
        let taken: BTreeSet<u16> = recorded().into_iter().map(|state| state.index).collect();
        let index = (0..MAX_CLUSTERS)
            .find(|index| !taken.contains(index))
            .ok_or_else(|| {
                ClusterError::Unsupported(format!(
                    "{MAX_CLUSTERS} clusters exist already: `duet-bench clean` removes those whose owner is gone"
                ))
            })?;
        let id = format!("{index}-{:04x}", rand::random::<u16>());
        let state = Self {
            index,
            owner: Owner::this_process()?,
            netns_prefix: format!("duet-{id}-"),
            cgroup: PathBuf::from(format!("duet-{id}")),
            bpffs: (1..=nodes)
                .map(|node| PathBuf::from(format!("{BPFFS}/duet-{id}-node-{node}")))
                .collect(),
            scratch: std::env::temp_dir().join(format!("duet-bench-{id}")),
            id,
        };
        state.write()?;
        Ok(state)
    }

    fn write(&self) -> Result<()> {
        let dir = self.dir();
        let path = dir.join(STATE_FILE);
        let draft = dir.join("state.json.draft");
        let save = || -> std::io::Result<()> {
            fs::create_dir_all(&dir)?;
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        save().map_err(ClusterError::io(format!("write {}", path.display())))
    }

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.id)
    }

    pub(crate) fn netns_name(&self, name: &str) -> String {
        format!("{}{name}", self.netns_prefix)
    }

    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        Cgroup::at(&self.cgroup)
    }

    /// Takes away everything this cluster made, as far as it gets; the first
    /// failure is returned, and then the record stays for another attempt.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut first = None;
        let mut attempt = |result: Result<()>| {
            if let Err(error) = result {
                first.get_or_insert(error);
            }
        };
        attempt(self.cgroup().and_then(|cgroup| cgroup.kill_all()));
        for dir in self.bpffs.iter().chain([&self.scratch]) {
            attempt(remove_dir(dir));
        }
        let namespaces = || names_with_prefix(&self.netns_prefix);
        if !namespaces().is_empty() {
            let removed = remove_namespaces(&namespaces());
            // Another clean-up may have been quicker.
            attempt(if namespaces().is_empty() {
                Ok(())
            } else {
                removed
            });
        }
        attempt(self.cgroup().and_then(|cgroup| cgroup.remove()));
        let lock = lock();
        attempt(unmount_bpffs());
        if let Some(error) = first {
            return Err(error);
        }
        remove_dir(&self.dir())?;
        let only_the_lock = fs::read_dir(RUN_DIR)
            .is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == "lock"));
        if only_the_lock {
            let _ = fs::remove_file(Path::new(RUN_DIR).join("lock"));
            let _ = fs::remove_dir(RUN_DIR);
        }
        drop(lock);
        Ok(())
    }
}

// === impl Owner ===

impl Owner {
    fn this_process() -> Result<Self> {
        Self::of(std::process::id()).ok_or_else(|| {
            ClusterError::Unsupported("/proc is not mounted: it is needed".to_owned())
        })
    }

    fn of(pid: u32) -> Option<Self> {
        let stat = procfs::process::Process::new(pid as i32)
            .ok()?
            .stat()
            .ok()?;
        // Killed, and nobody has asked for its exit status yet.
        if matches!(stat.state, 'Z' | 'X') {
            return None;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self {
            boot: boot.trim().to_owned(),
            pid,
            started: stat.starttime,
        })
    }

    fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|found| found == *self)
    }
}

// === impl CleanReport ===

impl fmt::Display for CleanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.removed.len() {
            0 => write!(f, "nothing was left behind")?,
            1 => write!(f, "removed cluster {}", self.removed[0])?,
            _ => write!(f, "removed clusters {}", self.removed.join(", "))?,
        }
        if !self.left.is_empty() {
            write!(
                f,
                "; left {}, still in use (--force removes them too)",
                self.left.join(", ")
            )?;
        }
        Ok(())
    }
}

/// Removes what harnesses left behind that are no longer alive; with `force`,
/// also what a living one is using.
pub fn clean_all(force: bool) -> Result<CleanReport> {
    let mut report = CleanReport::default();
    for state in recorded() {
        if state.owner.is_alive() && !force {
            report.left.push(state.id);
        } else {
            state.remove()?;
            report.removed.push(state.id);
        }
    }
    Ok(report)
}

fn recorded() -> Vec<State> {
    let mut found: Vec<State> = fs::read_dir(RUN_DIR)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join(STATE_FILE)).ok())
        .filter_map(|text| serde_json::from_slice(&text).ok())
        .collect();
    found.sort_by_key(|state| state.index);
    found
}

fn lock() -> Result<Flock<File>> {
    let path = Path::new(RUN_DIR).join("lock");
    let failed = || ClusterError::io(format!("lock {}", path.display()));
    // The file goes when the last cluster does, so what was locked may be a
    // file that is no longer there.
    loop {
        fs::create_dir_all(RUN_DIR).map_err(failed())?;
        let file = match File::create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.map_err(failed())?,
        };
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed()(errno.into()))?;
        let same = |a: &fs::Metadata, b: &fs::Metadata| {
            use std::os::unix::fs::MetadataExt;
            a.ino() == b.ino()
        };
        if let (Ok(held), Ok(there)) = (lock.metadata(), fs::metadata(&path))
            && same(&held, &there)
        {
            return Ok(lock);
        }
    }
}

/// True if bpffs is mounted where it belongs.
pub(crate) fn has_bpffs() -> bool {
    statfs(BPFFS).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts bpffs where there is none.
pub(crate) fn mount_bpffs() -> Result<()> {
    let _lock = lock()?;
    if has_bpffs() {
        return Ok(());
    }
    let mark = Path::new(RUN_DIR).join(BPFFS_MARK);
    File::create(&mark).map_err(ClusterError::io(format!("write {}", mark.display())))?;
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(ClusterError::errno(format!("mount bpffs on {BPFFS}")))
}

/// Undoes `mount_bpffs`, once nothing is pinned there any more.
fn unmount_bpffs() -> Result<()> {
    let mark = Path::new(RUN_DIR).join(BPFFS_MARK);
    if !mark.exists() {
        return Ok(());
    }
    let empty = fs::read_dir(BPFFS).is_ok_and(|entries| {
        entries
            .flatten()
            .all(|entry| BPFFS_OWN.iter().any(|own| entry.file_name() == *own))
    });
    if has_bpffs() && empty {
        match umount2(BPFFS, MntFlags::empty()) {
            Ok(()) => {}
            // Somebody looks into it; the next to be removed tries again.
            Err(nix::Error::EBUSY) => return Ok(()),
            Err(errno) => {
                return Err(ClusterError::errno(format!("unmount {BPFFS}"))(errno));
            }
        }
    }
    if !has_bpffs() {
        fs::remove_file(&mark).map_err(ClusterError::io(format!("remove {}", mark.display())))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ClusterError::Io {
            what: format!("remove {}", dir.display()),
            source: error,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_pid_is_not_the_owner() {
        let this = Owner::this_process().unwrap();
        assert!(this.is_alive());
        let earlier = Owner {
            started: this.started.wrapping_sub(1),
            ..this
        };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn says_what_was_done() {
        let mut report = CleanReport::default();
        assert_eq!(report.to_string(), "nothing was left behind");
        report.removed.push("0-aa".to_owned());
        report.left.push("1-bb".to_owned());
        assert_eq!(
            report.to_string(),
            "removed cluster 0-aa; left 1-bb, still in use (--force removes them too)"
        );
    }
}
