//! What the file says of the way of requests to a service's endpoints.

use super::{Reading, Text};
use crate::traffic;
use duet_core::api::FailureAccrual;
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

// === impl Reading ===

impl Reading {
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
