//! S5: what others feel of pods that come and go, and what stays behind.
//!
//! A pod a second is made and, three seconds later, removed, while a bystander on the same node goes on
//! asking. What the mesh has on that node is counted before and after: network namespaces, entries of
//! the kernel programs' maps, open files. The netns cluster makes real namespaces and enrols them as a
//! CNI plugin does, and each pod is ready before the next; a kubelet's own part, images and volumes, is
//! left out there in all arms. With a kubelet pods are asked for and removed whether or not they have
//! become ready, which is counted: that they come at the same pace in all arms is what makes the arms comparable.

use super::bed::{self, Shape};
use super::drive::Drive;
use super::meter::{self, Used};
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::{Belongings, PodSpec, monotonic_ns};
use crate::results::{Kind, Metric, Point, Stage, Trial, keys};
use crate::run::Plan;
use crate::run::gates::{Conditions, Losses};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The bystander's requests per second.
const RATE: f64 = 200.0;
/// From one new pod to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Of these, there are so many at the same time.
const ALIVE: usize = 3;
const PODS: u32 = 8;
const QUIET: Duration = Duration::from_secs(3);
/// From the last removal to the count: connections are drained meanwhile.
const CALM: Duration = Duration::from_secs(2);

pub struct Churn;

impl Churn {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Churn {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::S5]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let left = |key, label, unit| Metric::value(key, label, unit, Kind::Count);
        vec![
            Metric::quantile(Stage::Response, 0.5),
            Metric::quantile(Stage::Response, 0.9),
            Metric::goodput(),
            left(keys::LEFT_NAMESPACES, "namespaces left", "namespaces"),
            left(keys::LEFT_ENTRIES, "entries of maps left", "entries"),
            left(keys::LEFT_FILES, "open files left", "descriptors"),
            left(keys::CHURNED, "pods that came and went", "pods"),
            left(keys::CHURNED_READY, "of these had become ready", "pods"),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::S5, &[Id::F1, Id::F2, Id::X1])
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        QUIET + EVERY * (PODS + ALIVE as u32) + CALM + Duration::from_secs(3)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("churned_pods".to_owned(), json!(PODS)),
            ("every_ms".to_owned(), json!(EVERY.as_millis())),
            ("requests_per_s".to_owned(), json!(RATE)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Making a namespace takes processor from the bystander in every arm; the harness's own share of that is \
             in both."
                .to_owned(),
            "Open files are compared after two seconds of calm; a pool may hold a connection more or less.".to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let (quiet, ()) = bystander(lab, &bed, visit, QUIET, Point::at("quiet", 0.0), |_| Ok(()))?;
        let before = bed.cluster.belongings(1)?;
        let point = Point::at("a pod a second", 1.0);
        let (busy, churned) = bystander(lab, &bed, visit, EVERY * PODS, point, |begin| {
            churn(lab, &bed, begin)
        })?;
        let began = Instant::now();
        bed.cluster.await_ended()?;
        lab.interrupt.sleep(CALM)?;
        let after = bed.cluster.belongings(1)?;
        let counts = left(before, after).into_iter().chain([
            (keys::CHURNED, f64::from(churned.made)),
            (keys::CHURNED_READY, f64::from(churned.ready)),
        ]);
        // Of its own: what is counted here is true however late a generator was.
        let left = lab.trial(visit.arm, Point::at("afterwards", 2.0), began, counts);
        Ok([quiet, busy, left].map(|trial| (Id::S5, trial)).into())
    }
}

/// Measures it while something goes on.
fn bystander<T>(
    lab: &Lab<'_>,
    bed: &Bed,
    visit: Visit,
    window: Duration,
    point: Point,
    meanwhile: impl FnOnce(u64) -> Result<T, Failure>,
) -> Result<(Trial, T), Failure> {
    let began = Instant::now();
    let mut drive = Drive::new(
        &bed::fleet_name(0),
        &bed.url("backend", "http1", PATH)?,
        RATE,
    );
    drive.seed = lab.plan.schedule(Id::S5, visit.block, "");
    drive.window = window;
    let begin = Drive::appointment(bed, Duration::from_millis(300));
    let generator = drive.start(bed, begin)?;
    let before = lab.site.machine()?;
    let outcome = meanwhile(begin)?;
    let report = generator.report(lab.interrupt)?;
    let machine = lab.site.machine()? - before;
    let used = Used {
        machine,
        conditions: Conditions {
            steal: machine.steal_share(),
            generator_throttled: 0,
        },
        ..Used::default()
    };
    let trial = meter::trial(lab, bed, point, began, &report, &used, Losses::Finding);
    Ok((trial, outcome))
}

/// Pods that came and went.
#[derive(Default)]
struct Churned {
    made: u32,
    /// When they were removed.
    ready: u32,
}

/// Pods come and go.
fn churn(lab: &Lab<'_>, bed: &Bed, begin: u64) -> Result<Churned, Failure> {
    let mut alive = VecDeque::new();
    let mut churned = Churned::default();
    let end = begin + (EVERY * PODS).as_nanos() as u64;
    for pod in 0..PODS {
        lab.interrupt
            .sleep_until(begin + (EVERY * pod).as_nanos() as u64)?;
        // A machine that cannot keep up makes fewer, and the result says so.
        if monotonic_ns() + EVERY.as_nanos() as u64 / 2 > end {
            break;
        }
        let name = format!("churn-{pod}");
        bed.cluster
            .begin_pod(PodSpec::new(&name).service_account(&name))?;
        alive.push_back(name);
        churned.made += 1;
        if alive.len() > ALIVE
            && let Some(oldest) = alive.pop_front()
        {
            churned.ready += u32::from(bed.cluster.end_pod(&oldest)?);
        }
    }
    // The last ones live as long as all the others.
    for (number, name) in (churned.made..).zip(alive) {
        lab.interrupt
            .sleep_until(begin + (EVERY * number).as_nanos() as u64)?;
        churned.ready += u32::from(bed.cluster.end_pod(&name)?);
    }
    Ok(churned)
}

/// What there is more than before.
fn left(before: Belongings, after: Belongings) -> [(&'static str, f64); 3] {
    let more = |after: u64, before: u64| after.saturating_sub(before) as f64;
    [
        (
            keys::LEFT_NAMESPACES,
            more(after.namespaces, before.namespaces),
        ),
        (
            keys::LEFT_ENTRIES,
            more(after.map_entries, before.map_entries),
        ),
        (keys::LEFT_FILES, more(after.files, before.files)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_before_is_left() {
        let of = |namespaces, map_entries, files| Belongings {
            namespaces,
            map_entries,
            files,
        };
        let values = left(of(9, 40, 100), of(10, 40, 97)).map(|(_, value)| value);
        assert_eq!(values, [1.0, 0.0, 0.0]);
    }
}
