//! The process that outlives the proxy's.
//!
//! It holds the listeners in the workloads' network namespaces, and nothing else:
//! links and maps are pinned. So when the proxying process dies, nobody is refused;
//! connections wait in the listeners' queues, with their destinations in the map,
//! until the next process has been given the listeners and accepts. What was open is
//! lost with the process, and counted. A process that says nothing for [`HANG`] is
//! killed, which is the same then.
//!
//! It does so little, with one thread and no connection to anything but its child,
//! that there is little to go wrong. If it dies nevertheless, the child dies with it,
//! and connections are refused as they are without a supervisor.

use crate::keeper::{ANSWER_WITHIN, BEAT, ToProxy, ToSupervisor};
use crate::passing::{self, Inherited, VERSION};
use crate::tally::Tally;
use duet_core::PANIC;
use duet_ebpf::NetnsCookie;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long a process may be silent. Longer than a proxy is kept from running by its
/// cgroup's limit, or by a node that is busy; shorter than most clients' patience.
pub const HANG: Duration = Duration::from_secs(3);

/// How long one that has just been started may take to say its first word.
const BEGIN_WITHIN: Duration = Duration::from_secs(15);

/// A process that lived longer was of use.
const SHORT_LIFE: Duration = Duration::from_secs(5);

/// Short lives in a row after which the next begins at once all the same. A client may
/// be the reason, and the others are waiting.
const AT_ONCE: u32 = 5;

/// Before another start after so many: doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a process exits with that would be started again: EX_TEMPFAIL.
const TRY_AGAIN: i32 = 75;

#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("cannot take signals: {0}")]
    Signals(Errno),
    #[error("cannot start {}: {error}", program.display())]
    Start { program: PathBuf, error: io::Error },
}

/// How a process came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// By its own decision, or by ours.
    Exit(u8),
    /// By its own decision, to be started again.
    Again,
    Crash(String),
    Hang,
}

/// What is kept for the next process.
#[derive(Default)]
struct Kept {
    doors: HashMap<NetnsCookie, Inherited>,
    api: Option<OwnedFd>,
    tally: Tally,
    /// Open, as told last.
    connections: u64,
    /// Another agent has it all.
    is_released: bool,
}

/// A process of the proxy.
struct Life<'a> {
    child: Child,
    socket: UnixStream,
    signals: &'a SignalFd,
    began: Instant,
    /// Since its last word, as far as this process was running to hear it.
    silent: Duration,
    has_spoken: bool,
    is_ending: bool,
}

/// Runs `duet-agent run --supervised` with `arguments`, again and again, until it
/// ends by itself or SIGTERM ends both. Returns the exit code.
pub fn supervise(arguments: &[OsString]) -> Result<u8, SupervisorError> {
    raise_file_limit();
    let wanted = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    wanted.thread_block().map_err(SupervisorError::Signals)?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&wanted, flags).map_err(SupervisorError::Signals)?;
    let mut kept = Kept::default();
    let mut short_lives: u32 = 0;
    loop {
        let mut life = Life::begin(arguments, &signals)?;
        let pid = life.child.id();
        let end = life.follow(&mut kept);
        let (reason, why) = match end {
            End::Exit(code) => return Ok(code),
            End::Again => {
                if is_told_to_end(&signals, PAUSE.1) {
                    return Ok(0);
                }
                continue;
            }
            End::Crash(why) => {
                kept.tally.crashes += 1;
                kept.tally.cut_by_crash += kept.connections;
                ("crash", why)
            }
            End::Hang => {
                kept.tally.hangs += 1;
                kept.tally.cut_by_hang += kept.connections;
                ("hang", format!("no sign of life for {HANG:?}"))
            }
        };
        let lost = std::mem::take(&mut kept.connections);
        eprintln!(
            "duet-agent supervise: proxy {pid} has ended ({reason}: {why}), {lost} connections with \
             it; new ones wait for the next"
        );
        short_lives = match life.began.elapsed() < SHORT_LIFE {
            true => short_lives + 1,
            false => 0,
        };
        let pause = short_lives.checked_sub(AT_ONCE + 1).map(pause);
        if pause.is_some_and(|pause| is_told_to_end(&signals, pause)) {
            return Ok(0);
        }
    }
}

/// Six listeners a pod are kept: the usual soft limit, 1024, is reached at 170 pods, and
/// files that are passed beyond it are lost.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        let current = limit.current;
        eprintln!("duet-agent supervise: the limit of open files stays at {current:?}: {error}");
    }
}

fn pause(times: u32) -> Duration {
    (PAUSE.0 * 2u32.saturating_pow(times.min(16))).min(PAUSE.1)
}

/// Waits for so long, unless a signal comes.
fn is_told_to_end(signals: &SignalFd, within: Duration) -> bool {
    let _ = wait(
        &mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)],
        within,
    );
    matches!(signals.read_signal(), Ok(Some(_)))
}

fn wait(files: &mut [PollFd<'_>], within: Duration) -> Result<(), Errno> {
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    match poll(files, timeout) {
        Err(Errno::EINTR) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// This program; and where its file was replaced, the same nevertheless: the two
/// sides have to be of one version.
fn program() -> PathBuf {
    let known = fs::read_link("/proc/self/exe").ok();
    let known = known.filter(|path| path.exists());
    known.unwrap_or_else(|| "/proc/self/exe".into())
}

// === impl Life ===

impl<'a> Life<'a> {
    fn begin(arguments: &[OsString], signals: &'a SignalFd) -> Result<Self, SupervisorError> {
        let program = program();
        let begin = || {
            let (socket, theirs) = UnixStream::pair()?;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            socket.set_write_timeout(Some(ANSWER_WITHIN))?;
            let mut command = Command::new(&program);
            command.args(["run", "--supervised"]).args(arguments);
            let child = command.stdin(OwnedFd::from(theirs)).spawn()?;
            Ok((child, socket))
        };
        let (child, socket) = begin().map_err(|error| SupervisorError::Start {
            program: program.clone(),
            error,
        })?;
        Ok(Self {
            child,
            socket,
            signals,
            began: Instant::now(),
            silent: Duration::ZERO,
            has_spoken: false,
            is_ending: false,
        })
    }

    /// Until its end.
    fn follow(&mut self, kept: &mut Kept) -> End {
        loop {
            let before = Instant::now();
            let mut files = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            ];
            let waited = wait(&mut files, BEAT);
            let [told, spoken] = files.map(|file| file.any().unwrap_or(false));
            if told && matches!(self.signals.read_signal(), Ok(Some(_))) {
                self.is_ending = true;
                self.signal(Signal::SIGTERM);
            }
            // A machine that stood still kept this process from hearing as well.
            self.silent += before.elapsed().min(2 * BEAT);
            if spoken {
                match self.hear(kept) {
                    Ok(true) => self.silent = Duration::ZERO,
                    Ok(false) => return self.end(kept),
                    Err(error) => {
                        eprintln!("duet-agent supervise: {error}");
                        self.signal(Signal::SIGKILL);
                        return self.end(kept);
                    }
                }
            }
            let patience = if self.has_spoken { HANG } else { BEGIN_WITHIN };
            if self.silent > patience || waited.is_err() {
                self.signal(Signal::SIGKILL);
                return match self.end(kept) {
                    End::Crash(_) => End::Hang,
                    end => end,
                };
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // It is a child, not waited for yet, so the number is its own.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    fn end(&mut self, kept: &Kept) -> End {
        match self.child.wait() {
            Ok(status) => end(status, self.is_ending || kept.is_released),
            Err(error) => End::Crash(error.to_string()),
        }
    }

    /// Takes one frame. False if there will be no more.
    fn hear(&mut self, kept: &mut Kept) -> io::Result<bool> {
        let (frame, files) = match passing::receive(&self.socket) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        };
        match frame {
            ToSupervisor::Hello { version } => {
                self.has_spoken = true;
                self.give(kept, version)?;
            }
            ToSupervisor::Door(door) => {
                let inherited = Inherited::behind(&door, files)?;
                kept.doors.insert(door.netns, inherited);
            }
            ToSupervisor::Api => kept.api = Some(passing::only(files)?),
            ToSupervisor::Close { netns } => {
                drop(kept.doors.remove(&netns));
                passing::send(&self.socket, &ToProxy::Closed, &[])?;
            }
            ToSupervisor::Beat { connections, tally } => {
                kept.connections = connections;
                kept.tally = tally;
            }
            ToSupervisor::Released => {
                kept.doors.clear();
                kept.api = None;
                kept.is_released = true;
            }
        }
        Ok(true)
    }

    fn give(&self, kept: &Kept, version: u32) -> io::Result<()> {
        let begin = ToProxy::Begin {
            version: VERSION,
            tally: kept.tally,
        };
        if version == VERSION {
            if let Some(api) = &kept.api {
                passing::send(&self.socket, &ToProxy::Api, &[api.as_fd()])?;
            }
            for (&netns, inherited) in &kept.doors {
                let (door, files) = inherited.door(netns, VERSION);
                passing::send(&self.socket, &ToProxy::Door(door), &files)?;
            }
        }
        passing::send(&self.socket, &begin, &[])
    }
}

/// Nothing lives on that nobody looks after, however this process ends.
impl Drop for Life<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// One that was told to end, or has handed over, is not started again.
fn end(status: ExitStatus, is_over: bool) -> End {
    match (status.code(), status.signal()) {
        (Some(PANIC), _) if !is_over => End::Crash("a panic".to_owned()),
        (Some(TRY_AGAIN), _) if !is_over => End::Again,
        (Some(code), _) => End::Exit(u8::try_from(code).unwrap_or(1)),
        (None, _) if is_over => End::Exit(1),
        (None, signal) => {
            let signal = signal.and_then(|number| Signal::try_from(number).ok());
            let signal = signal.map_or("a signal", Signal::as_str);
            End::Crash(signal.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_decides_to_end_is_not_started_again() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(end(exited(0), false), End::Exit(0));
        assert_eq!(end(exited(78), false), End::Exit(78));
        assert_eq!(end(exited(TRY_AGAIN), false), End::Again);
        assert_eq!(end(exited(TRY_AGAIN), true), End::Exit(75));
        assert_eq!(end(exited(PANIC), true), End::Exit(101));
        assert_eq!(end(exited(PANIC), false), End::Crash("a panic".to_owned()));
        let killed = ExitStatus::from_raw(9);
        assert_eq!(end(killed, false), End::Crash("SIGKILL".to_owned()));
        assert_eq!(end(killed, true), End::Exit(1));
    }

    #[test]
    fn short_lives_come_less_and_less_often() {
        let pauses: Vec<u128> = (0..8).map(|times| pause(times).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
