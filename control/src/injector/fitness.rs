//! Pods that cannot be meshed, and pods in which the mesh is less than it looks.
//!
//! User namespaces (`hostUsers: false`) are no obstacle: NET_ADMIN holds for the pod's
//! own network namespace, and uids in its nftables rules are those of its user
//! namespace.

use super::annotations::{Settings, SidecarKind};
use super::names;
use duet_core::capture::{INBOUND_PORT, MESH_PORT, OUTBOUND_PORT};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Proxies of other meshes: they redirect the same connections.
const STRANGERS: [(&str, &str); 2] = [("istio-proxy", "Istio"), ("linkerd-proxy", "Linkerd")];
/// What an agent listens on in a pod.
const AGENT_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PORT, MESH_PORT];
/// What a sidecar listens on beside those.
const SIDECAR_PORTS: [u16; 3] = [names::ADMIN_PORT, names::METRICS_PORT, names::HEALTH_PORT];

/// Why no mesh can hold this pod. It is left alone.
pub fn outsider(pod: &PodTemplateSpec) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let annotations = pod.metadata.as_ref().and_then(|it| it.annotations.as_ref());
    if annotations.is_some_and(|all| all.contains_key(names::MIRROR)) {
        return Some("a static pod is its node's and not the API server's to change");
    }
    if spec.host_network == Some(true) {
        return Some("hostNetwork: its network is the node's, and so are its connections");
    }
    let is_windows = spec.os.as_ref().is_some_and(|os| os.name == "windows")
        || spec.node_selector.as_ref().is_some_and(|labels| {
            labels.get("kubernetes.io/os").map(String::as_str) == Some("windows")
        });
    is_windows.then_some("Duet redirects connections on Linux only")
}

/// Why this pod cannot have a proxy of its own, one line each.
pub fn unfit_for_sidecar(spec: &PodSpec) -> Vec<String> {
    let mut problems = unfit(spec, &[AGENT_PORTS, SIDECAR_PORTS].concat());
    let uid = Some(i64::from(names::PROXY_UID));
    let own = spec.security_context.as_ref().and_then(|it| it.run_as_user);
    let mut users = Vec::new();
    if own == uid {
        users.push("spec.securityContext.runAsUser".to_owned());
    }
    for (at, container) in containers(spec) {
        if container
            .security_context
            .as_ref()
            .and_then(|it| it.run_as_user)
            == uid
        {
            users.push(format!("{at}.securityContext.runAsUser"));
        }
    }
    if !users.is_empty() {
        problems.push(format!(
            "{}: {} is the proxy's user, whose connections are not redirected: choose another",
            users.join(", "),
            names::PROXY_UID
        ));
    }
    for (at, container) in containers(spec) {
        if [names::INIT_CONTAINER, names::PROXY_CONTAINER].contains(&container.name.as_str()) {
            problems.push(format!(
                "{at}: the name {} is the injector's: choose another",
                container.name
            ));
        }
    }
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    if let Some(at) = volumes
        .iter()
        .position(|it| it.name == names::IDENTITY_VOLUME)
    {
        problems.push(format!(
            "spec.volumes[{at}]: the name {} is the injector's: choose another",
            names::IDENTITY_VOLUME
        ));
    }
    problems
}

/// Why no agent can have this pod's connections, one line each.
pub fn unfit_for_agent(spec: &PodSpec) -> Vec<String> {
    let mut problems = unfit(spec, &AGENT_PORTS);
    for (at, container) in containers(spec) {
        if container.name == names::PROXY_CONTAINER {
            problems.push(format!(
                "{at}: a container named {} is taken for a sidecar: choose another name",
                container.name
            ));
        }
    }
    problems
}

fn unfit(spec: &PodSpec, taken: &[u16]) -> Vec<String> {
    let mut problems = Vec::new();
    for (at, container) in containers(spec) {
        if let Some((name, mesh)) = STRANGERS.iter().find(|(name, _)| container.name == *name) {
            problems.push(format!(
                "{at}: {name} redirects the pod's connections to {mesh}: take the pod out of one \
                 of the two meshes (label {}: none)",
                names::MODE
            ));
        }
        for (number, port) in container.ports.iter().flatten().enumerate() {
            let is_tcp = port.protocol.as_deref().is_none_or(|it| it == "TCP");
            let is_taken = taken
                .iter()
                .any(|one| i32::from(*one) == port.container_port);
            if is_tcp && is_taken {
                problems.push(format!(
                    "{at}.ports[{number}].containerPort: {} is the proxy's: choose another",
                    port.container_port
                ));
            }
        }
    }
    problems
}

/// What a pod's owner should know of it beside its sidecar, one line each.
pub fn reservations(spec: &PodSpec, settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    if spec.share_process_namespace == Some(true) {
        warnings.push(format!(
            "spec.shareProcessNamespace: containers that run as root or as uid {} can read the \
             proxy's key",
            names::PROXY_UID
        ));
    }
    if spec.dns_policy.as_deref() == Some("Default") {
        warnings.push(
            "spec.dnsPolicy: Default: the proxy finds duet-control only if the node's resolver \
             knows the cluster's names"
                .to_owned(),
        );
    }
    if is_guaranteed(spec) && !settings.resources.are_guaranteed() {
        warnings.push(format!(
            "the pod's QoS class is Burstable instead of Guaranteed: give the proxy limits, and \
             requests that equal them ({}, ...)",
            names::PROXY_CPU_LIMIT
        ));
    }
    if settings.kind == SidecarKind::Classic {
        if spec.init_containers.iter().flatten().next().is_some() {
            warnings.push(format!(
                "{}: classic: init containers have no network, because the proxy starts after them",
                names::SIDECAR_KIND
            ));
        }
        if spec
            .restart_policy
            .as_deref()
            .is_some_and(|it| it != "Always")
        {
            warnings.push(format!(
                "{}: classic: the pod does not end with its application, because the proxy goes on",
                names::SIDECAR_KIND
            ));
        }
    }
    warnings
}

/// Kubernetes' own rule: every container has limits of CPU and memory, and no
/// request that differs from them.
fn is_guaranteed(spec: &PodSpec) -> bool {
    let empty = BTreeMap::new();
    spec.resources.is_none()
        && containers(spec).all(|(_, container)| {
            let resources = container.resources.as_ref();
            let limits = resources
                .and_then(|it| it.limits.as_ref())
                .unwrap_or(&empty);
            let requests = resources
                .and_then(|it| it.requests.as_ref())
                .unwrap_or(&empty);
            ["cpu", "memory"].iter().all(|what| {
                limits.get(*what).is_some_and(|limit| {
                    requests
                        .get(*what)
                        .is_none_or(|request| equal(request, limit))
                })
            })
        })
}

fn equal(a: &Quantity, b: &Quantity) -> bool {
    let parse = |it: &Quantity| it.0.parse::<super::quantity::Quantity>();
    matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if a.equals(&b))
}

/// All containers with their places, "spec.initContainers[0]".
fn containers(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let inits = spec.init_containers.iter().flatten().enumerate();
    let inits = inits.map(|(at, it)| (format!("spec.initContainers[{at}]"), it));
    let others = spec.containers.iter().enumerate();
    inits.chain(others.map(|(at, it)| (format!("spec.containers[{at}]"), it)))
}
