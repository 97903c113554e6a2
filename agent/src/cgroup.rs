//! The cgroup whose processes' connections are looked at.

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, Statfs, fstatfs, statfs};
use procfs::process::{MountInfo, Process};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), \
         in a container the node's /sys/fs/cgroup, or name a directory of one with --cgroup"
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
    /// The cgroups that it is in, nearest first.
    above: Vec<PathBuf>,
    place: Place,
}

/// Where a cgroup is, seen from the root of this process's cgroup namespace: so many
/// levels up, then down.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    up: usize,
    down: Vec<String>,
}

// === impl Cgroup ===

impl Cgroup {
    /// Opens `path`, or the widest v2 cgroup that is mounted: the root, or as much
    /// of it as the agent is shown.
    pub fn open(path: Option<&Path>) -> Result<Self, CgroupError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => widest(&mounts()?).ok_or(CgroupError::NoHierarchy)?,
        };
        let open = |error| CgroupError::Open {
            path: path.clone(),
            error,
        };
        let directory = File::open(&path).map_err(open)?;
        let metadata = directory.metadata().map_err(open)?;
        if !is_v2(fstatfs(&directory)).map_err(open)? {
            return Err(CgroupError::NotV2 { path });
        }
        let real = path.canonicalize().map_err(open)?;
        let place = place(&mounts()?, &real);
        let above = real.ancestors().skip(1);
        let above = above.take_while(|path| is_v2(statfs(*path)).unwrap_or(false));
        Ok(Self {
            directory,
            id: metadata.ino(),
            above: above.map(Path::to_owned).collect(),
            place: place.ok_or(CgroupError::NoHierarchy)?,
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

    /// Where another would be made in its place: in the one above it, unless that is made
    /// again itself.
    pub fn above(&self) -> impl Iterator<Item = &Path> {
        self.above.iter().map(PathBuf::as_path)
    }

    /// Whether its path leads to it still.
    pub fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.id)
    }

    /// Whether a process is in it or below, by its /proc/PID/cgroup.
    pub fn holds(&self, cgroups: &str) -> bool {
        let v2 = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        v2.is_some_and(|path| self.place.holds(&Place::of(path)))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

// === impl Place ===

impl Place {
    fn of(path: &str) -> Self {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        let mut up = 0;
        while parts.next_if_eq(&"..").is_some() {
            up += 1;
        }
        Self {
            up,
            down: parts.map(str::to_owned).collect(),
        }
    }

    fn holds(&self, other: &Self) -> bool {
        if self.down.is_empty() {
            other.up <= self.up
        } else {
            other.up == self.up && other.down.starts_with(&self.down)
        }
    }
}

fn is_v2(found: nix::Result<Statfs>) -> io::Result<bool> {
    Ok(found?.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

fn mounts() -> Result<Vec<MountInfo>, CgroupError> {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    let mut mounts: Vec<MountInfo> = mounts.map_err(CgroupError::Mounts)?.into_iter().collect();
    mounts.retain(|mount| mount.fs_type == "cgroup2");
    Ok(mounts)
}

/// Hybrid layouts have it beside the v1 controllers, at /sys/fs/cgroup/unified; a
/// container has its own cgroup mounted, and the node's only where it was given it.
fn widest(mounts: &[MountInfo]) -> Option<PathBuf> {
    mounts
        .iter()
        .map(|mount| (Place::of(&mount.root), mount))
        .filter(|(place, _)| place.down.is_empty())
        .max_by_key(|(place, _)| place.up)
        .map(|(_, mount)| mount.mount_point.clone())
}

fn place(mounts: &[MountInfo], path: &Path) -> Option<Place> {
    let (rest, mount) = mounts
        .iter()
        .filter_map(|mount| Some((path.strip_prefix(&mount.mount_point).ok()?, mount)))
        .max_by_key(|(_, mount)| mount.mount_point.as_os_str().len())?;
    let mut place = Place::of(&mount.root);
    let below = rest.iter().map(|part| part.to_string_lossy().into_owned());
    place.down.extend(below);
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(cgroup: &str, process: &str) -> bool {
        Place::of(cgroup).holds(&Place::of(process))
    }

    #[test]
    fn what_is_below_is_held() {
        let pod = "/kubepods/pod1/container";
        for cgroup in ["/", "/kubepods", "/kubepods/pod1/container"] {
            assert!(holds(cgroup, pod), "{cgroup}");
        }
        for cgroup in ["/kube", "/kubepods/pod2", "/kubepods/pod1/container/more"] {
            assert!(!holds(cgroup, pod), "{cgroup}");
        }
    }

    #[test]
    fn a_container_sees_others_from_where_it_is() {
        let other = "/../../pod2/container";
        // The node's root; the least that holds both; its own.
        assert!(holds("/../../../..", other));
        assert!(holds("/../..", other));
        assert!(!holds("/", other));
        assert!(!holds("/..", other));
        assert!(holds("/../../pod2", other));
        assert!(!holds("/../pod2", other));
    }
}
