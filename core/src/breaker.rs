//! Failure accrual: when an endpoint is left out, and how it comes back.
//!
//! Two signals trip it, each for what the other misses. *Failures in a row* notice an
//! endpoint that is dead within a handful of requests, and never one that fails every
//! second request. The *success rate* over a window notices that one, but needs enough
//! requests to say anything. The first is looked at first; the second is off unless a
//! service asks for it. A failure is an answer 5xx, a gRPC status that blames the server
//! (see [`crate::http::blames_server`]), a connection that was not had, an answer that
//! did not come in time or was cut.
//!
//! An endpoint that tripped is left out for a backoff that doubles, with jitter. Then it
//! is on probation: one request goes there. If that succeeds the endpoint is back as if
//! nothing had been, otherwise it is left out for longer. Of a stream in gRPC the first
//! message is success enough. A probation that never hears
//! the end of its request is repeated after [`PROBATION`].
//!
//! *If all endpoints are out, requests are balanced over all of them*, and the first
//! success brings its endpoint back. Linkerd fails fast there and Envoy, at its panic
//! threshold, does as Duet. The breaker judges endpoints against each other: where there
//! is none better, refusing would turn the application's own answers into the proxy's
//! 503, and one client's poisonous requests into an outage for all. So it only ever
//! moves requests, and can be on by default. Envoy's threshold is at half of the
//! endpoints, to spare those that are left; sparing is what load shedding at the
//! receiver is for.

use parking_lot::Mutex;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// linkerd2-proxy's default.
const CONSECUTIVE: u32 = 7;
/// linkerd2-proxy's defaults.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// What is added to a backoff at most, as a part of it; linkerd2-proxy's default.
const JITTER: f64 = 0.5;
/// Over which the success rate is taken.
const WINDOW: Duration = Duration::from_secs(10);
/// With fewer answers in the window the success rate says nothing.
const MIN_REQUESTS: u32 = 20;
/// Parts in which the window moves on.
const BUCKETS: usize = 10;
/// How long a probation's request is waited for before there is another one.
const PROBATION: Duration = Duration::from_secs(10);

/// What instants are counted from, so that one fits an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When an endpoint is to be left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accrual {
    /// Failures in a row; `None`: never.
    pub consecutive: Option<u32>,
    /// Of 1; `None`: it is not looked at.
    pub success_rate: Option<f64>,
    pub window: Duration,
    /// Answers that there must be in the window.
    pub min_requests: u32,
    pub min_backoff: Duration,
    pub max_backoff: Duration,
}

/// One endpoint's.
#[derive(Debug)]
pub struct Breaker {
    /// Milliseconds since [`EPOCH`], until which the endpoint is left out; 0 while it
    /// is in.
    out_until: AtomicU64,
    /// Grows whenever the endpoint goes out or comes back: what was begun before says
    /// nothing about it now.
    turn: AtomicU32,
    /// Whether a success changes anything. Where everything goes well it does not, and
    /// costs this one load.
    heeds_success: AtomicBool,
    trips: AtomicU64,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    accrual: Accrual,
    failures_in_a_row: u32,
    /// The next backoff, before jitter.
    backoff: Duration,
    window: Window,
}

/// Answers of the last while, by the part of it.
#[derive(Debug, Default)]
struct Window {
    buckets: [(u32, u32); BUCKETS],
    /// The number of the newest bucket's part since [`EPOCH`].
    newest: u64,
}

/// What a request that is about to be sent knows of its endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    turn: u32,
    probe: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    In,
    Out,
    /// Its backoff is over.
    Probation,
}

/// What an outcome did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Back,
    OutFor(Duration),
}

// === impl Accrual ===

impl Default for Accrual {
    fn default() -> Self {
        Self {
            consecutive: Some(CONSECUTIVE),
            success_rate: None,
            window: WINDOW,
            min_requests: MIN_REQUESTS,
            min_backoff: MIN_BACKOFF,
            max_backoff: MAX_BACKOFF,
        }
    }
}

// === impl Breaker ===

impl Breaker {
    pub fn new(accrual: Accrual) -> Self {
        Self {
            out_until: AtomicU64::new(0),
            turn: AtomicU32::new(0),
            heeds_success: AtomicBool::new(accrual.success_rate.is_some()),
            trips: AtomicU64::new(0),
            record: Mutex::new(Record {
                accrual,
                failures_in_a_row: 0,
                backoff: accrual.min_backoff,
                window: Window::default(),
            }),
        }
    }

    /// From now on it is judged by these rules.
    pub fn configure(&self, accrual: Accrual) {
        let mut record = self.record.lock();
        if record.accrual == accrual {
            return;
        }
        let never = accrual.consecutive.is_none() && accrual.success_rate.is_none();
        record.accrual = accrual;
        record.window = Window::default();
        record.backoff = accrual.min_backoff;
        if never && !self.is_in() {
            self.come_back(&mut record);
        }
        self.heed(&record);
    }

    pub fn is_in(&self) -> bool {
        self.out_until.load(Ordering::Relaxed) == 0
    }

    pub fn state(&self, now: Instant) -> State {
        match self.out_until.load(Ordering::Relaxed) {
            0 => State::In,
            until if until <= millis(now) => State::Probation,
            _ => State::Out,
        }
    }

    /// How often it was taken out, or left out for longer.
    pub fn trips(&self) -> u64 {
        self.trips.load(Ordering::Relaxed)
    }

    /// For a request that goes there whatever the state.
    pub fn ticket(&self) -> Ticket {
        Ticket {
            turn: self.turn.load(Ordering::Acquire),
            probe: false,
        }
    }

    /// The one request of a probation, if it is due and nobody else has it.
    pub fn probe(&self, now: Instant) -> Option<Ticket> {
        let until = self.out_until.load(Ordering::Relaxed);
        let now = millis(now);
        if until == 0 || until > now {
            return None;
        }
        let turn = self.turn.load(Ordering::Acquire);
        let next = now + u64::try_from(PROBATION.as_millis()).unwrap_or(u64::MAX);
        self.out_until
            .compare_exchange(until, next, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        Some(Ticket { turn, probe: true })
    }

    /// Whether a success changes anything, and has to be told.
    pub fn heeds_success(&self) -> bool {
        self.heeds_success.load(Ordering::Relaxed)
    }

    pub fn succeeded(&self, ticket: Ticket, now: Instant) -> Option<Turn> {
        if !self.heeds_success() {
            return None;
        }
        let mut record = self.record.lock();
        if ticket.turn != self.turn.load(Ordering::Acquire) {
            return None;
        }
        if !self.is_in() {
            self.come_back(&mut record);
            return Some(Turn::Back);
        }
        record.failures_in_a_row = 0;
        let turn = self.judge(&mut record, true, now);
        self.heed(&record);
        turn
    }

    pub fn failed(&self, ticket: Ticket, now: Instant) -> Option<Turn> {
        let mut record = self.record.lock();
        if ticket.turn != self.turn.load(Ordering::Acquire) {
            return None;
        }
        if !self.is_in() {
            // Others than the probation's came because there was no better endpoint.
            return ticket.probe.then(|| self.trip(&mut record, now));
        }
        record.failures_in_a_row = record.failures_in_a_row.saturating_add(1);
        let turn = self.judge(&mut record, false, now);
        self.heed(&record);
        turn
    }

    fn judge(&self, record: &mut Record, succeeded: bool, now: Instant) -> Option<Turn> {
        let accrual = record.accrual;
        let in_a_row = accrual
            .consecutive
            .is_some_and(|most| record.failures_in_a_row >= most);
        let too_many = accrual.success_rate.is_some_and(|least| {
            let (succeeded, failed) = record.window.add(succeeded, accrual.window, now);
            let all = succeeded + failed;
            all >= accrual.min_requests && f64::from(succeeded) < least * f64::from(all)
        });
        (in_a_row || too_many).then(|| self.trip(record, now))
    }

    fn trip(&self, record: &mut Record, now: Instant) -> Turn {
        let jitter = record.backoff.mul_f64(fastrand::f64() * JITTER);
        let out_for = record.backoff + jitter;
        record.backoff = (record.backoff * 2).min(record.accrual.max_backoff);
        record.failures_in_a_row = 0;
        record.window = Window::default();
        self.heeds_success.store(true, Ordering::Relaxed);
        self.turn.fetch_add(1, Ordering::AcqRel);
        self.trips.fetch_add(1, Ordering::Relaxed);
        self.out_until
            .store(millis(now + out_for), Ordering::Release);
        Turn::OutFor(out_for)
    }

    fn come_back(&self, record: &mut Record) {
        record.failures_in_a_row = 0;
        record.backoff = record.accrual.min_backoff;
        record.window = Window::default();
        self.turn.fetch_add(1, Ordering::AcqRel);
        self.out_until.store(0, Ordering::Release);
        self.heed(record);
    }

    fn heed(&self, record: &Record) {
        let heeds =
            record.accrual.success_rate.is_some() || record.failures_in_a_row > 0 || !self.is_in();
        self.heeds_success.store(heeds, Ordering::Relaxed);
    }
}

// === impl Ticket ===

impl Ticket {
    pub fn is_probe(self) -> bool {
        self.probe
    }
}

// === impl Window ===

impl Window {
    /// Adds an answer, and gives the successes and failures of the whole window.
    fn add(&mut self, succeeded: bool, window: Duration, now: Instant) -> (u32, u32) {
        let part = u64::try_from(window.as_millis()).unwrap_or(u64::MAX) / BUCKETS as u64;
        let number = millis(now) / part.max(1);
        let passed = number.saturating_sub(self.newest);
        for old in 0..passed.min(BUCKETS as u64) {
            self.buckets[slot(number - old)] = (0, 0);
        }
        self.newest = self.newest.max(number);
        let (successes, failures) = &mut self.buckets[slot(self.newest)];
        *if succeeded { successes } else { failures } += 1;
        self.buckets
            .iter()
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

fn slot(number: u64) -> usize {
    usize::try_from(number % BUCKETS as u64).unwrap_or_default()
}

/// Never 0.
fn millis(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*EPOCH).as_millis();
    u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
