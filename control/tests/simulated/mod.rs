//! Pods that nobody runs, on nodes that are not there, in a real API server.
//!
//! To a control plane a pod is what the API server says of it. So these tests need a
//! cluster (`KUBECONFIG`) and no images: they make nodes, bind pods to them and write
//! the status that a kubelet would write. Everything else, the endpoint slices first
//! of all, is the real controllers' work.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::mesh::{Proxy, Site, Watch};
use duet_control::source::KubeSource;
use duet_control::source::kube::{Cluster, ClusterArgs, DEFAULT_TRUST_DOMAIN};
use duet_control::state::View;
use duet_control::{Caller, ControlPlane};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Controllers of a small cluster that others use too take their time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A test's own corner of the cluster.
pub struct Lab {
    pub client: Client,
    /// Begins the names of everything that the test makes.
    pub name: String,
    pub node: String,
}

/// The cluster that `KUBECONFIG` names; `None`, with the reason on standard error,
/// if there is none.
pub async fn client() -> Option<Client> {
    let why = if std::env::var_os("KUBECONFIG").is_none() {
        "KUBECONFIG is not set".to_owned()
    } else {
        match cluster().await {
            Ok(cluster) => match cluster.ask().await {
                Ok(_) => return Some(cluster.client),
                Err(trouble) => format!("the cluster is away: {}", trouble.message()),
            },
            Err(rejected) => rejected.to_string(),
        }
    };
    // Past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(
        std::io::stderr().lock(),
        "skipped: {}: {why}",
        std::thread::current().name().unwrap_or_default()
    );
    None
}

pub async fn cluster() -> Result<Cluster, duet_control::Rejected> {
    Cluster::new(&ClusterArgs::default()).await
}

/// An address that no other simulated pod has (RFC 2544's range).
pub fn address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id() % 8 * 0x4000 + COUNT.fetch_add(1, Ordering::Relaxed) % 0x4000;
    std::net::Ipv4Addr::from_bits(0xc612_0000 + own).to_string()
}

/// Runs `test` in a corner of its own and clears that away, whatever comes of it.
/// Without a cluster it is skipped.
pub async fn in_lab<F>(what: &str, test: impl FnOnce(Lab) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let Some(client) = client().await else {
        return;
    };
    let name = format!("kubesource-{what}-{}", std::process::id());
    let lab = Lab {
        node: format!("{name}-node"),
        client: client.clone(),
        name: name.clone(),
    };
    lab.add_node().await;
    let outcome = tokio::spawn(test(lab)).await;
    clear(&client, &name).await;
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Deletes every namespace and node whose name begins with `name`, and its role.
pub async fn clear(client: &Client, name: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for namespace in all(&namespaces, name).await {
        // Nobody else would end the pods of nodes that are not there.
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let _ = pods.delete_collection(&now(), &ListParams::default()).await;
        let _ = namespaces.delete(&namespace, &now()).await;
    }
    let nodes: Api<Node> = Api::all(client.clone());
    for node in all(&nodes, name).await {
        let _ = nodes.delete(&node, &now()).await;
    }
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let _ = roles.delete(name, &now()).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let _ = bindings.delete(name, &now()).await;
}

/// Without a kubelet there is nobody to wait for.
pub fn now() -> DeleteParams {
    DeleteParams::default().grace_period(0)
}

async fn all<K>(api: &Api<K>, prefix: &str) -> Vec<String>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let found = api.list(&ListParams::default()).await.unwrap();
    let names = found.items.into_iter();
    names
        .filter_map(|it| it.meta().name.clone())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

// === impl Lab ===

impl Lab {
    async fn add_node(&self) {
        self.add_nodes(std::slice::from_ref(&self.node)).await;
    }

    pub async fn add_nodes(&self, names: &[String]) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for name in names {
            let node = json!({
                "metadata": { "name": name },
                // Nobody else's pods shall wait here for a kubelet.
                "spec": { "unschedulable": true, "taints": [
                    { "key": "duet.dev/simulated", "effect": "NoSchedule" },
                ] },
            });
            nodes
                .create(&PostParams::default(), &read(node))
                .await
                .unwrap();
        }
    }

    /// The name of one of the test's own namespaces.
    pub fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    pub async fn namespace(&self, name: &str, labels: Value, annotations: Value) -> Corner {
        let name = self.ns(name);
        let namespace = json!({
            "metadata": { "name": name, "labels": labels, "annotations": annotations },
        });
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces
            .create(&PostParams::default(), &read(namespace))
            .await
            .unwrap();
        // Pods are refused before their service account is there.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
        let end = tokio::time::Instant::now() + PATIENCE;
        while accounts.get_opt("default").await.unwrap().is_none() {
            assert!(
                tokio::time::Instant::now() < end,
                "no service account in {name}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Corner {
            client: self.client.clone(),
            node: self.node.clone(),
            name,
        }
    }

    /// A control plane that reads the cluster as it is.
    pub async fn control(&self) -> Running {
        let source = KubeSource::new(cluster().await.unwrap(), DEFAULT_TRUST_DOMAIN);
        let site = Site::new("workloads: []\n");
        let control = site.start_with(source).await.unwrap();
        Running { site, control }
    }
}

/// A control plane in this process.
pub struct Running {
    pub site: Site,
    pub control: ControlPlane,
}

// === impl Running ===

impl Running {
    pub async fn proxy(&self, caller: Caller) -> Proxy {
        self.site.proxy(&self.control, caller).await
    }

    /// What an agent hears of, from the first update on.
    pub async fn watch(&self, node: &str) -> Watch {
        let proxy = self.proxy(Caller::Node(node.to_owned())).await;
        let mut watch = proxy.watch().await.unwrap();
        assert!(watch.next().await.snapshot);
        watch
    }
}

/// A namespace of a test.
#[derive(Clone)]
pub struct Corner {
    pub client: Client,
    pub name: String,
    /// Where its pods are.
    pub node: String,
}

// === impl Corner ===

impl Corner {
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// "namespace/NAME".
    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let created = self
            .api::<K>()
            .create(&PostParams::default(), &read(object))
            .await;
        created.unwrap()
    }

    pub async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched = self.api::<K>().patch(name, &params, &patch).await;
        patched.unwrap();
    }

    /// Labels and annotations of the namespace itself; null takes one away.
    pub async fn say(&self, metadata: Value) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let params = PatchParams::default();
        namespaces.patch(&self.name, &params, &patch).await.unwrap();
    }

    /// A pod that runs and is ready; `changes` are merged into it. Its address.
    pub async fn pod(&self, name: &str, changes: Value) -> String {
        let mut pod = json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": self.node,
                "automountServiceAccountToken": false,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "app",
                    "image": "example.invalid/app:1",
                    "ports": [{ "name": "web", "containerPort": 8080 }],
                }],
            },
        });
        merge(&mut pod, changes);
        self.create::<Pod>(pod).await;
        let address = address();
        self.runs(name, &address, true).await;
        address
    }

    /// A pod as the injector leaves it.
    pub async fn sidecar(&self, name: &str, app: &str) -> String {
        let stamped = json!({ "metadata": {
            "labels": { "app": app }, "annotations": { "duet.dev/placement": "sidecar" },
        } });
        self.pod(name, stamped).await
    }

    pub async fn runs(&self, name: &str, address: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        self.status(
            name,
            json!({
                "phase": "Running",
                "podIP": address,
                "podIPs": [{ "ip": address }],
                "conditions": [{ "type": "Ready", "status": ready }],
            }),
        )
        .await;
    }

    pub async fn status(&self, name: &str, status: Value) {
        // By type, as a kubelet and others write it.
        let patch = Patch::Strategic(json!({ "status": status }));
        let pods = self.api::<Pod>();
        let params = PatchParams::default();
        pods.patch_status(name, &params, &patch).await.unwrap();
    }

    /// A service `name` for the pods with the label `app: name`.
    pub async fn service(&self, name: &str, changes: Value) -> Vec<String> {
        let mut service = json!({
            "metadata": { "name": name },
            "spec": {
                "selector": { "app": name },
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
            },
        });
        merge(&mut service, changes);
        let created: k8s_openapi::api::core::v1::Service = self.create(service).await;
        created.spec.unwrap().cluster_ips.unwrap_or_default()
    }
}

/// RFC 7396.
fn merge(target: &mut Value, changes: Value) {
    match changes {
        Value::Object(changes) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, change) in changes {
                merge(&mut target[&key], change);
            }
        }
        other => *target = other,
    }
}

/// Takes in updates until `holds`.
pub async fn until(watch: &mut Watch, what: &str, holds: impl Fn(&View) -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds(&watch.held) {
        let update = tokio::time::timeout_at(end, watch.stream.message()).await;
        match update {
            Ok(update) => watch.held.apply(update.unwrap().expect("an open stream")),
            Err(_) => panic!("{what}: not within {PATIENCE:?}"),
        }
    }
}

/// Address, port and workload of a service's endpoints; of its first port.
pub fn endpoints(view: &View, service: &str) -> Vec<(String, u32, String)> {
    let ports = view.services.get(service).map(|service| &service.ports);
    let first = ports.and_then(|ports| ports.first());
    let endpoints = first.into_iter().flat_map(|port| &port.endpoints);
    endpoints
        .map(|it| (it.address.clone(), it.port, it.workload.clone()))
        .collect()
}
