//! What happens when the mesh's own parts come, go, or die.
//!
//! In the order of a bad week: everything is watched, the control plane is
//! replaced, pods join and leave, proxies are told to go, and proxies are killed.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result};
use duet_bench::cluster::{Endpoint, Placement, PodSpec};
use http::StatusCode;
use mesh::app::App;
use mesh::http::{Client, serve_http1, serve_http2};
use mesh::load::Load;
use mesh::opaque::read_all;
use mesh::{Checks, Mesh};
use nix::sys::signal::Signal;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HTTP: u16 = 8080;
const HTTP2: u16 = 8082;
const OPAQUE: u16 = 9000;
/// Loads at the same time, where requests are to be under way at any moment.
const CLIENTS: usize = 8;
/// Nothing any protocol would send.
const MARKER: &[u8] = b"duet-plaintext-marker-7d793037a0760186";

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let account = |name: &str| PodSpec::new(name).service_account(name);
    let pods = [
        account("client"),
        account("server").node(2),
        account("outsider").node(2).meshed(false),
    ];
    let Some(mesh) = Mesh::start(placement, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let life = Life {
            mesh: &mesh,
            client: mesh.app("client"),
            server: mesh.app("server"),
            outsider: mesh.app("outsider"),
        };
        serve_http1(life.server, HTTP);
        serve_http2(life.server, HTTP2);

        let mut checks = Checks::default();
        checks.run("endpoints", life.endpoints()).await;
        checks
            .run("control plane restart", life.control_restart())
            .await;
        if placement == Placement::Agent {
            checks
                .run("enrolment under traffic", life.enrolment())
                .await;
        }
        if placement == Placement::Agent {
            checks.run("handover", life.handover()).await;
        }
        checks.run("drain", life.drain()).await;
        checks.run("second signal", life.second_signal()).await;
        checks.run("killed", life.killed()).await;
        checks.run("back again", life.back_again()).await;
        checks.assert_all_passed();
    });
}

struct Life<'a> {
    mesh: &'a Mesh,
    client: &'a Arc<App>,
    server: &'a Arc<App>,
    /// Unmeshed, on the server's node.
    outsider: &'a Arc<App>,
}

// === impl Life ===

impl Life<'_> {
    async fn endpoints(&self) -> Result<()> {
        get(self.client, self.server.at(HTTP)).await?;
        for pod in ["client", "server"] {
            let proxy = self.mesh.proxy(pod);
            let ask = |endpoint, path| proxy.get(endpoint, path).unwrap();
            assert_eq!(ask(Endpoint::Health, "/ready").0, 200);
            assert_eq!(ask(Endpoint::Health, "/live").0, 200);
            let (status, metrics) = ask(Endpoint::Metrics, "/metrics");
            assert_eq!(status, 200);
            let workload = format!("workload=\"{pod}\"");
            let of_pod = |line: &&str| {
                line.starts_with("duet_http_responses_total{") && line.contains(&workload)
            };
            assert!(metrics.lines().any(|line| of_pod(&line)), "{metrics}");
            let (status, config) = ask(Endpoint::Admin, "/config");
            assert_eq!(status, 200);
            assert!(config.contains(&format!("default/{pod}")), "{config}");
            assert!(!config.contains("PRIVATE KEY"), "{config}");
        }
        // What can change something is nobody else's business.
        let admin = self.outsider.connect(self.client.at(15000)).await;
        if let Ok(mut stream) = admin {
            stream.write_all(b"GET /config HTTP/1.0\r\n\r\n").await?;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(
                !answer.starts_with(b"HTTP/1.0 200"),
                "it is served to anyone"
            );
            assert!(
                !answer.starts_with(b"HTTP/1.1 200"),
                "it is served to anyone"
            );
        }
        Ok(())
    }

    /// Nothing fails while it is away, and what comes afterwards is learnt.
    async fn control_restart(&self) -> Result<()> {
        let load = Load::start(self.client, self.server.at(HTTP));
        load.progress(50).await?;
        self.mesh.cluster.stop_control()?;
        load.progress(200).await?;
        self.mesh.cluster.start_control()?;
        load.progress(200).await?;

        let late = PodSpec::new("late").service_account("late").node(2);
        let late = self.mesh.add_pod(late);
        serve_http1(&late, HTTP);
        self.known("client", "late").await;
        assert!(
            !self.plaintext(self.client, &late).await?,
            "the new pod is meshed"
        );
        self.mesh.cluster.remove_pod("late")?;
        assert_eq!(load.stop().await?, [""; 0]);
        Ok(())
    }

    /// A running pod joins the mesh and leaves it. Whether a request is meshed
    /// shows on the wire.
    async fn enrolment(&self) -> Result<()> {
        let guest = PodSpec::new("guest").service_account("guest").node(2);
        let guest = self.mesh.add_pod(guest);
        serve_http1(&guest, HTTP);
        self.mesh.leave("guest");
        assert!(
            self.plaintext(&guest, self.server).await?,
            "it is not in the mesh"
        );

        let mut early = Client::http1(&guest, self.server.at(HTTP)).await?;
        let load = Load::start(&guest, self.server.at(HTTP));
        load.progress(50).await?;
        self.mesh.join("guest");
        load.progress(100).await?;
        assert!(
            !self.plaintext(&guest, self.server).await?,
            "it is in the mesh"
        );
        assert_eq!(get(self.client, guest.at(HTTP)).await?, StatusCode::OK);
        let answer = early.get("/hello").await.context("open since before")?;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(load.stop().await?, [""; 0], "nothing fails on joining");

        let load = Load::start(&guest, self.server.at(HTTP));
        load.progress(50).await?;
        self.mesh.leave("guest");
        load.progress(100).await?;
        assert!(
            self.plaintext(&guest, self.server).await?,
            "it has left the mesh"
        );
        // Connections through the proxy end with it: one is kept open by the
        // load, one may be on its way.
        let failed = load.stop().await?;
        assert!(failed.len() <= 2, "{failed:#?}");
        Ok(())
    }

    /// Agents change places under requests, on connections that are kept and on new ones.
    async fn handover(&self) -> Result<()> {
        let loads: Vec<_> = (0..CLIENTS)
            .map(|_| Load::start(self.client, self.server.at(HTTP)))
            .collect();
        loads[0].progress(50).await?;
        for _ in 0..3 {
            for pod in ["client", "server"] {
                self.mesh.hand_over(pod);
                loads[0].progress(50).await?;
            }
        }
        let mut failed = Vec::new();
        for load in loads {
            failed.extend(load.stop().await?);
        }
        assert_eq!(failed, [""; 0]);
        Ok(())
    }

    /// Whether what the one says to the other can be read on the wire.
    async fn plaintext(&self, from: &App, to: &App) -> Result<bool> {
        let wire = self.mesh.watch(MARKER);
        let mut client = Client::http1(from, to.at(HTTP)).await?;
        let answer = client.post("/echo", MARKER).await?;
        assert_eq!(answer.body, MARKER);
        let seen = wire.stop();
        assert_eq!(seen.lost, 0);
        Ok(seen.plaintext_packets > 0)
    }

    /// Somebody has no patience for what is open.
    async fn second_signal(&self) -> Result<()> {
        let (mut client, _server) = self.open().await?;
        self.mesh.kill_proxy("client", Signal::SIGTERM);
        let ended = self.mesh.proxy_ends("client", Duration::from_secs(2));
        assert!(!ended, "there is a connection still");
        self.mesh.kill_proxy("client", Signal::SIGTERM);
        let ended = self.mesh.proxy_ends("client", Duration::from_secs(10));
        assert!(ended, "it waits for the drain time-out");
        let cut = client.read(&mut [0]).await;
        assert_eq!(cut.unwrap_err().kind(), ErrorKind::ConnectionReset);
        self.mesh.start_proxy("client");
        assert_eq!(
            get(self.client, self.server.at(HTTP)).await?,
            StatusCode::OK
        );
        Ok(())
    }

    /// Told to go, a proxy finishes what it has begun.
    async fn drain(&self) -> Result<()> {
        for pod in ["client", "server"] {
            let mut http = Client::http1(self.client, self.server.at(HTTP)).await?;
            http.get("/hello").await?;
            let slow = tokio::spawn(async move { http.get("/slow").await });
            let mut idle = Client::http1(self.client, self.server.at(HTTP)).await?;
            idle.get("/hello").await?;
            let mut h2 = Client::http2(self.client, self.server.at(HTTP2)).await?;
            let another = h2.another().context("HTTP/2 is multiplexed")?;
            let h2 = tokio::spawn(async move { h2.get("/slow").await });
            let (mut client, mut server) = self.open().await?;
            // The slow request has reached the server.
            tokio::time::sleep(Duration::from_millis(300)).await;

            self.mesh.kill_proxy(pod, Signal::SIGTERM);
            tokio::time::sleep(Duration::from_millis(200)).await;
            client.write_all(b"still there?").await?;
            let mut question = [0; 12];
            server.read_exact(&mut question).await?;
            server.write_all(b"yes").await?;
            server.shutdown().await?;
            client.shutdown().await?;
            assert_eq!(read_all(&mut client).await?, b"yes");
            if pod == "client" {
                // GOAWAY: what has begun ends well, and nothing new is begun.
                let mut another = another;
                let refused = another.get("/hello").await;
                assert!(refused.is_err(), "{refused:?}");
                // HTTP/1 has no such frame: one more request is answered, which says so.
                let last = idle.get("/hello").await.context("idle until now")?;
                assert_eq!(last.headers["connection"], "close");
            }
            let answer = slow
                .await?
                .with_context(|| format!("{pod}'s proxy draining"))?;
            assert_eq!(
                (answer.status, &answer.body[..]),
                (StatusCode::OK, &b"at last"[..])
            );
            if pod == "client" {
                // It is told not to ask here again.
                assert_eq!(answer.headers["connection"], "close");
                let multiplexed = h2.await?.context("HTTP/2")?;
                assert_eq!(multiplexed.body, "at last");
            }
            drop((client, server));
            assert!(
                self.mesh.proxy_ends(pod, Duration::from_secs(10)),
                "with nothing left to do, {pod}'s proxy stays"
            );
            self.mesh.start_proxy(pod);
            assert_eq!(
                get(self.client, self.server.at(HTTP)).await?,
                StatusCode::OK
            );
        }
        Ok(())
    }

    /// Killed, a proxy leaves its pod closed in both directions.
    async fn killed(&self) -> Result<()> {
        let wire = self.mesh.watch(MARKER);
        let (mut open, _server) = self.open().await?;
        let mut kept = Client::http1(self.client, self.server.at(HTTP)).await?;
        kept.get("/hello").await?;
        self.mesh.kill_proxy("client", Signal::SIGKILL);
        assert!(self.mesh.proxy_ends("client", Duration::from_secs(5)));

        let listener = self.server.listen(OPAQUE);
        for to in [
            self.server.at(OPAQUE),
            self.server.at_v6(OPAQUE),
            mesh::app::mapped(self.server.at(OPAQUE)),
            self.outsider.at(OPAQUE),
        ] {
            let refused = self.client.connect(to).await.map(drop).unwrap_err();
            assert_eq!(
                refused.kind(),
                ErrorKind::ConnectionRefused,
                "{to}: {refused}"
            );
        }
        // What was open is cut, and cannot go on by itself.
        for _ in 0..5 {
            let _ = open.write_all(MARKER).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(ended(&mut open).await, "a connection outlives its proxy");
        let again = tokio::time::timeout(Duration::from_secs(5), kept.post("/echo", MARKER));
        assert!(again.await.context("it hangs")?.is_err());
        let came = tokio::time::timeout(Duration::from_millis(200), listener.accept());
        assert!(
            came.await.is_err(),
            "something reached the server all the same"
        );

        // The server's proxy dies as well: neither the mesh nor others get in.
        self.mesh.kill_proxy("server", Signal::SIGKILL);
        assert!(self.mesh.proxy_ends("server", Duration::from_secs(5)));
        let knock = async |to: SocketAddr| {
            let knock = async {
                let mut stream = self.outsider.connect(to).await?;
                stream.write_all(MARKER).await?;
                stream.read_u8().await
            };
            tokio::time::timeout(Duration::from_secs(1), knock).await
        };
        for to in [self.server.at(OPAQUE), self.server.at_v6(OPAQUE)] {
            let refused = knock(to).await.context("left hanging")?.unwrap_err();
            assert_eq!(
                refused.kind(),
                ErrorKind::ConnectionRefused,
                "{to}: {refused}"
            );
        }
        let seen = wire.stop();
        assert_eq!((seen.plaintext_packets, seen.lost), (0, 0), "{seen:?}");
        Ok(())
    }

    /// A new proxy in the old one's place serves as if nothing had been.
    async fn back_again(&self) -> Result<()> {
        for pod in ["client", "server"] {
            self.mesh.start_proxy(pod);
        }
        assert_eq!(
            get(self.client, self.server.at(HTTP)).await?,
            StatusCode::OK
        );
        assert!(!self.plaintext(self.client, self.server).await?);
        let outside = get(self.outsider, self.server.at(HTTP)).await?;
        assert_eq!(outside, StatusCode::OK);
        Ok(())
    }

    /// Waits until the one's proxy knows the other.
    async fn known(&self, pod: &str, other: &str) {
        let proxy = self.mesh.proxy(pod);
        let name = format!("\"default/{other}\"");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !proxy
            .get(Endpoint::Admin, "/config")
            .unwrap()
            .1
            .contains(&name)
        {
            assert!(
                Instant::now() < deadline,
                "{pod}'s proxy never learns of {other}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// An opaque connection that has been used, and the server's end of it.
    async fn open(&self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.server.listen(OPAQUE);
        let mut client = self.client.connect(self.server.at(OPAQUE)).await?;
        client.write_all(b"\x00").await?;
        let (mut server, _) = listener.accept().await?;
        assert_eq!(server.read_u8().await?, 0);
        Ok((client, server))
    }
}

async fn get(app: &App, to: SocketAddr) -> Result<StatusCode> {
    let request = async { anyhow::Ok(Client::http1(app, to).await?.get("/hello").await?.status) };
    tokio::time::timeout(Duration::from_secs(5), request)
        .await
        .context("no answer")?
}

async fn ended(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut byte));
    matches!(read.await, Ok(Ok(0) | Err(_)))
}
