//! Who tries again after a connection is lost, and when.
//!
//! While at least one connection stands, each lost one is retried on its own. While none stands, a single
//! prober retries every 10 ms and the others wait for its success: recovery is seen at that resolution,
//! and many generators with many connections do not add a connection storm to the fault they observe.
//! A connection stands once it has answered or outlived one back-off: a proxy whose other end is gone accepts
//! and then closes. A request that is due in the meantime always makes an attempt of its own.

use std::time::Duration;

use tokio::sync::Notify;

/// Pause between attempts in the background.
pub const BACKOFF: Duration = Duration::from_millis(10);
/// Deadline of an attempt in the background. Short, so that a lost SYN does not hide a recovery for the
/// second that the kernel would wait before sending it again.
pub const ATTEMPT: Duration = Duration::from_millis(100);

/// How many of a set of connections stand, and who probes. Each is known by its slot's number.
#[derive(Debug, Default)]
pub struct Standing {
    up: usize,
    prober: Option<usize>,
}

impl Standing {
    /// Whether this slot should retry by itself after the back-off.
    pub fn may_retry(&mut self, slot: usize) -> bool {
        self.up > 0 || *self.prober.get_or_insert(slot) == slot
    }

    /// A connection stands; returns true if it is the first one, so that the others should follow.
    pub fn proven(&mut self) -> bool {
        self.up += 1;
        self.prober = None;
        self.up == 1
    }

    pub fn lost(&mut self) {
        self.up -= 1;
    }
}

/// Returns when a slot without a connection should try again in the background.
pub async fn retry_time(may_retry: bool, recovered: &Notify) {
    if may_retry {
        tokio::time::sleep(BACKOFF).await;
    } else {
        recovered.notified().await;
    }
}
