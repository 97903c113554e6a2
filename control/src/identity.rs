//! `Identity.Certify`: a certificate for a workload, for whoever may speak for it.

use crate::auth::{Authenticator, verify};
use crate::ca::CaError;
use crate::metrics::Metrics;
use crate::source::States;
use crate::trust::Trust;
use duet_core::WorkloadName;
use duet_core::api::identity_server::Identity;
use duet_core::api::{CertifyRequest, CertifyResponse, MeshProtocol, Placement};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};
use tracing::{info, warn};

/// Why requests are refused, as the metric names it.
pub(crate) const REFUSALS: [&str; 7] = [
    "unauthenticated",
    "permission_denied",
    "invalid_argument",
    "not_found",
    "failed_precondition",
    "unavailable",
    "internal",
];

pub(crate) struct IdentityService {
    pub trust: Trust,
    pub authenticator: Arc<dyn Authenticator>,
    pub states: States,
    pub cert_lifetime: Duration,
    pub metrics: Metrics,
}

// === impl IdentityService ===

impl IdentityService {
    async fn decide(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let verified = verify(&*self.authenticator, request.metadata()).await?;
        let CertifyRequest { workload, csr } = request.into_inner();
        let name: WorkloadName = workload
            .parse()
            .map_err(|error| Status::invalid_argument(format!("workload: {error}")))?;
        verified.caller.may_name(&name)?;

        let state = self.states.borrow().clone();
        let workload = state.workloads.get(&workload).ok_or_else(|| {
            Status::not_found(format!("there is no workload {name} in the mesh: add it"))
        })?;
        verified.may_speak_for(workload)?;
        let unplaced = workload.placement() == Placement::Unplaced;
        if workload.protocol() == MeshProtocol::None && unplaced {
            return Err(Status::failed_precondition(format!(
                "{name} has `mesh: none`, so it has no identity: set `mesh: duet`"
            )));
        }

        let spiffe_id = state.spiffe_id(workload);
        let authority = self.trust.current();
        let leaf = authority
            .certify(&csr, &spiffe_id, self.cert_lifetime)
            .map_err(|error| match error {
                CaError::Request(_) => Status::invalid_argument(error.to_string()),
                other => Status::internal(other.to_string()),
            })?;
        info!(workload = %name, %spiffe_id, caller = %verified.caller, not_after = %leaf.not_after, "certified");
        Ok(Response::new(CertifyResponse {
            chain: leaf.chain.iter().map(|one| one.to_vec()).collect(),
            roots: authority
                .bundle()
                .iter()
                .map(|root| root.to_vec())
                .collect(),
            not_before: leaf.not_before.unix_timestamp(),
            not_after: leaf.not_after.unix_timestamp(),
        }))
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let peer = request.remote_addr();
        let asked = request.get_ref().workload.clone();
        let outcome = self.decide(request).await;
        match &outcome {
            Ok(_) => self.metrics.certificates_issued.inc(),
            Err(status) => {
                self.metrics
                    .certificates_refused
                    .with_label_values(&[reason(status.code())])
                    .inc();
                warn!(workload = ?asked, ?peer, reason = status.message(), "certificate refused");
            }
        }
        outcome
    }
}

fn reason(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "permission_denied",
        Code::InvalidArgument => "invalid_argument",
        Code::NotFound => "not_found",
        Code::FailedPrecondition => "failed_precondition",
        Code::Unavailable => "unavailable",
        _ => "internal",
    }
}
