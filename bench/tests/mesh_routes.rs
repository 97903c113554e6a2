//! Retries, time-outs and routes, as clients and servers see them.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Placement, PodSpec, ServiceSpec};
use http::{Method, StatusCode};
use mesh::http::{Answer, Client, empty, full};
use mesh::moody::Moody;
use mesh::{Checks, Mesh};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const HTTP: u16 = 8080;
const GRPC: u16 = 8081;

/// For what should be there at once, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any time-out here, and than [`PATIENCE`].
const NEVER: Duration = Duration::from_secs(300);
/// In gRPC, no message.
const NOTHING: &[u8] = b"\0\0\0\0\0";

/// Endpoints that fail are to stay in.
const STAY: &str = "    failureAccrual: { off: true }\n";
/// Retries are not to be few.
const MANY: &str = "    retryBudget: { percent: 100, perSecond: 1000 }\n";

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let pods = [
        PodSpec::new("client"),
        PodSpec::new("one").node(2),
        PodSpec::new("two").node(2),
    ];
    let both = ServiceSpec::new("shop")
        .port_as(80, HTTP, "http")
        .port_as(81, GRPC, "grpc")
        .pods(["one", "two"]);
    let [first, second] = ["one", "two"].map(|pod| {
        ServiceSpec::new(format!("only-{pod}"))
            .port_as(80, HTTP, "http")
            .pods([pod])
    });
    let Some(mesh) = Mesh::start(placement, pods, [both, first, second]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let t = Routes {
            mesh: &mesh,
            truth: mesh.read_mesh_yaml(),
            shop: (shop.v4, 80).into(),
            shop_grpc: (shop.v4, 81).into(),
            one: Moody::http1(mesh.app("one"), HTTP),
            two: Moody::http1(mesh.app("two"), HTTP),
            grpc: ["one", "two"].map(|pod| Moody::http2(mesh.app(pod), GRPC)),
        };
        let mut checks = Checks::default();
        checks.run("a GET is tried again", t.retried_get()).await;
        checks.run("a POST is not", t.post_is_not()).await;
        checks.run("bodies are replayed", t.replayed()).await;
        checks.run("the budget bounds", t.budget()).await;
        checks.run("pushed back", t.pushed_back()).await;
        checks.run("request time-out", t.request_timeout()).await;
        checks.run("time-out of a try", t.try_timeout()).await;
        checks.run("time-out in a body", t.body_timeout()).await;
        checks.run("gRPC", t.grpc()).await;
        checks.run("traffic split", t.split()).await;
        checks.run("matches", t.matches()).await;
        checks.run("changes on the way", t.changes()).await;
        checks.run("mirrored requests", t.mirrored()).await;
        checks.assert_all_passed();
    });
}

struct Routes<'a> {
    mesh: &'a Mesh,
    truth: String,
    /// Behind it are `one` and `two`.
    shop: SocketAddr,
    shop_grpc: SocketAddr,
    one: Moody,
    two: Moody,
    grpc: [Moody; 2],
}

// === impl Routes ===

impl Routes<'_> {
    async fn client(&self) -> Result<Client> {
        Client::http1(self.mesh.app("client"), self.shop).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut client = self.client().await?;
        client.send(Method::GET, path, headers, empty()).await
    }

    /// Requests of several clients at once, so that every endpoint is asked.
    async fn burst(&self, method: Method, count: usize, length: usize) -> Result<Vec<StatusCode>> {
        const CLIENTS: usize = 4;
        let clients = (0..CLIENTS).map(|_| async {
            let mut client = self.client().await?;
            let mut statuses = Vec::new();
            for _ in 0..count / CLIENTS {
                let body = full(vec![b'x'; length]);
                let body = if length == 0 { empty() } else { body };
                let answer = client.send(method.clone(), "/", &[], body).await?;
                statuses.push(answer.status);
            }
            anyhow::Ok(statuses)
        });
        Ok(futures_util::future::try_join_all(clients).await?.concat())
    }

    fn asked(&self) -> u64 {
        self.one.asked() + self.two.asked()
    }

    /// Both answer at once and well.
    fn calm(&self) {
        for server in [&self.one, &self.two].into_iter().chain(&self.grpc) {
            server.turn(200);
            server.turn_grpc(0);
            server.turn_slow(Duration::ZERO, Duration::ZERO);
            server.say(&[]);
        }
    }

    fn count(&self, metric: &str, label: &str) -> u64 {
        let labels = [
            "workload=\"client\"".to_owned(),
            "service=\"default/shop\"".to_owned(),
            label.to_owned(),
        ];
        self.mesh.count("client", metric, &labels)
    }

    fn retries(&self, result: &str) -> u64 {
        self.count("duet_retries_total", &format!("result=\"{result}\""))
    }

    fn timeouts(&self, kind: &str) -> u64 {
        self.count("duet_timeouts_total", &format!("kind=\"{kind}\""))
    }

    /// The shop's further lines in the description, and the client's proxy knows them.
    async fn describe(&self, more: &str) -> Result<()> {
        self.calm();
        let name = "    name: \"shop\"\n";
        ensure!(self.truth.contains(name), "{}", self.truth);
        let text = self.truth.replace(name, &format!("{name}{more}"));
        self.mesh.describe(&text, &["client"]).await
    }

    async fn retried_get(&self) -> Result<()> {
        self.describe(STAY).await?;
        self.one.turn(503);
        let failed = errors(&self.burst(Method::GET, 100, 0).await?);
        ensure!(failed > 0, "without retries a failure is seen");

        self.describe(&format!("{STAY}{MANY}    retry: {{ attempts: 2 }}\n"))
            .await?;
        self.one.turn(503);
        let before = self.one.asked();
        let statuses = self.burst(Method::GET, 100, 0).await?;
        ensure!(errors(&statuses) == 0, "{statuses:?}");
        ensure!(self.one.asked() > before, "nothing was to be tried again");
        let [retried, succeeded] = ["retried", "succeeded"].map(|result| self.retries(result));
        ensure!(
            succeeded > 0 && retried >= succeeded,
            "{succeeded} of {retried}"
        );
        Ok(())
    }

    async fn post_is_not(&self) -> Result<()> {
        self.describe(&format!("{STAY}{MANY}    retry: {{ attempts: 2 }}\n"))
            .await?;
        self.one.turn(503);
        let (before, deadline) = (self.asked(), Instant::now() + PATIENCE);
        let (mut failed, mut sent) = (0, 0);
        while failed == 0 {
            ensure!(Instant::now() < deadline, "nothing fails");
            let statuses = self.burst(Method::POST, 20, 10).await?;
            failed += errors(&statuses);
            sent += statuses.len();
        }
        ensure!(self.asked() - before == sent as u64, "a POST came twice");
        Ok(())
    }

    async fn replayed(&self) -> Result<()> {
        let any = format!("{STAY}{MANY}    retry: {{ attempts: 2, methods: any }}\n");
        self.describe(&any).await?;
        self.one.turn(503);
        let before = self.retries("succeeded");
        for _ in 0..5 {
            let statuses = self.burst(Method::POST, 20, 60_000).await?;
            ensure!(errors(&statuses) == 0, "{statuses:?}");
            let last = self.two.last();
            ensure!(last.body == vec![b'x'; 60_000], "{} bytes", last.body.len());
            ensure!(last.headers["content-length"] == "60000");
        }
        ensure!(self.retries("succeeded") > before, "nothing was replayed");

        let (mut failed, deadline) = (0, Instant::now() + PATIENCE);
        // Until each of them was asked: the faster one is asked more.
        while failed == 0 || self.two.last().body.len() != 200_000 {
            ensure!(
                Instant::now() < deadline,
                "{failed} failed: what is too long is replayed, or one is never asked"
            );
            failed += errors(&self.burst(Method::POST, 20, 200_000).await?);
        }
        ensure!(self.two.last().body == vec![b'x'; 200_000]);
        ensure!(self.retries("body_too_long") > 0);
        Ok(())
    }

    async fn budget(&self) -> Result<()> {
        self.describe(&format!(
            "{STAY}    retry: {{ attempts: 3 }}\n    retryBudget: {{ percent: 10, perSecond: 1 }}\n"
        ))
        .await?;
        for server in [&self.one, &self.two] {
            server.turn(503);
        }
        let (before, start) = (self.asked(), Instant::now());
        const REQUESTS: usize = 400;
        let statuses = self.burst(Method::GET, REQUESTS, 0).await?;
        ensure!(errors(&statuses) == REQUESTS);
        let retries = usize::try_from(self.asked() - before)? - REQUESTS;
        // 10 % of them, and ten in each ten seconds that were begun.
        let windows = usize::try_from(start.elapsed().as_secs() / 10)? + 2;
        let most = REQUESTS / 10 + 10 * windows;
        ensure!(
            (5..=most).contains(&retries),
            "{retries} retries, {most} at most"
        );
        ensure!(self.retries("budget_exhausted") > 0);
        Ok(())
    }

    async fn pushed_back(&self) -> Result<()> {
        self.describe(&format!("{STAY}    retry: {{ attempts: 1 }}\n"))
            .await?;
        for server in [&self.one, &self.two] {
            server.turn(503);
            server.say(&[("retry-after", "3600")]);
        }
        let before = self.asked();
        ensure!(self.get("/", &[]).await?.status == StatusCode::SERVICE_UNAVAILABLE);
        ensure!(
            self.asked() == before + 1,
            "the server said not to come again"
        );
        ensure!(self.retries("pushed_back") > 0);
        for server in [&self.one, &self.two] {
            server.say(&[("retry-after", "1")]);
        }
        let start = Instant::now();
        self.get("/", &[]).await?;
        ensure!(self.asked() == before + 3);
        ensure!(
            start.elapsed() >= Duration::from_secs(1),
            "it came too early"
        );
        Ok(())
    }

    async fn request_timeout(&self) -> Result<()> {
        self.describe("    timeouts: { request: 500ms }\n").await?;
        for server in [&self.one, &self.two] {
            server.turn_slow(NEVER, Duration::ZERO);
        }
        let start = Instant::now();
        let answer = self.get("/", &[]).await?;
        let took = start.elapsed();
        ensure!(answer.status == StatusCode::GATEWAY_TIMEOUT, "{answer:?}");
        ensure!(answer.headers.contains_key("duet-proxy-error"));
        ensure!(
            took >= Duration::from_millis(500) && took < PATIENCE,
            "{took:?}"
        );
        ensure!(self.timeouts("request") > 0);
        self.calm();
        ensure!(self.get("/", &[]).await?.status == StatusCode::OK);
        Ok(())
    }

    async fn try_timeout(&self) -> Result<()> {
        self.describe(&format!(
            "{STAY}{MANY}    timeouts: {{ eachTry: 2s }}\n    retry: {{ attempts: 2 }}\n"
        ))
        .await?;
        self.one.turn_slow(NEVER, Duration::ZERO);
        let statuses = self.burst(Method::GET, 12, 0).await?;
        ensure!(errors(&statuses) == 0, "{statuses:?}");
        Ok(())
    }

    /// Half an answer does not look like a whole one.
    async fn body_timeout(&self) -> Result<()> {
        for (said, kind) in [("request: 1s", "request"), ("idle: 1s", "idle")] {
            self.describe(&format!("    timeouts: {{ {said} }}\n"))
                .await?;
            for server in [&self.one, &self.two] {
                server.turn_slow(Duration::ZERO, NEVER);
            }
            let answer = tokio::time::timeout(PATIENCE, self.get("/", &[])).await;
            ensure!(
                answer.context("it lasts")?.is_err(),
                "it looks whole: {kind}"
            );
            ensure!(self.timeouts(kind) > 0);
        }
        Ok(())
    }

    async fn grpc(&self) -> Result<()> {
        let ask = async |timeout: Option<&str>| {
            let mut client = Client::http2(self.mesh.app("client"), self.shop_grpc).await?;
            let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
            headers.extend(timeout.map(|timeout| ("grpc-timeout", timeout)));
            let sent = client.send(Method::POST, "/shop.Cart/Add", &headers, full(NOTHING));
            let answer = tokio::time::timeout(PATIENCE, sent).await??;
            let trailers = answer.trailers.clone().unwrap_or_default();
            let status = answer.headers.get("grpc-status");
            let status = status.or_else(|| trailers.get("grpc-status")).cloned();
            anyhow::Ok(status.context("a status")?.to_str()?.to_owned())
        };
        self.describe("    timeouts: { request: 5m }\n").await?;
        for server in &self.grpc {
            server.turn_slow(NEVER, Duration::ZERO);
        }
        ensure!(ask(Some("500m")).await? == "4", "the client's own time-out");

        self.describe("    timeouts: { request: 1s }\n").await?;
        for server in &self.grpc {
            server.turn_slow(Duration::ZERO, NEVER);
        }
        ensure!(ask(None).await? == "4", "in trailers");

        // Said in the head, as an error is.
        let retry = format!("{STAY}{MANY}    retry: {{ attempts: 2, grpc: [unavailable] }}\n");
        self.describe(&retry).await?;
        let [one, two] = &self.grpc;
        one.say(&[("grpc-status", "14")]);
        let before = one.asked();
        for _ in 0..20 {
            ensure!(ask(None).await? == "0");
        }
        two.say(&[("grpc-status", "14")]);
        ensure!(ask(None).await? == "14");
        ensure!(one.asked() > before);
        Ok(())
    }

    async fn split(&self) -> Result<()> {
        self.describe(
            "    routes:
      - name: canary
        backends:
          - { service: only-one, port: 80, weight: 90 }
          - { service: only-two, port: 80, weight: 10 }
",
        )
        .await?;
        const REQUESTS: u64 = 1000;
        let (one, two) = (self.one.asked(), self.two.asked());
        let statuses = self.burst(Method::GET, 1000, 0).await?;
        ensure!(errors(&statuses) == 0);
        let (one, two) = (self.one.asked() - one, self.two.asked() - two);
        ensure!(one + two == REQUESTS, "{one} and {two}");
        // Five standard deviations of √(1000 · 0.9 · 0.1).
        ensure!((53..=147).contains(&two), "{two} of {REQUESTS}");
        let counted = self.count("duet_route_requests_total", "route=\"canary\"");
        ensure!(counted >= REQUESTS, "{counted}");
        Ok(())
    }

    async fn matches(&self) -> Result<()> {
        self.describe(
            "    routes:
      - name: canary
        match: [{ headers: { x-canary: \"yes\" } }]
        backends: [{ service: only-two, port: 80 }]
      - name: moved
        match: [{ pathPrefix: /old }]
        redirect: { prefix: /new, status: 301 }
      - name: rest
        match: [{ pathPrefix: /api }, { path: / , method: GET }]
        backends: [{ service: only-one, port: 80 }]
      - name: nobody
        match: [{ path: /nobody }]
        backends: [{ service: only-one, port: 80, weight: 0 }]
",
        )
        .await?;
        let (one, two) = (self.one.asked(), self.two.asked());
        for _ in 0..10 {
            ensure!(self.get("/api", &[("x-canary", "no")]).await?.status == StatusCode::OK);
        }
        ensure!((self.one.asked(), self.two.asked()) == (one + 10, two));
        for _ in 0..10 {
            ensure!(self.get("/", &[]).await?.status == StatusCode::OK);
            ensure!(self.get("/x", &[("X-Canary", "yes")]).await?.status == StatusCode::OK);
        }
        ensure!((self.one.asked(), self.two.asked()) == (one + 20, two + 10));

        let moved = self.get("/old/page?q=1", &[]).await?;
        ensure!(moved.status == StatusCode::MOVED_PERMANENTLY, "{moved:?}");
        ensure!(
            moved.headers["location"] == "http://shop.example/new/page?q=1",
            "{moved:?}"
        );

        let before = self.asked();
        let none = self.get("/apis", &[]).await?;
        ensure!(none.status == StatusCode::NOT_FOUND, "{none:?}");
        let nobody = self.get("/nobody", &[]).await?;
        ensure!(
            nobody.status == StatusCode::INTERNAL_SERVER_ERROR,
            "{nobody:?}"
        );
        ensure!(self.asked() == before);
        ensure!(self.count("duet_route_requests_total", "route=\"none\"") > 0);
        Ok(())
    }

    async fn changes(&self) -> Result<()> {
        self.describe(
            "    routes:
      - name: changed
        match: [{ pathPrefix: /api/v1 }]
        requestHeaders: { set: { x-from: route }, remove: [x-secret] }
        responseHeaders: { add: { x-by: route }, remove: [x-inner] }
        rewrite: { prefix: /, host: inner.example }
        backends: [{ service: only-one, port: 80 }]
",
        )
        .await?;
        self.one.say(&[("x-inner", "1"), ("x-kept", "2")]);
        let headers = [("x-from", "client"), ("x-secret", "3")];
        let answer = self.get("/api/v1/cart?id=7", &headers).await?;
        ensure!(answer.status == StatusCode::OK);
        ensure!(answer.headers["x-by"] == "route" && answer.headers["x-kept"] == "2");
        ensure!(!answer.headers.contains_key("x-inner"), "{answer:?}");
        let asked = self.one.last();
        ensure!(asked.uri == "/cart?id=7", "{asked:?}");
        ensure!(asked.headers["host"] == "inner.example", "{asked:?}");
        ensure!(asked.headers["x-from"] == "route", "{asked:?}");
        ensure!(!asked.headers.contains_key("x-secret"), "{asked:?}");
        Ok(())
    }

    /// The original gets its answer from where it was sent, at once and whatever becomes
    /// of the copy.
    async fn mirrored(&self) -> Result<()> {
        let route = |mirror: &str| {
            format!(
                "    routes:
      - name: mirrored
        requestHeaders: {{ set: {{ x-from: route }} }}
        backends: [{{ service: only-one, port: 80 }}]
        mirrors: [{{ service: only-two, port: 80{mirror} }}]
"
            )
        };
        self.describe(&route("")).await?;
        let (before, sent) = ([self.one.asked(), self.two.asked()], self.copies("sent"));
        let mut client = self.client().await?;
        let answer = client.post("/a?b=c", "hello").await?;
        ensure!(answer.status == StatusCode::OK);
        let patience = Instant::now() + PATIENCE;
        while self.copies("sent") == sent {
            ensure!(Instant::now() < patience, "the copy does not arrive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ensure!([self.one.asked(), self.two.asked()] == before.map(|asked| asked + 1));
        for asked in [self.one.last(), self.two.last()] {
            ensure!(asked.uri == "/a?b=c" && asked.body == "hello", "{asked:?}");
            ensure!(asked.headers["x-from"] == "route", "{asked:?}");
            ensure!(asked.headers["content-length"] == "5", "{asked:?}");
        }

        // Too long to be copied, and not for the original.
        let long = self.copies("body_too_long");
        let answer = client.post("/", vec![b'x'; 200_000]).await?;
        ensure!(answer.status == StatusCode::OK && self.one.last().body.len() == 200_000);
        ensure!(self.copies("body_too_long") == long + 1);

        // Whoever gets the copy fails, and then hangs.
        self.two.turn(503);
        ensure!(client.get("/").await?.status == StatusCode::OK);
        self.two.turn_slow(NEVER, Duration::ZERO);
        let start = Instant::now();
        for _ in 0..150 {
            ensure!(client.get("/").await?.status == StatusCode::OK);
        }
        ensure!(start.elapsed() < NEVER, "it waited for the copy");
        ensure!(self.copies("too_many") > 0, "copies are not bounded");

        self.describe(&route(", percent: 0")).await?;
        let before = self.two.asked();
        for _ in 0..50 {
            ensure!(client.get("/").await?.status == StatusCode::OK);
        }
        ensure!(self.two.asked() == before, "none was asked for");
        Ok(())
    }

    fn copies(&self, result: &str) -> u64 {
        let labels = [
            "service=\"default/only-two\"".to_owned(),
            format!("result=\"{result}\""),
        ];
        self.mesh
            .count("client", "duet_mirrored_requests_total", &labels)
    }
}

fn errors(statuses: &[StatusCode]) -> usize {
    let errors = statuses.iter().filter(|status| status.is_server_error());
    errors.count()
}
