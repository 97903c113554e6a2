//! F1: a proxy is killed under load.
//!
//! Every pod of a node sends 50 requests a second through its proxy. One proxy
//! gets SIGKILL: of one pod, or of the node. Its supervisor starts it again at
//! once, as a kubelet does the first time. What is counted is who noticed, how
//! many requests were lost and how long it took until all went well again.

use super::bed::{self, Shape};
use super::drive::Drive;
use super::steady::PATH;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::{Life, ProxyRef, Restart};
use crate::load::report::LoadReport;
use crate::results::{Kind, Metric, Point, Timeline, Trial, Void, keys};
use crate::run::Plan;
use crate::run::gates::LATE_SENDS;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Requests per second of each pod.
pub(super) const RATE: f64 = 50.0;
/// Connections that each pod keeps.
pub(super) const CONNECTIONS: u32 = 4;
/// Load before the kill.
pub(super) const BEFORE: Duration = Duration::from_secs(1);
/// Bins of the generators' timelines: short enough to hold one request each.
pub(super) const FINE: Duration = Duration::from_millis(10);
/// A request answered later than this after its time was not answered well: the
/// client was without goodput for as long.
const WELL: Duration = Duration::from_millis(100);
/// Bins in which recovery is judged.
const BIN_MS: f64 = 100.0;
/// This many good bins in a row are a recovery.
const GOOD_BINS: usize = 10;
/// What a good bin completes.
const GOOD: f64 = 0.99;
/// Loss before the kill that a trial may have.
const UNCLEAN: u64 = 0;
/// How long a killed proxy may take to be ready again.
const READY: Duration = Duration::from_secs(30);

pub struct Kill;

impl Kill {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Kill {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::F1]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let mut metrics = vec![
            Metric::value(keys::PODS_HIT, "pods hit", "pods", Kind::Count),
            Metric::value(
                keys::BLAST_RADIUS,
                "share of the node's meshed pods hit",
                "share",
                Kind::Count,
            ),
            Metric::value(
                keys::REQUESTS_LOST,
                "requests lost",
                "requests",
                Kind::Count,
            ),
            Metric::value(
                keys::UNAVAILABILITY,
                "unavailability over all pods",
                "pod·s",
                Kind::Count,
            ),
            Metric::value(
                keys::TIME_TO_RECOVER,
                "time until all pods are well again",
                "ms",
                Kind::Latency,
            ),
        ];
        let labels = [
            "of which until the death is noticed",
            "of which until the new process runs",
            "of which until it is ready",
            "of which until the first success",
        ];
        metrics.extend(
            keys::RECOVERY_PARTS
                .iter()
                .zip(labels)
                .map(|(key, label)| Metric::value(key, label, "ms", Kind::Latency)),
        );
        metrics
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::F1, &[])
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        plan.pace.fault_window + Duration::from_millis(800) + plan.renewing()
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("requests_per_s_and_pod".to_owned(), json!(RATE)),
            ("signal".to_owned(), json!("SIGKILL")),
            ("restart_delay_ms".to_owned(), json!(0)),
            ("before_ms".to_owned(), json!(BEFORE.as_millis())),
            (
                "window_ms".to_owned(),
                json!(plan.pace.fault_window.as_millis()),
            ),
            ("recovery_bin_ms".to_owned(), json!(BIN_MS)),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "The proxy is restarted as soon as its death is noticed; what a kubelet adds on top is \
             the same for both placements."
                .to_owned(),
            "Answered well means correctly and within 100 ms: a client that waits for its \
             connection to come back loses no request, but it has no goodput either. Lost means \
             failed."
                .to_owned(),
            "The process that proxies is killed. An agent's supervisor (`duet-agent supervise`) starts the \
             next, which takes the listeners up where they are: new connections wait and are not refused. \
             A sidecar's is the kubelet's part, as the cluster plays it."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let proxy = unlucky(lab, &bed, Id::F1, visit)?;
        let began = Instant::now();

        let window = lab.plan.pace.fault_window;
        let (reports, killed) = under_load(lab, &bed, Id::F1, visit, window, || {
            Ok(bed.cluster.kill(&proxy.name, Restart::AtOnce)?)
        })?;
        bed.cluster.await_ready(&proxy.name, READY)?;
        let lives = bed.cluster.lives(&proxy.name)?;
        bed.cluster.forget_death(&proxy.name)?;
        let mut trial = trial(
            lab,
            visit,
            began,
            &proxy,
            &reports,
            &lives,
            (killed, Hit::Late),
        );
        trial.notes.insert(0, format!("killed {}", proxy.name));
        Ok(vec![(Id::F1, trial)])
    }
}

/// The proxy of a fleet to which something is done in this visit.
pub(super) fn unlucky(lab: &Lab<'_>, bed: &Bed, id: Id, visit: Visit) -> Result<ProxyRef, Failure> {
    let pods = u64::from(lab.plan.pace.fault_pods);
    let purpose = format!("{id}/{}/{}", visit.arm, visit.block);
    let pod = bed::fleet_name((lab.plan.number(&purpose) % pods) as u32);
    Ok(bed.cluster.proxy_of(&pod)?)
}

/// Has every pod of a fleet send while something is done to a proxy, a second after they began; returns
/// what each saw and when it was done.
pub(super) fn under_load(
    lab: &Lab<'_>,
    bed: &Bed,
    id: Id,
    visit: Visit,
    window: Duration,
    fault: impl FnOnce() -> Result<u64, Failure>,
) -> Result<(Vec<(String, LoadReport)>, u64), Failure> {
    let pods = lab.plan.pace.fault_pods;
    let warmup = Duration::from_millis(300);
    // A generator takes a moment to start, and there are many.
    let begin = Drive::appointment(bed, warmup + Duration::from_millis(15) * pods);
    let url = bed.url("backend", "http1", PATH)?;
    let mut generators = Vec::new();
    for pod in 0..pods {
        let name = bed::fleet_name(pod);
        let mut one = Drive::new(&name, &url, RATE);
        one.seed = lab.plan.schedule(id, visit.block, &name);
        one.connections = CONNECTIONS;
        one.window = window;
        one.bin = FINE;
        generators.push((name, one.start(bed, begin)?));
    }
    lab.interrupt
        .sleep_until(begin + BEFORE.as_nanos() as u64)?;
    let done = fault()?;
    let mut reports = Vec::new();
    for (name, generator) in generators {
        reports.push((name, generator.report(lab.interrupt)?));
    }
    Ok((reports, done))
}

/// What came of it.
pub(super) fn trial(
    lab: &Lab<'_>,
    visit: Visit,
    began: Instant,
    proxy: &ProxyRef,
    reports: &[(String, LoadReport)],
    lives: &[Life],
    (at_ns, counts): (u64, Hit),
) -> Trial {
    let views: Vec<View<'_>> = reports
        .iter()
        .map(|(name, report)| View::counting(counts, name, report, at_ns))
        .collect();
    let mut trial = Trial {
        arm: visit.arm.name().to_owned(),
        point: Point::only(),
        repeat: visit.block,
        started_s: began.duration_since(lab.started).as_secs_f64(),
        duration_s: began.elapsed().as_secs_f64(),
        load: None,
        histograms: Default::default(),
        values: outcome(&views, lives, at_ns),
        timelines: views
            .iter()
            .map(|view| view.timeline(proxy.pods.contains(&view.name.to_owned())))
            .collect(),
        voids: voids(&views),
        notes: Vec::new(),
    };
    if !trial.values.contains_key(keys::TIME_TO_RECOVER) {
        trial
            .notes
            .push("not every pod was well again when the window ended".to_owned());
    }
    trial
}

/// When a pod is hit that has lost no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// One request was not answered within 100 ms: strict, for faults that are over within a second or two.
    Late,
    /// Nothing at all was answered well for 100 ms: in a window of many seconds a busy machine is late once anyway.
    Silent,
}

/// One pod's requests in bins of 100 ms, counted from the kill.
pub(super) struct View<'a> {
    name: &'a str,
    counts: Hit,
    /// Bins before the kill.
    before: usize,
    offered: Vec<u32>,
    /// Answered well.
    ok: Vec<u32>,
    failed: Vec<u32>,
    late: f64,
    /// Fine bins: their beginning relative to the kill in ns, and successes.
    successes: Vec<(i64, u32)>,
}

impl<'a> View<'a> {
    pub(super) fn of(name: &'a str, report: &LoadReport, killed: u64) -> Self {
        Self::counting(Hit::Late, name, report, killed)
    }

    fn counting(counts: Hit, name: &'a str, report: &LoadReport, killed: u64) -> Self {
        let timeline = &report.timeline;
        let bin_ns = (BIN_MS * 1e6) as i64;
        let start = timeline.start_ns as i64 - killed as i64;
        let before = usize::try_from(-start.div_euclid(bin_ns)).unwrap_or(0);
        let mut view = Self {
            name,
            counts,
            before,
            offered: Vec::new(),
            ok: Vec::new(),
            failed: Vec::new(),
            late: report.late_share(),
            successes: Vec::new(),
        };
        let columns = timeline
            .offered
            .iter()
            .zip(&timeline.ok)
            .zip(&timeline.slowest_us);
        for (fine, ((offered, ok), slowest_us)) in columns.enumerate() {
            let slow = u128::from(*slowest_us) >= WELL.as_micros();
            let well = ok.saturating_sub(u32::from(slow));
            let at = start + fine as i64 * timeline.bin_ns as i64;
            let bin = usize::try_from(at.div_euclid(bin_ns) + before as i64).unwrap_or(0);
            for column in [&mut view.offered, &mut view.ok, &mut view.failed] {
                if column.len() <= bin {
                    column.resize(bin + 1, 0);
                }
            }
            view.offered[bin] += offered;
            view.ok[bin] += well;
            view.failed[bin] += offered.saturating_sub(*ok);
            view.successes.push((at, well));
        }
        view
    }

    pub(super) fn name(&self) -> &str {
        self.name
    }

    fn after(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.bins().skip(self.before)
    }

    fn since(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.bins().skip(self.fault())
    }

    fn bins(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.offered.iter().copied().zip(self.ok.iter().copied())
    }

    /// The last bin before the kill is not before the fault: its requests were
    /// under way.
    fn fault(&self) -> usize {
        self.before.saturating_sub(1)
    }

    fn lost_before(&self) -> u64 {
        let failed = self.failed.iter().take(self.fault());
        failed.copied().map(u64::from).sum()
    }

    fn lost(&self) -> u64 {
        let failed = self.failed.iter().skip(self.fault());
        failed.copied().map(u64::from).sum()
    }

    /// At least one failed request, or at least 100 ms without goodput.
    fn hit(&self) -> bool {
        self.lost() > 0
            || self.since().any(|(offered, ok)| match self.counts {
                Hit::Late => ok < offered,
                Hit::Silent => offered > 0 && ok == 0,
            })
    }

    fn unavailability(&self) -> f64 {
        self.since()
            .filter(|(offered, _)| *offered > 0)
            .map(|(offered, ok)| (1.0 - f64::from(ok) / f64::from(offered)) * BIN_MS / 1000.0)
            .sum()
    }

    fn good(&self, bin: usize) -> bool {
        self.after()
            .nth(bin)
            .is_some_and(|(offered, ok)| f64::from(ok) >= GOOD * f64::from(offered))
    }

    /// The first success after `from`, both relative to the kill in ns.
    fn first_success(&self, from: i64) -> Option<i64> {
        self.successes
            .iter()
            .find(|(at, ok)| *at >= from && *ok > 0)
            .map(|(at, _)| *at)
    }

    pub(super) fn timeline(&self, expected_hit: bool) -> Timeline {
        Timeline {
            name: self.name.to_owned(),
            expected_hit,
            first_bin_ms: -(self.before as f64) * BIN_MS,
            bin_ms: BIN_MS,
            offered: self.offered.clone(),
            ok: self.ok.clone(),
        }
    }
}

/// The first bin from which on ten in a row are good for every victim.
fn recovery_bin(victims: &[&View<'_>]) -> Option<usize> {
    let bins = victims
        .iter()
        .map(|view| view.offered.len().saturating_sub(view.before))
        .min()?;
    (0..bins.saturating_sub(GOOD_BINS - 1)).find(|first| {
        (*first..first + GOOD_BINS).all(|bin| victims.iter().all(|view| view.good(bin)))
    })
}

pub(super) fn outcome(views: &[View<'_>], lives: &[Life], killed: u64) -> BTreeMap<String, f64> {
    let victims: Vec<&View<'_>> = views.iter().filter(|view| view.hit()).collect();
    let mut values = BTreeMap::from([
        (keys::PODS_MESHED.to_owned(), views.len() as f64),
        (keys::PODS_HIT.to_owned(), victims.len() as f64),
        (
            keys::BLAST_RADIUS.to_owned(),
            victims.len() as f64 / views.len().max(1) as f64,
        ),
        (
            keys::REQUESTS_LOST.to_owned(),
            views.iter().map(View::lost).sum::<u64>() as f64,
        ),
        (
            keys::UNAVAILABILITY.to_owned(),
            views.iter().map(View::unavailability).sum(),
        ),
    ]);
    let recovered = if victims.is_empty() {
        Some(0.0)
    } else {
        recovery_bin(&victims).map(|bin| bin as f64 * BIN_MS)
    };
    if let Some(ms) = recovered {
        values.insert(keys::TIME_TO_RECOVER.to_owned(), ms);
    }
    let mut part = |key: &str, from: Option<u64>, until: Option<u64>| {
        if let (Some(from), Some(until)) = (from, until) {
            values.insert(key.to_owned(), until.saturating_sub(from) as f64 / 1e6);
        }
    };
    let dead = lives.iter().position(|life| life.killed == Some(killed));
    let next = dead.and_then(|at| lives.get(at + 1));
    let noticed = dead.and_then(|at| lives[at].noticed);
    let spawned = next.map(|life| life.spawned);
    let ready = next.and_then(|life| life.ready);
    part(keys::RECOVERY_PARTS[0], Some(killed), noticed);
    part(keys::RECOVERY_PARTS[1], noticed, spawned);
    part(keys::RECOVERY_PARTS[2], spawned, ready);
    let served = ready.and_then(|ready| {
        let from = ready as i64 - killed as i64;
        victims
            .iter()
            .map(|view| view.first_success(from))
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .max()
    });
    if let (Some(ready), Some(served)) = (ready, served) {
        let ready = ready as i64 - killed as i64;
        values.insert(
            keys::RECOVERY_PARTS[3].to_owned(),
            (served - ready).max(0) as f64 / 1e6,
        );
    }
    values
}

pub(super) fn voids(views: &[View<'_>]) -> Vec<Void> {
    let mut voids = Vec::new();
    let unclean: u64 = views.iter().map(View::lost_before).sum();
    if unclean > UNCLEAN {
        voids.push(Void {
            gate: "not well before the fault".to_owned(),
            measured: unclean as f64,
            limit: UNCLEAN as f64,
            message: format!("{unclean} requests were lost before anything was done to the proxy"),
        });
    }
    let late = views.iter().map(|view| view.late).sum::<f64>() / views.len().max(1) as f64;
    if late > LATE_SENDS {
        voids.push(Void {
            gate: "late sends".to_owned(),
            measured: late,
            limit: LATE_SENDS,
            message: format!(
                "{:.1} % of sends were over 1 ms late; {:.1} % are allowed",
                100.0 * late,
                100.0 * LATE_SENDS
            ),
        });
    }
    voids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(bins: &[(u32, u32)]) -> View<'static> {
        View {
            name: "app-0",
            counts: Hit::Late,
            before: 2,
            offered: bins.iter().map(|(offered, _)| *offered).collect(),
            ok: bins.iter().map(|(_, ok)| *ok).collect(),
            failed: bins.iter().map(|(offered, ok)| offered - ok).collect(),
            late: 0.0,
            successes: bins
                .iter()
                .enumerate()
                .map(|(at, (_, ok))| ((at as i64 - 2) * 100_000_000, *ok))
                .collect(),
        }
    }

    fn down_for(bins: usize) -> Vec<(u32, u32)> {
        let mut all = vec![(5, 5); 2];
        all.extend(vec![(5, 0); bins]);
        all.extend(vec![(5, 5); 15]);
        all
    }

    #[test]
    fn recovery_is_the_first_of_ten_good_bins() {
        let mut bins = down_for(3);
        let first = view(&bins);
        assert_eq!(recovery_bin(&[&first]), Some(3));
        // A relapse starts the count anew.
        bins[2 + 3 + 4] = (5, 4);
        let relapse = view(&bins);
        assert_eq!(recovery_bin(&[&relapse]), Some(8));
        assert_eq!(recovery_bin(&[&first, &relapse]), Some(8));
    }

    #[test]
    fn no_recovery_within_the_window_is_not_a_number() {
        let mut bins = down_for(3);
        bins.truncate(10);
        assert_eq!(recovery_bin(&[&view(&bins)]), None);
    }

    #[test]
    fn the_parts_follow_one_another() {
        let life = |spawned, ready, killed, noticed| Life {
            pid: 1,
            spawned,
            ready,
            killed,
            noticed,
        };
        let ms = |ms: u64| ms * 1_000_000;
        let lives = [
            life(0, Some(1), Some(ms(1000)), Some(ms(1002))),
            life(ms(1005), Some(ms(1105)), None, None),
        ];
        let down = view(&down_for(3));
        let well = view(&[(5, 5); 20]);
        let values = outcome(&[down, well], &lives, ms(1000));
        assert_eq!(values[keys::PODS_HIT], 1.0);
        assert_eq!(values[keys::BLAST_RADIUS], 0.5);
        assert_eq!(values[keys::REQUESTS_LOST], 15.0);
        assert!((values[keys::UNAVAILABILITY] - 0.3).abs() < 1e-9);
        assert_eq!(values[keys::TIME_TO_RECOVER], 300.0);
        let parts: Vec<f64> = keys::RECOVERY_PARTS.map(|key| values[key]).to_vec();
        assert_eq!(parts, [2.0, 3.0, 100.0, 195.0]);
    }

    #[test]
    fn who_waits_is_hit_but_loses_nothing() {
        let mut waiting = view(&down_for(2));
        waiting.failed.fill(0);
        assert!(waiting.hit());
        assert_eq!(waiting.lost(), 0);
        assert!(!view(&[(5, 5); 20]).hit());
        // In a long window one late answer is the machine's.
        let mut late = view(&[(5, 4); 20]);
        late.failed.fill(0);
        assert!(late.hit());
        late.counts = Hit::Silent;
        assert!(!late.hit());
        waiting.counts = Hit::Silent;
        assert!(waiting.hit());
    }

    #[test]
    fn losses_before_the_kill_void_the_trial() {
        let mut bins = down_for(1);
        assert!(voids(&[view(&bins)]).is_empty());
        bins[0] = (5, 4);
        assert_eq!(voids(&[view(&bins)])[0].gate, "not well before the fault");
    }
}
