//! The mesh that is installed in a cluster, as far as a run has to know it.

use super::api::Kube;
use super::pods::{self, Observed, PROXY};
use super::quantity;
use crate::cluster::error::{ClusterError, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use std::time::Duration;

/// Where Duet lives.
pub const SYSTEM: &str = "duet-system";
/// The node proxies.
pub const AGENT: &str = "duet-agent";
/// How long a node proxy may take to be replaced.
const REPLACED: Duration = Duration::from_secs(90);

/// The node proxies' DaemonSet.
#[derive(Clone, Debug)]
pub struct AgentSet {
    /// Its pods' labels.
    pub selector: String,
    /// The container of the proxy.
    pub container: String,
    /// Its limits.
    pub limits: Given,
}

/// What one proxy may use; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Given {
    /// Requested, thousandths of a core: its weight among others.
    pub cpu_request_millis: Option<f64>,
    /// Thousandths of a core.
    pub cpu_millis: Option<f64>,
    /// Bytes.
    pub memory: Option<f64>,
}

impl Given {
    /// A container's limits.
    pub fn of(container: &Container) -> Self {
        let limit = |name: &str| {
            let limits = container.resources.as_ref()?.limits.as_ref()?;
            limits.get(name).map(|quantity| quantity.0.clone())
        };
        let request = || {
            let requests = container.resources.as_ref()?.requests.as_ref()?;
            requests.get("cpu").map(|quantity| quantity.0.clone())
        };
        Self {
            cpu_request_millis: request().and_then(|text| quantity::millis(&text)),
            cpu_millis: limit("cpu").and_then(|text| quantity::millis(&text)),
            memory: limit("memory").and_then(|text| quantity::units(&text)),
        }
    }

    /// Of the sidecar in a pod.
    pub fn of_sidecar(pod: &Pod) -> Option<Self> {
        pod.container(PROXY).map(Self::of)
    }
}

impl AgentSet {
    /// Looks for it; `None` where no node proxies are installed.
    pub fn find(kube: &Kube) -> Result<Option<Self>> {
        let sets: Api<DaemonSet> = Api::namespaced(kube.client.clone(), SYSTEM);
        let Some(set) = kube.ask("look for the node proxies", sets.get_opt(AGENT))? else {
            return Ok(None);
        };
        let spec = set.spec.unwrap_or_default();
        let labels = spec.selector.match_labels.unwrap_or_default();
        let selector: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let containers = spec.template.spec.unwrap_or_default().containers;
        let container = containers
            .iter()
            .find(|container| container.name == AGENT)
            .or(containers.first());
        Ok(Some(Self {
            selector: selector.join(","),
            container: container.map(|c| c.name.clone()).unwrap_or_default(),
            limits: container.map(Given::of).unwrap_or_default(),
        }))
    }

    /// Its pods.
    pub fn pods(&self, kube: &Kube) -> Result<Vec<Pod>> {
        pods::list(kube, SYSTEM, &self.selector)
    }

    /// Its pod on a node.
    pub fn pod_on(&self, kube: &Kube, node: &str) -> Result<Pod> {
        self.pods(kube)?
            .into_iter()
            .find(|pod| pod.on_node() == node && !pod.is_leaving())
            .ok_or_else(|| {
                ClusterError::Unsupported(format!(
                    "no pod of {SYSTEM}/{AGENT} is on {node}: `kubectl -n {SYSTEM} describe ds {AGENT}`"
                ))
            })
    }

    /// Replaces its pod on a node and waits until the new one is ready.
    pub fn replace_on(&self, kube: &Kube, node: &str) -> Result<()> {
        let old = self.pod_on(kube, node)?;
        let api: Api<Pod> = Api::namespaced(kube.client.clone(), SYSTEM);
        kube.ask(
            &format!("replace the agent on {node}"),
            api.delete(old.called(), &Default::default()),
        )?;
        let replaced = kube.look(REPLACED, || {
            let pods = self.pods(kube)?;
            let gone = pods.iter().all(|pod| pod.uid() != old.uid());
            let new = pods
                .iter()
                .find(|pod| pod.on_node() == node && !pod.is_leaving() && pod.uid() != old.uid());
            Ok((gone && new.is_some_and(Observed::is_ready)).then_some(()))
        })?;
        replaced.ok_or_else(|| ClusterError::Pod {
            pod: format!("{SYSTEM}/{}", old.called()),
            problem: format!("its successor is not ready after {REPLACED:?}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_limit_that_is_not_there_is_none() {
        let container: Container = serde_json::from_value(json!({
            "name": "x", "resources": {"limits": {"memory": "64Mi"}},
        }))
        .expect("a container");
        let given = Given::of(&container);
        assert_eq!(given.cpu_millis, None);
        assert_eq!(given.memory, Some(67_108_864.0));
    }
}
