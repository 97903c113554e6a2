//! What a proxy tells of the connections that it has, and of the requests that go by.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Endpoint, Placement, PodSpec, Proxy, ServiceSpec};
use mesh::app::App;
use mesh::http::{Client, serve_http1};
use mesh::opaque::read_all;
use mesh::{Checks, Mesh};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const HTTP: u16 = 8080;
const OPAQUE: u16 = 9000;
const NOBODY: u16 = 9999;
const ADMIN: u16 = 15000;

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let account = |name: &str| PodSpec::new(name).service_account(name);
    let shop = ServiceSpec::new("shop")
        .port(80, HTTP)
        .port(OPAQUE, OPAQUE)
        .pods(["server"]);
    let pods = [
        account("client"),
        account("server").node(2),
        // Where an agent serves more than the one who is asked about.
        account("other").node(2),
        account("outsider").meshed(false),
        // As in the bench's arms of redirection alone, on one node.
        account("teller").unannounced().opaque_ports([OPAQUE]),
        account("hearer").unannounced().opaque_ports([OPAQUE]),
    ];
    let Some(mesh) = Mesh::start(placement, pods, [shop]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let view = View {
            mesh: &mesh,
            shop: &|port| (shop.v4, port).into(),
            client: mesh.app("client"),
            server: mesh.app("server"),
            outsider: mesh.app("outsider"),
        };
        serve_http1(view.server, HTTP);
        serve_http1(mesh.app("other"), HTTP);

        let mut checks = Checks::default();
        checks.run("who we are", view.identity()).await;
        checks.run("a tunnel", view.tunnel()).await;
        checks.run("redirection alone", view.redirection()).await;
        checks.run("HTTP", view.http()).await;
        checks.run("plaintext", view.plaintext()).await;
        checks.run("bad questions", view.bad_questions()).await;
        checks.run("requests, tapped", view.tapped_requests()).await;
        checks.run("bytes, tapped", view.tapped_bytes()).await;
        checks.run("failures, tapped", view.tapped_failures()).await;
        checks.run("a tap's share", view.share()).await;
        checks.run("only so many taps", view.many_taps()).await;
        let dashboard = async { mesh::dashboard::check(&mesh, placement, ["client", "server"]) };
        checks.run("the dashboard's metrics", dashboard).await;
        checks.assert_all_passed();
    });
}

struct View<'a> {
    mesh: &'a Mesh,
    /// The service's address at a port.
    shop: &'a (dyn Fn(u16) -> std::net::SocketAddr + Sync),
    client: &'a Arc<App>,
    server: &'a Arc<App>,
    /// Unmeshed.
    outsider: &'a Arc<App>,
}

/// A tap, read line by line.
struct Tap(BufReader<TcpStream>);

// === impl View ===

impl View<'_> {
    async fn identity(&self) -> Result<()> {
        let (status, page) = self
            .mesh
            .proxy("client")
            .get(Endpoint::Admin, "/identity")?;
        assert_eq!(status, 200);
        assert!(!page.contains("PRIVATE KEY"), "{page}");
        let page: Value = serde_json::from_str(&page)?;
        assert!(page.get("directory").is_none(), "that is /config's");
        let identities = page["identities"].as_array().context("identities")?;
        let own = identities
            .iter()
            .find(|one| one["identity"] == identity("client"))
            .with_context(|| page.to_string())?;
        assert!(own["notAfter"].as_u64() > page["time"].as_u64(), "{own}");
        assert!(own["serial"].as_str().context("serial")?.contains(':'));
        let roots = own["roots"].as_array().context("roots")?;
        assert_eq!(roots.len(), 1);
        assert_eq!(roots[0].as_str().context("a root")?.len(), 64);
        Ok(())
    }

    /// Nobody is in the mesh, and still both sides pass on what is redirected to them, once
    /// each: an agent as well, that has both.
    async fn redirection(&self) -> Result<()> {
        let hearer = self.mesh.app("hearer");
        let listener = hearer.listen(OPAQUE);
        let passed = |pod: &str, direction: &str| {
            let labels = [
                format!("direction=\"{direction}\""),
                format!("workload=\"{pod}\""),
                "tls=\"false\"".to_owned(),
            ];
            let opened = "duet_tcp_connections_opened_total";
            self.mesh.count(pod, opened, &labels)
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        // Until the mesh has forgotten about them.
        while passed("teller", "outbound") == 0 {
            ensure!(Instant::now() < deadline, "still over mTLS");
            let _client = self.mesh.app("teller").connect(hearer.at(OPAQUE)).await?;
            let _server = listener.accept().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(passed("teller", "outbound"), 1);
        assert_eq!(passed("hearer", "inbound"), 1);
        Ok(())
    }

    async fn tunnel(&self) -> Result<()> {
        let listener = self.server.listen(OPAQUE);
        let mut client = self.client.connect((self.shop)(OPAQUE)).await?;
        client.write_all(b"\0question").await?;
        let (mut server, _) = listener.accept().await?;
        server.write_all(b"a longer answer").await?;
        let mut answer = [0; 15];
        tokio::io::AsyncReadExt::read_exact(&mut client, &mut answer).await?;

        let out = self.one("client", "direction=outbound", &[("kind", "client")])?;
        assert_eq!(out["destination"], (self.shop)(OPAQUE).to_string());
        assert_eq!(out["server"], self.server.at(OPAQUE).to_string());
        // An agent is called over the pod's loopback, which nobody is told.
        assert_eq!(out["client"], client.local_addr()?.to_string());
        assert_eq!(out["workload"], "default/client");
        assert_eq!(out["peer"], "default/server");
        assert_eq!(out["identity"], identity("server"));
        assert_eq!(out["transport"], "hbone");
        assert_eq!(out["protocol"], "opaque");
        assert_eq!(
            (&out["sentBytes"], &out["receivedBytes"]),
            (&9.into(), &15.into())
        );

        let tunnel = || self.one("server", "direction=inbound", &[("kind", "tunnel")]);
        let mut inside = tunnel()?;
        // The client may have its answer before its bytes are counted.
        for _ in 0..100 {
            if inside["receivedBytes"] == 15 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            inside = tunnel()?;
        }
        assert_eq!(inside["destination"], self.server.at(OPAQUE).to_string());
        assert_eq!(inside["workload"], "default/server");
        assert_eq!(inside["identity"], identity("client"));
        assert_eq!(inside["transport"], "hbone");
        assert_eq!(
            (&inside["sentBytes"], &inside["receivedBytes"]),
            (&9.into(), &15.into())
        );
        for (pod, direction, peer) in [
            ("client", "outbound", "server"),
            ("server", "inbound", "client"),
        ] {
            let query = format!("direction={direction}");
            let between = self.one(pod, &query, &[("kind", "mesh"), ("transport", "mtls")])?;
            assert_eq!(between["identity"], identity(peer), "{between}");
            assert!(between["sentBytes"].as_u64() > Some(9), "{between}");
            assert!(between["receivedBytes"].as_u64() > Some(15), "{between}");
        }

        drop((client, server));
        self.none_left("client", "kind", "client").await?;
        self.none_left("server", "kind", "tunnel").await
    }

    async fn http(&self) -> Result<()> {
        let mut client = Client::http1(self.client, (self.shop)(80)).await?;
        let before = self.requests("server")?;
        for _ in 0..3 {
            client.get("/hello").await?;
        }
        let out = self.one("client", "", &[("kind", "client")])?;
        assert_eq!(out["transport"], "mtls");
        assert_eq!(out["protocol"], "http/1");
        assert_eq!(out["requests"], 3);
        assert_eq!(out["identity"], identity("server"));
        assert_eq!(out["server"], self.server.at(HTTP).to_string());
        assert_eq!(self.requests("server")?, before + 3);
        drop(client);
        self.none_left("client", "kind", "client").await
    }

    /// Requests that the server's proxy has had from the client's.
    fn requests(&self, pod: &str) -> Result<u64> {
        let from = identity("client");
        let all = self.list(pod, "direction=inbound")?;
        let from_client = all
            .iter()
            .filter(|one| one["kind"] == "mesh" && one["identity"] == from);
        Ok(from_client.filter_map(|one| one["requests"].as_u64()).sum())
    }

    async fn plaintext(&self) -> Result<()> {
        let mut client = Client::http1(self.outsider, self.server.at(HTTP)).await?;
        client.get("/hello").await?;
        let listed = self.one("server", "", &[("kind", "client")])?;
        assert_eq!(listed["direction"], "inbound");
        assert_eq!(listed["transport"], "plaintext");
        assert_eq!(listed["requests"], 1);
        assert!(listed.get("identity").is_none(), "{listed}");
        let from = listed["client"].as_str().context("client")?;
        let outsider = self.outsider.at(0).ip().to_string();
        assert!(from.starts_with(&outsider), "{from}");
        drop(client);
        self.none_left("server", "kind", "client").await
    }

    async fn bad_questions(&self) -> Result<()> {
        let proxy = self.mesh.proxy("client");
        for (path, says) in [
            ("/connections?workload=client", "write namespace/name"),
            ("/connections?path=/", "\"path\" is not known here"),
            ("/tap?direction=up", "write inbound or outbound"),
            ("/tap?rate=1000000", "write 1 to"),
        ] {
            let (status, reason) = proxy.get(Endpoint::Admin, path)?;
            assert_eq!(status, 400, "{path}");
            assert!(
                reason.contains(says) && reason.lines().count() == 1,
                "{reason}"
            );
        }
        let (_, page) = proxy.get(Endpoint::Admin, "/connections?limit=0")?;
        let page: Value = serde_json::from_str(&page)?;
        assert_eq!(page["connections"], Value::Array(Vec::new()));
        assert!(page["omitted"].as_u64() > Some(0), "{page}");
        Ok(())
    }

    async fn tapped_requests(&self) -> Result<()> {
        let query = "workload=default/server&direction=inbound&path=/hello&method=GET";
        let mut tap = Tap::open(&self.mesh.proxy("server"), query).await?;
        let other = self.mesh.app("other");
        for (to, path) in [
            (other.at(HTTP), "/hello/elsewhere"),
            (self.server.at(HTTP), "/echo"),
            (self.server.at(HTTP), "/hello?card=1234"),
        ] {
            Client::http1(self.client, to).await?.get(path).await?;
        }
        let line = tap.next().await?;
        assert_eq!(line["kind"], "request");
        assert_eq!(line["path"], "/hello", "and no query: {line}");
        assert_eq!(line["method"], "GET");
        assert_eq!(line["status"], 200);
        assert_eq!(line["workload"], "default/server");
        assert_eq!(line["peer"], "default/client");
        assert_eq!(line["tls"], true);
        assert!(line["duration_us"].as_u64() > Some(0));

        let mut tap = Tap::open(&self.mesh.proxy("client"), "peer=default/s*").await?;
        Client::http1(self.client, (self.shop)(80))
            .await?
            .get("/hello")
            .await?;
        let line = tap.next().await?;
        assert_eq!(line["direction"], "outbound");
        assert_eq!(line["peer"], "default/server");
        assert_eq!(line["server"], self.server.at(HTTP).to_string());
        Ok(())
    }

    async fn tapped_bytes(&self) -> Result<()> {
        let mut tap = Tap::open(&self.mesh.proxy("server"), "workload=default/server").await?;
        let listener = self.server.listen(OPAQUE);
        let mut client = self.client.connect((self.shop)(OPAQUE)).await?;
        client.write_all(b"\0question").await?;
        let (mut server, _) = listener.accept().await?;
        client.shutdown().await?;
        read_all(&mut server).await?;
        server.write_all(b"answer").await?;
        drop(server);
        read_all(&mut client).await?;
        let line = tap.next().await?;
        assert_eq!(line["kind"], "connection");
        assert_eq!(line["peer"], "default/client");
        assert_eq!(
            (&line["sent_bytes"], &line["received_bytes"]),
            (&9.into(), &6.into())
        );
        Ok(())
    }

    async fn tapped_failures(&self) -> Result<()> {
        let mut tap = Tap::open(&self.mesh.proxy("client"), "workload=default/client").await?;
        if let Ok(mut refused) = self.client.connect(self.server.at(NOBODY)).await {
            let _ = refused.write_all(b"\0anybody?").await;
            let _ = read_all(&mut refused).await;
        }
        let line = tap.next().await?;
        assert_eq!(line["kind"], "failure");
        assert_eq!(line["reason"], "connect");
        assert_eq!(line["workload"], "default/client");
        let error = line["error"].as_str().context("error")?;
        assert!(
            error.contains(&self.server.at(NOBODY).ip().to_string()),
            "{error}"
        );
        Ok(())
    }

    /// What a tap does not get is counted, and nobody waits for it.
    async fn share(&self) -> Result<()> {
        const REQUESTS: u64 = 60;
        let query = "workload=default/server&rate=5";
        let mut tap = Tap::open(&self.mesh.proxy("server"), query).await?;
        let mut client = Client::http1(self.client, self.server.at(HTTP)).await?;
        for _ in 0..REQUESTS {
            client.get("/hello").await?;
        }
        let (mut seen, mut dropped) = (0, 0);
        while seen + dropped < REQUESTS {
            let line = tap.next().await?;
            match line["kind"].as_str() {
                Some("request") => seen += 1,
                Some("dropped") => dropped += line["count"].as_u64().context("count")?,
                _ => anyhow::bail!("{line}"),
            }
        }
        assert_eq!(seen + dropped, REQUESTS);
        assert!(dropped > 0 && seen >= 5, "{seen} seen, {dropped} dropped");
        Ok(())
    }

    async fn many_taps(&self) -> Result<()> {
        let proxy = self.mesh.proxy("client");
        let mut taps = Vec::new();
        for _ in 0..4 {
            taps.push(Tap::open(&proxy, "").await?);
        }
        let (status, reason) = proxy.get(Endpoint::Admin, "/tap")?;
        assert_eq!(status, 429, "{reason}");
        taps.pop();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Tap::open(&proxy, "").await.is_err() {
            ensure!(Instant::now() < deadline, "a tap outlives its client");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The connections of a pod's workload.
    fn list(&self, pod: &str, query: &str) -> Result<Vec<Value>> {
        let path = format!("/connections?workload=default/{pod}&{query}");
        let (status, page) = self.mesh.proxy(pod).get(Endpoint::Admin, &path)?;
        ensure!(status == 200, "{status}: {page}");
        let mut page: Value = serde_json::from_str(&page)?;
        assert_eq!(page["omitted"], 0);
        let Value::Array(listed) = page["connections"].take() else {
            anyhow::bail!("{page}");
        };
        for one in &listed {
            assert_eq!(one["workload"], format!("default/{pod}"), "{one}");
        }
        Ok(listed)
    }

    /// The one connection that these fields fit.
    fn one(&self, pod: &str, query: &str, fields: &[(&str, &str)]) -> Result<Value> {
        let listed = self.list(pod, query)?;
        let fits = |one: &&Value| fields.iter().all(|(name, value)| one[*name] == *value);
        let mut found = listed.iter().filter(fits);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.clone()),
            _ => anyhow::bail!("{pod} {fields:?}: {listed:#?}"),
        }
    }

    async fn none_left(&self, pod: &str, field: &str, value: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut listed = self.list(pod, "")?;
            listed.retain(|one| one[field] == value);
            if listed.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still listed: {listed:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn identity(account: &str) -> String {
    format!("spiffe://duet.local/ns/default/sa/{account}")
}

// === impl Tap ===

impl Tap {
    /// It is open once the head of the answer is there.
    async fn open(proxy: &Proxy, query: &str) -> Result<Self> {
        let connect = || std::net::TcpStream::connect(("127.0.0.1", ADMIN));
        let stream = proxy.netns.run(connect)??;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream)?;
        let request = format!("GET /tap?{query} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(lines.read_line(&mut head).await? > 0, "{head}");
        }
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let chunked = head.to_ascii_lowercase();
        ensure!(chunked.contains("transfer-encoding: chunked"), "{head}");
        Ok(Self(lines))
    }

    /// Each chunk is a line; what is between them is chunking.
    async fn next(&mut self) -> Result<Value> {
        let read = async {
            loop {
                let mut line = String::new();
                ensure!(self.0.read_line(&mut line).await? > 0, "the tap has ended");
                if line.starts_with('{') {
                    return Ok(serde_json::from_str(&line)?);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .context("nothing comes")?
    }
}
