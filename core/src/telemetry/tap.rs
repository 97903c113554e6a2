//! A live look at requests and connections as they end, for `/tap`.
//!
//! With nobody looking it costs one relaxed load for each request. A tap is bounded
//! in what it may ask of the proxy: at most [`MAX_TAPS`] at once, each gets so many
//! records a second, and what it misses is counted and said. Nothing ever waits for
//! one: a reader that is too slow misses more.

use super::access_log::Record;
use crate::capture::Direction;
use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::RwLock;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// At once, for all who ask.
pub const MAX_TAPS: usize = 4;
/// Records a second, unless asked for otherwise.
pub const DEFAULT_RATE: u32 = 100;
/// More than a person, or a terminal, can take.
pub const MAX_RATE: u32 = 10_000;
/// Records that wait for the reader.
const QUEUE: usize = 256;
/// How often it is said what was missed.
const REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Taps {
    /// How many there are, for whoever only wants to know whether.
    on: AtomicUsize,
    open: RwLock<Vec<Arc<Tap>>>,
}

/// Which records are wanted. What is not given is not looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// "namespace/name", one of these.
    pub workloads: Vec<String>,
    pub direction: Option<Direction>,
    /// How the path begins.
    pub path: Option<String>,
    pub method: Option<String>,
    /// The other end, as in the metrics; a trailing * is any rest.
    pub peer: Option<String>,
}

struct Tap {
    filter: Filter,
    pace: Pace,
    lines: mpsc::Sender<Bytes>,
    dropped: AtomicU64,
}

/// At most so many a second, spread evenly once a first second's worth is used up
/// (GCRA, ITU-T I.371).
struct Pace {
    start: Instant,
    every_ns: u64,
    /// When the next one would be due, in ns since the start.
    due: AtomicU64,
}

/// One JSON object a line, until it is dropped.
pub struct TapBody {
    taps: Arc<Taps>,
    tap: Arc<Tap>,
    lines: mpsc::Receiver<Bytes>,
    report: Interval,
}

/// A line of a tap.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Line<'a> {
    Request(&'a Record<'a>),
    Connection(&'a Record<'a>),
    Failure(&'a Failed<'a>),
    Dropped { count: u64 },
}

/// What the proxy could not, or would not, do.
#[derive(Serialize)]
pub(super) struct Failed<'a> {
    pub time: String,
    pub direction: &'a str,
    pub workload: String,
    pub reason: &'a str,
    pub error: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{MAX_TAPS} taps are open, which is all there may be: end one of them")]
pub struct TooMany;

// === impl Taps ===

impl Taps {
    /// Whether anybody looks.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed) > 0
    }

    pub fn open(self: &Arc<Self>, filter: Filter, rate: u32) -> Result<TapBody, TooMany> {
        let (sender, lines) = mpsc::channel(QUEUE);
        let tap = Arc::new(Tap {
            filter,
            pace: Pace::new(rate),
            lines: sender,
            dropped: AtomicU64::new(0),
        });
        let mut open = self.open.write();
        if open.len() >= MAX_TAPS {
            return Err(TooMany);
        }
        open.push(tap.clone());
        self.on.store(open.len(), Ordering::Relaxed);
        drop(open);
        let mut report = interval(REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(TapBody {
            taps: self.clone(),
            tap,
            lines,
            report,
        })
    }

    pub(super) fn offer(&self, line: &Line<'_>) {
        let mut written = None;
        for tap in self.open.read().iter() {
            if !tap.filter.wants(line) {
                continue;
            }
            if !tap.pace.admits(Instant::now()) {
                tap.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let line = written.get_or_insert_with(|| line.to_bytes()).clone();
            if tap.lines.try_send(line).is_err() {
                tap.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

// === impl Filter ===

impl Filter {
    fn wants(&self, line: &Line<'_>) -> bool {
        let (workload, direction) = match line {
            Line::Request(record) | Line::Connection(record) => {
                (&record.workload, record.direction)
            }
            Line::Failure(failed) => (&failed.workload, failed.direction),
            Line::Dropped { .. } => return true,
        };
        let ours = (self.workloads.is_empty() || self.workloads.contains(workload))
            && self
                .direction
                .is_none_or(|wanted| wanted.as_str() == direction);
        ours && match line {
            Line::Request(record) | Line::Connection(record) => {
                fits(self.path.as_deref(), record.path, |wanted, path| {
                    path.starts_with(wanted)
                }) && fits(self.method.as_deref(), record.method, |wanted, method| {
                    wanted.eq_ignore_ascii_case(method)
                }) && fits(self.peer.as_deref(), Some(record.peer), is_peer)
            }
            // What is not known of it cannot be asked for.
            _ => self.path.is_none() && self.method.is_none() && self.peer.is_none(),
        }
    }
}

fn fits(wanted: Option<&str>, found: Option<&str>, fit: impl Fn(&str, &str) -> bool) -> bool {
    wanted.is_none_or(|wanted| found.is_some_and(|found| fit(wanted, found)))
}

fn is_peer(wanted: &str, peer: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(start) => peer.starts_with(start),
        None => peer == wanted,
    }
}

// === impl Pace ===

impl Pace {
    fn new(rate: u32) -> Self {
        let every = Duration::from_secs(1) / rate.max(1);
        Self {
            start: Instant::now(),
            every_ns: nanoseconds(every),
            due: AtomicU64::new(0),
        }
    }

    fn admits(&self, now: Instant) -> bool {
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let latest = now + nanoseconds(Duration::from_secs(1));
        self.due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
                let next = due.max(now) + self.every_ns;
                (next <= latest).then_some(next)
            })
            .is_ok()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

// === impl Line ===

impl Line<'_> {
    fn to_bytes(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }
}

// === impl TapBody ===

impl Body for TapBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(line) = self.lines.poll_recv(cx) {
            return Poll::Ready(line.map(|line| Ok(Frame::data(line))));
        }
        while self.report.poll_tick(cx).is_ready() {
            let count = self.tap.dropped.swap(0, Ordering::Relaxed);
            if count > 0 {
                let line = Line::Dropped { count }.to_bytes();
                return Poll::Ready(Some(Ok(Frame::data(line))));
            }
        }
        Poll::Pending
    }
}

impl Drop for TapBody {
    fn drop(&mut self) {
        let mut open = self.taps.open.write();
        open.retain(|tap| !Arc::ptr_eq(tap, &self.tap));
        self.taps.on.store(open.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use serde_json::Value;

    fn record(path: &'static str) -> Record<'static> {
        Record {
            time: "2025-01-01T00:00:00Z".to_owned(),
            direction: "inbound",
            workload: "shop/web-0".to_owned(),
            client: "10.0.0.1:5000".parse().unwrap(),
            server: None,
            peer: "shop/cart",
            tls: true,
            protocol: "http/1",
            method: Some("GET"),
            authority: Some("web"),
            path: Some(path),
            status: Some(200),
            sent_bytes: None,
            received_bytes: None,
            duration_us: 250,
            error: None,
        }
    }

    async fn next(body: &mut TapBody) -> Value {
        let frame = body.frame().await.unwrap().unwrap();
        serde_json::from_slice(frame.data_ref().unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_tap_gets_its_share_and_hears_what_it_missed() {
        let taps = Arc::new(Taps::default());
        assert!(!taps.is_on());
        let mut body = taps.open(Filter::default(), 3).unwrap();
        assert!(taps.is_on());
        for _ in 0..10 {
            taps.offer(&Line::Request(&record("/cart")));
        }
        for _ in 0..3 {
            let line = next(&mut body).await;
            assert_eq!(
                (&line["kind"], &line["path"]),
                (&"request".into(), &"/cart".into())
            );
        }
        let line = next(&mut body).await;
        assert_eq!(
            (&line["kind"], &line["count"]),
            (&"dropped".into(), &7.into())
        );
        drop(body);
        assert!(!taps.is_on());
    }

    #[tokio::test]
    async fn there_are_only_so_many_and_a_place_is_free_again() {
        let taps = Arc::new(Taps::default());
        let open = || taps.open(Filter::default(), DEFAULT_RATE);
        let mut all: Vec<_> = (0..MAX_TAPS).map(|_| open().unwrap()).collect();
        assert!(open().is_err());
        all.pop();
        assert!(open().is_ok());
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_keeps_nobody_waiting() {
        let taps = Arc::new(Taps::default());
        let body = taps.open(Filter::default(), MAX_RATE).unwrap();
        for _ in 0..QUEUE + 5 {
            taps.offer(&Line::Request(&record("/cart")));
        }
        assert_eq!(body.tap.dropped.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_pace_is_a_burst_and_then_evenly_spread() {
        let pace = Pace::new(10);
        let at = |ms| pace.start + Duration::from_millis(ms);
        let burst = (0..20).filter(|_| pace.admits(at(0))).count();
        assert_eq!(burst, 10);
        let spread: Vec<_> = (1..=1000).filter(|ms| pace.admits(at(*ms))).collect();
        assert_eq!(spread, (1..=10).map(|n| n * 100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_asked_for_is_left_out() {
        let cart = record("/cart/1");
        let bytes = Record {
            method: None,
            path: None,
            ..record("")
        };
        let failed = Failed {
            time: String::new(),
            direction: "inbound",
            workload: "shop/web-0".to_owned(),
            reason: "connect",
            error: "refused".to_owned(),
        };
        let some = |text: &str| Some(text.to_owned());
        let none = Filter::default;
        #[rustfmt::skip]
        let table = [
            (none(), [true, true, true]),
            (Filter { workloads: vec!["shop/web-0".into()], ..none() }, [true, true, true]),
            (Filter { workloads: vec!["shop/web-1".into()], ..none() }, [false, false, false]),
            (Filter { direction: Some(Direction::Outbound), ..none() }, [false, false, false]),
            (Filter { path: some("/cart"), ..none() }, [true, false, false]),
            (Filter { path: some("/cat"), ..none() }, [false, false, false]),
            (Filter { method: some("get"), ..none() }, [true, false, false]),
            (Filter { method: some("POST"), ..none() }, [false, false, false]),
            (Filter { peer: some("shop/cart"), ..none() }, [true, true, false]),
            (Filter { peer: some("shop/*"), ..none() }, [true, true, false]),
            (Filter { peer: some("shop"), ..none() }, [false, false, false]),
        ];
        for (filter, expected) in table {
            let lines = [
                Line::Request(&cart),
                Line::Connection(&bytes),
                Line::Failure(&failed),
            ];
            assert_eq!(
                lines.map(|line| filter.wants(&line)),
                expected,
                "{filter:?}"
            );
        }
    }
}
