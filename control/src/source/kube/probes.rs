//! What a kubelet asks of a pod's containers, in plaintext and without an identity.
//!
//! Only what can be told apart from anybody else's question is listed: a proxy that
//! demands mTLS lets exactly these through. A probe over HTTPS cannot be looked
//! into, and one with a `host` goes elsewhere.

use duet_core::api::Probe;
use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, LifecycleHandler, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The questions that the kubelet has for `container`: its probes and hooks.
pub fn of(container: &Container) -> Vec<Probe> {
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    let mut found: Vec<Probe> = probes
        .into_iter()
        .flatten()
        .flat_map(|probe| {
            let http = probe.http_get.as_ref().and_then(|get| http(container, get));
            let tcp = probe.tcp_socket.as_ref();
            let tcp = tcp.and_then(|socket| tcp_socket(container, socket));
            [http, tcp, probe.grpc.as_ref().and_then(grpc)]
        })
        .flatten()
        .collect();
    let hooks = container.lifecycle.as_ref();
    let hooks = hooks.map(|life| [&life.post_start, &life.pre_stop]);
    for hook in hooks.into_iter().flatten().flatten() {
        let LifecycleHandler {
            http_get,
            tcp_socket: socket,
            ..
        } = hook;
        found.extend(http_get.as_ref().and_then(|get| http(container, get)));
        found.extend(
            socket
                .as_ref()
                .and_then(|socket| tcp_socket(container, socket)),
        );
    }
    found
}

fn http(container: &Container, get: &HTTPGetAction) -> Option<Probe> {
    let plain = get.scheme.as_deref().is_none_or(|scheme| scheme == "HTTP");
    if !plain || is_elsewhere(get.host.as_deref()) {
        return None;
    }
    // As the kubelet makes a URL of it.
    let path = get.path.as_deref().unwrap_or("/");
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    Some(Probe {
        port: port(container, &get.port)?,
        path: format!("{slash}{path}"),
        grpc: false,
    })
}

fn tcp_socket(container: &Container, socket: &TCPSocketAction) -> Option<Probe> {
    if is_elsewhere(socket.host.as_deref()) {
        return None;
    }
    Some(Probe {
        port: port(container, &socket.port)?,
        path: String::new(),
        grpc: false,
    })
}

fn grpc(action: &GRPCAction) -> Option<Probe> {
    Some(Probe {
        port: number(action.port)?,
        path: String::new(),
        grpc: true,
    })
}

fn is_elsewhere(host: Option<&str>) -> bool {
    host.is_some_and(|host| !host.is_empty())
}

/// A port by number, or by the name that the same container gives it.
fn port(container: &Container, port: &IntOrString) -> Option<u32> {
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| number(port.container_port))
            // The API server takes "8080" too, and so does the kubelet.
            .or_else(|| number(name.parse().ok()?)),
    }
}

fn number(port: i32) -> Option<u32> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .map(u32::from)
}
