//! The client side of duet-control's API: one lazily connected, TLS-protected
//! gRPC channel, with a bearer token that is read afresh for each call.

mod dial;

use crate::api::discovery_client::DiscoveryClient;
use crate::api::enrolment_client::EnrolmentClient;
use crate::api::identity_client::IdentityClient;
use crate::api::{CertifyRequest, CertifyResponse, EnrolmentReport, Update, WatchRequest};
use crate::config::ProxyArgs;
use crate::directory::Directory;
use crate::identity::Trust;
use dial::{Dial, TrustFile};
use http::Uri;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// The name in duet-control's certificate, whatever address it is reached at.
const SERVER_NAME: &str = "duet-control";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CERTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// duet-control asks the API server twice before it answers.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// A control plane that vanished is noticed after 15 s at the latest.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A snapshot of 10 000 pods is about 3 MB.
const MAX_UPDATE: usize = 64 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Control {
    channel: Channel,
    token_file: PathBuf,
    /// "sidecar default/web-0", "agent node-1".
    proxy: String,
    node: String,
    trust: Trust,
}

impl Control {
    /// What duet-control tells of the mesh's roots goes to `trust`.
    pub fn new(
        args: &ProxyArgs,
        proxy: String,
        node: String,
        trust: Trust,
    ) -> Result<Self, String> {
        let file = TrustFile::open(&args.trust_bundle)?;
        std::fs::metadata(&args.token_file)
            .map_err(|error| format!("--token-file {}: {error}", args.token_file.display()))?;
        let wrong = |problem: &str| format!("--control {:?}: {problem}", args.control);
        let uri: Uri = args
            .control
            .parse()
            .map_err(|_| wrong("write https://host:port"))?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong("write https://host:port"));
        };
        // To tonic it is a plaintext endpoint: TLS is the connector's business.
        let channel = Endpoint::from_shared(format!("http://{authority}"))
            .map_err(|error| wrong(&error.to_string()))?
            .origin(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(Dial::new(file, trust.clone()));
        Ok(Self {
            channel,
            token_file: args.token_file.clone(),
            proxy,
            node,
            trust,
        })
    }

    pub async fn certify(&self, workload: String, csr: Vec<u8>) -> Result<CertifyResponse, Status> {
        let mut request = self.authenticated(CertifyRequest { workload, csr }).await?;
        request.set_timeout(CERTIFY_TIMEOUT);
        let mut client = IdentityClient::new(self.channel.clone());
        match tokio::time::timeout(CERTIFY_TIMEOUT, client.certify(request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("duet-control did not answer")),
        }
    }

    /// Says whether a workload's connections are the proxy's, once.
    pub async fn report(&self, report: EnrolmentReport) -> Result<(), Status> {
        let mut request = self.authenticated(report).await?;
        request.set_timeout(REPORT_TIMEOUT);
        let mut client = EnrolmentClient::new(self.channel.clone());
        match tokio::time::timeout(REPORT_TIMEOUT, client.report(request)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Status::deadline_exceeded("duet-control did not answer")),
        }
    }

    /// Keeps `directory` what duet-control says, for ever. While duet-control is
    /// away the directory stays as it was.
    pub async fn watch(self, directory: Arc<Directory>) {
        let mut backoff = Backoff::default();
        loop {
            let ended = match self.open().await {
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(update)) => {
                            backoff = Backoff::default();
                            self.trust.discovered(&update.roots);
                            directory.apply(update);
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                },
                Err(status) => Some(status),
            };
            let wait = backoff.next();
            match ended {
                Some(status) => tracing::warn!(
                    code = ?status.code(), reason = status.message(), retry = ?wait,
                    "discovery: duet-control is away"
                ),
                None => tracing::info!(retry = ?wait, "discovery: duet-control ended the stream"),
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn open(&self) -> Result<tonic::Streaming<Update>, Status> {
        let request = self
            .authenticated(WatchRequest {
                proxy: self.proxy.clone(),
                node: self.node.clone(),
            })
            .await?;
        let mut client =
            DiscoveryClient::new(self.channel.clone()).max_decoding_message_size(MAX_UPDATE);
        Ok(client.watch(request).await?.into_inner())
    }

    async fn authenticated<T>(&self, message: T) -> Result<Request<T>, Status> {
        let path = self.token_file.display();
        let token = tokio::fs::read_to_string(&self.token_file)
            .await
            .map_err(|error| Status::unauthenticated(format!("token file {path}: {error}")))?;
        let value = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| Status::unauthenticated(format!("token file {path} holds no token")))?;
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// 100 ms, doubled up to 5 s, each time shortened by up to a half so that a
/// thousand proxies do not come back together.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Backoff {
    const MAX: Duration = Duration::from_secs(5);

    pub fn next(&mut self) -> Duration {
        let wait = self.0.mul_f64(1.0 - fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(Self::MAX);
        wait
    }
}
