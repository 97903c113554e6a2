//! A fixed number of connections that carry one request at a time each.
//!
//! A request that is due goes to the connection that has been idle longest; failing that, to a slot without a
//! connection, which opens one; failing that, into a bounded queue. Its response time counts from the
//! intended time in all three cases. A request that is still in the queue when its time-out has passed is a
//! time-out, and costs no connection; a sent one has the full time-out from its send.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::clock::now_ns;
use super::connection::{Connection, within};
use super::error::ErrorKind;
use super::reconnect::{ATTEMPT, BACKOFF, Standing, retry_time};
use super::record::{Due, SharedRecorder};
use super::target::Target;

/// What every slot shares.
struct Shared {
    target: Target,
    timeout: Duration,
    queue_limit: usize,
    recorder: SharedRecorder,
    state: Mutex<State>,
    recovered: Notify,
}

struct State {
    inboxes: Vec<mpsc::Sender<Job>>,
    /// Slots with an unused connection, the longest idle first.
    idle: VecDeque<usize>,
    /// Slots without a connection that wait for a reason to open one.
    down: VecDeque<usize>,
    queue: VecDeque<Due>,
    standing: Standing,
}

struct Job {
    due: Due,
    /// When the dispatcher looked at it.
    ready_ns: u64,
}

pub struct Pool(Arc<Shared>);

impl Pool {
    /// Starts the slots on the current runtime; each opens its connection at once.
    pub fn start(
        target: Target,
        connections: usize,
        queue_limit: usize,
        timeout: Duration,
        recorder: SharedRecorder,
    ) -> Self {
        let (inboxes, jobs): (Vec<_>, Vec<_>) = (0..connections).map(|_| mpsc::channel(1)).unzip();
        let state = State {
            inboxes,
            idle: VecDeque::new(),
            down: VecDeque::new(),
            queue: VecDeque::new(),
            standing: Standing::default(),
        };
        let shared = Arc::new(Shared {
            target,
            timeout,
            queue_limit,
            recorder,
            state: Mutex::new(state),
            recovered: Notify::new(),
        });
        for (number, inbox) in jobs.into_iter().enumerate() {
            tokio::spawn(
                Slot {
                    number,
                    inbox,
                    connection: None,
                    proven: false,
                    shared: shared.clone(),
                }
                .run(),
            );
        }
        Self(shared)
    }

    /// Hands a due request to a slot or to the queue.
    pub fn dispatch(&self, due: Due, now_ns: u64) {
        let mut state = self.0.state();
        let slot = state.idle.pop_front().or_else(|| state.down.pop_front());
        match slot {
            Some(slot) => {
                let job = Job {
                    due,
                    ready_ns: now_ns,
                };
                if state.inboxes[slot].try_send(job).is_err() {
                    unreachable!("a parked slot has an empty inbox");
                }
            }
            None if state.queue.len() < self.0.queue_limit => state.queue.push_back(due),
            None => {
                // Those whose time has passed make room first.
                self.0.expire(&mut state, now_ns);
                if state.queue.len() < self.0.queue_limit {
                    state.queue.push_back(due);
                } else {
                    self.0
                        .recorder
                        .lock()
                        .unsent(due, now_ns, ErrorKind::QueueFull);
                }
            }
        }
    }

    /// Counts every queued request whose time-out has passed.
    pub fn expire(&self, now_ns: u64) {
        self.0.expire(&mut self.0.state(), now_ns);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expire(&self, state: &mut State, now_ns: u64) {
        let timeout_ns = self.timeout.as_nanos() as u64;
        while let Some(due) = state.queue.front()
            && due.intended_ns + timeout_ns <= now_ns
        {
            self.recorder
                .lock()
                .unsent(*due, now_ns, ErrorKind::Timeout);
            state.queue.pop_front();
        }
    }
}

struct Slot {
    number: usize,
    inbox: mpsc::Receiver<Job>,
    connection: Option<Connection>,
    /// The connection has answered or outlived a back-off.
    proven: bool,
    shared: Arc<Shared>,
}

impl Slot {
    /// Serves requests until the runtime ends.
    async fn run(mut self) {
        self.open_in_background().await;
        loop {
            let job = match self.take_or_park() {
                Some(job) => Some(job),
                None if self.connection.is_some() => self.wait_idle().await,
                None => self.wait_down().await,
            };
            if let Some(job) = job {
                self.serve(job).await;
            }
        }
    }

    /// The oldest queued request, or a place among the waiting slots.
    fn take_or_park(&self) -> Option<Job> {
        let now = now_ns();
        let mut state = self.shared.state();
        self.shared.expire(&mut state, now);
        if let Some(due) = state.queue.pop_front() {
            return Some(Job {
                due,
                ready_ns: due.intended_ns,
            });
        }
        if self.connection.is_some() {
            state.idle.push_back(self.number);
        } else {
            state.down.push_back(self.number);
        }
        None
    }

    /// Leaves the waiting slots. A request may have been handed over just before.
    fn unpark(&mut self) -> Option<Job> {
        let mut state = self.shared.state();
        state.idle.retain(|slot| *slot != self.number);
        state.down.retain(|slot| *slot != self.number);
        drop(state);
        self.inbox.try_recv().ok()
    }

    async fn wait_idle(&mut self) -> Option<Job> {
        loop {
            let connection = self.connection.as_mut()?;
            tokio::select! {
                biased;
                job = self.inbox.recv() => return job,
                () = connection.closed() => {
                    let job = self.unpark();
                    let reopen = self.lose();
                    if reopen && job.is_none() {
                        self.open_in_background().await;
                    }
                    return job;
                }
                () = tokio::time::sleep(BACKOFF), if !self.proven => self.prove(),
            }
        }
    }

    async fn wait_down(&mut self) -> Option<Job> {
        let may_retry = self.shared.state().standing.may_retry(self.number);
        tokio::select! {
            biased;
            job = self.inbox.recv() => job,
            () = retry_time(may_retry, &self.shared.recovered) => {
                let job = self.unpark();
                if job.is_none() {
                    self.open_in_background().await;
                }
                job
            }
        }
    }

    async fn serve(&mut self, job: Job) {
        let sent_ns = now_ns();
        let waited_ns = sent_ns.saturating_sub(job.ready_ns);
        self.shared
            .recorder
            .lock()
            .sent(job.due, sent_ns, waited_ns);
        let outcome = self.request(job.due.number, sent_ns).await;
        let (done_ns, outcome) = match outcome {
            Ok((done_ns, bytes)) => (done_ns, Ok(bytes)),
            Err(kind) => (now_ns(), Err(kind)),
        };
        self.shared
            .recorder
            .lock()
            .finished(job.due, sent_ns, done_ns, outcome);
        if outcome.is_ok() {
            self.prove();
        }

        let reusable = match (&mut self.connection, outcome) {
            (None, _) => return,
            (Some(_), Err(kind)) if !leaves_connection_usable(kind) => false,
            (Some(connection), _) => tokio::time::timeout(BACKOFF, connection.reusable())
                .await
                .unwrap_or(false),
        };
        if !reusable && self.lose() {
            self.open_in_background().await;
        }
    }

    /// One request on the slot's connection, which is opened first if there is none.
    async fn request(&mut self, number: u64, sent_ns: u64) -> Result<(u64, u64), ErrorKind> {
        if self.connection.is_none() {
            self.open(self.shared.timeout).await?;
        }
        let elapsed = Duration::from_nanos(now_ns() - sent_ns);
        let left = self.shared.timeout.saturating_sub(elapsed);
        let connection = self.connection.as_mut().ok_or(ErrorKind::Closed)?;
        let exchange = connection.exchange(&self.shared.target, number);
        let answer = within(left, ErrorKind::Timeout, exchange).await?;
        Ok((answer.done_ns, answer.bytes))
    }

    async fn open_in_background(&mut self) {
        let _ = self.open(ATTEMPT).await;
    }

    async fn open(&mut self, limit: Duration) -> Result<(), ErrorKind> {
        let opened = within(
            limit,
            ErrorKind::ConnectTimeout,
            Connection::open(&self.shared.target, false),
        )
        .await;
        let mut recorder = self.shared.recorder.lock();
        match opened {
            Ok(connection) => {
                recorder.connections.opened += 1;
                drop(recorder);
                self.connection = Some(connection);
                Ok(())
            }
            Err(kind) => {
                recorder.connections.failed_attempts += 1;
                Err(kind)
            }
        }
    }

    fn prove(&mut self) {
        if !self.proven {
            self.proven = true;
            if self.shared.state().standing.proven() {
                self.shared.recovered.notify_waiters();
            }
        }
    }

    /// Drops the connection; true if it is worth opening another at once.
    fn lose(&mut self) -> bool {
        self.connection = None;
        self.shared.recorder.lock().connections.lost += 1;
        if self.proven {
            self.shared.state().standing.lost();
        }
        std::mem::take(&mut self.proven)
    }
}

/// An answer with an error status is complete; every other failure leaves the connection in an unknown state.
fn leaves_connection_usable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Status4xx | ErrorKind::Status5xx)
}
