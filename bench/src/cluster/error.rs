//! What can go wrong while a cluster is built, used or removed. Every message
//! is one line that says what was attempted, on what, and what came back.

use crate::accounting;
use crate::run::Interrupted;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum ClusterError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },

    /// A program that the cluster is built with (`ip`, `nft`, a duet binary)
    /// said no.
    #[error("{what}: {said}")]
    Command { what: String, said: String },

    #[error(
        "{program} was not found: build it with `cargo build --workspace`, or say where it is with DUET_BIN_DIR"
    )]
    NoBinary { program: String },

    #[error("this cluster has no {kind} named {name:?}; it has {known}")]
    Unknown {
        kind: &'static str,
        name: String,
        known: String,
    },

    #[error("{who} was not ready after {:.1} s: {missing}; its log is {}", after.as_secs_f32(), log.display())]
    NotReady {
        who: String,
        after: Duration,
        missing: String,
        log: PathBuf,
    },

    /// An API server, or somebody behind it, said no.
    #[error("{what}: {said}")]
    Kubernetes { what: String, said: String },

    /// Something in a pod did not come up.
    #[error("pod {pod}: {problem}")]
    Pod { pod: String, problem: String },

    /// A generator gave no report.
    #[error("the generator in pod {pod}: {problem}")]
    Generator { pod: String, problem: String },

    /// The kernel's figures could not be read.
    #[error(transparent)]
    Accounting(#[from] accounting::Error),

    /// Somebody wants the run to end.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),

    #[error("{0}")]
    Unsupported(String),
}

impl ClusterError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let what = what.into();
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }

    pub(crate) fn unknown<'a>(
        kind: &'static str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        Self::Unknown {
            kind,
            name: name.to_owned(),
            known: if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            },
        }
    }
}
