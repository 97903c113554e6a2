//! One generator in one pod, from its start to its report.
//!
//! Every window begins at an instant that is fixed beforehand, so that several
//! generators begin together and the kernel's counters can be read at the
//! window's very ends.

use super::{Bed, Failure};
use crate::cluster::{Generator, Load, monotonic_ns};
use crate::load::report::LoadReport;
use crate::run::Interrupt;
use std::time::Duration;

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
    /// For how long connections are kept after it.
    pub hold: Duration,
    /// Connections kept.
    pub connections: u32,
    /// A new connection for every request instead.
    pub fresh: bool,
    /// Bins of the timeline.
    pub bin: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// Bytes that each request sends.
    pub body: Option<u32>,
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
            hold: Duration::ZERO,
            connections: 16,
            fresh: false,
            bin: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
            body: None,
        }
    }

    /// The instant at which generators of a bed started now can begin together,
    /// on CLOCK_MONOTONIC in ns.
    pub fn appointment(bed: &Bed, warmup: Duration) -> u64 {
        monotonic_ns() + (bed.cluster.lead() + warmup).as_nanos() as u64
    }

    /// What `duet-bench load` is told, all but when.
    pub fn arguments(&self) -> Vec<String> {
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let mut arguments: Vec<String> = [
            ("--url", self.url.clone()),
            ("--protocol", self.protocol.to_owned()),
            ("--rate", format!("{:.3}", self.rate)),
            ("--seed", self.seed.to_string()),
            ("--duration", millis(self.window)),
            ("--hold", millis(self.hold)),
            ("--connections", self.connections.to_string()),
            ("--timeout", millis(self.timeout)),
            ("--bin", millis(self.bin)),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if self.fresh {
            arguments.push("--new-connection-per-request".to_owned());
        }
        if let Some(body) = self.body {
            arguments.extend(["--request-bytes".to_owned(), body.to_string()]);
        }
        arguments
    }

    /// Starts it; its window begins at `begin_ns`.
    pub fn start(&self, bed: &Bed, begin_ns: u64) -> Result<Box<dyn Generator>, Failure> {
        Ok(bed.cluster.generate(&Load {
            pod: self.pod.clone(),
            arguments: self.arguments(),
            begin_ns,
            window: self.window + self.hold,
        })?)
    }

    /// Starts it and waits for its report.
    pub fn run(&self, bed: &Bed, interrupt: &Interrupt) -> Result<LoadReport, Failure> {
        let generator = self.start(bed, Self::appointment(bed, self.warmup))?;
        Ok(generator.report(interrupt)?)
    }
}
