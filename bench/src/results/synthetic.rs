//! Made-up results for tests: shaped like a run, with effects that are known because they were
//! put in. Never shipped and never shown as a measurement.

use std::collections::BTreeMap;
use std::sync::Mutex;

use hdrhistogram::Histogram as Hdr;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, Normal};

use super::*;

/// Blocks of a profile, as a run would have them.
pub fn blocks(profile: Profile) -> u32 {
    match profile {
        Profile::Smoke => 1,
        Profile::Quick => 6,
        Profile::Full => 12,
    }
}

/// A run with everything in it, analysed: once per process, for the tests' sake.
pub fn run(profile: Profile, seed: u64) -> Results {
    static MADE: Mutex<Vec<Results>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap();
    let known = |results: &&Results| (results.profile, results.seed) == (profile, seed);
    if let Some(results) = made.iter().find(known) {
        return results.clone();
    }
    let mut results = unanalysed(profile, seed);
    crate::analysis::analyse(&mut results);
    made.push(results.clone());
    results
}

pub fn unanalysed(profile: Profile, seed: u64) -> Results {
    let mut maker = Maker {
        rng: ChaCha8Rng::seed_from_u64(seed),
        clock: 0.0,
        blocks: blocks(profile),
    };
    let scenarios = vec![
        maker.latency(),
        maker.connections(),
        maker.memory(),
        maker.cpu(),
        maker.neighbour(),
        maker.kill(),
        maker.plaintext(),
        maker.keys(),
    ];
    Results {
        schema: SCHEMA.into(),
        version: "0.1.0".into(),
        started: "2026-01-02T03:04:05Z".into(),
        duration_s: maker.clock,
        profile,
        seed,
        cluster: "netns".into(),
        command: ["duet-bench", "run", "--seed", &seed.to_string()]
            .map(String::from)
            .to_vec(),
        machine: machine(),
        arms: arms(),
        parity: parity(),
        scenarios,
        interrupted: None,
        notes: vec!["Made up for a test.".into()],
        foreign: Vec::new(),
        analysis: Analysis::default(),
        status: Status::default(),
    }
}

fn machine() -> Machine {
    let pressure = |some| Pressure {
        cpu: Some(PressureLine { some, full: None }),
        memory: Some(PressureLine {
            some: 0.0,
            full: Some(0.0),
        }),
        io: None,
    };
    Machine {
        kernel: "6.18.0".into(),
        cpu: "Example CPU @ 2.60GHz".into(),
        cores: 2,
        memory_mib: 24105,
        cgroup_layout: "hybrid".into(),
        congestion_control: "cubic".into(),
        scheduler: "SCHED_FIFO 1".into(),
        governor: None,
        tls_suite: "TLS13_AES_128_GCM_SHA256 / X25519".into(),
        rustc: "rustc 1.95.0".into(),
        binaries: ["duet-agent", "duet-bench", "duet-control", "duet-sidecar"]
            .map(|name| (name.to_string(), "0123456789abcdef".repeat(4)))
            .into(),
        pressure_before: pressure(0.31),
        pressure_after: pressure(12.4),
        kubernetes: None,
    }
}

fn arms() -> Vec<Arm> {
    let arm = |name: &str, placement, description: &str, proxies: u32| Arm {
        name: name.into(),
        description: description.into(),
        placement,
        copy_of: (name == "aa").then(|| "sidecar".into()),
        core_fingerprint: (proxies > 0).then(|| "c0ffee12".into()),
        opt_level: (proxies > 0).then(|| "3".into()),
        workers: (proxies > 0).then_some(8),
        limits: (proxies > 0).then(|| Limits {
            proxies,
            cpu_millicores_each: 1600.0 / f64::from(proxies),
            cpu_millicores_sum: 1600.0,
            memory_mib_each: 1024.0 / f64::from(proxies),
            memory_mib_sum: 1024.0,
        }),
    };
    vec![
        arm("none", Placement::None, "no mesh", 0),
        arm("sidecar", Placement::Sidecar, "a proxy in each pod", 8),
        arm("agent", Placement::Agent, "a proxy on each node", 1),
        arm("aa", Placement::Sidecar, "the sidecar arm once more", 8),
    ]
}

fn parity() -> Vec<ParityRow> {
    let row = |what: &str, values: [&str; 4], note: Option<&str>| ParityRow {
        what: what.into(),
        values: values.map(String::from).to_vec(),
        equal: note.is_none(),
        note: note.map(String::from),
    };
    vec![
        row(
            "core fingerprint",
            ["–", "c0ffee12", "c0ffee12", "c0ffee12"],
            None,
        ),
        row(
            "TLS suite",
            ["–", "AES-128-GCM", "AES-128-GCM", "AES-128-GCM"],
            None,
        ),
        row("sum of CPU limits", ["–", "1600m", "1600m", "1600m"], None),
        row(
            "proxies per node",
            ["0", "8", "1", "8"],
            Some("this is the difference under test"),
        ),
    ]
}

struct Maker {
    rng: ChaCha8Rng,
    clock: f64,
    blocks: u32,
}

impl Maker {
    /// exp of a normal deviate of that spread.
    fn noise(&mut self, spread: f64) -> f64 {
        let u: f64 = self.rng.random_range(0.001..0.999);
        (spread * normal().inverse_cdf(u)).exp()
    }

    fn trial(&mut self, arm: &str, point: &Point, duration_s: f64) -> Trial {
        self.clock += duration_s;
        Trial {
            arm: arm.into(),
            point: point.clone(),
            repeat: 0,
            started_s: self.clock - duration_s,
            duration_s,
            load: None,
            histograms: Histograms::default(),
            values: BTreeMap::new(),
            timelines: Vec::new(),
            voids: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A trial under load whose median is `median_us` and whose tail grows with `spread`.
    fn loaded(&mut self, arm: &str, point: &Point, median_us: f64, spread: f64) -> Trial {
        let mut trial = self.trial(arm, point, 3.0);
        let offered = 12_000;
        let timeouts = if median_us > 3000.0 { 40 } else { 0 };
        trial.histograms = Histograms {
            response: Some(histogram(offered, median_us, spread)),
            service: Some(histogram(offered, median_us * 0.97, spread)),
            lateness: Some(histogram(offered, 3.0, 0.8)),
            connect: None,
            first_byte: None,
        };
        trial.load = Some(LoadCounts {
            offered,
            sent: offered,
            completed: offered - timeouts,
            errors: (timeouts > 0)
                .then(|| ("timeout".to_string(), timeouts))
                .into_iter()
                .collect(),
            late: 20,
            generator_cpu_s: 0.9,
            wall_s: 3.0,
        });
        if self.rng.random_range(0..60) == 0 {
            trial.voids.push(Void {
                gate: "late sends".into(),
                measured: 0.031,
                limit: 0.02,
                message: "3.1 % of sends were over 1 ms late; 2 % are allowed".into(),
            });
        }
        trial
    }

    fn each_block(
        &mut self,
        blocks: u32,
        arms: &[&str],
        points: &[Point],
        mut make: impl FnMut(&mut Maker, &str, &Point) -> Trial,
    ) -> Vec<Block> {
        (0..blocks)
            .map(|index| {
                let mut order: Vec<String> = arms.iter().map(|arm| arm.to_string()).collect();
                order.rotate_left(index as usize % arms.len());
                let trials = order
                    .iter()
                    .flat_map(|arm| points.iter().map(move |point| (arm, point)))
                    .map(|(arm, point)| make(self, arm, point))
                    .collect();
                Block {
                    index,
                    order: order.clone(),
                    trials,
                }
            })
            .collect()
    }

    fn latency(&mut self) -> Scenario {
        let points: Vec<Point> = ["HTTP/1.1 · same node", "HTTP/1.1 · cross node"]
            .into_iter()
            .flat_map(|series| {
                [10.0, 50.0].map(|x| Point::at(format!("{x} % of capacity"), x).in_series(series))
            })
            .collect();
        let blocks = self.each_block(self.blocks, &EVERY, &points, |maker, arm, point| {
            let base = 240.0 * (1.0 + point.x / 90.0);
            let factor = pick(arm, [1.0, 1.9, 2.15]);
            let median = base * factor * maker.noise(0.03);
            maker.loaded(arm, point, median, 0.45)
        });
        scenario(
            ("L1", "Latency over kept connections"),
            "How much longer does a request take with the mesh?",
            [0.5, 0.9, 0.99].map(|q| Metric::quantile(Stage::Response, q)),
            blocks,
        )
    }

    fn connections(&mut self) -> Scenario {
        let points = [Point::at("50 % of capacity", 50.0)];
        let blocks = self.each_block(self.blocks, &EVERY, &points, |maker, arm, point| {
            let median = pick(arm, [310.0, 820.0, 790.0]) * maker.noise(0.05);
            let mut trial = maker.loaded(arm, point, median, 0.4);
            trial.histograms.connect = Some(histogram(12_000, median * 0.3, 0.4));
            trial.histograms.first_byte = trial.histograms.response.clone();
            let cpu = pick(arm, [92.0, 240.0, 233.0]) * maker.noise(0.02);
            trial.values.insert(keys::CPU_PER_CONNECTION.into(), cpu);
            trial
        });
        scenario(
            ("L2", "A new connection for every request"),
            "How much longer does it take to connect and get the first byte?",
            [
                Metric::quantile(Stage::FirstByte, 0.5),
                Metric::quantile(Stage::FirstByte, 0.9),
                Metric::value(
                    keys::CPU_PER_CONNECTION,
                    "processor time of the whole machine per connection, beyond idle",
                    "µs",
                    Kind::Cpu,
                ),
            ],
            blocks,
        )
    }

    fn memory(&mut self) -> Scenario {
        let points = [1.0, 4.0, 8.0, 16.0].map(|pods| Point::at(format!("{pods} pods"), pods));
        let arms = ["sidecar", "agent", "aa"];
        let blocks = self.each_block(self.blocks, &arms, &points, |maker, arm, point| {
            let mut trial = maker.trial(arm, point, 2.0);
            let pods = point.x;
            let mib = pick(arm, [0.0, 8.2 * pods, 14.5 + 1.3 * pods]) * maker.noise(0.01);
            trial.values = BTreeMap::from([
                (keys::PROXY_MEMORY.to_string(), mib),
                (
                    keys::OPEN_FDS.to_string(),
                    pick(arm, [0.0, 21.0 * pods, 30.0 + 6.0 * pods]),
                ),
                (
                    keys::IDLE_CPU.to_string(),
                    pick(arm, [0.0, 0.4 + 0.9 * pods, 1.6 + 0.2 * pods]),
                ),
            ]);
            trial
        });
        scenario(
            ("R1", "Idle cost by number of pods"),
            "What do the proxies hold while nothing happens, and how does it grow with pods?",
            [
                Metric::value(keys::PROXY_MEMORY, "proxy memory", "MiB", Kind::Memory),
                Metric::value(keys::IDLE_CPU, "idle CPU", "millicores", Kind::Cpu),
                Metric::value(keys::OPEN_FDS, "open file descriptors", "fds", Kind::Count),
            ],
            blocks,
        )
    }

    fn cpu(&mut self) -> Scenario {
        let points = [Point::at("50 % of capacity", 50.0)];
        let blocks = self.each_block(self.blocks, &EVERY, &points, |maker, arm, point| {
            let median = pick(arm, [360.0, 700.0, 780.0]) * maker.noise(0.03);
            let mut trial = maker.loaded(arm, point, median, 0.4);
            let node = pick(arm, [61.0, 148.0, 139.0]) * maker.noise(0.02);
            let proxy = pick(arm, [0.0, 71.0, 66.0]) * maker.noise(0.02);
            let ebpf = pick(arm, [0.0, 0.0, 190.0]) * maker.noise(0.05);
            trial.values = BTreeMap::from([
                (keys::NODE_CPU_PER_REQUEST.to_string(), node),
                (keys::PROXY_CPU_PER_REQUEST.to_string(), proxy),
                (keys::EBPF_PER_REQUEST.to_string(), ebpf),
            ]);
            trial
        });
        scenario(
            ("R2", "Processor time per request"),
            "How much processor time does the mesh take for one request?",
            [
                Metric::value(
                    keys::NODE_CPU_PER_REQUEST,
                    "processor time of the whole machine per request, beyond idle",
                    "µs",
                    Kind::Cpu,
                ),
                Metric::value(
                    keys::PROXY_CPU_PER_REQUEST,
                    "processor time of the proxies per request",
                    "µs",
                    Kind::Cpu,
                ),
                Metric::value(keys::EBPF_PER_REQUEST, "eBPF per request", "ns", Kind::Cpu),
            ],
            blocks,
        )
    }

    fn neighbour(&mut self) -> Scenario {
        let points = [0.0, 1.0, 2.0, 4.0, 8.0].map(|w| Point::at(format!("w={w}"), w));
        let blocks = self.each_block(self.blocks, &EVERY, &points, |maker, arm, point| {
            let w = point.x;
            let slowdown = 1.0 + w * pick(arm, [0.02, 0.05, 0.6]);
            let median = pick(arm, [300.0, 580.0, 640.0]) * slowdown * maker.noise(0.05);
            maker.loaded(arm, point, median, 0.4 + 0.02 * w)
        });
        scenario(
            ("I1", "Noisy neighbour"),
            "How much does one service's flood slow its neighbours down?",
            [
                Metric::quantile(Stage::Response, 0.5),
                Metric::quantile(Stage::Response, 0.9),
                Metric::goodput(),
            ],
            blocks,
        )
    }

    fn kill(&mut self) -> Scenario {
        let arms = ["sidecar", "agent"];
        let injections = if self.blocks == 12 {
            10
        } else {
            self.blocks.min(3)
        };
        let blocks = self.each_block(injections, &arms, &[Point::only()], |maker, arm, point| {
            let hit: u32 = if arm == "agent" { 8 } else { 1 };
            let down_ms = (pick(arm, [0.0, 260.0, 410.0]) * maker.noise(0.15)).round();
            let mut trial = maker.trial(arm, point, 5.0);
            trial.timelines = (0..8)
                .map(|pod| timeline(pod, pod < hit, down_ms))
                .collect();
            let lost = f64::from(hit) * (down_ms * 0.05).round();
            trial.values = [
                (keys::PODS_HIT, f64::from(hit)),
                (keys::PODS_MESHED, 8.0),
                (keys::BLAST_RADIUS, f64::from(hit) / 8.0),
                (keys::REQUESTS_LOST, lost),
                (keys::UNAVAILABILITY, f64::from(hit) * down_ms / 1000.0),
                (keys::TIME_TO_RECOVER, down_ms),
                ("detect_ms", 2.0),
                ("restart_ms", down_ms * 0.2),
                ("listen_ms", down_ms * 0.6),
                ("first_success_ms", down_ms * 0.2),
            ]
            .map(|(key, value)| (key.to_string(), value))
            .into();
            trial
        });
        scenario(
            ("F1", "The proxy is killed"),
            "When a proxy dies, who notices, for how long, and what is lost?",
            [
                Metric::value(keys::PODS_HIT, "pods hit", "pods", Kind::Count),
                Metric::value(
                    keys::REQUESTS_LOST,
                    "requests lost",
                    "requests",
                    Kind::Count,
                ),
                Metric::value(
                    keys::UNAVAILABILITY,
                    "unavailability",
                    "pod·s",
                    Kind::Latency,
                ),
                Metric::value(
                    keys::TIME_TO_RECOVER,
                    "time to recover",
                    "ms",
                    Kind::Latency,
                ),
            ],
            blocks,
        )
    }

    fn plaintext(&mut self) -> Scenario {
        let points = [
            Point::at("proxies alive", 0.0),
            Point::at("client's proxy dead", 1.0),
            Point::at("server's proxy dead", 2.0),
        ];
        let arms = ["none", "sidecar", "agent"];
        let blocks = self.each_block(self.blocks.min(6), &arms, &points, |maker, arm, point| {
            let mut trial = maker.trial(arm, point, 1.0);
            let bytes = if arm == "none" { 48_000.0 } else { 0.0 };
            let through = arm == "none" || point.x == 0.0;
            trial.values = [
                (keys::PLAINTEXT_BYTES, bytes),
                (keys::ATTEMPTS, 40.0),
                (keys::ATTEMPTS_ANSWERED, if through { 40.0 } else { 0.0 }),
            ]
            .map(|(key, value)| (key.to_string(), value))
            .into();
            trial
        });
        scenario(
            ("F5", "Plaintext on the wire with the proxy dead"),
            "When a proxy is dead, does anything leave in plaintext?",
            [Metric::value(
                keys::PLAINTEXT_BYTES,
                "plaintext on the wire",
                "bytes",
                Kind::Count,
            )],
            blocks,
        )
    }

    fn keys(&mut self) -> Scenario {
        let points = [Point::at("8 pods", 8.0)];
        let arms = ["sidecar", "agent"];
        let blocks = self.each_block(self.blocks.min(2), &arms, &points, |maker, arm, point| {
            let mut trial = maker.trial(arm, point, 2.0);
            trial.values = [
                (keys::KEYS_MAX, pick(arm, [0.0, 1.0, 8.0])),
                (keys::KEYS_TOTAL, 8.0),
                (keys::IDENTITIES, 8.0),
                (keys::KEYS_AFTER_REMOVAL, 0.0),
            ]
            .map(|(key, value)| (key.to_string(), value))
            .into();
            trial
        });
        scenario(
            ("X1", "Private keys in the proxies' memory"),
            "Whose private keys does someone get who reads a proxy's memory?",
            [
                Metric::value(
                    keys::KEYS_MAX,
                    "keys in the most exposed process",
                    "keys",
                    Kind::Count,
                ),
                Metric::value(
                    keys::KEYS_AFTER_REMOVAL,
                    "keys left after removal",
                    "keys",
                    Kind::Count,
                ),
            ],
            blocks,
        )
    }
}

const EVERY: [&str; 4] = ["none", "sidecar", "agent", "aa"];

/// [none, sidecar, agent]; `aa` is the sidecar again.
fn pick(arm: &str, values: [f64; 3]) -> f64 {
    match arm {
        "none" => values[0],
        "agent" => values[2],
        _ => values[1],
    }
}

fn scenario(
    (id, title): (&str, &str),
    question: &str,
    metrics: impl Into<Vec<Metric>>,
    blocks: Vec<Block>,
) -> Scenario {
    Scenario {
        id: id.into(),
        title: title.into(),
        question: question.into(),
        parameters: BTreeMap::from([("time-out".to_string(), serde_json::json!("1 s"))]),
        metrics: metrics.into(),
        blocks,
        notes: Vec::new(),
    }
}

fn normal() -> Normal {
    Normal::new(0.0, 1.0).unwrap()
}

/// Log-normal with a heavier last per cent.
pub fn histogram(n: u64, median_us: f64, spread: f64) -> Histogram {
    let mut histogram = Hdr::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    const SLICES: u64 = 1000;
    for slice in 0..SLICES {
        let u = (slice as f64 + 0.5) / SLICES as f64;
        let tail = if u > 0.99 { 1.6 } else { 1.0 };
        let us = median_us * (spread * normal().inverse_cdf(u) * tail).exp();
        let ns = (us.min(1e6) * 1000.0) as u64;
        histogram.record_n(ns, n / SLICES).unwrap();
    }
    Histogram::encode(&histogram)
}

/// Five requests per 100 ms; those of a pod that is hit fail from the kill until `down_ms`.
fn timeline(pod: u32, hit: bool, down_ms: f64) -> Timeline {
    let bins = 40;
    let ok = |bin: i32| {
        let start = f64::from(bin - 10) * 100.0;
        let dark = (start + 100.0).min(down_ms) - start.max(0.0);
        if hit && dark > 0.0 {
            5 - ((dark / 20.0).ceil() as u32).min(5)
        } else {
            5
        }
    };
    Timeline {
        name: format!("web-{pod}"),
        expected_hit: hit,
        first_bin_ms: -1000.0,
        bin_ms: 100.0,
        offered: vec![5; bins as usize],
        ok: (0..bins).map(ok).collect(),
    }
}
