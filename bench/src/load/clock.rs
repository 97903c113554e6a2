//! Time, as one number: nanoseconds of CLOCK_MONOTONIC, which every process on the machine shares.
//!
//! Waiting uses a timerfd in the event loop. Tokio's own timers round up to a millisecond, and a separate
//! pacing thread would add a wake-up per request; a timerfd expires with the kernel's full timer resolution
//! and wakes the very thread that sends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId as TimeClock, clock_gettime};
use tokio::io::unix::AsyncFd;

/// Now, in nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let now = clock_gettime(TimeClock::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// How to wait for a due time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// Sleep on the timer.
    #[default]
    Sleep,
    /// Poll the event loop without sleeping: exact, and costs a whole core.
    Spin,
}

/// A timer that wakes its task at absolute times.
pub struct Alarm {
    fd: AsyncFd<Fd>,
    waiting: Waiting,
}

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Alarm {
    /// Must be called inside a tokio runtime.
    pub fn new(waiting: Waiting) -> io::Result<Self> {
        let fd = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        #[expect(
            deprecated,
            reason = "the replacement is unsafe; Fd keeps its one descriptor open while it lives"
        )]
        let fd = AsyncFd::new(Fd(fd))?;
        Ok(Self { fd, waiting })
    }

    /// Returns at `due_ns` or as soon afterwards as the machine allows, and says when it returned.
    pub async fn wait_until(&mut self, due_ns: u64) -> io::Result<u64> {
        loop {
            let now = now_ns();
            if now >= due_ns {
                return Ok(now);
            }
            match self.waiting {
                Waiting::Spin => tokio::task::yield_now().await,
                Waiting::Sleep => {
                    // Setting the timer also clears an earlier expiry, so the descriptor is never read.
                    let at = Expiration::OneShot(Duration::from_nanos(due_ns).into());
                    self.fd
                        .get_ref()
                        .0
                        .set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
                    self.fd.readable().await?.clear_ready();
                }
            }
        }
    }
}
