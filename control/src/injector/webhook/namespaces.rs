//! What namespaces say, from a watch; from the API server itself where the watch
//! cannot be right.
//!
//! A watch answers at once, also while the API server makes others wait. It is late
//! by a moment, though, and a namespace's first pods may come in that moment: one
//! that is not known yet, or that the API server took for meshed and the watch does
//! not, is asked for.

use crate::injector::decision::Namespace;
use crate::injector::names;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store, reflector, store};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use std::time::Duration;
use tracing::warn;

/// An API server that takes longer is given up; the webhook's caller waits for 5 s.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Seconds after which the watch is begun anew where it was, so that a connection
/// that died without a word is noticed.
const WATCH_SECONDS: u32 = 60;

type Metadata = PartialObjectMeta<core::Namespace>;

pub struct Namespaces {
    known: Store<Metadata>,
    api: Api<Metadata>,
}

/// Why a namespace could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("namespace {0} does not exist")]
    Absent(String),
    #[error("namespace {0} could not be read from the API server: {1}")]
    Api(String, Box<kube::Error>),
    #[error(
        "namespace {0} could not be read from the API server: no answer in {REQUEST_TIMEOUT:?}"
    )]
    Silence(String),
}

// === impl Namespaces ===

impl Namespaces {
    /// The second is to be driven for as long as the first is used.
    pub fn watch(client: Client) -> (Self, impl Future<Output = ()> + Send) {
        let api = Api::all(client);
        let (known, writer) = store();
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let changes = watcher(api.clone(), config)
            .default_backoff()
            .modify(|namespace: &mut Metadata| namespace.managed_fields_mut().clear());
        let keep = async move {
            let mut changes = std::pin::pin!(reflector(writer, changes));
            while let Some(change) = changes.next().await {
                if let Err(error) = change {
                    warn!("namespaces cannot be watched: {error}");
                }
            }
        };
        (Self { known, api }, keep)
    }

    /// `is_meshed` is what the API server made of the namespace's label.
    ///
    /// # Errors
    /// When it has to be asked for and does not come.
    pub async fn get(&self, name: &str, is_meshed: bool) -> Result<Namespace, NamespaceError> {
        if let Some(known) = self.known.get(&ObjectRef::new(name))
            && (!is_meshed
                || known
                    .labels()
                    .get(names::MODE)
                    .is_some_and(|it| it != "none"))
        {
            return Ok(namespace(name, &known));
        }
        match tokio::time::timeout(REQUEST_TIMEOUT, self.api.get_opt(name)).await {
            Ok(Ok(Some(found))) => Ok(namespace(name, &found)),
            Ok(Ok(None)) => Err(NamespaceError::Absent(name.to_owned())),
            Ok(Err(error)) => Err(NamespaceError::Api(name.to_owned(), error.into())),
            Err(_) => Err(NamespaceError::Silence(name.to_owned())),
        }
    }
}

fn namespace(name: &str, metadata: &Metadata) -> Namespace {
    Namespace {
        name: name.to_owned(),
        labels: metadata.labels().clone(),
        annotations: metadata.annotations().clone(),
    }
}
