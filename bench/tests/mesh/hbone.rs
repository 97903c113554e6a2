//! A peer that speaks HBONE as Istio's ambient mode describes it, and nothing of Duet's:
//! mutual TLS with SPIFFE names, ALPN h2, port 15008, and in it CONNECT streams whose
//! authority is the address that their bytes are for.

use super::Mesh;
use super::app::App;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub const HBONE: u16 = 15008;
const BUFFER: usize = 64 * 1024;

/// Who the peer is, by a certificate of the mesh's own authority.
pub struct Papers {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

/// A stream that was asked for, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which connection it came on.
    pub connection: usize,
    /// The client's SPIFFE ID.
    pub client: String,
    pub request: Arc<http::request::Parts>,
}

/// What has been asked of a peer's port.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<(usize, Vec<Asked>)>>);

/// A connection to a proxy.
pub struct Dialled {
    sender: h2::client::SendRequest<Bytes>,
    /// The proxy's SPIFFE ID.
    pub server: String,
}

// === impl Papers ===

impl Papers {
    pub fn of(mesh: &Mesh, identity: &str) -> Result<Self> {
        let state = mesh
            .cluster
            .control()
            .context("no control plane")?
            .state_dir;
        let authority = std::fs::read_to_string(state.join("ca.key"))?;
        let root = CertificateDer::from_pem_slice(authority.as_bytes())?;
        let issuer = Issuer::from_ca_cert_der(&root, KeyPair::from_pem(&authority)?)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - Duration::from_secs(60);
        params.not_after = now + Duration::from_secs(3600);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &issuer)?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(state.join("root.pem"))? {
            roots.add(root?)?;
        }
        Ok(Self {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?,
            roots: Arc::new(roots),
        })
    }

    fn server(&self) -> Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients.build()?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn client(&self) -> Result<TlsConnector> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chains =
            WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider.clone());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(chains.build()?)))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Takes streams in the pod, and has each served as an application would a
    /// connection to the port that it names; `None` refuses it.
    pub fn serve<F>(
        &self,
        pod: &App,
        serve: impl Fn(u16) -> Option<F> + Send + 'static,
    ) -> Result<Ledger>
    where
        F: FnOnce(DuplexStream) + Send + 'static,
    {
        let (tls, listener) = (self.server()?, pod.listen(HBONE));
        let (ledger, serve) = (Ledger::default(), Arc::new(Mutex::new(serve)));
        let told = ledger.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, ledger, serve) = (tls.clone(), told.clone(), serve.clone());
                tokio::spawn(async move {
                    let connection = {
                        let mut ledger = ledger.0.lock().unwrap();
                        ledger.0 += 1;
                        ledger.0
                    };
                    let stream = tls.accept(tcp).await?;
                    ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "no ALPN");
                    let client = spiffe(stream.get_ref().1.peer_certificates())?;
                    let mut streams = h2::server::handshake(stream).await?;
                    while let Some(next) = streams.accept().await {
                        let (request, mut respond) = next?;
                        let (head, receive) = request.into_parts();
                        let port = head.uri.port_u16().unwrap_or_default();
                        let request = Arc::new(head);
                        let client = client.clone();
                        ledger.0.lock().unwrap().1.push(Asked {
                            connection,
                            client,
                            request,
                        });
                        let Some(serve) = serve.lock().unwrap()(port) else {
                            let mut refusal = Response::new(());
                            *refusal.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                            respond.send_response(refusal, true)?;
                            continue;
                        };
                        let send = respond.send_response(Response::new(()), false)?;
                        serve(pump(send, receive));
                    }
                    anyhow::Ok(())
                });
            }
        });
        Ok(ledger)
    }

    /// Does TLS with a pod's proxy for whoever connects to this port.
    pub fn forward(&self, from: &Arc<App>, port: u16, to: &App) -> Result<()> {
        let (tls, listener) = (self.client()?, from.listen(port));
        let (from, to) = (from.clone(), to.at(HBONE));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (tls, from) = (tls.clone(), from.clone());
                tokio::spawn(async move {
                    let name = ServerName::IpAddress(to.ip().into());
                    let mut far = tls.connect(name, from.connect(to).await?).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Ok(())
    }

    /// Connects to a pod's proxy.
    pub async fn dial(&self, from: &App, to: &App) -> Result<Dialled> {
        let tcp: TcpStream = from.connect(to.at(HBONE)).await?;
        let name = ServerName::IpAddress(to.at(HBONE).ip().into());
        let stream = self.client()?.connect(name, tcp).await?;
        ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "no ALPN");
        let server = spiffe(stream.get_ref().1.peer_certificates())?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Dialled { sender, server })
    }
}

// === impl Ledger ===

impl Ledger {
    /// And forgets it.
    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

// === impl Dialled ===

impl Dialled {
    /// A tunnel to an address, or what it is refused with.
    pub async fn tunnel(&self, authority: &str) -> Result<Result<DuplexStream, StatusCode>> {
        // What ztunnel says beside it.
        let request = Request::connect(authority)
            .header("baggage", "k8s.namespace.name=default,service.name=peer")
            .header("forwarded", "for=10.0.0.1")
            .header(
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            )
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, send) = sender.send_request(request, false)?;
        let response = response.await?;
        Ok(match response.status() {
            StatusCode::OK => Ok(pump(send, response.into_body())),
            status => Err(status),
        })
    }
}

/// A tunnel as bytes. Its reset is an end that nothing was said before.
fn pump(mut send: SendStream<Bytes>, mut receive: RecvStream) -> DuplexStream {
    let (near, far) = tokio::io::duplex(BUFFER);
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(Ok(data)) = receive.data().await {
            receive.flow_control().release_capacity(data.len())?;
            to.write_all(&data).await?;
        }
        to.shutdown().await?;
        anyhow::Ok(())
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from.read(&mut buffer).await?;
            let mut data = Bytes::copy_from_slice(&buffer[..read]);
            if data.is_empty() {
                send.send_data(data, true)?;
                return anyhow::Ok(());
            }
            while !data.is_empty() {
                send.reserve_capacity(data.len());
                let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
                let capacity = capacity.context("the stream is gone")??;
                send.send_data(data.split_to(capacity.min(data.len())), false)?;
            }
        }
    });
    near
}

/// The one URI of a certificate.
fn spiffe(chain: Option<&[CertificateDer<'_>]>) -> Result<String> {
    let leaf = chain.and_then(<[_]>::first).context("no certificate")?;
    let (_, leaf) = X509Certificate::from_der(leaf)?;
    let names = leaf.subject_alternative_name()?.context("no names")?;
    match names.value.general_names[..] {
        [GeneralName::URI(uri)] => Ok(uri.to_owned()),
        ref others => anyhow::bail!("{others:?}"),
    }
}

/// Chains lead to a root; names are SPIFFE's, which is looked at afterwards.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(leaf, chain, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
