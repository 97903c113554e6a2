//! `duet-control inject`: files in, files out.

use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};

/// A stream as people write it: comments, every kind that holds pods, and others.
const STREAM: &str = r##"# The shop.
apiVersion: v1
kind: Namespace
metadata: {name: legacy, labels: {duet.dev/mode: none}} # later
---
# yamllint disable
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:   {"mode":   'yes'}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: cart # the cart
  namespace: shop
spec:
  replicas: 2
  template:
    metadata:
      labels: {app: cart}
    spec:
      containers:
      - name: cart
        image: cart:1
        args: ["yes", "0644", "1e3", "null", "multi\nline\n", "# no comment"]
        env: [{name: STATE, value: "on"}]
      volumes:
      - name: scripts
        configMap: {name: scripts, defaultMode: 0755}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: old, namespace: legacy}
spec: {template: {spec: {containers: [{name: old, image: old:1}]}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report}
spec:
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: report, image: r:1}]}}}}
---
apiVersion: batch.volcano.sh/v1
kind: Job
metadata: {name: others}
spec: {template: {spec: {containers: [{name: x}]}}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: one, labels: {duet.dev/mode: agent}}, spec: {containers: [{name: one, image: x}]}}
- {apiVersion: v1, kind: Service, metadata: {name: one}, spec: {ports: [{port: 80}]}}
"##;

fn inject(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_duet-control"))
        .args(["inject", "-f", "-"])
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses its configuration ends without having read any of it.
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn injected(args: &[&str], input: &str) -> String {
    let output = inject(args, input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Exit code 78 and one line.
#[track_caller]
fn refused(args: &[&str], input: &str) -> String {
    let output = inject(args, input);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stdout));
    assert!(output.stdout.is_empty(), "nothing half done is written");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// The parts of a stream, without its separators.
fn documents(stream: &str) -> Vec<&str> {
    stream.split("---\n").collect()
}

#[test]
fn what_holds_no_pod_of_the_mesh_is_untouched() {
    let output = injected(&[], STREAM);
    let (before, after) = (documents(STREAM), documents(&output));
    assert_eq!(before.len(), after.len());
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        let changes = [2, 4, 6].contains(&number);
        assert_eq!(
            before != after,
            changes,
            "document {}:\n{after}",
            number + 1
        );
    }
    // The mesh only takes and adds: 0755 is 493, and words in quotes stay words.
    let cart: serde_json::Value = serde_saphyr::from_str(after[2]).unwrap();
    assert_eq!(cart["spec"]["replicas"], 2);
    let pod = &cart["spec"]["template"];
    assert_eq!(
        pod["spec"]["containers"][0]["args"],
        serde_json::json!([
            "yes",
            "0644",
            "1e3",
            "null",
            "multi\nline\n",
            "# no comment"
        ])
    );
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "on");
    assert_eq!(pod["spec"]["volumes"][0]["configMap"]["defaultMode"], 493);
    assert_eq!(pod["spec"]["volumes"][1]["name"], "duet-identity");
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "duet-init");
    assert_eq!(pod["spec"]["initContainers"][1]["name"], "duet-proxy");
    assert_eq!(
        pod["metadata"]["annotations"]["duet.dev/placement"],
        "sidecar"
    );
    assert_eq!(
        cart["metadata"].get("annotations"),
        None,
        "pods are meshed, not Deployments"
    );

    let report: serde_json::Value = serde_saphyr::from_str(after[4]).unwrap();
    let pod = &report["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(pod["spec"]["initContainers"][1]["restartPolicy"], "Always");
    let list: serde_json::Value = serde_saphyr::from_str(after[6]).unwrap();
    let one = &list["items"][0];
    assert_eq!(
        one["spec"]["readinessGates"][0]["conditionType"],
        "duet.dev/enrolled"
    );
    assert_eq!(one["spec"].get("initContainers"), None);
    assert_eq!(list["items"][1]["spec"]["ports"][0]["port"], 80);
}

#[test]
fn a_second_time_changes_nothing() {
    let once = injected(&[], STREAM);
    assert_eq!(injected(&[], &once), once);
    assert_eq!(
        injected(&["--mode", "agent"], &once),
        once,
        "a sidecar stays one"
    );
}

#[test]
fn the_mode_is_for_those_that_say_nothing() {
    let output = injected(&["--mode", "none"], STREAM);
    let (before, after) = (documents(STREAM), documents(&output));
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(
            before != after,
            number == 6,
            "the labelled pod alone: {after}"
        );
    }
    // The order in the file does not matter, and what is in it comes first.
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nspec: {containers: [{name: c}]}\n";
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {duet.dev/mode: agent}}\n";
    let output = injected(&[], &format!("{pod}{namespace}"));
    assert!(output.contains("duet.dev/placement: agent"), "{output}");
    let output = injected(
        &["--namespace", "b"],
        &format!("{}{namespace}", pod.replace(", namespace: b", "")),
    );
    assert!(output.contains("duet.dev/placement: agent"), "{output}");
}

#[test]
fn json_in_json_out() {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}"#;
    let output = injected(&[], &format!("{pod}\n{pod}\n"));
    let pods: Vec<serde_json::Value> = serde_json::Deserializer::from_str(&output)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(pods.len(), 2);
    for pod in pods {
        assert_eq!(pod["spec"]["initContainers"][1]["name"], "duet-proxy");
    }
}

#[test]
fn images_and_configuration_are_as_told() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c}]}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "images: {sidecar: r.example/s:1, init: r.example/i:1}\naccessLog: text\n",
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let output = injected(&["--config", path, "--image-init", "r.example/i:2"], pod);
    for part in ["r.example/s:1", "r.example/i:2", "value: text"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    std::fs::write(file.path(), "accesslog: text\n").unwrap();
    let error = refused(&["--config", path], pod);
    assert!(
        error.contains(path) && error.contains("accesslog"),
        "{error}"
    );
}

#[test]
fn a_mistake_says_where_it_is() {
    let stream = "a: 1\n---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: j, namespace: ns}\nspec:\n  template:\n    metadata: {annotations: {duet.dev/wait: maybe}}\n    spec: {containers: []}\n";
    let error = refused(&[], stream);
    for part in [
        "standard input: document 2 (line 3), Job ns/j, spec.template: ",
        "annotation duet.dev/wait: \"maybe\" is not known: write \"true\" or \"false\"",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = refused(&[], "a: 1\n---\nb: [\n");
    assert!(error.contains("line "), "{error}");
    let error = refused(
        &[],
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: {}}\n",
    );
    assert!(
        error.contains("spec.containers: invalid type: map"),
        "{error}"
    );
}

#[test]
fn usage_is_told_apart() {
    let output = inject(&["--mode", "ambient"], "");
    assert_eq!(output.status.code(), Some(64));
    let output = Command::new(env!("CARGO_BIN_EXE_duet-control"))
        .args(["inject", "--help"])
        .output()
        .unwrap();
    let help = text(&output.stdout);
    assert!(help.contains("comments are lost"), "{help}");
    let output = Command::new(env!("CARGO_BIN_EXE_duet-control"))
        .args(["inject", "-f", "/nonexistent.yaml"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("/nonexistent.yaml: No such file"), "{error}");
}
