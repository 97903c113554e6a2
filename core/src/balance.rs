//! Which endpoint gets the next request: power of two choices over peak EWMA.
//!
//! Two endpoints are drawn at random and the less loaded one is taken
//! (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"). Load is
//! an exponentially weighted moving average of latency that jumps up to a peak at
//! once and decays slowly (as in Finagle and Linkerd), times the requests that are
//! in flight. Latency is the time to the head of the answer, or to the connection
//! for opaque bytes: how long a stream lasts says nothing about who serves it.
//! So an endpoint that turns slow loses its traffic after one answer,
//! and gets it back over the decay time.

use crate::capture::WorkloadName;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The time in which an old latency loses 1 − 1/e of its weight.
const DECAY: Duration = Duration::from_secs(10);
/// What an endpoint counts as that has been asked and has never answered. One that
/// was never asked counts as nothing: it gets the next request.
const UNKNOWN: Duration = Duration::from_secs(1);
/// What a failed connection counts as.
const FAILED: Duration = Duration::from_secs(5);

/// One address of a service.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub workload: Option<WorkloadName>,
    pending: AtomicU32,
    latency: Mutex<Ewma>,
}

#[derive(Debug)]
struct Ewma {
    seconds: f64,
    updated: Instant,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    started: Instant,
}

impl Endpoint {
    pub fn new(address: SocketAddr, workload: Option<WorkloadName>) -> Self {
        Self {
            address,
            workload,
            pending: AtomicU32::new(0),
            latency: Mutex::new(Ewma {
                seconds: 0.0,
                updated: Instant::now(),
            }),
        }
    }

    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.pending.fetch_add(1, Ordering::Relaxed);
        InFlight {
            endpoint: self.clone(),
            started: Instant::now(),
        }
    }

    /// It could not even be reached.
    pub fn failed(&self) {
        self.observe(FAILED, Instant::now());
    }

    fn observe(&self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let mut ewma = self.latency.lock();
        ewma.seconds = if latency > ewma.seconds {
            latency
        } else {
            let weight = decay(now.saturating_duration_since(ewma.updated));
            ewma.seconds * weight + latency * (1.0 - weight)
        };
        ewma.updated = now;
    }

    /// Without news an estimate fades, so that a shunned endpoint is tried again.
    fn load(&self, now: Instant) -> f64 {
        let ewma = self.latency.lock();
        let faded = ewma.seconds * decay(now.saturating_duration_since(ewma.updated));
        match self.pending.load(Ordering::Relaxed) {
            pending if ewma.seconds == 0.0 => UNKNOWN.as_secs_f64() * f64::from(pending),
            pending => faded * f64::from(pending + 1),
        }
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

impl InFlight {
    /// The answer has begun.
    pub fn answered(&self) {
        let now = Instant::now();
        let latency = now.saturating_duration_since(self.started);
        self.endpoint.observe(latency, now);
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The less loaded of two endpoints drawn at random. `None` if there are none.
pub fn pick(endpoints: &[Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
    match endpoints {
        [] => None,
        [only] => Some(only),
        many => {
            let first = fastrand::usize(..many.len());
            let mut second = fastrand::usize(..many.len() - 1);
            if second >= first {
                second += 1;
            }
            let now = Instant::now();
            let (first, second) = (&many[first], &many[second]);
            Some(if first.load(now) <= second.load(now) {
                first
            } else {
                second
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Vec<Arc<Endpoint>> {
        (0..count)
            .map(|n| Arc::new(Endpoint::new(SocketAddr::from(([10, 0, 0, n], 80)), None)))
            .collect()
    }

    #[test]
    fn all_endpoints_are_used() {
        let all = endpoints(5);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let chosen = pick(&all).expect("one").begin();
            chosen.answered();
            seen.insert(chosen.endpoint().address);
        }
        assert_eq!(seen.len(), 5);
        assert!(pick(&[]).is_none());
    }

    #[test]
    fn a_slow_endpoint_gets_less_than_a_fifth_of_an_even_share() {
        let all = endpoints(4);
        let now = Instant::now();
        let mut slow = 0;
        const REQUESTS: u32 = 4000;
        for _ in 0..REQUESTS {
            let chosen = pick(&all).expect("one");
            let took = if chosen.address == all[0].address {
                100
            } else {
                10
            };
            slow += u32::from(took == 100);
            chosen.observe(Duration::from_millis(took), now);
        }
        assert!(slow < REQUESTS / 4 / 5, "{slow} of {REQUESTS}");
    }

    #[test]
    fn pending_requests_count() {
        let all = endpoints(2);
        let held: Vec<_> = (0..10).map(|_| all[0].begin()).collect();
        assert!((0..100).all(|_| pick(&all).expect("one").address == all[1].address));
        drop(held);
    }

    #[test]
    fn a_failure_is_remembered_and_forgotten() {
        let all = endpoints(2);
        all[0].failed();
        let now = Instant::now();
        assert!(all[0].load(now) > all[1].load(now));
        assert!(all[0].load(now + DECAY * 20) < 0.001);
    }
}
