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
