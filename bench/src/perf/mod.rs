//! What the core's work costs, against no mesh and against Envoy: `duet-bench perf`.
//!
//! Two proxies on the path, one worker each, the client on one node and the server on
//! the other, 1 KiB over 32 kept HTTP/1.1 connections. All arms stand at the same time
//! and are visited in an order that is drawn anew for each block; ratios are taken within
//! blocks. Wake-ups dominate at low rates, so costs compare at equal rates only.

mod flame;
mod floor;
mod handshakes;
mod hold;
mod table;

pub use handshakes::{HANDSHAKES, HandshakesArgs, make as make_handshakes};

use crate::arm::Arm;
use crate::cluster::{self, Limits, NetnsSite, PodSpec, ServiceSpec, Site, Wish};
use crate::peer::{self, Peer};
use crate::run::{Interrupt, Interrupted};
use crate::scenario::{Bed, Drive, Failure};
use crate::stats;
use clap::Args;
use floor::Cores;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::time::Duration;
use table::Quantity;

const PATH: &str = "/bytes/1024";
const APP_PORT: u16 = 8080;
const CONNECTIONS: u32 = 32;
/// Requests/s; the last one is more than any proxy here carries.
const RATES: [f64; 3] = [1000.0, 3000.0, 20_000.0];
/// The peers that do the same: with requests, and with bytes.
const RIVALS: [&str; 2] = ["envoy-http", "envoy-tcp"];
/// New connections/s.
const FRESH: f64 = 400.0;
/// From standing to the first look at idle proxies.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Args, Debug)]
pub struct PerfArgs {
    /// Times that everything is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    blocks: u32,

    /// Length of each measurement
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "3s")]
    window: Duration,

    /// Of the order and the schedules
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Only these, as in none,sidecar,envoy-http
    #[arg(long, value_delimiter = ',', value_name = "ARMS")]
    arms: Vec<Arm>,

    /// Leaves out the idle connections, which take a minute
    #[arg(long)]
    no_hold: bool,

    /// Directory for a flame graph of each arm at saturation, instead of figures (needs perf and inferno)
    #[arg(long, value_name = "DIR")]
    flame: Option<PathBuf>,
}

/// An arm, carrying requests or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    arm: Arm,
    opaque: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
    #[error("{0}")]
    Other(String),
}

/// A plain reverse proxy, that has no handshakes to be measured, is none.
fn rivals() -> impl Iterator<Item = &'static Peer> {
    peer::built_in()
        .iter()
        .filter(|peer| RIVALS.contains(&&*peer.name))
}

impl Subject {
    fn all(arms: &[Arm]) -> Vec<Self> {
        let peers = rivals().map(Arm::Peer);
        let wanted = |arm: &Arm| arms.is_empty() || arms.contains(arm);
        [Arm::None, Arm::Sidecar, Arm::Agent]
            .into_iter()
            .chain(peers)
            .filter(wanted)
            .flat_map(|arm| {
                let layers: &[bool] = match arm {
                    Arm::Sidecar | Arm::Agent => &[false, true],
                    _ => &[false],
                };
                layers.iter().map(move |opaque| Self {
                    arm,
                    opaque: *opaque,
                })
            })
            .collect()
    }

    fn title(self) -> String {
        match (self.arm, self.opaque) {
            (Arm::Sidecar | Arm::Agent, false) => format!("{} HTTP", self.arm),
            (_, true) => format!("{} opaque", self.arm),
            (arm, false) => arm.to_string(),
        }
    }

    /// The arm of Envoy's that does the same.
    fn rival(self) -> Option<Self> {
        let name = match (self.arm, self.opaque) {
            (Arm::Sidecar | Arm::Agent, false) => RIVALS[0],
            (Arm::Sidecar | Arm::Agent, true) => RIVALS[1],
            _ => return None,
        };
        let arm = Arm::Peer(peer::built_in().iter().find(|peer| peer.name == name)?);
        Some(Self { arm, opaque: false })
    }

    fn drive(self, bed: &Bed, rate: f64) -> Result<Drive, Failure> {
        let port = if self.opaque { 81 } else { 80 };
        let url = format!("http://{}:{port}{PATH}", bed.cluster.address("far")?);
        let mut drive = Drive::new("client", &url, rate);
        drive.connections = CONNECTIONS;
        Ok(drive)
    }
}

/// What was measured: block by block where it is timed.
pub(crate) type Measured = BTreeMap<(Quantity, Subject), Vec<f64>>;

/// Measures and prints the table.
pub fn run(args: &PerfArgs) -> Result<(), Trouble> {
    let interrupt = Interrupt::listen().map_err(|error| Trouble::Other(error.to_string()))?;
    let mut subjects = Subject::all(&args.arms);
    for peer in rivals() {
        if peer.program().is_none() {
            eprintln!("{} is left out: `make peers` installs it", peer.name);
            subjects.retain(|subject| subject.arm.peer() != Some(peer));
        }
    }
    let site = NetnsSite::new(interrupt.clone());
    let mut beds = BTreeMap::new();
    for subject in &subjects {
        if let Entry::Vacant(place) = beds.entry(subject.arm) {
            eprintln!("building {}", subject.arm);
            let cluster = site.build(&wish(subject.arm))?;
            let bed = Bed {
                arm: subject.arm,
                cluster,
                took: Duration::ZERO,
            };
            place.insert(bed);
        }
    }
    let lab = Lab {
        args,
        interrupt: &interrupt,
        beds: &beds,
    };
    if let Some(dir) = &args.flame {
        return flame::draw(&lab, &subjects, dir);
    }
    let mut measured = Measured::new();
    interrupt.sleep(SETTLE)?;
    for (arm, bed) in beds.iter().filter(|(arm, _)| arm.meshed()) {
        hold::idle(bed, *arm, &mut measured)?;
    }
    let mut order = subjects.clone();
    for block in 0..args.blocks {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(
            args.seed.wrapping_add(u64::from(block)),
        ));
        for subject in &order {
            eprintln!(
                "block {} of {}: {}",
                block + 1,
                args.blocks,
                subject.title()
            );
            lab.visit(*subject, block, &mut measured)?;
        }
    }
    if !args.no_hold {
        eprintln!("idle connections");
        hold::connections(&lab, &subjects, &mut measured)?;
    }
    println!("{}", table::render(&subjects, &measured, args.seed));
    Ok(())
}

/// The same pods and services for every arm.
fn wish(arm: Arm) -> Wish {
    let pod = |name: &str, node| PodSpec::new(name).node(node).service_account(name);
    Wish {
        name: arm.name().to_owned(),
        placement: arm.placement(),
        classic: false,
        peer: arm.peer(),
        proxy_args: [arm.proxy_args(), &["--workers", "1"]].concat(),
        limits: Limits::default(),
        // An agent takes what a meshed pod sends, whoever sends it.
        pods: vec![
            pod("client", 1),
            pod("far", 2),
            pod("stranger", 1).meshed(false),
        ],
        services: vec![
            ServiceSpec::new("far")
                .port_as(80, APP_PORT, "http")
                .port_as(81, APP_PORT, "tcp")
                .pods(["far"]),
        ],
        servers: vec![("far".to_owned(), APP_PORT)],
        certificates: None,
    }
}

struct Lab<'a> {
    args: &'a PerfArgs,
    interrupt: &'a Interrupt,
    beds: &'a BTreeMap<Arm, Bed>,
}

impl Lab<'_> {
    fn visit(&self, subject: Subject, block: u32, measured: &mut Measured) -> Result<(), Trouble> {
        let bed = &self.beds[&subject.arm];
        if subject.arm == Arm::None {
            let there = std::thread::available_parallelism().map_or(1, usize::from);
            for cores in [Cores::One, Cores::Two].into_iter().take(there) {
                let floor = floor::measure(RATES[0], self.args.window, cores)
                    .map_err(|error| Trouble::Other(format!("over loopback: {error}")))?;
                let key = (Quantity::Floor(cores), subject);
                measured.entry(key).or_default().push(floor);
            }
        }
        for (at, rate) in RATES.into_iter().enumerate() {
            let drive = subject.drive(bed, rate)?;
            let done = self.measure(bed, drive, &format!("{block}/{rate}"))?;
            if at == 0 {
                let key = (Quantity::Median, subject);
                measured.entry(key).or_default().push(done.median_us);
            }
            if subject.arm.meshed() {
                let key = (Quantity::CpuPerRequest(at), subject);
                measured.entry(key).or_default().push(done.proxies_us);
            }
        }
        if subject.arm.meshed() {
            let mut drive = subject.drive(bed, FRESH)?;
            drive.fresh = true;
            let done = self.measure(bed, drive, &format!("{block}/fresh"))?;
            let key = (Quantity::CpuPerConnection, subject);
            measured.entry(key).or_default().push(done.proxies_us);
        }
        // Opaque or not, it is the same connection.
        if subject.arm.meshed() && !subject.opaque {
            let time = self.args.window;
            let done = bed.cluster.shake_hands("stranger", "client", "far", time)?;
            let key = (Quantity::CpuPerHandshake, subject);
            let each = done.proxy_us as f64 / done.made.max(1) as f64;
            measured.entry(key).or_default().push(each);
        }
        Ok(())
    }

    /// Half a second to warm up, then the window.
    fn measure(&self, bed: &Bed, mut drive: Drive, schedule: &str) -> Result<Done, Trouble> {
        drive.seed = stats::subseed(self.args.seed, schedule);
        drive.warmup = Duration::from_millis(500);
        drive.window = self.args.window;
        // Where more is asked than is carried, requests wait.
        drive.timeout = Duration::from_secs(10);
        let generator = drive.start(bed, Drive::appointment(bed, drive.warmup))?;
        let [before, after] = generator.watch(self.interrupt)?;
        let report = generator.report(self.interrupt)?;
        let median = report
            .histograms
            .response
            .decode()
            .map_err(|error| Trouble::Other(error.to_string()))?
            .value_at_quantile(0.5);
        if report.completed == 0 {
            return Err(Trouble::Other(format!(
                "{}: no request was answered: {:?}",
                bed.arm, report.errors
            )));
        }
        Ok(Done {
            median_us: median as f64 / 1000.0,
            proxies_us: (after.proxies_us - before.proxies_us) as f64 / report.completed as f64,
        })
    }
}

struct Done {
    median_us: f64,
    /// Of both proxies, per request or connection.
    proxies_us: f64,
}
