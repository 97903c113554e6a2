//! Whom a handshake found on the other side.
//!
//! What a chain says, and that it leads to a root, is examined once and not at each of a peer's connections:
//! it is the dearer half of what a handshake asks of certificates. What is known dies with the roots that it was
//! examined against, and when the first of its certificates ends. That the peer has the key is shown by each
//! handshake anew.

use super::Identity;
use parking_lot::Mutex;
use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// Peers that are kept in mind for either role, with what their connections share: some 1 KiB each,
const MOST: usize = 64;
/// and no more than this. A longer chain is examined each time.
const LONGEST: usize = 4096;

/// The other side's chain, which has led to a root.
#[derive(Debug)]
pub(super) struct Peer {
    /// None where the leaf has no SPIFFE ID.
    pub identity: Option<Identity>,
    /// Of the leaf.
    pub not_after: SystemTime,
    leaf: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    /// What was found holds from here
    examined: UnixTime,
    /// to here: the first end of a certificate that may have been needed.
    ends: UnixTime,
}

#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashSet<ByLeaf>>);

#[derive(Debug)]
struct ByLeaf(Arc<Peer>);

// === impl Peer ===

impl Peer {
    /// Of a chain that leads to a root.
    pub fn read(
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Self, CertificateError> {
        let parsed = parse(leaf).ok_or(CertificateError::BadEncoding)?;
        let mut ends = not_after(&parsed);
        for one in intermediates {
            match parse(one).map(|one| not_after(&one)) {
                // What has ended is not what led there.
                Some(end) if end < now => {}
                Some(end) => ends = ends.min(end),
                // What led there may be what cannot be read here.
                None => ends = now,
            }
        }
        Ok(Self {
            identity: spiffe_id(&parsed),
            not_after: UNIX_EPOCH + Duration::from_secs(not_after(&parsed).as_secs()),
            leaf: leaf.clone().into_owned(),
            intermediates: intermediates
                .iter()
                .map(|one| one.clone().into_owned())
                .collect(),
            examined: now,
            ends,
        })
    }

    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// Of the whole chain, in bytes.
    fn len(&self) -> usize {
        let intermediates = self.intermediates.iter().map(|one| one.len());
        self.leaf.len() + intermediates.sum::<usize>()
    }

    fn holds(&self, now: UnixTime) -> bool {
        (self.examined..=self.ends).contains(&now)
    }
}

// === impl Known ===

impl Known {
    /// With this very chain, if what was found then holds now.
    pub fn find(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<Arc<Peer>> {
        let known = self.0.lock();
        let ByLeaf(peer) = known.get(leaf.as_ref())?;
        (peer.intermediates == intermediates && peer.holds(now)).then(|| peer.clone())
    }

    pub fn add(&self, peer: Arc<Peer>, now: UnixTime) {
        if peer.len() > LONGEST {
            return;
        }
        let mut known = self.0.lock();
        if known.len() >= MOST {
            known.retain(|ByLeaf(peer)| peer.holds(now));
            if known.len() >= MOST {
                known.clear();
            }
        }
        known.replace(ByLeaf(peer));
    }
}

// === impl ByLeaf ===

impl Borrow<[u8]> for ByLeaf {
    fn borrow(&self) -> &[u8] {
        &self.0.leaf
    }
}

impl Hash for ByLeaf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let leaf: &[u8] = self.borrow();
        leaf.hash(state);
    }
}

impl PartialEq for ByLeaf {
    fn eq(&self, other: &Self) -> bool {
        self.0.leaf == other.0.leaf
    }
}

impl Eq for ByLeaf {}

pub(super) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed)
}

/// X.509-SVID §2: exactly one URI SAN.
pub(super) fn spiffe_id(leaf: &X509Certificate<'_>) -> Option<Identity> {
    let names = leaf.subject_alternative_name().ok()??;
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

fn not_after(certificate: &X509Certificate<'_>) -> UnixTime {
    let seconds = certificate.validity().not_after.timestamp();
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_kept_in_mind_as_there_is_room_for() {
        let certificate = rcgen::generate_simple_self_signed(Vec::new()).unwrap();
        let now = UnixTime::now();
        let known = Known::default();
        let leaf = |number: usize| {
            // What follows the certificate is not read.
            let mut der = certificate.cert.der().to_vec();
            der.extend(number.to_be_bytes());
            CertificateDer::from(der)
        };
        for number in 0..2 * MOST + 10 {
            let peer = Peer::read(&leaf(number), &[], now).unwrap();
            known.add(Arc::new(peer), now);
            assert!(known.find(&leaf(number), &[], now).is_some());
            assert!(known.0.lock().len() <= MOST);
        }
        assert_eq!(known.0.lock().len(), 10);
        let surplus = [CertificateDer::from(vec![0; LONGEST])];
        let peer = Peer::read(&leaf(0), &surplus, now).unwrap();
        known.add(Arc::new(peer), now);
        assert!(known.find(&leaf(0), &surplus, now).is_none());
    }
}
