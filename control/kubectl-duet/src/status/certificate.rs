//! A certificate, as far as people ask about it.

use k8s_openapi::ByteString;
use serde::Serialize;
use sha2::{Digest, Sha256};
use x509_parser::pem::Pem;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    pub subject: String,
    /// Seconds since the epoch.
    pub not_before: i64,
    pub not_after: i64,
    /// SHA-256 of the DER, in hexadecimal.
    pub fingerprint: String,
}

/// All that a PEM file holds, in its order.
pub fn read(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let certificates = Pem::iter_from_buffer(pem)
        .map(|block| {
            let block = block.map_err(|error| format!("not PEM: {error}"))?;
            let parsed = block
                .parse_x509()
                .map_err(|error| format!("not a certificate: {error}"))?;
            let hash = Sha256::digest(&block.contents);
            Ok(Certificate {
                subject: parsed.subject().to_string(),
                not_before: parsed.validity().not_before.timestamp(),
                not_after: parsed.validity().not_after.timestamp(),
                fingerprint: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        })
        .collect::<Result<Vec<_>, String>>()?;
    if certificates.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(certificates)
}

pub fn read_bytes(pem: &ByteString) -> Result<Vec<Certificate>, String> {
    read(&pem.0)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    /// A self-signed root, good from the one year's beginning to the other's.
    pub fn root(from: i32, to: i32) -> String {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "duet root");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_bundle_is_read_in_order_and_rubbish_is_named() {
        let (old, new) = (root(2024, 2034), root(2025, 2035));
        let bundle = read(format!("{old}{new}").as_bytes()).unwrap();
        assert_eq!(bundle.len(), 2);
        assert_eq!(bundle[0], read(old.as_bytes()).unwrap()[0]);
        assert_ne!(bundle[0].fingerprint, bundle[1].fingerprint);
        assert_eq!(bundle[0].subject, "CN=duet root");
        assert_eq!(bundle[0].not_after - bundle[0].not_before, 3653 * 86400);
        assert_eq!(bundle[0].fingerprint.len(), 64);
        assert_eq!(read(b"").unwrap_err(), "it holds no certificate");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(
            read(broken.as_bytes())
                .unwrap_err()
                .starts_with("not a certificate")
        );
    }
}
