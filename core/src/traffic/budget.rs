//! How many retries there may be: a part of the requests, and a few more.
//!
//! A server that fails because it has too much to do must not get more for it. Within
//! ten seconds there are at most [`PERCENT`] % as many retries as requests, and
//! [`PER_SECOND`] a second beside them, so that a service with few requests can be
//! retried at all. The numbers are Linkerd's. A workload has a budget of its own for each service: one
//! tenant of an agent cannot use up another's.

use crate::api;
use parking_lot::Mutex;
use std::time::Instant;

const PERCENT: u32 = 20;
const PER_SECOND: u32 = 10;
/// Seconds over which requests and retries are counted.
const WINDOW: usize = 10;

#[derive(Debug)]
pub struct Budget {
    percent: u64,
    per_second: u64,
    since: Instant,
    counts: Mutex<Counts>,
}

/// By the second.
#[derive(Debug, Default)]
struct Counts {
    newest: u64,
    requests: [u64; WINDOW],
    retries: [u64; WINDOW],
}

// === impl Budget ===

impl Budget {
    pub fn new(said: &api::RetryBudget) -> Self {
        let (percent, per_second) = bounds(said);
        Self {
            percent,
            per_second,
            since: Instant::now(),
            counts: Mutex::default(),
        }
    }

    /// Whether it is what `said` describes.
    pub fn is(&self, said: &api::RetryBudget) -> bool {
        (self.percent, self.per_second) == bounds(said)
    }

    /// There is a request, the first of its tries.
    pub fn deposit(&self, now: Instant) {
        let mut counts = self.counts.lock();
        let slot = counts.slot(self.second(now));
        counts.requests[slot] += 1;
    }

    /// Whether there may be a retry, which it counts.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut counts = self.counts.lock();
        let slot = counts.slot(self.second(now));
        let requests: u64 = counts.requests.iter().sum();
        let retries: u64 = counts.retries.iter().sum();
        let allowed = requests * self.percent / 100 + self.per_second * WINDOW as u64;
        let granted = retries < allowed;
        if granted {
            counts.retries[slot] += 1;
        }
        granted
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs()
    }
}

fn bounds(said: &api::RetryBudget) -> (u64, u64) {
    let or = |given: Option<u32>, default: u32| u64::from(given.unwrap_or(default));
    (or(said.percent, PERCENT), or(said.per_second, PER_SECOND))
}

impl Counts {
    /// Where this second is counted; what is too long ago is forgotten.
    fn slot(&mut self, second: u64) -> usize {
        let place = |second: u64| usize::try_from(second % WINDOW as u64).unwrap_or_default();
        let passed = second.saturating_sub(self.newest).min(WINDOW as u64);
        for old in 0..passed {
            let slot = place(second - old);
            self.requests[slot] = 0;
            self.retries[slot] = 0;
        }
        self.newest = self.newest.max(second);
        place(self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn under_total_failure_retries_are_a_part_of_the_requests() {
        let budget = Budget::new(&api::RetryBudget::default());
        let mut retries = 0;
        for n in 0..10_000u32 {
            let now = budget.since + Duration::from_millis(n.into());
            budget.deposit(now);
            retries += u32::from(budget.withdraw(now));
        }
        // 20 % of 10 000, and 10 a second.
        assert!((2000..=2100).contains(&retries), "{retries}");
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let budget = Budget::new(&api::RetryBudget {
            percent: Some(0),
            per_second: Some(1),
        });
        let later = budget.since + Duration::from_secs(1000);
        let granted = (0..100).filter(|_| budget.withdraw(later)).count();
        assert_eq!(granted, WINDOW);
        let none = Budget::new(&api::RetryBudget {
            percent: Some(0),
            per_second: Some(0),
        });
        none.deposit(none.since);
        assert!(!none.withdraw(none.since));
    }

    proptest! {
        /// In whatever order they come, in any ten seconds.
        #[test]
        fn no_window_has_more_than_its_part(
            steps in prop::collection::vec((0..400u64, any::<bool>()), 1..2000),
        ) {
            let budget = Budget::new(&api::RetryBudget { percent: Some(20), per_second: Some(2) });
            let mut at = 0;
            let mut seconds = std::collections::BTreeMap::<u64, (u64, u64)>::new();
            for (pause, request) in steps {
                at += pause;
                let now = budget.since + Duration::from_millis(at);
                let counts = seconds.entry(at / 1000).or_default();
                if request {
                    budget.deposit(now);
                    counts.0 += 1;
                } else if budget.withdraw(now) {
                    counts.1 += 1;
                    let last = at / 1000;
                    let window = seconds.range(last.saturating_sub(9)..=last);
                    let (requests, retries) =
                        window.fold((0, 0), |sum, (_, one)| (sum.0 + one.0, sum.1 + one.1));
                    prop_assert!(retries <= requests / 5 + 20, "{} of {}", retries, requests);
                }
            }
        }
    }
}
