//! The open loop: walks the schedule, hands each request over at its time, never waits for an answer.
//!
//! One thread with one event loop does everything. That bounds what the generator can cost to one core, keeps
//! its send and receive timestamps on one clock without hand-overs, and makes overload visible: a busy loop
//! picks requests up late, and late sends are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::LoadError;
use super::clock::{Alarm, Waiting, now_ns};
use super::fresh::Fresh;
use super::multiplex::Multiplex;
use super::pool::Pool;
use super::record::{Due, Recorder, SharedRecorder, WARMUP_NUMBER, Window};
use super::report::{GeneratorCost, LoadReport, Warmup};
use super::schedule::{Schedule, Stream};
use super::target::{Protocol, Target};
use crate::accounting::ProcessCpu;

/// Everything a run needs to know; see the command line for what each means.
#[derive(Clone, Debug)]
pub struct Plan {
    pub url: String,
    pub target: Target,
    pub rate: f64,
    pub seed: u64,
    pub duration: Duration,
    pub warmup: Duration,
    pub warmup_max: Duration,
    pub hold: Duration,
    pub start_at_ns: Option<u64>,
    pub connections: usize,
    pub new_connection_per_request: bool,
    pub timeout: Duration,
    pub queue: usize,
    pub bin: Duration,
    pub waiting: Waiting,
}

/// How requests find connections.
enum Dispatcher {
    Pool(Pool),
    Multiplex(Multiplex),
    Fresh(Fresh),
}

impl Dispatcher {
    fn start(plan: &Plan, recorder: SharedRecorder) -> Self {
        let (target, timeout) = (plan.target.clone(), plan.timeout);
        match plan.target.protocol {
            _ if plan.new_connection_per_request => {
                Self::Fresh(Fresh::new(target, plan.queue, timeout, recorder))
            }
            Protocol::Http1 | Protocol::Tcp => Self::Pool(Pool::start(
                target,
                plan.connections,
                plan.queue,
                timeout,
                recorder,
            )),
            Protocol::Http2 | Protocol::Grpc => Self::Multiplex(Multiplex::start(
                target,
                plan.connections,
                plan.queue,
                timeout,
                recorder,
            )),
        }
    }

    fn dispatch(&self, due: Due, now_ns: u64) {
        match self {
            Self::Pool(pool) => pool.dispatch(due, now_ns),
            Self::Multiplex(multiplex) => multiplex.dispatch(due, now_ns),
            Self::Fresh(fresh) => fresh.dispatch(due, now_ns),
        }
    }

    fn expire(&self, now_ns: u64) {
        match self {
            Self::Pool(pool) => pool.expire(now_ns),
            Self::Multiplex(multiplex) => multiplex.expire(now_ns),
            Self::Fresh(_) => {}
        }
    }
}

struct Generator<'a> {
    plan: &'a Plan,
    stop: Arc<AtomicBool>,
    recorder: SharedRecorder,
    dispatcher: Dispatcher,
    alarm: Alarm,
}

/// Runs the plan on the current runtime, which should be single-threaded and otherwise unused.
/// Setting `stop` ends the run early with what has been measured so far.
pub async fn generate(plan: &Plan, stop: Arc<AtomicBool>) -> Result<LoadReport, LoadError> {
    let bin_ns = plan.bin.as_nanos() as u64;
    let recorder = SharedRecorder::new(Recorder::new(
        plan.timeout.as_nanos() as u64,
        bin_ns,
        plan.new_connection_per_request,
    ));
    let alarm = Alarm::new(plan.waiting).map_err(LoadError::Timer)?;
    let dispatcher = Dispatcher::start(plan, recorder.clone());
    let mut generator = Generator {
        plan,
        stop,
        recorder,
        dispatcher,
        alarm,
    };

    let (start_ns, warmup) = generator.warm_up().await?;
    let cost = generator.measure(start_ns).await?;
    generator.drain().await?;
    let held_ns = now_ns() + plan.hold.as_nanos() as u64;
    generator.wait_until(held_ns).await?;
    Ok(generator.report(warmup, cost))
}

impl Generator<'_> {
    /// Sends until the system has settled, or until the appointed start; returns the window's beginning.
    async fn warm_up(&mut self) -> Result<(u64, Warmup), LoadError> {
        let begin_ns = now_ns();
        let earliest_ns = begin_ns + self.plan.warmup.as_nanos() as u64;
        let latest_ns = begin_ns + self.plan.warmup_max.max(self.plan.warmup).as_nanos() as u64;
        if let Some(start_at) = self.plan.start_at_ns
            && start_at < begin_ns
        {
            return Err(LoadError::StartInThePast {
                late: Duration::from_nanos(begin_ns - start_at),
            });
        }
        self.recorder.lock().settling.begin(begin_ns);

        let mut checked_seconds = 0;
        let mut start_ns = self.plan.start_at_ns;
        for (offset_ns, number) in
            Schedule::new(self.plan.seed, Stream::Warmup, self.plan.rate).zip(WARMUP_NUMBER..)
        {
            let intended_ns = begin_ns + offset_ns;
            let limit_ns = start_ns.unwrap_or(latest_ns);
            if intended_ns >= limit_ns || self.stop.load(Ordering::Relaxed) {
                start_ns.get_or_insert(latest_ns);
                break;
            }
            let now = self.wait_until(intended_ns).await?;
            if start_ns.is_none() && now >= earliest_ns {
                let recorder = self.recorder.lock();
                let seconds = recorder.settling.whole_seconds(now);
                if self.plan.warmup.is_zero()
                    || (seconds > checked_seconds && recorder.settling.settled(now))
                {
                    start_ns = Some(now);
                    break;
                }
                checked_seconds = seconds;
            }
            self.offer(
                Due {
                    intended_ns,
                    number,
                    measured: false,
                },
                now,
            );
        }
        let start_ns = start_ns.unwrap_or(latest_ns);
        let stopped = self.stop.load(Ordering::Relaxed);
        let start_ns = if stopped { now_ns() } else { start_ns };
        let recorder = self.recorder.lock();
        let warmup = recorder
            .settling
            .summary(start_ns.min(now_ns()), recorder.warmup_requests);
        Ok((start_ns, warmup))
    }

    /// Sends the measured schedule and returns what that cost.
    async fn measure(&mut self, start_ns: u64) -> Result<GeneratorCost, LoadError> {
        let length_ns = self.plan.duration.as_nanos() as u64;
        self.wait_until(start_ns).await?;
        self.recorder.lock().open_window(Window {
            start_ns,
            length_ns,
        });
        let before = processor_time()?;
        let mut interrupted = false;
        let schedule = Schedule::new(self.plan.seed, Stream::Measured, self.plan.rate);
        for (offset_ns, number) in schedule.until(length_ns).zip(0..) {
            let intended_ns = start_ns + offset_ns;
            let now = self.wait_until(intended_ns).await?;
            if self.stop.load(Ordering::Relaxed) {
                interrupted = true;
                break;
            }
            self.offer(
                Due {
                    intended_ns,
                    number,
                    measured: true,
                },
                now,
            );
        }
        if !interrupted {
            self.wait_until(start_ns + length_ns).await?;
        }
        let end_ns = now_ns();
        if interrupted {
            self.recorder.lock().close_window_at(end_ns);
        }
        let after = processor_time()?;
        Ok(GeneratorCost {
            cpu_user_s: after.user_s - before.user_s,
            cpu_system_s: after.system_s - before.system_s,
            waited_s: before
                .waited_s
                .zip(after.waited_s)
                .map(|(before, after)| after - before),
            wall_s: end_ns.saturating_sub(start_ns) as f64 / 1e9,
        })
    }

    /// Waits for what is still under way: first in the queue, then on connections.
    async fn drain(&mut self) -> Result<(), LoadError> {
        let timeout_ns = self.plan.timeout.as_nanos() as u64;
        let begin_ns = now_ns();
        let queue_empty_ns = begin_ns + timeout_ns;
        let end_ns = queue_empty_ns + timeout_ns + DRAIN_GRACE_NS;
        loop {
            let now = now_ns();
            if now >= queue_empty_ns {
                self.dispatcher.expire(now);
            }
            let outstanding = self.recorder.lock().outstanding();
            if outstanding == 0 {
                return Ok(());
            }
            if now > end_ns {
                return Err(LoadError::Unaccounted {
                    requests: outstanding,
                });
            }
            self.alarm
                .wait_until(now + DRAIN_STEP_NS)
                .await
                .map_err(LoadError::Timer)?;
        }
    }

    fn offer(&self, due: Due, now_ns: u64) {
        self.recorder.lock().offered(due, now_ns);
        self.dispatcher.dispatch(due, now_ns);
    }

    /// Waits for a due time, looking at the stop flag at least every 100 ms.
    async fn wait_until(&mut self, due_ns: u64) -> Result<u64, LoadError> {
        loop {
            let step_ns = due_ns.min(now_ns() + STOP_CHECK_NS);
            let now = self
                .alarm
                .wait_until(step_ns)
                .await
                .map_err(LoadError::Timer)?;
            if now >= due_ns || self.stop.load(Ordering::Relaxed) {
                return Ok(now);
            }
        }
    }

    fn report(&self, warmup: Warmup, generator: GeneratorCost) -> LoadReport {
        let recorder = self.recorder.lock();
        let window = recorder.window().unwrap_or(Window {
            start_ns: 0,
            length_ns: 0,
        });
        LoadReport {
            url: self.plan.url.clone(),
            protocol: self.plan.target.protocol.name().to_owned(),
            rate: self.plan.rate,
            seed: self.plan.seed,
            connections: self.plan.connections,
            new_connection_per_request: self.plan.new_connection_per_request,
            timeout_ms: self.plan.timeout.as_millis() as u64,
            interrupted: window.length_ns < self.plan.duration.as_nanos() as u64,
            start_ns: window.start_ns,
            window_s: window.length_ns as f64 / 1e9,
            warmup,
            offered: recorder.offered,
            sent: recorder.sent,
            completed: recorder.completed,
            completed_in_window: recorder.completed_in_window,
            errors: recorder.errors.clone(),
            received_bytes: recorder.received_bytes,
            late_sends: recorder.late_sends,
            waited_for_connection: recorder.waited_for_connection,
            mean_concurrency: recorder.mean_concurrency(),
            connection_counts: recorder.connections,
            generator,
            histograms: recorder.histograms(),
            timeline: recorder.timeline(),
        }
    }
}

const STOP_CHECK_NS: u64 = 100_000_000;
const DRAIN_STEP_NS: u64 = 1_000_000;
/// For timers that fire late on a loaded machine.
const DRAIN_GRACE_NS: u64 = 2_000_000_000;

/// This thread so far, seconds: the generator's one thread, whatever else the process does.
struct ProcessorTime {
    user_s: f64,
    system_s: f64,
    waited_s: Option<f64>,
}

fn processor_time() -> Result<ProcessorTime, LoadError> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).map_err(|e| LoadError::Timer(e.into()))?;
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    let scheduled = ProcessCpu::of_this_thread().ok();
    Ok(ProcessorTime {
        user_s: seconds(usage.user_time()),
        system_s: seconds(usage.system_time()),
        waited_s: scheduled.map(|scheduled| scheduled.waited.as_secs_f64()),
    })
}
