//! What no proxy can do without on this machine.
//!
//! On its way there and back a request wakes each of two proxies twice, and each time one reads
//! and writes. So four times is measured what a process uses that does nothing else: it waits for
//! 1 KiB on a connection over loopback, and sends it back. Of a proxy's share it leaves out TLS,
//! HTTP, other connections, and the way from one network namespace to the next.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::io::{Error, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const MESSAGE: [u8; 1024] = [7; 1024];
/// Of both proxies, for each request.
const TURNS: f64 = 4.0;

/// Which of the machine's cores the two ends have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cores {
    /// The same: nobody is woken elsewhere.
    One,
    /// One each.
    Two,
}

/// Processor time of four turns at so many a second, µs.
pub fn measure(rate: f64, window: Duration, cores: Cores) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || bind_to(0).and_then(|()| answer(&listener)));
        // Of its own, so that this thread may go on everywhere.
        let asking = scope.spawn(move || {
            bind_to(usize::from(cores == Cores::Two))?;
            ask(stream, rate, window)
        });
        let asked = asking.join().expect("it does not panic");
        let one = answering.join().expect("it does not panic")?;
        asked.map(|()| one * TURNS)
    })
}

/// Binds this thread to one of the cores that it may run on, counted from 0.
fn bind_to(core: usize) -> Result<()> {
    let this = Pid::from_raw(0);
    let may = sched_getaffinity(this)?;
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| may.is_set(cpu).unwrap_or(false));
    let chosen = allowed.nth(core);
    let chosen = chosen.ok_or_else(|| Error::other(format!("there is no core {core}")))?;
    let mut only = CpuSet::new();
    only.set(chosen)?;
    Ok(sched_setaffinity(this, &only)?)
}

fn ask(mut stream: TcpStream, rate: f64, window: Duration) -> Result<()> {
    stream.set_nodelay(true)?;
    let began = Instant::now();
    let mut due = Duration::ZERO;
    while due < window {
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        stream.write_all(&MESSAGE)?;
        stream.read_exact(&mut [0; MESSAGE.len()])?;
        due += Duration::from_secs_f64(1.0 / rate);
    }
    Ok(())
}

/// Until the other end closes; returns µs of this thread for each message.
fn answer(listener: &TcpListener) -> Result<f64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let (began, mut turns) = (used()?, 0_u32);
    let mut message = MESSAGE;
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message)?;
        turns += 1;
    }
    let used = used()?.saturating_sub(began);
    Ok(used.as_secs_f64() * 1e6 / f64::from(turns.max(1)))
}

/// Processor time of this thread.
fn used() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_turns_take_some_time_and_less_than_there_is() {
        let us = measure(200.0, Duration::from_millis(500), Cores::One).unwrap();
        assert!(us > 1.0 && us < TURNS * 5000.0, "{us}");
    }
}
