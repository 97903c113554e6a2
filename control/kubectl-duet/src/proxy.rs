//! Asking a proxy itself, through the API server: its admin port is on loopback, which
//! a port-forward is let into.

use crate::cluster::{AGENT, Cluster, Error, SYSTEM, chain, one_line};
use crate::mesh::{PROXY, Placement, Standing, is_over};
use crate::target::selecting;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The proxies' admin port.
const ADMIN: u16 = 15000;
/// A proxy that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Proxies that are asked at once.
const AT_ONCE: usize = 16;
/// The longest page that is read.
const MAX_PAGE: usize = 64 << 20;

/// A pod that a proxy runs in: a sidecar's or an agent's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProxyPod {
    pub namespace: String,
    pub pod: String,
    pub placement: Placement,
    pub node: String,
}

/// What `/identity` says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Told {
    pub version: String,
    /// The core's fingerprint.
    pub core: String,
    pub mode: String,
    /// The proxy's clock, seconds since the epoch.
    pub time: i64,
    /// What it waits for before it is ready.
    #[serde(default)]
    pub missing: Vec<String>,
    #[serde(default)]
    pub workloads: Vec<Served>,
    #[serde(default)]
    pub identities: Vec<Held>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Served {
    /// "namespace/name".
    pub name: String,
    pub identity: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    pub identity: String,
    pub not_before: Option<i64>,
    pub not_after: Option<i64>,
    pub serial: Option<String>,
    /// SHA-256 fingerprints.
    pub roots: Option<Vec<String>>,
}

/// The agents, by node.
pub struct Agents(HashMap<String, ProxyPod>);

// === impl ProxyPod ===

impl ProxyPod {
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// A sidecar, if the pod has one that runs.
    pub fn sidecar(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let init = status.init_container_statuses.iter().flatten();
        let mut all = init.chain(status.container_statuses.iter().flatten());
        let proxy = all.find(|one| one.name == PROXY)?;
        let runs = proxy
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some());
        (runs && !is_over(pod)).then(|| Self::of(pod, Placement::Sidecar))
    }

    fn of(pod: &Pod, placement: Placement) -> Self {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            pod: pod.name_any(),
            placement,
            node: node.unwrap_or_default(),
        }
    }

    /// The head of the answer; its body comes as it comes.
    pub async fn ask(&self, cluster: &Cluster, path: &str) -> Result<Response<Incoming>, Error> {
        let asked = ask(cluster, &self.namespace, &self.pod, ADMIN, path);
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent()),
        }
    }

    pub async fn json<T: serde::de::DeserializeOwned>(
        &self,
        cluster: &Cluster,
        path: &str,
    ) -> Result<T, Error> {
        let page = async {
            let answer = self.ask(cluster, path).await?;
            let status = answer.status();
            let body = read(answer).await?;
            if !status.is_success() {
                let said = one_line(&String::from_utf8_lossy(&body));
                return Err(self.refused(status.as_u16(), &said));
            }
            serde_json::from_slice(&body).map_err(|error| {
                Error::Proxy(format!(
                    "the proxy of {}: {path} is not what was expected: {error}",
                    self.name()
                ))
            })
        };
        match tokio::time::timeout(PATIENCE, page).await {
            Ok(page) => page,
            Err(_) => Err(self.silent()),
        }
    }

    pub fn refused(&self, status: u16, said: &str) -> Error {
        let name = self.name();
        Error::Proxy(match status {
            404 => format!("the proxy of {name} is too old for this: {said}"),
            _ => format!("the proxy of {name}: {said}"),
        })
    }

    fn silent(&self) -> Error {
        Error::Proxy(format!(
            "the proxy of {} says nothing within {PATIENCE:?}",
            self.name()
        ))
    }

    pub async fn told(&self, cluster: &Cluster) -> Result<Told, Error> {
        self.json(cluster, "/identity").await
    }
}

// === impl Agents ===

impl Agents {
    /// None, if there is no such DaemonSet.
    pub async fn find(cluster: &Cluster) -> Result<Option<(DaemonSet, Self)>, Error> {
        let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), SYSTEM);
        let Some(set) = cluster.get(&sets, AGENT).await? else {
            return Ok(None);
        };
        let selector = set.spec.as_ref().map(|spec| spec.selector.clone());
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SYSTEM);
        let mut pods = cluster
            .list(&pods, &selecting(selector.unwrap_or_default())?)
            .await?;
        // In a rolling update a node has two for a while: the newer one counts.
        pods.retain(|pod| !is_over(pod));
        pods.sort_by_key(ResourceExt::creation_timestamp);
        let agents = pods.iter().map(|pod| ProxyPod::of(pod, Placement::Agent));
        let by_node = agents.map(|agent| (agent.node.clone(), agent)).collect();
        Ok(Some((set, Self(by_node))))
    }

    pub fn none() -> Self {
        Self(HashMap::new())
    }

    pub fn on(&self, node: &str) -> Option<&ProxyPod> {
        self.0.get(node)
    }

    pub fn all(&self) -> impl Iterator<Item = &ProxyPod> {
        self.0.values()
    }
}

/// Which proxies serve these pods, and which workloads each of them is to be asked for.
pub fn serving(
    pods: &[(Pod, Standing)],
    agents: &Agents,
) -> (BTreeMap<ProxyPod, Vec<String>>, Vec<String>) {
    let mut proxies: BTreeMap<ProxyPod, Vec<String>> = BTreeMap::new();
    let mut left_out = Vec::new();
    for (pod, standing) in pods {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let proxy = match standing.placement {
            Placement::None => Err("is not in the mesh".to_owned()),
            Placement::Sidecar => ProxyPod::sidecar(pod)
                .ok_or_else(|| format!("has a sidecar that does not run{}", because(standing))),
            Placement::Agent => node
                .and_then(|node| agents.on(node))
                .cloned()
                .ok_or_else(|| format!("has no agent on its node {}", node.unwrap_or("yet"))),
        };
        match proxy {
            Ok(proxy) => proxies.entry(proxy).or_default().push(name),
            Err(why) => left_out.push(format!("pod {name} {why}")),
        }
    }
    (proxies, left_out)
}

fn because(standing: &Standing) -> String {
    standing
        .missing
        .as_ref()
        .map_or_else(String::new, |missing| format!(": {missing}"))
}

/// Asks all of them, so many at a time.
pub async fn ask_all(
    cluster: &Cluster,
    proxies: Vec<ProxyPod>,
) -> Vec<(ProxyPod, Result<Told, Error>)> {
    let mut answers: Vec<_> = stream::iter(proxies)
        .map(|proxy| async {
            let told = proxy.told(cluster).await;
            (proxy, told)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));
    answers
}

/// A path and its parameters.
pub fn question<'a>(path: &str, parameters: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let start = format!("{path}?");
    let length = start.len();
    let mut question = form_urlencoded::Serializer::for_suffix(start, length);
    question.extend_pairs(parameters);
    question.finish()
}

/// A page of a pod's own server, whatever it is.
pub async fn page(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, Error> {
    let page = async {
        let answer = ask(cluster, namespace, pod, port, path).await?;
        let body = read(answer).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    match tokio::time::timeout(PATIENCE, page).await {
        Ok(page) => page,
        Err(_) => Err(Error::Proxy(format!(
            "pod {namespace}/{pod} says nothing on port {port} within {PATIENCE:?}"
        ))),
    }
}

async fn ask(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<Response<Incoming>, Error> {
    let failed = |why: &str| {
        Error::Proxy(format!(
            "port {port} of pod {namespace}/{pod}: {}",
            one_line(why)
        ))
    };
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let forwarded = pods.portforward(pod, &[port]).await;
    let mut forwarded = forwarded.map_err(|error| match cluster.error(&error) {
        // A WebSocket that is refused says no more than the number.
        Error::Api(why) if why.contains("403 Forbidden") => Error::Forbidden(format!(
            "you cannot create resource \"pods/portforward\" in namespace \"{namespace}\", which asking a proxy takes"
        )),
        Error::Api(why) if why.contains("500 Internal Server Error") => {
            failed("the kubelet does not let anybody in: does the pod run?")
        }
        Error::Api(why) => failed(&why),
        other => other,
    })?;
    let (Some(stream), Some(refusal)) = (forwarded.take_stream(port), forwarded.take_error(port))
    else {
        return Err(failed("no stream"));
    };
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Error::Usage(error.to_string()))?;
    let answer = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    match answer.await {
        Ok(answer) => Ok(answer),
        // What the kubelet says of it comes on a channel of its own.
        Err(error) => {
            let said = tokio::time::timeout(Duration::from_millis(200), refusal).await;
            Err(match said {
                // With the whole way there, by both families.
                Ok(Some(why)) if why.contains("connection refused") => failed("nobody listens"),
                Ok(Some(why)) => failed(&why),
                _ => failed(&chain(&error)),
            })
        }
    }
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, Error> {
    let body = Limited::new(answer.into_body(), MAX_PAGE).collect().await;
    let body = body.map_err(|error| Error::Proxy(format!("its answer broke off: {error}")))?;
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_question_survives_what_is_asked_for() {
        let parameters = [("workload", "shop/web-0"), ("path", "/a b&c")];
        assert_eq!(
            question("/tap", parameters.into_iter()),
            "/tap?workload=shop%2Fweb-0&path=%2Fa+b%26c"
        );
    }

    fn pod(name: &str, placement: &str, node: &str, state: &str) -> (Pod, Standing) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "shop",
                "annotations": {"duet.dev/placement": placement},
            },
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": "Running", "initContainerStatuses": [{
                "name": PROXY, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "started": true, "state": { state: {} },
            }]},
        }))
        .unwrap();
        let standing = Standing::of(&pod, None);
        (pod, standing)
    }

    #[test]
    fn pods_are_asked_about_where_their_proxy_is() {
        let agent = ProxyPod {
            namespace: SYSTEM.to_owned(),
            pod: "duet-agent-x".to_owned(),
            placement: Placement::Agent,
            node: "node-1".to_owned(),
        };
        let agents = Agents(HashMap::from([("node-1".to_owned(), agent.clone())]));
        let pods = [
            pod("a", "agent", "node-1", "running"),
            pod("b", "agent", "node-1", "running"),
            pod("c", "agent", "node-2", "running"),
            pod("d", "sidecar", "node-2", "running"),
            pod("e", "sidecar", "node-2", "waiting"),
            pod("f", "none", "node-1", "running"),
        ];
        let (proxies, left_out) = serving(&pods, &agents);
        assert_eq!(proxies[&agent], ["shop/a", "shop/b"]);
        let sidecar = ProxyPod::sidecar(&pods[3].0).unwrap();
        assert_eq!(proxies[&sidecar], ["shop/d"]);
        assert_eq!(proxies.len(), 2);
        assert_eq!(
            left_out,
            [
                "pod shop/c has no agent on its node node-2",
                "pod shop/e has a sidecar that does not run",
                "pod shop/f is not in the mesh",
            ]
        );
    }
}
