//! How proxies reach the API: TLS 1.3 with a certificate from the mesh's own root,
//! issued anew at each start and renewed at half of its life, never stored.

use crate::ca::{Authority, CaError, Subject};
use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// The name in the server's certificate, whatever address it is reached at.
pub const SERVER_NAME: &str = "duet-control";
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way; further connections wait in the listener's backlog.
pub const MAX_HANDSHAKES: usize = 256;
/// After an `accept` that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The certificate in use, replaceable under running handshakes.
#[derive(Debug)]
pub(crate) struct ServerCertificate(ArcSwap<CertifiedKey>);

// === impl ServerCertificate ===

impl ServerCertificate {
    pub fn issue(authority: &Authority, lifetime: Duration) -> Result<Arc<Self>, CaError> {
        Ok(Arc::new(Self(ArcSwap::from(certified_key(
            authority, lifetime,
        )?))))
    }

    /// Runs for ever.
    pub async fn keep_renewed(self: Arc<Self>, authority: Arc<Authority>, lifetime: Duration) {
        loop {
            tokio::time::sleep(lifetime / 2).await;
            match certified_key(&authority, lifetime) {
                Ok(new) => self.0.store(new),
                Err(error) => error!("duet-control's own certificate was not renewed: {error}"),
            }
        }
    }

    pub fn acceptor(self: Arc<Self>) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("aws-lc-rs speaks TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified_key(authority: &Authority, lifetime: Duration) -> Result<Arc<CertifiedKey>, CaError> {
    let key = KeyPair::generate()?;
    let leaf = authority.sign(&key, &Subject::Server(SERVER_NAME), lifetime)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| CaError::Damaged("made a key that TLS cannot use"))?;
    Ok(Arc::new(CertifiedKey::new(vec![leaf.certificate], key)))
}

/// Connections whose handshake succeeded, until `shutdown`.
pub(crate) fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                accepted = async {
                    let permit = handshakes.clone().acquire_owned().await;
                    (permit, listener.accept().await)
                } => accepted,
                () = shutdown.cancelled() => return,
            };
            let (permit, stream, peer) = match accepted {
                (permit, Ok((stream, peer))) => (permit, stream, peer),
                (_, Err(error)) => {
                    warn!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _permit = permit;
                // Small updates should not wait for one another's acknowledgement.
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => debug!(%peer, "TLS handshake: {error}"),
                    Err(_) => debug!(%peer, "TLS handshake: not done in {HANDSHAKE_TIMEOUT:?}"),
                }
            });
        }
    });
    connections
}
