//! What a pod is given with a sidecar: the container that redirects its connections,
//! the proxy, and the volume by which the proxy proves who it is.
//!
//! `duet-init` needs NET_ADMIN for as long as it takes to write one nftables table;
//! the proxy needs nothing and asks for nothing: it passes Pod Security's
//! `restricted`. Both have the same resources, so that a pod can be Guaranteed and a
//! quota finds what it asks for; the init container's cost nothing, because a pod is
//! charged for the larger of the two.

use super::annotations::{Settings, SidecarKind};
use super::config::{Amounts, Config};
use super::names::{self, HEALTH_PORT, METRICS_PORT, PROXY_UID};
use duet_core::capture::MESH_PORT;
use serde_json::{Map, Value, json};

/// Where the proxy finds its token and the roots it trusts.
const IDENTITY_DIR: &str = "/var/run/secrets/duet.dev";
const TOKEN_FILE: &str = "token";
/// Seconds. The kubelet renews it at 80 % of them.
const TOKEN_LIFETIME: u32 = 3600;
/// How often the kubelet asks whether the proxy is ready (seconds), while the
/// application waits for it and afterwards.
const STARTUP_PERIOD: u32 = 1;
const READINESS_PERIOD: u32 = 5;
/// How long the proxy may take to be ready the first time (seconds) before it is
/// started anew. It waits for duet-control, which that does not bring back sooner.
const STARTUP_PATIENCE: u32 = 600;
/// A proxy short of CPU is slow to answer, and would be slower after a restart.
const LIVENESS_TIMEOUT: u32 = 5;
/// Kubernetes' default of `terminationGracePeriodSeconds`.
const GRACE_PERIOD: i64 = 30;
/// How much of the grace period (seconds) is left to the proxy for ending, after its
/// connections have.
const FAREWELL: i64 = 5;
/// How long connections may outlive an application that has ended (seconds): a
/// native sidecar is told to stop after it (KEP-753).
const NATIVE_DRAIN: i64 = 25;

/// The init container that redirects.
pub fn redirect(settings: &Settings, config: &Config) -> Value {
    let mut env = Vec::new();
    for (name, list) in [
        (
            "DUET_EXCLUDE_OUTBOUND_PORTS",
            join(&settings.exclude_outbound_ports),
        ),
        (
            "DUET_EXCLUDE_INBOUND_PORTS",
            join(&settings.exclude_inbound_ports),
        ),
        ("DUET_EXCLUDE_UIDS", join(&settings.exclude_uids)),
    ] {
        if !list.is_empty() {
            env.push(json!({"name": name, "value": list}));
        }
    }
    let mut container = json!({
        "name": names::INIT_CONTAINER,
        "image": config.images.init,
        "imagePullPolicy": config.image_pull_policy.as_str(),
        "args": ["init"],
        "resources": resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        // So that what it says at its end is in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if !env.is_empty() {
        container["env"] = env.into();
    }
    container
}

/// The proxy of a pod with this `terminationGracePeriodSeconds`.
pub fn proxy(settings: &Settings, config: &Config, grace_period: Option<i64>) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let set = |name: &str, value: String| json!({"name": name, "value": value});
    let mut env = vec![
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        set("DUET_WORKLOAD", "$(POD_NAMESPACE)/$(POD_NAME)".to_owned()),
        field("DUET_NODE", "spec.nodeName"),
        set("DUET_CONTROL", config.control()),
        set(
            "DUET_TRUST_BUNDLE",
            format!("{IDENTITY_DIR}/{}", names::TRUST_BUNDLE_KEY),
        ),
        set("DUET_TOKEN_FILE", format!("{IDENTITY_DIR}/{TOKEN_FILE}")),
        set(
            "DUET_DRAIN_TIMEOUT",
            format!("{}s", drain_seconds(grace_period, settings.kind)),
        ),
        set("DUET_LOG", settings.log_level.clone()),
        set("DUET_ACCESS_LOG", settings.access_log.as_str().to_owned()),
    ];
    if settings.resources.limits.cpu.is_none() {
        // Without a limit it would take a thread for each of the node's cores.
        let request = settings.resources.requests.cpu.as_ref();
        let workers = request
            .map_or(1, super::quantity::Quantity::ceil)
            .clamp(1, 256);
        env.push(set("DUET_WORKERS", workers.to_string()));
    }
    let mut container = json!({
        "name": names::PROXY_CONTAINER,
        "image": config.images.sidecar,
        "imagePullPolicy": config.image_pull_policy.as_str(),
        "args": ["run"],
        "env": env,
        "ports": [
            {"name": "duet-mesh", "containerPort": MESH_PORT, "protocol": "TCP"},
            {"name": "duet-metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/live", "port": HEALTH_PORT},
            "timeoutSeconds": LIVENESS_TIMEOUT,
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": HEALTH_PORT},
            "periodSeconds": READINESS_PERIOD,
        },
        "resources": resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": names::IDENTITY_VOLUME, "mountPath": IDENTITY_DIR, "readOnly": true},
        ],
    });
    match settings.kind {
        SidecarKind::Native => {
            container["restartPolicy"] = "Always".into();
            if settings.wait {
                container["startupProbe"] = json!({
                    "httpGet": {"path": "/ready", "port": HEALTH_PORT},
                    "periodSeconds": STARTUP_PERIOD,
                    "failureThreshold": STARTUP_PATIENCE / STARTUP_PERIOD,
                });
            }
        }
        // The kubelet starts the next container when this hook has ended.
        SidecarKind::Classic if settings.wait => {
            container["lifecycle"] =
                json!({"postStart": {"exec": {"command": ["/duet-sidecar", "wait-ready"]}}});
        }
        SidecarKind::Classic => {}
    }
    container
}

/// The volume with the proxy's token and the roots it trusts.
pub fn identity() -> Value {
    json!({
        "name": names::IDENTITY_VOLUME,
        "projected": {
            "sources": [
                {"serviceAccountToken": {
                    "audience": names::TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_LIFETIME,
                    "path": TOKEN_FILE,
                }},
                {"configMap": {
                    "name": names::TRUST_BUNDLE,
                    "items": [{"key": names::TRUST_BUNDLE_KEY, "path": names::TRUST_BUNDLE_KEY}],
                }},
            ],
        },
    })
}

/// How long connections may live on after the proxy was told to stop.
fn drain_seconds(grace_period: Option<i64>, kind: SidecarKind) -> i64 {
    let grace = grace_period.unwrap_or(GRACE_PERIOD);
    let drain = if grace >= 2 * FAREWELL {
        grace - FAREWELL
    } else {
        (grace / 2).max(1)
    };
    match kind {
        SidecarKind::Native => drain.min(NATIVE_DRAIN),
        // Told at the same time as the application, which needs it to the end.
        SidecarKind::Classic => drain,
    }
}

fn resources(settings: &Settings) -> Value {
    let mut resources = Map::new();
    for (name, amounts) in [
        ("requests", &settings.resources.requests),
        ("limits", &settings.resources.limits),
    ] {
        let Amounts { cpu, memory } = amounts;
        let amounts: Map<_, _> = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(what, amount)| {
                Some((what.to_owned(), amount.as_ref()?.to_string().into()))
            })
            .collect();
        if !amounts.is_empty() {
            resources.insert(name.to_owned(), amounts.into());
        }
    }
    resources.into()
}

fn join<T: ToString>(list: &[T]) -> String {
    let words: Vec<_> = list.iter().map(ToString::to_string).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_drains_within_the_grace_period() {
        let native = |grace| drain_seconds(grace, SidecarKind::Native);
        assert_eq!(native(None), 25);
        assert_eq!(native(Some(20)), 15);
        assert_eq!(native(Some(3600)), 25, "its application has ended by then");
        assert_eq!(drain_seconds(Some(3600), SidecarKind::Classic), 3595);
        for grace in 2..10 {
            let drain = native(Some(grace));
            assert!((1..grace).contains(&drain), "{grace}: {drain}");
        }
        // There is no time at all, and the proxy takes no zero.
        assert_eq!(native(Some(0)), 1);
    }
}
