//! What becomes of requests when an endpoint fails, and when it has too many of them.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Result, ensure};
use duet_bench::cluster::{Placement, PodSpec, ServiceSpec};
use http::StatusCode;
use mesh::http::Client;
use mesh::moody::Moody;
use mesh::{Checks, Mesh};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const HTTP: u16 = 8080;
const GRPC: u16 = 8081;

/// For what happens within a backoff of a second or two, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// What both servers take. One that was held up once, as a busy machine does, is slower by so
/// small a factor that it is asked again within [`PATIENCE`].
const SERVICE: Duration = Duration::from_millis(20);
/// Requests at the same time, so that the slower of two has its share.
const CROWD: usize = 4;

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let pods = [
        PodSpec::new("client"),
        PodSpec::new("one").node(2),
        PodSpec::new("two").node(2),
    ];
    let shop = ServiceSpec::new("shop")
        .port_as(80, HTTP, "http")
        .port_as(81, GRPC, "grpc")
        .pods(["one", "two"]);
    let lonely = ServiceSpec::new("lonely")
        .port_as(80, HTTP, "http")
        .pods(["one"]);
    let Some(mesh) = Mesh::start(placement, pods, [shop, lonely]) else {
        return;
    };
    let [shop, lonely] = ["shop", "lonely"].map(|name| mesh.cluster.service(name).unwrap());
    mesh.block_on(async {
        let t = Resilience {
            mesh: &mesh,
            truth: mesh.read_mesh_yaml(),
            shop: (shop.v4, 80).into(),
            shop_grpc: (shop.v4, 81).into(),
            lonely: (lonely.v4, 80).into(),
            one: Moody::http1(mesh.app("one"), HTTP),
            two: Moody::http1(mesh.app("two"), HTTP),
            grpc: ["one", "two"].map(|pod| Moody::http2(mesh.app(pod), GRPC)),
        };
        t.take(SERVICE);
        let mut checks = Checks::default();
        checks.run("opened early", t.opened_early()).await;
        checks.run("out and back", t.out_and_back()).await;
        checks.run("gRPC trailers count", t.grpc_out()).await;
        checks.run("none better", t.none_better()).await;
        checks.run("the own zone first", t.near_first()).await;
        checks.run("weights", t.weights()).await;
        checks.run("slow start", t.slow_start()).await;
        checks.run("switched off", t.accrual_off()).await;
        checks.run("rate limited", t.rate_limited()).await;
        checks.run("load is shed", t.shed()).await;
        checks.assert_all_passed();
    });
}

struct Resilience<'a> {
    mesh: &'a Mesh,
    truth: String,
    /// Behind it are `one` and `two`.
    shop: SocketAddr,
    shop_grpc: SocketAddr,
    /// Behind it is `one` alone.
    lonely: SocketAddr,
    one: Moody,
    two: Moody,
    grpc: [Moody; 2],
}

// === impl Resilience ===

impl Resilience<'_> {
    async fn client(&self, to: SocketAddr) -> Result<Client> {
        Client::http1(self.mesh.app("client"), to).await
    }

    /// Statuses of as many requests, one after the other.
    async fn statuses(&self, to: SocketAddr, count: usize) -> Result<Vec<StatusCode>> {
        let mut client = self.client(to).await?;
        let mut statuses = Vec::with_capacity(count);
        for _ in 0..count {
            statuses.push(client.get("/").await?.status);
        }
        Ok(statuses)
    }

    /// As [`Self::statuses`], some at the same time.
    async fn crowd(&self, to: SocketAddr, count: usize) -> Result<Vec<StatusCode>> {
        let clients = (0..CROWD).map(|_| self.statuses(to, count / CROWD));
        Ok(futures_util::future::try_join_all(clients).await?.concat())
    }

    /// How long the two take from now on.
    fn take(&self, time: Duration) {
        for server in [&self.one, &self.two] {
            server.turn_slow(time, Duration::ZERO);
        }
    }

    /// A client may open connections before it has requests for them: bound to one
    /// endpoint, these would fail with it.
    async fn opened_early(&self) -> Result<()> {
        let mut early = self.client(self.shop).await?;
        // Detection has long given up.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = [self.one.asked(), self.two.asked()];
        for _ in 0..40 {
            let status = early.get("/").await?.status;
            ensure!(status == StatusCode::OK, "{status}");
        }
        let after = [self.one.asked(), self.two.asked()];
        ensure!(
            after[0] > before[0] && after[1] > before[1],
            "all went to one endpoint: {before:?}, then {after:?}"
        );
        Ok(())
    }

    fn trips(&self, service: &str) -> u64 {
        let labels = [format!("service=\"default/{service}\"")];
        let metric = "duet_endpoint_trips_total";
        self.mesh.count("client", metric, &labels)
    }

    fn out(&self, service: &str) -> u64 {
        let labels = [
            format!("service=\"default/{service}\""),
            "state=\"out\"".to_owned(),
        ];
        self.mesh.count("client", "duet_endpoints", &labels)
    }

    /// A service's further lines in the description, given time to arrive.
    fn describe(&self, service: &str, more: &str) {
        let name = format!("    name: \"{service}\"\n");
        assert!(self.truth.contains(&name), "{}", self.truth);
        let text = self.truth.replace(&name, &format!("{name}{more}"));
        self.mesh.write_mesh_yaml(&text);
    }

    /// The mesh with the server's limits, and its proxy knows them.
    async fn limit(&self, limits: &str) -> Result<()> {
        let name = "    name: \"one\"\n";
        ensure!(self.truth.contains(name), "{}", self.truth);
        let text = self
            .truth
            .replace(name, &format!("{name}    limits: {limits}\n"));
        self.mesh.describe(&text, &["one"]).await
    }

    /// The mesh with further lines of services and workloads, by name, and the client's proxy
    /// knows them.
    async fn describe_all(&self, more: &[(&str, &str)]) -> Result<()> {
        let mut text = self.truth.clone();
        for (name, lines) in more {
            let name = format!("    name: \"{name}\"\n");
            ensure!(text.contains(&name), "{text}");
            text = text.replace(&name, &format!("{name}{lines}"));
        }
        self.mesh.describe(&text, &["client"]).await
    }

    /// How many of as many requests each of the two gets.
    async fn shares(&self, count: usize) -> Result<[u64; 2]> {
        let asked = || [self.one.asked(), self.two.asked()];
        let before = asked();
        let statuses = self.crowd(self.shop, count).await?;
        ensure!(errors(&statuses) == 0, "{statuses:?}");
        let after = asked();
        Ok([after[0] - before[0], after[1] - before[1]])
    }

    /// Requests stay in the client's zone while its endpoint works, are answered elsewhere
    /// while it does not, and come back.
    async fn near_first(&self) -> Result<()> {
        let distribution = "    trafficDistribution: PreferSameZone\n";
        self.describe_all(&[
            ("client", "    zone: east\n"),
            ("one", "    zone: east\n"),
            ("two", "    zone: west\n"),
            ("shop", distribution),
        ])
        .await?;
        ensure!(self.shares(80).await? == [80, 0]);

        self.one.turn(500);
        let (before, deadline) = (self.trips("shop"), Instant::now() + PATIENCE);
        while self.trips("shop") == before {
            ensure!(Instant::now() < deadline, "it fails, and it is in");
            self.statuses(self.shop, 5).await?;
        }
        let asked = self.two.asked();
        let failed = errors(&self.statuses(self.shop, 100).await?);
        ensure!(failed <= 7, "{failed} of 100 failed, of probations");
        ensure!(self.two.asked() - asked >= 93, "somebody else answered");

        self.one.turn(200);
        let (before, deadline) = (self.one.asked(), Instant::now() + PATIENCE);
        while self.one.asked() < before + 10 {
            ensure!(Instant::now() < deadline, "it does not come back");
            self.statuses(self.shop, 5).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(self.shares(80).await? == [80, 0]);
        self.describe_all(&[]).await
    }

    async fn weights(&self) -> Result<()> {
        // So long that what else the machine does makes little difference.
        self.take(Duration::from_millis(50));
        self.shares(80).await?;
        self.describe_all(&[("one", "    weight: 4\n")]).await?;
        let shares = self.shares(200).await?;
        ensure!(shares[0] > 2 * shares[1] && shares[1] > 0, "{shares:?}");
        self.describe_all(&[]).await
    }

    /// A new endpoint has a tenth of the others' share at first.
    async fn slow_start(&self) -> Result<()> {
        let all = "    workloads: [\"default/one\", \"default/two\"]\n";
        let without = "    workloads: [\"default/one\"]\n";
        ensure!(self.truth.contains(all), "{}", self.truth);
        let slow = |text: &str| {
            let name = "    name: \"shop\"\n";
            text.replace(name, &format!("{name}    slowStart: 1h\n"))
        };
        let before = slow(&self.truth.replacen(all, without, 1));
        self.mesh.describe(&before, &["client"]).await?;
        ensure!(self.shares(40).await? == [40, 0]);
        self.mesh.describe(&slow(&self.truth), &["client"]).await?;
        let shares = self.shares(200).await?;
        ensure!(shares[0] > 3 * shares[1], "{shares:?}");
        self.take(SERVICE);
        self.describe_all(&[]).await
    }

    fn refused(&self, reason: &str) -> u64 {
        let labels = [
            "workload=\"one\"".to_owned(),
            format!("reason=\"{reason}\""),
        ];
        self.mesh
            .count("one", "duet_requests_refused_total", &labels)
    }

    async fn rate_limited(&self) -> Result<()> {
        self.one.turn(200);
        self.limit("{ requestsPerSecond: 1, burst: 5 }").await?;
        let mut client = self.client(self.lonely).await?;
        let (start, before, mut admitted) = (Instant::now(), self.one.asked(), 0);
        for _ in 0..30 {
            let answer = client.get("/").await?;
            if answer.status == StatusCode::OK {
                admitted += 1;
                continue;
            }
            ensure!(answer.status == StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
            ensure!(answer.headers["retry-after"] == "1", "{answer:?}");
        }
        let most = 5 + start.elapsed().as_secs() + 1;
        ensure!((5..=most).contains(&admitted), "{admitted} of {most}");
        ensure!(self.one.asked() - before == admitted);
        ensure!(self.refused("rate_limited") > 0);
        ensure!(self.out("lonely") == 0, "who refuses is not out of order");

        let to = self.mesh.app("one").at(GRPC);
        let mut client = Client::http2(self.mesh.app("client"), to).await?;
        let mut refused = 0;
        for _ in 0..20 {
            let headers = [("content-type", "application/grpc"), ("te", "trailers")];
            let body = mesh::http::full(b"\0\0\0\0\0".as_slice());
            let answer = client
                .send(http::Method::POST, "/shop.Cart/Add", &headers, body)
                .await?;
            let status = answer.headers.get("grpc-status");
            refused += usize::from(status.is_some_and(|status| status == "8"));
        }
        ensure!(refused > 0, "gRPC has no limit");
        Ok(())
    }

    async fn shed(&self) -> Result<()> {
        self.limit("{ inFlight: 2 }").await?;
        self.one.turn_slow(Duration::from_secs(5), Duration::ZERO);
        let requests = (0..8).map(|_| async {
            let mut client = self.client(self.lonely).await?;
            client.get("/").await
        });
        let answers = futures_util::future::try_join_all(requests).await?;
        let shed: Vec<_> = answers
            .iter()
            .filter(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE)
            .collect();
        let served = answers
            .iter()
            .filter(|answer| answer.status == StatusCode::OK);
        let served = served.count();
        // Two at once, and two more if some came only after these.
        ensure!((2..=4).contains(&served), "{served} were served");
        ensure!(shed.len() + served == answers.len(), "{answers:?}");
        for answer in shed {
            ensure!(
                answer.headers.contains_key("duet-proxy-error"),
                "{answer:?}"
            );
        }
        ensure!(self.refused("overloaded") > 0);
        self.one.turn_slow(Duration::ZERO, Duration::ZERO);
        // What has ended makes room.
        ensure!(
            self.statuses(self.lonely, 10)
                .await?
                .iter()
                .all(StatusCode::is_success)
        );
        self.mesh.write_mesh_yaml(&self.truth);
        Ok(())
    }

    async fn out_and_back(&self) -> Result<()> {
        self.one.turn(500);
        let deadline = Instant::now() + PATIENCE;
        let mut failed = 0;
        while self.trips("shop") == 0 {
            // A slow start may keep it from being asked for a while.
            ensure!(Instant::now() < deadline, "{failed} failed, and it is in");
            failed += errors(&self.crowd(self.shop, 12).await?);
        }
        ensure!(
            (7..=18).contains(&failed),
            "{failed} failed before it was out"
        );
        let failed = errors(&self.crowd(self.shop, 100).await?);
        ensure!(failed <= 7, "{failed} of 100 failed, of probations");
        ensure!(self.two.asked() >= 93, "somebody else answered");

        self.one.turn(200);
        let deadline = Instant::now() + PATIENCE;
        let before = self.one.asked();
        while self.one.asked() < before + 10 {
            ensure!(Instant::now() < deadline, "it does not come back");
            let statuses = self.crowd(self.shop, 12).await?;
            ensure!(statuses.iter().all(StatusCode::is_success), "{statuses:?}");
        }
        ensure!(self.out("shop") == 0, "it is back, and said to be out");
        Ok(())
    }

    async fn grpc_out(&self) -> Result<()> {
        let [one, two] = &self.grpc;
        let app = self.mesh.app("client");
        let mut client = Client::http2(app, self.shop_grpc).await?;
        let (before, deadline) = (self.trips("shop"), Instant::now() + PATIENCE);
        one.turn_grpc(13);
        let mut failed = 0;
        while self.trips("shop") == before {
            ensure!(Instant::now() < deadline, "{failed} failed, and it is in");
            for _ in 0..10 {
                let headers = [("content-type", "application/grpc"), ("te", "trailers")];
                let body = mesh::http::full(b"\0\0\0\0\0".as_slice());
                let answer = client
                    .send(http::Method::POST, "/shop.Cart/Add", &headers, body)
                    .await?;
                let trailers = answer.trailers.unwrap_or_default();
                failed += usize::from(trailers["grpc-status"] == "13");
            }
        }
        ensure!(
            (7..=14).contains(&failed),
            "{failed} failed before it was out"
        );
        ensure!(two.asked() > 0);
        one.turn_grpc(0);
        Ok(())
    }

    /// The application's own answers are not turned into the proxy's.
    async fn none_better(&self) -> Result<()> {
        self.one.turn(500);
        let before = self.one.asked();
        let mut client = self.client(self.lonely).await?;
        for _ in 0..50 {
            let answer = client.get("/").await?;
            ensure!(answer.status == StatusCode::INTERNAL_SERVER_ERROR);
            ensure!(answer.body == "moody", "{answer:?}");
        }
        ensure!(self.one.asked() == before + 50);
        self.one.turn(200);
        let statuses = self.statuses(self.lonely, 10).await?;
        ensure!(statuses.iter().all(StatusCode::is_success), "{statuses:?}");
        Ok(())
    }

    async fn accrual_off(&self) -> Result<()> {
        self.describe("shop", "    failureAccrual: { off: true }\n");
        // It has arrived when the endpoint that fails goes on being asked.
        self.one.turn(500);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if errors(&self.crowd(self.shop, 100).await?) > 20 {
                break;
            }
            ensure!(Instant::now() < deadline, "it is still taken out");
        }
        ensure!(self.out("shop") == 0);
        self.one.turn(200);
        self.mesh.write_mesh_yaml(&self.truth);
        Ok(())
    }
}

fn errors(statuses: &[StatusCode]) -> usize {
    let errors = statuses.iter().filter(|status| status.is_server_error());
    errors.count()
}
