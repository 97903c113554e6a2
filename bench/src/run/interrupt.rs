//! Ctrl-C and SIGTERM, asked for rather than suffered.
//!
//! The signal only sets a flag. Whoever waits looks at it every few
//! milliseconds and gives up with an error, so that everything a run has made is
//! removed by the same code that removes it on any other error.

use crate::cluster;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Somebody wants the run to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Whether the run was asked to end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// As a shell has it for SIGINT.
pub const EXIT_CODE: i32 = 130;
/// How long the orderly way may take; then, or on a second signal, everything is
/// removed from under whoever still uses it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an interrupt may go unnoticed.
const NOTICE_WITHIN: Duration = Duration::from_millis(10);

impl Interrupt {
    /// Listens for SIGINT and SIGTERM from now on.
    pub fn listen() -> std::io::Result<Self> {
        let interrupt = Self::default();
        let flag = interrupt.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (mut int, mut term) = {
            use tokio::signal::unix::{SignalKind, signal};
            let _guard = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! { _ = int.recv() => {} _ = term.recv() => {} }
                    flag.store(true, Ordering::SeqCst);
                    eprintln!("stopping: removing what this run made");
                    tokio::select! {
                        _ = int.recv() => {}
                        _ = term.recv() => {}
                        () = tokio::time::sleep(PATIENCE) => {}
                    }
                });
                cluster::remove_all_of_this_process();
                std::process::exit(EXIT_CODE);
            })?;
        Ok(interrupt)
    }

    /// An error once the run was asked to end.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::SeqCst) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// Sleeps, unless interrupted.
    pub fn sleep(&self, time: Duration) -> Result<(), Interrupted> {
        let until = Instant::now() + time;
        self.wait_for(until, || None::<()>).map(|_| ())
    }

    /// Sleeps until an instant on CLOCK_MONOTONIC, in ns, unless interrupted.
    pub fn sleep_until(&self, instant_ns: u64) -> Result<(), Interrupted> {
        let left = instant_ns.saturating_sub(cluster::monotonic_ns());
        self.sleep(Duration::from_nanos(left))
    }

    /// Asks `done` again and again until it has something, `until` has come or
    /// the run is interrupted.
    pub fn wait_for<T>(
        &self,
        until: Instant,
        mut done: impl FnMut() -> Option<T>,
    ) -> Result<Option<T>, Interrupted> {
        loop {
            self.check()?;
            if let Some(result) = done() {
                return Ok(Some(result));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            thread::sleep(left.min(NOTICE_WITHIN));
        }
    }

    #[cfg(test)]
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_ends_every_wait() {
        let interrupt = Interrupt::default();
        assert_eq!(interrupt.sleep(Duration::from_millis(1)), Ok(()));
        interrupt.raise();
        assert_eq!(interrupt.sleep(Duration::from_secs(3600)), Err(Interrupted));
    }
}
