//! The story of a connection to a local application.
//!
//! From the mesh: mTLS, then who is it, then for each HTTP/2 stream: is it for this
//! workload, is it a tunnel or a request, deliver. From outside the mesh: is
//! plaintext allowed, what does it speak, deliver.

use crate::capture::{Direction, INBOUND_PORT, MESH_PORT, OUTBOUND_PORT, OrigDst};
use crate::detect::Protocol;
use crate::directory::Mtls;
use crate::http::limits::{CONNECTION_WINDOW, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::http::{self as message, Body};
use crate::identity::{Identity, peer_identity};
use crate::local::Local;
use crate::telemetry::{Failure, Peer, RequestLine, at_end};
use crate::upstream::{Io, Target, Tunnel, UpstreamError, send_body, watch_peer};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

const DIRECTION: Direction = Direction::Inbound;

/// A peer that opened a connection must have finished its handshake by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A meshed peer's connection.
pub(crate) async fn mesh(local: Arc<Local>, stream: TcpStream, client: SocketAddr) {
    let certificate = match local.certificate().await {
        Ok(certificate) => certificate,
        Err(error) => return local.failed(DIRECTION, error.failure(), &error),
    };
    watch_peer(&stream);
    let handshake = TlsAcceptor::from(certificate.server()).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let reason = format!("mTLS from {client}: {error}");
            return local.failed(DIRECTION, Failure::Handshake, &reason);
        }
        Err(_) => {
            let reason = format!("mTLS from {client}: timed out");
            return local.failed(DIRECTION, Failure::Handshake, &reason);
        }
    };
    let (peer, valid_for) = match peer_identity(stream.get_ref().1) {
        Ok(known) => known,
        Err(error) => return local.failed(DIRECTION, Failure::Identity, &error),
    };
    if let Err(reason) = comes_from(&local, client, &peer) {
        return local.failed(DIRECTION, Failure::Identity, &reason);
    }
    let inbound = Arc::new(Inbound {
        name: peer.short().into(),
        peer: Some(peer),
        local,
        client,
    });
    if let Err(error) = streams(&inbound, stream, valid_for).await {
        tracing::debug!(%client, %error, "mesh connection");
    }
}

/// Whoever stole a certificate cannot use it from another workload's address.
fn comes_from(local: &Local, client: SocketAddr, peer: &Identity) -> Result<(), String> {
    match local.shared.directory.at(client.ip().to_canonical()) {
        Some(known) if known.identity != *peer => Err(format!(
            "{client} is {}, and says that it is {peer}",
            known.identity
        )),
        _ => Ok(()),
    }
}

/// A connection takes new streams while what was checked when it was made is true.
async fn streams(
    inbound: &Arc<Inbound>,
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    valid_for: Duration,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream)
        .await?;
    let local = &inbound.local;
    let mut directory = local.shared.directory.version();
    let mut own = local.watch_identity();
    let mut expired = pin!(tokio::time::sleep(valid_for));
    let mut draining = false;
    loop {
        tokio::select! {
            next = connection.accept() => match next {
                Some(Ok((request, respond))) => {
                    let stream = inbound.clone().stream(request, respond);
                    let cancel = local.cancel.clone();
                    let stream = cancel.run_until_cancelled_owned(stream);
                    local.tasks.spawn(stream);
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = directory.changed() => {
                if let Some(peer) = &inbound.peer
                    && let Err(reason) = comes_from(local, inbound.client, peer)
                {
                    local.failed(DIRECTION, Failure::Identity, &reason);
                    return Ok(());
                }
            }
            () = local.drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            _ = own.changed(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = expired.as_mut(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// A connection that did not come through the mesh.
pub(crate) async fn plaintext(local: Arc<Local>, stream: TcpStream, client: SocketAddr) {
    let to = match local.kernel.original_dst(&stream, DIRECTION) {
        Ok(to) => to,
        Err(error) => return local.failed(DIRECTION, Failure::OriginalDestination, &error),
    };
    if let Err(error) = local.discovered().await {
        return local.failed(DIRECTION, error.failure(), &error);
    }
    let itself = local.shared.directory.workload(&local.name);
    // Not known any more is not permissive.
    if itself.is_none_or(|itself| itself.mtls == Mtls::Strict) {
        let reason = format!("plaintext from {client} to {to}: mTLS is strict");
        local.failed(DIRECTION, Failure::Plaintext, &reason);
        crate::relay::Abort::abort(&mut { stream });
        return;
    }
    let inbound = Arc::new(Inbound {
        name: "unmeshed".into(),
        peer: None,
        local,
        client,
    });
    let Ok(destination) = inbound.check(to.0) else {
        let reason = format!("{to} from {client} is not for this workload");
        return inbound.local.failed(DIRECTION, Failure::NotLocal, &reason);
    };
    let directory = &inbound.local.shared.directory;
    let hint = directory.protocol(OrigDst(destination), &directory.resolve(to));
    let detected = match inbound.local.detect(stream, hint, DIRECTION).await {
        Ok(detected) => detected,
        Err(error) => return tracing::debug!(%client, %to, %error, "client went away"),
    };
    inbound
        .deliver(destination, detected.protocol, detected.io)
        .await;
}

struct Inbound {
    local: Arc<Local>,
    /// Who it is, over mTLS.
    peer: Option<Identity>,
    /// Who it is, as a label.
    name: Arc<str>,
    client: SocketAddr,
}

impl Inbound {
    /// One stream of a mesh connection: a tunnel or a request.
    async fn stream(
        self: Arc<Self>,
        mut request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        if request.method() == Method::CONNECT {
            return self.tunnel(request, respond).await;
        }
        let grpc = message::is_grpc(&request);
        let named = request.headers().get(message::DESTINATION);
        let mut answer = match self.destination(named.and_then(|value| value.to_str().ok())) {
            Ok(to) => {
                if let Some(peer) = &self.peer {
                    message::for_application(&mut request, peer);
                }
                let request = request.map(Body::from);
                let send = async |request, target: &Target| self.send(request, target).await;
                let answered = self.request(request, to, Protocol::Http2, send);
                tokio::select! {
                    answer = answered => answer,
                    // The client gave up; so does whoever works for it.
                    _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
                }
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                message::failure(&error, grpc)
            }
        };
        message::response(&mut answer, ::http::Version::HTTP_2);
        let (parts, body) = answer.into_parts();
        let bodiless = http_body::Body::is_end_stream(&body);
        let sent = respond.send_response(Response::from_parts(parts, ()), bodiless);
        match sent {
            Ok(_) if bodiless => {}
            Ok(stream) => {
                if let Err(error) = send_body(body, stream).await {
                    tracing::debug!(client = %self.client, %error, "response body");
                }
            }
            Err(error) => tracing::debug!(client = %self.client, %error, "response"),
        }
    }

    /// HBONE: the authority names the address, the bytes are the application's.
    async fn tunnel(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let named = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        let http1 = request
            .headers()
            .get(message::APP_PROTOCOL)
            .is_some_and(|inside| inside == "http/1.1");
        let destination = match self.destination(named) {
            Ok(destination) => destination,
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                let _ = respond.send_response(refusal(&error), true);
                return;
            }
        };
        if http1 {
            let Ok(stream) = respond.send_response(Response::new(()), false) else {
                return;
            };
            let tunnel = Tunnel::new(stream, request.into_body());
            return self.serve(destination, Protocol::Http1, tunnel).await;
        }
        // "200" says that the application took the connection.
        match self.open(destination).await {
            Ok(server) => {
                let Ok(stream) = respond.send_response(Response::new(()), false) else {
                    return;
                };
                let tunnel = Tunnel::new(stream, request.into_body());
                let ends = (self.client, destination);
                self.local
                    .join(DIRECTION, ends, self.peer(), tunnel, server)
                    .await;
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                let _ = respond.send_response(refusal(&error), true);
            }
        }
    }

    async fn deliver(
        self: Arc<Self>,
        to: SocketAddr,
        protocol: Protocol,
        mut client: impl Io + 'static,
    ) {
        if protocol != Protocol::Opaque {
            return self.serve(to, protocol, client).await;
        }
        match self.open(to).await {
            Ok(server) => {
                self.local
                    .join(DIRECTION, (self.client, to), self.peer(), client, server)
                    .await
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                client.abort();
            }
        }
    }

    async fn serve(self: Arc<Self>, to: SocketAddr, protocol: Protocol, client: impl Io + 'static) {
        let drain = self.local.drain.clone();
        let address = self.client;
        let handle = move |request| self.clone().plain_request(request, to, protocol);
        if let Err(error) = message::serve(client, protocol, &drain, handle).await {
            tracing::debug!(client = %address, %to, %error, "client connection");
        }
    }

    /// A request that came as the application will see it.
    async fn plain_request(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Response<Body> {
        let version = request.version();
        if request.method() == Method::CONNECT {
            let error = UpstreamError::ConnectMethod;
            self.local.failed(DIRECTION, error.failure(), &error);
            return message::failure(&error, false);
        }
        message::for_plaintext(&mut request, to);
        if let Some(peer) = &self.peer {
            message::name_client(&mut request, peer);
        }
        let mut response = if message::is_upgrade(&request) {
            let upstreams = &self.local.upstreams;
            let send = async |request, target: &Target| {
                upstreams
                    .upgrade(self.open(target.address).await?, request)
                    .await
            };
            self.request(request, to, protocol, send).await
        } else {
            let send = async |request, target: &Target| self.send(request, target).await;
            self.request(request.map(Body::from), to, protocol, send)
                .await
        };
        message::response(&mut response, version);
        response
    }

    /// Asks the application, and tells of it when the answer is over.
    async fn request<B>(
        &self,
        request: Request<B>,
        to: SocketAddr,
        protocol: Protocol,
        send: impl AsyncFnOnce(Request<B>, &Target) -> Result<Response<Body>, UpstreamError>,
    ) -> Response<Body> {
        let started = Instant::now();
        let log = &self.local.shared.log;
        let line = log.is_on().then(|| {
            let workload = &self.local.name;
            RequestLine::new(DIRECTION, workload, self.client, &request, protocol, to)
                .reached(to, &self.peer())
        });
        let grpc = message::is_grpc(&request);
        let response = match send(request, &Target::plaintext(to)).await {
            Ok(response) => response,
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                message::failure(&error, grpc)
            }
        };
        let meters = self.local.meters(DIRECTION, self.peer());
        let status = response.status();
        let log = log.clone();
        let ended = at_end(move || {
            meters.response(status, started.elapsed());
            if let Some(line) = line {
                log.request(&line, status, started.elapsed());
            }
        });
        response.map(|body| body.until_end(ended))
    }

    async fn send(
        &self,
        request: Request<Body>,
        target: &Target,
    ) -> Result<Response<Body>, UpstreamError> {
        let upstreams = &self.local.upstreams;
        let version = request.version();
        let place = upstreams.reserve(target, version, no_certificate).await?;
        upstreams.send(place, target, request, no_certificate).await
    }

    async fn open(&self, to: SocketAddr) -> Result<Box<dyn Io>, UpstreamError> {
        self.local
            .upstreams
            .open(&Target::plaintext(to), false, no_certificate)
            .await
    }

    fn peer(&self) -> Peer {
        Peer {
            name: self.name.clone(),
            tls: self.peer.is_some(),
        }
    }

    /// The address a peer named, if this proxy may deliver there.
    fn destination(&self, named: Option<&str>) -> Result<SocketAddr, UpstreamError> {
        let named = named.unwrap_or("a stream without a destination");
        let parsed: SocketAddr = named
            .parse()
            .map_err(|_| UpstreamError::NotLocal(named.to_owned()))?;
        self.check(parsed)
    }

    /// A peer may ask for this workload's own addresses, and never for the proxy.
    fn check(&self, to: SocketAddr) -> Result<SocketAddr, UpstreamError> {
        let to = crate::capture::canonical(to);
        let itself = self.local.shared.directory.workload(&self.local.name);
        let own = itself.is_some_and(|itself| itself.addresses.contains(&to.ip()));
        let proxy = [OUTBOUND_PORT, INBOUND_PORT, MESH_PORT].contains(&to.port());
        if own && !proxy {
            Ok(to)
        } else {
            Err(UpstreamError::NotLocal(to.to_string()))
        }
    }
}

/// The application is reached in plaintext, inside its own network.
async fn no_certificate() -> Result<Arc<crate::identity::Certificate>, UpstreamError> {
    unreachable!("a plaintext target asks for no certificate")
}

fn refusal(error: &UpstreamError) -> Response<()> {
    message::failure(error, false).map(|_| ())
}
