//! Load that is no request after another: bulk transfers, floods of handshakes, and clients that
//! are slow on purpose. What neighbours of these feel is measured by the load generator beside
//! them; here it is only counted how much was done.
//!
//! | kind | what each connection does |
//! |---|---|
//! | `bulk` | downloads without end, as fast as it can |
//! | `handshakes` | makes a TLS handshake without a certificate, and the next on another connection |
//! | `slow-head` | sends a request's head, a header a second, and never its end ("slow-loris") |
//! | `slow-reader` | asks for a large answer and takes a little of it each second |

mod bulk;
mod handshakes;
mod slow;

pub(crate) use handshakes::Careless;

use crate::cluster::monotonic_ns;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// The hidden command.
pub const STRESS: &str = "stress";
/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Before another attempt where one has failed.
const AGAIN: Duration = Duration::from_millis(50);

/// Flags of `duet-bench stress`.
#[derive(Args, Clone, Debug)]
pub struct StressArgs {
    /// What to do
    #[arg(value_enum)]
    pub kind: Kind,

    /// Whom to do it to
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub to: SocketAddr,

    /// Connections at the same time
    #[arg(long, default_value_t = 1)]
    pub connections: u32,

    /// Handshakes per second, all connections together; as many as can be by default
    #[arg(long)]
    pub rate: Option<f64>,

    /// CLOCK_MONOTONIC nanoseconds at which counting begins; now by default
    #[arg(long, value_name = "NS")]
    pub start_at: Option<u64>,

    /// For how long is counted
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub duration: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Downloads without end
    Bulk,
    /// TLS handshakes without a certificate
    Handshakes,
    /// Heads of requests that never end
    SlowHead,
    /// Answers that are hardly read
    SlowReader,
}

/// What was done in the counted time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StressReport {
    /// Connections that were made; for handshakes, those of which the server has done its part.
    pub done: u64,
    /// Connections that were not made or ended early.
    pub failed: u64,
    /// Connections that stood at the end.
    pub standing: u64,
    /// Of the answers' bodies.
    pub bytes: u64,
    /// The counted time.
    pub counted_s: f64,
}

/// What all connections count together.
#[derive(Debug)]
struct Tally {
    from_ns: u64,
    until_ns: u64,
    done: AtomicU64,
    failed: AtomicU64,
    standing: AtomicU64,
    bytes: AtomicU64,
}

/// Runs until the counted time is over and prints what was done.
pub async fn run(args: StressArgs) -> Result<(), String> {
    crate::descriptors::raise_limit();
    let report = stress(&args).await?;
    let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    println!("{json}");
    Ok(())
}

/// The same without printing.
pub async fn stress(args: &StressArgs) -> Result<StressReport, String> {
    let from_ns = args.start_at.unwrap_or_else(monotonic_ns);
    let tally = Arc::new(Tally {
        from_ns,
        until_ns: from_ns + args.duration.as_nanos() as u64,
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        standing: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    });
    let tls = match args.kind {
        Kind::Handshakes => Some(handshakes::config().map_err(|error| error.to_string())?),
        _ => None,
    };
    let every = args
        .rate
        .map(|rate| Duration::from_secs_f64(f64::from(args.connections) / rate));
    let mut connections = JoinSet::new();
    for number in 0..args.connections {
        let (to, tally) = (args.to, tally.clone());
        match &tls {
            Some(tls) => {
                let share = f64::from(number) / f64::from(args.connections);
                let pace = every.map(|every| (every, every.mul_f64(share)));
                connections.spawn(handshakes::again_and_again(to, tls.clone(), pace, tally))
            }
            None => connections.spawn(again_and_again(args.kind, to, tally)),
        };
    }
    tally.rest().await;
    // What stands is counted before it is ended.
    let report = tally.report();
    connections.shutdown().await;
    Ok(report)
}

/// Connects anew when it was cut.
async fn again_and_again(kind: Kind, to: SocketAddr, tally: Arc<Tally>) {
    loop {
        let cut = match kind {
            Kind::Bulk => bulk::download(to, &tally).await,
            Kind::SlowHead => slow::head(to, &tally).await,
            Kind::SlowReader => slow::reader(to, &tally).await,
            Kind::Handshakes => return,
        };
        let Err(_) = cut;
        tally.failed();
        tokio::time::sleep(AGAIN).await;
    }
}

// === impl Tally ===

impl Tally {
    fn counts(&self) -> bool {
        (self.from_ns..self.until_ns).contains(&monotonic_ns())
    }

    fn done(&self) {
        if self.counts() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn failed(&self) {
        if self.counts() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn received(&self, bytes: usize) {
        if self.counts() {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Until the counted time is over.
    async fn rest(&self) {
        let left = self.until_ns.saturating_sub(monotonic_ns());
        tokio::time::sleep(Duration::from_nanos(left)).await;
    }

    fn report(&self) -> StressReport {
        StressReport {
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            standing: self.standing.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            counted_s: (self.until_ns - self.from_ns) as f64 / 1e9,
        }
    }
}

/// Counts a connection that stands, for as long as it does.
struct Standing<'a>(&'a Tally);

impl<'a> Standing<'a> {
    fn now(tally: &'a Tally) -> Self {
        tally.standing.fetch_add(1, Ordering::Relaxed);
        tally.done();
        Self(tally)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.standing.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
