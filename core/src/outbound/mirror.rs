//! Copies of requests, for somebody whose answers nobody waits for.
//!
//! A copy leaves once the original's body has gone by, so the original never waits for it,
//! and is sent by a task of its own, so that nothing that becomes of it is the original's.
//! It is bounded in length, in number and in time; what does not fit is left out and counted.

use super::Outbound;
use super::request::judge;
use crate::directory::Destination;
use crate::http::{self as message, Body, Copied};
use crate::traffic::{Backend, Mirror, Rule};
use crate::upstream::{Form, UpstreamError};
use ::http::Request;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;

/// From a copy's first byte to its answer's last.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What became of copies, as labels.
const SENT: &str = "sent";
const FAILED: &str = "failed";
const TOO_LONG: &str = "body_too_long";
const TOO_MANY: &str = "too_many";

impl Outbound {
    /// The request, copied as its body goes by if the rule wants that.
    pub(super) fn mirrored(
        self: &Arc<Self>,
        rule: &Rule,
        request: Box<Request<Body>>,
    ) -> Box<Request<Body>> {
        rule.mirrors
            .iter()
            .filter(|mirror| mirror.wants_this())
            .fold(request, |request, mirror| self.copied(mirror, request))
    }

    fn copied(
        self: &Arc<Self>,
        mirror: &Mirror,
        request: Box<Request<Body>>,
    ) -> Box<Request<Body>> {
        let Some(place) = mirror.place() else {
            self.count_copy(&mirror.to, TOO_MANY);
            return request;
        };
        let (head, body) = request.into_parts();
        let (outbound, to, mut copy) = (self.clone(), mirror.to.clone(), head.clone());
        copy.extensions.clear();
        let tell = move |body: Option<bytes::Bytes>| {
            let Some(body) = body else {
                return outbound.count_copy(&to, TOO_LONG);
            };
            let body = if body.is_empty() {
                Body::empty()
            } else {
                Body::full(body)
            };
            let cancel = outbound.local.cancel.clone();
            let sending = async move {
                let request = Request::from_parts(copy, body);
                let sent = tokio::time::timeout(TIMEOUT, outbound.send_copy(&to, request)).await;
                outbound.count_copy(
                    &to,
                    if matches!(sent, Ok(Ok(()))) {
                        SENT
                    } else {
                        FAILED
                    },
                );
                drop(place);
            };
            tokio::spawn(cancel.run_until_cancelled_owned(sending));
        };
        Box::new(Request::from_parts(
            head,
            Body::copied(Copied::new(body, tell)),
        ))
    }

    async fn send_copy(&self, to: &Backend, request: Request<Body>) -> Result<(), UpstreamError> {
        let to = self
            .service_port(to)
            .map(Destination::Service)
            .ok_or_else(|| UpstreamError::NoBackend(to.unknown().into()))?;
        let grpc = message::is_grpc(&request);
        let reserved = self.reserve(&to, Form::of(&request), &mut None, None).await;
        let (place, flight, target) = reserved?;
        let sent = self.send_to(place, &target, Box::new(request)).await;
        let mut answer = judge(&flight, sent, grpc)?.into_body();
        // Read, so that the connection is good for another request.
        while let Some(frame) = answer.frame().await {
            frame.map_err(|error| UpstreamError::Http(error.to_string().into()))?;
        }
        Ok(())
    }

    fn count_copy(&self, to: &Backend, result: &'static str) {
        let metrics = &self.local.shared.metrics;
        metrics.mirrored(&self.local.name, &to.service, result);
    }
}
