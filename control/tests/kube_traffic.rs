//! What is written in a cluster holds for what real pods say to each other, in either mode.

mod kubectl;

use gateway_api::apis::standard::grpcroutes::GrpcRoute;
use gateway_api::apis::standard::httproutes::HttpRoute;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kubectl::{Load, Namespace, PATIENCE, cluster, eventually, kubectl, said};
use std::cell::Cell;

/// Clients of one mode, each with the namespace's default service account.
struct Clients {
    namespace: Namespace,
    address: String,
    protocol: &'static str,
    asked: Cell<u32>,
}

impl Clients {
    fn new(what: &str, mode: &str, address: &str) -> Self {
        Self {
            namespace: Namespace::new(what, mode),
            address: address.to_owned(),
            protocol: "http1",
            asked: Cell::new(0),
        }
    }

    /// Half a hundred requests of a new pod.
    fn ask(&self, path: &str) -> Load {
        let name = format!("asks-{}", self.asked.replace(self.asked.get() + 1));
        let url = format!("http://{}{path}", self.address);
        let flags = ["--rate", "50", "--duration", "1s", "--warmup", "0s"];
        let what = ["--url", &url, "--protocol", self.protocol];
        self.namespace.load(&name, &[&what, &flags[..]].concat());
        self.namespace.report(&name, PATIENCE)
    }

    fn are_served(&self, path: &str) {
        self.come_to(path, "everything answered", |load| {
            load.completed == load.offered
        });
    }

    /// Each of them with a status of this class, as `status_4xx`.
    fn all_get(&self, path: &str, class: &str) {
        self.come_to(path, class, |load| load.failed(class) == load.offered);
    }

    /// Soon: what is written has to be heard of first.
    fn come_to(&self, path: &str, what: &str, is_so: impl Fn(&Load) -> bool) {
        let what = format!("{}: {path}: {what}", self.namespace.name);
        eventually(&what, PATIENCE / 4, || {
            let load = self.ask(path);
            assert!(load.offered > 0, "{what}");
            let so = is_so(&load);
            if !so {
                eprintln!(
                    "{what}: not yet: {} of {}, {}",
                    load.completed, load.offered, load.errors
                );
            }
            so.then_some(())
        });
    }
}

fn policies(mode: &str) {
    let Some(_cluster) = cluster() else {
        return;
    };
    let servers = Namespace::new("allow-web", mode);
    let address = servers.web();
    let friend = Clients::new("friend", mode, &address);
    let stranger = Clients::new("stranger", mode, &address);
    let outsider = Clients::new("outsider", "none", &address);
    for clients in [&friend, &stranger, &outsider] {
        clients.are_served("/");
    }
    servers.apply(&format!(
        r"
apiVersion: duet.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: web }}
spec:
  selector: {{ matchLabels: {{ app: web }} }}
  action: Allow
  rules:
    - from: [{{ identities: [cluster.local/ns/{}/sa/default] }}]
      to: [{{ methods: [GET], paths: [/, '/bytes/*'] }}]
",
        friend.namespace.name
    ));
    stranger.all_get("/", "status_4xx");
    // What the pods declare as their probe, anyone may ask for who has no identity.
    outsider.are_served("/");
    outsider.all_get("/bytes/10", "status_4xx");
    friend.are_served("/");
    friend.are_served("/bytes/10");
    friend.all_get("/info", "status_4xx");
    // The kubelet has no identity either.
    let ready = servers.said(&[
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ]);
    assert_eq!(ready, "2");
    servers.said(&["delete", "authorizationpolicy", "web"]);
    stranger.are_served("/");
}

fn routes(mode: &str) {
    let servers = Namespace::new("route-web", mode);
    let address = servers.web();
    let clients = Clients::new("route", mode, &address);
    clients.are_served("/bytes/10?delay=400ms");
    servers.apply(
        r"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /bytes } }]
      timeouts: { request: 200ms }
      backendRefs: [{ name: web, port: 80 }]
    - matches: [{ path: { type: Exact, value: /split } }]
      filters:
        - type: URLRewrite
          urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: / } }
      backendRefs: [{ name: web, port: 80, weight: 3 }, { name: gone, port: 80, weight: 1 }]
    - matches: [{ path: { type: Exact, value: / } }]
      backendRefs: [{ name: web, port: 80 }]
",
    );
    // Its time is over before the answer comes.
    clients.all_get("/bytes/10?delay=400ms", "status_5xx");
    clients.are_served("/bytes/10");
    clients.are_served("/");
    // A quarter has no backend; the rest is there, under another path.
    clients.come_to("/split", "a quarter of it failed", |load| {
        let failed = load.failed("status_5xx");
        let share = failed as f64 / load.offered as f64;
        failed + load.completed == load.offered && (0.1..0.45).contains(&share)
    });
    // No rule speaks of it.
    clients.all_get("/info", "status_4xx");
    let route = servers.get("httproute/web");
    let conditions = route["status"]["parents"][0]["conditions"].clone();
    let is = |kind: &str, status: &str| {
        let mut all = conditions.as_array().expect("conditions").iter();
        all.any(|one| one["type"] == kind && one["status"] == status)
    };
    assert!(is("Accepted", "True"), "{conditions}");
    assert!(
        is("ResolvedRefs", "False"),
        "a backend is missing: {conditions}"
    );
    servers.said(&["delete", "httproute", "web"]);
    clients.are_served("/info");
}

fn grpc_routes(mode: &str) {
    let servers = Namespace::new("grpc-web", mode);
    let address = servers.web();
    let clients = Clients {
        protocol: "grpc",
        ..Clients::new("grpc", mode, &address)
    };
    clients.are_served("/shop.Cart/Clear");
    servers.apply(
        r"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: web }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
    - matches: [{ method: { service: shop.Cart, method: Add } }]
      backendRefs: [{ name: web, port: 80 }]
    - matches: [{ method: { service: shop.Stock } }]
      backendRefs: [{ name: gone, port: 80 }]
",
    );
    // Of the service no other method is spoken of; its backend is missing.
    clients.all_get("/shop.Cart/Clear", "grpc_status");
    clients.all_get("/shop.Stock/Get", "grpc_status");
    clients.are_served("/shop.Cart/Add");
    servers.said(&["delete", "grpcroute", "web"]);
    clients.are_served("/shop.Cart/Clear");
}

/// Beyond it a request waits, and none fails.
#[test]
fn a_pods_own_budget_holds_behind_its_agent() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let servers = Namespace::new("budget-web", "agent");
    let url = format!("http://{}/", servers.web());
    let clients = Namespace::new("budget", "agent");
    let flags = [
        "--url",
        &url,
        "--rate",
        "50",
        "--duration",
        "2s",
        "--warmup",
        "0s",
    ];
    let ask = |name: &str, annotations: &str| {
        clients.load_as(name, annotations, &flags);
        let load = clients.report(name, PATIENCE);
        load.assert_nothing_failed(name);
        load.in_time as f64 / load.offered as f64
    };
    let [free, held] = [
        ask("free", ""),
        ask("held", "duet.dev/budgets: requestsPerSecond=20"),
    ];
    assert!(
        held <= 0.8 && held + 0.1 <= free,
        "{held} in time with its budget, {free} without"
    );
}

#[test]
fn policies_hold_with_sidecars() {
    policies("sidecar");
}

#[test]
fn policies_hold_with_an_agent() {
    policies("agent");
}

#[test]
fn routes_hold_in_either_mode() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let _definitions = [HttpRoute::crd(), GrpcRoute::crd()].map(Definition::lend);
    std::thread::scope(|scope| {
        for mode in ["sidecar", "agent"] {
            scope.spawn(|| {
                routes(mode);
                grpc_routes(mode);
            });
        }
    });
}

/// What a route is, if the cluster does not know, for as long as this is kept.
struct Definition(Option<String>);

impl Definition {
    fn lend(mut definition: CustomResourceDefinition) -> Self {
        let name = definition.metadata.name.clone().expect("a name");
        if kubectl(&["get", "crd", &name]).status.success() {
            return Self(None);
        }
        // That group's definitions are approved by those whom the note names.
        let note = ("api-approved.kubernetes.io", "unapproved, for a test");
        definition.metadata.annotations = Some(
            [note]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        );
        let definition = serde_json::to_string(&definition).expect("JSON");
        kubectl::apply(&["apply", "-f", "-"], &definition);
        let what = format!("crd/{name}");
        said(&["wait", "--for=condition=Established", &what]);
        Self(Some(name))
    }
}

impl Drop for Definition {
    fn drop(&mut self) {
        if let Some(name) = &self.0 {
            kubectl(&["delete", "crd", name]);
        }
    }
}
