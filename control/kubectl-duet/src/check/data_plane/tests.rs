use super::*;
use crate::check::control_plane::tests::{OWN, control};
use crate::check::tests::checks;
use crate::proxy::{Held, Served};
use serde_json::json;

fn told(version: &str, core: &str, held: Held) -> Answer {
    let proxy = ProxyPod {
        namespace: "shop".to_owned(),
        pod: "web-0".to_owned(),
        placement: Placement::Sidecar,
        node: "node-1".to_owned(),
    };
    let told = Told {
        version: version.to_owned(),
        core: core.to_owned(),
        mode: "sidecar".to_owned(),
        time: 1000,
        missing: Vec::new(),
        workloads: vec![Served {
            name: "shop/web-0".to_owned(),
            identity: Some(held.identity.clone()),
        }],
        identities: vec![held],
    };
    (proxy, Ok(told))
}

fn held(not_before: i64, not_after: Option<i64>, roots: &[&str]) -> Held {
    Held {
        identity: "spiffe://duet.local/ns/shop/sa/web".to_owned(),
        not_before: Some(not_before),
        not_after,
        serial: None,
        roots: Some(roots.iter().map(|root| (*root).to_owned()).collect()),
    }
}

#[test]
fn certificates_are_late_before_they_are_over() {
    let check = |held| checks(|group| certificates(group, &[told("1", "a", held)]));
    let good = check(held(0, Some(1300), &[]));
    assert_eq!(good[0], "ok: every identity has a certificate: all 1");
    assert!(good[1].starts_with("ok"));
    assert!(
        check(held(0, Some(1200), &[]))[1].starts_with("warning"),
        "200 s of 1200 are left"
    );
    assert!(check(held(0, Some(900), &[]))[0].starts_with("failed"));
    assert!(check(held(0, None, &[]))[0].ends_with("has none yet"));
}

#[test]
fn proxies_are_compared_with_each_other_and_with_the_bundle() {
    let good = || held(0, Some(9000), &["aa"]);
    let control = control(2, json!({}));
    let same = [told(OWN, "c1", good()), told(OWN, "c1", good())];
    assert!(
        checks(|group| builds(group, &control, &same))
            .iter()
            .all(|line| line.starts_with("ok"))
    );
    let mixed = [told(OWN, "c1", good()), told("0.0.1", "c2", good())];
    let found = checks(|group| builds(group, &control, &mixed));
    assert!(
        found.iter().all(|line| line.starts_with("warning")),
        "{found:?}"
    );
    assert!(found[1].ends_with("c1 (1); c2 (1)"), "{found:?}");

    let bundle = |fingerprint: &str| Certificate {
        subject: String::new(),
        not_before: 0,
        not_after: 1,
        fingerprint: fingerprint.to_owned(),
    };
    let check = |root: &str| checks(|group| roots(group, &same, &[bundle(root)])).remove(0);
    assert!(check("aa").starts_with("ok"));
    assert!(check("bb").starts_with("warning"));
}

#[test]
fn a_proxy_that_says_nothing_or_waits_is_named() {
    let mut waiting = told("1", "a", held(0, Some(9000), &[]));
    if let Ok(told) = &mut waiting.1 {
        told.missing = vec!["discovery: no snapshot".to_owned()];
    }
    let silent = (
        waiting.0.clone(),
        Err(Error::Proxy("it says nothing".to_owned())),
    );
    let found = checks(|group| answers(group, &[waiting, silent]));
    assert_eq!(
        found,
        [
            "failed: every proxy answers: it says nothing",
            "failed: every proxy is ready: shop/web-0: discovery: no snapshot",
        ]
    );
}
