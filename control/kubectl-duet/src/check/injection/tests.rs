use super::*;
use crate::check::tests::checks;
use crate::status::certificate::tests::root;
use serde_json::Value;

const NOW: i64 = 1_750_000_000;

#[test]
fn the_webhook_believes_the_mesh_and_nobody_else() {
    let (ours, theirs, old) = (root(2024, 2034), root(2024, 2034), root(2020, 2025));
    let bundle = certificate::read(ours.as_bytes()).unwrap();
    let check = |ca: Option<&str>| {
        let mut webhook: MutatingWebhookConfiguration = serde_json::from_value(json!({
            "webhooks": [{
                "name": "a", "admissionReviewVersions": [], "sideEffects": "None",
                "clientConfig": {},
            }],
        }))
        .unwrap();
        for one in webhook.webhooks.iter_mut().flatten() {
            one.client_config.ca_bundle =
                ca.map(|ca| k8s_openapi::ByteString(ca.as_bytes().to_vec()));
        }
        checks(|group| ca_bundle(group, &webhook, Some(&bundle), NOW)).remove(0)
    };
    assert!(check(Some(&ours)).starts_with("ok"));
    assert!(
        check(Some(&format!("{theirs}{ours}"))).starts_with("ok"),
        "while roots change"
    );
    assert!(check(Some(&theirs)).ends_with("it is another root's"));
    assert!(check(Some(&old)).ends_with("all of it has expired"));
    assert!(check(None).ends_with("it is empty"));
    assert!(check(Some("rubbish")).starts_with("failed"));
}

#[test]
fn an_injected_pod_has_what_its_mode_needs() {
    let pod = |placement: &str, spec: Value| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"annotations": {"duet.dev/placement": placement}}, "spec": spec,
        }))
        .unwrap()
    };
    let proxy =
        json!({"containers": [], "initContainers": [{"name": PROXY, "restartPolicy": "Always"}]});
    assert_eq!(injected(&pod("sidecar", proxy), Placement::Sidecar), Ok(()));
    let once = json!({"containers": [], "initContainers": [{"name": PROXY}]});
    assert!(
        injected(&pod("sidecar", once), Placement::Sidecar).is_err(),
        "it would end the pod's start"
    );
    let gated =
        json!({"containers": [], "readinessGates": [{"conditionType": "duet.dev/enrolled"}]});
    assert_eq!(injected(&pod("agent", gated), Placement::Agent), Ok(()));
    let bare = || json!({"containers": []});
    assert!(injected(&pod("agent", bare()), Placement::Agent).is_err());
    assert!(injected(&pod("none", bare()), Placement::Agent).is_err());
    assert!(injected(&example(Placement::Agent).unwrap(), Placement::Agent).is_err());
}

#[test]
fn whose_fault_a_refused_pod_is() {
    let check = |error: Error| {
        checks(|group| refused(group, "dry run".to_owned(), "shop", &error).unwrap()).remove(0)
    };
    let webhook =
        "Internal error occurred: failed calling webhook \"a.duet.dev\": connection refused";
    assert!(check(Error::Api(webhook.to_owned())).starts_with("failed"));
    let policy = "pods \"x\" violates PodSecurity \"restricted:latest\": NET_ADMIN";
    assert!(check(Error::Forbidden(policy.to_owned())).starts_with("warning"));
    assert!(check(Error::Forbidden("create pods".to_owned())).starts_with("warning"));
}
