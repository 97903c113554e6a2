//! The generator against responders whose behaviour is known.

mod errors;
mod protocols;
mod responder;
mod truth;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;

use super::report::LoadReport;
use super::{LoadArgs, LoadError};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    load: LoadArgs,
}

/// The arguments as a user would write them, without warm-up.
fn args(address: SocketAddr, flags: &str) -> LoadArgs {
    let scheme = if flags.contains("--protocol tcp") {
        "tcp"
    } else {
        "http"
    };
    let url = format!("--url={scheme}://{address}/");
    let words = ["load", &url, "--warmup=0s"]
        .into_iter()
        .chain(flags.split_whitespace());
    CommandLine::try_parse_from(words).unwrap().load
}

fn generate(args: &LoadArgs) -> Result<LoadReport, LoadError> {
    super::run_here(&args.plan()?, Arc::new(AtomicBool::new(false)))
}

/// Generates and checks what must hold in every report.
fn load(args: &LoadArgs) -> LoadReport {
    let report = generate(args).unwrap();
    let failed = report.failed();
    let timeline = &report.timeline;
    let sum = |column: &[u32]| column.iter().copied().map(u64::from).sum::<u64>();
    assert_eq!(report.offered, report.completed + failed);
    assert_eq!(sum(&timeline.offered), report.offered);
    assert_eq!(sum(&timeline.ok), report.completed);
    assert_eq!(sum(&timeline.error), failed);
    assert_eq!(timeline.start_ns, report.start_ns);
    assert_eq!(
        report.histograms.lateness.decode().unwrap().len(),
        report.sent
    );
    if let Some(ratio) = report.littles_law() {
        assert!((ratio - 1.0).abs() < 0.01, "Little's law: {ratio}");
    }
    report
}

const MS: u64 = 1_000_000;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}
