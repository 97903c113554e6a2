//! What the kernel programs cost, from the kernel's own BPF statistics.
//!
//! On demand the kernel times every run of every program and shows the sums to
//! whoever holds the program. The timing itself costs some tens of nanoseconds a
//! run, so it is switched on only around the trials that report it.
//!
//! An agent's programs live by their links, which are pinned, and nobody needs to
//! hold them; here they are found through those links, so that no other agent's
//! programs on the same kernel are counted.

use super::{Error, read};
use aya::maps::{HashMap, Map, MapData, MapError, SockHash};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramFd, loaded_programs};
use aya::sys::{Stats, enable_stats};
use duet_ebpf::names;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::{Add, Sub};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keeps the kernel's BPF statistics on while it lives, and no longer: the kernel
/// switches them off with the last descriptor, even if this process is killed.
#[derive(Debug)]
pub struct BpfStats {
    _on: OwnedFd,
}

impl BpfStats {
    /// Switches them on.
    pub fn enable() -> Result<Self, Error> {
        let on = enable_stats(Stats::RunTime).map_err(|error| Error::Statistics(error.io_error))?;
        Ok(Self { _on: on })
    }
}

/// Programs of which the statistics are read.
#[derive(Debug, Default)]
pub struct BpfPrograms {
    held: Vec<ProgramFd>,
}

/// Programs added up, since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpfUse {
    /// Runs.
    pub runs: u64,
    /// Time in them.
    pub time: Duration,
}

impl BpfPrograms {
    /// The programs behind the links that are pinned in these directories. A
    /// program behind several links counts once.
    pub fn behind_links(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        let wanted: BTreeSet<u32> = directories
            .into_iter()
            .flat_map(|directory| links(&directory))
            .filter_map(|path| {
                let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
                Some(link.info().ok()?.program_id())
            })
            .collect();
        if wanted.is_empty() {
            return Self::default();
        }
        Self {
            held: loaded_programs()
                .filter_map(Result::ok)
                .filter(|program| wanted.contains(&program.id()))
                .filter_map(|program| program.fd().ok())
                .collect(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What they have used until now.
    pub fn used(&self) -> Result<BpfUse, Error> {
        let mut sum = BpfUse::default();
        for program in &self.held {
            let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
            let (runs, ns) = counters(&read(&path)?)
                .ok_or_else(super::lacks(path, "run_cnt and run_time_ns"))?;
            sum.runs += runs;
            sum.time += Duration::from_nanos(ns);
        }
        Ok(sum)
    }
}

const COOKIE: usize = size_of::<duet_ebpf::NetnsCookie>();
const ENROLLED: usize = size_of::<duet_ebpf::Enrolled>();
const OWN: usize = size_of::<duet_ebpf::OwnAddress>();
const APPEARANCE: usize = size_of::<duet_ebpf::Appearance>();
const SOURCE: usize = size_of::<duet_ebpf::Source>();
const TARGET: usize = size_of::<duet_ebpf::Target>();
const LISTENER: usize = size_of::<duet_ebpf::ListenerKey>();

/// Entries of an agent's maps that are pinned in this directory. What belongs to sockets goes with
/// them and cannot be counted.
pub fn map_entries(directory: &Path) -> Result<u64, Error> {
    let open = |name: &str| MapData::from_pin(directory.join(name));
    // Not every version of the agent has them all.
    let open_if_there = |name: &str| match open(name) {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {
            Ok(None)
        }
        opened => opened.map(Some),
    };
    let count = || {
        let mut sum = entries::<COOKIE, ENROLLED>(open(names::ENROLLED)?)?
            + entries::<OWN, { size_of::<u32>() }>(open(names::OWN)?)?
            + entries::<SOURCE, TARGET>(open(names::TARGETS)?)?;
        let listeners = Map::SockHash(open(names::LISTENERS)?);
        sum += SockHash::<_, [u8; LISTENER]>::try_from(listeners)?
            .keys()
            .count();
        if let Some(appearance) = open_if_there(names::APPEARANCE)? {
            sum += entries::<COOKIE, APPEARANCE>(appearance)?;
        }
        if let Some(passed) = open_if_there(names::OPEN)? {
            sum += entries::<COOKIE, { size_of::<u64>() }>(passed)?;
        }
        Ok::<_, MapError>(sum)
    };
    count()
        .map(|entries| entries as u64)
        .map_err(|error| Error::Maps {
            path: directory.to_owned(),
            problem: error.to_string(),
        })
}

fn entries<const KEY: usize, const VALUE: usize>(map: MapData) -> Result<usize, MapError> {
    let map: HashMap<_, [u8; KEY], [u8; VALUE]> = Map::HashMap(map).try_into()?;
    Ok(map.keys().count())
}

fn links(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn counters(fdinfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        fdinfo.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .parse::<u64>()
                .ok()
        })
    };
    Some((field("run_cnt")?, field("run_time_ns")?))
}

impl Add for BpfUse {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            time: self.time + other.time,
        }
    }
}

impl Sub for BpfUse {
    type Output = Self;
    fn sub(self, earlier: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(earlier.runs),
            time: self.time.saturating_sub(earlier.time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_links_are_told_apart() {
        let program = "pos:\t0\nflags:\t02000002\nprog_type:\t18\nprog_jited:\t1\nprog_tag:\tab\n\
            memlock:\t4096\nprog_id:\t42\nrun_time_ns:\t123456\nrun_cnt:\t789\nrecursion_misses:\t0\n";
        assert_eq!(counters(program), Some((789, 123_456)));
        let link = "pos:\t0\nlink_type:\tcgroup\nlink_id:\t3\nprog_tag:\tab\nprog_id:\t42\n";
        assert_eq!(counters(link), None);
    }

    #[test]
    fn without_links_there_are_no_programs() {
        let none = BpfPrograms::behind_links([PathBuf::from("/nowhere/at/all")]);
        assert!(none.is_empty());
        assert_eq!(none.used().unwrap(), BpfUse::default());
    }
}
