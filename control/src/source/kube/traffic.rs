//! What a service's annotations say of the way of requests to it.
//!
//! An annotation is a list of words, "consecutive=5, minBackoff=2s", the same words as
//! in the file source. What cannot be read is complained of and left at its default.

use super::complaint::Complaints;
use crate::injector::names;
use crate::traffic;
use duet_core::api::FailureAccrual;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub failure_accrual: Option<FailureAccrual>,
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
        all
    }
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
