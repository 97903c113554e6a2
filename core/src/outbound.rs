//! The story of a connection that a local application opened.
//!
//! Where did it want to go → what does it speak → which endpoint → over mTLS if
//! that endpoint is in the mesh → relay. HTTP is balanced for each request, opaque
//! bytes once.

use crate::balance::{self, Endpoint, InFlight};
use crate::capture::{Direction, OrigDst};
use crate::detect::Protocol;
use crate::directory::{Destination, Occupant, Transport};
use crate::http::{self as message, Body};
use crate::local::Local;
use crate::telemetry::connections::{Connection, Kind, Opened};
use crate::telemetry::{Failure, Peer, RequestLine, at_end};
use crate::upstream::{Io, Place, Target, UpstreamError};
use ::http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;

const DIRECTION: Direction = Direction::Outbound;

/// Endpoints that are tried, one after the other, while nothing has been sent.
const ATTEMPTS: usize = 3;

pub(crate) async fn connection(local: Arc<Local>, stream: TcpStream, client: SocketAddr) {
    let to = match local.kernel.original_dst(&stream, DIRECTION) {
        Ok(to) => to,
        Err(error) => return local.failed(DIRECTION, Failure::OriginalDestination, &error),
    };
    let entry = local.shared.connections.open(Opened {
        kind: Kind::Client,
        direction: DIRECTION,
        workload: &local.name,
        client,
        destination: to.0,
    });
    if let Err(error) = local.discovered().await {
        return local.failed(DIRECTION, error.failure(), &error);
    }
    let mut destination = local.shared.directory.resolve(to);
    if let Destination::OutOfReach(_) = destination {
        // What a workload reaches is told together with the workload.
        local.is_known().await;
        destination = local.shared.directory.resolve(to);
    }
    let hint = local.shared.directory.protocol(to, &destination);
    let detected = match local.detect(stream, hint, DIRECTION).await {
        Ok(detected) => detected,
        Err(error) => return tracing::debug!(%client, %to, %error, "client went away"),
    };
    let connection = entry.connection().clone();
    connection.speaks(detected.protocol);
    let io = entry.client(detected.io);
    let outbound = Arc::new(Outbound {
        local,
        destination,
        client,
        to,
        connection,
    });
    match detected.protocol {
        Protocol::Opaque => outbound.opaque(io).await,
        protocol => {
            let drain = outbound.local.drain.clone();
            let handle = move |request| outbound.clone().request(request, protocol);
            if let Err(error) = message::serve(io, protocol, &drain, handle).await {
                tracing::debug!(%client, %to, %error, "client connection");
            }
        }
    }
}

struct Outbound {
    local: Arc<Local>,
    destination: Destination,
    client: SocketAddr,
    to: OrigDst,
    /// As it is listed.
    connection: Arc<Connection>,
}

/// Endpoints asked one after the other.
struct Attempts<'a> {
    outbound: &'a Outbound,
    left: usize,
    /// Who could not be reached just now.
    avoid: Option<Arc<Endpoint>>,
}

impl<'a> Attempts<'a> {
    fn of(outbound: &'a Outbound) -> Self {
        Self {
            outbound,
            left: ATTEMPTS,
            avoid: None,
        }
    }

    fn next(&mut self) -> Result<(InFlight, Target), UpstreamError> {
        loop {
            let flight = self.outbound.pick(self.avoid.as_deref())?;
            match self.outbound.target(flight.endpoint()) {
                Ok(target) => return Ok((flight, target)),
                Err(error) => self.failed(&flight, error)?,
            }
        }
    }

    /// Gives `error` back if there is nobody else to be asked.
    fn failed(&mut self, flight: &InFlight, error: UpstreamError) -> Result<(), UpstreamError> {
        if !error.is_unsent() {
            return Err(error);
        }
        flight.unreached();
        self.avoid = Some(flight.endpoint().clone());
        self.left -= 1;
        if self.left == 0 || !self.outbound.has_others() {
            return Err(error);
        }
        Ok(())
    }
}

impl Outbound {
    async fn opaque(&self, mut client: impl Io) {
        match self.open(false).await {
            Ok((server, flight, target)) => {
                let ends = (self.client, target.address);
                let peer = self.peer(flight.endpoint(), &target);
                self.connection.reached(flight.endpoint(), &target, true);
                self.local
                    .join(DIRECTION, ends, peer, client, server, None)
                    .await;
            }
            Err(error) => {
                self.local.failed(DIRECTION, error.failure(), &error);
                client.abort();
            }
        }
    }

    /// A connection to the first endpoint that takes one.
    async fn open(&self, http1: bool) -> Result<(Box<dyn Io>, InFlight, Target), UpstreamError> {
        let mut attempts = Attempts::of(self);
        loop {
            let (flight, target) = attempts.next()?;
            let certificate = async || self.local.certificate().await;
            match self.local.upstreams.open(&target, http1, certificate).await {
                Ok(server) => {
                    flight.answered();
                    flight.judged(true);
                    return Ok((server, flight, target));
                }
                Err(error) => attempts.failed(&flight, error)?,
            }
        }
    }

    /// A place on a connection to the first endpoint that takes one.
    async fn reserve(&self, version: Version) -> Result<(Place, InFlight, Target), UpstreamError> {
        let mut attempts = Attempts::of(self);
        loop {
            let (flight, target) = attempts.next()?;
            let certificate = async || self.local.certificate().await;
            let upstreams = &self.local.upstreams;
            match upstreams.reserve(&target, version, certificate).await {
                Ok(place) => return Ok((place, flight, target)),
                Err(error) => attempts.failed(&flight, error)?,
            }
        }
    }

    async fn request(
        self: Arc<Self>,
        request: Request<Incoming>,
        protocol: Protocol,
    ) -> Response<Body> {
        let started = Instant::now();
        self.connection.request();
        let version = request.version();
        let local = self.local.clone();
        let log = &local.shared.log;
        let mut line = log.is_on().then(|| self.line(&request, protocol));
        let grpc = message::is_grpc(&request);

        let (mut response, peer, flight) = match self.forward(request).await {
            Ok((response, flight, target)) => {
                let peer = self.peer(flight.endpoint(), &target);
                line = line.map(|line| line.reached(flight.endpoint().address, &peer));
                (response, peer, Some(flight))
            }
            Err(error) => {
                local.failed(DIRECTION, error.failure(), &error);
                (message::failure(&error, grpc), self.unreached(), None)
            }
        };
        message::response(&mut response, version);
        let meters = local.meters(DIRECTION, peer);
        let status = response.status();
        let log = log.clone();
        let ended = at_end(move || {
            drop(flight);
            meters.response(status, started.elapsed());
            if let Some(line) = line {
                log.request(&line, status, started.elapsed());
            }
        });
        response.map(|body| body.until_end(ended))
    }

    /// Sends the request to the first endpoint that takes it.
    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<(Response<Body>, InFlight, Target), UpstreamError> {
        if request.method() == Method::CONNECT {
            return Err(UpstreamError::ConnectMethod);
        }
        let upstreams = &self.local.upstreams;
        if message::is_upgrade(&request) {
            let (server, flight, target) = self.open(true).await?;
            self.connection.reached(flight.endpoint(), &target, true);
            message::for_plaintext(&mut request, target.address);
            let response = upstreams
                .upgrade(server, request, std::future::pending())
                .await?;
            return Ok((response, flight, target));
        }
        let (place, flight, target) = self.reserve(request.version()).await?;
        self.connection.reached(flight.endpoint(), &target, false);
        let mut request = request.map(Body::from);
        if target.native_http {
            message::for_mesh(&mut request, target.address);
        } else {
            message::for_plaintext(&mut request, target.address);
        }
        let grpc = message::is_grpc(&request);
        let certificate = async || self.local.certificate().await;
        let sent = upstreams.send(place, &target, request, certificate).await;
        Ok((judge(&flight, sent, grpc)?, flight, target))
    }

    fn pick(&self, avoid: Option<&Endpoint>) -> Result<InFlight, UpstreamError> {
        match &self.destination {
            Destination::Address(endpoint) => Ok(endpoint.begin()),
            Destination::OutOfReach(address) => Err(UpstreamError::OutOfReach(*address)),
            Destination::Service(port) => {
                balance::pick(&port.endpoints(), avoid).ok_or(UpstreamError::NoEndpoints)
            }
        }
    }

    fn has_others(&self) -> bool {
        match &self.destination {
            Destination::Address(_) | Destination::OutOfReach(_) => false,
            Destination::Service(port) => port.endpoints().len() > 1,
        }
    }

    /// How an endpoint is reached. If it names a workload that discovery does not
    /// know, nobody can say whether it is in the mesh, so it is not reached at all.
    fn target(&self, endpoint: &Endpoint) -> Result<Target, UpstreamError> {
        let address = endpoint.address;
        let directory = &self.local.shared.directory;
        let workload = match &endpoint.workload {
            Some(name) => directory
                .workload(name)
                .ok_or_else(|| UpstreamError::Unknown(name.clone()))?,
            // It may have joined the mesh since the connection was accepted.
            None => match directory.occupant(address.ip()) {
                Occupant::Workload(workload) => workload,
                Occupant::Hidden => return Err(UpstreamError::OutOfReach(address)),
                Occupant::Outsider => return Ok(Target::plaintext(address)),
            },
        };
        Ok(match workload.transport {
            Transport::Plaintext => Target::plaintext(address),
            transport => Target::mesh(address, workload.identity.clone(), transport),
        })
    }

    fn peer(&self, endpoint: &Endpoint, target: &Target) -> Peer {
        let name = match &endpoint.workload {
            Some(workload) => workload.to_string().into(),
            None => "external".into(),
        };
        Peer {
            name,
            tls: target.peer.is_some(),
        }
    }

    /// The label of a request that reached no endpoint.
    fn unreached(&self) -> Peer {
        Peer {
            name: match &self.destination {
                Destination::Service(port) => port.service.as_str().into(),
                Destination::OutOfReach(_) => "unknown".into(),
                Destination::Address(endpoint) => match &endpoint.workload {
                    Some(workload) => workload.to_string().into(),
                    None => "external".into(),
                },
            },
            tls: false,
        }
    }

    fn line(&self, request: &Request<Incoming>, protocol: Protocol) -> RequestLine {
        RequestLine::new(
            DIRECTION,
            &self.local.name,
            self.client,
            request,
            protocol,
            self.to.0,
        )
    }
}

/// Tells the balancer of what became of a request.
fn judge(
    flight: &InFlight,
    sent: Result<Response<Body>, UpstreamError>,
    grpc: bool,
) -> Result<Response<Body>, UpstreamError> {
    match &sent {
        // Its proxy answers quickly that nobody is there; that is no merit.
        Ok(response) if message::is_failure(response) => flight.unreached(),
        Err(error) if error.is_unsent() => flight.unreached(),
        Err(_) => {
            flight.answered();
            flight.judged(false);
        }
        Ok(response) => {
            flight.answered();
            match message::verdict(response, grpc) {
                message::Verdict::Succeeded => flight.judged(true),
                message::Verdict::Failed => flight.judged(false),
                message::Verdict::InTrailers => {
                    let verdict = flight.verdict();
                    return sent
                        .map(|response| response.map(|body| body.on_end(in_trailers(verdict))));
                }
            }
        }
    }
    sent
}

/// A stream that the client ended says nothing.
fn in_trailers(verdict: balance::Verdict) -> impl FnOnce(message::End<'_>) {
    move |end| {
        let failed = match end {
            message::End::Failed => true,
            message::End::Whole(trailers) => {
                let status = trailers.and_then(message::grpc_status);
                status.is_some_and(message::blames_server)
            }
        };
        verdict.judged(!failed);
    }
}
