//! The mutating webhook: HTTPS, from the API server, for each pod that is created.
//!
//! The certificate is the mesh's: signed by its root for the name of the Service,
//! made anew by each replica at each start and never stored. Nothing that is asked
//! here has an effect on anything, so whoever reaches the port may ask; what a caller
//! can use up is bounded.
//!
//! While it is down no pod of a meshed namespace is created. So a replica that was
//! told to stop goes on answering until the API server has heard of it.

mod ca_bundle;
mod metrics;
mod namespaces;
mod review;
mod room;

pub use ca_bundle::{WEBHOOK_CONFIGURATION, keep_ca_bundle};
pub use metrics::InjectorMetrics;

use super::decision::Injector;
use super::kubernetes::KubernetesVersion;
use crate::ca::CaError;
use crate::tls::{self, ServerCertificate};
use crate::trust::Trust;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Client;
use namespaces::Namespaces;
use review::{NoAnswer, Reviewer};
use room::{Room, Share};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// The Service that the API server calls.
pub const SERVICE: &str = "duet-injector";
/// Where it asks about pods of labelled namespaces.
pub const PATH_BY_NAMESPACE: &str = "/inject/by-namespace";
/// Where it asks about labelled pods.
pub const PATH_BY_POD: &str = "/inject/by-pod";

/// A review holds a pod, and etcd takes none of more than 1.5 MiB.
pub const MAX_REVIEW_BYTES: usize = 2 * 1024 * 1024;
/// A client that has not sent its request's body by then is let go.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests at the same time on one connection.
pub const MAX_STREAMS: u32 = 64;
/// A request is answered by then, with an error if need be. Less than the webhook's
/// `timeoutSeconds`, so that the error is read.
pub const DEADLINE: Duration = Duration::from_secs(4);
/// How often a quiet connection of HTTP/2 is asked whether its client still lives, and
/// how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection without a request is closed then. Later than API servers close it
/// (90 s): otherwise one might send a request just then, and a pod be refused.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long after being told to stop connections are still taken: until then the API
/// server may not have heard that this replica goes.
pub const LINGER: Duration = Duration::from_secs(3);
/// How long requests under way may take to end after that.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How often the API server is asked for its version, and after a failure.
const VERSION_PERIOD: Duration = Duration::from_secs(600);
const VERSION_RETRY: Duration = Duration::from_secs(10);

/// What a webhook is told.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// Where it is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The namespace of its Service, which is Duet's own.
    pub namespace: String,
    /// How long its certificate is valid.
    pub cert_lifetime: Duration,
    pub injector: Injector,
}

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("the injector's own certificate: {0}")]
    Certificate(#[from] CaError),
    #[error("--injector {address}: {error}: choose an address of this machine with a free port")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
}

/// A webhook that serves. Dropping it stops it at once; [`Self::stop`] lets requests
/// end.
pub struct Webhook {
    addr: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
}

/// What each connection needs.
#[derive(Clone)]
struct Server {
    reviewer: Arc<Reviewer>,
    room: Arc<Room>,
    metrics: InjectorMetrics,
    /// Whether this replica was told to stop.
    shutdown: CancellationToken,
}

// === impl Webhook ===

impl Webhook {
    /// Serves when it returns.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the namespace is no name.
    pub async fn start(
        mut settings: WebhookSettings,
        client: Client,
        trust: Trust,
        metrics: InjectorMetrics,
    ) -> Result<Self, WebhookError> {
        let name = format!("{SERVICE}.{}.svc", settings.namespace);
        settings.injector.config.namespace = settings.namespace;
        let certificate = ServerCertificate::issue(&trust.current(), name, settings.cert_lifetime)?;
        let address = settings.listen;
        let failed = |error| WebhookError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;

        let (namespaces, watch_namespaces) = Namespaces::watch(client.clone());
        let (version, kubernetes) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let server = Server {
            reviewer: Arc::new(Reviewer {
                injector: settings.injector,
                namespaces,
                kubernetes,
            }),
            room: Room::new(),
            metrics,
            shutdown: shutdown.clone(),
        };
        info!(injector = %addr, "the injector serves");
        Ok(Self {
            addr,
            server: tokio::spawn(serve(listener, acceptor(certificate.clone()), server)),
            background: vec![
                tokio::spawn(watch_namespaces),
                tokio::spawn(watch_version(client, version)),
                tokio::spawn(certificate.keep_renewed(trust)),
            ],
            shutdown,
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Goes on for [`LINGER`], then takes no more connections and lets requests end.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let patience = LINGER + SHUTDOWN_GRACE;
        if tokio::time::timeout(patience, &mut self.server)
            .await
            .is_err()
        {
            warn!("reviews were still under way after {patience:?}");
        }
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.server.abort();
        for task in &self.background {
            task.abort();
        }
    }
}

fn acceptor(certificate: Arc<ServerCertificate>) -> TlsAcceptor {
    let mut config = rustls::ServerConfig::clone(certificate.acceptor().config());
    // Which is what API servers speak with webhooks.
    config.alpn_protocols.push(b"http/1.1".to_vec());
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, server: Server) {
    let closing = CancellationToken::new();
    let mut connections = tls::accept(listener, acceptor, closing.clone());
    let open = TaskTracker::new();
    let last_call = async {
        server.shutdown.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::pin!(last_call);
    loop {
        let stream = tokio::select! {
            Some(Ok(stream)) = connections.recv() => stream,
            () = &mut last_call => break,
        };
        let peer = stream.get_ref().0.peer_addr();
        let Some(share) = peer.ok().and_then(|peer| server.room.enter(peer.ip())) else {
            debug!("a connection is closed: there are too many");
            continue;
        };
        let (server, closing) = (server.clone(), closing.clone());
        open.spawn(async move {
            if let Err(error) = server.serve(stream, &share, &closing).await {
                debug!("a connection of the API server ended: {error}");
            }
        });
    }
    closing.cancel();
    open.close();
    open.wait().await;
}

/// Never returns.
async fn watch_version(client: Client, version: watch::Sender<Option<KubernetesVersion>>) {
    loop {
        let answer = tokio::time::timeout(DEADLINE, client.apiserver_version()).await;
        let pause = match answer {
            Ok(Ok(info)) => {
                let now = KubernetesVersion::parse(&info.major, &info.minor);
                if let Some(now) = now
                    && version.send_replace(Some(now)) != Some(now)
                    && !now.has_native_sidecars()
                {
                    warn!(
                        "the API server is Kubernetes {now}: sidecars need 1.29, and pods with \
                           duet.dev/mode: sidecar are refused"
                    );
                }
                VERSION_PERIOD
            }
            Ok(Err(error)) => {
                warn!("the API server's version is not known: {error}");
                VERSION_RETRY
            }
            Err(_) => VERSION_RETRY,
        };
        tokio::time::sleep(pause).await;
    }
}

// === impl Server ===

impl Server {
    async fn serve(
        self,
        stream: TlsStream<TcpStream>,
        share: &Arc<Share>,
        closing: &CancellationToken,
    ) -> Result<(), hyper::Error> {
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        let service = service_fn(|request| {
            let (server, share) = (self.clone(), share.clone());
            async move {
                let version = request.version();
                let mut response = server.answer(request, &share).await;
                if version == Version::HTTP_11 && server.shutdown.is_cancelled() {
                    // The next request goes to another replica, and none meets a
                    // connection that is just being closed.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        // Both builders' connections are of types of their own.
        macro_rules! to_its_end {
            ($connection:expr) => {{
                let mut connection = std::pin::pin!($connection);
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
                }
                connection.await
            }};
        }
        if is_h2 {
            to_its_end!(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                    .max_concurrent_streams(MAX_STREAMS)
                    .serve_connection(stream, service)
            )
        } else {
            to_its_end!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(IDLE_TIMEOUT)
                    .serve_connection(stream, service)
            )
        }
    }

    async fn answer(&self, request: Request<Incoming>, share: &Share) -> Response<Full<Bytes>> {
        let by_namespace = match request.uri().path() {
            PATH_BY_NAMESPACE => true,
            PATH_BY_POD => false,
            _ => {
                let instead = format!("try {PATH_BY_NAMESPACE} or {PATH_BY_POD}\n");
                return text(StatusCode::NOT_FOUND, instead);
            }
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview\n");
        }
        let began = Instant::now();
        let answer =
            tokio::time::timeout(DEADLINE, self.review(request, by_namespace, share)).await;
        let (decision, response) = answer.unwrap_or_else(|_| {
            let problem = format!("no decision in {DEADLINE:?}\n");
            ("error", text(StatusCode::GATEWAY_TIMEOUT, problem))
        });
        self.metrics.duration.observe(began.elapsed().as_secs_f64());
        self.metrics.requests.with_label_values(&[decision]).inc();
        response
    }

    async fn review(
        &self,
        request: Request<Incoming>,
        by_namespace: bool,
        share: &Share,
    ) -> (&'static str, Response<Full<Bytes>>) {
        let _reading = share.read().await;
        let body = Limited::new(request.into_body(), MAX_REVIEW_BYTES).collect();
        let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Err(_) => {
                let problem = format!("the body did not come in {BODY_TIMEOUT:?}\n");
                return ("error", text(StatusCode::REQUEST_TIMEOUT, problem));
            }
            Ok(Err(error)) => {
                let status = if error.is::<http_body_util::LengthLimitError>() {
                    StatusCode::PAYLOAD_TOO_LARGE
                } else {
                    StatusCode::BAD_REQUEST
                };
                return ("error", text(status, format!("the body: {error}\n")));
            }
        };
        let _deciding = share.decide().await;
        match self.reviewer.review(&body, by_namespace).await {
            Ok(answer) => {
                let mut response = Response::new(Full::new(answer.body.into()));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                (answer.decision, response)
            }
            Err(error) => {
                warn!("a review was not answered: {error}");
                let status = match error {
                    NoAnswer::Request(_) => StatusCode::BAD_REQUEST,
                    NoAnswer::Namespace(_) => StatusCode::SERVICE_UNAVAILABLE,
                    NoAnswer::Response(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                ("error", text(status, format!("{error}\n")))
            }
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
