use super::*;
use duet_core::api::{MeshProtocol, Mtls, Placement};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::{Value, json};

#[path = "model_order_tests.rs"]
mod order;

// === What the API server might say ===

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn put<T>(name: &str, object: T) -> Change<T> {
    Change::Put(name.into(), object)
}

fn namespace(labels: Value, annotations: Value) -> Namespace {
    Namespace::read(&read::<core::Namespace>(json!({
        "metadata": { "labels": labels, "annotations": annotations },
    })))
}

fn pod(uid: &str, address: &str, metadata: Value) -> Value {
    let mut pod = json!({
        "metadata": { "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "containers": [{ "name": "app" }], "nodeName": "node-1" },
        "status": { "phase": "Running", "podIPs": [{ "ip": address }], "podIP": address },
    });
    for (key, value) in metadata.as_object().unwrap() {
        pod["metadata"][key] = value.clone();
    }
    pod
}

fn sidecar(uid: &str, address: &str) -> Value {
    let stamp = json!({ "annotations": { "duet.dev/placement": "sidecar" } });
    pod(uid, address, stamp)
}

fn service(addresses: Value, ports: Value) -> Change<Service> {
    let service: core::Service = read(json!({
        "spec": { "clusterIPs": addresses, "ports": ports },
    }));
    put("ns/web", Service::read(service)).present()
}

/// Endpoints as (address, pod, uid, ready, serving, terminating).
type Given<'a> = (&'a str, &'a str, &'a str, bool, bool, bool);

fn slice(name: &str, ports: Value, endpoints: &[Given<'_>]) -> Change<Slice> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, pod, uid, ready, serving, terminating)| {
            let mut endpoint = json!({
                "addresses": [address],
                "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
            });
            if !pod.is_empty() {
                endpoint["targetRef"] =
                    json!({ "kind": "Pod", "namespace": "ns", "name": pod, "uid": uid });
            }
            endpoint
        })
        .collect();
    let slice: discovery::EndpointSlice = read(json!({
        "metadata": {
            "namespace": "ns", "name": name, "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }));
    put(&format!("ns/{name}"), Slice::read(slice)).present()
}

fn http() -> Value {
    json!([{ "name": "http", "port": 8080 }])
}

fn ready<'a>(address: &'a str, pod: &'a str, uid: &'a str) -> Given<'a> {
    (address, pod, uid, true, true, false)
}

// === A mesh with one service ===

fn mesh() -> Model {
    let mut model = Model::new("cluster.local");
    model.namespace(put("ns", namespace(json!({}), json!({}))));
    let ports = json!([{ "name": "http", "port": 80, "appProtocol": "http" }]);
    model.service(service(json!(["10.96.0.1"]), ports));
    model
}

fn put_pod(model: &mut Model, name: &str, pod: Value) {
    model.pod(put(&format!("ns/{name}"), Pod::read(read(pod))));
}

fn workload(model: &mut Model, name: &str) -> Option<Workload> {
    let state = model.flush();
    state
        .workloads
        .get(&format!("ns/{name}"))
        .map(|it| Workload::clone(it))
}

/// Address and workload of the endpoints of `web`'s only port.
fn endpoints(model: &mut Model) -> Vec<(String, String)> {
    let state = model.flush();
    let ports = &state.services["ns/web"].ports;
    assert_eq!(ports.len(), 1);
    let endpoints = ports[0].endpoints.iter();
    endpoints
        .map(|it| (format!("{}:{}", it.address, it.port), it.workload.clone()))
        .collect()
}

fn pair(address: &str, workload: &str) -> (String, String) {
    (address.to_owned(), workload.to_owned())
}

#[test]
fn who_is_near_is_told_where_the_service_wants_it() {
    let distributed = |how: Value| {
        let service: core::Service = read(json!({
            "spec": {
                "clusterIPs": ["10.96.0.1"], "trafficDistribution": how,
                "ports": [{ "name": "http", "port": 80 }],
            },
        }));
        put("ns/web", Service::read(service)).present()
    };
    let located = |hints: Value| {
        let slice: discovery::EndpointSlice = read(json!({
            "metadata": { "namespace": "ns", "name": "s", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "zone": "a", "nodeName": "node-1", "hints": hints },
                { "addresses": ["10.0.0.2"], "zone": "b", "nodeName": "node-2",
                  "hints": { "forZones": [{ "name": "b" }] } },
            ],
        }));
        put("ns/s", Slice::read(slice)).present()
    };
    let told = |model: &mut Model| {
        let web = model.flush().services["ns/web"].clone();
        let near = web.ports[0].endpoints.iter();
        let near = near
            .map(|it| (it.zones.join(" "), it.node.clone()))
            .collect::<Vec<_>>();
        (web.traffic_distribution(), near)
    };
    let all = |first: &str, nodes: [&str; 2]| {
        vec![
            (first.to_owned(), nodes[0].to_owned()),
            ("b".to_owned(), nodes[1].to_owned()),
        ]
    };
    let mut model = mesh();
    model.slice(located(json!(null)));
    let nothing = vec![(String::new(), String::new()); 2];
    assert_eq!(told(&mut model), (TrafficDistribution::Anywhere, nothing));
    for how in ["PreferClose", "PreferSameZone"] {
        model.service(distributed(json!(how)));
        let expected = all("a", ["", ""]);
        assert_eq!(told(&mut model), (TrafficDistribution::SameZone, expected));
    }
    model.service(distributed(json!("PreferSameNode")));
    let expected = all("a", ["node-1", "node-2"]);
    assert_eq!(told(&mut model), (TrafficDistribution::SameNode, expected));
    // Hints are heeded once all have them, whatever the service says.
    model.service(distributed(json!(null)));
    model.slice(located(json!({ "forZones": [{ "name": "c" }] })));
    let expected = all("c", ["", ""]);
    assert_eq!(told(&mut model), (TrafficDistribution::SameZone, expected));
    let unknown: core::Service = read(json!({ "spec": { "trafficDistribution": "Near" } }));
    assert!(!Service::read(unknown).unwrap().complaints.is_empty());
}

#[test]
fn a_pod_says_what_its_endpoints_weigh() {
    let weighs = |weight: &str| {
        let weight = json!({ "annotations": {
            "duet.dev/placement": "sidecar", "duet.dev/weight": weight,
        } });
        pod("1", "10.0.0.1", weight)
    };
    let told = |model: &mut Model| {
        let endpoints = model.flush().services["ns/web"].ports[0].endpoints.clone();
        endpoints.iter().map(|it| it.weight).collect::<Vec<_>>()
    };
    let mut model = mesh();
    let both = [ready("10.0.0.1", "a", "1"), ready("10.0.0.2", "b", "2")];
    model.slice(slice("s", http(), &both));
    put_pod(&mut model, "a", weighs("4"));
    put_pod(&mut model, "b", sidecar("2", "10.0.0.2"));
    assert_eq!(told(&mut model), [4, 0]);
    put_pod(&mut model, "a", weighs("9"));
    assert_eq!(told(&mut model), [9, 0]);
    put_pod(&mut model, "a", weighs("101"));
    assert_eq!(told(&mut model), [0, 0]);
    assert!(!Pod::read(read(weighs("101"))).complaints.is_empty());
}

#[test]
fn a_workload_is_in_its_nodes_zone() {
    let mut model = mesh();
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    assert_eq!(workload(&mut model, "a").unwrap().zone, "");
    model.node(put("node-2", "b".into()));
    model.node(put("node-1", "a".into()));
    assert_eq!(workload(&mut model, "a").unwrap().zone, "a");
    model.node(put("node-1", "c".into()));
    assert_eq!(workload(&mut model, "a").unwrap().zone, "c");
    model.node(Change::Gone("node-1".into()));
    assert_eq!(workload(&mut model, "a").unwrap().zone, "");
}

#[test]
fn an_endpoint_waits_for_its_pod() {
    let mut model = mesh();
    model.slice(slice("web-1", http(), &[ready("10.0.0.1", "a", "1")]));
    assert_eq!(endpoints(&mut model), [], "it may be in the mesh");
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    assert_eq!(endpoints(&mut model), [pair("10.0.0.1:8080", "ns/a")]);

    // Another pod of that name, which the slice does not mean.
    put_pod(&mut model, "a", pod("2", "10.0.0.2", json!({})));
    assert_eq!(endpoints(&mut model), []);
    model.slice(slice("web-1", http(), &[ready("10.0.0.2", "a", "2")]));
    assert_eq!(endpoints(&mut model), [pair("10.0.0.2:8080", "")]);

    model.pod(Change::Gone("ns/a".into()));
    assert_eq!(endpoints(&mut model), []);
}

#[test]
fn pods_of_istios_ambient_mode_are_reached_by_hbone() {
    let marks = [
        json!({ "annotations": { "ambient.istio.io/redirection": "enabled" } }),
        json!({ "labels": { "networking.istio.io/tunnel": "http" } }),
    ];
    for mark in marks {
        let mut model = mesh();
        model.slice(slice("web-1", http(), &[ready("10.0.0.1", "a", "1")]));
        put_pod(&mut model, "a", pod("1", "10.0.0.1", mark.clone()));
        let known = workload(&mut model, "a").unwrap();
        assert_eq!(known.protocol(), MeshProtocol::Hbone, "{mark}");
        assert_eq!(endpoints(&mut model), [pair("10.0.0.1:8080", "ns/a")]);
        let off = json!({ "annotations": { "ambient.istio.io/redirection": "disabled" } });
        put_pod(&mut model, "a", pod("1", "10.0.0.1", off));
        assert_eq!(workload(&mut model, "a"), None);
        assert_eq!(endpoints(&mut model), [pair("10.0.0.1:8080", "")]);
    }
    // What Duet proxies itself has more.
    let mut model = mesh();
    let both = json!({ "annotations": {
        "ambient.istio.io/redirection": "enabled", "duet.dev/placement": "sidecar",
    } });
    put_pod(&mut model, "a", pod("1", "10.0.0.1", both));
    let known = workload(&mut model, "a").unwrap();
    assert_eq!(known.protocol(), MeshProtocol::Duet);
}

#[test]
fn a_pod_waits_for_its_namespace() {
    let mut model = Model::new("cluster.local");
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    assert_eq!(workload(&mut model, "a"), None);
    let strict = namespace(json!({}), json!({ "duet.dev/mtls": "strict" }));
    model.namespace(put("ns", strict));
    assert_eq!(workload(&mut model, "a").unwrap().mtls(), Mtls::Strict);
}

#[test]
fn those_on_their_way_out_answer_when_nobody_else_does() {
    let mut model = mesh();
    for (name, uid, address) in [("a", "1", "10.0.0.1"), ("b", "2", "10.0.0.2")] {
        put_pod(&mut model, name, sidecar(uid, address));
    }
    let draining = ("10.0.0.1", "a", "1", false, true, true);
    let down = ("10.0.0.2", "b", "2", false, false, false);
    model.slice(slice("web-1", http(), &[draining, down]));
    assert_eq!(endpoints(&mut model), [pair("10.0.0.1:8080", "ns/a")]);
    model.slice(slice(
        "web-1",
        http(),
        &[draining, ready("10.0.0.2", "b", "2")],
    ));
    assert_eq!(endpoints(&mut model), [pair("10.0.0.2:8080", "ns/b")]);
    let ended = ("10.0.0.1", "a", "1", false, false, true);
    model.slice(slice("web-1", http(), &[ended, down]));
    assert_eq!(endpoints(&mut model), []);
}

#[test]
fn slices_are_put_together() {
    let mut model = mesh();
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    put_pod(&mut model, "b", sidecar("2", "10.0.0.2"));
    // A pod whose port of that name has another number is in another slice, and one
    // endpoint may be in two slices for a moment.
    let other = json!([{ "name": "http", "port": 9090 }, { "name": "http", "port": 9090, "protocol": "UDP" }]);
    model.slice(slice("web-1", http(), &[ready("10.0.0.1", "a", "1")]));
    model.slice(slice("web-2", other, &[ready("10.0.0.2", "b", "2")]));
    model.slice(slice("web-3", http(), &[ready("10.0.0.1", "a", "1")]));
    let both = [pair("10.0.0.1:8080", "ns/a"), pair("10.0.0.2:9090", "ns/b")];
    assert_eq!(endpoints(&mut model), both);
    model.slice(Change::Gone("ns/web-1".into()));
    assert_eq!(endpoints(&mut model), both);
    model.slice(Change::Gone("ns/web-3".into()));
    assert_eq!(endpoints(&mut model), both[1..]);
}

#[test]
fn an_address_is_one_workloads_at_a_time() {
    let mut model = mesh();
    put_pod(&mut model, "old", sidecar("1", "10.0.0.1"));
    assert_eq!(workload(&mut model, "old").unwrap().addresses, ["10.0.0.1"]);
    // It has ended and its address has been given to another, and its object is still
    // there for a while.
    let mut new = sidecar("2", "10.0.0.1");
    new["metadata"]["creationTimestamp"] = json!("2026-01-01T01:00:00Z");
    put_pod(&mut model, "new", new.clone());
    assert_eq!(workload(&mut model, "new").unwrap().addresses, ["10.0.0.1"]);
    assert!(workload(&mut model, "old").unwrap().addresses.is_empty());

    // The younger one goes first.
    new["metadata"]["deletionTimestamp"] = json!("2026-01-01T02:00:00Z");
    put_pod(&mut model, "new", new);
    assert_eq!(workload(&mut model, "old").unwrap().addresses, ["10.0.0.1"]);
    assert!(workload(&mut model, "new").unwrap().addresses.is_empty());
    model.pod(Change::Gone("ns/new".into()));
    assert_eq!(workload(&mut model, "old").unwrap().addresses, ["10.0.0.1"]);
}

#[test]
fn who_is_in_the_mesh_and_how() {
    let placed = |model: &mut Model, pod: Value| {
        put_pod(model, "a", pod);
        let workload = workload(model, "a");
        workload.map(|it| (it.placement(), it.protocol()))
    };
    let (sidecar_duet, agent_duet, agent_plain) = (
        Some((Placement::Sidecar, MeshProtocol::Duet)),
        Some((Placement::Agent, MeshProtocol::Duet)),
        Some((Placement::Agent, MeshProtocol::None)),
    );
    let annotated = |stamp: &str| json!({ "annotations": { "duet.dev/placement": stamp } });
    let plain = pod("1", "10.0.0.1", json!({}));
    let mut native = plain.clone();
    native["spec"]["initContainers"] = json!([{ "name": "duet-proxy", "restartPolicy": "Always" }]);
    let mut enrolled = plain.clone();
    enrolled["status"]["conditions"] = json!([{ "type": "duet.dev/enrolled", "status": "True" }]);
    let with = |pod: &Value, path: [&str; 2], value: Value| {
        let mut pod = pod.clone();
        pod[path[0]][path[1]] = value;
        pod
    };
    let labelled = |mode: &str| {
        pod(
            "1",
            "10.0.0.1",
            json!({ "labels": { "duet.dev/mode": mode } }),
        )
    };

    let mut model = mesh();
    assert_eq!(placed(&mut model, plain.clone()), None);
    assert_eq!(
        placed(&mut model, pod("1", "10.0.0.1", annotated("sidecar"))),
        sidecar_duet
    );
    assert_eq!(
        placed(&mut model, pod("1", "10.0.0.1", annotated("agent"))),
        agent_duet
    );
    assert_eq!(
        placed(&mut model, pod("1", "10.0.0.1", annotated("moon"))),
        None
    );
    assert_eq!(placed(&mut model, native.clone()), sidecar_duet);
    assert_eq!(placed(&mut model, labelled("agent")), agent_plain);
    assert_eq!(placed(&mut model, enrolled.clone()), None);
    assert_eq!(
        placed(
            &mut model,
            with(&native, ["spec", "hostNetwork"], json!(true))
        ),
        None
    );
    assert_eq!(
        placed(&mut model, with(&native, ["spec", "nodeName"], Value::Null)),
        None
    );
    assert_eq!(
        placed(
            &mut model,
            with(&native, ["status", "phase"], json!("Succeeded"))
        ),
        None
    );
    let terminating = with(
        &native,
        ["metadata", "deletionTimestamp"],
        json!("2026-01-01T02:00:00Z"),
    );
    assert_eq!(placed(&mut model, terminating), sidecar_duet);

    let agents = namespace(json!({ "duet.dev/mode": "agent" }), json!({}));
    model.namespace(put("ns", agents));
    assert_eq!(placed(&mut model, plain.clone()), agent_plain);
    assert_eq!(placed(&mut model, enrolled), agent_duet);
    assert_eq!(placed(&mut model, labelled("none")), None);
    assert_eq!(
        placed(&mut model, labelled("sidecar")),
        None,
        "only the injector makes one"
    );
    assert_eq!(placed(&mut model, native.clone()), sidecar_duet);

    let sidecars = namespace(json!({ "duet.dev/mode": "sidecar" }), json!({}));
    model.namespace(put("ns", sidecars));
    assert_eq!(placed(&mut model, plain), None);
    assert_eq!(placed(&mut model, labelled("agent")), agent_plain);
}

#[test]
fn annotations_are_read_or_complained_of() {
    let mut model = mesh();
    let annotations = json!({
        "duet.dev/placement": "sidecar",
        "duet.dev/opaque-ports": "3306, 25,nonsense, 0,25",
        "duet.dev/mtls": "stict",
    });
    let pod = pod("1", "10.0.0.1", json!({ "annotations": annotations }));
    assert!(!Pod::read(read(pod.clone())).complaints.is_empty());
    put_pod(&mut model, "a", pod);
    let found = workload(&mut model, "a").unwrap();
    assert_eq!(found.opaque_ports, [25, 3306]);
    assert_eq!(
        found.mtls(),
        Mtls::Strict,
        "whoever writes that wants to be closed"
    );
}

#[test]
fn the_kubelets_questions_are_known() {
    let mut pod = sidecar("1", "10.0.0.1");
    pod["spec"]["containers"] = json!([
        {
            "name": "app",
            "ports": [{ "name": "web", "containerPort": 8080 }],
            "livenessProbe": { "httpGet": { "path": "healthz?full=1#x", "port": "web" } },
            "readinessProbe": { "grpc": { "port": 9000, "service": "x" } },
            "startupProbe": { "tcpSocket": { "port": 5432 } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/stop", "port": "8081" } } },
        },
        {
            "name": "other",
            "livenessProbe": { "exec": { "command": ["true"] } },
            "readinessProbe": { "httpGet": { "port": 8443, "scheme": "HTTPS" } },
            "startupProbe": { "httpGet": { "port": 80, "host": "example.org" } },
        },
    ]);
    pod["spec"]["initContainers"] = json!([
        { "name": "duet-proxy", "restartPolicy": "Always",
          "startupProbe": { "httpGet": { "path": "/ready", "port": 15021 } } },
        { "name": "cache", "restartPolicy": "Always",
          "startupProbe": { "httpGet": { "port": 7000 } } },
        { "name": "once" },
    ]);
    let mut model = mesh();
    put_pod(&mut model, "a", pod);
    let probes = workload(&mut model, "a").unwrap().probes;
    let probes: Vec<_> = probes
        .iter()
        .map(|it| (it.port, it.path.as_str(), it.grpc))
        .collect();
    let expected = [
        (5432, "", false),
        (7000, "/", false),
        (8080, "/healthz?full=1", false),
        (8081, "/stop", false),
        (9000, "", true),
    ];
    assert_eq!(probes, expected);
}

#[test]
fn both_families_of_addresses_are_told() {
    let mut model = mesh();
    let mut pod = sidecar("1", "10.0.0.1");
    pod["status"]["podIPs"] = json!([{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }]);
    put_pod(&mut model, "a", pod);
    assert_eq!(
        workload(&mut model, "a").unwrap().addresses,
        ["10.0.0.1", "fd00::1"]
    );
    let ports =
        json!([{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    model.service(service(json!(["10.96.0.1", "fd01::1"]), ports));
    model.slice(slice("web-4", http(), &[ready("10.0.0.1", "a", "1")]));
    model.slice(slice("web-6", http(), &[ready("fd00::1", "a", "1")]));
    let both = [pair("10.0.0.1:8080", "ns/a"), pair("fd00::1:8080", "ns/a")];
    assert_eq!(endpoints(&mut model), both);
    assert_eq!(
        model.flush().services["ns/web"].addresses,
        ["10.96.0.1", "fd01::1"]
    );
}

#[test]
fn what_is_no_destination_is_no_service() {
    let mut model = mesh();
    model.service(service(
        json!(["None"]),
        json!([{ "name": "http", "port": 80 }]),
    ));
    assert!(model.flush().services.is_empty());
    let ports = json!([{ "name": "http", "port": 80 }]);
    model.service(service(json!(["10.96.0.1"]), ports));
    assert_eq!(model.flush().services.len(), 1);
    let external: core::Service = read(json!({
        "spec": { "type": "ExternalName", "externalName": "example.org" },
    }));
    model.service(put("ns/web", Service::read(external)).present());
    assert!(model.flush().services.is_empty());
}

#[test]
fn what_cannot_be_done_for_a_service_is_told() {
    let service: core::Service = read(json!({ "spec": {
        "clusterIPs": ["10.96.0.1"], "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local",
        "ports": [{ "port": 80 }],
    }}));
    let mut expected = Complaints::default();
    let service = Service::read(service).unwrap();
    assert_ne!(service.complaints, expected);
    for unsupported in [
        "sessionAffinity: ClientIP is",
        "internalTrafficPolicy: Local is",
    ] {
        let text = format!("{:?}", service.complaints);
        assert!(text.contains(unsupported), "{text}");
        expected.add(unsupported.to_owned());
    }
}

/// Who does not hear of the service may go past the mesh only if nobody of the mesh
/// is behind it.
#[test]
fn a_service_is_plain_when_everybody_behind_it_is() {
    let outside = |model: &mut Model| {
        model.namespace(put(
            "other",
            namespace(json!({}), json!({ "duet.dev/reach": "" })),
        ));
        let state = model.flush();
        let name = duet_core::WorkloadName::new("other", "x");
        let scope = state.scope_of(&crate::Caller::Workload(name));
        !state.snapshot(&scope).hidden.contains(&vec![10, 96, 0, 1])
    };
    let mut model = mesh();
    assert!(!outside(&mut model), "nobody knows who is behind it");
    put_pod(&mut model, "a", pod("1", "10.0.0.1", json!({})));
    model.slice(slice("web-1", http(), &[ready("10.0.0.1", "a", "1")]));
    assert!(outside(&mut model));
    let down = ("10.0.0.9", "b", "9", false, false, false);
    model.slice(slice("web-2", http(), &[down]));
    assert!(!outside(&mut model));
    model.slice(slice("web-2", http(), &[ready("10.0.0.2", "", "")]));
    assert!(outside(&mut model), "made by hand, for somewhere else");
    put_pod(&mut model, "c", sidecar("3", "10.0.0.2"));
    assert!(!outside(&mut model), "made by hand, for a meshed pod");
    model.pod(Change::Gone("ns/c".into()));
    assert!(outside(&mut model));
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    assert!(!outside(&mut model));
}

fn policy(spec: Value) -> AuthorizationPolicy {
    read(json!({
        "apiVersion": "duet.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": "ns", "name": "p", "generation": 1 }, "spec": spec,
    }))
}

#[test]
fn policies_select_by_labels() {
    let mut model = mesh();
    let metadata = |app: &str| {
        json!({
            "labels": { "app": app }, "annotations": { "duet.dev/placement": "sidecar" },
        })
    };
    put_pod(&mut model, "a", pod("1", "10.0.0.1", metadata("web")));
    put_pod(&mut model, "b", pod("2", "10.0.0.2", metadata("db")));
    let selected =
        |model: &mut Model| ["a", "b"].map(|name| workload(model, name).unwrap().policies.len());
    let web = json!({ "selector": { "matchLabels": { "app": "web" } }, "action": "Allow" });
    model.policy(put("ns/p", policy(web)));
    assert_eq!(selected(&mut model), [1, 0]);
    assert_eq!(model.flush().policies["ns/p"].name, "p");
    model.policy(put("ns/p", policy(json!({ "action": "Allow" }))));
    assert_eq!(selected(&mut model), [1, 1]);
    put_pod(&mut model, "b", pod("2", "10.0.0.2", metadata("web")));
    assert_eq!(workload(&mut model, "b").unwrap().policies, ["ns/p"]);

    // What cannot be followed changes nothing of what is in force.
    let before = model.flush().policies["ns/p"].clone();
    model.policy(put(
        "ns/p",
        policy(json!({ "action": "Deny", "rules": [{ "from": [] }] })),
    ));
    assert_eq!(model.flush().policies["ns/p"], before);
    model.policy(Change::Gone("ns/p".into()));
    assert_eq!(selected(&mut model), [0, 0]);
    assert!(model.flush().policies.is_empty());
    // And refuses everything if there was nothing.
    model.policy(put(
        "ns/p",
        policy(json!({ "action": "Deny", "rules": [{ "from": [] }] })),
    ));
    assert_eq!(model.flush().policies["ns/p"].rules.len(), 1);
}

#[test]
fn what_a_list_does_not_name_is_gone() {
    let mut model = mesh();
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    put_pod(&mut model, "b", sidecar("2", "10.0.0.2"));
    model.flush();
    model.pod(Change::Listing);
    put_pod(&mut model, "b", sidecar("2", "10.0.0.2"));
    assert!(workload(&mut model, "a").is_some(), "not before its end");
    model.pod(Change::Listed);
    assert!(workload(&mut model, "a").is_none());
    assert!(workload(&mut model, "b").is_some());
    // A list that was broken off and begun again.
    model.pod(Change::Listing);
    model.pod(Change::Listing);
    put_pod(&mut model, "a", sidecar("1", "10.0.0.1"));
    model.pod(Change::Listed);
    assert!(workload(&mut model, "b").is_none());
}
