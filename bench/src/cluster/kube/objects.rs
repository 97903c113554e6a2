//! The objects that a run makes, as Kubernetes takes them.
//!
//! Everything carries the label by which `duet-bench clean` finds it, and the
//! pods are as a careful platform team would have them: no privileges, no token,
//! a user of their own.

use super::site::APP_PORT_NAME;
use crate::cluster::spec::{PodSpec, ServiceSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// On everything that a run makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const OURS: &str = "duet-bench";
/// Which run made it.
pub const RUN: &str = "duet.dev/bench-run";
/// Which bed of the run it belongs to.
pub const BED: &str = "duet.dev/bench-bed";
/// What the experiment calls it.
pub const POD: &str = "duet.dev/bench-pod";
/// Who answers for a run.
pub const OWNER: &str = "duet.dev/bench-owner";
/// Duet's own: where a pod's proxy stands.
pub const MODE: &str = "duet.dev/mode";
/// Duet's own: `classic` for an ordinary container.
pub const SIDECAR_KIND: &str = "duet.dev/sidecar-kind";

/// The container that serves.
pub const APP: &str = "app";
/// The container that generates load.
pub const LOAD: &str = "load";

/// The user of every application.
const UID: u32 = 65532;
/// How long applications may take to end.
const GRACE_S: u32 = 2;

/// Reads an object from JSON that this program has written.
pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the object's own fields")
}

/// A namespace of a run, with further labels.
pub fn namespace(name: &str, run: &str, owner: &str, labels: &[(&str, &str)]) -> Namespace {
    let mut all = BTreeMap::from([(MANAGED_BY, OURS), (RUN, run)]);
    all.extend(labels.iter().copied());
    object(json!({
        "metadata": {"name": name, "labels": all, "annotations": {OWNER: owner}},
    }))
}

/// Labels of what belongs to a bed.
pub fn labels(run: &str, bed: &str) -> Value {
    json!({MANAGED_BY: OURS, RUN: run, BED: bed})
}

/// A service account of a bed.
pub fn service_account(name: &str, labels: &Value) -> ServiceAccount {
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "automountServiceAccountToken": false,
    }))
}

/// A service of a bed: its pods are chosen by the names the experiment gave them.
pub fn service(spec: &ServiceSpec, name: &str, bed: &str, labels: &Value) -> Service {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let mut one = json!({
                "name": format!("p{}", port.port),
                "port": port.port,
                "targetPort": port.target_port,
            });
            if let Some(protocol) = &port.app_protocol {
                one["appProtocol"] = json!(protocol);
            }
            one
        })
        .collect();
    // An experiment's service has one pod behind it, or is selected by its own label.
    let pod = spec.pods.first().map_or("", String::as_str);
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {BED: bed, POD: pod}, "ports": ports},
    }))
}

/// How a pod of a bed is to be.
#[derive(Clone, Debug)]
pub struct PodWish<'a> {
    pub spec: &'a PodSpec,
    /// Its name in Kubernetes.
    pub name: String,
    pub account: String,
    pub node: &'a str,
    pub image: &'a str,
    pub labels: Value,
    /// It serves on this port; without, it generates load.
    pub serves: Option<u16>,
    /// CPU of the application, thousandths.
    pub app_cpu_millis: Option<u32>,
    /// Requested for the generator, thousandths: its weight among the others.
    pub load_cpu_millis: u32,
    /// The generator may have a real-time class.
    pub realtime: bool,
    pub annotations: BTreeMap<String, String>,
}

/// A pod of a bed.
pub fn pod(wish: &PodWish<'_>) -> Pod {
    let mut labels = wish.labels.clone();
    labels[POD] = json!(wish.spec.name);
    if !wish.spec.meshed {
        labels[MODE] = json!("none");
    }
    let container = match wish.serves {
        Some(port) => serving(wish, port),
        None => {
            let mut container = container(LOAD, wish.image, &["idle"]);
            if wish.realtime {
                // Only root keeps a capability through exec, so it is root with this one.
                container["securityContext"]["runAsNonRoot"] = json!(false);
                container["securityContext"]["runAsUser"] = json!(0);
                container["securityContext"]["capabilities"]["add"] = json!(["SYS_NICE"]);
            }
            container["resources"] =
                json!({"requests": {"cpu": format!("{}m", wish.load_cpu_millis)}});
            container
        }
    };
    object(json!({
        "metadata": {"name": wish.name, "labels": labels, "annotations": wish.annotations},
        "spec": pod_spec(wish.node, &wish.account, json!([container])),
    }))
}

fn serving(wish: &PodWish<'_>, port: u16) -> Value {
    let port_text = port.to_string();
    let mut container = container(
        APP,
        wish.image,
        &["serve", "--http", &port_text, "--pod", &wish.spec.name],
    );
    container["ports"] = json!([{"name": APP_PORT_NAME, "containerPort": port}]);
    // Asked until it answers once, and never again: nothing else loads the server.
    container["startupProbe"] = json!({
        "httpGet": {"path": "/", "port": port}, "periodSeconds": 1, "failureThreshold": 60,
    });
    container["resources"] = match wish.app_cpu_millis {
        Some(millis) => json!({
            "requests": {"cpu": "10m"}, "limits": {"cpu": format!("{millis}m")},
        }),
        None => json!({"requests": {"cpu": "10m"}}),
    };
    container
}

/// A container of duet-bench, without privileges.
pub fn container(name: &str, image: &str, arguments: &[&str]) -> Value {
    let command: Vec<&str> = ["/duet-bench"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    json!({
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// A pod of these containers on a node.
pub fn pod_spec(node: &str, account: &str, containers: Value) -> Value {
    json!({
        "nodeName": node,
        "serviceAccountName": account,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": UID, "runAsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
    })
}

/// The pod on a node through which a run reads the kernel's counters and
/// injects faults.
pub fn reader(name: &str, node: &str, image: &str, labels: &Value) -> Pod {
    object(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "nodeName": node,
            // Processes and packets of the whole node.
            "hostPID": true,
            "hostNetwork": true,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": LOAD,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/duet-bench", "idle"],
                "securityContext": {"privileged": true, "runAsUser": 0},
                "volumeMounts": [
                    {"name": "cgroups", "mountPath": CGROUPS, "mountPropagation": "HostToContainer"},
                    {"name": "bpf", "mountPath": BPF, "mountPropagation": "HostToContainer"},
                ],
            }],
            "volumes": [
                {"name": "cgroups", "hostPath": {"path": "/sys/fs/cgroup"}},
                {"name": "bpf", "hostPath": {"path": "/sys/fs/bpf"}},
            ],
        },
    }))
}

/// Where the node's control groups are in a reader.
pub const CGROUPS: &str = "/host/cgroup";
/// Where the node's BPF file system is in a reader.
pub const BPF: &str = "/host/bpf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_outside_the_mesh_says_so() {
        let spec = PodSpec::new("plain").meshed(false);
        let wish = PodWish {
            spec: &spec,
            name: "plain-b1".to_owned(),
            account: "default".to_owned(),
            node: "node-1",
            image: "duet/bench:dev",
            labels: labels("r", "b1"),
            serves: Some(8080),
            app_cpu_millis: Some(400),
            load_cpu_millis: 100,
            realtime: true,
            annotations: BTreeMap::new(),
        };
        let made = pod(&wish);
        let labels = made.metadata.labels.expect("labels");
        assert_eq!(labels[MODE], "none");
        assert_eq!(labels[MANAGED_BY], OURS);
        assert_eq!(labels[POD], "plain");
        let spec = made.spec.expect("a spec");
        let limits = spec.containers[0].resources.as_ref().expect("resources");
        assert_eq!(limits.limits.as_ref().expect("limits")["cpu"].0, "400m");
    }
}
