//! Pods as Kubernetes reports them, and waiting until they are what one wants.

use super::api::Kube;
use crate::cluster::error::{ClusterError, Result};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use kube::Api;
use kube::api::ListParams;
use std::time::Duration;

/// The container of a sidecar's proxy.
pub const PROXY: &str = "duet-proxy";

/// Reasons for waiting that do not go away by themselves.
const HOPELESS: [&str; 6] = [
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// What is read of a pod's status.
pub trait Observed {
    /// Its name.
    fn called(&self) -> &str;
    /// Its uid.
    fn uid(&self) -> &str;
    /// Its node.
    fn on_node(&self) -> &str;
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    fn phase(&self) -> &str;
    /// Whether its condition `Ready` is true.
    fn is_ready(&self) -> bool;
    /// Whether it is being deleted.
    fn is_leaving(&self) -> bool;
    /// Statuses of all its containers, also of those that come first.
    fn statuses(&self) -> Vec<&ContainerStatus>;
    /// The status of a container.
    fn status_of(&self, container: &str) -> Option<&ContainerStatus>;
    /// A container's id, without its runtime's name.
    fn container_id(&self, container: &str) -> Option<&str>;
    /// A container as it was asked for.
    fn container(&self, name: &str) -> Option<&Container>;
    /// Why it is not ready, in a few words.
    fn missing(&self) -> String;
    /// A reason for which it never will be.
    fn hopeless(&self) -> Option<String>;
}

impl Observed for Pod {
    fn called(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn on_node(&self) -> &str {
        self.spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .unwrap_or_default()
    }

    fn phase(&self) -> &str {
        self.status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .unwrap_or("Pending")
    }

    fn is_ready(&self) -> bool {
        let conditions = self
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref());
        conditions
            .unwrap_or_default()
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    fn is_leaving(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn statuses(&self) -> Vec<&ContainerStatus> {
        let Some(status) = &self.status else {
            return Vec::new();
        };
        [&status.init_container_statuses, &status.container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .collect()
    }

    fn status_of(&self, container: &str) -> Option<&ContainerStatus> {
        self.statuses()
            .into_iter()
            .find(|status| status.name == container)
    }

    fn container_id(&self, container: &str) -> Option<&str> {
        let id = self.status_of(container)?.container_id.as_deref()?;
        Some(id.split_once("://").map_or(id, |(_, id)| id))
    }

    fn container(&self, name: &str) -> Option<&Container> {
        let spec = self.spec.as_ref()?;
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .find(|container| container.name == name)
    }

    fn missing(&self) -> String {
        if let Some(waiting) = self.statuses().iter().find_map(|status| {
            let waiting = status.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            let message = waiting.message.as_deref().unwrap_or_default();
            // A pod whose first container is being made says this of all of them.
            (reason != "PodInitializing" && reason != "ContainerCreating")
                .then(|| format!("container {}: {reason} {message}", status.name))
        }) {
            return one_line(&waiting);
        }
        let status = self.status.as_ref();
        if let Some(message) = status.and_then(|status| status.message.as_deref()) {
            return one_line(message);
        }
        let unmet: Vec<String> = status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default()
            .iter()
            .filter(|condition| condition.status != "True" && condition.type_ != "Ready")
            .map(|condition| {
                let why = condition
                    .message
                    .as_deref()
                    .or(condition.reason.as_deref())
                    .unwrap_or("no reason given");
                format!("{}: {why}", condition.type_)
            })
            .collect();
        if unmet.is_empty() {
            format!("it is {}", self.phase())
        } else {
            one_line(&unmet.join("; "))
        }
    }

    fn hopeless(&self) -> Option<String> {
        if self.phase() == "Failed" {
            return Some(self.missing());
        }
        self.statuses().iter().find_map(|status| {
            let waiting = status.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref()?;
            HOPELESS.contains(&reason).then(|| {
                let message = waiting.message.as_deref().unwrap_or_default();
                let remedy = if reason.contains("Image") {
                    format!(
                        "; put image {} where the nodes find it, or name another with --image",
                        status.image
                    )
                } else {
                    String::new()
                };
                one_line(&format!(
                    "container {}: {reason} {message}{remedy}",
                    status.name
                ))
            })
        })
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The pods of a namespace that a selector chooses.
pub fn list(kube: &Kube, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(kube.client.clone(), namespace);
    let parameters = ListParams::default().labels(selector);
    Ok(kube
        .ask(
            &format!("list the pods of {namespace}"),
            pods.list(&parameters),
        )?
        .items)
}

/// Waits until as many pods as `expected` are chosen and all are `good`.
pub fn await_all(
    kube: &Kube,
    namespace: &str,
    selector: &str,
    expected: usize,
    within: Duration,
    good: impl Fn(&Pod) -> bool,
) -> Result<Vec<Pod>> {
    let mut last: Option<Pod> = None;
    let found = kube.look(within, || {
        let pods: Vec<Pod> = list(kube, namespace, selector)?
            .into_iter()
            .filter(|pod| !pod.is_leaving())
            .collect();
        for pod in pods.iter().filter(|pod| !good(pod)) {
            if let Some(problem) = pod.hopeless() {
                return Err(ClusterError::Pod {
                    pod: format!("{namespace}/{}", pod.called()),
                    problem,
                });
            }
        }
        last = pods.iter().find(|pod| !good(pod)).cloned();
        Ok((pods.len() >= expected && last.is_none()).then_some(pods))
    })?;
    found.ok_or_else(|| ClusterError::Pod {
        pod: match &last {
            Some(pod) => format!("{namespace}/{}", pod.called()),
            None => format!("{namespace}/*"),
        },
        problem: format!(
            "not ready after {} s: {}",
            within.as_secs(),
            last.map_or("it was not made".to_owned(), |pod| pod.missing())
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).expect("a pod")
    }

    #[test]
    fn an_image_that_is_not_there_is_no_reason_to_wait() {
        let stuck = pod(json!({
            "phase": "Pending",
            "containerStatuses": [{
                "name": "load", "image": "duet/bench:none", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "not\nfound"}},
            }],
        }));
        let why = stuck.hopeless().expect("hopeless");
        assert!(
            why.contains("duet/bench:none") && why.contains("--image"),
            "{why}"
        );
        assert!(!why.contains('\n'));
    }

    #[test]
    fn a_container_is_found_wherever_it_stands() {
        let meshed = pod(json!({
            "conditions": [{"type": "Ready", "status": "True"}],
            "initContainerStatuses": [{
                "name": PROXY, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "containerd://0ab",
            }],
        }));
        assert_eq!(meshed.container_id(PROXY), Some("0ab"));
        assert_eq!(meshed.container_id("app"), None);
        assert!(meshed.is_ready() && meshed.hopeless().is_none());
    }

    #[test]
    fn what_is_missing_is_named() {
        let waiting = pod(json!({
            "phase": "Running",
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
                {"type": "duet.dev/enrolled", "status": "False", "message": "no agent on node-1"},
            ],
        }));
        assert_eq!(waiting.missing(), "duet.dev/enrolled: no agent on node-1");
    }
}
