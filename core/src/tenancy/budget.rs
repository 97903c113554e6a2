//! What a workload may have at once, and in a second.

use crate::api;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a request waits for its time; one that would wait longer is refused.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The part of a second's requests that may come at once.
const BURST: u64 = 10;
/// What an HTTP/2 connection may have under way in any case: RFC 9113 has no less.
const LEAST_WINDOW: u32 = 64 * 1024;
/// The part of what is left that one connection gets.
const PART: u64 = 8;

/// 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// That clients have open, in each direction.
    pub connections: u32,
    /// mTLS, in each direction.
    pub handshakes_per_second: u32,
    /// In each direction.
    pub requests_per_second: u32,
    /// That peers may send before anything is passed on.
    pub buffered_bytes: u64,
    /// Its part of the worker threads, as against one of weight 1.
    pub weight: u32,
}

/// So many a second; who is early waits.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    per_second: AtomicU32,
    /// When the next one is due, in nanoseconds since `since`.
    due: Mutex<u64>,
}

/// So many at once.
#[derive(Debug, Default)]
pub struct Room {
    most: AtomicU32,
    taken: AtomicU32,
    freed: Notify,
}

/// A place in a room, until it is dropped.
#[derive(Debug)]
pub struct Taken(Option<Arc<Room>>);

/// Bytes that connections may have under way, all together.
#[derive(Debug, Default)]
pub struct Buffers {
    most: AtomicU64,
    reserved: Mutex<u64>,
}

/// A connection's part of them, until it is dropped.
#[derive(Debug)]
pub struct Window {
    bytes: u32,
    of: Option<Arc<Buffers>>,
}

// === impl Budgets ===

impl Budgets {
    pub fn read(said: api::Budgets) -> Self {
        Self {
            connections: said.connections,
            handshakes_per_second: said.handshakes_per_second,
            requests_per_second: said.requests_per_second,
            buffered_bytes: u64::from(said.buffer_mib) << 20,
            weight: said.weight,
        }
    }

    /// What a workload asks for, as far as its operator allows it.
    pub fn within(self, bounds: Self) -> Self {
        let least = |asked: u32, bound: u32| match (asked, bound) {
            (0, only) | (only, 0) => only,
            (asked, bound) => asked.min(bound),
        };
        Self {
            connections: least(self.connections, bounds.connections),
            handshakes_per_second: least(self.handshakes_per_second, bounds.handshakes_per_second),
            requests_per_second: least(self.requests_per_second, bounds.requests_per_second),
            buffered_bytes: match (self.buffered_bytes, bounds.buffered_bytes) {
                (0, only) | (only, 0) => only,
                (asked, bound) => asked.min(bound),
            },
            weight: self.weight.clamp(1, bounds.weight.max(1)),
        }
    }
}

// === impl Pace ===

impl Default for Pace {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            per_second: AtomicU32::new(0),
            due: Mutex::new(0),
        }
    }
}

impl Pace {
    pub fn set(&self, per_second: u32) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// When the next one may go on; `None`: now.
    ///
    /// # Errors
    /// With how long it would have to wait, if that is more than `patience`.
    pub fn reserve(&self, patience: Duration) -> Result<Option<Instant>, Duration> {
        let per_second = u64::from(self.per_second.load(Ordering::Relaxed));
        if per_second == 0 {
            return Ok(None);
        }
        let each = 1_000_000_000 / per_second;
        let early = each * (per_second / BURST).saturating_sub(1);
        let now = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut due = self.due.lock();
        let mine = (*due).max(now);
        let wait = Duration::from_nanos((mine - now).saturating_sub(early));
        if wait > patience {
            return Err(wait);
        }
        *due = mine + each;
        Ok((!wait.is_zero()).then(|| Instant::now() + wait))
    }
}

// === impl Room ===

impl Room {
    pub fn set(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    pub fn has_some(&self) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        most == 0 || self.taken.load(Ordering::Acquire) < most
    }

    /// Waits for room, without taking it.
    pub async fn wait(&self) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on it hears of what becomes free.
            freed.as_mut().enable();
            if self.has_some() {
                return;
            }
            freed.await;
        }
    }

    pub fn take(self: &Arc<Self>) -> Taken {
        self.taken.fetch_add(1, Ordering::AcqRel);
        Taken(Some(self.clone()))
    }
}

impl Taken {
    /// Of a room without walls.
    pub const fn nothing() -> Self {
        Self(None)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(room) = &self.0 {
            room.taken.fetch_sub(1, Ordering::AcqRel);
            room.freed.notify_waiters();
        }
    }
}

// === impl Buffers ===

impl Buffers {
    pub fn set(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// A part of what is left, but `wanted` at most: the more connections there are, the
    /// less each of them gets, so that the first cannot have everything.
    pub fn reserve(self: &Arc<Self>, wanted: u32) -> Window {
        let most = self.most.load(Ordering::Relaxed);
        if most == 0 {
            return Window::whole(wanted);
        }
        let mut reserved = self.reserved.lock();
        let part = most.saturating_sub(*reserved) / PART;
        let bytes = u32::try_from(part).unwrap_or(u32::MAX);
        let bytes = bytes.clamp(LEAST_WINDOW, wanted.max(LEAST_WINDOW));
        *reserved += u64::from(bytes);
        Window {
            bytes,
            of: Some(self.clone()),
        }
    }

    pub fn reserved(&self) -> u64 {
        *self.reserved.lock()
    }
}

// === impl Window ===

impl Window {
    pub const fn whole(bytes: u32) -> Self {
        Self { bytes, of: None }
    }

    pub const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether it is less than a stream may have, which then holds up the others.
    pub const fn is_narrow(&self) -> bool {
        self.bytes == LEAST_WINDOW
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(buffers) = &self.of {
            *buffers.reserved.lock() -= u64::from(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_asks_within_what_its_operator_allows() {
        let bounds = Budgets {
            connections: 100,
            requests_per_second: 0,
            buffered_bytes: 1 << 20,
            weight: 4,
            handshakes_per_second: 10,
        };
        let asked = Budgets {
            connections: 1000,
            requests_per_second: 50,
            buffered_bytes: 1 << 10,
            weight: 9,
            handshakes_per_second: 0,
        };
        let expected = Budgets {
            connections: 100,
            requests_per_second: 50,
            buffered_bytes: 1 << 10,
            weight: 4,
            handshakes_per_second: 10,
        };
        assert_eq!(asked.within(bounds), expected);
        assert_eq!(Budgets::default().within(bounds).weight, 1);
    }

    async fn next(pace: &Pace) -> Result<bool, Duration> {
        let at = pace.reserve(Duration::from_secs(1))?;
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
        Ok(at.is_some())
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_early_waits_and_who_would_wait_too_long_is_told() {
        let pace = Pace::default();
        let second = Duration::from_secs(1);
        assert_eq!(next(&pace).await, Ok(false), "no limit, no wait");
        pace.set(100);
        tokio::time::advance(second).await;
        let began = Instant::now();
        let mut waited = 0;
        for _ in 0..110 {
            waited += u32::from(next(&pace).await.unwrap());
        }
        // Ten at once, and then one after the other.
        assert_eq!(waited, 100);
        let took = began.elapsed();
        assert!((second..second * 11 / 10).contains(&took), "{took:?}");
        // All at once: as many as fit in the time are served, and the others told.
        let all = (0..500).map(|_| next(&pace));
        let all = futures_util::future::join_all(all).await;
        let served = all.iter().filter(|one| one.is_ok()).count();
        assert!((100..=111).contains(&served), "{served}");
        assert!(
            all.iter()
                .flat_map(|one| one.err())
                .all(|wait| wait > second)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_is_full_is_waited_for() {
        let room = Arc::new(Room::default());
        room.set(2);
        assert!(room.has_some());
        let (one, _two) = (room.take(), room.take());
        let waits = tokio::spawn({
            let room = room.clone();
            async move { room.wait().await }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waits.is_finished());
        drop(one);
        waits.await.unwrap();
        let _three = room.take();
        room.set(0);
        assert!(room.has_some(), "no limit any more");
    }

    #[test]
    fn windows_together_are_within_the_budget_but_for_the_least() {
        let buffers = Arc::new(Buffers::default());
        assert_eq!(buffers.reserve(1 << 28).bytes(), 1 << 28, "no limit");
        assert_eq!(buffers.reserved(), 0);
        buffers.set(1 << 24);
        let windows: Vec<_> = (0..100).map(|_| buffers.reserve(1 << 28)).collect();
        assert_eq!(windows[0].bytes(), 1 << 21);
        assert!(windows[1].bytes() < windows[0].bytes());
        assert!(windows[99].is_narrow());
        let least = windows.iter().filter(|one| one.is_narrow()).count() as u64;
        assert!(buffers.reserved() <= (1 << 24) + least * u64::from(LEAST_WINDOW));
        drop(windows);
        assert_eq!(buffers.reserved(), 0);
        assert_eq!(
            buffers.reserve(1 << 18).bytes(),
            1 << 18,
            "no more than wanted"
        );
    }
}
