//! Whom this proxy believes: the mesh's roots.
//!
//! Roots change while everything runs. A handshake asks for them at the moment it
//! needs them, so a new root counts from the next handshake on and no TLS setting is
//! made anew. A connection that stands goes on for as long as its peer's chain still
//! leads to one of them: see [`Standing`].
//!
//! Discovery's word is the whole bundle and replaces what was known. The roots that
//! come with a certificate are all there is until discovery has spoken (and with a
//! duet-control that says nothing of roots there); afterwards they are only added, and
//! only if the certificate would be worth nothing without them: it came from a replica
//! that is ahead of the one that discovery is read from.
//!
//! The first root of a bundle is the one that certificates are signed with now.

use super::certificate::PROVIDER;
use super::peer::{Known, Peer};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The roots in force. Clones share them.
#[derive(Clone, Debug)]
pub struct Trust(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    roots: ArcSwap<Roots>,
    /// Whoever replaces the roots does it alone.
    replacing: Mutex<()>,
    generation: watch::Sender<u64>,
}

/// One trust bundle.
#[derive(Debug)]
pub struct Roots {
    /// Grows with each change.
    pub(super) generation: u64,
    /// DER, as they were told.
    certificates: Vec<CertificateDer<'static>>,
    /// SHA-256 of each, in hexadecimal.
    fingerprints: Vec<String>,
    all: Arc<RootCertStore>,
    /// Only the one that is signed with.
    signing: RootCertStore,
    /// `None` without roots.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    known_clients: Known,
    known_servers: Known,
    told_by_discovery: bool,
}

/// A chain is good for one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// What was found true of a connection's peer when it was made. The connection takes
/// new streams while it still is.
#[derive(Debug)]
pub struct Standing {
    trust: Trust,
    role: Role,
    peer: Arc<Peer>,
    not_after: SystemTime,
    /// The generation of roots that its chain was last seen to lead to.
    seen: AtomicU64,
    distrusted: AtomicBool,
}

// === impl Trust ===

impl Default for Trust {
    fn default() -> Self {
        Self(Arc::new(Shared {
            roots: ArcSwap::from_pointee(Roots::read(0, Vec::new(), false)),
            replacing: Mutex::default(),
            generation: watch::Sender::new(0),
        }))
    }
}

impl Trust {
    pub fn current(&self) -> Arc<Roots> {
        self.0.roots.load_full()
    }

    /// Changes with the roots.
    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// The bundle as discovery tells it; nothing means as before.
    pub fn discovered(&self, bundle: &[Vec<u8>]) {
        if !bundle.is_empty() {
            self.replace(|_| Some((bundle.to_vec(), true)));
        }
    }

    /// What came with a certificate, and its chain.
    pub(super) fn certified(&self, chain: &[Vec<u8>], bundle: &[Vec<u8>]) {
        if bundle.is_empty() {
            return;
        }
        self.replace(|before| {
            if !before.told_by_discovery {
                return Some((bundle.to_vec(), false));
            }
            let chain: Vec<_> = chain
                .iter()
                .map(|one| CertificateDer::from(one.as_slice()))
                .collect();
            if before.lead_from(&chain, Role::Server, UnixTime::now()) {
                return None;
            }
            let mut more: Vec<_> = before.certificates.iter().map(|one| one.to_vec()).collect();
            more.extend_from_slice(bundle);
            Some((more, true))
        });
    }

    fn replace(&self, new: impl FnOnce(&Roots) -> Option<(Vec<Vec<u8>>, bool)>) {
        let _one_at_a_time = self.0.replacing.lock();
        let before = self.0.roots.load();
        let Some((bundle, told_by_discovery)) = new(&before) else {
            return;
        };
        let mut certificates: Vec<CertificateDer<'static>> = Vec::with_capacity(bundle.len());
        for root in bundle.into_iter().map(CertificateDer::from) {
            if !certificates.contains(&root) {
                certificates.push(root);
            }
        }
        if certificates == before.certificates && told_by_discovery == before.told_by_discovery {
            return;
        }
        let new = Roots::read(before.generation + 1, certificates, told_by_discovery);
        if new.all.is_empty() {
            tracing::warn!("no root of the trust bundle can be read: the one before stays");
            return;
        }
        if new.certificates != before.certificates {
            tracing::info!(
                roots = new.all.len(),
                before = before.all.len(),
                "trust bundle"
            );
        }
        let generation = new.generation;
        self.0.roots.store(Arc::new(new));
        self.0.generation.send_replace(generation);
    }
}

// === impl Roots ===

impl Roots {
    fn read(
        generation: u64,
        certificates: Vec<CertificateDer<'static>>,
        told_by_discovery: bool,
    ) -> Self {
        let mut all = RootCertStore::empty();
        let (_, ignored) = all.add_parsable_certificates(certificates.iter().cloned());
        if ignored > 0 {
            tracing::warn!(ignored, "the trust bundle holds what is no certificate");
        }
        let mut signing = RootCertStore::empty();
        signing.add_parsable_certificates(certificates.first().cloned());
        let all = Arc::new(all);
        let clients = WebPkiClientVerifier::builder_with_provider(all.clone(), PROVIDER.clone())
            .build()
            .ok();
        Self {
            generation,
            fingerprints: certificates.iter().map(fingerprint).collect(),
            certificates,
            all,
            signing,
            clients,
            known_clients: Known::default(),
            known_servers: Known::default(),
            told_by_discovery,
        }
    }

    /// DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) fn fingerprints(&self) -> &[String] {
        &self.fingerprints
    }

    /// Whose chain this is, which leads to a root.
    pub(super) fn examine(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<Peer>, rustls::Error> {
        let known = match role {
            Role::Client => &self.known_clients,
            Role::Server => &self.known_servers,
        };
        if let Some(peer) = known.find(leaf, intermediates, now) {
            return Ok(peer);
        }
        match (role, &self.clients) {
            (Role::Server, _) => verify_server(&self.all, leaf, intermediates, now)?,
            (Role::Client, Some(clients)) => {
                clients.verify_client_cert(leaf, intermediates, now)?;
            }
            (Role::Client, None) => return Err(CertificateError::UnknownIssuer.into()),
        }
        let peer = Arc::new(Peer::read(leaf, intermediates, now)?);
        known.add(peer.clone(), now);
        Ok(peer)
    }

    /// Whether `chain`, leaf first, leads to a root.
    pub(super) fn lead_from(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        self.examine(role, leaf, intermediates, now).is_ok()
    }

    /// Whether `chain` leads to the root that is signed with now.
    pub(super) fn signs(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        chain.split_first().is_some_and(|(leaf, intermediates)| {
            verify_server(&self.signing, leaf, intermediates, now).is_ok()
        })
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn verify_server(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        intermediates,
        now,
        PROVIDER.signature_verification_algorithms.all,
    )
}

// === impl Standing ===

impl Standing {
    pub(super) fn new(trust: Trust, role: Role, peer: Arc<Peer>) -> Self {
        Self {
            // Found a moment ago; if the roots have changed since, it is examined again.
            seen: AtomicU64::new(u64::MAX),
            distrusted: AtomicBool::new(false),
            not_after: peer.not_after,
            trust,
            role,
            peer,
        }
    }

    /// No longer than until `end`.
    pub(super) fn at_most_until(mut self, end: SystemTime) -> Self {
        self.not_after = self.not_after.min(end);
        self
    }

    pub fn holds(&self) -> bool {
        let roots = self.trust.0.roots.load();
        if self.seen.load(Ordering::Acquire) != roots.generation {
            let (leaf, intermediates) = (self.peer.leaf(), self.peer.intermediates());
            let now = UnixTime::now();
            if roots.examine(self.role, leaf, intermediates, now).is_err() {
                self.distrusted.store(true, Ordering::Release);
            }
            self.seen.store(roots.generation, Ordering::Release);
        }
        !self.distrusted.load(Ordering::Acquire) && SystemTime::now() < self.not_after
    }

    /// Waits until it does not hold any more.
    pub async fn ended(&self) {
        let mut generation = self.trust.generation();
        while self.holds() {
            let left = self
                .not_after
                .duration_since(SystemTime::now())
                .unwrap_or(Duration::ZERO);
            // The sender lives in `self`: it does not go away meanwhile.
            let _ = tokio::time::timeout(left, generation.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, SanType,
    };

    struct Root {
        der: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn root(name: &str) -> Root {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Root { der, issuer }
    }

    fn bundle(roots: &[&Root]) -> Vec<Vec<u8>> {
        roots.iter().map(|root| root.der.clone()).collect()
    }

    fn leaf(root: &Root) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        let id = "spiffe://td/ns/a/sa/b".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(id)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        vec![params.signed_by(&key, &root.issuer).unwrap().into()]
    }

    fn believed(trust: &Trust, chain: &[CertificateDer<'static>]) -> bool {
        let lead = |role| trust.current().lead_from(chain, role, UnixTime::now());
        assert_eq!(lead(Role::Client), lead(Role::Server));
        lead(Role::Client)
    }

    fn standing(
        trust: &Trust,
        role: Role,
        chain: &[CertificateDer<'static>],
    ) -> Result<Standing, rustls::Error> {
        let roots = trust.current();
        let peer = roots.examine(role, &chain[0], &chain[1..], UnixTime::now())?;
        Ok(Standing::new(trust.clone(), role, peer))
    }

    #[test]
    fn without_roots_nobody_is_believed() {
        assert!(!believed(&Trust::default(), &leaf(&root("a"))));
    }

    /// The intermediate is valid from an hour ago until it `ends`.
    fn leaf_and_intermediate(root: &Root, ends: Duration) -> Vec<CertificateDer<'static>> {
        let time = |at: SystemTime| at.into();
        let now = SystemTime::now();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "between");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = time(now - Duration::from_secs(3600));
        params.not_after = time(now + ends);
        let der = params.signed_by(&key, &root.issuer).unwrap();
        let between = Root {
            der: der.der().to_vec(),
            issuer: Issuer::new(params, key),
        };
        let mut chain = leaf(&between);
        chain.push(der.into());
        chain
    }

    fn seconds(from_now: i64) -> UnixTime {
        let now = UnixTime::now().as_secs();
        UnixTime::since_unix_epoch(Duration::from_secs(now.saturating_add_signed(from_now)))
    }

    /// A chain that is known is not examined again, and passes no later, no earlier, in no other
    /// role and in no other company than if it were.
    #[test]
    fn what_is_known_of_a_chain_is_no_more_than_was_found() {
        let a = root("a");
        let trust = Trust::default();
        trust.discovered(&bundle(&[&a]));
        let roots = trust.current();
        let chain = leaf_and_intermediate(&a, Duration::from_secs(60));
        let examine = |role, chain: &[CertificateDer<'static>], now| {
            roots.examine(role, &chain[0], &chain[1..], now)
        };
        let found = examine(Role::Client, &chain, seconds(0)).unwrap();
        let again = examine(Role::Client, &chain, seconds(30)).unwrap();
        assert!(Arc::ptr_eq(&found, &again), "known");
        assert!(
            roots
                .known_servers
                .find(&chain[0], &chain[1..], seconds(0))
                .is_none()
        );
        // The intermediate ends long before the leaf, and neither was there two hours ago.
        assert!(examine(Role::Client, &chain, seconds(90)).is_err());
        assert!(examine(Role::Client, &chain, seconds(-7200)).is_err());
        // Without what it leads through, and with another that says the same.
        assert!(examine(Role::Client, &chain[..1], seconds(0)).is_err());
        let other = leaf_and_intermediate(&a, Duration::from_secs(60));
        let mixed = [chain[0].clone(), other[1].clone()];
        assert!(examine(Role::Client, &mixed, seconds(0)).is_err());
        // The signature is part of a certificate.
        let mut forged = chain[0].to_vec();
        *forged.last_mut().unwrap() ^= 1;
        let forged = [forged.into(), chain[1].clone()];
        assert!(examine(Role::Client, &forged, seconds(0)).is_err());
        // None of which has made it less known.
        let still = examine(Role::Client, &chain, seconds(0)).unwrap();
        assert!(Arc::ptr_eq(&found, &still));
        // What is known dies with the roots.
        trust.discovered(&bundle(&[&root("b")]));
        assert!(!believed(&trust, &chain));
    }

    #[test]
    fn an_intermediate_that_has_ended_and_was_not_needed_does_no_harm() {
        let a = root("a");
        let trust = Trust::default();
        trust.discovered(&bundle(&[&a]));
        let old = leaf_and_intermediate(&a, Duration::ZERO);
        let chain = [leaf(&a).remove(0), old[1].clone()];
        let roots = trust.current();
        let examine = || roots.examine(Role::Server, &chain[0], &chain[1..], seconds(10));
        assert!(Arc::ptr_eq(&examine().unwrap(), &examine().unwrap()));
    }

    #[test]
    fn a_rotation_step_by_step() {
        let (old, new) = (root("old"), root("new"));
        let (of_old, of_new) = (leaf(&old), leaf(&new));
        let trust = Trust::default();
        let signs = |chain| trust.current().signs(chain, UnixTime::now());

        trust.discovered(&bundle(&[&old]));
        assert!(believed(&trust, &of_old) && !believed(&trust, &of_new));
        trust.discovered(&bundle(&[&old, &new]));
        assert!(believed(&trust, &of_old) && believed(&trust, &of_new));
        assert!(signs(&of_old) && !signs(&of_new));
        trust.discovered(&bundle(&[&new, &old]));
        assert!(believed(&trust, &of_old) && believed(&trust, &of_new));
        assert!(!signs(&of_old) && signs(&of_new));
        trust.discovered(&[]);
        assert!(believed(&trust, &of_old), "nothing told, nothing changed");
        trust.discovered(&bundle(&[&new]));
        assert!(!believed(&trust, &of_old) && believed(&trust, &of_new));
    }

    #[test]
    fn a_certificate_brings_roots_until_discovery_does() {
        let (a, b) = (root("a"), root("b"));
        let (of_a, of_b) = (leaf(&a), leaf(&b));
        let der = |chain: &[CertificateDer<'_>]| vec![chain[0].to_vec()];
        let trust = Trust::default();
        trust.certified(&der(&of_a), &bundle(&[&a]));
        assert!(believed(&trust, &of_a));
        trust.certified(&der(&of_b), &bundle(&[&b]));
        assert!(!believed(&trust, &of_a) && believed(&trust, &of_b));

        trust.discovered(&bundle(&[&a]));
        assert!(believed(&trust, &of_a) && !believed(&trust, &of_b));
        // A replica that is behind does not bring back what discovery has dropped.
        trust.certified(&der(&of_a), &bundle(&[&a, &b]));
        assert!(!believed(&trust, &of_b));
        // One that is ahead signs with what discovery has not told of yet.
        trust.certified(&der(&of_b), &bundle(&[&b, &a]));
        assert!(believed(&trust, &of_a) && believed(&trust, &of_b));
        trust.discovered(&bundle(&[&b]));
        assert!(!believed(&trust, &of_a) && believed(&trust, &of_b));
    }

    #[test]
    fn damage_changes_nothing() {
        let a = root("a");
        let chain = leaf(&a);
        let trust = Trust::default();
        trust.discovered(&bundle(&[&a]));
        trust.discovered(&[b"nonsense".to_vec()]);
        assert!(believed(&trust, &chain));
        trust.discovered(&[a.der, b"nonsense".to_vec()]);
        assert!(believed(&trust, &chain), "the one that can be read counts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stands_while_its_peer_is_believed() {
        let (old, new) = (root("old"), root("new"));
        let trust = Trust::default();
        trust.discovered(&bundle(&[&old]));
        let standing = standing(&trust, Role::Client, &leaf(&old)).unwrap();
        assert!(standing.holds());
        trust.discovered(&bundle(&[&new, &old]));
        assert!(standing.holds(), "a change that leaves its root");
        let mut ended = std::pin::pin!(standing.ended());
        let early = tokio::time::timeout(Duration::from_secs(60), &mut ended).await;
        assert!(early.is_err());
        trust.discovered(&bundle(&[&new]));
        ended.await;
        assert!(!standing.holds());
    }

    #[test]
    fn a_connection_stands_no_longer_than_its_certificates() {
        let root = root("a");
        let trust = Trust::default();
        trust.discovered(&bundle(&[&root]));
        let (past, later) = (
            SystemTime::now() - Duration::from_secs(1),
            SystemTime::now() + Duration::from_secs(3600),
        );
        let leaf = leaf(&root);
        let standing = |end| {
            standing(&trust, Role::Server, &leaf)
                .unwrap()
                .at_most_until(end)
        };
        assert!(standing(later).holds());
        assert!(!standing(past).holds());
        assert!(!standing(later).at_most_until(past).holds());
    }
}
