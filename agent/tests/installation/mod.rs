//! The agent as a DaemonSet, by `deploy/base/agent.yaml`, on the local cluster
//! (`make cluster`); with a duet-control of the test's own on this machine.
//!
//! Its mesh is one namespace's pods, those that are annotated with [`PLACED`]. It
//! does not go by Duet's own labels, so that an installation that does has no part
//! in the test.
//!
//! Without `KUBECONFIG`, the local cluster or root the tests say so and are skipped.

use super::daemon::{BINARY, get};
use duet_control::enrolment::CONDITION;
use duet_control::kube_auth::KubeAuthenticator;
use duet_control::{ControlPlane, Enrolments, MeshState, Rejected, Settings, Source, StateDir};
use duet_core::api::{MeshProtocol, Placement, Workload};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use prometheus::Registry;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Where duet-control and the agents are.
pub const SYSTEM: &str = "agent-test-system";
/// Where the pods are, which are the agents'.
pub const PODS: &str = "agent-test-pods";
pub const NODES: [&str; 2] = ["node-1", "node-2"];

/// The annotation of pods that are the agents'.
pub const PLACED: &str = "agent-test/placed";

/// An installed duet-control puts one of the usual name into every namespace.
const BUNDLE: &str = "agent-test-trust-bundle";
const AGENT_IMAGE: &str = "duet/agent:agent-test";
const PROBE_IMAGE: &str = "duet/probe:agent-test";
const BPFFS: &str = "/sys/fs/bpf/duet-agent-test";
const RUN: &str = "/run/duet-agent-test";
/// This machine, as pods and nodes see it.
const HERE: &str = "10.73.0.254:0";

/// The longest that anything takes on two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Installation {
    // In this order they go.
    control: ControlPlane,
    _runtime: Runtime,
    _traces: Traces,
}

/// What is made outside of this process. Dropping it removes that.
struct Traces {
    scratch: PathBuf,
}

/// Looks every [`LOOK`].
struct Pods {
    pods: Api<Pod>,
    last: Option<MeshState>,
}

const LOOK: Duration = Duration::from_millis(50);

impl Source for Pods {
    async fn next(&mut self) -> Result<MeshState, Rejected> {
        loop {
            let listed = self.pods.list(&ListParams::default()).await;
            let listed = listed.map_err(|error| Rejected::new(error.to_string()))?;
            let mut mesh = MeshState::new("agent.test");
            for workload in listed.into_iter().filter_map(workload) {
                mesh.put_workload(workload);
            }
            let is_new = self.last.as_ref().is_none_or(|last| !last.same_mesh(&mesh));
            if is_new {
                self.last = Some(mesh.clone());
                return Ok(mesh);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The injector's stamp: the pod has a gate, and is in the mesh from the beginning.
fn workload(pod: Pod) -> Option<Workload> {
    let (metadata, spec, status) = (pod.metadata, pod.spec?, pod.status?);
    metadata.annotations?.get(PLACED)?;
    let conditions = status.conditions.unwrap_or_default();
    let is_enrolled = conditions
        .iter()
        .any(|one| one.type_ == CONDITION && one.status == "True");
    let protocol = match is_enrolled || spec.readiness_gates.is_some() {
        true => MeshProtocol::Duet,
        false => MeshProtocol::None,
    };
    let addresses = status.pod_ips.unwrap_or_default();
    Some(Workload {
        namespace: metadata.namespace?,
        name: metadata.name?,
        service_account: spec.service_account_name?,
        node: spec.node_name?,
        addresses: addresses.into_iter().map(|address| address.ip).collect(),
        protocol: protocol.into(),
        uid: metadata.uid?,
        placement: Placement::Agent.into(),
        ..Workload::default()
    })
}

/// `None`, with the reason on standard error, where these tests cannot run.
pub fn install(test: &str) -> Option<Installation> {
    match why_not() {
        None => Some(Installation::new()),
        Some(why) => {
            // Past the test harness, which keeps what a passing test prints to itself.
            let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {why}");
            None
        }
    }
}

fn why_not() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        Some("needs root, for the local cluster")
    } else if std::env::var_os("KUBECONFIG").is_none() {
        Some("KUBECONFIG is not set: make cluster")
    } else if !kubectl(&["get", "--raw", "/readyz"]).status.success() {
        Some("the API server does not answer")
    } else if !said(&["get", "nodes", "-o", "name"]).contains("node/node-2")
        || !Path::new("/var/lib/duet-kube").exists()
    {
        Some("it is not the local cluster, on whose nodes images can be put")
    } else {
        None
    }
}

// === impl Installation ===

impl Installation {
    fn new() -> Self {
        let scratch = PathBuf::from(format!("/run/duet-agent-test-{}", std::process::id()));
        clean();
        fs::create_dir_all(&scratch).unwrap();
        let traces = Traces {
            scratch: scratch.clone(),
        };
        load(
            &scratch,
            AGENT_IMAGE,
            "/duet-agent",
            Path::new(BINARY),
            "0:0",
        );
        let probe = cache().join("bin/probe");
        load(&scratch, PROBE_IMAGE, "/probe", &probe, "65532:65532");

        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = Runtime::new().unwrap();
        let state_dir = StateDir::open(scratch.join("control")).unwrap();
        let control = runtime.block_on(control(&state_dir));
        apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {SYSTEM}}}}}\n---\n\
             {{apiVersion: v1, kind: Namespace, metadata: {{name: {PODS}}}}}"
        ));
        let root = state_dir.root_path();
        let root = format!("--from-file=root.pem={}", root.display());
        said(&["-n", SYSTEM, "create", "configmap", BUNDLE, &root]);
        let installation = Self {
            control,
            _runtime: runtime,
            _traces: traces,
        };
        installation.roll_out(&installation.manifest());
        installation
    }

    /// As it is delivered, in names and places of the test's own.
    pub fn manifest(&self) -> String {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base/agent.yaml");
        let url = format!("https://{}", self.control.api_addr());
        let args = format!("[supervise, --bpffs, {BPFFS}, --log, \"info,duet_agent=debug\"]");
        let mut manifest = fs::read_to_string(file).unwrap();
        for (from, to) in [
            ("https://duet-control.duet-system.svc:15010", &*url),
            ("duet-system", SYSTEM),
            ("duet/agent:0.1.0", AGENT_IMAGE),
            ("name: duet-trust-bundle", &format!("name: {BUNDLE}")),
            ("[supervise]", &args),
            ("path: /run/duet,", &format!("path: {RUN},")),
        ] {
            assert!(manifest.contains(from), "agent.yaml has no {from}");
            manifest = manifest.replace(from, to);
        }
        manifest
    }

    pub fn roll_out(&self, manifest: &str) {
        apply(manifest);
        self.rolled_out();
    }

    /// Waits until it is.
    pub fn rolled_out(&self) {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        let status = [
            "-n",
            SYSTEM,
            "rollout",
            "status",
            "daemonset/duet-agent",
            &limit,
        ];
        let output = kubectl(&status);
        if !output.status.success() {
            let events = said(&["-n", SYSTEM, "get", "events,pods", "-o", "wide"]);
            let logs = [
                "-n",
                SYSTEM,
                "logs",
                "-l",
                "app.kubernetes.io/name=duet-agent",
            ];
            panic!(
                "{}\n{events}\n{}",
                text(&output.stderr),
                text(&kubectl(&logs).stdout)
            );
        }
    }

    /// Names of the agents' pods, by node; where one takes over from another, its own.
    pub fn agents(&self) -> BTreeMap<String, String> {
        let path = r"jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{'\n'}{end}";
        let selector = "-lapp.kubernetes.io/name=duet-agent";
        let by_age = "--sort-by=.metadata.creationTimestamp";
        let listed = said(&["-n", SYSTEM, "get", "pods", selector, by_age, "-o", path]);
        let lines = listed.lines().filter_map(|line| line.split_once(' '));
        lines
            .map(|(node, pod)| (node.to_owned(), pod.to_owned()))
            .collect()
    }

    /// What `duet-agent VERB` says on a node.
    pub fn agent(&self, node: &str, verb: &str) -> String {
        said(&[
            "-n",
            SYSTEM,
            "exec",
            &self.agents()[node],
            "--",
            "/duet-agent",
            verb,
        ])
    }

    /// The sum of a node's series whose names and labels have all of `parts`.
    pub fn metric(&self, node: &str, parts: &[&str]) -> f64 {
        let address = address(SYSTEM, &self.agents()[node], 15020);
        let (_, page) = get(address, "/metrics");
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        let values = page
            .lines()
            .filter(has_all)
            .filter_map(|line| line.rsplit(' ').next());
        values.filter_map(|value| value.parse::<f64>().ok()).sum()
    }

    /// The files that the agent's process on a node has open.
    pub fn descriptors(&self, node: &str) -> usize {
        let directory = format!("/proc/{}/fd", self.process(node));
        on_node(node, &["ls", &directory]).lines().count()
    }

    /// The agent's process on a node, in the node's own count.
    pub fn process(&self, node: &str) -> String {
        let pattern = format!("^/duet-agent.*{BPFFS}");
        on_node(node, &["pgrep", "-fo", &pattern]).trim().to_owned()
    }

    /// What is pinned for pods on a node.
    pub fn records(&self, node: &str) -> usize {
        let list = format!("ls {BPFFS}/v1/pods | wc -l");
        on_node(node, &["sh", "-c", &list]).trim().parse().unwrap()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        clean();
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

async fn control(state_dir: &StateDir) -> ControlPlane {
    let client = kube::Client::try_default().await.unwrap();
    let authenticator = KubeAuthenticator::new(client.clone(), SYSTEM, &Registry::new());
    let settings = Settings {
        listen: HERE.parse().unwrap(),
        health: "127.0.0.1:0".parse().unwrap(),
        cert_lifetime: Duration::from_secs(3600),
        enrolments: Enrolments::PodCondition(client.clone()),
    };
    let source = Pods {
        pods: Api::namespaced(client, PODS),
        last: None,
    };
    let authority = state_dir.authority().unwrap();
    let started = ControlPlane::start(settings, authority, Arc::new(authenticator), source);
    started.await.unwrap()
}

fn clean() {
    let namespaces = ["delete", "namespace", PODS, SYSTEM, "--ignore-not-found"];
    kubectl(&namespaces);
    for node in NODES {
        let socket = format!("{RUN}/agent.sock");
        on_node(
            node,
            &[BINARY, "cleanup", "--bpffs", BPFFS, "--socket", &socket],
        );
        on_node(node, &["rm", "-rf", RUN]);
    }
}

fn load(scratch: &Path, image: &str, path: &str, program: &Path, user: &str) {
    let archive = scratch.join("image.tar");
    let stripped = scratch.join("program");
    let strip = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(program)
        .status();
    assert!(strip.unwrap().success());
    let mut files = vec![format!("{path}={}", stripped.display())];
    let libraries = Command::new("ldd").arg(program).output().unwrap();
    for word in text(&libraries.stdout).split_whitespace() {
        if word.starts_with('/') {
            files.push(format!("{word}={word}"));
        }
    }
    let mut pack = Command::new(cache().join("bin/pack"));
    pack.args(["-name", image, "-entrypoint", path, "-user", user, "-out"]);
    ran(pack.arg(&archive).args(files));
    ran(Command::new(cluster("load-image")).arg(&archive));
}

fn cluster(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/cluster")
        .join(script)
}

fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("DUET_CLUSTER_CACHE").unwrap_or_else(|| {
        let home = || variable("HOME").unwrap_or_default().join(".cache");
        variable("XDG_CACHE_HOME")
            .unwrap_or_else(home)
            .join("duet-cluster")
    })
}

/// A command on a node.
pub fn on_node(node: &str, command: &[&str]) -> String {
    let output = bounded(cluster("enter"))
        .arg(node)
        .args(command)
        .output()
        .unwrap();
    let error = text(&output.stderr);
    let status = output.status;
    assert!(status.success(), "{node}: {command:?}: {status}: {error}");
    text(&output.stdout)
}

pub fn kubectl(args: &[&str]) -> Output {
    let kubectl = cache().join("bin/kubectl");
    bounded(kubectl).args(args).output().unwrap()
}

/// A command that is ended when it takes longer than anything here: its test then
/// fails and says which, instead of waiting for ever.
fn bounded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    let limit = (2 * PATIENCE).as_secs().to_string();
    command.args(["--kill-after=5", &limit]).arg(program);
    command
}

/// What `kubectl ARGS` printed; it must succeed.
pub fn said(args: &[&str]) -> String {
    let output = kubectl(args);
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "kubectl {}: {}: {error}",
        args.join(" "),
        output.status
    );
    said
}

pub fn apply(manifests: &str) {
    let kubectl = cache().join("bin/kubectl");
    let child = Command::new(kubectl)
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(manifests.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "{manifests}");
}

/// A pod of the test's, which serves HTTP on port 8080. `more` goes into its spec.
pub fn pod(name: &str, node: &str, placed: bool, more: &str) {
    let annotations = if placed {
        format!("{PLACED}: ''")
    } else {
        String::new()
    };
    apply(&format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {PODS}, annotations: {{{annotations}}}}}\n\
         spec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n{more}  \
         containers:\n  - name: web\n    image: {PROBE_IMAGE}\n    imagePullPolicy: Never\n    \
         args: [serve, \":8080\"]\n    env: [{{name: POD, value: {name}}}, {{name: NODE, value: {node}}}]\n"
    ));
}

/// Gives a running pod to its agent, or takes it away.
pub fn place(name: &str, placed: bool) {
    let annotation = if placed {
        format!("{PLACED}=")
    } else {
        format!("{PLACED}-")
    };
    said(&["-n", PODS, "annotate", "pod", name, &annotation]);
}

/// With the gate that the injector adds.
pub fn gated_pod(name: &str, node: &str) {
    let gate = "  readinessGates: [{conditionType: duet.dev/enrolled}]\n";
    pod(name, node, true, gate);
}

/// Status, reason and message of a pod's condition.
pub fn enrolled(name: &str) -> String {
    let condition = r#".status.conditions[?(@.type=="duet.dev/enrolled")]"#;
    let path = format!("jsonpath={{range {condition}}}{{.status}} {{.reason}} {{.message}}{{end}}");
    said(&["-n", PODS, "get", "pod", name, "-o", &path])
        .trim()
        .to_owned()
}

pub fn wait_ready(name: &str) {
    let limit = format!("--timeout={}s", PATIENCE.as_secs());
    let pod = format!("pod/{name}");
    let output = kubectl(&["-n", PODS, "wait", "--for=condition=Ready", &pod, &limit]);
    let describe = || said(&["-n", PODS, "describe", "pod", name]);
    assert!(output.status.success(), "{}", describe());
}

pub fn address(namespace: &str, pod: &str, port: u16) -> SocketAddr {
    let ip = said(&[
        "-n",
        namespace,
        "get",
        "pod",
        pod,
        "-o",
        "jsonpath={.status.podIP}",
    ]);
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// What one pod's application is told by another's.
pub fn ask(from: &str, to: &str) -> Result<String, String> {
    let url = format!("http://{}/", address(PODS, to, 8080));
    let output = kubectl(&["-n", PODS, "exec", from, "--", "/probe", "get", &url]);
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

#[track_caller]
pub fn eventually(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
