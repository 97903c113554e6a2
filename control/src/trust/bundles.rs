//! The trust bundle in every namespace, for pods to mount.
//!
//! A pod must know whom to trust before it can ask anybody, and can mount only what is
//! in its own namespace. So the leader keeps one ConfigMap in each that is not on its
//! way out. Both sides are watched, and whatever is missing or altered is written
//! again: at a bounded rate, and ever more slowly where somebody keeps altering it.

use super::{Trust, TrustMetrics, labels};
use crate::leader::Leader;
use crate::source::kube::Trouble;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The ConfigMap in each namespace.
pub const CONFIG_MAP: &str = "duet-trust-bundle";
/// Its key.
pub const KEY: &str = "root.pem";

const FIELD_MANAGER: &str = "duet-control";
/// Writes are at least this far apart: 50 a second.
const PACE: Duration = Duration::from_millis(20);
/// Written before the cluster is looked at again.
const BATCH: usize = 50;
/// After a write to a namespace, doubled up to the longest while it does not last.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How far a bundle has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// PEM.
    pub bundle: String,
    /// Namespaces that do not have it.
    pub missing: usize,
}

pub(super) struct Bundles {
    pub client: Client,
    pub trust: Trust,
    /// Label selector.
    pub namespaces: Option<String>,
    pub reached: watch::Sender<Reached>,
    pub metrics: TrustMetrics,
}

/// What is known of the cluster. `None` until everything was listed once.
#[derive(Default)]
struct Known {
    /// Those that stay.
    namespaces: Listed<()>,
    bundles: Listed<Bundle>,
}

#[derive(Clone)]
struct Bundle {
    pem: Option<String>,
    immutable: bool,
    uid: Option<String>,
}

/// A watched collection, by namespace.
struct Listed<T> {
    all: Option<HashMap<String, T>>,
    listing: HashMap<String, T>,
}

#[derive(Clone, Copy)]
struct Attempt {
    next: Instant,
    pause: Duration,
}

// === impl Bundles ===

impl Bundles {
    /// Runs for ever.
    pub async fn run(self, leader: Leader) {
        leader.while_leading(|| self.lead()).await;
    }

    /// One term as leader.
    async fn lead(&self) {
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
        let config_maps = Api::<ConfigMap>::all(self.client.clone());
        let ours = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let selected = match &self.namespaces {
            Some(labels) => watcher::Config::default().labels(labels),
            None => watcher::Config::default(),
        };
        let mut namespaces = pin!(watcher(namespaces, selected).default_backoff());
        let mut config_maps = pin!(watcher(config_maps, ours).default_backoff());
        let mut trust = self.trust.clone();
        let mut known = Known::default();
        let mut attempts: HashMap<String, Attempt> = HashMap::new();
        self.reached.send_replace(Reached::default());
        loop {
            let bundle = trust.newest().bundle_pem();
            let stale = known.without(&bundle);
            if let Some(stale) = &stale {
                let missing = stale.len();
                self.metrics
                    .stale_namespaces
                    .set(i64::try_from(missing).unwrap_or(i64::MAX));
                let reached = Reached {
                    bundle: bundle.clone(),
                    missing,
                };
                self.reached.send_if_modified(|before| {
                    let changed = *before != reached;
                    *before = reached;
                    changed
                });
                let now = Instant::now();
                attempts.retain(|name, attempt| {
                    stale.contains(name) || now < attempt.next + attempt.pause
                });
            }
            let now = Instant::now();
            let due = |name: &String| attempts.get(name).map_or(now, |attempt| attempt.next);
            let next = stale.iter().flatten().map(due).min();
            let next = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(event) = namespaces.next() => match event {
                    Ok(event) => known.namespaces.take(event, |namespace| {
                        let stays = namespace.metadata.deletion_timestamp.is_none();
                        Some((namespace.name_any(), stays.then_some(())))
                    }),
                    Err(error) => warn!("{}", Trouble::of_watch("namespaces", &error).message()),
                },
                Some(event) = config_maps.next() => match event {
                    Ok(event) => known.bundles.take(event, |config_map| {
                        let namespace = config_map.namespace()?;
                        let bundle = Bundle {
                            pem: config_map.data.as_ref().and_then(|data| data.get(KEY).cloned()),
                            immutable: config_map.immutable == Some(true),
                            uid: config_map.uid(),
                        };
                        Some((namespace, Some(bundle)))
                    }),
                    Err(error) => warn!("{}", Trouble::of_watch("configmaps", &error).message()),
                },
                () = trust.changed() => {}
                () = next => {
                    let now = Instant::now();
                    let is_due = |name: &String| {
                        attempts.get(name).is_none_or(|attempt| attempt.next <= now)
                    };
                    let batch: Vec<_> = stale.into_iter().flatten().filter(is_due).take(BATCH).collect();
                    for name in batch {
                        self.write(&name, known.bundles.get(&name), &bundle).await;
                        let attempt = attempts.entry(name).or_insert(Attempt {
                            next: now,
                            pause: PAUSE / 2,
                        });
                        attempt.pause = (attempt.pause * 2).min(LONGEST_PAUSE);
                        attempt.next = Instant::now() + attempt.pause;
                        tokio::time::sleep(PACE).await;
                    }
                }
            }
        }
    }

    async fn write(&self, namespace: &str, before: Option<&Bundle>, pem: &str) {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let wanted = ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), pem.to_owned())])),
            ..ConfigMap::default()
        };
        let write = async {
            if let Some(before) = before.filter(|before| before.immutable) {
                let this_one = DeleteParams::default().preconditions(Preconditions {
                    uid: before.uid.clone(),
                    resource_version: None,
                });
                api.delete(CONFIG_MAP, &this_one).await?;
            }
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            api.patch(CONFIG_MAP, &parameters, &Patch::Apply(&wanted))
                .await
        };
        let outcome = tokio::time::timeout(REQUEST_TIMEOUT, write).await;
        let (label, problem) = match outcome {
            Ok(Ok(_)) => ("written", None),
            // It is on its way out, and the watch has not said so yet.
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => ("gone", None),
            Ok(Err(kube::Error::Api(status))) if status.message.contains("being terminated") => {
                ("gone", None)
            }
            Ok(Err(error)) => {
                let trouble = Trouble::of("write", "configmaps", &error);
                ("failed", Some(trouble.message().to_owned()))
            }
            Err(_) => ("failed", Some(format!("no answer in {REQUEST_TIMEOUT:?}"))),
        };
        self.metrics.bundle_writes.with_label_values(&[label]).inc();
        match (problem, before) {
            (Some(problem), _) => warn!(namespace, "ConfigMap {CONFIG_MAP}: {problem}"),
            (None, Some(_)) => info!(namespace, "ConfigMap {CONFIG_MAP} brought up to date"),
            (None, None) => debug!(namespace, "ConfigMap {CONFIG_MAP}: {label}"),
        }
    }
}

// === impl Known ===

impl Known {
    /// Namespaces whose bundle is not `pem`; `None` while that is not known.
    fn without(&self, pem: &str) -> Option<Vec<String>> {
        let (namespaces, bundles) = (self.namespaces.all.as_ref()?, self.bundles.all.as_ref()?);
        let has = |name: &String| {
            let bundle = bundles.get(name);
            bundle.is_some_and(|bundle| bundle.pem.as_deref() == Some(pem))
        };
        Some(
            namespaces
                .keys()
                .filter(|name| !has(name))
                .cloned()
                .collect(),
        )
    }
}

// === impl Listed ===

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            all: None,
            listing: HashMap::new(),
        }
    }
}

impl<T> Listed<T> {
    fn get(&self, name: &str) -> Option<&T> {
        self.all.as_ref()?.get(name)
    }

    /// `read` gives an object's namespace, and what there is to know of it; nothing, if
    /// it is as good as deleted.
    fn take<K>(&mut self, event: Event<K>, read: impl Fn(&K) -> Option<(String, Option<T>)>) {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                if let Some((name, Some(value))) = read(&object) {
                    self.listing.insert(name, value);
                }
            }
            Event::InitDone => self.all = Some(std::mem::take(&mut self.listing)),
            Event::Apply(object) => {
                let all = self.all.get_or_insert_default();
                match read(&object) {
                    Some((name, Some(value))) => drop(all.insert(name, value)),
                    Some((name, None)) => drop(all.remove(&name)),
                    None => {}
                }
            }
            Event::Delete(object) => {
                if let (Some((name, _)), Some(all)) = (read(&object), &mut self.all) {
                    all.remove(&name);
                }
            }
        }
    }
}
