//! Whom a command is about: a pod, or the pods of a Deployment and its like.

use crate::cluster::{Cluster, Error};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::ListParams;
use kube::core::Selector;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Deployment,
    StatefulSet,
    DaemonSet,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Target<'a> {
    kind: Kind,
    name: &'a str,
}

impl<'a> Target<'a> {
    /// As kubectl takes them: `web-0`, `pod/web-0`, `deploy/web`.
    pub fn read(text: &'a str) -> Result<Self, Error> {
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        let kind = match kind {
            "pod" | "pods" | "po" => Kind::Pod,
            "deploy" | "deployment" | "deployments" => Kind::Deployment,
            "sts" | "statefulset" | "statefulsets" => Kind::StatefulSet,
            "ds" | "daemonset" | "daemonsets" => Kind::DaemonSet,
            _ => {
                return Err(Error::Usage(format!(
                    "{text:?}: write POD, deploy/NAME, sts/NAME or ds/NAME"
                )));
            }
        };
        if name.is_empty() || name.contains('/') {
            return Err(Error::Usage(format!("{text:?} names no object")));
        }
        Ok(Self { kind, name })
    }

    /// Its pods; at least one.
    pub async fn pods(&self, cluster: &Cluster, namespace: &str) -> Result<Vec<Pod>, Error> {
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let name = self.name;
        let missing = |kind: &str| {
            Error::NotFound(format!(
                "there is no {kind} {name} in namespace {namespace}"
            ))
        };
        let client = cluster.client.clone();
        let selector = match self.kind {
            Kind::Pod => {
                let pod = cluster.get(&api, name).await?;
                return Ok(vec![pod.ok_or_else(|| missing("pod"))?]);
            }
            Kind::Deployment => {
                let owners: Api<Deployment> = Api::namespaced(client, namespace);
                let owner = cluster.get(&owners, name).await?;
                owner
                    .ok_or_else(|| missing("Deployment"))?
                    .spec
                    .map(|spec| spec.selector)
            }
            Kind::StatefulSet => {
                let owners: Api<StatefulSet> = Api::namespaced(client, namespace);
                let owner = cluster.get(&owners, name).await?;
                owner
                    .ok_or_else(|| missing("StatefulSet"))?
                    .spec
                    .map(|spec| spec.selector)
            }
            Kind::DaemonSet => {
                let owners: Api<DaemonSet> = Api::namespaced(client, namespace);
                let owner = cluster.get(&owners, name).await?;
                owner
                    .ok_or_else(|| missing("DaemonSet"))?
                    .spec
                    .map(|spec| spec.selector)
            }
        };
        let pods = cluster
            .list(&api, &selecting(selector.unwrap_or_default())?)
            .await?;
        if pods.is_empty() {
            return Err(Error::NotFound(format!(
                "{}/{name} in namespace {namespace} has no pods",
                self.kind.as_str()
            )));
        }
        Ok(pods)
    }
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
        }
    }
}

/// The pods of a workload.
pub fn selecting(selector: LabelSelector) -> Result<ListParams, Error> {
    let selector: Selector = selector
        .try_into()
        .map_err(|error| Error::Api(format!("a selector that cannot be read: {error}")))?;
    Ok(ListParams::default().labels_from(&selector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_kubectl_reads_them() {
        let read = |text| {
            Target::read(text)
                .ok()
                .map(|target| (target.kind, target.name))
        };
        assert_eq!(read("web-0"), Some((Kind::Pod, "web-0")));
        assert_eq!(read("po/web-0"), Some((Kind::Pod, "web-0")));
        assert_eq!(read("deployment/web"), Some((Kind::Deployment, "web")));
        assert_eq!(read("sts/db"), Some((Kind::StatefulSet, "db")));
        for wrong in ["job/x", "deploy/", "a/b/c", ""] {
            let error = Target::read(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{wrong}: {error}");
        }
    }
}
