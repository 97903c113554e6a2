//! The names by which scenarios and verdicts meet.
//!
//! A scenario may record any key; verdict sentences and figures are made from these. Latency
//! quantiles have the keys that [`super::Metric::quantile`] gives (`p50`, `p90`, `p99`,
//! `first_byte_p50`).

/// L2: CPU of the whole node per new connection, µs.
pub const CPU_PER_CONNECTION: &str = "cpu_us_per_connection";

/// R1: memory of all proxies of the node, MiB, at `x` = pods.
pub const PROXY_MEMORY: &str = "proxy_memory_mib";
/// R1: CPU of all idle proxies of the node, thousandths of a core.
pub const IDLE_CPU: &str = "idle_millicores";
/// R1: open file descriptors of all proxies of the node.
pub const OPEN_FDS: &str = "open_fds";

/// R2: CPU of the proxies per request, µs.
pub const PROXY_CPU_PER_REQUEST: &str = "proxy_cpu_us_per_request";
/// R2: (busy − idle) CPU of the node per request, µs, softirq included.
pub const NODE_CPU_PER_REQUEST: &str = "node_cpu_us_per_request";
/// R2: time in eBPF programs per request, ns, by the kernel's own statistics.
pub const EBPF_PER_REQUEST: &str = "ebpf_ns_per_request";
/// R2: context switches of the node per request.
pub const SWITCHES_PER_REQUEST: &str = "context_switches_per_request";

/// I1: the victim's goodput, 0…1, at `x` = the aggressor's multiple of its quota (0 = alone).
pub const GOODPUT: &str = "goodput";

/// F1: meshed pods of the node that had ≥ 1 failed request or ≥ 100 ms without goodput.
pub const PODS_HIT: &str = "pods_hit";
/// F1: meshed pods of the node.
pub const PODS_MESHED: &str = "pods_meshed";
/// F1: PODS_HIT ÷ PODS_MESHED.
pub const BLAST_RADIUS: &str = "blast_radius";
pub const REQUESTS_LOST: &str = "requests_lost";
/// F1: Σ∫(1 − goodput ÷ offered), pod·s.
pub const UNAVAILABILITY: &str = "unavailability_pod_s";
/// F1: kill → first of ten 100-ms bins ≥ 99 % for every victim, ms.
pub const TIME_TO_RECOVER: &str = "recover_ms";
/// F1: the parts of [`TIME_TO_RECOVER`], ms, in this order.
pub const RECOVERY_PARTS: [&str; 4] = ["detect_ms", "restart_ms", "listen_ms", "first_success_ms"];

/// F5, at `x` = 0 with all proxies alive and above with one dead: TCP payload bytes of meshed pods seen on the wire with the marker in plaintext.
pub const PLAINTEXT_BYTES: &str = "plaintext_bytes";
/// F5: connections the application tried while its proxy was dead or absent.
pub const ATTEMPTS: &str = "attempts";
/// F5: of which got an answer by going round the mesh.
pub const ATTEMPTS_ANSWERED: &str = "attempts_answered";

/// X1: distinct private keys of workloads in the most exposed proxy process, `x` = pods.
pub const KEYS_MAX: &str = "keys_max_per_process";
/// X1: distinct private keys over all proxy processes of the node.
pub const KEYS_TOTAL: &str = "keys_total";
/// X1: workload identities the node has.
pub const IDENTITIES: &str = "identities";
/// X1: keys of a removed pod's identity that are still found.
pub const KEYS_AFTER_REMOVAL: &str = "keys_after_removal";
