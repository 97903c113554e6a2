//! What must be true of a cluster before, and stays true after, Duet is in it.

use super::{Check, Group, Verdict};
use crate::cluster::{Cluster, Error, SYSTEM};
use crate::mesh::MODE;
use futures_util::future::join_all;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};

/// Native sidecars (KEP-753) are on by default since then.
const MIN_KUBERNETES: (u32, u32) = (1, 29);
/// SO_NETNS_COOKIE, and lookup-and-delete of maps.
const MIN_KERNEL: (u32, u32) = (5, 14);
/// Certificates begin five minutes before they are signed: a clock that is further
/// behind than that takes none, and one that is off by a fifth of it is on its way.
const CLOCK_WARNS: f64 = 60.0;
const CLOCK_FAILS: f64 = 300.0;
/// A kubelet renews its Lease every 10 s.
const LEASE_LATE: f64 = 60.0;
/// Clocks of nodes are compared with one that shows whole seconds.
const LEASE_EARLY: f64 = 5.0;

/// Who is not to be in the same pods.
const MESHES: [(&str, &str); 4] = [
    ("istio-sidecar-injector", "Istio"),
    ("istio-revision", "Istio"),
    ("linkerd-proxy-injector", "Linkerd"),
    ("consul-connect-injector", "Consul"),
];
const MESH_LABELS: [&str; 4] = [
    "istio-injection",
    "istio.io/rev",
    "istio.io/dataplane-mode",
    "linkerd.io/inject",
];

/// The API server and the nodes.
pub async fn platform(cluster: &Cluster) -> Result<Vec<Check>, Error> {
    let mut group = Group::new("Kubernetes");
    let version = cluster.wait(cluster.client.apiserver_version()).await?;
    group.ok("the API server answers", cluster.url.as_str());
    api_version(&mut group, &version.git_version);
    let (now, ahead) = cluster.clock().await?;
    own_clock(&mut group, ahead);

    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    match cluster.list(&nodes, &ListParams::default()).await {
        Ok(nodes) => {
            kubelets(&mut group, &nodes);
            network(&mut group, &nodes);
            kernels(&mut group, &nodes);
        }
        Err(error) if error.is_forbidden() => group.unread("nodes", &error),
        Err(error) => return Err(error),
    }
    match cluster.list(&leases, &ListParams::default()).await {
        Ok(leases) => node_clocks(&mut group, &leases, now),
        Err(error) if error.is_forbidden() => group.unread("the nodes' clocks", &error),
        Err(error) => return Err(error),
    }
    Ok(group.checks)
}

/// Whether there is room for Duet, and whether who asks may put it there.
pub async fn installable(cluster: &Cluster) -> Result<Vec<Check>, Error> {
    let mut group = Group::new("installation");
    permissions(&mut group, cluster).await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    match cluster.get(&namespaces, SYSTEM).await {
        Ok(None) => group.ok(format!("namespace {SYSTEM}"), "is free"),
        Ok(Some(_)) => group.warn(
            format!("namespace {SYSTEM}"),
            "is there already",
            "if Duet is in it, this will be an upgrade: `kubectl duet check` looks at what is there",
        ),
        Err(error) if error.is_forbidden() => group.unread("namespaces", &error),
        Err(error) => return Err(error),
    }
    other_meshes(&mut group, cluster).await?;
    Ok(group.checks)
}

pub async fn other_meshes(group: &mut Group, cluster: &Cluster) -> Result<(), Error> {
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let everything = ListParams::default();
    let found = async {
        let webhooks = cluster.list(&webhooks, &everything).await?;
        let namespaces = cluster.list(&namespaces, &everything).await?;
        Ok((webhooks, namespaces))
    };
    match found.await {
        Ok((webhooks, namespaces)) => meshes(group, &webhooks, &namespaces),
        Err(error @ Error::Forbidden(_)) => group.unread("other meshes", &error),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// "v1.36.2", "5.15.0-1019-aws": the first two numbers.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn api_version(group: &mut Group, version: &str) {
    let (major, minor) = MIN_KUBERNETES;
    let what = format!("Kubernetes is {major}.{minor} or newer");
    match major_minor(version) {
        Some(found) if found >= MIN_KUBERNETES => group.ok(what, version),
        Some(_) => group.fail(
            what,
            version,
            format!("upgrade it: native sidecars need {major}.{minor}"),
        ),
        None => group.warn(
            what,
            format!("{version:?}"),
            "this is no version that is known",
        ),
    }
}

fn kubelets(group: &mut Group, nodes: &[Node]) {
    let (major, minor) = MIN_KUBERNETES;
    let old = named(nodes, |node| {
        let version = node
            .status
            .as_ref()?
            .node_info
            .as_ref()?
            .kubelet_version
            .clone();
        (major_minor(&version)? < MIN_KUBERNETES).then_some(version)
    });
    group.none_of(
        Verdict::Failed,
        format!("kubelets are {major}.{minor} or newer"),
        format!("all {}", nodes.len()),
        &old,
        "upgrade these nodes: an older kubelet does not know native sidecars",
    );
}

/// A node is Ready only with a CNI plugin.
fn network(group: &mut Group, nodes: &[Node]) {
    let unready = named(nodes, |node| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let ready = conditions.iter().find(|one| one.type_ == "Ready")?;
        let why = ready.message.clone().or_else(|| ready.reason.clone());
        (ready.status != "True").then(|| why.unwrap_or_default())
    });
    if nodes.is_empty() {
        group.fail("nodes are ready", "there are none", "add one");
    } else {
        group.none_of(
            if unready.len() == nodes.len() {
                Verdict::Failed
            } else {
                Verdict::Warning
            },
            "nodes are ready, with a pod network (CNI)",
            format!("all {}", nodes.len()),
            &unready,
            "`kubectl describe node` says what they lack; Duet chains to a CNI plugin and brings none",
        );
    }
}

fn kernels(group: &mut Group, nodes: &[Node]) {
    let (major, minor) = MIN_KERNEL;
    let old = named(nodes, |node| {
        let version = node
            .status
            .as_ref()?
            .node_info
            .as_ref()?
            .kernel_version
            .clone();
        (major_minor(&version)? < MIN_KERNEL).then_some(version)
    });
    group.none_of(
        Verdict::Warning,
        format!("kernels are {major}.{minor} or newer"),
        format!("all {}", nodes.len()),
        &old,
        "mode agent needs it: upgrade these nodes, or keep their pods in mode sidecar",
    );
}

fn named(nodes: &[Node], what: impl Fn(&Node) -> Option<String>) -> Vec<String> {
    let found = nodes.iter().filter_map(|node| {
        let what = what(node)?;
        Some(format!("{} ({what})", node.name_any()))
    });
    found.collect()
}

fn own_clock(group: &mut Group, ahead: f64) {
    let what = "this machine's clock agrees with the API server's";
    let found = match ahead {
        0.0 => "to the second".to_owned(),
        _ if ahead > 0.0 => format!("the API server's is {ahead:.1}s ahead"),
        _ => format!("the API server's is {:.1}s behind", -ahead),
    };
    let remedy = "synchronise both (NTP): ages and expiries here are told by this machine's clock";
    match ahead.abs() {
        off if off >= CLOCK_WARNS => group.warn(what, found, remedy),
        _ => group.ok(what, found),
    }
}

/// What a kubelet writes into its Lease is its own clock's time.
fn node_clocks(group: &mut Group, leases: &[Lease], now: Timestamp) {
    let what = "the nodes' clocks agree with the API server's";
    let (mut off, mut worst) = (Vec::new(), Verdict::Ok);
    for lease in leases {
        let renewed = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.renew_time.as_ref());
        let Some(renewed) = renewed else { continue };
        let ahead = (renewed.0.as_nanosecond() - now.as_nanosecond()) as f64 / 1e9;
        let name = lease.name_any();
        if ahead > LEASE_EARLY {
            off.push(format!("{name} is {ahead:.0}s ahead"));
            worst = worst.max(if ahead > CLOCK_FAILS {
                Verdict::Failed
            } else {
                Verdict::Warning
            });
        } else if -ahead > LEASE_LATE {
            off.push(format!(
                "{name} has said nothing for {:.0}s, or is behind",
                -ahead
            ));
            worst = worst.max(Verdict::Warning);
        }
    }
    let remedy = "synchronise them (NTP): a certificate is not valid before its time";
    group.none_of(worst, what, format!("all {}", leases.len()), &off, remedy);
}

fn meshes(group: &mut Group, webhooks: &[MutatingWebhookConfiguration], namespaces: &[Namespace]) {
    let mut present: Vec<String> = webhooks
        .iter()
        .filter_map(|webhook| {
            let name = webhook.name_any();
            let (_, mesh) = MESHES.iter().find(|(start, _)| name.starts_with(start))?;
            Some(format!("{mesh} ({name})"))
        })
        .collect();
    present.sort();
    group.none_of(
        Verdict::Warning,
        "no other mesh injects proxies",
        "none is there",
        &present,
        "they may stay, as long as no namespace is in both: a pod can have one proxy",
    );
    let both: Vec<String> = namespaces
        .iter()
        .filter(|namespace| {
            let mode = namespace.labels().get(MODE);
            mode.is_some_and(|mode| mode != "none")
        })
        .filter_map(|namespace| {
            let asks = |name: &&&str| {
                let value = namespace.labels().get(**name);
                let value = value.or_else(|| namespace.annotations().get(**name));
                value.is_some_and(|value| value != "disabled" && value != "none")
            };
            let other = MESH_LABELS.iter().find(asks)?;
            Some(format!("{} ({other})", namespace.name_any()))
        })
        .collect();
    group.none_of(
        Verdict::Failed,
        "no namespace is in two meshes",
        "none",
        &both,
        format!("take one of the two labels away, {MODE} or the other"),
    );
}

/// What installing creates, one of each kind.
async fn permissions(group: &mut Group, cluster: &Cluster) -> Result<(), Error> {
    let wanted = [
        ("", "namespaces", false),
        ("apiextensions.k8s.io", "customresourcedefinitions", false),
        ("rbac.authorization.k8s.io", "clusterroles", false),
        ("rbac.authorization.k8s.io", "clusterrolebindings", false),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations",
            false,
        ),
        ("rbac.authorization.k8s.io", "roles", true),
        ("rbac.authorization.k8s.io", "rolebindings", true),
        ("", "serviceaccounts", true),
        ("", "services", true),
        ("apps", "deployments", true),
        ("apps", "daemonsets", true),
        ("policy", "poddisruptionbudgets", true),
    ];
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let asked = wanted.map(|(of, resource, namespaced)| {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some("create".to_owned()),
                    group: Some(of.to_owned()),
                    resource: Some(resource.to_owned()),
                    namespace: namespaced.then(|| SYSTEM.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews = reviews.clone();
        async move {
            let answer = cluster
                .wait(reviews.create(&PostParams::default(), &review))
                .await?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok::<_, Error>((!allowed).then(|| resource.to_owned()))
        }
    });
    let refused: Result<Vec<_>, Error> = join_all(asked).await.into_iter().collect();
    let refused: Vec<String> = refused?.into_iter().flatten().collect();
    group.none_of(
        Verdict::Failed,
        "you may create what Duet consists of",
        format!("all {} kinds", wanted.len()),
        &refused,
        "install it as a cluster administrator, or ask for create on these",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::checks;
    use serde_json::{Value, json};

    fn node(name: &str, kubelet: &str, kernel: &str, ready: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [ready],
                "nodeInfo": {
                    "kubeletVersion": kubelet, "kernelVersion": kernel, "architecture": "",
                    "bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "",
                    "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
                },
            },
        }))
        .unwrap()
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(major_minor("v1.36.2"), Some((1, 36)));
        assert_eq!(major_minor("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(major_minor("v1.29+"), Some((1, 29)));
        assert_eq!(major_minor("what"), None);
        let check = |version| checks(|group| api_version(group, version)).remove(0);
        assert_eq!(
            check("v1.9.0"),
            "failed: Kubernetes is 1.29 or newer: v1.9.0"
        );
        assert_eq!(check("v1.29.0"), "ok: Kubernetes is 1.29 or newer: v1.29.0");
    }

    #[test]
    fn old_nodes_are_named() {
        let ready = || json!({"type": "Ready", "status": "True"});
        let no_cni = json!({
            "type": "Ready", "status": "False", "reason": "KubeletNotReady",
            "message": "cni plugin not initialized",
        });
        let nodes = [
            node("new", "v1.36.2", "6.18.44-fc-v657", ready()),
            node("old", "v1.28.9", "5.10.0", ready()),
            node("bare", "v1.36.2", "5.14.0", no_cni),
        ];
        let found = checks(|group| {
            kubelets(group, &nodes);
            network(group, &nodes);
            kernels(group, &nodes);
        });
        assert_eq!(
            found,
            [
                "failed: kubelets are 1.29 or newer: old (v1.28.9)",
                "warning: nodes are ready, with a pod network (CNI): bare (cni plugin not initialized)",
                "warning: kernels are 5.14 or newer: old (5.10.0)",
            ]
        );
        let found = checks(|group| kernels(group, &nodes[..1]));
        assert_eq!(found, ["ok: kernels are 5.14 or newer: all 1"]);
        assert!(checks(|group| network(group, &[]))[0].starts_with("failed"));
        assert!(checks(|group| network(group, &nodes[2..]))[0].starts_with("failed"));
    }

    #[test]
    fn a_nodes_clock_shows_in_its_lease() {
        let lease = |name: &str, renewed: &str| -> Lease {
            let spec = json!({"renewTime": renewed});
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let now = "2025-01-01T00:10:00Z".parse().unwrap();
        let check = |leases: &[Lease]| checks(|group| node_clocks(group, leases, now)).remove(0);
        let what = "the nodes' clocks agree with the API server's";
        let good = lease("a", "2025-01-01T00:09:51.000000Z");
        assert_eq!(
            check(std::slice::from_ref(&good)),
            format!("ok: {what}: all 1")
        );
        let fast = lease("b", "2025-01-01T00:10:20.000000Z");
        let silent = lease("c", "2025-01-01T00:08:00.000000Z");
        assert_eq!(
            check(&[good, fast, silent]),
            format!("warning: {what}: b is 20s ahead; c has said nothing for 120s, or is behind")
        );
        let far = lease("d", "2025-01-01T00:16:00.000000Z");
        assert_eq!(check(&[far]), format!("failed: {what}: d is 360s ahead"));
    }

    #[test]
    fn a_namespace_in_two_meshes_is_a_failure_and_a_neighbour_is_not() {
        let webhook = |name: &str| -> MutatingWebhookConfiguration {
            serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
        };
        let namespace = |name: &str, labels: Value, annotations: Value| -> Namespace {
            let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let none = json!({});
        let found = checks(|group| {
            let webhooks = [
                webhook("duet-injector"),
                webhook("istio-sidecar-injector-1-22"),
            ];
            let namespaces = [
                namespace(
                    "a",
                    json!({MODE: "agent", "istio-injection": "enabled"}),
                    none.clone(),
                ),
                namespace(
                    "b",
                    json!({MODE: "sidecar"}),
                    json!({"linkerd.io/inject": "enabled"}),
                ),
                namespace(
                    "c",
                    json!({MODE: "none", "istio-injection": "enabled"}),
                    none.clone(),
                ),
                namespace(
                    "d",
                    json!({MODE: "agent", "istio-injection": "disabled"}),
                    none.clone(),
                ),
                namespace("e", json!({"istio.io/dataplane-mode": "ambient"}), none),
            ];
            meshes(group, &webhooks, &namespaces);
        });
        assert_eq!(
            found,
            [
                "warning: no other mesh injects proxies: Istio (istio-sidecar-injector-1-22)",
                "failed: no namespace is in two meshes: a (istio-injection); b (linkerd.io/inject)",
            ]
        );
        assert!(
            checks(|group| meshes(group, &[], &[]))
                .iter()
                .all(|line| line.starts_with("ok"))
        );
    }

    #[test]
    fn a_clock_may_be_a_little_off() {
        let check = |ahead| checks(|group| own_clock(group, ahead)).remove(0);
        assert!(check(0.0).starts_with("ok"));
        assert!(check(-12.0).ends_with("is 12.0s behind"));
        assert!(check(75.0).starts_with("warning"));
    }
}
