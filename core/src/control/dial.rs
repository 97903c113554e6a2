//! How a connection to duet-control is made: TLS 1.3, to whoever has duet-control's
//! name in a certificate that leads to a root of the trust bundle file or to one that
//! the mesh has told of since.
//!
//! The file is read for each connection, because it is a mounted ConfigMap that
//! follows the mesh's roots. A mount that does not follow (`subPath`) is why the roots
//! that came over earlier connections count as well.

use super::SERVER_NAME;
use crate::identity::{PROVIDER, Trust, explain_handshake};
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;

const HTTPS: u16 = 443;
/// The same trouble is told this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The file given by `--trust-bundle`.
#[derive(Debug)]
pub(super) struct TrustFile {
    path: PathBuf,
    last_good: Mutex<Vec<CertificateDer<'static>>>,
}

#[derive(Clone)]
pub(super) struct Dial {
    file: Arc<TrustFile>,
    trust: Trust,
    told: Arc<Mutex<Option<Instant>>>,
}

// === impl TrustFile ===

impl TrustFile {
    /// # Errors
    /// When it cannot be read or holds no certificate.
    pub fn open(path: &Path) -> Result<Self, String> {
        let roots = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            last_good: Mutex::new(roots),
        })
    }

    /// As it is now, or as it was when it was last good.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        match read(&self.path) {
            Ok(roots) => {
                self.last_good.lock().clone_from(&roots);
                roots
            }
            Err(problem) => {
                tracing::warn!("{problem}: what it held before is used");
                self.last_good.lock().clone()
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |problem: String| format!("--trust-bundle {}: {problem}", path.display());
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let roots: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    let mut store = RootCertStore::empty();
    let (good, _) = store.add_parsable_certificates(roots.iter().cloned());
    if good == 0 {
        return Err(failed(
            "holds no certificate: write the mesh's roots, PEM".to_owned(),
        ));
    }
    Ok(roots)
}

// === impl Dial ===

impl Dial {
    pub fn new(file: TrustFile, trust: Trust) -> Self {
        Self {
            file: Arc::new(file),
            trust,
            told: Arc::default(),
        }
    }

    async fn connect(self, to: Uri) -> io::Result<TlsStream<TcpStream>> {
        let host = to.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = to.port_u16().unwrap_or(HTTPS);
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let config = self.config().map_err(io::Error::other)?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        handshake.await.map_err(|error| {
            let problem = explain_handshake(&error);
            let mut told = self.told.lock();
            if told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
                *told = Some(Instant::now());
                tracing::warn!("duet-control at {host}:{port}: TLS: {problem}");
            }
            io::Error::new(error.kind(), problem)
        })
    }

    fn config(&self) -> Result<ClientConfig, rustls::Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.file.roots());
        store.add_parsable_certificates(self.trust.current().certificates().iter().cloned());
        let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect(to).await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use time::OffsetDateTime;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    struct Root {
        pem: String,
        der: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn root(name: &str) -> Root {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Root {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A server with duet-control's name and a certificate that begins `in_seconds`.
    async fn control(root: &Root, in_seconds: i64) -> Uri {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).unwrap();
        params.not_before = OffsetDateTime::now_utc() + time::Duration::seconds(in_seconds);
        let certificate = params.signed_by(&key, &root.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(acceptor.accept(stream));
            }
        });
        format!("http://{address}").parse().unwrap()
    }

    /// A file of this test's own.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let name = format!("duet-{name}-{}.pem", std::process::id());
            let file = Self(std::env::temp_dir().join(name));
            file.write(text);
            file
        }

        fn write(&self, text: &str) {
            std::fs::write(&self.0, text).unwrap();
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[tokio::test]
    async fn the_file_is_read_for_each_connection() {
        let (old, new) = (root("old"), root("new"));
        let file = File::new("rotated", &old.pem);
        let dial = Dial::new(TrustFile::open(&file.0).unwrap(), Trust::default());
        let (of_old, of_new) = (control(&old, 0).await, control(&new, 0).await);
        dial.clone().connect(of_old.clone()).await.unwrap();
        dial.clone().connect(of_new.clone()).await.unwrap_err();
        file.write(&new.pem);
        dial.clone().connect(of_new.clone()).await.unwrap();
        dial.clone().connect(of_old).await.unwrap_err();
        file.write("half of a fi");
        dial.connect(of_new).await.expect("what it held before");
    }

    #[tokio::test]
    async fn roots_that_were_told_of_count_too() {
        let (old, new) = (root("old"), root("new"));
        let file = File::new("stale", &old.pem);
        let trust = Trust::default();
        let dial = Dial::new(TrustFile::open(&file.0).unwrap(), trust.clone());
        let of_new = control(&new, 0).await;
        dial.clone().connect(of_new.clone()).await.unwrap_err();
        trust.discovered(&[new.der]);
        dial.connect(of_new).await.unwrap();
    }

    #[tokio::test]
    async fn a_wrong_clock_is_asked_about() {
        let root = root("root");
        let file = File::new("clock", &root.pem);
        let dial = Dial::new(TrustFile::open(&file.0).unwrap(), Trust::default());
        let early = dial.connect(control(&root, 600).await).await.unwrap_err();
        let early = early.to_string();
        assert!(
            early.contains("not valid yet: is the clock right?"),
            "{early}"
        );
    }

    #[test]
    fn a_file_without_roots_is_refused() {
        let file = File::new("empty", "");
        let refused = TrustFile::open(&file.0).unwrap_err();
        assert!(refused.contains("holds no certificate"), "{refused}");
    }
}
