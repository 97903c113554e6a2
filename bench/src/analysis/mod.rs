//! From trials to claims.
//!
//! The decisions a hostile reader should know:
//!
//! * **Effect**: per block, the logarithm of arm ÷ baseline (or the difference, where a metric
//!   asks for it or has zeros); the estimate is their median.
//! * **Noise floor**: `aa` is a second copy of the sidecar arm. Per metric and point, the floor is
//!   the *outer end* of the 95 % interval of the median aa ÷ sidecar effect: the largest
//!   difference that the arm against itself has not ruled out. Below six blocks it is the largest
//!   effect seen. The median of |effects| would be smaller and would flatter.
//! * **Claim**: run valid, ≥ 6 blocks, interval excludes no-effect, estimate beyond the floor.
//!   Where no `aa` ran in a scenario, latency and CPU metrics claim nothing there; counts and
//!   memory rest on the interval alone.
//! * **Equivalence**: the interval lies inside ±10 % (latency, CPU), ±5 % (memory) or ±1 point of
//!   goodput, and the noise floor is below that margin. Anything else is `~`, with the number of blocks that would settle it.
//! * **Counts are seen, not inferred**: bytes on a wire, keys in a process and pods hit by one kill
//!   are reported as observed with the number of observations, whatever that number is.
//! * **Voids**: a pair with a void trial drops out for both arms. Pooled over the run, if two
//!   arms' void shares differ by more than 20 points and Fisher's exact p is below 0.05, the
//!   conditions were not the same for all and the run is void; so is one that lost more than a
//!   third of all trials.

mod comparisons;
mod concern;
mod faults;
mod memory;
mod slowdown;
mod status;
mod table;
mod verdicts;
pub mod words;

#[cfg(test)]
mod rest_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod words_tests;

use crate::results::{Analysis, Arm, Placement, Results, Scenario, State};
pub use concern::Concern;
pub use memory::block_lines;
pub use status::mismatched_cores;
pub use table::Table;

/// Reasons that hold for every comparison of a run.
const VOID: &str = "the run is void";
const SMOKE: &str = "a smoke run claims nothing";

/// Fills [`Results::analysis`] and [`Results::status`] from the rest; may be repeated.
pub fn analyse(results: &mut Results) {
    let voids = status::void_shares(results);
    results.status = status::of(results, &voids);
    let mut analysis = Analysis {
        voids,
        ..Analysis::default()
    };
    for scenario in &results.scenarios {
        let study = Study::new(results, scenario);
        analysis.comparisons.extend(comparisons::of(&study));
        analysis.slowdowns.extend(slowdown::of(&study));
        analysis.memory_lines.extend(memory::lines(&study));
        analysis.crossovers.extend(memory::crossovers(&study));
        analysis.faults.extend(faults::of(&study));
    }
    analysis.verdicts = verdicts::of(results, &analysis);
    results.analysis = analysis;
}

/// One scenario, its values, and the rules of the run it belongs to.
struct Study<'a> {
    results: &'a Results,
    scenario: &'a Scenario,
    table: Table,
    /// Why nothing may be claimed, if nothing may.
    silence: Option<&'static str>,
}

impl<'a> Study<'a> {
    fn new(results: &'a Results, scenario: &'a Scenario) -> Study<'a> {
        Study {
            results,
            scenario,
            table: Table::of(scenario),
            silence: match results.status.state {
                State::Valid => None,
                State::Void => Some(VOID),
                State::Smoke => Some(SMOKE),
            },
        }
    }

    fn seed(&self, label: &str) -> u64 {
        crate::stats::subseed(self.results.seed, &format!("{}/{label}", self.scenario.id))
    }

    /// Arms of the run that have trials in the scenario.
    fn arms(&self) -> impl Iterator<Item = &'a Arm> {
        let present = self.table.arms().to_vec();
        self.results
            .arms
            .iter()
            .filter(move |arm| present.contains(&arm.name))
    }

    /// (arm, baseline), in reading order: each mesh against no mesh, then the agents and peers
    /// against the sidecars, then further agents against the first, then each copy against its original.
    fn pairs(&self) -> Vec<(&'a Arm, &'a Arm)> {
        let arms: Vec<&Arm> = self.arms().collect();
        let originals = || arms.iter().copied().filter(|arm| arm.copy_of.is_none());
        let of = |placement| originals().filter(move |arm| arm.placement == placement);
        let mut pairs = Vec::new();
        for baseline in of(Placement::None) {
            pairs.extend(
                originals()
                    .filter(|arm| arm.placement != Placement::None)
                    .map(|arm| (arm, baseline)),
            );
        }
        for baseline in of(Placement::Sidecar) {
            pairs.extend(
                of(Placement::Agent)
                    .chain(of(Placement::External))
                    .map(|arm| (arm, baseline)),
            );
        }
        if let Some(first) = of(Placement::Agent).next() {
            pairs.extend(of(Placement::Agent).skip(1).map(|arm| (arm, first)));
        }
        pairs.extend(self.copies());
        pairs
    }

    /// Arms that repeat another, with the arm they repeat.
    fn copies(&self) -> Vec<(&'a Arm, &'a Arm)> {
        let original = |copy: &'a Arm| {
            let name = copy.copy_of.as_deref()?;
            self.arms().find(|arm| arm.name == name)
        };
        self.arms()
            .filter_map(|copy| Some((copy, original(copy)?)))
            .collect()
    }
}
