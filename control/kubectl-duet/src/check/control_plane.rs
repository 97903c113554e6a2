//! duet-control: is it there, does it lead, and can what it signs be believed?

use crate::check::{Group, Verdict};
use crate::cluster::{CONTROL, Cluster, Error, SYSTEM};
use crate::mesh::MODE;
use crate::output::{from_now, since};
use crate::status::certificate::{self, Certificate};
use crate::status::gather::{BUNDLE, BUNDLE_KEY, Control, Mesh};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use std::collections::{BTreeMap, BTreeSet};

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Less is soon: certificate authorities are not renewed by themselves.
const CA_SOON: i64 = 60 * 86400;

pub async fn definitions(group: &mut Group, cluster: &Cluster) -> Result<(), Error> {
    let all: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for (name, version, needed) in [
        ("authorizationpolicies.duet.dev", "v1alpha1", true),
        ("httproutes.gateway.networking.k8s.io", "v1", false),
        ("grpcroutes.gateway.networking.k8s.io", "v1", false),
    ] {
        match cluster.get(&all, name).await {
            Ok(found) => definition(group, name, version, needed, found.as_ref()),
            Err(error) if error.is_forbidden() => group.unread(name, &error),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn definition(
    group: &mut Group,
    name: &str,
    version: &str,
    needed: bool,
    found: Option<&CustomResourceDefinition>,
) {
    let what = format!("{name} {version}");
    let Some(found) = found else {
        if needed {
            let remedy = "apply deploy/base/crds.yaml, or what `duet-control crds` prints";
            group.fail(what, "is not there", remedy);
        } else {
            let remedy =
                "install the Gateway API's CRDs if routes are wanted; nothing else needs them";
            group.warn(what, "is not there", remedy);
        }
        return;
    };
    let versions = &found.spec.versions;
    let served = versions.iter().any(|one| one.name == version && one.served);
    let conditions = found
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let established = conditions
        .into_iter()
        .any(|one| one.type_ == "Established" && one.status == "True");
    if served && established {
        group.ok(what, "is served");
    } else {
        let has: Vec<_> = versions.iter().map(|one| one.name.as_str()).collect();
        let found = format!("is not served; it has {}", has.join(", "));
        group.fail(what, found, "apply the CRDs of this version of Duet");
    }
}

pub fn replicas(group: &mut Group, control: &Control) {
    let (wanted, ready) = control.replicas();
    let what = format!("{CONTROL} is ready");
    let found = format!("{ready} of {wanted}");
    let remedy = format!("`kubectl -n {SYSTEM} describe pods -l app.kubernetes.io/name={CONTROL}`");
    match ready {
        0 => group.fail(what, found, remedy),
        _ if ready < wanted => group.warn(what, found, remedy),
        1 => group.warn(what, found, "two or more survive the loss of a node"),
        _ => group.ok(what, found),
    }
    let what = format!("{CONTROL} is one version, and this command's");
    let builds: BTreeSet<_> = control.builds.values().collect();
    let found: Vec<String> = builds.iter().map(ToString::to_string).collect();
    let found = found.join(", ");
    match builds.first() {
        None => group.warn(
            what,
            "no replica tells its version",
            "may you create pods/portforward in its namespace?",
        ),
        Some(_) if builds.len() > 1 => {
            group.warn(what, found, "wait for the rollout to end");
        }
        Some(build) if build.version != OWN_VERSION => {
            let remedy = format!("this is kubectl duet {OWN_VERSION}: use the one of that version");
            group.warn(what, found, remedy);
        }
        Some(_) => group.ok(what, found),
    }
}

pub fn leader(group: &mut Group, control: &Control) {
    let what = "a leader is elected";
    let remedy =
        format!("`kubectl -n {SYSTEM} logs deploy/{CONTROL}`; may it write the Lease {CONTROL}?");
    let Some((holder, renewed)) = control.leader() else {
        return group.fail(what, "none", remedy);
    };
    let spec = control.lease.as_ref().and_then(|lease| lease.spec.as_ref());
    let lasts = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .unwrap_or(15);
    let silent = renewed.map(|time| control.now.as_second() - time.as_second());
    // Replicas may name themselves by more than their pod's name.
    let lives = control
        .pods
        .iter()
        .any(|pod| holder.contains(&pod.name_any()));
    match (silent, renewed) {
        (Some(seconds), Some(time)) if seconds > i64::from(lasts) => {
            let silent = since(time, control.now);
            group.fail(
                what,
                format!("{holder} has said nothing for {silent}"),
                remedy,
            );
        }
        _ if !lives => group.fail(what, format!("{holder} is no pod of {CONTROL}"), remedy),
        _ => group.ok(what, holder),
    }
}

pub fn authority(group: &mut Group, control: &Control) {
    let what = "the certificate authority is valid";
    match &control.authority {
        Ok((certificate, from)) => {
            lifetime(group, what, certificate, from, control.now.as_second())
        }
        Err(why) => group.fail(
            what,
            why.as_str(),
            "the leader makes one: its log says why it does not",
        ),
    }
}

fn lifetime(group: &mut Group, what: &str, certificate: &Certificate, from: &str, now: i64) {
    let ends = from_now(certificate.not_after, now);
    let remedy = "renew it: see the documentation on rotating the root";
    if certificate.not_after <= now {
        group.fail(what, format!("{from} ended {ends}"), remedy);
    } else if certificate.not_before > now {
        let begins = from_now(certificate.not_before, now);
        group.fail(
            what,
            format!("{from} begins {begins}"),
            "is the clock right?",
        );
    } else if certificate.not_after - now < CA_SOON {
        group.warn(what, format!("{from} ends {ends}"), remedy);
    } else {
        group.ok(what, format!("{from} ends {ends}"));
    }
}

/// What everybody trusts, if it is there.
pub async fn bundles(
    group: &mut Group,
    cluster: &Cluster,
    mesh: &Mesh,
) -> Result<Option<Vec<Certificate>>, Error> {
    let maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={BUNDLE}"));
    let found = match cluster.list(&maps, &named).await {
        Ok(found) => found,
        Err(error) if error.is_forbidden() => {
            group.unread("trust bundles", &error);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut by_namespace: BTreeMap<String, String> = found
        .into_iter()
        .filter_map(|map| {
            let namespace = map.namespace()?;
            Some((namespace, map.data?.remove(BUNDLE_KEY)?))
        })
        .collect();
    let expected = by_namespace.remove(SYSTEM);
    let what = format!("ConfigMap {BUNDLE} is wherever it is needed");
    let remedy = format!("the leader keeps them: `kubectl -n {SYSTEM} logs deploy/{CONTROL}`");
    let Some(expected) = expected else {
        group.fail(what, format!("not even in {SYSTEM}"), remedy);
        return Ok(None);
    };
    let wrong = wrong_bundles(mesh, &by_namespace, &expected);
    let good = format!("in {} namespaces", by_namespace.len() + 1);
    group.none_of(Verdict::Failed, what, good, &wrong, remedy);
    match certificate::read(expected.as_bytes()) {
        Ok(bundle) => Ok(Some(bundle)),
        Err(why) => {
            let what = format!("ConfigMap {BUNDLE} can be read");
            group.fail(what, why, "delete it: the leader writes it again");
            Ok(None)
        }
    }
}

/// A namespace with sidecars takes no pod without it; elsewhere it may be left out.
fn wrong_bundles(
    mesh: &Mesh,
    by_namespace: &BTreeMap<String, String>,
    expected: &str,
) -> Vec<String> {
    let meshed: BTreeSet<String> = mesh
        .pods
        .iter()
        .filter(|(_, standing)| standing.is_meshed())
        .filter_map(|(pod, _)| pod.namespace())
        .collect();
    let alive = mesh.namespaces.values().filter(|namespace| {
        let status = namespace.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        phase != Some("Terminating") && namespace.name_any() != SYSTEM
    });
    let wrong = alive.filter_map(|namespace| {
        let name = namespace.name_any();
        let mode = namespace.labels().get(MODE);
        let needed = meshed.contains(&name) || mode.is_some_and(|mode| mode != "none");
        match by_namespace.get(&name) {
            None if needed => Some(format!("{name} has none")),
            Some(found) if found != expected => Some(format!("{name} has another")),
            _ => None,
        }
    });
    wrong.collect()
}

#[cfg(test)]
pub mod tests;
