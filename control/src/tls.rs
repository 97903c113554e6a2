//! How duet-control is reached: TLS 1.3 with a certificate from the mesh's own root,
//! issued anew at each start, renewed at half of its life and when the mesh comes to
//! sign with another root, never stored.

use crate::ca::{Authority, CaError, Issuer, Subject};
use crate::trust::Trust;
use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// The name in the server's certificate, whatever address it is reached at.
pub const SERVER_NAME: &str = "duet-control";
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way; further connections wait in the listener's backlog.
pub const MAX_HANDSHAKES: usize = 256;
/// After a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);
/// After an `accept` that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A certificate in use, replaceable under running handshakes.
#[derive(Debug)]
pub struct ServerCertificate {
    /// DNS name.
    name: String,
    lifetime: Duration,
    current: ArcSwap<CertifiedKey>,
    issued_by: Arc<Issuer>,
    renewal: Instant,
}

// === impl ServerCertificate ===

impl ServerCertificate {
    /// For a server that is reached as `name`.
    ///
    /// # Errors
    /// When `name` is no DNS name.
    pub fn issue(
        authority: &Authority,
        name: impl Into<String>,
        lifetime: Duration,
    ) -> Result<Arc<Self>, CaError> {
        let name = name.into();
        let (first, half_life) = certified_key(authority, &name, lifetime)?;
        Ok(Arc::new(Self {
            name,
            lifetime,
            current: ArcSwap::from(first),
            issued_by: authority.issuer().clone(),
            renewal: Instant::now() + half_life,
        }))
    }

    /// Runs for ever.
    pub async fn keep_renewed(self: Arc<Self>, mut trust: Trust) {
        let (mut signed_by, mut due) = (self.issued_by.clone(), self.renewal);
        loop {
            // A bundle alone is no reason: whoever connects believes as before.
            while trust.current().issuer().is(&signed_by)
                && tokio::time::timeout_at(due, trust.changed()).await.is_ok()
            {}
            let authority = trust.current();
            match certified_key(&authority, &self.name, self.lifetime) {
                Ok((new, half_life)) => {
                    self.current.store(new);
                    signed_by = authority.issuer().clone();
                    due = Instant::now() + half_life;
                    info!(name = self.name, "the server's own certificate was renewed");
                }
                Err(error) => {
                    error!(
                        name = self.name,
                        "the server's own certificate was not renewed: {error}"
                    );
                    tokio::time::sleep(RETRY).await;
                }
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
        Some(self.current.load_full())
    }
}

fn certified_key(
    authority: &Authority,
    name: &str,
    lifetime: Duration,
) -> Result<(Arc<CertifiedKey>, Duration), CaError> {
    let key = KeyPair::generate()?;
    let leaf = authority.sign(&key, &Subject::Server(name), lifetime)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| CaError::Damaged("made a key that TLS cannot use"))?;
    let left = leaf.not_after - OffsetDateTime::now_utc();
    let half_life = Duration::try_from(left / 2).unwrap_or_default();
    let certified = Arc::new(CertifiedKey::new(leaf.chain, key));
    Ok((certified, half_life.max(RETRY.min(lifetime / 2))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::NewRoot;

    const LIFETIME: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        let new = NewRoot::generate().unwrap();
        Authority::from_pem(&format!("{}{}", new.key, new.certificate)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_at_half_of_its_life_again_and_again() {
        let trust = Trust::from(authority());
        let own = ServerCertificate::issue(&trust.current(), SERVER_NAME, LIFETIME).unwrap();
        let shown = || own.current.load_full().cert[0].clone();
        let mut before = shown();
        let keeping = tokio::spawn(own.clone().keep_renewed(trust));
        let margin = LIFETIME / 20;
        tokio::time::sleep(LIFETIME / 2 - margin).await;
        for _ in 0..3 {
            assert_eq!(shown(), before, "not yet");
            tokio::time::sleep(2 * margin).await;
            assert_ne!(shown(), before);
            before = shown();
            tokio::time::sleep(LIFETIME / 2 - 2 * margin).await;
        }
        assert!(!keeping.is_finished());
    }
}
