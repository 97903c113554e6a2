//! The proxying process's side of its supervisor: what it leaves there, and the beat
//! by which the supervisor knows that it is well.
//!
//! The socket is the process's standard input. A supervisor that is gone takes the
//! process along: what nobody watches over must not hold the listeners.

use crate::passing::{self, Door, Inherited, VERSION};
use crate::tally::Tally;
use duet_ebpf::NetnsCookie;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How often a process says that it is well.
pub const BEAT: Duration = Duration::from_millis(250);

/// How long either side waits for the other to take a frame, or to answer. The
/// supervisor does nothing that takes longer than a moment.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToSupervisor {
    /// The first: asks for what is kept.
    Hello {
        version: u32,
    },
    /// Keep these.
    Door(Door),
    /// Keep this: the local API's listener.
    Api,
    /// Close these. Answered by `Closed`.
    Close {
        netns: NetnsCookie,
    },
    Beat {
        connections: u64,
        tally: Tally,
    },
    /// Another agent has all of it: close everything, and do not start this again.
    Released,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToProxy {
    Door(Door),
    Api,
    /// That was all of it.
    Begin {
        version: u32,
        tally: Tally,
    },
    Closed,
}

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("standard input is not a supervisor's socket ({0}): start duet-agent supervise")]
    NoSupervisor(io::Error),
    #[error("the supervisor is gone")]
    Gone,
    #[error(
        "the supervisor speaks version {0} of the protocol, and this duet-agent {VERSION}: restart it"
    )]
    OtherVersion(u32),
}

/// What the process before this one has left.
#[derive(Debug, Default)]
pub struct Left {
    pub doors: HashMap<NetnsCookie, Inherited>,
    pub api: Option<OwnedFd>,
    pub tally: Tally,
}

pub struct Keeper(Mutex<UnixStream>);

// === impl Keeper ===

impl Keeper {
    /// Greets the supervisor.
    pub fn begin() -> Result<(Self, Left), KeeperError> {
        let socket = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map(UnixStream::from);
        let socket = socket.map_err(KeeperError::NoSupervisor)?;
        let begin = || {
            set_pdeathsig(Signal::SIGKILL)?;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            socket.set_write_timeout(Some(ANSWER_WITHIN))?;
            passing::send(&socket, &ToSupervisor::Hello { version: VERSION }, &[])
        };
        begin().map_err(KeeperError::NoSupervisor)?;
        let mut left = Left::default();
        loop {
            let received = passing::receive(&socket).map_err(KeeperError::NoSupervisor)?;
            let (frame, files) = received.ok_or(KeeperError::Gone)?;
            let taken = match frame {
                ToProxy::Door(door) => Inherited::behind(&door, files)
                    .map(|it| drop(left.doors.insert(door.netns, it))),
                ToProxy::Api => passing::only(files).map(|it| left.api = Some(it)),
                ToProxy::Begin { version, tally } if version == VERSION => {
                    left.tally = tally;
                    return Ok((Self(Mutex::new(socket)), left));
                }
                ToProxy::Begin { version, .. } => return Err(KeeperError::OtherVersion(version)),
                ToProxy::Closed => Ok(()),
            };
            taken.map_err(KeeperError::NoSupervisor)?;
        }
    }

    pub fn keep(&self, netns: NetnsCookie, inherited: &Inherited) -> io::Result<()> {
        let (door, files) = inherited.door(netns, VERSION);
        passing::send(&self.0.lock(), &ToSupervisor::Door(door), &files)
    }

    pub fn keep_api(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        passing::send(&self.0.lock(), &ToSupervisor::Api, &[listener])
    }

    /// Returns once they are closed there, so that others can listen in their place.
    pub fn close(&self, netns: NetnsCookie) -> io::Result<()> {
        let socket = self.0.lock();
        passing::send(&socket, &ToSupervisor::Close { netns }, &[])?;
        match passing::receive(&socket)? {
            Some((ToProxy::Closed, _)) => Ok(()),
            other => Err(io::Error::other(format!(
                "the supervisor answered {other:?}"
            ))),
        }
    }

    pub fn beat(&self, connections: u64, tally: Tally) -> io::Result<()> {
        let beat = ToSupervisor::Beat { connections, tally };
        passing::send(&self.0.lock(), &beat, &[])
    }

    pub fn released(&self) -> io::Result<()> {
        passing::send(&self.0.lock(), &ToSupervisor::Released, &[])
    }
}
