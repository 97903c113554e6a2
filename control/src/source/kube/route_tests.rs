use super::*;
use k8s_openapi::api::core::v1 as core;

fn services() -> Objects<Service> {
    let mut services = Objects::default();
    let mut add = |name: &str, spec: Value| {
        let service: core::Service = serde_json::from_value(json!({ "spec": spec })).unwrap();
        services.set(&name.into(), Service::read(service));
    };
    let one = json!([{ "port": 80 }]);
    add(
        "ns/web",
        json!({ "clusterIPs": ["10.96.0.1"], "ports": one }),
    );
    add(
        "ns/other",
        json!({ "clusterIPs": ["10.96.0.2"], "ports": one }),
    );
    add(
        "far/web",
        json!({ "clusterIPs": ["10.96.0.3"], "ports": one }),
    );
    add(
        "ns/headless",
        json!({ "clusterIPs": ["None"], "ports": one }),
    );
    let two = json!([{ "port": 80 }, { "port": 81 }]);
    add(
        "ns/two",
        json!({ "clusterIPs": ["10.96.0.4"], "ports": two }),
    );
    services
}

fn route(spec: Value, status: Value) -> Route {
    Route::read(
        serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {
                "namespace": "ns", "name": "r", "generation": 3, "resourceVersion": "77",
            },
            "spec": spec, "status": status,
        }))
        .unwrap(),
    )
}

fn parent(name: &str) -> Value {
    json!({ "group": "", "kind": "Service", "name": name })
}

/// As the API server completes it.
fn all_to(name: &str) -> Value {
    json!({
        "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
        "backendRefs": [{ "group": "", "kind": "Service", "name": name, "port": 80, "weight": 1 }],
    })
}

/// Reason and message of Accepted and of ResolvedRefs.
fn verdict(spec: Value) -> [(String, String); 2] {
    let written = route(spec, json!({})).judged("ns/r", &services()).unwrap();
    assert_eq!(written.resource_version, "77");
    let parents = written.status["parents"].as_array().unwrap().clone();
    let last = parents.last().unwrap();
    assert_eq!(last["controllerName"], CONTROLLER);
    ["Accepted", "ResolvedRefs"].map(|kind| {
        let condition = find(&last["conditions"], kind).unwrap();
        assert_eq!(condition["observedGeneration"], 3);
        let holds = condition["status"] == "True";
        assert_eq!(holds, condition["reason"] == kind, "{condition}");
        let text = |key: &str| condition[key].as_str().unwrap().to_owned();
        (text("reason"), text("message"))
    })
}

fn accepted(spec: Value) -> (String, String) {
    let [accepted, _] = verdict(spec);
    accepted
}

#[test]
fn what_happens_anyway_is_accepted() {
    let [accepted, resolved] =
        verdict(json!({ "parentRefs": [parent("web")], "rules": [all_to("web")] }));
    assert_eq!(accepted, ("Accepted".into(), String::new()));
    assert_eq!(resolved, ("ResolvedRefs".into(), String::new()));
    // As a GRPCRoute says it, and for one port of two.
    let mut one_port = parent("two");
    one_port["port"] = json!(80);
    let bare = json!({ "name": "all", "backendRefs": [{ "name": "two", "port": 80 }] });
    let [accepted, _] = verdict(json!({ "parentRefs": [one_port], "rules": [bare, bare] }));
    assert_eq!(accepted.0, "Accepted");
}

#[test]
fn what_is_not_supported_is_named() {
    let with = |path: &str, value: Value| {
        let mut rule = all_to("web");
        let (parent, key) = path.rsplit_once('/').unwrap();
        rule.pointer_mut(parent).unwrap()[key] = value;
        accepted(json!({ "parentRefs": [parent_of()], "rules": [rule] }))
    };
    fn parent_of() -> Value {
        parent("web")
    }
    for (path, value, named) in [
        (
            "/matches/0/headers",
            json!([{ "name": "a", "value": "b" }]),
            "matches[0].headers",
        ),
        ("/matches/0/method", json!("GET"), "matches[0].method"),
        ("/matches/0/path/value", json!("/api"), "matches[0].path"),
        ("/matches/0/path/type", json!("Exact"), "matches[0].path"),
        (
            "/filters",
            json!([{ "type": "RequestRedirect" }]),
            "filters",
        ),
        ("/timeouts", json!({ "request": "1s" }), "timeouts"),
        ("/retry", json!({ "attempts": 2 }), "retry"),
        (
            "/sessionPersistence",
            json!({ "type": "Cookie" }),
            "sessionPersistence",
        ),
        ("/fromTheFuture", json!(true), "fromTheFuture"),
        (
            "/backendRefs/0/name",
            json!("other"),
            "backendRefs[0]: another backend",
        ),
        (
            "/backendRefs/0/namespace",
            json!("far"),
            "backendRefs[0]: another backend",
        ),
        (
            "/backendRefs/0/kind",
            json!("Bucket"),
            "backendRefs[0]: another backend",
        ),
        ("/backendRefs/0/port", json!(81), "backendRefs[0].port"),
        ("/backendRefs/0/weight", json!(0), "backendRefs[0].weight"),
        (
            "/backendRefs/0/filters",
            json!([{ "type": "x" }]),
            "backendRefs[0].filters",
        ),
        (
            "/backendRefs",
            json!([]),
            "backendRefs: a rule without backends",
        ),
        (
            "/backendRefs",
            json!([{ "name": "web", "port": 80 }, { "name": "other", "port": 80 }]),
            "backendRefs: splitting traffic between 2 backends",
        ),
    ] {
        let (reason, message) = with(path, value);
        assert_eq!(reason, "UnsupportedValue", "{path}");
        assert!(
            message.starts_with(&format!("spec.rules[0].{named}")),
            "{path}: {message}"
        );
        assert!(message.contains("is not supported"), "{message}");
    }
    let rules = || json!([all_to("web")]);
    let (_, message) = accepted(json!({
        "parentRefs": [parent("web")], "rules": rules(), "hostnames": ["example.org"],
    }));
    assert!(
        message.starts_with("spec.hostnames is not supported"),
        "{message}"
    );
    let (reason, _) = accepted(json!({ "parentRefs": [parent("web")] }));
    assert_eq!(reason, "UnsupportedValue");
    let (reason, message) = accepted(json!({
        "parentRefs": [{ "group": "", "kind": "Service", "name": "web", "namespace": "far" }],
        "rules": rules(),
    }));
    assert_eq!(reason, "UnsupportedValue");
    assert!(message.contains("of another namespace"), "{message}");
    // A port of two stands for neither both nor the other.
    let two = json!({ "backendRefs": [{ "name": "two", "port": 80 }] });
    let (reason, message) = accepted(json!({ "parentRefs": [parent("two")], "rules": [two] }));
    assert_eq!(reason, "UnsupportedValue");
    assert!(
        message.starts_with("spec.rules[0].backendRefs[0].port"),
        "{message}"
    );
}

#[test]
fn parents_and_backends_that_are_not_there() {
    for name in ["missing", "headless"] {
        let (reason, message) =
            accepted(json!({ "parentRefs": [parent(name)], "rules": [all_to("web")] }));
        assert_eq!(reason, "NoMatchingParent");
        assert!(message.contains(&format!("Service ns/{name}")), "{message}");
    }
    let mut port = parent("web");
    port["port"] = json!(8080);
    let (reason, _) = accepted(json!({ "parentRefs": [port], "rules": [all_to("web")] }));
    assert_eq!(reason, "NoMatchingParent");

    for (backend, expected) in [
        (json!({ "name": "missing", "port": 80 }), "BackendNotFound"),
        (json!({ "name": "web", "port": 8080 }), "BackendNotFound"),
        (json!({ "name": "web" }), "BackendNotFound"),
        (
            json!({ "name": "web", "namespace": "far", "port": 80 }),
            "RefNotPermitted",
        ),
        (
            json!({ "name": "web", "kind": "Bucket", "port": 80 }),
            "InvalidKind",
        ),
    ] {
        let [_, (reason, message)] = verdict(json!({
            "parentRefs": [parent("web")], "rules": [{ "backendRefs": [backend] }],
        }));
        assert_eq!(reason, expected);
        assert!(
            message.starts_with("spec.rules[0].backendRefs[0]: "),
            "{message}"
        );
    }
}

#[test]
fn a_status_is_written_once_and_others_are_left_alone() {
    let gateway = json!({ "name": "front" });
    let spec = json!({ "parentRefs": [gateway, parent("web")], "rules": [all_to("web")] });
    let others =
        json!({ "parentRef": gateway, "controllerName": "example.org/gateway", "conditions": [] });
    let first = route(spec.clone(), json!({ "parents": [others] }));
    let mut written = first.judged("ns/r", &services()).unwrap().status;
    assert_eq!(written["parents"].as_array().unwrap().len(), 2);
    assert_eq!(written["parents"][0], others);

    // As the API server gives it back.
    assert_eq!(
        route(spec.clone(), written.clone()).judged("ns/r", &services()),
        None
    );
    // What somebody else says meanwhile is no reason to say it again.
    written["parents"][0]["conditions"] = json!([{ "type": "Accepted", "status": "True" }]);
    assert_eq!(
        route(spec.clone(), written.clone()).judged("ns/r", &services()),
        None
    );
    // What has become wrong is, and tells since when.
    written["parents"][1]["conditions"][0]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    written["parents"][1]["conditions"][1]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    let mut changed = spec;
    changed["hostnames"] = json!(["example.org"]);
    let again = route(changed, written.clone())
        .judged("ns/r", &services())
        .unwrap()
        .status;
    let conditions = &again["parents"][1]["conditions"];
    assert_ne!(conditions[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(conditions[1]["lastTransitionTime"], "2020-01-01T00:00:00Z");

    // A parent that is named no longer is not spoken of.
    let left = json!({ "parentRefs": [gateway], "rules": [all_to("web")] });
    let left = route(left, written)
        .judged("ns/r", &services())
        .unwrap()
        .status;
    assert_eq!(left["parents"].as_array().unwrap().len(), 1);
    // And a route that never was ours is never written to.
    let foreign = json!({ "parentRefs": [gateway], "rules": [] });
    assert_eq!(
        route(foreign, json!({ "parents": [others] })).judged("ns/r", &services()),
        None
    );
}

#[test]
fn a_service_that_appears_is_a_reason_to_look_again() {
    let mut routes = Routes::default();
    let spec = json!({ "parentRefs": [parent("late")], "rules": [all_to("late")] });
    routes.hear(Change::Put("ns/r".into(), route(spec, json!({}))));
    let mut services = services();
    let judged = |routes: &mut Routes, services: &Objects<Service>| {
        let judged: Vec<_> = routes.judge(services).collect();
        judged
            .into_iter()
            .map(|(_, writing)| {
                writing.unwrap().status["parents"][0]["conditions"][0]["reason"].clone()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(judged(&mut routes, &services), ["NoMatchingParent"]);
    assert!(judged(&mut routes, &services).is_empty());
    routes.service_changed(&"ns/web".into());
    assert!(judged(&mut routes, &services).is_empty());
    let web = services.get("ns/web").unwrap().clone();
    services.set(&"ns/late".into(), Some(web));
    routes.service_changed(&"ns/late".into());
    assert_eq!(judged(&mut routes, &services), ["Accepted"]);
    routes.hear(Change::Gone("ns/r".into()));
    assert!(
        routes
            .judge(&services)
            .all(|(_, writing)| writing.is_none())
    );
}
