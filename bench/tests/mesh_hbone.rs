//! A peer that only has HBONE: Duet as its client and as its server, in both placements.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Result, ensure};
use duet_bench::cluster::{Placement, PodSpec, ServiceSpec};
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use mesh::hbone::{Asked, Ledger, Papers};
use mesh::http::{Client, full, serve_http1, serve_stream};
use mesh::opaque::read_all;
use mesh::{Checks, Mesh};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const HTTP1: u16 = 8080;
const HTTP2: u16 = 8081;
const OPAQUE: u16 = 9000;
/// The peer takes no streams for it.
const CLOSED: u16 = 9001;

const PEER: &str = "spiffe://duet.local/ns/default/sa/peer";

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let account = |name: &str| PodSpec::new(name).service_account(name);
    let pods = [
        account("client"),
        account("server").strict(),
        // Whatever proxies it, it is not Duet.
        account("peer").node(2).meshed(false),
    ];
    let shop = ServiceSpec::new("shop")
        .port_as(80, HTTP1, "http")
        .port_as(81, HTTP2, "grpc")
        .port_as(OPAQUE, OPAQUE, "tcp")
        .pods(["peer"]);
    let Some(mesh) = Mesh::start(placement, pods, [shop]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let mut checks = Checks::default();
        checks.run("discovery says so", discovery(&mesh)).await;
        let papers = Papers::of(&mesh, PEER).unwrap();
        let interop = Interop {
            mesh: &mesh,
            shop: &|port| (shop.v4, port).into(),
            asked: papers.serve(mesh.app("peer"), applications).unwrap(),
            papers,
        };
        checks.run("bytes to the peer", interop.bytes()).await;
        checks.run("HTTP/1.1 to the peer", interop.http1()).await;
        checks.run("gRPC to the peer", interop.grpc()).await;
        checks.run("refused by the peer", interop.refused()).await;
        checks
            .run("bytes from the peer", interop.asked_by_peer())
            .await;
        checks
            .run("HTTP from the peer", interop.http_from_peer())
            .await;
        checks
            .run("not everything from the peer", interop.refuses_peer())
            .await;
        checks.assert_all_passed();
    });
}

/// The peer's workload says `mesh: hbone`.
async fn discovery(mesh: &Mesh) -> Result<()> {
    let yaml = mesh.read_mesh_yaml();
    let (before, peer) = yaml.split_at(yaml.find("name: \"peer\"").unwrap());
    ensure!(peer.contains("mesh: none"), "{peer}");
    let yaml = before.to_owned() + &peer.replacen("mesh: none", "mesh: hbone", 1);
    mesh.describe(&yaml, &["client", "server"]).await
}

/// What the peer's pod runs.
fn applications(port: u16) -> Option<impl FnOnce(DuplexStream) + Send + 'static> {
    (port != CLOSED).then_some(move |stream: DuplexStream| match port {
        HTTP1 => serve_stream(stream, false),
        HTTP2 => serve_stream(stream, true),
        _ => {
            tokio::spawn(async move {
                let mut stream = stream;
                let said = read_all(&mut stream).await?;
                stream.write_all(&said).await?;
                stream.shutdown().await
            });
        }
    })
}

struct Interop<'a> {
    mesh: &'a Mesh,
    shop: &'a (dyn Fn(u16) -> SocketAddr + Sync),
    papers: Papers,
    asked: Ledger,
}

// === impl Interop ===

impl Interop<'_> {
    /// Each is a CONNECT to the peer's own address and port, by the client's identity;
    /// and they share one connection.
    fn check(&self, asked: &[Asked], port: u16, count: usize) -> Result<()> {
        ensure!(asked.len() == count, "{asked:?}");
        let at = [
            self.mesh.app("peer").at(port),
            self.mesh.app("peer").at_v6(port),
        ];
        for one in asked {
            let head = &one.request;
            ensure!(head.method == Method::CONNECT, "{head:?}");
            ensure!(
                at.map(|at| at.to_string()).contains(&head.uri.to_string()),
                "{head:?}"
            );
            ensure!(head.uri.scheme().is_none() && head.uri.path_and_query().is_none());
            ensure!(
                one.client == "spiffe://duet.local/ns/default/sa/client",
                "{one:?}"
            );
            ensure!(one.connection == asked[0].connection, "{asked:?}");
        }
        Ok(())
    }

    async fn bytes(&self) -> Result<()> {
        let peer = self.mesh.app("peer");
        let ways = [(self.shop)(OPAQUE), peer.at(OPAQUE), (self.shop)(OPAQUE)];
        for to in ways {
            let mut stream = self.mesh.app("client").connect(to).await?;
            let said = [b"\0hello".as_slice(), &vec![7; 1_000_000]].concat();
            let (mut read, mut write) = stream.split();
            let (sent, heard) = tokio::join!(
                async {
                    write.write_all(&said).await?;
                    write.shutdown().await
                },
                read_all(&mut read)
            );
            sent?;
            ensure!(heard? == said, "{to}");
        }
        self.check(&self.asked.take(), OPAQUE, ways.len())
    }

    /// HTTP/1.1 stays what it is, in a tunnel that further requests use.
    async fn http1(&self) -> Result<()> {
        let mut client = Client::http1(self.mesh.app("client"), (self.shop)(80)).await?;
        for _ in 0..5 {
            let answer = client.post("/echo", "hello").await?;
            ensure!(
                answer.status == StatusCode::OK && answer.body == "hello",
                "{answer:?}"
            );
            let seen = answer.seen();
            ensure!(
                seen.version == "HTTP/1.1" && seen.host == "shop.example:81",
                "{seen:?}"
            );
            ensure!(!answer.headers.contains_key("duet-proxy-error"));
        }
        self.check(&self.asked.take(), HTTP1, 1)
    }

    async fn grpc(&self) -> Result<()> {
        let mut client = Client::http2(self.mesh.app("client"), (self.shop)(81)).await?;
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        for _ in 0..5 {
            let message = full(b"\0\0\0\0\x05hello".as_slice());
            let answer = client
                .send(Method::POST, "/grpc", &headers, message)
                .await?;
            ensure!(answer.seen().version == "HTTP/2.0", "{answer:?}");
            ensure!(answer.trailers.is_some_and(|it| it["grpc-status"] == "7"));
        }
        self.check(&self.asked.take(), HTTP2, 1)
    }

    /// What the peer will not have, nobody else gets, and never in plaintext.
    async fn refused(&self) -> Result<()> {
        let peer = self.mesh.app("peer");
        let _plaintext = peer.listen(CLOSED);
        let mut opaque = self.mesh.app("client").connect(peer.at(CLOSED)).await?;
        opaque.write_all(b"\0hello").await?;
        let end = opaque.read(&mut [0]).await;
        ensure!(end.is_err(), "no reset: {end:?}");
        let mut client = Client::http1(self.mesh.app("client"), peer.at(CLOSED)).await?;
        let answer = client.get("/").await?;
        ensure!(
            answer.status == StatusCode::SERVICE_UNAVAILABLE,
            "{answer:?}"
        );
        ensure!(
            answer.headers.contains_key("duet-proxy-error"),
            "{answer:?}"
        );
        self.asked.take();
        Ok(())
    }

    async fn asked_by_peer(&self) -> Result<()> {
        let [peer, server] = ["peer", "server"].map(|pod| self.mesh.app(pod));
        let dialled = self.papers.dial(peer, server).await?;
        ensure!(dialled.server == "spiffe://duet.local/ns/default/sa/server");
        let listener = server.listen(OPAQUE);
        // At the same time, on one connection.
        let mut tunnels = Vec::new();
        for n in 0..20u8 {
            let at = if n % 2 == 0 {
                server.at(OPAQUE)
            } else {
                server.at_v6(OPAQUE)
            };
            let tunnel = dialled.tunnel(&at.to_string()).await?;
            let Ok(tunnel) = tunnel else {
                anyhow::bail!("{at}: {:?}", tunnel.err());
            };
            tunnels.push((n, tunnel, listener.accept().await?.0));
        }
        for (n, mut tunnel, mut application) in tunnels {
            tunnel.write_all(&[0, n]).await?;
            tunnel.shutdown().await?;
            ensure!(read_all(&mut application).await? == [0, n]);
            application.write_all(&vec![n; 100_000]).await?;
            drop(application);
            ensure!(read_all(&mut tunnel).await? == vec![n; 100_000]);
        }
        Ok(())
    }

    async fn http_from_peer(&self) -> Result<()> {
        let [peer, server] = ["peer", "server"].map(|pod| self.mesh.app(pod));
        serve_http1(server, HTTP1);
        let dialled = self.papers.dial(peer, server).await?;
        let tunnel = dialled.tunnel(&server.at(HTTP1).to_string()).await?;
        let tunnel = tunnel.map_err(|status| anyhow::anyhow!("{status}"))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tunnel)).await?;
        tokio::spawn(connection);
        let mut client = Client::Http1(sender);
        for _ in 0..3 {
            let answer = client.post("/echo", "hello").await?;
            ensure!(
                answer.status == StatusCode::OK && answer.body == "hello",
                "{answer:?}"
            );
        }
        Ok(())
    }

    /// Only what is the server's own, and only from who it is that it says it is.
    async fn refuses_peer(&self) -> Result<()> {
        let [peer, server] = ["peer", "server"].map(|pod| self.mesh.app(pod));
        let dialled = self.papers.dial(peer, server).await?;
        let elsewhere = self.mesh.app("client").at(OPAQUE).to_string();
        let proxy = server.at(15001).to_string();
        for authority in [
            elsewhere.as_str(),
            &proxy,
            "127.0.0.1:80",
            "server.default:80",
        ] {
            let refused = dialled.tunnel(authority).await?.err();
            ensure!(
                refused == Some(StatusCode::MISDIRECTED_REQUEST),
                "{authority}: {refused:?}"
            );
        }
        // Nobody listens.
        let refused = dialled.tunnel(&server.at(CLOSED).to_string()).await?.err();
        ensure!(
            refused == Some(StatusCode::SERVICE_UNAVAILABLE),
            "{refused:?}"
        );
        let stolen = Papers::of(self.mesh, "spiffe://duet.local/ns/default/sa/client")?;
        let refused = match stolen.dial(peer, server).await {
            Ok(dialled) => dialled.tunnel(&server.at(OPAQUE).to_string()).await,
            Err(error) => Err(error),
        };
        ensure!(!matches!(refused, Ok(Ok(_))), "another's address");
        Ok(())
    }
}
