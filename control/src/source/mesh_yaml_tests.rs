use super::*;
use duet_core::api::Probe;
use duet_core::api::authorization_policy::{Action, Rule};
use proptest::prelude::*;

const GOOD: &str = r#"
trustDomain: duet.local
workloads:
  - name: web-0
    serviceAccount: web
    node: node-1
    addresses: [10.71.1.2, "fd71:1::2"]
    mtls: strict
    opaquePorts: [9000]
  - namespace: shop
    name: web-1
    addresses: ["::ffff:10.71.1.3"]
    mesh: hbone
  - name: old
    mesh: none
    addresses: [10.71.1.4]
services:
  - name: web
    addresses: [10.96.0.10]
    ports:
      - port: 80
        targetPort: 8080
        name: http
        appProtocol: http
      - port: 9000
    workloads: [web-0, shop/web-1]
"#;

fn refused(text: &str) -> String {
    let problem = parse("mesh.yaml", text).unwrap_err().to_string();
    assert!(!problem.contains('\n'), "{problem:?} is more than one line");
    problem
}

/// `GOOD` with `from` replaced, refused, with the number of that line.
#[track_caller]
fn refused_after(from: &str, to: &str) -> String {
    let line = 1 + GOOD[..GOOD.find(from).expect("part of GOOD")]
        .matches('\n')
        .count();
    let problem = refused(&GOOD.replacen(from, to, 1));
    let rest = problem.strip_prefix(&format!("mesh.yaml:{line}: "));
    rest.unwrap_or_else(|| panic!("{problem:?} does not name line {line}"))
        .to_owned()
}

#[test]
fn a_file_is_read_with_its_defaults() {
    let state = parse("mesh.yaml", GOOD).unwrap();
    assert_eq!(state.trust_domain, "duet.local");
    let web_0 = &state.workloads["default/web-0"];
    assert_eq!(web_0.service_account, "web");
    assert_eq!(web_0.node, "node-1");
    assert_eq!(web_0.addresses, ["10.71.1.2", "fd71:1::2"]);
    assert_eq!(web_0.protocol(), MeshProtocol::Duet);
    assert_eq!(web_0.mtls(), Mtls::Strict);
    assert_eq!(web_0.opaque_ports, [9000]);
    assert_eq!(
        state.spiffe_id(web_0),
        "spiffe://duet.local/ns/default/sa/web"
    );
    let web_1 = &state.workloads["shop/web-1"];
    assert_eq!(web_1.addresses, ["10.71.1.3"], "v4-mapped is v4");
    assert_eq!(web_1.protocol(), MeshProtocol::Hbone);
    assert_eq!(web_1.mtls(), Mtls::Permissive);
    assert_eq!(web_1.service_account, "default");
    assert_eq!(
        state.workloads["default/old"].protocol(),
        MeshProtocol::None
    );
}

#[test]
fn a_service_reaches_every_address_of_its_workloads() {
    let state = parse("mesh.yaml", GOOD).unwrap();
    let web = &state.services["default/web"];
    let [http, raw] = web.ports.as_slice() else {
        panic!("{:?}", web.ports)
    };
    assert_eq!(
        (http.port, http.name.as_str(), http.app_protocol.as_str()),
        (80, "http", "http")
    );
    assert_eq!((raw.port, raw.app_protocol.as_str()), (9000, ""));
    let reached = |port: &ServicePort| {
        port.endpoints
            .iter()
            .map(|end| format!("{} {} {}", end.address, end.port, end.workload))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reached(http),
        [
            "10.71.1.2 8080 default/web-0",
            "fd71:1::2 8080 default/web-0",
            "10.71.1.3 8080 shop/web-1"
        ]
    );
    assert_eq!(raw.endpoints[0].port, 9000, "targetPort is port by default");
}

#[test]
fn who_is_near_and_what_it_weighs_is_told_of_endpoints() {
    let said = GOOD
        .replace("    node: node-1\n", "    node: node-1\n    zone: zone-a\n    weight: 3\n")
        .replace(
            "    workloads: [web-0, shop/web-1]\n",
            "    workloads: [web-0, shop/web-1]\n    trafficDistribution: PreferSameZone\n    slowStart: 30s\n",
        );
    let state = parse("mesh.yaml", &said).unwrap();
    assert_eq!(state.workloads["default/web-0"].zone, "zone-a");
    let web = &state.services["default/web"];
    assert_eq!(web.traffic_distribution(), TrafficDistribution::SameZone);
    assert_eq!(web.slow_start_ms, 30_000);
    let endpoints = &web.ports[0].endpoints;
    let near = endpoints
        .iter()
        .map(|it| (&*it.zones[0], &*it.node, it.weight));
    let own = ("zone-a", "node-1", 3);
    assert_eq!(near.collect::<Vec<_>>(), [own, own, ("", "", 0)]);
    // Where it does not matter it is not told.
    let state = parse("mesh.yaml", GOOD).unwrap();
    let endpoints = &state.services["default/web"].ports[0].endpoints;
    assert!(
        endpoints
            .iter()
            .all(|it| it.zones.is_empty() && it.node.is_empty())
    );
    for (from, to, why) in [
        ("PreferSameZone", "PreferNear", "PreferSameZone"),
        ("weight: 3", "weight: 0", "workloads[0].weight: "),
        ("zone: zone-a", "zone: Zone_a", "workloads[0].zone: "),
        ("slowStart: 30s", "slowStart: 30", "10s"),
    ] {
        let problem = refused(&said.replace(from, to));
        assert!(problem.contains(why), "{problem}");
    }
}

#[test]
fn unknown_fields_are_refused() {
    assert_eq!(
        refused_after("mtls: strict", "mtsl: strict"),
        "unknown field `mtsl`: write one of namespace, name, serviceAccount, node, zone, \
         weight, addresses, mesh, mtls, opaquePorts, probes, limits, budgets"
    );
    assert!(refused_after("targetPort: 8080", "target_port: 8080").contains("targetPort"));
    assert!(
        refused_after("trustDomain: duet.local", "trustDomian: duet.local").contains("trustDomain")
    );
}

#[test]
fn names_are_unique() {
    assert_eq!(
        refused_after("name: old", "name: web-0"),
        "workloads[2].name: the workload default/web-0 is already on line 4: give each workload \
         its own name"
    );
    let twice = format!("{GOOD}  - name: web\n    ports: [{{port: 1}}]\n");
    assert!(refused(&twice).contains("the service default/web is already on line 18"));
}

#[test]
fn addresses_are_addresses_and_have_one_owner() {
    for wrong in ["10.71.1.256", "10.71.1.4/24", "10.71.1.4:80", "web", "\"\""] {
        let problem = refused_after("[10.71.1.4]", &format!("[{wrong}]"));
        assert!(
            problem.starts_with("workloads[2].addresses[0]: "),
            "{problem}"
        );
        assert!(
            problem.contains("write an IPv4 or IPv6 address"),
            "{problem}"
        );
    }
    assert_eq!(
        refused_after("[10.71.1.4]", "[\"::ffff:10.71.1.2\"]"),
        "workloads[2].addresses[0]: 10.71.1.2 already belongs to the workload default/web-0 \
         (line 7): give the workload default/old its own address"
    );
    assert!(refused_after("[10.96.0.10]", "[10.71.1.4]").contains(
        "services[0].addresses[0]: 10.71.1.4 already belongs to the workload default/old"
    ));
    assert!(refused_after("[10.96.0.10]", "[0.0.0.0]").contains("nobody's own"));
}

#[test]
fn ports_are_ports() {
    for wrong in ["0", "65536", "-1", "http", "80.5"] {
        let problem = refused_after("port: 80\n", &format!("port: {wrong}\n"));
        assert_eq!(
            problem,
            format!(
                "services[0].ports[0].port: \"{wrong}\" is not a port: write a number from 1 to 65535"
            )
        );
    }
    assert!(refused_after("targetPort: 8080", "targetPort: 0").contains("ports[0].targetPort"));
    assert!(refused_after("[9000]", "[9000, 0]").contains("workloads[0].opaquePorts[1]"));
    assert!(refused_after("port: 9000", "port: 80").contains("80 is given twice"));
}

#[test]
fn services_name_workloads_that_exist() {
    assert_eq!(
        refused_after("[web-0, shop/web-1]", "[web-0, web-1]"),
        "services[0].workloads[1]: there is no workload default/web-1: add it under `workloads`, \
         or write the name of one, as name or namespace/name"
    );
    assert!(refused_after("[web-0, shop/web-1]", "[web-0, default/web-0]").contains("given twice"));
}

#[test]
fn words_are_the_known_ones() {
    assert_eq!(
        refused_after("mesh: hbone", "mesh: ambient"),
        "workloads[1].mesh: \"ambient\" is not known: write one of duet, hbone, none"
    );
    assert!(refused_after("mtls: strict", "mtls: on").contains("permissive, strict"));
    assert!(refused_after("appProtocol: http", "appProtocol: h2").contains("kubernetes.io/h2c"));
    assert!(refused_after("name: web-0", "name: ../web").contains("is not a name"));
    assert!(refused_after("node: node-1", "node: Node_1").contains("workloads[0].node"));
}

#[test]
fn strict_needs_a_mesh() {
    let text = "workloads:\n  - name: a\n    mesh: none\n    mtls: strict\n";
    assert!(refused(text).starts_with("mesh.yaml:4: workloads[0].mtls: strict cannot hold"));
}

/// `GOOD` with policies and probes.
const POLICIES: &str = r#"
workloads:
  - name: web-0
    mtls: strict
    probes:
      - port: 8080
        path: /healthz?full=1
      - port: 50051
        grpc: true
      - port: 5432
  - name: web-1
  - name: old
    mesh: none
  - namespace: shop
    name: cart
policies:
  - name: callers
    action: allow
    workloads: [web-0]
    rules:
      - from:
          - identities: [duet.local/ns/shop/*]
            namespaces: [shop]
          - ipBlocks: [10.0.0.0/8]
        to:
          - ports: [8080]
            methods: [GET]
            paths: [/public/*]
  - name: everyone
    action: deny
    rules: [{}]
"#;

/// `POLICIES` with `from` replaced, refused, with the number of that line.
#[track_caller]
fn policies_refused_after(from: &str, to: &str) -> String {
    let at = POLICIES.find(from).expect("part of POLICIES");
    let line = 1 + POLICIES[..at].matches('\n').count();
    let problem = refused(&POLICIES.replacen(from, to, 1));
    let rest = problem.strip_prefix(&format!("mesh.yaml:{line}: "));
    rest.unwrap_or_else(|| panic!("{problem:?} does not name line {line}"))
        .to_owned()
}

#[test]
fn policies_name_themselves_at_the_workloads_they_are_for() {
    let state = parse("mesh.yaml", POLICIES).unwrap();
    let of = |name: &str| state.workloads.get(name).unwrap().policies.clone();
    assert_eq!(of("default/web-0"), ["default/callers", "default/everyone"]);
    assert_eq!(of("default/web-1"), ["default/everyone"]);
    assert!(of("default/old").is_empty(), "nothing would enforce it");
    assert!(of("shop/cart").is_empty(), "another namespace");
    let callers = state.policies.get("default/callers").unwrap();
    assert_eq!(callers.action, i32::from(Action::Allow));
    let [rule] = callers.rules.as_slice() else {
        panic!("{callers:?}")
    };
    assert_eq!(rule.from[0].identities, ["duet.local/ns/shop/*"]);
    assert_eq!(rule.from[0].namespaces, ["shop"]);
    assert_eq!(rule.from[1].ip_blocks, ["10.0.0.0/8"]);
    assert_eq!(rule.to[0].ports, [8080]);
    assert_eq!(rule.to[0].methods, ["GET"]);
    assert_eq!(rule.to[0].paths, ["/public/*"]);
    let everyone = state.policies.get("default/everyone").unwrap();
    assert_eq!(everyone.rules, [Rule::default()]);
}

#[test]
fn probes_are_a_path_or_grpc_or_a_connection() {
    let state = parse("mesh.yaml", POLICIES).unwrap();
    let probes = &state.workloads.get("default/web-0").unwrap().probes;
    let probe = |port, path: &str, grpc| Probe {
        port,
        path: path.into(),
        grpc,
    };
    assert_eq!(
        *probes,
        [
            probe(8080, "/healthz?full=1", false),
            probe(50051, "", true),
            probe(5432, "", false),
        ]
    );
    assert_eq!(
        policies_refused_after("path: /healthz", "path: healthz"),
        "workloads[0].probes[0].path: \"healthz?full=1\" is not a path: begin it with /"
    );
    assert!(policies_refused_after("port: 5432", "port: 0").contains("is not a port"));
    assert!(policies_refused_after("grpc: true", "grpc: yes").contains("false, true"));
    assert!(
        policies_refused_after("path: /healthz?full=1", "path: /a\n        grpc: true")
            .contains("leave path or grpc out")
    );
}

#[test]
fn policies_are_refused_by_line_and_field() {
    let refused = policies_refused_after;
    assert_eq!(
        refused("[10.0.0.0/8]", "[10.0.0.0/8, 10.0.0.1]"),
        "policies[0].rules[0].from[1].ipBlocks[1]: \"10.0.0.1\" is not a block of addresses: \
         write it as 10.0.0.0/8, fd00::/8, or 10.0.0.1/32 for one"
    );
    for (from, to, expected) in [
        ("action: allow", "action: Allow", "allow, deny, audit"),
        ("[web-0]", "[web-2]", "there is no workload default/web-2"),
        ("[web-0]", "[old]", "is not in the mesh"),
        ("[web-0]", "[]", "policies[0].workloads: it is empty"),
        ("[web-0]", "[web-0, web-0]", "given twice"),
        (
            "[duet.local/ns/shop/*]",
            "[spiffe://a/b]",
            "without spiffe://",
        ),
        ("[shop]", "[\"*\"]", "from[0].namespaces[0]: "),
        ("ports: [8080]", "ports: [0]", "to[0].ports[0]: "),
        ("[GET]", "[get]", "write it in upper case"),
        ("[GET]", "[]", "to[0].methods: it is empty"),
        ("[/public/*]", "[public]", "begin it with /"),
        (
            "ipBlocks: [10.0.0.0/8]",
            "{}",
            "an empty source is everybody",
        ),
        ("name: everyone", "name: callers", "already on line 17"),
        ("ports: [8080]", "port: [8080]", "unknown field `port`"),
    ] {
        let problem = refused(from, to);
        assert!(problem.contains(expected), "{to}: {problem}");
    }
    let problem = self::refused(&POLICIES.replace("rules: [{}]", "rules: []"));
    assert!(
        problem.starts_with("mesh.yaml:30: policies[1].rules: without rules"),
        "{problem}"
    );
    let problem = self::refused(&POLICIES.replace("    action: deny\n", ""));
    assert!(problem.contains("`action` is missing"), "{problem}");
}

#[test]
fn mistakes_of_structure_name_their_line_too() {
    assert!(refused("").starts_with("mesh.yaml:1: the file is empty"));
    assert!(refused("services: []\n").contains("`workloads` is missing"));
    assert_eq!(
        refused("workloads:\n  - node: a\n    mesh: duet\n  - name: b\n"),
        "mesh.yaml:3: `name` is missing from what ends with `mesh: duet`: add it"
    );
    let problem = refused("workloads:\n  - name: a\n    addresses: 10.0.0.1\n");
    assert!(
        problem.starts_with("mesh.yaml:3: `addresses: 10.0.0.1`: "),
        "{problem}"
    );
    let problem = refused("workloads:\n  - name: a\n    node:\n      - b\n");
    assert!(problem.starts_with("mesh.yaml:4: "), "{problem}");
    let problem = refused("workloads:\n  - name:\n");
    assert!(
        problem.starts_with("mesh.yaml:2: `- name:` has no value"),
        "{problem}"
    );
    let problem = refused("workloads:\n  - name: a\n    name: b\n");
    assert!(
        problem.starts_with("mesh.yaml:3: `name` is given twice"),
        "{problem}"
    );
    let problem = refused("workloads: []\n---\nworkloads: []\n");
    assert!(problem.contains("a second YAML document"), "{problem}");
    let problem = refused("workloads:\n  - name: \"a\n");
    assert!(problem.starts_with("mesh.yaml:"), "{problem}");
    assert!(refused("workloads:\n").starts_with("mesh.yaml:1: "));
}

#[test]
fn further_mistakes_are_counted() {
    let text = "workloads:\n  - name: A\n    addresses: [x]\n    opaquePorts: [0]\n";
    let problem = refused(text);
    assert!(
        problem.starts_with("mesh.yaml:2: workloads[0].name"),
        "{problem}"
    );
    assert!(problem.ends_with("(and 2 more mistakes)"), "{problem}");
}

#[test]
fn a_mesh_of_twenty_thousand_fits() {
    use std::fmt::Write;
    let mut text = String::from("workloads:\n");
    for index in 0..20_000u32 {
        let [_, a, b, c] = (index + 1).to_be_bytes();
        writeln!(
            text,
            "  - name: w{index}\n    serviceAccount: sa\n    node: node-{}\n    addresses: [10.{a}.{b}.{c}]\n    mtls: strict",
            index % 100
        )
        .unwrap();
    }
    assert_eq!(parse("mesh.yaml", &text).unwrap().workloads.len(), 20_000);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in ".*") {
        let _ = parse("mesh.yaml", &text);
    }

    #[test]
    fn any_damage_is_survived(at in 0..GOOD.len(), by in "[ -~\n]{0,3}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..=at, &by);
        if let Err(problem) = parse("mesh.yaml", &text) {
            let problem = problem.to_string();
            prop_assert!(problem.starts_with("mesh.yaml:"), "{}", problem);
            prop_assert!(!problem.contains('\n'));
        }
    }
}

#[test]
fn failure_accrual_is_read_or_refused() {
    let with = |said: &str| {
        let from = "  - name: web\n    addresses: [10.96.0.10]\n";
        GOOD.replacen(from, &format!("{from}    failureAccrual: {said}\n"), 1)
    };
    let said = with("{ consecutive: 5, successPercent: 80, window: 30s, minBackoff: 500ms }");
    let state = parse("mesh.yaml", &said).unwrap();
    let accrual = state.services["default/web"].failure_accrual.unwrap();
    assert_eq!((accrual.consecutive, accrual.success_percent), (5, 80));
    assert_eq!((accrual.window_ms, accrual.min_backoff_ms), (30_000, 500));
    assert!(!accrual.off);
    for (said, remedy) in [
        ("{ consecutive: 0 }", "failureAccrual.consecutive"),
        ("{ successPercent: 101 }", "from 1 to 100"),
        ("{ maxBackoff: 60 }", "as 250ms, 10s"),
        ("{ off: yes }", "write one of false, true"),
        ("{ on: true }", "unknown field `on`"),
    ] {
        let problem = refused(&with(said));
        assert!(problem.contains(remedy), "{said}: {problem}");
    }
}

/// `GOOD` with further lines of its service, and a second service.
fn with_traffic(said: &str) -> String {
    let from = "  - name: web\n    addresses: [10.96.0.10]\n";
    let canary = "  - name: canary\n    addresses: [10.96.0.11]\n    ports: [{ port: 80 }]\n";
    let good = GOOD.replacen(from, &format!("{from}{said}"), 1);
    format!("{good}{canary}")
}

#[test]
fn times_retries_and_routes_are_read() {
    use duet_core::api::{StatusRange, route_match, value_match};
    let said = "    timeouts: { request: 10s, eachTry: 1s, idle: 1m }
    retry: { attempts: 2, statuses: [503, 500-501], grpc: [unavailable], methods: any }
    retryBudget: { percent: 10 }
    routes:
      - name: canary
        ports: [80]
        hosts: [shop.example]
        match:
          - { pathPrefix: /api, method: GET, headers: { X-Canary: \"yes\" } }
        requestHeaders: { set: { x-from: mesh }, remove: [x-old] }
        rewrite: { prefix: / }
        backends:
          - { service: web, port: 80, weight: 9 }
          - { service: default/canary, port: 80 }
        mirrors:
          - { service: canary, port: 80 }
          - { service: web, port: 80, percent: 5 }
          - { service: web, port: 80, fraction: 1/1000 }
      - name: moved
        match: [{ path: /old, queryExpressions: { v: \"[0-9]+\" } }]
        redirect: { scheme: https, status: 308 }
";
    let state = parse("mesh.yaml", &with_traffic(said)).unwrap();
    let web = &state.services["default/web"];
    let times = web.timeouts.unwrap();
    assert_eq!((times.request_ms, times.try_ms), (10_000, 1000));
    assert_eq!((times.head_ms, times.idle_ms), (0, 60_000));
    let retry = web.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.any_method), (2, true));
    let range = |first, last| StatusRange { first, last };
    assert_eq!(retry.statuses, [range(503, 503), range(500, 501)]);
    assert_eq!(retry.grpc_statuses, [14]);
    let budget = web.retry_budget.unwrap();
    assert_eq!((budget.percent, budget.per_second), (Some(10), None));
    let [canary, moved] = web.routes.as_slice() else {
        panic!("{:?}", web.routes)
    };
    assert_eq!(canary.ports, [80]);
    let one = &canary.matches[0];
    assert_eq!(one.path, Some(route_match::Path::Prefix("/api".into())));
    assert_eq!(one.headers[0].name, "x-canary");
    let yes = value_match::Value::Exact("yes".into());
    assert_eq!(one.headers[0].value, Some(yes));
    let backends: Vec<_> = canary
        .backends
        .iter()
        .map(|one| (one.service.as_str(), one.weight))
        .collect();
    assert_eq!(backends, [("default/web", 9), ("default/canary", 1)]);
    let mirrors = canary.mirrors.iter();
    let mirrors: Vec<_> = mirrors
        .map(|one| (one.service.as_str(), one.numerator, one.denominator))
        .collect();
    let expected = [
        ("default/canary", 100, 100),
        ("default/web", 5, 100),
        ("default/web", 1, 1000),
    ];
    assert_eq!(mirrors, expected);
    let change = canary.request_headers.as_ref().unwrap();
    assert_eq!(change.set[0].value, "mesh");
    assert_eq!(moved.redirect.as_ref().unwrap().status, 308);
}

#[test]
fn what_is_wrong_about_traffic_is_told_with_a_remedy() {
    let route = |said: &str| format!("    routes: [{{ name: a, {said} }}]\n");
    for (said, told) in [
        (
            "    timeouts: { request: 10 }\n".to_owned(),
            "as 250ms, 10s",
        ),
        (
            "    timeouts: { try: 1s }\n".to_owned(),
            "unknown field `try`",
        ),
        ("    retry: { attempts: 11 }\n".to_owned(), "from 0 to 10"),
        (
            "    retry: { attempts: 1, statuses: [200] }\n".to_owned(),
            "from 400 to 599",
        ),
        (
            "    retry: { attempts: 1, grpc: [ok] }\n".to_owned(),
            "write one of cancelled",
        ),
        (
            "    retryBudget: { percent: 101 }\n".to_owned(),
            "from 0 to 100",
        ),
        (route("ports: [81]"), "the service has no port 81"),
        (route("hosts: [\"a:80\"]"), "without a port"),
        (route("match: [{ path: a }]"), "begin it with /"),
        (
            route("match: [{ path: /a, pathPrefix: /b }]"),
            "more than one path",
        ),
        (
            route("match: [{ pathExpression: \"(\" }]"),
            "regular expression",
        ),
        (route("match: [{ method: get }]"), "upper case"),
        (route("match: [{ headers: { Host: x } }]"), "proxy's own"),
        (
            route("backends: [{ service: nobody, port: 80 }]"),
            "there is no service default/nobody",
        ),
        (
            route("backends: [{ service: canary, port: 81 }]"),
            "has no port 81",
        ),
        (
            route("backends: [{ service: canary, port: 80, weight: -1 }]"),
            "from 0 to 1000000",
        ),
        (
            route("mirrors: [{ service: nobody, port: 80 }]"),
            "mirrors[0].service: there is no service default/nobody",
        ),
        (
            route("mirrors: [{ service: canary, port: 80, percent: 101 }]"),
            "from 0 to 100",
        ),
        (
            route("mirrors: [{ service: canary, port: 80, fraction: 3/2 }]"),
            "write one as 1/1000",
        ),
        (
            route("mirrors: [{ service: canary, port: 80, percent: 1, fraction: 1/2 }]"),
            "leave one of them out",
        ),
        (
            route("match: [{ path: /a }], rewrite: { prefix: /b }"),
            "pathPrefix",
        ),
        (
            route("redirect: {}, backends: [{ service: canary, port: 80 }]"),
            "leave one of them out",
        ),
        (
            "    routes: [{ name: a }, { name: a }]\n".to_owned(),
            "given twice",
        ),
    ] {
        let problem = refused(&with_traffic(&said));
        assert!(problem.contains(told), "{said}: {problem}");
    }
}

#[test]
fn limits_are_read_or_refused() {
    let with = |said: &str| {
        let from = "    mtls: strict\n";
        GOOD.replacen(from, &format!("{from}    limits: {said}\n"), 1)
    };
    let state = parse(
        "mesh.yaml",
        &with("{ requestsPerSecond: 100, inFlight: 50 }"),
    )
    .unwrap();
    let limits = state.workloads["default/web-0"].limits.unwrap();
    assert_eq!((limits.requests_per_second, limits.burst), (100, 0));
    assert_eq!(limits.in_flight, 50);
    for (said, told) in [
        ("{ requestsPerSecond: 0 }", "from 1 to 1000000"),
        ("{ inFlight: many }", "limits.inFlight"),
        ("{ rate: 5 }", "unknown field `rate`"),
    ] {
        let problem = refused(&with(said));
        assert!(problem.contains(told), "{said}: {problem}");
    }
}

#[test]
fn budgets_are_read_or_refused() {
    let with = |said: &str| {
        let from = "    mtls: strict\n";
        GOOD.replacen(from, &format!("{from}    budgets: {said}\n"), 1)
    };
    let said = "{ connections: 100, requestsPerSecond: 50, bufferMiB: 16, weight: 2 }";
    let state = parse("mesh.yaml", &with(said)).unwrap();
    let budgets = state.workloads["default/web-0"].budgets.unwrap();
    assert_eq!(
        (budgets.connections, budgets.requests_per_second),
        (100, 50)
    );
    assert_eq!((budgets.buffer_mib, budgets.weight), (16, 2));
    for (said, told) in [
        ("{ weight: 101 }", "from 1 to 100"),
        ("{ connections: few }", "budgets.connections"),
        ("{ cpu: 5 }", "unknown field `cpu`"),
    ] {
        let problem = refused(&with(said));
        assert!(problem.contains(told), "{said}: {problem}");
    }
}

#[test]
fn the_example_is_a_mesh() {
    let example = include_str!("../../../deploy/local/mesh.yaml");
    let state = parse("mesh.yaml", example).unwrap();
    assert_eq!(state.services["default/web"].routes.len(), 3);
}
