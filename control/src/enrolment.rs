//! `Enrolment.Report`: an agent says whether a pod's connections are its own.
//!
//! With Kubernetes that becomes the pod's condition [`CONDITION`], which is the pod's
//! readiness gate, and from which discovery learns that the pod speaks the mesh's
//! language. It is a status that outlives this process, and whichever replica is
//! asked writes it: nothing is remembered here. The condition is applied under a
//! field manager of its own, so that the kubelet's conditions and others' are left
//! alone, and only where it is not as it should be already.

use crate::auth::{Authenticator, Caller, verify};
use crate::source::States;
use duet_core::WorkloadName;
use duet_core::api::enrolment_report::State;
use duet_core::api::enrolment_server::Enrolment;
use duet_core::api::{EnrolmentReport, EnrolmentReportResponse};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::api::{Api, Patch, PatchParams};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

/// The pod's condition, and its readiness gate.
pub const CONDITION: &str = "duet.dev/enrolled";
/// Whose the condition is, among a pod's managed fields.
const FIELD_MANAGER: &str = "duet-enrolment";
/// How long the API server may take, for both requests together. The agent waits
/// for twice as long.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// What is kept of an agent's reason; Kubernetes allows 32 768.
const MAX_MESSAGE_BYTES: usize = 1024;

/// What becomes of a report that is in order.
#[derive(Clone, Default)]
pub enum Enrolments {
    /// Nothing: with a file as the source nobody waits for it.
    #[default]
    Acknowledged,
    /// The pod's condition, with Kubernetes.
    PodCondition(kube::Client),
}

impl fmt::Debug for Enrolments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acknowledged => "Acknowledged",
            Self::PodCondition(_) => "PodCondition",
        })
    }
}

pub(crate) struct EnrolmentService {
    pub authenticator: Arc<dyn Authenticator>,
    pub states: States,
    pub enrolments: Enrolments,
}

// === impl EnrolmentService ===

impl EnrolmentService {
    async fn decide(&self, request: Request<EnrolmentReport>) -> Result<(), Status> {
        let verified = verify(&*self.authenticator, request.metadata()).await?;
        let Caller::Node(node) = &verified.caller else {
            return Err(Status::permission_denied(format!(
                "only a node's agent reports who is enrolled, and this token is for {}",
                verified.caller
            )));
        };
        let report = request.into_inner();
        let name: WorkloadName = report
            .workload
            .parse()
            .map_err(|error| Status::invalid_argument(format!("workload: {error}")))?;
        let state = self.states.borrow().clone();
        let workload = state
            .workloads
            .get(&report.workload)
            .ok_or_else(|| Status::not_found(format!("there is no workload {name} in the mesh")))?;
        verified.may_speak_for(workload)?;
        if workload.uid != report.uid {
            return Err(Status::failed_precondition(format!(
                "{name} is not the pod {:?} but {:?}",
                report.uid, workload.uid
            )));
        }
        let Enrolments::PodCondition(client) = &self.enrolments else {
            return Ok(());
        };
        let written = tokio::time::timeout(API_TIMEOUT, write(client, &name, node, &report));
        match written.await {
            Ok(written) => written,
            Err(_) => Err(Status::unavailable(format!(
                "the API server did not answer within {API_TIMEOUT:?}"
            ))),
        }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn report(
        &self,
        request: Request<EnrolmentReport>,
    ) -> Result<Response<EnrolmentReportResponse>, Status> {
        let peer = request.remote_addr();
        let workload = request.get_ref().workload.clone();
        match self.decide(request).await {
            Ok(()) => Ok(Response::new(EnrolmentReportResponse {})),
            Err(status) => {
                warn!(
                    ?workload,
                    ?peer,
                    reason = status.message(),
                    "enrolment report refused"
                );
                Err(status)
            }
        }
    }
}

/// Makes the pod's condition what the report says, if it is not.
async fn write(
    client: &kube::Client,
    name: &WorkloadName,
    node: &str,
    report: &EnrolmentReport,
) -> Result<(), Status> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), name.namespace());
    let failed = |error| answer(name, &error);
    let pod = pods.get(name.name()).await.map_err(failed)?;
    // What discovery knows of the pod may be older than the pod.
    let is_it = pod.metadata.uid.as_deref() == Some(&*report.uid);
    let is_here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    if !is_it || !is_here {
        return Err(Status::failed_precondition(format!(
            "{name} is not the pod {:?} on node {node} any more",
            report.uid
        )));
    }
    let conditions = pod.status.and_then(|status| status.conditions);
    let known = conditions
        .unwrap_or_default()
        .into_iter()
        .find(|condition| condition.type_ == CONDITION);
    let wanted = Condition::of(report);
    if known.as_ref().is_some_and(|known| wanted.is(known)) {
        return Ok(());
    }
    let body = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        // With another uid there the API server refuses.
        "metadata": { "name": name.name(), "uid": report.uid },
        "status": { "conditions": [wanted.replacing(known)] },
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let body = Patch::Apply(body);
    let patched = pods.patch_status(name.name(), &parameters, &body);
    patched.await.map_err(failed)?;
    info!(workload = %name, uid = report.uid, node, enrolled = wanted.status, reason = wanted.reason, message = wanted.message, "enrolment reported");
    Ok(())
}

fn answer(name: &WorkloadName, error: &kube::Error) -> Status {
    match error {
        kube::Error::Api(status) if status.is_not_found() => {
            Status::not_found(format!("there is no pod {name}"))
        }
        kube::Error::Api(status) if status.is_conflict() => {
            Status::failed_precondition(format!("pod {name}: {}", status.message))
        }
        error => Status::unavailable(format!("pod {name}: {error}")),
    }
}

/// What is to be said of a pod.
#[derive(Debug, PartialEq, Eq)]
struct Condition {
    status: &'static str,
    /// One word, as Kubernetes wants it.
    reason: &'static str,
    message: String,
}

// === impl Condition ===

impl Condition {
    fn of(report: &EnrolmentReport) -> Self {
        let (status, reason) = match report.state() {
            State::Enrolled => ("True", "Enrolled"),
            State::Pending => ("False", "Pending"),
            State::Failed => ("False", "Failed"),
        };
        let text = &report.reason;
        let end = text.floor_char_boundary(MAX_MESSAGE_BYTES);
        Self {
            status,
            reason,
            message: text[..end].split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }

    fn is(&self, known: &PodCondition) -> bool {
        known.status == self.status
            && known.reason.as_deref() == Some(self.reason)
            && known.message.as_deref().unwrap_or_default() == self.message
    }

    /// The time is that of the last change of status, not of its reason.
    fn replacing(&self, known: Option<PodCondition>) -> serde_json::Value {
        let since = known
            .filter(|known| known.status == self.status)
            .and_then(|known| known.last_transition_time)
            .and_then(|time| serde_json::to_value(time).ok());
        let now = || {
            OffsetDateTime::now_utc()
                .replace_nanosecond(0)
                .ok()?
                .format(&Rfc3339)
                .ok()
        };
        serde_json::json!({
            "type": CONDITION,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since.or_else(|| now().map(Into::into)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::TokenKey;
    use crate::state::MeshState;
    use duet_core::api::{Placement, Workload};
    use tokio::sync::watch;
    use tonic::Code;

    const UID: &str = "1640a224-79e9-41aa-a24d-6c6c89a1d474";

    fn service(key: &TokenKey) -> (EnrolmentService, watch::Sender<Arc<MeshState>>) {
        let mut state = MeshState::default();
        state.put_workload(Workload {
            namespace: "default".into(),
            name: "web-0".into(),
            node: "node-1".into(),
            uid: UID.into(),
            placement: Placement::Agent.into(),
            ..Workload::default()
        });
        let (keep, states) = watch::channel(Arc::new(state));
        let service = EnrolmentService {
            authenticator: Arc::new(key.clone()),
            states,
            enrolments: Enrolments::Acknowledged,
        };
        (service, keep)
    }

    fn report(workload: &str, uid: &str) -> EnrolmentReport {
        EnrolmentReport {
            workload: workload.into(),
            uid: uid.into(),
            state: State::Enrolled.into(),
            reason: String::new(),
        }
    }

    #[tokio::test]
    async fn an_agent_reports_its_own_nodes_pods_and_nobody_else_does() {
        let key = TokenKey::generate();
        let (service, _keep) = service(&key);
        let node = |name: &str| Caller::Node(name.into());
        let sidecar = Caller::Workload("default/web-0".parse().unwrap());
        for (caller, report, expected) in [
            (node("node-1"), report("default/web-0", UID), Code::Ok),
            (
                node("node-2"),
                report("default/web-0", UID),
                Code::PermissionDenied,
            ),
            (
                sidecar,
                report("default/web-0", UID),
                Code::PermissionDenied,
            ),
            (
                node("node-1"),
                report("default/web-0", "another"),
                Code::FailedPrecondition,
            ),
            (node("node-1"), report("default/web-1", UID), Code::NotFound),
            (node("node-1"), report("web-0", UID), Code::InvalidArgument),
        ] {
            let what = format!("{caller}: {report:?}");
            let mut request = Request::new(report);
            let token = format!("Bearer {}", key.sign(&caller, None));
            let token = token.parse().unwrap();
            request.metadata_mut().insert("authorization", token);
            let code = match service.report(request).await {
                Ok(_) => Code::Ok,
                Err(status) => status.code(),
            };
            assert_eq!(code, expected, "{what}");
        }
        let nobody = service.report(Request::new(report("default/web-0", UID)));
        assert_eq!(nobody.await.unwrap_err().code(), Code::Unauthenticated);
    }

    #[test]
    fn the_condition_changes_when_it_says_something_else() {
        let mut pending = report("default/web-0", UID);
        pending.set_state(State::Pending);
        pending.reason = "none of its\nprocesses runs here yet".into();
        let pending = Condition::of(&pending);
        assert_eq!(pending.message, "none of its processes runs here yet");
        let written: PodCondition = serde_json::from_value(pending.replacing(None)).unwrap();
        assert!(pending.is(&written));
        assert!(written.last_transition_time.is_some());

        let enrolled = Condition::of(&report("default/web-0", UID));
        assert!(!enrolled.is(&written));

        // Another reason is no transition.
        let old = PodCondition {
            last_transition_time: serde_json::from_value("2026-01-02T03:04:05Z".into()).unwrap(),
            ..written
        };
        let mut failed = report("default/web-0", UID);
        failed.set_state(State::Failed);
        let failed = Condition::of(&failed).replacing(Some(old.clone()));
        assert_eq!(failed["lastTransitionTime"], "2026-01-02T03:04:05Z");
        let enrolled = enrolled.replacing(Some(old));
        assert_ne!(enrolled["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }
}
