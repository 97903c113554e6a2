//! How much a workload is asked to do at once: requests a second of each client, and
//! requests under way of all together.
//!
//! A client's rate is kept by the generic cell rate algorithm (ITU-T I.371), which is one
//! number for each client: when its next request is due. Whoever comes too early, by more
//! than its burst, is told when to come again (429, RESOURCE_EXHAUSTED) and is no further
//! behind for having asked. A client is an identity; all that have none are one. What is
//! beyond the requests under way is refused at once (503, UNAVAILABLE) rather than queued:
//! the client's proxy has other endpoints, and knows from the refusal that it should ask
//! them. A kubelet's probes are not counted. Without limits, this costs nothing.

use crate::api;
use crate::upstream::UpstreamError;
use dashmap::DashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clients that are told apart; those beyond share one rate.
const MAX_CLIENTS: usize = 10_000;
const OTHERS: &str = "other";
const NANOS: u64 = 1_000_000_000;

/// What discovery says of a workload. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of each client.
    pub requests_per_second: u32,
    /// Requests that may come at once.
    pub burst: u32,
    /// Under way, of all clients.
    pub in_flight: u32,
}

/// One workload's.
#[derive(Debug)]
pub struct Limiter {
    since: Instant,
    /// When the next request of a client is due, in nanoseconds since `since`.
    due: DashMap<Arc<str>, AtomicU64>,
    in_flight: Arc<AtomicU32>,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<AtomicU32>);

// === impl Limits ===

impl Limits {
    pub fn read(said: api::Limits) -> Self {
        Self {
            requests_per_second: said.requests_per_second,
            burst: match said.burst {
                0 => said.requests_per_second,
                burst => burst,
            },
            in_flight: said.in_flight,
        }
    }

    pub fn are_none(&self) -> bool {
        self.requests_per_second == 0 && self.in_flight == 0
    }
}

// === impl Limiter ===

impl Default for Limiter {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            due: DashMap::new(),
            in_flight: Arc::default(),
        }
    }
}

impl Limiter {
    /// Whether `client` may make a request now.
    pub fn admit(
        &self,
        limits: &Limits,
        client: &Arc<str>,
        now: Instant,
    ) -> Result<Option<UnderWay>, UpstreamError> {
        let under_way = match limits.in_flight {
            0 => None,
            most => Some(self.begin(most).ok_or(UpstreamError::Overloaded)?),
        };
        if limits.requests_per_second > 0 {
            self.in_time(limits, client, now)
                .map_err(UpstreamError::RateLimited)?;
        }
        Ok(under_way)
    }

    fn begin(&self, most: u32) -> Option<UnderWay> {
        let more = |now: u32| (now < most).then_some(now + 1);
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(UnderWay(self.in_flight.clone()))
    }

    /// Or how long it has to wait.
    fn in_time(&self, limits: &Limits, client: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let each = NANOS / u64::from(limits.requests_per_second);
        let early = each * u64::from(limits.burst.max(1) - 1);
        let now = now.saturating_duration_since(self.since).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        if let Some(due) = self.due.get(client) {
            return take(&due, now, each, early);
        }
        if self.due.len() >= MAX_CLIENTS {
            // Who is not behind is as one who never came.
            self.due.retain(|_, due| *due.get_mut() > now);
        }
        let client = if self.due.len() < MAX_CLIENTS {
            client.clone()
        } else {
            OTHERS.into()
        };
        let due = self.due.entry(client).or_default().downgrade();
        take(&due, now, each, early)
    }
}

fn take(due: &AtomicU64, now: u64, each: u64, early: u64) -> Result<(), Duration> {
    let next = |due: u64| {
        let due = due.max(now);
        (due - now <= early).then_some(due + each)
    };
    match due.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
        Ok(_) => Ok(()),
        Err(due) => Err(Duration::from_nanos(due - now - early)),
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(requests_per_second: u32, burst: u32) -> Limits {
        Limits {
            requests_per_second,
            burst,
            in_flight: 0,
        }
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let limiter = Limiter::default();
        let client: Arc<str> = "shop/cart".into();
        let limits = limits(10, 5);
        let mut now = limiter.since;
        let admitted = (0..20).filter(|_| limiter.admit(&limits, &client, now).is_ok());
        assert_eq!(admitted.count(), 5);
        let Err(UpstreamError::RateLimited(wait)) = limiter.admit(&limits, &client, now) else {
            panic!("it is too early")
        };
        assert_eq!(wait, Duration::from_millis(100));
        now += wait;
        assert!(limiter.admit(&limits, &client, now).is_ok());
        assert!(limiter.admit(&limits, &client, now).is_err());
        // Others have a rate of their own.
        assert!(limiter.admit(&limits, &"shop/web".into(), now).is_ok());
    }

    #[test]
    fn what_is_under_way_is_bounded_until_it_ends() {
        let limiter = Limiter::default();
        let limits = Limits {
            in_flight: 2,
            ..Limits::default()
        };
        let client: Arc<str> = "shop/cart".into();
        let admit = || limiter.admit(&limits, &client, limiter.since);
        let (first, second) = (admit().unwrap(), admit().unwrap());
        assert!(matches!(admit(), Err(UpstreamError::Overloaded)));
        drop(first);
        assert!(admit().is_ok());
        drop(second);
        assert_eq!(limiter.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn clients_are_bounded() {
        let limiter = Limiter::default();
        let limits = limits(1, 1);
        for n in 0..MAX_CLIENTS + 100 {
            let client: Arc<str> = format!("shop/{n}").into();
            let _ = limiter.admit(&limits, &client, limiter.since);
        }
        assert!(limiter.due.len() <= MAX_CLIENTS + 1);
        let later = limiter.since + Duration::from_secs(10);
        assert!(limiter.admit(&limits, &"shop/new".into(), later).is_ok());
        assert!(
            limiter.due.len() <= 2,
            "those that are not behind are forgotten"
        );
    }

    proptest! {
        /// In no stretch of time more than the burst and the rate.
        #[test]
        fn no_stretch_has_more_than_its_part(
            pauses in prop::collection::vec(0..300u64, 1..300),
            rate in 1..50u32,
            burst in 1..20u32,
        ) {
            let limiter = Limiter::default();
            let client: Arc<str> = "shop/cart".into();
            let mut at = 0;
            let mut admitted: Vec<u64> = Vec::new();
            for pause in pauses {
                at += pause;
                let now = limiter.since + Duration::from_millis(at);
                if limiter.admit(&limits(rate, burst), &client, now).is_ok() {
                    admitted.push(at);
                }
            }
            for (n, from) in admitted.iter().enumerate() {
                for (m, to) in admitted.iter().enumerate().skip(n) {
                    let allowed = u64::from(burst) + (to - from) * u64::from(rate) / 1000 + 1;
                    prop_assert!((m - n + 1) as u64 <= allowed);
                }
            }
        }
    }
}
