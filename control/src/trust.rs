//! Who signs now and whom proxies are told to trust, from wherever that is kept.
//!
//! Everything that signs or tells of roots holds a [`Trust`], which always has the
//! last good [`Authority`] and says when there is another. With a file as the source
//! that never happens; with Kubernetes, [`KubeTrust`] follows a Secret, keeps it as
//! the leader, and brings the roots into every namespace.

mod bundles;
mod keeper;
mod rotate;
mod rotation;
mod secret;

pub use bundles::{CONFIG_MAP, KEY as CONFIG_MAP_KEY};
pub use rotate::{RotateError, rotate_root};
pub use rotation::{OVERLAP, SLACK, Settings};
pub use secret::SECRET;

use crate::ca::Authority;
use crate::leader::Leader;
use crate::ready::Readiness;
use bundles::{Bundles, Reached};
use keeper::{Keeper, Tells};
use kube::Client;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use rotation::Held;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// What /ready names while there is no CA, or something is wrong with it.
const READY: &str = "ca";

/// The authority in force. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust(watch::Receiver<Arc<Authority>>);

/// A [`Trust`] that is kept in a Secret. Dropped, it stays as it is.
pub struct KubeTrust {
    trust: Trust,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct TrustMetrics {
    /// 0, while something is wrong with the Secret and what it said before is in force.
    secret_good: IntGauge,
    ends: IntGauge,
    roots: IntGauge,
    stale_namespaces: IntGauge,
    bundle_writes: IntCounterVec,
}

// === impl Trust ===

impl Trust {
    /// One that changes when something else is sent.
    pub fn following(authorities: watch::Receiver<Arc<Authority>>) -> Self {
        Self(authorities)
    }

    pub fn current(&self) -> Arc<Authority> {
        self.0.borrow().clone()
    }

    /// As [`Self::current`]; from here on [`Self::changed`] waits for another.
    pub fn newest(&mut self) -> Arc<Authority> {
        self.0.borrow_and_update().clone()
    }

    /// The roots of [`Self::newest`], DER, the one that is signed with first.
    pub fn newest_roots(&mut self) -> Vec<Vec<u8>> {
        let authority = self.newest();
        let roots = authority.bundle().iter();
        roots.map(|root| root.to_vec()).collect()
    }

    /// Waits for a change since it was last looked at, or since this was cloned; for
    /// ever if there will be none.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// One that stays.
impl From<Authority> for Trust {
    fn from(authority: Authority) -> Self {
        let (_, receiver) = watch::channel(Arc::new(authority));
        Self(receiver)
    }
}

// === impl KubeTrust ===

impl KubeTrust {
    /// Waits until there is a CA, as long as it takes: /ready says why. `namespace` is
    /// duet-control's own.
    ///
    /// # Panics
    /// When called twice with one registry.
    pub async fn start(
        client: Client,
        namespace: &str,
        settings: Settings,
        leader: Leader,
        registry: &Registry,
        readiness: Readiness,
    ) -> Self {
        readiness.is_missing(
            READY,
            format!("Secret {namespace}/{SECRET} was not read yet"),
        );
        let metrics = TrustMetrics::new(registry);
        let namespaces = settings.namespaces.clone();
        let (first, ready) = oneshot::channel();
        let (reached, has_reached) = watch::channel(Reached::default());
        let keeper = Keeper::new(
            client.clone(),
            namespace,
            settings,
            leader.clone(),
            Tells {
                first: Some(first),
                reached: has_reached,
                metrics: metrics.clone(),
                readiness,
            },
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run());
        let Ok(trust) = ready.await else {
            unreachable!("the keeper runs for ever, and sends once");
        };
        let bundles = Bundles {
            client,
            trust: trust.clone(),
            namespaces,
            reached,
            metrics,
        };
        tasks.spawn(bundles.run(leader));
        Self {
            trust,
            _tasks: tasks,
        }
    }

    pub fn trust(&self) -> Trust {
        self.trust.clone()
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            cert_lifetime: crate::ca::DEFAULT_CERT_LIFETIME,
            overlap: OVERLAP,
            slack: SLACK,
            root_lifetime: crate::ca::ROOT_LIFETIME,
            namespaces: None,
        }
    }
}

// === impl TrustMetrics ===

impl TrustMetrics {
    fn new(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("the name is a literal");
            registry
                .register(Box::new(gauge.clone()))
                .expect("each name is registered once");
            gauge
        };
        let bundle_writes = IntCounterVec::new(
            Opts::new(
                "duet_control_trust_bundle_writes_total",
                "Writes of the trust bundle to namespaces, by outcome.",
            ),
            &["outcome"],
        )
        .expect("the name is a literal");
        registry
            .register(Box::new(bundle_writes.clone()))
            .expect("each name is registered once");
        for outcome in ["written", "gone", "failed"] {
            bundle_writes.with_label_values(&[outcome]);
        }
        Self {
            secret_good: gauge(
                "duet_control_ca_secret_good",
                "0, while the CA's Secret cannot be used and the CA it had before is in force.",
            ),
            ends: gauge(
                "duet_control_ca_expiry_timestamp_seconds",
                "When the CA that signs now ends.",
            ),
            roots: gauge(
                "duet_control_trusted_roots",
                "Roots in the trust bundle; more than one while a root is rotated.",
            ),
            stale_namespaces: gauge(
                "duet_control_trust_bundle_stale_namespaces",
                "Namespaces without the newest trust bundle, as the leader sees it.",
            ),
            bundle_writes,
        }
    }

    fn in_force(&self, held: &Held) {
        self.ends.set(held.signing.not_after().unix_timestamp());
        let roots = held.authority().bundle().len();
        self.roots.set(i64::try_from(roots).unwrap_or(i64::MAX));
    }
}

/// On everything that duet-control makes.
fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/managed-by".into(), "duet-control".into()),
        ("app.kubernetes.io/part-of".into(), "duet".into()),
    ])
}
