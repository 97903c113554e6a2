//! Turns on the worker threads.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995) over workloads: in each round every
//! workload may use [`TURN`] of a worker's time, times its weight. A task is run as soon as
//! the runtime comes to it while its workload has something left, and put aside
//! otherwise. Those put aside get the next turn one workload after the other, each when the
//! run queue is empty and the kernel has been asked for more, that is, when nobody who has
//! something left wants to run. So no turn is wasted while there is work, one workload
//! alone never waits longer than it takes to look around, and a workload within its share
//! waits for one turn of somebody else at most, whatever that one has in store.
//!
//! Tasks are charged for the time that each poll took. It is the wall's clock, because the
//! thread's own costs a system call; so a poll is charged [`LONGEST`] at most: if it took
//! longer, the thread was most likely not running.

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What a workload of weight 1 may use in a round. A request through an agent takes four
/// or five wake-ups, and may wait this long at each; a turn costs a system call to look
/// for news, which is half a per cent of it.
const TURN: Duration = Duration::from_micros(200);
/// What one poll is charged at most. A TLS handshake takes half of it.
const LONGEST: Duration = Duration::from_millis(1);

/// A process's worker threads.
#[derive(Debug, Default)]
pub struct Fair {
    round: AtomicI64,
    /// Who has put tasks aside, in the order of their turns.
    waiting: Mutex<VecDeque<Arc<Account>>>,
    somebody: Notify,
}

/// A workload's part of the worker threads; nobody's, where there is nothing to share.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Share(Option<Arc<Account>>);

#[derive(Debug)]
struct Account {
    fair: Arc<Fair>,
    weight: AtomicU32,
    /// Nanoseconds that may be used in the present round; below zero: has been lent.
    left: AtomicI64,
    /// Up to which `left` has been filled.
    round: AtomicI64,
    used: AtomicU64,
    /// A poll's nanoseconds, on average.
    each: AtomicU64,
    waits: AtomicU64,
    /// Whether it is in [`Fair::waiting`].
    is_waiting: AtomicBool,
    aside: Mutex<Aside>,
    /// Tickets below this may run.
    called: AtomicU64,
}

/// Tasks that wait for their workload's turn, by ticket.
#[derive(Debug, Default)]
struct Aside {
    tasks: VecDeque<Waker>,
    /// Of the next one.
    ticket: u64,
}

pin_project! {
    /// A task that is charged to a workload, and waits for its turns.
    pub struct Charged<F> {
        account: Option<Arc<Account>>,
        ticket: Option<u64>,
        #[pin]
        task: F,
    }
}

// === impl Fair ===

impl Fair {
    pub fn share(self: &Arc<Self>) -> Share {
        Share(Some(Arc::new(Account {
            fair: self.clone(),
            weight: AtomicU32::new(1),
            left: AtomicI64::new(nanos(TURN)),
            round: AtomicI64::new(self.round.load(Ordering::Relaxed)),
            used: AtomicU64::new(0),
            each: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            is_waiting: AtomicBool::new(false),
            aside: Mutex::default(),
            called: AtomicU64::new(0),
        })))
    }

    /// Gives turns, for as long as it runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            let next = self.waiting.lock().pop_front();
            let Some(account) = next else {
                self.somebody.notified().await;
                continue;
            };
            // Comes back when the run queue is empty, and the kernel has been asked.
            tokio::task::yield_now().await;
            let round = self.round.load(Ordering::Relaxed);
            if account.round.load(Ordering::Relaxed) == round {
                // It has had its turn in this one.
                self.round.store(round + 1, Ordering::Relaxed);
            }
            if account.call() {
                self.waiting.lock().push_back(account);
            }
        }
    }

    fn queue(&self, account: &Arc<Account>) {
        if !account.is_waiting.swap(true, Ordering::AcqRel) {
            self.waiting.lock().push_back(account.clone());
            self.somebody.notify_one();
        }
    }
}

// === impl Share ===

impl Share {
    pub fn of<F: Future>(&self, task: F) -> Charged<F> {
        Charged {
            account: self.0.clone(),
            ticket: None,
            task,
        }
    }

    pub fn weigh(&self, weight: u32) {
        if let Some(account) = &self.0 {
            account.weight.store(weight.max(1), Ordering::Relaxed);
        }
    }

    /// Worker time so far; `None` where it is not kept.
    pub fn used(&self) -> Option<Duration> {
        let account = self.0.as_ref()?;
        Some(Duration::from_nanos(account.used.load(Ordering::Relaxed)))
    }

    /// How often a task had to wait for a turn.
    pub fn waits(&self) -> u64 {
        let account = self.0.as_ref();
        account.map_or(0, |account| account.waits.load(Ordering::Relaxed))
    }

    /// Ends the poll of a task that could go on and on, once its workload's turn is over.
    pub async fn pause(&self) {
        if let Some(account) = &self.0
            && account.is_over()
        {
            tokio::task::yield_now().await;
        }
    }
}

// === impl Account ===

impl Account {
    /// Whether its turn is over.
    fn is_over(&self) -> bool {
        self.fill();
        self.left.load(Ordering::Relaxed) <= 0
    }

    /// For the rounds since it was last looked at, and no more than one turn in all.
    fn fill(&self) {
        let round = self.fair.round.load(Ordering::Relaxed);
        let filled = self.round.load(Ordering::Relaxed);
        if filled < round
            && self
                .round
                .compare_exchange(filled, round, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let turn = nanos(TURN) * i64::from(self.weight.load(Ordering::Relaxed));
            let due = turn.saturating_mul(round - filled);
            let fill = |left: i64| Some(left.saturating_add(due).min(turn));
            let _ = self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fill);
        }
    }

    fn charge(&self, time: Duration) {
        let time = time.min(LONGEST);
        let nanos = nanos(time);
        self.left.fetch_sub(nanos, Ordering::Relaxed);
        let nanos = nanos.unsigned_abs();
        self.used.fetch_add(nanos, Ordering::Relaxed);
        // A rough guess is enough, so two that store at once may lose one.
        let each = self.each.load(Ordering::Relaxed);
        self.each
            .store(each - each / 16 + nanos / 16, Ordering::Relaxed);
    }

    /// Puts a task aside.
    fn set_aside(self: &Arc<Self>, waker: &Waker) -> u64 {
        let ticket = {
            let mut aside = self.aside.lock();
            aside.tasks.push_back(waker.clone());
            aside.ticket += 1;
            aside.ticket - 1
        };
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.fair.queue(self);
        ticket
    }

    /// Wakes as many as what is left will do for. True if others wait still.
    fn call(&self) -> bool {
        self.fill();
        let left = self.left.load(Ordering::Relaxed);
        let mut aside = self.aside.lock();
        if left > 0 {
            let each = self.each.load(Ordering::Relaxed).max(1);
            let count = left.unsigned_abs().div_ceil(each);
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let count = count.min(aside.tasks.len());
            self.called.fetch_add(count as u64, Ordering::Release);
            aside.tasks.drain(..count).for_each(Waker::wake);
        }
        let more = !aside.tasks.is_empty();
        self.is_waiting.store(more, Ordering::Release);
        more
    }
}

// === impl Charged ===

impl<F: Future> Future for Charged<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(account) = this.account else {
            return this.task.poll(cx);
        };
        let may_run = match *this.ticket {
            Some(ticket) => ticket < account.called.load(Ordering::Acquire),
            // Behind those of its workload that wait already, or they might wait for ever.
            None => !account.is_over() && !account.is_waiting.load(Ordering::Acquire),
        };
        if !may_run {
            if this.ticket.is_none() {
                *this.ticket = Some(account.set_aside(cx.waker()));
            }
            return Poll::Pending;
        }
        *this.ticket = None;
        let began = Instant::now();
        let polled = this.task.poll(cx);
        account.charge(began.elapsed());
        polled
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
