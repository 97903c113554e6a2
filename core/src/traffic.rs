//! What a service's description says of the way of its requests, compiled when it
//! changes: which [`Rule`] a request falls under, and what that does with it.
//!
//! The model is that of Gateway API's HTTPRoute and GRPCRoute. Among the rules that
//! match, the most specific one counts, whatever their order: an exact path before a
//! regular expression before the longest prefix, then a method, then the number of
//! headers, then of query parameters; then the first. A service with routes refuses what
//! none of them matches, as Gateway API has it for meshes. One without routes has one
//! rule, of its own time-outs and retries; and one that says nothing has none, and its
//! requests never come here.

mod budget;
mod change;
mod matching;
mod retry;

pub use budget::Budget;
pub use change::{HeaderChange, Redirect, Rewrite};
pub use matching::{InvalidExpression, check_expression};
pub use retry::{Discarded, RetryPolicy};

use crate::api;
use http::Request;
use matching::{Hosts, Matcher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Copies that a mirror may have under way.
const MAX_COPIES: usize = 100;

/// One port of a service's.
#[derive(Debug)]
pub struct Traffic {
    /// The most specific one first.
    candidates: Vec<Candidate>,
    /// `None`: there are routes, and what they do not match is refused.
    default: Option<Arc<Rule>>,
    budget: api::RetryBudget,
}

#[derive(Debug)]
struct Candidate {
    hosts: Hosts,
    matcher: Matcher,
    rule: Arc<Rule>,
}

/// What is done with the requests that it is for.
#[derive(Debug)]
pub struct Rule {
    /// The route's, or "default".
    pub name: String,
    /// Empty: the service's own endpoints.
    backends: Vec<Backend>,
    /// The sum of their weights.
    weight: u64,
    pub request_headers: HeaderChange,
    pub response_headers: HeaderChange,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<Mirror>,
    pub timeouts: Timeouts,
    pub retry: Option<RetryPolicy>,
}

/// A port of a service that requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// "namespace/name".
    pub service: String,
    pub port: u16,
    weight: u32,
}

/// Who gets a copy of some requests.
#[derive(Debug)]
pub struct Mirror {
    pub to: Backend,
    numerator: u32,
    denominator: u32,
    under_way: Arc<Semaphore>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// To the service that was asked for.
    Itself,
    Other(&'a Backend),
    /// No backend has a weight.
    Nobody,
}

/// None is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head to its answer's last byte, all tries together.
    pub request: Option<Duration>,
    /// The same for each try.
    pub each_try: Option<Duration>,
    /// From a try's beginning to the head of its answer.
    pub head: Option<Duration>,
    /// Between two pieces of an answer's body.
    pub idle: Option<Duration>,
}

// === impl Traffic ===

impl Traffic {
    /// `None` where the service says nothing of it.
    pub fn compile(service: &api::Service, port: u16) -> Option<Self> {
        let said = service.timeouts.is_some() || service.retry.is_some();
        if !said && service.routes.is_empty() {
            return None;
        }
        let mut candidates = Vec::new();
        for route in &service.routes {
            if !route.ports.is_empty() && !route.ports.contains(&port.into()) {
                continue;
            }
            let rule = Arc::new(Rule::compile(route, service));
            let any = [api::RouteMatch::default()];
            let matches = if route.matches.is_empty() {
                &any[..]
            } else {
                &route.matches
            };
            for one in matches {
                match Matcher::compile(one) {
                    Ok(matcher) => candidates.push(Candidate {
                        hosts: Hosts::new(&route.hosts),
                        matcher,
                        rule: rule.clone(),
                    }),
                    // Control has checked it; a newer one may know more.
                    Err(error) => {
                        let (service, route) = (&service.name, &route.name);
                        tracing::warn!(service, route, %error, "a match is left out");
                    }
                }
            }
        }
        candidates.sort_by_key(|candidate| {
            let hosts = candidate.hosts.specificity();
            std::cmp::Reverse((hosts, candidate.matcher.specificity()))
        });
        let default = service.routes.is_empty().then(|| {
            let plain = api::Route {
                name: "default".to_owned(),
                ..api::Route::default()
            };
            Arc::new(Rule::compile(&plain, service))
        });
        Some(Self {
            candidates,
            default,
            budget: service.retry_budget.unwrap_or_default(),
        })
    }

    /// The rule that a request falls under; `None`: it is refused.
    pub fn rule<B>(&self, request: &Request<B>) -> Option<&Arc<Rule>> {
        let found = self.candidates.iter().find(|candidate| {
            candidate.hosts.include(request) && candidate.matcher.matches(request)
        });
        found
            .map(|candidate| &candidate.rule)
            .or(self.default.as_ref())
    }

    /// A budget for the retries of one workload.
    pub fn budget(&self) -> Budget {
        Budget::new(&self.budget)
    }

    /// Whether a budget is one of these.
    pub fn has(&self, budget: &Budget) -> bool {
        budget.is(&self.budget)
    }
}

// === impl Rule ===

impl Rule {
    fn compile(route: &api::Route, service: &api::Service) -> Self {
        let backends: Vec<_> = route.backends.iter().map(Backend::read).collect();
        let timeouts = route.timeouts.as_ref().or(service.timeouts.as_ref());
        let retry = route.retry.as_ref().or(service.retry.as_ref());
        Self {
            name: route.name.clone(),
            weight: backends.iter().map(|one| u64::from(one.weight)).sum(),
            backends,
            request_headers: HeaderChange::read(route.request_headers.as_ref()),
            response_headers: HeaderChange::read(route.response_headers.as_ref()),
            redirect: route.redirect.as_ref().map(Redirect::read),
            rewrite: route.rewrite.as_ref().map(Rewrite::read),
            mirrors: route.mirrors.iter().map(Mirror::read).collect(),
            timeouts: timeouts.map(Timeouts::read).unwrap_or_default(),
            retry: retry.and_then(RetryPolicy::read),
        }
    }

    /// Where the next request goes, by the backends' weights.
    pub fn choose(&self) -> Choice<'_> {
        match self.backends.as_slice() {
            [] => Choice::Itself,
            [only] if only.weight > 0 => Choice::Other(only),
            _ if self.weight == 0 => Choice::Nobody,
            many => {
                let mut drawn = fastrand::u64(..self.weight);
                for backend in many {
                    let weight = u64::from(backend.weight);
                    if drawn < weight {
                        return Choice::Other(backend);
                    }
                    drawn -= weight;
                }
                Choice::Nobody
            }
        }
    }
}

impl Backend {
    fn read(backend: &api::RouteBackend) -> Self {
        Self {
            service: backend.service.clone(),
            port: u16::try_from(backend.port).unwrap_or_default(),
            weight: backend.weight,
        }
    }

    /// Why nothing reaches it.
    pub fn unknown(&self) -> String {
        match (self.service.as_str(), self.port) {
            ("", _) => "it names no backend that it may name".to_owned(),
            (service, port) => format!("service {service} with port {port} is not known"),
        }
    }
}

// === impl Mirror ===

impl Mirror {
    fn read(said: &api::Mirror) -> Self {
        Self {
            to: Backend {
                service: said.service.clone(),
                port: u16::try_from(said.port).unwrap_or_default(),
                weight: 1,
            },
            numerator: said.numerator,
            denominator: said.denominator.max(1),
            under_way: Arc::new(Semaphore::new(MAX_COPIES)),
        }
    }

    /// Whether the next request is one of those.
    pub fn wants_this(&self) -> bool {
        fastrand::u32(..self.denominator) < self.numerator
    }

    /// For one copy, until it is dropped; `None` if too many are under way.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.under_way.clone().try_acquire_owned().ok()
    }
}

// === impl Timeouts ===

impl Timeouts {
    fn read(said: &api::Timeouts) -> Self {
        let time = |millis: u32| (millis > 0).then(|| Duration::from_millis(millis.into()));
        Self {
            request: time(said.request_ms),
            each_try: time(said.try_ms),
            head: time(said.head_ms),
            idle: time(said.idle_ms),
        }
    }
}

#[cfg(test)]
mod tests;
