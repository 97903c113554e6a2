//! TLS handshakes by somebody who has no certificate.
//!
//! A TLS 1.3 server has agreed on a key, signed and sent everything before it learns that the
//! client has none, so each costs it all that a handshake costs. The client does not look at the
//! server's certificate: it would only cost the client.

use super::{AGAIN, CONNECT_WITHIN, Tally};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;

/// As mesh peers speak.
const ALPN: &[u8] = b"h2";

pub fn config() -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// One after the other; with a pace, one each `every`, the first after a part of it.
pub async fn again_and_again(
    to: SocketAddr,
    tls: Arc<ClientConfig>,
    pace: Option<(Duration, Duration)>,
    tally: Arc<Tally>,
) {
    let connector = TlsConnector::from(tls);
    let mut next = Instant::now() + pace.map_or(Duration::ZERO, |(_, first)| first);
    loop {
        sleep_until(next).await;
        if once(to, &connector).await {
            tally.done();
        } else {
            tally.failed();
            tokio::time::sleep(AGAIN).await;
        }
        if let Some((every, _)) = pace {
            // What could not be done in time is not made up for: a flood has no schedule to keep.
            next = (next + every).max(Instant::now());
        }
    }
}

/// Whether the server has done its part.
async fn once(to: SocketAddr, connector: &TlsConnector) -> bool {
    let handshake = async {
        let stream = TcpStream::connect(to).await.ok()?;
        // Ending is a reset: a flood must not run out of local ports.
        stream.set_zero_linger().ok()?;
        let name = ServerName::try_from("flood").ok()?;
        connector.connect(name, stream).await.ok()
    };
    let done = tokio::time::timeout(CONNECT_WITHIN, handshake).await;
    matches!(done, Ok(Some(_)))
}

/// Believes every server.
#[derive(Debug)]
pub struct Careless(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
