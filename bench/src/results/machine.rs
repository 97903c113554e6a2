//! The machine's fingerprint: what a second run has to share to be comparable.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that could explain a difference and is not the arm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Model name from /proc/cpuinfo.
    pub cpu: String,
    /// Cores this run could use.
    pub cores: u32,
    pub memory_mib: u64,
    /// `v1`, `v2` or `hybrid`.
    pub cgroup_layout: String,
    /// Pinned in every namespace of the run.
    pub congestion_control: String,
    /// Scheduling class of the generator.
    pub scheduler: String,
    /// CPU frequency governor, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    pub tls_suite: String,
    /// `rustc --version` of the build.
    pub rustc: String,
    /// SHA-256 of each binary that took part, by file name.
    pub binaries: BTreeMap<String, String>,
    pub pressure_before: Pressure,
    pub pressure_after: Pressure,
    /// Where nodes and pods are Kubernetes'; what stands above is then of the first node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
}

/// A Kubernetes cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// "v1.36.2".
    pub version: String,
    /// Those that took part, in the order in which scenarios count them.
    pub nodes: Vec<KubernetesNode>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesNode {
    pub name: String,
    pub kernel: String,
    pub cpu: String,
    pub cores: u32,
    pub memory_mib: u64,
    pub cgroup_layout: String,
    /// "containerd://2.1.9".
    pub runtime: String,
    /// "Debian GNU/Linux 12 (bookworm)".
    pub system: String,
    /// The node that is the same machine, as where nodes are containers themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_machine_as: Option<String>,
    /// Its instants are known to within so much of another machine's; 0 on one machine.
    pub clock_uncertainty_us: f64,
}

/// /proc/pressure, `avg10` of each file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pressure {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<PressureLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<PressureLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<PressureLine>,
}

/// Per cent of the last ten seconds in which tasks waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PressureLine {
    pub some: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<f64>,
}

impl Machine {
    /// What differs between two machines so that times should not be compared, as
    /// "what: this against that".
    pub fn differences(&self, other: &Machine) -> Vec<String> {
        let rows = [
            ("kernel", &self.kernel, &other.kernel),
            ("CPU", &self.cpu, &other.cpu),
            ("cgroup layout", &self.cgroup_layout, &other.cgroup_layout),
            (
                "congestion control",
                &self.congestion_control,
                &other.congestion_control,
            ),
            (
                "scheduler of the generator",
                &self.scheduler,
                &other.scheduler,
            ),
            ("TLS suite", &self.tls_suite, &other.tls_suite),
        ];
        let mut found: Vec<String> = rows
            .iter()
            .filter(|(_, mine, theirs)| mine != theirs)
            .map(|(what, mine, theirs)| format!("{what}: {mine} against {theirs}"))
            .collect();
        let made_of = |machine: &Machine| match &machine.kubernetes {
            Some(kubernetes) => format!(
                "Kubernetes {} with {} nodes",
                kubernetes.version,
                kubernetes.nodes.len()
            ),
            None => "network namespaces".to_string(),
        };
        if made_of(self) != made_of(other) {
            found.push(format!(
                "nodes and pods: {} against {}",
                made_of(self),
                made_of(other)
            ));
        }
        if self.cores != other.cores {
            found.push(format!("cores: {} against {}", self.cores, other.cores));
        }
        // Firmware and kernels reserve a little differently from boot to boot.
        let (mine, theirs) = (self.memory_mib as f64, other.memory_mib as f64);
        if (mine - theirs).abs() > 0.05 * mine.max(theirs) {
            found.push(format!("memory: {mine} MiB against {theirs} MiB"));
        }
        found
    }
}
