//! Many checks on one cluster: each is named, timed, and fails for itself.

use anyhow::Result;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// Against a check that hangs; none should take a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Checks {
    failed: Vec<String>,
}

// === impl Checks ===

impl Checks {
    pub async fn run(&mut self, name: &str, check: impl Future<Output = Result<()>>) {
        self.run_within(PATIENCE, name, check).await;
    }

    pub async fn run_within(
        &mut self,
        patience: Duration,
        name: &str,
        check: impl Future<Output = Result<()>>,
    ) {
        let start = Instant::now();
        let outcome = tokio::time::timeout(patience, AssertUnwindSafe(check).catch_unwind()).await;
        let failure = match outcome {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("{error:#}")),
            // The panic's message is on standard error already.
            Ok(Err(_)) => Some("an assertion failed".to_owned()),
            Err(_) => Some("it hangs".to_owned()),
        };
        let took = start.elapsed();
        match failure {
            None => eprintln!("{name}: ok, {took:.0?}"),
            Some(failure) => {
                eprintln!("{name}: FAILED, {took:.0?}: {failure}");
                self.failed.push(format!("{name}: {failure}"));
            }
        }
    }

    pub fn assert_all_passed(self) {
        assert!(self.failed.is_empty(), "failed: {:#?}", self.failed);
    }
}
