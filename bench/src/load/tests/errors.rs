//! Every way to fail is counted under its own name.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::super::connection::{Connection, within};
use super::super::error::ErrorKind;
use super::super::report::LoadReport;
use super::responder::{Responder, closed_port, read_request, serve_each};
use super::{MS, args, load};

const FLAGS: &str = "--rate 100 --duration 200ms --connections 2";

fn expect_only(report: &LoadReport, kind: ErrorKind) {
    assert!(report.offered > 0);
    assert_eq!(report.completed, 0);
    assert_eq!(
        report.errors.keys().collect::<Vec<_>>(),
        [&kind],
        "{:?}",
        report.errors
    );
    let in_distribution = if kind.is_timeout() { report.offered } else { 0 };
    assert_eq!(
        report.histograms.response.decode().unwrap().len(),
        in_distribution
    );
}

/// Loads a server that treats each connection as `handle` says.
fn against(handle: impl Fn(TcpStream) + Clone + Send + 'static, flags: &str) -> LoadReport {
    load(&args(serve_each(handle), &format!("{FLAGS} {flags}")))
}

/// Answers every request with the same bytes.
fn answering(bytes: &'static [u8]) -> impl Fn(TcpStream) + Clone + Send + 'static {
    move |mut stream| {
        while read_request(&mut stream).is_some() && stream.write_all(bytes).is_ok() {}
    }
}

#[test]
fn nobody_listens() {
    for protocol in [
        "http1",
        "http2",
        "http1 --new-connection-per-request",
        "http2 --new-connection-per-request",
    ] {
        let report = load(&args(
            closed_port(),
            &format!("{FLAGS} --protocol {protocol}"),
        ));
        expect_only(&report, ErrorKind::ConnectRefused);
        assert!(report.connection_counts.failed_attempts >= report.offered.min(2));
        assert_eq!(report.connection_counts.opened, 0);
    }
}

#[test]
fn the_server_resets() {
    let reset = |mut stream: TcpStream| {
        read_request(&mut stream);
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    };
    let report = against(reset, "");
    expect_only(&report, ErrorKind::Reset);
    assert!(report.connection_counts.lost > 0);
    expect_only(
        &against(reset, "--new-connection-per-request"),
        ErrorKind::Reset,
    );
}

#[test]
fn the_server_closes_without_an_answer() {
    let close = |mut stream: TcpStream| {
        read_request(&mut stream);
    };
    expect_only(&against(close, ""), ErrorKind::Closed);
    let half_an_answer = |mut stream: TcpStream| {
        read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    };
    expect_only(&against(half_an_answer, ""), ErrorKind::Closed);
}

/// A request that meets a connection closed a moment ago fails then, not at its time-out.
#[tokio::test]
async fn a_request_on_a_closed_connection_fails_at_once() {
    let (closed, told) = std::sync::mpsc::channel();
    let address = serve_each(move |stream| {
        drop(stream);
        closed.send(()).unwrap();
    });
    let target = args(address, "--rate 1").plan().unwrap().target;
    let mut connection = Connection::open(&target, false).await.unwrap();
    told.recv().unwrap();
    let limit = Duration::from_secs(5);
    let exchange = within(limit, ErrorKind::Timeout, connection.exchange(&target, 0)).await;
    let kind = exchange.unwrap_err();
    assert!(
        [ErrorKind::Closed, ErrorKind::Reset].contains(&kind),
        "{kind}"
    );
}

#[test]
fn the_server_never_answers() {
    let open = Arc::new(Mutex::new(Vec::new()));
    let keep = move |stream| open.lock().unwrap().push(stream);
    for protocol in ["http1", "http2", "http1 --new-connection-per-request"] {
        let report = against(
            keep.clone(),
            &format!("--timeout 500ms --protocol {protocol}"),
        );
        expect_only(&report, ErrorKind::Timeout);
        let response = report.histograms.response.decode().unwrap();
        assert!(
            response.min() >= 499 * MS,
            "time-outs count with their full time: {}",
            response.min()
        );
    }
}

/// As a proxy does whose other end is gone. Retries are bounded by the back-off, not by the speed of loopback.
#[test]
fn the_server_accepts_and_closes() {
    for protocol in ["http1", "http2"] {
        let report = against(drop, &format!("--protocol {protocol}"));
        assert_eq!(report.completed, 0);
        let closed = [ErrorKind::Closed, ErrorKind::Reset];
        assert!(
            report.errors.keys().all(|kind| closed.contains(kind)),
            "{:?}",
            report.errors
        );
        let opened = report.connection_counts.opened;
        assert!(
            opened <= report.offered + 2 * 2 * 20,
            "{opened} connections in 200 ms"
        );
    }
}

#[test]
fn error_statuses_keep_the_connection() {
    let unavailable = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    let report = against(unavailable, "");
    expect_only(&report, ErrorKind::Status5xx);
    assert_eq!(report.connection_counts.lost, 0);
    let missing = answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    expect_only(&against(missing, ""), ErrorKind::Status4xx);
}

#[test]
fn the_server_speaks_another_protocol() {
    expect_only(
        &against(answering(b"220 ready\r\n"), ""),
        ErrorKind::Protocol,
    );
    let settings_refused = |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    };
    let report = against(settings_refused, "--protocol http2");
    // A request that finds its connection already broken sees it closed.
    assert!(
        report.completed == 0 && report.errors[&ErrorKind::Protocol] > 0,
        "{:?}",
        report.errors
    );
}

#[test]
fn the_queue_is_bounded() {
    let responder = Responder::start(Duration::from_millis(150), None);
    let flags = "--protocol tcp --rate 200 --duration 300ms --timeout 2s --connections 1 --queue 2";
    let report = load(&args(responder.address, flags));
    let full = report.errors[&ErrorKind::QueueFull];
    assert_eq!(full, report.failed());
    assert!(full > report.offered / 2, "{full} of {}", report.offered);
    assert_eq!(report.sent, report.completed);
}

/// A listener whose accept queue is full drops the SYN: a connect that hangs.
#[test]
fn the_connect_hangs() {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let filling = TcpStream::connect(address).unwrap();
    for protocol in ["http1", "http1 --new-connection-per-request"] {
        let flags = format!("{FLAGS} --timeout 100ms --protocol {protocol}");
        let report = load(&args(address, &flags));
        let hung = report
            .errors
            .get(&ErrorKind::ConnectTimeout)
            .copied()
            .unwrap_or(0);
        assert!(hung > 0 && report.completed == 0, "{:?}", report.errors);
        assert!(
            report.errors.keys().all(|kind| kind.is_timeout()),
            "{:?}",
            report.errors
        );
    }
    drop(filling);
}
