//! Which replica writes.
//!
//! All replicas serve; what is written to the API server (the CA, trust bundles,
//! statuses) is one replica's business, the one that holds a Lease. The rules are
//! those of client-go's leader election. Nobody compares a time in the Lease with its
//! own clock: a holder is taken for gone when *this* replica has seen the Lease
//! unchanged for as long as it is good, and a holder that could not renew for
//! [`RENEW_DEADLINE`] stops by itself, before others may take over. Every write names
//! the version it is based on, so of two that try at once one fails.
//!
//! No crate does this with the version of kube that Gateway API's types need without
//! comparing clocks.

use crate::source::kube::Trouble;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use prometheus::{IntGauge, Registry};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The Lease, in duet-control's own namespace.
pub const LEASE: &str = "duet-control";
/// How long others leave the Lease alone after a renewal. As client-go's components.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader that has not renewed for this long is none any more.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the Lease is looked at, shortened by up to a fifth.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// An API server that takes longer is asked again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a holder that leaves keeps others waiting.
const RELEASED_DURATION: i32 = 1;

/// Whether this replica leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leader(watch::Receiver<Option<Instant>>);

struct Election {
    api: Api<Lease>,
    identity: String,
    /// The Lease as it was seen last, and since when it has looked like that.
    observed: Option<(Lease, Instant)>,
    /// Until when this replica leads.
    leading: watch::Sender<Option<Instant>>,
    gauge: IntGauge,
}

// === impl Leader ===

impl Leader {
    /// Takes part in the election until `shutdown`, and then lets go of the Lease.
    /// `replica` names this process among others, as its pod does.
    ///
    /// # Panics
    /// When called twice with one registry.
    pub fn elect(
        client: Client,
        namespace: &str,
        replica: &str,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Self {
        let gauge = IntGauge::new(
            "duet_control_leader",
            "1, while this replica is the one that writes.",
        )
        .expect("the name is a literal");
        registry
            .register(Box::new(gauge.clone()))
            .expect("there is one election");
        let (leading, receiver) = watch::channel(None);
        let election = Election {
            api: Api::namespaced(client, namespace),
            // A container that was restarted in its pod is another holder.
            identity: format!("{replica}_{:08x}", u32::from_be_bytes(crate::ca::random())),
            observed: None,
            leading,
            gauge,
        };
        tokio::spawn(election.run(shutdown));
        Self(receiver)
    }

    pub fn is_leader(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until this replica leads; for ever if it never will.
    pub async fn elected(&self) {
        let mut leading = self.0.clone();
        let leads = |until: &Option<Instant>| until.is_some_and(|until| Instant::now() < until);
        if leading.wait_for(leads).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this replica does not lead any more.
    pub async fn deposed(&self) {
        let mut leading = self.0.clone();
        loop {
            let until = *leading.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else {
                return;
            };
            if let Ok(Err(_)) = tokio::time::timeout_at(until, leading.changed()).await {
                return;
            }
        }
    }

    /// Does `work` in each term as leader, and drops it where it stands when the term
    /// ends. Never returns.
    pub async fn while_leading<F: Future<Output = ()>>(&self, mut work: impl FnMut() -> F) {
        loop {
            self.elected().await;
            tokio::select! {
                () = work() => self.deposed().await,
                () = self.deposed() => {}
            }
        }
    }

    /// Waits until the election is over and the Lease let go of.
    pub async fn released(&self) {
        let mut leading = self.0.clone();
        while leading.changed().await.is_ok() {}
    }
}

// === impl Election ===

impl Election {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut failing = false;
        loop {
            // Counted from before the request: to others it may have been that early.
            let asked = Instant::now();
            let attempt = tokio::time::timeout(REQUEST_TIMEOUT, self.acquire_or_renew());
            let outcome = tokio::select! {
                outcome = attempt => outcome,
                () = shutdown.cancelled() => break,
            };
            let problem = match outcome {
                Ok(Ok(true)) => {
                    self.lead_until(asked + RENEW_DEADLINE);
                    None
                }
                Ok(Ok(false)) => {
                    self.step_down("another replica holds the Lease");
                    None
                }
                Ok(Err(error)) => Some(message(&error)),
                Err(_) => Some(format!("no answer in {REQUEST_TIMEOUT:?}")),
            };
            if let Some(problem) = problem {
                // What a failed write left behind is seen by the next look.
                self.observed = self.observed.take().map(|(mut lease, since)| {
                    lease.metadata.resource_version = None;
                    (lease, since)
                });
                if !std::mem::replace(&mut failing, true) {
                    warn!(lease = LEASE, "leader election: {problem}");
                }
                let late = self
                    .leading
                    .borrow()
                    .is_some_and(|until| Instant::now() >= until);
                if late {
                    self.step_down("the Lease could not be renewed");
                }
            } else {
                failing = false;
            }
            let pause = RETRY_PERIOD.mul_f64(1.0 - fastrand::f64() / 5.0);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.release().await;
    }

    /// Whether this replica holds the Lease now.
    async fn acquire_or_renew(&mut self) -> kube::Result<bool> {
        let leads = self.leading.borrow().is_some();
        let known = self.observed.as_ref().map(|(lease, _)| lease.clone());
        let current = match known {
            // A leader's own last write is most often still the newest.
            Some(lease) if leads && lease.metadata.resource_version.is_some() => lease,
            _ => match self.api.get_opt(LEASE).await? {
                Some(lease) => lease,
                None => return self.create().await,
            },
        };
        let spec = current.spec.clone().unwrap_or_default();
        if self
            .observed
            .as_ref()
            .is_none_or(|(seen, _)| seen.spec != current.spec)
        {
            self.observed = Some((current.clone(), Instant::now()));
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let is_own = holder == self.identity;
        if !holder.is_empty() && !is_own && !self.is_over(&spec) {
            return Ok(false);
        }

        let mut wanted = current;
        let transitions = spec.lease_transitions.unwrap_or_default();
        wanted.spec = Some(LeaseSpec {
            acquire_time: spec.acquire_time.filter(|_| is_own).or_else(now),
            lease_transitions: Some(if is_own { transitions } else { transitions + 1 }),
            ..self.held()
        });
        match self
            .api
            .replace(LEASE, &PostParams::default(), &wanted)
            .await
        {
            Ok(written) => {
                self.observed = Some((written, Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                // Somebody else wrote: whose it is now is seen at the next look, and
                // until the deadline this replica may go on.
                debug!(lease = LEASE, "leader election: {}", status.message);
                if let Some((lease, _)) = &mut self.observed {
                    lease.metadata.resource_version = None;
                }
                if leads {
                    self.look_again().await
                } else {
                    Ok(false)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// After a write that met another: whose is it?
    async fn look_again(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(LEASE).await? else {
            return self.create().await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let is_own = spec.holder_identity.as_deref() == Some(&*self.identity);
        self.observed = Some((lease, Instant::now()));
        Ok(is_own)
    }

    async fn create(&mut self) -> kube::Result<bool> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                acquire_time: now(),
                lease_transitions: Some(0),
                ..self.held()
            }),
        };
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(written) => {
                self.observed = Some((written, Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn held(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            renew_time: now(),
            ..LeaseSpec::default()
        }
    }

    /// Whether the holder has been silent for as long as it may be.
    fn is_over(&self, spec: &LeaseSpec) -> bool {
        let good_for = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE_DURATION, Duration::from_secs);
        self.observed
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() >= good_for)
    }

    fn lead_until(&self, until: Instant) {
        if self.leading.send_replace(Some(until)).is_none() {
            info!(
                lease = LEASE,
                identity = self.identity,
                "this replica leads"
            );
        }
        self.gauge.set(1);
    }

    fn step_down(&self, why: &str) {
        if self.leading.send_replace(None).is_some() {
            warn!(
                lease = LEASE,
                identity = self.identity,
                "this replica leads no more: {why}"
            );
        }
        self.gauge.set(0);
    }

    async fn release(mut self) {
        if self.leading.send_replace(None).is_none() {
            return;
        }
        self.gauge.set(0);
        let release = async || -> kube::Result<()> {
            // A renewal that was under way may have arrived.
            let Some(mut lease) = self.api.get_opt(LEASE).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&*self.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(RELEASED_DURATION);
            spec.renew_time = now();
            let parameters = PostParams::default();
            self.api.replace(LEASE, &parameters, &lease).await?;
            Ok(())
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, release()).await {
            Ok(Ok(())) => info!(lease = LEASE, "the Lease is let go of"),
            Ok(Err(error)) => {
                warn!(
                    lease = LEASE,
                    "the Lease was not let go of: {}",
                    message(&error)
                );
            }
            Err(_) => warn!(lease = LEASE, "the Lease was not let go of: no answer"),
        }
        self.observed = None;
    }
}

fn message(error: &kube::Error) -> String {
    let trouble = Trouble::of("read or write", "leases.coordination.k8s.io", error);
    trouble.message().to_owned()
}

fn now() -> Option<MicroTime> {
    Some(MicroTime(Timestamp::now()))
}
