//! Which requests are tried again, when, and how often.
//!
//! Only what may be done twice: methods that are idempotent (RFC 9110 §9.2.2), unless
//! the route says that all are; in gRPC, where every method is POST, that a route asks
//! for retries, and not only for those of HTTP statuses, says that its methods may be
//! repeated. Only while the client has heard
//! nothing of the answer. A
//! server that says when to come again (`Retry-After`, `grpc-retry-pushback-ms`) is
//! listened to: not before that, and if that is later than [`LONGEST_PUSHBACK`], or it
//! says never, not at all.

use crate::api;
use crate::http::grpc_status;
use crate::upstream::UpstreamError;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Method, Response, StatusCode};
use std::time::Duration;

/// Tries after the first, whatever a route says.
const MOST_ATTEMPTS: u32 = 10;
/// Before the first retry, at most, and before any. Envoy's defaults.
const MIN_BACKOFF: Duration = Duration::from_millis(25);
const MAX_BACKOFF: Duration = Duration::from_millis(250);
/// How long a client is kept waiting because a server asks for it.
const LONGEST_PUSHBACK: Duration = Duration::from_secs(5);

const DEFAULT_STATUSES: [(u16, u16); 1] = [(502, 504)];
/// UNAVAILABLE.
const DEFAULT_GRPC: u32 = 1 << 14;

#[derive(Debug)]
pub struct RetryPolicy {
    /// After the first try.
    pub attempts: u32,
    /// Inclusive ranges.
    statuses: Vec<(u16, u16)>,
    /// One bit for each code.
    grpc: u32,
    any_method: bool,
    min_backoff: Duration,
    max_backoff: Duration,
}

/// What a try ended with, if that is to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// Not before this time has passed, if the server said so.
    After(Option<Duration>),
    /// The server does not want to be asked again.
    PushedBack,
}

// === impl RetryPolicy ===

impl RetryPolicy {
    /// `None` if it never retries.
    pub fn read(said: &api::Retry) -> Option<Self> {
        let attempts = said.attempts.min(MOST_ATTEMPTS);
        let bounds = |range: &api::StatusRange| {
            let first = u16::try_from(range.first).ok()?;
            Some((first, u16::try_from(range.last).ok()?.max(first)))
        };
        let statuses: Vec<_> = said.statuses.iter().filter_map(bounds).collect();
        let codes = said.grpc_statuses.iter().filter(|code| **code < 32);
        let grpc = codes.fold(0, |bits, code| bits | 1 << code);
        let unsaid = statuses.is_empty() && grpc == 0;
        let time = |given: u32, default: Duration| match given {
            0 => default,
            given => Duration::from_millis(given.into()),
        };
        let min_backoff = time(said.min_backoff_ms, MIN_BACKOFF);
        (attempts > 0).then(|| Self {
            attempts,
            statuses: if unsaid {
                DEFAULT_STATUSES.to_vec()
            } else {
                statuses
            },
            grpc: if unsaid { DEFAULT_GRPC } else { grpc },
            any_method: said.any_method,
            min_backoff,
            max_backoff: time(said.max_backoff_ms, MAX_BACKOFF).max(min_backoff),
        })
    }

    /// Whether a request may be sent twice.
    pub fn repeats(&self, method: &Method, grpc: bool) -> bool {
        self.any_method || method.is_idempotent() || (grpc && self.grpc != 0)
    }

    /// `None`: what came goes to the client.
    pub fn discards<B>(
        &self,
        outcome: Result<&Response<B>, &UpstreamError>,
        grpc: bool,
    ) -> Option<Discarded> {
        match outcome {
            Ok(response) => {
                let headers = response.headers();
                let status = grpc.then(|| grpc_status(headers)).flatten();
                let again = status.is_some_and(|code| self.names_code(code))
                    || self.names(response.status());
                again.then(|| pushback(headers))
            }
            // It may have been lost on the way, or have been too slow.
            Err(UpstreamError::Http(_) | UpstreamError::Timeout(_)) => Some(Discarded::After(None)),
            Err(error) => error.is_unsent().then_some(Discarded::After(None)),
        }
    }

    fn names(&self, status: StatusCode) -> bool {
        let status = status.as_u16();
        let mut ranges = self.statuses.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&status))
    }

    fn names_code(&self, code: u8) -> bool {
        code < 32 && self.grpc & (1 << code) != 0
    }

    /// Before the retry of this number, the first being 0.
    pub fn backoff(&self, retry: u32) -> Duration {
        let ceiling = self
            .min_backoff
            .saturating_mul(1 << retry.min(MOST_ATTEMPTS));
        // From half of it: none is at once, and those of many clients are apart.
        ceiling
            .min(self.max_backoff)
            .mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

fn pushback(headers: &HeaderMap) -> Discarded {
    if let Some(said) = headers.get("grpc-retry-pushback-ms") {
        // gRFC A6: what is no number means never, as a negative one does.
        let millis = said.to_str().ok().and_then(|said| said.parse().ok());
        return bounded(millis.map(Duration::from_millis));
    }
    let Some(said) = headers.get(RETRY_AFTER).and_then(|said| said.to_str().ok()) else {
        return Discarded::After(None);
    };
    // RFC 9110 §10.2.3: seconds, or a date, which is hardly ever within the bound.
    bounded(said.trim().parse().ok().map(Duration::from_secs))
}

fn bounded(wait: Option<Duration>) -> Discarded {
    match wait {
        Some(wait) if wait <= LONGEST_PUSHBACK => Discarded::After(Some(wait)),
        _ => Discarded::PushedBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(said: &api::Retry) -> RetryPolicy {
        RetryPolicy::read(&api::Retry {
            attempts: 3,
            ..said.clone()
        })
        .expect("it retries")
    }

    fn answer(status: u16, headers: &[(&str, &str)]) -> Result<Response<()>, UpstreamError> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Ok(response.body(()).unwrap())
    }

    #[test]
    fn what_is_not_said_is_for_what_did_not_happen() {
        let default = policy(&api::Retry::default());
        for status in [502, 503, 504] {
            let discarded = default.discards(answer(status, &[]).as_ref(), false);
            assert_eq!(discarded, Some(Discarded::After(None)));
        }
        for status in [200, 301, 404, 429, 500, 501, 505] {
            assert_eq!(default.discards(answer(status, &[]).as_ref(), false), None);
        }
        let unavailable = answer(200, &[("grpc-status", "14")]);
        assert!(default.discards(unavailable.as_ref(), true).is_some());
        assert!(default.discards(unavailable.as_ref(), false).is_none());
        let internal = answer(200, &[("grpc-status", "13")]);
        assert!(default.discards(internal.as_ref(), true).is_none());
        assert!(default.repeats(&Method::GET, false) && default.repeats(&Method::PUT, false));
        assert!(!default.repeats(&Method::POST, false) && default.repeats(&Method::POST, true));
        let of_http = policy(&api::Retry {
            statuses: vec![api::StatusRange {
                first: 503,
                last: 503,
            }],
            ..api::Retry::default()
        });
        assert!(
            !of_http.repeats(&Method::POST, true),
            "nobody spoke of gRPC"
        );
        assert!(RetryPolicy::read(&api::Retry::default()).is_none());
    }

    #[test]
    fn what_is_said_counts_alone() {
        let said = policy(&api::Retry {
            statuses: vec![api::StatusRange {
                first: 500,
                last: 501,
            }],
            grpc_statuses: vec![8],
            any_method: true,
            ..api::Retry::default()
        });
        assert!(said.discards(answer(500, &[]).as_ref(), false).is_some());
        assert!(said.discards(answer(503, &[]).as_ref(), false).is_none());
        assert!(
            said.discards(answer(200, &[("grpc-status", "8")]).as_ref(), true)
                .is_some()
        );
        assert!(said.repeats(&Method::POST, false));
    }

    #[test]
    fn a_server_says_when() {
        let default = policy(&api::Retry::default());
        let told = |name, value| {
            default
                .discards(answer(503, &[(name, value)]).as_ref(), true)
                .unwrap()
        };
        let after = |millis| Discarded::After(Some(Duration::from_millis(millis)));
        assert_eq!(told("retry-after", "2"), after(2000));
        assert_eq!(told("grpc-retry-pushback-ms", "120"), after(120));
        for (name, value) in [
            ("retry-after", "3600"),
            ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"),
            ("grpc-retry-pushback-ms", "-1"),
            ("grpc-retry-pushback-ms", "soon"),
            ("grpc-retry-pushback-ms", "60000"),
        ] {
            assert_eq!(told(name, value), Discarded::PushedBack, "{name}: {value}");
        }
    }

    #[test]
    fn backoff_doubles_with_jitter_up_to_its_bound() {
        let default = policy(&api::Retry::default());
        for (retry, ceiling) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (9, 250)] {
            let ceiling = Duration::from_millis(ceiling);
            for _ in 0..100 {
                let backoff = default.backoff(retry);
                assert!(backoff >= ceiling / 2 && backoff <= ceiling, "{backoff:?}");
            }
        }
    }
}
