//! What duet-control tells Prometheus.

use crate::identity;
use crate::state::MeshState;
use prometheus::core::{Atomic, AtomicU64, Collector, GenericGauge};
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// Watch streams that are open.
    pub watchers: IntGauge,
    /// Watch streams that were cut because they did not read.
    pub watchers_stalled: IntCounter,
    /// By `kind`: snapshot or delta.
    pub updates_sent: IntCounterVec,
    pub certificates_issued: IntCounter,
    /// By `reason`, the gRPC code: "permission_denied".
    pub certificates_refused: IntCounterVec,
    pub reload_failures: IntCounter,
    source_version: GenericGauge<AtomicU64>,
    workloads: IntGauge,
    services: IntGauge,
}

// === impl Metrics ===

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            register(
                &registry,
                IntCounterVec::new(Opts::new(name, help), &[label]),
            )
        };
        let metrics = Self {
            watchers: gauge(
                &registry,
                "duet_control_watchers",
                "Open discovery streams.",
            ),
            watchers_stalled: counter(
                "duet_control_watchers_stalled_total",
                "Discovery streams cut because the proxy did not read.",
            ),
            updates_sent: counters(
                "duet_control_updates_sent_total",
                "Discovery updates sent, by kind.",
                "kind",
            ),
            certificates_issued: counter(
                "duet_control_certificates_issued_total",
                "Workload certificates issued.",
            ),
            certificates_refused: counters(
                "duet_control_certificates_refused_total",
                "Certificate requests refused, by reason.",
                "reason",
            ),
            reload_failures: counter(
                "duet_control_source_reload_failures_total",
                "Changes of the source that could not be used.",
            ),
            source_version: gauge(
                &registry,
                "duet_control_source_version",
                "Version of the state in force.",
            ),
            workloads: gauge(
                &registry,
                "duet_control_workloads",
                "Workloads in the mesh.",
            ),
            services: gauge(&registry, "duet_control_services", "Services in the mesh."),
            registry,
        };
        // A series that appears with its first event hides that event from rate().
        for kind in ["snapshot", "delta"] {
            metrics.updates_sent.with_label_values(&[kind]);
        }
        for reason in identity::REFUSALS {
            metrics.certificates_refused.with_label_values(&[reason]);
        }
        let build = register(
            &metrics.registry,
            prometheus::IntGaugeVec::new(
                Opts::new(
                    "duet_control_build_info",
                    "1, with the build in the labels.",
                ),
                &["version", "core"],
            ),
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), duet_core::CORE_FINGERPRINT])
            .set(1);
        metrics
            .registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("each name is registered once");
        metrics
    }

    /// Adds what somebody else measures.
    pub(crate) fn register<C: Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<C>,
    ) -> C {
        register(&self.registry, metric)
    }

    /// A state came into force.
    pub(crate) fn loaded(&self, state: &MeshState) {
        let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        self.source_version.set(state.version);
        self.workloads.set(count(state.workloads.len()));
        self.services.set(count(state.services.len()));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn gauge<P: Atomic + 'static>(registry: &Registry, name: &str, help: &str) -> GenericGauge<P> {
    register(registry, GenericGauge::new(name, help))
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("names and labels are literals");
    registry
        .register(Box::new(metric.clone()))
        .expect("each name is registered once");
    metric
}
