//! What there is to know: asked for once, by `status`, `check` and `version` alike.

use super::certificate::{self, Certificate};
use crate::cluster::{CONTROL, Cluster, Error, SYSTEM};
use crate::mesh::{self, Placement, Standing, is_over};
use crate::proxy::{Agents, ProxyPod, Told, ask_all, page};
use crate::target::selecting;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// Where duet-control serves /metrics.
const CONTROL_HEALTH: u16 = 15011;
/// The Secret with the mesh's certificate authority.
const CA: &str = "duet-ca";
/// The ConfigMap, one in each namespace, and its key.
pub const BUNDLE: &str = "duet-trust-bundle";
pub const BUNDLE_KEY: &str = "root.pem";

/// The control plane.
pub struct Control {
    pub deployment: Deployment,
    pub pods: Vec<Pod>,
    pub lease: Option<Lease>,
    /// By pod; who does not answer is not in it.
    pub builds: BTreeMap<String, Build>,
    /// What certificates are signed with, and where that was read.
    pub authority: Result<(Certificate, &'static str), String>,
    pub now: Timestamp,
    /// Seconds that the API server's clock is ahead of this machine's.
    pub clock_ahead: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Build {
    pub version: String,
    pub core: String,
}

/// Pods, and the proxies that serve them.
pub struct Mesh {
    pub namespaces: BTreeMap<String, Namespace>,
    pub pods: Vec<(Pod, Standing)>,
    pub agents: Option<(DaemonSet, Agents)>,
    /// What each proxy says of itself.
    pub told: Vec<(ProxyPod, Result<Told, Error>)>,
}

// === impl Control ===

impl Control {
    pub async fn gather(cluster: &Cluster) -> Result<Self, Error> {
        let client = || cluster.client.clone();
        let deployments: Api<Deployment> = Api::namespaced(client(), SYSTEM);
        let deployment = cluster.get(&deployments, CONTROL).await?;
        let deployment = deployment.ok_or(Error::NotInstalled)?;
        let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone());
        let pods: Api<Pod> = Api::namespaced(client(), SYSTEM);
        let mut pods = cluster
            .list(&pods, &selecting(selector.unwrap_or_default())?)
            .await?;
        pods.retain(|pod| !is_over(pod));
        let leases: Api<Lease> = Api::namespaced(client(), SYSTEM);
        let lease = cluster.get(&leases, CONTROL).await?;
        let builds = stream::iter(&pods)
            .map(|pod| async {
                let name = pod.name_any();
                let metrics = page(cluster, SYSTEM, &name, CONTROL_HEALTH, "/metrics").await;
                Some((name, Build::read(&metrics.ok()?)?))
            })
            .buffer_unordered(4)
            .filter_map(|build| async { build })
            .collect()
            .await;
        let authority = authority(cluster).await?;
        let (now, clock_ahead) = cluster.clock().await?;
        Ok(Self {
            deployment,
            pods,
            lease,
            builds,
            authority,
            now,
            clock_ahead,
        })
    }

    /// Asked for and ready replicas.
    pub fn replicas(&self) -> (i32, i32) {
        let wanted = self.deployment.spec.as_ref().and_then(|spec| spec.replicas);
        let status = self.deployment.status.as_ref();
        let ready = status.and_then(|status| status.ready_replicas);
        (wanted.unwrap_or(1), ready.unwrap_or(0))
    }

    /// Who leads, and since when he has said nothing.
    pub fn leader(&self) -> Option<(&str, Option<Timestamp>)> {
        let spec = self.lease.as_ref()?.spec.as_ref()?;
        let holder = spec
            .holder_identity
            .as_deref()
            .filter(|holder| !holder.is_empty())?;
        Some((holder, spec.renew_time.as_ref().map(|time| time.0)))
    }
}

/// From the Secret, or, where that may not be read, from what everybody trusts.
async fn authority(
    cluster: &Cluster,
) -> Result<Result<(Certificate, &'static str), String>, Error> {
    let first = |read: Result<Vec<Certificate>, String>, from: &'static str| {
        let mut read = read.map_err(|why| format!("{from}: {why}"))?;
        Ok((read.swap_remove(0), from))
    };
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), SYSTEM);
    match cluster.get(&secrets, CA).await {
        Ok(Some(secret)) => {
            let pem = secret.data.unwrap_or_default().remove("tls.crt");
            let from = "Secret duet-system/duet-ca";
            return Ok(match pem {
                Some(pem) => first(certificate::read(&pem.0), from),
                None => Err(format!("{from} has no tls.crt")),
            });
        }
        Ok(None) => {}
        Err(error) if error.is_forbidden() => {}
        Err(error) => return Err(error),
    }
    let bundles: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let from = "ConfigMap duet-system/duet-trust-bundle";
    let bundle = cluster.get(&bundles, BUNDLE).await?;
    let pem = bundle.and_then(|bundle| bundle.data?.remove(BUNDLE_KEY));
    Ok(match pem {
        Some(pem) => first(certificate::read(pem.as_bytes()), from),
        None => Err("there is neither Secret duet-ca nor ConfigMap duet-trust-bundle".to_owned()),
    })
}

// === impl Build ===

impl Build {
    /// From duet-control's metrics.
    fn read(metrics: &str) -> Option<Self> {
        let line = metrics
            .lines()
            .find(|line| line.starts_with("duet_control_build_info{"))?;
        let label = |name: &str| {
            let (_, value) = line.split_once(&format!("{name}=\""))?;
            Some(value.split_once('"')?.0.to_owned())
        };
        Some(Self {
            version: label("version")?,
            core: label("core")?,
        })
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} core={}", self.version, self.core)
    }
}

// === impl Mesh ===

impl Mesh {
    /// Of one namespace, or of all.
    pub async fn gather(cluster: &Cluster, namespace: Option<&str>) -> Result<Self, Error> {
        let mut mesh = Self::listed(cluster, namespace).await?;
        let agents = mesh.agents.as_ref().map(|(_, agents)| agents);
        let sidecars = mesh.pods.iter().filter_map(|(pod, standing)| {
            let sidecar = standing.placement == Placement::Sidecar;
            sidecar.then(|| ProxyPod::sidecar(pod)).flatten()
        });
        // Of all agents, those that serve somebody here.
        let nodes: HashSet<&str> = mesh
            .pods
            .iter()
            .filter(|(_, standing)| standing.placement == Placement::Agent)
            .filter_map(|(pod, _)| pod.spec.as_ref()?.node_name.as_deref())
            .collect();
        let serving =
            |agent: &&ProxyPod| namespace.is_none() || nodes.contains(agent.node.as_str());
        let agents = agents
            .into_iter()
            .flat_map(Agents::all)
            .filter(serving)
            .cloned();
        let proxies: Vec<_> = sidecars.chain(agents).collect();
        mesh.told = ask_all(cluster, proxies).await;
        Ok(mesh)
    }

    /// Without asking the proxies.
    pub async fn listed(cluster: &Cluster, namespace: Option<&str>) -> Result<Self, Error> {
        let client = || cluster.client.clone();
        let everything = ListParams::default();
        let pods: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(client(), namespace),
            None => Api::all(client()),
        };
        let pods = cluster.list(&pods, &everything).await?;
        let namespaces: Api<Namespace> = Api::all(client());
        let namespaces = match namespace {
            Some(name) => cluster.get(&namespaces, name).await?.into_iter().collect(),
            None => cluster.list(&namespaces, &everything).await?,
        };
        let namespaces = mesh::by_name(namespaces);
        let pods = pods
            .into_iter()
            .map(|pod| {
                let namespace = namespaces.get(&pod.namespace().unwrap_or_default());
                let standing = Standing::of(&pod, namespace);
                (pod, standing)
            })
            .collect();
        Ok(Self {
            namespaces,
            pods,
            agents: Agents::find(cluster).await?,
            told: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_read_from_the_metrics() {
        let metrics = "# HELP duet_control_build_info 1\nduet_control_build_info{core=\"ab12\",version=\"0.1.0\"} 1\n";
        let build = Build::read(metrics).unwrap();
        assert_eq!(build.to_string(), "0.1.0 core=ab12");
        assert_eq!(Build::read("up 1\n"), None);
    }
}
