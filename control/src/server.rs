//! The running control plane: source, authority and API put together.
//!
//! It starts in steps, because with Kubernetes each may have to wait: [`prepare`]
//! takes the ports and says on /ready what is missing, [`Prepared::follow`] waits for
//! the mesh, [`Prepared::serve`] begins to answer proxies.
//!
//! [`prepare`]: ControlPlane::prepare

use crate::auth::Authenticator;
use crate::ca::CaError;
use crate::discovery::{DiscoveryServer, DiscoveryService};
use crate::enrolment::{EnrolmentService, Enrolments};
use crate::health;
use crate::identity::IdentityService;
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::source::{Rejected, Source, States, follow};
use crate::tls::{self, SERVER_NAME, ServerCertificate};
use crate::trust::Trust;
use duet_core::api::enrolment_server::EnrolmentServer;
use duet_core::api::identity_server::IdentityServer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

/// How often a quiet connection is asked whether its proxy still lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the answer may take; then the connection is dropped.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy needs one stream to watch and one for each certificate under way; an
/// agent asks for those of its whole node at once.
pub const MAX_STREAMS: u32 = 256;
/// A request holds a name and a CSR.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// How long open calls may take to end after SIGTERM.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What a control plane is told besides its source.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where /ready, /live and /metrics are served.
    pub health: SocketAddr,
    /// How long workload certificates are valid.
    pub cert_lifetime: Duration,
    /// What becomes of agents' reports.
    pub enrolments: Enrolments,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The description of the mesh cannot be used.
    #[error(transparent)]
    Source(#[from] Rejected),
    #[error("duet-control's own certificate: {0}")]
    Certificate(#[from] CaError),
    #[error("{flag} {address}: {error}: choose an address of this machine with a free port")]
    Listen {
        flag: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
}

/// A control plane that serves. Dropping it stops it at once; [`Self::stop`] lets
/// open calls end.
pub struct ControlPlane {
    api_addr: SocketAddr,
    health_addr: SocketAddr,
    shutdown: CancellationToken,
    api: JoinHandle<Result<(), tonic::transport::Error>>,
    _background: Background,
}

/// A control plane that has its ports and does not answer proxies yet. Dropping it
/// gives the ports back.
pub struct Prepared {
    settings: Settings,
    metrics: Metrics,
    readiness: Readiness,
    listener: TcpListener,
    api_addr: SocketAddr,
    health_addr: SocketAddr,
    shutdown: CancellationToken,
    background: Background,
}

/// Tasks that end with whoever holds them.
#[derive(Default)]
struct Background(Vec<JoinHandle<()>>);

/// What /ready names until proxies are answered.
const API: &str = "api";

// === impl Prepared ===

impl Prepared {
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub fn health_addr(&self) -> SocketAddr {
        self.health_addr
    }

    /// Cancelled when the control plane stops.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Waits until the source has something, and follows it from then on.
    ///
    /// # Errors
    /// When what it has cannot be used.
    pub async fn follow(&self, source: impl Source) -> Result<States, StartError> {
        Ok(follow(source, self.metrics.clone(), &self.readiness).await?)
    }

    /// Ready when it returns.
    ///
    /// # Errors
    /// When duet-control cannot make a certificate for itself.
    pub fn serve(
        mut self,
        states: States,
        trust: Trust,
        authenticator: Arc<dyn Authenticator>,
    ) -> Result<ControlPlane, StartError> {
        let cert_lifetime = self.settings.cert_lifetime;
        let certificate = ServerCertificate::issue(&trust.current(), SERVER_NAME, cert_lifetime)?;
        let shutdown = self.shutdown.clone();
        let acceptor = certificate.clone().acceptor();
        let connections = tls::accept(self.listener, acceptor, shutdown.clone());
        let identity = IdentityService {
            trust: trust.clone(),
            authenticator: authenticator.clone(),
            states: states.clone(),
            cert_lifetime,
            metrics: self.metrics.clone(),
        };
        let enrolment = EnrolmentService {
            authenticator: authenticator.clone(),
            states: states.clone(),
            enrolments: self.settings.enrolments,
        };
        let discovery = DiscoveryService {
            authenticator,
            states: states.clone(),
            trust: trust.clone(),
            metrics: self.metrics,
            shutdown: shutdown.clone(),
            encodings: Arc::default(),
        };
        let api = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(IdentityServer::new(identity).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(
                EnrolmentServer::new(enrolment).max_decoding_message_size(MAX_REQUEST_BYTES),
            )
            .add_service(DiscoveryServer::new(discovery))
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections),
                shutdown.clone().cancelled_owned(),
            );
        let api = tokio::spawn(api);
        self.background
            .0
            .push(tokio::spawn(certificate.keep_renewed(trust)));
        self.readiness.is_well(API);
        let state = states.borrow().clone();
        info!(
            api = %self.api_addr,
            health = %self.health_addr,
            trust_domain = %state.trust_domain,
            workloads = state.workloads.len(),
            services = state.services.len(),
            core = duet_core::CORE_FINGERPRINT,
            "duet-control serves"
        );
        Ok(ControlPlane {
            api_addr: self.api_addr,
            health_addr: self.health_addr,
            shutdown,
            api,
            _background: self.background,
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Takes the ports, and serves /ready, /live and /metrics.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn prepare(settings: Settings) -> Result<Prepared, StartError> {
        let (listener, api_addr) = listen("--listen", settings.listen).await?;
        let (health_listener, health_addr) = listen("--health", settings.health).await?;
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        readiness.is_missing(API, "proxies are not answered yet");
        let shutdown = CancellationToken::new();
        let health = health::serve(
            health_listener,
            metrics.clone(),
            readiness.clone(),
            shutdown.clone(),
        );
        Ok(Prepared {
            background: Background(vec![tokio::spawn(health)]),
            settings,
            metrics,
            readiness,
            listener,
            api_addr,
            health_addr,
            shutdown,
        })
    }

    /// All steps at once. Ready when it returns.
    ///
    /// # Errors
    /// When the source has nothing usable or an address cannot be listened on.
    pub async fn start(
        settings: Settings,
        trust: impl Into<Trust>,
        authenticator: Arc<dyn Authenticator>,
        source: impl Source,
    ) -> Result<Self, StartError> {
        let prepared = Self::prepare(settings).await?;
        let states = prepared.follow(source).await?;
        prepared.serve(states, trust.into(), authenticator)
    }

    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    pub fn health_addr(&self) -> SocketAddr {
        self.health_addr
    }

    /// Takes no more connections, ends every watch, and waits [`SHUTDOWN_GRACE`]
    /// for calls under way. Proxies keep what they have.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        match tokio::time::timeout(SHUTDOWN_GRACE, &mut self.api).await {
            Ok(Ok(Ok(()))) => info!("duet-control stopped"),
            Ok(Ok(Err(error))) => warn!("the API ended: {error}"),
            Ok(Err(error)) => warn!("the API ended: {error}"),
            Err(_) => warn!("calls were still under way after {SHUTDOWN_GRACE:?}"),
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.api.abort();
    }
}

async fn listen(
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen {
        flag,
        address,
        error,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
