//! The questions a run can ask, and how each is asked.
//!
//! A scenario is asked in *blocks*: all arms once, in random order, on the same
//! schedule. An [`Experiment`] is what stands behind one or more scenarios that
//! share their trials (L1's load is also R2's); the runner calls it once per arm
//! and block and keeps whatever trials it returns.

mod bed;
mod capacity;
mod connections;
mod drive;
mod failclosed;
mod id;
mod idle;
mod keys;
mod kill;
mod meter;
mod neighbour;
mod steady;

pub use bed::{Bed, Beds, Parity, Shape};
pub use drive::{Drive, GENERATOR_CLASS};
pub use id::{Id, UnknownScenario};
pub use keys::{HOLD_KEY, hold_key};

use crate::accounting;
use crate::arm::Arm;
use crate::cluster::ClusterError;
use crate::results::{Metric, Trial};
use crate::run::{Interrupt, Interrupted, Plan, Progress};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What an experiment works with.
pub struct Lab<'a> {
    /// What is to be done.
    pub plan: &'a Plan,
    /// Whether to stop.
    pub interrupt: &'a Interrupt,
    /// Where to say what is going on.
    pub progress: &'a Progress,
    /// The run's start.
    pub started: Instant,
    /// The live clusters.
    pub beds: &'a Beds,
}

impl Lab<'_> {
    /// The bed of that shape and arm.
    pub fn bed(&self, shape: Shape, arm: Arm) -> Result<Rc<Bed>, Failure> {
        self.beds.get(self, shape, arm)
    }
}

/// One visit to one arm in one block.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Counted from 0.
    pub block: u32,
    /// Which arm.
    pub arm: Arm,
}

/// What stands behind one or more scenarios.
pub trait Experiment {
    /// The scenarios whose trials it yields.
    fn scenarios(&self) -> &'static [Id];

    /// What is measured, and how arms are compared by it.
    fn metrics(&self, scenario: Id) -> Vec<Metric>;

    /// How long one visit takes, about.
    fn visit_estimate(&self, plan: &Plan) -> Duration;

    /// How long preparing takes, about.
    fn prepare_estimate(&self, plan: &Plan) -> Duration;

    /// Sets up what all blocks need. Called once, before the first visit.
    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure>;

    /// What was fixed for all arms; complete once prepared.
    fn parameters(&self, scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value>;

    /// What a reader should know besides.
    fn notes(&self, _scenario: Id) -> Vec<String> {
        Vec::new()
    }

    /// The shapes of the beds that it uses; others are removed before it begins.
    fn shapes(&self, plan: &Plan) -> Vec<Shape>;

    /// Measures one arm once.
    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure>;
}

/// All experiments, in the order in which they run.
pub fn experiments() -> Vec<Box<dyn Experiment>> {
    vec![
        Box::new(steady::Steady::default()),
        Box::new(connections::Connections::default()),
        Box::new(neighbour::Neighbour::default()),
        Box::new(idle::Idle),
        Box::new(kill::Kill),
        Box::new(keys::Keys),
        Box::new(failclosed::FailClosed),
    ]
}

/// Why an experiment could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Somebody wanted it to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The cluster could not be built or used.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The kernel's figures could not be read.
    #[error(transparent)]
    Accounting(#[from] accounting::Error),
    /// The generator gave no report.
    #[error("the generator in pod {pod}: {problem}")]
    Generator {
        /// Where it ran.
        pod: String,
        /// What is known.
        problem: String,
    },
    /// Something in a pod did not come up.
    #[error("pod {pod}: {problem}")]
    Pod {
        /// Which.
        pod: String,
        /// What is known.
        problem: String,
    },
    /// A capacity could not be found.
    #[error("{0}")]
    Capacity(String),
    /// This program's own path.
    #[error("where is this program? {0}")]
    OwnPath(std::io::Error),
    /// Key material for a positive control.
    #[error("the key scan's own control: {0}")]
    Control(String),
}
