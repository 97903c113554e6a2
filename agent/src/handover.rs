//! From one agent to the next, while both run: the listeners in the workloads'
//! namespaces, the local API's, and the lock on the pinned directory.
//!
//! ```text
//! successor                                        predecessor
//!   has heard from duet-control
//!   {"verb":"handover","version":2,…}          →
//!                                              ←   {"ok":true}, or why not
//!                                              ←   lock, api, doors, end
//!   puts its programs into the links,
//!   comes to the workloads' certificates
//!   taken                                      →
//!                                              ←   closed: its listeners
//!   accepts                                        drains
//!                                              ←   cut: what was open at the end
//! ```
//!
//! A predecessor answers in the version that it was asked in, if it knows it; a successor
//! that is refused asks once more in the one before its own.
//!
//! Until `taken` the predecessor accepts as before, and has everything again if the
//! successor ends. Between `taken` and `closed` connections wait in the listeners'
//! queues. None is refused at any time.

use crate::api::{self, ApiError, Request, Response};
use crate::bpffs;
use crate::passing::{self, Door, Inherited, OLDEST, VERSION};
use crate::tally::Tally;
use duet_core::WorkloadName;
use duet_ebpf::NetnsCookie;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the other side may take for one frame. It has nothing to wait for.
const FRAME_WITHIN: Duration = Duration::from_secs(5);

/// How long a successor may take between being given everything and taking it. It
/// comes to certificates meanwhile, and nobody is enrolled or removed.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// How long a predecessor may take to close its listeners: nothing to speak of, on a
/// machine that has time for it.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);

/// The longest answer to a request, but for the frames.
const LONGEST_LINE: usize = 8 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToSuccessor {
    Lock,
    Api,
    Door(Door),
    End {
        /// Workloads that have a certificate.
        served: BTreeSet<String>,
        tally: Tally,
        instance: Option<String>,
    },
    Closed,
    Cut {
        connections: u64,
    },
    /// It took too long, or the predecessor has thought better of it.
    Withdrawn,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToPredecessor {
    Taken,
}

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the agent at {} does not hand over: {error}", path.display())]
    Refused { path: PathBuf, error: String },
    #[error("the agent at {} broke off while it handed over: {error}", path.display())]
    BrokenOff { path: PathBuf, error: io::Error },
    #[error("the agent at {} has withdrawn: it goes on serving", path.display())]
    Withdrawn { path: PathBuf },
}

/// What is handed over.
pub struct Estate {
    pub lock: File,
    pub api: OwnedFd,
    pub doors: HashMap<NetnsCookie, Inherited>,
    pub served: BTreeSet<WorkloadName>,
    pub tally: Tally,
    /// Whose it was.
    pub instance: Option<String>,
}

/// The agent that runs already.
pub struct Predecessor {
    stream: UnixStream,
    path: PathBuf,
}

/// The agent that has taken over.
pub struct Successor(UnixStream);

/// A request for a handover: who asks, and what it understands.
pub fn request(version: u32, instance: Option<String>) -> Request {
    Request::Handover {
        version,
        layout: bpffs::VERSION.to_owned(),
        instance,
        without_cni: false,
    }
}

// === impl Predecessor ===

impl Predecessor {
    /// None if nobody listens on the socket.
    pub fn find(socket: &Path) -> Result<Option<Self>, HandoverError> {
        let path = socket.to_owned();
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Some(Self { stream, path })),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(ApiError::Connect { path, error }.into()),
        }
    }

    /// Is given everything, in this version or in the one before. It blocks, for as long
    /// as the other takes.
    pub fn succeed(
        self,
        instance: Option<&str>,
        without_cni: bool,
    ) -> Result<(Self, Estate), HandoverError> {
        let first = Request::Handover {
            version: VERSION,
            layout: bpffs::VERSION.to_owned(),
            instance: instance.map(str::to_owned),
            without_cni,
        };
        let refused = match self.ask(&first) {
            Err(refused @ HandoverError::Refused { .. }) => refused,
            outcome => return outcome.map(|estate| (self, estate)),
        };
        let Some(again) = Self::find(&self.path)? else {
            return Err(refused);
        };
        match again.ask(&request(OLDEST, instance.map(str::to_owned))) {
            Ok(estate) => Ok((again, estate)),
            // What was said of the version asked for first says more.
            Err(_) => Err(refused),
        }
    }

    /// Is given everything. It blocks, for as long as the other takes.
    pub fn ask(&self, request: &Request) -> Result<Estate, HandoverError> {
        let broken_off = |error| self.broken_off(error);
        self.stream
            .set_read_timeout(Some(FRAME_WITHIN))
            .and_then(|()| self.stream.set_write_timeout(Some(FRAME_WITHIN)))
            .map_err(broken_off)?;
        let mut text = serde_json::to_vec(request).map_err(|error| broken_off(error.into()))?;
        text.push(b'\n');
        (&self.stream).write_all(&text).map_err(broken_off)?;
        let line = self.line().map_err(broken_off)?;
        let answer: Response = api::understand(&self.path, &line)?;
        if let Some(error) = answer.error {
            let path = self.path.clone();
            return Err(HandoverError::Refused { path, error });
        }
        self.estate().map_err(broken_off)
    }

    /// Not one byte more: what follows has files.
    fn line(&self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < LONGEST_LINE {
            (&self.stream).read_exact(&mut byte)?;
            if byte == *b"\n" {
                return String::from_utf8(line).map_err(io::Error::other);
            }
            line.extend(byte);
        }
        Err(io::Error::other("an endless answer"))
    }

    fn estate(&self) -> io::Result<Estate> {
        let (mut lock, mut api) = (None, None);
        let mut doors = HashMap::new();
        loop {
            let (frame, files) = self.receive()?;
            match frame {
                ToSuccessor::Lock => lock = Some(File::from(passing::only(files)?)),
                ToSuccessor::Api => api = Some(passing::only(files)?),
                ToSuccessor::Door(door) => {
                    doors.insert(door.netns, Inherited::behind(&door, files)?);
                }
                ToSuccessor::End {
                    served,
                    tally,
                    instance,
                } => {
                    let (Some(lock), Some(api)) = (lock, api) else {
                        return Err(io::Error::other(
                            "the lock or the API's listener is missing",
                        ));
                    };
                    let served = served.iter().filter_map(|name| name.parse().ok());
                    return Ok(Estate {
                        lock,
                        api,
                        doors,
                        served: served.collect(),
                        tally,
                        instance,
                    });
                }
                other => return Err(io::Error::other(format!("unexpected: {other:?}"))),
            }
        }
    }

    fn receive(&self) -> io::Result<(ToSuccessor, Vec<OwnedFd>)> {
        passing::receive(&self.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Everything is this agent's from here on. Returns once the predecessor's
    /// listeners are closed; it blocks. One that is gone, or stuck, has accepted for
    /// the last time too. An error means that the predecessor has everything still.
    pub fn take(&self) -> Result<(), HandoverError> {
        let _ = self.stream.set_read_timeout(Some(CLOSED_WITHIN));
        // If it is gone, receiving says so.
        let _ = passing::send(&self.stream, &ToPredecessor::Taken, &[]);
        match self.receive() {
            Ok((ToSuccessor::Closed, _)) => Ok(()),
            Ok((ToSuccessor::Withdrawn, _)) => Err(HandoverError::Withdrawn {
                path: self.path.clone(),
            }),
            Ok((other, _)) => {
                Err(self.broken_off(io::Error::other(format!("unexpected: {other:?}"))))
            }
            Err(_) => Ok(()),
        }
    }

    /// How many connections it cut when it ended. It blocks until then.
    pub fn cut(self) -> u64 {
        let _ = self.stream.set_read_timeout(None);
        match self.receive() {
            Ok((ToSuccessor::Cut { connections }, _)) => connections,
            _ => 0,
        }
    }

    fn broken_off(&self, error: io::Error) -> HandoverError {
        HandoverError::BrokenOff {
            path: self.path.clone(),
            error,
        }
    }
}

// === impl Successor ===

/// What [`Successor::give`] takes; borrowed, for the predecessor keeps it until the
/// successor has taken it.
pub struct Given {
    pub lock: OwnedFd,
    pub api: OwnedFd,
    pub doors: HashMap<NetnsCookie, Inherited>,
    pub served: BTreeSet<String>,
    pub tally: Tally,
    pub instance: Option<String>,
    /// What the successor speaks.
    pub version: u32,
}

impl Successor {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(FRAME_WITHIN))?;
        Ok(Self(stream))
    }

    /// Gives everything and waits until it is taken; it blocks. After an error nothing
    /// has changed hands.
    pub fn give(&self, given: &Given) -> io::Result<()> {
        let mut ok = serde_json::to_vec(&Response::ok())?;
        ok.push(b'\n');
        (&self.0).write_all(&ok)?;
        passing::send(&self.0, &ToSuccessor::Lock, &[given.lock.as_fd()])?;
        passing::send(&self.0, &ToSuccessor::Api, &[given.api.as_fd()])?;
        for (&netns, inherited) in &given.doors {
            let (door, files) = inherited.door(netns, given.version);
            passing::send(&self.0, &ToSuccessor::Door(door), &files)?;
        }
        let end = ToSuccessor::End {
            served: given.served.clone(),
            tally: given.tally,
            instance: given.instance.clone(),
        };
        passing::send(&self.0, &end, &[])?;
        self.0.set_read_timeout(Some(TAKEN_WITHIN))?;
        match passing::receive(&self.0) {
            Ok(Some((ToPredecessor::Taken, _))) => Ok(()),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                // It may be slow, and must not believe that it has everything.
                let _ = passing::send(&self.0, &ToSuccessor::Withdrawn, &[]);
                Err(error)
            }
        }
    }

    /// This process's listeners are closed.
    pub fn closed(&self) -> io::Result<()> {
        passing::send(&self.0, &ToSuccessor::Closed, &[])
    }

    pub fn cut(&self, connections: u64) -> io::Result<()> {
        passing::send(&self.0, &ToSuccessor::Cut { connections }, &[])
    }
}
