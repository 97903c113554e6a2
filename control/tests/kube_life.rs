//! What happens to pods, Jobs and connections on a real kubelet, in either mode.

mod kubectl;

use kubectl::{IMAGE, Namespace, PATIENCE, cluster, cluster_alone, eventually, said};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
const MODES: [&str; 2] = ["sidecar", "agent"];

/// A few requests at once, the first some 10 ms after the start: no warm-up, no retry.
fn first_act(address: &str) -> String {
    let flags = "--rate, '100', --duration, 100ms, --warmup, 0s";
    // What takes long on two busy cores has not failed.
    format!("[load, --url, 'http://{address}/', {flags}, --timeout, 5s]")
}

/// A Job of one pod that asks `address` and then ends with the status of `args`.
fn job(name: &str, address: &str, args: &str, annotations: &str) -> String {
    let asks = first_act(address);
    format!(
        r"
apiVersion: batch/v1
kind: Job
metadata: {{ name: {name} }}
spec:
  backoffLimit: 0
  template:
    metadata: {{ annotations: {annotations} }}
    spec:
      restartPolicy: Never
      initContainers: [{{ name: asks, image: {IMAGE}, args: {asks} }}]
      containers: [{{ name: app, image: {IMAGE}, args: {args} }}]
"
    )
}

#[test]
fn the_app_connects_as_its_first_act() {
    let Some(_cluster) = cluster() else {
        return;
    };
    first_acts("sidecar");
}

/// Without the plugin a pod is enrolled once it runs, mostly before its application says
/// something; with it, before anything runs.
#[test]
fn behind_the_cni_plugin_it_does_so_in_agent_mode_too() {
    let Some(_cluster) = cluster_alone() else {
        return;
    };
    let _plugin = Component::install("cni");
    first_acts("agent");
    an_init_container_asks("agent");
    let enrolled = "duet_agent_cni_requests_total{outcome=\"enrolled\"}";
    // The ten pods, and the Job's.
    assert_eq!(of_agents(enrolled), 11.0);
    assert_eq!(of_agents("duet_agent_enrolment_gap_seconds_count"), 0.0);
}

/// A metric of all agents that are not ending, summed up.
fn of_agents(metric: &str) -> f64 {
    let agents = said(&[
        "-n",
        "duet-system",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=duet-agent",
        "-o",
        r#"jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{"\n"}{end}"#,
    ]);
    let staying = agents
        .lines()
        .filter_map(|line| line.trim().split_once(' ').is_none().then_some(line.trim()));
    staying
        .map(|name| {
            let path = format!("/api/v1/namespaces/duet-system/pods/{name}:15020/proxy/metrics");
            let page = said(&["get", "--raw", &path]);
            let mut values = page.lines().filter_map(|line| line.strip_prefix(metric));
            values
                .next()
                .map_or(0.0, |value| value.trim().parse().unwrap())
        })
        .sum()
}

fn first_acts(mode: &str) {
    let servers = Namespace::new(&format!("first-web-{mode}"), "sidecar");
    servers.annotate("duet.dev/mtls=strict");
    let url = format!("http://{}/", servers.web());
    let clients = Namespace::new(&format!("first-{mode}"), mode);
    // Ten pods: a race would show in some.
    for number in 0..10 {
        let flags = ["--rate", "20", "--duration", "1s", "--warmup", "0s"];
        let name = format!("app-{number}");
        clients.load(&name, &[&["--url", &url], &flags[..]].concat());
    }
    for number in 0..10 {
        let name = format!("app-{number}");
        clients.report(&name, PATIENCE).assert_nothing_failed(&name);
    }
}

/// One of `deploy/components`, beside both modes, for as long as this lives.
struct Component;

// === impl Component ===

impl Component {
    fn install(name: &str) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("with-{name}"));
        fs::create_dir_all(&place).unwrap();
        let place = place.canonicalize().unwrap();
        // Kustomize follows relative paths only.
        let up = "../".repeat(place.components().count() - 1);
        let deploy = Path::new(DEPLOY).canonicalize().unwrap();
        let deploy = format!("{up}{}", deploy.strip_prefix("/").unwrap().display());
        let text = format!(
            "resources: [{deploy}/overlays/both]\ncomponents: [{deploy}/components/{name}]\n"
        );
        fs::write(place.join("kustomization.yaml"), text).unwrap();
        let component = Self;
        Self::apply(&place);
        component
    }

    fn apply(overlay: &Path) {
        said(&["apply", "-k", overlay.to_str().unwrap()]);
        let status = [
            "rollout",
            "status",
            "daemonset/duet-agent",
            "--timeout=180s",
        ];
        said(&[&["-n", "duet-system"], &status[..]].concat());
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        Self::apply(&Path::new(DEPLOY).join("overlays/both"));
    }
}

#[test]
fn an_init_container_has_the_network() {
    let Some(_cluster) = cluster() else {
        return;
    };
    an_init_container_asks("sidecar");
}

/// And over mTLS, which is all that its servers take.
fn an_init_container_asks(mode: &str) {
    let servers = Namespace::new(&format!("init-web-{mode}"), "sidecar");
    servers.annotate("duet.dev/mtls=strict");
    let address = servers.web();
    let clients = Namespace::new(&format!("init-{mode}"), mode);
    clients.apply(&job("asks", &address, "[list]", "{}"));
    clients.said(&[
        "wait",
        "--for=condition=Complete",
        "job/asks",
        "--timeout=120s",
    ]);
    let asked = clients.logged("job/asks", "asks");
    asked.assert_nothing_failed(mode);
}

#[test]
fn a_job_ends_with_its_own_exit_code() {
    let Some(_cluster) = cluster() else {
        return;
    };
    for mode in MODES {
        let servers = Namespace::new("job-web", mode);
        let address = servers.web();
        let jobs = Namespace::new("job", mode);
        jobs.apply(&job("good", &address, "[list]", "{}"));
        // duet-bench's exit code for usage is 3.
        jobs.apply(&job("bad", &address, "[run, --profile, nonsense]", "{}"));
        jobs.said(&[
            "wait",
            "--for=condition=Complete",
            "job/good",
            "--timeout=120s",
        ]);
        jobs.said(&[
            "wait",
            "--for=condition=Failed",
            "job/bad",
            "--timeout=120s",
        ]);
        for (job, code) in [("good", 0), ("bad", 3)] {
            let pod = jobs.pods(&format!("job-name={job}")).remove(0);
            let name = pod.trim_start_matches("pod/");
            assert_eq!(
                jobs.terminated(name, PATIENCE)["exitCode"],
                code,
                "{mode} {job}"
            );
            let asked = jobs.logged(name, "asks");
            asked.assert_nothing_failed(&format!("{mode} {job}"));
        }
    }
}

#[test]
fn a_cron_job_goes_on_beside_its_proxy() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let namespace = Namespace::new("cron", "sidecar");
    namespace.apply(&format!(
        r"
apiVersion: batch/v1
kind: CronJob
metadata: {{ name: tick }}
spec:
  schedule: '* * * * *'
  # Only if a run ends does the next begin.
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{{ name: app, image: {IMAGE}, args: [list] }}]
"
    ));
    eventually("two runs", Duration::from_secs(200), || {
        let jobs = namespace.get("jobs");
        let done = |job: &&serde_json::Value| job["status"]["succeeded"] == 1;
        (jobs["items"].as_array()?.iter().filter(done).count() >= 2).then_some(())
    });
}

#[test]
fn a_classic_sidecar_keeps_its_job_from_ending() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let servers = Namespace::new("classic-web", "sidecar");
    servers.annotate("duet.dev/mtls=strict");
    let address = servers.web();
    let namespace = Namespace::new("classic", "sidecar");
    let classic = "{ duet.dev/sidecar-kind: classic }";
    namespace.apply(
        &job("hangs", &address, &first_act(&address), classic)
            // The pre-1.28 pattern has no network for init containers.
            .replace("initContainers:", "x-was:")
            .lines()
            .filter(|line| !line.contains("x-was"))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    let pod = eventually("its pod", PATIENCE, || {
        namespace.pods("job-name=hangs").pop()
    });
    let name = pod.trim_start_matches("pod/").to_owned();
    assert_eq!(namespace.terminated(&name, PATIENCE)["exitCode"], 0);
    // It was not started before its proxy was ready.
    namespace.logged(&name, "app").assert_nothing_failed(&name);
    // What native sidecars are for: the application has ended, its Job has not.
    std::thread::sleep(Duration::from_secs(10));
    let job = namespace.get("job/hangs");
    assert!(job["status"]["succeeded"].is_null(), "{}", job["status"]);
    assert_eq!(namespace.get(&pod)["status"]["phase"], "Running");
}

#[test]
fn two_sidecars_start_in_their_order() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let servers = Namespace::new("order-web", "sidecar");
    servers.annotate("duet.dev/mtls=strict");
    let address = servers.web();
    let namespace = Namespace::new("order", "sidecar");
    let asks = first_act(&address);
    namespace.apply(&format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{ name: pair }}
spec:
  restartPolicy: Never
  initContainers:
    - {{ name: other, image: {IMAGE}, args: [serve, --http, '9000'], restartPolicy: Always }}
    - {{ name: asks, image: {IMAGE}, args: {asks} }}
  containers: [{{ name: app, image: {IMAGE}, args: {asks} }}]
"
    ));
    let ended = namespace.terminated("pair", PATIENCE);
    assert_eq!(ended["exitCode"], 0);
    let pod = namespace.get("pod/pair");
    let order: Vec<_> = pod["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| container["name"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["duet-init", "duet-proxy", "other", "asks"]);
    for container in ["asks", "app"] {
        let asked = namespace.logged("pair", container);
        asked.assert_nothing_failed(container);
    }
    eventually("the pod ends with its app", PATIENCE, || {
        (namespace.get("pod/pair")["status"]["phase"] == "Succeeded").then_some(())
    });
}

#[test]
fn deleting_pods_under_load_fails_nothing() {
    let Some(_cluster) = cluster() else {
        return;
    };
    for mode in MODES {
        let servers = Namespace::new("delete-web", mode);
        let address = servers.web();
        let clients = Namespace::new("delete", mode);
        let url = format!("http://{address}/");
        let common = [
            "--url",
            &url,
            "--rate",
            "50",
            "--duration",
            "45s",
            "--warmup",
            "0s",
        ];
        clients.load("keeps", &common);
        clients.load(
            "opens",
            &[&common[..], &["--new-connection-per-request"]].concat(),
        );
        clients.said(&[
            "wait",
            "--for=condition=Ready",
            "pod/keeps",
            "pod/opens",
            "--timeout=60s",
        ]);
        for _ in 0..2 {
            let victim = servers.pods("app=web").remove(0);
            servers.said(&["delete", &victim]);
            servers.rolled_out("web");
        }
        for name in ["keeps", "opens"] {
            let report = clients.report(name, PATIENCE);
            report.assert_nothing_failed(&format!("{mode} {name}"));
        }
    }
    // Agents keep nothing of pods that are gone with their namespaces.
    let kept = r#"duet_agent_workloads{reason="deleted",state="refused"}"#;
    eventually("deleted pods are forgotten", PATIENCE, || {
        (of_agents(kept) == 0.0).then_some(())
    });
}

#[test]
fn a_proxy_out_of_memory_dies_alone() {
    // The flood takes all processors from pods that have requested none.
    let Some(_cluster) = cluster_alone() else {
        return;
    };
    let namespace = Namespace::new("oom", "sidecar");
    namespace.apply(&format!(
        r"
apiVersion: v1
kind: Pod
metadata:
  name: small
  annotations: {{ duet.dev/proxy-memory-request: 16Mi, duet.dev/proxy-memory-limit: 24Mi }}
spec:
  containers: [{{ name: web, image: {IMAGE}, args: [serve, --http, '8080'] }}]
"
    ));
    namespace.said(&[
        "wait",
        "--for=condition=Ready",
        "pod/small",
        "--timeout=60s",
    ]);
    let address = namespace.said(&["get", "pod", "small", "-o", "jsonpath={.status.podIP}"]);
    // From outside the mesh, so that only the victim's own proxy pays.
    let outside = Namespace::new("oom-load", "none");
    let url = format!("http://{address}:8080/bytes/8000000");
    outside.load(
        "flood",
        &[
            "--url",
            &url,
            "--rate",
            "200",
            "--duration",
            "20s",
            "--warmup",
            "0s",
            "--new-connection-per-request",
        ],
    );
    let proxy = |pod: &serde_json::Value| -> Option<serde_json::Value> {
        let statuses = pod["status"]["initContainerStatuses"].as_array()?;
        statuses
            .iter()
            .find(|status| status["name"] == "duet-proxy")
            .cloned()
    };
    eventually("the proxy is killed for memory", PATIENCE, || {
        let status = proxy(&namespace.get("pod/small"))?;
        let last = &status["lastState"]["terminated"]["reason"];
        let now = &status["state"]["terminated"]["reason"];
        (last == "OOMKilled" || now == "OOMKilled").then_some(())
    });
    outside.terminated("flood", PATIENCE);
    let pod = eventually("the pod is ready again", PATIENCE, || {
        let pod = namespace.get("pod/small");
        let conditions = pod["status"]["conditions"].as_array()?.clone();
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            .then_some(pod)
    });
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    let url = format!("http://{address}:8080/");
    outside.load(
        "again",
        &[
            "--url",
            &url,
            "--rate",
            "20",
            "--duration",
            "1s",
            "--warmup",
            "0s",
        ],
    );
    outside
        .report("again", PATIENCE)
        .assert_nothing_failed("again");
}

#[test]
fn a_person_sees_the_application_first() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let namespace = Namespace::new("seen", "sidecar");
    namespace.web();
    let pod = namespace.pods("app=web").remove(0);
    let log = namespace.said(&["logs", &pod]);
    assert!(log.contains("serving"), "the application's own log: {log}");
}

/// A namespace of clients in each mode.
fn observers(name: &str) -> Vec<(&'static str, Namespace)> {
    MODES
        .iter()
        .map(|mode| (*mode, Namespace::new(&format!("{name}-{mode}"), mode)))
        .collect()
}

/// While `change` happens, clients ask `url`, over connections that they keep and over new
/// ones; none of them may fail.
fn observe(observers: &[(&str, Namespace)], url: &str, stage: &str, change: &dyn Fn()) {
    let common = [
        "--url",
        url,
        "--rate",
        "25",
        "--duration",
        "10m",
        "--warmup",
        "0s",
    ];
    let (keeps, opens) = (format!("{stage}-keeps"), format!("{stage}-opens"));
    for (_, observer) in observers {
        observer.load(&keeps, &common);
        let opening = [&common[..], &["--new-connection-per-request"]].concat();
        observer.load(&opens, &opening);
    }
    for (_, observer) in observers {
        for pod in [&keeps, &opens] {
            let pod = format!("pod/{pod}");
            observer.said(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"]);
        }
    }
    change();
    for (mode, observer) in observers {
        for pod in [&keeps, &opens] {
            observer
                .stop(pod)
                .assert_nothing_failed(&format!("{mode} {pod}"));
        }
    }
}

/// Sidecar → agent → none and back, each by relabelling the namespace and rolling. Where both
/// ends are in the mesh before and after, plaintext is refused, so a request that was answered
/// came over mTLS.
#[test]
fn a_namespace_changes_its_mode_without_a_failed_request() {
    let Some(_cluster) = cluster() else {
        return;
    };
    let servers = Namespace::new("switch", "sidecar");
    servers.annotate("duet.dev/mtls=strict");
    let url = format!("http://{}/", servers.web());
    let observers = observers("from");
    let placements = || {
        servers.said(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            r"jsonpath={.items[*].metadata.annotations.duet\.dev/placement}",
        ])
    };
    let change = |mode: &str, stage: &str, then: &str| {
        observe(&observers, &url, stage, &|| {
            servers.mode(mode);
            servers.roll("web");
            assert_eq!(placements(), then);
        });
    };
    assert_eq!(placements(), "sidecar sidecar");
    change("agent", "to-agent", "agent agent");
    // Without a proxy there can be no mTLS.
    servers.annotate("duet.dev/mtls=permissive");
    change("none", "to-none", "");
    change("agent", "to-agent-again", "agent agent");
    servers.annotate("duet.dev/mtls=strict");
    change("sidecar", "to-sidecar", "sidecar sidecar");
}

/// The DaemonSet's surge starts each new agent beside the old one, which hands over to it:
/// here to one that the runtime holds to its seccomp profile, and that one back again.
#[test]
fn replacing_agents_and_duet_control_under_load_fails_nothing() {
    let Some(_cluster) = cluster_alone() else {
        return;
    };
    let servers = Namespace::new("upgrade", "agent");
    servers.annotate("duet.dev/mtls=strict");
    let url = format!("http://{}/", servers.web());
    let system = |arguments: &[&str]| said(&[&["-n", "duet-system"], arguments].concat());
    observe(&observers("upgrade-from"), &url, "upgrade", &|| {
        let pods = |of: &str, path: &str| {
            let label = format!("app.kubernetes.io/name={of}");
            system(&["get", "pods", "-l", &label, "-o", path])
        };
        let replaced = |of: &str, roll: &dyn Fn()| {
            let before = pods(of, "name");
            roll();
            // The old ones end when what was open there has, or a minute later.
            eventually("the old ones are gone", PATIENCE, || {
                let now = pods(of, "name");
                let mut before = before.split_whitespace();
                (!before.any(|old| now.contains(old))).then_some(())
            });
        };
        let confined = Mutex::new(None);
        replaced("duet-agent", &|| {
            *confined.lock().unwrap() = Some(Component::install("seccomp"));
        });
        let profile = concat!("duet-agent-", env!("CARGO_PKG_VERSION"), ".json");
        let profiles = pods(
            "duet-agent",
            "jsonpath={.items[*].spec.containers[*].securityContext.seccompProfile.localhostProfile}",
        );
        assert!(profiles.split(' ').all(|one| one == profile), "{profiles}");
        replaced("duet-agent", &|| drop(confined.lock().unwrap().take()));
        replaced("duet-control", &|| {
            system(&["rollout", "restart", "deployment/duet-control"]);
            system(&[
                "rollout",
                "status",
                "deployment/duet-control",
                "--timeout=180s",
            ]);
        });
    });
}
