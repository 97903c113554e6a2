//! The webhook as an API server meets it, without one: TLS, bounds, its end.
//!
//! Its own API server is an address where nobody listens, so whatever needs a
//! namespace is answered with an error.

use bytes::Bytes;
use duet_control::ca::{Authority, NewRoot};
use duet_control::injector::webhook::{
    InjectorMetrics, LINGER, MAX_REVIEW_BYTES, PATH_BY_NAMESPACE, PATH_BY_POD, Webhook,
    WebhookSettings,
};
use duet_control::injector::{Config, Injector};
use duet_control::trust::Trust;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use prometheus::Registry;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAME: &str = "duet-injector.duet-system.svc";

/// A running webhook, and what a client of it needs.
struct Served {
    webhook: Webhook,
    addr: SocketAddr,
    authority: Arc<Authority>,
    registry: Registry,
}

impl Served {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let new = NewRoot::generate().unwrap();
        let pem = format!("{}{}", new.key, new.certificate);
        let nobody = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let registry = Registry::new();
        let webhook = Webhook::start(
            WebhookSettings {
                listen: "127.0.0.1:0".parse().unwrap(),
                namespace: "duet-system".to_owned(),
                cert_lifetime: Duration::from_secs(3600),
                injector: Injector {
                    config: Config::default(),
                },
            },
            kube::Client::try_from(nobody).unwrap(),
            Trust::from(Authority::from_pem(&pem).unwrap()),
            InjectorMetrics::new(&registry),
        )
        .await
        .unwrap();
        Self {
            addr: webhook.addr(),
            webhook,
            authority: Arc::new(Authority::from_pem(&pem).unwrap()),
            registry,
        }
    }

    async fn connect(&self, name: &'static str, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        connect(self.addr, &self.authority, name, alpn).await
    }

    async fn ask(&self, alpn: &[u8], request: Request<Full<Bytes>>) -> (StatusCode, String) {
        let stream = TokioIo::new(self.connect(NAME, alpn).await.unwrap());
        let response = if alpn == b"h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    fn counted(&self, decision: &str) -> u64 {
        let families = self.registry.gather();
        let requests = families
            .iter()
            .find(|it| it.name() == "duet_injector_requests_total");
        let metrics = requests.expect("it is registered").get_metric();
        let one = metrics
            .iter()
            .find(|it| it.get_label()[0].value() == decision);
        one.map_or(0, |it| it.get_counter().get_value() as u64)
    }
}

async fn connect(
    addr: SocketAddr,
    authority: &Authority,
    name: &'static str,
    alpn: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.bundle()[0].clone()).unwrap();
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(name).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://{NAME}{path}"))
        .header("host", NAME)
        .body(Full::new(body.into()))
        .unwrap()
}

/// Of a resource that is none of its business.
fn review(resource: &str) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "0c9a8d74", "operation": "CREATE", "namespace": "shop", "userInfo": {},
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": resource},
            "object": {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
                "spec": {"containers": [{"name": "web", "image": "x"}]},
            },
        },
    })
    .to_string()
}

#[tokio::test]
async fn its_name_is_the_services() {
    let served = Served::start().await;
    served.connect(NAME, b"h2").await.unwrap();
    let error = served.connect("duet-control", b"h2").await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn both_versions_of_http_are_answered() {
    let served = Served::start().await;
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let asked = request("POST", PATH_BY_POD, review("services"));
        let (status, body) = served.ask(alpn, asked).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["response"]["uid"], "0c9a8d74");
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"].get("patch"), None);
    }
    assert_eq!(served.counted("none"), 2);
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let served = Served::start().await;
    let old = review("pods").replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    for (asked, status, says) in [
        (request("POST", "/", ""), StatusCode::NOT_FOUND, PATH_BY_POD),
        (
            request("GET", PATH_BY_POD, ""),
            StatusCode::METHOD_NOT_ALLOWED,
            "POST",
        ),
        (
            request("POST", PATH_BY_POD, "{"),
            StatusCode::BAD_REQUEST,
            "AdmissionReview",
        ),
        (
            request("POST", PATH_BY_POD, old),
            StatusCode::BAD_REQUEST,
            "admissionReviewVersions: [v1]",
        ),
        (
            request(
                "POST",
                PATH_BY_POD,
                review("pods").replace("\"x\"", &"[".repeat(100_000)),
            ),
            StatusCode::BAD_REQUEST,
            "recursion limit",
        ),
        (
            request("POST", PATH_BY_POD, vec![b' '; MAX_REVIEW_BYTES + 1]),
            StatusCode::PAYLOAD_TOO_LARGE,
            "limit",
        ),
    ] {
        let (got, body) = served.ask(b"h2", asked).await;
        assert_eq!(got, status, "{body}");
        assert!(body.contains(says), "{says}: {body}");
    }
    assert_eq!(served.counted("error"), 4, "of what was a review at all");
}

/// Without its namespace's labels a pod is not let through, but refused by the API
/// server, which reads the reason.
#[tokio::test]
async fn without_the_api_server_no_pod_is_decided() {
    let served = Served::start().await;
    let asked = request("POST", PATH_BY_NAMESPACE, review("pods"));
    let (status, body) = served.ask(b"h2", asked).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("namespace shop could not be read"), "{body}");
    assert_eq!(served.counted("error"), 1);
}

#[tokio::test]
async fn a_client_that_sends_no_body_is_let_go() {
    let served = Served::start().await;
    let mut slow = served.connect(NAME, b"http/1.1").await.unwrap();
    let head = format!("POST {PATH_BY_POD} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let mut answer = vec![0; 1024];
    let read = slow.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "the API server would wait no longer"
    );
}

/// Endpoints are forgotten later than a pod is told to stop.
#[tokio::test]
async fn told_to_stop_it_answers_for_a_while() {
    let served = Served::start().await;
    let (addr, authority) = (served.addr, served.authority.clone());
    let began = Instant::now();
    let mut kept = connect(addr, &authority, NAME, b"http/1.1").await.unwrap();
    let stopping = tokio::spawn(served.webhook.stop());
    tokio::time::sleep(Duration::from_millis(200)).await;

    let stream = TokioIo::new(connect(addr, &authority, NAME, b"h2").await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let asked = request("POST", PATH_BY_POD, review("services"));
    let response = sender.send_request(asked).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);

    // A kept connection is not closed under a request, but after one.
    let head = format!("GET {PATH_BY_POD} HTTP/1.1\r\nhost: x\r\n\r\n");
    kept.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(began.elapsed() < LINGER);

    stopping.await.unwrap();
    assert!(began.elapsed() >= LINGER);
    // The client was told, and the connection ended in good order.
    connection.await.unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

/// What is installed calls the paths that are served.
#[test]
fn the_manifest_says_what_is_served() {
    let text = include_str!("../../deploy/base/webhook.yaml");
    let webhook = text
        .split("---\n")
        .find(|it| it.contains("kind: MutatingWebhookConfiguration"))
        .unwrap();
    let webhook: MutatingWebhookConfiguration = serde_saphyr::from_str(webhook).unwrap();
    let webhooks = webhook.webhooks.unwrap();
    let paths: Vec<_> = webhooks
        .iter()
        .map(|it| {
            it.client_config
                .service
                .as_ref()
                .unwrap()
                .path
                .as_deref()
                .unwrap()
        })
        .collect();
    assert_eq!(paths, [PATH_BY_NAMESPACE, PATH_BY_POD]);
    for webhook in &webhooks {
        assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
        assert_eq!(webhook.side_effects, "None");
        assert_eq!(webhook.reinvocation_policy.as_deref(), Some("IfNeeded"));
        assert_eq!(webhook.admission_review_versions, ["v1"]);
        assert!(
            webhook.timeout_seconds.unwrap() > 4,
            "an error should be read"
        );
    }
}
