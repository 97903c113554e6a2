//! What this process has in Kubernetes clusters, for the case that it has to go at
//! once and from whichever thread; and for `clean`, after it has gone.

use super::api::{Kube, is_absent};
use super::objects::{MANAGED_BY, OURS, OWNER};
use super::owner;
use crate::cluster::error::Result;
use crate::cluster::state::CleanReport;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, Config};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long an impatient user waits for this.
const AT_ONCE: Duration = Duration::from_secs(10);

static RUNS: Mutex<Vec<(Config, String)>> = Mutex::new(Vec::new());

pub fn register(kube: &Kube, run: &str) {
    RUNS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((kube.config.clone(), run.to_owned()));
}

pub fn forget(run: &str) {
    RUNS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|(_, known)| known != run);
}

/// Asks the clusters to remove what this process has in them, from under whoever
/// still uses it.
pub fn remove_all_of_this_process() {
    let runs = std::mem::take(&mut *RUNS.lock().unwrap_or_else(PoisonError::into_inner));
    if runs.is_empty() {
        return;
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    for (config, run) in runs {
        let removed = runtime.block_on(async {
            tokio::time::timeout(AT_ONCE, async {
                let spaces: Api<Namespace> = Api::all(Client::try_from(config)?);
                let selector = format!("{MANAGED_BY}={OURS},{}={run}", super::objects::RUN);
                let found = spaces
                    .list(&ListParams::default().labels(&selector))
                    .await?;
                for space in found.items {
                    let name = space.metadata.name.unwrap_or_default();
                    spaces.delete(&name, &DeleteParams::default()).await?;
                }
                Ok::<_, kube::Error>(())
            })
            .await
        });
        if !matches!(removed, Ok(Ok(()))) {
            eprintln!("duet-bench: run {run} left namespaces: `duet-bench clean --cluster kube`");
        }
    }
}

/// Removes the namespaces of runs that are no longer alive; with `force`, also of
/// one that may be.
pub fn clean(kube: &Kube, force: bool) -> Result<CleanReport> {
    let spaces: Api<Namespace> = Api::all(kube.client.clone());
    let selector = format!("{MANAGED_BY}={OURS}");
    let found = kube.ask(
        "list the namespaces",
        spaces.list(&ListParams::default().labels(&selector)),
    )?;
    let mut report = CleanReport::default();
    for space in found.items {
        let name = space.metadata.name.unwrap_or_default();
        let owned_by_the_living = space
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(OWNER))
            .is_some_and(|owner| owner::may_be_alive(owner));
        if owned_by_the_living && !force {
            report.left.push(name);
            continue;
        }
        kube.ask(&format!("remove namespace {name}"), async {
            match spaces.delete(&name, &DeleteParams::default()).await {
                Err(error) if !is_absent(&error) => Err(error),
                _ => Ok(()),
            }
        })?;
        report.removed.push(name);
    }
    Ok(report)
}
