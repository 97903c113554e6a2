//! The network: who has which address, and the links and routes between.
//!
//! ```text
//!   pod ── veth ── node 1 ── veth ── bridge in the control namespace ── veth ── node 2 ── veth ── pod
//! ```
//!
//! Pods hang on their node by point-to-point links with /32 and /128 routes, as
//! kindnet's and Calico's do, and not on a bridge: every packet of a pod, also
//! one to its neighbour on the same node, is *routed* by the node. Otherwise the
//! reply of a neighbour would take the short cut over the bridge, miss the
//! node's conntrack and arrive from an address that the client never dialled.
//! The nodes themselves are neighbours on a bridge, the wire of this data
//! centre, on which the control plane sits too.

use super::error::Result;
use super::netns::{Netns, Setting};
use super::process::run_tool;
use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Clusters are numbered below this, so that their networks stay within
/// 10.64.0.0/11, clear of the services' 10.96.0.0/16.
pub(crate) const MAX_CLUSTERS: u16 = 32;
/// The control plane's host number on the wire.
const CONTROL_HOST: u16 = 254;

/// The addresses of one cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// The cluster's number, below `MAX_CLUSTERS`.
    pub index: u16,
}

/// Both addresses of one party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// A pod's end of the network.
#[derive(Clone, Debug)]
pub(crate) struct PodLink {
    pub netns: Netns,
    pub node: u32,
    /// Unique on the node, from 2.
    pub host: u16,
}

// === impl Addresses ===

impl Addresses {
    fn pair(self, network: u16, host: u16) -> Pair {
        Pair {
            v4: Ipv4Addr::new(10, 64 + self.index as u8, network as u8, host as u8),
            v6: Ipv6Addr::new(0xfd71, self.index, network, 0, 0, 0, 0, host),
        }
    }

    pub(crate) fn pod(self, node: u32, host: u16) -> Pair {
        self.pair(node as u16, host)
    }

    /// The node's address on its pods' links.
    pub(crate) fn gateway(self, node: u32) -> Pair {
        self.pair(node as u16, 1)
    }

    /// The node's address on the wire.
    pub(crate) fn node(self, node: u32) -> Pair {
        self.pair(0, node as u16)
    }

    pub(crate) fn control(self) -> Pair {
        self.pair(0, CONTROL_HOST)
    }

    /// A service's virtual addresses, counted from 0.
    pub(crate) fn service(self, number: u16) -> Pair {
        let host = 10 + number;
        Pair {
            v4: Ipv4Addr::new(10, 96, self.index as u8, host as u8),
            v6: Ipv6Addr::new(0xfd96, self.index, 0, 0, 0, 0, 0, host),
        }
    }
}

/// Settings for every namespace of a cluster.
///
/// * congestion control is pinned, because the machine's default differs
///   (`cubic` where the machine allows it);
/// * ephemeral ports start above the mesh's own, so that no outgoing connection
///   ever takes a port on which a proxy wants to listen, and closed ones are
///   reused, because a new connection per request would run out of them;
/// * no metrics are remembered between connections: one block of a benchmark
///   must not inherit the congestion window of the block before.
pub(crate) fn settings() -> Vec<Setting> {
    vec![
        Setting::must("net/ipv4/tcp_congestion_control", *CONGESTION_CONTROL),
        Setting::must("net/ipv4/ip_local_port_range", "16384 65535"),
        Setting::may("net/ipv4/tcp_tw_reuse", "1"),
        Setting::may("net/ipv4/tcp_no_metrics_save", "1"),
        Setting::may("net/core/somaxconn", "4096"),
        Setting::must("net/ipv4/conf/all/rp_filter", "0"),
        Setting::must("net/ipv4/conf/default/rp_filter", "0"),
        Setting::must("net/ipv6/conf/all/disable_ipv6", "0"),
        Setting::must("net/ipv6/conf/default/disable_ipv6", "0"),
        Setting::must("net/ipv6/conf/all/accept_dad", "0"),
        Setting::must("net/ipv6/conf/default/accept_dad", "0"),
        Setting::must("net/ipv6/conf/default/accept_ra", "0"),
        Setting::may("net/bridge/bridge-nf-call-iptables", "0"),
        Setting::may("net/bridge/bridge-nf-call-ip6tables", "0"),
        Setting::may("net/bridge/bridge-nf-call-arptables", "0"),
    ]
}

/// The congestion control in every namespace of every cluster. A namespace may
/// only have what the machine allows unprivileged processes, and `cubic` is not
/// among that where another one was made the default.
pub static CONGESTION_CONTROL: LazyLock<&'static str> = LazyLock::new(|| {
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
    congestion_control(&allowed.unwrap_or_default())
});

fn congestion_control(allowed: &str) -> &'static str {
    if allowed.split_whitespace().any(|name| name == "cubic") {
        "cubic"
    } else {
        "reno"
    }
}

pub(crate) const ROUTER: [Setting; 2] = [
    Setting::must("net/ipv4/ip_forward", "1"),
    Setting::must("net/ipv6/conf/all/forwarding", "1"),
];

/// Makes namespaces, all at once.
pub(crate) fn make_namespaces(all: &[&Netns]) -> Result<()> {
    let mut batch = String::new();
    for netns in all {
        let _ = writeln!(batch, "netns add {}", netns.name());
    }
    run_tool("ip", &["-batch", "-"], &batch, None)?;
    let settings = settings();
    for netns in all {
        netns.set(&settings)?;
        let up = "link set lo up\n";
        run_tool("ip", &["-batch", "-"], up, Some(netns))?;
    }
    Ok(())
}

/// Removes namespaces; those that are not there are passed over.
pub(crate) fn remove_namespaces(names: &[String]) -> Result<()> {
    let mut batch = String::new();
    for name in names {
        let _ = writeln!(batch, "netns delete {name}");
    }
    run_tool("ip", &["-force", "-batch", "-"], &batch, None).map(drop)
}

/// The wire: a bridge in the control plane's namespace, with its address.
pub(crate) fn make_wire(addresses: Addresses, control: &Netns) -> Result<()> {
    let Pair { v4, v6 } = addresses.control();
    let batch = format!(
        "link add wire type bridge forward_delay 0 stp_state 0\n\
         link set wire up\n\
         addr add {v4}/24 dev wire\n\
         addr add {v6}/64 dev wire nodad\n\
         route add unreachable default\n\
         route add unreachable ::/0\n"
    );
    ip_batch(control, &batch)
}

/// Connects a node to the wire, and tells control plane and nodes the way to
/// its pods.
pub(crate) fn join_node(
    addresses: Addresses,
    control: &Netns,
    nodes: &[(u32, Netns)],
) -> Result<()> {
    let mut in_control = String::new();
    for (node, netns) in nodes {
        netns.set(&ROUTER)?;
        let _ = write!(
            in_control,
            "link add node-{node} type veth peer name eth0 netns {}\n\
             link set node-{node} master wire up\n",
            netns.name()
        );
    }
    control.set(&ROUTER)?;
    for (node, _) in nodes {
        in_control.push_str(&route_to_pods(addresses, *node));
    }
    ip_batch(control, &in_control)?;
    let gateway = addresses.control();
    for (node, netns) in nodes {
        let Pair { v4, v6 } = addresses.node(*node);
        let mut batch = format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {}\n\
             route add ::/0 via {}\n",
            gateway.v4, gateway.v6
        );
        for (other, _) in nodes.iter().filter(|(other, _)| other != node) {
            batch.push_str(&route_to_pods(addresses, *other));
        }
        ip_batch(netns, &batch)?;
    }
    Ok(())
}

fn route_to_pods(addresses: Addresses, node: u32) -> String {
    let pods = addresses.pod(node, 0);
    let via = addresses.node(node);
    format!(
        "route add {}/24 via {}\nroute add {}/64 via {}\n",
        pods.v4, via.v4, pods.v6, via.v6
    )
}

/// Hangs pods on one node.
pub(crate) fn join_pods(
    addresses: Addresses,
    node: u32,
    netns: &Netns,
    pods: &[&PodLink],
) -> Result<()> {
    let gateway = addresses.gateway(node);
    let mut in_node = String::new();
    for pod in pods {
        let Pair { v4, v6 } = addresses.pod(node, pod.host);
        let device = device(pod.host);
        let _ = write!(
            in_node,
            "link add {device} type veth peer name eth0 netns {}\n\
             addr add {}/32 dev {device}\n\
             addr add {}/128 dev {device} nodad\n\
             link set {device} up\n\
             route add {v4}/32 dev {device}\n\
             route add {v6}/128 dev {device}\n",
            pod.netns.name(),
            gateway.v4,
            gateway.v6,
        );
    }
    ip_batch(netns, &in_node)?;
    for pod in pods {
        let Pair { v4, v6 } = addresses.pod(node, pod.host);
        let batch = format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {gateway4}/32 dev eth0\n\
             route add default via {gateway4} src {v4}\n\
             route add {gateway6}/128 dev eth0\n\
             route add ::/0 via {gateway6} src {v6}\n",
            gateway4 = gateway.v4,
            gateway6 = gateway.v6,
        );
        ip_batch(&pod.netns, &batch)?;
    }
    Ok(())
}

/// Takes a pod off its node at once. The kernel takes its time to destroy a
/// namespace, and the device would stand in the way of the next pod.
pub(crate) fn leave_pod(node: &Netns, host: u16) -> Result<()> {
    ip_batch(node, &format!("link delete {}\n", device(host)))
}

/// A pod's device on its node.
fn device(host: u16) -> String {
    format!("pod{host}")
}

fn ip_batch(netns: &Netns, batch: &str) -> Result<()> {
    run_tool("ip", &["-batch", "-"], batch, Some(netns)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_and_nodes_do_not_overlap() {
        let first = Addresses { index: 0 };
        let last = Addresses {
            index: MAX_CLUSTERS - 1,
        };
        assert_eq!(first.pod(1, 2).v4, Ipv4Addr::new(10, 64, 1, 2));
        assert_eq!(first.gateway(2).v6.to_string(), "fd71:0:2::1");
        assert_eq!(last.control().v4, Ipv4Addr::new(10, 95, 0, 254));
        assert_eq!(last.service(0).v4, Ipv4Addr::new(10, 96, 31, 10));
        assert_ne!(first.service(3), last.service(3));
    }

    #[test]
    fn cubic_if_there_is_cubic() {
        assert_eq!(congestion_control("reno bbr cubic\n"), "cubic");
        assert_eq!(congestion_control("reno bbr\n"), "reno");
    }
}
