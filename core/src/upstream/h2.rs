//! HTTP/2 connections, shared by all that go the same way.

use super::{Driver, Tunnel, UpstreamError};
use crate::batch::batched;
use crate::http::Body;
use crate::http::limits::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::identity::Standing;
use crate::rarely::until;
use crate::tenancy::Tenant;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

/// A peer's proxy that was asked for a tunnel must have connected, or have given up,
/// by then.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections to one place: one, made when first needed, and further ones
/// while those that stand carry as many streams as the peer allows.
#[derive(Default)]
pub struct Shared {
    live: Mutex<Vec<Connection>>,
    connecting: tokio::sync::Mutex<()>,
    last_failure: Mutex<Option<(Instant, UpstreamError)>>,
}

impl Shared {
    pub async fn get(
        &self,
        connect: impl AsyncFnOnce() -> Result<Connection, UpstreamError>,
    ) -> Result<Stream, UpstreamError> {
        // A peer that is going away says so while its last streams still run.
        if let Some(stream) = self.reserve()
            && let Some(stream) = stream.ready().await
        {
            return Ok(stream);
        }
        let asked = Instant::now();
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(stream) = self.reserve()
            && let Some(stream) = stream.ready().await
        {
            return Ok(stream);
        }
        // Whoever waited for an attempt shares its outcome: n waiters must not
        // time out one after the other.
        if let Some((at, error)) = &*self.last_failure.lock()
            && *at >= asked
        {
            return Err(error.clone());
        }
        // Boxed, so that what few requests need makes none of them larger.
        let connected = Box::pin(connect()).await;
        let reserved = connected.and_then(|connection| {
            let stream = connection.first()?;
            self.live.lock().push(connection);
            Ok(stream)
        });
        if let Err(error) = &reserved {
            *self.last_failure.lock() = Some((Instant::now(), error.clone()));
        }
        reserved
    }

    fn reserve(&self) -> Option<Stream> {
        let mut live = self.live.lock();
        live.retain(Connection::is_usable);
        live.iter().find_map(Connection::reserve)
    }

    /// Lets go of what is closed, and of all but one that carry nothing. True if
    /// nothing is left.
    pub fn sweep(&self) -> bool {
        let mut live = self.live.lock();
        let mut first = true;
        live.retain(|connection| {
            let spare = !std::mem::take(&mut first) && connection.is_idle();
            connection.is_usable() && !spare
        });
        live.is_empty()
    }
}

pub struct Connection {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
}

/// One stream's place on a connection.
pub struct Stream {
    sender: SendRequest<Bytes>,
    slot: Slot,
}

/// Counts as an open stream until it is dropped.
pub struct Slot(Arc<State>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

struct State {
    address: SocketAddr,
    closed: AtomicBool,
    /// Streams that are open, or about to be.
    open: AtomicUsize,
    /// Over mTLS: whether what was checked when it was made is still true.
    standing: Option<Arc<Standing>>,
    tenant: Tenant,
}

impl Slot {
    pub fn standing(&self) -> Option<Arc<Standing>> {
        self.0.standing.clone()
    }
}

impl Connection {
    pub async fn establish<S>(
        io: S,
        address: SocketAddr,
        standing: Option<Arc<Standing>>,
        driver: Driver,
    ) -> Result<Self, UpstreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let window = driver.tenant.window(CONNECTION_WINDOW);
        let (io, flush) = batched(io);
        let (sender, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window.bytes())
            .max_send_buffer_size(SEND_BUFFER)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|error| UpstreamError::handshake(address, error))?;
        let state = Arc::new(State {
            address,
            closed: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            standing,
            tenant: driver.tenant.clone(),
        });
        let ended = state.clone();
        let connection = async move { flush.drive(pin!(connection)).await };
        let connection = driver.tenant.share().of(connection);
        tokio::spawn(async move {
            if let Some(Err(error)) = until(driver.cancel.cancelled(), connection).await {
                tracing::debug!(%address, %error, "connection ended");
            }
            ended.closed.store(true, Ordering::Release);
            drop(window);
        });
        Ok(Self { sender, state })
    }

    fn is_usable(&self) -> bool {
        !self.state.closed.load(Ordering::Acquire)
            && self
                .state
                .standing
                .as_ref()
                .is_none_or(|standing| standing.holds())
    }

    fn is_idle(&self) -> bool {
        self.state.open.load(Ordering::Acquire) == 0
    }

    /// `None` if the peer allows no more: h2 would let it wait for as long as the
    /// others last.
    fn reserve(&self) -> Option<Stream> {
        let most = self.sender.current_max_send_streams();
        let taken = self
            .state
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < most).then_some(open + 1)
            });
        taken.ok()?;
        Some(Stream {
            sender: self.sender.clone(),
            slot: Slot(self.state.clone()),
        })
    }

    /// The stream that a connection was made for.
    pub fn first(&self) -> Result<Stream, UpstreamError> {
        self.reserve().ok_or_else(|| {
            UpstreamError::handshake(self.state.address, "the peer allows no streams")
        })
    }
}

impl Stream {
    /// `None` if the connection was closed in the meantime, or is about to be.
    async fn ready(self) -> Option<Self> {
        let Self { sender, slot } = self;
        if let Ok(sender) = sender.ready().await {
            Some(Self { sender, slot })
        } else {
            slot.0.closed.store(true, Ordering::Release);
            None
        }
    }

    /// `None` if the peer went away before it took the request: its successor may.
    pub async fn request(
        self,
        request: Box<Request<Body>>,
    ) -> Result<Option<Response<Body>>, UpstreamError> {
        let Self { mut sender, slot } = self;
        let (parts, body) = request.into_parts();
        let bodiless = body.is_end_stream();
        let (response, stream) = match sender.send_request(Request::from_parts(parts, ()), bodiless)
        {
            Ok(sent) => sent,
            Err(error) if slot.0.has_gone(&error) => return Ok(None),
            Err(error) => return Err(slot.0.unsent(error)),
        };
        let mut upload = AbortOnDrop(None);
        if !bodiless {
            let sending = tokio::spawn(slot.0.tenant.share().of(async move {
                if let Err(error) = super::tunnel::send_body(body, stream).await {
                    tracing::debug!(%error, "request body");
                }
            }));
            upload.0 = Some(sending.abort_handle());
        }
        let response = match response.await {
            Ok(response) => response,
            Err(error) if slot.0.has_gone(&error) => return Ok(None),
            Err(error) => return Err(UpstreamError::http(error)),
        };
        // Who answers may still be listening.
        upload.disarm();
        Ok(Some(response.map(|body| Body::streamed(body, slot))))
    }

    /// A tunnel. Nothing has gone into it, so a refusal is one of a connection. `None`
    /// if the peer went away before it took the request: its successor may.
    pub async fn connect(self, request: Request<()>) -> Result<Option<Tunnel>, UpstreamError> {
        let Self { mut sender, slot } = self;
        let address = slot.0.address;
        let (response, stream) = match sender.send_request(request, false) {
            Ok(sent) => sent,
            Err(error) if slot.0.has_gone(&error) => return Ok(None),
            Err(error) => return Err(slot.0.unsent(error)),
        };
        let answered = tokio::time::timeout(TUNNEL_TIMEOUT, response)
            .await
            .map_err(|_| UpstreamError::ConnectTimeout(address))?;
        let response = match answered {
            Ok(response) => response,
            Err(error) if slot.0.has_gone(&error) => return Ok(None),
            Err(error) => return Err(refused(address, error)),
        };
        match response.status() {
            StatusCode::OK => Ok(Some(Tunnel::new(stream, response.into_body()).on(slot))),
            // No fault of the endpoint's.
            StatusCode::FORBIDDEN => {
                let reason = format!("the proxy of {address} denies it by policy");
                Err(UpstreamError::Denied(reason.into()))
            }
            status => {
                let reason = format!("the peer's proxy answered {status}");
                Err(refused(address, reason))
            }
        }
    }
}

impl State {
    /// Whether the peer takes no more streams, this one included (RFC 9113 §6.8). If
    /// so, none is begun here any more.
    fn has_gone(&self, error: &::h2::Error) -> bool {
        let gone = error.is_go_away()
            && error.is_remote()
            && error.reason() == Some(::h2::Reason::NO_ERROR);
        self.closed.fetch_or(gone, Ordering::AcqRel);
        gone
    }

    /// Why a stream could not even be begun.
    fn unsent(&self, error: ::h2::Error) -> UpstreamError {
        if error.is_io() || error.is_go_away() {
            self.closed.store(true, Ordering::Release);
            refused(self.address, error)
        } else {
            UpstreamError::http(error)
        }
    }
}

fn refused(
    address: SocketAddr,
    reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> UpstreamError {
    UpstreamError::Connect {
        address,
        reason: Arc::new(std::io::Error::other(reason)),
    }
}

/// Nobody waits for what a task does any more.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], 15008))
    }

    /// A connection to a peer that allows one stream, and answers all with `status`.
    async fn connect(status: StatusCode) -> Result<Connection, UpstreamError> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let mut server = ::h2::server::Builder::new()
                .max_concurrent_streams(1)
                .handshake::<_, Bytes>(far)
                .await
                .unwrap();
            let mut held = Vec::new();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                let mut response = Response::new(());
                *response.status_mut() = status;
                held.push((request, respond.send_response(response, false).unwrap()));
            }
        });
        Connection::establish(near, address(), None, Driver::default()).await
    }

    async fn tunnel(shared: &Shared, status: StatusCode) -> Result<Tunnel, UpstreamError> {
        let stream = shared.get(async || connect(status).await).await?;
        let request = Request::connect("10.0.0.1:80").body(()).unwrap();
        Ok(stream.connect(request).await?.unwrap())
    }

    #[tokio::test]
    async fn a_full_connection_gets_another_one_beside_it() {
        let shared = Shared::default();
        let first = tunnel(&shared, StatusCode::OK).await.unwrap();
        let second = tunnel(&shared, StatusCode::OK).await.unwrap();
        assert_eq!(shared.live.lock().len(), 2);
        drop(first);
        let _third = tunnel(&shared, StatusCode::OK).await.unwrap();
        assert_eq!(shared.live.lock().len(), 2, "the first has room again");
        drop(second);
        shared.sweep();
        assert_eq!(shared.live.lock().len(), 1, "a spare one is let go");
    }

    #[tokio::test]
    async fn a_refused_tunnel_may_be_tried_elsewhere() {
        let shared = Shared::default();
        let refused = tunnel(&shared, StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(refused.err().unwrap().is_unsent());
    }
}
