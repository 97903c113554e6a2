use super::*;
use crate::mesh::by_name;
use crate::proxy::{Held, ProxyPod, Served, Told};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn pod(namespace: &str, name: &str, placement: Option<&str>, phase: &str) -> Value {
    let annotations = placement.map_or(json!({}), |p| json!({"duet.dev/placement": p}));
    json!({
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"containers": []},
        "status": {"phase": phase, "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "duet.dev/enrolled", "status": "True"},
        ]},
    })
}

fn told(core: &str, serves: &[(&str, i64)]) -> Told {
    let identity = |name: &str| format!("spiffe://duet.local/ns/x/sa/{name}");
    Told {
        version: "0.1.0".to_owned(),
        core: core.to_owned(),
        mode: "sidecar".to_owned(),
        time: 0,
        missing: Vec::new(),
        workloads: serves
            .iter()
            .map(|(name, _)| Served {
                name: (*name).to_owned(),
                identity: Some(identity(name)),
            })
            .collect(),
        identities: serves
            .iter()
            .map(|(name, ends)| Held {
                identity: identity(name),
                not_before: Some(0),
                not_after: Some(*ends),
                serial: None,
                roots: None,
            })
            .collect(),
    }
}

fn mesh() -> Mesh {
    let namespaces = [
        ("shop", Some("sidecar")),
        ("bank", Some("agent")),
        ("other", None),
    ];
    let namespaces = namespaces.map(|(name, mode)| {
        let labels = mode.map_or(json!({}), |mode| json!({ MODE: mode }));
        let namespace = json!({"metadata": {"name": name, "labels": labels}});
        serde_json::from_value(namespace).unwrap()
    });
    let namespaces = by_name(namespaces.into());
    let mut pending = pod("bank", "late", Some("agent"), "Pending");
    pending["status"]["conditions"] =
        json!([{"type": "duet.dev/enrolled", "status": "False", "message": "no cgroup"}]);
    let pods = [
        pod("shop", "web-0", Some("sidecar"), "Running"),
        pod("shop", "web-1", Some("agent"), "Running"),
        pod("shop", "old", None, "Running"),
        pod("shop", "job", Some("sidecar"), "Succeeded"),
        pod("bank", "db-0", Some("agent"), "Running"),
        pending,
        pod("other", "x", None, "Running"),
    ];
    let pods = pods.map(|value| {
        let pod: Pod = serde_json::from_value(value).unwrap();
        let standing = Standing::of(&pod, namespaces.get(&pod.namespace().unwrap()));
        (pod, standing)
    });
    let proxy = |namespace: &str, pod: &str, placement| ProxyPod {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        placement,
        node: "node-1".to_owned(),
    };
    Mesh {
        namespaces,
        pods: pods.into(),
        agents: None,
        told: vec![
            (
                proxy("shop", "web-0", Placement::Sidecar),
                Ok(told("aa", &[("shop/web-0", 5000)])),
            ),
            (
                proxy("duet-system", "duet-agent-x", Placement::Agent),
                Ok(told("bb", &[("shop/web-1", 3000), ("bank/db-0", 9000)])),
            ),
            (
                proxy("shop", "silent", Placement::Sidecar),
                Err(Error::Proxy("says nothing".to_owned())),
            ),
        ],
    }
}

#[test]
fn a_namespace_is_the_sum_of_its_pods_and_proxies() {
    let found = namespaces(&mesh(), false);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(
        found,
        [
            NamespaceStatus {
                name: "bank".to_owned(),
                mode: Some("agent".to_owned()),
                agent: 2,
                unenrolled: 1,
                versions: set(&["0.1.0"]),
                cores: set(&["bb"]),
                first_expiry: Some(9000),
                ..NamespaceStatus::default()
            },
            NamespaceStatus {
                name: "shop".to_owned(),
                mode: Some("sidecar".to_owned()),
                sidecar: 1,
                agent: 1,
                unmeshed: 1,
                needs_rollout: 2,
                versions: set(&["0.1.0"]),
                cores: set(&["aa", "bb"]),
                first_expiry: Some(3000),
                ..NamespaceStatus::default()
            },
        ],
        "a pod that is over counts for nothing, and a namespace that has none is left out"
    );
    assert_eq!(namespaces(&mesh(), true).len(), 3);
}

#[test]
fn whoever_needs_attention_is_named_with_the_reason() {
    let mesh = mesh();
    let line = |one: &Named| format!("{}/{}: {}", one.namespace, one.pod, one.why);
    let lines = |named: &[Named]| named.iter().map(line).collect::<Vec<_>>();
    assert_eq!(lines(&unenrolled(&mesh)), ["bank/late: agent: no cgroup"]);
    assert_eq!(
        lines(&needs_rollout(&mesh)),
        [
            "shop/web-1: it is agent, its labels ask for sidecar",
            "shop/old: it is none, its labels ask for sidecar",
        ]
    );
    assert_eq!(lines(&silent(&mesh)), ["shop/silent: says nothing"]);
}

#[test]
fn mixed_cores_catch_the_eye() {
    let now = Timestamp::from_second(1000).unwrap();
    let text = render_namespaces(&namespaces(&mesh(), false), now);
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[1].starts_with("bank        agent     0         2       0"),
        "{text}"
    );
    assert!(lines[1].ends_with("bb              end in 133m"), "{text}");
    assert!(lines[2].contains("MIXED: aa, bb   end in 33m"), "{text}");
}
