//! What a node's clock shows when ours shows something else.
//!
//! Every machine counts CLOCK_MONOTONIC from its own boot. A node is asked for the
//! time, a few times over; the quickest answer was on its way for the least, so
//! the node's clock stood at what it said somewhere within that round trip. Half
//! the round trip is the uncertainty of everything that is set against another
//! machine's clock. Nodes that boot together are one machine: there is nothing to
//! measure and no uncertainty.

use super::api::Kube;
use super::session::Session;
use crate::attend::protocol::Ask;
use crate::cluster::clock::monotonic_ns;
use crate::cluster::error::Result;
use std::time::Duration;

/// How often the time is asked for.
const TIMES: u32 = 15;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node's clock against ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// Theirs less ours, ns.
    pub ahead_ns: i64,
    /// The truth is within so much of it.
    pub uncertainty_ns: u64,
}

impl Offset {
    /// Asks an attendant for the time.
    pub fn measure(kube: &Kube, session: &Session) -> Result<Self> {
        let mut best: Option<Self> = None;
        for _ in 0..TIMES {
            let asked = monotonic_ns();
            let theirs: u64 = session.ask(Ask::Clock)?.wait(kube, PATIENCE)?;
            let one = Self::of(asked, theirs, monotonic_ns());
            if best.is_none_or(|best| one.uncertainty_ns < best.uncertainty_ns) {
                best = Some(one);
            }
        }
        Ok(best.unwrap_or_default())
    }

    fn of(asked: u64, theirs: u64, answered: u64) -> Self {
        let trip = answered.saturating_sub(asked);
        let middle = asked + trip / 2;
        Self {
            ahead_ns: theirs as i64 - middle as i64,
            uncertainty_ns: trip.div_ceil(2),
        }
    }

    /// The node's time at an instant of ours.
    pub fn theirs(&self, ours_ns: u64) -> u64 {
        ours_ns.saturating_add_signed(self.ahead_ns)
    }

    /// Our time at an instant of the node's.
    pub fn ours(&self, theirs_ns: u64) -> u64 {
        theirs_ns.saturating_add_signed(-self.ahead_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_is_within_the_uncertainty() {
        // The node is 5000 ahead; its answer was written at ours = 130.
        for (asked, answered) in [(100, 160), (129, 131), (100, 131), (129, 400)] {
            let offset = Offset::of(asked, 5_130, answered);
            let wrong = offset.ahead_ns.abs_diff(5_000);
            assert!(wrong <= offset.uncertainty_ns, "{offset:?}");
        }
    }

    #[test]
    fn there_and_back() {
        for ahead_ns in [-7, 0, 12] {
            let offset = Offset {
                ahead_ns,
                uncertainty_ns: 1,
            };
            assert_eq!(offset.ours(offset.theirs(1_000)), 1_000);
        }
    }
}
