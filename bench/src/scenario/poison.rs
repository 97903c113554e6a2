//! I9: what one tenant's excessive configuration does to the others.
//!
//! The tenant has hundreds of services with routes full of expressions, and somebody's controller
//! writes all of them anew several times a second. Everybody else's proxies hear of them: it is
//! one mesh. Meanwhile two things that everybody does are timed: a service loses its pod, until the last
//! request that still reached it; and a pod is started, until its proxy is ready.

use super::bed::Shape;
use super::drive::Drive;
use super::kill::FINE;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::{PodSpec, monotonic_ns};
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::{Interrupt, Plan};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// The tenant's services.
const SERVICES: u32 = 300;
/// Routes of each.
const ROUTES: u32 = 10;
/// From one writing to the next.
const EVERY: Duration = Duration::from_millis(300);
/// The client's requests per second: the resolution of what is timed.
const RATE: f64 = 100.0;
/// From the load's beginning until the service loses its pod.
const PHASE: Duration = Duration::from_millis(700);
/// How long that may take to be heard of.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answered so shortly before the end, the change was not heard of.
const STILL: Duration = Duration::from_millis(200);
const NEWCOMER: &str = "newcomer";

pub struct Poison;

impl Experiment for Poison {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I9]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let ms = |key, label| Metric::value(key, label, "ms", Kind::Latency);
        vec![
            ms(
                keys::CONFIGURED,
                "a service loses its pod → last answer from it",
            ),
            ms(keys::POD_START, "a pod is started → its proxy is ready"),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::I9).len())
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        (PHASE + PATIENCE + Duration::from_secs(1)) * 2
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("tenant_services".to_owned(), json!(SERVICES)),
            ("routes_of_each".to_owned(), json!(ROUTES)),
            ("written_every_ms".to_owned(), json!(EVERY.as_millis())),
            ("requests_per_s".to_owned(), json!(RATE)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "The configuration is valid. One that is not changes nothing at duet-control, for anybody, until it is \
             corrected: a file is one piece. On Kubernetes each object is judged by itself."
                .to_owned(),
            "duet-control shares the processors with all else here; on a cluster it has its own.".to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let mut trials = Vec::new();
        for poisoned in [false, true] {
            let trial = beside(lab, &bed, visit, poisoned);
            // The next one finds the bed as it was.
            bed.cluster.burden("")?;
            bed.cluster.back("near", &["near"])?;
            trials.push((Id::I9, trial?));
        }
        Ok(trials)
    }
}

fn beside(lab: &Lab<'_>, bed: &Bed, visit: Visit, poisoned: bool) -> Result<Trial, Failure> {
    let began = Instant::now();
    let label = if poisoned { "poisoned" } else { "clean" };
    let point = Point::at(label, f64::from(u8::from(poisoned)));
    let mut writer = Writer {
        version: 0,
        poisoned,
    };

    let mut client = Drive::new("client", &bed.url("near", "http1", PATH)?, RATE);
    client.seed = lab.plan.schedule(Id::I9, visit.block, "");
    client.bin = FINE;
    client.timeout = Duration::from_millis(200);
    client.window = PHASE + PATIENCE;
    let begin = Drive::appointment(bed, Duration::ZERO);
    let generator = client.start(bed, begin)?;
    writer.write_for(lab.interrupt, bed, PHASE)?;
    let gone_ns = monotonic_ns();
    bed.cluster.back("near", &[])?;
    writer.write_for(lab.interrupt, bed, PATIENCE)?;
    let report = generator.report(lab.interrupt)?;

    let from = Instant::now();
    writer.write(bed)?;
    bed.cluster
        .add_pods(vec![PodSpec::new(NEWCOMER).service_account(NEWCOMER)])?;
    let started = from.elapsed();
    bed.cluster.remove_pod(NEWCOMER)?;

    let timeline = &report.timeline;
    let answered = timeline.ok.iter().rposition(|ok| *ok > 0).unwrap_or(0) as u64;
    let last_ns = timeline.start_ns + answered * timeline.bin_ns;
    let end_ns = timeline.start_ns + timeline.ok.len() as u64 * timeline.bin_ns;
    let heard = end_ns.saturating_sub(last_ns) > STILL.as_nanos() as u64;
    let mut values = vec![
        (keys::POD_START, started.as_secs_f64() * 1000.0),
        ("written", f64::from(writer.version)),
    ];
    if heard {
        let took = last_ns.saturating_sub(gone_ns) as f64 / 1e6;
        values.push((keys::CONFIGURED, took));
    }
    let mut trial = lab.trial(visit.arm, point, began, values);
    if !heard {
        trial
            .notes
            .push(format!("not heard of within {PATIENCE:?}"));
    }
    if !heard && !poisoned {
        trial.voids.push(Void {
            gate: "configuration seen".to_owned(),
            measured: 0.0,
            limit: 1.0,
            message: "a service's change was not heard of, with nothing in its way".to_owned(),
        });
    }
    Ok(trial)
}

/// The tenant's controller.
struct Writer {
    version: u32,
    poisoned: bool,
}

impl Writer {
    fn write(&mut self, bed: &Bed) -> Result<(), Failure> {
        if self.poisoned {
            self.version += 1;
            bed.cluster.burden(&services(self.version))?;
        }
        Ok(())
    }

    /// Again and again.
    fn write_for(
        &mut self,
        interrupt: &Interrupt,
        bed: &Bed,
        time: Duration,
    ) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.write(bed)?;
            let left = until.saturating_duration_since(Instant::now());
            interrupt.sleep(left.min(EVERY))?;
        }
        Ok(())
    }
}

/// The tenant's services, as duet-control's file has them. Each version changes every route.
fn services(version: u32) -> String {
    let mut yaml = String::new();
    for service in 0..SERVICES {
        let (high, low) = (service / 250, service % 250 + 1);
        let _ = write!(
            yaml,
            "  - namespace: mallory\n    name: excess-{service}\n    addresses: [\"10.111.{high}.{low}\"]\n    \
             ports:\n      - port: 80\n    workloads: []\n    routes:\n"
        );
        for route in 0..ROUTES {
            let _ = writeln!(
                yaml,
                "      - {{ name: r{route}, match: [{{ pathExpression: \"/v{version}/[a-z]{{1,20}}/(a|b|c){{1,9}}/{route}/.*\" }}] }}"
            );
        }
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_writing_differs() {
        assert_ne!(services(1), services(2));
        assert_eq!(services(1).matches("excess-").count(), SERVICES as usize);
        assert_eq!(
            services(1).matches("pathExpression").count(),
            (SERVICES * ROUTES) as usize
        );
    }
}
