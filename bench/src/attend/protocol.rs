//! What is asked of an attendant, and what it says: one JSON object per line, in
//! base64.
//!
//! The way to a container's standard input leads over the node's own loopback in
//! the clear. What a capture looks for must not be seen there because somebody was
//! told to look for it, so lines are encoded.
//!
//! Times are nanoseconds of the attendant's own CLOCK_MONOTONIC, which is that of
//! every container on its node. Containers are named by the id that their runtime
//! gave them, pods by their uid.

use crate::accounting::{BpfUse, Certified, CpuPressure, MachineCpu, Rollup};
use crate::cluster::{Life, MemoryUsage};
use crate::load::LoadReport;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A line that an attendant reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Repeated in the reply; some questions refer to an earlier one by it.
    pub id: u64,
    /// What is wanted.
    pub ask: Ask,
}

/// A line that an attendant writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Of the question.
    pub id: u64,
    /// What became of it.
    pub said: Result<serde_json::Value, String>,
}

/// Everything that can be asked, and by which type it is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Who are you? → [`Hello`]
    Hello,
    /// What time is it? → `u64`
    Clock,
    /// The machine's processors since boot → [`MachineCpu`]
    Machine,

    /// Run `duet-bench load` with these arguments → [`LoadReport`]
    Load {
        /// Without the window's beginning.
        arguments: Vec<String>,
        /// When the window begins.
        begin_ns: u64,
    },
    /// Run `duet-bench` with these arguments → `String`, what it printed
    Run {
        /// Without the window's beginning.
        arguments: Vec<String>,
        /// When that is, if there is one.
        begin_ns: Option<u64>,
    },
    /// Whether loads can have a real-time class here → `bool`
    Realtime,
    /// End a load's window early → `()`
    StopLoad {
        /// The question that began it.
        load: u64,
    },
    /// Ask an HTTP server until it answers → [`crate::attend::Reached`]
    Reach {
        /// `http://address:port/path`
        url: String,
        /// How long to try.
        within_ms: u64,
    },

    /// Counters of machine, proxies and pods → [`Look`]
    Look {
        /// When to look; at once without it.
        at_ns: Option<u64>,
        /// Containers that are proxies.
        proxies: Vec<String>,
        /// The generator's container.
        generator: Option<String>,
        /// All pods of the cluster.
        pods: Vec<String>,
        /// Kernel programs, too.
        programs: bool,
    },
    /// Take the attendants in these containers out of groups that no real-time class is
    /// let into → `()`
    Unbind {
        /// Containers.
        containers: Vec<String>,
    },
    /// Processor time of proxies since they started, ns → `u64`
    Ran {
        /// Their containers.
        containers: Vec<String>,
    },
    /// What proxies hold → `Vec<`[`Held`]`>`
    Holdings {
        /// Their containers.
        containers: Vec<String>,
    },
    /// Whom the kernel charges for proxies → `Vec<`[`Charged`]`>`
    Charges {
        /// Their containers.
        containers: Vec<String>,
        /// Pods that may pay.
        pods: Vec<String>,
    },
    /// What there is of the mesh on the node → [`crate::cluster::Belongings`]
    Belongings {
        /// The proxies' containers.
        containers: Vec<String>,
        /// Maps of kernel programs, too.
        programs: bool,
    },
    /// GET from a container's loopback → [`Page`]
    Get {
        /// In whose network namespace.
        container: String,
        /// On 127.0.0.1.
        port: u16,
        /// Begins with a slash.
        path: String,
    },
    /// Time BPF programs, or no longer → `()`
    BpfStats {
        /// On or off.
        on: bool,
    },

    /// SIGKILL a proxy and watch what becomes of it → `u64`, when that was
    Kill {
        /// Its container.
        container: String,
        /// Its program, as the kernel names it.
        program: String,
        /// Kill each successor, too, until released.
        hold: bool,
        /// Workloads for which the successor must hold a certificate to count as
        /// ready; none for a sidecar.
        workloads: Vec<String>,
    },
    /// SIGSTOP a proxy, or SIGCONT it → `u64`, when that was
    Pause {
        /// Its container.
        container: String,
        /// Whether it is to go on.
        over: bool,
    },
    /// Lower a proxy's memory limit and watch what becomes of it → [`Limited`]
    Starve {
        /// Its container.
        container: String,
        /// Its program, as the kernel names it.
        program: String,
        /// Bytes beyond what it uses now.
        headroom: u64,
        /// As with [`Ask::Kill`].
        workloads: Vec<String>,
    },
    /// Whether the killed proxy is dead → `bool`
    Dead {
        /// The question that killed it.
        kill: u64,
        /// How long to wait for it.
        within_ms: u64,
    },
    /// The killed proxy and its successor, once that is ready → [`Succession`]
    Lives {
        /// The question that killed it.
        kill: u64,
        /// How long to wait for it.
        within_ms: u64,
    },
    /// Kill no more successors, watch no longer → `()`
    Release {
        /// The question that killed it.
        kill: u64,
    },
    /// When the last process of each container is gone → `BTreeMap<String, u64>`
    Ends {
        /// By name.
        containers: BTreeMap<String, String>,
        /// How long to wait.
        within_ms: u64,
    },

    /// Watch all interfaces for markers → `()`
    Capture {
        /// What to look for.
        markers: Vec<String>,
    },
    /// End a capture → [`crate::cluster::CaptureReport`]
    EndCapture {
        /// The question that began it.
        capture: u64,
    },
    /// What a proxy's process may do → [`crate::accounting::Privileges`]
    Privileges {
        /// Its container.
        container: String,
    },
    /// Search a proxy's memory → [`crate::accounting::KeyScan`]
    Scan {
        /// Its container.
        container: String,
        /// Whose keys.
        known: Vec<Certified>,
        /// How long it may take.
        limit_ms: u64,
    },
    /// Search a process that holds a known key → `bool`
    ScanControl {
        /// Keys that must not be found.
        known: Vec<Certified>,
        /// How long it may take.
        limit_ms: u64,
    },
}

/// An attendant and its machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Of duet-bench.
    pub version: String,
    /// Core's fingerprint.
    pub core: String,
    /// Optimisation level.
    pub opt_level: String,
    /// Changes with every boot: two nodes with the same one are one machine.
    pub boot: String,
    /// `uname -r`
    pub kernel: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Cores.
    pub cores: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Layout of the control groups; absent where they cannot be seen.
    pub cgroups: Option<String>,
    /// Of TCP.
    pub congestion_control: String,
    /// SHA-256 of the program.
    pub digest: String,
}

/// One look at a node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Look {
    /// When it was taken.
    pub at_ns: u64,
    /// All of the machine.
    pub machine: MachineCpu,
    /// Waiting for processors.
    pub pressure: Option<CpuPressure>,
    /// Periods in which the generator was held back.
    pub generator_throttled: u64,
    /// Processor time of the proxies, µs.
    pub proxies_us: u64,
    /// Periods in which proxies were held back.
    pub proxies_throttled: u64,
    /// Processor time of the pods, µs.
    pub pods_us: u64,
    /// Kernel programs.
    pub bpf: BpfUse,
}

/// What a proxy holds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// Its process's memory.
    pub rollup: Rollup,
    /// Its open file descriptors.
    pub open_files: u64,
    /// What its container is charged.
    pub charged: MemoryUsage,
}

/// What a proxy has used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Charged {
    /// Processor time, µs.
    pub cpu_us: u64,
    /// Anonymous and kernel memory, bytes.
    pub memory: u64,
    /// The pod in whose control group it is, if one that was asked about.
    pub pod: Option<String>,
}

/// An answer over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// 200 and the like.
    pub status: u16,
    /// As text.
    pub body: String,
}

/// A proxy that was killed and the one that came after it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Succession {
    /// The first is the killed one.
    pub lives: Vec<Life>,
    /// What the successor waited for, if it did not become ready.
    pub missing: Option<String>,
}

/// A container with less memory.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Limited {
    /// What it used before, bytes.
    pub used: u64,
    /// Its new limit, bytes.
    pub limit: u64,
}

/// What is said of a load is what the generator itself reports.
pub type Loaded = LoadReport;

/// A line, with its end.
pub fn encode(what: &impl Serialize) -> Result<String, String> {
    let json = serde_json::to_vec(what).map_err(|error| error.to_string())?;
    Ok(BASE64.encode(json) + "\n")
}

/// What a line says.
pub fn decode<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    let json = BASE64
        .decode(line.trim())
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_cannot_be_seen_in_a_line() {
        let question = Question {
            id: 7,
            ask: Ask::Capture {
                markers: vec!["marker0123456789abcdef".to_owned()],
            },
        };
        let line = encode(&question).expect("a line");
        assert!(line.ends_with('\n') && !line.contains("marker"), "{line}");
        let back: Question = decode(&line).expect("a question");
        assert_eq!(back.id, 7);
        assert!(decode::<Question>("what?").is_err());
    }
}
