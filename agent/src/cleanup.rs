//! Every trace of an agent in the kernel and on disk, removed.

use crate::bpffs::{self, BpffsError};
use crate::{api, interception, privilege};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error("cannot remove {}: {error}", path.display())]
    Remove { path: PathBuf, error: io::Error },
}

/// Whether no agent uses `bpffs`, without whose end nothing is to be removed.
///
/// # Errors
/// When one does.
pub fn check(bpffs: &Path) -> Result<(), CleanupError> {
    if bpffs.exists() && bpffs::is_bpffs(bpffs) {
        drop(bpffs::lock(bpffs)?);
    }
    Ok(())
}

/// Removes what agents of any version have left in `bpffs`, and a socket that
/// nobody listens on. Says each thing it removed. From then on nothing is
/// redirected, and nothing is refused.
pub fn cleanup(bpffs: &Path, socket: &Path) -> Result<Vec<String>, CleanupError> {
    let mut removed = Vec::new();
    if bpffs.exists() {
        if bpffs::is_bpffs(bpffs) {
            let _lock = bpffs::lock(bpffs)?;
            let at = |path: &Path| {
                let path = path.to_owned();
                move |error| CleanupError::Remove { path, error }
            };
            for version in versions(bpffs).map_err(at(bpffs))? {
                remove_version(&version, &mut removed)?;
            }
            fs::remove_dir(bpffs).or_else(|error| match error.kind() {
                // It is the mount point itself, or holds what is not an agent's.
                io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty => Ok(()),
                _ => Err(at(bpffs)(error)),
            })?;
        }
        let unmounted = bpffs::unmount_if_ours(bpffs);
        if let Some(point) = unmounted.map_err(|error| CleanupError::Remove {
            path: bpffs.to_owned(),
            error,
        })? {
            removed.push(format!("mount {}", point.display()));
        }
    }
    let stale = api::remove_stale(socket).map_err(|error| CleanupError::Remove {
        path: socket.to_owned(),
        error,
    })?;
    if stale {
        removed.push(format!("socket {}", socket.display()));
    }
    Ok(removed)
}

/// Removes what agents of any version have put into the kubelet's directory of profiles.
pub fn remove_profiles(directory: &Path) -> Result<Vec<String>, CleanupError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| CleanupError::Remove { path, error }
    };
    let mut removed = Vec::new();
    for path in entries(directory).map_err(at(directory))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(privilege::PROFILE) && name.ends_with(".json") {
            fs::remove_file(&path).map_err(at(&path))?;
            removed.push(format!("seccomp profile {}", path.display()));
        }
    }
    Ok(removed)
}

/// Links first: programs keep their maps, but nobody could tell what is in them.
pub(crate) fn remove_version(
    version: &Path,
    removed: &mut Vec<String>,
) -> Result<(), CleanupError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| CleanupError::Remove { path, error }
    };
    for (directory, kind) in [("links", "link"), ("pods", "pod link"), ("maps", "map")] {
        let directory = version.join(directory);
        for pin in entries(&directory).map_err(at(&directory))? {
            match kind {
                "map" => fs::remove_file(&pin),
                _ => interception::unpin(&pin),
            }
            .map_err(at(&pin))?;
            removed.push(format!("{kind} {}", pin.display()));
        }
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at(&directory)(error));
            }
            _ => {}
        }
    }
    fs::remove_dir(version).map_err(at(version))
}

/// The directories of this and of other versions.
pub(crate) fn versions(bpffs: &Path) -> io::Result<Vec<PathBuf>> {
    let is_version = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix('v'))
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    Ok(entries(bpffs)?.into_iter().filter(is_version).collect())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
