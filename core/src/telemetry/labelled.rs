//! Counters of what happened to a workload's traffic, by two labels that control has a
//! say in.
//!
//! Control may name any number of policies, services and routes, and forget them: past
//! [`MAX_SERIES`] the further ones are counted together, and what is gone goes from the
//! metrics.

use crate::capture::WorkloadName;
use dashmap::DashMap;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Of one metric, those that have series of their own.
const MAX_SERIES: usize = 10_000;
/// What all others are about.
const OTHER: &str = "other";

pub struct Labelled {
    by: IntCounterVec,
    series: DashMap<(WorkloadName, String, String), IntCounter>,
}

// === impl Labelled ===

impl Labelled {
    /// # Panics
    /// If the registry has a metric of this name.
    pub fn new(registry: &Registry, name: &str, help: &str, labels: [&str; 2]) -> Self {
        let [subject, result] = labels;
        let labels = ["namespace", "workload", subject, result];
        let by = IntCounterVec::new(Opts::new(name, help), &labels).expect("static");
        registry.register(Box::new(by.clone())).expect("unique");
        Self {
            by,
            series: DashMap::new(),
        }
    }

    pub fn counter(&self, local: &WorkloadName, subject: &str, result: &str) -> IntCounter {
        let key = (local.clone(), subject.to_owned(), result.to_owned());
        if let Some(known) = self.series.get(&key) {
            return known.clone();
        }
        let (local, subject, result) = key;
        // Results are few, unless they are names as well.
        let (subject, result) = match self.series.len() {
            few if few < MAX_SERIES => (subject, result),
            many if many < 2 * MAX_SERIES => (OTHER.to_owned(), result),
            _ => (OTHER.to_owned(), OTHER.to_owned()),
        };
        let labels = [local.namespace(), local.name(), &subject, &result];
        let counter = self.by.with_label_values(&labels);
        self.series
            .entry((local, subject, result))
            .or_insert(counter)
            .clone()
    }

    /// Removes what is told of a workload, but for the subjects that are `still` there.
    pub fn forget(&self, local: &WorkloadName, still: impl Fn(&str) -> bool) {
        self.series.retain(|(workload, subject, result), _| {
            let kept = workload != local || still(subject);
            if !kept {
                let labels = [workload.namespace(), workload.name(), subject, result];
                let _ = self.by.remove_label_values(&labels);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposed(registry: &Registry) -> usize {
        let families = registry.gather();
        families
            .iter()
            .map(|family| family.get_metric().len())
            .sum()
    }

    #[test]
    fn series_are_bounded_and_go_with_their_policy() {
        let registry = Registry::new();
        let all = Labelled::new(&registry, "a_total", "What.", ["policy", "decision"]);
        let [web, cart] = ["web-0", "cart-0"].map(|name| WorkloadName::new("shop", name));
        all.counter(&web, "shop/a", "deny").inc();
        all.counter(&web, "shop/a", "deny").inc();
        all.counter(&web, "shop/b", "allow").inc();
        all.counter(&cart, "shop/a", "deny").inc();
        assert_eq!(all.counter(&web, "shop/a", "deny").get(), 2);
        assert_eq!(exposed(&registry), 3);
        all.forget(&web, |policy| policy == "shop/b");
        assert_eq!(exposed(&registry), 2);
        all.forget(&cart, |_| false);
        assert_eq!(exposed(&registry), 1);

        for policy in 0..MAX_SERIES + 10 {
            all.counter(&web, &format!("shop/{policy}"), "allow").inc();
        }
        assert!(exposed(&registry) <= MAX_SERIES + 1);
        assert!(all.counter(&web, OTHER, "allow").get() >= 10);
    }
}
