//! What the webhook tells Prometheus.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

/// Seconds. The API server gives up after 5.
const BUCKETS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];
/// What becomes of a request.
const DECISIONS: [&str; 5] = ["sidecar", "agent", "none", "refused", "error"];

#[derive(Clone)]
pub struct InjectorMetrics {
    /// By `decision`: "sidecar", "agent", "none", "refused"; or "error", if none was made.
    pub requests: IntCounterVec,
    /// Seconds from the whole request to the answer.
    pub duration: Histogram,
    /// Times that the webhook's configuration was told of other roots.
    pub ca_bundles_written: IntCounter,
}

// === impl InjectorMetrics ===

impl InjectorMetrics {
    /// # Panics
    /// When called twice with one registry.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "duet_injector_requests_total",
                    "Pods that the API server asked about, by decision.",
                ),
                &["decision"],
            )
            .expect("names and labels are literals"),
            duration: Histogram::with_opts(
                HistogramOpts::new(
                    "duet_injector_request_duration_seconds",
                    "How long the answers took.",
                )
                .buckets(BUCKETS.to_vec()),
            )
            .expect("the name is a literal"),
            ca_bundles_written: IntCounter::new(
                "duet_injector_ca_bundles_written_total",
                "Times that the webhook's configuration was told of other roots.",
            )
            .expect("the name is a literal"),
        };
        for collector in [
            Box::new(metrics.requests.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(metrics.duration.clone()),
            Box::new(metrics.ca_bundles_written.clone()),
        ] {
            registry.register(collector).expect("there is one injector");
        }
        // A series that appears with its first event hides that event from rate().
        for decision in DECISIONS {
            metrics.requests.with_label_values(&[decision]);
        }
        metrics
    }
}
