//! L4: how fast large answers come, and what a gigabyte costs.
//!
//! A client downloads without end from a server on the other node, over one connection and over
//! eight. Nothing is timed by request: bytes are counted, and processor time over the same window.

use super::bed::Shape;
use super::drive::Drive;
use super::press::{Press, spent};
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::accounting::Baseline;
use crate::arm::Arm;
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use crate::run::gates;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const STREAMS: [u32; 2] = [1, 8];
/// From the connections' beginning to the window's: windows of TCP and HTTP/2 open meanwhile.
const OPENING: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_millis(1500);
const BASELINE: Duration = Duration::from_secs(1);
const HTTP: u16 = 80;

#[derive(Default)]
pub struct Bulk {
    baseline: Baseline,
}

impl Experiment for Bulk {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::L4]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(keys::BULK_RATE, "received", "Gbit/s", Kind::Latency).higher_is_better(),
            Metric::value(
                keys::CPU_PER_GB,
                "processor time of the whole machine per gigabyte, beyond idle",
                "s",
                Kind::Cpu,
            ),
            Metric::value(
                "proxy_cpu_s_per_gb",
                "processor time of the proxies per gigabyte",
                "s",
                Kind::Cpu,
            ),
        ]
    }

    fn prepare_estimate(&self, _plan: &Plan) -> Duration {
        BASELINE
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        (OPENING + WINDOW + Duration::from_millis(250)) * STREAMS.len() as u32
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        lab.stand(Shape::Pair, arms)?;
        self.baseline = lab.baseline(BASELINE)?;
        Ok(())
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("window_ms".to_owned(), json!(WINDOW.as_millis())),
            (
                "path".to_owned(),
                json!("HTTP/1.1, cross node, one answer without end"),
            ),
            (
                "idle_busy_cores".to_owned(),
                json!(self.baseline.busy_cores),
            ),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        let cores = "Client, server and proxies share this machine's processors: the rate is what is left for \
                     each of them, not what a link carries."
            .to_owned();
        std::iter::once(cores).chain(self.baseline.note()).collect()
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let to = SocketAddr::new(bed.cluster.address("far")?, HTTP);
        let mut trials = Vec::new();
        for streams in STREAMS {
            let began = Instant::now();
            let begin = Drive::appointment(&bed, OPENING);
            let press = Press {
                kind: "bulk",
                pod: "client",
                to,
                connections: streams,
                rate: None,
                window: WINDOW,
            };
            let pressing = press.start(&bed, begin)?;
            lab.interrupt.sleep_until(begin)?;
            let (from, proxies, machine) = (Instant::now(), spent(&bed)?, lab.site.machine()?);
            lab.interrupt
                .sleep_until(begin + WINDOW.as_nanos() as u64)?;
            let used = lab.site.machine()? - machine;
            let proxies = spent(&bed)? - proxies;
            let wall = from.elapsed();
            let report = pressing.report(lab)?;

            let gigabytes = report.bytes as f64 / 1e9;
            let mut values = vec![
                (keys::BULK_RATE, 8.0 * gigabytes / report.counted_s),
                ("streams_standing", report.standing as f64),
                ("steal_share", used.steal_share()),
            ];
            if gigabytes > 0.0 {
                // Beside other work the machine's time is not this load's.
                if self.baseline.quiet() {
                    let busy = self.baseline.beyond(used, Duration::ZERO, wall);
                    values.push((keys::CPU_PER_GB, busy / gigabytes));
                }
                if visit.arm.meshed() {
                    values.push(("proxy_cpu_s_per_gb", proxies as f64 / 1e6 / gigabytes));
                }
            }
            let plural = if streams == 1 { "" } else { "s" };
            let point = Point::at(format!("{streams} stream{plural}"), f64::from(streams));
            let mut trial = lab.trial(visit.arm, point, began, values);
            trial.voids.extend(gates::stolen(used.steal_share()));
            if report.failed > 0 || report.standing < u64::from(streams) {
                trial.voids.push(Void {
                    gate: "streams kept".to_owned(),
                    measured: report.standing as f64,
                    limit: f64::from(streams),
                    message: format!("{} of {streams} streams stood to the end", report.standing),
                });
            }
            trials.push((Id::L4, trial));
        }
        Ok(trials)
    }
}
