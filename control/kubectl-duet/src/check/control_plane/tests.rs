use super::*;
use crate::check::tests::checks;
use crate::status::certificate::tests::root;
use crate::status::gather::Build;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

pub const OWN: &str = OWN_VERSION;

fn now() -> Timestamp {
    "2025-06-01T00:00:00Z".parse().unwrap()
}

pub fn control(ready: i32, lease: Value) -> Control {
    let from = |value: Value| serde_json::from_value(value).unwrap();
    Control {
        deployment: serde_json::from_value(json!({
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"readyReplicas": ready},
        }))
        .unwrap(),
        pods: vec![from(json!({"metadata": {"name": "duet-control-7d-x"}}))],
        lease: serde_json::from_value(json!({ "spec": lease })).unwrap(),
        builds: BTreeMap::from([(
            "duet-control-7d-x".to_owned(),
            Build {
                version: OWN_VERSION.to_owned(),
                core: "aa".to_owned(),
            },
        )]),
        authority: Err("nobody".to_owned()),
        now: now(),
        clock_ahead: 0.0,
    }
}

#[test]
fn a_leader_is_alive_and_heard_of() {
    let check = |lease| checks(|group| leader(group, &control(2, lease))).remove(0);
    let fresh = json!({
        "holderIdentity": "duet-control-7d-x", "leaseDurationSeconds": 15,
        "renewTime": "2025-05-31T23:59:55.000000Z",
    });
    assert_eq!(
        check(fresh.clone()),
        "ok: a leader is elected: duet-control-7d-x"
    );
    let mut stale = fresh.clone();
    stale["renewTime"] = "2025-05-31T23:58:00.000000Z".into();
    assert_eq!(
        check(stale),
        "failed: a leader is elected: duet-control-7d-x has said nothing for 2m"
    );
    let mut gone = fresh;
    gone["holderIdentity"] = "duet-control-6c-y".into();
    assert!(check(gone).ends_with("duet-control-6c-y is no pod of duet-control"));
    assert_eq!(check(json!({})), "failed: a leader is elected: none");
}

#[test]
fn replicas_are_counted_and_versions_compared() {
    let check = |ready| checks(|group| replicas(group, &control(ready, json!({}))));
    assert_eq!(check(2)[0], "ok: duet-control is ready: 2 of 2");
    assert_eq!(check(1)[0], "warning: duet-control is ready: 1 of 2");
    assert_eq!(check(0)[0], "failed: duet-control is ready: 0 of 2");
    assert!(check(2)[1].starts_with("ok: duet-control is one version"));
    let mut other = control(2, json!({}));
    for build in other.builds.values_mut() {
        build.version = "0.0.1".to_owned();
    }
    let found = checks(|group| replicas(group, &other));
    assert!(
        found[1].starts_with("warning") && found[1].contains("0.0.1"),
        "{found:?}"
    );
}

#[test]
fn an_authority_that_ends_soon_is_told_of_in_time() {
    let check = |from, to| {
        let certificate = certificate::read(root(from, to).as_bytes())
            .unwrap()
            .remove(0);
        let now = now().as_second();
        checks(|group| lifetime(group, "CA", &certificate, "there", now)).remove(0)
    };
    assert_eq!(check(2024, 2034), "ok: CA: there ends in 8y");
    assert!(check(2020, 2025).starts_with("failed: CA: there ended"));
    assert!(check(2026, 2036).starts_with("failed: CA: there begins in"));
    let mut soon = certificate::read(root(2024, 2034).as_bytes())
        .unwrap()
        .remove(0);
    soon.not_after = now().as_second() + 10 * 86400;
    let found = checks(|group| lifetime(group, "CA", &soon, "there", now().as_second()));
    assert_eq!(found, ["warning: CA: there ends in 10d"]);
}

#[test]
fn a_definition_is_served_in_the_right_version() {
    let check = |found: Option<Value>, needed| {
        let found = found.map(|value| serde_json::from_value(value).unwrap());
        checks(|group| definition(group, "x.duet.dev", "v1", needed, found.as_ref())).remove(0)
    };
    let found = |version: &str| {
        json!({
            "spec": {
                "group": "duet.dev", "names": {"kind": "X", "plural": "x"}, "scope": "Namespaced",
                "versions": [{"name": version, "served": true, "storage": true}],
            },
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        })
    };
    assert_eq!(
        check(Some(found("v1")), true),
        "ok: x.duet.dev v1: is served"
    );
    assert!(check(Some(found("v2")), true).starts_with("failed"));
    assert!(check(None, true).starts_with("failed"));
    assert!(check(None, false).starts_with("warning"));
}

#[test]
fn a_namespace_in_the_mesh_has_the_bundle() {
    let namespace = |name: &str, labels: Value, phase: &str| {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "status": {"phase": phase},
        }))
        .unwrap()
    };
    let mesh = Mesh {
        namespaces: crate::mesh::by_name(vec![
            namespace("meshed", json!({MODE: "sidecar"}), "Active"),
            namespace("without", json!({MODE: "agent"}), "Active"),
            namespace("going", json!({MODE: "agent"}), "Terminating"),
            namespace("other", json!({}), "Active"),
            namespace("left-out", json!({MODE: "none"}), "Active"),
        ]),
        pods: Vec::new(),
        agents: None,
        told: Vec::new(),
    };
    let found = [("meshed", "roots"), ("other", "old roots")];
    let found = found.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(
        wrong_bundles(&mesh, &BTreeMap::from(found), "roots"),
        ["other has another", "without has none"]
    );
}
