//! One key and certificate for each identity that this proxy speaks for.
//!
//! Several workloads of one service account share one. It is made when the first
//! of them arrives, renewed at about 70 % of its life, and dropped with the last.
//! While it cannot be renewed, the old one serves until it expires. It is renewed
//! early when the mesh has come to sign with another root than the one it leads to.

use super::Identity;
use super::certificate::{Certificate, CertificateFailure, PendingKey};
use super::trust::{Roots, Trust};
use crate::capture::WorkloadName;
use crate::control::{Backoff, Control};
use crate::runtime::vital;
use crate::telemetry::Metrics;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Renewed at this share of a certificate's life, ± [`JITTER`].
const RENEW_AT: f64 = 0.7;
const JITTER: f64 = 0.05;
/// A certificate is never renewed more often than this.
const MIN_RENEWAL: Duration = Duration::from_secs(1);
/// When the mesh signs with another root, all certificates are renewed within this
/// time, or a tenth of what is left of their lives: ten thousand of them then are
/// about 30 a second.
const SPREAD: Duration = Duration::from_secs(5 * 60);
const SPREAD_SHARE: f64 = 0.1;

pub struct Identities {
    control: Control,
    trust: Trust,
    metrics: Arc<Metrics>,
    held: Mutex<HashMap<Identity, Weak<Held>>>,
}

/// In whose name an identity is asked for. None once nobody has it any more.
type Askers = Arc<Mutex<Option<BTreeSet<WorkloadName>>>>;

/// An identity in use. The last clone to go stops the renewal and drops the key.
pub struct Held {
    identity: Identity,
    current: watch::Receiver<Option<Arc<Certificate>>>,
    /// In whose name it may be asked for.
    workloads: Askers,
    renewal: AbortHandle,
    metrics: Arc<Metrics>,
}

impl Identities {
    pub fn new(control: Control, trust: Trust, metrics: Arc<Metrics>) -> Self {
        Self {
            control,
            trust,
            metrics,
            held: Mutex::default(),
        }
    }

    /// The identity, asked for in the name of `workload`, which has it.
    pub fn hold(&self, identity: &Identity, workload: &WorkloadName) -> Arc<Held> {
        let mut held = self.held.lock();
        held.retain(|_, one| one.strong_count() > 0);
        if let Some(found) = held.get(identity).and_then(Weak::upgrade) {
            if let Some(workloads) = &mut *found.workloads.lock() {
                workloads.insert(workload.clone());
            }
            return found;
        }
        let workloads = Arc::new(Mutex::new(Some(BTreeSet::from([workload.clone()]))));
        let (sender, current) = watch::channel(None);
        let renewal = tokio::spawn(vital(renew(
            self.control.clone(),
            self.trust.clone(),
            self.metrics.clone(),
            identity.clone(),
            workloads.clone(),
            sender,
        )));
        let new = Arc::new(Held {
            identity: identity.clone(),
            current,
            workloads,
            renewal: renewal.abort_handle(),
            metrics: self.metrics.clone(),
        });
        held.insert(identity.clone(), Arc::downgrade(&new));
        new
    }

    /// For /config and /ready: every identity held, and its certificate if there is one.
    pub fn list(&self) -> Vec<(Identity, Option<Arc<Certificate>>)> {
        let held = self.held.lock();
        held.values()
            .filter_map(Weak::upgrade)
            .map(|one| (one.identity.clone(), one.current.borrow().clone()))
            .collect()
    }
}

impl Held {
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// It is no longer asked for in the name of `workload`.
    pub fn release(&self, workload: &WorkloadName) {
        if let Some(workloads) = &mut *self.workloads.lock() {
            workloads.remove(workload);
        }
    }

    /// The certificate, if there is one and it is still good.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        let current = self.current.borrow();
        current
            .as_ref()
            .filter(|one| one.is_valid(SystemTime::now()))
            .cloned()
    }

    /// As [`Self::certificate`], but waits for one.
    pub async fn ready(&self) -> Option<Arc<Certificate>> {
        if let Some(certificate) = self.certificate() {
            return Some(certificate);
        }
        let mut current = self.current.clone();
        let good = |one: &Option<Arc<Certificate>>| {
            one.as_ref()
                .is_some_and(|one| one.is_valid(SystemTime::now()))
        };
        current.wait_for(good).await.ok()?.clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
        // It may be in the middle of something: what it does under this lock it does before.
        let mut workloads = self.workloads.lock();
        *workloads = None;
        self.metrics.forget_identity(&self.identity);
    }
}

async fn renew(
    control: Control,
    trust: Trust,
    metrics: Arc<Metrics>,
    identity: Identity,
    workloads: Askers,
    current: watch::Sender<Option<Arc<Certificate>>>,
) {
    let mut backoff = Backoff::default();
    let mut refused = 0;
    let mut renewed_for = None;
    loop {
        // What duet-control refuses to one workload it may grant to the next.
        let asker = {
            let workloads = workloads.lock();
            let Some(workloads) = &*workloads else {
                return;
            };
            let turn = refused % workloads.len().max(1);
            workloads.iter().nth(turn).cloned()
        };
        let Some(workload) = asker else {
            // Nobody's just now; with the last handle this ends.
            tokio::time::sleep(backoff.next()).await;
            continue;
        };
        match certify(&control, &trust, &identity, &workload).await {
            Ok(certificate) => {
                let certificate = Arc::new(certificate);
                backoff = Backoff::default();
                refused = 0;
                let wait = renewal_delay(&certificate, SystemTime::now());
                tracing::info!(
                    %identity,
                    valid_for = ?certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default(),
                    renewal_in = ?wait,
                    "certificate issued"
                );
                {
                    let workloads = workloads.lock();
                    if workloads.is_none() {
                        return;
                    }
                    metrics.identity_certified(&identity, certificate.not_after);
                }
                current.send_replace(Some(certificate.clone()));
                let until_superseded = superseded(&trust, &certificate, &mut renewed_for);
                if let Ok(roots) = tokio::time::timeout(wait, until_superseded).await {
                    let wait = spread(&certificate, SystemTime::now());
                    tracing::info!(
                        %identity,
                        roots = roots.certificates().len(),
                        renewal_in = ?wait,
                        "the mesh signs with another root"
                    );
                    tokio::time::sleep(wait).await;
                }
            }
            Err(reason) => {
                let wait = backoff.next();
                refused += 1;
                metrics.certify_failed();
                tracing::warn!(%identity, %reason, retry = ?wait, "no certificate");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CertifyError {
    #[error(transparent)]
    Certificate(#[from] CertificateFailure),
    #[error("duet-control: {}: {}", .0.code(), .0.message())]
    Control(#[from] tonic::Status),
}

/// Waits until the mesh signs with another root than the one `certificate` leads to.
/// A bundle is reason enough for one renewal: whoever answered that one may not have
/// known of it yet, and then the certificate's own end is soon enough.
async fn superseded(
    trust: &Trust,
    certificate: &Certificate,
    renewed_for: &mut Option<u64>,
) -> Arc<Roots> {
    let mut generation = trust.generation();
    loop {
        let roots = trust.current();
        if *renewed_for != Some(roots.generation) && !certificate.is_of_signing_root() {
            *renewed_for = Some(roots.generation);
            return roots;
        }
        if generation.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn certify(
    control: &Control,
    trust: &Trust,
    identity: &Identity,
    workload: &WorkloadName,
) -> Result<Certificate, CertifyError> {
    let key = PendingKey::generate()?;
    let answer = control
        .certify(workload.to_string(), key.csr.clone())
        .await?;
    trust.certified(&answer.chain, &answer.roots);
    let certificate = Certificate::new(
        identity.clone(),
        key,
        answer.chain,
        trust.clone(),
        (answer.not_before, answer.not_after),
    )?;
    if let Some(skew) = certificate.check_clock(SystemTime::now())? {
        tracing::warn!(%identity, "{skew}");
    }
    Ok(certificate)
}

/// At 70 % of what was left of its life when it arrived: certificates are
/// back-dated against skewed clocks, and that part is not life.
fn renewal_delay(certificate: &Certificate, now: SystemTime) -> Duration {
    let left = certificate
        .not_after
        .duration_since(now)
        .unwrap_or_default();
    let share = RENEW_AT + JITTER * (2.0 * fastrand::f64() - 1.0);
    left.mul_f64(share).max(MIN_RENEWAL)
}

/// Somewhere in [`SPREAD`]; at once if peers do not believe it any more.
fn spread(certificate: &Certificate, now: SystemTime) -> Duration {
    if !certificate.is_believed() {
        return MIN_RENEWAL.mul_f64(fastrand::f64());
    }
    let left = certificate
        .not_after
        .duration_since(now)
        .unwrap_or_default();
    SPREAD
        .min(left.mul_f64(SPREAD_SHARE))
        .mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    };
    use std::time::UNIX_EPOCH;

    const ID: &str = "spiffe://td/ns/a/sa/b";

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

    fn certificate(root: &Root, trust: &Trust, lifetime: Duration) -> Certificate {
        let key = PendingKey::generate().unwrap();
        let mut request =
            CertificateSigningRequestParams::from_der(&key.csr.as_slice().into()).unwrap();
        request.params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
        request.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = request.signed_by(&root.issuer).unwrap().der().to_vec();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap();
        let validity = (seconds(now), seconds(now + lifetime));
        Certificate::new(ID.into(), key, vec![leaf], trust.clone(), validity).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn another_signing_root_is_reason_enough_once() {
        let (old, new) = (root("old"), root("new"));
        let trust = Trust::default();
        trust.discovered(std::slice::from_ref(&old.der));
        let first = certificate(&old, &trust, Duration::from_secs(86_400));
        let mut renewed_for = None;
        let minute = Duration::from_secs(60);
        let quiet = async |certificate: &Certificate, renewed_for: &mut Option<u64>| {
            let superseded = superseded(&trust, certificate, renewed_for);
            tokio::time::timeout(minute, superseded).await.is_err()
        };
        assert!(quiet(&first, &mut renewed_for).await);
        trust.discovered(&[old.der.clone(), new.der.clone()]);
        assert!(quiet(&first, &mut renewed_for).await, "it is only told of");
        assert!(spread(&first, SystemTime::now()) <= SPREAD);

        trust.discovered(&[new.der.clone(), old.der.clone()]);
        assert!(!quiet(&first, &mut renewed_for).await, "now it signs");
        // The replica that was asked did not know it yet: once is enough.
        let again = certificate(&old, &trust, Duration::from_secs(86_400));
        assert!(quiet(&again, &mut renewed_for).await);
        let second = certificate(&new, &trust, Duration::from_secs(86_400));
        trust.discovered(&[new.der]);
        assert!(quiet(&second, &mut renewed_for).await);
        // Nobody believes the old one any more.
        assert!(!quiet(&again, &mut renewed_for).await);
        assert!(spread(&again, SystemTime::now()) <= MIN_RENEWAL);
    }

    #[test]
    fn a_short_life_is_spread_over_little() {
        let root = root("root");
        let trust = Trust::default();
        trust.discovered(std::slice::from_ref(&root.der));
        let certificate = certificate(&root, &trust, Duration::from_secs(100));
        for _ in 0..100 {
            let spread = spread(&certificate, SystemTime::now());
            assert!(spread <= Duration::from_secs(10), "{spread:?}");
        }
    }
}
