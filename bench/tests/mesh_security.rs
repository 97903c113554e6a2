//! Who is let in, who is believed, and what can be read on the wire.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result};
use duet_bench::cluster::{Placement, PodSpec};
use http::StatusCode;
use mesh::app::{App, plain};
use mesh::http::{Client, serve_http1};
use mesh::opaque::read_all;
use mesh::{Checks, Mesh};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HTTP: u16 = 8080;
const OPAQUE: u16 = 9000;
/// Nothing any protocol would send.
const MARKER: &[u8] = b"duet-plaintext-marker-5d41402abc4b2a76";

#[test]
fn the_capture_would_see_plaintext() {
    let pods = [PodSpec::new("client"), PodSpec::new("server").node(2)];
    let Some(mesh) = Mesh::start(Placement::None, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let (client, server) = (mesh.app("client"), mesh.app("server"));
        serve_http1(server, HTTP);
        let wire = mesh.watch(MARKER);
        say_marker_opaque(client, server).await.unwrap();
        let opaque = wire.stop();
        let wire = mesh.watch(MARKER);
        say_marker_http(client, server).await.unwrap();
        let http = wire.stop();
        for seen in [opaque, http] {
            assert!(seen.plaintext_packets >= 2, "there and back: {seen:?}");
            assert_eq!(seen.lost, 0, "{seen:?}");
        }
    });
}

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let account = |name: &str| PodSpec::new(name).service_account(name);
    let pods = [
        account("client"),
        account("outsider").meshed(false),
        account("server").node(2),
        account("strict").node(2).strict(),
        account("plain").node(2).meshed(false),
        account("alice").node(2),
        account("bob").node(2),
    ];
    let Some(mesh) = Mesh::start(placement, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let s = Security {
            mesh: &mesh,
            client: mesh.app("client"),
            outsider: mesh.app("outsider"),
            server: mesh.app("server"),
            strict: mesh.app("strict"),
            plain: mesh.app("plain"),
        };
        for app in ["server", "strict", "plain", "alice", "bob"] {
            serve_http1(mesh.app(app), HTTP);
        }
        let mut checks = Checks::default();
        checks.run("no plaintext", s.no_plaintext()).await;
        let permissive = s.unmeshed_client_of_permissive_server();
        checks.run("unmeshed to permissive", permissive).await;
        let strict = s.unmeshed_client_of_strict_server();
        checks.run("unmeshed to strict", strict).await;
        let meshed = s.meshed_client_of_strict_server();
        checks.run("meshed to strict", meshed).await;
        checks.run("meshed to unmeshed", s.unmeshed_server()).await;
        checks.run("strangers on 15008", s.strangers()).await;
        checks.run("identity mismatch", s.identity_mismatch()).await;
        checks.assert_all_passed();
    });
}

struct Security<'a> {
    mesh: &'a Mesh,
    client: &'a Arc<App>,
    /// Unmeshed, on the client's node.
    outsider: &'a Arc<App>,
    server: &'a Arc<App>,
    strict: &'a Arc<App>,
    /// Unmeshed, on the server's node.
    plain: &'a Arc<App>,
}

// === impl Security ===

impl Security<'_> {
    async fn no_plaintext(&self) -> Result<()> {
        let wire = self.mesh.watch(MARKER);
        say_marker_opaque(self.client, self.server).await?;
        say_marker_http(self.client, self.server).await?;
        let seen = wire.stop();
        assert!(
            seen.tcp_payload_bytes > 1000,
            "something went over: {seen:?}"
        );
        assert_eq!((seen.plaintext_packets, seen.lost), (0, 0), "{seen:?}");
        Ok(())
    }

    async fn unmeshed_client_of_permissive_server(&self) -> Result<()> {
        let (client, server) = (self.outsider, self.server);
        for to in [server.at(HTTP), server.at_v6(HTTP)] {
            let answer = Client::http1(client, to).await?.get("/hello").await?;
            assert_eq!(answer.status, StatusCode::OK);
            let seen = answer.seen();
            assert_eq!((seen.local, seen.peer.ip()), (to, to.ip()));
        }
        converse(client, server.at(OPAQUE), server.listen(OPAQUE)).await
    }

    async fn unmeshed_client_of_strict_server(&self) -> Result<()> {
        let refused = || self.mesh.failures("strict", "plaintext_refused");
        let before = refused();
        refuses(self.outsider, self.strict, self.strict.at(OPAQUE)).await;
        refuses(self.outsider, self.strict, self.strict.at_v6(OPAQUE)).await;
        assert!(get(self.outsider, self.strict.at(HTTP)).await.is_err());
        assert!(refused() >= before + 3, "and it is counted");
        Ok(())
    }

    async fn meshed_client_of_strict_server(&self) -> Result<()> {
        let (client, server) = (self.client, self.strict);
        assert_eq!(get(client, server.at(HTTP)).await?, StatusCode::OK);
        converse(client, server.at(OPAQUE), server.listen(OPAQUE)).await
    }

    async fn unmeshed_server(&self) -> Result<()> {
        let (client, server) = (self.client, self.plain);
        let answer = Client::http1(client, server.at(HTTP))
            .await?
            .get("/hello")
            .await?;
        let seen = answer.seen();
        assert_eq!(seen.version, "HTTP/1.1");
        assert_eq!(seen.peer.ip(), client.at(0).ip(), "the pod's own address");
        converse(client, server.at(OPAQUE), server.listen(OPAQUE)).await
    }

    /// The mesh's port believes nobody without a certificate.
    async fn strangers(&self) -> Result<()> {
        let listener = self.server.listen(OPAQUE);
        let authority = self.server.at(OPAQUE);
        for words in [
            format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "\x16\x03\x01\x00\x05hello".to_owned(),
        ] {
            let mut stranger = self.outsider.connect(self.server.at(15008)).await?;
            stranger.write_all(words.as_bytes()).await?;
            let answer = read_until_the_end(&mut stranger).await;
            // At most a TLS alert.
            assert!(answer.len() <= 7, "{words:?}: {answer:?}");
        }
        assert!(nobody_came(listener).await);
        Ok(())
    }

    /// Alice's address in the mesh's directory is really Bob's, and vice versa:
    /// whoever answers there has the other's certificate.
    async fn identity_mismatch(&self) -> Result<()> {
        let mesh = self.mesh;
        let (alice, bob) = (mesh.app("alice"), mesh.app("bob"));
        for app in [alice, bob] {
            assert_eq!(get(self.client, app.at(HTTP)).await?, StatusCode::OK);
        }
        let denied = || mesh.failures("client", "identity");
        let before = denied();

        let truth = mesh.read_mesh_yaml();
        mesh.write_mesh_yaml(&swap_addresses(&truth, alice, bob));
        let deadline = Instant::now() + Duration::from_secs(10);
        while get(self.client, alice.at(HTTP))
            .await
            .is_ok_and(|s| s.is_success())
        {
            assert!(
                Instant::now() < deadline,
                "Bob's certificate passes for Alice's"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        let wire = mesh.watch(MARKER);
        for app in [alice, bob] {
            refuses(self.client, app, app.at(OPAQUE)).await;
            if let Ok(status) = get(self.client, app.at(HTTP)).await {
                assert!(status.is_server_error(), "{status}");
            }
        }
        let seen = wire.stop();
        assert_eq!((seen.plaintext_packets, seen.lost), (0, 0), "{seen:?}");
        assert!(denied() > before, "it is counted as what it was");

        mesh.write_mesh_yaml(&truth);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !get(self.client, alice.at(HTTP))
            .await
            .is_ok_and(|s| s.is_success())
        {
            assert!(Instant::now() < deadline, "the truth is no longer believed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

fn swap_addresses(mesh_yaml: &str, a: &App, b: &App) -> String {
    let mut swapped = mesh_yaml.to_owned();
    for (a, b) in [
        (a.v4.to_string(), b.v4.to_string()),
        (a.v6.to_string(), b.v6.to_string()),
    ] {
        let [a, b] = [a, b].map(|address| format!("\"{address}\""));
        assert!(swapped.contains(&a) && swapped.contains(&b), "{swapped}");
        swapped = swapped.replace(&a, "?").replace(&b, &a).replace('?', &b);
    }
    swapped
}

async fn get(app: &App, to: SocketAddr) -> Result<StatusCode> {
    let request = async {
        let path = format!("/{}", String::from_utf8_lossy(MARKER));
        anyhow::Ok(Client::http1(app, to).await?.get(&path).await?.status)
    };
    tokio::time::timeout(Duration::from_secs(5), request)
        .await
        .context("no answer")?
}

/// Both sides hear each other.
async fn converse(client: &App, to: SocketAddr, listener: TcpListener) -> Result<()> {
    let mut client = client.connect(to).await?;
    client.write_all(b"\x00ping").await?;
    let (mut server, _) = listener.accept().await?;
    assert_eq!(plain(server.local_addr()?), plain(to));
    server.write_all(b"pong").await?;
    server.shutdown().await?;
    client.shutdown().await?;
    assert_eq!(read_all(&mut server).await?, b"\x00ping");
    assert_eq!(read_all(&mut client).await?, b"pong");
    Ok(())
}

/// The client gets nothing and the server's application hears of nothing.
async fn refuses(client: &App, server: &App, to: SocketAddr) {
    let listener = server.listen(to.port());
    if let Ok(mut stream) = client.connect(to).await {
        // Not looking like HTTP, so that no proxy waits for more.
        let _ = stream.write_all(b"\x00").await;
        let _ = stream.write_all(MARKER).await;
        let answer = read_until_the_end(&mut stream).await;
        assert!(answer.is_empty(), "{to} answered {answer:?}");
    }
    assert!(nobody_came(listener).await, "{to} let it through");
}

async fn nobody_came(listener: TcpListener) -> bool {
    let patience = Duration::from_millis(300);
    tokio::time::timeout(patience, listener.accept())
        .await
        .is_err()
}

/// However it ends, but it has to.
async fn read_until_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let patience = Duration::from_secs(5);
    let end = tokio::time::timeout(patience, stream.read_to_end(&mut all)).await;
    assert!(end.is_ok(), "the connection is left hanging");
    all
}

async fn say_marker_opaque(client: &App, server: &App) -> Result<()> {
    let listener = server.listen(OPAQUE);
    let mut client = client.connect(server.at(OPAQUE)).await?;
    client.write_all(MARKER).await?;
    client.shutdown().await?;
    let (mut server, _) = listener.accept().await?;
    assert_eq!(read_all(&mut server).await?, MARKER);
    server.write_all(MARKER).await?;
    server.shutdown().await?;
    assert_eq!(read_all(&mut client).await?, MARKER);
    Ok(())
}

async fn say_marker_http(client: &App, server: &App) -> Result<()> {
    let mut client = Client::http1(client, server.at(HTTP)).await?;
    let answer = client.post("/echo", MARKER).await?;
    assert_eq!(answer.body, MARKER);
    Ok(())
}
