//! What the file says of the way of requests to a service's endpoints.

use super::{Reading, Text};
use crate::traffic;
use duet_core::api::{Budgets, FailureAccrual, Limits, Retry, RetryBudget, Timeouts};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct AccrualEntry {
    off: Option<Text>,
    consecutive: Option<Text>,
    success_percent: Option<Text>,
    window: Option<Text>,
    min_requests: Option<Text>,
    min_backoff: Option<Text>,
    max_backoff: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TimeoutsEntry {
    request: Option<Text>,
    each_try: Option<Text>,
    response_head: Option<Text>,
    idle: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RetryEntry {
    attempts: Text,
    #[serde(default)]
    statuses: Vec<Text>,
    #[serde(default)]
    grpc: Vec<Text>,
    methods: Option<Text>,
    min_backoff: Option<Text>,
    max_backoff: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct BudgetEntry {
    percent: Option<Text>,
    per_second: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LimitsEntry {
    requests_per_second: Option<Text>,
    burst: Option<Text>,
    in_flight: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct BudgetsEntry {
    connections: Option<Text>,
    handshakes_per_second: Option<Text>,
    requests_per_second: Option<Text>,
    #[serde(rename = "bufferMiB")]
    buffer_mib: Option<Text>,
    weight: Option<Text>,
}

// === impl Reading ===

impl Reading {
    pub(super) fn timeouts(
        &mut self,
        field: &str,
        entry: Option<&TimeoutsEntry>,
    ) -> Option<Timeouts> {
        let entry = entry?;
        let mut time = |name: &str, given: &Option<Text>| {
            self.word(&format!("{field}.{name}"), given.as_ref(), traffic::millis)
        };
        Some(Timeouts {
            request_ms: time("request", &entry.request),
            try_ms: time("eachTry", &entry.each_try),
            head_ms: time("responseHead", &entry.response_head),
            idle_ms: time("idle", &entry.idle),
        })
    }

    pub(super) fn retry(&mut self, field: &str, entry: Option<&RetryEntry>) -> Option<Retry> {
        let entry = entry?;
        let attempts = self.word(
            &format!("{field}.attempts"),
            Some(&entry.attempts),
            |text| traffic::number(text, 0..=traffic::MAX_ATTEMPTS),
        );
        let statuses = entry
            .statuses
            .iter()
            .map(|text| self.word(&format!("{field}.statuses"), Some(text), traffic::statuses));
        let statuses = statuses.collect();
        let grpc = entry.grpc.iter();
        let grpc =
            grpc.map(|text| self.word(&format!("{field}.grpc"), Some(text), traffic::grpc_status));
        let grpc_statuses = grpc.collect();
        let methods = [("idempotent", false), ("any", true)];
        let mut time = |name: &str, given: &Option<Text>| {
            self.word(&format!("{field}.{name}"), given.as_ref(), traffic::millis)
        };
        Some(Retry {
            attempts,
            statuses,
            grpc_statuses,
            min_backoff_ms: time("minBackoff", &entry.min_backoff),
            max_backoff_ms: time("maxBackoff", &entry.max_backoff),
            any_method: self.one_of(
                &format!("{field}.methods"),
                entry.methods.as_ref(),
                &methods,
            ),
        })
    }

    pub(super) fn budget(
        &mut self,
        field: &str,
        entry: Option<&BudgetEntry>,
    ) -> Option<RetryBudget> {
        let entry = entry?;
        let mut number = |name: &str, given: &Option<Text>, most| {
            let text = given.as_ref()?;
            let read = |text: &str| traffic::number(text, 0..=most);
            Some(self.word(&format!("{field}.{name}"), Some(text), read))
        };
        Some(RetryBudget {
            percent: number("percent", &entry.percent, 100),
            per_second: number("perSecond", &entry.per_second, 1_000_000),
        })
    }

    pub(super) fn limits(&mut self, field: &str, entry: Option<&LimitsEntry>) -> Option<Limits> {
        let entry = entry?;
        let mut number = |name: &str, given: &Option<Text>| {
            let read = |text: &str| traffic::number(text, 1..=traffic::MAX_LIMIT);
            self.word(&format!("{field}.{name}"), given.as_ref(), read)
        };
        Some(Limits {
            requests_per_second: number("requestsPerSecond", &entry.requests_per_second),
            burst: number("burst", &entry.burst),
            in_flight: number("inFlight", &entry.in_flight),
        })
    }

    pub(super) fn budgets(&mut self, field: &str, entry: Option<&BudgetsEntry>) -> Option<Budgets> {
        let entry = entry?;
        let mut number = |name: &str, given: &Option<Text>, most| {
            let read = |text: &str| traffic::number(text, 1..=most);
            self.word(&format!("{field}.{name}"), given.as_ref(), read)
        };
        let most = traffic::MAX_LIMIT;
        Some(Budgets {
            connections: number("connections", &entry.connections, most),
            handshakes_per_second: number(
                "handshakesPerSecond",
                &entry.handshakes_per_second,
                most,
            ),
            requests_per_second: number("requestsPerSecond", &entry.requests_per_second, most),
            buffer_mib: number("bufferMiB", &entry.buffer_mib, traffic::MAX_BUFFER_MIB),
            weight: number("weight", &entry.weight, traffic::MAX_WEIGHT),
        })
    }

    pub(super) fn accrual(&mut self, field: &str, entry: &AccrualEntry) -> FailureAccrual {
        let mut accrual = FailureAccrual::default();
        for (name, given, into) in [
            ("consecutive", &entry.consecutive, &mut accrual.consecutive),
            (
                "successPercent",
                &entry.success_percent,
                &mut accrual.success_percent,
            ),
            (
                "minRequests",
                &entry.min_requests,
                &mut accrual.min_requests,
            ),
        ] {
            *into = self.word(&format!("{field}.{name}"), given.as_ref(), |text| {
                let most = if name == "successPercent" {
                    100
                } else {
                    1_000_000
                };
                traffic::number(text, 1..=most)
            });
        }
        for (name, given, into) in [
            ("window", &entry.window, &mut accrual.window_ms),
            (
                "minBackoff",
                &entry.min_backoff,
                &mut accrual.min_backoff_ms,
            ),
            (
                "maxBackoff",
                &entry.max_backoff,
                &mut accrual.max_backoff_ms,
            ),
        ] {
            *into = self.word(&format!("{field}.{name}"), given.as_ref(), traffic::millis);
        }
        let choices = [("false", false), ("true", true)];
        accrual.off = self.one_of(&format!("{field}.off"), entry.off.as_ref(), &choices);
        accrual
    }

    /// The default of `T` where nothing is given.
    pub(super) fn word<T: Default>(
        &mut self,
        field: &str,
        given: Option<&Text>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = given else {
            return T::default();
        };
        read(&text.value).unwrap_or_else(|problem| {
            self.wrong(text, format!("{field}: {problem}"));
            T::default()
        })
    }
}
