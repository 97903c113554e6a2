//! The questions a run can ask, and how each is asked.
//!
//! A scenario is asked in *blocks*: all arms once, in random order, on the same
//! schedule. An [`Experiment`] is what stands behind one or more scenarios that
//! share their trials (L1's load is also R2's); the runner calls it once per arm
//! and block and keeps whatever trials it returns.

mod attribution;
mod away;
mod bed;
mod bulk;
mod capacity;
mod chain;
mod churn;
mod connections;
mod crashloop;
mod deletion;
mod drive;
mod elephant;
mod exhaustion;
mod failclosed;
mod fairness;
mod forgery;
mod handshakes;
mod hang;
mod hoard;
mod hold;
mod id;
mod idle;
mod job;
mod keys;
mod kill;
mod meter;
mod neighbour;
mod poison;
mod press;
mod privileges;
mod reachable;
mod renewing;
mod slo;
mod slow;
mod squeeze;
mod start;
mod steady;
mod upgrade;
mod victim;

pub use bed::{Bed, Beds, Parity, Shape};
pub use drive::Drive;
pub use id::{Id, UnknownScenario};

use crate::accounting::Baseline;
use crate::arm::Arm;
use crate::cluster::kube::{KubeSite, Stage};
use crate::cluster::{ClusterError, Site};
use crate::results::{Metric, Point, Trial};
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
    /// Where clusters are made.
    pub site: &'a dyn Site,
    /// The same, where it is a Kubernetes cluster.
    pub kube: Option<&'a KubeSite>,
    /// The live clusters.
    pub beds: &'a Beds,
}

impl Lab<'_> {
    /// What the machines do by themselves.
    pub fn baseline(&self, window: Duration) -> Result<Baseline, Failure> {
        let before = self.site.machine()?;
        let began = Instant::now();
        self.interrupt.sleep(window)?;
        let used = self.site.machine()? - before;
        Ok(Baseline::of(used, began.elapsed(), self.site.cores()))
    }

    /// A trial that is a few numbers and no load.
    pub fn trial<'k>(
        &self,
        arm: Arm,
        point: Point,
        began: Instant,
        values: impl IntoIterator<Item = (&'k str, f64)>,
    ) -> Trial {
        Trial {
            arm: arm.name().to_owned(),
            point,
            repeat: 0,
            started_s: began.duration_since(self.started).as_secs_f64(),
            duration_s: began.elapsed().as_secs_f64(),
            load: None,
            histograms: Default::default(),
            values: values
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            timelines: Vec::new(),
            voids: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The Kubernetes cluster that the run is on.
    pub fn kube(&self) -> Result<&KubeSite, Failure> {
        self.kube.ok_or_else(|| {
            ClusterError::Unsupported("this needs a kubelet: --cluster kube".to_owned()).into()
        })
    }

    /// Room for life cycles in an arm's namespace.
    pub fn stage(&self, arm: Arm) -> Result<Stage, Failure> {
        let classic = arm == Arm::ClassicSidecar;
        Ok(self.kube()?.stage(arm.name(), arm.placement(), classic)?)
    }

    /// The beds of that shape of all these arms.
    pub fn stand(&self, shape: Shape, arms: &[Arm]) -> Result<Vec<Rc<Bed>>, Failure> {
        self.beds.stand(self, shape, arms)
    }

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

    /// The same for an arm that may be asked less.
    fn visit_estimate_of(&self, plan: &Plan, _arm: Arm) -> Duration {
        self.visit_estimate(plan)
    }

    /// How long preparing takes, about.
    fn prepare_estimate(&self, plan: &Plan) -> Duration;

    /// Takes what was found out in the first part of an interrupted run from its parameters, so that the blocks
    /// to come are of the same kind. Called before [`Self::prepare`].
    fn recall(&mut self, _parameters: &BTreeMap<String, serde_json::Value>) {}

    /// Sets up what all blocks need: the beds, and whatever else. Called once, before the first visit.
    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        for shape in self.shapes(lab.plan) {
            lab.stand(shape, arms)?;
        }
        Ok(())
    }

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
        Box::new(slo::Capacity),
        Box::new(connections::Connections::default()),
        Box::new(bulk::Bulk::default()),
        Box::new(attribution::Attribution),
        Box::new(poison::Poison),
        Box::new(hold::Hold),
        Box::new(chain::Chain),
        Box::new(start::Start),
        Box::new(job::Jobs::default()),
        Box::new(deletion::Deletion),
        Box::new(upgrade::Upgrade),
        Box::new(neighbour::Neighbour::default()),
        Box::new(handshakes::Handshakes::default()),
        Box::new(slow::Slow::default()),
        Box::new(elephant::Elephant::default()),
        Box::new(squeeze::Squeeze::default()),
        Box::new(hoard::Hoard),
        Box::new(fairness::Fairness),
        Box::new(idle::Idle),
        Box::new(kill::Kill),
        Box::new(hang::Hang),
        Box::new(crashloop::CrashLoop),
        Box::new(away::Away),
        Box::new(exhaustion::Exhaustion),
        Box::new(churn::Churn),
        Box::new(keys::Keys),
        Box::new(privileges::Privileges),
        Box::new(failclosed::FailClosed),
        Box::new(forgery::Forgery),
        Box::new(reachable::Reachable),
        Box::new(renewing::Renewing),
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
    Cluster(ClusterError),
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
    /// Key material for a positive control.
    #[error("the key scan's own control: {0}")]
    Control(String),
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            error => Self::Cluster(error),
        }
    }
}

impl Failure {
    /// Whether a generator gave no report, so that nothing was measured.
    pub fn measured_nothing(&self) -> bool {
        matches!(self, Self::Cluster(ClusterError::Generator { .. }))
    }
}
