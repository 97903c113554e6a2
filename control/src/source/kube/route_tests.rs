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
    let written = route(spec, json!({}))
        .judged(Kind::Http, "ns/r", &services())
        .unwrap();
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
        let (parent_path, key) = path.rsplit_once('/').unwrap();
        rule.pointer_mut(parent_path).unwrap()[key] = value;
        accepted(json!({ "parentRefs": [parent("web")], "rules": [rule] }))
    };
    let extension = json!([{ "type": "ExtensionRef", "extensionRef": {} }]);
    let replaced = json!([{ "type": "URLRewrite", "urlRewrite": {
        "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" },
    } }]);
    let host = json!([{ "type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{ "name": "Host", "value": "x" }],
    } }]);
    for (path, value, named) in [
        (
            "/matches/0/fromTheFuture",
            json!(true),
            "matches[0].fromTheFuture",
        ),
        (
            "/matches/0/path/type",
            json!("Glob"),
            "matches[0].path.type",
        ),
        (
            "/matches/0/path",
            json!({ "type": "RegularExpression", "value": "(" }),
            "matches[0].path: ",
        ),
        (
            "/filters",
            extension,
            "filters[0]: the filter \"ExtensionRef\"",
        ),
        ("/filters", host, "filters[0]: \"Host\""),
        (
            "/timeouts",
            json!({ "request": "soon" }),
            "timeouts.request: ",
        ),
        ("/timeouts", json!({ "other": "1s" }), "timeouts.other"),
        (
            "/retry",
            json!({ "fromTheFuture": 2 }),
            "retry.fromTheFuture",
        ),
        (
            "/sessionPersistence",
            json!({ "type": "Cookie" }),
            "sessionPersistence",
        ),
        ("/fromTheFuture", json!(true), "fromTheFuture"),
        (
            "/backendRefs/0/filters",
            json!([{ "type": "x" }]),
            "backendRefs[0].filters",
        ),
    ] {
        let (reason, message) = with(path, value);
        assert_eq!(reason, "UnsupportedValue", "{path}");
        assert!(
            message.starts_with(&format!("spec.rules[0].{named}")),
            "{path}: {message}"
        );
        assert!(message.contains("no effect"), "{message}");
    }
    // With two matches nobody could tell which one is replaced.
    let mut rule = all_to("web");
    rule["filters"] = replaced;
    rule["matches"] = json!([{ "path": { "value": "/a" } }, { "path": { "value": "/b" } }]);
    let (_, message) = accepted(json!({ "parentRefs": [parent("web")], "rules": [rule] }));
    assert!(message.contains("ReplacePrefixMatch"), "{message}");

    let (reason, _) = accepted(json!({ "parentRefs": [parent("web")] }));
    assert_eq!(reason, "UnsupportedValue");
    let (reason, message) = accepted(json!({
        "parentRefs": [{ "group": "", "kind": "Service", "name": "web", "namespace": "far" }],
        "rules": [all_to("web")],
    }));
    assert_eq!(reason, "UnsupportedValue");
    assert!(message.contains("of another namespace"), "{message}");
}

fn told(kind: Kind, spec: Value) -> Vec<api::Route> {
    route(spec, json!({})).told(kind, "ns/r", &"ns/web".into(), &services())
}

#[test]
fn a_rule_is_told_as_it_is_written() {
    use duet_core::api::{redirect, rewrite, route_match, value_match};
    let mut at_port = parent("web");
    at_port["port"] = json!(80);
    let all = told(
        Kind::Http,
        json!({
            "parentRefs": [at_port],
            "hostnames": ["*.example"],
            "rules": [{
                "matches": [{
                    "path": { "type": "PathPrefix", "value": "/api" },
                    "method": "GET",
                    "headers": [{ "name": "X-Canary", "value": "yes" }],
                    "queryParams": [{ "name": "v", "type": "RegularExpression", "value": "[0-9]+" }],
                }],
                "filters": [
                    { "type": "RequestHeaderModifier", "requestHeaderModifier": {
                        "set": [{ "name": "a", "value": "b" }], "remove": ["c"],
                    } },
                    { "type": "URLRewrite", "urlRewrite": {
                        "hostname": "new.example",
                        "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/" },
                    } },
                ],
                "timeouts": { "request": "10s", "backendRequest": "500ms" },
                "retry": { "attempts": 2, "codes": [500, 503], "backoff": "100ms" },
                "backendRefs": [
                    { "name": "web", "port": 80, "weight": 90 },
                    { "name": "other", "port": 80, "weight": 10 },
                    { "name": "web", "namespace": "far", "port": 80 },
                ],
            }],
        }),
    );
    let [route] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!(route.name, "ns/r");
    assert_eq!(
        (&*route.ports, &*route.hosts),
        (&[80][..], &["*.example".to_owned()][..])
    );
    let one = &route.matches[0];
    assert_eq!(one.path, Some(route_match::Path::Prefix("/api".into())));
    assert_eq!(
        (one.method.as_str(), one.headers[0].name.as_str()),
        ("GET", "x-canary")
    );
    let digits = value_match::Value::Expression("[0-9]+".into());
    assert_eq!(one.query[0].value, Some(digits));
    let backends: Vec<_> = route
        .backends
        .iter()
        .map(|one| (one.service.as_str(), one.port, one.weight))
        .collect();
    // Who may not be named is nobody, and keeps its part.
    assert_eq!(
        backends,
        [("ns/web", 80, 90), ("ns/other", 80, 10), ("", 80, 1)]
    );
    let times = route.timeouts.unwrap();
    assert_eq!((times.request_ms, times.try_ms), (10_000, 500));
    let retry = route.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.statuses.len()), (2, 2));
    assert_eq!((retry.min_backoff_ms, retry.any_method), (100, false));
    let Some(rewrite::Path::Prefix(new)) = &route.rewrite.as_ref().unwrap().path else {
        panic!("a prefix")
    };
    assert_eq!((new.old.as_str(), new.new.as_str()), ("/api", "/"));

    let redirected = told(
        Kind::Http,
        json!({ "parentRefs": [parent("web")], "rules": [{ "filters": [
            { "type": "RequestRedirect", "requestRedirect": {
                "scheme": "https", "statusCode": 301,
                "path": { "type": "ReplaceFullPath", "replaceFullPath": "/x" },
            } },
        ] }] }),
    );
    let redirect = redirected[0].redirect.as_ref().unwrap();
    assert_eq!((redirect.scheme.as_str(), redirect.status), ("https", 301));
    assert_eq!(redirect.path, Some(redirect::Path::Whole("/x".into())));
    assert!(redirected[0].backends.is_empty());

    // Without a backend, what falls under it is refused.
    let nobody = told(
        Kind::Http,
        json!({ "parentRefs": [parent("web")], "rules": [{}] }),
    );
    assert_eq!(nobody[0].backends[0].service, "");
    // And of a service that is not its parent it says nothing.
    let other = json!({ "parentRefs": [parent("other")], "rules": [all_to("web")] });
    assert!(told(Kind::Http, other).is_empty());
}

#[test]
fn mirrors_are_told_and_resolved_as_backends_are() {
    let mirrored = |said: Value| {
        let mut rule = all_to("web");
        rule["filters"] = json!([{ "type": "RequestMirror", "requestMirror": said }]);
        json!({ "parentRefs": [parent("web")], "rules": [rule] })
    };
    let to = |name: &str| json!({ "name": name, "port": 80 });
    for (said, expected) in [
        (json!({ "backendRef": to("two") }), ("ns/two", 1, 1)),
        (
            json!({ "backendRef": to("two"), "percent": 5 }),
            ("ns/two", 5, 100),
        ),
        (
            json!({ "backendRef": to("two"), "fraction": { "numerator": 1, "denominator": 1000 } }),
            ("ns/two", 1, 1000),
        ),
    ] {
        let [route] = &told(Kind::Http, mirrored(said))[..] else {
            panic!("one route")
        };
        let [one] = &route.mirrors[..] else {
            panic!("{:?}", route.mirrors)
        };
        let told = (one.service.as_str(), one.numerator, one.denominator);
        assert_eq!(told, expected);
        assert_eq!(route.backends[0].service, "ns/web");
    }
    let [accepted, resolved] = verdict(mirrored(json!({ "backendRef": to("missing") })));
    assert_eq!(accepted.0, "Accepted");
    assert_eq!(resolved.0, "BackendNotFound");
    let field = "spec.rules[0].filters[0].requestMirror.backendRef";
    assert!(resolved.1.starts_with(field), "{}", resolved.1);
}

#[test]
fn a_grpc_route_is_for_grpc_alone() {
    use duet_core::api::route_match;
    let all = told(
        Kind::Grpc,
        json!({ "parentRefs": [parent("web")], "rules": [
            { "matches": [
                { "method": { "service": "shop.Cart", "method": "Add" } },
                { "method": { "service": "shop.Cart" } },
                { "method": { "method": "Add" } },
                { "method": { "type": "RegularExpression", "service": "shop\\..*" } },
            ], "backendRefs": [{ "name": "web", "port": 80 }] },
            { "backendRefs": [{ "name": "web", "port": 80 }] },
        ] }),
    );
    let paths: Vec<_> = all[0]
        .matches
        .iter()
        .map(|one| one.path.clone().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            route_match::Path::Exact("/shop.Cart/Add".into()),
            route_match::Path::Prefix("/shop.Cart".into()),
            route_match::Path::Expression("/[^/]+/Add".into()),
            route_match::Path::Expression("/(?:shop\\..*)/(?:[^/]+)".into()),
        ]
    );
    for route in &all {
        for one in &route.matches {
            assert_eq!(one.headers[0].name, "content-type");
        }
    }
    assert_eq!(all[1].matches.len(), 1);
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
    let mut written = first
        .judged(Kind::Http, "ns/r", &services())
        .unwrap()
        .status;
    assert_eq!(written["parents"].as_array().unwrap().len(), 2);
    assert_eq!(written["parents"][0], others);

    // As the API server gives it back.
    assert_eq!(
        route(spec.clone(), written.clone()).judged(Kind::Http, "ns/r", &services()),
        None
    );
    // What somebody else says meanwhile is no reason to say it again.
    written["parents"][0]["conditions"] = json!([{ "type": "Accepted", "status": "True" }]);
    assert_eq!(
        route(spec.clone(), written.clone()).judged(Kind::Http, "ns/r", &services()),
        None
    );
    // What has become wrong is, and tells since when.
    written["parents"][1]["conditions"][0]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    written["parents"][1]["conditions"][1]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    let mut changed = spec;
    changed["useDefaultGateways"] = json!("All");
    let again = route(changed, written.clone())
        .judged(Kind::Http, "ns/r", &services())
        .unwrap()
        .status;
    let conditions = &again["parents"][1]["conditions"];
    assert_ne!(conditions[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(conditions[1]["lastTransitionTime"], "2020-01-01T00:00:00Z");

    // A parent that is named no longer is not spoken of.
    let left = json!({ "parentRefs": [gateway], "rules": [all_to("web")] });
    let left = route(left, written)
        .judged(Kind::Http, "ns/r", &services())
        .unwrap()
        .status;
    assert_eq!(left["parents"].as_array().unwrap().len(), 1);
    // And a route that never was ours is never written to.
    let foreign = json!({ "parentRefs": [gateway], "rules": [] });
    assert_eq!(
        route(foreign, json!({ "parents": [others] })).judged(Kind::Http, "ns/r", &services()),
        None
    );
}

#[test]
fn a_service_that_appears_is_a_reason_to_look_again() {
    let mut routes = Routes::new(Kind::Http);
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
