//! Everything that duet-control is in a cluster, put together: the source, who
//! callers are, the CA, the injector, and which replica writes.

use crate::injector::Injector;
use crate::injector::webhook::{
    InjectorMetrics, WEBHOOK_CONFIGURATION, Webhook, WebhookError, WebhookSettings, keep_ca_bundle,
};
use crate::kube_auth::KubeAuthenticator;
use crate::leader::Leader;
use crate::server::{ControlPlane, Settings, StartError};
use crate::source::KubeSource;
use crate::source::kube::Cluster;
use crate::trust::{self, KubeTrust};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

/// How long leaving the election may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a control plane is told in a cluster, besides [`Settings`].
pub struct KubernetesSettings {
    pub cluster: Cluster,
    /// duet-control's own, where the agent's service account and the CA are too.
    pub namespace: String,
    pub trust_domain: String,
    /// Names this process among its replicas, as its pod does.
    pub replica: String,
    /// How long a new root is told of before anything is signed with it.
    pub root_overlap: Duration,
    /// Label selector of the namespaces that get the mesh's roots; `None`: all.
    pub trust_bundle_namespaces: Option<String>,
    pub injector: Option<(SocketAddr, Injector)>,
}

#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Webhook(#[from] WebhookError),
}

/// A control plane that serves a cluster.
pub struct KubernetesControl {
    control: ControlPlane,
    webhook: Option<Webhook>,
    leader: Leader,
    _trust: KubeTrust,
    _writing: Vec<AbortOnDropHandle<()>>,
}

// === impl KubernetesControl ===

impl KubernetesControl {
    /// Waits for the API server and for the CA, as long as it takes: /ready says what
    /// is missing.
    ///
    /// # Errors
    /// When the cluster will not do, or an address cannot be listened on.
    pub async fn start(
        settings: Settings,
        kubernetes: KubernetesSettings,
    ) -> Result<Self, KubernetesError> {
        let namespace = &kubernetes.namespace;
        let cluster = kubernetes.cluster;
        let client = cluster.client.clone();
        let cert_lifetime = settings.cert_lifetime;
        let prepared = ControlPlane::prepare(settings).await?;
        let metrics = prepared.metrics().clone();

        // The API server is known to be there, and to be new enough, before anything
        // is written to it.
        let source = KubeSource::new(cluster, &kubernetes.trust_domain);
        let statuses = source.status_writer(&metrics);
        let states = prepared.follow(source).await?;
        let leader = Leader::elect(
            client.clone(),
            namespace,
            &kubernetes.replica,
            &metrics.registry,
            prepared.shutdown().clone(),
        );
        let kept = KubeTrust::start(
            client.clone(),
            namespace,
            trust::Settings {
                cert_lifetime,
                overlap: kubernetes.root_overlap,
                namespaces: kubernetes.trust_bundle_namespaces,
                ..trust::Settings::default()
            },
            leader.clone(),
            &metrics.registry,
            prepared.readiness().clone(),
        )
        .await;
        let trust = kept.trust();

        let leading = leader.clone();
        let mut writing = vec![AbortOnDropHandle::new(tokio::spawn(async move {
            leading.while_leading(|| statuses.clone().keep()).await;
        }))];
        let mut webhook = None;
        if let Some((listen, injector)) = kubernetes.injector {
            let injector_metrics = InjectorMetrics::new(&metrics.registry);
            let settings = WebhookSettings {
                listen,
                namespace: namespace.clone(),
                cert_lifetime,
                injector,
            };
            let started = Webhook::start(
                settings,
                client.clone(),
                trust.clone(),
                injector_metrics.clone(),
            );
            webhook = Some(started.await?);
            let (leader, client, trust) = (leader.clone(), client.clone(), trust.clone());
            writing.push(AbortOnDropHandle::new(tokio::spawn(async move {
                let keep = || {
                    let (client, trust) = (client.clone(), trust.clone());
                    keep_ca_bundle(client, WEBHOOK_CONFIGURATION, trust, &injector_metrics)
                };
                leader.while_leading(keep).await;
            })));
        }
        let authenticator = KubeAuthenticator::new(client, namespace.clone(), &metrics.registry);
        Ok(Self {
            control: prepared.serve(states, trust, Arc::new(authenticator))?,
            webhook,
            leader,
            _trust: kept,
            _writing: writing,
        })
    }

    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// Where pods are reviewed.
    pub fn injector_addr(&self) -> Option<SocketAddr> {
        self.webhook.as_ref().map(Webhook::addr)
    }

    /// As [`ControlPlane::stop`]; lets another replica lead at once, and answers the
    /// API server until it asks another one.
    pub async fn stop(self) {
        let webhook = async {
            if let Some(webhook) = self.webhook {
                webhook.stop().await;
            }
        };
        let released = async {
            let released = tokio::time::timeout(RELEASE_TIMEOUT, self.leader.released());
            if released.await.is_err() {
                warn!("the Lease was not let go of in {RELEASE_TIMEOUT:?}: it will run out");
            }
        };
        tokio::join!(self.control.stop(), released, webhook);
    }
}
