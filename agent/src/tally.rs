//! What has happened to the proxy's processes, counted across them.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde::{Deserialize, Serialize};

/// The counts as they are passed from one process to the next. A process that ends
/// is counted by whoever sees it end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub handovers: u64,
    pub crashes: u64,
    pub hangs: u64,
    pub cut_by_crash: u64,
    pub cut_by_hang: u64,
    pub cut_by_handover: u64,
}

const CRASH: &str = "crash";
const HANG: &str = "hang";
const HANDOVER: &str = "handover";

/// The same as metrics.
#[derive(Clone)]
pub struct Counters {
    handovers: IntCounter,
    restarts: IntCounterVec,
    cut: IntCounterVec,
    /// Of this process alone.
    cni: IntCounterVec,
}

// === impl Counters ===

impl Counters {
    /// Goes on from `before`.
    pub fn new(registry: &Registry, before: Tally) -> Result<Self, prometheus::Error> {
        let handovers = IntCounter::new(
            "duet_agent_handovers_total",
            "Times that a new agent took the workloads over from the one that ran before.",
        )?;
        let restarts = IntCounterVec::new(
            Opts::new(
                "duet_agent_proxy_restarts_total",
                "Times that the supervisor started the proxy again, by reason: it crashed, or was \
                 killed because it did not answer (hang). Connections waited meanwhile.",
            ),
            &["reason"],
        )?;
        let cut = IntCounterVec::new(
            Opts::new(
                "duet_agent_connections_cut_total",
                "Open connections that a process of the proxy took along when it ended, by reason: \
                 crash and hang, as it told last, up to 250 ms before; and handover, those that \
                 were still open at the end of the drain.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(handovers.clone()))?;
        registry.register(Box::new(restarts.clone()))?;
        registry.register(Box::new(cut.clone()))?;
        let cni = IntCounterVec::new(
            Opts::new(
                "duet_agent_cni_requests_total",
                "Pods that the CNI plugin asked for before anything ran in them, by outcome: \
                 enrolled; passed, as they are not this agent's; or failed.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(cni.clone()))?;
        handovers.inc_by(before.handovers);
        for (counter, reason, count) in [
            (&restarts, CRASH, before.crashes),
            (&restarts, HANG, before.hangs),
            (&cut, CRASH, before.cut_by_crash),
            (&cut, HANG, before.cut_by_hang),
            (&cut, HANDOVER, before.cut_by_handover),
        ] {
            counter.with_label_values(&[reason]).inc_by(count);
        }
        Ok(Self {
            handovers,
            restarts,
            cut,
            cni,
        })
    }

    pub fn handed_over(&self) {
        self.handovers.inc();
    }

    pub fn cut_by_handover(&self, connections: u64) {
        self.cut.with_label_values(&[HANDOVER]).inc_by(connections);
    }

    /// Whether a pod has been enrolled.
    pub fn cni(&self, admitted: &Result<bool, String>) {
        let outcome = match admitted {
            Ok(true) => "enrolled",
            Ok(false) => "passed",
            Err(_) => "failed",
        };
        self.cni.with_label_values(&[outcome]).inc();
    }

    pub fn tally(&self) -> Tally {
        let restarts = |reason| self.restarts.with_label_values(&[reason]).get();
        let cut = |reason| self.cut.with_label_values(&[reason]).get();
        Tally {
            handovers: self.handovers.get(),
            crashes: restarts(CRASH),
            hangs: restarts(HANG),
            cut_by_crash: cut(CRASH),
            cut_by_hang: cut(HANG),
            cut_by_handover: cut(HANDOVER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_goes_on_counting() {
        let before = Tally {
            handovers: 3,
            crashes: 2,
            hangs: 1,
            cut_by_crash: 40,
            cut_by_hang: 5,
            cut_by_handover: 6,
        };
        let counters = Counters::new(&Registry::new(), before).unwrap();
        assert_eq!(counters.tally(), before);
        counters.handed_over();
        counters.cut_by_handover(4);
        let after = counters.tally();
        assert_eq!((after.handovers, after.cut_by_handover), (4, 10));
    }
}
