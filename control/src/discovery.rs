//! `Discovery.Watch`: who is where, first whole, then what changed.
//!
//! Each watcher remembers the state that it was sent last. When it has room for
//! another update, that state is compared with the newest one; whatever happened
//! between the two is one delta. A watcher that is slow therefore costs one update
//! in its queue and one state in memory however often the mesh changes, and one
//! that stops reading is cut: it comes back to a snapshot.

use crate::auth::{Authenticator, authenticate};
use crate::metrics::Metrics;
use crate::source::States;
use crate::state::MeshState;
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
        let (states, metrics) = (self.states.clone(), self.metrics.clone());
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            debug!(?proxy, %caller, "a proxy watches");
            metrics.watchers.inc();
            let ended = feed(states, queue, &metrics, &shutdown).await;
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

async fn feed(
    mut states: States,
    queue: mpsc::Sender<Result<Update, Status>>,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Ended {
    let mut sent: Option<Arc<MeshState>> = None;
    loop {
        let room = tokio::select! {
            room = tokio::time::timeout(STALL_TIMEOUT, queue.reserve()) => match room {
                Ok(Ok(room)) => room,
                Ok(Err(_)) => return Ended::ByWatcher,
                Err(_) => return Ended::Stalled,
            },
            () = shutdown.cancelled() => return Ended::ByShutdown,
        };
        let newest = states.borrow_and_update().clone();
        let update = match &sent {
            None => Some(newest.snapshot()),
            Some(before) => newest.delta_from(before),
        };
        if let Some(update) = update {
            let kind = if update.snapshot { "snapshot" } else { "delta" };
            metrics.updates_sent.with_label_values(&[kind]).inc();
            room.send(Ok(update));
            sent = Some(newest);
        } else {
            drop(room);
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return Ended::BySource },
            () = queue.closed() => return Ended::ByWatcher,
            () = shutdown.cancelled() => return Ended::ByShutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use duet_core::api::Workload;
    use tokio::sync::watch;

    fn state(version: u64) -> Arc<MeshState> {
        let workload = Workload {
            namespace: "default".into(),
            name: format!("w{version}"),
            ..Workload::default()
        };
        let mut state = MeshState {
            version,
            ..MeshState::default()
        };
        state
            .workloads
            .insert(format!("default/w{version}"), workload);
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
            async move { feed(states, queue, &metrics, &shutdown).await }
        });
        for version in 2..=1000 {
            publish.send_replace(state(version));
            tokio::task::yield_now().await;
        }
        let mut held = MeshState::default();
        let mut received = 0;
        while held.version < 1000 {
            held.apply(updates.recv().await.unwrap().unwrap());
            received += 1;
        }
        assert_eq!(held, *state(1000));
        assert!(received <= 3, "{received} updates were waiting");
        drop(updates);
        assert_eq!(feeding.await.unwrap(), Ended::ByWatcher);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_stops_reading_is_cut() {
        let (publish, states) = watch::channel(state(1));
        let (queue, updates) = mpsc::channel(WATCH_QUEUE);
        let feeding = tokio::spawn(async move {
            feed(states, queue, &Metrics::new(), &CancellationToken::new()).await
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
            async move { feed(states, queue, &Metrics::new(), &shutdown).await }
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
