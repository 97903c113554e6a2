//! How often each policy decided.
//!
//! Control may name any number of policies, and forget them: past [`MAX_SERIES`] the
//! further ones are counted together, and a policy that selects a workload no more
//! goes from its metrics.

use crate::capture::WorkloadName;
use dashmap::DashMap;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Pairs of workload and policy that have series of their own.
const MAX_SERIES: usize = 10_000;
/// The policy of all others.
const OTHER: &str = "other";

pub struct Decisions {
    by: IntCounterVec,
    series: DashMap<(WorkloadName, String, &'static str), IntCounter>,
}

// === impl Decisions ===

impl Decisions {
    /// # Panics
    /// If the registry has a metric of this name.
    pub fn new(registry: &Registry) -> Self {
        let name = "duet_policy_decisions_total";
        let help = "What clients asked for and a policy decided, by policy (\"none\": none of \
                    those that select the workload matched) and decision (allow, deny, audit).";
        let labels = ["namespace", "workload", "policy", "decision"];
        let by = IntCounterVec::new(Opts::new(name, help), &labels).expect("static");
        registry.register(Box::new(by.clone())).expect("unique");
        Self {
            by,
            series: DashMap::new(),
        }
    }

    pub fn counter(
        &self,
        local: &WorkloadName,
        policy: &str,
        decision: &'static str,
    ) -> IntCounter {
        let key = (local.clone(), policy.to_owned(), decision);
        if let Some(known) = self.series.get(&key) {
            return known.clone();
        }
        let (local, policy, decision) = key;
        let policy = if self.series.len() < MAX_SERIES {
            policy
        } else {
            OTHER.to_owned()
        };
        let labels = [local.namespace(), local.name(), &policy, decision];
        let counter = self.by.with_label_values(&labels);
        self.series
            .entry((local, policy, decision))
            .or_insert(counter)
            .clone()
    }

    /// Removes what is told of a workload, but for the policies that `still` select it.
    pub fn forget(&self, local: &WorkloadName, still: impl Fn(&str) -> bool) {
        self.series.retain(|(workload, policy, decision), _| {
            let kept = workload != local || still(policy);
            if !kept {
                let labels = [workload.namespace(), workload.name(), policy, decision];
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
        let all = Decisions::new(&registry);
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
