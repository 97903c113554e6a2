//! A new connection for every request: what connecting costs, proxies and handshakes included.
//!
//! For HTTP/1.1 the request asks the server to close, so that TIME_WAIT stays on the server's side and
//! the generator does not run out of ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::clock::now_ns;
use super::connection::{Answer, Connection, within};
use super::error::ErrorKind;
use super::http2;
use super::record::{Due, SharedRecorder};
use super::target::{Protocol, Target};

struct Shared {
    target: Target,
    timeout: Duration,
    in_flight_limit: usize,
    in_flight: AtomicUsize,
    recorder: SharedRecorder,
}

pub struct Fresh(Arc<Shared>);

impl Fresh {
    pub fn new(
        target: Target,
        in_flight_limit: usize,
        timeout: Duration,
        recorder: SharedRecorder,
    ) -> Self {
        let in_flight = AtomicUsize::new(0);
        Self(Arc::new(Shared {
            target,
            timeout,
            in_flight_limit,
            in_flight,
            recorder,
        }))
    }

    /// Opens a connection for a due request.
    pub fn dispatch(&self, due: Due, now_ns: u64) {
        if self.0.in_flight.load(Ordering::Relaxed) >= self.0.in_flight_limit {
            self.0
                .recorder
                .lock()
                .unsent(due, now_ns, ErrorKind::QueueFull);
            return;
        }
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(request(self.0.clone(), due));
    }
}

async fn request(shared: Arc<Shared>, due: Due) {
    let sent_ns = now_ns();
    shared.recorder.lock().sent(due, sent_ns, 0);
    match exchange(&shared, due.number, sent_ns).await {
        Ok(done) => {
            {
                let mut recorder = shared.recorder.lock();
                recorder.connections.opened += 1;
                recorder.finished(due, sent_ns, done.answer.done_ns, Ok(done.answer.bytes));
                let first_byte_ns = done.answer.first_byte_ns - sent_ns;
                recorder.new_connection(due, done.connected_ns - sent_ns, first_byte_ns);
            }
            if let Some(mut connection) = done.closing {
                let _ = tokio::time::timeout(shared.timeout, connection.closed()).await;
            }
        }
        Err(failure) => {
            let mut recorder = shared.recorder.lock();
            recorder.finished(due, sent_ns, now_ns(), Err(failure.kind));
            if failure.connected {
                recorder.connections.opened += 1;
                recorder.connections.lost += 1;
            } else {
                recorder.connections.failed_attempts += 1;
            }
        }
    }
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
}

struct Done {
    connected_ns: u64,
    answer: Answer,
    /// A connection which the server is about to close.
    closing: Option<Connection>,
}

struct Failure {
    kind: ErrorKind,
    connected: bool,
}

async fn exchange(shared: &Shared, number: u64, sent_ns: u64) -> Result<Done, Failure> {
    let unconnected = |kind| Failure {
        kind,
        connected: false,
    };
    let connected = |kind| Failure {
        kind,
        connected: true,
    };
    let left = || {
        shared
            .timeout
            .saturating_sub(Duration::from_nanos(now_ns() - sent_ns))
    };
    let target = &shared.target;

    if matches!(target.protocol, Protocol::Http2 | Protocol::Grpc) {
        let (mut sender, driver) = within(left(), ErrorKind::ConnectTimeout, http2::open(target))
            .await
            .map_err(unconnected)?;
        let connected_ns = now_ns();
        let driving = tokio::spawn(driver);
        let answer = within(
            left(),
            ErrorKind::Timeout,
            http2::exchange(&mut sender, target),
        )
        .await;
        if answer.is_err() {
            driving.abort();
        }
        return Ok(Done {
            connected_ns,
            answer: answer.map_err(connected)?,
            closing: None,
        });
    }

    let mut connection = within(
        left(),
        ErrorKind::ConnectTimeout,
        Connection::open(target, true),
    )
    .await
    .map_err(unconnected)?;
    let connected_ns = now_ns();
    let answer = within(
        left(),
        ErrorKind::Timeout,
        connection.exchange(target, number),
    )
    .await
    .map_err(connected)?;
    let closing = (target.protocol == Protocol::Http1).then_some(connection);
    Ok(Done {
        connected_ns,
        answer,
        closing,
    })
}
