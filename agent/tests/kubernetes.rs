//! The DaemonSet on a real Kubernetes: found pods, their condition, their traffic.

mod daemon;
mod installation;
mod world;

use installation::{
    Installation, NODES, PODS, apply, ask, enrolled, eventually, gated_pod, install, on_node,
    place, pod, said, wait_ready,
};
use std::time::Duration;

/// One installation for all, because there is one cluster.
#[test]
fn a_nodes_agent_and_its_pods() {
    let Some(installation) = install("a_nodes_agent_and_its_pods") else {
        return;
    };
    if let Ok(hold) = std::env::var("DUET_TEST_HOLD") {
        std::fs::write(&hold, installation.manifest()).unwrap();
        while std::path::Path::new(&hold).exists() {
            std::thread::sleep(Duration::from_millis(200));
        }
        return;
    }
    new_pods_are_enrolled_and_speak_the_mesh(&installation);
    running_pods_join_and_leave(&installation);
    pods_of_the_host_network_are_left_alone(&installation);
    the_next_pod_of_a_name_is_enrolled_anew(&installation);
    a_killed_agents_pods_are_taken_up(&installation);
    an_agent_that_may_not_do_its_work_says_so(&installation);
    a_deleted_pod_leaves_nothing(&installation);
}

fn new_pods_are_enrolled_and_speak_the_mesh(installation: &Installation) {
    gated_pod("server", "node-1");
    gated_pod("client", "node-2");
    for name in ["server", "client"] {
        // The gate holds it back until then.
        wait_ready(name);
        assert_eq!(enrolled(name), "True Enrolled");
    }
    for (node, name) in NODES.into_iter().zip(["server", "client"]) {
        let list = installation.agent(node, "list");
        let line = list
            .lines()
            .find(|line| line.starts_with(&format!("{PODS}/{name}\t/proc/")));
        assert!(
            line.is_some_and(|line| line.ends_with("\tenrolled")),
            "{list}"
        );
        let gaps = installation.metric(node, &["duet_agent_enrolment_gap_seconds_count"]);
        assert_eq!(gaps, 1.0);
    }
    assert_eq!(ask("client", "server").unwrap(), "server on node-1\n");
    assert_eq!(meshed(installation, "node-2", "client", "outbound"), 1.0);
    assert_eq!(meshed(installation, "node-1", "server", "inbound"), 1.0);
}

/// Requests that a pod's agent has passed on by mTLS.
fn meshed(installation: &Installation, node: &str, pod: &str, direction: &str) -> f64 {
    let direction = format!("direction=\"{direction}\"");
    let workload = format!("workload=\"{pod}\"");
    let series = "duet_http_responses_total{";
    installation.metric(node, &[series, &direction, &workload, "tls=\"true\""])
}

fn running_pods_join_and_leave(installation: &Installation) {
    pod("early", "node-1", false, "");
    wait_ready("early");
    assert_eq!(enrolled("early"), "");
    assert_eq!(ask("client", "early").unwrap(), "early on node-1\n");
    let before = meshed(installation, "node-2", "client", "outbound");

    place("early", true);
    eventually(|| enrolled("early") == "True Enrolled");
    eventually(|| {
        assert_eq!(ask("client", "early").unwrap(), "early on node-1\n");
        meshed(installation, "node-2", "client", "outbound") > before
    });
    // What somebody undoes is put right.
    let undone =
        r#"{"status": {"conditions": [{"type": "duet.dev/enrolled", "status": "False"}]}}"#;
    said(&[
        "-n",
        PODS,
        "patch",
        "pod",
        "early",
        "--subresource=status",
        "-p",
        undone,
    ]);
    eventually(|| enrolled("early") == "True Enrolled");

    place("early", false);
    eventually(|| !installation.agent("node-1", "list").contains("/early"));
    assert_eq!(ask("client", "early").unwrap(), "early on node-1\n");
    said(&["-n", PODS, "delete", "pod", "early"]);
}

/// Discovery does not give such a pod to an agent. If it did:
fn pods_of_the_host_network_are_left_alone(installation: &Installation) {
    pod("host", "node-2", true, "  hostNetwork: true\n");
    let why = "its processes are in the node's own network namespace";
    eventually(|| enrolled("host") == format!("False Pending {why}"));
    let list = installation.agent("node-2", "list");
    assert!(
        list.contains(&format!("{PODS}/host\t-\tpending: {why}")),
        "{list}"
    );
    assert_eq!(installation.records("node-2"), 1);
    said(&["-n", PODS, "delete", "pod", "host"]);
}

fn the_next_pod_of_a_name_is_enrolled_anew(installation: &Installation) {
    let before = installation.agent("node-1", "list");
    said(&["-n", PODS, "delete", "pod", "server"]);
    gated_pod("server", "node-1");
    wait_ready("server");
    let list = installation.agent("node-1", "list");
    assert_ne!(list, before);
    assert_eq!(list.lines().count(), 1, "{list}");
    assert_eq!(installation.records("node-1"), 1);
    assert_eq!(ask("client", "server").unwrap(), "server on node-1\n");
}

fn a_killed_agents_pods_are_taken_up(installation: &Installation) {
    let before = installation.agent("node-1", "list");
    let pod = &installation.agents()["node-1"];
    let restarts = || {
        let path = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        let namespace = installation::SYSTEM;
        said(&["-n", namespace, "get", "pod", pod, "-o", path])
    };
    assert_eq!(restarts(), "0 true");
    on_node("node-1", &["kill", "-9", &installation.process("node-1")]);
    eventually(|| restarts() == "1 true");
    assert_eq!(installation.agent("node-1", "list"), before);
    let again = installation.metric("node-1", &["duet_agent_enrolment_gap_seconds_count"]);
    let late = installation.metric("node-1", &["duet_agent_late_enrolments_total "]);
    assert_eq!((again, late), (0.0, 0.0), "no connection has been let past");
    assert_eq!(ask("client", "server").unwrap(), "server on node-1\n");
    assert_eq!(enrolled("server"), "True Enrolled");
}

fn an_agent_that_may_not_do_its_work_says_so(installation: &Installation) {
    let manifest = installation.manifest();
    let less = manifest.replace("add: [SYS_ADMIN, SYS_PTRACE]", "add: [SYS_ADMIN]");
    assert_ne!(less, manifest);
    apply(&less);
    let namespace = installation::SYSTEM;
    // The rollout begins with one of the two nodes, whose agent stays, and goes no further.
    let not_ready = || {
        let path = "jsonpath={.items[*].status.containerStatuses[0].ready}";
        let ready = said(&["-n", namespace, "get", "pods", "-o", path]);
        let mut ready: Vec<_> = ready.split_whitespace().collect();
        ready.sort_unstable();
        ready == ["false", "true", "true"]
    };
    eventually(not_ready);
    std::thread::sleep(Duration::from_secs(10));
    assert!(not_ready());
    assert_eq!(ask("client", "server").unwrap(), "server on node-1\n");
    installation.roll_out(&manifest);
    assert_eq!(ask("client", "server").unwrap(), "server on node-1\n");
}

fn a_deleted_pod_leaves_nothing(installation: &Installation) {
    let before = installation.descriptors("node-2");
    for _ in 0..3 {
        gated_pod("fleeting", "node-2");
        wait_ready("fleeting");
        said(&["-n", PODS, "delete", "pod", "fleeting"]);
        eventually(|| !installation.agent("node-2", "list").contains("/fleeting"));
    }
    assert_eq!(installation.records("node-2"), 1);
    eventually(|| installation.descriptors("node-2") <= before);
}
