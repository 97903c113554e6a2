//! Duet leaves a real cluster in deploy/README.md's order, and takes nothing along.
#![forbid(unsafe_code)]

#[path = "../../tests/kubectl/mod.rs"]
mod kubectl;

use kubectl::{Namespace, PATIENCE, cluster_alone, eventually, said};
use std::process::{Command, Output};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

fn uninstall() -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-duet"))
        .args(["uninstall", "--yes"])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
#[ignore = "there is no Duet in the cluster afterwards: make test-uninstall"]
fn it_goes_without_a_trace_and_the_applications_stay() {
    // Whoever asks for this by name wants it done.
    let _cluster = cluster_alone().expect("a cluster with Duet in it");
    let applications = ["sidecar", "agent"].map(|mode| Namespace::new("leave-web", mode));
    let outside = Namespace::new("leave", "none");
    for (number, application) in applications.iter().enumerate() {
        let url = format!("http://{}/", application.web());
        let client = format!("asks-{number}");
        let flags = ["--rate", "20", "--duration", "20m", "--warmup", "0s"];
        let fresh = ["--new-connection-per-request", "--url", &url];
        outside.load(&client, &[&fresh[..], &flags].concat());
        let pod = format!("pod/{client}");
        outside.said(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"]);
    }

    let refused = uninstall();
    assert_eq!(refused.status.code(), Some(1));
    let why = text(&refused.stderr);
    for application in &applications {
        assert!(why.contains(&format!("{}/web-", application.name)), "{why}");
    }

    // Nobody joins any more; whoever is in it leaves it.
    said(&[
        "apply",
        "-k",
        &format!("{DEPLOY}/overlays/none"),
        "--prune",
        "-l",
        "app.kubernetes.io/part-of=duet",
        "--prune-allowlist=admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
    ]);
    for application in &applications {
        said(&["label", "namespace", &application.name, "duet.dev/mode-"]);
        application.roll("web");
        let pods = application.said(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].spec.initContainers[*].name}",
        ]);
        assert_eq!(pods, "", "no sidecar is left");
    }

    let gone = eventually("nobody is in the mesh", PATIENCE, || {
        let output = uninstall();
        output.status.success().then_some(output)
    });
    let gone = text(&gone.stdout);
    for what in [
        "deleted Namespace duet-system",
        "deleted CustomResourceDefinition authorizationpolicies.duet.dev",
    ] {
        assert!(gone.contains(what), "{gone}");
    }
    said(&[
        "wait",
        "--for=delete",
        "namespace/duet-system",
        "--timeout=120s",
    ]);

    let cleanup = format!("{DEPLOY}/cleanup");
    said(&["apply", "-k", &cleanup]);
    said(&[
        "-n",
        "duet-cleanup",
        "rollout",
        "status",
        "daemonset/duet-cleanup",
        "--timeout=120s",
    ]);
    said(&["delete", "-k", &cleanup, "--timeout=120s"]);

    eventually("there is nothing of it", PATIENCE, || {
        let output = uninstall();
        text(&output.stderr)
            .contains("there is nothing of Duet in this cluster")
            .then_some(())
    });
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "crds",
        "namespaces",
        "priorityclasses",
    ] {
        let listed = said(&["get", kind, "-o", "name"]);
        // Its own namespaces, and a bench's that is being removed.
        let others = |name: &&str| !name.contains("duet-life-") && !name.contains("duet-bench-");
        let names: String = listed.lines().filter(others).collect();
        assert!(!names.contains("duet"), "{kind}: {names}");
    }
    // New pods start, and reach each other, where there was an agent as well.
    for application in &applications {
        application.roll("web");
    }
    for number in 0..applications.len() {
        let client = format!("asks-{number}");
        outside.stop(&client).assert_nothing_failed(&client);
    }
}
