//! A webhook on this machine that a real API server asks, for namespaces of the
//! test's own and for no others. Where Duet is installed its own webhook is not asked
//! about them: they carry the label that keeps it out.
//!
//! It is installed as `deploy/base/webhook.yaml` has it, behind a Service whose
//! endpoint is this machine. The tests need `KUBECONFIG`, and an API server that
//! reaches this machine; without, they say so and are skipped.

use duet_control::ca::{Authority, NewRoot};
use duet_control::injector::webhook::{
    InjectorMetrics, SERVICE, Webhook, WebhookSettings, keep_ca_bundle,
};
use duet_control::injector::{Config, Injector};
use duet_control::tls::ServerCertificate;
use duet_control::trust::Trust;
use futures_util::FutureExt;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use prometheus::Registry;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Nothing here takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_secs(3600);
/// What the test's objects are known by.
const LABEL: &str = "duet.dev/test";
/// By which the installed webhook leaves a namespace out.
const INJECTION: &str = "duet.dev/injection";

pub struct Bed {
    pub client: Client,
    /// Part of every name.
    pub id: String,
    /// This machine, as the API server sees it.
    host: IpAddr,
    authority: watch::Sender<std::sync::Arc<Authority>>,
    trust: Trust,
    tasks: std::sync::Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// What the API server made of a pod.
#[derive(Debug)]
pub struct Admitted {
    pub pod: Value,
    /// As kubectl shows them.
    pub warnings: Vec<String>,
}

/// Runs `test` with a webhook of this configuration, and leaves nothing behind.
pub fn run(name: &str, config: Config, test: impl AsyncFnOnce(&Bed)) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bed = match Bed::new(name).await {
            Ok(bed) => bed,
            Err(why) => {
                // Past the test harness, which keeps what a passing test prints to itself.
                let _ = writeln!(std::io::stderr().lock(), "skipped: {name}: {why}");
                return;
            }
        };
        let outcome = AssertUnwindSafe(async {
            let webhook = bed.install(config).await;
            test(&bed).await;
            drop(webhook);
        })
        .catch_unwind()
        .await;
        bed.clean().await;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

pub fn authority() -> Authority {
    let new = NewRoot::generate().unwrap();
    Authority::from_pem(&format!("{}{}", new.key, new.certificate)).unwrap()
}

impl Bed {
    async fn new(name: &str) -> Result<Self, String> {
        if std::env::var_os("KUBECONFIG").is_none() {
            return Err("KUBECONFIG is not set".to_owned());
        }
        let config = kube::Config::infer()
            .await
            .map_err(|error| error.to_string())?;
        let server = config.cluster_url.clone();
        let client = Client::try_from(config).map_err(|error| error.to_string())?;
        match tokio::time::timeout(Duration::from_secs(5), client.apiserver_version()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("the API server: {error}")),
            Err(_) => return Err("the API server does not answer".to_owned()),
        }
        let host = local_address(server.host().unwrap_or_default())?;
        let (authority, current) = watch::channel(std::sync::Arc::new(authority()));
        Ok(Self {
            client,
            id: format!("injector-{name}-{:05}", std::process::id()),
            host,
            authority,
            trust: Trust::following(current),
            tasks: std::sync::Mutex::default(),
        })
    }

    /// Returns when the API server asks the webhook, and is answered.
    async fn install(&self, config: Config) -> Webhook {
        self.make_namespace("system", &json!({})).await;
        let webhook = Webhook::start(
            WebhookSettings {
                listen: SocketAddr::new(self.host, 0),
                namespace: self.name("system"),
                cert_lifetime: LIFETIME,
                injector: Injector { config },
            },
            self.client.clone(),
            self.trust.clone(),
            InjectorMetrics::new(&Registry::new()),
        )
        .await
        .unwrap();
        self.make_service(SERVICE, webhook.addr().port()).await;
        self.register(self.configuration()).await;

        let (client, name, trust) = (self.client.clone(), self.id.clone(), self.trust.clone());
        self.spawn(async move {
            let metrics = InjectorMetrics::new(&Registry::new());
            keep_ca_bundle(client, &name, trust, &metrics).await;
        });
        let probe = self.namespace("probe", "sidecar").await;
        let began = Instant::now();
        while let Err(why) = self.try_create(&probe, &pod(json!({})), true).await {
            assert!(began.elapsed() < PATIENCE, "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        webhook
    }

    /// What is installed, for this test's namespaces only.
    fn configuration(&self) -> MutatingWebhookConfiguration {
        let text = include_str!("../../../deploy/base/webhook.yaml");
        let text = text
            .split("---\n")
            .find(|it| it.contains("MutatingWebhookConfiguration"));
        let mut configuration: MutatingWebhookConfiguration =
            serde_saphyr::from_str(text.unwrap()).unwrap();
        configuration.metadata.name = Some(self.id.clone());
        for webhook in configuration.webhooks.iter_mut().flatten() {
            webhook.client_config.service.as_mut().unwrap().namespace = self.name("system");
        }
        configuration
    }

    /// Another webhook, that the API server asks after ours. `meddle` gives a patch.
    pub async fn meddler(&self, meddle: impl Fn(&Value) -> Value + Clone + Send + Sync + 'static) {
        let name = format!("meddler.{}.svc", self.name("system"));
        let certificate =
            ServerCertificate::issue(&self.authority.borrow(), name, LIFETIME).unwrap();
        // API servers speak HTTP/1.1 with webhooks.
        let mut tls = rustls::ServerConfig::clone(certificate.acceptor().config());
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
        let listener = TcpListener::bind((self.host, 0)).await.unwrap();
        self.make_service("meddler", listener.local_addr().unwrap().port())
            .await;
        self.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let meddle = meddle.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let meddle = meddle.clone();
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        let patch = meddle(&review["request"]["object"]).to_string();
                        let answer = json!({
                            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                            "response": {
                                "uid": review["request"]["uid"], "allowed": true,
                                "patchType": "JSONPatch",
                                "patch": k8s_openapi::ByteString(patch.into_bytes()),
                            },
                        });
                        let body = Full::new(bytes::Bytes::from(answer.to_string()));
                        let mut response = http::Response::new(body);
                        let json = http::HeaderValue::from_static("application/json");
                        response.headers_mut().insert("content-type", json);
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        let mut configuration = self.configuration();
        configuration.metadata.name = Some(format!("{}-z", self.id));
        configuration.webhooks.as_mut().unwrap().truncate(1);
        let bundle = self.authority.borrow().bundle_pem();
        for webhook in configuration.webhooks.iter_mut().flatten() {
            webhook.name = "z.duet.dev".to_owned();
            webhook.client_config.service.as_mut().unwrap().name = "meddler".to_owned();
            webhook.client_config.ca_bundle = Some(k8s_openapi::ByteString(bundle.clone().into()));
        }
        self.register(configuration).await;
    }

    async fn register(&self, mut configuration: MutatingWebhookConfiguration) {
        let own = LabelSelectorRequirement {
            key: LABEL.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![self.id.clone()]),
        };
        for webhook in configuration.webhooks.iter_mut().flatten() {
            let selector = webhook.namespace_selector.get_or_insert_default();
            let expressions = selector.match_expressions.get_or_insert_default();
            expressions.retain(|it| it.key != INJECTION);
            expressions.push(own.clone());
        }
        configuration.metadata.labels = Some([(LABEL.to_owned(), self.id.clone())].into());
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        api.create(&PostParams::default(), &configuration)
            .await
            .unwrap();
    }

    /// What the webhook is known by, at the API server.
    pub async fn ca_bundles(&self) -> Vec<String> {
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let configuration = api.get(&self.id).await.unwrap();
        let bundle = |it: &k8s_openapi::ByteString| String::from_utf8(it.0.clone()).unwrap();
        let webhooks = configuration.webhooks.unwrap();
        webhooks
            .iter()
            .map(|it| {
                it.client_config
                    .ca_bundle
                    .as_ref()
                    .map(bundle)
                    .unwrap_or_default()
            })
            .collect()
    }

    /// The mesh signs with another root, or trusts others.
    pub fn replace_authority(&self, authority: Authority) {
        self.authority.send_replace(std::sync::Arc::new(authority));
    }

    pub fn current_authority(&self) -> std::sync::Arc<Authority> {
        self.authority.borrow().clone()
    }

    /// With this `duet.dev/mode`.
    pub async fn namespace(&self, name: &str, mode: &str) -> String {
        self.make_namespace(name, &json!({"duet.dev/mode": mode}))
            .await
    }

    pub async fn make_namespace(&self, name: &str, labels: &Value) -> String {
        let mut labels = labels.clone();
        labels[LABEL] = self.id.clone().into();
        labels[INJECTION] = "disabled".into();
        let name = self.name(name);
        let namespace = json!({"metadata": {"name": name, "labels": labels}});
        let namespace: Namespace = serde_json::from_value(namespace).unwrap();
        let api = Api::<Namespace>::all(self.client.clone());
        api.create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        name
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    async fn make_service(&self, name: &str, port: u16) {
        let namespace = self.name("system");
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]},
        }))
        .unwrap();
        let api = Api::<Service>::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &service).await.unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": if self.host.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{"addresses": [self.host], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }))
        .unwrap();
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &slice).await.unwrap();
    }

    #[track_caller]
    pub fn create(&self, namespace: &str, pod: &Value) -> impl Future<Output = Admitted> {
        let created = self.try_create(namespace, pod, false);
        async { created.await.unwrap() }
    }

    /// `Err` is what kubectl would say.
    pub async fn try_create(
        &self,
        namespace: &str,
        pod: &Value,
        dry_run: bool,
    ) -> Result<Admitted, String> {
        let how = if dry_run { "?dryRun=All" } else { "" };
        let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods{how}"))
            .header("content-type", "application/json")
            .body(Body::from(pod.to_string().into_bytes()))
            .unwrap();
        let response = self
            .client
            .send(request)
            .await
            .map_err(|error| error.to_string())?;
        let is_success = response.status().is_success();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|it| it.to_str().unwrap().to_owned()).collect();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let object: Value = serde_json::from_slice(&body).unwrap();
        if is_success {
            Ok(Admitted {
                pod: object,
                warnings,
            })
        } else {
            Err(object["message"].as_str().unwrap_or_default().to_owned())
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks
            .lock()
            .unwrap()
            .push(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    async fn clean(&self) {
        // The webhooks first: whatever comes later is not asked of nobody.
        let own = ListParams::default().labels(&format!("{LABEL}={}", self.id));
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let gone = api.delete_collection(&DeleteParams::default(), &own).await;
        gone.expect("the test's webhooks are deleted");
        let api = Api::<Namespace>::all(self.client.clone());
        for namespace in api.list(&own).await.unwrap() {
            let name = namespace.metadata.name.unwrap();
            api.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    }
}

/// A pod that no scheduler looks at, with `more` merged into it.
pub fn pod(more: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "pod-"},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "web", "image": "duet.test/none:0"}],
        },
    });
    json_patch::merge(&mut pod, &more);
    pod
}

pub fn names_of(pod: &Value, list: &str) -> Vec<String> {
    let list = pod["spec"][list].as_array();
    list.into_iter()
        .flatten()
        .map(|it| it["name"].as_str().unwrap().to_owned())
        .collect()
}

fn local_address(server: &str) -> Result<IpAddr, String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).map_err(|error| error.to_string())?;
    let local = socket
        .connect((server.trim_matches(['[', ']']), 9))
        .and_then(|()| socket.local_addr())
        .map_err(|error| format!("the way to the API server {server}: {error}"))?;
    if local.ip().is_loopback() {
        return Err(format!(
            "the API server is at {server} and cannot reach this machine"
        ));
    }
    Ok(local.ip())
}
