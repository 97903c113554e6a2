//! Memory of one process, as `smaps_rollup` divides it.
//!
//! A cgroup's figure is what the limit is held against, but it charges a shared
//! page (the binary's text) to whoever touched it first. The proportional set
//! divides such pages among the processes that map them, which is the fair price
//! of the Nth sidecar; the anonymous part is what no sharing can save.

use super::{Error, lacks, read};
use serde::{Deserialize, Serialize};

/// Bytes, from `/proc/<pid>/smaps_rollup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollup {
    /// Resident, shared pages counted in full.
    pub rss: u64,
    /// Resident, shared pages divided among their users.
    pub pss: u64,
    /// Resident and backed by no file.
    pub anonymous: u64,
}

impl Rollup {
    /// Reads `/proc/<pid>/smaps_rollup`.
    pub fn read(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/smaps_rollup");
        Self::parse(&read(&path)?).ok_or_else(lacks(path, "Rss, Pss and Anonymous"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| {
                let kib = line.strip_prefix(name)?.strip_prefix(':')?;
                let kib = kib.trim().strip_suffix("kB")?.trim();
                Some(kib.parse::<u64>().ok()? * 1024)
            })
        };
        Some(Self {
            rss: field("Rss")?,
            pss: field("Pss")?,
            anonymous: field("Anonymous")?,
        })
    }
}

impl std::iter::Sum for Rollup {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            rss: sum.rss + one.rss,
            pss: sum.pss + one.pss,
            anonymous: sum.anonymous + one.anonymous,
        })
    }
}

/// How many file descriptors a process holds.
pub fn open_files(pid: u32) -> Result<u64, Error> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/fd"));
    match std::fs::read_dir(&path) {
        Ok(entries) => Ok(entries.count() as u64),
        Err(source) => Err(Error::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  9000 kB\nPss:  4321 kB\n\
        Pss_Dirty: 1 kB\nPss_Anon: 99 kB\nAnonymous:  2048 kB\nAnonHugePages: 0 kB\n";

    #[test]
    fn names_that_begin_alike_are_kept_apart() {
        let rollup = Rollup::parse(SAMPLE).unwrap();
        assert_eq!(rollup.rss, 9000 * 1024);
        assert_eq!(rollup.pss, 4321 * 1024);
        assert_eq!(rollup.anonymous, 2048 * 1024);
    }

    #[test]
    fn a_missing_field_is_noticed() {
        assert_eq!(Rollup::parse("Rss: 1 kB\nPss: 1 kB\n"), None);
    }

    #[test]
    fn this_process_is_resident() {
        let own = Rollup::read(std::process::id()).unwrap();
        assert!(own.pss > 0 && own.pss <= own.rss);
        assert!(open_files(std::process::id()).unwrap() >= 3);
    }
}
