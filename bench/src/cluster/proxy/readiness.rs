//! When a proxy counts as ready.

use super::{Endpoint, Enrolment, PROBE_EVERY, Supervised};
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::mesh::get_here;
use std::thread;
use std::time::{Duration, Instant};

impl Supervised {
    /// Whether the proxy is ready, asked from its namespace: /ready says so, and
    /// each pod has its certificate. A sidecar's /ready covers its one pod; an
    /// agent is ready with any number of pods, so it is asked for them, too.
    pub(super) fn serves_here(&self, pods: &[Enrolment]) -> Result<(), String> {
        match get_here(Endpoint::Health.port(), "/ready") {
            Ok((200, _)) => {}
            Ok((_, why)) => return Err(one_line(&why)),
            Err(error) => return Err(format!("its health endpoint: {error}")),
        }
        if self.agent.is_none() || pods.is_empty() {
            return Ok(());
        }
        match get_here(Endpoint::Admin.port(), "/config") {
            Ok((200, config)) => uncertified(&config, pods.iter().map(|pod| pod.workload.as_str())),
            Ok((status, _)) => Err(format!("/config answered with {status}")),
            Err(error) => Err(format!("its admin endpoint: {error}")),
        }
    }

    /// Waits until an agent has a pod's certificate.
    pub(crate) fn wait_serving(&self, pod: &Enrolment, timeout: Duration) -> Result<()> {
        let begun = Instant::now();
        let pods = std::slice::from_ref(pod);
        self.netns.run(|| {
            loop {
                let Err(missing) = self.serves_here(pods) else {
                    return Ok(());
                };
                if begun.elapsed() > timeout {
                    return Err(ClusterError::NotReady {
                        who: format!("{} for {}", self.name, pod.workload),
                        after: begun.elapsed(),
                        missing,
                        log: self.lock().log.clone().unwrap_or_default(),
                    });
                }
                thread::sleep(PROBE_EVERY);
            }
        })?
    }
}

/// Which of the workloads have no certificate yet, by a proxy's own account.
pub(crate) fn uncertified<'a>(
    config: &str,
    workloads: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let config: serde_json::Value =
        serde_json::from_str(config).map_err(|error| format!("/config is not JSON: {error}"))?;
    let list = |key: &str| config[key].as_array().cloned().unwrap_or_default();
    let (served, identities) = (list("workloads"), list("identities"));
    for wanted in workloads {
        let identity = served
            .iter()
            .find(|workload| workload["name"] == wanted)
            .and_then(|workload| workload["identity"].as_str());
        let certified = identity.is_some_and(|identity| {
            identities
                .iter()
                .any(|held| held["identity"] == identity && !held["certificate"].is_null())
        });
        if !certified {
            return Err(format!("identity: no certificate for {wanted}"));
        }
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_served_once_it_has_a_certificate() {
        let pods = || ["default/web-0"].into_iter();
        let config = |certificate: &str| {
            format!(
                r#"{{"workloads": [{{"name": "default/web-0", "identity": "spiffe://td/a"}}],
                    "identities": [{{"identity": "spiffe://td/a", "certificate": {certificate}}}]}}"#
            )
        };
        assert_eq!(uncertified(&config(r#""PEM""#), pods()), Ok(()));
        assert_eq!(
            uncertified(&config("null"), pods()),
            Err("identity: no certificate for default/web-0".to_owned())
        );
        assert!(uncertified(r#"{"workloads": []}"#, pods()).is_err());
    }
}
