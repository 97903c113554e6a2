//! Against the suite's own server, and one that speaks TLS.

use super::*;
use crate::serve::{ServeArgs, Server, Service};
use std::net::Ipv4Addr;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

async fn of(kind: Kind, to: SocketAddr, connections: u32) -> StressReport {
    let args = StressArgs {
        kind,
        to,
        connections,
        rate: None,
        start_at: None,
        duration: Duration::from_millis(1500),
    };
    stress(&args).await.expect("it can be done")
}

/// The server lives as long as the test's runtime.
fn http() -> SocketAddr {
    let server = Server::bind(&ServeArgs {
        http: vec![0],
        ..ServeArgs::default()
    })
    .expect("a free port");
    let port = server.port(Service::Http).expect("it serves HTTP");
    tokio::spawn(server.run(std::future::pending()));
    (Ipv4Addr::LOCALHOST, port).into()
}

#[tokio::test]
async fn bulk_counts_what_it_received() {
    let report = of(Kind::Bulk, http(), 2).await;
    assert_eq!((report.standing, report.failed), (2, 0));
    assert!(report.bytes > 10 << 20, "{report:?}");
}

#[tokio::test]
async fn slow_clients_stand_and_take_next_to_nothing() {
    let to = http();
    let heads = of(Kind::SlowHead, to, 8).await;
    assert_eq!((heads.standing, heads.bytes), (8, 0));
    let readers = of(Kind::SlowReader, to, 8).await;
    assert_eq!(readers.standing, 8);
    assert!((1..=8 * 2 * 1024).contains(&readers.bytes), "{readers:?}");
}

#[tokio::test]
async fn a_handshake_counts_once_the_server_has_done_its_part() {
    let made = rcgen::generate_simple_self_signed(["flood".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a server's configuration");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let to = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(acceptor.accept(stream));
        }
    });
    let report = of(Kind::Handshakes, to, 4).await;
    assert!(report.done > 20 && report.failed == 0, "{report:?}");
    // Nobody there speaks TLS.
    let report = of(Kind::Handshakes, http(), 2).await;
    assert!(report.done == 0 && report.failed > 0, "{report:?}");
}

#[tokio::test]
async fn a_pace_is_kept() {
    let args = StressArgs {
        kind: Kind::Handshakes,
        to: http(),
        connections: 4,
        rate: Some(20.0),
        start_at: None,
        duration: Duration::from_secs(2),
    };
    let report = stress(&args).await.expect("it can be done");
    assert!((20..=60).contains(&report.failed), "{report:?}");
}
