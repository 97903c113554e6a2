//! Network namespaces: made where `ip netns` sees them, entered by threads.
//!
//! A thread that has called setns stays in the namespace, and so does every
//! child it spawns. So each visit has its own OS thread, and nobody's
//! namespace changes under them.

use super::error::{ClusterError, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

const NETNS_DIR: &str = "/run/netns";

/// A network namespace with a name.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
}

// === impl Netns ===

impl Netns {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into().into(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&*self.name)
    }

    /// Moves the calling thread into this namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).map_err(ClusterError::io(format!(
            "open namespace {}",
            path.display()
        )))?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(ClusterError::errno(format!(
            "enter namespace {}",
            self.name
        )))
    }

    /// Runs `f` on a thread of its own inside this namespace and waits for it.
    /// A panic in `f` is passed on.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let visit = scope.spawn(|| {
                self.enter()?;
                Ok(f())
            });
            visit
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes kernel settings, given as (`net/ipv4/ip_forward`, `1`). A setting
    /// that this kernel does not have is passed over if it is marked optional.
    pub(crate) fn set(&self, settings: &[Setting]) -> Result<()> {
        self.run(|| {
            for setting in settings {
                let path = Path::new("/proc/sys").join(setting.key);
                match fs::write(&path, setting.value) {
                    Ok(()) => {}
                    Err(_) if setting.optional => {}
                    Err(source) => {
                        return Err(ClusterError::Io {
                            what: format!(
                                "set {} = {} in namespace {}",
                                setting.key, setting.value, self.name
                            ),
                            source,
                        });
                    }
                }
            }
            Ok(())
        })?
    }
}

/// A kernel setting below /proc/sys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub key: &'static str,
    pub value: &'static str,
    pub optional: bool,
}

impl Setting {
    pub const fn must(key: &'static str, value: &'static str) -> Self {
        Self {
            key,
            value,
            optional: false,
        }
    }

    pub const fn may(key: &'static str, value: &'static str) -> Self {
        Self {
            key,
            value,
            optional: true,
        }
    }
}

/// Names of all namespaces that begin with `prefix`.
pub(crate) fn names_with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}
