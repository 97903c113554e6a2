//! The webhook: would a pod that is made now come out with its proxy?

use crate::check::Group;
use crate::cluster::{CONTROL, Cluster, Error, SYSTEM, one_line};
use crate::mesh::{MODE, PROXY, Placement};
use crate::status::certificate::{self, Certificate};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use std::collections::BTreeSet;

const INJECTOR: &str = "duet-injector";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// In the webhook's words: it is there, and not for this mode.
const NOT_INSTALLED: &str = "Duet is installed without";

pub async fn webhook(
    group: &mut Group,
    cluster: &Cluster,
    bundle: Option<&[Certificate]>,
    now: i64,
) -> Result<(), Error> {
    let all: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let what = format!("webhook {INJECTOR}");
    match cluster.get(&all, INJECTOR).await {
        Ok(Some(found)) => ca_bundle(group, &found, bundle, now),
        Ok(None) => {
            let remedy = "apply the manifests again, unless overlay none is meant";
            group.fail(what, "is not there", remedy);
        }
        Err(error) if error.is_forbidden() => group.unread(what, &error),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn ca_bundle(
    group: &mut Group,
    found: &MutatingWebhookConfiguration,
    bundle: Option<&[Certificate]>,
    now: i64,
) {
    let what = "the webhook's caBundle is the mesh's";
    let remedy = format!("the leader writes it: `kubectl -n {SYSTEM} logs deploy/{CONTROL}`");
    let webhooks = found.webhooks.iter().flatten();
    let bundles: Vec<_> = webhooks
        .map(|one| one.client_config.ca_bundle.as_ref())
        .collect();
    if bundles.is_empty() {
        return group.fail(what, "it has no webhooks", "apply the manifests again");
    }
    for ca in bundles {
        let read = ca.ok_or_else(|| "it is empty".to_owned());
        let read = match read.and_then(certificate::read_bytes) {
            Ok(read) => read,
            Err(why) => return group.fail(what, why, remedy),
        };
        if read.iter().all(|one| one.not_after <= now) {
            return group.fail(what, "all of it has expired", remedy);
        }
        let trusted = |one: &Certificate| {
            bundle.is_none_or(|bundle| {
                bundle
                    .iter()
                    .any(|root| root.fingerprint == one.fingerprint)
            })
        };
        if !read.iter().any(trusted) {
            return group.fail(what, "it is another root's", remedy);
        }
    }
    group.ok(what, "");
}

/// An API server that has reached the webhook once keeps its connection for a while, and a dry
/// run passes that no longer should.
pub async fn endpoints(group: &mut Group, cluster: &Cluster) -> Result<(), Error> {
    let all: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let of_service = ListParams::default().labels(&format!("{SERVICE_NAME}={INJECTOR}"));
    let what = format!("service {INJECTOR} has endpoints");
    match cluster.list(&all, &of_service).await {
        Ok(slices) => match ready(&slices) {
            0 => {
                let remedy = format!(
                    "no pod that is asked for is made: `kubectl -n {SYSTEM} get pods,endpointslices` \
                     says which replicas of {CONTROL} are ready and whether the service selects them"
                );
                group.fail(what, "none is ready", remedy);
            }
            ready => group.ok(what, format!("{ready} ready")),
        },
        Err(error) if error.is_forbidden() => group.unread(what, &error),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn ready(slices: &[EndpointSlice]) -> usize {
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    // Unknown is to be taken for ready.
    let is_ready = |one: &&Endpoint| {
        let conditions = one.conditions.as_ref();
        conditions.and_then(|are| are.ready).unwrap_or(true)
    };
    let addresses: BTreeSet<_> = endpoints
        .filter(is_ready)
        .flat_map(|it| &it.addresses)
        .collect();
    addresses.len()
}

/// Creates a pod and does not: the webhook is asked, nothing is kept.
pub async fn injection(group: &mut Group, cluster: &Cluster, namespace: &str) -> Result<(), Error> {
    for mode in [Placement::Sidecar, Placement::Agent] {
        let what = format!("a pod with {MODE}: {mode} is injected (dry run)");
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let pod = example(mode).map_err(|error| Error::Local(error.to_string()))?;
        match cluster.wait(pods.create(&dry_run, &pod)).await {
            Ok(created) => match injected(&created, mode) {
                Ok(()) => group.ok(what, ""),
                Err(found) => group.fail(
                    what,
                    found,
                    format!(
                        "does the webhook {INJECTOR} select namespace {namespace} and its pods?"
                    ),
                ),
            },
            Err(error) if error.to_string().contains(NOT_INSTALLED) => {
                group.ok(format!("mode {mode}"), "is not installed");
            }
            Err(error) => refused(group, what, namespace, &error)?,
        }
    }
    Ok(())
}

fn refused(group: &mut Group, what: String, namespace: &str, error: &Error) -> Result<(), Error> {
    let said = error.to_string();
    if said.contains("violates PodSecurity") {
        let remedy = format!(
            "namespace {namespace} does not let pods redirect their own traffic: use mode agent there, or check another one with -n"
        );
        group.warn(what, one_line(&said), remedy);
    } else if said.contains("failed calling webhook") {
        let remedy = format!(
            "the API server does not reach it: has service {INJECTOR} endpoints, and may the API server connect to them?"
        );
        group.fail(what, said, remedy);
    } else if error.is_forbidden() || error.is_not_found() {
        group.unread(what, error);
    } else if let Error::Api(_) = error {
        group.fail(
            what,
            said,
            "the API server would refuse a pod like this one",
        );
    } else {
        return Err(Error::Api(said));
    }
    Ok(())
}

/// What even a restricted namespace would take, but for the redirection.
fn example(mode: Placement) -> serde_json::Result<Pod> {
    serde_json::from_value(json!({
        "metadata": {"generateName": "duet-check-", "labels": {MODE: mode}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "app",
                "image": "duet/check:none",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"},
                    "limits": {"cpu": "1m", "memory": "1Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }))
}

fn injected(created: &Pod, mode: Placement) -> Result<(), String> {
    let stamp = created.annotations().get("duet.dev/placement");
    if stamp.map(String::as_str) != Some(mode.as_str()) {
        return Err("it comes back as it was".to_owned());
    }
    let spec = created.spec.as_ref();
    let init = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let native = init
        .into_iter()
        .any(|one| one.name == PROXY && one.restart_policy.as_deref() == Some("Always"));
    let gates = spec
        .into_iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten());
    let gated = gates
        .into_iter()
        .any(|gate| gate.condition_type == "duet.dev/enrolled");
    match mode {
        Placement::Sidecar if !native => Err(format!("it has no native sidecar {PROXY}")),
        Placement::Agent if !gated => Err("it has no readiness gate".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
