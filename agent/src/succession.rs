//! This agent as somebody's predecessor: it gives what it has to the next, then only
//! waits for its own connections.

use crate::api::{Api, ApiError, Response};
use crate::bpffs;
use crate::enrolment::Enrolment;
use crate::handover::{Given, Successor};
use crate::passing::{OLDEST, VERSION};
use crate::tally::Counters;
use duet_core::Proxy;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;

/// What a newcomer says of itself.
pub struct Asked {
    pub version: u32,
    pub layout: String,
    pub instance: Option<String>,
    pub without_cni: bool,
}

pub struct Succession {
    enrolment: Arc<Enrolment>,
    proxy: Proxy,
    counters: Counters,
    /// None once another agent has it.
    api: parking_lot::Mutex<Option<OwnedFd>>,
    is_passed_on: Arc<AtomicBool>,
    /// This agent's name, and that of the one before, where they have any.
    instance: Option<String>,
    came_from: Option<String>,
    drain_timeout: Duration,
    is_without_cni: AtomicBool,
    successor: Mutex<Option<Successor>>,
    over: CancellationToken,
}

/// The parts of a running agent.
pub struct Parts {
    pub enrolment: Arc<Enrolment>,
    pub proxy: Proxy,
    pub counters: Counters,
    pub instance: Option<String>,
    pub came_from: Option<String>,
    /// How long connections may live on after a handover.
    pub drain_timeout: Duration,
}

// === impl Succession ===

impl Succession {
    pub fn new(parts: Parts, api: &Api) -> Result<Arc<Self>, ApiError> {
        let Parts {
            enrolment,
            proxy,
            counters,
            instance,
            came_from,
            drain_timeout,
        } = parts;
        Ok(Arc::new(Self {
            enrolment,
            proxy,
            counters,
            api: parking_lot::Mutex::new(Some(api.share()?)),
            is_passed_on: api.is_passed_on(),
            instance,
            came_from,
            drain_timeout,
            is_without_cni: AtomicBool::default(),
            successor: Mutex::default(),
            over: CancellationToken::new(),
        }))
    }

    pub fn enrolment(&self) -> &Enrolment {
        &self.enrolment
    }

    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Cancelled once another agent has everything.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Whether that one does without the CNI plugin.
    pub fn is_without_cni(&self) -> bool {
        self.is_without_cni.load(Relaxed)
    }

    /// Whoever has it now, once this agent's listeners are closed.
    pub async fn successor(&self) -> Option<Successor> {
        self.successor.lock().await.take()
    }

    /// Gives everything to who asks at the other end of `stream`, if it takes it.
    pub async fn hand_over(self: Arc<Self>, stream: UnixStream, asked: Asked) -> io::Result<()> {
        let successor = Successor::new(stream.try_clone()?)?;
        let given = match self.refusal(&asked) {
            Some(why) => Err(why),
            None => self.given(asked.version).await,
        };
        let given = match given {
            Ok(given) => given,
            Err(why) => {
                tracing::warn!(why, "a handover is refused");
                let mut text = serde_json::to_vec(&Response::refused(why))?;
                text.push(b'\n');
                return (&stream).write_all(&text);
            }
        };
        let workloads = given.doors.len();
        tracing::info!(workloads, "another agent asks for a handover");
        let given = aside(move || successor.give(&given).map(|()| successor)).await;
        let successor = match given {
            Ok(Ok(successor)) => successor,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the other agent has not taken over: this one goes on");
                return self.enrolment.resume().await.map_err(io::Error::other);
            }
            Err(error) => {
                tracing::error!(%error, "cannot hand over: this agent goes on");
                return self.enrolment.resume().await.map_err(io::Error::other);
            }
        };
        let mut slot = self.successor.lock().await;
        self.is_passed_on.store(true, Relaxed);
        self.is_without_cni.store(asked.without_cni, Relaxed);
        self.over.cancel();
        self.enrolment.release().await;
        // This process may live on for long. Nobody would be let in by it, and the
        // successor's next life not past it.
        self.enrolment.interception().let_go();
        self.api.lock().take();
        self.proxy.shut_down(self.drain_timeout);
        self.proxy.deaf().await;
        successor.closed()?;
        tracing::info!("handed over");
        *slot = Some(successor);
        Ok(())
    }

    fn refusal(&self, asked: &Asked) -> Option<String> {
        if !(OLDEST..=VERSION).contains(&asked.version) {
            return Some(format!(
                "it speaks versions {OLDEST} to {VERSION} of the handover, and version {} was asked \
                 for: end it, new connections are refused until the other has begun",
                asked.version
            ));
        }
        if asked.layout != bpffs::VERSION {
            return Some(format!(
                "it keeps its maps as {}, and {} was asked for: end it, new connections are refused \
                 until the other has begun",
                bpffs::VERSION,
                asked.layout
            ));
        }
        if asked.instance.is_some() && asked.instance == self.came_from {
            let whose = asked.instance.as_deref().unwrap_or_default();
            return Some(format!(
                "it took over from {whose} itself, and does not give back"
            ));
        }
        let is_ending = self.proxy.draining().is_cancelled();
        is_ending.then(|| "it is about to end".to_owned())
    }

    async fn given(&self, version: u32) -> Result<Given, String> {
        let text = |error: io::Error| error.to_string();
        let served = self.enrolment.served().await;
        let lock = self.enrolment.interception().layout().share_lock();
        let api = match &*self.api.lock() {
            Some(api) => api.as_fd().try_clone_to_owned(),
            None => Err(io::Error::other("another agent has the socket already")),
        };
        let (lock, api) = (lock.map_err(text)?, api.map_err(text)?);
        // The last that can fail: from here on nobody is enrolled.
        let doors = self.enrolment.lay_down().await;
        Ok(Given {
            lock,
            api,
            doors: doors.map_err(|error| error.to_string())?,
            served: served.iter().map(ToString::to_string).collect(),
            tally: self.counters.tally(),
            instance: self.instance.clone(),
            version,
        })
    }
}

/// Runs what blocks on a thread of its own, which does not keep the process from
/// ending.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("handover".to_owned())
        .spawn(move || drop(sender.send(work())))?;
    receiver.await.map_err(io::Error::other)
}
