//! Applications of which the lifecycle is what matters: one that has something to
//! do and ends, and one that only waits.
//!
//! `errand` does what an application's first lines do: it asks a server, again
//! and again until it is answered, and then gets on with it. What it met is left
//! where Kubernetes takes a container's last words from.

use crate::attend::{Reached, reach};
use crate::cluster::monotonic_ns;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The hidden commands.
pub const ERRAND: &str = "errand";
/// See [`ERRAND`].
pub const IDLE: &str = "idle";
/// sysexits.h: EX_TEMPFAIL.
const UNREACHED: u8 = 75;

/// Flags of `duet-bench errand`.
#[derive(Args, Clone, Debug)]
pub struct ErrandArgs {
    /// Ask here first, until answered; without it, ask nobody
    #[arg(long)]
    url: Option<String>,

    /// How long to ask
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    within: Duration,

    /// How long to go on afterwards
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    linger: Duration,

    /// Exit code of an errand that was done
    #[arg(long, default_value_t = 0)]
    exit: u8,

    /// Where the last words go
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    report: PathBuf,
}

/// Last words of an errand. Times are CLOCK_MONOTONIC in ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// Its first instruction, about.
    pub started_ns: u64,
    /// How asking went, if it asked.
    pub reached: Option<Reached>,
    /// Its last instruction, about.
    pub ended_ns: u64,
}

/// Flags of `duet-bench idle`.
#[derive(Args, Clone, Debug)]
pub struct IdleArgs {
    /// How long to stay after SIGTERM
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    linger: Duration,
}

/// Runs an errand; gives its exit code.
pub fn run(args: &ErrandArgs) -> Result<u8, String> {
    let started_ns = monotonic_ns();
    let reached = args
        .url
        .as_deref()
        .map(|url| reach(url, args.within))
        .transpose()?;
    let done = reached
        .as_ref()
        .is_none_or(|reached| reached.success_ns.is_some());
    if done {
        std::thread::sleep(args.linger);
    }
    let words = serde_json::to_string(&Errand {
        started_ns,
        reached,
        ended_ns: monotonic_ns(),
    })
    .map_err(|error| error.to_string())?;
    println!("{words}");
    // Outside a container there is nobody to leave it to.
    let _ = std::fs::write(&args.report, words);
    Ok(if done { args.exit } else { UNREACHED })
}

/// Waits for SIGTERM or SIGINT, and a little longer.
pub async fn idle(args: IdleArgs) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::time::sleep(args.linger).await;
    Ok(())
}
