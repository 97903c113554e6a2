//! The agent's answer to the plugin: enrols a sandbox that nothing runs in yet.

use crate::enrolment::Enrolment;
use crate::netns::Netns;
use duet_core::{Placed, Proxy, WorkloadName};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long discovery may take to tell of a pod that is stamped as the agent's. The pod
/// is known to the API server before a kubelet hears of it.
const PLACED_WITHIN: Duration = Duration::from_secs(10);

/// The same of one that nobody knows the stamp of. Pods outside the mesh, of which
/// discovery never tells, are held up for so long, once; and one that it tells of later
/// is enrolled later, as without a plugin.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// What the plugin says of a pod.
pub struct Sandbox {
    pub workload: WorkloadName,
    /// Empty if the runtime does not tell.
    pub uid: String,
    pub netns: Netns,
    pub is_stamped: bool,
}

/// True if the pod is this agent's, and redirected.
pub async fn admit(proxy: &Proxy, enrolment: &Enrolment, sandbox: Sandbox) -> Result<bool, String> {
    let patience = match sandbox.is_stamped {
        true => PLACED_WITHIN,
        false => TOLD_WITHIN,
    };
    let until = Instant::now() + patience;
    let mut discovered = proxy.discovered();
    let placed = loop {
        discovered.mark_unchanged();
        let is_it = |pod: &Placed| {
            pod.name == sandbox.workload && (sandbox.uid.is_empty() || pod.uid == sandbox.uid)
        };
        if let Some(placed) = proxy.placed_here().into_iter().find(is_it) {
            break placed;
        }
        if timeout_at(until, discovered.changed()).await.is_err() {
            return match sandbox.is_stamped {
                true => Err(format!(
                    "duet-control has not given it to this agent within {patience:?}"
                )),
                false => Ok(false),
            };
        }
    };
    let enrolled = enrolment.enrol_pod(&placed, sandbox.netns, None).await;
    enrolled.map_err(|error| error.to_string())?;
    // Its processes come next.
    let assured = enrolment.assure().await;
    assured.map(|()| true).map_err(|error| error.to_string())
}
