//! A YAML file as the source, hot-reloaded.
//!
//! The file is polled, not watched through inotify: editors rename over it,
//! Kubernetes swaps a symlink two directories up, network file systems notify
//! nobody, and a `stat` sees all three the same way. What was seen must stay the
//! same for one more look before it is read, and after it was read too, so that a
//! file is rarely taken while half written. A file younger than the clock of some
//! file systems can tell is read again: two quick writes may leave one time stamp.

use super::mesh_yaml;
use super::{Rejected, Source};
use crate::state::MeshState;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;

/// How often the file is looked at. A change takes effect within two looks.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A file that never comes to rest is read all the same after this many looks.
const RESTLESS_LOOKS: u32 = 4;

/// A bigger file is refused: about 50 000 workloads.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Coarser than any file system's time stamps but FAT's (2 s), which nobody serves
/// a mesh from.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_secs(1);

pub struct FileSource {
    path: PathBuf,
    /// What the last read gave, so that what was reported once is not again.
    last: Option<Result<String, Rejected>>,
    stamp: Option<Stamp>,
}

/// What `stat` says of a file; `None` of one that cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: SystemTime,
}

// === impl FileSource ===

impl FileSource {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            last: None,
            stamp: None,
        }
    }

    /// Waits until the file seems to have changed and has come to rest.
    async fn changed(&mut self) {
        let mut previous = self.stamp;
        let mut restless = 0;
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = Stamp::of(&self.path).await;
            if now == previous {
                if now != self.stamp || now.is_some_and(Stamp::is_young) {
                    break;
                }
            } else {
                restless += 1;
                if restless == RESTLESS_LOOKS {
                    break;
                }
            }
            previous = now;
        }
        self.stamp = Stamp::of(&self.path).await;
    }

    async fn read(&self) -> Result<String, Rejected> {
        let refuse = |problem: String| Rejected::new(format!("{}: {problem}", self.path.display()));
        let unreadable = |error: io::Error| {
            refuse(format!(
                "cannot be read ({error}): --source takes a readable YAML file"
            ))
        };
        let file = tokio::fs::File::open(&self.path)
            .await
            .map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(refuse(format!(
                "is bigger than {} MiB: split the mesh",
                MAX_FILE_BYTES >> 20
            )));
        }
        String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            Rejected::new(format!(
                "{}:{line}: a byte that is not UTF-8: save the file as UTF-8",
                self.path.display()
            ))
        })
    }
}

impl Source for FileSource {
    async fn next(&mut self) -> Result<MeshState, Rejected> {
        loop {
            if self.last.is_some() {
                self.changed().await;
            } else {
                self.stamp = Stamp::of(&self.path).await;
            }
            let found = self.read().await;
            let torn = self.last.is_some() && Stamp::of(&self.path).await != self.stamp;
            if torn || self.last.as_ref() == Some(&found) {
                continue;
            }
            self.last = Some(found.clone());
            return mesh_yaml::parse(&self.path.display().to_string(), &found?);
        }
    }
}

// === impl Stamp ===

impl Stamp {
    async fn of(path: &Path) -> Option<Self> {
        let found = tokio::fs::metadata(path).await.ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: found.modified().ok()?,
        })
    }

    fn is_young(self) -> bool {
        SystemTime::now()
            .duration_since(self.modified)
            .is_ok_and(|age| age < TIMESTAMP_GRANULARITY)
    }
}
