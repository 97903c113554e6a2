//! One HTTP request: from its head to the last byte of its answer.

use super::routed::{Until, within};
use super::{Answered, DIRECTION, Outbound};
use crate::balance::{self, Endpoint, InFlight};
use crate::detect::Protocol;
use crate::directory::Destination;
use crate::http::{self as message, Body, Timeout};
use crate::telemetry::{RequestLine, at_end};
use crate::upstream::{Form, Place, Target, UpstreamError};
use ::http::{Method, Request, Response};
use std::sync::Arc;
use std::time::Instant;

impl Outbound {
    pub(super) async fn request(
        self: Arc<Self>,
        request: Request<Body>,
        protocol: Protocol,
    ) -> Response<Body> {
        // Each future on its way would have room for it twice, and copy it so often.
        let mut request = Box::new(request);
        let started = Instant::now();
        self.connection.request();
        let version = request.version();
        let local = self.local.clone();
        if let Err(error) = message::well_formed(&request) {
            let error = UpstreamError::Malformed(error);
            local.failed(DIRECTION, error.failure(), &error);
            return message::malformed(&error, version);
        }
        let log = &local.shared.log;
        let mut line = log.is_on().then(|| Box::new(self.line(&request, protocol)));
        let grpc = message::is_grpc(&request);
        let tracer = local.shared.tracer.as_ref();
        let span = tracer.and_then(|it| it.begin(DIRECTION, &local.name, &mut request, true));
        let span = span.map(Box::new);

        let answered = match local.tenant.request(DIRECTION).await {
            Ok(()) => match self.destination.traffic() {
                None => self.forward(&self.destination, request).await,
                // Boxed, so that what hardly any request needs makes none of them larger.
                Some(traffic) => Box::pin(self.routed(&traffic, request, grpc)).await,
            },
            Err(refused) => Err(refused),
        };
        let unreached = || local.meters(DIRECTION, self.unreached());
        // Only a span asks who it was by name.
        let mut peer = None;
        let (mut response, meters, flight) = match answered {
            Ok((response, Some((flight, target)))) => {
                let endpoint = flight.endpoint();
                let reached = || self.peer(endpoint, &target);
                if let Some(line) = &mut line {
                    line.reached(endpoint.address, &reached());
                }
                peer = span.is_some().then(reached);
                (response, self.meters(endpoint, &target), Some(flight))
            }
            Ok((response, None)) => (response, unreached(), None),
            Err(error) => {
                local.failed(DIRECTION, error.failure(), &error);
                if let UpstreamError::Timeout(which) = error {
                    self.count_timeout(which);
                }
                (message::failure(&error, grpc), unreached(), None)
            }
        };
        message::response(&mut response, version);
        let span = span.map(|span| (span, peer.unwrap_or_else(|| self.unreached())));
        let status = response.status();
        let log = log.clone();
        let counted = grpc.then(|| meters.clone());
        let ended = at_end(move || {
            drop(flight);
            meters.response(status, started.elapsed());
            if let Some((span, peer)) = span {
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

    /// Sends the request to the first endpoint that takes it.
    pub(super) async fn forward(
        &self,
        to: &Destination,
        mut request: Box<Request<Body>>,
    ) -> Result<Answered, UpstreamError> {
        if request.method() == Method::CONNECT {
            return Err(UpstreamError::ConnectMethod);
        }
        if message::is_upgrade(&request) {
            let (server, flight, target) = Box::pin(self.open(to, true)).await?;
            self.connection.reached(flight.endpoint(), &target, true);
            message::for_plaintext(&mut request, target.address);
            let upstreams = &self.local.upstreams;
            let upgraded = upstreams.upgrade(server, *request, std::future::pending());
            let response = Box::pin(upgraded).await?;
            return Ok((response, Some((flight, target))));
        }
        let grpc = message::is_grpc(&request);
        let reserved = self.reserve(to, Form::of(&request), &mut None, None).await;
        let (place, flight, target) = reserved?;
        let sent = self.send(place, &flight, &target, request).await;
        Ok((judge(&flight, sent, grpc)?, Some((flight, target))))
    }

    /// Sends the request where a place was reserved for it.
    pub(super) async fn send(
        &self,
        place: Place,
        flight: &InFlight,
        target: &Target,
        request: Box<Request<Body>>,
    ) -> Result<Response<Body>, UpstreamError> {
        self.connection.reached(flight.endpoint(), target, false);
        self.send_to(place, target, request).await
    }

    pub(super) async fn send_to(
        &self,
        place: Place,
        target: &Target,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Body>, UpstreamError> {
        if target.native_http {
            message::for_mesh(&mut request, target.address);
        } else {
            message::for_plaintext(&mut request, target.address);
        }
        let certificate = async || self.local.certificate().await;
        let upstreams = &self.local.upstreams;
        upstreams.send(place, target, request, certificate).await
    }

    /// A place on a connection to the first endpoint that takes one; `avoid` is asked
    /// only if there is no other, and becomes who let the time pass.
    pub(super) async fn reserve(
        &self,
        to: &Destination,
        form: Form,
        avoid: &mut Option<Arc<Endpoint>>,
        until: Until,
    ) -> Result<(Place, InFlight, Target), UpstreamError> {
        let mut attempts = super::Attempts::of(self, to, avoid.take());
        loop {
            let (flight, target) = attempts.next()?;
            let certificate = async || self.local.certificate().await;
            let upstreams = &self.local.upstreams;
            let reserved = upstreams.reserve(&target, form, certificate);
            match within(until, reserved).await {
                Ok(place) => return Ok((place, flight, target)),
                Err(error @ UpstreamError::Timeout(which)) => {
                    if which != Timeout::Client {
                        flight.unreached();
                    }
                    *avoid = Some(flight.endpoint().clone());
                    return Err(error);
                }
                Err(error) => attempts.failed(&flight, error)?,
            }
        }
    }

    fn line(&self, request: &Request<Body>, protocol: Protocol) -> RequestLine {
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

/// Tells the balancer what became of a request.
pub(super) fn judge(
    flight: &InFlight,
    sent: Result<Response<Body>, UpstreamError>,
    grpc: bool,
) -> Result<Response<Body>, UpstreamError> {
    match &sent {
        // Its proxy answers quickly that nobody is there; that is no merit.
        Ok(response) if message::is_failure(response) => flight.unreached(),
        // Nor is a quick refusal.
        Ok(response) if message::is_refusal(response) => flight.refused(),
        Err(error) if error.is_unsent() => flight.unreached(),
        // How little time a client gives says nothing of the endpoint.
        Err(UpstreamError::Timeout(Timeout::Client)) => {}
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
                    let told = in_trailers(flight.verdict());
                    // A stream may go on for hours; who waits for its first message has
                    // seen enough to end a probation.
                    let attach = match flight.is_probe() {
                        true => Body::on_begin,
                        false => Body::on_end,
                    };
                    return sent.map(|response| response.map(|body| attach(body, told)));
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
            message::End::Begun => false,
            message::End::Failed => true,
            message::End::Whole(trailers) => {
                let status = trailers.and_then(message::grpc_status);
                status.is_some_and(message::blames_server)
            }
        };
        verdict.judged(!failed);
    }
}
