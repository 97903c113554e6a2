//! The story of a connection to a local application.
//!
//! From the mesh: mTLS, then who is it, then for each HTTP/2 stream: is it for this
//! workload, is it a tunnel or a request, is it admitted, deliver. From outside the
//! mesh: is plaintext allowed, what does it speak, is that admitted, deliver.

use crate::admission::{self, Admitted, Client, Foreseen, foresee, is_connect_probe, is_probed};
use crate::batch::{ReadAhead, batched};
use crate::capture::{Direction, INBOUND_PORT, MESH_PORT, OUTBOUND_PORT, OrigDst};
use crate::detect::{Detected, Protocol, detect};
use crate::directory::Mtls;
use crate::http::HEADER_TIMEOUT;
use crate::http::limits::{CONNECTION_WINDOW, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::http::{self as message, Body};
use crate::identity::{Identity, Standing, explain_handshake};
use crate::limits::UnderWay;
use crate::local::Local;
use crate::rarely::{rarely, until};
use crate::telemetry::connections::{Connection, Counted, Entry, Kind, Opened, Transport};
use crate::telemetry::{Failure, Meters, Peer, RequestLine, at_end};
use crate::upstream::{Form, Io, Target, Tunnel, UpstreamError, send_body, watch_peer};
use ::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use h2::RecvStream;
use h2::server::SendResponse;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const DIRECTION: Direction = Direction::Inbound;

/// A peer that opened a connection must have finished its handshake by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may be silent before its first request, where only requests are
/// admitted: as long as between two of them.
const SILENCE: Duration = HEADER_TIMEOUT;
/// A probe that only connects must have closed its connection by then; a kubelet does
/// so at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A meshed peer's connection.
pub(crate) async fn mesh(local: Arc<Local>, stream: TcpStream, client: SocketAddr) {
    let certificate = match local.certificate().await {
        Ok(certificate) => certificate,
        Err(error) => return local.failed(DIRECTION, error.failure(), &error),
    };
    watch_peer(&stream);
    let handshake = TlsAcceptor::from(certificate.server()).accept(ReadAhead::new(stream));
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let reason = format!("mTLS from {client}: {}", explain_handshake(&error));
            return local.failed(DIRECTION, Failure::Handshake, &reason);
        }
        Err(_) => {
            let reason = format!("mTLS from {client}: timed out");
            return local.failed(DIRECTION, Failure::Handshake, &reason);
        }
    };
    let (peer, standing) = match certificate.client_of(stream.get_ref().1) {
        Ok(known) => known,
        Err(error) => return local.failed(DIRECTION, Failure::Identity, &error),
    };
    if let Err(reason) = comes_from(&local, client, &peer) {
        return local.failed(DIRECTION, Failure::Identity, &reason);
    }
    local.is_addressed().await;
    let Ok(own) = stream.get_ref().0.get_ref().local_addr() else {
        return;
    };
    let entry = open(&local, Kind::Mesh, client, own);
    let connection = entry.connection().clone();
    connection.between(Some(&peer), Transport::Mtls);
    connection.speaks(Protocol::Http2);
    let inbound = Arc::new(Inbound {
        name: peer.short().into(),
        client_id: message::client_id(&peer),
        who: Client::new(Some(peer), client),
        local,
        client,
        connection,
        meters: OnceLock::new(),
    });
    if let Err(error) = streams(&inbound, entry.client(stream), &standing).await {
        tracing::debug!(%client, %error, "mesh connection");
    }
}

/// As it is listed.
fn open(local: &Local, kind: Kind, client: SocketAddr, destination: SocketAddr) -> Entry {
    local.shared.connections.open(Opened {
        kind,
        direction: DIRECTION,
        workload: &local.name,
        client,
        destination: crate::capture::canonical(destination),
    })
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

/// What may change while a connection stands.
enum News {
    /// Who is where.
    Directory,
    /// It takes no new streams any more.
    Drain,
}

/// A connection takes new streams while what was checked when it was made is true.
async fn streams(
    inbound: &Arc<Inbound>,
    stream: Counted<TlsStream<ReadAhead<TcpStream>>>,
    standing: &Standing,
) -> Result<(), h2::Error> {
    let window = inbound.local.tenant.window(CONNECTION_WINDOW);
    let (stream, flush) = batched(stream);
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window.bytes())
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream)
        .await?;
    let local = &inbound.local;
    let mut directory = local.shared.directory.version();
    let mut own = local.watch_identity();
    let mut expired = pin!(standing.ended());
    let mut draining = false;
    loop {
        // Streams are begun here, so that the others are looked at once for many of them.
        let carried = poll_fn(|cx| {
            flush.poll(cx, |cx| {
                while let Some(accepted) = ready!(connection.poll_accept(cx)) {
                    let (request, respond) = accepted?;
                    inbound.connection.request();
                    let inbound = inbound.clone();
                    // Boxed: whatever it is wrapped in has room for it several times, and each
                    // of the two takes what it needs.
                    let stream: Pin<Box<dyn Future<Output = ()> + Send>> =
                        if request.method() == Method::CONNECT {
                            // Whoever waits for its application hears of nothing else.
                            let cut = local.cancel.clone().cancelled_owned();
                            Box::pin(until(cut, inbound.tunnel(request, respond)).map(drop))
                        } else {
                            let request = Box::new(request.map(Body::from));
                            Box::pin(inbound.stream(request, respond))
                        };
                    // What cuts the connection ends a request too, which hears of it from h2.
                    local.tasks.spawn(local.tenant.share().of(stream));
                }
                Poll::Ready(Ok(()))
            })
        });
        let news = rarely(async {
            tokio::select! {
                _ = directory.changed() => News::Directory,
                () = local.drain.cancelled(), if !draining => News::Drain,
                _ = own.changed(), if !draining => News::Drain,
                () = expired.as_mut(), if !draining => News::Drain,
            }
        });
        tokio::select! {
            biased;
            ended = carried => return ended,
            news = news => match news {
                News::Directory => {
                    if let Some(peer) = &inbound.who.peer
                        && let Err(reason) = comes_from(local, inbound.client, peer)
                    {
                        local.failed(DIRECTION, Failure::Identity, &reason);
                        return Ok(());
                    }
                }
                News::Drain => {
                    draining = true;
                    connection.graceful_shutdown();
                }
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
    let entry = open(&local, Kind::Client, client, to.0);
    let connection = entry.connection().clone();
    connection.between(None, Transport::Plaintext);
    if let Err(error) = local.discovered().await {
        return local.failed(DIRECTION, error.failure(), &error);
    }
    local.is_addressed().await;
    let itself = local.itself();
    let probed = itself.as_ref().is_some_and(|one| is_probed(one, to.0));
    // Not known any more is not permissive.
    if itself.is_none_or(|itself| itself.mtls == Mtls::Strict && !probed) {
        let reason = format!("plaintext from {client} to {to}: mTLS is strict");
        local.failed(DIRECTION, Failure::Plaintext, &reason);
        crate::relay::Abort::abort(&mut { stream });
        return;
    }
    let inbound = Arc::new(Inbound {
        name: "unmeshed".into(),
        client_id: None,
        who: Client::new(None, client),
        local,
        client,
        connection,
        meters: OnceLock::new(),
    });
    let Ok(destination) = inbound.check(to.0) else {
        let reason = format!("{to} from {client} is not for this workload");
        return inbound.local.failed(DIRECTION, Failure::NotLocal, &reason);
    };
    let directory = &inbound.local.shared.directory;
    let hint = directory.protocol(OrigDst(destination), &directory.resolve(to));
    let foreseen = foresee(&inbound.local, &inbound.who, destination);
    // Where opaque bytes would be refused it is a probe, or nothing.
    let hint =
        hint.filter(|hint| *hint != Protocol::Opaque || foreseen == Foreseen::Admitted || !probed);
    let stream = entry.client(stream);
    let detected = match foreseen {
        Foreseen::DependsOnRequests => detect_patiently(&inbound.local, stream, hint).await,
        _ => inbound.local.detect(stream, hint, DIRECTION).await,
    };
    let detected = match detected {
        Ok(detected) => detected,
        Err(error) => return tracing::debug!(%client, %to, %error, "client went away"),
    };
    inbound.connection.speaks(detected.protocol);
    inbound
        .deliver(destination, detected.protocol, detected.io)
        .await;
}

#[derive(Clone)]
struct Inbound {
    local: Arc<Local>,
    who: Client,
    /// Who it is, as a label.
    name: Arc<str>,
    /// Who it is, as the application is told.
    client_id: Option<HeaderValue>,
    client: SocketAddr,
    /// As it is listed.
    connection: Arc<Connection>,
    meters: OnceLock<Arc<Meters>>,
}

impl Inbound {
    /// One stream of a mesh connection that is a request.
    async fn stream(
        self: Arc<Self>,
        mut request: Box<Request<Body>>,
        mut respond: SendResponse<Bytes>,
    ) {
        let grpc = message::is_grpc(&request);
        let named = request.headers().get(message::DESTINATION);
        let destination = message::well_formed(&request)
            .map_err(UpstreamError::Malformed)
            .and_then(|()| self.destination(named.and_then(|value| value.to_str().ok())));
        let mut answer = match destination {
            Ok(to) => {
                if self.who.peer.is_some() {
                    message::for_application(&mut request, self.client_id.as_ref());
                }
                let mut answered = pin!(self.request(request, to, Protocol::Http2));
                tokio::select! {
                    biased;
                    answer = answered.as_mut() => answer,
                    // The client gave up; so does whoever works for it.
                    _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
                }
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                message::failure(&error, grpc)
            }
        };
        message::answer_for_mesh(&mut answer);
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
            let (inside, tunnel) = self.inside(destination, tunnel);
            inside.connection.speaks(Protocol::Http1);
            // Boxed, as is the next, so that bytes alone take less.
            return Box::pin(inside.serve(destination, Protocol::Http1, tunnel)).await;
        }
        if self.must_look_into(destination) {
            let Ok(stream) = respond.send_response(Response::new(()), false) else {
                return;
            };
            let tunnel = Tunnel::new(stream, request.into_body());
            let (inside, tunnel) = self.inside(destination, tunnel);
            return Box::pin(inside.look_into(destination, tunnel)).await;
        }
        // "200" says that the application took the connection.
        match self.open_admitted(destination).await {
            Ok((server, admitted)) => {
                let Ok(stream) = respond.send_response(Response::new(()), false) else {
                    return;
                };
                let tunnel = Tunnel::new(stream, request.into_body());
                let (inside, tunnel) = self.inside(destination, tunnel);
                inside.connection.speaks(Protocol::Opaque);
                let ends = (self.client, destination);
                self.local
                    .join(DIRECTION, ends, self.peer(), tunnel, server, Some(admitted))
                    .await;
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                let _ = respond.send_response(refusal(&error), true);
            }
        }
    }

    /// A tunnel is listed beside the connection that it is in.
    fn inside(&self, to: SocketAddr, tunnel: Tunnel) -> (Arc<Self>, Counted<Tunnel>) {
        let entry = open(&self.local, Kind::Tunnel, self.client, to);
        let connection = entry.connection().clone();
        connection.between(self.who.peer.as_ref(), Transport::Hbone);
        let inside = Self {
            connection,
            ..self.clone()
        };
        (Arc::new(inside), entry.client(tunnel))
    }

    /// Whether a tunnel is refused unless there are requests in it, as there are if its
    /// client was silent until detection timed out, or if its proxy only has tunnels.
    fn must_look_into(&self, to: SocketAddr) -> bool {
        let directory = &self.local.shared.directory;
        let to_it = OrigDst(to);
        foresee(&self.local, &self.who, to) == Foreseen::DependsOnRequests
            && directory.protocol(to_it, &directory.resolve(to_it)) != Some(Protocol::Opaque)
    }

    /// Nothing reaches the application until the client has said something.
    async fn look_into(self: Arc<Self>, to: SocketAddr, tunnel: impl Io + 'static) {
        match detect_patiently(&self.local, tunnel, None).await {
            Ok(detected) => {
                self.connection.speaks(detected.protocol);
                self.deliver(to, detected.protocol, detected.io).await;
            }
            Err(error) => tracing::debug!(client = %self.client, %to, %error, "client went away"),
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
        if is_connect_probe(&self.local, &self.who, to)
            && foresee(&self.local, &self.who, to) != Foreseen::Admitted
        {
            return self.connect_probe(to, client).await;
        }
        match self.open_admitted(to).await {
            Ok((server, admitted)) => {
                let ends = (self.client, to);
                self.local
                    .join(DIRECTION, ends, self.peer(), client, server, Some(admitted))
                    .await;
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                client.abort();
            }
        }
    }

    /// A kubelet connects and says nothing. Whoever says something is somebody else.
    async fn connect_probe(&self, to: SocketAddr, mut client: impl Io) {
        let read = tokio::time::timeout(PROBE_TIMEOUT, client.read(&mut [0])).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
        if let Err(error) = admission::bytes(&self.local, &self.who, to) {
            self.local.failed(DIRECTION, error.failure(), &error);
        }
        client.abort();
    }

    async fn serve(self: Arc<Self>, to: SocketAddr, protocol: Protocol, client: impl Io + 'static) {
        let (drain, tenant) = (self.local.drain.clone(), self.local.tenant.clone());
        let address = self.client;
        let handle = move |request| self.clone().plain_request(request, to, protocol);
        if let Err(error) = message::serve(client, protocol, to, &drain, &tenant, handle).await {
            tracing::debug!(client = %address, %to, %error, "client connection");
        }
    }

    /// A request that came as the application will see it.
    async fn plain_request(
        self: Arc<Self>,
        request: Request<Body>,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Response<Body> {
        let mut request = Box::new(request);
        self.connection.request();
        let version = request.version();
        if let Err(error) = message::well_formed(&request) {
            let error = UpstreamError::Malformed(error);
            self.local.failed(DIRECTION, error.failure(), &error);
            return message::malformed(&error, version);
        }
        if request.method() == Method::CONNECT {
            let error = UpstreamError::ConnectMethod;
            self.local.failed(DIRECTION, error.failure(), &error);
            return message::failure(&error, false);
        }
        message::for_plaintext(&mut request, to);
        message::name_client(&mut request, self.client_id.as_ref());
        let mut response = if message::is_upgrade(&request) {
            let send = async |request, admitted| self.upgrade(request, to, admitted).await;
            Box::pin(self.answer(request, to, protocol, send)).await
        } else {
            self.request(request, to, protocol).await
        };
        message::response(&mut response, version);
        response
    }

    async fn request(
        &self,
        request: Box<Request<Body>>,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Response<Body> {
        let send = async |mut request: Box<Request<Body>>, mut admitted: Box<Admitted>| {
            request.body_mut().while_admitted(|| admitted.clone());
            let mut response = self.send(request, &Target::plaintext(to)).await?;
            // It may have waited long.
            admitted.check()?;
            response.body_mut().while_admitted(|| admitted);
            Ok(response)
        };
        self.answer(request, to, protocol, send).await
    }

    /// The application takes the connection out of HTTP, if it will.
    async fn upgrade(
        &self,
        request: Box<Request<Body>>,
        to: SocketAddr,
        admitted: Box<Admitted>,
    ) -> Result<Response<Body>, UpstreamError> {
        let server = self.open(to).await?;
        let upstreams = &self.local.upstreams;
        upstreams.upgrade(server, *request, admitted.ended()).await
    }

    /// Asks the application, if the client may, and tells of it when the answer is over.
    async fn answer(
        &self,
        mut request: Box<Request<Body>>,
        to: SocketAddr,
        protocol: Protocol,
        send: impl AsyncFnOnce(
            Box<Request<Body>>,
            Box<Admitted>,
        ) -> Result<Response<Body>, UpstreamError>,
    ) -> Response<Body> {
        let started = Instant::now();
        let log = &self.local.shared.log;
        let line = log.is_on().then(|| {
            let workload = &self.local.name;
            let mut line =
                RequestLine::new(DIRECTION, workload, self.client, &request, protocol, to);
            line.reached(to, &self.peer());
            Box::new(line)
        });
        let grpc = message::is_grpc(&request);
        let span = self.local.shared.tracer.as_ref().and_then(|tracer| {
            // Of one from the mesh, its client's proxy has decided.
            let may_begin = self.who.peer.is_none();
            tracer.begin(DIRECTION, &self.local.name, &mut request, may_begin)
        });
        let span = span.map(|span| Box::new((span, self.peer())));
        let mut under_way = None;
        let answered = match admission::request(&self.local, &self.who, to, &request) {
            Ok(admitted) => match self.in_turn(&admitted).await {
                Ok(begun) => {
                    under_way = begun;
                    send(request, admitted).await
                }
                Err(refused) => Err(refused),
            },
            Err(refused) => Err(refused),
        };
        let response = match answered {
            Ok(mut response) => {
                message::from_application(&mut response);
                response
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                message::failure(&error, grpc)
            }
        };
        let meters = || self.local.meters(DIRECTION, self.peer());
        let meters = self.meters.get_or_init(meters).clone();
        let status = response.status();
        let log = log.clone();
        let counted = grpc.then(|| meters.clone());
        let ended = at_end(move || {
            drop(under_way);
            meters.response(status, started.elapsed());
            if let Some(span) = span {
                let (span, peer) = *span;
                span.end(status, &peer, started.elapsed());
            }
            if let Some(line) = line {
                log.request(&line, status, started.elapsed());
            }
        });
        let response = response.map(|body| body.until_end(ended));
        match counted {
            Some(counted) => message::tell_grpc_status(response, move |it| counted.grpc(it)),
            None => response,
        }
    }

    /// Waits until the workload may have one more request, and refuses what is beyond its
    /// limits. A kubelet does not wait.
    async fn in_turn(&self, admitted: &Admitted) -> Result<Option<UnderWay>, UpstreamError> {
        if !admitted.is_probe() {
            self.local.tenant.request(DIRECTION).await?;
        }
        if admitted.limits.are_none() {
            return Ok(None);
        }
        let limiter = &self.local.limiter;
        let begun = limiter.admit(&admitted.limits, &self.name, Instant::now());
        begun.inspect_err(|refused| {
            let metrics = &self.local.shared.metrics;
            metrics.refused(&self.local.name, &self.name, refused.failure().as_str());
        })
    }

    async fn send(
        &self,
        request: Box<Request<Body>>,
        target: &Target,
    ) -> Result<Response<Body>, UpstreamError> {
        let upstreams = &self.local.upstreams;
        let form = Form::of(&request);
        let place = upstreams.reserve(target, form, no_certificate).await?;
        upstreams.send(place, target, request, no_certificate).await
    }

    /// A connection to the application for opaque bytes, if the client may have one.
    async fn open_admitted(
        &self,
        to: SocketAddr,
    ) -> Result<(Box<dyn Io>, Admitted), UpstreamError> {
        let admitted = admission::bytes(&self.local, &self.who, to)?;
        Ok((self.open(to).await?, admitted))
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
            tls: self.who.peer.is_some(),
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
        let itself = self.local.itself();
        let own = itself.is_some_and(|itself| itself.addresses.contains(&to.ip()));
        let proxy = [OUTBOUND_PORT, INBOUND_PORT, MESH_PORT].contains(&to.port());
        if own && !proxy {
            Ok(to)
        } else {
            Err(UpstreamError::NotLocal(to.to_string()))
        }
    }
}

/// What a client speaks that may be silent for as long as one between two requests.
async fn detect_patiently<S: Io>(
    local: &Local,
    io: S,
    hint: Option<Protocol>,
) -> std::io::Result<Detected<S>> {
    let drained = async {
        local.drain.cancelled().await;
        // Who has only just connected is about to ask.
        tokio::time::sleep(local.shared.args.detect_timeout).await;
    };
    tokio::select! {
        detected = detect(io, hint, SILENCE) => detected,
        // Nobody has to be waited for who has asked for nothing.
        () = drained => Err(std::io::ErrorKind::ConnectionAborted.into()),
    }
}

/// The application is reached in plaintext, inside its own network.
async fn no_certificate() -> Result<Arc<crate::identity::Certificate>, UpstreamError> {
    unreachable!("a plaintext target asks for no certificate")
}

/// A head alone: with what it says of a body it would be malformed (RFC 9113 §8.1.1), and the
/// peer would see a reset instead.
fn refusal(error: &UpstreamError) -> Response<()> {
    let mut refusal = message::failure(error, false).map(|_| ());
    for of_body in [CONTENT_LENGTH, CONTENT_TYPE] {
        refusal.headers_mut().remove(of_body);
    }
    refusal
}

#[cfg(test)]
pub(crate) fn sizes_of_streams() -> [usize; 2] {
    use crate::sizes::of;
    [
        of(|inbound: Arc<Inbound>, request, respond| inbound.stream(request, respond)),
        of(|inbound: Arc<Inbound>, request, respond| inbound.tunnel(request, respond)),
    ]
}
