//! A real API server: namespaces, pods and tokens of a test's own.
//!
//! The pods need not run: what counts is that the API server knows them and gives
//! tokens bound to them. The tests need `KUBECONFIG`; without it, or with an API server
//! that cannot be reached, they say so and are skipped.

pub mod traffic;

use futures_util::FutureExt;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

pub const AUDIENCE: &str = "duet-control";

/// Where the tests' namespaces are told from others by.
const LABEL: &str = "duet.dev/test";

pub struct Cluster {
    pub client: Client,
    /// Part of every name.
    pub id: String,
}

/// Runs `test` against the cluster, and leaves nothing behind.
pub fn run(name: &str, test: impl AsyncFnOnce(&Cluster)) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = match client().await {
            Ok(client) => client,
            Err(why) => {
                // Past the test harness, which keeps what a passing test prints to itself.
                let _ = writeln!(std::io::stderr().lock(), "skipped: {name}: {why}");
                return;
            }
        };
        let cluster = Cluster {
            client,
            id: format!("identity-{name}-{:04x}", std::process::id() & 0xffff),
        };
        let outcome = AssertUnwindSafe(test(&cluster)).catch_unwind().await;
        cluster.clean().await;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

async fn client() -> Result<Client, String> {
    if std::env::var_os("KUBECONFIG").is_none() {
        return Err("KUBECONFIG is not set".to_owned());
    }
    let client = Client::try_default()
        .await
        .map_err(|error| error.to_string())?;
    match tokio::time::timeout(Duration::from_secs(5), client.apiserver_version()).await {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(error)) => Err(format!("the API server: {error}")),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

impl Cluster {
    /// Only what carries the test's own label.
    pub fn selector(&self) -> String {
        format!("{LABEL}={}", self.id)
    }

    /// A namespace, "id-name".
    pub async fn namespace(&self, name: &str) -> String {
        let name = format!("{}-{name}", self.id);
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {LABEL: self.id}},
        }))
        .unwrap();
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        name
    }

    pub async fn service_account(&self, namespace: &str, name: &str) {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        accounts
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
    }

    /// A pod that never runs, on `node`. Returns its uid.
    pub async fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "serviceAccountName": account,
                "nodeName": node,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "none",
                    "image": "duet.test/none:0",
                    "imagePullPolicy": "Never",
                }],
            },
        }))
        .unwrap();
        let made = pods.create(&PostParams::default(), &pod).await.unwrap();
        made.uid().unwrap()
    }

    pub async fn delete_pod(&self, namespace: &str, name: &str) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let now = DeleteParams::default().grace_period(0);
        pods.delete(name, &now).await.unwrap();
        while pods.get_opt(name).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As a kubelet gets it for a projected volume.
    pub async fn token(&self, namespace: &str, account: &str, pod: (&str, &str)) -> String {
        let token = self.try_token(namespace, account, Some(pod), AUDIENCE);
        token.await.unwrap()
    }

    pub async fn try_token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<(&str, &str)>,
        audience: &str,
    ) -> kube::Result<String> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                expiration_seconds: Some(3600),
                bound_object_ref: pod.map(|(name, uid)| BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(name.to_owned()),
                    uid: Some(uid.to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let parameters = PostParams::default();
        let answer: TokenRequest = accounts
            .create_subresource("token", account, &parameters, &request)
            .await?;
        Ok(answer.status.unwrap().token.unwrap())
    }

    /// duet-control as it is installed in `namespace`: what `deploy/base/rbac.yaml` does
    /// not allow fails.
    pub async fn control(&self, namespace: &str) -> Client {
        let create = PostParams::default();
        let rules = include_str!("../../../deploy/base/rbac.yaml");
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(rules).unwrap();
        let name = format!("{namespace}-control");
        for mut document in documents {
            if document["metadata"]["name"] != "duet-control" {
                continue;
            }
            document["metadata"] = json!({"name": name, "labels": {LABEL: self.id}});
            let kind = document["kind"].as_str().unwrap().to_owned();
            if kind.ends_with("Binding") {
                document["roleRef"]["name"] = json!(name);
                document["subjects"][0]["namespace"] = json!(namespace);
            }
            let client = self.client.clone();
            let read = "a role or a binding";
            match &*kind {
                "ClusterRole" => {
                    let role: ClusterRole = serde_json::from_value(document).expect(read);
                    let roles = Api::<ClusterRole>::all(client);
                    roles.create(&create, &role).await.map(drop)
                }
                "ClusterRoleBinding" => {
                    let binding: ClusterRoleBinding = serde_json::from_value(document).expect(read);
                    let bindings = Api::<ClusterRoleBinding>::all(client);
                    bindings.create(&create, &binding).await.map(drop)
                }
                "Role" => {
                    let role: Role = serde_json::from_value(document).expect(read);
                    let roles = Api::<Role>::namespaced(client, namespace);
                    roles.create(&create, &role).await.map(drop)
                }
                "RoleBinding" => {
                    let binding: RoleBinding = serde_json::from_value(document).expect(read);
                    let bindings = Api::<RoleBinding>::namespaced(client, namespace);
                    bindings.create(&create, &binding).await.map(drop)
                }
                _ => Ok(()),
            }
            .unwrap();
        }
        let mut config = Config::infer().await.unwrap();
        let account = format!("system:serviceaccount:{namespace}:duet-control");
        config.auth_info.impersonate = Some(account);
        Client::try_from(config).unwrap()
    }

    async fn clean(&self) {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let ours = kube::api::ListParams::default().labels(&self.selector());
        for namespace in namespaces.list_metadata(&ours).await.unwrap() {
            let name = namespace.name_any();
            let _ = namespaces.delete(&name, &DeleteParams::default()).await;
        }
        let (now, client) = (DeleteParams::default(), self.client.clone());
        let roles = Api::<ClusterRole>::all(client.clone());
        let _ = roles.delete_collection(&now, &ours).await;
        let bindings = Api::<ClusterRoleBinding>::all(client);
        let _ = bindings.delete_collection(&now, &ours).await;
    }
}
