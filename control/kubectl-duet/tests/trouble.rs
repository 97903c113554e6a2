//! What is broken in a real cluster, and what `kubectl duet check` says of it.
//!
//! They need `KUBECONFIG`, kubectl and an installation of `deploy/overlays/both`, which
//! they break and mend. So they are skipped unless `DUET_DISRUPTIVE_TESTS` is set too.
#![forbid(unsafe_code)]

use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const POLICIES: &str = "authorizationpolicies.duet.dev";

fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn kubectl(args: &[&str], input: &str) -> Output {
    run(Command::new("kubectl").args(args), input)
}

fn kubectl_said(args: &[&str], input: &str) -> String {
    let output = kubectl(args, input);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What is wrong, as `kubectl duet check` has it, and its exit code.
fn failures() -> (Vec<Value>, i32) {
    let duet = env!("CARGO_BIN_EXE_kubectl-duet");
    let output = run(Command::new(duet).args(["check", "-o", "json"]), "");
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let failed = checks.into_iter().filter(|it| it["result"] == "failed");
    (failed.collect(), output.status.code().unwrap())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn says(failed: &[Value], key: &str, words: &str) -> bool {
    let mut texts = failed.iter().filter_map(|it| it[key].as_str());
    texts.any(|text| text.contains(words))
}

/// Mends what was broken, whatever becomes of the test.
struct Mend<'a>(&'a [&'a str], String);

impl Drop for Mend<'_> {
    fn drop(&mut self) {
        let output = kubectl(self.0, &self.1);
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

fn not_installed() -> bool {
    let why = if std::env::var_os("KUBECONFIG").is_none() {
        "KUBECONFIG is not set"
    } else if std::env::var_os("DUET_DISRUPTIVE_TESTS").is_none() {
        "it breaks the installation for a while, and DUET_DISRUPTIVE_TESTS is not set"
    } else if !kubectl(&["-n", "duet-system", "get", "daemonset/duet-agent"], "")
        .status
        .success()
    {
        let why = "deploy/overlays/both is not installed";
        assert!(std::env::var_os("DUET_NO_SKIPS").is_none(), "{why}");
        why
    } else {
        return false;
    };
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    // Past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr().lock(), "skipped: {name}: {why}");
    true
}

/// One after the other, as each breaks the installation.
#[test]
fn what_is_broken_is_named_with_its_remedy() {
    if not_installed() {
        return;
    }
    eventually("all is well before", || failures().0.is_empty());
    the_webhook_cannot_be_reached();
    eventually("all is well again", || failures().0.is_empty());
    nobody_is_behind_the_webhook();
    eventually("all is well once more", || failures().0.is_empty());
    the_definitions_are_missing();
    eventually("all is well at last", || failures().0.is_empty());
}

fn the_webhook_cannot_be_reached() {
    let namespace = format!("duet-trouble-{}", std::process::id());
    let _namespace = Mend(
        &["delete", "namespace", &namespace, "--wait=false"],
        String::new(),
    );
    kubectl_said(
        &["apply", "-f", "-"],
        &json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": namespace, "labels": { "duet.dev/mode": "agent" } },
        })
        .to_string(),
    );
    // A port at which nobody listens.
    let port = |port: u16| {
        let replace = |index: usize| {
            json!({
                "op": "replace", "path": format!("/webhooks/{index}/clientConfig/service/port"),
                "value": port,
            })
        };
        json!([replace(0), replace(1)]).to_string()
    };
    let patch = [
        "patch",
        "mutatingwebhookconfiguration/duet-injector",
        "--type=json",
        "-p",
    ];
    let (away, back) = (port(444), port(443));
    let mended = [&patch[..], &[&back]].concat();
    let mend = Mend(&mended, String::new());
    kubectl_said(&[&patch[..], &[&away]].concat(), "");

    eventually("the check names the webhook and what to look at", || {
        let (failed, code) = failures();
        code == 1
            && says(&failed, "found", "failed calling webhook")
            && says(&failed, "remedy", "has service duet-injector endpoints")
    });
    // Closed: a pod that is to be in the mesh is not made outside of it.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "one" },
        "spec": { "containers": [{ "name": "app", "image": "any" }] },
    });
    let made = kubectl(&["-n", &namespace, "create", "-f", "-"], &pod.to_string());
    let error = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success());
    assert!(error.contains("injector.duet.dev"), "{error}");
    drop(mend);
}

/// The API server may go on with the connection that it has; the check does not wait for it.
fn nobody_is_behind_the_webhook() {
    let service = ["-n", "duet-system", "patch", "service/duet-injector", "-p"];
    let select = |it: Value| json!({"spec": {"selector": {"duet.dev/nobody": it}}}).to_string();
    let back = select(Value::Null);
    let mended = [&service[..], &[&back]].concat();
    let _mend = Mend(&mended, String::new());
    let away = select(json!("here"));
    kubectl_said(&[&service[..], &[&away]].concat(), "");
    eventually("the check says that nobody is there", || {
        let (failed, code) = failures();
        code == 1
            && says(&failed, "found", "none is ready")
            && says(&failed, "remedy", "endpointslices")
    });
}

fn the_definitions_are_missing() {
    let definition = kubectl_said(&["get", "crd", POLICIES, "-o", "json"], "");
    let mut definition: Value = serde_json::from_str(&definition).unwrap();
    for key in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
        definition["metadata"].as_object_mut().unwrap().remove(key);
    }
    definition.as_object_mut().unwrap().remove("status");
    let mend = Mend(&["apply", "-f", "-"], definition.to_string());
    kubectl_said(&["delete", "crd", POLICIES], "");
    let (failed, code) = failures();
    assert_eq!(code, 1, "{failed:?}");
    assert!(says(&failed, "found", "is not there"), "{failed:?}");
    assert!(
        says(&failed, "remedy", "deploy/base/crds.yaml"),
        "{failed:?}"
    );
    // Without policies there is a mesh all the same, and a new replica begins to serve.
    let control = "deployment/duet-control";
    kubectl_said(&["-n", "duet-system", "rollout", "restart", control], "");
    kubectl_said(
        &[
            "-n",
            "duet-system",
            "rollout",
            "status",
            control,
            "--timeout=60s",
        ],
        "",
    );
    drop(mend);

    // What was defined again is watched again.
    let policy = json!({
        "apiVersion": "duet.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "duet-trouble", "namespace": "default" },
        "spec": { "action": "Allow", "selector": { "matchLabels": { "app": "nobody" } } },
    });
    let _policy = Mend(
        &[
            "-n",
            "default",
            "delete",
            POLICIES,
            "duet-trouble",
            "--ignore-not-found",
        ],
        String::new(),
    );
    eventually("a policy can be made", || {
        kubectl(&["apply", "-f", "-"], &policy.to_string())
            .status
            .success()
    });
    eventually("a policy is judged", || {
        let args = [
            "-n",
            "default",
            "get",
            POLICIES,
            "duet-trouble",
            "-o",
            "json",
        ];
        let found: Value = serde_json::from_str(&kubectl_said(&args, "")).unwrap();
        let conditions = found["status"]["conditions"].as_array();
        conditions.is_some_and(|them| them.iter().any(|it| it["type"] == "Accepted"))
    });
}
