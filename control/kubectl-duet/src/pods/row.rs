//! What kubectl says of a pod in a line, and the same with the proxy left out.
//!
//! The rules are those of kubectl's own printer (pkg/printers/internalversion, printPod),
//! so that the two agree on every pod without a proxy.

use crate::mesh::{INIT, PROXY};
use crate::output::since;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

/// Which containers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// All but Duet's.
    Application,
    All,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub ready: usize,
    pub containers: usize,
    pub status: String,
    pub restarts: i32,
    /// With the time of the last one.
    #[serde(skip)]
    pub restarts_text: String,
}

/// Restarts so far, and the last one.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i32,
    last: Option<Timestamp>,
}

impl Count {
    fn includes(self, container: &str) -> bool {
        self == Self::All || ![PROXY, INIT].contains(&container)
    }
}

impl Restarts {
    fn add(&mut self, status: &ContainerStatus) {
        self.count += status.restart_count;
        let ended = status
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let ended = ended.and_then(|ended| ended.finished_at.as_ref());
        self.last = self.last.max(ended.map(|time| time.0));
    }
}

impl Row {
    pub fn of(pod: &Pod, count: Count, now: Timestamp) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let phase = status.phase.clone().unwrap_or_default();
        let mut text = status.reason.clone().unwrap_or_else(|| phase.clone());
        let condition = |kind: &str, is: &str| {
            let conditions = status.conditions.iter().flatten();
            conditions
                .into_iter()
                .any(|one| one.type_ == kind && one.status == is)
        };
        let gated = status.conditions.iter().flatten().any(|one| {
            one.type_ == "PodScheduled" && one.reason.as_deref() == Some("SchedulingGated")
        });
        if gated {
            "SchedulingGated".clone_into(&mut text);
        }

        let init: Vec<_> = spec.init_containers.iter().flatten().collect();
        let counted_init = init.iter().filter(|one| count.includes(&one.name)).count();
        let sidecar = |name: &str| {
            init.iter()
                .any(|one| one.name == name && restarts_always(one))
        };
        let sidecars = init
            .iter()
            .filter(|one| count.includes(&one.name) && restarts_always(one));
        let own = spec
            .containers
            .iter()
            .filter(|one| count.includes(&one.name));
        let containers = own.count() + sidecars.count();
        let initialized = condition("Initialized", "True");

        let mut ready = 0;
        let (mut restarts, mut of_sidecars) = (Restarts::default(), Restarts::default());
        let mut initializing = false;
        let mut done = 0;
        for one in status.init_container_statuses.iter().flatten() {
            let counts = count.includes(&one.name);
            if counts {
                restarts.add(one);
                if sidecar(&one.name) {
                    of_sidecars.add(one);
                }
            }
            let state = one.state.clone().unwrap_or_default();
            if state
                .terminated
                .as_ref()
                .is_some_and(|ended| ended.exit_code == 0)
            {
                done += usize::from(counts);
                continue;
            }
            if sidecar(&one.name) && one.started == Some(true) {
                ready += usize::from(counts && one.ready);
                done += usize::from(counts);
                continue;
            }
            if !counts && initialized {
                // The application runs; what is the matter with the proxy has a column.
                continue;
            }
            let whose = if counts { "Init" } else { "Mesh" };
            let waits = state
                .waiting
                .as_ref()
                .and_then(|waiting| waiting.reason.clone());
            text = match (state_ended(&state), waits) {
                (Some(ended), _) => format!("{whose}:{ended}"),
                (None, Some(reason)) if reason != "PodInitializing" => format!("{whose}:{reason}"),
                _ if counts => format!("Init:{done}/{counted_init}"),
                _ => "Mesh:Starting".to_owned(),
            };
            initializing = true;
            break;
        }

        if !initializing || initialized {
            restarts = of_sidecars;
            let mut running = false;
            for one in status.container_statuses.iter().flatten().rev() {
                if !count.includes(&one.name) {
                    continue;
                }
                restarts.add(one);
                let state = one.state.clone().unwrap_or_default();
                let waits = state
                    .waiting
                    .as_ref()
                    .and_then(|waiting| waiting.reason.clone());
                if let Some(reason) = waits.or_else(|| state_ended(&state)) {
                    text = reason;
                } else if one.ready && state.running.is_some() {
                    running = true;
                    ready += 1;
                }
            }
            if text == "Completed" && running {
                let is_ready = condition("Ready", "True");
                if is_ready { "Running" } else { "NotReady" }.clone_into(&mut text);
            }
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if status.reason.as_deref() == Some("NodeLost") {
                "Unknown".clone_into(&mut text);
            } else if !["Succeeded", "Failed"].contains(&phase.as_str()) {
                "Terminating".clone_into(&mut text);
            }
        }
        let restarts_text = match (restarts.count, restarts.last) {
            (1.., Some(last)) => format!("{} ({} ago)", restarts.count, since(last, now)),
            (count, _) => count.to_string(),
        };
        Self {
            ready,
            containers,
            status: text,
            restarts: restarts.count,
            restarts_text,
        }
    }
}

fn restarts_always(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn state_ended(state: &ContainerState) -> Option<String> {
    let ended = state.terminated.as_ref()?;
    Some(match (ended.reason.as_deref(), ended.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.to_owned(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", ended.exit_code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn state(name: &str, ready: bool, restarts: i32, state: Value) -> Value {
        json!({
            "name": name, "image": "", "imageID": "", "ready": ready, "started": ready,
            "restartCount": restarts, "state": state,
        })
    }

    /// An application with one container and one init container, and a sidecar.
    fn pod(init: Value, containers: Value, initialized: bool) -> Pod {
        let is = |is| if is { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": "web-0"},
            "spec": {
                "initContainers": [
                    {"name": INIT},
                    {"name": PROXY, "restartPolicy": "Always"},
                    {"name": "migrate"},
                ],
                "containers": [{"name": "web"}],
            },
            "status": {
                "phase": if initialized { "Running" } else { "Pending" },
                "conditions": [
                    {"type": "Initialized", "status": is(initialized)},
                    {"type": "Ready", "status": is(initialized)},
                ],
                "initContainerStatuses": init,
                "containerStatuses": containers,
            },
        }))
        .unwrap()
    }

    fn row(pod: &Pod, count: Count) -> (String, String, String) {
        let now = Timestamp::from_second(1_700_000_600).unwrap();
        let row = Row::of(pod, count, now);
        (
            format!("{}/{}", row.ready, row.containers),
            row.status,
            row.restarts_text,
        )
    }

    fn is(row: (String, String, String), ready: &str, status: &str, restarts: &str) {
        assert_eq!(
            row,
            (ready.to_owned(), status.to_owned(), restarts.to_owned())
        );
    }

    fn ended() -> Value {
        json!({"terminated": {"exitCode": 0, "reason": "Completed"}})
    }

    #[test]
    fn the_sidecar_is_not_counted_unless_asked_for() {
        let mut proxy = state(PROXY, true, 3, json!({"running": {}}));
        proxy["lastState"] =
            json!({"terminated": {"exitCode": 1, "finishedAt": "2023-11-14T22:13:20Z"}});
        let pod = pod(
            json!([
                state(INIT, true, 0, ended()),
                proxy,
                state("migrate", true, 1, ended()),
            ]),
            json!([state("web", true, 0, json!({"running": {}}))]),
            true,
        );
        is(row(&pod, Count::Application), "1/1", "Running", "0");
        is(row(&pod, Count::All), "2/2", "Running", "3 (10m ago)");
    }

    #[test]
    fn a_pod_that_waits_for_the_mesh_says_so() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let init = |of_init: Value, of_proxy: Value| {
            pod(
                json!([
                    state(INIT, false, 0, of_init),
                    state(PROXY, false, 0, of_proxy),
                    state("migrate", false, 0, waiting("PodInitializing")),
                ]),
                json!([state("web", false, 0, waiting("PodInitializing"))]),
                false,
            )
        };
        let pulls = init(waiting("ImagePullBackOff"), waiting("PodInitializing"));
        is(
            row(&pulls, Count::Application),
            "0/1",
            "Mesh:ImagePullBackOff",
            "0",
        );
        is(row(&pulls, Count::All), "0/2", "Init:ImagePullBackOff", "0");
        let starts = init(ended(), json!({"running": {}}));
        is(
            row(&starts, Count::Application),
            "0/1",
            "Mesh:Starting",
            "0",
        );
        is(row(&starts, Count::All), "0/2", "Init:1/3", "0");
        let failed = init(json!({"terminated": {"exitCode": 78}}), json!({}));
        is(
            row(&failed, Count::Application),
            "0/1",
            "Mesh:ExitCode:78",
            "0",
        );
    }

    #[test]
    fn the_applications_own_init_containers_are_counted_alone() {
        let pod = pod(
            json!([
                state(INIT, true, 0, ended()),
                state(PROXY, true, 0, json!({"running": {}})),
                state("migrate", false, 0, json!({"running": {}})),
            ]),
            json!([state(
                "web",
                false,
                0,
                json!({"waiting": {"reason": "PodInitializing"}})
            )]),
            false,
        );
        is(row(&pod, Count::Application), "0/1", "Init:0/1", "0");
        is(row(&pod, Count::All), "1/2", "Init:2/3", "0");
    }

    #[test]
    fn a_crashed_proxy_does_not_make_the_application_look_crashed() {
        let crashed = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let pod = pod(
            json!([
                state(INIT, true, 0, ended()),
                state(PROXY, false, 5, crashed),
                state("migrate", true, 0, ended()),
            ]),
            json!([state("web", true, 0, json!({"running": {}}))]),
            true,
        );
        is(row(&pod, Count::Application), "1/1", "Running", "0");
        is(row(&pod, Count::All), "1/2", "Init:CrashLoopBackOff", "5");
    }

    #[test]
    fn the_end_of_a_pod() {
        let ended_badly = json!({"terminated": {"exitCode": 137, "signal": 9, "reason": ""}});
        let init = json!([state(INIT, true, 0, ended())]);
        let mut pod = pod(init, json!([state("web", false, 2, ended_badly)]), true);
        is(row(&pod, Count::Application), "0/1", "Signal:9", "2");
        let at = serde_json::from_value(json!("2023-11-14T22:13:20Z")).unwrap();
        pod.metadata.deletion_timestamp = Some(at);
        is(row(&pod, Count::Application), "0/1", "Terminating", "2");
        pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        is(row(&pod, Count::Application), "0/1", "Signal:9", "2");
    }
}
