//! `uninstall`: what there is of Duet, in the order in which it may go. The webhook is
//! first, so that no pod is injected any more by what is no longer there.

use crate::cli::UninstallArgs;
use crate::cluster::{Cluster, Error, SYSTEM};
use crate::mesh::is_over;
use crate::output::print;
use crate::status::gather::{BUNDLE, Mesh};
use kube::api::{DeleteParams, DynamicObject, ListParams, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt};
use std::process::ExitCode;

/// On everything that the manifests make.
const PART_OF: &str = "app.kubernetes.io/part-of=duet";
/// Pods that an error names.
const NAMED: usize = 10;

/// A kind that there may be something of.
struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// Names that count although the label is missing.
    names: &'static [&'static str],
}

/// In this order.
#[rustfmt::skip]
const KINDS: [Kind; 6] = [
    Kind { group: "admissionregistration.k8s.io", version: "v1", kind: "MutatingWebhookConfiguration", plural: "mutatingwebhookconfigurations", names: &["duet-injector"] },
    Kind { group: "admissionregistration.k8s.io", version: "v1", kind: "ValidatingWebhookConfiguration", plural: "validatingwebhookconfigurations", names: &[] },
    Kind { group: "", version: "v1", kind: "Namespace", plural: "namespaces", names: &[SYSTEM] },
    Kind { group: "rbac.authorization.k8s.io", version: "v1", kind: "ClusterRoleBinding", plural: "clusterrolebindings", names: &["duet-control", "duet-agent"] },
    Kind { group: "rbac.authorization.k8s.io", version: "v1", kind: "ClusterRole", plural: "clusterroles", names: &["duet-control", "duet-agent"] },
    Kind { group: "apiextensions.k8s.io", version: "v1", kind: "CustomResourceDefinition", plural: "customresourcedefinitions", names: &["authorizationpolicies.duet.dev"] },
];

/// Something that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    api_version: String,
    kind: &'static str,
    plural: &'static str,
    namespace: Option<String>,
    name: String,
}

pub async fn run(cluster: &Cluster, args: &UninstallArgs) -> Result<ExitCode, Error> {
    let found = find(cluster).await?;
    if found.is_empty() {
        return Err(Error::NotFound(
            "there is nothing of Duet in this cluster".to_owned(),
        ));
    }
    let mesh = Mesh::listed(cluster, None).await?;
    let meshed: Vec<String> = mesh
        .pods
        .iter()
        .filter(|(pod, standing)| standing.is_meshed() && !is_over(pod))
        .map(|(pod, _)| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect();
    if !args.yes {
        print(&manifest(&found))?;
        if let Some(warning) = still_meshed(&meshed) {
            eprintln!("kubectl duet: {warning}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    match still_meshed(&meshed) {
        Some(refusal) if !args.force => Err(Error::Local(refusal)),
        _ => {
            let outcome = delete(cluster, &found).await?;
            if mesh.agents.is_some() {
                eprintln!(
                    "kubectl duet: what agents left on the nodes goes with deploy/cleanup: `kubectl apply -k deploy/cleanup`"
                );
            }
            Ok(outcome)
        }
    }
}

/// Why not yet.
fn still_meshed(meshed: &[String]) -> Option<String> {
    if meshed.is_empty() {
        return None;
    }
    let mut named = meshed
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if meshed.len() > NAMED {
        named += &format!(" and {} more", meshed.len() - NAMED);
    }
    Some(format!(
        "still in the mesh: {named}; set duet.dev/mode=none on their namespaces, and restart them (kubectl rollout restart), or write --force: without proxies they reach nobody"
    ))
}

async fn find(cluster: &Cluster) -> Result<Vec<Found>, Error> {
    let mut all = Vec::new();
    for kind in KINDS {
        let resource = resource(kind.group, kind.version, kind.kind, kind.plural);
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let mut names: Vec<String> = cluster
            .list(&api, &ListParams::default().labels(PART_OF))
            .await?
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        for name in kind.names {
            let known = names.iter().any(|one| one == name);
            if !known && cluster.get(&api, name).await?.is_some() {
                names.push((*name).to_owned());
            }
        }
        names.sort();
        all.extend(names.into_iter().map(|name| Found {
            api_version: resource.api_version.clone(),
            kind: kind.kind,
            plural: kind.plural,
            namespace: None,
            name,
        }));
    }
    // Of what is in other namespaces: the leader's trust bundles, and what is labelled.
    for (group, kind, plural) in [
        ("", "ConfigMap", "configmaps"),
        ("rbac.authorization.k8s.io", "RoleBinding", "rolebindings"),
        ("rbac.authorization.k8s.io", "Role", "roles"),
    ] {
        let resource = resource(group, "v1", kind, plural);
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let mut listed = cluster
            .list(&api, &ListParams::default().labels(PART_OF))
            .await?;
        if kind == "ConfigMap" {
            let bundles = ListParams::default().fields(&format!("metadata.name={BUNDLE}"));
            listed.extend(cluster.list(&api, &bundles).await?);
        }
        let mut found: Vec<_> = listed
            .iter()
            .filter(|one| one.namespace().as_deref() != Some(SYSTEM))
            .map(|one| Found {
                api_version: resource.api_version.clone(),
                kind,
                plural,
                namespace: one.namespace(),
                name: one.name_any(),
            })
            .collect();
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        found.dedup();
        all.extend(found);
    }
    Ok(all)
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// As `kubectl delete -f -` takes it.
fn manifest(found: &[Found]) -> String {
    let mut text = String::new();
    for one in found {
        let namespace = match &one.namespace {
            Some(namespace) => format!(", namespace: {namespace}"),
            None => String::new(),
        };
        text += &format!(
            "---\napiVersion: {}\nkind: {}\nmetadata: {{name: {}{namespace}}}\n",
            one.api_version, one.kind, one.name
        );
    }
    text
}

async fn delete(cluster: &Cluster, found: &[Found]) -> Result<ExitCode, Error> {
    let mut failed = false;
    for one in found {
        let (group, version) = one
            .api_version
            .rsplit_once('/')
            .unwrap_or(("", &one.api_version));
        let resource = resource(group, version, one.kind, one.plural);
        let client = cluster.client.clone();
        let api: Api<DynamicObject> = match &one.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let what = match &one.namespace {
            Some(namespace) => format!("{} {namespace}/{}", one.kind, one.name),
            None => format!("{} {}", one.kind, one.name),
        };
        match cluster.wait(api.delete(&one.name, &params)).await {
            Ok(_) => print(&format!("deleted {what}\n"))?,
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                failed = true;
                eprintln!("kubectl duet: {what}: {error}");
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_goes_first_and_the_manifest_is_one() {
        assert_eq!(KINDS[0].kind, "MutatingWebhookConfiguration");
        let found = |kind, name: &str, namespace: Option<&str>| Found {
            api_version: "v1".to_owned(),
            kind,
            plural: "",
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        let all = [
            found("Namespace", SYSTEM, None),
            found("ConfigMap", BUNDLE, Some("shop")),
        ];
        assert_eq!(
            manifest(&all),
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: duet-system}\n\
             ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: duet-trust-bundle, namespace: shop}\n"
        );
    }

    #[test]
    fn whoever_is_still_in_the_mesh_is_named() {
        assert_eq!(still_meshed(&[]), None);
        let pods: Vec<_> = (0..12).map(|n| format!("shop/web-{n}")).collect();
        let refusal = still_meshed(&pods).unwrap();
        assert!(refusal.contains("shop/web-0, shop/web-1"), "{refusal}");
        assert!(refusal.contains("shop/web-9 and 2 more"), "{refusal}");
    }
}
