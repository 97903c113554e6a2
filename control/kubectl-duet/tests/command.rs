//! The command as its user has it: arguments, one line for each mistake, exit codes.
//! None of these needs a cluster.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{Command, Output};
use tempfile::NamedTempFile;

fn duet(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-duet"))
        .args(args)
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("PATH", "/nonexistent")
        .output()
        .unwrap()
}

/// It fails with this code, and says why in one line.
fn fails(args: &[&str], code: i32, says: &str) {
    let output = duet(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("kubectl duet: "), "{said}");
    assert!(said.contains(says), "{args:?}: {said}");
}

/// A kubeconfig whose one context leads to `server`.
fn kubeconfig(server: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\n\
         contexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n"
    );
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_kubeconfig_that_is_wrong_is_the_users_mistake() {
    fails(
        &["status", "--kubeconfig", "/nonexistent"],
        78,
        "no kubeconfig at /nonexistent",
    );
    let config = kubeconfig("http://127.0.0.1:1");
    let path = config.path().to_str().unwrap();
    fails(
        &["status", "--kubeconfig", path, "--context", "there"],
        78,
        "no context \"there\"",
    );
}

#[test]
fn a_cluster_that_is_not_there_is_named() {
    // A port that somebody had, and nobody has now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = kubeconfig(&format!("http://{address}"));
    let path = config.path().to_str().unwrap();
    for verb in [
        &["status"][..],
        &["pods"],
        &["check"],
        &["check", "--pre"],
        &["connections", "web"],
        &["tap", "deploy/web"],
        &["uninstall"],
        &["version"],
    ] {
        let args: Vec<_> = verb.iter().copied().chain(["--kubeconfig", path]).collect();
        fails(&args, 1, &format!("the API server at http://{address}"));
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_asked() {
    let config = kubeconfig("http://127.0.0.1:1");
    let path = config.path().to_str().unwrap();
    fails(
        &["tap", "job/x", "--kubeconfig", path],
        64,
        "write POD, deploy/NAME",
    );
    fails(
        &["connections", "web", "-A", "--kubeconfig", path],
        64,
        "a target is in one namespace",
    );
    for args in [
        &["tap"][..],
        &["status", "-A", "-n", "x"],
        &["tap", "web", "--rate", "0"],
        &["status", "-o", "xml"],
        &["shine"],
    ] {
        assert_eq!(duet(args).status.code(), Some(64), "{args:?}");
    }
}

#[test]
fn inject_is_somebody_elses() {
    fails(&["inject", "-f", "x.yaml"], 1, "duet-control inject");
}

#[test]
fn its_own_version_needs_nobody() {
    let output = duet(&["version", "--client", "-o", "json"]);
    assert!(output.status.success());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["client"], env!("CARGO_PKG_VERSION"));
}
