//! Clusters are removed when the user loses patience, too.

use super::assembly::Inner;
use std::process::exit;
use std::sync::{Arc, Mutex, Once, Weak};
use std::thread;
use tokio::signal::unix::{SignalKind, signal};

static CLUSTERS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

pub(super) fn register(cluster: &Arc<Inner>) {
    let mut clusters = CLUSTERS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    clusters.retain(|known| known.strong_count() > 0);
    clusters.push(Arc::downgrade(cluster));
}

/// Removes all clusters of this process, also those that others still hold.
pub fn remove_all_of_this_process() {
    super::kube::remove_all_of_this_process();
    let clusters = std::mem::take(
        &mut *CLUSTERS
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
    );
    for cluster in clusters.iter().filter_map(Weak::upgrade) {
        if let Err(error) = cluster.remove() {
            eprintln!("duet-bench: {error}; `duet-bench clean` tries again");
        }
    }
}

/// From now on Ctrl-C and SIGTERM remove this process's clusters and end the process,
/// with 128 + the signal's number. To be called once, from `main`.
pub fn remove_on_interrupt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = thread::Builder::new()
            .name("interrupt".to_owned())
            .spawn(|| {
                let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                else {
                    return;
                };
                let number = runtime.block_on(async {
                    let mut interrupt = signal(SignalKind::interrupt()).ok()?;
                    let mut terminate = signal(SignalKind::terminate()).ok()?;
                    Some(tokio::select! {
                        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                    })
                });
                if let Some(number) = number {
                    remove_all_of_this_process();
                    exit(128 + number);
                }
            });
    });
}
