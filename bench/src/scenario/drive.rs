//! One generator in one pod, from its start to its report.
//!
//! Every window begins at an instant that is fixed beforehand on
//! CLOCK_MONOTONIC, so that several generators begin together and the kernel's
//! counters can be read at the window's very ends.

use super::Failure;
use crate::cluster::{NetnsCluster, Part, ProcessHandle, Spawn, monotonic_ns};
use crate::load::report::LoadReport;
use crate::run::Interrupt;
use std::time::{Duration, Instant};

/// Scheduling class of every generator, in all arms. Under the ordinary class a
/// generator on a busy machine is late for its own schedule, and what it then
/// measures is itself.
pub const GENERATOR_CLASS: &str = "SCHED_FIFO 10";
const GENERATOR_PRIORITY: u8 = 10;

/// How long a generator takes to start, at most, on a loaded machine.
const STARTING: Duration = Duration::from_millis(150);
/// How long after the window's end a report may take: the time-out of the last
/// request and some.
const REPORTING: Duration = Duration::from_secs(15);

/// What a generator is to do.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The pod it runs in.
    pub pod: String,
    /// Where to.
    pub url: String,
    /// `http1`, `http2`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// Requests per second.
    pub rate: f64,
    /// Of the schedule.
    pub seed: u64,
    /// Load before the window.
    pub warmup: Duration,
    /// The measured window.
    pub window: Duration,
    /// Connections kept.
    pub connections: u32,
    /// A new connection for every request instead.
    pub fresh: bool,
    /// Bins of the timeline.
    pub bin: Duration,
    /// How long a request may take.
    pub timeout: Duration,
}

/// A generator at work.
#[derive(Debug)]
pub struct Driving {
    process: ProcessHandle,
    /// Begin of the window on CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    window: Duration,
    /// The pod it runs in.
    pub pod: String,
}

impl Drive {
    /// Over kept HTTP/1.1 connections.
    pub fn new(pod: &str, url: &str, rate: f64) -> Self {
        Self {
            pod: pod.to_owned(),
            url: url.to_owned(),
            protocol: "http1",
            rate,
            seed: 0,
            warmup: Duration::ZERO,
            window: Duration::from_secs(1),
            connections: 16,
            fresh: false,
            bin: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
        }
    }

    /// The instant at which generators started now can begin together.
    pub fn appointment(warmup: Duration) -> u64 {
        monotonic_ns() + (STARTING + warmup).as_nanos() as u64
    }

    /// Starts it; its window begins at `start_ns`.
    pub fn start(&self, cluster: &NetnsCluster, start_ns: u64) -> Result<Driving, Failure> {
        let program = std::env::current_exe().map_err(Failure::OwnPath)?;
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let mut spawn = Spawn::in_pod(&self.pod, Part::Load, program)
            .arg("load")
            .args(["--url", &self.url, "--protocol", self.protocol])
            .args(["--rate", &format!("{:.3}", self.rate)])
            .args(["--seed", &self.seed.to_string()])
            .args(["--duration", &millis(self.window)])
            .args(["--connections", &self.connections.to_string()])
            .args(["--timeout", &millis(self.timeout)])
            .args(["--bin", &millis(self.bin)])
            .args(["--start-at", &start_ns.to_string()])
            .fifo(GENERATOR_PRIORITY)
            .split_output();
        if self.fresh {
            spawn = spawn.arg("--new-connection-per-request");
        }
        Ok(Driving {
            process: cluster.spawn(spawn)?,
            start_ns,
            window: self.window,
            pod: self.pod.clone(),
        })
    }

    /// Starts it and waits for its report.
    pub fn run(
        &self,
        cluster: &NetnsCluster,
        interrupt: &Interrupt,
    ) -> Result<LoadReport, Failure> {
        self.start(cluster, Self::appointment(self.warmup))?
            .report(interrupt)
    }
}

impl Driving {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for the window to begin.
    pub fn until_begin(&self, interrupt: &Interrupt) -> Result<(), Failure> {
        until(self.start_ns, interrupt)
    }

    /// Waits for the window to end.
    pub fn until_end(&self, interrupt: &Interrupt) -> Result<(), Failure> {
        until(self.start_ns + self.window.as_nanos() as u64, interrupt)
    }

    /// Waits for the report.
    pub fn report(self, interrupt: &Interrupt) -> Result<LoadReport, Failure> {
        self.until_end(interrupt)?;
        let failed = |problem: String| Failure::Generator {
            pod: self.pod.clone(),
            problem,
        };
        let ended = interrupt.wait_for(Instant::now() + REPORTING, || {
            self.process.try_wait().transpose()
        })?;
        match ended {
            Some(status) if status.as_ref().is_ok_and(|status| status.success()) => {}
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(_)) | None => {
                let said = self.process.stderr_text().unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                return Err(failed(last.to_owned()));
            }
        }
        let text = self.process.stdout_text()?;
        serde_json::from_str(&text).map_err(|error| failed(format!("its report: {error}")))
    }
}

/// Sleeps until an instant on CLOCK_MONOTONIC.
pub fn until(instant_ns: u64, interrupt: &Interrupt) -> Result<(), Failure> {
    let left = instant_ns.saturating_sub(monotonic_ns());
    Ok(interrupt.sleep(Duration::from_nanos(left))?)
}
