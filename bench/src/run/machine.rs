//! The machine's fingerprint.

use super::preflight::Binaries;
use crate::results::{Machine, Pressure, PressureLine};
use std::fs;

/// What can be read of this machine before a run.
pub fn fingerprint(binaries: &Binaries, cgroup_layout: &str) -> Machine {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after_colon = |text: &str, key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    Machine {
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: after_colon(&text("/proc/cpuinfo"), "model name")
            .unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory_mib: after_colon(&text("/proc/meminfo"), "MemTotal")
            .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            / 1024,
        cgroup_layout: cgroup_layout.to_owned(),
        congestion_control: crate::cluster::CONGESTION_CONTROL.to_owned(),
        scheduler: crate::cluster::GENERATOR_CLASS.to_owned(),
        governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
            .ok()
            .map(|text| text.trim().to_owned()),
        tls_suite: tls_suite(),
        rustc: env!("DUET_RUSTC").to_owned(),
        binaries: binaries.digests.clone(),
        pressure_before: pressure(),
        pressure_after: Pressure::default(),
        kubernetes: None,
    }
}

/// `/proc/pressure`, as it is now.
pub fn pressure() -> Pressure {
    let line = |name: &str| {
        let text = fs::read_to_string(format!("/proc/pressure/{name}")).ok()?;
        let average = |kind: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(kind))?
                .split_whitespace()
                .find_map(|field| field.strip_prefix("avg10="))?
                .parse()
                .ok()
        };
        Some(PressureLine {
            some: average("some")?,
            full: average("full"),
        })
    };
    Pressure {
        cpu: line("cpu"),
        memory: line("memory"),
        io: line("io"),
    }
}

/// The suite that two proxies agree on: the first of the provider that both are
/// built with, as neither changes its order.
fn tls_suite() -> String {
    rustls::crypto::aws_lc_rs::default_provider()
        .cipher_suites
        .first()
        .map_or_else(
            || "unknown".to_owned(),
            |suite| format!("{:?}", suite.suite()),
        )
}
