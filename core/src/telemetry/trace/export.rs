//! Spans on their way to a collector: OTLP over gRPC.

use crate::api::otlp::trace_service_client::TraceServiceClient;
use crate::api::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, Span,
    any_value::Value,
};
use crate::capture::WorkloadName;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

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
    pub fn start(
        collector: &str,
        roots: Option<&Path>,
        registry: &Registry,
    ) -> Result<Self, String> {
        let channel = endpoint(collector, roots)?
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

/// Over TLS only to whoever `roots` vouch for.
fn endpoint(collector: &str, roots: Option<&Path>) -> Result<Endpoint, String> {
    let wrong = |what: &str| format!("--trace-collector {collector:?}: {what}");
    let uri: Uri = collector.parse().unwrap_or_default();
    let (Some(scheme @ ("http" | "https")), Some(_)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong("write https://host:port, or http://host:port"));
    };
    match (scheme, roots) {
        ("https", Some(file)) => {
            let roots = roots_of(file)?;
            // What it is asked for is the URL's host.
            let tls = ClientTlsConfig::new().ca_certificate(roots);
            let endpoint = Endpoint::from(uri.clone()).tls_config(tls);
            endpoint.map_err(|error| wrong(&error.to_string()))
        }
        ("https", None) => Err(wrong(
            "write --trace-collector-ca FILE too, the roots of its certificate in PEM",
        )),
        (_, Some(_)) => Err(wrong(
            "--trace-collector-ca is for https: write https://, or leave it out",
        )),
        (_, None) => Ok(uri.into()),
    }
}

fn roots_of(file: &Path) -> Result<Certificate, String> {
    let failed = |problem: &str| format!("--trace-collector-ca {}: {problem}", file.display());
    let pem = std::fs::read(file).map_err(|error| failed(&error.to_string()))?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(Certificate::from_pem(pem)),
        Some(Err(error)) => Err(failed(&error.to_string())),
        None => Err(failed("holds no certificate: write roots, PEM")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_collector_is_taken_or_refused_with_a_remedy() {
        let file = std::env::temp_dir().join(format!("duet-roots-{}", std::process::id()));
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        std::fs::write(&file, root.pem()).unwrap();
        assert!(endpoint("http://127.0.0.1:4317", None).is_ok());
        assert!(endpoint("https://127.0.0.1:4317", Some(&file)).is_ok());
        std::fs::write(&file, "roots").unwrap();
        let absent = Path::new("/nowhere/roots.pem");
        for (collector, roots, remedy) in [
            ("collector:4317", None, "write https://host:port"),
            ("ftp://collector", None, "write https://host:port"),
            ("https://collector:4317", None, "--trace-collector-ca"),
            ("http://collector:4317", Some(&*file), "leave it out"),
            ("https://collector:4317", Some(&*file), "no certificate"),
            ("https://collector:4317", Some(absent), "/nowhere/roots.pem"),
        ] {
            let problem = endpoint(collector, roots).unwrap_err();
            assert!(problem.contains(remedy), "{problem}");
        }
        std::fs::remove_file(file).unwrap();
    }
}
