//! One AdmissionReview, answered.

use super::namespaces::{NamespaceError, Namespaces};
use crate::injector::decision::{Injector, Verdict};
use crate::injector::kubernetes::KubernetesVersion;
use kube::api::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::core::response::StatusSummary;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// The version of the protocol that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";

/// What decides, with what it has to know.
pub struct Reviewer {
    pub injector: Injector,
    pub namespaces: Namespaces,
    /// The API server's, once it is known.
    pub kubernetes: watch::Receiver<Option<KubernetesVersion>>,
}

/// An answer, and what the metric calls it.
pub struct Answer {
    pub decision: &'static str,
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("the body is no AdmissionReview of {API_VERSION}: {0}")]
    Request(String),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("the answer cannot be written: {0}")]
    Response(String),
}

// === impl Reviewer ===

impl Reviewer {
    /// `by_namespace`: the API server asks because of the namespace's label.
    ///
    /// # Errors
    /// When the request cannot be understood, or its namespace not be looked at.
    pub async fn review(&self, body: &[u8], by_namespace: bool) -> Result<Answer, NoAnswer> {
        let review: AdmissionReview<DynamicObject> =
            serde_json::from_slice(body).map_err(|error| NoAnswer::Request(error.to_string()))?;
        if review.types.api_version != API_VERSION {
            return Err(NoAnswer::Request(format!(
                "it is of {}: write admissionReviewVersions: [v1]",
                review.types.api_version
            )));
        }
        let request: AdmissionRequest<_> = review
            .try_into()
            .map_err(|_| NoAnswer::Request("it holds no request".to_owned()))?;
        let (decision, response) = self.decide(&request, by_namespace).await?;
        let body = serde_json::to_vec(&response.into_review())
            .map_err(|error| NoAnswer::Response(error.to_string()))?;
        Ok(Answer { decision, body })
    }

    async fn decide(
        &self,
        request: &AdmissionRequest<DynamicObject>,
        by_namespace: bool,
    ) -> Result<(&'static str, AdmissionResponse), NoAnswer> {
        let allowed = AdmissionResponse::from(request);
        let is_new_pod = request.resource.group.is_empty()
            && request.resource.resource == "pods"
            && request.sub_resource.is_none()
            && request.operation == Operation::Create;
        let (true, Some(pod)) = (is_new_pod, &request.object) else {
            debug!(resource = request.resource.resource, "not a new pod");
            return Ok((Verdict::None.as_str(), allowed));
        };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        // Pods of a ReplicaSet have no name yet.
        let pod_name = match (&pod.metadata.name, &pod.metadata.generate_name) {
            (Some(name), _) | (None, Some(name)) => name.as_str(),
            (None, None) => "",
        };
        let metadata = self.namespaces.get(namespace, by_namespace).await?;
        let pod =
            serde_json::to_value(pod).map_err(|error| NoAnswer::Request(error.to_string()))?;
        let kubernetes = *self.kubernetes.borrow();

        let decision = match self.injector.decide(&pod, &metadata, kubernetes) {
            Ok(decision) => decision,
            Err(refusal) => {
                warn!(
                    namespace,
                    pod = pod_name,
                    dry_run = request.dry_run,
                    "refused: {refusal}"
                );
                let mut denied = allowed.deny(refusal);
                denied.result.status = Some(StatusSummary::Failure);
                denied.result.code = http::StatusCode::FORBIDDEN.as_u16();
                denied.result.reason = "Forbidden".to_owned();
                return Ok(("refused", denied));
            }
        };
        info!(
            namespace,
            pod = pod_name,
            placement = decision.verdict.as_str(),
            changes = decision.patch.0.len(),
            dry_run = request.dry_run,
            "decided"
        );
        let mut response = allowed;
        if !decision.patch.0.is_empty() {
            response = response
                .with_patch(decision.patch)
                .map_err(|error| NoAnswer::Response(error.to_string()))?;
        }
        if !decision.warnings.is_empty() {
            let warnings = decision.warnings.iter();
            response.warnings = Some(warnings.map(|it| format!("duet: {it}")).collect());
        }
        Ok((decision.verdict.as_str(), response))
    }
}
