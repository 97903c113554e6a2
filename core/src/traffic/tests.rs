use super::*;
use crate::api::{RouteMatch, ValueMatch, route_match, value_match};
use proptest::prelude::*;
use std::collections::HashMap;

fn exact(path: &str) -> RouteMatch {
    RouteMatch {
        path: Some(route_match::Path::Exact(path.into())),
        ..RouteMatch::default()
    }
}

fn prefix(path: &str) -> RouteMatch {
    RouteMatch {
        path: Some(route_match::Path::Prefix(path.into())),
        ..RouteMatch::default()
    }
}

fn expression(path: &str) -> RouteMatch {
    RouteMatch {
        path: Some(route_match::Path::Expression(path.into())),
        ..RouteMatch::default()
    }
}

fn value(name: &str, value: &str) -> ValueMatch {
    ValueMatch {
        name: name.into(),
        value: Some(value_match::Value::Exact(value.into())),
    }
}

fn route(name: &str, matches: &[RouteMatch]) -> api::Route {
    api::Route {
        name: name.into(),
        matches: matches.to_vec(),
        ..api::Route::default()
    }
}

fn compiled(routes: Vec<api::Route>) -> Traffic {
    let service = api::Service {
        routes,
        ..api::Service::default()
    };
    Traffic::compile(&service, 80).expect("it has routes")
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn falls_under<'a>(traffic: &'a Traffic, request: &Request<()>) -> &'a str {
    traffic
        .rule(request)
        .map_or("nothing", |rule| rule.name.as_str())
}

#[test]
fn a_service_that_says_nothing_has_nothing() {
    assert!(Traffic::compile(&api::Service::default(), 80).is_none());
    let service = api::Service {
        timeouts: Some(api::Timeouts {
            request_ms: 1000,
            ..api::Timeouts::default()
        }),
        ..api::Service::default()
    };
    let traffic = Traffic::compile(&service, 80).unwrap();
    let rule = traffic.rule(&request("GET", "/", &[])).unwrap();
    assert_eq!(rule.name, "default");
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(1)));
    assert_eq!(rule.choose(), Choice::Itself);
}

#[test]
fn the_most_specific_match_counts_whatever_the_order() {
    let with_header = RouteMatch {
        headers: vec![value("x-canary", "yes")],
        ..prefix("/api")
    };
    let with_query = RouteMatch {
        query: vec![value("v", "2")],
        ..prefix("/api")
    };
    let with_method = RouteMatch {
        method: "PUT".into(),
        ..prefix("/api")
    };
    let mut all = vec![
        route("all", &[]),
        route("api", &[prefix("/api")]),
        route("api/v2", &[prefix("/api/v2/")]),
        route("expression", &[expression("/api/v[0-9]+/x")]),
        route("exact", &[exact("/api/v2/y"), exact("/other")]),
        route("query", &[with_query]),
        route("header", &[with_header]),
        route("method", &[with_method]),
    ];
    for _ in 0..all.len() {
        let traffic = compiled(all.clone());
        for (method, uri, headers, expected) in [
            ("GET", "/", &[][..], "all"),
            ("GET", "/apis", &[], "all"),
            ("GET", "/api", &[], "api"),
            ("GET", "/api/", &[], "api"),
            ("GET", "/api/v1", &[], "api"),
            ("GET", "/api/v2", &[], "api/v2"),
            ("GET", "/api/v20", &[], "api"),
            ("GET", "/api/v2/z", &[], "api/v2"),
            ("GET", "/api/v2/x", &[], "expression"),
            ("GET", "/api/v2/x/more", &[], "api/v2"),
            ("GET", "/api/v2/y?z", &[], "exact"),
            ("GET", "/other", &[], "exact"),
            ("GET", "/api?v=2", &[], "query"),
            ("GET", "/api?v=1&v=2", &[], "api"),
            ("GET", "/api?v=%32", &[], "query"),
            ("GET", "/api", &[("x-canary", "yes")], "header"),
            (
                "GET",
                "/api",
                &[("x-canary", "no"), ("x-canary", "yes")],
                "header",
            ),
            ("GET", "/api?v=2", &[("x-canary", "yes")], "header"),
            ("PUT", "/api", &[("x-canary", "yes")], "method"),
            ("GET", "/api/v2", &[("x-canary", "yes")], "api/v2"),
        ] {
            let request = request(method, uri, headers);
            assert_eq!(falls_under(&traffic, &request), expected, "{method} {uri}");
        }
        all.rotate_left(1);
    }
}

#[test]
fn the_first_of_equals_counts_and_what_none_matches_is_refused() {
    let traffic = compiled(vec![
        route("first", &[prefix("/a")]),
        route("second", &[prefix("/a/")]),
    ]);
    assert_eq!(falls_under(&traffic, &request("GET", "/a/b", &[])), "first");
    assert_eq!(falls_under(&traffic, &request("GET", "/b", &[])), "nothing");
}

#[test]
fn hosts_and_ports_narrow_a_route() {
    let on = |name: &str, hosts: &[&str], ports: &[u32]| api::Route {
        hosts: hosts.iter().map(ToString::to_string).collect(),
        ports: ports.to_vec(),
        ..route(name, &[])
    };
    let traffic = compiled(vec![
        on("elsewhere", &[], &[81]),
        on("below", &["*.example"], &[80]),
        on("shop", &["Shop.example"], &[]),
    ]);
    let host = |host: &str| falls_under(&traffic, &request("GET", "/", &[("host", host)]));
    assert_eq!(host("shop.example"), "shop");
    assert_eq!(host("SHOP.EXAMPLE:8080"), "shop");
    assert_eq!(host("a.b.example"), "below");
    assert_eq!(host("example"), "nothing");
    let absolute = request("GET", "http://shop.example/", &[("host", "wrong")]);
    assert_eq!(falls_under(&traffic, &absolute), "shop");
}

#[test]
fn an_expression_is_bounded_and_matches_as_a_whole() {
    assert!(check_expression("/a/.*").is_ok());
    for wrong in ["(", "(a{1000}){1000}", r"\p{Greek}"] {
        assert!(check_expression(wrong).is_err(), "{wrong}");
    }
    let traffic = compiled(vec![route("a", &[expression("/a|/b")])]);
    assert_eq!(falls_under(&traffic, &request("GET", "/b", &[])), "a");
    assert_eq!(
        falls_under(&traffic, &request("GET", "/b/c", &[])),
        "nothing"
    );
}

fn split(weights: &[u32]) -> Traffic {
    let backends = weights
        .iter()
        .enumerate()
        .map(|(n, weight)| api::RouteBackend {
            service: format!("default/v{n}"),
            port: 80,
            weight: *weight,
        });
    let mut route = route("split", &[]);
    route.backends = backends.collect();
    compiled(vec![route])
}

#[test]
fn weights_split_requests() {
    let traffic = split(&[90, 10, 0]);
    let rule = traffic.rule(&request("GET", "/", &[])).unwrap();
    let mut counts = HashMap::new();
    for _ in 0..10_000 {
        let Choice::Other(backend) = rule.choose() else {
            panic!("somebody has a weight")
        };
        *counts.entry(backend.service.clone()).or_insert(0) += 1;
    }
    // Five standard deviations of 30.
    assert!((850..=1150).contains(&counts["default/v1"]), "{counts:?}");
    assert!(!counts.contains_key("default/v2"));
    let traffic = split(&[0, 0]);
    let rule = traffic.rule(&request("GET", "/", &[])).unwrap();
    assert_eq!(rule.choose(), Choice::Nobody);
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let rewritten = |rewrite: api::Rewrite, uri: &str| {
        let mut request = request("GET", uri, &[("host", "old.example")]);
        Rewrite::read(&rewrite).apply(&mut request);
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        (request.uri().to_string(), host)
    };
    let to_prefix = |old: &str, new: &str| api::Rewrite {
        path: Some(api::rewrite::Path::Prefix(api::NewPrefix {
            old: old.into(),
            new: new.into(),
        })),
        ..api::Rewrite::default()
    };
    for (old, new, uri, expected) in [
        ("/a", "/b", "/a/c?d=e", "/b/c?d=e"),
        ("/a", "/b", "/a", "/b"),
        ("/a/", "/b/", "/a/c", "/b/c"),
        ("/a", "/", "/a/c", "/c"),
        ("/a", "/", "/a", "/"),
        ("/", "/b", "/c", "/b/c"),
        ("/a", "/b", "http://x/a/c", "http://x/b/c"),
    ] {
        let (uri, _) = rewritten(to_prefix(old, new), uri);
        assert_eq!(uri, expected, "{old} to {new}");
    }
    let whole = api::Rewrite {
        host: "new.example".into(),
        path: Some(api::rewrite::Path::Whole("/one".into())),
    };
    let (uri, host) = rewritten(whole.clone(), "/a?b");
    assert_eq!((uri.as_str(), host.as_str()), ("/one?b", "new.example"));
    let (uri, _) = rewritten(whole, "http://old.example/a");
    assert_eq!(uri, "http://new.example/one");
}

#[test]
fn a_redirect_says_where() {
    let asked = request("GET", "/a/b?c=d", &[("host", "shop.example:8080")]);
    let location = |redirect: api::Redirect| {
        let answer = Redirect::read(&redirect).answer(&asked, 8080);
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), location)
    };
    let default = api::Redirect::default();
    assert_eq!(
        location(default.clone()),
        (302, "http://shop.example:8080/a/b?c=d".into())
    );
    let https = api::Redirect {
        scheme: "https".into(),
        status: 301,
        ..default.clone()
    };
    assert_eq!(
        location(https),
        (301, "https://shop.example/a/b?c=d".into())
    );
    let elsewhere = api::Redirect {
        host: "new.example".into(),
        port: 80,
        path: Some(api::redirect::Path::Prefix(api::NewPrefix {
            old: "/a".into(),
            new: "/z".into(),
        })),
        ..default
    };
    assert_eq!(
        location(elsewhere),
        (302, "http://new.example/z/b?c=d".into())
    );
}

#[test]
fn headers_are_set_added_and_removed() {
    let field = |name: &str, value: &str| api::HeaderField {
        name: name.into(),
        value: value.into(),
    };
    let change = HeaderChange::read(Some(&api::HeaderChange {
        set: vec![field("a", "new")],
        add: vec![field("b", "second")],
        remove: vec!["c".into()],
    }));
    let mut asked = request(
        "GET",
        "/",
        &[("a", "1"), ("a", "2"), ("b", "first"), ("c", "x")],
    );
    change.apply(asked.headers_mut());
    let of = |name: &str| -> Vec<_> {
        let all = asked.headers().get_all(name).iter();
        all.map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(of("a"), ["new"]);
    assert_eq!(of("b"), ["first", "second"]);
    assert!(of("c").is_empty());
}

fn matches() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        "(/[ab]{0,2}){1,3}".prop_map(|path| Some(route_match::Path::Exact(path))),
        "(/[ab]{0,2}){1,3}".prop_map(|path| Some(route_match::Path::Prefix(path))),
        Just(None),
    ];
    let method = prop_oneof![Just(""), Just("GET"), Just("PUT")];
    (path, method, 0..3usize).prop_map(|(path, method, headers)| RouteMatch {
        path,
        method: method.into(),
        headers: (0..headers).map(|n| value(&format!("h{n}"), "x")).collect(),
        ..RouteMatch::default()
    })
}

proptest! {
    /// The rule that is found matches, and no other that matches is more specific.
    #[test]
    fn nothing_more_specific_matches(
        all in prop::collection::vec(matches(), 1..12),
        path in "(/[ab]{0,2}){1,4}",
        headers in 0..3usize,
    ) {
        let named = all.iter().enumerate();
        let routes: Vec<_> =
            named.map(|(n, one)| route(&n.to_string(), std::slice::from_ref(one))).collect();
        let traffic = compiled(routes);
        let mut asked = request("GET", &path, &[]);
        for n in 0..headers {
            let name = http::HeaderName::try_from(format!("h{n}")).unwrap();
            asked.headers_mut().insert(name, "x".parse().unwrap());
        }
        let compiled: Vec<_> = all.iter().map(|one| Matcher::compile(one).unwrap()).collect();
        let best = compiled
            .iter()
            .enumerate()
            .filter(|(_, matcher)| matcher.matches(&asked))
            // Of equals the first.
            .max_by_key(|(n, matcher)| (matcher.specificity(), std::cmp::Reverse(*n)));
        let expected = best.map_or("nothing".to_owned(), |(n, _)| n.to_string());
        prop_assert_eq!(falls_under(&traffic, &asked), expected);
    }
}
