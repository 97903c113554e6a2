//! What applications notice of the mesh: nothing, but for who calls them.
//!
//! Every check runs without a mesh first, which proves the check, then with
//! sidecars and with agents. Both ends of a conversation stand in one function.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result};
use duet_bench::cluster::{Placement, PodSpec, ServiceSpec};
use http::{Method, StatusCode, Version};
use mesh::app::{App, mapped, plain};
use mesh::http::{Answer, Client, Seen, empty, full, serve_http1, serve_http2};
use mesh::opaque::{self, read_all};
use mesh::{Checks, Mesh};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

// The server's ports. The service has the same ones, but 80 for HTTP/1.1.
const HTTP1: u16 = 8080;
const HTTP2: u16 = 8081;
const HTTP2_UNDECLARED: u16 = 8082;
const HTTP_BY_HAND: u16 = 8083;
const OPAQUE: u16 = 9000;
const OPAQUE_DECLARED: u16 = 9001;
const NOBODY: u16 = 9999;

#[test]
fn without_a_mesh() {
    run(Placement::None);
}

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let shop = ServiceSpec::new("shop")
        .port_as(80, HTTP1, "http")
        .port_as(HTTP2, HTTP2, "kubernetes.io/h2c")
        .port(HTTP2_UNDECLARED, HTTP2_UNDECLARED)
        .port(HTTP_BY_HAND, HTTP_BY_HAND)
        .port(OPAQUE, OPAQUE)
        .port_as(OPAQUE_DECLARED, OPAQUE_DECLARED, "tcp")
        .port(NOBODY, NOBODY)
        .pods(["server"]);
    let pods = [
        PodSpec::new("client").service_account("client"),
        PodSpec::new("near").service_account("near"),
        PodSpec::new("server").service_account("server").node(2),
    ];
    let Some(mesh) = Mesh::start(placement, pods, [shop]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let t = Traffic {
            shop: &|port| (shop.v4, port).into(),
            shop_v6: &|port| (shop.v6, port).into(),
            client: mesh.app("client"),
            near: mesh.app("near"),
            server: mesh.app("server"),
            placement,
        };
        serve_http1(t.server, HTTP1);
        serve_http2(t.server, HTTP2);
        serve_http2(t.server, HTTP2_UNDECLARED);
        serve_http1(t.near, HTTP1);
        serve_http1(t.client, HTTP1);

        let mut checks = Checks::default();
        checks.run("HTTP/1.1", t.http1()).await;
        checks.run("HTTP/1.1 bodies", t.http1_bodies()).await;
        checks.run("HTTP/1.0 server", t.http10_server()).await;
        checks.run("cut response", t.cut_response()).await;
        checks.run("HTTP/2, declared", t.http2(HTTP2)).await;
        checks
            .run("HTTP/2, detected", t.http2(HTTP2_UNDECLARED))
            .await;
        checks.run("gRPC trailers", t.grpc()).await;
        checks.run("WebSocket upgrade", t.websocket()).await;
        checks.run("TLS of its own", t.tls_of_its_own()).await;
        checks.run("half-close", t.half_close()).await;
        checks.run("server first", t.server_first(OPAQUE)).await;
        let declared = t.server_first(OPAQUE_DECLARED);
        checks.run("server first, declared", declared).await;
        let destinations = t.original_destination();
        checks.run("original destination", destinations).await;
        checks.run("many at once", t.many_at_once()).await;
        checks.run("peer addresses", t.peer_addresses()).await;
        checks.run("same node", t.same_node()).await;
        if placement != Placement::None {
            // Without a mesh that takes more NAT than a node does.
            checks.run("oneself", t.oneself()).await;
        }
        checks.run("nobody listens", t.nobody_listens()).await;
        checks.run("slow reader", t.slow_reader()).await;
        checks.run("100 MB both ways", t.hundred_megabytes()).await;
        checks.assert_all_passed();
    });
}

struct Traffic<'a> {
    placement: Placement,
    /// The service's addresses at a port.
    shop: &'a (dyn Fn(u16) -> SocketAddr + Sync),
    shop_v6: &'a (dyn Fn(u16) -> SocketAddr + Sync),
    client: &'a App,
    /// On the client's node.
    near: &'a App,
    /// On the other node, behind the service.
    server: &'a App,
}

// === impl Traffic ===

impl Traffic<'_> {
    /// A connection from the client, and the server's end of it.
    async fn pair(&self, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
        let listener = self.server.listen(to.port());
        let client = self.client.connect(to).await.context("connect")?;
        let (server, _) = listener.accept().await?;
        Ok((client, server))
    }

    /// Who the server's application sees calling.
    fn seen_peer(&self, client: &App) -> SocketAddr {
        match self.placement {
            Placement::None => client.at(0),
            Placement::Sidecar | Placement::Agent => self.server.at(0),
        }
    }

    async fn http1(&self) -> Result<()> {
        let mut client = Client::http1(self.client, (self.shop)(80)).await?;
        for _ in 0..5 {
            let answer = client.get("/hello").await?;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.version, Version::HTTP_11);
            assert_eq!(answer.body, "hello");
            let closes = answer.headers.get("connection");
            assert_eq!(closes, None, "the connection is kept alive");
            let Seen {
                version,
                host,
                local,
                ..
            } = answer.seen();
            assert_eq!(version, "HTTP/1.1");
            assert_eq!(host, "shop.example:81", "the Host header is the client's");
            assert_eq!(local, self.server.at(HTTP1));
        }
        let missing = client.get("/missing").await?;
        assert_eq!(missing.status, StatusCode::NOT_FOUND);
        assert_eq!(
            missing.seen().version,
            "HTTP/1.1",
            "the server's own answer"
        );
        Ok(())
    }

    async fn http1_bodies(&self) -> Result<()> {
        let mut client = Client::http1(self.client, (self.shop)(80)).await?;
        for length in [0, 1, 1 << 20] {
            let body = vec![b'x'; length];
            let answer = client.post("/echo", body.clone()).await?;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.body, body);
        }
        let head = client.send(Method::HEAD, "/hello", &[], empty()).await?;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
        assert_eq!(head.headers["content-length"], "5", "as GET would say");
        Ok(())
    }

    /// The end of the connection is the end of the body.
    async fn http10_server(&self) -> Result<()> {
        let (client, mut server) = self.asked_by_hand().await?;
        server.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").await?;
        drop(server);
        let answer = client.await??;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, "hello");
        Ok(())
    }

    /// Half an answer must not look like a whole one.
    async fn cut_response(&self) -> Result<()> {
        for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
            let (client, mut server) = self.asked_by_hand().await?;
            let half = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhel");
            server.write_all(half.as_bytes()).await?;
            drop(server);
            // If it was cut before anything of it had left the server's proxy, it is a failure.
            if let Ok(answer) = client.await? {
                assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{head}");
            }
        }
        Ok(())
    }

    /// A request under way, and its server's connection, where it has arrived.
    async fn asked_by_hand(&self) -> Result<(JoinHandle<Result<Answer>>, TcpStream)> {
        let listener = self.server.listen(HTTP_BY_HAND);
        let mut client = Client::http1(self.client, (self.shop)(HTTP_BY_HAND)).await?;
        let answer = tokio::spawn(async move { client.get("/hello").await });
        let (mut server, _) = listener.accept().await?;
        let request = read_head(&mut server).await?;
        assert!(request.starts_with("get /hello http/1.1\r\n"), "{request}");
        Ok((answer, server))
    }

    async fn http2(&self, port: u16) -> Result<()> {
        let client = Client::http2(self.client, (self.shop)(port)).await?;
        let requests = (0..20).map(|n| {
            let mut client = client.another().expect("HTTP/2");
            async move {
                let body = vec![n; 100_000];
                let answer = client.post("/echo", body.clone()).await?;
                assert_eq!(answer.status, StatusCode::OK);
                assert_eq!(answer.version, Version::HTTP_2);
                assert_eq!(answer.body, body);
                let seen = answer.seen();
                assert_eq!(seen.version, "HTTP/2.0");
                assert_eq!(seen.host, "shop.example:81");
                anyhow::Ok(())
            }
        });
        futures_util::future::try_join_all(requests).await?;
        Ok(())
    }

    async fn grpc(&self) -> Result<()> {
        let mut client = Client::http2(self.client, (self.shop)(HTTP2)).await?;
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        // One length-prefixed message.
        let message = b"\0\0\0\0\x05hello".as_slice();
        let answer = client
            .send(Method::POST, "/grpc", &headers, full(message))
            .await?;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert_eq!(answer.headers.get("grpc-status"), None);
        assert_eq!(answer.body, message);
        let trailers = answer.trailers.context("trailers")?;
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["grpc-message"], "not for you");

        let only = client
            .send(Method::POST, "/grpc-error", &headers, full(message))
            .await?;
        assert_eq!(only.headers["grpc-status"], "12");
        assert_eq!((only.body.len(), only.trailers), (0, None));
        Ok(())
    }

    async fn websocket(&self) -> Result<()> {
        let listener = self.server.listen(HTTP_BY_HAND);
        let mut client = self.client.connect((self.shop)(HTTP_BY_HAND)).await?;
        let request = "GET /chat HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        client.write_all(request.as_bytes()).await?;

        let (mut server, _) = listener.accept().await?;
        let request = read_head(&mut server).await?;
        assert!(request.starts_with("get /chat http/1.1\r\n"), "{request}");
        for header in [
            "upgrade: websocket",
            "connection: upgrade",
            "host: shop.example",
            "sec-websocket-key: dghlihnhbxbszsbub25jzq==",
        ] {
            assert!(request.contains(header), "{header} is missing: {request}");
        }
        // The server's first message comes right behind its agreement.
        let agreement = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                         Upgrade: websocket\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x01\x05hello";
        server.write_all(agreement.as_bytes()).await?;

        let response = read_head(&mut client).await?;
        assert!(response.starts_with("http/1.1 101 "), "{response}");
        assert!(response.contains("upgrade: websocket"), "{response}");
        assert!(
            response.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{response}"
        );
        let mut first = [0; 7];
        client.read_exact(&mut first).await?;
        assert_eq!(&first, b"\x01\x05hello");
        for turn in 0..50u8 {
            let mut message = [0; 1000];
            client.write_all(&[turn; 1000]).await?;
            server.read_exact(&mut message).await?;
            assert_eq!(message, [turn; 1000]);
            server.write_all(&[turn ^ 0xff; 1000]).await?;
            client.read_exact(&mut message).await?;
            assert_eq!(message, [turn ^ 0xff; 1000]);
        }
        drop(client);
        assert_eq!(read_all(&mut server).await?, b"", "the end arrives as well");
        Ok(())
    }

    /// The application's own TLS is nobody's business.
    async fn tls_of_its_own(&self) -> Result<()> {
        let hello = b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03";
        let listener = self.server.listen(OPAQUE);
        let mut client = self.client.connect((self.shop)(OPAQUE)).await?;
        client.write_all(hello).await?;
        let (mut server, _) = listener.accept().await?;
        let mut arrived = [0; 11];
        server.read_exact(&mut arrived).await?;
        assert_eq!(&arrived, hello);
        server.write_all(b"\x15\x03\x03\x00\x02\x02\x28").await?;
        drop(server);
        let alert = read_all(&mut client).await?;
        assert_eq!(alert, b"\x15\x03\x03\x00\x02\x02\x28");
        Ok(())
    }

    async fn half_close(&self) -> Result<()> {
        let (mut client, mut server) = self.pair((self.shop)(OPAQUE)).await?;
        client.write_all(b"\x00question").await?;
        client.shutdown().await?;
        assert_eq!(read_all(&mut server).await?, b"\x00question");
        server.write_all(b"answer").await?;
        server.shutdown().await?;
        assert_eq!(read_all(&mut client).await?, b"answer");

        let (mut client, mut server) = self.pair((self.shop)(OPAQUE)).await?;
        server.write_all(b"go on, I only listen").await?;
        server.shutdown().await?;
        assert_eq!(read_all(&mut client).await?, b"go on, I only listen");
        client.write_all(b"\x00and so it does").await?;
        client.shutdown().await?;
        assert_eq!(read_all(&mut server).await?, b"\x00and so it does");
        Ok(())
    }

    async fn server_first(&self, port: u16) -> Result<()> {
        let start = Instant::now();
        let (mut client, mut server) = self.pair((self.shop)(port)).await?;
        server.write_all(b"220 shop.example ESMTP\r\n").await?;
        let mut banner = [0; 24];
        client.read_exact(&mut banner).await?;
        let waited = start.elapsed();
        assert_eq!(&banner, b"220 shop.example ESMTP\r\n");
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        // Though it might look like HTTP, that time is over.
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        client.shutdown().await?;
        assert_eq!(read_all(&mut server).await?, b"GET / HTTP/1.1\r\n\r\n");
        server.write_all(b"221 bye\r\n").await?;
        drop(server);
        assert_eq!(read_all(&mut client).await?, b"221 bye\r\n");
        Ok(())
    }

    async fn original_destination(&self) -> Result<()> {
        for port in [OPAQUE, 1, 15999, 65535] {
            for (to, local) in [
                (self.server.at(port), self.server.at(port)),
                (self.server.at_v6(port), self.server.at_v6(port)),
                (mapped(self.server.at(port)), self.server.at(port)),
                ((self.shop)(OPAQUE), self.server.at(OPAQUE)),
                ((self.shop_v6)(OPAQUE), self.server.at_v6(OPAQUE)),
            ] {
                let (mut client, mut server) = self.pair(to).await.context(to)?;
                assert_eq!(plain(server.local_addr()?), local, "connected to {to}");
                client.write_all(b"\x00").await?;
                client.shutdown().await?;
                assert_eq!(read_all(&mut server).await?, b"\x00", "{to}");
            }
        }
        for to in [self.server.at(HTTP1), self.server.at_v6(HTTP1)] {
            let answer = Client::http1(self.client, to).await?.get("/hello").await?;
            assert_eq!(answer.seen().local, to);
        }
        Ok(())
    }

    /// No connection is taken for its neighbour.
    async fn many_at_once(&self) -> Result<()> {
        const PORTS: u16 = 20;
        const FIRST: u16 = 7000;
        for port in FIRST..FIRST + PORTS {
            let listener = self.server.listen(port);
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let asked = plain(stream.local_addr()?).to_string();
                    tokio::spawn(async move {
                        let said = read_all(&mut stream).await?;
                        stream.write_all(&said).await?;
                        stream.write_all(asked.as_bytes()).await?;
                        stream.shutdown().await
                    });
                }
                std::io::Result::Ok(())
            });
        }
        let conversations = (0..400u16).map(async |n| {
            let port = FIRST + n % PORTS;
            let (v4, v6) = (self.server.at(port), self.server.at_v6(port));
            let to = [v4, v6, mapped(v4)][usize::from(n) % 3];
            let mut client = self.client.connect(to).await?;
            let said = format!("\0{n} ");
            client.write_all(said.as_bytes()).await?;
            client.shutdown().await?;
            let answer = String::from_utf8(read_all(&mut client).await?)?;
            assert_eq!(answer, format!("{said}{}", plain(to)));
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(conversations).await?;
        Ok(())
    }

    async fn peer_addresses(&self) -> Result<()> {
        for to in [
            (self.shop)(OPAQUE),
            self.server.at(OPAQUE),
            self.server.at_v6(OPAQUE),
            mapped(self.server.at(OPAQUE)),
        ] {
            let (client, server) = self.pair(to).await.context(to)?;
            assert_eq!(
                client.peer_addr()?,
                to,
                "what the client's getpeername says"
            );
            let own = match to.ip().to_canonical() {
                IpAddr::V4(_) => self.client.at(0),
                IpAddr::V6(_) => self.client.at_v6(0),
            };
            let local = plain(client.local_addr()?).ip();
            assert_eq!(local, own.ip(), "what its getsockname says, asked at {to}");
            let peer = plain(server.peer_addr()?).ip();
            let expected = match (self.placement, to.ip().to_canonical().is_ipv4()) {
                (Placement::None, true) => self.client.at(0).ip(),
                (Placement::None, false) => self.client.at_v6(0).ip(),
                // A proxy stands between, and calls from the server's own address.
                (_, true) => self.server.at(0).ip(),
                (_, false) => self.server.at_v6(0).ip(),
            };
            assert_eq!(peer, expected, "whom the server sees, asked at {to}");
        }
        let mut http = Client::http1(self.client, (self.shop)(80)).await?;
        let seen = http.get("/hello").await?.seen();
        assert_eq!(seen.peer.ip(), self.seen_peer(self.client).ip());
        Ok(())
    }

    /// A neighbour on the node, and oneself by one's own address.
    async fn same_node(&self) -> Result<()> {
        for (app, to) in [
            (self.client, self.near.at(HTTP1)),
            (self.near, self.client.at(HTTP1)),
            (self.client, self.client.at(HTTP1)),
            (self.client, (std::net::Ipv4Addr::LOCALHOST, HTTP1).into()),
        ] {
            let answer = Client::http1(app, to).await?.get("/hello").await?;
            assert_eq!(answer.status, StatusCode::OK, "{to}");
            assert_eq!(answer.seen().local, to);
        }
        Ok(())
    }

    /// A service whose one endpoint is who asks.
    async fn oneself(&self) -> Result<()> {
        for to in [(self.shop)(80), (self.shop_v6)(80)] {
            let mut client = Client::http1(self.server, to).await?;
            let answer = client.get("/hello").await?;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.seen().local.port(), HTTP1);
        }
        let (mut client, mut server) = {
            let listener = self.server.listen(OPAQUE);
            let client = self.server.connect((self.shop)(OPAQUE)).await?;
            (client, listener.accept().await?.0)
        };
        client.write_all(b"\0me").await?;
        client.shutdown().await?;
        assert_eq!(read_all(&mut server).await?, b"\0me");
        Ok(())
    }

    /// The application's refusal becomes the protocol's own, and promptly.
    async fn nobody_listens(&self) -> Result<()> {
        let to = (self.shop)(NOBODY);
        let start = Instant::now();
        match self.client.connect(to).await {
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
            Ok(mut opaque) => {
                opaque.write_all(b"\x00anybody?").await?;
                let answer = opaque.read(&mut [0; 100]).await.unwrap_or(0);
                assert_eq!(answer, 0, "nobody may answer");
            }
        }
        if let Ok(mut http) = Client::http1(self.client, to).await {
            let answer = http.get("/hello").await?;
            assert!(answer.status.is_server_error(), "{answer:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        Ok(())
    }

    /// Back-pressure is not an error.
    async fn slow_reader(&self) -> Result<()> {
        const LENGTH: usize = 20_000_000;
        let (mut client, mut server) = self.pair((self.shop)(OPAQUE)).await?;
        let sent = tokio::spawn(async move { opaque::send(&mut server, LENGTH, 5).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!sent.is_finished(), "20 MB are buffered somewhere");
        let received = opaque::receive(&mut client).await?;
        assert_eq!(received, (LENGTH, sent.await??));
        Ok(())
    }

    async fn hundred_megabytes(&self) -> Result<()> {
        const LENGTH: usize = 100_000_000;
        for port in [OPAQUE, OPAQUE_DECLARED] {
            let (client, server) = self.pair((self.shop)(port)).await?;
            let (mut client_read, mut client_write) = client.into_split();
            let (mut server_read, mut server_write) = server.into_split();
            let (there, back, arrived_there, arrived_back) = tokio::join!(
                tokio::spawn(async move { opaque::send(&mut client_write, LENGTH, 1).await }),
                tokio::spawn(async move { opaque::send(&mut server_write, LENGTH, 3).await }),
                tokio::spawn(async move { opaque::receive(&mut server_read).await }),
                tokio::spawn(async move { opaque::receive(&mut client_read).await }),
            );
            assert_eq!(arrived_there??, (LENGTH, there??));
            assert_eq!(arrived_back??, (LENGTH, back??));
        }
        Ok(())
    }
}

/// A request's or response's head, in lower case.
async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?.to_ascii_lowercase())
}
