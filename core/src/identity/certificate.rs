//! A workload certificate and the TLS settings that follow from it: TLS 1.3 only,
//! ALPN `h2`, both sides present a certificate, no session is ever resumed (a
//! resumed session would outlive the certificate it was checked with).

use super::Identity;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroize;

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

const ALPN_H2: &[u8] = b"h2";

/// A key that was made here, and what a certificate authority is asked with.
pub(super) struct PendingKey {
    key: Arc<dyn rustls::sign::SigningKey>,
    pub csr: Vec<u8>,
}

impl PendingKey {
    pub fn generate() -> Result<Self, CertificateFailure> {
        let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::default()
            .serialize_request(&pair)?
            .der()
            .to_vec();
        let mut der = PrivateKeyDer::try_from(pair.serialize_der())
            .map_err(|reason| CertificateFailure::Key(reason.to_owned()))?;
        // The parsed key is the one copy that is kept, and aws-lc wipes it when
        // it is freed.
        pair.zeroize();
        let key = aws_lc_rs::sign::any_ecdsa_type(&der);
        der.zeroize();
        Ok(Self { key: key?, csr })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateFailure {
    #[error("making a key: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("making a key: {0}")]
    Key(String),
    #[error("the certificate does not fit: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the trust bundle does not fit: {0}")]
    Bundle(#[from] rustls::server::VerifierBuilderError),
    #[error("the certificate is for {0:?}")]
    Identity(Option<Identity>),
    #[error("the certificate has already expired")]
    Expired,
}

pub struct Certificate {
    pub identity: Identity,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    pub(super) fn new(
        identity: Identity,
        key: PendingKey,
        chain: Vec<Vec<u8>>,
        roots: Vec<Vec<u8>>,
        validity: (i64, i64),
    ) -> Result<Self, CertificateFailure> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from(root))?;
        }
        let store = Arc::new(store);
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let named = chain.first().and_then(|leaf| spiffe_id(leaf));
        if named.as_ref() != Some(&identity) {
            return Err(CertificateFailure::Identity(named));
        }
        let certified = CertifiedKey::new(chain, key.key);
        certified.keys_match()?;
        let certified = Arc::new(certified);

        let clients =
            WebPkiClientVerifier::builder_with_provider(store.clone(), PROVIDER.clone()).build()?;
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(MeshClients(clients)))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
        server.alpn_protocols = vec![ALPN_H2.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
        Ok(Self {
            identity,
            not_before: time(validity.0),
            not_after: time(validity.1),
            certified,
            roots: store,
            server: Arc::new(server),
        })
    }

    pub fn is_valid(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// What a server of this identity accepts: any peer of the mesh.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// What a client of this identity accepts: that one peer.
    pub fn client(&self, expected: Identity) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = Arc::new(ExpectedServer {
            expected,
            roots: self.roots.clone(),
        });
        let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        Ok(Arc::new(client))
    }

    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }
}

/// Checks a server's chain as webpki does, and its SPIFFE ID instead of a host name.
#[derive(Debug)]
struct ExpectedServer {
    expected: Identity,
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            PROVIDER.signature_verification_algorithms.all,
        )?;
        match spiffe_id(end_entity) {
            Some(found) if found == self.expected => Ok(ServerCertVerified::assertion()),
            found => Err(rustls::Error::InvalidCertificate(CertificateError::Other(
                rustls::OtherError(Arc::new(PeerError::Unexpected {
                    expected: self.expected.clone(),
                    found,
                })),
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &PROVIDER.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Checks a client's chain as webpki does, and that it has a SPIFFE ID at all.
#[derive(Debug)]
struct MeshClients(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for MeshClients {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        // The roots' names help nobody: every peer has one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        match spiffe_id(end_entity) {
            Some(_) => Ok(verified),
            None => Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("the peer is {found:?}, expected {expected}")]
    Unexpected {
        expected: Identity,
        found: Option<Identity>,
    },
    #[error("the peer has no certificate with a SPIFFE ID")]
    None,
}

/// What [`ExpectedServer`] said, if that is why a handshake failed.
pub fn unexpected_peer(handshake: &std::io::Error) -> Option<&PeerError> {
    match handshake.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(CertificateError::Other(reason)) => {
            reason.0.downcast_ref()
        }
        _ => None,
    }
}

/// Who is at the other end of a finished handshake, and for how much longer.
pub fn peer_identity(connection: &rustls::CommonState) -> Result<(Identity, Duration), PeerError> {
    let leaf = connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or(PeerError::None)?;
    let identity = spiffe_id(leaf).ok_or(PeerError::None)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| PeerError::None)?;
    let left = parsed.validity().time_to_expiration().unwrap_or_default();
    Ok((identity, left.try_into().unwrap_or_default()))
}

/// X.509-SVID §2: exactly one URI SAN.
fn spiffe_id(leaf: &CertificateDer<'_>) -> Option<Identity> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) if uri.starts_with("spiffe://") => Some(Identity::from(uri)),
        _ => None,
    }
}
