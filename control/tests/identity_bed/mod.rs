//! Replicas of duet-control as in a namespace, and pods that ask them.

use crate::cluster::Cluster;
use crate::mesh::Proxy;
use duet_control::ca::fingerprint;
use duet_control::kube_auth::KubeAuthenticator;
use duet_control::leader::Leader;
use duet_control::trust::{self, KubeTrust};
use duet_control::{ControlPlane, Enrolments, MeshState, Rejected, Settings, Source};
use duet_core::api::{CertifyResponse, MeshProtocol, Placement, Workload};
use kube::Client;
use prometheus::{Encoder, Registry, TextEncoder};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

mod rotation;

pub const CONTROL: &str = "control";
pub const SHOP: &str = "shop";

/// A mesh as the test says it is.
pub struct Told(pub watch::Receiver<MeshState>);

impl Source for Told {
    async fn next(&mut self) -> Result<MeshState, Rejected> {
        if self.0.has_changed().is_ok() {
            let _ = self.0.changed().await;
        } else {
            std::future::pending::<()>().await;
        }
        Ok(self.0.borrow_and_update().clone())
    }
}

/// One pod of the test, in the cluster and in the mesh.
#[derive(Clone, Default)]
pub struct Pod {
    pub name: &'static str,
    pub account: &'static str,
    pub node: &'static str,
    pub uid: String,
    pub placement: Placement,
    pub address: &'static str,
}

impl Pod {
    pub async fn create(
        cluster: &Cluster,
        namespace: &str,
        (name, account, node): (&'static str, &'static str, &'static str),
        placement: Placement,
    ) -> Self {
        Self {
            uid: cluster.pod(namespace, name, account, node).await,
            name,
            account,
            node,
            placement,
            address: "",
        }
    }

    pub fn workload(&self, namespace: &str) -> Workload {
        Workload {
            namespace: namespace.to_owned(),
            name: self.name.to_owned(),
            service_account: self.account.to_owned(),
            node: self.node.to_owned(),
            uid: self.uid.clone(),
            placement: self.placement.into(),
            addresses: vec![self.address.to_owned()]
                .into_iter()
                .filter(|one| !one.is_empty())
                .collect(),
            protocol: MeshProtocol::Duet.into(),
            ..Workload::default()
        }
    }

    pub async fn token(&self, cluster: &Cluster, namespace: &str) -> String {
        let pod = (self.name, &*self.uid);
        cluster.token(namespace, self.account, pod).await
    }
}

pub fn mesh_of(namespace: &str, pods: &[Pod]) -> MeshState {
    let mut state = MeshState::new("duet.test");
    for pod in pods {
        state.put_workload(pod.workload(namespace));
    }
    state
}

/// One replica of duet-control in a namespace.
pub struct Replica {
    pub control: ControlPlane,
    pub leader: Leader,
    pub trust: KubeTrust,
    pub registry: Registry,
}

impl Replica {
    /// With no more rights than duet-control has.
    pub async fn start(
        client: &Client,
        namespace: &str,
        name: &str,
        listen: SocketAddr,
        settings: &trust::Settings,
        mesh: &watch::Sender<MeshState>,
    ) -> Self {
        let client = client.clone();
        let prepared = ControlPlane::prepare(Settings {
            listen,
            health: SocketAddr::from(([127, 0, 0, 1], 0)),
            cert_lifetime: settings.cert_lifetime,
            enrolments: Enrolments::default(),
        })
        .await
        .unwrap();
        let registry = prepared.metrics().registry.clone();
        let shutdown = prepared.shutdown().clone();
        let leader = Leader::elect(client.clone(), namespace, name, &registry, shutdown);
        let trust = KubeTrust::start(
            client.clone(),
            namespace,
            settings.clone(),
            leader.clone(),
            &registry,
            prepared.readiness().clone(),
        )
        .await;
        let mut mesh = mesh.subscribe();
        mesh.mark_changed();
        let states = prepared.follow(Told(mesh)).await.unwrap();
        let authenticator = KubeAuthenticator::new(client, namespace, &registry);
        let control = prepared
            .serve(states, trust.trust(), Arc::new(authenticator))
            .unwrap();
        Self {
            control,
            leader,
            trust,
            registry,
        }
    }

    pub async fn proxy(&self, token: &str) -> Proxy {
        let pem = self.trust.trust().current().bundle_pem();
        Proxy::connect(self.control.api_addr(), &pem, token.to_owned()).await
    }

    pub fn bundle(&self) -> Vec<String> {
        let authority = self.trust.trust().current();
        authority.bundle().iter().map(fingerprint).collect()
    }

    pub fn metric(&self, name: &str) -> f64 {
        metric(&self.registry, name)
    }

    pub async fn stop(self) {
        self.control.stop().await;
        self.leader.released().await;
    }
}

pub fn metric(registry: &Registry, name: &str) -> f64 {
    let mut page = Vec::new();
    TextEncoder::new()
        .encode(&registry.gather(), &mut page)
        .unwrap();
    String::from_utf8(page)
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("no metric {name}"))
        .parse()
        .unwrap()
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn settings(cluster: &Cluster) -> trust::Settings {
    trust::Settings {
        cert_lifetime: Duration::from_secs(3600),
        namespaces: Some(cluster.selector()),
        ..trust::Settings::default()
    }
}

/// Whether peers that trust `roots` believe the chain.
pub fn is_believed(answer: &CertifyResponse, roots: &[Vec<u8>]) -> bool {
    let chain: Vec<_> = answer
        .chain
        .iter()
        .cloned()
        .map(CertificateDer::from)
        .collect();
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(root.clone())).unwrap();
    }
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &rustls::server::ParsedCertificate::try_from(&chain[0]).unwrap(),
        &store,
        &chain[1..],
        UnixTime::now(),
        algorithms.all,
    )
    .is_ok()
}

pub fn spiffe_id(answer: &CertifyResponse) -> String {
    let (_, leaf) = x509_parser::parse_x509_certificate(&answer.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    match names.value.general_names.as_slice() {
        [x509_parser::extensions::GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}
