//! The webhook's `caBundle`: by which roots the API server knows the webhook.
//!
//! The roots are those that proxies trust, all of them, so that a change of the
//! mesh's root reaches the API server before anything is signed with the new one.

use super::metrics::InjectorMetrics;
use crate::trust::Trust;
use futures_util::StreamExt;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use std::time::Duration;
use tracing::{info, warn};

/// The MutatingWebhookConfiguration that manifests make.
pub const WEBHOOK_CONFIGURATION: &str = "duet-injector";
/// Whose field it is.
const FIELD_MANAGER: &str = "duet-control";
/// An API server that takes longer is asked again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(2);
/// Seconds after which the watch is begun anew where it was.
const WATCH_SECONDS: u32 = 60;

/// Keeps the configuration called `name` current, whoever changes it, and when it
/// comes into being. Never ends; one replica does it, while it leads.
pub async fn keep_ca_bundle(
    client: Client,
    name: &str,
    mut trust: Trust,
    metrics: &InjectorMetrics,
) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(WATCH_SECONDS);
    let mut changes = std::pin::pin!(watcher(api.clone(), config).default_backoff());
    loop {
        let bundle = trust.newest().bundle_pem();
        let written = tokio::time::timeout(REQUEST_TIMEOUT, write(&api, name, &bundle)).await;
        let problem = match written {
            Ok(Ok(true)) => {
                metrics.ca_bundles_written.inc();
                info!(
                    webhook = name,
                    "the API server was told by which roots it knows the injector"
                );
                None
            }
            Ok(Ok(false)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer in {REQUEST_TIMEOUT:?}")),
        };
        if let Some(problem) = problem {
            warn!(webhook = name, "caBundle was not written: {problem}");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        tokio::select! {
            () = trust.changed() => {}
            change = changes.next() => if let Some(Err(error)) = change {
                warn!(webhook = name, "cannot be watched: {error}");
            },
        }
    }
}

/// Whether there was something to write.
async fn write(
    api: &Api<MutatingWebhookConfiguration>,
    name: &str,
    bundle: &str,
) -> kube::Result<bool> {
    let Some(current) = api.get_opt(name).await? else {
        // It is not installed yet; the watch says when it is.
        return Ok(false);
    };
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let stale: Vec<_> = current
        .webhooks
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref() != Some(&wanted))
        .map(|(at, _)| at)
        .collect();
    if stale.is_empty() {
        return Ok(false);
    }
    // Places count, so nobody may have changed the list in between.
    let mut patch = vec![PatchOperation::Test(TestOperation {
        path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
        value: current.metadata.resource_version.into(),
    })];
    let value = serde_json::to_value(&wanted).unwrap_or_default();
    for at in stale {
        let at = at.to_string();
        patch.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &at, "clientConfig", "caBundle"]),
            value: value.clone(),
        }));
    }
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::<()>::Json(JsonPatch(patch)))
        .await?;
    Ok(true)
}
