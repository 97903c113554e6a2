//! `Discovery.Watch`: who is where, first whole, then what changed.
//!
//! Each watcher remembers the state that it was sent last, and how much of it. When
//! it has room for another update, that state is compared with the newest one;
//! whatever happened between the two is one delta. A watcher that is slow therefore
//! costs one update in its queue and what has changed since in memory, however often
//! the mesh changes, and one that stops reading is cut: it comes back to a snapshot.

use crate::auth::{Authenticator, Caller, authenticate};
use crate::metrics::Metrics;
use crate::source::States;
use crate::state::{MeshState, Scope};
use crate::trust::Trust;
use duet_core::api::discovery_server::Discovery;
use duet_core::api::{Update, WatchRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{debug, warn};

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
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    ByWatcher,
    BySource,
    ByShutdown,
    Stalled,
}

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type WatchStream = ReceiverStream<Result<Update, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = authenticate(&*self.authenticator, request.metadata()).await?;
        let proxy = request.into_inner().proxy;
        let (queue, updates) = mpsc::channel(WATCH_QUEUE);
        let (states, trust) = (self.states.clone(), self.trust.clone());
        let metrics = self.metrics.clone();
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            debug!(?proxy, %caller, "a proxy watches");
            metrics.watchers.inc();
            let ended = feed(states, trust, &caller, queue, &metrics, &shutdown).await;
            metrics.watchers.dec();
            if ended == Ended::Stalled {
                metrics.watchers_stalled.inc();
                warn!(?proxy, %caller, "watch cut: nothing was read for {STALL_TIMEOUT:?}");
            } else {
                debug!(?proxy, %caller, ?ended, "watch ended");
            }
        });
        Ok(Response::new(ReceiverStream::new(updates)))
    }
}

/// What a watcher was told last.
struct Heard {
    state: Arc<MeshState>,
    scope: Scope,
    roots: Vec<Vec<u8>>,
}

async fn feed(
    mut states: States,
    mut trust: Trust,
    caller: &Caller,
    queue: mpsc::Sender<Result<Update, Status>>,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Ended {
    let mut heard: Option<Heard> = None;
    loop {
        let room = tokio::select! {
            room = tokio::time::timeout(STALL_TIMEOUT, queue.reserve()) => match room {
                Ok(Ok(room)) => room,
                Ok(Err(_)) => return Ended::ByWatcher,
                Err(_) => return Ended::Stalled,
            },
            () = shutdown.cancelled() => return Ended::ByShutdown,
        };
        let state = states.borrow_and_update().clone();
        let scope = state.scope_of(caller);
        let roots = trust.newest_roots();
        let mut update = match &heard {
            None => Some(state.snapshot(&scope)),
            Some(before) => state.delta(&scope, &before.state, &before.scope),
        };
        if heard.as_ref().is_none_or(|before| before.roots != roots) {
            // No state needs to have changed for roots to be told of.
            let update = update.get_or_insert_with(|| Update {
                version: state.version,
                trust_domain: state.trust_domain.clone(),
                ..Update::default()
            });
            update.roots.clone_from(&roots);
        }
        heard = Some(Heard {
            state,
            scope,
            roots,
        });
        if let Some(update) = update {
            let kind = if update.snapshot { "snapshot" } else { "delta" };
            metrics.updates_sent.with_label_values(&[kind]).inc();
            room.send(Ok(update));
        } else {
            drop(room);
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return Ended::BySource },
            () = trust.changed() => {}
            () = queue.closed() => return Ended::ByWatcher,
            () = shutdown.cancelled() => return Ended::ByShutdown,
        }
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

    #[tokio::test(start_paused = true)]
    async fn a_slow_watcher_gets_one_delta_for_many_changes() {
        let (publish, states) = watch::channel(state(1));
        let (queue, mut updates) = mpsc::channel(WATCH_QUEUE);
        let metrics = Metrics::new();
        let shutdown = CancellationToken::new();
        let feeding = tokio::spawn({
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            async move { feed(states, trust(), &agent(), queue, &metrics, &shutdown).await }
        });
        for version in 2..=1000 {
            publish.send_replace(state(version));
            tokio::task::yield_now().await;
        }
        let mut held = View::default();
        let mut received = 0;
        while held.version < 1000 {
            held.apply(updates.recv().await.unwrap().unwrap());
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
        let feeding = tokio::spawn(async move {
            feed(
                states,
                trust(),
                &agent(),
                queue,
                &Metrics::new(),
                &CancellationToken::new(),
            )
            .await
        });
        tokio::task::yield_now().await;
        publish.send_replace(state(2));
        assert_eq!(feeding.await.unwrap(), Ended::Stalled);
        drop(updates);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_mesh_cuts_nobody() {
        let (publish, states) = watch::channel(state(1));
        let (queue, mut updates) = mpsc::channel(WATCH_QUEUE);
        let shutdown = CancellationToken::new();
        let feeding = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { feed(states, trust(), &agent(), queue, &Metrics::new(), &shutdown).await }
        });
        assert!(updates.recv().await.unwrap().unwrap().snapshot);
        tokio::time::sleep(STALL_TIMEOUT * 10).await;
        publish.send_replace(state(2));
        assert_eq!(
            updates.recv().await.unwrap().unwrap().removed_workloads,
            ["default/w1"]
        );
        shutdown.cancel();
        assert_eq!(feeding.await.unwrap(), Ended::ByShutdown);
    }
}
