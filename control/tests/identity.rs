//! Certificates: who gets one, what it says, and that TLS believes it.

mod mesh;

use mesh::{LIFETIME, MESH, PATIENCE, Proxy, Site, forged, metric, node, workload};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Code;
use x509_parser::extensions::GeneralName;

fn roots(der: &[Vec<u8>]) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    for root in der {
        store.add(CertificateDer::from(root.clone())).unwrap();
    }
    Arc::new(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[tokio::test]
async fn a_certificate_says_who_the_workload_is_and_chains_to_the_root() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let proxy = site.proxy(&control, workload("web-0")).await;
    let answer = proxy
        .certify_with("default/web-0", csr.der().to_vec())
        .await
        .unwrap();

    let [leaf] = answer.chain.as_slice() else {
        panic!("one leaf, directly under the root")
    };
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let san = parsed.subject_alternative_name().unwrap().unwrap();
    let [GeneralName::URI(id)] = san.value.general_names.as_slice() else {
        panic!("{:?}", san.value.general_names)
    };
    assert_eq!(*id, "spiffe://duet.local/ns/default/sa/web");
    assert_eq!(
        parsed.public_key().subject_public_key.data.as_ref(),
        key.public_key_raw()
    );
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);

    let now = i64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    )
    .unwrap();
    assert_eq!(parsed.validity().not_before.timestamp(), answer.not_before);
    assert_eq!(parsed.validity().not_after.timestamp(), answer.not_after);
    assert!(
        (295..=310).contains(&(now - answer.not_before)),
        "backdated by 5 minutes"
    );
    let left = answer.not_after - now;
    assert!((LIFETIME.as_secs() as i64 - 10..=LIFETIME.as_secs() as i64).contains(&left));

    // As rustls sees it, with the roots the answer gave; and with a stranger's, not.
    let leaf = CertificateDer::from(leaf.clone());
    let believes = |roots| {
        WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .unwrap()
            .verify_client_cert(&leaf, &[], UnixTime::now())
    };
    believes(roots(&answer.roots)).unwrap();
    let other = Site::new(MESH);
    let other = other.state_dir().authority().unwrap();
    assert!(believes(roots(&[other.bundle()[0].to_vec()])).is_err());
    assert_eq!(
        metric(&control, "duet_control_certificates_issued_total").await,
        1.0
    );
}

#[tokio::test]
async fn nobody_speaks_for_another() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let sidecar = site.proxy(&control, workload("web-0")).await;
    let agent = site.proxy(&control, node("node-1")).await;

    let refused = sidecar.certify("default/web-1").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "this token speaks for default/web-0, not for default/web-1"
    );
    // Whether another workload exists is not told either.
    let refused = sidecar.certify("default/none-such").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    agent.certify("default/web-0").await.unwrap();
    let refused = agent.certify("default/web-1").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "this token speaks for the workloads on node node-1, and default/web-1 is on node-2"
    );
    let denied = r#"duet_control_certificates_refused_total{reason="permission_denied"}"#;
    assert_eq!(metric(&control, denied).await, 3.0);
}

#[tokio::test]
async fn without_a_good_token_there_is_nothing() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let proxy = site.proxy(&control, workload("web-0")).await;
    let forged = forged(&workload("web-0"));
    let tampered = proxy.token.clone().unwrap().replace("duet1.", "duet2.");
    let cases: [(Option<&str>, &str); 5] = [
        (None, "no bearer token"),
        (Some(""), "no bearer token"),
        (Some("nonsense"), "was not signed"),
        (Some(&forged), "was not signed"),
        (Some(&tampered), "was not signed"),
    ];
    for (token, reason) in cases {
        let stranger = proxy.with_token(token);
        for refused in [
            stranger.certify("default/web-0").await.err().unwrap(),
            stranger.watch().await.err().unwrap(),
        ] {
            assert_eq!(refused.code(), Code::Unauthenticated, "{token:?}");
            assert!(refused.message().contains(reason), "{}", refused.message());
        }
    }
}

#[tokio::test]
async fn requests_that_cannot_be_met_say_why() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let agent = site.proxy(&control, node("node-1")).await;
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default()
        .serialize_request(&p384)
        .unwrap()
        .der()
        .to_vec();

    let code = |outcome: Result<_, tonic::Status>| outcome.err().unwrap().code();
    assert_eq!(code(agent.certify("default/new").await), Code::NotFound);
    assert_eq!(code(agent.certify("web-0").await), Code::InvalidArgument);
    assert_eq!(
        code(agent.certify("default/old").await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(agent.certify_with("default/web-0", p384).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(agent.certify_with("default/web-0", vec![]).await),
        Code::InvalidArgument
    );
    let huge = vec![0; 100 * 1024];
    assert_eq!(
        code(agent.certify_with("default/web-0", huge).await),
        Code::OutOfRange
    );
    // None of which did any harm.
    agent.certify("default/web-0").await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_the_root_and_the_tokens() {
    let site = Site::new(MESH);
    let first = site.start().await;
    let proxy = site.proxy(&first, workload("web-0")).await;
    let token = proxy.token.clone().unwrap();
    let before = proxy.certify("default/web-0").await.unwrap();
    let root = site.root_pem();
    first.stop().await;

    let second = site.start().await;
    assert_eq!(site.root_pem(), root);
    let proxy = Proxy::connect(second.api_addr(), &root, token).await;
    let after = proxy.certify("default/web-0").await.unwrap();
    assert_eq!(after.roots, before.roots);
    // A certificate of the first life is good in the second.
    WebPkiClientVerifier::builder_with_provider(roots(&after.roots), provider())
        .build()
        .unwrap()
        .verify_client_cert(
            &CertificateDer::from(before.chain[0].clone()),
            &[],
            UnixTime::now(),
        )
        .unwrap();
}

#[tokio::test]
async fn only_tls_1_3_and_only_the_mesh_root() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let bundle = site.state_dir().authority().unwrap();
    let bundle = [bundle.bundle()[0].to_vec()];
    let handshake = async |versions: &[&'static rustls::SupportedProtocolVersion],
                           name: &'static str| {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots(&bundle))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(control.api_addr())
            .await
            .unwrap();
        let handshake = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name).unwrap(), stream);
        tokio::time::timeout(PATIENCE, handshake).await.unwrap()
    };
    let (v12, v13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    handshake(&[v13], "duet-control").await.unwrap();
    assert!(handshake(&[v12], "duet-control").await.is_err(), "TLS 1.2");
    assert!(handshake(&[v13], "web-0").await.is_err(), "another name");
}

#[tokio::test]
async fn a_connection_that_never_speaks_keeps_nobody_waiting() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(
            tokio::net::TcpStream::connect(control.api_addr())
                .await
                .unwrap(),
        );
    }
    let proxy = tokio::time::timeout(
        Duration::from_secs(3),
        site.proxy(&control, workload("web-0")),
    );
    proxy
        .await
        .expect("in time")
        .certify("default/web-0")
        .await
        .unwrap();
}
