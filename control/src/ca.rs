//! The certificate authority: who signs, and what comes out.
//!
//! An [`Issuer`] is a private key, its certificate, and the way from there to a root:
//! a root of our own making, or whatever an operator or cert-manager supplies, RSA or
//! ECDSA, itself a root or below one. An [`Authority`] is the issuer that signs at the
//! moment, and all roots that proxies are told to trust.
//!
//! A workload's certificate says who it is in a single URI SAN, its SPIFFE ID, and
//! nothing else: no subject, no host name. duet-control's own certificate has a
//! DNS SAN and no SPIFFE ID. So neither can stand for the other, although both
//! chain to the same root.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;

/// How long a root that we make is valid: it outlives the machines it is made on.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin this long ago, for peers whose clocks are behind.
pub use duet_core::BACKDATE;
/// Default of `--cert-lifetime`. Short, because nothing revokes a certificate.
pub const DEFAULT_CERT_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Renewal happens at 70 % of life and takes retries: less would be a busy loop.
pub const MIN_CERT_LIFETIME: Duration = Duration::from_secs(10);
/// A certificate request of an ECDSA key is about 200 bytes.
pub const MAX_CSR_BYTES: usize = 16 * 1024;

/// A P-256 point, uncompressed: 0x04, x, y (SEC 1, 2.3.3).
const P256_POINT_BYTES: usize = 65;
/// RFC 5280 allows 20 bytes; 16 random ones never meet again.
const SERIAL_BYTES: usize = 16;
/// More certificates between a leaf and its root than this are refused by peers:
/// webpki builds paths of at most six.
const MAX_INTERMEDIATES: usize = 4;

/// A private key that certificates are signed with, and the way to its root.
pub struct Issuer {
    signer: rcgen::Issuer<'static, KeyPair>,
    /// Sent with each leaf: the key's certificate and those above it, but not the root.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    /// Further certificates of the bundle that it was supplied with.
    others: Vec<CertificateDer<'static>>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    chain_pem: String,
    key_pem: String,
}

/// Who signs now, and whom proxies are told to trust.
#[derive(Debug)]
pub struct Authority {
    issuer: Arc<Issuer>,
    bundle: Vec<CertificateDer<'static>>,
}

/// A root that has just been made.
pub struct NewRoot {
    /// PEM.
    pub key: String,
    /// PEM.
    pub certificate: String,
}

/// A signed leaf.
#[derive(Debug)]
pub struct Leaf {
    /// The leaf first, then whatever leads to the root, the root excepted.
    pub chain: Vec<CertificateDer<'static>>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// Whom a leaf is for.
pub enum Subject<'a> {
    /// SPIFFE ID.
    Workload(&'a str),
    /// DNS name.
    Server(&'a str),
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("holds no private key")]
    NoKey,
    #[error("{0}")]
    Damaged(&'static str),
    #[error("holds a CA certificate that ended on {0}")]
    Expired(OffsetDateTime),
    #[error("holds a CA certificate that is not valid before {0}: is the clock right?")]
    NotYet(OffsetDateTime),
    /// A chain that TLS peers would refuse.
    #[error("holds a CA that peers would not believe: {0}")]
    Unbelievable(rustls::Error),
    #[error("the certificate request {0}")]
    Request(&'static str),
    #[error("the certificate could not be made: {0}")]
    Signing(#[from] rcgen::Error),
}

// === impl NewRoot ===

impl NewRoot {
    /// # Errors
    /// When the machine cannot make keys.
    pub fn generate() -> Result<Self, CaError> {
        Self::valid_for(ROOT_LIFETIME)
    }

    /// # Errors
    /// When the machine cannot make keys.
    pub fn valid_for(lifetime: Duration) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let serial = random::<SERIAL_BYTES>();
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.serial_number = Some(positive(serial));
        params.not_before = now - BACKDATE;
        params.not_after = now + lifetime;
        // The name is this root's own, so that a bundle may hold two of them.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(
            DnType::CommonName,
            format!(
                "duet root {:08x}",
                u32::from_be_bytes([serial[0], serial[1], serial[2], serial[3]])
            ),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            key: key.serialize_pem(),
            certificate: certificate.pem(),
        })
    }
}

// === impl Issuer ===

impl Issuer {
    /// From PEM: the key's certificate and those above it, the key (PKCS#8, PKCS#1 or
    /// SEC 1), and certificates among which the root is found if the chain does not
    /// end in it. Without one, the last certificate of the chain is what peers trust.
    ///
    /// # Errors
    /// When a part is missing or damaged, they do not belong together, it is no CA's,
    /// it has ended, or peers would not believe what it signs.
    pub fn from_pem(chain_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, CaError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .ok()
            .and_then(|der| KeyPair::try_from(&der).ok())
            .ok_or(CaError::NoKey)?;
        let mut chain = certificates(chain_pem)?;
        let mut others = certificates(ca_pem)?;
        let own = chain
            .first()
            .ok_or(CaError::Damaged("holds no root certificate"))?
            .clone();
        let parsed = parse(&own)?;
        if !parsed.is_ca() {
            return Err(CaError::Damaged("holds a certificate that is no CA's"));
        }
        if parsed
            .key_usage()
            .ok()
            .flatten()
            .is_some_and(|usage| !usage.value.key_cert_sign())
        {
            return Err(CaError::Damaged(
                "holds a certificate that may not sign others: it needs the key usage \"cert sign\"",
            ));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::Damaged(
                "holds a private key that is not the certificate's",
            ));
        }

        let top = chain.last().unwrap_or(&own).clone();
        let root = if is_self_signed(&parse(&top)?) {
            chain.pop().unwrap_or(top)
        } else {
            let above = parse(&top)?.issuer().as_raw().to_vec();
            let is_above = |one: &CertificateDer<'_>| {
                parse(one).is_ok_and(|one| one.subject().as_raw() == above)
            };
            match others.iter().position(is_above) {
                Some(found) => others.remove(found),
                None => chain.pop().unwrap_or(top),
            }
        };
        if chain.len() > MAX_INTERMEDIATES {
            return Err(CaError::Damaged(
                "holds a chain of more than four intermediates: peers follow no longer ones",
            ));
        }
        others.retain(|one| *one != root);
        // As the dates below: webpki does not look at it in a root.
        let may_have_below = parse(&root)?
            .basic_constraints()
            .ok()
            .flatten()
            .and_then(|basic| basic.value.path_len_constraint);
        if may_have_below
            .is_some_and(|most| chain.len() > usize::try_from(most).unwrap_or(usize::MAX))
        {
            return Err(CaError::Damaged(
                "holds more intermediates than its root allows (path length)",
            ));
        }

        let mut not_before = OffsetDateTime::UNIX_EPOCH;
        let mut not_after = None;
        for one in chain.iter().chain([&root]) {
            let validity = parse(one)?.validity().clone();
            not_before = not_before.max(validity.not_before.to_datetime());
            let end = validity.not_after.to_datetime();
            not_after = Some(not_after.map_or(end, |before: OffsetDateTime| before.min(end)));
        }
        let not_after = not_after.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        if not_after <= OffsetDateTime::now_utc() {
            return Err(CaError::Expired(not_after));
        }
        // webpki looks at intermediates only, other implementations at roots too.
        if not_before > OffsetDateTime::now_utc() + BACKDATE {
            return Err(CaError::NotYet(not_before));
        }
        let issuer = Self {
            signer: rcgen::Issuer::from_ca_cert_der(&own, key)?,
            intermediates: chain,
            root,
            others,
            not_before,
            not_after,
            chain_pem: chain_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        };
        issuer.prove()?;
        Ok(issuer)
    }

    /// Signs a leaf and looks at it as a peer would: whatever is odd about a CA is
    /// found out here and not in a thousand handshakes.
    fn prove(&self) -> Result<(), CaError> {
        let subject = Subject::Workload("spiffe://duet.proof/ns/a/sa/b");
        let leaf = self.sign(&KeyPair::generate()?, &subject, MIN_CERT_LIFETIME)?;
        let mut roots = RootCertStore::empty();
        roots
            .add(self.root.clone())
            .map_err(CaError::Unbelievable)?;
        let algorithms =
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        ParsedCertificate::try_from(&leaf.chain[0])
            .and_then(|parsed| {
                rustls::client::verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &roots,
                    &leaf.chain[1..],
                    UnixTime::now(),
                    algorithms.all,
                )
            })
            .map_err(CaError::Unbelievable)
    }

    /// What peers have to trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Further roots that it came with.
    pub fn others(&self) -> &[CertificateDer<'static>] {
        &self.others
    }

    /// The latest beginning in its chain.
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// The earliest end in its chain: nothing that it signs is valid for longer.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Certificates, as they were given.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key, as it was given.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Whether both sign with the same key and send the same chain.
    pub fn is(&self, other: &Self) -> bool {
        self.signer.key().public_key_raw() == other.signer.key().public_key_raw()
            && self.intermediates == other.intermediates
            && self.root == other.root
    }

    /// Signs the public key of a PKCS#10 request (DER) for a workload. Whatever
    /// else the request asks for is not looked at.
    ///
    /// # Errors
    /// When the request is not one, is not signed by its own key, or its key is
    /// not ECDSA P-256.
    pub fn certify(
        &self,
        csr: &[u8],
        spiffe_id: &str,
        lifetime: Duration,
    ) -> Result<Leaf, CaError> {
        if csr.len() > MAX_CSR_BYTES {
            return Err(CaError::Request("is longer than 16 KiB"));
        }
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
                .map_err(|error| {
                    CaError::Request(match error {
                        rcgen::Error::InvalidCertificationRequestSignature => {
                            "is not signed by the key it is for"
                        }
                        rcgen::Error::UnsupportedExtension => {
                            "asks for extensions: send a bare public key"
                        }
                        _ => "cannot be read: send PKCS#10 in DER",
                    })
                })?;
        let key = request.public_key;
        // rcgen tells algorithms apart by the signature's, which a P-384 key may share.
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_BYTES {
            return Err(CaError::Request("has another key than ECDSA P-256"));
        }
        self.sign(&key, &Subject::Workload(spiffe_id), lifetime)
    }

    /// Signs a leaf that begins [`BACKDATE`] ago and ends after `lifetime`, or
    /// with the first certificate above it that does.
    ///
    /// # Errors
    /// When the name in `subject` is not one.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject<'_>,
        lifetime: Duration,
    ) -> Result<Leaf, CaError> {
        let now = OffsetDateTime::now_utc();
        let not_before = now - BACKDATE;
        let not_after = (now + lifetime).min(self.not_after);
        let mut params = CertificateParams::default();
        params.serial_number = Some(positive(random()));
        params.not_before = not_before;
        params.not_after = not_after;
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.subject_alt_names, params.extended_key_usages) = match subject {
            // A workload is client and server in turn.
            Subject::Workload(spiffe_id) => (
                vec![SanType::URI((*spiffe_id).try_into()?)],
                vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ],
            ),
            Subject::Server(name) => (
                vec![SanType::DnsName((*name).try_into()?)],
                vec![ExtendedKeyUsagePurpose::ServerAuth],
            ),
        };
        let mut chain = vec![params.signed_by(key, &self.signer)?.into()];
        chain.extend_from_slice(&self.intermediates);
        Ok(Leaf {
            chain,
            not_before,
            not_after,
        })
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("root", &fingerprint(&self.root))
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl Authority ===

impl Authority {
    /// `issuer` signs; proxies trust its root first, then `roots`.
    pub fn new(
        issuer: Arc<Issuer>,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Self {
        let mut bundle = vec![issuer.root.clone()];
        for root in roots {
            if !bundle.contains(&root) {
                bundle.push(root);
            }
        }
        Self { issuer, bundle }
    }

    /// From a private key and its certificate, in one text.
    ///
    /// # Errors
    /// When either is missing or damaged, they do not belong together, or the
    /// certificate has ended.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let issuer = Issuer::from_pem(pem, pem, "")?;
        Ok(Self::new(Arc::new(issuer), []))
    }

    /// Takes `bundle`, certificates in PEM, for what proxies are told to trust.
    ///
    /// # Errors
    /// When it does not hold this root.
    pub fn trust(&mut self, bundle: &str) -> Result<(), CaError> {
        let roots = certificates(bundle)?;
        if !roots.contains(&self.issuer.root) {
            return Err(CaError::Damaged(
                "does not hold the certificate of the key beside it",
            ));
        }
        *self = Self::new(self.issuer.clone(), roots);
        Ok(())
    }

    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// The trust bundle, DER. The first root is the one that is signed with.
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// The trust bundle, PEM.
    pub fn bundle_pem(&self) -> String {
        self.bundle.iter().map(pem).collect()
    }

    /// The certificate of the root that is signed with.
    pub fn root_pem(&self) -> String {
        pem(&self.issuer.root)
    }

    /// As [`Issuer::certify`].
    ///
    /// # Errors
    /// As [`Issuer::certify`].
    pub fn certify(
        &self,
        csr: &[u8],
        spiffe_id: &str,
        lifetime: Duration,
    ) -> Result<Leaf, CaError> {
        self.issuer.certify(csr, spiffe_id, lifetime)
    }

    /// As [`Issuer::sign`].
    ///
    /// # Errors
    /// As [`Issuer::sign`].
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject<'_>,
        lifetime: Duration,
    ) -> Result<Leaf, CaError> {
        self.issuer.sign(key, subject, lifetime)
    }
}

/// SHA-256 of a certificate, in hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A certificate as a text.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    const LINE: usize = 64;
    let base64 = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(LINE) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// All certificates in `text`, PEM.
///
/// # Errors
/// When there is something in it that begins like one and is none.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| CaError::Damaged("holds damaged PEM"))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    x509_parser::parse_x509_certificate(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|_| CaError::Damaged("holds a damaged CA certificate"))
}

fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw()
}

/// Bytes from the system's own generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("a machine without random numbers makes no keys either");
    bytes
}

/// RFC 5280, 4.1.2.2: a serial number is positive.
fn positive(mut bytes: [u8; SERIAL_BYTES]) -> SerialNumber {
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests;
