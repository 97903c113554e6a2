//! The story of a connection that a local application opened.
//!
//! Where did it want to go → what does it speak → which endpoint → over mTLS if
//! that endpoint is in the mesh → relay. HTTP is balanced for each request, opaque
//! bytes once.

use crate::balance::{Endpoint, InFlight, Place};
use crate::capture::{Direction, OrigDst};
use crate::detect::{Protocol, Replay, first_word};
use crate::directory::{Destination, Occupant, Transport, Workload};
use crate::http::{self as message, Body, Timeout};
use crate::local::Local;
use crate::telemetry::connections::{Connection, Kind, Opened};
use crate::telemetry::{Failure, Meters, Peer};
use crate::upstream::{Io, Target, UpstreamError};
use ::http::Response;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod mirror;
mod request;
mod routed;

const DIRECTION: Direction = Direction::Outbound;

/// Endpoints whose series a connection has at hand.
const MET: usize = 8;

/// Endpoints that are tried, one after the other, while nothing has been sent.
const ATTEMPTS: usize = 3;
/// A server whose client has gone without a word must have hung up by then.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn connection(local: Arc<Local>, stream: TcpStream, client: SocketAddr) {
    let to = match local.kernel.original_dst(&stream, DIRECTION) {
        Ok(to) => to,
        Err(error) => return local.failed(DIRECTION, Failure::OriginalDestination, &error),
    };
    let client = local.kernel.client(client);
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
    let connection = entry.connection().clone();
    let detected = match local.detect(entry.client(stream), hint, DIRECTION).await {
        Ok(detected) => detected,
        Err(error) => return tracing::debug!(%client, %to, %error, "client went away"),
    };
    let outbound = Arc::new(Outbound {
        local,
        destination,
        client,
        to,
        connection,
        met: Mutex::default(),
    });
    let begun = match detected.is_silent() {
        // Boxed, so that what few connections need makes none of them larger.
        true => Box::pin(outbound.silent(detected.io)).await,
        false => Some((detected.protocol, detected.io)),
    };
    if let Some((protocol, io)) = begun {
        outbound.spoken(protocol, io).await;
    }
}

struct Outbound {
    local: Arc<Local>,
    destination: Destination,
    client: SocketAddr,
    to: OrigDst,
    /// As it is listed.
    connection: Arc<Connection>,
    met: Mutex<SmallVec<[Met; 2]>>,
}

/// An endpoint that requests reached, and their series, so that labels are made once.
struct Met {
    endpoint: Arc<Endpoint>,
    tls: bool,
    meters: Arc<Meters>,
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
            let flight = self.outbound.pick(self.to, self.avoid.as_deref())?;
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
    async fn spoken(self: Arc<Self>, protocol: Protocol, mut io: impl Io + 'static) {
        if protocol == Protocol::Opaque {
            return match self.open(&self.destination, false).await {
                Ok((server, flight, target)) => self.join(io, server, flight, target).await,
                Err(error) => self.unopened(&mut io, &error),
            };
        }
        self.connection.speaks(protocol);
        let (client, to) = (self.client, self.to);
        let drain = self.local.drain.clone();
        let tenant = self.local.tenant.clone();
        let handle = move |request| self.clone().request(request, protocol);
        if let Err(error) = message::serve(io, protocol, to.0, &drain, &tenant, handle).await {
            tracing::debug!(%client, %to, %error, "client connection");
        }
    }

    /// The server may be the one to speak, so it is connected to. If the client does, it
    /// had its connection ready for a request, which is balanced as any other: bound to
    /// one endpoint, it would fail with that.
    /// It is given back if it speaks HTTP after all.
    async fn silent<C: Io>(&self, mut client: Replay<C>) -> Option<(Protocol, Replay<C>)> {
        let (server, flight, target) = match self.open(&self.destination, false).await {
            Ok(opened) => opened,
            Err(error) => {
                self.unopened(&mut client, &error);
                return None;
            }
        };
        let patience = self.local.shared.args.detect_timeout;
        match first_word(client, server, patience).await {
            Ok((Protocol::Opaque, client, server)) => {
                self.join(client, server, flight, target).await;
                None
            }
            Ok((protocol, client, unused)) => {
                self.local.tasks.spawn(hang_up(unused));
                Some((protocol, client))
            }
            Err(error) => {
                tracing::debug!(client = %self.client, to = %self.to, %error, "it ended in silence");
                None
            }
        }
    }

    async fn join(&self, client: impl Io, server: impl Io, flight: InFlight, target: Target) {
        let ends = (self.client, target.address);
        let peer = self.peer(flight.endpoint(), &target);
        self.connection.speaks(Protocol::Opaque);
        self.connection.reached(flight.endpoint(), &target, true);
        self.local
            .join(DIRECTION, ends, peer, client, server, None)
            .await;
    }

    fn unopened(&self, client: &mut impl Io, error: &UpstreamError) {
        self.connection.speaks(Protocol::Opaque);
        self.local.failed(DIRECTION, error.failure(), error);
        client.abort();
    }

    fn pick(&self, to: &Destination, avoid: Option<&Endpoint>) -> Result<InFlight, UpstreamError> {
        let port = match to {
            Destination::Address(endpoint) => return Ok(endpoint.begin()),
            Destination::OutOfReach(address) => return Err(UpstreamError::OutOfReach(*address)),
            Destination::Service(port) => port,
        };
        let endpoints = port.endpoints();
        let itself = endpoints.heed_place().then(|| self.local.itself());
        let client = match itself.as_ref().and_then(Option::as_deref) {
            Some(Workload { node, zone, .. }) => Place { node, zone },
            None => Place::default(),
        };
        let picked = endpoints.pick(client, avoid);
        picked.ok_or(UpstreamError::NoEndpoints)
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

    fn meters(&self, endpoint: &Arc<Endpoint>, target: &Target) -> Arc<Meters> {
        let tls = target.peer.is_some();
        let mut met = self.met.lock();
        let known = |met: &&Met| Arc::ptr_eq(&met.endpoint, endpoint) && met.tls == tls;
        if let Some(known) = met.iter().find(known) {
            return known.meters.clone();
        }
        let meters = self.local.meters(DIRECTION, self.peer(endpoint, target));
        if met.len() == MET {
            met.swap_remove(0);
        }
        met.push(Met {
            endpoint: endpoint.clone(),
            tls,
            meters: meters.clone(),
        });
        meters
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

/// Ends a connection on which nothing was said, and waits until its server has too.
async fn hang_up(mut server: impl Io) {
    let ended = async {
        server.shutdown().await?;
        server.read(&mut [0]).await
    };
    let _ = tokio::time::timeout(HANG_UP_TIMEOUT, ended).await;
}

fn has_others(to: &Destination) -> bool {
    match to {
        Destination::Address(_) | Destination::OutOfReach(_) => false,
        Destination::Service(port) => port.endpoints().len() > 1,
    }
}

#[cfg(test)]
pub(crate) fn size_of_request() -> usize {
    crate::sizes::of(|outbound: Arc<Outbound>, request, protocol| {
        outbound.request(request, protocol)
    })
}
