//! How it stands with the API server: told once when it changes, measured always.

use super::client::{Answer, Cluster};
use super::trouble::{self, Trouble};
use super::watch::Kind;
use crate::metrics::Metrics;
use crate::ready::Readiness;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{info, warn};

/// How often the API server is asked how it is, and what time.
pub const ASK_INTERVAL: Duration = Duration::from_secs(30);
/// Clocks that are further apart are told of. Certificates are made a little older
/// than they are, so that this much does no harm yet.
pub const MAX_SKEW_SECONDS: f64 = 10.0;

/// The name on /ready.
const API_SERVER: &str = "kubernetes";

/// Clones share it.
#[derive(Clone)]
pub struct Standing {
    url: Arc<str>,
    readiness: Readiness,
    told: Arc<Mutex<Told>>,
    up: IntGauge,
    skew: Gauge,
    failures: IntCounterVec,
}

/// What has been logged, so that it is not again.
#[derive(Default)]
struct Told {
    away: bool,
    skewed: bool,
    by_kind: BTreeMap<Kind, Trouble>,
    /// Kinds that have been listed once.
    known: Vec<Kind>,
}

// === impl Standing ===

impl Standing {
    pub fn new(url: &str, metrics: &Metrics, readiness: Readiness) -> Self {
        let failures = metrics.register(IntCounterVec::new(
            Opts::new(
                "duet_control_watch_failures_total",
                "Lists and watches of Kubernetes objects that failed, by reason.",
            ),
            &["resource", "reason"],
        ));
        for kind in Kind::ALL {
            for reason in trouble::KINDS {
                failures.with_label_values(&[kind.resource(), reason]);
            }
        }
        let standing = Self {
            url: url.into(),
            readiness,
            told: Arc::default(),
            up: metrics.register(IntGauge::new(
                "duet_control_api_server_up",
                "Whether the API server answered when it was last asked.",
            )),
            skew: metrics.register(Gauge::new(
                "duet_control_clock_skew_seconds",
                "By how much this machine's clock is ahead of the API server's.",
            )),
            failures,
        };
        let reason = format!("the API server at {url} has not answered yet");
        standing.readiness.is_missing(API_SERVER, reason);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_needed()) {
            let reason = "not listed yet";
            standing.readiness.is_missing(kind.resource(), reason);
        }
        standing
    }

    /// Asks for ever.
    pub async fn keep_asking(self, cluster: Cluster) {
        loop {
            tokio::time::sleep(ASK_INTERVAL).await;
            match cluster.ask().await {
                Ok(answer) => self.answered(&answer),
                Err(trouble) => self.unanswered(&trouble),
            }
        }
    }

    pub fn answered(&self, answer: &Answer) {
        self.is_there();
        if let Some(skew) = answer.skew {
            self.skew.set(skew);
            let skewed = skew.abs() > MAX_SKEW_SECONDS;
            let before = self.told(|told| std::mem::replace(&mut told.skewed, skewed));
            if skewed && !before {
                warn!(
                    "this machine's clock is {:.0} s {} the API server's: certificates will be \
                     refused as expired or not yet valid: set both clocks (NTP)",
                    skew.abs(),
                    if skew > 0.0 { "ahead of" } else { "behind" },
                );
            } else if before && !skewed {
                info!("this machine's clock agrees with the API server's again");
            }
        }
    }

    pub fn unanswered(&self, trouble: &Trouble) {
        self.up.set(0);
        let url = &self.url;
        let ever = self.told(|told| !told.known.is_empty());
        let problem = format!("the API server at {url} is away: {}", trouble.message());
        if self.told(|told| !std::mem::replace(&mut told.away, true)) {
            if ever {
                warn!("{problem}; the last state stays in force");
            } else {
                warn!("{problem}; asking on");
            }
        }
        if ever {
            self.readiness.is_wrong(API_SERVER, problem);
        } else {
            self.readiness.is_missing(API_SERVER, problem);
        }
    }

    fn is_there(&self) {
        self.up.set(1);
        self.readiness.is_well(API_SERVER);
        if self.told(|told| std::mem::take(&mut told.away)) {
            info!("the API server at {} answers again", self.url);
        }
    }

    /// Something of `kind` was heard.
    pub fn heard(&self, kind: Kind) {
        let (was, away) = self.told(|told| (told.by_kind.remove(&kind), told.away));
        if away {
            self.is_there();
        }
        if was.is_some() {
            self.readiness.is_well(kind.resource());
            info!("{} can be watched again", kind.resource());
        }
    }

    /// All of `kind` was.
    pub fn listed(&self, kind: Kind) {
        self.is_there();
        self.heard(kind);
        self.told(|told| {
            if !told.known.contains(&kind) {
                told.known.push(kind);
            }
        });
        self.readiness.is_well(kind.resource());
    }

    pub fn failed(&self, kind: Kind, trouble: Trouble) {
        let resource = kind.resource();
        let reason = trouble.kind();
        self.failures.with_label_values(&[resource, reason]).inc();
        match &trouble {
            Trouble::Expired(_) => return,
            Trouble::Away(_) | Trouble::Unauthorized(_) => return self.unanswered(&trouble),
            Trouble::Forbidden(_) | Trouble::Absent(_) | Trouble::Failing(_) => {}
        }
        let message = trouble.message().to_owned();
        let known = self.told(|told| told.known.contains(&kind));
        let before = self.told(|told| told.by_kind.insert(kind, trouble.clone()));
        let news = before.as_ref().map(Trouble::kind) != Some(reason);
        if kind.is_optional() && matches!(trouble, Trouble::Absent(_)) {
            self.readiness.is_well(resource);
            if news {
                info!("{message}: there are none until it has");
            }
            return;
        }
        if news {
            warn!("{message}");
        }
        if known || !kind.is_needed() {
            self.readiness.is_wrong(resource, message);
        } else {
            self.readiness.is_missing(resource, message);
        }
    }

    fn told<T>(&self, act: impl FnOnce(&mut Told) -> T) -> T {
        act(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
