//! One line for each request, and one for each opaque connection, when it is over:
//! in the log, if there is one, and to whoever taps.

use crate::capture::{Direction, WorkloadName};
use crate::config::AccessLogFormat;
use crate::detect::Protocol;
use crate::telemetry::Peer;
use crate::telemetry::tap::{Failed, Line, Taps};
use http::{Method, Request, StatusCode};
use serde::Serialize;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Lines that wait to be written; past that they are dropped rather than delay
/// traffic, and the log says how many.
const QUEUE: usize = 4096;

#[derive(Clone)]
pub struct AccessLog {
    format: AccessLogFormat,
    lines: Option<std::sync::mpsc::SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    taps: Arc<Taps>,
}

pub struct RequestLine {
    pub direction: Direction,
    pub workload: WorkloadName,
    pub client: SocketAddr,
    pub server: Option<SocketAddr>,
    pub peer: String,
    pub tls: bool,
    pub method: Method,
    pub authority: String,
    pub path: String,
    pub protocol: &'static str,
}

pub struct ConnectionLine {
    pub direction: Direction,
    pub workload: WorkloadName,
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub peer: Peer,
}

impl RequestLine {
    pub fn new<B>(
        direction: Direction,
        workload: &WorkloadName,
        client: SocketAddr,
        request: &Request<B>,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Self {
        let host = || request.headers().get(http::header::HOST)?.to_str().ok();
        let authority = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        Self {
            direction,
            workload: workload.clone(),
            client,
            server: None,
            peer: "-".to_owned(),
            tls: false,
            method: request.method().clone(),
            authority: authority
                .or_else(host)
                .map_or_else(|| to.to_string(), str::to_owned),
            path: request.uri().path().to_owned(),
            protocol: protocol.as_str(),
        }
    }

    pub fn reached(&mut self, server: SocketAddr, peer: &Peer) {
        self.server = Some(server);
        self.peer = peer.name.to_string();
        self.tls = peer.tls;
    }
}

#[derive(Serialize)]
pub(super) struct Record<'a> {
    pub time: String,
    pub direction: &'a str,
    pub workload: String,
    pub client: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    pub peer: &'a str,
    pub tls: bool,
    pub protocol: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    pub duration_us: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl AccessLog {
    pub fn new(format: AccessLogFormat) -> Self {
        let dropped = Arc::new(AtomicU64::new(0));
        if format == AccessLogFormat::Off {
            return Self {
                format,
                lines: None,
                dropped,
                taps: Arc::default(),
            };
        }
        let lost = dropped.clone();
        let (lines, queue) = std::sync::mpsc::sync_channel::<String>(QUEUE);
        // Standard output may block; traffic must not.
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                let mut out = std::io::stdout().lock();
                while let Ok(line) = queue.recv() {
                    let lost = lost.swap(0, Ordering::Relaxed);
                    if lost > 0 {
                        tracing::warn!(lost, "access log: lines were dropped");
                    }
                    let _ = writeln!(out, "{line}");
                }
            })
            .expect("a thread for the access log");
        Self {
            format,
            lines: Some(lines),
            dropped,
            taps: Arc::default(),
        }
    }

    /// Whether anybody will want a line.
    pub fn is_on(&self) -> bool {
        self.lines.is_some() || self.taps.is_on()
    }

    pub fn taps(&self) -> &Arc<Taps> {
        &self.taps
    }

    pub fn request(&self, line: &RequestLine, status: StatusCode, took: Duration) {
        let record = Record {
            time: now(),
            direction: line.direction.as_str(),
            workload: line.workload.to_string(),
            client: line.client,
            server: line.server,
            peer: &line.peer,
            tls: line.tls,
            protocol: line.protocol,
            method: Some(line.method.as_str()),
            authority: Some(&line.authority),
            path: Some(&line.path),
            status: Some(status.as_u16()),
            sent_bytes: None,
            received_bytes: None,
            duration_us: took.as_micros(),
            error: None,
        };
        self.write(Line::Request, &record);
    }

    pub fn connection(
        &self,
        line: &ConnectionLine,
        bytes: (u64, u64),
        took: Duration,
        error: Option<String>,
    ) {
        let record = Record {
            time: now(),
            direction: line.direction.as_str(),
            workload: line.workload.to_string(),
            client: line.client,
            server: Some(line.server),
            peer: &line.peer.name,
            tls: line.peer.tls,
            protocol: "tcp",
            method: None,
            authority: None,
            path: None,
            status: None,
            sent_bytes: Some(bytes.0),
            received_bytes: Some(bytes.1),
            duration_us: took.as_micros(),
            error,
        };
        self.write(Line::Connection, &record);
    }

    /// What the proxy could not do, for taps; the log of the process has it too.
    pub fn failed(
        &self,
        direction: Direction,
        workload: &WorkloadName,
        reason: &str,
        error: &dyn std::fmt::Display,
    ) {
        if self.taps.is_on() {
            self.taps.offer(&Line::Failure(&Failed {
                time: now(),
                direction: direction.as_str(),
                workload: workload.to_string(),
                reason,
                error: error.to_string(),
            }));
        }
    }

    fn write<'a>(&self, kind: fn(&'a Record<'a>) -> Line<'a>, record: &'a Record<'a>) {
        if self.taps.is_on() {
            self.taps.offer(&kind(record));
        }
        let Some(lines) = &self.lines else { return };
        let line = match self.format {
            AccessLogFormat::Json => serde_json::to_string(record).unwrap_or_default(),
            _ => text(record),
        };
        if lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

fn text(record: &Record<'_>) -> String {
    let mut line = format!(
        "{} {} {} {} -> {}",
        record.time,
        record.direction,
        record.workload,
        record.client,
        record
            .server
            .map_or_else(|| "-".to_owned(), |server| server.to_string()),
    );
    line += &format!(
        " peer={} tls={} {}",
        record.peer, record.tls, record.protocol
    );
    if let (Some(method), Some(authority), Some(path), Some(status)) =
        (record.method, record.authority, record.path, record.status)
    {
        line += &format!(" \"{method} {authority}{path}\" {status}");
    }
    if let (Some(sent), Some(received)) = (record.sent_bytes, record.received_bytes) {
        line += &format!(" sent={sent} received={received}");
    }
    line += &format!(" {}us", record.duration_us);
    if let Some(error) = &record.error {
        line += &format!(" error={error:?}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(format: AccessLogFormat) -> (AccessLog, std::sync::mpsc::Receiver<String>) {
        let (lines, queue) = std::sync::mpsc::sync_channel(1);
        let log = AccessLog {
            format,
            lines: Some(lines),
            dropped: Arc::default(),
            taps: Arc::default(),
        };
        (log, queue)
    }

    fn line() -> RequestLine {
        let request = Request::get("/cart?card=1234")
            .header("host", "shop.example")
            .body(())
            .expect("static");
        let workload = WorkloadName::new("default", "web-0");
        let [client, server] = ["10.0.0.1:5000", "10.0.0.2:80"].map(|a| a.parse().expect("static"));
        let peer = Peer {
            name: "default/cart-0".into(),
            tls: true,
        };
        let mut line = RequestLine::new(
            Direction::Outbound,
            &workload,
            client,
            &request,
            Protocol::Http1,
            server,
        );
        line.reached(server, &peer);
        line
    }

    #[test]
    fn a_line_says_who_asked_whom_for_what_and_never_the_query() {
        let (log, queue) = lines(AccessLogFormat::Text);
        log.request(&line(), StatusCode::OK, Duration::from_micros(250));
        let text = queue.recv().expect("a line");
        let expected = "outbound default/web-0 10.0.0.1:5000 -> 10.0.0.2:80 peer=default/cart-0 \
            tls=true http/1 \"GET shop.example/cart\" 200 250us";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn json_has_the_same_and_a_full_queue_drops_rather_than_waits() {
        let (log, queue) = lines(AccessLogFormat::Json);
        for _ in 0..3 {
            log.request(&line(), StatusCode::OK, Duration::from_micros(250));
        }
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2);
        let record: serde_json::Value =
            serde_json::from_str(&queue.recv().expect("a line")).expect("JSON");
        assert_eq!(record["status"], 200);
        assert_eq!(record["path"], "/cart");
        assert_eq!(record["duration_us"], 250);
        assert!(record.get("error").is_none());
    }
}
