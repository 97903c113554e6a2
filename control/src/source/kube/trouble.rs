//! What can be wrong between duet-control and the API server, in words that say
//! what to do about it.

use kube::core::Status;
use kube::runtime::watcher;
use std::error::Error as _;
use std::fmt::Write as _;

/// The overlays of `deploy/`, each of which grants what is needed.
const APPLY: &str = "kubectl apply -k deploy/overlays/both (or sidecar, or agent)";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The API server refuses what duet-control's role should allow.
    Forbidden(String),
    /// The API server does not know whose token that is.
    Unauthorized(String),
    /// The kind is not defined there.
    Absent(String),
    /// A watch lost its place and begins again with a list.
    Expired(String),
    /// The API server answers that it cannot.
    Failing(String),
    /// The API server is not reached.
    Away(String),
}

// === impl Trouble ===

impl Trouble {
    /// Of a list or watch of `resource`, "pods" or "httproutes.gateway.networking.k8s.io".
    pub fn of_watch(resource: &str, error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error) => Self::of("list", resource, error),
            watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                Self::of("watch", resource, error)
            }
            watcher::Error::WatchError(status) => Self::of_status("watch", resource, status),
            watcher::Error::NoResourceVersion => Self::Away(error.to_string()),
        }
    }

    pub fn of(verb: &str, resource: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(verb, resource, status),
            error => Self::Away(reason(error)),
        }
    }

    fn of_status(verb: &str, resource: &str, status: &Status) -> Self {
        match status.code {
            403 => Self::Forbidden(format!(
                "duet-control may not {verb} {resource}: {APPLY} grants it ({})",
                one_line(&status.message)
            )),
            401 => Self::Unauthorized(format!(
                "the API server does not accept duet-control's credentials: is the kubeconfig's \
                 or service account's token still valid? ({})",
                one_line(&status.message)
            )),
            404 => Self::Absent(format!("the API server has no {resource}")),
            410 => Self::Expired(one_line(&status.message)),
            code => Self::Failing(format!(
                "the API server does not {verb} {resource} for now: {code}: {}",
                one_line(&status.message)
            )),
        }
    }

    /// The label of the metric.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "forbidden",
            Self::Unauthorized(_) => "unauthorized",
            Self::Absent(_) => "absent",
            Self::Expired(_) => "expired",
            Self::Failing(_) => "failing",
            Self::Away(_) => "away",
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Self::Forbidden(message)
            | Self::Unauthorized(message)
            | Self::Absent(message)
            | Self::Expired(message)
            | Self::Failing(message)
            | Self::Away(message) => message,
        }
    }
}

/// The kinds of [`Trouble`].
pub const KINDS: [&str; 6] = [
    "forbidden",
    "unauthorized",
    "absent",
    "expired",
    "failing",
    "away",
];

/// An error and what it came from, which the client's errors leave out.
pub fn reason(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            let _ = write!(text, ": {deeper}");
        }
        source = error.source();
    }
    one_line(&text)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
