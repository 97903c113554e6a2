//! L1 and R2: what a request over a kept connection takes, in time and in
//! processor.
//!
//! Both come from the same trials: one load, timed by the generator and
//! accounted by the kernel. Rates are shares of the smallest capacity among the
//! arms, so that no arm is measured near saturation.

use super::bed::{self, Shape};
use super::capacity;
use super::drive::Drive;
use super::meter::{self, Used};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::accounting::Baseline;
use crate::arm::Arm;
use crate::load::report::LoadReport;
use crate::results::{HEADLINE_LOAD, Kind, Metric, Point, Stage, Trial, keys};
use crate::run::Plan;
use crate::run::gates::Losses;
use crate::stats::MIN_BLOCKS;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// What is asked for: 1 KiB.
pub(super) const PATH: &str = "/bytes/1024";
/// Rates where no capacity was sought, requests/s: low for any machine.
const FIXED_RATE: f64 = 200.0;
/// Rate at which arms are warmed up, requests/s.
const SETTLING_RATE: f64 = 100.0;
/// Where only one rate is measured, per cent.
const HEADLINE: &[u32] = &[50];
/// For how long the idle machine is watched.
const BASELINE: Duration = Duration::from_secs(1);
/// A capacity is sought among these: no arm without a proxy can be the smallest,
/// and `aa` is `sidecar` again.
const PROBED: [Arm; 2] = [Arm::Sidecar, Arm::Agent];

/// What the reader of a figure in ns has to know of how it came about.
pub(super) const BPF_STATS_NOTE: &str = "The kernel's BPF statistics were on; they add some tens \
     of nanoseconds to each run of a program, in the agent arm only.";

#[derive(Clone, Debug)]
struct Series {
    name: String,
    protocol: &'static str,
    service: &'static str,
    /// As per cent of the smallest capacity.
    rates: &'static [u32],
    /// Capacity by arm, requests/s.
    capacities: BTreeMap<String, f64>,
}

#[derive(Default)]
pub struct Steady {
    series: Vec<Series>,
    /// Parameters of the same run's first part.
    recalled: BTreeMap<String, serde_json::Value>,
    /// The machine while nothing is asked of any arm.
    baseline: Baseline,
    bpf_stats: Option<Box<dyn Debug>>,
    bpf_missing: Option<String>,
}

impl Series {
    /// One over which all rates are swept; how the others differ from it shows at one of them.
    fn all(plan: &Plan) -> Vec<Self> {
        let mut all = vec![("HTTP/1.1 · same node", "http1", "near", plan.pace.rates)];
        if plan.pace.cross_node {
            all.push(("HTTP/1.1 · cross node", "http1", "far", HEADLINE));
        }
        if plan.pace.all_protocols {
            all.push(("HTTP/2 · same node", "http2", "near", HEADLINE));
            all.push(("gRPC · same node", "grpc", "near", HEADLINE));
        }
        let one = |(name, protocol, service, rates): (&str, _, _, _)| Self {
            name: name.to_owned(),
            protocol,
            service,
            rates,
            capacities: BTreeMap::new(),
        };
        all.into_iter().map(one).collect()
    }

    /// The headline of the first series is measured in every block, all else in every second one of a run
    /// that has twice as many as an interval needs; of some arms there only the headline.
    fn measured_in(&self, visit: Visit, plan: &Plan, point: &Point) -> bool {
        let headline = self.service == "near" && self.protocol == "http1";
        let all = visit.block.is_multiple_of(2) && !headline_only(visit.arm);
        !plenty(plan) || all || (headline && point.x == HEADLINE_LOAD)
    }

    /// As the parameters call the capacity of an arm.
    fn capacity_key(&self, arm: &str) -> String {
        format!("capacity: {}, {arm}", self.name)
    }

    fn drive(&self, bed: &Bed, rate: f64) -> Result<Drive, Failure> {
        let url = bed.url(self.service, self.protocol, PATH)?;
        let mut drive = Drive::new("client", &url, rate);
        drive.protocol = self.protocol;
        Ok(drive)
    }

    /// The points of the sweep with their rates.
    fn points(&self) -> Vec<(Point, f64)> {
        let capacity = self.capacities.values().copied().reduce(f64::min);
        match capacity {
            Some(capacity) => self
                .rates
                .iter()
                .map(|percent| {
                    let point = Point::at(format!("{percent} %"), f64::from(*percent));
                    (point, capacity * f64::from(*percent) / 100.0)
                })
                .map(|(point, rate)| (point.in_series(&self.name), rate))
                .collect(),
            None => {
                let point = Point::at(format!("{FIXED_RATE} requests/s"), FIXED_RATE);
                vec![(point.in_series(&self.name), FIXED_RATE)]
            }
        }
    }
}

/// Whether there are twice as many blocks as an interval needs.
fn plenty(plan: &Plan) -> bool {
    plan.pace.blocks >= 2 * MIN_BLOCKS as u32
}

/// Arms that explain the others, or differ from one of them in little.
fn headline_only(arm: Arm) -> bool {
    arm.explains() || arm == Arm::AgentTenancy
}

impl Experiment for Steady {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::L1, Id::R2]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, scenario: Id) -> Vec<Metric> {
        match scenario {
            Id::R2 => vec![
                Metric::value(
                    keys::PROXY_CPU_PER_REQUEST,
                    "processor time of the proxies per request",
                    "µs",
                    Kind::Cpu,
                ),
                Metric::value(
                    keys::NODE_CPU_PER_REQUEST,
                    "processor time of the whole machine per request, beyond idle",
                    "µs",
                    Kind::Cpu,
                ),
                Metric::value(
                    "cluster_cpu_us_per_request",
                    "processor time of all processes of the cluster per request",
                    "µs",
                    Kind::Cpu,
                ),
                Metric::value(
                    keys::EBPF_PER_REQUEST,
                    "time in eBPF programs per request",
                    "ns",
                    Kind::Cpu,
                ),
                Metric::value(
                    keys::SWITCHES_PER_REQUEST,
                    "context switches of the machine per request",
                    "switches",
                    Kind::Cpu,
                ),
            ],
            _ => [0.5, 0.9, 0.99]
                .map(|q| Metric::quantile(Stage::Response, q))
                .into_iter()
                .chain([Metric::quantile(Stage::Service, 0.5)])
                .collect(),
        }
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        let building = plan.building(plan.arms_of(Id::L1).len());
        let probing = plan.pace.probe.map_or(Duration::ZERO, |probe| {
            let steps = 9 + probe.refinements;
            let series = Series::all(plan).len() as u32;
            (probe.warmup + probe.step + Duration::from_millis(250)) * steps * series * 2
        });
        building + plan.pace.settle + BASELINE + probing
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let points = |series: &Series| match plan.pace.probe {
            Some(_) => series.rates.len(),
            None => 1,
        };
        let trials: usize = Series::all(plan).iter().map(points).sum();
        let trial = plan.pace.warmup + plan.pace.window + Duration::from_millis(250);
        if plenty(plan) {
            // Of two blocks one has the headline only.
            return trial * (trials as u32 + 1) / 2;
        }
        trial * trials as u32
    }

    fn visit_estimate_of(&self, plan: &Plan, arm: Arm) -> Duration {
        if plenty(plan) && headline_only(arm) {
            return plan.pace.warmup + plan.pace.window + Duration::from_millis(250);
        }
        self.visit_estimate(plan)
    }

    fn recall(&mut self, parameters: &BTreeMap<String, serde_json::Value>) {
        self.recalled = parameters.clone();
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        let plan = lab.plan;
        self.series = Series::all(plan);
        let beds = lab.stand(Shape::Pair, arms)?;

        // The first requests of a proxy pay for handshakes and cold caches.
        lab.progress.doing("warming up");
        let mut warming = Vec::new();
        for bed in &beds {
            for series in &self.series {
                let mut drive = series.drive(bed, SETTLING_RATE)?;
                drive.warmup = Duration::ZERO;
                drive.window = plan.pace.settle;
                let begin = Drive::appointment(bed, bed::STARTING_MANY);
                warming.push(drive.start(bed, begin)?);
            }
        }
        for generator in warming {
            generator.report(lab.interrupt)?;
        }

        self.baseline = lab.baseline(BASELINE)?;

        if let Some(probe) = plan.pace.probe {
            for bed in beds.iter().filter(|bed| PROBED.contains(&bed.arm)) {
                for series in &mut self.series {
                    lab.progress.doing(&format!(
                        "seeking the capacity of {} ({})",
                        bed.arm, series.name
                    ));
                    let drive = series.drive(bed, SETTLING_RATE)?;
                    let known = self.recalled.get(&series.capacity_key(bed.arm.name()));
                    let capacity = match known.and_then(serde_json::Value::as_f64) {
                        Some(known) => known,
                        None => capacity::find(lab, bed, &drive, probe)?.round(),
                    };
                    lab.progress.line(&format!(
                        "capacity of {}, {}: {capacity:.0} requests/s",
                        bed.arm, series.name
                    ));
                    series
                        .capacities
                        .insert(bed.arm.name().to_owned(), capacity);
                }
            }
        }
        if plan.wants(&[Id::R2]) {
            match lab.site.bpf_stats() {
                Ok(stats) => self.bpf_stats = Some(stats),
                Err(error) => self.bpf_missing = Some(error.to_string()),
            }
        }
        Ok(())
    }

    fn parameters(&self, scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        let mut parameters = BTreeMap::from([
            ("body_bytes".to_owned(), json!(1024)),
            ("connections".to_owned(), json!(16)),
            ("timeout_ms".to_owned(), json!(1000)),
            ("warmup_ms".to_owned(), json!(plan.pace.warmup.as_millis())),
            ("window_ms".to_owned(), json!(plan.pace.window.as_millis())),
            ("settle_ms".to_owned(), json!(plan.pace.settle.as_millis())),
        ]);
        for series in &self.series {
            for (point, rate) in series.points() {
                parameters.insert(format!("rate: {}", point.title()), json!(rate.round()));
            }
            for (arm, capacity) in &series.capacities {
                parameters.insert(series.capacity_key(arm), json!(capacity));
            }
        }
        if scenario == Id::R2 {
            parameters.insert(
                "idle_busy_cores".to_owned(),
                json!(self.baseline.busy_cores),
            );
        }
        parameters
    }

    fn notes(&self, scenario: Id) -> Vec<String> {
        let mut notes = Vec::new();
        if scenario == Id::R2 {
            notes.push(BPF_STATS_NOTE.to_owned());
            notes.extend(self.baseline.note());
            if let Some(why) = &self.bpf_missing {
                notes.push(format!("No figures for eBPF: {why}"));
            }
        }
        notes
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let mut trials = Vec::new();
        for series in &self.series {
            let points = series.points();
            let busiest = points.len().saturating_sub(1);
            for (at, (point, rate)) in points.into_iter().enumerate() {
                if !series.measured_in(visit, lab.plan, &point) {
                    continue;
                }
                let began = Instant::now();
                let mut drive = series.drive(&bed, rate)?;
                drive.seed = lab.plan.schedule(Id::L1, visit.block, &point.title());
                drive.warmup = lab.plan.pace.warmup;
                drive.window = lab.plan.pace.window;
                let generator = drive.start(&bed, Drive::appointment(&bed, drive.warmup))?;
                let (report, used) = meter::measure(lab, generator)?;
                let latency = meter::trial(lab, &bed, point, began, &report, &used, Losses::Void);
                // At a low rate, what the machine does by itself outweighs the requests.
                if at == busiest || latency.point.x >= 50.0 {
                    trials.push((Id::R2, self.efficiency(&latency, &report, &used)));
                }
                trials.push((Id::L1, latency));
            }
        }
        Ok(trials)
    }
}

impl Steady {
    /// The same trial with the figures of R2 instead of the histograms.
    fn efficiency(&self, latency: &Trial, report: &LoadReport, used: &Used) -> Trial {
        let mut trial = latency.clone();
        trial.histograms = Default::default();
        let requests = report.completed as f64;
        if requests == 0.0 {
            return trial;
        }
        let busy = self.baseline.beyond(used.machine, used.arm, used.wall);
        let mut value = |key: &str, value: f64| {
            trial.values.insert(key.to_owned(), value);
        };
        value(keys::NODE_CPU_PER_REQUEST, busy * 1e6 / requests);
        value(
            "cluster_cpu_us_per_request",
            used.arm.as_secs_f64() * 1e6 / requests,
        );
        value(
            "softirq_us_per_request",
            used.machine.softirq_s * 1e6 / requests,
        );
        value(
            keys::SWITCHES_PER_REQUEST,
            used.machine.switches as f64 / requests,
        );
        if latency.arm != Arm::None.name() {
            value(keys::PROXY_CPU_PER_REQUEST, used.proxies_us / requests);
            if self.bpf_stats.is_some() {
                value(
                    keys::EBPF_PER_REQUEST,
                    used.bpf.time.as_nanos() as f64 / requests,
                );
                value("ebpf_runs_per_request", used.bpf.runs as f64 / requests);
            }
        }
        trial
    }
}
