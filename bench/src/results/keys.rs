//! The names by which scenarios and verdicts meet.
//!
//! A scenario may record any key; verdict sentences and figures are made from these. Latency
//! quantiles have the keys that [`super::Metric::quantile`] gives (`p50`, `p90`, `p99`,
//! `first_byte_p50`).

/// L3: requests/s within the objective.
pub const CAPACITY: &str = "capacity_rps";

/// L4: Gbit/s, at `x` = streams.
pub const BULK_RATE: &str = "gbit_per_s";
/// L4: CPU of the whole node for 10⁹ bytes, s.
pub const CPU_PER_GB: &str = "cpu_s_per_gb";

/// L5: slope of the median over the number of services, µs; at the longest chain.
pub const US_PER_HOP: &str = "us_per_hop";

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

/// R3: memory of the node's proxies for each idle connection, KiB.
pub const KIB_PER_CONNECTION: &str = "kib_per_connection";
/// R3: memory that the proxies hold, beyond what they held before, some time after all are closed, MiB.
pub const HELD_AFTER_CLOSE: &str = "held_after_close_mib";
pub const FDS_AFTER_CLOSE: &str = "fds_after_close";

/// R5: of the proxies' processor time, what lands in the control groups of the pods that caused it, 0…1.
pub const CPU_ATTRIBUTED: &str = "cpu_attributed";
/// R5: the same of memory.
pub const MEMORY_ATTRIBUTED: &str = "memory_attributed";

/// I1: the victim's goodput, 0…1, at `x` = the aggressor's multiple of its quota (0 = alone).
pub const GOODPUT: &str = "goodput";

/// I3: connections that the victim asked for, at `x` = hoarded connections.
pub const CONNECTS: &str = "connects";
/// I3: of which failed.
pub const CONNECTS_FAILED: &str = "connects_failed";
/// I3: descriptors that the node's proxies hold for the hoarder.
pub const HOARDED: &str = "hoarded_descriptors";

/// I4: memory of the node's proxies beyond that before, MiB, at `x` = slow connections.
pub const SLOW_HELD: &str = "slow_held_mib";
/// I4: by how much that still grows, MiB/min.
pub const GROWTH: &str = "growth_mib_per_min";

/// I6: (Σx)² ÷ (n·Σx²) of what equal tenants were answered.
pub const JAIN: &str = "jain";
/// I6: the smallest share ÷ the largest.
pub const MIN_MAX: &str = "min_max";
/// I6: answered by all tenants together, requests/s.
pub const ALL_ANSWERED: &str = "all_answered_rps";

/// I7: quota periods a second in which a proxy of the arm was held back.
pub const THROTTLED: &str = "throttled_per_s";
/// I7: of victim and neighbour, those whose median is 1.5 times that under the loosest limit.
pub const PODS_AFFECTED: &str = "pods_affected";

/// I9: a service loses its pod → last answer from it, ms, at `x` = 1 beside poison; absent if not heard of in time.
pub const CONFIGURED: &str = "configured_ms";
/// I9: a pod is started → its proxy is ready, ms.
pub const POD_START: &str = "pod_start_ms";

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

/// F3: answered well of all requests from the first death on, 0…1.
pub const AVAILABILITY: &str = "availability";
/// F3: the same of the pod that had least.
pub const WORST_AVAILABILITY: &str = "worst_availability";

/// F5, X3; in F5 at `x` = 0 with all proxies alive and above with one dead: TCP payload bytes of meshed pods seen on the wire with the marker in plaintext.
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

/// X2: capabilities of the node's most privileged proxy process.
pub const CAPABILITIES: &str = "capabilities";
/// X2: one value for each of them, with its name behind this.
pub const CAPABILITY_PREFIX: &str = "cap_";
/// X2: proxy processes of the node that run as root.
pub const ROOT_PROXIES: &str = "root_proxies";
/// X2: proxy processes in the node's network namespace.
pub const NODE_NETWORK_PROXIES: &str = "node_network_proxies";
/// X2: proxy processes whose system calls nobody filters.
pub const UNFILTERED_PROXIES: &str = "unfiltered_proxies";

/// F4: requests while the control plane was away, over kept and over new connections.
pub const AWAY_REQUESTS: &str = "away_requests";
/// F4: of which failed.
pub const AWAY_FAILED: &str = "away_failed";
/// F4: the control plane ends → the first request fails, ms; absent where none did.
pub const FIRST_FAILURE: &str = "first_failure_ms";
/// F4: 1 if a proxy that was killed meanwhile became ready again without it, else 0.
pub const RESTARTS_ALONE: &str = "restarts_alone";
/// F4: the control plane is back → that proxy is ready, ms.
pub const BACK_WITH_CONTROL: &str = "back_with_control_ms";

/// S1: pods started.
pub const STARTS: &str = "starts";
/// S1: pods of which a request failed before the first one succeeded.
pub const STARTS_WITH_FAILURE: &str = "starts_with_failure";
/// S1: failed requests before the first success, all pods together.
pub const FAILURES_BEFORE_SUCCESS: &str = "failures_before_success";
/// S1: the application's first line → its first answer, ms.
pub const FIRST_EGRESS: &str = "first_egress_ms";
/// S1: the pod is asked for → its application's first answer, ms.
pub const ASKED_TO_ANSWERED: &str = "asked_to_answered_ms";

/// S2: init containers that asked a server.
pub const INITS: &str = "inits";
/// S2: of which were answered.
pub const INITS_ANSWERED: &str = "inits_answered";

/// S3: Jobs whose application ended.
pub const JOBS: &str = "jobs";
/// S3: of which ended, too.
pub const JOBS_ENDED: &str = "jobs_ended";
/// S3: of which ended with the application's exit code, as complete or failed accordingly.
pub const EXIT_CODES_KEPT: &str = "exit_codes_kept";
/// S3: the application ends → its Job has ended, ms.
pub const TERMINAL: &str = "terminal_ms";

/// S4: requests to the pods of which one was deleted.
pub const INGRESS: &str = "ingress_requests";
pub const INGRESS_FAILED: &str = "ingress_failed";
/// S4: requests that the deleted pod made before its application ended.
pub const EGRESS: &str = "egress_requests";
pub const EGRESS_FAILED: &str = "egress_failed";
/// S4: the application's end → the proxy's, ms; negative where the proxy ended first.
pub const PROXY_OUTLIVED: &str = "proxy_outlived_ms";

/// S5: pods that came and went, at `x` = 2; the load of a bystander meanwhile is at `x` = 1.
pub const CHURNED: &str = "churned";
/// S5: of these, how many had become ready when they were removed.
pub const CHURNED_READY: &str = "churned_ready";
/// S5: what there was of the mesh afterwards that had not been there before.
pub const LEFT_NAMESPACES: &str = "left_namespaces";
pub const LEFT_ENTRIES: &str = "left_map_entries";
pub const LEFT_FILES: &str = "left_files";

/// S6: containers in `kubectl get pods`, of an application with one.
pub const CONTAINERS_SHOWN: &str = "containers_shown";
/// S6: 1 if `kubectl logs` shows the application's log unasked, else 0.
pub const LOGS_ARE_THE_APPS: &str = "logs_are_the_apps";

/// U1: connections that were asked for during the upgrade.
pub const NEW_CONNECTIONS: &str = "new_connections";
pub const NEW_CONNECTIONS_FAILED: &str = "new_connections_failed";
/// U1: connections that were open before it.
pub const LONG_LIVED: &str = "long_lived";
pub const LONG_LIVED_RESET: &str = "long_lived_reset";
/// U1, I8: applications that were started again.
pub const APPS_RESTARTED: &str = "apps_restarted";
/// U1: from the order to its completion, s.
pub const UPGRADE_WALL: &str = "upgrade_s";

/// U2: requests that failed while certificates were renewed.
pub const RENEWING_FAILED: &str = "renewing_failed";
/// U2: identities of the node that had another certificate afterwards.
pub const RENEWED: &str = "renewed";
/// U2: keys of expired certificates that are still in a proxy's memory.
pub const OLD_KEYS: &str = "old_keys";
/// U2: processor use of all proxies meanwhile, thousandths of a core.
pub const RENEWING_CPU: &str = "renewing_millicores";

/// X3: attempts to pass for another.
pub const FORGERIES: &str = "forgeries";
/// X3: of which were believed: must be 0.
pub const FORGERIES_ACCEPTED: &str = "forgeries_accepted";

/// X4: ways from an application to a proxy's key.
pub const WAYS: &str = "ways";
/// X4: of which are open.
pub const WAYS_OPEN: &str = "ways_open";
/// X4: identities that the proxy holds, if any way is open.
pub const KEYS_BEHIND: &str = "keys_behind";

/// I8: proxies that the kernel killed for want of memory.
pub const PROXIES_KILLED: &str = "proxies_killed";
