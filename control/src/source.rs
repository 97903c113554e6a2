//! The seam between the mesh's description and everything that serves it.
//!
//! A source yields one state after another. The rest of the control plane sees a
//! watch channel that always holds the last good one: whoever is slow skips
//! states, and a source that fails leaves everybody with what they had.

mod file;
pub mod kube;
mod mesh_yaml;

pub use self::kube::KubeSource;
pub use file::{FileSource, MAX_FILE_BYTES, POLL_INTERVAL};
pub use mesh_yaml::parse;

use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::state::{MeshState, next_version};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{debug, error, info};

/// A mesh that changes all the time is told of this often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// Where the mesh's description comes from.
pub trait Source: Send + 'static {
    /// The first call yields the present state, each later one waits for a
    /// change. An error says that what is there now cannot be used; it does not
    /// end the source. The version is the follower's business.
    fn next(&mut self) -> impl Future<Output = Result<MeshState, Rejected>> + Send;

    /// Where to say how it goes, told once before the first [`Self::next`].
    fn report_to(&mut self, _metrics: &Metrics, _readiness: &Readiness) {}
}

/// Why a description cannot be used: one line with what is wrong, where, and what
/// to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(String);

/// The mesh as the last usable description has it.
pub type States = watch::Receiver<Arc<MeshState>>;

/// Reads `source` for as long as somebody holds the receiver.
///
/// # Errors
/// When there is no usable description to start from.
pub async fn follow(
    mut source: impl Source,
    metrics: Metrics,
    readiness: &Readiness,
) -> Result<States, Rejected> {
    source.report_to(&metrics, readiness);
    let mut first = source.next().await?;
    first.version = next_version(0);
    metrics.loaded(&first);
    let (publish, states) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        let mut failing = false;
        let mut told = None;
        loop {
            let outcome = tokio::select! {
                outcome = source.next() => outcome,
                () = publish.closed() => return,
            };
            match outcome {
                Ok(mut state) => {
                    let before = publish.borrow().clone();
                    let healed = std::mem::take(&mut failing);
                    if state.same_mesh(&before) {
                        if healed {
                            info!(version = before.version, "the source is good again");
                        }
                        continue;
                    }
                    state.version = next_version(before.version);
                    if told.is_none_or(|told: Instant| told.elapsed() > TELL_INTERVAL) {
                        told = Some(Instant::now());
                        info!(
                            version = state.version,
                            workloads = state.workloads.len(),
                            services = state.services.len(),
                            "the mesh changed"
                        );
                    } else {
                        debug!(version = state.version, "the mesh changed");
                    }
                    metrics.loaded(&state);
                    publish.send_replace(Arc::new(state));
                }
                Err(rejected) => {
                    failing = true;
                    metrics.reload_failures.inc();
                    error!("{rejected}; the last good state stays in force");
                }
            }
        }
    });
    Ok(states)
}

// === impl Rejected ===

impl Rejected {
    /// Line breaks in `problem` become spaces: a log line stays one line.
    pub fn new(problem: impl AsRef<str>) -> Self {
        Self(
            problem
                .as_ref()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        )
    }
}
