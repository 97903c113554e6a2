//! A workload certificate and the TLS settings that follow from it: TLS 1.3 only,
//! ALPN `h2`, both sides present a certificate, no session is ever resumed (a
//! resumed session would outlive the certificate it was checked with). Whom they
//! believe is asked at each handshake: see [`super::trust`].

use super::Identity;
use super::clock;
use super::peer::{parse, spiffe_id};
use super::trust::{Role, Standing, Trust};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroize;

pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
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
    #[error("the certificate is for {0:?}")]
    Identity(Option<Identity>),
    #[error("{0}")]
    Expired(String),
}

pub struct Certificate {
    pub identity: Identity,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    certified: Arc<CertifiedKey>,
    trust: Trust,
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
        trust: Trust,
        validity: (i64, i64),
    ) -> Result<Self, CertificateFailure> {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let named = chain
            .first()
            .and_then(parse)
            .and_then(|leaf| spiffe_id(&leaf));
        if named.as_ref() != Some(&identity) {
            return Err(CertificateFailure::Identity(named));
        }
        let certified = CertifiedKey::new(chain, key.key);
        certified.keys_match()?;
        let certified = Arc::new(certified);

        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(MeshClients(trust.clone())))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
        server.alpn_protocols = vec![ALPN_H2.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

        Ok(Self {
            identity,
            not_before: time(validity.0),
            not_after: time(validity.1),
            certified,
            trust,
            server: Arc::new(server),
        })
    }

    pub fn is_valid(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// What makes it worth nothing from the start, and what its times say of the clock.
    pub(super) fn check_clock(
        &self,
        now: SystemTime,
    ) -> Result<Option<String>, CertificateFailure> {
        let skew = clock::skew(self.not_before, now);
        if self.is_valid(now) {
            return Ok(skew);
        }
        Err(CertificateFailure::Expired(skew.unwrap_or_else(|| {
            "the certificate has already expired".to_owned()
        })))
    }

    /// Whether it leads to the root that others are signed with now.
    pub(super) fn is_of_signing_root(&self) -> bool {
        let roots = self.trust.current();
        roots.signs(&self.certified.cert, UnixTime::now())
    }

    /// Whether peers that know what this proxy knows believe it.
    pub(super) fn is_believed(&self) -> bool {
        let roots = self.trust.current();
        roots.lead_from(&self.certified.cert, Role::Server, UnixTime::now())
    }

    /// Who connected to a server of this identity, and for how long that is good.
    pub fn client_of(
        &self,
        connection: &rustls::CommonState,
    ) -> Result<(Identity, Standing), PeerError> {
        self.peer(connection, Role::Client)
    }

    /// How long a connection that was made with this certificate takes new streams.
    pub fn server_of(&self, connection: &rustls::CommonState) -> Result<Standing, PeerError> {
        let (_, standing) = self.peer(connection, Role::Server)?;
        Ok(standing.at_most_until(self.not_after))
    }

    /// What a server of this identity accepts: any peer of the mesh.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// What a client of this identity accepts: that one peer.
    pub fn client(&self, expected: Identity) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = Arc::new(ExpectedServer {
            expected,
            trust: self.trust.clone(),
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

    fn peer(
        &self,
        connection: &rustls::CommonState,
        role: Role,
    ) -> Result<(Identity, Standing), PeerError> {
        let chain = connection.peer_certificates().ok_or(PeerError::None)?;
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::None)?;
        let roots = self.trust.current();
        let peer = roots.examine(role, leaf, intermediates, UnixTime::now())?;
        let identity = peer.identity.clone().ok_or(PeerError::None)?;
        Ok((identity, Standing::new(self.trust.clone(), role, peer)))
    }

    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// SHA-256 of each root's DER, in hexadecimal: whom it believes now.
    pub fn root_fingerprints(&self) -> Vec<String> {
        self.trust.current().fingerprints().to_vec()
    }
}

/// Checks a server's chain as webpki does, and its SPIFFE ID instead of a host name.
#[derive(Debug)]
struct ExpectedServer {
    expected: Identity,
    trust: Trust,
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
        let roots = self.trust.current();
        let peer = roots.examine(Role::Server, end_entity, intermediates, now)?;
        if peer.identity.as_ref() == Some(&self.expected) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(
            rustls::OtherError(Arc::new(PeerError::Unexpected {
                expected: self.expected.clone(),
                found: peer.identity.clone(),
            })),
        )))
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
        verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Checks a client's chain as webpki does, and that it has a SPIFFE ID at all.
#[derive(Debug)]
struct MeshClients(Trust);

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
    ) -> Result<ClientCertVerified, rustls::Error> {
        let roots = self.0.current();
        let peer = roots.examine(Role::Client, end_entity, intermediates, now)?;
        match &peer.identity {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
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
        verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

fn verify_tls13(
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

fn schemes() -> Vec<SignatureScheme> {
    PROVIDER
        .signature_verification_algorithms
        .supported_schemes()
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
    #[error("the peer is not believed any more: {0}")]
    Distrusted(#[from] rustls::Error),
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

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs())
}
