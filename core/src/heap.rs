//! Memory that connections leave behind goes back to the node.
//!
//! The C library keeps what is freed for those that come next, and a heap that was large once
//! stays so. When most of the connections that there were are gone, it is asked for what it can spare.
//! Not more often: it looks through the whole heap, and who allocates waits meanwhile.

use crate::telemetry::Connections;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const LOOKS: Duration = Duration::from_secs(1);
const SETTLING: Duration = Duration::from_secs(2);
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
    fn only_when_most_are_gone() {
        let mut peak = Peak::default();
        let seen = [0, 10_000, 9_000, 5_001, 5_000, 4_999, 2_500, 0, 200, 0];
        let past: Vec<_> = seen.into_iter().filter(|now| peak.is_past(*now)).collect();
        assert_eq!(past, [5_000, 2_500, 0]);
    }
}
