//! What becomes of a control plane whose API server is away, refuses it, is too old,
//! or has another time.

mod mesh;
mod simulated;

use duet_control::source::kube::{Cluster, ClusterArgs, DEFAULT_TRUST_DOMAIN};
use duet_control::source::{KubeSource, Source};
use duet_control::{ControlPlane, Enrolments, Settings};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use mesh::{LIFETIME, eventually, get, metric};
use serde_json::{Value, json};
use simulated::{PATIENCE, in_lab, until};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A way to the API server that can be cut.
struct Way {
    address: SocketAddr,
    to: String,
    connections: Option<tokio::task::JoinHandle<()>>,
}

// === impl Way ===

impl Way {
    async fn open(to: String) -> Self {
        let mut way = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            to,
            connections: None,
        };
        way.restore().await;
        way
    }

    async fn restore(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let to = self.to.clone();
        self.connections = Some(tokio::spawn(async move {
            // All of them end with this task.
            let mut open = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let to = to.clone();
                open.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        }));
    }

    async fn cut(&mut self) {
        let connections = self.connections.take().unwrap();
        connections.abort();
        let _ = connections.await;
    }
}

/// The cluster's kubeconfig with changes: to the server's entry and the user's.
fn kubeconfig(path: &Path, server: Option<SocketAddr>, token: Option<&str>) -> String {
    let mut config = serde_json::to_value(Kubeconfig::read().unwrap()).unwrap();
    let cluster = &mut config["clusters"][0]["cluster"];
    let url = cluster["server"].as_str().unwrap().to_owned();
    let host = url.trim_start_matches("https://").to_owned();
    if let Some(server) = server {
        cluster["server"] = json!(format!("https://{server}"));
        cluster["tls-server-name"] = json!(host.split(':').next());
    }
    if let Some(token) = token {
        config["users"][0]["user"] = json!({ "token": token });
    }
    std::fs::write(path, config.to_string()).unwrap();
    host
}

async fn source(path: &Path) -> KubeSource {
    let args = ClusterArgs {
        kubeconfig: Some(path.to_owned()),
        ..ClusterArgs::default()
    };
    KubeSource::new(Cluster::new(&args).await.unwrap(), DEFAULT_TRUST_DOMAIN)
}

fn loopback() -> Settings {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        listen: loopback,
        health: loopback,
        cert_lifetime: LIFETIME,
        enrolments: Enrolments::default(),
    }
}

#[tokio::test]
async fn the_last_state_outlives_the_api_server() {
    in_lab("away", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        ns.sidecar("before", "web").await;
        let site = mesh::Site::new("workloads: []\n");
        let file = site.dir.path().join("kubeconfig");
        let mut way = Way::open(kubeconfig(&file, None, None)).await;
        kubeconfig(&file, Some(way.address), None);
        let control = site.start_with(source(&file).await).await.unwrap();
        let running = simulated::Running { site, control };
        let mut watch = running.watch(&lab.node).await;
        let (before, meanwhile) = (ns.key("before"), ns.key("meanwhile"));
        until(&mut watch, "the pod", |view| {
            view.workloads.contains_key(&before)
        })
        .await;
        let health = running.control.health_addr();
        assert_eq!(get(health, "/ready").await, (200, "ready\n".to_owned()));

        way.cut().await;
        eventually("it is missed", async || {
            metric(&running.control, "duet_control_api_server_up").await == 0.0
        })
        .await;
        ns.sidecar("meanwhile", "web").await;
        let late = running.watch(&lab.node).await;
        assert!(
            late.held.workloads.contains_key(&before),
            "the last state stays in force"
        );
        let (status, page) = get(health, "/ready").await;
        assert_eq!(status, 200, "others would do no better");
        assert!(
            page.contains("kubernetes: the API server at https://127.0.0.1:"),
            "{page}"
        );

        way.restore().await;
        until(&mut watch, "what was missed", |view| {
            view.workloads.contains_key(&meanwhile)
        })
        .await;
        let up = async || metric(&running.control, "duet_control_api_server_up").await == 1.0;
        eventually("it is back", up).await;
        assert_eq!(get(health, "/ready").await.1, "ready\n");
        let failures = "duet_control_watch_failures_total{reason=\"away\",resource=\"pods\"}";
        assert!(metric(&running.control, failures).await >= 1.0);
    })
    .await;
}

#[tokio::test]
async fn what_the_role_lacks_is_said_and_waited_for() {
    in_lab("role", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        let accounts: Api<ServiceAccount> = ns.api();
        let request = TokenRequest::default();
        let token = accounts
            .create_token_request("default", &PostParams::default(), &request)
            .await
            .unwrap();
        let token = token.status.and_then(|status| status.token).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        kubeconfig(&file, None, Some(&token));

        let prepared = ControlPlane::prepare(loopback()).await.unwrap();
        let health = prepared.health_addr();
        let source = source(&file).await;
        let following = tokio::spawn(async move { prepared.follow(source).await.map(drop) });
        let missing = "pods: duet-control may not list pods: kubectl apply -k deploy/overlays/";
        eventually("it says so", async || {
            let (status, page) = get(health, "/ready").await;
            status == 503 && page.contains(missing)
        })
        .await;
        assert!(!following.is_finished());

        let role = json!({
            "metadata": { "name": lab.name },
            "rules": [
                { "apiGroups": [""], "resources": ["namespaces", "nodes", "pods", "services"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
                { "apiGroups": ["duet.dev"], "resources": ["authorizationpolicies"], "verbs": ["list", "watch"] },
            ],
        });
        let binding = json!({
            "metadata": { "name": lab.name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": lab.name },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": ns.name }],
        });
        let post = PostParams::default();
        let roles: Api<ClusterRole> = Api::all(lab.client.clone());
        let role = serde_json::from_value(role).unwrap();
        roles.create(&post, &role).await.unwrap();
        let bindings: Api<ClusterRoleBinding> = Api::all(lab.client.clone());
        let binding = serde_json::from_value(binding).unwrap();
        bindings.create(&post, &binding).await.unwrap();
        let followed = tokio::time::timeout(PATIENCE, following).await;
        followed.expect("with the role it starts").unwrap().unwrap();
    })
    .await;
}

/// Answers /version, and nothing else.
async fn api_server(version: &str, minor: &str, date: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let info: Value = json!({
        "major": "1", "minor": minor, "gitVersion": version, "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
    });
    let body = info.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

fn plain_kubeconfig(path: &Path, server: SocketAddr) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{ "name": "it", "cluster": { "server": format!("http://{server}") } }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        "users": [{ "name": "it", "user": {} }],
    });
    std::fs::write(path, config.to_string()).unwrap();
}

#[tokio::test]
async fn an_api_server_without_native_sidecars_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let date = "Thu, 01 Jan 2026 00:00:00 GMT";
    plain_kubeconfig(&file, api_server("v1.28.15", "28", date).await);
    let error = source(&file).await.next().await.unwrap_err().to_string();
    assert!(
        error.contains("is Kubernetes v1.28.15, without native sidecars"),
        "{error}"
    );
    assert!(
        error.ends_with("upgrade the cluster to 1.29 or newer"),
        "{error}"
    );
    // Some providers write a plus behind the number.
    plain_kubeconfig(&file, api_server("v1.29.1-x", "29+", date).await);
    let next = tokio::time::timeout(Duration::from_millis(300), async {
        source(&file).await.next().await
    });
    assert!(next.await.is_err(), "it goes on to watch");
}

#[tokio::test]
async fn a_clock_that_is_off_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let date = "Thu, 01 Jan 2026 00:00:00 GMT";
    plain_kubeconfig(&file, api_server("v1.36.2", "36", date).await);
    let prepared = ControlPlane::prepare(loopback()).await.unwrap();
    let metrics = prepared.metrics().clone();
    let source = source(&file).await;
    let _following = tokio::spawn(async move { prepared.follow(source).await.map(drop) });
    let ahead = async || {
        let found = metrics.registry.gather();
        let skew = found
            .iter()
            .find(|it| it.name() == "duet_control_clock_skew_seconds");
        let skew = skew.map_or(0.0, |it| it.get_metric()[0].get_gauge().get_value());
        let since = 1_767_225_600.0;
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        (now.as_secs_f64() - since - skew).abs() < 5.0
    };
    eventually("the difference", ahead).await;
}
