//! What a service's annotations say of the way of requests to it.
//!
//! An annotation is a list of words, "consecutive=5, minBackoff=2s", the same words as
//! in the file source. What cannot be read is complained of and left at its default.

use super::complaint::Complaints;
use crate::injector::names;
use crate::traffic;
use duet_core::api::{Budgets, FailureAccrual, Limits, Retry, RetryBudget, Timeouts};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub failure_accrual: Option<FailureAccrual>,
    pub timeouts: Option<Timeouts>,
    pub retry: Option<Retry>,
    pub retry_budget: Option<RetryBudget>,
    pub slow_start_ms: u32,
}

// === impl Traffic ===

impl Traffic {
    pub fn read(annotations: &BTreeMap<String, String>, complaints: &mut Complaints) -> Self {
        let mut all = Self::default();
        if let Some(said) = annotations.get(names::FAILURE_ACCRUAL) {
            let accrual = all.failure_accrual.insert(FailureAccrual::default());
            words(names::FAILURE_ACCRUAL, said, complaints, |word, value| {
                match word {
                    "off" => accrual.off = true,
                    "consecutive" => accrual.consecutive = traffic::number(value, 1..=1_000_000)?,
                    "successPercent" => accrual.success_percent = traffic::number(value, 1..=100)?,
                    "minRequests" => accrual.min_requests = traffic::number(value, 1..=1_000_000)?,
                    "window" => accrual.window_ms = traffic::millis(value)?,
                    "minBackoff" => accrual.min_backoff_ms = traffic::millis(value)?,
                    "maxBackoff" => accrual.max_backoff_ms = traffic::millis(value)?,
                    _ => {
                        return Err(unknown(&[
                            "off",
                            "consecutive",
                            "successPercent",
                            "minRequests",
                            "window",
                            "minBackoff",
                            "maxBackoff",
                        ]));
                    }
                }
                Ok(())
            });
        }
        if let Some(said) = annotations.get(names::TIMEOUTS) {
            let times = all.timeouts.insert(Timeouts::default());
            words(names::TIMEOUTS, said, complaints, |word, value| {
                let into = match word {
                    "request" => &mut times.request_ms,
                    "eachTry" => &mut times.try_ms,
                    "responseHead" => &mut times.head_ms,
                    "idle" => &mut times.idle_ms,
                    _ => return Err(unknown(&["request", "eachTry", "responseHead", "idle"])),
                };
                *into = traffic::millis(value)?;
                Ok(())
            });
        }
        if let Some(said) = annotations.get(names::RETRY) {
            let retry = all.retry.insert(Retry::default());
            words(names::RETRY, said, complaints, |word, value| {
                retry_word(retry, word, value)
            });
        }
        if let Some(said) = annotations.get(names::RETRY_BUDGET) {
            let budget = all.retry_budget.insert(RetryBudget::default());
            words(names::RETRY_BUDGET, said, complaints, |word, value| {
                match word {
                    "percent" => budget.percent = Some(traffic::number(value, 0..=100)?),
                    "perSecond" => budget.per_second = Some(traffic::number(value, 0..=1_000_000)?),
                    _ => return Err(unknown(&["percent", "perSecond"])),
                }
                Ok(())
            });
        }
        if let Some(said) = annotations.get(names::SLOW_START) {
            match traffic::millis(said) {
                Ok(time) => all.slow_start_ms = time,
                Err(problem) => {
                    complaints.add(format!("annotation {}: {problem}", names::SLOW_START))
                }
            }
        }
        all
    }
}

/// What a pod's annotations say of the requests to it.
pub fn limits(
    annotations: &BTreeMap<String, String>,
    complaints: &mut Complaints,
) -> Option<Limits> {
    let said = annotations.get(names::LIMITS)?;
    let mut limits = Limits::default();
    words(names::LIMITS, said, complaints, |word, value| {
        let into = match word {
            "requestsPerSecond" => &mut limits.requests_per_second,
            "burst" => &mut limits.burst,
            "inFlight" => &mut limits.in_flight,
            _ => return Err(unknown(&["requestsPerSecond", "burst", "inFlight"])),
        };
        *into = traffic::number(value, 1..=traffic::MAX_LIMIT)?;
        Ok(())
    });
    Some(limits)
}

/// What a pod's annotations say that it wants of an agent.
pub fn budgets(
    annotations: &BTreeMap<String, String>,
    complaints: &mut Complaints,
) -> Option<Budgets> {
    let said = annotations.get(names::BUDGETS)?;
    let mut budgets = Budgets::default();
    words(names::BUDGETS, said, complaints, |word, value| {
        let (into, most) = match word {
            "connections" => (&mut budgets.connections, traffic::MAX_LIMIT),
            "handshakesPerSecond" => (&mut budgets.handshakes_per_second, traffic::MAX_LIMIT),
            "requestsPerSecond" => (&mut budgets.requests_per_second, traffic::MAX_LIMIT),
            "bufferMiB" => (&mut budgets.buffer_mib, traffic::MAX_BUFFER_MIB),
            "weight" => (&mut budgets.weight, traffic::MAX_WEIGHT),
            _ => {
                return Err(unknown(&[
                    "connections",
                    "handshakesPerSecond",
                    "requestsPerSecond",
                    "bufferMiB",
                    "weight",
                ]));
            }
        };
        *into = traffic::number(value, 1..=most)?;
        Ok(())
    });
    Some(budgets)
}

/// What a pod's annotations say of its share of requests. 0: nothing.
pub fn weight(annotations: &BTreeMap<String, String>, complaints: &mut Complaints) -> u32 {
    let Some(said) = annotations.get(names::WEIGHT) else {
        return 0;
    };
    traffic::number(said, 1..=traffic::MAX_WEIGHT).unwrap_or_else(|wrong| {
        complaints.add(format!("annotation {}: {said:?}: {wrong}", names::WEIGHT));
        0
    })
}

fn retry_word(retry: &mut Retry, word: &str, value: &str) -> Result<(), String> {
    match word {
        "attempts" => retry.attempts = traffic::number(value, 0..=traffic::MAX_ATTEMPTS)?,
        "statuses" => {
            let all = value.split('+').map(traffic::statuses);
            retry.statuses = all.collect::<Result<_, _>>()?;
        }
        "grpc" => {
            let all = value.split('+').map(traffic::grpc_status);
            retry.grpc_statuses = all.collect::<Result<_, _>>()?;
        }
        "methods" => match value {
            "idempotent" => retry.any_method = false,
            "any" => retry.any_method = true,
            _ => return Err("write idempotent or any".to_owned()),
        },
        "minBackoff" => retry.min_backoff_ms = traffic::millis(value)?,
        "maxBackoff" => retry.max_backoff_ms = traffic::millis(value)?,
        _ => {
            return Err(unknown(&[
                "attempts",
                "statuses",
                "grpc",
                "methods",
                "minBackoff",
                "maxBackoff",
            ]));
        }
    }
    Ok(())
}

fn words(
    annotation: &str,
    said: &str,
    complaints: &mut Complaints,
    mut read: impl FnMut(&str, &str) -> Result<(), String>,
) {
    for word in said.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if let Err(problem) = read(name.trim(), value.trim()) {
            complaints.add(format!("annotation {annotation}: {word:?}: {problem}"));
        }
    }
}

fn unknown(words: &[&str]) -> String {
    format!("not known: write some of {}", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotation: &str, said: &str) -> (Traffic, Complaints) {
        let mut complaints = Complaints::default();
        let annotations = BTreeMap::from([(annotation.to_owned(), said.to_owned())]);
        let traffic = Traffic::read(&annotations, &mut complaints);
        (traffic, complaints)
    }

    #[test]
    fn times_and_retries_are_read_or_complained_of() {
        let (traffic, complaints) = read(names::TIMEOUTS, "request=10s, eachTry=500ms");
        assert!(complaints.is_empty());
        let times = traffic.timeouts.unwrap();
        assert_eq!(
            (times.request_ms, times.try_ms, times.idle_ms),
            (10_000, 500, 0)
        );
        let (traffic, complaints) = read(
            names::RETRY,
            "attempts=2, statuses=500-504+429, grpc=unavailable+internal, methods=any",
        );
        assert!(complaints.is_empty(), "{complaints:?}");
        let retry = traffic.retry.unwrap();
        assert_eq!((retry.attempts, retry.statuses.len()), (2, 2));
        assert_eq!(retry.grpc_statuses, [14, 13]);
        assert!(retry.any_method);
        assert_eq!(read(names::SLOW_START, "30s").0.slow_start_ms, 30_000);
        let (traffic, _) = read(names::RETRY_BUDGET, "percent=0, perSecond=1");
        let budget = traffic.retry_budget.unwrap();
        assert_eq!((budget.percent, budget.per_second), (Some(0), Some(1)));
        for (annotation, wrong) in [
            (names::TIMEOUTS, "request=10"),
            (names::TIMEOUTS, "try=10s"),
            (names::RETRY, "attempts=11"),
            (names::RETRY, "statuses=200"),
            (names::RETRY, "grpc=ok"),
            (names::RETRY, "methods=GET"),
            (names::RETRY_BUDGET, "percent=101"),
            (names::SLOW_START, "30"),
        ] {
            assert!(!read(annotation, wrong).1.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_read_or_complained_of() {
        let said = |text: &str| {
            let mut complaints = Complaints::default();
            let annotations = BTreeMap::from([(names::LIMITS.to_owned(), text.to_owned())]);
            (limits(&annotations, &mut complaints), complaints)
        };
        let (limits, complaints) = said("requestsPerSecond=100, inFlight=50");
        let expected = Limits {
            requests_per_second: 100,
            burst: 0,
            in_flight: 50,
        };
        assert_eq!(limits, Some(expected));
        assert!(complaints.is_empty());
        for wrong in ["inFlight=0", "inflight=1", "burst=x"] {
            assert!(!said(wrong).1.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn budgets_are_read_or_complained_of() {
        let said = |text: &str| {
            let mut complaints = Complaints::default();
            let annotations = BTreeMap::from([(names::BUDGETS.to_owned(), text.to_owned())]);
            (budgets(&annotations, &mut complaints), complaints)
        };
        let (budgets, complaints) = said("connections=1000, weight=2,bufferMiB=16");
        let expected = Budgets {
            connections: 1000,
            weight: 2,
            buffer_mib: 16,
            ..Budgets::default()
        };
        assert_eq!(budgets, Some(expected));
        assert!(complaints.is_empty());
        for wrong in ["weight=0", "weight=101", "cpu=2", "requestsPerSecond=-1"] {
            assert!(!said(wrong).1.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn failure_accrual_is_read_or_complained_of() {
        let (traffic, complaints) = read(
            names::FAILURE_ACCRUAL,
            "consecutive=5, successPercent=80,minBackoff=2s",
        );
        assert!(complaints.is_empty());
        let expected = FailureAccrual {
            consecutive: 5,
            success_percent: 80,
            min_backoff_ms: 2000,
            ..FailureAccrual::default()
        };
        assert_eq!(traffic.failure_accrual, Some(expected));
        let (traffic, _) = read(names::FAILURE_ACCRUAL, "off");
        assert!(traffic.failure_accrual.unwrap().off);
        assert_eq!(read("other", "off").0, Traffic::default());
        for wrong in ["consecutive=0", "window=10", "successPercent=101", "of"] {
            let (traffic, complaints) = read(names::FAILURE_ACCRUAL, wrong);
            assert!(!complaints.is_empty(), "{wrong}");
            assert_eq!(traffic.failure_accrual, Some(FailureAccrual::default()));
        }
    }
}
