//! Whatever the order in which it is told, the model comes to the same.

use super::*;
use proptest::prelude::*;

/// One object as it is in the end, or is not.
#[derive(Clone, Debug)]
enum Fact {
    Namespace(u8, Option<(u8, u8)>),
    Pod(u8, Option<(u8, u8, u8, u8)>),
    Service(Option<u8>),
    Slice(u8, Option<Vec<(u8, u8, u8)>>),
    Policy(Option<u8>),
}

fn facts() -> impl Strategy<Value = Fact> {
    let namespace = proptest::option::weighted(0.9, (0..3u8, 0..3u8));
    let pod = proptest::option::weighted(0.8, (0..3u8, 0..4u8, 0..6u8, 0..3u8));
    let endpoints = proptest::collection::vec((0..4u8, 0..3u8, 0..4u8), 0..4);
    prop_oneof![
        (0..2u8, namespace).prop_map(|(name, it)| Fact::Namespace(name, it)),
        (0..4u8, pod).prop_map(|(name, it)| Fact::Pod(name, it)),
        proptest::option::weighted(0.8, 0..3u8).prop_map(Fact::Service),
        (0..2u8, proptest::option::weighted(0.8, endpoints))
            .prop_map(|(name, it)| Fact::Slice(name, it)),
        proptest::option::of(0..2u8).prop_map(Fact::Policy),
    ]
}

fn tell_model(model: &mut Model, fact: &Fact) {
    match fact {
        Fact::Namespace(name, it) => {
            let name = if *name == 0 { "ns" } else { "other" };
            let Some((mode, reach)) = it else {
                return model.namespace(Change::Gone(name.into()));
            };
            let labels = match mode {
                0 => json!({}),
                1 => json!({ "duet.dev/mode": "agent" }),
                _ => json!({ "duet.dev/mode": "none" }),
            };
            let annotations = match reach {
                0 => json!({}),
                1 => json!({ "duet.dev/reach": "" }),
                _ => json!({ "duet.dev/reach": "ns", "duet.dev/mtls": "strict" }),
            };
            model.namespace(put(name, namespace(labels, annotations)));
        }
        Fact::Pod(name, it) => {
            let name = format!("p{name}");
            let Some((uid, address, kind, created)) = it else {
                return model.pod(Change::Gone(format!("ns/{name}").into()));
            };
            let address = format!("10.0.0.{address}");
            let mut found = match kind {
                0 => pod(&uid.to_string(), &address, json!({})),
                1 => sidecar(&uid.to_string(), &address),
                _ => pod(
                    &uid.to_string(),
                    &address,
                    json!({ "labels": { "app": "web" } }),
                ),
            };
            found["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:0{created}Z"));
            if *kind == 3 {
                found["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
            }
            if *kind == 4 {
                found["status"]["phase"] = json!("Failed");
            }
            put_pod(model, &name, found);
        }
        Fact::Service(None) => model.service(Change::Gone("ns/web".into())),
        Fact::Service(Some(kind)) => {
            let addresses = if *kind == 0 {
                json!(["None"])
            } else {
                json!(["10.96.0.1"])
            };
            model.service(service(addresses, json!([{ "name": "http", "port": 80 }])));
        }
        Fact::Slice(name, it) => {
            let name = format!("web-{name}");
            let Some(endpoints) = it else {
                return model.slice(Change::Gone(format!("ns/{name}").into()));
            };
            let texts: Vec<_> = endpoints
                .iter()
                .map(|(pod, uid, address)| {
                    let pod = if *pod == 3 {
                        String::new()
                    } else {
                        format!("p{pod}")
                    };
                    (format!("10.0.0.{address}"), pod, uid.to_string())
                })
                .collect();
            let given: Vec<_> = texts
                .iter()
                .map(|(address, pod, uid)| ready(address, pod, uid))
                .collect();
            model.slice(slice(&name, http(), &given));
        }
        Fact::Policy(None) => model.policy(Change::Gone("ns/p".into())),
        Fact::Policy(Some(kind)) => {
            let spec = match kind {
                0 => json!({ "action": "Allow" }),
                _ => {
                    json!({ "action": "Deny", "rules": [{}], "selector": { "matchLabels": { "app": "web" } } })
                }
            };
            model.policy(put("ns/p", policy(spec)));
        }
    }
}

/// What a fact is about.
fn subject(fact: &Fact) -> (u8, u8) {
    match fact {
        Fact::Namespace(name, _) => (0, *name),
        Fact::Pod(name, _) => (1, *name),
        Fact::Service(_) => (2, 0),
        Fact::Slice(name, _) => (3, *name),
        Fact::Policy(_) => (4, 0),
    }
}

proptest! {
    /// Step by step, with looks in between, the model comes to the same mesh as when
    /// it is told the end alone, in another order.
    #[test]
    fn the_way_does_not_matter(
        story in proptest::collection::vec((facts(), any::<bool>()), 0..40),
        backwards in any::<bool>(),
    ) {
        let mut told = Model::new("cluster.local");
        for (fact, look) in &story {
            tell_model(&mut told, fact);
            if *look {
                told.flush();
            }
        }
        let mut last: Vec<&Fact> = Vec::new();
        for (fact, _) in story.iter().rev() {
            if !last.iter().any(|known| subject(known) == subject(fact)) {
                last.push(fact);
            }
        }
        if backwards {
            last.reverse();
        }
        let mut anew = Model::new("cluster.local");
        for fact in last {
            tell_model(&mut anew, fact);
        }
        let (told, anew) = (told.flush(), anew.flush());
        prop_assert!(told.same_mesh(anew), "{told:#?}\n{anew:#?}");
    }
}
