//! Against a real cluster: what it says of one without Duet, and with it.
//!
//! They need `KUBECONFIG` and kubectl, and most need an installation of
//! `deploy/overlays/both`; without these they say so and are skipped.
#![forbid(unsafe_code)]

use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const IMAGE: &str = concat!("duet/bench:", env!("CARGO_PKG_VERSION"));
/// The longest that anything here takes on two slow cores.
const PATIENCE: Duration = Duration::from_secs(120);
const MODES: [&str; 2] = ["sidecar", "agent"];

/// A namespace of the test's own, gone with it.
struct Namespace(String);

fn duet(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-duet"))
        .args(args)
        .output()
        .unwrap()
}

/// What it printed; it must succeed.
fn said(args: &[&str]) -> String {
    let output = duet(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "kubectl duet {}: {error}",
        args.join(" ")
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    let args: Vec<_> = args.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&said(&args)).unwrap()
}

fn kubectl(args: &[&str]) -> Output {
    Command::new("kubectl")
        .args(args)
        .output()
        .expect("kubectl")
}

fn kubectl_said(args: &[&str]) -> String {
    let output = kubectl(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "kubectl {}: {error}",
        args.join(" ")
    );
    String::from_utf8(output.stdout).unwrap()
}

fn skipped(why: &str) -> bool {
    // Past the test harness, which keeps what a passing test prints to itself.
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr().lock(), "skipped: {name}: {why}");
    true
}

fn no_cluster() -> bool {
    std::env::var_os("KUBECONFIG").is_none() && skipped("KUBECONFIG is not set")
}

/// With `DUET_NO_SKIPS` set, a cluster in which Duet is not available is a failure.
fn not_installed() -> bool {
    if no_cluster() {
        return true;
    }
    let ready = kubectl(&[
        "-n",
        "duet-system",
        "wait",
        "--for=condition=Available",
        "--timeout=60s",
        "deployment/duet-control",
    ]);
    if ready.status.success() {
        return false;
    }
    let error = String::from_utf8_lossy(&ready.stderr);
    let why = format!("Duet is not available: {}", error.trim());
    assert!(std::env::var_os("DUET_NO_SKIPS").is_none(), "{why}");
    skipped(&why)
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

// === impl Namespace ===

impl Namespace {
    fn new(what: &str, labels: &Value) -> Self {
        let name = format!("kubectl-duet-{what}-{}", std::process::id());
        let this = Self(name.clone());
        this.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        }));
        this
    }

    /// A server, and a client that asks it ten times a second, in this mode.
    fn with_traffic(mode: &str) -> Self {
        let this = Self::new(mode, &json!({"duet.dev/mode": mode}));
        let name = &this.0;
        this.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": name},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }));
        let serve = json!(["serve", "--http", "8080"]);
        let url = format!("http://web.{name}/info");
        // Its preface is detected whenever the first request comes.
        let load = json!([
            "load",
            "--url",
            url,
            "--protocol",
            "http2",
            "--rate",
            "10",
            "--duration",
            "1h",
            "--warmup",
            "0s"
        ]);
        for (app, args) in [("web", serve), ("client", load)] {
            this.apply(&json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": app, "namespace": name},
            }));
            this.apply(&json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": app, "namespace": name},
                "spec": {
                    "selector": {"matchLabels": {"app": app}},
                    "template": {
                        "metadata": {"labels": {"app": app}},
                        "spec": {
                            "serviceAccountName": app,
                            "terminationGracePeriodSeconds": 1,
                            "containers": [{"name": app, "image": IMAGE, "args": args}],
                        },
                    },
                },
            }));
        }
        for app in ["web", "client"] {
            let deployment = format!("deployment/{app}");
            let ready = [
                "-n",
                name,
                "wait",
                "--for=condition=Available",
                "--timeout=120s",
                &deployment,
            ];
            kubectl_said(&ready);
        }
        this
    }

    /// Of the namespace's default service account, which may do nothing by itself.
    fn kubeconfig(&self) -> tempfile::NamedTempFile {
        let name = self.0.as_str();
        eventually("a service account", || {
            let found = kubectl(&["-n", name, "get", "serviceaccount", "default"]);
            found.status.success().then_some(())
        });
        let token = kubectl_said(&["-n", name, "create", "token", "default"]);
        let raw = kubectl_said(&["config", "view", "--raw", "--minify", "-o", "json"]);
        let mut raw: Value = serde_json::from_str(&raw).unwrap();
        raw["users"][0]["user"] = json!({"token": token.trim()});
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), raw.to_string()).unwrap();
        config
    }

    fn apply(&self, object: &Value) {
        let mut child = Command::new("kubectl")
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(object.to_string().as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success(), "{}: {object}", self.0);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        kubectl(&["delete", "namespace", &self.0, "--wait=false"]);
    }
}

#[test]
fn a_good_cluster_passes_what_comes_before() {
    if no_cluster() {
        return;
    }
    let output = duet(&["check", "--pre", "-o", "json"]);
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = checks.as_array().unwrap();
    assert!(checks.len() >= 10, "{checks:#?}");
    let failed = checks.iter().filter(|check| check["result"] == "failed");
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(output.status.success());
    let text = said(&["check", "--pre"]);
    assert!(text.contains("✓ kernels are 5.14 or newer"), "{text}");
}

#[test]
fn without_a_proxy_a_pod_is_as_kubectl_says() {
    if no_cluster() {
        return;
    }
    let columns = |text: &str| -> Vec<Vec<String>> {
        let lines = text.lines().skip(1);
        let words = lines.map(|line| line.split_whitespace().take(4).map(str::to_owned).collect());
        words.collect()
    };
    let theirs = kubectl_said(&["-n", "kube-system", "get", "pods"]);
    let ours = said(&["pods", "-n", "kube-system"]);
    assert!(!columns(&theirs).is_empty());
    assert_eq!(columns(&ours), columns(&theirs), "{ours}");
    assert!(ours.lines().next().unwrap().ends_with("MESH"));
}

#[test]
fn a_refusal_names_the_verb_and_the_resource() {
    if no_cluster() {
        return;
    }
    let namespace = Namespace::new("nobody", &json!({}));
    let config = namespace.kubeconfig();
    let config = config.path().to_str().unwrap();
    for (args, refused) in [
        (&["status"][..], "cannot get resource \"deployments\""),
        (&["pods", "-A"], "cannot list resource \"namespaces\""),
        (
            &["uninstall"],
            "cannot list resource \"mutatingwebhookconfigurations\"",
        ),
    ] {
        let args: Vec<_> = args
            .iter()
            .copied()
            .chain(["--kubeconfig", config])
            .collect();
        let output = duet(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(refused) && said.lines().count() == 1,
            "{said}"
        );
    }
    // What may not be read is not held against the cluster, but what may not be
    // created is in the way.
    let output = duet(&["check", "--pre", "-o", "json", "--kubeconfig", config]);
    assert_eq!(output.status.code(), Some(1));
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |what: &str| {
        let mut checks = checks.as_array().unwrap().iter();
        checks.find(|check| check["what"] == what).unwrap()["result"].clone()
    };
    assert_eq!(of("you may create what Duet consists of"), "failed");
    assert_eq!(of("nodes"), "warning");
}

#[test]
fn an_installation_that_works_passes() {
    if not_installed() {
        return;
    }
    // Pods that others start and end meanwhile may be on their way.
    eventually("kubectl duet check", || {
        let output = duet(&["check", "-o", "json"]);
        let checks: Value = serde_json::from_slice(&output.stdout).ok()?;
        let failed: Vec<_> = checks
            .as_array()?
            .iter()
            .filter(|c| c["result"] == "failed")
            .collect();
        if !failed.is_empty() {
            eprintln!("{failed:#?}");
        }
        output.status.success().then_some(())
    });
    let status = json(&["status"]);
    let control = &status["control"];
    assert_eq!(control["ready"], control["replicas"], "{control}");
    assert!(control["leader"].is_string(), "{control}");
    assert!(control["authority"]["notAfter"].is_i64(), "{control}");
    let builds = control["builds"].as_object().unwrap();
    assert!(!builds.is_empty(), "{control}");
    let version = said(&["version"]);
    assert!(
        version.contains(&format!("duet-control: {}", env!("CARGO_PKG_VERSION"))),
        "{version}"
    );
}

#[test]
fn traffic_is_seen_in_both_modes() {
    if not_installed() {
        return;
    }
    for mode in MODES {
        let namespace = Namespace::with_traffic(mode);
        let name = namespace.0.as_str();
        folded(name, mode);
        listed(name);
        tapped(name);
        counted(name, mode);
        kept(name);
    }
}

/// The application's containers are all that counts.
fn folded(name: &str, mode: &str) {
    let pods = json(&["pods", "-n", name]);
    for pod in pods.as_array().unwrap() {
        assert_eq!(
            (&pod["ready"], &pod["containers"]),
            (&1.into(), &1.into()),
            "{pod}"
        );
        assert_eq!(
            (&pod["status"], &pod["mesh"]),
            (&"Running".into(), &mode.into()),
            "{pod}"
        );
        assert!(pod.get("missing").is_none(), "{pod}");
    }
    let shown = json(&["pods", "-n", name, "--show-proxies"]);
    for pod in shown.as_array().unwrap() {
        let containers = if mode == "sidecar" { 2 } else { 1 };
        assert_eq!(pod["containers"], containers, "{pod}");
        let proxy = pod["proxy"].as_str().unwrap();
        let expected = if mode == "sidecar" {
            "duet-proxy"
        } else {
            "duet-system/duet-agent-"
        };
        assert!(proxy.starts_with(expected), "{proxy}");
    }
}

/// Whatever the trust domain.
fn is(connection: &Value, identity: &str) -> bool {
    let found = connection["identity"].as_str().unwrap_or_default();
    found.starts_with("spiffe://") && found.ends_with(identity)
}

fn listed(name: &str) {
    let client = format!("/ns/{name}/sa/client");
    let server = format!("/ns/{name}/sa/web");
    eventually("the client's connection", || {
        let out = json(&[
            "connections",
            "deploy/client",
            "-n",
            name,
            "--direction",
            "outbound",
        ]);
        let mut out = out.as_array()?.iter();
        out.find(|one| {
            one["kind"] == "client"
                && one["transport"] == "mtls"
                && is(one, &server)
                && one["requests"].as_u64() > Some(0)
        })
        .cloned()
    });
    eventually("the server's end of it", || {
        let inbound = json(&[
            "connections",
            "deploy/web",
            "-n",
            name,
            "--direction",
            "inbound",
        ]);
        let mut inbound = inbound.as_array()?.iter();
        inbound
            .find(|one| one["kind"] == "mesh" && is(one, &client))
            .cloned()
    });
    let table = said(&["connections", "deploy/client", "-n", name, "-o", "wide"]);
    assert!(table.contains("mTLS") && table.contains(&server), "{table}");
}

fn tapped(name: &str) {
    let args = [
        "tap",
        "deploy/web",
        "-n",
        name,
        "--direction",
        "inbound",
        "--path",
        "/info",
        "--method",
        "GET",
        "--count",
        "3",
        "--for",
        "30s",
        "-o",
        "json",
    ];
    let lines = said(&args);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["kind"], "request");
        assert_eq!(line["peer"], format!("{name}/client"), "{line}");
        assert_eq!(
            (&line["tls"], &line["status"]),
            (&true.into(), &200.into()),
            "{line}"
        );
    }
    let none = said(&[
        "tap",
        "deploy/web",
        "-n",
        name,
        "--path",
        "/elsewhere",
        "--for",
        "2s",
    ]);
    assert_eq!(none, "");
}

fn counted(name: &str, mode: &str) {
    let status = json(&["status", "-n", name]);
    let row = &status["namespaces"][0];
    assert_eq!(
        (&row["name"], &row["mode"]),
        (&name.into(), &mode.into()),
        "{row}"
    );
    assert_eq!(row[mode], 2, "{row}");
    assert_eq!(
        (&row["unenrolled"], &row["needsRollout"]),
        (&0.into(), &0.into()),
        "{row}"
    );
    assert_eq!(row["cores"].as_array().unwrap().len(), 1, "{row}");
    assert!(row["firstExpiry"].is_i64(), "{row}");

    let other = if mode == "sidecar" {
        "agent"
    } else {
        "sidecar"
    };
    let label = format!("duet.dev/mode={other}");
    kubectl_said(&["label", "namespace", name, "--overwrite", &label]);
    let status = json(&["status", "-n", name]);
    assert_eq!(status["namespaces"][0]["needsRollout"], 2, "{status}");
    let why = status["needsRollout"][0]["why"].as_str().unwrap();
    assert_eq!(why, format!("it is {mode}, its labels ask for {other}"));
}

/// Whoever is still in the mesh is named before anything is deleted.
fn kept(name: &str) {
    let output = duet(&["uninstall"]);
    let manifest = String::from_utf8_lossy(&output.stdout);
    let first = manifest.lines().nth(2).unwrap();
    assert_eq!(first, "kind: MutatingWebhookConfiguration", "{manifest}");
    assert!(
        manifest.contains("metadata: {name: duet-system}"),
        "{manifest}"
    );
    let bundle = format!("metadata: {{name: duet-trust-bundle, namespace: {name}}}");
    assert!(manifest.contains(&bundle), "{manifest}");
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(warning.contains("still in the mesh: "), "{warning}");
}

/// By somebody who may see everything, and delete nothing but his own.
#[test]
fn an_uninstallation_says_what_went_and_what_did_not() {
    if not_installed() {
        return;
    }
    let namespace = Namespace::new("uninstall", &json!({}));
    let name = namespace.0.as_str();
    let subjects = json!([{"kind": "ServiceAccount", "name": "default", "namespace": name}]);
    let group = "rbac.authorization.k8s.io";
    let binding = |kind: &str, of: &str| {
        json!({
            "apiVersion": format!("{group}/v1"), "kind": kind,
            "metadata": {"name": name, "namespace": name},
            "roleRef": {"apiGroup": group, "kind": of, "name": name}, "subjects": subjects,
        })
    };
    let role = |kind: &str, rule: Value| {
        json!({
            "apiVersion": format!("{group}/v1"), "kind": kind,
            "metadata": {"name": name, "namespace": name}, "rules": [rule],
        })
    };
    let read = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list"]});
    let delete = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["delete"]});
    let cluster_wide = ClusterWide(name.to_owned());
    namespace.apply(&role("ClusterRole", read));
    namespace.apply(&binding("ClusterRoleBinding", "ClusterRole"));
    namespace.apply(&role("Role", delete));
    namespace.apply(&binding("RoleBinding", "Role"));
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "ours", "namespace": name, "labels": {"app.kubernetes.io/part-of": "duet"},
        },
    }));
    let config = namespace.kubeconfig();
    let config = config.path().to_str().unwrap();
    let output = eventually("its permissions", || {
        let args = ["uninstall", "--yes", "--force", "--kubeconfig", config];
        let output = duet(&args);
        String::from_utf8_lossy(&output.stdout)
            .contains("deleted")
            .then_some(output)
    });
    let (went, stayed) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert_eq!(output.status.code(), Some(1), "{stayed}");
    assert!(
        went.contains(&format!("deleted ConfigMap {name}/ours")),
        "{went}"
    );
    let others = went
        .lines()
        .filter(|line| !line.contains(&format!(" {name}/")));
    assert_eq!(others.count(), 0, "{went}");
    let first = stayed.lines().next().unwrap();
    assert!(
        first.contains("MutatingWebhookConfiguration duet-injector: not allowed"),
        "{stayed}"
    );
    assert!(
        stayed.contains("Namespace duet-system: not allowed"),
        "{stayed}"
    );
    let gone = kubectl(&["-n", name, "get", "configmap", "ours"]);
    assert!(!gone.status.success(), "it says so, and it is still there");
    drop(cluster_wide);
}

/// What a namespace does not take with it.
struct ClusterWide(String);

impl Drop for ClusterWide {
    fn drop(&mut self) {
        kubectl(&["delete", "clusterrole,clusterrolebinding", &self.0]);
    }
}
