//! L2: a new connection for every request.
//!
//! Timed from the call that asks for the connection to the first byte of the
//! answer, which is what an application without a pool pays each time.

use super::bed::Shape;
use super::drive::Drive;
use super::meter;
use super::steady::{BPF_STATS_NOTE, PATH};
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::accounting::Baseline;
use crate::arm::Arm;
use crate::results::{Kind, Metric, Point, Stage, Trial, keys};
use crate::run::Plan;
use crate::run::gates::Losses;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// New connections per second: enough for a p90, far below what any arm can do.
const RATE: f64 = 400.0;
const BASELINE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Connections {
    baseline: Baseline,
    bpf_stats: Option<Box<dyn Debug>>,
}

impl Experiment for Connections {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::L2]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::quantile(Stage::FirstByte, 0.5),
            Metric::quantile(Stage::FirstByte, 0.9),
            Metric::quantile(Stage::Connect, 0.5),
            Metric::value(
                keys::CPU_PER_CONNECTION,
                "processor time of the whole machine per connection, beyond idle",
                "µs",
                Kind::Cpu,
            ),
            Metric::value(
                "proxy_cpu_us_per_connection",
                "processor time of the proxies per connection",
                "µs",
                Kind::Cpu,
            ),
            Metric::value(
                "ebpf_ns_per_connection",
                "time in eBPF programs per connection",
                "ns",
                Kind::Cpu,
            ),
        ]
    }

    fn prepare_estimate(&self, _plan: &Plan) -> Duration {
        BASELINE
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        plan.pace.warmup + plan.pace.connect_window + Duration::from_millis(250)
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        lab.stand(Shape::Pair, arms)?;
        self.baseline = lab.baseline(BASELINE)?;
        self.bpf_stats = lab.site.bpf_stats().ok();
        Ok(())
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("body_bytes".to_owned(), json!(1024)),
            ("connections_per_second".to_owned(), json!(RATE)),
            ("warmup_ms".to_owned(), json!(plan.pace.warmup.as_millis())),
            (
                "window_ms".to_owned(),
                json!(plan.pace.connect_window.as_millis()),
            ),
            ("path".to_owned(), json!("HTTP/1.1, same node")),
            (
                "idle_busy_cores".to_owned(),
                json!(self.baseline.busy_cores),
            ),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        let mut notes = vec![BPF_STATS_NOTE.to_owned()];
        notes.extend(self.baseline.note());
        notes
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let began = Instant::now();
        let mut drive = Drive::new("client", &bed.url("near", "http1", PATH)?, RATE);
        drive.fresh = true;
        drive.seed = lab.plan.schedule(Id::L2, visit.block, "");
        drive.warmup = lab.plan.pace.warmup;
        drive.window = lab.plan.pace.connect_window;
        let generator = drive.start(&bed, Drive::appointment(&bed, drive.warmup))?;
        let (report, used) = meter::measure(lab, generator)?;
        let point = Point::only();
        let mut trial = meter::trial(lab, &bed, point, began, &report, &used, Losses::Void);
        let completed = report.completed as f64;
        if completed > 0.0 {
            let busy = self.baseline.beyond(used.machine, used.arm, used.wall);
            trial
                .values
                .insert(keys::CPU_PER_CONNECTION.to_owned(), busy * 1e6 / completed);
            if bed.arm.meshed() {
                trial.values.insert(
                    "proxy_cpu_us_per_connection".to_owned(),
                    used.proxies_us / completed,
                );
                if self.bpf_stats.is_some() {
                    trial.values.insert(
                        "ebpf_ns_per_connection".to_owned(),
                        used.bpf.time.as_nanos() as f64 / completed,
                    );
                    trial.values.insert(
                        "ebpf_runs_per_connection".to_owned(),
                        used.bpf.runs as f64 / completed,
                    );
                }
            }
        }
        Ok(vec![(Id::L2, trial)])
    }
}
