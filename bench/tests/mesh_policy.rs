//! Who may ask for what, what a kubelet may ask where nobody else may, and what
//! becomes of a connection when that changes.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Placement, PodSpec};
use http::{Method, StatusCode};
use mesh::app::App;
use mesh::http::{Answer, Client, empty, full, serve_http1, serve_http2};
use mesh::opaque::read_all;
use mesh::unending::{begin_endless, begin_websocket, serve_endless, serve_websocket};
use mesh::{Checks, Mesh};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HTTP: u16 = 8080;
const GRPC: u16 = 50051;
/// Serves an answer that never ends.
const ENDLESS: u16 = 8081;
/// Upgrades, and then echoes.
const WEBSOCKET: u16 = 8082;
const OPAQUE: u16 = 9000;
const OTHER_OPAQUE: u16 = 9001;

const PROBES: &str = "    probes:
      - { port: 8080, path: \"/healthz?full=1\" }
      - { port: 50051, grpc: true }
      - { port: 9000 }
";

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let account = |name: &str| PodSpec::new(name).service_account(name);
    let pods = [
        account("client"),
        account("stranger").namespace("elsewhere"),
        account("outsider").meshed(false),
        account("server").node(2),
        account("strict").node(2).strict(),
    ];
    let Some(mesh) = Mesh::start(placement, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let p = Policies {
            mesh: &mesh,
            truth: mesh.read_mesh_yaml(),
            client: mesh.app("client"),
            stranger: mesh.app("stranger"),
            outsider: mesh.app("outsider"),
            server: mesh.app("server"),
            strict: mesh.app("strict"),
        };
        for app in [p.server, p.strict] {
            serve_http1(app, HTTP);
            serve_http2(app, GRPC);
        }
        serve_endless(p.server, ENDLESS);
        serve_websocket(p.server, WEBSOCKET);

        let mut checks = Checks::default();
        checks.run("allow by identity", p.by_identity()).await;
        checks.run("deny by namespace", p.by_namespace()).await;
        checks.run("deny by address", p.by_address()).await;
        checks.run("deny by port", p.by_port()).await;
        checks.run("deny by path and method", p.by_path()).await;
        checks.run("allow by path", p.allow_by_path()).await;
        checks.run("silent at first", p.silent_at_first()).await;
        checks.run("gRPC", p.grpc()).await;
        checks.run("audit", p.audit()).await;
        checks.run("what stands is cut", p.revoked()).await;
        checks.run("strict from now on", p.turned_strict()).await;
        checks.run("probes in strict mode", p.probes_strict()).await;
        checks.run("probes and policies", p.probes_denied()).await;
        checks.assert_all_passed();
    });
}

struct Policies<'a> {
    mesh: &'a Mesh,
    truth: String,
    client: &'a Arc<App>,
    /// Meshed, of another namespace.
    stranger: &'a Arc<App>,
    /// Unmeshed, and the kubelet.
    outsider: &'a Arc<App>,
    server: &'a Arc<App>,
    strict: &'a Arc<App>,
}

// === impl Policies ===

impl Policies<'_> {
    async fn by_identity(&self) -> Result<()> {
        self.govern(
            "  - name: callers
    action: allow
    workloads: [server]
    rules:
      - from: [{ identities: [duet.local/ns/default/sa/client] }]
",
        )
        .await?;
        let server = self.server;
        for to in [server.at(HTTP), server.at_v6(HTTP)] {
            assert_eq!(get(self.client, to, "/hello").await?.status, StatusCode::OK);
            for client in [self.stranger, self.outsider] {
                let answer = get(client, to, "/hello").await?;
                assert_eq!(answer.status, StatusCode::FORBIDDEN);
                assert_eq!(answer.headers["duet-proxy-error"], "denied by policy");
            }
        }
        converse(self.client, server, OPAQUE).await?;
        refused(self.stranger, server, OPAQUE).await;
        refused(self.outsider, server, OPAQUE).await;
        // Nobody says anything of another workload.
        let strict = self.strict.at(HTTP);
        let answer = get(self.stranger, strict, "/hello").await?;
        assert_eq!(answer.status, StatusCode::OK);

        let decided = |policy, decision| self.mesh.decisions("server", policy, decision);
        assert_eq!(decided("default/callers", "allow"), 3);
        // Two requests, and a connection to each of two addresses, of two clients.
        assert_eq!(decided("none", "deny"), 8);
        assert_eq!(self.mesh.failures("server", "policy"), 8);
        Ok(())
    }

    async fn by_namespace(&self) -> Result<()> {
        self.govern(
            "  - name: no-strangers
    action: deny
    rules:
      - from: [{ namespaces: [elsewhere] }]
",
        )
        .await?;
        for server in [self.server, self.strict] {
            let to = server.at(HTTP);
            let answer = get(self.stranger, to, "/hello").await?;
            assert_eq!(answer.status, StatusCode::FORBIDDEN);
            assert_eq!(get(self.client, to, "/hello").await?.status, StatusCode::OK);
            refused(self.stranger, server, OPAQUE).await;
            converse(self.client, server, OPAQUE).await?;
        }
        // Who has no identity is of no namespace.
        let answer = get(self.outsider, self.server.at(HTTP), "/hello").await?;
        assert_eq!(answer.status, StatusCode::OK);
        Ok(())
    }

    async fn by_address(&self) -> Result<()> {
        let (v4, v6) = (self.outsider.v4, self.outsider.v6);
        self.govern(&format!(
            "  - name: not-from-there
    action: deny
    workloads: [server]
    rules:
      - from: [{{ ipBlocks: [{v4}/32, \"{v6}/128\"] }}]
"
        ))
        .await?;
        for to in [self.server.at(HTTP), self.server.at_v6(HTTP)] {
            let answer = get(self.outsider, to, "/hello").await?;
            assert_eq!(answer.status, StatusCode::FORBIDDEN);
            assert_eq!(get(self.client, to, "/hello").await?.status, StatusCode::OK);
        }
        refused(self.outsider, self.server, OPAQUE).await;
        Ok(())
    }

    async fn by_port(&self) -> Result<()> {
        self.govern(
            "  - name: closed
    action: deny
    workloads: [server]
    rules:
      - to: [{ ports: [9000, 50051] }]
",
        )
        .await?;
        for client in [self.client, self.outsider] {
            let answer = get(client, self.server.at(HTTP), "/hello").await?;
            assert_eq!(answer.status, StatusCode::OK);
            refused(client, self.server, OPAQUE).await;
            converse(client, self.server, OTHER_OPAQUE).await?;
        }
        Ok(())
    }

    async fn by_path(&self) -> Result<()> {
        self.govern(
            "  - name: no-admin
    action: deny
    workloads: [server]
    rules:
      - to:
          - { ports: [8080], paths: [/admin*, /secret] }
          - { methods: [DELETE] }
",
        )
        .await?;
        let to = self.server.at(HTTP);
        for client in [self.client, self.outsider] {
            for path in [
                "/admin",
                "/admin/users",
                "/ADMIN",
                "//admin",
                "/./admin",
                "/hello/../admin",
                "/%61dmin",
                "/hello/%2e%2e/admin",
                "/hello/..%2fadmin",
                "/%2561dmin",
                "/x\\..\\admin",
                "/secret/",
                "/secret;a=b",
                "/secret?a=b",
                "/a%00",
            ] {
                let answer = get(client, to, path).await?;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
            }
            for path in [
                "/hello",
                "/secrets",
                "/administer/../hello",
                "/?/admin",
                "/",
            ] {
                let answer = get(client, to, path).await?;
                assert_eq!(answer.status, StatusCode::OK, "{path}");
                assert_eq!(answer.seen().local, to, "{path}");
            }
            let mut connection = Client::http1(client, to).await?;
            let delete = connection.send(Method::DELETE, "/hello", &[], empty());
            assert_eq!(delete.await?.status, StatusCode::FORBIDDEN);
            // The connection goes on.
            assert_eq!(connection.get("/hello").await?.status, StatusCode::OK);
            let posted = connection.post("/echo", "hello").await?;
            assert_eq!(posted.body, "hello");

            let mut h2 = Client::http2(client, self.server.at(GRPC)).await?;
            let delete = Method::from_bytes(b"delete")?;
            let answer = h2.send(delete, "/hello", &[], empty()).await?;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "not to every server");
            assert_eq!(
                h2.get("/admin").await?.status,
                StatusCode::OK,
                "not this port"
            );
            // Nobody knows that these are no DELETE.
            refused(client, self.server, OPAQUE).await;
        }
        let elsewhere = get(self.client, self.strict.at(HTTP), "/admin").await?;
        assert_eq!(elsewhere.status, StatusCode::OK);
        Ok(())
    }

    async fn allow_by_path(&self) -> Result<()> {
        self.govern(
            "  - name: public
    action: allow
    workloads: [server]
    rules:
      - to: [{ methods: [GET], paths: [/public/*] }]
      - from: [{ namespaces: [default] }]
        to: [{ ports: [8080], paths: [/echo] }]
",
        )
        .await?;
        let to = self.server.at(HTTP);
        for client in [self.client, self.stranger, self.outsider] {
            for (path, status) in [
                ("/public/a", StatusCode::OK),
                ("/public/./a?b=c", StatusCode::OK),
                ("/public", StatusCode::FORBIDDEN),
                ("/Public/a", StatusCode::FORBIDDEN),
                ("/public/../hello", StatusCode::FORBIDDEN),
                ("/public/%2e%2e/hello", StatusCode::FORBIDDEN),
                ("/public/..%2fhello", StatusCode::FORBIDDEN),
                ("/public/%00", StatusCode::FORBIDDEN),
                ("/hello", StatusCode::FORBIDDEN),
            ] {
                assert_eq!(get(client, to, path).await?.status, status, "{path}");
            }
            refused(client, self.server, OPAQUE).await;
            let mut connection = Client::http1(client, to).await?;
            let status = connection.post("/echo", "hello").await?.status;
            let ours = Arc::ptr_eq(client, self.client);
            assert_eq!(status == StatusCode::OK, ours);
        }
        Ok(())
    }

    /// Clients that connect long before they ask are taken for opaque on the way, and
    /// their requests are found all the same.
    async fn silent_at_first(&self) -> Result<()> {
        self.govern(
            "  - name: no-admin
    action: deny
    workloads: [server]
    rules:
      - to: [{ ports: [8080, 50051], paths: [/admin] }]
",
        )
        .await?;
        for client in [self.client, self.outsider] {
            let mut http1 = Client::http1(client, self.server.at(HTTP)).await?;
            let mut h2 = client.connect(self.server.at(GRPC)).await?;
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(http1.get("/hello").await?.status, StatusCode::OK);
            assert_eq!(http1.get("/admin").await?.status, StatusCode::FORBIDDEN);
            assert_eq!(http1.get("/hello").await?.status, StatusCode::OK);
            h2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await?;
            let mut settings = [0; 9];
            tokio::time::timeout(PATIENCE, h2.read_exact(&mut settings)).await??;
            assert_eq!(settings[3], 4, "the server's SETTINGS");
            // What turns out to be something else is refused.
            let mut opaque = client.connect(self.server.at(HTTP)).await?;
            tokio::time::sleep(Duration::from_millis(600)).await;
            opaque.write_all(b"\x00ping").await?;
            assert_eq!(read_until_the_end(&mut opaque).await?, b"");
        }
        Ok(())
    }

    async fn grpc(&self) -> Result<()> {
        self.govern(
            "  - name: no-delete
    action: deny
    workloads: [server]
    rules:
      - to: [{ paths: [/shop.Cart/Delete] }]
",
        )
        .await?;
        for client in [self.client, self.outsider] {
            let mut h2 = Client::http2(client, self.server.at(GRPC)).await?;
            let mut call = async |method| call(&mut h2, method).await;
            let answer = call("/shop.Cart/Delete").await?;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.headers["grpc-status"], "7");
            assert_eq!(answer.headers["grpc-message"], "denied by policy");
            assert_eq!(answer.headers["duet-proxy-error"], "denied by policy");
            let answer = call("/shop.Cart/List").await?;
            assert_eq!(answer.seen().version, "HTTP/2.0");
        }
        Ok(())
    }

    async fn audit(&self) -> Result<()> {
        self.govern(
            "  - name: watch
    action: audit
    workloads: [server]
    rules:
      - to: [{ paths: [/audited*] }]
",
        )
        .await?;
        let allowed = || self.mesh.decisions("server", "none", "allow");
        let before = allowed();
        for path in ["/audited", "/Audited/x", "/hello"] {
            let answer = get(self.client, self.server.at(HTTP), path).await?;
            assert_eq!(answer.status, StatusCode::OK);
        }
        let audited = self.mesh.decisions("server", "default/watch", "audit");
        assert_eq!(audited, 2);
        assert_eq!(allowed() - before, 3);
        // What was counted of policies that are gone is gone.
        assert_eq!(
            self.mesh.decisions("server", "default/no-delete", "deny"),
            0
        );
        Ok(())
    }

    /// Over mTLS and in plaintext: opaque bytes, an answer on its way and a
    /// connection that has left HTTP, all of them silent when it happens.
    async fn revoked(&self) -> Result<()> {
        self.govern("").await?;
        let mut standing = Vec::new();
        let mut staying = Vec::new();
        let (listener, other) = (self.server.listen(OPAQUE), self.server.listen(OTHER_OPAQUE));
        let mut held = Vec::new();
        for client in [self.client, self.outsider] {
            for (listener, streams) in [(&listener, &mut standing), (&other, &mut staying)] {
                let port = listener.local_addr()?.port();
                let mut stream = client.connect(self.server.at(port)).await?;
                stream.write_all(b"\x00ping").await?;
                let (mut served, _) = listener.accept().await?;
                served.read_exact(&mut [0; 5]).await?;
                served.write_all(b"pong").await?;
                stream.read_exact(&mut [0; 4]).await?;
                held.push(served);
                streams.push(("opaque", stream));
            }
            standing.push((
                "endless",
                begin_endless(client, self.server.at(ENDLESS)).await?,
            ));
            standing.push((
                "websocket",
                begin_websocket(client, self.server.at(WEBSOCKET)).await?,
            ));
        }
        let mut kept = Client::http1(self.client, self.server.at(HTTP)).await?;
        assert_eq!(kept.get("/hello").await?.status, StatusCode::OK);
        let closed = || {
            let labels = ["direction=\"inbound\"", "reason=\"revoked\""].map(str::to_owned);
            let metric = "duet_tcp_connections_closed_total";
            self.mesh.count("server", metric, &labels)
        };
        let before = closed();

        let changed = Instant::now();
        self.govern(
            "  - name: closed
    action: deny
    workloads: [server]
    rules:
      - to: [{ ports: [8080, 8081, 8082, 9000] }]
",
        )
        .await?;
        for (what, stream) in &mut standing {
            let rest = read_until_the_end(stream).await.with_context(|| *what)?;
            assert!(rest.is_empty(), "{what}: {rest:?}");
        }
        eprintln!(
            "  all were cut {:.0?} after the file was written",
            changed.elapsed()
        );
        let opaque = standing
            .iter()
            .filter(|(what, _)| *what == "opaque")
            .count();
        let counted = closed() - before;
        ensure!(counted >= opaque as u64, "{counted} are said to be revoked");
        assert_eq!(kept.get("/hello").await?.status, StatusCode::FORBIDDEN);
        // The application hears of it too.
        for served in held.iter_mut().step_by(2) {
            let end = tokio::time::timeout(PATIENCE, served.read(&mut [0])).await?;
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
        for (_, stream) in &mut staying {
            stream.write_all(b"again").await?;
        }
        for served in held.iter_mut().skip(1).step_by(2) {
            served.read_exact(&mut [0; 5]).await?;
        }
        Ok(())
    }

    async fn turned_strict(&self) -> Result<()> {
        self.govern("").await?;
        let listener = self.server.listen(OPAQUE);
        let mut http = Client::http1(self.outsider, self.server.at(HTTP)).await?;
        assert_eq!(http.get("/hello").await?.status, StatusCode::OK);
        let mut opaque = self.outsider.connect(self.server.at(OPAQUE)).await?;
        opaque.write_all(b"\x00ping").await?;
        let (_served, _) = listener.accept().await?;

        let yaml = self.change("server", "mtls: permissive", "mtls: strict");
        self.write(&yaml).await?;
        read_until_the_end(&mut opaque).await?;
        assert_eq!(http.get("/hello").await?.status, StatusCode::FORBIDDEN);
        drop(listener);
        converse(self.client, self.server, OPAQUE).await
    }

    async fn probes_strict(&self) -> Result<()> {
        let yaml = self.change(
            "strict",
            "    opaquePorts",
            &format!("{PROBES}    opaquePorts"),
        );
        self.write(&yaml).await?;
        let (kubelet, pod) = (self.outsider, self.strict);
        for to in [pod.at(HTTP), pod.at_v6(HTTP)] {
            let answer = get(kubelet, to, "/healthz?full=1").await?;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.seen().local, to, "the application itself says so");
        }
        self.neighbours_of_probes(pod, "mTLS is strict").await?;

        // A connection that says nothing is the whole question.
        let listener = pod.listen(OPAQUE);
        let mut probe = kubelet.connect(pod.at(OPAQUE)).await?;
        probe.shutdown().await?;
        assert_eq!(read_all(&mut probe).await?, b"");
        assert!(nobody_came(&listener).await);
        drop(listener);
        refused(kubelet, pod, OPAQUE).await;

        // What no probe is declared on is as shut as ever, and the mesh is not.
        refused(kubelet, pod, OTHER_OPAQUE).await;
        let answer = get(self.client, pod.at(HTTP), "/hello").await?;
        assert_eq!(answer.status, StatusCode::OK);
        converse(self.client, pod, OPAQUE).await
    }

    async fn probes_denied(&self) -> Result<()> {
        let with_probes = self.change(
            "server",
            "    opaquePorts",
            &format!("{PROBES}    opaquePorts"),
        );
        let nobody = "policies:\n  - { name: nobody, action: allow, workloads: [server] }\n";
        self.write(&(with_probes + nobody)).await?;
        let (kubelet, pod) = (self.outsider, self.server);
        let answer = get(kubelet, pod.at(HTTP), "/healthz?full=1").await?;
        assert_eq!(answer.status, StatusCode::OK);
        self.neighbours_of_probes(pod, "denied by policy").await?;
        let before = self.mesh.decisions("server", "none", "deny");
        let mut probe = kubelet.connect(pod.at(OPAQUE)).await?;
        probe.shutdown().await?;
        assert_eq!(read_all(&mut probe).await?, b"");
        assert_eq!(self.mesh.decisions("server", "none", "deny"), before);
        refused(kubelet, pod, OPAQUE).await;
        assert!(self.mesh.decisions("server", "none", "deny") > before);
        // No kubelet is in the mesh.
        let answer = get(self.client, pod.at(HTTP), "/healthz?full=1").await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        Ok(())
    }

    async fn neighbours_of_probes(&self, pod: &App, why: &str) -> Result<()> {
        let kubelet = self.outsider;
        for path in [
            "/healthz",
            "/healthz?full=12",
            "/healthz?full=1&x",
            "/healthz/?full=1",
            "/healthz/x?full=1",
            "//healthz?full=1",
            "/x/../healthz?full=1",
            "/%68ealthz?full=1",
            "/",
        ] {
            let answer = get(kubelet, pod.at(HTTP), path).await?;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
            let told = answer.headers["duet-proxy-error"].to_str()?;
            assert!(told.contains(why), "{told}");
        }
        let mut connection = Client::http1(kubelet, pod.at(HTTP)).await?;
        let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
        for (method, headers, body) in [
            (Method::POST, &[][..], empty()),
            (Method::HEAD, &[], empty()),
            (Method::GET, &[], full("a body")),
            (Method::GET, &upgrade, empty()),
        ] {
            let what = format!("{method} {headers:?}");
            let answer = connection.send(method, "/healthz?full=1", headers, body);
            assert_eq!(answer.await?.status, StatusCode::FORBIDDEN, "{what}");
        }
        let answer = connection.get("/healthz?full=1").await?;
        assert_eq!(answer.status, StatusCode::OK, "over the same connection");

        let mut h2 = Client::http2(kubelet, pod.at(GRPC)).await?;
        let answer = call(&mut h2, "/grpc.health.v1.Health/Check").await?;
        assert_eq!(answer.seen().version, "HTTP/2.0");
        for method in ["/grpc.health.v1.Health/Watch", "/shop.Cart/List"] {
            let answer = call(&mut h2, method).await?;
            assert_eq!(answer.headers["grpc-status"], "7", "{method}");
        }
        let answer = h2.get("/grpc.health.v1.Health/Check").await?;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        Ok(())
    }

    /// Has every proxy hear of these policies, and of no others.
    async fn govern(&self, policies: &str) -> Result<()> {
        let list = if policies.is_empty() { " []\n" } else { "\n" };
        self.write(&format!("{}policies:{list}{policies}", self.truth))
            .await
    }

    /// The mesh with `from` replaced in a pod's description.
    fn change(&self, pod: &str, from: &str, to: &str) -> String {
        let at = self.truth.find(&format!("name: {pod:?}")).unwrap();
        let (before, after) = self.truth.split_at(at);
        assert!(after.contains(from), "{after}");
        before.to_owned() + &after.replacen(from, to, 1)
    }

    async fn write(&self, yaml: &str) -> Result<()> {
        let pods = ["client", "stranger", "server", "strict"];
        self.mesh.describe(yaml, &pods).await
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

async fn get(client: &App, to: SocketAddr, path: &str) -> Result<Answer> {
    let answer = async { Client::http1(client, to).await?.get(path).await };
    tokio::time::timeout(PATIENCE, answer)
        .await
        .with_context(|| format!("GET {path}: no answer"))?
}

async fn call(client: &mut Client, method: &str) -> Result<Answer> {
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let message = full(vec![0u8; 5]);
    let call = client.send(Method::POST, method, &grpc, message);
    tokio::time::timeout(PATIENCE, call)
        .await
        .with_context(|| format!("{method}: no answer"))?
}

/// Both sides hear each other.
async fn converse(client: &App, server: &App, port: u16) -> Result<()> {
    let listener = server.listen(port);
    let conversation = async {
        let mut client = client.connect(server.at(port)).await?;
        client.write_all(b"\x00ping").await?;
        let (mut server, _) = listener.accept().await?;
        server.write_all(b"pong").await?;
        server.shutdown().await?;
        client.shutdown().await?;
        ensure!(read_all(&mut server).await? == b"\x00ping");
        ensure!(read_all(&mut client).await? == b"pong");
        Ok(())
    };
    tokio::time::timeout(PATIENCE, conversation)
        .await
        .with_context(|| format!("port {port}: nobody is heard"))?
}

/// The client is reset and the server's application hears of nothing.
async fn refused(client: &App, server: &App, port: u16) {
    let listener = server.listen(port);
    for to in [server.at(port), server.at_v6(port)] {
        if let Ok(mut stream) = client.connect(to).await {
            let _ = stream.write_all(b"\x00ping").await;
            let mut answer = [0];
            let end = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await;
            let end = end.expect("the connection is left hanging");
            assert!(end.is_err(), "{to}: {end:?} is no reset");
        }
    }
    assert!(nobody_came(&listener).await, "port {port} let it through");
}

async fn nobody_came(listener: &tokio::net::TcpListener) -> bool {
    let patience = Duration::from_millis(300);
    tokio::time::timeout(patience, listener.accept())
        .await
        .is_err()
}

/// However it ends, but it has to.
async fn read_until_the_end(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    let _ = end.context("it is left hanging")?;
    Ok(all)
}
