//! Spans on their way to a collector: OTLP over gRPC.

use crate::api::otlp::trace_service_client::TraceServiceClient;
use crate::api::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, Span,
    any_value::Value,
};
use crate::capture::WorkloadName;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint, Uri};

/// Spans that wait to be sent; the OpenTelemetry SDKs' default.
const QUEUE: usize = 2048;
/// Spans in one request; their default too.
const BATCH: usize = 512;
/// How long the first of them waits for others.
const EVERY: Duration = Duration::from_secs(1);
/// A collector must have taken them by then.
const TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where spans go.
pub struct Exporter {
    queue: mpsc::Sender<(WorkloadName, Span)>,
    dropped: IntCounter,
}

struct Sending {
    queue: mpsc::Receiver<(WorkloadName, Span)>,
    client: TraceServiceClient<Channel>,
    sent: IntCounter,
    failed: IntCounter,
}

impl Exporter {
    pub fn start(collector: &str, registry: &Registry) -> Result<Self, String> {
        let wrong = || format!("--trace-collector {collector:?}: write http://host:port");
        let uri: Uri = collector.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            return Err(wrong());
        }
        let channel = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .connect_lazy();
        let counted = Opts::new(
            "duet_spans_total",
            "Spans that were sent, that a collector did not take (failed), or that no room was \
             for in the queue (dropped).",
        );
        let counted = IntCounterVec::new(counted, &["result"]).expect("static");
        registry
            .register(Box::new(counted.clone()))
            .expect("unique");
        let counter = |result: &str| counted.with_label_values(&[result]);
        let (sender, queue) = mpsc::channel(QUEUE);
        let sending = Sending {
            queue,
            client: TraceServiceClient::new(channel),
            sent: counter("sent"),
            failed: counter("failed"),
        };
        tokio::spawn(sending.run());
        Ok(Self {
            queue: sender,
            dropped: counter("dropped"),
        })
    }

    pub fn send(&self, workload: WorkloadName, span: Span) {
        if self.queue.try_send((workload, span)).is_err() {
            self.dropped.inc();
        }
    }
}

impl Sending {
    async fn run(mut self) {
        let mut is_well = true;
        while let Some(first) = self.queue.recv().await {
            let mut batch = vec![first];
            let until = Instant::now() + EVERY;
            while batch.len() < BATCH
                && let Ok(Some(next)) = timeout_at(until, self.queue.recv()).await
            {
                batch.push(next);
            }
            let count = batch.len() as u64;
            match self.client.export(request(batch)).await {
                Ok(answer) => {
                    let refused = answer.into_inner().partial_success.unwrap_or_default();
                    let refused = u64::try_from(refused.rejected_spans).unwrap_or_default();
                    self.sent.inc_by(count.saturating_sub(refused));
                    self.failed.inc_by(refused.min(count));
                    is_well = true;
                }
                Err(status) => {
                    self.failed.inc_by(count);
                    if std::mem::take(&mut is_well) {
                        tracing::warn!(%status, "the trace collector takes no spans");
                    }
                }
            }
        }
    }
}

/// Each workload is a resource of its own.
fn request(batch: Vec<(WorkloadName, Span)>) -> ExportTraceServiceRequest {
    let mut of_workloads: HashMap<WorkloadName, Vec<Span>> = HashMap::new();
    for (workload, span) in batch {
        of_workloads.entry(workload).or_default().push(span);
    }
    let text = |key: &str, text: &str| super::attribute(key, Value::StringValue(text.to_owned()));
    let resource_spans = of_workloads
        .into_iter()
        .map(|(workload, spans)| ResourceSpans {
            resource: Some(Resource {
                attributes: vec![
                    text("service.name", workload.name()),
                    text("service.namespace", workload.namespace()),
                    text("k8s.namespace.name", workload.namespace()),
                    text("k8s.pod.name", workload.name()),
                ],
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "duet".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans,
            }],
        });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
}
