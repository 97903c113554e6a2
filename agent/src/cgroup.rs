//! The cgroup whose processes' connections are looked at.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) \
         or name a directory of one with --cgroup"
    )]
    NoHierarchy,
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mounts(procfs::ProcError),
    #[error("cannot open cgroup {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error("{} is not in a cgroup v2 hierarchy: --cgroup takes a directory of one", path.display())]
    NotV2 { path: PathBuf },
}

#[derive(Debug)]
pub struct Cgroup {
    directory: File,
    path: PathBuf,
    id: u64,
}

impl Cgroup {
    /// Opens `path`, or the root of the v2 hierarchy.
    pub fn open(path: Option<&Path>) -> Result<Self, CgroupError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => root()?,
        };
        let open = |error| CgroupError::Open {
            path: path.clone(),
            error,
        };
        let directory = File::open(&path).map_err(open)?;
        let metadata = directory.metadata().map_err(open)?;
        let fs = nix::sys::statfs::fstatfs(&directory).map_err(|error| open(error.into()))?;
        if fs.filesystem_type() != nix::sys::statfs::CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::NotV2 { path });
        }
        Ok(Self {
            directory,
            id: metadata.ino(),
            path,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the kernel calls it in a link.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Hybrid layouts have it beside the v1 controllers, at /sys/fs/cgroup/unified.
fn root() -> Result<PathBuf, CgroupError> {
    procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(CgroupError::Mounts)?
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")
        .map(|mount| mount.mount_point)
        .ok_or(CgroupError::NoHierarchy)
}
