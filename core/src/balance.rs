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
//!
//! An endpoint that fails is not slow, it is fast: that is what [`crate::breaker`] is
//! for. What it leaves out is looked at only when one of the two that were drawn is out.
//! Who is drawn from is a matter of where the client is (`near`), and who is drawn how often
//! one of weights (`pool`).

use crate::breaker::{Accrual, Breaker, State, Ticket, Turn};
use crate::capture::WorkloadName;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

mod near;
mod pool;

pub use near::{Endpoints, Located, Place};

/// The time in which an old latency loses 1 − 1/e of its weight.
const DECAY: Duration = Duration::from_secs(10);
/// What an endpoint counts as that has been asked and has never answered. One that
/// was never asked counts as nothing: it gets the next request.
const UNKNOWN: Duration = Duration::from_secs(1);
/// What a failed connection counts as.
const FAILED: Duration = Duration::from_secs(5);
/// A client that goes away sooner says nothing of who was to answer it.
const WORTH_TELLING: Duration = Duration::from_millis(10);

/// One address of a service.
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub workload: Option<WorkloadName>,
    pending: AtomicU32,
    latency: Mutex<Ewma>,
    breaker: Breaker,
    weight: AtomicU32,
    /// When it came to a service that was known; `None`: with it.
    since: Option<Instant>,
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
    ticket: Ticket,
    /// Whether the endpoint's estimate has heard of it.
    told: AtomicBool,
}

/// What is to be said of an endpoint when more than the head of its answer is known.
#[derive(Debug)]
pub struct Verdict {
    endpoint: Arc<Endpoint>,
    ticket: Ticket,
}

// === impl Endpoint ===

impl Endpoint {
    pub fn new(address: SocketAddr, workload: Option<WorkloadName>, accrual: Accrual) -> Self {
        Self {
            address,
            workload,
            pending: AtomicU32::new(0),
            latency: Mutex::new(Ewma {
                seconds: 0.0,
                updated: Instant::now(),
            }),
            breaker: Breaker::new(accrual),
            weight: AtomicU32::new(1),
            since: None,
        }
    }

    /// One that others were there before.
    pub fn new_since(mut self, since: Instant) -> Self {
        self.since = Some(since);
        self
    }

    /// A request that goes there, whether the endpoint is in or out.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.begin_at(Instant::now())
    }

    fn begin_at(self: &Arc<Self>, started: Instant) -> InFlight {
        self.begin_with(self.breaker.ticket(), started)
    }

    fn begin_with(self: &Arc<Self>, ticket: Ticket, started: Instant) -> InFlight {
        self.pending.fetch_add(1, Ordering::Relaxed);
        InFlight {
            endpoint: self.clone(),
            started,
            ticket,
            told: AtomicBool::new(false),
        }
    }

    /// From now on it is judged by these rules.
    pub fn configure(&self, accrual: Accrual) {
        self.breaker.configure(accrual);
    }

    /// What it gets is a multiple of this.
    pub fn weigh(&self, weight: u32) {
        self.weight.store(weight.max(1), Ordering::Relaxed);
    }

    fn weight(&self) -> f64 {
        self.weight.load(Ordering::Relaxed).into()
    }

    pub fn state(&self) -> State {
        self.breaker.state(Instant::now())
    }

    /// How often it was taken out, or left out for longer.
    pub fn trips(&self) -> u64 {
        self.breaker.trips()
    }

    fn judged(&self, ticket: Ticket, succeeded: bool) {
        // As nearly always: not even the clock is looked at.
        if succeeded && !self.breaker.heeds_success() {
            return;
        }
        let now = Instant::now();
        let turn = if succeeded {
            self.breaker.succeeded(ticket, now)
        } else {
            self.breaker.failed(ticket, now)
        };
        let address = self.address;
        match turn {
            Some(Turn::OutFor(time)) => {
                tracing::info!(endpoint = %address, ?time, "taken out: it fails");
            }
            Some(Turn::Back) => tracing::info!(endpoint = %address, "back in"),
            None => {}
        }
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

    /// Somebody who has waited for so long gave up: its latency is no less.
    fn outlasted(&self, waited: Duration, now: Instant) {
        let waited = waited.as_secs_f64();
        let mut ewma = self.latency.lock();
        let faded = ewma.seconds * decay(now.saturating_duration_since(ewma.updated));
        if waited > faded.max(WORTH_TELLING.as_secs_f64()) {
            ewma.seconds = waited;
            ewma.updated = now;
        }
    }

    /// Without news an estimate fades, so that a shunned endpoint is tried again.
    fn load(&self, now: Instant) -> f64 {
        self.load_by(now, |pending| pending + 1.0)
    }

    /// `crowd` is what those that are under way count as.
    fn load_by(&self, now: Instant, crowd: impl Fn(f64) -> f64) -> f64 {
        let ewma = self.latency.lock();
        let faded = ewma.seconds * decay(now.saturating_duration_since(ewma.updated));
        match self.pending.load(Ordering::Relaxed) {
            pending if ewma.seconds == 0.0 => UNKNOWN.as_secs_f64() * f64::from(pending),
            pending => faded * crowd(f64::from(pending)),
        }
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

// === impl InFlight ===

impl InFlight {
    /// The answer has begun, whatever it says.
    pub fn answered(&self) {
        let now = Instant::now();
        let latency = now.saturating_duration_since(self.started);
        self.told.store(true, Ordering::Relaxed);
        self.endpoint.observe(latency, now);
    }

    /// It could not even be reached. Left as it was it would count as idle, and get
    /// every request.
    pub fn unreached(&self) {
        self.told.store(true, Ordering::Relaxed);
        self.endpoint.observe(FAILED, Instant::now());
        self.judged(false);
    }

    /// It is there, and does not want this request: that it said so quickly is no
    /// reason to ask it more often.
    pub fn refused(&self) {
        self.told.store(true, Ordering::Relaxed);
        self.judged(true);
    }

    /// What its end says of the endpoint.
    pub fn judged(&self, succeeded: bool) {
        self.endpoint.judged(self.ticket, succeeded);
    }

    /// Whether it is what an endpoint's probation waits for.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    pub fn verdict(&self) -> Verdict {
        Verdict {
            endpoint: self.endpoint.clone(),
            ticket: self.ticket,
        }
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
        // Left as it was, one that never answers would count as quick and idle.
        if !self.told.load(Ordering::Relaxed) {
            let now = Instant::now();
            let waited = now.saturating_duration_since(self.started);
            self.endpoint.outlasted(waited, now);
        }
    }
}

// === impl Verdict ===

impl Verdict {
    pub fn judged(self, succeeded: bool) {
        self.endpoint.judged(self.ticket, succeeded);
    }
}

#[cfg(test)]
mod tests {
    use super::pool::Pool;
    use super::*;
    use proptest::prelude::*;

    pub(super) fn endpoints(count: u8) -> Vec<Arc<Endpoint>> {
        (0..count)
            .map(|n| {
                let address = SocketAddr::from(([10, 0, 0, n], 80));
                Arc::new(Endpoint::new(address, None, Accrual::default()))
            })
            .collect()
    }

    fn pick(all: &[Arc<Endpoint>], avoid: Option<&Endpoint>) -> Option<InFlight> {
        Pool::new(all.to_vec(), Duration::ZERO).pick(avoid, Instant::now())
    }

    fn picked(all: &[Arc<Endpoint>]) -> Arc<Endpoint> {
        pick(all, None).expect("one").endpoint().clone()
    }

    pub(super) fn trip(endpoint: &Arc<Endpoint>) {
        while endpoint.breaker.is_in() {
            endpoint.begin().judged(false);
        }
    }

    #[test]
    fn all_endpoints_are_used() {
        let all = endpoints(5);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let chosen = pick(&all, None).expect("one");
            chosen.answered();
            seen.insert(chosen.endpoint().address);
        }
        assert_eq!(seen.len(), 5);
        assert!(pick(&[], None).is_none());
    }

    #[test]
    fn one_that_never_answers_is_not_taken_for_quick() {
        let all = endpoints(2);
        let now = Instant::now();
        all[0].observe(Duration::from_millis(5), now);
        all[1].observe(Duration::from_millis(10), now);
        // Somebody hangs up at once, which says nothing.
        drop(all[0].begin());
        assert!(all[0].load(now) < all[1].load(now));
        let began = now
            .checked_sub(Duration::from_secs(1))
            .expect("a second ago");
        drop(all[0].begin_with(all[0].breaker.ticket(), began));
        assert!(all[0].load(now) > all[1].load(now));
        // A refusal is quick as well, and no reason to ask again.
        let refused = all[1].begin();
        refused.refused();
        drop(refused);
        assert!(all[1].load(now) <= 0.01);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However many there are, however quick, if they are asked ten times a second or
        /// more: one that is ten times slower gets less than a fifth of an even share.
        #[test]
        fn a_slow_endpoint_gets_less_than_a_fifth(
            count in 2..12u8,
            quick in 1..50u64,
            gap in 1..100u64,
            seed: u64,
        ) {
            const REQUESTS: u32 = 4000;
            fastrand::seed(seed);
            let all = endpoints(count);
            let pool = Pool::new(all.clone(), Duration::ZERO);
            let mut now = Instant::now();
            let mut slow = 0;
            for _ in 0..REQUESTS {
                let flight = pool.pick(None, now).expect("one");
                let chosen = flight.endpoint();
                flight.told.store(true, Ordering::Relaxed);
                let is_slow = chosen.address == all[0].address;
                slow += u32::from(is_slow);
                let took = Duration::from_millis(if is_slow { 10 * quick } else { quick });
                chosen.observe(took, now + took);
                now += Duration::from_millis(gap);
            }
            let share = REQUESTS / u32::from(count);
            prop_assert!(slow * 5 < share, "{slow} of {REQUESTS}, and an even share is {share}");
        }
    }

    #[test]
    fn pending_requests_count() {
        let all = endpoints(2);
        let held: Vec<_> = (0..10).map(|_| all[0].begin()).collect();
        assert!((0..100).all(|_| picked(&all).address == all[1].address));
        drop(held);
    }

    #[test]
    fn a_failure_is_remembered_and_forgotten() {
        let all = endpoints(2);
        all[0].begin().unreached();
        let now = Instant::now();
        assert!(all[0].load(now) > all[1].load(now));
        assert!(all[0].load(now + DECAY * 20) < 0.001);
    }

    #[test]
    fn what_is_out_gets_nothing_while_somebody_is_in() {
        let all = endpoints(4);
        for out in 0..4 {
            assert!((0..200).all(|_| picked(&all).breaker.is_in()));
            trip(&all[out]);
        }
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            let chosen = pick(&all, None).expect("one");
            chosen.answered();
            seen.insert(chosen.endpoint().address);
        }
        assert_eq!(seen.len(), 4, "with none better all are as good");
        all[2].begin().judged(true);
        assert!((0..200).all(|_| picked(&all).address == all[2].address));
    }

    #[test]
    fn a_retry_goes_elsewhere_if_there_is_an_elsewhere() {
        let all = endpoints(3);
        let elsewhere = |all: &[Arc<Endpoint>]| {
            let chosen = pick(all, Some(&all[0])).expect("one");
            chosen.endpoint().address
        };
        assert!((0..200).all(|_| elsewhere(&all) != all[0].address));
        trip(&all[1]);
        assert!((0..200).all(|_| elsewhere(&all) == all[2].address));
        trip(&all[2]);
        assert_eq!(elsewhere(&all), all[0].address);
        assert_eq!(elsewhere(&all[..1]), all[0].address);
    }
}
