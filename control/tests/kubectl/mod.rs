//! A cluster with Duet installed, as its user has it: kubectl and YAML.
//!
//! The tests need `KUBECONFIG` and an installation of `deploy/overlays/both`
//! (`make cluster images install`); without them they say so and are skipped.

#![allow(dead_code, reason = "each test file uses some of it")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

pub const IMAGE: &str = concat!("duet/bench:", env!("CARGO_PKG_VERSION"));
/// The longest that anything here takes on two slow cores.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A namespace of the test's own, gone with it.
pub struct Namespace {
    pub name: String,
}

/// What the load generator says at its end.
#[derive(Debug)]
pub struct Load {
    pub offered: u64,
    pub completed: u64,
    /// Of those, the ones that were before the time of asking was over.
    pub in_time: u64,
    pub errors: String,
    kinds: Value,
}

/// What a test holds while it uses the cluster: a share of it, or all of it.
#[derive(Default)]
pub struct Cluster {
    _share: Option<RwLockReadGuard<'static, ()>>,
    _all: Option<RwLockWriteGuard<'static, ()>>,
}

static CLUSTER: RwLock<()> = RwLock::new(());

/// `None`, with the reason on standard error, where these tests cannot run.
pub fn cluster() -> Option<Cluster> {
    is_installed().then(|| {
        let share = CLUSTER.read().unwrap_or_else(PoisonError::into_inner);
        Cluster {
            _share: Some(share),
            ..Cluster::default()
        }
    })
}

/// For what the other tests would notice.
pub fn cluster_alone() -> Option<Cluster> {
    is_installed().then(|| {
        let all = CLUSTER.write().unwrap_or_else(PoisonError::into_inner);
        Cluster {
            _all: Some(all),
            ..Cluster::default()
        }
    })
}

/// With `DUET_NO_SKIPS` set, a cluster in which Duet is not available is a failure.
fn is_installed() -> bool {
    let why = if std::env::var_os("KUBECONFIG").is_none() {
        "KUBECONFIG is not set".to_owned()
    } else {
        let ready = kubectl(&[
            "-n",
            "duet-system",
            "wait",
            "--for=condition=Available",
            "--timeout=60s",
            "deployment/duet-control",
        ]);
        if ready.status.success() {
            return true;
        }
        let why = format!("Duet is not available: {}", text(&ready.stderr));
        assert!(std::env::var_os("DUET_NO_SKIPS").is_none(), "{why}");
        why
    };
    // Past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(
        std::io::stderr().lock(),
        "skipped: {}: {why}",
        std::thread::current().name().unwrap_or_default()
    );
    false
}

pub fn kubectl(args: &[&str]) -> Output {
    Command::new("kubectl")
        .args(args)
        .output()
        .expect("kubectl is on the PATH")
}

/// What `kubectl ARGS` printed; it must succeed.
pub fn said(args: &[&str]) -> String {
    let output = kubectl(args);
    assert!(
        output.status.success(),
        "kubectl {}: {}",
        args.join(" "),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// `kubectl ARGS`, which reads this.
pub fn apply(args: &[&str], yaml: &str) {
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is on the PATH");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(yaml.as_bytes()).expect("kubectl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("kubectl ends");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

// === impl Namespace ===

impl Namespace {
    /// Labelled `duet.dev/mode: MODE`.
    pub fn new(what: &str, mode: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "duet-life-{what}-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        said(&["create", "namespace", &name]);
        let namespace = Self { name };
        namespace.mode(mode);
        namespace
    }

    pub fn mode(&self, mode: &str) {
        let label = format!("duet.dev/mode={mode}");
        said(&["label", "namespace", &self.name, &label, "--overwrite"]);
    }

    pub fn annotate(&self, annotation: &str) {
        said(&[
            "annotate",
            "namespace",
            &self.name,
            annotation,
            "--overwrite",
        ]);
    }

    pub fn said(&self, args: &[&str]) -> String {
        said(&[&["-n", &self.name], args].concat())
    }

    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.said(&["get", what, "-o", "json"])).expect("kubectl writes JSON")
    }

    pub fn apply(&self, yaml: &str) {
        apply(&["-n", &self.name, "apply", "-f", "-"], yaml);
    }

    /// `web`, a service before a deployment of two; ready when it returns.
    pub fn web(&self) -> String {
        self.apply(&format!(
            r"
apiVersion: v1
kind: Service
metadata: {{ name: web }}
spec:
  selector: {{ app: web }}
  ports: [{{ name: http, port: 80, targetPort: 8080, appProtocol: http }}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: web }}
spec:
  replicas: 2
  selector: {{ matchLabels: {{ app: web }} }}
  strategy: {{ rollingUpdate: {{ maxUnavailable: 0, maxSurge: 1 }} }}
  template:
    metadata: {{ labels: {{ app: web }} }}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
        - name: web
          image: {IMAGE}
          args: [serve, --http, '8080']
          # Without, whoever asks for some may have it all.
          resources: {{ requests: {{ cpu: 100m }} }}
          readinessProbe: {{ httpGet: {{ path: /, port: 8080 }}, periodSeconds: 1 }}
          # Endpoints are taken away everywhere before the server stops.
          lifecycle: {{ preStop: {{ sleep: {{ seconds: 4 }} }} }}
"
        ));
        self.rolled_out("web");
        self.said(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])
    }

    pub fn rolled_out(&self, deployment: &str) {
        let what = format!("deployment/{deployment}");
        self.said(&["rollout", "status", &what, "--timeout=120s"]);
    }

    /// Rolls a deployment and waits until its old pods have gone too.
    pub fn roll(&self, deployment: &str) {
        let before = self.pods(&format!("app={deployment}"));
        self.said(&["rollout", "restart", &format!("deployment/{deployment}")]);
        self.rolled_out(deployment);
        eventually("old pods go", PATIENCE, || {
            let now = self.pods(&format!("app={deployment}"));
            before.iter().all(|old| !now.contains(old)).then_some(())
        });
    }

    /// Names of the pods that `selector` finds.
    pub fn pods(&self, selector: &str) -> Vec<String> {
        let names = self.said(&["get", "pods", "-l", selector, "-o", "name"]);
        names.lines().map(str::to_owned).collect()
    }

    /// A generator that runs once. What takes long on two busy cores has not failed.
    pub fn load(&self, name: &str, flags: &[&str]) {
        self.load_as(name, "", flags);
    }

    /// With annotations, in YAML's one-line style.
    pub fn load_as(&self, name: &str, annotations: &str, flags: &[&str]) {
        let load = ["load", "--timeout", "5s"];
        let flags = serde_json::to_string(&[&load, flags].concat()).expect("strings");
        self.apply(&format!(
            r"
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, annotations: {{ {annotations} }} }}
spec:
  restartPolicy: Never
  containers:
    - name: load
      image: {IMAGE}
      args: {flags}
      resources: {{ requests: {{ cpu: 100m }} }}
      # Whoever follows its log has that time to begin.
      lifecycle: {{ preStop: {{ sleep: {{ seconds: 5 }} }} }}
"
        ));
    }

    /// Waits until the pod's application has ended and reads its report.
    pub fn report(&self, name: &str, patience: Duration) -> Load {
        self.terminated(name, patience);
        self.logged(name, "load")
    }

    /// The report in the log of a container that has ended.
    pub fn logged(&self, what: &str, container: &str) -> Load {
        Load::read(what, &self.said(&["logs", what, "-c", container]))
    }

    /// Ends a generator that still runs, and reads its report.
    pub fn stop(&self, name: &str) -> Load {
        let following = Command::new("kubectl")
            .args(["-n", &self.name, "logs", "-f", name, "-c", "load"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl is on the PATH");
        self.said(&["delete", "pod", name, "--wait=false"]);
        let output = following.wait_with_output().expect("kubectl ends");
        Load::read(name, &text(&output.stdout))
    }

    /// How the first application container of a pod ended.
    pub fn terminated(&self, name: &str, patience: Duration) -> Value {
        eventually(&format!("{name} ends"), patience, || {
            let pod = self.get(&format!("pod/{name}"));
            let ended = pod["status"]["containerStatuses"]
                .as_array()?
                .iter()
                .find(|container| container["name"] != "duet-proxy")?
                .pointer("/state/terminated")?
                .clone();
            Some(ended)
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let events = kubectl(&["-n", &self.name, "get", "pods,events"]);
            eprintln!("{}", text(&events.stdout));
        }
        kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// In which seconds of the run the requests fell due that failed.
fn when(timeline: &Value) -> String {
    let bins = timeline["error"].as_array().into_iter().flatten();
    let bin_ns = timeline["bin_ns"].as_u64().unwrap_or(1);
    let failed = bins.enumerate().filter(|(_, bin)| **bin != 0);
    let seconds: BTreeSet<u64> = failed
        .map(|(index, _)| index as u64 * bin_ns / 1_000_000_000)
        .collect();
    format!("due in seconds {seconds:?}")
}

// === impl Load ===

impl Load {
    fn read(name: &str, log: &str) -> Self {
        let from = log
            .find('{')
            .unwrap_or_else(|| panic!("{name} said: {log}"));
        let report: Value = serde_json::from_str(&log[from..])
            .unwrap_or_else(|error| panic!("{name}: {error}: {log}"));
        Self {
            offered: report["offered"].as_u64().expect("a count"),
            completed: report["completed"].as_u64().expect("a count"),
            in_time: report["completed_in_window"].as_u64().expect("a count"),
            kinds: report["errors"].clone(),
            errors: format!(
                "{}, {}; it waited {} s for a processor",
                report["errors"],
                when(&report["timeline"]),
                report["generator"]["waited_s"],
            ),
        }
    }

    /// How many failed in this way, as the report names it.
    pub fn failed(&self, kind: &str) -> u64 {
        self.kinds[kind].as_u64().unwrap_or(0)
    }

    pub fn assert_nothing_failed(&self, who: &str) {
        assert!(self.offered > 0, "{who} asked for nothing");
        assert_eq!(self.completed, self.offered, "{who}: {}", self.errors);
    }
}
