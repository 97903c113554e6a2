//! X1: whose private keys someone gets who reads a proxy's memory.
//!
//! The public halves are those in the certificates that the proxies hold. Two
//! controls frame every trial: a process that holds a key made for the purpose
//! has to give exactly that one away, and once a pod is removed its key must be
//! gone from the proxies that remain.

use super::bed::{self, Shape};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::accounting::{Certified, KeyScan, KnownKeys};
use crate::cluster::ProxyRef;
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time that one process's memory may take.
const LIMIT: Duration = Duration::from_secs(10);
/// From a pod's removal to the second look: connections of its own may still
/// hold the key while they are being closed.
const AFTER_REMOVAL: Duration = Duration::from_millis(1_000);

pub struct Keys;

impl Keys {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Keys {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::X1]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        let keys_of = |key, label| Metric::value(key, label, "keys", Kind::Count);
        vec![
            keys_of(
                keys::KEYS_MAX,
                "workload keys in the most exposed proxy process",
            ),
            keys_of(
                keys::KEYS_TOTAL,
                "workload keys in all proxy processes of the node",
            ),
            keys_of(
                keys::KEYS_AFTER_REMOVAL,
                "keys of a removed pod that are still there",
            ),
            Metric::value(
                keys::IDENTITIES,
                "workload identities of the node",
                "identities",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::X1, &[Id::F1])
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        AFTER_REMOVAL
            + plan.renewing()
            + Duration::from_secs(1)
            + Duration::from_millis(300) * plan.pace.fault_pods
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            ("limit_per_process_s".to_owned(), json!(LIMIT.as_secs())),
            (
                "searched".to_owned(),
                json!(
                    "all writable private memory; 8-byte aligned windows in both byte orders, and DER"
                ),
            ),
            (
                "after_removal_ms".to_owned(),
                json!(AFTER_REMOVAL.as_millis()),
            ),
        ])
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let began = Instant::now();
        let proxies = bed.cluster.proxies(1)?;
        let mut known = Vec::new();
        for proxy in &proxies {
            known.extend(identities(&bed, proxy)?);
        }
        let control = bed.cluster.scan_control(&known, LIMIT)?;
        let scans = scan_all(lab, &bed, &proxies, &known)?;

        // The last pod goes and comes back, so that the next block finds the same bed.
        let leaving = lab.plan.pace.fault_pods - 1;
        let name = bed::fleet_name(leaving);
        let gone = identity_of(&bed, &name)?;
        bed.cluster.remove_pod(&name)?;
        lab.interrupt.sleep(AFTER_REMOVAL)?;
        let left = scan_all(lab, &bed, &bed.cluster.proxies(1)?, &known)?;
        bed.cluster.add_pods(vec![bed::fleet_pod(leaving)])?;

        let still: usize = left
            .iter()
            .filter(|scan| scan.found.contains_key(&gone))
            .count();
        let most = scans.iter().map(|scan| scan.found.len()).max().unwrap_or(0);
        let total: usize = scans.iter().map(|scan| scan.found.len()).sum();
        let copies: u64 = scans.iter().flat_map(|scan| scan.found.values()).sum();
        let values = [
            (keys::KEYS_MAX, most as f64),
            (keys::KEYS_TOTAL, total as f64),
            (keys::IDENTITIES, KnownKeys::of(&known).len() as f64),
            (keys::KEYS_AFTER_REMOVAL, still as f64),
            ("key_copies", copies as f64),
            ("processes", scans.len() as f64),
            (
                "scanned_mib",
                scans.iter().map(|scan| scan.bytes).sum::<u64>() as f64 / 1_048_576.0,
            ),
            (
                "windows_tried",
                scans.iter().map(|scan| scan.tried).sum::<u64>() as f64,
            ),
            (
                "slowest_scan_s",
                scans
                    .iter()
                    .map(|scan| scan.took.as_secs_f64())
                    .fold(0.0, f64::max),
            ),
        ];
        let mut voids = Vec::new();
        if !control {
            voids.push(Void {
                gate: "scan control".to_owned(),
                measured: 0.0,
                limit: 1.0,
                message: "the scan did not find the key that a process was known to hold"
                    .to_owned(),
            });
        }
        let cut = scans
            .iter()
            .chain(&left)
            .filter(|scan| !scan.complete)
            .count();
        if cut > 0 {
            voids.push(Void {
                gate: "scan complete".to_owned(),
                measured: cut as f64,
                limit: 0.0,
                message: format!("{cut} processes could not be searched whole within {LIMIT:?}"),
            });
        }
        let pods = lab.plan.pace.fault_pods;
        Ok(vec![(
            Id::X1,
            Trial {
                arm: visit.arm.name().to_owned(),
                point: Point::at(format!("{pods} pods"), f64::from(pods)),
                repeat: 0,
                started_s: began.duration_since(lab.started).as_secs_f64(),
                duration_s: began.elapsed().as_secs_f64(),
                load: None,
                histograms: Default::default(),
                values: values
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect(),
                timelines: Vec::new(),
                voids,
                notes: Vec::new(),
            },
        )])
    }
}

fn scan_all(
    lab: &Lab<'_>,
    bed: &Bed,
    proxies: &[ProxyRef],
    known: &[Certified],
) -> Result<Vec<KeyScan>, Failure> {
    let mut scans = Vec::new();
    for proxy in proxies {
        lab.interrupt.check()?;
        scans.push(bed.cluster.scan(&proxy.name, known, LIMIT)?);
    }
    Ok(scans)
}

/// The identities that a proxy holds, as it says itself.
fn identities(bed: &Bed, proxy: &ProxyRef) -> Result<Vec<Certified>, Failure> {
    let held = bed.cluster.identities(&proxy.name)?;
    if held.is_empty() {
        return Err(Failure::Control(format!(
            "{} holds no certificate to look for the key of",
            proxy.name
        )));
    }
    Ok(held)
}

/// The identity of a pod: its service account is its own.
fn identity_of(bed: &Bed, pod: &str) -> Result<String, Failure> {
    let account = format!("/sa/{}", bed.cluster.service_account(pod)?);
    bed.cluster
        .identities(&bed.cluster.proxy_of(pod)?.name)?
        .into_iter()
        .map(|held| held.identity)
        .find(|identity| identity.ends_with(&account))
        .ok_or_else(|| Failure::Control(format!("the proxy of {pod} has no identity for it")))
}
