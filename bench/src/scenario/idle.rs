//! R1 and R4: what the proxies of a node hold while nothing happens, and from how many pods on the
//! agent is cheaper.
//!
//! Memory is what the node would get back without the proxies: anonymous pages
//! of each process, what the kernel keeps on their behalf (sockets, page tables,
//! BPF maps), and file-backed pages (the program's text) once per program and
//! node, because the kernel shares them. The kernel's own proportional set
//! size would divide the text also among proxies of *other* arms, which live at
//! the same time here; it is recorded beside, as is what the cgroups are charged.

use super::bed::{self, Shape};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::accounting::Rollup;
use crate::arm::Arm;
use crate::cluster::Holding;
use crate::results::{Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// From the last pod's readiness to the first reading. Proxies let go of what they needed to
/// become ready up to half a second later.
const SETTLE: Duration = Duration::from_millis(600);
const MIB: f64 = 1024.0 * 1024.0;

pub struct Idle;

impl Experiment for Idle {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::R1, Id::R4]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        Vec::new()
    }

    fn metrics(&self, scenario: Id) -> Vec<Metric> {
        let mut metrics = vec![
            Metric::value(
                keys::PROXY_MEMORY,
                "memory of the node's proxies",
                "MiB",
                Kind::Memory,
            ),
            Metric::value(
                keys::IDLE_CPU,
                "processor use of the node's idle proxies",
                "millicores",
                Kind::Cpu,
            ),
            Metric::value(
                keys::OPEN_FDS,
                "open file descriptors of the node's proxies",
                "descriptors",
                Kind::Count,
            ),
        ];
        if scenario == Id::R4 {
            // Nobody chooses a placement by its descriptors.
            metrics.pop();
        }
        metrics
    }

    fn prepare_estimate(&self, _plan: &Plan) -> Duration {
        Duration::ZERO
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        let largest = plan.pace.pods.last().copied().unwrap_or(1);
        if plan.kubelet {
            return plan.building(1)
                + (plan.renewing() + plan.pace.idle) * plan.pace.pods.len() as u32;
        }
        Duration::from_millis(1_200)
            + (SETTLE + plan.pace.idle) * plan.pace.pods.len() as u32
            + Duration::from_millis(100) * largest
    }

    fn prepare(&mut self, _lab: &Lab<'_>, _arms: &[Arm]) -> Result<(), Failure> {
        Ok(())
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.pods)),
            ("watched_ms".to_owned(), json!(plan.pace.idle.as_millis())),
            (
                "memory".to_owned(),
                json!(
                    "anonymous pages and kernel memory of every proxy + file-backed pages once \
                     per program"
                ),
            ),
        ])
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let Some(first) = lab.plan.pace.pods.first().copied() else {
            return Ok(Vec::new());
        };
        // Grown anew in every block, so that blocks are independent.
        let bed = Bed::build(lab, Shape::Fleet(first), visit.arm)?;
        bed.cluster.renew_agent(1)?;
        let mut standing = first;
        let mut trials = Vec::new();
        for pods in lab.plan.pace.pods {
            let began = Instant::now();
            lab.progress
                .doing(&format!("R1 · {} · {pods} pods", visit.arm));
            let missing = (standing..*pods).map(bed::fleet_pod).collect();
            bed.cluster.add_pods(missing)?;
            standing = *pods;
            lab.interrupt.sleep(SETTLE)?;
            let before = bed.cluster.ran(1)?;
            let from = Instant::now();
            lab.interrupt.sleep(lab.plan.pace.idle)?;
            let used = bed.cluster.ran(1)?.saturating_sub(before);
            let watched = from.elapsed();
            let held = bed.cluster.holdings(1)?;
            let point = Point::at(format!("{pods} pods"), f64::from(*pods));
            let mut trial = lab.trial(visit.arm, point, began, []);
            trial.values = holdings(&held, used.as_secs_f64() / watched.as_secs_f64());
            let mut density = trial.clone();
            density
                .values
                .retain(|key, _| [keys::PROXY_MEMORY, keys::IDLE_CPU].contains(&key.as_str()));
            trials.extend([(Id::R1, trial), (Id::R4, density)]);
        }
        Ok(trials)
    }
}

fn holdings(held: &[Holding], cores: f64) -> BTreeMap<String, f64> {
    let sum: Rollup = held.iter().map(|one| one.rollup).sum();
    let text = held
        .iter()
        .map(|one| one.rollup.rss.saturating_sub(one.rollup.anonymous))
        .max()
        .unwrap_or(0);
    let files: u64 = held.iter().map(|one| one.open_files).sum();
    let charged: u64 = held.iter().map(|one| one.charged.current).sum();
    let kernel: u64 = held.iter().map(|one| one.charged.kernel).sum();
    BTreeMap::from([
        (
            keys::PROXY_MEMORY.to_owned(),
            (sum.anonymous + kernel + text) as f64 / MIB,
        ),
        (keys::IDLE_CPU.to_owned(), cores * 1000.0),
        (keys::OPEN_FDS.to_owned(), files as f64),
        ("anonymous_mib".to_owned(), sum.anonymous as f64 / MIB),
        ("shared_text_mib".to_owned(), text as f64 / MIB),
        ("pss_mib".to_owned(), sum.pss as f64 / MIB),
        ("rss_mib".to_owned(), sum.rss as f64 / MIB),
        ("cgroup_charged_mib".to_owned(), charged as f64 / MIB),
        ("cgroup_kernel_mib".to_owned(), kernel as f64 / MIB),
        ("proxies".to_owned(), held.len() as f64),
    ])
}
