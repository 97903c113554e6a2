//! What a pod's own object says of its place in the mesh: where it should be by the
//! labels, where it is, and whether its proxy can take traffic.

use crate::cluster::SYSTEM;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod};
use kube::ResourceExt;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// On a namespace or a pod; the pod's wins.
pub const MODE: &str = "duet.dev/mode";
/// The webhook's stamp.
const PLACEMENT: &str = "duet.dev/placement";
/// The sidecar.
pub const PROXY: &str = "duet-proxy";
/// What redirects for it.
pub const INIT: &str = "duet-init";
/// On a static pod, which is its node's own.
const MIRROR: &str = "kubernetes.io/config.mirror";
const KUBE_SYSTEM: &str = "kube-system";
/// What an agent has told of the pod, as duet-control wrote it down.
const ENROLLED: &str = "duet.dev/enrolled";

/// Where a pod's proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    Sidecar,
    Agent,
    /// In no mesh.
    None,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub placement: Placement,
    /// What the labels ask for; an error names a value that asks for nothing known.
    pub wanted: Result<Placement, String>,
    /// Why its proxy takes no traffic.
    pub missing: Option<String>,
}

// === impl Placement ===

impl Placement {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Agent => "agent",
            Self::None => "none",
        }
    }

    fn read(value: &str) -> Option<Self> {
        [Self::Sidecar, Self::Agent, Self::None]
            .into_iter()
            .find(|one| one.as_str() == value)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Standing ===

impl Standing {
    pub fn of(pod: &Pod, namespace: Option<&Namespace>) -> Self {
        let wanted = wanted(pod, namespace);
        let placement = placement(pod, wanted.as_ref().ok().copied());
        let missing = match placement {
            Placement::None => None,
            _ if is_over(pod) => None,
            Placement::Sidecar => sidecar_missing(pod),
            Placement::Agent => agent_missing(pod),
        };
        Self {
            placement,
            wanted,
            missing,
        }
    }

    pub const fn is_meshed(&self) -> bool {
        !matches!(self.placement, Placement::None)
    }

    /// It is not what its labels ask for, and will be once it is made anew.
    pub fn needs_rollout(&self) -> bool {
        self.wanted
            .as_ref()
            .is_ok_and(|wanted| *wanted != self.placement)
    }
}

/// It has ended, or is about to: nobody waits for its proxy.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some()
}

/// By the labels alone.
fn wanted(pod: &Pod, namespace: Option<&Namespace>) -> Result<Placement, String> {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network);
    if host_network == Some(true) {
        return Ok(Placement::None);
    }
    let own = pod.labels().get(MODE);
    let label = own.or_else(|| namespace.and_then(|namespace| namespace.labels().get(MODE)));
    match label {
        None => Ok(Placement::None),
        Some(value) if value == "sidecar" && is_left_alone(pod) => Ok(Placement::None),
        Some(value) => Placement::read(value)
            .ok_or_else(|| format!("{MODE}: {value} is no mode: write sidecar, agent or none")),
    }
}

/// What the webhook passes over, though it is labelled.
fn is_left_alone(pod: &Pod) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    [SYSTEM, KUBE_SYSTEM].contains(&namespace) || pod.annotations().contains_key(MIRROR)
}

/// As it is: the stamp, a proxy's container, or the agents' live enrolment.
fn placement(pod: &Pod, wanted: Option<Placement>) -> Placement {
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        return Placement::None;
    }
    let stamp = pod.annotations().get(PLACEMENT);
    match stamp.and_then(|value| Placement::read(value)) {
        None | Some(Placement::None) => {}
        Some(stamped) => return stamped,
    }
    let has_proxy = spec.is_some_and(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers).any(|one| one.name == PROXY)
    });
    match wanted {
        _ if has_proxy => Placement::Sidecar,
        Some(Placement::Agent) => Placement::Agent,
        _ => Placement::None,
    }
}

fn sidecar_missing(pod: &Pod) -> Option<String> {
    if condition(pod, "Ready").is_some_and(|(status, _)| status == "True") {
        return None;
    }
    let Some(status) = container(pod, PROXY) else {
        return Some(format!("no container {PROXY} has been started"));
    };
    if status.started == Some(true) && status.state.as_ref().is_none_or(|s| s.terminated.is_none())
    {
        return None;
    }
    let why = [INIT, PROXY]
        .into_iter()
        .find_map(|name| Some(format!("{name}: {}", trouble(container(pod, name)?)?)));
    Some(why.unwrap_or_else(|| format!("{PROXY} has not started yet")))
}

fn agent_missing(pod: &Pod) -> Option<String> {
    match condition(pod, ENROLLED) {
        Some((status, _)) if status == "True" => None,
        Some((_, why)) if !why.is_empty() => Some(why),
        Some(_) => Some("its agent has not enrolled it".to_owned()),
        None => Some("no agent has said anything of it".to_owned()),
    }
}

/// A condition's status, and why.
fn condition(pod: &Pod, kind: &str) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|one| one.type_ == kind)?;
    let message = found.message.as_deref().filter(|text| !text.is_empty());
    let why = message.or(found.reason.as_deref()).unwrap_or_default();
    Some((found.status.clone(), why.to_owned()))
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    all.into_iter().find(|one| one.name == name)
}

/// Why a container does not run, if there is more to say than that it does not yet.
fn trouble(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let ended = state.terminated.as_ref();
    if let Some(ended) = ended.filter(|ended| ended.exit_code != 0) {
        let reason = ended.reason.as_deref().unwrap_or("Error");
        return Some(format!("{reason}, exit code {}", ended.exit_code));
    }
    let reason = state.waiting.as_ref()?.reason.as_deref()?;
    (!matches!(reason, "PodInitializing" | "ContainerCreating")).then(|| reason.to_owned())
}

/// By name.
pub fn by_name(namespaces: Vec<Namespace>) -> BTreeMap<String, Namespace> {
    namespaces
        .into_iter()
        .map(|namespace| (namespace.name_any(), namespace))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn namespace(mode: Option<&str>) -> Namespace {
        let labels = mode.map_or(json!({}), |mode| json!({ MODE: mode }));
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    }

    fn sidecar(started: bool, init: Value) -> Value {
        json!({
            "metadata": {"name": "web-0", "annotations": {PLACEMENT: "sidecar"}},
            "spec": {"containers": [], "initContainers": [{"name": "duet-init"}, {"name": PROXY}]},
            "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "duet-init", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": init},
                {"name": PROXY, "image": "", "imageID": "", "ready": started, "restartCount": 0, "started": started},
            ]},
        })
    }

    fn agent(conditions: Value) -> Value {
        json!({
            "metadata": {"name": "web-0"},
            "spec": {"containers": []},
            "status": {"phase": "Running", "conditions": conditions},
        })
    }

    #[test]
    fn a_pods_label_wins_and_the_host_network_is_never_meshed() {
        for (own, of_namespace, wanted) in [
            (None, None, Placement::None),
            (None, Some("agent"), Placement::Agent),
            (Some("sidecar"), Some("agent"), Placement::Sidecar),
            (Some("none"), Some("agent"), Placement::None),
        ] {
            let labels = own.map_or(json!({}), |mode| json!({ MODE: mode }));
            let mut spec = json!({"metadata": {"labels": labels}, "spec": {"containers": []}});
            let namespace = namespace(of_namespace);
            let standing = Standing::of(&pod(spec.clone()), Some(&namespace));
            assert_eq!(standing.wanted, Ok(wanted));
            spec["spec"]["hostNetwork"] = true.into();
            let standing = Standing::of(&pod(spec), Some(&namespace));
            assert_eq!(standing.wanted, Ok(Placement::None));
            assert_eq!(standing.placement, Placement::None);
        }
        let odd = Standing::of(&pod(agent(json!([]))), Some(&namespace(Some("ambient"))));
        assert!(odd.wanted.unwrap_err().contains("ambient"));
        assert_eq!(odd.placement, Placement::None);
    }

    #[test]
    fn what_the_webhook_passes_over_needs_no_rollout() {
        let mut bare = agent(json!([]));
        bare["metadata"]["annotations"] = json!({ MIRROR: "x" });
        let labelled = namespace(Some("sidecar"));
        assert!(!Standing::of(&pod(bare.clone()), Some(&labelled)).needs_rollout());
        bare["metadata"]["annotations"] = json!({});
        assert!(Standing::of(&pod(bare.clone()), Some(&labelled)).needs_rollout());
        bare["metadata"]["namespace"] = KUBE_SYSTEM.into();
        assert!(!Standing::of(&pod(bare), Some(&labelled)).needs_rollout());
    }

    #[test]
    fn relabelling_changes_nothing_for_pods_that_are_there() {
        let running = pod(sidecar(true, json!({})));
        let standing = Standing::of(&running, Some(&namespace(Some("agent"))));
        assert_eq!(standing.placement, Placement::Sidecar);
        assert!(standing.needs_rollout());
        assert_eq!(standing.missing, None);
        // But who was in no mode is enrolled where he is.
        let standing = Standing::of(&pod(agent(json!([]))), Some(&namespace(Some("agent"))));
        assert_eq!(standing.placement, Placement::Agent);
        assert!(!standing.needs_rollout());
        let standing = Standing::of(&pod(agent(json!([]))), Some(&namespace(Some("sidecar"))));
        assert_eq!(standing.placement, Placement::None);
        assert!(standing.needs_rollout());
    }

    #[test]
    fn what_a_sidecar_lacks() {
        let in_mode = namespace(Some("sidecar"));
        let missing = |value| Standing::of(&pod(value), Some(&in_mode)).missing;
        assert_eq!(missing(sidecar(true, json!({}))), None);
        assert_eq!(
            missing(sidecar(false, json!({}))).as_deref(),
            Some("duet-proxy has not started yet")
        );
        let pulls = json!({"waiting": {"reason": "ImagePullBackOff"}});
        assert_eq!(
            missing(sidecar(false, pulls)).as_deref(),
            Some("duet-init: ImagePullBackOff")
        );
        let failed = json!({"terminated": {"exitCode": 78, "reason": "Error"}});
        assert_eq!(
            missing(sidecar(false, failed)).as_deref(),
            Some("duet-init: Error, exit code 78")
        );
        let mut done = sidecar(false, json!({}));
        done["status"]["phase"] = "Succeeded".into();
        assert_eq!(missing(done), None, "nobody waits for it");
    }

    #[test]
    fn what_an_agent_said() {
        let in_mode = namespace(Some("agent"));
        let missing = |conditions| Standing::of(&pod(agent(conditions)), Some(&in_mode)).missing;
        let enrolled = |status, message| json!([{"type": ENROLLED, "status": status, "reason": "Failed", "message": message}]);
        assert_eq!(missing(enrolled("True", "")), None);
        assert_eq!(missing(enrolled("False", "")).as_deref(), Some("Failed"));
        assert_eq!(
            missing(enrolled("False", "no cgroup")).as_deref(),
            Some("no cgroup")
        );
        assert_eq!(
            missing(json!([])).as_deref(),
            Some("no agent has said anything of it")
        );
    }
}
