//! A request to a service that says how its requests are to travel: the rule it falls
//! under, where that sends it, in what time, and how often it is tried.
//!
//! An answer is either given to the client or it is discarded for another try, and that
//! is decided when its head is there; once the client has heard of it there is no way
//! back. A try that fails before anything has left is repeated elsewhere in any case, as
//! for every request, and does not count.

use super::request::judge;
use super::{Answered, Outbound};
use crate::balance::Endpoint;
use crate::directory::{Destination, ServicePort};
use crate::http::{self as message, Body, Deadline, Replay, Timeout};
use crate::traffic::{Backend, Budget, Choice, Discarded, RetryPolicy, Rule, Traffic};
use crate::upstream::{Form, UpstreamError};
use ::http::request::Parts;
use ::http::{Method, Request};
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// When something must be over, and which time that is.
pub(super) type Until = Option<(Instant, Timeout)>;

/// What became of retries.
const RETRIED: &str = "retried";
const SUCCEEDED: &str = "succeeded";
const FAILED: &str = "failed";

struct Routed<'a> {
    outbound: &'a Outbound,
    rule: &'a Rule,
    to: Destination,
    deadline: Until,
    grpc: bool,
}

/// A request's body, for each of its tries.
enum Bodies {
    Nothing,
    Replay(Replay),
}

impl Outbound {
    /// Where it falls under a rule of the service.
    pub(super) async fn routed(
        self: &Arc<Self>,
        traffic: &Traffic,
        mut request: Box<Request<Body>>,
        grpc: bool,
    ) -> Result<Answered, UpstreamError> {
        let started = Instant::now();
        let local = &self.local;
        let metrics = &local.shared.metrics;
        if request.method() == Method::CONNECT {
            return Err(UpstreamError::ConnectMethod);
        }
        let Some(rule) = traffic.rule(&request) else {
            metrics.routed(&local.name, self.service(), "none");
            return Err(UpstreamError::NoRoute);
        };
        metrics.routed(&local.name, self.service(), &rule.name);
        if let Some(redirect) = &rule.redirect {
            let answer = redirect.answer(&request, self.to.0.port());
            return Ok((answer, None));
        }
        let asked = message::grpc_timeout(request.headers()).filter(|_| grpc);
        let routed = Routed {
            outbound: self,
            rule,
            to: self.chosen(rule)?,
            deadline: earliest(
                [
                    (rule.timeouts.request, Timeout::Request),
                    (asked, Timeout::Client),
                ]
                .map(|(time, which)| Some((started.checked_add(time?)?, which))),
            ),
            grpc,
        };
        rule.request_headers.apply(request.headers_mut());
        if let Some(rewrite) = &rule.rewrite {
            rewrite.apply(&mut request);
        }
        let (mut response, reached) = if message::is_upgrade(&request) {
            let head = routed.within([rule.timeouts.each_try, rule.timeouts.head]);
            within(head, self.forward(&routed.to, request)).await?
        } else {
            let request = self.mirrored(rule, request);
            let policy = rule.retry.as_ref();
            match policy.filter(|policy| policy.repeats(request.method(), grpc)) {
                Some(policy) => {
                    let budget = local.budget(self.service(), traffic);
                    routed.tries(request, policy, &budget).await?
                }
                None => {
                    let form = Form::of(&request);
                    routed.attempt(form, request, &mut None).await?
                }
            }
        };
        rule.response_headers.apply(response.headers_mut());
        Ok((response, reached))
    }

    fn chosen(&self, rule: &Rule) -> Result<Destination, UpstreamError> {
        let backend = match rule.choose() {
            Choice::Itself => return Ok(self.destination.clone()),
            Choice::Nobody => {
                return Err(UpstreamError::NoBackend("no backend has a weight".into()));
            }
            Choice::Other(backend) => backend,
        };
        self.service_port(backend)
            .map(Destination::Service)
            .ok_or_else(|| UpstreamError::NoBackend(backend.unknown().into()))
    }

    pub(super) fn service_port(&self, backend: &Backend) -> Option<Arc<ServicePort>> {
        let directory = &self.local.shared.directory;
        directory.service_port(&backend.service, backend.port, self.to.0.is_ipv4())
    }
}

impl Routed<'_> {
    /// Tries until an answer is good enough, or there may be no further try.
    async fn tries(
        &self,
        request: Box<Request<Body>>,
        policy: &RetryPolicy,
        budget: &Budget,
    ) -> Result<Answered, UpstreamError> {
        let form = Form::of(&request);
        let (head, body) = request.into_parts();
        let mut bodies = Bodies::of(body);
        let mut avoid = None;
        budget.deposit(std::time::Instant::now());
        for retry in 0.. {
            let request = copy(&head, bodies.next());
            let outcome = self.attempt(form, request, &mut avoid).await;
            let seen = outcome.as_ref().map(|(response, _)| response);
            let Some(discarded) = policy.discards(seen, self.grpc) else {
                if retry > 0 {
                    self.count(if outcome.is_ok() { SUCCEEDED } else { FAILED });
                }
                return outcome;
            };
            match self.again(retry, discarded, policy, &bodies, budget) {
                Ok(at) => {
                    // The answer is nobody's, and its connection is free.
                    drop(outcome);
                    tokio::time::sleep_until(at).await;
                    self.count(RETRIED);
                }
                Err(why) => {
                    self.count(why);
                    return outcome;
                }
            }
        }
        unreachable!("the number of tries is bounded")
    }

    /// When it is tried again; or why it is not, as a label.
    fn again(
        &self,
        retry: u32,
        discarded: Discarded,
        policy: &RetryPolicy,
        bodies: &Bodies,
        budget: &Budget,
    ) -> Result<Instant, &'static str> {
        if retry == policy.attempts {
            return Err(FAILED);
        }
        let Discarded::After(asked) = discarded else {
            return Err("pushed_back");
        };
        if !bodies.can_repeat() {
            return Err("body_too_long");
        }
        let now = Instant::now();
        let at = now + policy.backoff(retry).max(asked.unwrap_or_default());
        if self.deadline.is_some_and(|(deadline, _)| deadline <= at) {
            return Err("no_time");
        }
        if !budget.withdraw(std::time::Instant::now()) {
            return Err("budget_exhausted");
        }
        // The last try may be sending it still, and it may have grown too long just now.
        if !bodies.take_back() {
            return Err("body_too_long");
        }
        Ok(at)
    }

    /// One try. `avoid` is who failed the last one, and becomes who has this one.
    async fn attempt(
        &self,
        form: Form,
        request: Box<Request<Body>>,
        avoid: &mut Option<Arc<Endpoint>>,
    ) -> Result<Answered, UpstreamError> {
        let Self { outbound, rule, .. } = self;
        let times = &rule.timeouts;
        let (head, whole) = (
            self.within([times.each_try, times.head]),
            self.within([times.each_try, None]),
        );
        let reserved = outbound.reserve(&self.to, form, avoid, head).await;
        let (place, flight, target) = reserved?;
        *avoid = Some(flight.endpoint().clone());
        let sent = within(head, outbound.send(place, &flight, &target, request)).await;
        let response = judge(&flight, sent, self.grpc)?;
        let (local, service) = (outbound.local.clone(), outbound.service().to_owned());
        let late = move |which: Timeout| {
            let metrics = &local.shared.metrics;
            metrics.timed_out(&local.name, &service, which.as_str());
        };
        let response = match Deadline::new(whole, times.idle, self.grpc, late) {
            Some(deadline) => response.map(|body| body.until(deadline)),
            None => response,
        };
        Ok((response, Some((flight, target))))
    }

    /// The first of these times, a try's and that to its head, and of the request's.
    fn within(&self, [each_try, head]: [Option<std::time::Duration>; 2]) -> Until {
        let now = Instant::now();
        let after =
            |time: Option<std::time::Duration>, which| Some((now.checked_add(time?)?, which));
        earliest([
            self.deadline,
            after(each_try, Timeout::Try),
            after(head, Timeout::Head),
        ])
    }

    fn count(&self, result: &'static str) {
        let local = &self.outbound.local;
        let service = self.outbound.service();
        local.shared.metrics.retry(&local.name, service, result);
    }
}

// === impl Bodies ===

impl Bodies {
    fn of(body: Body) -> Self {
        if http_body::Body::is_end_stream(&body) {
            Self::Nothing
        } else {
            Self::Replay(Replay::new(body))
        }
    }

    fn next(&mut self) -> Body {
        match self {
            Self::Nothing => Body::empty(),
            Self::Replay(replay) => replay.body(),
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Replay(replay) => replay.can_repeat(),
        }
    }

    fn take_back(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Replay(replay) => replay.take_back(),
        }
    }
}

fn copy(head: &Parts, body: Body) -> Box<Request<Body>> {
    Box::new(Request::from_parts(head.clone(), body))
}

fn earliest<const N: usize>(all: [Until; N]) -> Until {
    all.into_iter().flatten().min_by_key(|(at, _)| *at)
}

pub(super) async fn within<T>(
    until: Until,
    work: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let Some((at, which)) = until else {
        return work.await;
    };
    match timeout_at(at, work).await {
        Ok(done) => done,
        Err(_) => Err(UpstreamError::Timeout(which)),
    }
}
