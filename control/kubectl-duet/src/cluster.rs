//! The API server, and what goes wrong on the way to it, in one line each.

use crate::cli::Global;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use std::error::Error as StdError;
use std::fmt::Debug;
use std::time::Duration;

/// Where Duet itself is.
pub const SYSTEM: &str = "duet-system";
/// The Deployment, the Lease.
pub const CONTROL: &str = "duet-control";
/// The DaemonSet.
pub const AGENT: &str = "duet-agent";

/// An API server that has not answered by then does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Objects that are asked for at once.
const PAGE: u32 = 500;

pub struct Cluster {
    pub client: Client,
    /// As the kubeconfig names it.
    pub url: String,
    /// The context's.
    pub namespace: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was written is wrong.
    #[error("{0}")]
    Usage(String),
    /// The kubeconfig is.
    #[error("{0}")]
    Config(String),
    #[error("the API server at {url} does not answer: {reason}; is it the right --context?")]
    Unreachable { url: String, reason: String },
    #[error(
        "the API server at {0} does not accept these credentials (401): are they expired, or another cluster's?"
    )]
    Unauthorized(String),
    /// RBAC.
    #[error("not allowed: {0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    #[error(
        "Duet is not installed: there is no {CONTROL} in namespace {SYSTEM}; `kubectl duet check --pre` says whether it can be"
    )]
    NotInstalled,
    #[error("the API server: {0}")]
    Api(String),
    /// A proxy.
    #[error("{0}")]
    Proxy(String),
    #[error("{0}")]
    Local(String),
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

// === impl Error ===

impl Error {
    /// sysexits.h: EX_USAGE, EX_CONFIG; else 1.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Config(_) => 78,
            _ => 1,
        }
    }

    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    pub const fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden(_))
    }

    fn kubeconfig(error: &KubeconfigError) -> Self {
        Self::Config(match error {
            KubeconfigError::LoadContext(name) => format!(
                "the kubeconfig has no context {name:?}: `kubectl config get-contexts` lists those it has"
            ),
            KubeconfigError::CurrentContextNotSet => {
                "the kubeconfig names no current context: write --context NAME".to_owned()
            }
            KubeconfigError::ReadConfig(reason, path) => format!(
                "no kubeconfig at {}: {reason}; write --kubeconfig FILE, or set KUBECONFIG",
                path.display()
            ),
            KubeconfigError::FindPath => {
                "there is no kubeconfig: write --kubeconfig FILE, or set KUBECONFIG".to_owned()
            }
            other => format!("kubeconfig: {}", one_line(&chain(other))),
        })
    }
}

// === impl Cluster ===

impl Cluster {
    pub async fn connect(global: &Global) -> Result<Self, Error> {
        let options = KubeConfigOptions {
            context: global.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &global.kubeconfig {
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options).await,
                Err(error) => Err(error),
            },
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = match config {
            Ok(config) => config,
            // In a pod there may be a service account instead.
            Err(error) if global.context.is_none() && global.kubeconfig.is_none() => {
                Config::incluster().map_err(|_| Error::kubeconfig(&error))?
            }
            Err(error) => return Err(Error::kubeconfig(&error)),
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let url = config.cluster_url.to_string();
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config)
            .map_err(|error| Error::Config(format!("kubeconfig: {}", one_line(&chain(&error)))))?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
            namespace,
        })
    }

    /// The namespace that is meant; none: all.
    pub fn scope<'a>(&'a self, global: &'a Global) -> Option<&'a str> {
        (!global.all_namespaces).then(|| global.namespace.as_deref().unwrap_or(&self.namespace))
    }

    /// All there are, a page at a time.
    pub async fn list<K>(&self, api: &Api<K>, selector: &ListParams) -> Result<Vec<K>, Error>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut found = Vec::new();
        let mut page = selector.clone().limit(PAGE);
        loop {
            let listed = self.wait(api.list(&page)).await?;
            found.extend(listed.items);
            match listed.metadata.continue_ {
                Some(next) if !next.is_empty() => page = page.continue_token(&next),
                _ => return Ok(found),
            }
        }
    }

    /// One, if it is there.
    pub async fn get<K>(&self, api: &Api<K>, name: &str) -> Result<Option<K>, Error>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        self.wait(api.get_opt(name)).await
    }

    /// An answer in time, or one line that says why there is none.
    pub async fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error| self.error(&error)),
            Err(_) => Err(Error::Unreachable {
                url: self.url.clone(),
                reason: format!("nothing within {REQUEST_TIMEOUT:?}"),
            }),
        }
    }

    /// The API server's clock, to the second, and how far ahead of this machine's it is.
    pub async fn clock(&self) -> Result<(Timestamp, f64), Error> {
        let request = http::Request::get("/version")
            .body(kube::client::Body::empty())
            .map_err(|error| Error::Local(error.to_string()))?;
        let before = Timestamp::now();
        let answer = self.wait(self.client.send(request)).await?;
        let after = Timestamp::now();
        let date = answer
            .headers()
            .get(http::header::DATE)
            .and_then(|date| date.to_str().ok())
            .and_then(|date| k8s_openapi::jiff::fmt::rfc2822::parse(date).ok())
            .ok_or_else(|| Error::Api("an answer without a Date".to_owned()))?
            .timestamp();
        Ok((date, ahead(date, before, after)))
    }

    pub fn error(&self, error: &kube::Error) -> Error {
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Error::Unauthorized(self.url.clone()),
                403 => Error::Forbidden(forbidden(&status.message)),
                404 => Error::NotFound(one_line(&status.message)),
                _ => Error::Api(one_line(&status.message)),
            },
            kube::Error::HyperError(_) | kube::Error::Service(_) => Error::Unreachable {
                url: self.url.clone(),
                reason: one_line(&root_cause(error)),
            },
            other => Error::Api(one_line(&chain(other))),
        }
    }
}

/// A clock that shows whole seconds is between what it shows and a second more, at
/// some time between the question and the answer.
fn ahead(shown: Timestamp, before: Timestamp, after: Timestamp) -> f64 {
    let seconds = |time: Timestamp| time.as_nanosecond() as f64 / 1e9;
    let earliest = seconds(shown) - seconds(after);
    let latest = seconds(shown) + 1.0 - seconds(before);
    if earliest > 0.0 {
        earliest
    } else if latest < 0.0 {
        latest
    } else {
        0.0
    }
}

/// `pods is forbidden: User "jane" cannot list resource "pods" in API group "" at the
/// cluster scope`: what is behind the colon.
fn forbidden(message: &str) -> String {
    let message = one_line(message);
    match message.split_once(" is forbidden: ") {
        Some((_, what)) => what.replace(" in API group \"\"", ""),
        None => message,
    }
}

pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error and what is behind it, said once each.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn root_cause(error: &dyn StdError) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_which_verb_and_resource() {
        let said = "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
        let error = Error::Forbidden(forbidden(said));
        assert_eq!(
            error.to_string(),
            "not allowed: User \"jane\" cannot list resource \"pods\" at the cluster scope"
        );
        assert_eq!(
            forbidden("admission webhook\nsaid no"),
            "admission webhook said no"
        );
    }

    #[test]
    fn a_clock_that_shows_whole_seconds_is_not_called_slow_for_it() {
        let at = |seconds: f64| Timestamp::from_nanosecond((seconds * 1e9) as i128).unwrap();
        assert_eq!(ahead(at(100.0), at(100.9), at(100.95)), 0.0);
        assert_eq!(ahead(at(100.0), at(99.5), at(100.2)), 0.0);
        assert_eq!(ahead(at(105.0), at(100.0), at(101.0)), 4.0);
        assert_eq!(ahead(at(90.0), at(100.0), at(101.0)), -9.0);
    }

    #[test]
    fn whose_fault_it_is_shows_in_the_exit_code() {
        assert_eq!(Error::Usage(String::new()).exit_code(), 64);
        let missing = KubeconfigError::LoadContext("prod".to_owned());
        let error = Error::kubeconfig(&missing);
        assert_eq!(error.exit_code(), 78);
        assert!(
            error
                .to_string()
                .starts_with("the kubeconfig has no context \"prod\"")
        );
        assert_eq!(Error::NotInstalled.exit_code(), 1);
    }
}
