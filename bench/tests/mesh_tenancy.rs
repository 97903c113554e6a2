//! Two workloads behind one agent: what one does too much of, it has to wait for itself.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Endpoint, Placement, PodSpec};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use mesh::http::{Client, serve_http1};
use mesh::{Checks, Mesh};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const HTTP: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that flood.
const FLOOD: usize = 48;

#[test]
fn what_one_does_too_much_of_it_waits_for_itself() {
    let pods = ["loud", "loud-server", "quiet", "quiet-server"].map(PodSpec::new);
    let args = ["--workers", "1", "--tenancy", "on"];
    let Some(mesh) = Mesh::start_with(Placement::Agent, &args, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let t = Tenants {
            mesh: &mesh,
            truth: mesh.read_mesh_yaml(),
            loud: mesh.app("loud-server").at(HTTP),
            quiet: mesh.app("quiet-server").at(HTTP),
        };
        for server in ["loud-server", "quiet-server"] {
            serve_http1(mesh.app(server), HTTP);
        }
        let mut checks = Checks::default();
        checks.run("turns", t.turns()).await;
        checks.run("connections", t.connections()).await;
        checks.run("requests", t.requests()).await;
        checks.run("handshakes", t.handshakes()).await;
        checks
            .run("handshakes of its own", t.own_handshakes())
            .await;
        checks.assert_all_passed();
    });
}

/// The classic agent: it must be possible to have it, and it is what the other is for.
#[test]
fn without_tenancy_nothing_is_counted_and_nothing_waits() {
    let pods = ["loud", "loud-server", "quiet", "quiet-server"].map(PodSpec::new);
    let args = ["--workers", "1", "--tenancy", "off"];
    let Some(mesh) = Mesh::start_with(Placement::Agent, &args, pods, []) else {
        return;
    };
    mesh.block_on(async {
        serve_http1(mesh.app("loud-server"), HTTP);
        let to = mesh.app("loud-server").at(HTTP);
        let mut client = Client::http1(mesh.app("loud"), to).await.unwrap();
        assert_eq!(client.get("/").await.unwrap().status, StatusCode::OK);
        let (_, metrics) = mesh
            .proxy("loud")
            .get(Endpoint::Metrics, "/metrics")
            .unwrap();
        for absent in [
            "duet_tenancy_waits_total",
            "duet_workload_cpu_seconds_total",
        ] {
            assert!(!metrics.contains(absent), "{absent}");
        }
        assert!(metrics.contains("duet_workload_sent_bytes_total{"));
    });
}

struct Tenants<'a> {
    mesh: &'a Mesh,
    truth: String,
    loud: SocketAddr,
    quiet: SocketAddr,
}

/// Clients that ask without a pause, on a thread of their own.
struct Flood {
    done: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

// === impl Flood ===

impl Flood {
    async fn start(mesh: &Mesh, to: SocketAddr) -> Result<Self> {
        let (done, failed) = (Arc::default(), Arc::default());
        let stop = Arc::<AtomicBool>::default();
        let app = mesh.app("loud").clone();
        let (counts, end) = ((Arc::clone(&done), Arc::clone(&failed)), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let clients = (0..FLOOD).map(|_| ask(&app, to, &counts, &end));
                futures_util::future::join_all(clients).await;
            });
        });
        let flood = Self {
            done,
            failed,
            stop,
            thread: Some(thread),
        };
        let deadline = Instant::now() + PATIENCE;
        while flood.done() < 4 * FLOOD {
            ensure!(Instant::now() < deadline, "{} were served", flood.done());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(flood)
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn ask(
    app: &mesh::app::App,
    to: SocketAddr,
    (done, failed): &(Arc<AtomicUsize>, Arc<AtomicUsize>),
    stop: &AtomicBool,
) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let request = async {
            let mut client = match kept.take() {
                Some(client) => client,
                None => Client::http1(app, to).await?,
            };
            let answer = client.get("/").await?;
            ensure!(answer.status == StatusCode::OK, "{answer:?}");
            anyhow::Ok(client)
        };
        match timeout(PATIENCE, request).await {
            Ok(Ok(client)) => {
                kept = Some(client);
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(_)) | Err(_) => {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

// === impl Tenants ===

impl Tenants<'_> {
    fn waits(&self, workload: &str, budget: &str) -> u64 {
        let labels = [
            format!("workload=\"{workload}\""),
            format!("budget=\"{budget}\""),
        ];
        self.mesh.count("loud", "duet_tenancy_waits_total", &labels)
    }

    /// Worker time so far.
    fn used(&self, workload: &str) -> f64 {
        let (_, metrics) = self
            .mesh
            .proxy("loud")
            .get(Endpoint::Metrics, "/metrics")
            .unwrap();
        let workload = format!("workload=\"{workload}\"");
        let line = metrics.lines().find(|line| {
            line.starts_with("duet_workload_cpu_seconds_total{") && line.contains(&workload)
        });
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no worker time of {workload}:\n{metrics}"))
    }

    /// `pod` asks for these budgets, and its agent knows.
    async fn budget(&self, pod: &str, budgets: &str) -> Result<()> {
        let version = || -> Result<u64> {
            let (_, config) = self.mesh.proxy("loud").get(Endpoint::Admin, "/config")?;
            let config: serde_json::Value = serde_json::from_str(&config)?;
            config["directory"]["version"].as_u64().context("a version")
        };
        let name = format!("    name: \"{pod}\"\n");
        ensure!(self.truth.contains(&name), "{}", self.truth);
        let with = format!("{name}    budgets: {budgets}\n");
        let before = version()?;
        self.mesh
            .write_mesh_yaml(&self.truth.replacen(&name, &with, 1));
        let deadline = Instant::now() + PATIENCE;
        while version()? == before {
            ensure!(Instant::now() < deadline, "the budgets do not arrive");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Whoever follows the workload has heard of it a moment later.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    /// While a quiet request is served, so are a few of the flood's, and not all of them.
    async fn turns(&self) -> Result<()> {
        let mut client = Client::http1(self.mesh.app("quiet"), self.quiet).await?;
        client.get("/").await?;
        let flood = Flood::start(self.mesh, self.loud).await?;
        let (loud, quiet) = (self.used("loud"), self.used("quiet"));
        let mut between = Vec::new();
        for _ in 0..200 {
            let before = flood.done();
            let answer = timeout(PATIENCE, client.get("/")).await??;
            ensure!(answer.status == StatusCode::OK);
            between.push(flood.done() - before);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        between.sort_unstable();
        let median = between[between.len() / 2];
        println!("of the flood, during a quiet request: median {median}, {between:?}");
        ensure!(median < FLOOD / 3, "it waits for the flood: {between:?}");
        ensure!(flood.failed() == 0, "the flood is delayed, not refused");
        ensure!(self.waits("loud", "cpu") > 0, "the flood has never waited");
        let (loud, quiet) = (self.used("loud") - loud, self.used("quiet") - quiet);
        ensure!(loud > quiet && quiet > 0.0, "{loud} s and {quiet} s");
        Ok(())
    }

    async fn connections(&self) -> Result<()> {
        self.budget("loud", "{ connections: 5 }").await?;
        let served = Arc::<AtomicUsize>::default();
        let mut clients: FuturesUnordered<_> = (0..20)
            .map(|_| {
                let (app, to) = (self.mesh.app("loud").clone(), self.loud);
                let served = served.clone();
                tokio::spawn(async move {
                    let mut client = Client::http1(&app, to).await?;
                    let answer = client.get("/").await?;
                    ensure!(answer.status == StatusCode::OK, "{answer:?}");
                    served.fetch_add(1, Ordering::SeqCst);
                    anyhow::Ok(client)
                })
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while served.load(Ordering::SeqCst) < 5 {
            ensure!(Instant::now() < deadline, "not even what it may have");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The others have their time now.
        let mut quiet = Vec::new();
        for _ in 0..20 {
            let mut client = Client::http1(self.mesh.app("quiet"), self.quiet).await?;
            ensure!(timeout(PATIENCE, client.get("/")).await??.status == StatusCode::OK);
            quiet.push(client);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let early = served.load(Ordering::SeqCst);
        // One for each of the listeners, which look before they accept.
        ensure!((5..=7).contains(&early), "{early} of 5 are served");
        ensure!(self.waits("loud", "connections") > 0);
        ensure!(self.waits("quiet", "connections") == 0);
        // They have waited and were not refused: each is served once another has gone.
        while let Some(client) = timeout(PATIENCE, clients.next()).await? {
            drop(client??);
        }
        ensure!(served.load(Ordering::SeqCst) == 20);
        Ok(())
    }

    async fn requests(&self) -> Result<()> {
        self.budget("loud", "{ requestsPerSecond: 50 }").await?;
        let began = Instant::now();
        let clients = (0..4).map(|_| async {
            let mut client = Client::http1(self.mesh.app("loud"), self.loud).await?;
            for _ in 0..25 {
                let answer = client.get("/").await?;
                ensure!(answer.status == StatusCode::OK, "{answer:?}");
            }
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(clients).await?;
        // A tenth of a second's may come at once.
        let least = Duration::from_millis(1000 * (100 - 5) / 50);
        let took = began.elapsed();
        ensure!(took >= least * 95 / 100, "100 requests took {took:?}");
        ensure!(self.waits("loud", "requests") > 0);
        ensure!(self.waits("quiet", "requests") == 0);
        Ok(())
    }

    /// Of the server's side: peers' handshakes wait to be accepted.
    async fn handshakes(&self) -> Result<()> {
        self.budget("loud-server", "{ handshakesPerSecond: 2 }")
            .await?;
        let before = self.waits("loud-server", "handshakes");
        // Each pod that asks has a connection of its own to it.
        for pod in ["quiet", "quiet-server", "loud"] {
            for _ in 0..2 {
                let mut client = Client::http1(self.mesh.app(pod), self.loud).await?;
                ensure!(timeout(PATIENCE, client.get("/")).await??.status == StatusCode::OK);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while self.waits("loud-server", "handshakes") == before {
            ensure!(Instant::now() < deadline, "nobody has waited");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.mesh.describe(&self.truth, &["loud"]).await
    }

    /// Of the client's side: what it connects to at once is connected to one after the other.
    async fn own_handshakes(&self) -> Result<()> {
        let peers = ["quiet", "quiet-server"].map(|pod| self.mesh.app(pod));
        serve_http1(peers[0], HTTP);
        self.budget("loud", "{ handshakesPerSecond: 2 }").await?;
        let quiet_before = self.waits("quiet", "handshakes");
        let began = Instant::now();
        let ask = |pod: &'static str, to: SocketAddr| async move {
            let mut client = Client::http1(self.mesh.app(pod), to).await?;
            let answer = timeout(PATIENCE, client.get("/")).await??;
            ensure!(answer.status == StatusCode::OK, "{pod}: {answer:?}");
            anyhow::Ok(())
        };
        // Each address has a connection of its own.
        let all = peers.iter().flat_map(|app| [app.at(HTTP), app.at_v6(HTTP)]);
        let loud = futures_util::future::try_join_all(all.map(|to| ask("loud", to)));
        let others = self.mesh.app("loud-server").at_v6(HTTP);
        let (loud, quiet) = tokio::join!(loud, ask("quiet", others));
        quiet?;
        loud?;
        let took = began.elapsed();
        ensure!(took >= Duration::from_millis(1400), "four took {took:?}");
        ensure!(self.waits("loud", "handshakes") >= 3);
        ensure!(self.waits("quiet", "handshakes") == quiet_before);
        self.mesh.write_mesh_yaml(&self.truth);
        Ok(())
    }
}
