//! What becomes of pods: every case in `golden/`, and what holds for all of them.
//!
//! `UPDATE_GOLDEN=1 cargo test -p duet-control --test injector` writes the answers
//! anew, for reading as a diff.

use duet_control::injector::{
    Config, Decision, Injector, KubernetesVersion, Namespace, Refusal, Verdict, names,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// One file in `golden/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default)]
    config: Config,
    #[serde(default)]
    namespace: NamespaceSays,
    kubernetes: Option<[u32; 2]>,
    pod: Value,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct NamespaceSays {
    name: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn decide(case: &Case) -> Result<Decision, Refusal> {
    let namespace = Namespace {
        name: case
            .namespace
            .name
            .clone()
            .unwrap_or_else(|| "shop".to_owned()),
        labels: case.namespace.labels.clone(),
        annotations: case.namespace.annotations.clone(),
    };
    let [major, minor] = case.kubernetes.unwrap_or([1, 36]);
    Injector {
        config: case.config.clone(),
    }
    .decide(
        &case.pod,
        &namespace,
        Some(KubernetesVersion { major, minor }),
    )
}

/// As it is checked in.
fn show(outcome: &Result<Decision, Refusal>) -> String {
    let decision = match outcome {
        Ok(decision) => decision,
        Err(refusal) => return format!("refused: {refusal}\n"),
    };
    let mut text = format!("{}\n", decision.verdict.as_str());
    for warning in &decision.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for operation in &decision.patch.0 {
        let operation = serde_json::to_value(operation).unwrap();
        let _ = write!(
            text,
            "{} {}",
            operation["op"].as_str().unwrap(),
            operation["path"].as_str().unwrap()
        );
        if let Some(from) = operation["from"].as_str() {
            let _ = write!(text, " from {from}");
        }
        text.push('\n');
        if let Some(value) = operation.get("value") {
            let value = serde_saphyr::to_string(value).unwrap();
            for line in value.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    text
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "yaml"))
        .collect();
    files.sort();
    files
}

fn read(file: &Path) -> Case {
    let text = fs::read_to_string(file).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn every_case_has_its_answer() {
    let files = cases();
    assert!(files.len() >= 12, "{files:?}");
    let mut differing = Vec::new();
    for file in &files {
        let answer = show(&decide(&read(file)));
        let golden = file.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, answer).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if answer != expected {
            differing.push(format!("{}:\n{answer}", golden.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// A refusal ends up in one line of an event, and says what to write instead.
#[test]
fn refusals_are_one_line() {
    let refusals: Vec<_> = cases()
        .iter()
        .filter_map(|file| decide(&read(file)).err())
        .collect();
    assert!(refusals.len() >= 5);
    for refusal in refusals {
        assert_eq!(refusal.to_string().lines().count(), 1, "{refusal}");
    }
}

/// The configuration that is installed says nothing but what holds anyway, and says
/// it rightly.
#[test]
fn the_installed_configuration_shows_the_defaults() {
    let text = include_str!("../../deploy/base/injector.yaml");
    assert_eq!(
        format!("{:?}", Config::from_yaml(text).unwrap()),
        format!("{:?}", Config::default())
    );
    let said: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            line.split_once(':')
                .is_some_and(|(key, _)| !key.contains(' '))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(said.lines().count() >= 3, "{said}");
    let said = Config::from_yaml(&said).unwrap();
    assert_eq!(format!("{said:?}"), format!("{:?}", Config::default()));
}

fn names_of(pod: &Value, list: &str) -> Vec<String> {
    let list = pod["spec"][list].as_array();
    list.into_iter()
        .flatten()
        .map(|it| it["name"].as_str().unwrap().to_owned())
        .collect()
}

/// The checked-in proxy passes what Pod Security calls restricted, which is
/// https://kubernetes.io/docs/concepts/security/pod-security-standards.
#[test]
fn the_proxy_asks_for_no_privilege() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plain.yaml");
    let pod = decide(&read(&file)).unwrap().pod;
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["name"], names::PROXY_CONTAINER);
    let context = &proxy["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert_eq!(context["runAsUser"], 2102);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    assert!(
        volumes.iter().all(|it| it.get("projected").is_some()),
        "{volumes:?}"
    );
}

// Pods of all kinds. Names are unique, as an API server demands.

fn container(name: String, native: bool) -> impl Strategy<Value = Value> {
    let resources = prop_oneof![
        Just(json!(null)),
        Just(json!({"limits": {"cpu": "1", "memory": "64Mi"}})),
    ];
    let ports = prop_oneof![Just(8080), Just(15001), Just(15021), Just(9090)];
    let user = prop_oneof![4 => Just(json!(null)), 1 => Just(json!(1000)), 1 => Just(json!(2102))];
    (resources, proptest::option::weighted(0.3, ports), user).prop_map(
        move |(resources, port, user)| {
            let mut container = json!({"name": name, "image": "x", "resources": resources});
            if let Some(port) = port {
                container["ports"] = json!([{"containerPort": port}]);
            }
            if !user.is_null() {
                container["securityContext"] = json!({"runAsUser": user});
            }
            if native {
                container["restartPolicy"] = "Always".into();
            }
            container
        },
    )
}

fn containers(
    prefix: &'static str,
    count: RangeInclusive<usize>,
) -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(any::<bool>(), count).prop_flat_map(move |natives| {
        let one = |(number, native): (usize, &bool)| {
            container(format!("{prefix}{number}"), *native && prefix == "init")
        };
        natives.iter().enumerate().map(one).collect::<Vec<_>>()
    })
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    let pairs = [
        (names::PLACEMENT, "sidecar"),
        (names::PLACEMENT, "agent"),
        (names::PLACEMENT, "elsewhere"),
        (names::SIDECAR_KIND, "classic"),
        (names::WAIT, "false"),
        (names::WAIT, "maybe"),
        (names::EXCLUDE_OUTBOUND_PORTS, "1,2"),
        (names::EXCLUDE_UIDS, "x"),
        (names::ACCESS_LOG, "json"),
        (names::PROXY_MEMORY_LIMIT, "16Mi"),
        (names::DEFAULT_CONTAINER, "app0"),
        ("duet.dev/unknown", "x"),
        ("example.com/a~b", "x"),
    ];
    proptest::sample::subsequence(pairs.to_vec(), 0..4).prop_map(|pairs| {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        pairs.into_iter().map(own).collect()
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let flag = || proptest::option::weighted(0.1, Just(true));
    let mode = proptest::option::weighted(
        0.4,
        proptest::sample::select(vec!["sidecar", "agent", "none", "other"]),
    );
    let gates =
        proptest::sample::subsequence(vec!["duet.dev/enrolled", "example.com/ready"], 0..=2);
    let volumes = proptest::option::of(proptest::sample::subsequence(
        vec!["data", "duet-identity"],
        0..2,
    ));
    (
        (containers("init", 0..=3), containers("app", 1..=3)),
        (annotations(), mode, gates, volumes),
        (
            flag(),
            flag(),
            any::<bool>(),
            proptest::option::of(0i64..90),
        ),
    )
        .prop_map(
            |((inits, apps), (annotations, mode, gates, volumes), (host, share, bare, grace))| {
                let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": apps}});
                let spec = &mut pod["spec"];
                if !inits.is_empty() {
                    spec["initContainers"] = inits.into();
                }
                if !gates.is_empty() {
                    spec["readinessGates"] = gates
                        .iter()
                        .map(|gate| json!({"conditionType": gate}))
                        .collect();
                }
                if let Some(volumes) = volumes {
                    spec["volumes"] = volumes.iter().map(|name| json!({"name": name})).collect();
                }
                if let Some(grace) = grace {
                    spec["terminationGracePeriodSeconds"] = grace.into();
                }
                if let Some(host) = host {
                    spec["hostNetwork"] = host.into();
                }
                if let Some(share) = share {
                    spec["shareProcessNamespace"] = share.into();
                }
                if !(bare && annotations.is_empty()) {
                    pod["metadata"]["annotations"] = json!(annotations);
                }
                if let Some(mode) = mode {
                    pod["metadata"]["labels"] = json!({"duet.dev/mode": mode});
                }
                pod
            },
        )
}

fn namespace() -> impl Strategy<Value = Namespace> {
    proptest::sample::select(vec!["sidecar", "sidecar", "agent", "none"]).prop_map(|mode| {
        Namespace {
            name: "shop".to_owned(),
            labels: BTreeMap::from([(names::MODE.to_owned(), mode.to_owned())]),
            annotations: BTreeMap::new(),
        }
    })
}

fn injector() -> Injector {
    Injector {
        config: Config::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_patched_is_left_as_it_is(pod in pod(), namespace in namespace()) {
        let Ok(first) = injector().decide(&pod, &namespace, None) else {
            return Ok(());
        };
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &first.patch).unwrap();
        prop_assert_eq!(&patched, &first.pod, "the patch says what was done");

        let second = injector().decide(&patched, &namespace, None);
        let second = second.map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
        prop_assert_eq!(second.patch.0, vec![], "{:#}", patched);
        prop_assert_eq!(second.verdict, first.verdict);
    }

    #[test]
    fn the_application_keeps_what_it_has(pod in pod(), namespace in namespace()) {
        let Ok(decision) = injector().decide(&pod, &namespace, None) else {
            return Ok(());
        };
        let ours = [names::INIT_CONTAINER, names::PROXY_CONTAINER];
        for list in ["initContainers", "containers"] {
            let before = pod["spec"][list].as_array().cloned().unwrap_or_default();
            let after = decision.pod["spec"][list].as_array().cloned().unwrap_or_default();
            let others = |it: &Value| !ours.contains(&it["name"].as_str().unwrap());
            let others: Vec<_> = after.into_iter().filter(others).collect();
            prop_assert_eq!(others, before);
        }
        if decision.verdict == Verdict::None {
            for operation in &decision.patch.0 {
                prop_assert!(
                    matches!(operation, json_patch::PatchOperation::Remove(_)),
                    "of a pod outside of the mesh nothing but old stamps is taken: {:?}", operation
                );
            }
        }
    }

    #[test]
    fn the_proxy_comes_first_whoever_was_in_between(
        pod in pod(),
        namespace in namespace(),
        places in proptest::collection::vec(any::<proptest::sample::Index>(), 1..4),
    ) {
        let Ok(first) = injector().decide(&pod, &namespace, None) else {
            return Ok(());
        };
        prop_assume!(first.verdict == Verdict::Sidecar);
        let mut disturbed = first.pod.clone();
        let list = if names_of(&disturbed, "initContainers").contains(&"duet-proxy".to_owned()) {
            "initContainers"
        } else {
            "containers"
        };
        for (number, place) in places.iter().enumerate() {
            let inits = disturbed["spec"][list].as_array_mut().unwrap();
            let place = place.index(inits.len() + 1);
            inits.insert(place, json!({"name": format!("stranger{number}"), "image": "x"}));
        }
        let again = injector().decide(&disturbed, &namespace, None).unwrap();
        let order = names_of(&again.pod, "initContainers");
        prop_assert_eq!(&order[0], names::INIT_CONTAINER);
        let proxy = if list == "containers" { &names_of(&again.pod, list)[0] } else { &order[1] };
        prop_assert_eq!(proxy, names::PROXY_CONTAINER);
        let strangers = |pod: &Value| -> Vec<_> {
            names_of(pod, list).into_iter().filter(|it| !it.starts_with("duet-")).collect()
        };
        prop_assert_eq!(strangers(&again.pod), strangers(&disturbed), "the others keep their order");
        for operation in &again.patch.0 {
            prop_assert!(matches!(operation, json_patch::PatchOperation::Move(_)), "{:?}", operation);
        }
    }
}
