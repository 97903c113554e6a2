//! What the kernel says a placement costs, and what a proxy's memory gives away.
//!
//! Everything is read from the kernel's own counters before and after a window
//! and subtracted; nothing is sampled, averaged or smoothed on the way.

mod baseline;
mod bpf;
mod control;
mod cpu;
mod keyscan;
mod memory;
mod pressure;
mod privileges;

pub use baseline::Baseline;
pub use bpf::{BpfPrograms, BpfStats, BpfUse, map_entries};
pub use control::{HOLD_KEY, hold_key, scan_control};
pub use cpu::{MachineCpu, ProcessCpu};
pub use keyscan::{Certified, KeyScan, KnownKeys, scan_process};
pub use memory::{Rollup, open_files};
pub use pressure::CpuPressure;
pub use privileges::Privileges;

use std::path::PathBuf;

/// A kernel file that could not be read, or did not read as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or may not be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Maps of an agent's that are not what they should be.
    #[error("maps in {path}: {problem}", path = path.display())]
    Maps {
        /// Where they are pinned.
        path: PathBuf,
        /// Why they cannot be counted.
        problem: String,
    },
    /// The kernel does not time BPF programs.
    #[error("BPF statistics (Linux 5.8): {0}")]
    Statistics(std::io::Error),
    /// The file has another format than this code knows.
    #[error("{path}: no {what} in it", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

fn read(path: impl Into<PathBuf>) -> Result<String, Error> {
    let path = path.into();
    std::fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
}

fn lacks(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce() -> Error {
    let path = path.into();
    move || Error::Format { path, what }
}
