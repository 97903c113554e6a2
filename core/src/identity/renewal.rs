//! One key and certificate for each identity that this proxy speaks for.
//!
//! Several workloads of one service account share one. It is made when the first
//! of them arrives, renewed at about 70 % of its life, and dropped with the last.
//! While it cannot be renewed, the old one serves until it expires.

use super::Identity;
use super::certificate::{Certificate, CertificateFailure, PendingKey};
use crate::capture::WorkloadName;
use crate::control::{Backoff, Control};
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

pub struct Identities {
    control: Control,
    metrics: Arc<Metrics>,
    held: Mutex<HashMap<Identity, Weak<Held>>>,
}

/// An identity in use. The last clone to go stops the renewal and drops the key.
pub struct Held {
    identity: Identity,
    current: watch::Receiver<Option<Arc<Certificate>>>,
    /// In whose name it may be asked for.
    workloads: Arc<Mutex<BTreeSet<WorkloadName>>>,
    renewal: AbortHandle,
    metrics: Arc<Metrics>,
}

impl Identities {
    pub fn new(control: Control, metrics: Arc<Metrics>) -> Self {
        Self {
            control,
            metrics,
            held: Mutex::default(),
        }
    }

    /// The identity, asked for in the name of `workload`, which has it.
    pub fn hold(&self, identity: &Identity, workload: &WorkloadName) -> Arc<Held> {
        let mut held = self.held.lock();
        held.retain(|_, one| one.strong_count() > 0);
        if let Some(found) = held.get(identity).and_then(Weak::upgrade) {
            found.workloads.lock().insert(workload.clone());
            return found;
        }
        let workloads = Arc::new(Mutex::new(BTreeSet::from([workload.clone()])));
        let (sender, current) = watch::channel(None);
        let renewal = tokio::spawn(renew(
            self.control.clone(),
            self.metrics.clone(),
            identity.clone(),
            workloads.clone(),
            sender,
        ));
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
        self.workloads.lock().remove(workload);
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
        self.metrics.forget_identity(&self.identity);
    }
}

async fn renew(
    control: Control,
    metrics: Arc<Metrics>,
    identity: Identity,
    workloads: Arc<Mutex<BTreeSet<WorkloadName>>>,
    current: watch::Sender<Option<Arc<Certificate>>>,
) {
    let mut backoff = Backoff::default();
    let mut refused = 0;
    loop {
        // What duet-control refuses to one workload it may grant to the next.
        let asker = {
            let workloads = workloads.lock();
            let turn = refused % workloads.len().max(1);
            workloads.iter().nth(turn).cloned()
        };
        let Some(workload) = asker else {
            // Nobody's just now; with the last handle this ends.
            tokio::time::sleep(backoff.next()).await;
            continue;
        };
        match certify(&control, &identity, &workload).await {
            Ok(certificate) => {
                backoff = Backoff::default();
                refused = 0;
                let wait = renewal_delay(&certificate, SystemTime::now());
                tracing::info!(
                    %identity,
                    valid_for = ?certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default(),
                    renewal_in = ?wait,
                    "certificate issued"
                );
                metrics.identity_certified(&identity, certificate.not_after);
                current.send_replace(Some(Arc::new(certificate)));
                tokio::time::sleep(wait).await;
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

async fn certify(
    control: &Control,
    identity: &Identity,
    workload: &WorkloadName,
) -> Result<Certificate, CertifyError> {
    let key = PendingKey::generate()?;
    let answer = control
        .certify(workload.to_string(), key.csr.clone())
        .await?;
    let certificate = Certificate::new(
        identity.clone(),
        key,
        answer.chain,
        answer.roots,
        (answer.not_before, answer.not_after),
    )?;
    if certificate.is_valid(SystemTime::now()) {
        Ok(certificate)
    } else {
        Err(CertificateFailure::Expired.into())
    }
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
