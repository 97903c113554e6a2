//! A control plane on loopback and a proxy's view of it: real TLS, real gRPC.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use duet_control::state::View;
use duet_control::{
    Caller, ControlPlane, Enrolments, FileSource, Settings, Source, StartError, StateDir, TokenKey,
};
use duet_core::WorkloadName;
use duet_core::api::discovery_client::DiscoveryClient;
use duet_core::api::identity_client::IdentityClient;
use duet_core::api::{CertifyRequest, CertifyResponse, Update, WatchRequest};
use rcgen::{CertificateParams, KeyPair};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

/// Nothing here takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const LIFETIME: Duration = Duration::from_secs(3600);

pub const MESH: &str = "
workloads:
  - name: web-0
    serviceAccount: web
    node: node-1
    addresses: [10.71.1.2]
  - name: web-1
    serviceAccount: web
    node: node-2
    addresses: [10.71.2.2]
  - name: old
    node: node-1
    mesh: none
    addresses: [10.71.1.9]
services:
  - name: web
    addresses: [10.96.0.10]
    ports: [{port: 80, targetPort: 8080}]
    workloads: [web-0, web-1]
";

/// A folder with a mesh file and a state directory.
pub struct Site {
    pub dir: TempDir,
}

impl Site {
    pub fn new(mesh: &str) -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        site.write(mesh);
        site
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("mesh.yaml")
    }

    pub fn state_path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn write(&self, mesh: &str) {
        std::fs::write(self.file(), mesh).unwrap();
    }

    /// As most editors do it.
    pub fn rename_over(&self, mesh: &str) {
        let aside = self.dir.path().join(".mesh.yaml.swp");
        std::fs::write(&aside, mesh).unwrap();
        std::fs::rename(aside, self.file()).unwrap();
    }

    pub fn state_dir(&self) -> StateDir {
        StateDir::open(self.state_path()).unwrap()
    }

    pub fn root_pem(&self) -> String {
        std::fs::read_to_string(self.state_dir().root_path()).unwrap()
    }

    pub fn token(&self, caller: &Caller) -> String {
        self.state_dir().token_key().unwrap().sign(caller, None)
    }

    pub async fn try_start(&self) -> Result<ControlPlane, StartError> {
        self.start_with(FileSource::new(self.file())).await
    }

    pub async fn start_with(&self, source: impl Source) -> Result<ControlPlane, StartError> {
        let state_dir = self.state_dir();
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        ControlPlane::start(
            Settings {
                listen: loopback,
                health: loopback,
                cert_lifetime: LIFETIME,
                enrolments: Enrolments::default(),
            },
            state_dir.authority().unwrap(),
            Arc::new(state_dir.token_key().unwrap()),
            source,
        )
        .await
    }

    pub async fn start(&self) -> ControlPlane {
        self.try_start().await.unwrap()
    }

    pub async fn proxy(&self, control: &ControlPlane, caller: Caller) -> Proxy {
        Proxy::connect(control.api_addr(), &self.root_pem(), self.token(&caller)).await
    }
}

pub fn workload(name: &str) -> Caller {
    Caller::Workload(WorkloadName::new("default", name))
}

pub fn node(name: &str) -> Caller {
    Caller::Node(name.to_owned())
}

/// What a proxy is to duet-control.
pub struct Proxy {
    pub channel: Channel,
    pub token: Option<String>,
}

impl Proxy {
    pub async fn connect(api: SocketAddr, root_pem: &str, token: String) -> Self {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root_pem))
            .domain_name("duet-control");
        let channel = Endpoint::from_shared(format!("https://{api}"))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_timeout(PATIENCE)
            .connect()
            .await
            .unwrap();
        Self {
            channel,
            token: Some(token),
        }
    }

    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self {
            channel: self.channel.clone(),
            token: token.map(ToOwned::to_owned),
        }
    }

    pub async fn certify(&self, workload: &str) -> Result<CertifyResponse, Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        self.certify_with(workload, csr.der().to_vec()).await
    }

    pub async fn certify_with(
        &self,
        workload: &str,
        csr: Vec<u8>,
    ) -> Result<CertifyResponse, Status> {
        let workload = workload.to_owned();
        let request = self.request(CertifyRequest { workload, csr });
        let answer = IdentityClient::new(self.channel.clone())
            .certify(request)
            .await;
        answer.map(tonic::Response::into_inner)
    }

    pub async fn watch(&self) -> Result<Watch, Status> {
        let request = self.request(WatchRequest {
            proxy: "test".into(),
            node: "node-1".into(),
        });
        let stream = DiscoveryClient::new(self.channel.clone())
            .watch(request)
            .await?;
        Ok(Watch {
            stream: stream.into_inner(),
            held: View::default(),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }
}

/// A watch, and the state it has led to.
pub struct Watch {
    pub stream: Streaming<Update>,
    pub held: View,
}

impl Watch {
    pub async fn next(&mut self) -> Update {
        let update = tokio::time::timeout(PATIENCE, self.stream.message())
            .await
            .expect("an update")
            .unwrap()
            .expect("an open stream");
        self.held.apply(update.clone());
        update
    }
}

/// A token that another mesh's key signed.
pub fn forged(caller: &Caller) -> String {
    TokenKey::generate().sign(caller, None)
}

/// Status and body of a GET.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: duet\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer[9..12].parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, body.to_owned())
}

/// The value of a metric, "name" or "name{label=\"value\"}".
pub async fn metric(control: &ControlPlane, name: &str) -> f64 {
    let (_, page) = get(control.health_addr(), "/metrics").await;
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .map_or(0.0, |value| value.parse().unwrap())
}

/// Asks until `holds`, with patience.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let all = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, all).await.is_ok(),
        "{what} did not come about in {PATIENCE:?}"
    );
}

pub fn count(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}
