//! The agent's local API: one JSON object a line, over a Unix socket that only
//! root may use.
//!
//! ```text
//! → {"verb":"enrol","workload":"default/web-0","netns":"/run/netns/web-0"}
//! ← {"ok":true}
//! → {"verb":"list"}
//! ← {"ok":true,"workloads":[{"workload":"default/web-0","netns":"/run/netns/web-0","state":"enrolled","why":null}]}
//! → {"verb":"remove","workload":"default/web-1"}
//! ← {"ok":false,"error":"default/web-1 is not enrolled: duet-agent list says what is"}
//! ```
//!
//! `handover` and `admit` are the last request on their connection. `handover` the module
//! says what follows on the first; on the second, an answer that the namespace's file is
//! waited for, a frame with it, and the answer proper.

use crate::cni;
use crate::enrolment::{Enrolment, Listed};
use crate::netns::Netns;
use crate::passing;
use crate::succession::{Asked, Succession, aside};
use duet_core::WorkloadName;
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader as StdBufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What an answer ends in that will be another one soon.
pub const ASK_AGAIN: &str = "ask again in a moment";

/// How long a file may take that was announced.
const FILE_WITHIN: Duration = Duration::from_secs(5);

/// A request is a name and a path.
const LONGEST_REQUEST: u64 = 8 * 1024;

/// Longer than any verb takes: removal ends connections, it does not drain them.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    Enrol {
        workload: String,
        netns: PathBuf,
    },
    Remove {
        workload: String,
    },
    List,
    /// From the CNI plugin: answered once the pod's connections are redirected.
    Admit {
        workload: String,
        uid: String,
        netns: PathBuf,
        /// It is this agent's for certain.
        stamped: bool,
    },
    /// From an agent that wants to succeed this one.
    Handover {
        /// Of the protocol.
        version: u32,
        /// Of the pinned directory.
        layout: String,
        /// Who asks, where agents have names.
        #[serde(default)]
        instance: Option<String>,
        /// Said if it does without the CNI plugin.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        without_cni: bool,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Response {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Vec<Listed>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot make the socket {}: {error}", path.display())]
    Bind { path: PathBuf, error: io::Error },
    #[error("no agent listens on {}: {error}; start one with duet-agent run, or give its --socket", path.display())]
    Connect { path: PathBuf, error: io::Error },
    #[error("the agent at {} went away: {error}", path.display())]
    Lost { path: PathBuf, error: io::Error },
    #[error("the agent at {} speaks another language: {error}", path.display())]
    Unintelligible {
        path: PathBuf,
        error: serde_json::Error,
    },
    #[error("{0}")]
    Refused(String),
}

/// The server's end. The file goes when this does, unless another has the listener.
pub struct Api {
    listener: UnixListener,
    path: PathBuf,
    is_passed_on: Arc<AtomicBool>,
}

impl Api {
    /// A file that is there already is an earlier agent's: two live ones are
    /// kept apart by their bpffs directory.
    pub fn bind(path: &Path) -> Result<Self, ApiError> {
        let bind = || {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            remove_stale(path)?;
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|error| ApiError::Bind {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            is_passed_on: Arc::default(),
        })
    }

    /// Goes on with the listener that an earlier process had at `path`.
    pub fn inherit(listener: OwnedFd, path: &Path) -> Result<Self, ApiError> {
        let listener = StdUnixListener::from(listener);
        let adopted = listener.set_nonblocking(true);
        let adopted = adopted.and_then(|()| UnixListener::from_std(listener));
        let listener = adopted.map_err(|error| ApiError::Bind {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            is_passed_on: Arc::default(),
        })
    }

    /// The same listener, to be kept or passed on.
    pub fn share(&self) -> Result<OwnedFd, ApiError> {
        let shared = self.listener.as_fd().try_clone_to_owned();
        shared.map_err(|error| ApiError::Bind {
            path: self.path.clone(),
            error,
        })
    }

    /// To be set once another has it.
    pub fn is_passed_on(&self) -> Arc<AtomicBool> {
        self.is_passed_on.clone()
    }

    pub async fn serve(self, agent: Arc<Succession>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let agent = agent.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &agent).await {
                            tracing::debug!(%error, "local API");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "local API");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if !self.is_passed_on.load(Relaxed) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Response {
    pub fn ok() -> Self {
        Self {
            ok: true,
            ..Self::default()
        }
    }

    pub fn refused(error: String) -> Self {
        Self {
            ok: false,
            error: Some(error),
            workloads: None,
        }
    }
}

/// Removes a socket that nobody listens on. True if there was one.
pub fn remove_stale(path: &Path) -> io::Result<bool> {
    match StdUnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens on it",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

async fn converse(stream: UnixStream, agent: &Arc<Succession>) -> io::Result<()> {
    // The file's mode says the same; but it is set after the file is made.
    let uid = stream.peer_cred()?.uid();
    let own = nix::unistd::geteuid().as_raw();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = String::new();
        let read = (&mut lines)
            .take(LONGEST_REQUEST)
            .read_line(&mut line)
            .await?;
        if read == 0 {
            return Ok(());
        }
        let whole = line.ends_with('\n') || (read as u64) < LONGEST_REQUEST;
        let answer = if uid != 0 && uid != own {
            Response::refused(format!("uid {uid} may not ask this agent for anything"))
        } else if !whole {
            Response::refused(format!("a request is at most {LONGEST_REQUEST} bytes long"))
        } else {
            match serde_json::from_str(&line) {
                Ok(Request::Handover {
                    version,
                    layout,
                    instance,
                    without_cni,
                }) => {
                    let stream = lines.into_inner().reunite(write);
                    let stream = stream.map_err(io::Error::other)?.into_std()?;
                    let asked = Asked {
                        version,
                        layout,
                        instance,
                        without_cni,
                    };
                    return agent.clone().hand_over(stream, asked).await;
                }
                Ok(Request::Admit {
                    workload,
                    uid,
                    netns,
                    stamped,
                }) => {
                    let stream = lines.into_inner().reunite(write);
                    let stream = stream.map_err(io::Error::other)?.into_std()?;
                    let admitted = admit(&stream, agent, workload, (uid, stamped), netns).await;
                    agent.counters().cni(&admitted);
                    let answer = match admitted {
                        Ok(_) => Response::ok(),
                        Err(why) => Response::refused(why),
                    };
                    let mut text = serde_json::to_vec(&answer)?;
                    text.push(b'\n');
                    return (&stream).write_all(&text);
                }
                Ok(request) => answer(request, agent.enrolment()).await,
                Err(error) => Response::refused(format!("not a request: {error}")),
            }
        };
        let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        if !whole {
            return Ok(());
        }
    }
}

/// Whether the pod is this agent's.
async fn admit(
    stream: &StdUnixStream,
    agent: &Succession,
    workload: String,
    (uid, is_stamped): (String, bool),
    path: PathBuf,
) -> Result<bool, String> {
    let text = |error: io::Error| format!("the network namespace: {error}");
    let workload = workload.parse::<WorkloadName>();
    let receiving = stream.try_clone().map_err(text)?;
    let received = aside(move || {
        receiving.set_nonblocking(false)?;
        receiving.set_read_timeout(Some(FILE_WITHIN))?;
        receiving.set_write_timeout(Some(FILE_WITHIN))?;
        // Only now: what was sent before this would be read as a line's rest.
        (&receiving).write_all(b"{\"ok\":true}\n")?;
        let frame = passing::receive::<()>(&receiving)?;
        let (_, files) = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        passing::only(files)
    });
    let file = received.await.map_err(text)?.map_err(text)?;
    let netns = Netns::of(file.into(), &path).map_err(|error| error.to_string())?;
    let sandbox = cni::Sandbox {
        workload: workload.map_err(|error| error.to_string())?,
        uid,
        netns,
        is_stamped,
    };
    cni::admit(agent.proxy(), agent.enrolment(), sandbox).await
}

async fn answer(request: Request, enrolment: &Enrolment) -> Response {
    let name = |text: String| text.parse::<WorkloadName>().map_err(|e| e.to_string());
    let outcome = match request {
        Request::Enrol { workload, netns } => match name(workload) {
            Ok(name) => enrolment
                .enrol(name, &netns)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error),
        },
        Request::Remove { workload } => match name(workload) {
            Ok(name) => enrolment
                .remove(&name)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error),
        },
        Request::List => {
            return Response {
                ok: true,
                error: None,
                workloads: Some(enrolment.list().await),
            };
        }
        Request::Handover { .. } | Request::Admit { .. } => {
            unreachable!("answered by the connection itself")
        }
    };
    match outcome {
        Ok(()) => Response::ok(),
        Err(error) => Response::refused(error),
    }
}

/// The client's end: one request, one response.
pub fn ask(socket: &Path, request: &Request) -> Result<Response, ApiError> {
    let path = || socket.to_owned();
    let stream = StdUnixStream::connect(socket).map_err(|error| ApiError::Connect {
        path: path(),
        error,
    })?;
    let exchange = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        (&stream).write_all(&text)?;
        let mut line = String::new();
        if StdBufReader::new(&stream).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    };
    let line = exchange().map_err(|error| ApiError::Lost {
        path: path(),
        error,
    })?;
    let response = understand(socket, &line)?;
    match response.error {
        Some(error) => Err(ApiError::Refused(error)),
        None => Ok(response),
    }
}

/// What the agent at `socket` has answered.
pub fn understand(socket: &Path, line: &str) -> Result<Response, ApiError> {
    serde_json::from_str(line).map_err(|error| ApiError::Unintelligible {
        path: socket.to_owned(),
        error,
    })
}
