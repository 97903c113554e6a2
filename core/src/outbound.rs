//! The story of a connection that a local application opened.
//!
//! Where did it want to go → what does it speak → which endpoint → over mTLS if
//! that endpoint is in the mesh → relay. HTTP is balanced for each request, opaque
//! bytes once.

use crate::balance::{self, Endpoint, InFlight};
use crate::capture::{Direction, OrigDst};
use crate::detect::Protocol;
use crate::directory::{Destination, Occupant, Transport};
use crate::http::{self as message, Body, Timeout};
use crate::local::Local;
use crate::telemetry::connections::{Connection, Kind, Opened};
use crate::telemetry::{Failure, Peer};
use crate::upstream::{Io, Target, UpstreamError};
use ::http::Response;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;

mod request;
mod routed;

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

/// An answer, and who gave it, if it was not the proxy.
type Answered = (Response<Body>, Option<(InFlight, Target)>);

/// Endpoints asked one after the other.
struct Attempts<'a> {
    outbound: &'a Outbound,
    to: &'a Destination,
    left: usize,
    /// Who could not be reached just now.
    avoid: Option<Arc<Endpoint>>,
}

impl<'a> Attempts<'a> {
    fn of(outbound: &'a Outbound, to: &'a Destination, avoid: Option<Arc<Endpoint>>) -> Self {
        Self {
            outbound,
            to,
            left: ATTEMPTS,
            avoid,
        }
    }

    fn next(&mut self) -> Result<(InFlight, Target), UpstreamError> {
        loop {
            let flight = pick(self.to, self.avoid.as_deref())?;
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
        if self.left == 0 || !has_others(self.to) {
            return Err(error);
        }
        Ok(())
    }
}

impl Outbound {
    async fn opaque(&self, mut client: impl Io) {
        match self.open(&self.destination, false).await {
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
    async fn open(
        &self,
        to: &Destination,
        http1: bool,
    ) -> Result<(Box<dyn Io>, InFlight, Target), UpstreamError> {
        let mut attempts = Attempts::of(self, to, None);
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

    /// The service that was asked for, as a label.
    fn service(&self) -> &str {
        match &self.destination {
            Destination::Service(port) => &port.service,
            Destination::Address(_) | Destination::OutOfReach(_) => "none",
        }
    }

    fn count_timeout(&self, which: Timeout) {
        let metrics = &self.local.shared.metrics;
        metrics.timed_out(&self.local.name, self.service(), which.as_str());
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
}

fn pick(to: &Destination, avoid: Option<&Endpoint>) -> Result<InFlight, UpstreamError> {
    match to {
        Destination::Address(endpoint) => Ok(endpoint.begin()),
        Destination::OutOfReach(address) => Err(UpstreamError::OutOfReach(*address)),
        Destination::Service(port) => {
            balance::pick(&port.endpoints(), avoid).ok_or(UpstreamError::NoEndpoints)
        }
    }
}

fn has_others(to: &Destination) -> bool {
    match to {
        Destination::Address(_) | Destination::OutOfReach(_) => false,
        Destination::Service(port) => port.endpoints().len() > 1,
    }
}
