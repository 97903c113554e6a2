//! What the kernel programs cost, as the kernel counts it.
//!
//! It does so while `kernel.bpf_stats_enabled` is set or somebody has asked for it by
//! bpf(2). It reads the clock twice for that in every run, so the agent does not ask. Each namespace has
//! an instance of sk_lookup of its own, which goes with it: what is told is the sum over
//! all that there have been, but for what a last one did after it was last looked at.

use crate::interception::Interception;
use aya::programs::loaded_programs;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounterVec, Opts};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Looks whenever it is asked for metrics.
pub struct Costs {
    interception: Arc<Interception>,
    time: CounterVec,
    runs: IntCounterVec,
    /// By the kernel's numbers, which are not used twice.
    seen: Mutex<HashMap<u32, (Duration, u64)>>,
}

impl Costs {
    pub fn new(interception: Arc<Interception>) -> Result<Self, prometheus::Error> {
        let time = Opts::new(
            "duet_agent_bpf_run_seconds_total",
            "Time that the kernel has spent in this agent's programs, while it was counting \
             (kernel.bpf_stats_enabled).",
        );
        let runs = Opts::new(
            "duet_agent_bpf_runs_total",
            "Times that the kernel has run this agent's programs, while it was counting \
             (kernel.bpf_stats_enabled).",
        );
        Ok(Self {
            interception,
            time: CounterVec::new(time, &["program"])?,
            runs: IntCounterVec::new(runs, &["program"])?,
            seen: Mutex::default(),
        })
    }

    fn look(&self) {
        let ours = self.interception.programs();
        let mut seen = self.seen.lock();
        seen.retain(|id, _| ours.contains_key(id));
        // One that ends in between is passed over.
        for program in loaded_programs().flatten() {
            let Some(name) = ours.get(&program.id()) else {
                continue;
            };
            let now = (program.run_time(), program.run_count());
            let (time, runs) = seen.insert(program.id(), now).unwrap_or_default();
            let (time, runs) = (now.0.saturating_sub(time), now.1.saturating_sub(runs));
            if runs > 0 {
                self.runs.with_label_values(&[name]).inc_by(runs);
                let time = time.as_secs_f64();
                self.time.with_label_values(&[name]).inc_by(time);
            }
        }
    }
}

impl Collector for Costs {
    fn desc(&self) -> Vec<&Desc> {
        [self.time.desc(), self.runs.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.look();
        [self.time.collect(), self.runs.collect()].concat()
    }
}
