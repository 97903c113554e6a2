//! How many blocks fit into a given time, or how long a given number takes.
//!
//! The profile fixes how much is measured within a block; only the number of blocks is chosen here, before
//! the run and from estimates alone, never from what is measured. All kinds of blocks grow and shrink by one
//! factor, but none below what its claims need.

use super::execute::estimate;
use super::plan::{Pace, Plan};
use crate::results::Profile;
use crate::scenario::{Experiment, experiments};
use crate::stats::MIN_BLOCKS;
use std::time::Duration;

/// Share of the time that making up for void trials may take.
const SPARE: u32 = 20;
/// More blocks than anybody waits for.
const MOST: u32 = 1_000;

/// A time too short for this plan.
#[derive(Debug, thiserror::Error)]
#[error(
    "--time-budget: {blocks} blocks of these scenarios and arms take about {}; give that much, or fewer of \
     them with --scenarios and --arms",
    humantime::format_duration(Duration::from_secs(.least.as_secs()))
)]
pub struct TooShort {
    least: Duration,
    blocks: u32,
}

impl Plan {
    /// The same plan with as many blocks as fit into the time.
    pub fn within(&self, budget: Duration) -> Result<Self, TooShort> {
        let fewest = match self.profile {
            Profile::Smoke => 1,
            Profile::Quick | Profile::Full => MIN_BLOCKS as u32,
        };
        let mut pace = self.pace.clone();
        pace.spare = pace.spare.min(budget / SPARE);
        let wanted: Vec<Box<dyn Experiment>> = experiments()
            .into_iter()
            .filter(|experiment| self.wants(experiment.scenarios()))
            .collect();
        let with = |blocks: u32| Self {
            pace: pace.with_blocks(blocks),
            ..self.clone()
        };
        let takes = |plan: &Self| estimate(plan, &wanted) + plan.pace.spare;
        let mut chosen = with(fewest);
        let least = takes(&chosen);
        if least > budget {
            return Err(TooShort {
                least: least + Duration::from_secs(1),
                blocks: fewest,
            });
        }
        for blocks in fewest + 1..=MOST {
            let more = with(blocks);
            if takes(&more) > budget {
                break;
            }
            chosen = more;
        }
        Ok(chosen)
    }
}

impl Pace {
    /// With so many blocks of what is timed, and of everything else in proportion.
    pub fn with_blocks(&self, blocks: u32) -> Self {
        let scaled = |count: u32| {
            let least = count.min(MIN_BLOCKS as u32);
            (count * blocks).div_ceil(self.blocks).max(least)
        };
        Self {
            blocks,
            fewer_blocks: scaled(self.fewer_blocks),
            counting_blocks: scaled(self.counting_blocks),
            injections: scaled(self.injections),
            life_blocks: scaled(self.life_blocks),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm::Arm;
    use crate::scenario::Id;

    fn plan(profile: Profile, scenarios: &[Id]) -> Plan {
        Plan {
            profile,
            seed: 7,
            arms: vec![Arm::None, Arm::Sidecar, Arm::Agent, Arm::Aa],
            scenarios: scenarios.to_vec(),
            pace: Pace::of(profile),
            kubelet: false,
        }
    }

    #[test]
    fn more_time_is_more_blocks_and_never_too_much() {
        let plan = plan(Profile::Quick, &[Id::L1, Id::F1]);
        let wanted = |plan: &Plan| {
            let wanted: Vec<_> = experiments()
                .into_iter()
                .filter(|one| plan.wants(one.scenarios()))
                .collect();
            estimate(plan, &wanted)
        };
        let minutes = |minutes: u64| plan.within(Duration::from_secs(60 * minutes));
        let (ten, thirty) = (minutes(10).unwrap(), minutes(30).unwrap());
        assert!(thirty.pace.blocks > 2 * ten.pace.blocks);
        for (chosen, limit) in [(&ten, 10_u64), (&thirty, 30)] {
            let takes = wanted(chosen) + chosen.pace.spare;
            let limit = Duration::from_secs(60 * limit);
            assert!(takes <= limit && takes > limit * 8 / 10, "{takes:?}");
        }
    }

    #[test]
    fn what_claims_need_is_kept_or_refused() {
        let plan = plan(Profile::Full, &[Id::L1, Id::R1, Id::F1]);
        let six = plan.pace.with_blocks(6);
        assert_eq!((six.blocks, six.fewer_blocks, six.injections), (6, 6, 6));
        assert_eq!(plan.pace.with_blocks(12), plan.pace);
        let refused = plan.within(Duration::from_secs(30)).unwrap_err();
        let line = refused.to_string();
        assert!(line.contains("6 blocks") && line.contains('m'), "{line}");
    }
}
