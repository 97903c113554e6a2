//! What a cluster is asked to be: where the proxies stand, which pods and
//! services there are, and what each party may use. Pure data.

use std::fmt;

/// Where the mesh's proxies stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// No mesh: the workload alone, the same network.
    None,
    /// One proxy in every meshed pod.
    Sidecar,
    /// One proxy on every node.
    Agent,
}

/// What applications and proxies may use. `None` writes no limit at all: a CPU
/// quota costs latency by throttling, so there is one only if asked for.
///
/// Proxies are limited by their *sum* on a node, so that both placements are
/// given the same: the agent gets all of it, sidecars share it evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU of each pod's application, in thousandths of a core.
    pub app_cpu_millis: Option<u32>,
    /// Memory of each pod's application, in bytes.
    pub app_memory: Option<u64>,
    /// CPU of all proxies of one node together, in thousandths of a core.
    pub proxy_total_cpu_millis: Option<u32>,
    /// Memory of all proxies of one node together, in bytes.
    pub proxy_total_memory: Option<u64>,
}

/// One row of the table that shows that the placements were given the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParityRow {
    pub label: &'static str,
    /// What each proxy got, e.g. `250m`.
    pub per_proxy: String,
    /// How many proxies that is, on one node.
    pub proxies: u32,
    /// What that makes together, on one node.
    pub sum: String,
}

/// A pod to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) node: u32,
    pub(crate) meshed: bool,
    pub(crate) strict: bool,
    pub(crate) announced: bool,
    pub(crate) opaque_ports: Vec<u16>,
}

/// A service to be made: one virtual address per family, shared by its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) pods: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub port: u16,
    pub target_port: u16,
    /// Kubernetes' `appProtocol`; absent: the proxies detect it.
    pub app_protocol: Option<String>,
}

// === impl Placement ===

impl Placement {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sidecar => "sidecar",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Limits ===

impl Limits {
    /// How many proxies share a node's sum.
    pub fn proxies_per_node(placement: Placement, meshed_pods: u32) -> u32 {
        match placement {
            Placement::None => 0,
            Placement::Sidecar => meshed_pods,
            Placement::Agent => 1,
        }
    }

    /// CPU of one proxy where `proxies` of them stand on a node.
    pub fn proxy_cpu_millis(&self, proxies: u32) -> Option<u32> {
        Some(self.proxy_total_cpu_millis? / proxies.max(1))
    }

    /// Memory of one proxy where `proxies` of them stand on a node.
    pub fn proxy_memory(&self, proxies: u32) -> Option<u64> {
        Some(self.proxy_total_memory? / u64::from(proxies.max(1)))
    }

    /// What one node's proxies and applications get, row by row.
    pub fn parity(&self, placement: Placement, meshed_pods_per_node: u32) -> Vec<ParityRow> {
        let proxies = Self::proxies_per_node(placement, meshed_pods_per_node);
        let cpu = |millis: Option<u32>| millis.map_or("no limit".to_owned(), |m| format!("{m}m"));
        let memory = |bytes: Option<u64>| {
            bytes.map_or("no limit".to_owned(), |b| {
                format!("{:.1} MiB", b as f64 / (1024.0 * 1024.0))
            })
        };
        let row = |label, per_proxy, sum| ParityRow {
            label,
            per_proxy,
            proxies,
            sum,
        };
        vec![
            row(
                "proxy CPU limit per node",
                cpu(self.proxy_cpu_millis(proxies)),
                cpu(self.proxy_cpu_millis(proxies).map(|each| each * proxies)),
            ),
            row(
                "proxy memory limit per node",
                memory(self.proxy_memory(proxies)),
                memory(
                    self.proxy_memory(proxies)
                        .map(|each| each * u64::from(proxies)),
                ),
            ),
        ]
    }
}

// === impl PodSpec ===

impl PodSpec {
    /// A meshed pod on node 1, in namespace and service account `default`,
    /// permissive, with detection on every port.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            node: 1,
            meshed: true,
            strict: false,
            announced: true,
            opaque_ports: Vec::new(),
        }
    }

    /// Nodes are numbered from 1.
    pub fn node(mut self, node: u32) -> Self {
        self.node = node;
        self
    }

    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    pub fn service_account(mut self, service_account: impl Into<String>) -> Self {
        self.service_account = service_account.into();
        self
    }

    /// False: the pod has no proxy and is not enrolled, whatever the placement.
    pub fn meshed(mut self, meshed: bool) -> Self {
        self.meshed = meshed;
        self
    }

    /// Only mTLS is let in.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// The mesh forgets about its proxy once that is ready: nobody speaks mTLS to it.
    pub fn unannounced(mut self) -> Self {
        self.announced = false;
        self
    }

    /// Ports on which nothing is detected.
    pub fn opaque_ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.opaque_ports = ports.into_iter().collect();
        self
    }
}

// === impl ServiceSpec ===

impl ServiceSpec {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: "default".to_owned(),
            ports: Vec::new(),
            pods: Vec::new(),
        }
    }

    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    pub fn port(mut self, port: u16, target_port: u16) -> Self {
        self.ports.push(ServicePort {
            port,
            target_port,
            app_protocol: None,
        });
        self
    }

    /// A port whose protocol is declared: `http`, `kubernetes.io/h2c`, `grpc`
    /// or `tcp`.
    pub fn port_as(mut self, port: u16, target_port: u16, app_protocol: &str) -> Self {
        self.ports.push(ServicePort {
            port,
            target_port,
            app_protocol: Some(app_protocol.to_owned()),
        });
        self
    }

    /// The pods behind it, by name.
    pub fn pods<S: Into<String>>(mut self, pods: impl IntoIterator<Item = S>) -> Self {
        self.pods = pods.into_iter().map(Into::into).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_together_get_what_the_agent_gets() {
        let limits = Limits {
            proxy_total_cpu_millis: Some(1000),
            proxy_total_memory: Some(256 << 20),
            ..Limits::default()
        };
        let sidecar = limits.parity(Placement::Sidecar, 4);
        let agent = limits.parity(Placement::Agent, 4);
        assert_eq!(sidecar[0].per_proxy, "250m");
        for (s, a) in sidecar.iter().zip(&agent) {
            assert_eq!(s.sum, a.sum);
        }
    }

    #[test]
    fn without_limits_nothing_is_written() {
        assert_eq!(Limits::default().proxy_cpu_millis(3), None);
        assert_eq!(
            Limits::default().parity(Placement::Agent, 3)[0].sum,
            "no limit"
        );
    }
}
