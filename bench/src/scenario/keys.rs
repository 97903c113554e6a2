//! X1: whose private keys someone gets who reads a proxy's memory.
//!
//! The public halves are those in the certificates that the proxies hold. Two
//! controls frame every trial: a process that holds a key made for the purpose
//! has to give exactly that one away, and once a pod is removed its key must be
//! gone from the proxies that remain.

use super::bed::{self, Shape};
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::accounting::{KeyScan, KnownKeys, scan_process};
use crate::arm::Arm;
use crate::cluster::{Endpoint, Proxy};
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time that one process's memory may take.
const LIMIT: Duration = Duration::from_secs(10);
/// From a pod's removal to the second look: connections of its own may still
/// hold the key while they are being closed.
const AFTER_REMOVAL: Duration = Duration::from_millis(1_000);
/// The hidden command whose process holds the control's key.
pub const HOLD_KEY: &str = "hold-key";

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
        if plan.wants(&[Id::F1]) {
            return Duration::ZERO;
        }
        let arms = plan.arms_of(Id::X1).len() as u32;
        (Duration::from_secs(1) + Duration::from_millis(100) * plan.pace.fault_pods) * arms
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        AFTER_REMOVAL + Duration::from_secs(1) + Duration::from_millis(300) * plan.pace.fault_pods
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        for arm in arms {
            lab.bed(Self::shape(lab.plan), *arm)?;
        }
        Ok(())
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
        let proxies = bed.proxies_on(1);
        let mut known = KnownKeys::default();
        for proxy in &proxies {
            known.extend(identities(proxy)?);
        }
        let control = control(&known)?;
        let scans = scan_all(lab, &proxies, &known)?;

        // The last pod goes and comes back, so that the next block finds the same bed.
        let leaving = lab.plan.pace.fault_pods - 1;
        let name = bed::fleet_name(leaving);
        let gone = identity_of(&bed, &name)?;
        bed.cluster.remove_pod(&name)?;
        lab.interrupt.sleep(AFTER_REMOVAL)?;
        let left = scan_all(lab, &bed.proxies_on(1), &known)?;
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
            (keys::IDENTITIES, known.len() as f64),
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

fn scan_all(lab: &Lab<'_>, proxies: &[Proxy], known: &KnownKeys) -> Result<Vec<KeyScan>, Failure> {
    let mut scans = Vec::new();
    for pid in proxies.iter().filter_map(|proxy| proxy.pid) {
        lab.interrupt.check()?;
        scans.push(scan_process(pid, known, LIMIT)?);
    }
    Ok(scans)
}

/// The public keys of the identities that a proxy holds, as it says itself.
fn identities(proxy: &Proxy) -> Result<KnownKeys, Failure> {
    let mut known = KnownKeys::default();
    for (identity, certificate) in held(proxy)? {
        known.add_certificate(&identity, &certificate);
    }
    if known.is_empty() {
        return Err(Failure::Control(format!(
            "{} holds no certificate to look for the key of",
            proxy.name
        )));
    }
    Ok(known)
}

fn held(proxy: &Proxy) -> Result<Vec<(String, String)>, Failure> {
    let (_, page) = proxy.get(Endpoint::Admin, "/config")?;
    let page: Value = serde_json::from_str(&page)
        .map_err(|error| Failure::Control(format!("/config of {}: {error}", proxy.name)))?;
    Ok(page["identities"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| {
            let identity = one["identity"].as_str()?;
            let certificate = one["certificate"].as_str()?;
            Some((identity.to_owned(), certificate.to_owned()))
        })
        .collect())
}

/// The identity of a pod: its service account is its own.
fn identity_of(bed: &Bed, pod: &str) -> Result<String, Failure> {
    let account = format!("/sa/{}", bed.cluster.pod(pod)?.service_account);
    held(&bed.cluster.proxy_of(pod)?)?
        .into_iter()
        .map(|(identity, _)| identity)
        .find(|identity| identity.ends_with(&account))
        .ok_or_else(|| Failure::Control(format!("the proxy of {pod} has no identity for it")))
}

/// Whether the scan finds the key of a process that is known to hold one, and
/// no other.
fn control(others: &KnownKeys) -> Result<bool, Failure> {
    let failed = |what: &str| Failure::Control(what.to_owned());
    let program = std::env::current_exe().map_err(Failure::OwnPath)?;
    let mut child = Command::new(program)
        .arg(HOLD_KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::Control(error.to_string()))?;
    let found = (|| {
        let stdout = child.stdout.take().ok_or_else(|| failed("no pipe"))?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| Failure::Control(error.to_string()))?;
        let point = hex(line.trim()).ok_or_else(|| failed("no public key was printed"))?;
        let mut known = others.clone();
        if !known.add_point("control", &point) {
            return Err(failed("what was printed is no P-256 key"));
        }
        let scan = scan_process(child.id(), &known, LIMIT)?;
        Ok(scan.found.keys().eq(["control"]))
    })();
    let _ = child.kill();
    let _ = child.wait();
    found
}

fn hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Makes a key as the proxies make theirs, prints its public half, and holds it
/// until standard input closes.
pub fn hold_key() -> Result<(), String> {
    let pair = rcgen::KeyPair::generate().map_err(|error| error.to_string())?;
    let line: String = pair
        .public_key_raw()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("{line}");
    std::io::stdout()
        .flush()
        .map_err(|error| error.to_string())?;
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(pair);
    Ok(())
}
