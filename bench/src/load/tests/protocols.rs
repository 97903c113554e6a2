//! Each protocol against the project's own server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::report::LoadReport;
use super::super::{LoadArgs, LoadError};
use super::{CommandLine, args, generate, load};
use crate::serve::{ServeArgs, Server, Service};
use clap::Parser;

/// Starts the server for the rest of the test process's life; returns its HTTP and echo addresses.
fn serve() -> (SocketAddr, SocketAddr) {
    serve_on(0)
}

/// As [`serve`], with a given HTTP port.
pub fn serve_on(http: u16) -> (SocketAddr, SocketAddr) {
    let (sender, ports) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let args = ServeArgs {
                http: vec![http],
                tcp: vec![0],
                ..ServeArgs::default()
            };
            let server = Server::bind(&args).unwrap();
            let port = |service| SocketAddr::from(([127, 0, 0, 1], server.port(service).unwrap()));
            sender
                .send((port(Service::Http), port(Service::Echo)))
                .unwrap();
            server.run(std::future::pending()).await;
        });
    });
    ports.recv().unwrap()
}

fn with_path(mut args: LoadArgs, path: &str) -> LoadArgs {
    args.url.push_str(path);
    args
}

fn expect_all(report: &LoadReport, bytes_each: u64) {
    assert!(report.offered > 20);
    assert_eq!(report.completed, report.offered, "{:?}", report.errors);
    assert_eq!(report.received_bytes, report.completed * bytes_each);
    assert_eq!(
        report.histograms.response.decode().unwrap().len(),
        report.completed
    );
    assert_eq!(
        report.histograms.service.decode().unwrap().len(),
        report.completed
    );
}

const FLAGS: &str = "--rate 200 --duration 300ms --connections 3";

#[test]
fn http_over_kept_connections() {
    let (http, _) = serve();
    for protocol in ["http1", "http2"] {
        let report = load(&with_path(
            args(http, &format!("{FLAGS} --protocol {protocol}")),
            "bytes/1024",
        ));
        expect_all(&report, 1024);
        assert!(report.connection_counts.opened <= 3);
        assert_eq!(report.connection_counts.lost, 0);
        assert!(report.histograms.connect.is_none());
    }
}

#[test]
fn posts_and_grpc_shaped_calls() {
    let (http, _) = serve();
    let post = args(http, &format!("{FLAGS} --request-bytes 500"));
    expect_all(&load(&with_path(post, "echo")), 500);
    let call = args(
        http,
        &format!("{FLAGS} --protocol grpc --request-bytes 100"),
    );
    expect_all(&load(&with_path(call, "duet.bench.Echo/Call")), 105);
}

#[test]
fn echoed_frames() {
    let (_, echo) = serve();
    let flags = format!("{FLAGS} --protocol tcp --request-bytes 3000");
    let report = load(&args(echo, &flags));
    expect_all(&report, 3000);
    assert_eq!(report.connection_counts.lost, 0);
}

#[test]
fn a_new_connection_for_each_request() {
    let (http, echo) = serve();
    for (address, protocol, bytes) in [(http, "http1", 17), (http, "http2", 17), (echo, "tcp", 64)]
    {
        let flags = format!("{FLAGS} --protocol {protocol} --new-connection-per-request");
        let report = load(&args(address, &flags));
        expect_all(&report, bytes);
        assert_eq!(report.connection_counts.opened, report.completed);
        let connect = report
            .histograms
            .connect
            .as_ref()
            .unwrap()
            .decode()
            .unwrap();
        let first_byte = report
            .histograms
            .first_byte
            .as_ref()
            .unwrap()
            .decode()
            .unwrap();
        assert_eq!(
            (connect.len(), first_byte.len()),
            (report.completed, report.completed)
        );
        assert!(connect.max() <= first_byte.max());
    }
}

#[test]
fn wrong_flags_are_named() {
    let wrong = |flags: &str| {
        let words = ["load", "--url=http://127.0.0.1:1/"]
            .into_iter()
            .chain(flags.split_whitespace());
        let error = generate(&CommandLine::try_parse_from(words).unwrap().load).unwrap_err();
        assert!(error.is_usage());
        error.to_string()
    };
    assert!(wrong("--rate 0").starts_with("--rate: "));
    assert!(wrong("--rate 1 --timeout 2m").starts_with("--timeout: "));
    assert!(wrong("--rate 1 --protocol tcp --request-bytes 3").starts_with("--request-bytes: "));
    let mut https = args(SocketAddr::from(([127, 0, 0, 1], 1)), "--rate 1");
    https.url = "https://web/".to_owned();
    assert!(matches!(https.plan(), Err(LoadError::Usage(text)) if text.contains("write http://")));
    assert_eq!(https.duration, Duration::from_secs(10));
}

#[tokio::test]
async fn a_processor_that_there_is_not_is_refused() {
    let pinned = args("127.0.0.1:9".parse().unwrap(), "--rate 1 --pin 100000");
    let stop = Arc::new(AtomicBool::new(false));
    let error = super::super::run_in_thread(pinned, stop).await.unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("--pin"),
        "{error}"
    );
}
