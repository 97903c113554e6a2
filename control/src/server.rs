//! The running control plane: source, authority and API put together.

use crate::auth::Authenticator;
use crate::ca::{Authority, CaError};
use crate::discovery::DiscoveryService;
use crate::health;
use crate::identity::IdentityService;
use crate::metrics::Metrics;
use crate::source::{Rejected, Source, follow};
use crate::tls::{self, ServerCertificate};
use duet_core::api::discovery_server::DiscoveryServer;
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
    background: Vec<JoinHandle<()>>,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Reads the source once, then serves. Ready when it returns.
    ///
    /// # Errors
    /// When the source has nothing usable or an address cannot be listened on.
    pub async fn start(
        settings: Settings,
        authority: Authority,
        authenticator: Arc<dyn Authenticator>,
        source: impl Source,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let states = follow(source, metrics.clone()).await?;
        let authority = Arc::new(authority);
        let certificate = ServerCertificate::issue(&authority, settings.cert_lifetime)?;
        let (listener, api_addr) = listen("--listen", settings.listen).await?;
        let (health_listener, health_addr) = listen("--health", settings.health).await?;

        let shutdown = CancellationToken::new();
        let connections = tls::accept(listener, certificate.clone().acceptor(), shutdown.clone());
        let identity = IdentityService {
            authority: authority.clone(),
            authenticator: authenticator.clone(),
            states: states.clone(),
            cert_lifetime: settings.cert_lifetime,
            metrics: metrics.clone(),
        };
        let discovery = DiscoveryService {
            authenticator,
            states: states.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
        };
        let api = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(IdentityServer::new(identity).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(
                DiscoveryServer::new(discovery).max_decoding_message_size(MAX_REQUEST_BYTES),
            )
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections),
                shutdown.clone().cancelled_owned(),
            );
        let state = states.borrow().clone();
        info!(
            api = %api_addr,
            health = %health_addr,
            trust_domain = %state.trust_domain,
            workloads = state.workloads.len(),
            services = state.services.len(),
            core = duet_core::CORE_FINGERPRINT,
            "duet-control serves"
        );
        Ok(Self {
            api_addr,
            health_addr,
            api: tokio::spawn(api),
            background: vec![
                tokio::spawn(health::serve(health_listener, metrics, shutdown.clone())),
                tokio::spawn(certificate.keep_renewed(authority, settings.cert_lifetime)),
            ],
            shutdown,
        })
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
        for task in &self.background {
            task.abort();
        }
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
