//! `Discovery.Watch`: who is where, first whole, then what changed.
//!
//! Each watcher remembers the state that it was sent last, and how much of it. When
//! it has room for another update, that state is compared with the newest one;
//! whatever happened between the two is one delta. A watcher that is slow therefore
//! costs one update in its queue and what has changed since in memory, however often
//! the mesh changes, and one that stops reading is cut: it comes back to a snapshot.

mod encoding;
mod server;

pub(crate) use server::DiscoveryServer;

use crate::auth::{Authenticator, Caller, authenticate};
use crate::metrics::Metrics;
use crate::source::States;
use crate::state::{MeshState, Scope};
use crate::trust::Trust;
use duet_core::api::{Update, WatchRequest};
use encoding::{Encoded, Encodings};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tracing::{debug, warn};

const WATCH_PATH: &str = "/duet.v1alpha1.Discovery/Watch";
/// Updates that wait in front of a watcher; later changes join the next one.
pub const WATCH_QUEUE: usize = 1;
/// A watcher that has not taken an update for this long, while another waited, is
/// cut. A proxy reads at once; only a stopped one is this late.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct DiscoveryService {
    pub authenticator: Arc<dyn Authenticator>,
    pub states: States,
    pub trust: Trust,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
    pub encodings: Arc<Encodings>,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    ByWatcher,
    BySource,
    ByShutdown,
    Stalled,
}

// === impl DiscoveryService ===

impl DiscoveryService {
    /// The updates of a new watch. They end when the watch does.
    async fn watch(
        &self,
        metadata: &MetadataMap,
        request: WatchRequest,
    ) -> Result<mpsc::Receiver<Encoded>, Status> {
        let caller = authenticate(&*self.authenticator, metadata).await?;
        let proxy = request.proxy;
        let (queue, updates) = mpsc::channel(WATCH_QUEUE);
        let feed = Feed {
            states: self.states.clone(),
            trust: self.trust.clone(),
            encodings: self.encodings.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        };
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            debug!(?proxy, %caller, "a proxy watches");
            metrics.watchers.inc();
            let ended = feed.run(&caller, queue).await;
            metrics.watchers.dec();
            if ended == Ended::Stalled {
                metrics.watchers_stalled.inc();
                warn!(?proxy, %caller, "watch cut: nothing was read for {STALL_TIMEOUT:?}");
            } else {
                debug!(?proxy, %caller, ?ended, "watch ended");
            }
        });
        Ok(updates)
    }
}

/// What one watcher is told from.
struct Feed {
    states: States,
    trust: Trust,
    encodings: Arc<Encodings>,
    metrics: Metrics,
    shutdown: CancellationToken,
}

/// What a watcher was told last.
struct Heard {
    state: Arc<MeshState>,
    scope: Scope,
    roots: Vec<Vec<u8>>,
}

// === impl Feed ===

impl Feed {
    async fn run(mut self, caller: &Caller, queue: mpsc::Sender<Encoded>) -> Ended {
        let mut heard: Option<Heard> = None;
        loop {
            let room = tokio::select! {
                room = tokio::time::timeout(STALL_TIMEOUT, queue.reserve()) => match room {
                    Ok(Ok(room)) => room,
                    Ok(Err(_)) => return Ended::ByWatcher,
                    Err(_) => return Ended::Stalled,
                },
                () = self.shutdown.cancelled() => return Ended::ByShutdown,
            };
            let (now, update) = self.newest(caller, heard.as_ref());
            heard = Some(now);
            if let Some(update) = update {
                let kind = if update.snapshot { "snapshot" } else { "delta" };
                self.metrics.updates_sent.with_label_values(&[kind]).inc();
                room.send(update);
            } else {
                drop(room);
            }
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return Ended::BySource },
                () = self.trust.changed() => {}
                () = queue.closed() => return Ended::ByWatcher,
                () = self.shutdown.cancelled() => return Ended::ByShutdown,
            }
        }
    }

    /// What is to be known now, and what is to be told for that.
    fn newest(&mut self, caller: &Caller, heard: Option<&Heard>) -> (Heard, Option<Encoded>) {
        let state = self.states.borrow_and_update().clone();
        let scope = state.scope_of(caller);
        let roots = self.trust.newest_roots();
        let before = heard.map(|heard| (&*heard.state, &heard.scope));
        let mut update = self.encodings.update(&state, &scope, before);
        if heard.is_none_or(|heard| heard.roots != roots) {
            // No state needs to have changed for roots to be told of.
            let alone = || {
                Encoded::of(&Update {
                    version: state.version,
                    trust_domain: state.trust_domain.clone(),
                    ..Update::default()
                })
            };
            update = Some(update.unwrap_or_else(alone).with_roots(roots.clone()));
        }
        let now = Heard {
            state,
            scope,
            roots,
        };
        (now, update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, NewRoot};
    use crate::state::View;
    use duet_core::api::Workload;
    use tokio::sync::watch;

    fn trust() -> Trust {
        let root = NewRoot::generate().unwrap();
        let pem = format!("{}{}", root.key, root.certificate);
        Authority::from_pem(&pem).unwrap().into()
    }

    fn agent() -> Caller {
        Caller::Node("node-1".into())
    }

    fn state(version: u64) -> Arc<MeshState> {
        let workload = Workload {
            namespace: "default".into(),
            name: format!("w{version}"),
            ..Workload::default()
        };
        let mut state = MeshState::new("duet.local");
        state.version = version;
        state.put_workload(workload);
        Arc::new(state)
    }

    fn feed(states: States) -> Feed {
        Feed {
            states,
            trust: trust(),
            encodings: Arc::default(),
            metrics: Metrics::new(),
            shutdown: CancellationToken::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watcher_gets_one_delta_for_many_changes() {
        let (publish, states) = watch::channel(state(1));
        let (queue, mut updates) = mpsc::channel(WATCH_QUEUE);
        let feed = feed(states);
        let feeding = tokio::spawn(async move { feed.run(&agent(), queue).await });
        for version in 2..=1000 {
            publish.send_replace(state(version));
            tokio::task::yield_now().await;
        }
        let mut held = View::default();
        let mut received = 0;
        while held.version < 1000 {
            held.apply(updates.recv().await.unwrap().decode());
            received += 1;
        }
        let names: Vec<_> = held.workloads.keys().collect();
        assert_eq!(names, ["default/w1000"]);
        assert!(received <= 3, "{received} updates were waiting");
        drop(updates);
        assert_eq!(feeding.await.unwrap(), Ended::ByWatcher);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_stops_reading_is_cut() {
        let (publish, states) = watch::channel(state(1));
        let (queue, updates) = mpsc::channel(WATCH_QUEUE);
        let feed = feed(states);
        let feeding = tokio::spawn(async move { feed.run(&agent(), queue).await });
        tokio::task::yield_now().await;
        publish.send_replace(state(2));
        assert_eq!(feeding.await.unwrap(), Ended::Stalled);
        drop(updates);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_mesh_cuts_nobody() {
        let (publish, states) = watch::channel(state(1));
        let (queue, mut updates) = mpsc::channel(WATCH_QUEUE);
        let feed = feed(states);
        let shutdown = feed.shutdown.clone();
        let feeding = tokio::spawn(async move { feed.run(&agent(), queue).await });
        assert!(updates.recv().await.unwrap().decode().snapshot);
        tokio::time::sleep(STALL_TIMEOUT * 10).await;
        publish.send_replace(state(2));
        assert_eq!(
            updates.recv().await.unwrap().decode().removed_workloads,
            ["default/w1"]
        );
        shutdown.cancel();
        assert_eq!(feeding.await.unwrap(), Ended::ByShutdown);
    }
}
