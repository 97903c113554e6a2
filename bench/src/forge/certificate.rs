//! Somebody else's certificate, and what one's own is good for.

use super::{Credentials, PATIENCE};
use crate::stress::Careless;
use duet_core::api::CertifyRequest;
use duet_core::api::identity_client::IdentityClient;
use http::{Method, Request};
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

/// In duet-control's own certificate.
const CONTROL_NAME: &str = "duet-control";

/// A certificate and its key.
pub struct Held {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// Asks duet-control for a workload's certificate.
pub async fn ask(credentials: &Credentials) -> Result<Held, String> {
    let read = |path| std::fs::read(path).map_err(|error| error.to_string());
    let roots = Certificate::from_pem(read(&credentials.trust_bundle)?);
    let token = String::from_utf8_lossy(&read(&credentials.token)?)
        .trim()
        .to_owned();
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .map_err(|error| error.to_string())?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(roots)
        .domain_name(CONTROL_NAME);
    let asked = async {
        let channel = Channel::from_shared(credentials.control.clone())
            .map_err(|error| error.to_string())?
            .tls_config(tls)
            .map_err(|error| error.to_string())?
            .connect()
            .await
            .map_err(|error| format!("{error:?}"))?;
        let mut request = tonic::Request::new(CertifyRequest {
            workload: credentials.workload.clone(),
            csr: csr.der().to_vec(),
        });
        let bearer = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|error| error.to_string())?;
        request.metadata_mut().insert("authorization", bearer);
        let answer = IdentityClient::new(channel).certify(request).await;
        answer.map_err(|status| status.to_string())
    };
    let answer = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| "no answer".to_owned())??
        .into_inner();
    Ok(Held {
        chain: answer.chain.into_iter().map(CertificateDer::from).collect(),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()),
    })
}

/// Has a proxy open a tunnel to an address.
pub async fn connect(
    held: &Held,
    proxy: SocketAddr,
    authority: SocketAddr,
) -> Result<String, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider)))
        .with_client_auth_cert(held.chain.clone(), held.key.clone_key().into())
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tunnel = async {
        let stream = TcpStream::connect(proxy)
            .await
            .map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(ServerName::IpAddress(proxy.ip().into()), stream)
            .await
            .map_err(|error| error.to_string())?;
        let (sender, connection) = h2::client::handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let mut sender = sender.ready().await.map_err(|error| error.to_string())?;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(authority.to_string())
            .body(())
            .map_err(|error| error.to_string())?;
        let (answer, _open) = sender
            .send_request(request, false)
            .map_err(|error| error.to_string())?;
        let answer = answer.await.map_err(|error| error.to_string())?;
        match answer.status() {
            status if status.is_success() => Ok(status.to_string()),
            status => Err(status.to_string()),
        }
    };
    tokio::time::timeout(PATIENCE, tunnel)
        .await
        .unwrap_or_else(|_| Err("no answer".to_owned()))
}
