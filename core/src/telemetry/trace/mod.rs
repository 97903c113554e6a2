//! Distributed tracing: this proxy's part in the traces that applications begin, and, if it
//! is told to, traces of its own.
//!
//! A request is recorded if it says that it is (W3C, B3), and a part of those that say
//! nothing (`--trace-ratio`): decided by the client's proxy, or by the server's for a client
//! outside the mesh. Its span lasts from its head to its answer's last byte, and what is
//! asked next is told that the span is its parent. A request that is not to be recorded
//! goes on as it came, so that a trace is never cut by a proxy that does not take part in it.
//!
//! Without `--trace-collector` nobody looks at a header. Spans wait to be sent in a bounded
//! queue; past that they are counted and lost, rather than delay traffic.

mod context;
mod export;

use crate::api::otlp::{AnyValue, KeyValue, Span as Told, Status, any_value::Value};
use crate::api::otlp::{span::SpanKind, status::StatusCode as SpanStatus};
use crate::capture::{Direction, WorkloadName};
use crate::config::ProxyArgs;
use crate::telemetry::Peer;
use context::Context;
use export::Exporter;
use http::{Method, Request, StatusCode};
use prometheus::Registry;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub struct Tracer {
    exporter: Exporter,
    /// Of the requests that say nothing.
    ratio: f64,
}

/// A request that is recorded.
pub struct Span {
    tracer: Arc<Tracer>,
    workload: WorkloadName,
    direction: Direction,
    context: Context,
    /// Whether the context's span is the parent; otherwise there is none.
    has_parent: bool,
    id: u64,
    state: String,
    began: SystemTime,
    method: Method,
    path: String,
    authority: String,
}

impl Tracer {
    /// `None` if nobody wants to have spans.
    ///
    /// # Errors
    /// What is wrong with the flags.
    pub fn start(args: &ProxyArgs, registry: &Registry) -> Result<Option<Arc<Self>>, String> {
        let Some(collector) = &args.trace_collector else {
            return Ok(None);
        };
        let exporter = Exporter::start(collector, args.trace_collector_ca.as_deref(), registry)?;
        Ok(Some(Arc::new(Self {
            exporter,
            ratio: args.trace_ratio,
        })))
    }

    /// A request's span, if it is to be recorded; it is then told who its parent is.
    /// `may_begin`: whether it is for this proxy to decide about one that says nothing.
    pub fn begin<B>(
        self: &Arc<Self>,
        direction: Direction,
        workload: &WorkloadName,
        request: &mut Request<B>,
        may_begin: bool,
    ) -> Option<Span> {
        let said = Context::read(request.headers());
        let has_parent = said.is_some();
        let sampled = said.as_ref().and_then(|said| said.sampled);
        let sampled = sampled.unwrap_or_else(|| may_begin && fastrand::f64() < self.ratio);
        if !sampled {
            return None;
        }
        let id = fastrand::u64(1..);
        let context = said.unwrap_or_else(|| Context::new(fastrand::u128(1..), id, true));
        let host = || request.headers().get(http::header::HOST)?.to_str().ok();
        let authority = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        let span = Span {
            tracer: self.clone(),
            workload: workload.clone(),
            direction,
            has_parent,
            id,
            state: Context::state(request.headers())
                .unwrap_or_default()
                .to_owned(),
            began: SystemTime::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            authority: authority.or_else(host).unwrap_or_default().to_owned(),
            context,
        };
        span.context.write(id, true, request.headers_mut());
        Some(span)
    }
}

impl Span {
    /// The answer has gone by.
    pub fn end(self, status: StatusCode, peer: &Peer, took: Duration) {
        let nanos = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        let text = |key: &str, value: String| attribute(key, Value::StringValue(value));
        let kind = match self.direction {
            Direction::Inbound => SpanKind::Server,
            Direction::Outbound => SpanKind::Client,
        };
        // A server's own errors are its span's; to a client any error is one.
        let failed = match self.direction {
            Direction::Inbound => status.is_server_error(),
            Direction::Outbound => status.is_server_error() || status.is_client_error(),
        };
        let told = Told {
            trace_id: self.context.trace.to_be_bytes().to_vec(),
            span_id: self.id.to_be_bytes().to_vec(),
            parent_span_id: match self.has_parent {
                true => self.context.span.to_be_bytes().to_vec(),
                false => Vec::new(),
            },
            trace_state: self.state,
            flags: 1,
            name: self.method.to_string(),
            kind: kind.into(),
            start_time_unix_nano: nanos(self.began),
            end_time_unix_nano: nanos(self.began + took),
            attributes: vec![
                text("http.request.method", self.method.to_string()),
                text("url.path", self.path),
                text("server.address", self.authority),
                attribute(
                    "http.response.status_code",
                    Value::IntValue(status.as_u16().into()),
                ),
                text("duet.direction", self.direction.as_str().to_owned()),
                text("duet.peer", peer.name.to_string()),
                attribute("duet.tls", Value::BoolValue(peer.tls)),
            ],
            status: failed.then(|| Status {
                message: String::new(),
                code: SpanStatus::Error.into(),
            }),
        };
        self.tracer.exporter.send(self.workload, told);
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}
