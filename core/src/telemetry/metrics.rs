//! The Prometheus metrics, all of them.
//!
//! Every metric of traffic carries the local workload's name, so that one agent
//! tells its tenants apart as well as a sidecar does by being alone. Label sets
//! are bounded: past [`MAX_SERIES`] pairs of workload and peer, further peers are
//! counted together as `other`.

use crate::capture::{Direction, WorkloadName};
use crate::detect::Protocol;
use crate::identity::Identity;
use crate::telemetry::labelled::Labelled;
use dashmap::DashMap;
use http::StatusCode;
use parking_lot::RwLock;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How a connection ended that both sides closed.
pub const DONE: &str = "done";
/// How a connection ended whose relaying nobody saw to its end.
pub const CUT: &str = "cut";

/// Pairs of local workload and peer that have series of their own.
const MAX_SERIES: usize = 10_000;

/// From 500 µs, a meshed hop on an idle machine, to a client's patience.
const LATENCY_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0,
];

/// From what a client sends with its handshake to the longest time-out that one would set.
const DETECT_BUCKETS: [f64; 10] = [
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 1.0, 10.0,
];

const TRAFFIC: [&str; 5] = ["direction", "namespace", "workload", "peer", "tls"];

pub struct Metrics {
    registry: Registry,
    series: DashMap<(Direction, WorkloadName, Peer), Arc<Meters>>,
    responses: IntCounterVec,
    grpc: IntCounterVec,
    duration: HistogramVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    active: IntGaugeVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    failures: IntCounterVec,
    detect_timeouts: IntCounterVec,
    detect_duration: HistogramVec,
    decisions: Labelled,
    routed: Labelled,
    retries: Labelled,
    mirrored: Labelled,
    timeouts: Labelled,
    refused: Labelled,
    certificate_expiry: GaugeVec,
    certify_failures: IntCounter,
    workloads: IntGauge,
}

/// The other end, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// A workload, a service account or "unmeshed", "external", "unknown".
    pub name: Arc<str>,
    pub tls: bool,
}

/// Why a connection or request failed in the proxy itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    OriginalDestination,
    NoEndpoints,
    Connect,
    ConnectTimeout,
    Handshake,
    Identity,
    Plaintext,
    Malformed,
    Upstream,
    NotLocal,
    OutOfReach,
    Policy,
    Timeout,
    NoRoute,
    RateLimited,
    Overloaded,
}

impl Failure {
    const ALL: [Self; 16] = [
        Self::OriginalDestination,
        Self::NoEndpoints,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Handshake,
        Self::Identity,
        Self::Plaintext,
        Self::Malformed,
        Self::Upstream,
        Self::NotLocal,
        Self::OutOfReach,
        Self::Policy,
        Self::Timeout,
        Self::NoRoute,
        Self::RateLimited,
        Self::Overloaded,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OriginalDestination => "original_destination",
            Self::NoEndpoints => "no_endpoints",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Handshake => "handshake",
            Self::Identity => "identity",
            Self::Plaintext => "plaintext_refused",
            Self::Malformed => "malformed",
            Self::Upstream => "upstream",
            Self::NotLocal => "not_local",
            Self::OutOfReach => "out_of_reach",
            Self::Policy => "policy",
            Self::Timeout => "timeout",
            Self::NoRoute => "no_route",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
        }
    }
}

/// The series of one local workload and one peer.
pub struct Meters {
    labels: [String; 5],
    responses: RwLock<Vec<(StatusCode, IntCounter)>>,
    responses_by: IntCounterVec,
    /// By status, the last two: another one, none.
    grpc: [OnceLock<IntCounter>; 19],
    grpc_by: IntCounterVec,
    pub duration: Histogram,
    pub opened: IntCounter,
    pub active: IntGauge,
    pub sent: IntCounter,
    pub received: IntCounter,
    closed_by: IntCounterVec,
}

impl Metrics {
    /// # Panics
    /// If two metrics have one name, which the tests would have seen.
    pub fn new(mode: &str, workers: usize) -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels).expect("static");
            registry.register(Box::new(made.clone())).expect("unique");
            made
        };
        let closed: Vec<_> = TRAFFIC.iter().copied().chain(["reason"]).collect();
        let status: Vec<_> = TRAFFIC.iter().copied().chain(["status"]).collect();
        let grpc: Vec<_> = TRAFFIC.iter().copied().chain(["grpc_status"]).collect();
        let local = ["direction", "namespace", "workload"];
        let failed: Vec<_> = local.iter().copied().chain(["reason"]).collect();

        let responses = counters(
            "duet_http_responses_total",
            "HTTP responses, by status code, those the proxy made itself included.",
            &status,
        );
        let grpc = counters(
            "duet_grpc_responses_total",
            "gRPC responses, by grpc-status; none: they ended before they said it.",
            &grpc,
        );
        let opened = counters(
            "duet_tcp_connections_opened_total",
            "Connections accepted from clients.",
            &TRAFFIC,
        );
        let closed = counters(
            "duet_tcp_connections_closed_total",
            "Connections that ended, by how.",
            &closed,
        );
        let sent = counters(
            "duet_tcp_sent_bytes_total",
            "Bytes of opaque connections from client to server.",
            &TRAFFIC,
        );
        let received = counters(
            "duet_tcp_received_bytes_total",
            "Bytes of opaque connections from server to client.",
            &TRAFFIC,
        );
        let failures = counters(
            "duet_failures_total",
            "Connections and requests that failed in the proxy itself, by why.",
            &failed,
        );
        let detect_timeouts = counters(
            "duet_detect_timeouts_total",
            "Connections taken for opaque because the client said nothing in time.",
            &local,
        );

        let detect_duration = HistogramVec::new(
            HistogramOpts::new(
                "duet_detect_duration_seconds",
                "From the moment at which a connection's first bytes are waited for to its protocol's \
                 being known, where nothing else tells.",
            )
            .buckets(DETECT_BUCKETS.to_vec()),
            &[&local[..], &["protocol"]].concat(),
        )
        .expect("static");
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "duet_http_request_duration_seconds",
                "From a request's head to the last byte of its response.",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
            &TRAFFIC,
        )
        .expect("static");
        let active = IntGaugeVec::new(
            Opts::new("duet_tcp_connections", "Open connections."),
            &TRAFFIC,
        )
        .expect("static");
        let certificate_expiry = GaugeVec::new(
            Opts::new(
                "duet_identity_expiry_timestamp_seconds",
                "When an identity's certificate expires.",
            ),
            &["identity"],
        )
        .expect("static");
        let certify_failures = IntCounter::new(
            "duet_identity_failures_total",
            "Certificates that were asked for in vain.",
        )
        .expect("static");
        let workloads =
            IntGauge::new("duet_workloads", "Workloads that this proxy serves.").expect("static");
        let threads = IntGauge::new("duet_workers", "Worker threads.").expect("static");
        threads.set(i64::try_from(workers).unwrap_or(i64::MAX));
        let build = IntGaugeVec::new(
            Opts::new("duet_build_info", "What runs here."),
            &["version", "core", "mode"],
        )
        .expect("static");
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), crate::CORE_FINGERPRINT, mode])
            .set(1);
        let others: [Box<dyn prometheus::core::Collector>; 8] = [
            Box::new(duration.clone()),
            Box::new(detect_duration.clone()),
            Box::new(active.clone()),
            Box::new(certificate_expiry.clone()),
            Box::new(certify_failures.clone()),
            Box::new(workloads.clone()),
            Box::new(threads),
            Box::new(build),
        ];
        for collector in others {
            registry.register(collector).expect("unique");
        }
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("unique");

        Self {
            decisions: Labelled::new(
                &registry,
                "duet_policy_decisions_total",
                "What clients asked for and a policy decided, by policy (\"none\": none of \
                 those that select the workload matched) and decision (allow, deny, audit).",
                ["policy", "decision"],
            ),
            routed: Labelled::new(
                &registry,
                "duet_route_requests_total",
                "Requests to services that have routes, time-outs or retries, by the route that \
                 they fell under (\"default\": the service has none; \"none\": none matched, and \
                 they were refused).",
                ["service", "route"],
            ),
            retries: Labelled::new(
                &registry,
                "duet_retries_total",
                "Tries after the first (retried), and what became of requests that were or \
                 should have been retried: succeeded, failed, budget_exhausted, body_too_long, \
                 pushed_back, no_time.",
                ["service", "result"],
            ),
            mirrored: Labelled::new(
                &registry,
                "duet_mirrored_requests_total",
                "Copies of requests, by the service that they are for and what became of them: \
                 sent, failed, body_too_long, too_many.",
                ["service", "result"],
            ),
            timeouts: Labelled::new(
                &registry,
                "duet_timeouts_total",
                "Requests that were ended because a time was over, by which one: request, try, \
                 response_head, idle.",
                ["service", "kind"],
            ),
            refused: Labelled::new(
                &registry,
                "duet_requests_refused_total",
                "Requests to the workload that were refused because of its limits, by client and \
                 reason (rate_limited, overloaded).",
                ["peer", "reason"],
            ),
            registry,
            series: DashMap::new(),
            responses,
            grpc,
            duration,
            opened,
            closed,
            active,
            sent,
            received,
            failures,
            detect_timeouts,
            detect_duration,
            certificate_expiry,
            certify_failures,
            workloads,
        }
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn meters(&self, direction: Direction, local: &WorkloadName, peer: Peer) -> Arc<Meters> {
        let key = (direction, local.clone(), peer);
        if let Some(known) = self.series.get(&key) {
            return known.clone();
        }
        let (direction, local, peer) = key;
        let peer = if self.series.len() < MAX_SERIES {
            peer
        } else {
            Peer {
                name: "other".into(),
                tls: peer.tls,
            }
        };
        self.series
            .entry((direction, local.clone(), peer.clone()))
            .or_insert_with(|| Arc::new(self.make(direction, &local, &peer)))
            .clone()
    }

    fn make(&self, direction: Direction, local: &WorkloadName, peer: &Peer) -> Meters {
        let labels = [
            direction.as_str().to_owned(),
            local.namespace().to_owned(),
            local.name().to_owned(),
            peer.name.to_string(),
            peer.tls.to_string(),
        ];
        let values: Vec<&str> = labels.iter().map(String::as_str).collect();
        Meters {
            responses: RwLock::default(),
            responses_by: self.responses.clone(),
            grpc: [const { OnceLock::new() }; 19],
            grpc_by: self.grpc.clone(),
            duration: self.duration.with_label_values(&values),
            opened: self.opened.with_label_values(&values),
            active: self.active.with_label_values(&values),
            sent: self.sent.with_label_values(&values),
            received: self.received.with_label_values(&values),
            closed_by: self.closed.clone(),
            labels,
        }
    }

    /// Removes what is exposed of a workload that is gone.
    pub fn forget_workload(&self, local: &WorkloadName) {
        self.series.retain(|(_, workload, _), meters| {
            if workload != local {
                return true;
            }
            meters.remove_from(self);
            false
        });
        for all in [
            &self.decisions,
            &self.routed,
            &self.retries,
            &self.mirrored,
            &self.timeouts,
            &self.refused,
        ] {
            all.forget(local, |_| false);
        }
        for direction in [Direction::Inbound, Direction::Outbound] {
            let labels = [direction.as_str(), local.namespace(), local.name()];
            let _ = self.detect_timeouts.remove_label_values(&labels);
            let [direction, namespace, workload] = labels;
            for protocol in Protocol::ALL {
                let labels = [direction, namespace, workload, protocol.as_str()];
                let _ = self.detect_duration.remove_label_values(&labels);
            }
            for why in Failure::ALL {
                let labels = [direction, namespace, workload, why.as_str()];
                let _ = self.failures.remove_label_values(&labels);
            }
        }
    }

    pub fn failed(&self, direction: Direction, local: &WorkloadName, why: Failure) {
        let labels = [
            direction.as_str(),
            local.namespace(),
            local.name(),
            why.as_str(),
        ];
        self.failures.with_label_values(&labels).inc();
    }

    pub fn detection_timed_out(&self, direction: Direction, local: &WorkloadName) {
        let labels = [direction.as_str(), local.namespace(), local.name()];
        self.detect_timeouts.with_label_values(&labels).inc();
    }

    pub fn detected(
        &self,
        direction: Direction,
        local: &WorkloadName,
        protocol: Protocol,
        took: Duration,
    ) {
        let (namespace, workload) = (local.namespace(), local.name());
        let labels = [direction.as_str(), namespace, workload, protocol.as_str()];
        let series = self.detect_duration.with_label_values(&labels);
        series.observe(took.as_secs_f64());
    }

    pub fn routed(&self, local: &WorkloadName, service: &str, route: &str) {
        self.routed.counter(local, service, route).inc();
    }

    pub fn retry(&self, local: &WorkloadName, service: &str, result: &str) {
        self.retries.counter(local, service, result).inc();
    }

    pub fn mirrored(&self, local: &WorkloadName, service: &str, result: &str) {
        self.mirrored.counter(local, service, result).inc();
    }

    pub fn refused(&self, local: &WorkloadName, peer: &str, reason: &str) {
        self.refused.counter(local, peer, reason).inc();
    }

    pub fn timed_out(&self, local: &WorkloadName, service: &str, kind: &str) {
        self.timeouts.counter(local, service, kind).inc();
    }

    /// Of a policy about a workload.
    pub fn decisions(
        &self,
        local: &WorkloadName,
        policy: &str,
        decision: &'static str,
    ) -> IntCounter {
        self.decisions.counter(local, policy, decision)
    }

    /// Removes what is exposed of policies that select the workload no more.
    pub fn keep_decisions(&self, local: &WorkloadName, still: impl Fn(&str) -> bool) {
        self.decisions.forget(local, still);
    }

    pub fn workloads(&self, count: usize) {
        self.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn identity_certified(&self, identity: &Identity, expires: SystemTime) {
        let at = expires
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        self.certificate_expiry
            .with_label_values(&[identity.as_str()])
            .set(at);
    }

    pub fn forget_identity(&self, identity: &Identity) {
        let _ = self
            .certificate_expiry
            .remove_label_values(&[identity.as_str()]);
    }

    pub fn certify_failed(&self) {
        self.certify_failures.inc();
    }
}

impl Meters {
    pub fn response(&self, status: StatusCode, took: Duration) {
        self.duration.observe(took.as_secs_f64());
        if let Some((_, counter)) = self
            .responses
            .read()
            .iter()
            .find(|(known, _)| *known == status)
        {
            counter.inc();
            return;
        }
        let counter = self
            .responses_by
            .with_label_values(&self.with(status.as_str()));
        counter.inc();
        self.responses.write().push((status, counter));
    }

    pub fn grpc(&self, status: Option<u8>) {
        let (index, other) = match status {
            Some(known @ 0..=16) => (usize::from(known), None),
            Some(_) => (17, Some("other")),
            None => (18, Some("none")),
        };
        let make = || {
            let name = other.map_or_else(|| index.to_string(), str::to_owned);
            self.grpc_by.with_label_values(&self.with(&name))
        };
        self.grpc[index].get_or_init(make).inc();
    }

    pub fn closed(&self, reason: &str) {
        self.closed_by.with_label_values(&self.with(reason)).inc();
    }

    fn with<'a>(&'a self, last: &'a str) -> [&'a str; 6] {
        let [direction, namespace, workload, peer, tls] = &self.labels;
        [direction, namespace, workload, peer, tls, last]
    }

    fn remove_from(&self, metrics: &Metrics) {
        let labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        let _ = metrics.duration.remove_label_values(&labels);
        let _ = metrics.opened.remove_label_values(&labels);
        let _ = metrics.active.remove_label_values(&labels);
        let _ = metrics.sent.remove_label_values(&labels);
        let _ = metrics.received.remove_label_values(&labels);
        for (status, _) in self.responses.read().iter() {
            let _ = metrics
                .responses
                .remove_label_values(&self.with(status.as_str()));
        }
        for status in (0..=16).map(|status: u8| status.to_string()) {
            let _ = metrics.grpc.remove_label_values(&self.with(&status));
        }
        for status in ["other", "none"] {
            let _ = metrics.grpc.remove_label_values(&self.with(status));
        }
        for reason in [DONE, "client", "server", "revoked", CUT] {
            let _ = metrics.closed.remove_label_values(&self.with(reason));
        }
    }
}
