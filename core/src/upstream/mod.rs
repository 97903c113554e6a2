//! Connections that the proxy makes on a workload's behalf: to peers of the mesh
//! over mTLS, to everything else, the application itself included, in plaintext.
//!
//! Whether a target is reached over the mesh is decided by discovery, before
//! anything is connected. If it is, nothing but a handshake with the expected
//! identity will do: there is no way from here to plaintext.

mod h1;
mod h2;
mod tunnel;

pub use h1::Answer;
pub use h2::Slot;
pub use tunnel::{Tunnel, send_body};

use crate::batch::ReadAhead;
use crate::capture::{Direction, Kernel, MESH_PORT, WorkloadName};
use crate::detect::Protocol;
use crate::directory::Transport;
use crate::http::{self as message, Body, Case, Malformed, Timeout};
use crate::identity::{Certificate, Identity, explain_handshake, unexpected_peer};
use crate::rarely::until;
use crate::relay::Abort;
use crate::telemetry::connections::{self, Kind, Opened};
use crate::telemetry::{Connections, Failure};
use crate::tenancy::Tenant;
use ::http::{Request, Response, StatusCode, Version};
use dashmap::DashMap;
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::hash::Hash;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A peer that accepted a connection must have finished its handshake by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that vanished without a word (its node died) is noticed when what was
/// sent stays unacknowledged this long (RFC 5482), or after three silent probes.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Where bytes go: a TCP connection or a tunnel through the mesh.
pub trait Io: AsyncRead + AsyncWrite + Abort + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Abort + Unpin + Send> Io for T {}

impl Abort for Box<dyn Io> {
    fn abort(&mut self) {
        (**self).abort();
    }
}

/// One address to reach, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub address: SocketAddr,
    /// The identity that must answer, if the address is in the mesh.
    pub peer: Option<Identity>,
    pub native_http: bool,
}

impl Target {
    pub fn plaintext(address: SocketAddr) -> Self {
        Self {
            address,
            peer: None,
            native_http: false,
        }
    }

    pub fn mesh(address: SocketAddr, peer: Identity, transport: Transport) -> Self {
        Self {
            address,
            peer: Some(peer),
            native_http: transport == Transport::Duet,
        }
    }
}

/// Why there was no answer. Cloned to all that waited for one connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the service has no endpoints")]
    NoEndpoints,
    #[error("{0} is not known yet")]
    NotReady(String),
    #[error("{0} is not an address of this workload")]
    NotLocal(String),
    /// It is in the mesh, and how to reach it this proxy is not told.
    #[error(
        "{0} is in the mesh and out of this workload's reach: add the other's namespace to \
         duet.dev/reach of this one's"
    )]
    OutOfReach(SocketAddr),
    /// A policy says no, or none says yes.
    #[error("{0}")]
    Denied(Arc<str>),
    #[error("plaintext is not taken: mTLS is strict")]
    Plaintext,
    #[error("connecting to {address}: {reason}")]
    Connect {
        address: SocketAddr,
        reason: Arc<io::Error>,
    },
    #[error("connecting to {0} timed out")]
    ConnectTimeout(SocketAddr),
    #[error("mTLS with {address}: {reason}")]
    Handshake {
        address: SocketAddr,
        reason: Arc<str>,
    },
    /// An endpoint names a workload that discovery does not.
    #[error("workload {0} is not known yet")]
    Unknown(WorkloadName),
    /// Somebody else answers there.
    #[error("mTLS with {address}: {reason}")]
    Identity {
        address: SocketAddr,
        reason: Arc<str>,
    },
    #[error("{0}")]
    Http(Arc<str>),
    #[error("{0}")]
    Timeout(Timeout),
    /// The service has routes, and none is for this request.
    #[error("no route of the service is for this request")]
    NoRoute,
    /// A route sends it to somebody whom discovery does not know.
    #[error("the route leads nowhere: {0}")]
    NoBackend(Arc<str>),
    /// The client may come again when this time has passed.
    #[error("the client makes more requests than it may")]
    RateLimited(Duration),
    #[error("the workload has as many requests under way as it may")]
    Overloaded,
    /// RFC 9110 §9.3.6: it asks for a tunnel of whoever it was sent to, and would ask
    /// the next proxy instead.
    #[error("CONNECT is not passed on")]
    ConnectMethod,
    #[error("{0}")]
    Malformed(Malformed),
}

impl UpstreamError {
    pub const fn failure(&self) -> Failure {
        match self {
            Self::NoEndpoints => Failure::NoEndpoints,
            Self::NotReady(_) | Self::Unknown(_) | Self::Identity { .. } => Failure::Identity,
            Self::NotLocal(_) => Failure::NotLocal,
            Self::OutOfReach(_) => Failure::OutOfReach,
            Self::Denied(_) => Failure::Policy,
            Self::Plaintext => Failure::Plaintext,
            Self::Malformed(_) => Failure::Malformed,
            Self::Connect { .. } => Failure::Connect,
            Self::ConnectTimeout(_) => Failure::ConnectTimeout,
            Self::Handshake { .. } => Failure::Handshake,
            Self::Http(_) | Self::ConnectMethod => Failure::Upstream,
            Self::Timeout(_) => Failure::Timeout,
            Self::RateLimited(_) => Failure::RateLimited,
            Self::Overloaded => Failure::Overloaded,
            Self::NoRoute | Self::NoBackend(_) => Failure::NoRoute,
        }
    }

    /// Nothing of the request has left, so another endpoint may be asked.
    pub const fn is_unsent(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::ConnectTimeout(_)
                | Self::Handshake { .. }
                | Self::Identity { .. }
                | Self::Unknown(_)
        )
    }

    fn handshake(address: SocketAddr, reason: impl ToString) -> Self {
        Self::Handshake {
            address,
            reason: reason.to_string().into(),
        }
    }

    fn http(reason: impl ToString) -> Self {
        Self::Http(reason.to_string().into())
    }
}

/// Connections to one peer that are tried for a tunnel, where each but the last went
/// away before it took the request: a proxy that hands over, and one that did so a
/// moment ago.
const SUCCESSORS: usize = 3;

/// What is kept for each place that was connected to.
type Places<K, V> = DashMap<K, Arc<V>>;

/// The connections of one workload.
pub struct Upstreams {
    workload: WorkloadName,
    /// Where those to peers are listed.
    listed: Arc<Connections>,
    kernel: Arc<dyn Kernel>,
    connect_timeout: Duration,
    h1: Arc<Places<Target, h1::Pool>>,
    h2: Arc<Places<(SocketAddr, Option<Identity>), h2::Shared>>,
    /// Ends every connection.
    cancel: CancellationToken,
    /// What a drain waits for.
    tasks: TaskTracker,
    tenant: Tenant,
}

/// Runs connections at their workload's expense, until they end or are cut.
#[derive(Clone, Default)]
pub struct Driver {
    cancel: CancellationToken,
    tenant: Tenant,
}

/// How an HTTP request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Http1(Case),
    Http2,
}

/// Where one HTTP request can be sent now.
pub enum Place {
    /// And where the connection goes once it is idle.
    Http1(h1::Client, Arc<h1::Pool>),
    Http2(h2::Stream),
}

impl Upstreams {
    pub fn new(
        workload: WorkloadName,
        listed: Arc<Connections>,
        kernel: Arc<dyn Kernel>,
        connect_timeout: Duration,
        cancel: CancellationToken,
        tasks: TaskTracker,
        tenant: Tenant,
    ) -> Self {
        let (h1, h2) = (Arc::default(), Arc::default());
        let sweep = sweep(Arc::clone(&h1), Arc::clone(&h2));
        tokio::spawn(cancel.clone().run_until_cancelled_owned(sweep));
        Self {
            workload,
            listed,
            kernel,
            connect_timeout,
            h1,
            h2,
            cancel,
            tasks,
            tenant,
        }
    }

    /// Forgets the connections that are pooled; those in use go on until their
    /// last stream ends.
    pub fn clear(&self) {
        self.h1.clear();
        self.h2.clear();
    }

    /// A stream of bytes to `target`. With `http1`, a meshed receiver is told that
    /// the bytes are HTTP/1.
    pub async fn open(
        &self,
        target: &Target,
        http1: bool,
        certificate: impl AsyncFnOnce() -> Result<Arc<Certificate>, UpstreamError>,
    ) -> Result<Box<dyn Io>, UpstreamError> {
        Ok(match &target.peer {
            Some(peer) => Box::new(
                self.tunnel(target.address, peer, http1, certificate)
                    .await?,
            ),
            None => Box::new(self.tcp(target.address).await?),
        })
    }

    async fn tunnel(
        &self,
        address: SocketAddr,
        peer: &Identity,
        http1: bool,
        certificate: impl AsyncFnOnce() -> Result<Arc<Certificate>, UpstreamError>,
    ) -> Result<Tunnel, UpstreamError> {
        let mut request = Request::connect(address.to_string())
            .version(Version::HTTP_2)
            .body(())
            .map_err(UpstreamError::http)?;
        if http1 {
            let inside = ::http::HeaderValue::from_static("http/1.1");
            request.headers_mut().insert(message::APP_PROTOCOL, inside);
        }
        let certificate = certificate().await?;
        for _ in 0..SUCCESSORS {
            let known = async || Ok(certificate.clone());
            let stream = self.mesh(address, peer, known).await?;
            if let Some(tunnel) = stream.connect(request.clone()).await? {
                return Ok(tunnel);
            }
        }
        let reason = io::Error::other("its proxies go away one after the other");
        Err(UpstreamError::Connect {
            address,
            reason: Arc::new(reason),
        })
    }

    /// A place for one HTTP request of this form to `target`, on a connection that
    /// stands.
    pub async fn reserve(
        &self,
        target: &Target,
        form: Form,
        certificate: impl AsyncFnOnce() -> Result<Arc<Certificate>, UpstreamError>,
    ) -> Result<Place, UpstreamError> {
        match &target.peer {
            Some(peer) if target.native_http => {
                let stream = self.mesh(target.address, peer, certificate).await?;
                Ok(Place::Http2(stream))
            }
            None if form == Form::Http2 => {
                let shared = get_or_default(&self.h2, (target.address, None));
                let connect = async || {
                    let tcp = self.tcp(target.address).await?;
                    h2::Connection::establish(tcp, target.address, None, self.driver()).await
                };
                Ok(Place::Http2(shared.get(connect).await?))
            }
            Some(peer) if form == Form::Http2 => {
                // A peer that only has tunnels: HTTP/2 inside one, while what the tunnel
                // is in may take new streams.
                let shared = get_or_default(&self.h2, (target.address, Some(peer.clone())));
                let connect = async || {
                    let tunnel = self
                        .tunnel(target.address, peer, false, certificate)
                        .await?;
                    let standing = tunnel.standing();
                    h2::Connection::establish(tunnel, target.address, standing, self.driver()).await
                };
                Ok(Place::Http2(shared.get(connect).await?))
            }
            _ => {
                let case = match form {
                    Form::Http1(case) => case,
                    Form::Http2 => Case::default(),
                };
                let pool = get_or_default(&self.h1, target.clone());
                let client = match pool.take(case) {
                    Some(idle) => idle,
                    None => Box::pin(self.http1(target, case, certificate)).await?,
                };
                Ok(Place::Http1(client, pool))
            }
        }
    }

    /// Sends an HTTP request as it is; its version and headers fit the target.
    pub async fn send(
        &self,
        place: Place,
        target: &Target,
        request: Box<Request<Body>>,
        certificate: impl AsyncFnOnce() -> Result<Arc<Certificate>, UpstreamError>,
    ) -> Result<Response<Body>, UpstreamError> {
        match place {
            Place::Http2(stream) => {
                let again = again(&request);
                if let Some(response) = stream.request(request).await? {
                    return Ok(response);
                }
                let gone = || UpstreamError::http("the peer's proxy went away, and a body with it");
                let again = again.ok_or_else(gone)?;
                Box::pin(async {
                    let next = self.reserve(target, Form::Http2, certificate).await?;
                    let Place::Http2(stream) = next else {
                        return Err(gone());
                    };
                    stream.request(again).await?.ok_or_else(gone)
                })
                .await
            }
            Place::Http1(client, pool) => {
                let case = client.case();
                let connect = async || self.http1(target, case, certificate).await;
                pool.request(client, request, connect).await
            }
        }
    }

    async fn http1(
        &self,
        target: &Target,
        case: Case,
        certificate: impl AsyncFnOnce() -> Result<Arc<Certificate>, UpstreamError>,
    ) -> Result<h1::Client, UpstreamError> {
        let io = self.open(target, true, certificate).await?;
        h1::Client::connect(io, case, &self.driver()).await
    }

    /// Sends a request that wants to leave HTTP on a connection of its own, and
    /// joins both sides if it may, until `cut`.
    pub async fn upgrade(
        &self,
        io: Box<dyn Io>,
        mut request: Request<Body>,
        cut: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Response<Body>, UpstreamError> {
        let case = Case::of(request.headers());
        let (mut sender, connection, heads) = h1::handshake(io, case).await?;
        let (told, _) = message::spelled(request.headers_mut(), case);
        request.extensions_mut().extend(told);
        self.driver().drive(connection.with_upgrades());

        let client = hyper::upgrade::on(&mut request);
        let mut response = sender
            .send_request(request)
            .await
            .map_err(UpstreamError::http)?;
        heads.note(response.headers_mut());
        heads.leave();
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response.map(Body::from));
        }
        let server = hyper::upgrade::on(&mut response);
        let joined = async move {
            if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                // Either side's failure closes both: HTTP upgrades have no reset.
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = cut => {}
                }
            }
        };
        // It has left HTTP, but it is still a connection that a drain waits for.
        let joined = self.tenant.share().of(joined);
        self.tasks
            .spawn(self.cancel.clone().run_until_cancelled_owned(joined));
        Ok(response.map(|_| Body::empty()))
    }

    /// A stream to a peer, on a connection that is made if need be.
    async fn mesh(
        &self,
        address: SocketAddr,
        peer: &Identity,
        certificate: impl AsyncFnOnce() -> Result<Arc<Certificate>, UpstreamError>,
    ) -> Result<h2::Stream, UpstreamError> {
        let address = SocketAddr::new(address.ip(), MESH_PORT);
        let shared = get_or_default(&self.h2, (address, Some(peer.clone())));
        let connect = async || {
            let certificate = certificate().await?;
            let tls = certificate
                .client(peer.clone())
                .map_err(|error| UpstreamError::handshake(address, error))?;
            self.tenant.handshake(Direction::Outbound).await;
            let tcp = self.tcp(address).await?;
            watch_peer(&tcp);
            let own = tcp.local_addr();
            let name = ServerName::IpAddress(address.ip().into());
            let handshake = TlsConnector::from(tls).connect(name, ReadAhead::new(tcp));
            let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
                .await
                .map_err(|_| UpstreamError::handshake(address, "timed out"))?
                .map_err(|error| match unexpected_peer(&error) {
                    Some(unexpected) => UpstreamError::Identity {
                        address,
                        reason: unexpected.to_string().into(),
                    },
                    None => UpstreamError::handshake(address, explain_handshake(&error)),
                })?;
            let standing = certificate
                .server_of(stream.get_ref().1)
                .map_err(|error| UpstreamError::handshake(address, error))?;
            let entry = self.listed.open(Opened {
                kind: Kind::Mesh,
                direction: Direction::Outbound,
                workload: &self.workload,
                client: own.map_err(|error| UpstreamError::handshake(address, error))?,
                destination: address,
            });
            let listed = entry.connection();
            listed.between(Some(peer), connections::Transport::Mtls);
            listed.speaks(Protocol::Http2);
            let stream = entry.server(stream);
            let standing = Some(Arc::new(standing));
            h2::Connection::establish(stream, address, standing, self.driver()).await
        };
        shared.get(connect).await
    }

    fn driver(&self) -> Driver {
        Driver {
            cancel: self.cancel.clone(),
            tenant: self.tenant.clone(),
        }
    }

    async fn tcp(&self, address: SocketAddr) -> Result<TcpStream, UpstreamError> {
        let failed = |reason| UpstreamError::Connect {
            address,
            reason: Arc::new(reason),
        };
        let socket = self.kernel.socket(address).map_err(failed)?;
        let stream = tokio::time::timeout(self.connect_timeout, socket.connect(address))
            .await
            .map_err(|_| UpstreamError::ConnectTimeout(address))?
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(stream)
    }
}

// === impl Form ===

impl Form {
    pub fn of<B>(request: &Request<B>) -> Self {
        match request.version() {
            Version::HTTP_2 => Self::Http2,
            _ => Self::Http1(Case::of(request.headers())),
        }
    }
}

// === impl Driver ===

impl Driver {
    fn drive<F>(&self, connection: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let connection = self.tenant.share().of(connection);
        tokio::spawn(until(self.cancel.clone().cancelled_owned(), connection));
    }
}

/// A second copy of a request that has no body.
fn again(request: &Request<Body>) -> Option<Box<Request<Body>>> {
    if !request.body().is_end_stream() {
        return None;
    }
    let mut again = Box::new(Request::new(Body::empty()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// Forgets places that nothing leads to any more, and closes connections that were
/// kept for nothing: without a next request nobody else would.
async fn sweep(
    h1: Arc<Places<Target, h1::Pool>>,
    h2: Arc<Places<(SocketAddr, Option<Identity>), h2::Shared>>,
) {
    loop {
        tokio::time::sleep(h1::IDLE_TIMEOUT).await;
        // Clones are made under the map's lock only, so one that is alone stays so.
        h1.retain(|_, pool| !(pool.sweep() && Arc::strong_count(pool) == 1));
        h2.retain(|_, shared| !(shared.sweep() && Arc::strong_count(shared) == 1));
    }
}

/// The entry of `key`. Most are there already, and reading does not exclude readers.
fn get_or_default<K: Eq + Hash, V: Default>(map: &Places<K, V>, key: K) -> Arc<V> {
    if let Some(known) = map.get(&key) {
        return known.clone();
    }
    map.entry(key).or_default().clone()
}

pub fn watch_peer(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY)
        .with_retries(3);
    let watched = socket
        .set_tcp_keepalive(&probes)
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)));
    if let Err(error) = watched {
        tracing::debug!(%error, "a vanished peer will be noticed late");
    }
}
