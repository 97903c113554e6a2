//! What a run will do, decided before it starts.
//!
//! Everything random follows from the seed: the order of the arms within a
//! block, and the schedule of every generator. All arms of a block get the same
//! schedule, so that a burst meets each of them.

use crate::arm::Arm;
use crate::results::Profile;
use crate::scenario::Id;
use crate::stats::MIN_BLOCKS;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// A run, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How long, and so what may be claimed.
    pub profile: Profile,
    /// Everything random follows from it.
    pub seed: u64,
    /// Which arms, in the order of the reports.
    pub arms: Vec<Arm>,
    /// Which scenarios, in the order of the reports.
    pub scenarios: Vec<Id>,
    /// How much of each.
    pub pace: Pace,
    /// Nodes have a kubelet: pods take seconds to come and go.
    pub kubelet: bool,
}

/// How much of everything a profile does.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// Blocks of L1, L2, R2 and I1.
    pub blocks: u32,
    /// Blocks of everything else from which something is inferred.
    pub fewer_blocks: u32,
    /// Blocks of what counts rather than infers.
    pub counting_blocks: u32,
    /// Time for blocks beyond the planned ones, where void trials made planned ones
    /// incomplete. It depends on gates, never on what was measured.
    pub spare: Duration,
    /// Load on every arm before the first block, until it settles.
    pub settle: Duration,
    /// Load before each measured window.
    pub warmup: Duration,
    /// Measured window of L1, R2 and I1.
    pub window: Duration,
    /// Measured window of L2.
    pub connect_window: Duration,
    /// L1's rates, as per cent of the smallest capacity.
    pub rates: &'static [u32],
    /// L1's protocols beside HTTP/1.1.
    pub all_protocols: bool,
    /// L1's paths: within a node only, or across nodes too.
    pub cross_node: bool,
    /// How capacity is found; without it, fixed low rates are used.
    pub probe: Option<Probe>,
    /// R1's numbers of pods; the largest is also that of X1.
    pub pods: &'static [u32],
    /// For how long R1 watches idle proxies.
    pub idle: Duration,
    /// I1's aggressor, in multiples of its quota.
    pub aggression: &'static [u32],
    /// I2's, in multiples of the handshakes of one pod's share.
    pub floods: &'static [u32],
    /// F1's meshed pods on the node whose proxy is killed.
    pub fault_pods: u32,
    /// F1's injections per arm.
    pub injections: u32,
    /// F1's window: one second of it passes before the kill.
    pub fault_window: Duration,
    /// Blocks of S1 to S6, I8 and U1.
    pub life_blocks: u32,
    /// Pods that S1 and S2 start at once.
    pub starts: u32,
    /// Whether S3 waits for a CronJob's next minute.
    pub cron: bool,
}

/// A search for capacity: the highest rate with p99 within the objective, at
/// most 0.1 % errors and 99 % achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Load before each step.
    pub warmup: Duration,
    /// Each step.
    pub step: Duration,
    /// Bisections after the first rate that failed.
    pub refinements: u32,
}

/// A capacity is the highest rate whose p99 is within this.
pub const OBJECTIVE: Duration = Duration::from_millis(25);

impl Pace {
    /// Of a profile.
    pub fn of(profile: Profile) -> Self {
        let ms = Duration::from_millis;
        match profile {
            Profile::Smoke => Self {
                blocks: 1,
                fewer_blocks: 1,
                counting_blocks: 1,
                spare: Duration::ZERO,
                settle: ms(3_000),
                warmup: ms(300),
                window: ms(1_500),
                connect_window: ms(1_000),
                rates: &[50],
                all_protocols: false,
                cross_node: false,
                probe: None,
                pods: &[1, 4],
                idle: ms(500),
                aggression: &[0, 4],
                floods: &[0, 2],
                fault_pods: 4,
                injections: 1,
                fault_window: ms(3_200),
                life_blocks: 1,
                starts: 2,
                cron: false,
            },
            Profile::Quick => Self {
                blocks: MIN_BLOCKS as u32,
                fewer_blocks: MIN_BLOCKS as u32,
                counting_blocks: 1,
                spare: ms(20_000),
                settle: ms(3_000),
                warmup: ms(300),
                window: ms(1_500),
                connect_window: ms(1_200),
                rates: &[10, 50],
                all_protocols: false,
                cross_node: false,
                probe: Some(Probe {
                    warmup: ms(200),
                    step: ms(800),
                    refinements: 1,
                }),
                pods: &[1, 4, 8],
                idle: ms(500),
                aggression: &[0, 8],
                floods: &[0, 4],
                fault_pods: 8,
                injections: 4,
                fault_window: ms(3_200),
                life_blocks: 3,
                starts: 3,
                cron: true,
            },
            // An hour, all told: twelve blocks where placements are compared by time, six where a
            // difference is larger than the noise, and windows just long enough for a median.
            Profile::Full => Self {
                blocks: 12,
                fewer_blocks: MIN_BLOCKS as u32,
                counting_blocks: 2,
                spare: ms(30_000),
                settle: ms(6_000),
                warmup: ms(300),
                window: ms(1_500),
                connect_window: ms(1_200),
                rates: &[10, 50, 70],
                all_protocols: true,
                cross_node: true,
                probe: Some(Probe {
                    warmup: ms(200),
                    step: ms(800),
                    refinements: 1,
                }),
                pods: &[1, 4, 16, 32],
                idle: ms(1_000),
                aggression: &[0, 2, 8],
                floods: &[0, 4],
                fault_pods: 12,
                injections: 10,
                fault_window: ms(4_000),
                life_blocks: 6,
                starts: 5,
                cron: true,
            },
        }
    }
}

impl Pace {
    /// Of a profile where nodes have a kubelet. It notices a death at its next look,
    /// up to a second later, and then starts a container, so faults are watched for
    /// longer; and a pod more costs seconds, so there are fewer sizes.
    pub fn with_kubelet(profile: Profile) -> Self {
        let ms = Duration::from_millis;
        let pace = Self::of(profile);
        match profile {
            Profile::Smoke => Self {
                fault_window: ms(8_000),
                ..pace
            },
            Profile::Quick => Self {
                pods: &[1, 8],
                aggression: &[0, 8],
                injections: 3,
                fault_window: ms(10_000),
                ..pace
            },
            Profile::Full => Self {
                fault_window: ms(15_000),
                ..pace
            },
        }
    }
}

impl Plan {
    /// How long beds take to stand, about.
    pub fn building(&self, beds: usize) -> Duration {
        if self.kubelet {
            // All of them at once.
            Duration::from_secs(8)
        } else {
            Duration::from_millis(1_500) * beds as u32
        }
    }

    /// The same for the fleets of a scenario's arms, unless one of these had them built.
    pub fn building_fleets(&self, scenario: Id, earlier: &[Id]) -> Duration {
        let arms = self.arms_of(scenario).len();
        if self.wants(earlier) {
            return Duration::ZERO;
        }
        if self.kubelet {
            return self.building(arms);
        }
        (Duration::from_secs(1) + Duration::from_millis(100) * self.pace.fault_pods) * arms as u32
    }

    /// How long it takes to put a fresh proxy where one was killed, about.
    pub fn renewing(&self) -> Duration {
        if self.kubelet {
            Duration::from_secs(8)
        } else {
            Duration::ZERO
        }
    }

    /// The arms of a block in the order in which they run.
    pub fn order(&self, scenario: Id, block: u32, arms: &[Arm]) -> Vec<Arm> {
        let mut order = arms.to_vec();
        order.shuffle(&mut self.random(&format!("order/{scenario}/{block}")));
        order
    }

    /// The seed of a block's schedule: the same for all its arms.
    pub fn schedule(&self, scenario: Id, block: u32, point: &str) -> u64 {
        self.number(&format!("schedule/{scenario}/{block}/{point}"))
    }

    /// A number that follows from the seed and a purpose.
    pub fn number(&self, purpose: &str) -> u64 {
        let digest = self.digest(purpose);
        u64::from_le_bytes(digest[..8].try_into().unwrap_or_default())
    }

    fn random(&self, purpose: &str) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.digest(purpose))
    }

    fn digest(&self, purpose: &str) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.seed.to_le_bytes())
            .chain_update(purpose.as_bytes())
            .finalize()
            .into()
    }

    /// Blocks of a scenario.
    pub fn blocks(&self, scenario: Id) -> u32 {
        match scenario {
            Id::L1 | Id::L2 | Id::R2 | Id::I1 => self.pace.blocks,
            Id::L3
            | Id::L4
            | Id::L5
            | Id::R1
            | Id::R4
            | Id::I2
            | Id::I4
            | Id::I5
            | Id::I6
            | Id::I7
            | Id::I9 => self.pace.fewer_blocks,
            // A minute and more for each arm, and what it counts does not vary.
            Id::U2 => self.pace.counting_blocks.min(1),
            Id::U1 if !self.kubelet => self.pace.counting_blocks,
            Id::R3
            | Id::R5
            | Id::I3
            | Id::F2
            | Id::F3
            | Id::F4
            | Id::F5
            | Id::S5
            | Id::X1
            | Id::X2
            | Id::X3
            | Id::X4 => self.pace.counting_blocks,
            Id::F1 => self.pace.injections,
            Id::I8 | Id::S1 | Id::S2 | Id::S3 | Id::S4 | Id::S6 | Id::U1 => self.pace.life_blocks,
        }
    }

    /// Those of the run's arms that a scenario runs in.
    pub fn arms_of(&self, scenario: Id) -> Vec<Arm> {
        self.arms
            .iter()
            .copied()
            .filter(|arm| scenario.runs_in(*arm, self.profile))
            .collect()
    }

    /// Those of `arms` that are visited in a block. Who stands beside the comparison to explain it is
    /// visited in every second block, where that leaves enough for an interval.
    pub fn arms_in(&self, scenario: Id, block: u32, arms: &[Arm]) -> Vec<Arm> {
        let plenty = self.blocks(scenario) >= 2 * MIN_BLOCKS as u32;
        let visited = |arm: &Arm| !(plenty && arm.explains()) || block.is_multiple_of(2);
        arms.iter().copied().filter(visited).collect()
    }

    /// Whether any of these is to be run.
    pub fn wants(&self, any: &[Id]) -> bool {
        any.iter().any(|id| self.scenarios.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn plan(seed: u64) -> Plan {
        Plan {
            profile: Profile::Quick,
            seed,
            arms: Arm::ALL.to_vec(),
            scenarios: Id::ALL.to_vec(),
            pace: Pace::of(Profile::Quick),
            kubelet: false,
        }
    }

    #[test]
    fn a_seed_is_the_whole_plan() {
        for block in 0..20 {
            assert_eq!(
                plan(7).order(Id::L1, block, &Arm::ALL),
                plan(7).order(Id::L1, block, &Arm::ALL)
            );
            assert_eq!(
                plan(7).schedule(Id::L1, block, "50 %"),
                plan(7).schedule(Id::L1, block, "50 %")
            );
        }
        assert_ne!(
            plan(7).schedule(Id::L1, 0, "50 %"),
            plan(8).schedule(Id::L1, 0, "50 %")
        );
    }

    #[test]
    fn every_block_holds_every_arm_once() {
        for block in 0..50 {
            let order = plan(1).order(Id::I1, block, &Arm::ALL);
            assert_eq!(order.len(), Arm::ALL.len());
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), Arm::ALL.len());
        }
    }

    #[test]
    fn no_arm_has_a_fixed_place() {
        let first: BTreeSet<Arm> = (0..60)
            .map(|block| plan(3).order(Id::L1, block, &Arm::ALL)[0])
            .collect();
        assert_eq!(first.len(), Arm::ALL.len());
    }

    #[test]
    fn schedules_differ_between_blocks_and_points_only() {
        let plan = plan(9);
        let seeds: BTreeSet<u64> = (0..6)
            .flat_map(|block| ["10 %", "50 %"].map(|point| plan.schedule(Id::L1, block, point)))
            .collect();
        assert_eq!(seeds.len(), 12);
    }

    #[test]
    fn profiles_have_the_blocks_that_their_claims_need() {
        assert_eq!(Pace::of(Profile::Smoke).blocks, 1);
        assert!(Pace::of(Profile::Quick).blocks >= 6);
        assert!(Pace::of(Profile::Full).blocks >= 12);
        assert!(Pace::of(Profile::Full).injections >= 10);
        assert!(Pace::of(Profile::Full).settle >= Duration::from_secs(3));
    }
}
