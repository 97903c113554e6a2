//! What routes and policies are told in return: their status.
//!
//! What a status should be follows from what is watched, and so does whether it is
//! already. So there is nothing to remember: the source says which statuses differ
//! ([`Wanted`]), and the leader writes those until they do not. Each write names the
//! version it is based on; one that comes too late fails, and the watch brings
//! another.

use super::objects::Name;
use super::trouble::Trouble;
use super::watch::Kind;
use crate::metrics::Metrics;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use prometheus::{IntCounterVec, Opts};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, warn};

/// The shortest time between two passes. A rollout changes how many pods a policy
/// selects many times, and nobody looks that often.
const INTERVAL: Duration = Duration::from_secs(2);
/// An API server that takes longer is asked again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A status that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Writing {
    /// Of the object that the status is about.
    pub resource_version: String,
    pub status: Value,
}

/// All of them. Empty when everything has been said.
pub type Wanted = Arc<BTreeMap<(Kind, Name), Writing>>;

/// Writes the statuses of a source, for one replica, while it leads.
#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
    wanted: watch::Receiver<Wanted>,
    writes: IntCounterVec,
}

/// What was made of a write, as the metric has it.
const OUTCOMES: [&str; 3] = ["written", "outdated", "failed"];

// === impl StatusWriter ===

impl StatusWriter {
    pub(super) fn new(client: Client, wanted: watch::Receiver<Wanted>, metrics: &Metrics) -> Self {
        let writes = metrics.register(IntCounterVec::new(
            Opts::new(
                "duet_control_status_writes_total",
                "Statuses of routes and policies written, by outcome.",
            ),
            &["outcome"],
        ));
        for outcome in OUTCOMES {
            writes.with_label_values(&[outcome]);
        }
        Self {
            client,
            wanted,
            writes,
        }
    }

    /// Never ends while the source lives.
    pub async fn keep(mut self) {
        let mut told: Option<Trouble> = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let mut failed = None;
            for ((kind, name), writing) in wanted.iter() {
                match self.write(*kind, name, writing).await {
                    Ok(outcome) => self.count(outcome),
                    Err(trouble) => {
                        self.count("failed");
                        failed = Some(trouble);
                    }
                }
            }
            if let Some(trouble) = &failed
                && told.as_ref().map(Trouble::kind) != Some(trouble.kind())
            {
                warn!("a status was not written: {}", trouble.message());
            }
            let again = failed.is_some();
            told = failed;
            tokio::time::sleep(INTERVAL).await;
            if !again && self.wanted.changed().await.is_err() {
                return;
            }
        }
    }

    async fn write(
        &self,
        kind: Kind,
        name: &Name,
        writing: &Writing,
    ) -> Result<&'static str, Trouble> {
        let Some((namespace, own_name)) = name.split_once('/') else {
            return Ok("outdated");
        };
        let client = self.client.clone();
        let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &kind.api_resource());
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": writing.resource_version },
            "status": writing.status,
        }));
        let params = PatchParams::default();
        let written = api.patch_status(own_name, &params, &patch);
        match tokio::time::timeout(TIMEOUT, written).await {
            Ok(Ok(_)) => {
                debug!(resource = kind.resource(), %name, "status written");
                Ok("written")
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok("outdated"),
            Ok(Err(error)) => {
                let resource = format!("{}/status", kind.resource());
                Err(Trouble::of("patch", &resource, &error))
            }
            Err(_) => Err(Trouble::Away(format!("no answer in {TIMEOUT:?}"))),
        }
    }

    fn count(&self, outcome: &str) {
        self.writes.with_label_values(&[outcome]).inc();
    }
}

/// A condition as the API has it, with the time of `known`'s last change if there was
/// none since.
pub fn condition(
    known: Option<&Value>,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    generation: i64,
) -> Value {
    let status = if holds { "True" } else { "False" };
    let unchanged = known.filter(|known| known["status"] == status);
    let since = unchanged.map_or_else(
        || json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        |known| known["lastTransitionTime"].clone(),
    );
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": since,
    })
}

/// The condition of that type among `conditions`.
pub fn find<'a>(conditions: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = conditions.as_array()?.iter();
    all.into_iter().find(|one| one["type"] == kind)
}
