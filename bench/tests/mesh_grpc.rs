//! gRPC by the client and server that Rust has: every kind of call, while the endpoints
//! behind the service come and go.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context as _, Result, ensure};
use duet_bench::cluster::{Placement, PodSpec, ServiceSpec};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use mesh::app::App;
use mesh::{Checks, Mesh};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::server::{
    ClientStreamingService, NamedService, ServerStreamingService, StreamingService, UnaryService,
};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const GRPC: u16 = 50051;
/// What a call takes at most.
const DEADLINE: Duration = Duration::from_secs(20);

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let shop = ServiceSpec::new("shop")
        .port_as(80, GRPC, "grpc")
        .pods(["one", "two", "three"]);
    let pods = [
        PodSpec::new("client"),
        PodSpec::new("one").node(2),
        PodSpec::new("two").node(2),
        PodSpec::new("three"),
    ];
    let Some(mesh) = Mesh::start(placement, pods, [shop]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let servers = ["one", "two", "three"].map(|pod| Served::start(mesh.app(pod)));
        let calls = Calls {
            mesh: &mesh,
            shop: (shop.v4, 80).into(),
            servers,
        };
        let mut checks = Checks::default();
        checks.run("every kind of call", calls.kinds()).await;
        checks.run("errors and metadata", calls.errors()).await;
        checks.run("deadlines", calls.deadlines()).await;
        checks.run("counted by status", calls.counted()).await;
        checks.run("endpoints come and go", calls.churn()).await;
        checks.assert_all_passed();
    });
}

struct Calls<'a> {
    mesh: &'a Mesh,
    shop: SocketAddr,
    servers: [Served; 3],
}

// === impl Calls ===

impl Calls<'_> {
    async fn client(&self) -> Result<Client> {
        Client::connect(self.mesh.app("client"), self.shop).await
    }

    async fn kinds(&self) -> Result<()> {
        self.client().await?.every_kind(50).await
    }

    /// A status comes with what the server says beside it.
    async fn errors(&self) -> Result<()> {
        let mut client = self.client().await?;
        for n in [0, 1] {
            // Before the first message, and behind some.
            let refused = match client.count(REFUSED + n).await {
                Err(status) => status,
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => anyhow::bail!("it ended well"),
                        Err(status) => break status,
                    }
                },
            };
            ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
            ensure!(refused.message() == "not for you, 100 %", "{refused:?}");
            let why = refused.metadata().get_bin("why-bin").context("metadata")?;
            ensure!(why.to_bytes()? == [0, 1, 255].as_slice());
        }
        let unknown = client.call("/shop.Till/Unknown", 1).await;
        ensure!(unknown.is_err_and(|status| status.code() == Code::Unimplemented));
        Ok(())
    }

    /// The server hears that nobody waits for it any more.
    async fn deadlines(&self) -> Result<()> {
        let mut client = self.client().await?;
        let (start, before) = (Instant::now(), self.given_up());
        let mut request = Request::new(1);
        request.set_timeout(Duration::from_millis(300));
        let late = client.unary("/shop.Till/Sleep", request).await;
        let late = late.err().context("it was in time")?;
        ensure!(
            matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
            "{late:?}"
        );
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        let patience = Instant::now() + Duration::from_secs(5);
        while self.given_up() == before {
            ensure!(Instant::now() < patience, "the server goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn given_up(&self) -> u64 {
        let all = self.servers.iter();
        all.map(|one| one.given_up.load(Ordering::Relaxed)).sum()
    }

    /// What a call ends with is counted by both proxies, wherever it is said, and also that
    /// nobody waited for it.
    async fn counted(&self) -> Result<()> {
        let told = |before: &[[u64; 4]; 2]| {
            let now = self.statuses();
            [0, 1].map(|way| [0, 1, 2, 3].map(|n| now[way][n] - before[way][n]))
        };
        let before = self.statuses();
        self.kinds().await?;
        self.errors().await?;
        ensure!(told(&before) == [[4, 2, 1, 0]; 2], "{:?}", told(&before));
        let mut client = self.client().await?;
        let mut stream = client.count(REFUSED - 1).await?;
        ensure!(stream.message().await? == Some(0));
        drop(stream);
        let patience = Instant::now() + Duration::from_secs(5);
        while told(&before) != [[4, 2, 1, 1]; 2] {
            ensure!(Instant::now() < patience, "{:?}", told(&before));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Responses with OK, FAILED_PRECONDITION, UNIMPLEMENTED and none: the client's proxy's,
    /// and the servers'.
    fn statuses(&self) -> [[u64; 4]; 2] {
        let count = |pod: &str, direction: &str, status: &str| {
            let labels = [
                format!("direction=\"{direction}\""),
                format!("workload=\"{pod}\""),
                format!("grpc_status=\"{status}\""),
            ];
            self.mesh.count(pod, "duet_grpc_responses_total", &labels)
        };
        let all = ["0", "9", "12", "none"];
        let inbound = |status| {
            let servers = ["one", "two", "three"].into_iter();
            servers.map(|pod| count(pod, "inbound", status)).sum()
        };
        [
            all.map(|status| count("client", "outbound", status)),
            all.map(inbound),
        ]
    }

    /// Not one call fails.
    async fn churn(&self) -> Result<()> {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let before = self.answered();
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (stop, done) = (stop.clone(), done.clone());
                let (app, to) = (self.mesh.app("client").clone(), self.shop);
                tokio::spawn(async move {
                    let mut client = Client::connect(&app, to).await?;
                    while !stop.load(Ordering::Relaxed) {
                        client.every_kind(5).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let sets: [&[&str]; 5] = [
            &["one"],
            &["two", "three"],
            &["three"],
            &["one", "three"],
            &["one", "two"],
        ];
        for round in 0..4 {
            for set in sets {
                tokio::task::block_in_place(|| self.mesh.cluster.set_service_pods("shop", set))?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            ensure!(done.load(Ordering::Relaxed) > round, "nothing gets done");
        }
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.await?.context("a call failed")?;
        }
        let all = ["one", "two", "three"];
        self.mesh.cluster.set_service_pods("shop", &all)?;
        for (before, now) in before.iter().zip(self.answered()) {
            ensure!(
                now > *before,
                "one of them was never asked: {:?}",
                self.answered()
            );
        }
        Ok(())
    }

    fn answered(&self) -> [u64; 3] {
        [0, 1, 2].map(|n: usize| self.servers[n].answered.load(Ordering::Relaxed))
    }
}

struct Client(Grpc<Channel>);

type Codec = ProstCodec<u64, u64>;

/// As many messages are refused.
const REFUSED: u64 = 1_000_000;

// === impl Client ===

impl Client {
    async fn connect(app: &Arc<App>, to: SocketAddr) -> Result<Self> {
        let app = app.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let app = app.clone();
            async move { app.connect(to).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://shop.example");
        Ok(Self(Grpc::new(
            endpoint.connect_with_connector(connector).await?,
        )))
    }

    async fn every_kind(&mut self, count: u64) -> Result<()> {
        let twice = self.call("/shop.Till/Double", count).await?;
        ensure!(twice == 2 * count);
        let counted = self.count(count).await?;
        let counted: Vec<_> = counted.map(|n| n.unwrap_or(u64::MAX)).collect().await;
        ensure!(counted == Vec::from_iter(0..count), "{counted:?}");

        self.0.ready().await?;
        let path = PathAndQuery::from_static("/shop.Till/Sum");
        let numbers = within(slowly(0..count));
        let sum = self
            .0
            .client_streaming(numbers, path, Codec::default())
            .await?;
        ensure!(sum.into_inner() == (0..count).sum::<u64>());

        self.0.ready().await?;
        let path = PathAndQuery::from_static("/shop.Till/Echo");
        let numbers = within(slowly(0..count));
        let echo = self.0.streaming(numbers, path, Codec::default()).await?;
        let mut echo = echo.into_inner();
        for n in 0..count {
            ensure!(echo.message().await? == Some(n));
        }
        ensure!(echo.message().await?.is_none());
        let trailers = echo.trailers().await?.context("trailers")?;
        ensure!(trailers.get("echoed").context("echoed")? == &count.to_string());
        Ok(())
    }

    async fn call(&mut self, path: &'static str, n: u64) -> Result<u64, Status> {
        self.unary(path, within(n)).await
    }

    async fn unary(&mut self, path: &'static str, request: Request<u64>) -> Result<u64, Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        let answer = self.0.unary(request, path, Codec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn count(&mut self, to: u64) -> Result<Streaming<u64>, Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/shop.Till/Count");
        let answer = self
            .0
            .server_streaming(within(to), path, Codec::default())
            .await?;
        Ok(answer.into_inner())
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// One after the other, so that a stream lasts.
fn slowly(numbers: std::ops::Range<u64>) -> impl Stream<Item = u64> + Send + 'static {
    stream::iter(numbers).then(|n| async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        n
    })
}

/// A server, and what it has done.
struct Served {
    answered: Arc<AtomicU64>,
    given_up: Arc<AtomicU64>,
}

// === impl Served ===

impl Served {
    fn start(app: &App) -> Self {
        let till = Till::default();
        let served = Self {
            answered: till.answered.clone(),
            given_up: till.given_up.clone(),
        };
        let connections = TcpListenerStream::new(app.listen(GRPC));
        tokio::spawn(
            Server::builder()
                .add_service(till)
                .serve_with_incoming(connections),
        );
        served
    }
}

#[derive(Clone, Default)]
struct Till {
    answered: Arc<AtomicU64>,
    given_up: Arc<AtomicU64>,
}

type Numbers = Pin<Box<dyn Stream<Item = Result<u64, Status>> + Send>>;
type Answer<T> = BoxFuture<'static, Result<Response<T>, Status>>;

fn refused() -> Status {
    let mut status = Status::failed_precondition("not for you, 100 %");
    let why = MetadataValue::from_bytes(&[0, 1, 255]);
    status.metadata_mut().insert_bin("why-bin", why);
    status
}

/// Counts the calls that nobody waits for any more.
struct GivenUp(Option<Arc<AtomicU64>>);

impl GivenUp {
    fn is_over(&mut self) {
        self.0 = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Double;

impl UnaryService<u64> for Double {
    type Response = u64;
    type Future = Answer<u64>;

    fn call(&mut self, request: Request<u64>) -> Self::Future {
        async move { Ok(Response::new(2 * request.into_inner())) }.boxed()
    }
}

struct Sleep(Arc<AtomicU64>);

impl UnaryService<u64> for Sleep {
    type Response = u64;
    type Future = Answer<u64>;

    fn call(&mut self, request: Request<u64>) -> Self::Future {
        let mut waiting = GivenUp(Some(self.0.clone()));
        async move {
            tokio::time::sleep(DEADLINE).await;
            waiting.is_over();
            Ok(Response::new(request.into_inner()))
        }
        .boxed()
    }
}

struct Count;

impl ServerStreamingService<u64> for Count {
    type Response = u64;
    type ResponseStream = Numbers;
    type Future = Answer<Numbers>;

    fn call(&mut self, request: Request<u64>) -> Self::Future {
        let to = request.into_inner();
        async move {
            match to {
                REFUSED => Err(refused()),
                to if to > REFUSED => {
                    let some = stream::iter([Ok(1), Ok(2), Err(refused())]);
                    Ok(Response::new(some.boxed()))
                }
                to => Ok(Response::new(slowly(0..to).map(Ok).boxed())),
            }
        }
        .boxed()
    }
}

struct Sum;

impl ClientStreamingService<u64> for Sum {
    type Response = u64;
    type Future = Answer<u64>;

    fn call(&mut self, request: Request<Streaming<u64>>) -> Self::Future {
        async move {
            let (mut numbers, mut sum) = (request.into_inner(), 0);
            while let Some(n) = numbers.message().await? {
                sum += n;
            }
            Ok(Response::new(sum))
        }
        .boxed()
    }
}

/// Gives everything back, and says in the end how many they were.
struct Echo;

impl StreamingService<u64> for Echo {
    type Response = u64;
    type ResponseStream = Numbers;
    type Future = Answer<Numbers>;

    fn call(&mut self, request: Request<Streaming<u64>>) -> Self::Future {
        let echoed = stream::unfold(
            (Some(request.into_inner()), 0),
            |(numbers, count)| async move {
                let mut numbers = numbers?;
                match numbers.message().await {
                    Ok(Some(n)) => Some((Ok(n), (Some(numbers), count + 1))),
                    Ok(None) => {
                        let mut told = Status::ok("");
                        let count = MetadataValue::from(count);
                        told.metadata_mut().insert("echoed", count);
                        Some((Err(told), (None, 0)))
                    }
                    Err(status) => Some((Err(status), (None, 0))),
                }
            },
        );
        async move { Ok(Response::new(echoed.boxed())) }.boxed()
    }
}

impl NamedService for Till {
    const NAME: &'static str = "shop.Till";
}

impl tower::Service<http::Request<Body>> for Till {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let till = self.clone();
        async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            till.answered.fetch_add(1, Ordering::Relaxed);
            Ok(match request.uri().path() {
                "/shop.Till/Double" => grpc.unary(Double, request).await,
                "/shop.Till/Sleep" => grpc.unary(Sleep(till.given_up), request).await,
                "/shop.Till/Count" => grpc.server_streaming(Count, request).await,
                "/shop.Till/Sum" => grpc.client_streaming(Sum, request).await,
                "/shop.Till/Echo" => grpc.streaming(Echo, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        }
        .boxed()
    }
}
