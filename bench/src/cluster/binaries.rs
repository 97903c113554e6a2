//! Where the programs under test are.

use super::error::{ClusterError, Result};
use nix::unistd::AccessFlags;
use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Finds a program of this workspace: in `DUET_BIN_DIR` if that is set, or
/// else beside the running program, or above it, where cargo puts tests.
pub fn binary(name: &str) -> Result<PathBuf> {
    let beside = || -> Option<Vec<PathBuf>> {
        let running = env::current_exe().ok()?;
        let dir = running.parent()?;
        Some(vec![dir.join(name), dir.parent()?.join(name)])
    };
    let candidates = match env::var_os("DUET_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir).join(name)],
        None => beside().unwrap_or_default(),
    };
    candidates
        .into_iter()
        .find(|path| nix::unistd::access(path, AccessFlags::X_OK).is_ok())
        .and_then(|path| fs::canonicalize(path).ok())
        .ok_or_else(|| ClusterError::NoBinary {
            program: name.to_owned(),
        })
}

/// The same program where any user can run it: the path itself if every
/// directory on the way lets others through, or else a copy in `scratch`. A
/// clone of the project below /root is the common case.
pub(crate) fn runnable_by_all(program: &Path, scratch: &Path) -> Result<PathBuf> {
    let open = program
        .ancestors()
        .all(|part| fs::metadata(part).is_ok_and(|metadata| metadata.mode() & 0o001 != 0));
    if open {
        return Ok(program.to_owned());
    }
    let copy = scratch.join(program.file_name().unwrap_or_default());
    let failed = || format!("copy {} to {}", program.display(), copy.display());
    let set_mode = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    if !copy.exists() {
        fs::create_dir_all(scratch).map_err(ClusterError::io(failed()))?;
        set_mode(scratch).map_err(ClusterError::io(failed()))?;
        fs::copy(program, &copy).map_err(ClusterError::io(failed()))?;
        set_mode(&copy).map_err(ClusterError::io(failed()))?;
    }
    Ok(copy)
}
