//! A big mesh in a real API server: how long, how much, how fast (`make scale`).
//!
//! Nothing here passes or fails by its figures: it prints them. The pods are simulated
//! (`simulated`), everything else is real: the API server and its controllers,
//! duet-control as a process of its own (`DUET_SCALE_CONTROL`, or this build's), its TLS,
//! its gRPC, tokens that the API server has given and reviews. The size is set by
//! `DUET_SCALE_PODS` (10 000) and `DUET_SCALE_WATCHERS` (200 agents, and as many sidecars).

mod mesh;
mod simulated;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::PostParams;
use serde_json::json;
use simulated::{Corner, Lab, clear, client, in_lab};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use watchers::Watchers;

const NODES: usize = 200;
const NAMESPACES: usize = 20;
const PODS_PER_SERVICE: usize = 10;
/// Requests to the API server at the same time.
const HANDS: usize = 32;
/// Changes that are timed, one after the other.
const PROBES: usize = 200;
/// Pods that change at once in a rollout.
const ROLLOUT: usize = 500;
const PATIENCE: Duration = Duration::from_secs(300);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Past the test harness, as it comes.
fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

macro_rules! say {
    ($($text:tt)*) => { say(format_args!($($text)*)) };
}

// Behind the macro, which it uses.
#[path = "kube_scale/watchers.rs"]
mod watchers;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes ten thousand pods, which takes minutes: make scale"]
async fn ten_thousand_pods() {
    if let Some(client) = client().await {
        // What one that was killed left behind. There is room for one at a time.
        clear(&client, "kubesource-scale-").await;
    }
    in_lab("scale", measure).await;
}

async fn measure(lab: Lab) {
    let pods = setting("DUET_SCALE_PODS", 10_000);
    let watchers = setting("DUET_SCALE_WATCHERS", NODES).min(NODES);
    let scale = Scale::build(lab, pods).await;

    let mut control = Control::start(&scale.system.name);
    control.report("after its first state");
    let root = scale.root().await;
    let tokens = scale.tokens(watchers).await;
    let (agents, sidecars) = tokens.split_at(watchers);

    say!("-- two watchers");
    let pair = Watchers::start(control.api, &root, &[&agents[..1], &sidecars[..1]].concat());
    pair.all_have_a_snapshot().await;
    say!(
        "snapshot: agent {}, sidecar {}",
        size(pair.snapshot_of(0)),
        size(pair.snapshot_of(1))
    );
    probe(&scale, &pair, &control).await;
    rollout(&scale, &pair, &control).await;
    drop(pair);

    say!("-- {watchers} agents and {watchers} sidecars, all at once");
    let all = Watchers::start(control.api, &root, &tokens);
    all.all_have_a_snapshot().await;
    control.report("with all of them");
    probe(&scale, &all, &control).await;
    rollout(&scale, &all, &control).await;

    say!("-- restarted under them");
    control.stop();
    control = Control::start_on(&scale.system.name, control.api, control.health);
    let began = Instant::now();
    all.forget();
    all.all_have_a_snapshot().await;
    say!(
        "all have a snapshot {:.1} s after it serves",
        began.elapsed().as_secs_f64()
    );
    control.report("after all came back at once");

    say!("-- each namespace reaches itself only");
    scale.reach(json!("")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(all);
    let all = Watchers::start(control.api, &root, &tokens);
    all.all_have_a_snapshot().await;
    say!(
        "snapshot: agent {}, sidecar {}",
        size(all.snapshot_of(0)),
        size(all.snapshot_of(watchers))
    );
    probe(&scale, &all, &control).await;
    rollout(&scale, &all, &control).await;
    drop(all);
    control.stop();
}

/// Single changes, each timed from before the API server is asked for it.
async fn probe(scale: &Scale, watchers: &Watchers, control: &Control) {
    static PROBED: AtomicUsize = AtomicUsize::new(0);
    watchers.begin();
    let cpu = control.cpu();
    let mut accepted = Vec::new();
    for number in 0..PROBES {
        // None that was probed before: what it is told then would change nothing.
        let other = PROBED.fetch_add(1, Ordering::Relaxed);
        let (corner, pod) = &scale.pods[other * 37 % scale.pods.len()];
        let ports = (number + 1).to_string();
        let annotation =
            json!({ "metadata": { "annotations": { "duet.dev/opaque-ports": ports } } });
        *watchers.shared.asked[number].lock().unwrap() = Some(Instant::now());
        let before = Instant::now();
        scale.corners[*corner].patch::<Pod>(pod, annotation).await;
        accepted.push(before.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut latencies = std::mem::take(&mut *watchers.shared.latencies.lock().unwrap());
    let seen = latencies.len();
    say!(
        "one pod changed, {PROBES} times: API server {}; to a watcher {} ({seen} seen); {} and \
         {:.1} updates to each; {:.0} ms of CPU",
        quantiles(&mut accepted),
        quantiles(&mut latencies),
        size(watchers.bytes() / watchers.count()),
        watchers.updates() as f64 / watchers.count() as f64,
        (control.cpu() - cpu) * 1000.0,
    );
}

/// Many changes at once.
async fn rollout(scale: &Scale, watchers: &Watchers, control: &Control) {
    watchers.begin();
    let cpu = control.cpu();
    let began = Instant::now();
    let changes = stream::iter(0..ROLLOUT.min(scale.pods.len())).map(|number| {
        let (corner, pod) = &scale.pods[number];
        let ports = another().to_string();
        let annotation =
            json!({ "metadata": { "annotations": { "duet.dev/opaque-ports": ports } } });
        scale.corners[*corner].patch::<Pod>(pod, annotation)
    });
    changes.buffer_unordered(HANDS).collect::<Vec<()>>().await;
    let took = began.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    say!(
        "{ROLLOUT} pods changed in {:.1} s: {} and {:.1} updates to each; {:.0} ms of CPU",
        took.as_secs_f64(),
        size(watchers.bytes() / watchers.count()),
        watchers.updates() as f64 / watchers.count() as f64,
        (control.cpu() - cpu) * 1000.0,
    );
}

/// A port that no other change has set, and no probe waits for.
fn another() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    2_000 + COUNT.fetch_add(1, Ordering::Relaxed) % 60_000
}

fn quantiles(times: &mut [Duration]) -> String {
    if times.is_empty() {
        return "never".to_owned();
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share) as usize;
        times[index].as_secs_f64() * 1000.0
    };
    format!(
        "p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

// === The mesh ===

struct Scale {
    lab: Lab,
    system: Corner,
    corners: Vec<Corner>,
    /// Corner and name.
    pods: Vec<(usize, String)>,
}

impl Scale {
    async fn build(lab: Lab, pods: usize) -> Self {
        let began = Instant::now();
        let nodes: Vec<String> = (0..NODES).map(|n| format!("{}-n{n}", lab.name)).collect();
        lab.add_nodes(&nodes).await;
        let system = lab.namespace("system", json!({}), json!({})).await;
        system
            .create::<ServiceAccount>(json!({ "metadata": { "name": "duet-agent" } }))
            .await;
        let mut corners = Vec::new();
        for number in 0..NAMESPACES {
            corners.push(
                lab.namespace(&format!("s{number}"), json!({}), json!({}))
                    .await,
            );
        }
        let services = pods.div_ceil(PODS_PER_SERVICE);
        let made = stream::iter(0..services).map(|number| {
            let corner = &corners[number % NAMESPACES];
            async move { corner.service(&format!("web-{number}"), json!({})).await }
        });
        made.buffer_unordered(HANDS).collect::<Vec<_>>().await;
        say!(
            "{services} services in {:.0} s",
            began.elapsed().as_secs_f64()
        );

        let began = Instant::now();
        let names: Vec<(usize, String)> = (0..pods)
            .map(|number| {
                let service = number / PODS_PER_SERVICE;
                (
                    service % NAMESPACES,
                    format!("web-{service}-{}", number % PODS_PER_SERVICE),
                )
            })
            .collect();
        let made = stream::iter(0..pods).map(|number| {
            let (corner, name) = &names[number];
            let corner = &corners[*corner];
            // Spread as a scheduler would.
            let node = &nodes[number.wrapping_mul(2_654_435_761) % NODES];
            async move {
                let app = name.rsplit_once('-').unwrap().0;
                let pod = json!({
                    "metadata": {
                        "labels": { "app": app, "pod-template-hash": "6f7d8c9b5d", "tier": "web" },
                        "annotations": { "duet.dev/placement": "sidecar" },
                    },
                    "spec": {
                        "nodeName": node,
                        "containers": [{
                            "name": "app",
                            "image": "registry.example.invalid/team/app:1.2.3",
                            "ports": [{ "name": "web", "containerPort": 8080 }],
                            "readinessProbe": { "httpGet": { "path": "/ready", "port": "web" } },
                            "livenessProbe": { "httpGet": { "path": "/live", "port": "web" } },
                        }],
                    },
                });
                corner.pod(name, pod).await;
            }
        });
        made.buffer_unordered(HANDS).collect::<Vec<()>>().await;
        say!("{pods} pods in {:.0} s", began.elapsed().as_secs_f64());
        let scale = Self {
            lab,
            system,
            corners,
            pods: names,
        };
        scale.endpoints().await;
        scale
    }

    /// Waits for the controller that makes endpoint slices.
    async fn endpoints(&self) {
        use k8s_openapi::api::discovery::v1::EndpointSlice;
        let began = Instant::now();
        loop {
            let mut ready = 0;
            for corner in &self.corners {
                let slices = corner
                    .api::<EndpointSlice>()
                    .list(&Default::default())
                    .await
                    .unwrap();
                let endpoints = slices
                    .items
                    .into_iter()
                    .filter_map(|it| it.endpoints)
                    .flatten();
                ready += endpoints
                    .filter(|it| it.conditions.as_ref().and_then(|it| it.ready) == Some(true))
                    .count();
            }
            if ready == self.pods.len() {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{ready} endpoints are ready");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        say!(
            "endpoint slices {:.0} s later",
            began.elapsed().as_secs_f64()
        );
    }

    /// From where duet-control keeps it: the ConfigMaps may be another mesh's.
    async fn root(&self) -> String {
        let secret = self.system.api::<Secret>().get("duet-ca").await.unwrap();
        let root = secret.data.unwrap().remove("tls.crt").unwrap();
        String::from_utf8(root.0).unwrap()
    }

    /// Of `count` agents on as many nodes, and of as many sidecars.
    async fn tokens(&self, count: usize) -> Vec<String> {
        let began = Instant::now();
        let agents = stream::iter(0..count).map(async |number| {
            let name = format!("agent-{number}");
            let pod = json!({ "spec": {
                "nodeName": format!("{}-n{number}", self.lab.name), "serviceAccountName": "duet-agent",
            } });
            self.system.pod(&name, pod).await;
            token(&self.system, "duet-agent", &name).await
        });
        let mut tokens: Vec<String> = agents.buffered(HANDS).collect().await;
        let sidecars = stream::iter(0..count).map(async |number| {
            let (corner, pod) = &self.pods[number * 31 % self.pods.len()];
            token(&self.corners[*corner], "default", pod).await
        });
        tokens.extend(sidecars.buffered(HANDS).collect::<Vec<_>>().await);
        say!(
            "{} tokens in {:.0} s",
            tokens.len(),
            began.elapsed().as_secs_f64()
        );
        tokens
    }

    async fn reach(&self, names: serde_json::Value) {
        for corner in self.corners.iter().chain([&self.system]) {
            corner
                .say(json!({ "annotations": { "duet.dev/reach": names } }))
                .await;
        }
    }
}

async fn token(corner: &Corner, account: &str, pod: &str) -> String {
    let uid = corner.api::<Pod>().get(pod).await.unwrap().metadata.uid;
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec!["duet-control".to_owned()]),
            expiration_seconds: Some(3600),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.to_owned()),
                uid,
            }),
        }),
        ..TokenRequest::default()
    };
    let accounts = corner.api::<ServiceAccount>();
    let params = PostParams::default();
    let made = accounts
        .create_token_request(account, &params, &request)
        .await;
    made.unwrap().status.unwrap().token.unwrap()
}

// === duet-control ===

struct Control {
    child: Child,
    api: SocketAddr,
    health: SocketAddr,
}

impl Control {
    fn start(namespace: &str) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_on(namespace, free, free)
    }

    /// Serves when it returns.
    fn start_on(namespace: &str, api: SocketAddr, health: SocketAddr) -> Self {
        use std::io::BufRead;
        let began = Instant::now();
        let program = std::env::var("DUET_SCALE_CONTROL");
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_duet-control").to_owned());
        let mut child = Command::new(&program)
            .args([
                "--source",
                "kube",
                "--namespace",
                namespace,
                "--replica",
                "scale",
            ])
            .args(["--trust-bundle-namespaces", "duet.dev/scale=nowhere"])
            .args([
                "--listen",
                &api.to_string(),
                "--health",
                &health.to_string(),
            ])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let mut addresses = None;
        for line in lines.by_ref() {
            let line = line.unwrap();
            if line.contains("duet-control serves") {
                let address = |key: &str| {
                    let rest = line.split_once(key).unwrap().1;
                    rest.split_whitespace().next().unwrap().parse().unwrap()
                };
                addresses = Some((address("api="), address("health=")));
                break;
            }
            say!("   {line}");
        }
        let (api, health) = addresses.expect("it serves");
        // Read on, or it would wait for a reader.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("WARN") || line.contains("ERROR") {
                    say!("   {line}");
                }
            }
        });
        say!(
            "first state served after {:.2} s",
            began.elapsed().as_secs_f64()
        );
        Self { child, api, health }
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / 100.0
    }

    fn report(&self, when: &str) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kilobytes = |key: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap();
            line.split_whitespace()
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        say!(
            "duet-control {when}: {} resident, {} at most, {:.1} s of CPU since its start",
            size(kilobytes("VmRSS:") * 1024),
            size(kilobytes("VmHWM:") * 1024),
            self.cpu(),
        );
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
    }
}
