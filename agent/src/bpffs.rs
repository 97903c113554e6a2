//! Where links and maps are pinned, so that they outlive the agent.
//!
//! ```text
//! <bpffs>/v1/maps/ENROLLED …        shared by all programs
//! <bpffs>/v1/links/duet_connect4 …  to the cgroup
//! <bpffs>/v1/pods/<netns cookie>    sk_lookup's link to that namespace
//! ```
//!
//! `v1` changes whenever a map's key or value does.

use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use parking_lot::Mutex;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The mount's source, by which `cleanup` knows that an agent made it.
const SOURCE: &str = "duet-agent";

/// Where everybody expects it.
const USUAL: &str = "/sys/fs/bpf";

pub const VERSION: &str = "v1";

#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    #[error("cannot mount a BPF file system on {}: {error}", path.display())]
    Mount { path: PathBuf, error: io::Error },
    #[error(
        "no BPF file system is mounted at {}, and one that is mounted here would go away with this \
         mount namespace, and the redirection with it: mount it in the host's (mount -t bpf bpf {})",
        path.display(), path.display()
    )]
    PrivateMounts { path: PathBuf },
    #[error("cannot use {}: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    #[error(
        "another duet-agent has {}: stop it, or give this one its own with --bpffs",
        path.display()
    )]
    Taken { path: PathBuf },
    #[error(
        "the agent before this one has another directory than {}: give this one the same --bpffs, \
         or a --socket of its own",
        path.display()
    )]
    Other { path: PathBuf },
}

/// One agent's directory, held so that no other agent uses it.
#[derive(Debug)]
pub struct Layout {
    base: PathBuf,
    /// None once another agent has the directory.
    lock: Mutex<Option<File>>,
}

impl Layout {
    /// Mounts a BPF file system if `base` is not in one, and makes the
    /// directories.
    pub fn open(base: &Path) -> Result<Self, BpffsError> {
        if !is_bpffs(base) {
            mount_for(base)?;
        }
        Self::with(base, lock(base)?)
    }

    /// With the lock of the agent before.
    pub fn with(base: &Path, lock: File) -> Result<Self, BpffsError> {
        let directory = |error| BpffsError::Directory {
            path: base.to_owned(),
            error,
        };
        let theirs = lock.metadata().map_err(directory)?;
        let ours = fs::metadata(base).map_err(directory)?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Err(BpffsError::Other {
                path: base.to_owned(),
            });
        }
        let layout = Self {
            base: base.to_owned(),
            lock: Mutex::new(Some(lock)),
        };
        layout.create()?;
        Ok(layout)
    }

    fn create(&self) -> Result<(), BpffsError> {
        let directories = [self.maps(), self.links(), self.pods()];
        directories
            .iter()
            .try_for_each(|directory| create(directory))
    }

    /// Makes the directories again, and the lock, where another file system is mounted
    /// now, or none.
    pub fn restore(&self) -> Result<(), BpffsError> {
        let mut held = self.lock.lock();
        // Another agent has it all.
        if held.is_none() {
            return Ok(());
        }
        if !is_bpffs(&self.base) {
            mount_for(&self.base)?;
        }
        if !self.maps().exists() {
            *held = Some(lock(&self.base)?);
        }
        self.create()
    }

    fn version(&self) -> PathBuf {
        self.base.join(VERSION)
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The same lock for another process: it is held until all have closed it.
    pub fn share_lock(&self) -> io::Result<OwnedFd> {
        match &*self.lock.lock() {
            Some(lock) => lock.as_fd().try_clone_to_owned(),
            None => Err(io::Error::other("another agent has the lock already")),
        }
    }

    /// Leaves the directory to the agent that shares the lock. It is closed, and not
    /// unlocked: that would unlock it for both.
    pub fn let_go(&self) {
        self.lock.lock().take();
    }

    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    pub fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    pub fn pods(&self) -> PathBuf {
        self.version().join("pods")
    }

    pub fn pod(&self, netns: duet_ebpf::NetnsCookie) -> PathBuf {
        self.pods().join(netns.to_string())
    }
}

/// One agent, or one clean-up, at a time. The lock goes with the process.
pub fn lock(base: &Path) -> Result<File, BpffsError> {
    create(base)?;
    let directory = |error| BpffsError::Directory {
        path: base.to_owned(),
        error,
    };
    let lock = File::open(base).map_err(directory)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BpffsError::Taken {
            path: base.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(directory(error)),
    }
}

/// Whether an agent has it.
pub fn is_taken(base: &Path) -> bool {
    base.exists() && matches!(lock(base), Err(BpffsError::Taken { .. }))
}

fn create(directory: &Path) -> Result<(), BpffsError> {
    fs::create_dir_all(directory).map_err(|error| BpffsError::Directory {
        path: directory.to_owned(),
        error,
    })
}

/// Whether `path`, or the nearest directory above it that exists, is in a BPF file
/// system.
pub fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_for(base: &Path) -> Result<(), BpffsError> {
    let point = if base.starts_with(USUAL) {
        Path::new(USUAL)
    } else {
        base
    };
    if in_private_mount_namespace() {
        return Err(BpffsError::PrivateMounts {
            path: point.to_owned(),
        });
    }
    let failed = |error| BpffsError::Mount {
        path: point.to_owned(),
        error,
    };
    fs::create_dir_all(point).map_err(failed)?;
    mount(
        Some(SOURCE),
        point,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|error| failed(error.into()))
}

/// Where it can be told: to look at init takes all of init's capabilities.
fn in_private_mount_namespace() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    match (namespace("self"), namespace("1")) {
        (Ok(own), Ok(init)) => own != init,
        _ => false,
    }
}

/// Unmounts the BPF file system that an agent mounted for `base`, if nothing else
/// is in it. Returns where.
pub fn unmount_if_ours(base: &Path) -> io::Result<Option<PathBuf>> {
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(io::Error::other)?;
    let ours = mounts.into_iter().find(|mount| {
        mount.fs_type == "bpf"
            && mount.mount_source.as_deref() == Some(SOURCE)
            && base.starts_with(&mount.mount_point)
    });
    let Some(mounted) = ours else {
        return Ok(None);
    };
    let point = mounted.mount_point;
    // The kernel itself puts maps.debug and progs.debug there; nobody else may use
    // a dot.
    let pinned = |entry: io::Result<fs::DirEntry>| match entry {
        Ok(entry) => !entry.file_name().as_encoded_bytes().contains(&b'.'),
        Err(_) => true,
    };
    if fs::read_dir(&point)?.any(pinned) {
        return Ok(None);
    }
    umount(&point)?;
    if point != Path::new(USUAL) {
        fs::remove_dir(&point)?;
    }
    Ok(Some(point))
}
