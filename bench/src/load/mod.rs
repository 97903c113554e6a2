//! The open-loop load generator.
//!
//! A closed loop sends the next request when the last one is answered, so a slow system is asked less often and
//! its queueing never shows. Here the schedule is fixed beforehand (seeded Poisson arrivals), every request
//! is timed from when it *should* have been sent, and nothing that the system does can delay the
//! schedule. Reading order: [`generator`], [`pool`], [`record`].

pub mod clock;
pub mod concurrency;
pub mod connection;
pub mod error;
pub mod fresh;
pub mod generator;
pub mod http2;
pub mod multiplex;
pub mod pool;
pub mod reconnect;
pub mod record;
pub mod report;
pub mod schedule;
pub mod selftest;
pub mod target;
pub mod warmup;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use http::header::{HeaderName, HeaderValue};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use clock::Waiting;
use generator::Plan;
pub use report::LoadReport;
use target::{Protocol, Target};

/// Flags of `duet-bench load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Target: `http://host[:port]/path`, or `tcp://host:port` for the tcp protocol
    #[arg(long)]
    pub url: String,

    /// What to speak
    #[arg(long, value_enum, default_value = "http1")]
    pub protocol: Protocol,

    /// Mean requests per second of the Poisson schedule
    #[arg(long)]
    pub rate: f64,

    /// Length of the measured window
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub duration: Duration,

    /// Shortest warm-up before the measured window; 0s for none
    #[arg(long, value_parser = humantime::parse_duration, default_value = "3s")]
    pub warmup: Duration,

    /// Longest warm-up, if three successive 1-s medians never agree within 10 %
    #[arg(long, value_parser = humantime::parse_duration, default_value = "15s")]
    pub warmup_max: Duration,

    /// Keeps the connections for so long after the window, unused
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
    pub hold: Duration,

    /// CLOCK_MONOTONIC nanoseconds at which the measured window begins; the warm-up lasts until then
    #[arg(long, value_name = "NS")]
    pub start_at: Option<u64>,

    /// Connections in the pool (http1, tcp) or to multiplex over (http2, grpc)
    #[arg(long, default_value_t = 8)]
    pub connections: usize,

    /// Open a connection for every request and time its connect and first byte
    #[arg(long)]
    pub new_connection_per_request: bool,

    /// Time-out of a request from its send
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s")]
    pub timeout: Duration,

    /// Requests that may wait for a connection (http1, tcp) or be under way (all others)
    #[arg(long, default_value_t = 10_000)]
    pub queue: usize,

    /// Seed of the schedule
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Width of the timeline's bins
    #[arg(long, value_parser = humantime::parse_duration, default_value = "100ms")]
    pub bin: Duration,

    /// Size of the request's body (http: POST), message (grpc) or frame (tcp)
    #[arg(long, value_name = "BYTES")]
    pub request_bytes: Option<usize>,

    /// Header to send, "name: value"; may be repeated
    #[arg(long = "header", value_parser = parse_header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// Never sleep while waiting for a due time: exact, and uses a whole core
    #[arg(long)]
    pub spin: bool,

    /// Generate in a real-time class (SCHED_FIFO 10), as in a run; takes CAP_SYS_NICE
    #[arg(long)]
    pub realtime: bool,

    /// Generate on this processor only, counted from 0
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,

    /// File for the JSON report instead of stdout
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A flag's value cannot be used.
    #[error("{0}")]
    Usage(String),
    #[error("--start-at lies {late:?} in the past: start the generators earlier")]
    StartInThePast { late: Duration },
    #[error("the generator's timer failed: {0}")]
    Timer(io::Error),
    #[error(
        "{requests} requests were neither answered nor timed out: the machine stalled the generator"
    )]
    Unaccounted { requests: u64 },
    #[error("cannot write the report to {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("the generator's thread ended without a report")]
    Thread,
}

impl LoadError {
    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

/// `duet-bench load`: generates, then writes the report. SIGINT and SIGTERM end the window early.
pub async fn run(args: LoadArgs) -> Result<(), LoadError> {
    crate::descriptors::raise_limit();
    let stop = Arc::new(AtomicBool::new(false));
    let out = args.out.clone();
    let running = run_in_thread(args, stop.clone());
    tokio::pin!(running);
    let mut terminate = signal(SignalKind::terminate()).map_err(LoadError::Timer)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(LoadError::Timer)?;
    let report = loop {
        tokio::select! {
            report = &mut running => break report?,
            _ = terminate.recv() => stop.store(true, Ordering::Relaxed),
            _ = interrupt.recv() => stop.store(true, Ordering::Relaxed),
        }
    };
    write(&report, out.as_deref())
}

/// Generates in a thread of its own, whatever runtime the caller uses, and returns the report.
pub async fn run_in_thread(args: LoadArgs, stop: Arc<AtomicBool>) -> Result<LoadReport, LoadError> {
    let plan = args.plan()?;
    let (realtime, pin) = (args.realtime, args.pin);
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("generator".to_owned())
        .spawn(move || {
            let report = place(realtime, pin).and_then(|()| run_here(&plan, stop));
            let _ = sender.send(report);
        })
        .map_err(LoadError::Timer)?;
    receiver.await.map_err(|_| LoadError::Thread)?
}

/// Gives the calling thread the class and the processor that were asked for.
fn place(realtime: bool, pin: Option<usize>) -> Result<(), LoadError> {
    if realtime && !crate::attend::realtime::enter() {
        return Err(LoadError::Usage(
            "--realtime: this takes CAP_SYS_NICE, and a control group that may".to_owned(),
        ));
    }
    let Some(cpu) = pin else { return Ok(()) };
    let mut cpus = CpuSet::new();
    cpus.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .map_err(|_| LoadError::Usage(format!("--pin: there is no processor {cpu} to run on")))
}

fn run_here(plan: &Plan, stop: Arc<AtomicBool>) -> Result<LoadReport, LoadError> {
    // The default interval of 61 task polls between looks at sockets and timers would make sends late
    // under load.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(16)
        .build()
        .map_err(LoadError::Timer)?;
    runtime.block_on(generator::generate(plan, stop))
}

impl LoadArgs {
    /// Checks every flag and resolves the target.
    pub fn plan(&self) -> Result<Plan, LoadError> {
        let usage = |message: &str| Err(LoadError::Usage(message.to_owned()));
        if !(self.rate.is_finite() && self.rate > 0.0 && self.rate <= 1e6) {
            return usage("--rate: give requests per second, above 0 and at most 1000000");
        }
        if self.duration.is_zero() {
            return usage("--duration: give more than 0s");
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return usage("--timeout: give more than 0s and at most 60s");
        }
        if self.connections == 0 || self.queue == 0 {
            return usage("--connections and --queue: give at least 1");
        }
        if self.bin < Duration::from_millis(1) {
            return usage("--bin: give at least 1ms");
        }
        let target = Target::resolve(&self.url, self.protocol, &self.headers, self.request_bytes)?;
        Ok(Plan {
            url: self.url.clone(),
            target,
            rate: self.rate,
            seed: self.seed,
            duration: self.duration,
            warmup: self.warmup,
            warmup_max: self.warmup_max,
            hold: self.hold,
            start_at_ns: self.start_at,
            connections: self.connections,
            new_connection_per_request: self.new_connection_per_request,
            timeout: self.timeout,
            queue: self.queue,
            bin: self.bin,
            waiting: if self.spin {
                Waiting::Spin
            } else {
                Waiting::Sleep
            },
        })
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write \"name: value\"")?;
    let name = name
        .trim()
        .parse::<HeaderName>()
        .map_err(|e| e.to_string())?;
    let value = value
        .trim()
        .parse::<HeaderValue>()
        .map_err(|e| e.to_string())?;
    Ok((name, value))
}

fn write(report: &LoadReport, out: Option<&Path>) -> Result<(), LoadError> {
    let json =
        serde_json::to_vec(report).expect("a report has only string keys and finite numbers");
    match out {
        Some(path) => std::fs::write(path, json).map_err(|error| LoadError::Write {
            path: path.to_owned(),
            error,
        }),
        None => {
            let mut stdout = io::stdout().lock();
            stdout
                .write_all(&json)
                .and_then(|()| stdout.write_all(b"\n"))
                .map_err(|error| LoadError::Write {
                    path: PathBuf::from("stdout"),
                    error,
                })
        }
    }
}
