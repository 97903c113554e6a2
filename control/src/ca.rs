//! The certificate authority: one ECDSA P-256 root, leaves signed directly by it.
//!
//! A workload's certificate says who it is in a single URI SAN, its SPIFFE ID, and
//! nothing else: no subject, no host name. duet-control's own certificate has a
//! DNS SAN and no SPIFFE ID. So neither can stand for the other, although both
//! chain to the same root.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::time::Duration;
use time::OffsetDateTime;

/// How long the root is valid: it outlives the machines it is made on.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin this long ago, for peers whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
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

/// The mesh root, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    root_not_after: OffsetDateTime,
    bundle: Vec<CertificateDer<'static>>,
}

/// A root that has just been made.
pub struct NewRoot {
    /// Private key, then certificate.
    pub pem: String,
}

/// A signed leaf.
pub struct Leaf {
    pub certificate: CertificateDer<'static>,
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
    #[error("{0}")]
    Damaged(&'static str),
    #[error("the root certificate ended on {0}")]
    Expired(OffsetDateTime),
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
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let serial = random::<SERIAL_BYTES>();
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.serial_number = Some(positive(serial));
        params.not_before = now - BACKDATE;
        params.not_after = now + ROOT_LIFETIME;
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
            pem: format!("{}{}", key.serialize_pem(), certificate.pem()),
        })
    }
}

// === impl Authority ===

impl Authority {
    /// From a private key and its certificate.
    ///
    /// # Errors
    /// When either is missing or damaged, they do not belong together, or the
    /// certificate has ended.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(pem).map_err(|_| CaError::Damaged("holds no private key"))?;
        let no_root = CaError::Damaged("holds no root certificate");
        let Some(begin) = pem.find("-----BEGIN CERTIFICATE-----") else {
            return Err(no_root);
        };
        let root_pem = pem[begin..].to_owned();
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|_| no_root)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&root)
            .map_err(|_| CaError::Damaged("holds a damaged root certificate"))?;
        if !parsed.is_ca() {
            return Err(CaError::Damaged("holds a certificate that is no CA's"));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::Damaged(
                "holds a private key that is not the certificate's",
            ));
        }
        let root_not_after = parsed.validity().not_after.to_datetime();
        if root_not_after <= OffsetDateTime::now_utc() {
            return Err(CaError::Expired(root_not_after));
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&root, key)?,
            bundle: vec![root.clone()],
            root_not_after,
            root_pem,
            root,
        })
    }

    /// Takes `bundle`, certificates in PEM, for what proxies are told to trust.
    ///
    /// # Errors
    /// When it does not hold this root.
    pub fn trust(&mut self, bundle: &str) -> Result<(), CaError> {
        let roots: Vec<_> = CertificateDer::pem_slice_iter(bundle.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| CaError::Damaged("holds damaged PEM"))?;
        if !roots.contains(&self.root) {
            return Err(CaError::Damaged(
                "does not hold the certificate of the key beside it",
            ));
        }
        self.bundle = roots;
        Ok(())
    }

    /// The trust bundle, DER.
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// This root's certificate.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
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
    /// with the root.
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
        let not_after = (now + lifetime).min(self.root_not_after);
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
        Ok(Leaf {
            certificate: params.signed_by(key, &self.issuer)?.into(),
            not_before,
            not_after,
        })
    }
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
mod tests {
    use super::*;
    use rcgen::PKCS_ECDSA_P384_SHA384;

    fn authority() -> Authority {
        Authority::from_pem(&NewRoot::generate().unwrap().pem).unwrap()
    }

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn a_request_decides_nothing_but_the_key() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["duet-control".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).unwrap();
        let leaf = authority()
            .certify(csr.der(), "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME)
            .unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.certificate).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().iter().count(), 0);
        let san = parsed.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical, "RFC 5280, 4.1.2.6: the subject is empty");
        let names = &san.value.general_names;
        assert!(
            matches!(names.as_slice(), [x509_parser::extensions::GeneralName::URI(uri)] if *uri == "spiffe://td/ns/a/sa/b"),
            "{names:?}"
        );
    }

    #[test]
    fn the_same_key_never_gets_the_same_serial_twice() {
        let authority = authority();
        let csr = request(&KeyPair::generate().unwrap());
        let serial = || {
            let leaf = authority
                .certify(&csr, "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME)
                .unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.certificate).unwrap();
            parsed.raw_serial().to_vec()
        };
        assert_ne!(serial(), serial());
    }

    #[test]
    fn other_keys_and_other_bytes_are_refused() {
        let authority = authority();
        let refused = |csr: &[u8]| {
            authority
                .certify(csr, "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME)
                .err()
                .unwrap()
                .to_string()
        };
        let p384 = request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
        assert!(refused(&p384).contains("ECDSA P-256"));
        assert!(refused(b"nonsense").contains("PKCS#10"));
        assert!(refused(&vec![0; MAX_CSR_BYTES + 1]).contains("16 KiB"));
        let mut forged = request(&KeyPair::generate().unwrap());
        *forged.last_mut().unwrap() ^= 1;
        assert!(refused(&forged).contains("signed"));
    }

    #[test]
    fn no_leaf_outlives_the_root() {
        let authority = authority();
        let leaf = authority
            .certify(
                &request(&KeyPair::generate().unwrap()),
                "spiffe://td/ns/a/sa/b",
                ROOT_LIFETIME * 2,
            )
            .unwrap();
        assert_eq!(leaf.not_after, authority.root_not_after);
    }

    #[test]
    fn the_root_survives_its_own_pem() {
        let authority = authority();
        let again = CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap();
        assert_eq!(again, authority.root);
    }
}
