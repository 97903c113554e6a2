//! A fixed number of HTTP/2 connections that carry any number of requests at a time.
//!
//! Requests take the standing connections in turn. A request that finds none waits for the attempt in progress
//! and shares its failure. The number of requests in flight is bounded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::clock::now_ns;
use super::connection::{Answer, within};
use super::error::ErrorKind;
use super::http2::{self, Driver, Sender};
use super::reconnect::{ATTEMPT, BACKOFF, Standing, retry_time};
use super::record::{Due, SharedRecorder};
use super::target::Target;

struct Shared {
    target: Target,
    timeout: Duration,
    in_flight_limit: usize,
    recorder: SharedRecorder,
    state: Mutex<State>,
    recovered: Notify,
    /// A request waits and no connection stands.
    wanted: Notify,
}

struct State {
    /// The standing connections, the next one to use first.
    up: VecDeque<Arc<Channel>>,
    waiting: VecDeque<Due>,
    in_flight: usize,
    standing: Standing,
}

/// One standing connection.
struct Channel {
    slot: usize,
    sender: Sender,
    /// When it last completed an answer.
    last_answer_ns: AtomicU64,
    retire: Notify,
    /// It was told to go, and takes no more requests.
    retired: AtomicBool,
}

pub struct Multiplex(Arc<Shared>);

impl Multiplex {
    /// Starts the connections on the current runtime.
    pub fn start(
        target: Target,
        connections: usize,
        in_flight_limit: usize,
        timeout: Duration,
        recorder: SharedRecorder,
    ) -> Self {
        let state = State {
            up: VecDeque::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            standing: Standing::default(),
        };
        let shared = Arc::new(Shared {
            target,
            timeout,
            in_flight_limit,
            recorder,
            state: Mutex::new(state),
            recovered: Notify::new(),
            wanted: Notify::new(),
        });
        for slot in 0..connections {
            tokio::spawn(keep(slot, shared.clone()));
        }
        Self(shared)
    }

    /// Sends a due request, or lets it wait for a connection.
    pub fn dispatch(&self, due: Due, now_ns: u64) {
        let mut state = self.0.state();
        if state.in_flight + state.waiting.len() >= self.0.in_flight_limit {
            self.0
                .recorder
                .lock()
                .unsent(due, now_ns, ErrorKind::QueueFull);
        } else if let Some(channel) = state.next() {
            self.0.send(&mut state, channel, due);
        } else {
            state.waiting.push_back(due);
            self.0.wanted.notify_one();
        }
    }

    /// Counts every waiting request whose time-out has passed.
    pub fn expire(&self, now_ns: u64) {
        self.0.expire(&mut self.0.state(), now_ns);
    }
}

impl State {
    /// Takes the standing connections in turn.
    fn next(&mut self) -> Option<Arc<Channel>> {
        self.up.rotate_left(usize::from(self.up.len() > 1));
        self.up.front().cloned()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(self: &Arc<Self>, state: &mut State, channel: Arc<Channel>, due: Due) {
        state.in_flight += 1;
        tokio::spawn(request(self.clone(), channel, due));
    }

    fn expire(&self, state: &mut State, now_ns: u64) {
        let timeout_ns = self.timeout.as_nanos() as u64;
        while let Some(due) = state.waiting.front()
            && due.intended_ns + timeout_ns <= now_ns
        {
            self.recorder
                .lock()
                .unsent(*due, now_ns, ErrorKind::Timeout);
            state.waiting.pop_front();
        }
    }

    /// The attempt that these requests waited for has failed.
    fn fail_waiting(&self, kind: ErrorKind) {
        let now = now_ns();
        let mut state = self.state();
        self.expire(&mut state, now);
        if kind.is_timeout() {
            // Those that joined late have time left for the next attempt.
            return;
        }
        for due in state.waiting.drain(..) {
            let mut recorder = self.recorder.lock();
            recorder.sent(due, now, 0);
            recorder.finished(due, now, now, Err(kind));
        }
    }
}

async fn request(shared: Arc<Shared>, mut channel: Arc<Channel>, due: Due) {
    let sent_ns = now_ns();
    shared.recorder.lock().sent(due, sent_ns, 0);
    let exchange = exchange(&shared, &mut channel);
    let outcome = within(shared.timeout, ErrorKind::Timeout, exchange).await;
    let done_ns = outcome
        .as_ref()
        .map_or_else(|_| now_ns(), |answer| answer.done_ns);
    if outcome.is_ok() {
        channel.last_answer_ns.store(done_ns, Ordering::Relaxed);
    }
    shared
        .recorder
        .lock()
        .finished(due, sent_ns, done_ns, outcome.map(|answer| answer.bytes));
    // A time-out with nothing answered since is a connection that leads nowhere.
    if outcome.is_err_and(ErrorKind::is_timeout)
        && channel.last_answer_ns.load(Ordering::Relaxed) < sent_ns
    {
        channel.retired.store(true, Ordering::Relaxed);
        channel.retire.notify_one();
    }
    shared.state().in_flight -= 1;
}

/// Sends the request on the connection, or on another one if this one was retired before it took the request:
/// that is the generator's doing, and nobody has seen the request yet.
async fn exchange(shared: &Shared, channel: &mut Arc<Channel>) -> Result<Answer, ErrorKind> {
    loop {
        let mut sender = channel.sender.clone();
        match http2::try_exchange(&mut sender, &shared.target).await {
            Err(unanswered) if unanswered.unsent && channel.retired.load(Ordering::Relaxed) => {}
            outcome => return outcome.map_err(|unanswered| unanswered.kind),
        }
        // Its successor is being opened; the request's own time-out bounds the wait.
        *channel = loop {
            let next = shared.state().next();
            match next {
                Some(next) if !next.retired.load(Ordering::Relaxed) => break next,
                _ => tokio::time::sleep(SUCCESSOR).await,
            }
        };
    }
}

/// From one look for a retired connection's successor to the next.
const SUCCESSOR: Duration = Duration::from_millis(1);

/// Keeps one connection open until the runtime ends.
async fn keep(slot: usize, shared: Arc<Shared>) {
    let mut limit = ATTEMPT;
    loop {
        match within(
            limit,
            ErrorKind::ConnectTimeout,
            http2::open(&shared.target),
        )
        .await
        {
            Ok((sender, driver)) => {
                let proven = hold(slot, &shared, sender, driver).await;
                limit = if proven {
                    ATTEMPT
                } else {
                    wait(slot, &shared).await
                };
            }
            Err(kind) => {
                shared.recorder.lock().connections.failed_attempts += 1;
                if shared.state().up.is_empty() {
                    shared.fail_waiting(kind);
                }
                limit = wait(slot, &shared).await;
            }
        }
    }
}

/// Offers the connection to requests until it ends or is retired; true if it outlived a back-off.
async fn hold(slot: usize, shared: &Arc<Shared>, sender: Sender, mut driver: Driver) -> bool {
    shared.recorder.lock().connections.opened += 1;
    let channel = Arc::new(Channel {
        slot,
        sender,
        last_answer_ns: AtomicU64::new(0),
        retire: Notify::new(),
        retired: AtomicBool::new(false),
    });
    {
        let mut state = shared.state();
        state.up.push_back(channel.clone());
        shared.expire(&mut state, now_ns());
        while let Some(due) = state.waiting.pop_front() {
            shared.send(&mut state, channel.clone(), due);
        }
    }
    let mut proven = false;
    loop {
        tokio::select! {
            _ = &mut driver => break,
            () = channel.retire.notified() => break,
            () = tokio::time::sleep(BACKOFF), if !proven => {
                proven = true;
                if shared.state().standing.proven() {
                    shared.recovered.notify_waiters();
                }
            }
        }
    }
    let mut state = shared.state();
    state.up.retain(|other| other.slot != slot);
    if proven {
        state.standing.lost();
    }
    shared.recorder.lock().connections.lost += 1;
    proven
}

/// Waits for the next attempt's time and returns its deadline.
async fn wait(slot: usize, shared: &Shared) -> Duration {
    let may_retry = shared.state().standing.may_retry(slot);
    tokio::select! {
        biased;
        () = shared.wanted.notified() => shared.timeout,
        () = retry_time(may_retry, &shared.recovered) => ATTEMPT,
    }
}
