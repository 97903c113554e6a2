//! Memory that is not needed any more goes back to the node.
//!
//! Most of the program that a proxy has touched when it is ready was for becoming so, at its
//! start or for a new workload. Those pages are let go of; the kernel has them in its cache, and
//! may take them from there.
//!
//! So does what connections leave behind.
//! The C library keeps what is freed for those that come next, and a heap that was large once
//! stays so. When most of the connections that there were are gone, it is asked for what it can spare.
//! Not more often: it looks through the whole heap, and who allocates waits meanwhile.

use crate::ready::Readiness;
use crate::telemetry::Connections;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const LOOKS: Duration = Duration::from_secs(1);
const SETTLING: Duration = Duration::from_secs(2);
/// From letting go of the program to doing it again: what runs has to be mapped anew each time.
const BETWEEN: Duration = Duration::from_millis(500);
/// From giving back what is spare to doing it again for connections that are only dormant.
const BREATHER: Duration = Duration::from_secs(60);
/// How many connections fewer are worth it, if they are also half of what there were.
const WORTHWHILE: usize = 256;

/// As many as this process has: so has the heap.
static DORMANT: AtomicUsize = AtomicUsize::new(0);

/// A connection that holds hardly anything for as long as this lives.
#[derive(Debug)]
pub struct Dormant(());

/// The greatest number of connections since memory was last given back.
#[derive(Debug, Default)]
struct Peak(usize);

/// Whenever the proxy has become ready, but not all the time where workloads come and go.
pub async fn give_back_program(readiness: Readiness) {
    loop {
        readiness.becomes_ready().await;
        let _ = tokio::task::spawn_blocking(let_go_of_program).await;
        tokio::time::sleep(BETWEEN).await;
    }
}

pub async fn give_back(connections: Arc<Connections>) {
    let (mut all, mut awake) = (Peak::default(), Peak::default());
    let mut gave: Option<Instant> = None;
    let count = || {
        let now = connections.len();
        [now, now.saturating_sub(DORMANT.load(Ordering::Relaxed))]
    };
    loop {
        tokio::time::sleep(LOOKS).await;
        let mut now = count();
        let are_gone = all.is_past(now[0]);
        // Those that are dormant come again: not each time that many do.
        let may_give = gave.is_none_or(|at| at.elapsed() >= BREATHER);
        if are_gone || (may_give && awake.is_past(now[1])) {
            // Until they are as few as they become.
            loop {
                // An entry is gone before what it was an entry of.
                tokio::time::sleep(SETTLING).await;
                let before = std::mem::replace(&mut now, count());
                if now[1] >= before[1] / 10 * 9 {
                    break;
                }
            }
            let _ = tokio::task::spawn_blocking(trim).await;
            gave = Some(Instant::now());
        }
    }
}

// === impl Dormant ===

impl Dormant {
    pub fn new() -> Self {
        DORMANT.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Dormant {
    fn drop(&mut self) {
        DORMANT.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Peak ===

impl Peak {
    fn is_past(&mut self, now: usize) -> bool {
        let gone = self.0.saturating_sub(now);
        let is_past = gone >= WORTHWHILE && gone >= now;
        self.0 = if is_past { now } else { self.0.max(now) };
        is_past
    }
}

/// Unmaps the code that this process has run so far, whatever file it is of. What it runs next
/// is mapped again, for the price of a page fault without a disk.
fn let_go_of_program() {
    let mapped = std::fs::read_to_string("/proc/self/maps");
    let gone = mapped.and_then(|maps| maps.lines().filter_map(code).try_for_each(let_go_of));
    if let Err(error) = gone {
        tracing::debug!(%error, "the program stays mapped");
    }
}

/// Where code of a file is mapped that nobody can have written to.
fn code(line: &str) -> Option<std::ops::Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access) = (fields.next()?, fields.next()?);
    let (_offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?);
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    (access == "r-xp" && inode != "0").then_some(address(start)?..address(end)?)
}

#[expect(unsafe_code, reason = "no safe form can know what is mapped there")]
fn let_go_of(code: std::ops::Range<usize>) -> io::Result<()> {
    let start = std::ptr::without_provenance_mut(code.start);
    // SAFETY: a private mapping of a file that has not been written to has what the file has,
    // whenever it is read.
    match unsafe { libc::madvise(start, code.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives back at once what the C library can spare.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "of the C library, which has no safe form of it")]
pub fn trim() {
    // SAFETY: it takes the heap's own locks, and touches only what is free.
    let gave = unsafe { libc::malloc_trim(0) };
    tracing::debug!(gave = gave == 1, "memory goes back");
}

/// Others give it back by themselves, or not at all.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_executed_and_of_a_file() {
        let code_of = |rest: &str| code(&format!("7f00-7f10 {rest}"));
        assert_eq!(
            code_of("r-xp 00001000 fe:00 12 /bin/duet-sidecar"),
            Some(0x7f00..0x7f10)
        );
        for other in [
            "r--p 00001000 fe:00 12 /bin/duet-sidecar",
            "rwxp 00001000 fe:00 12 /bin/duet-sidecar",
            "r-xp 00000000 00:00 0 [vdso]",
            "rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code_of(other), None, "{other}");
        }
    }

    /// Of code, in KiB.
    fn resident() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_code = false;
        let mut sum = 0;
        for line in maps.lines() {
            if let Some(rss) = line.strip_prefix("Rss:") {
                let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
                sum += if is_code { kib } else { 0 };
            } else if line.contains('-') {
                is_code = code(line).is_some();
            }
        }
        sum
    }

    #[test]
    fn most_of_what_was_run_once_need_not_stay() {
        // Other tests run meanwhile.
        let gone = (0..20).any(|_| {
            let before = resident();
            let_go_of_program();
            let after = resident();
            println!("{before} KiB of code, and then {after}");
            after < before / 4 * 3
        });
        assert!(gone, "it is all still there");
    }

    #[test]
    fn only_when_most_are_gone() {
        let mut peak = Peak::default();
        let seen = [0, 10_000, 9_000, 5_001, 5_000, 4_999, 2_500, 0, 200, 0];
        let past: Vec<_> = seen.into_iter().filter(|now| peak.is_past(*now)).collect();
        assert_eq!(past, [5_000, 2_500, 0]);
    }
}
