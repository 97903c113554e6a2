//! The manifests, held against the programs that they start, the code that uses
//! their permissions, and each other.
//!
//! With `KUBECONFIG` set, an API server is asked as well.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What code asks of the API server, by the type it names. What the source watches,
/// and gives a status, is read from its code.
#[rustfmt::skip]
const CALLS: [(&str, &str, &[&str]); 12] = [
    ("ConfigMap", "configmaps", &["list", "watch", "create", "patch", "delete"]),
    ("DynamicObject", "authorizationpolicies/status.duet.dev", &["patch"]),
    ("DynamicObject", "grpcroutes/status.gateway.networking.k8s.io", &["patch"]),
    ("DynamicObject", "httproutes/status.gateway.networking.k8s.io", &["patch"]),
    ("Lease", "leases.coordination.k8s.io", &["get", "create", "update"]),
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations.admissionregistration.k8s.io", &["get", "list", "watch", "patch"]),
    ("Namespace", "namespaces", &["get", "list", "watch"]),
    ("Node", "nodes", &["list", "watch"]),
    ("Pod", "pods", &["get"]),
    ("Pod", "pods/status", &["patch"]),
    ("Secret", "secrets", &["get", "list", "watch", "create", "patch"]),
    ("TokenReview", "tokenreviews.authentication.k8s.io", &["create"]),
];

/// What Pod Security's `restricted` would not let run, and the capabilities that it needs.
const EXEMPT: [(&str, &[&str]); 2] = [
    ("DaemonSet duet-agent", &["SYS_ADMIN", "SYS_PTRACE"]),
    ("DaemonSet duet-cleanup", &["SYS_ADMIN"]),
];

/// A YAML document, and where it stands.
struct Document {
    file: PathBuf,
    value: Value,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file with this ending below the folders.
fn files(folders: &[&str], extension: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders: Vec<_> = folders
        .iter()
        .map(|folder| repository().join(folder))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .expect("a folder of the repository")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.insert(path);
            }
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

fn manifests() -> BTreeSet<PathBuf> {
    let folders = ["base", "cleanup", "components", "overlays", "examples"];
    files(
        &folders
            .map(|it| format!("deploy/{it}"))
            .each_ref()
            .map(String::as_str),
        "yaml",
    )
}

fn documents() -> Vec<Document> {
    let mut documents = Vec::new();
    for file in manifests() {
        let text = fs::read_to_string(&file).expect("a file that was just listed");
        for part in text.split("---\n").filter(|part| {
            part.lines()
                .any(|line| !line.is_empty() && !line.starts_with('#'))
        }) {
            let value: Value = serde_saphyr::from_str(part)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            documents.push(Document {
                file: file.clone(),
                value,
            });
        }
    }
    documents
}

fn objects(kind: &str) -> Vec<Document> {
    let mut objects = documents();
    objects.retain(|document| document.value["kind"] == kind);
    assert!(!objects.is_empty(), "no {kind} in deploy/");
    objects
}

/// Templates of pods, by "kind name" of their owner.
fn templates() -> Vec<(String, Value)> {
    let of = |document: Document| {
        let value = &document.value;
        let kind = value["kind"].as_str()?;
        let name = value["metadata"]["name"].as_str()?;
        Some((
            format!("{kind} {name}"),
            value.pointer("/spec/template")?.clone(),
        ))
    };
    documents().into_iter().filter_map(of).collect()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn words(value: &Value, key: &str) -> Vec<String> {
    let words = list(value, &format!("/{key}"));
    words
        .iter()
        .map(|word| word.as_str().expect("a word").to_owned())
        .collect()
}

fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    let inits = list(template, "/spec/initContainers").iter();
    inits.chain(list(template, "/spec/containers"))
}

#[test]
fn every_file_is_part_of_its_kustomization() {
    for file in manifests() {
        let kustomization = file.with_file_name("kustomization.yaml");
        if !kustomization.exists() || file == kustomization {
            continue;
        }
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .expect("UTF-8");
        let text = fs::read_to_string(&kustomization).expect("a kustomization");
        assert!(
            text.contains(name),
            "{} does not name {name}",
            kustomization.display()
        );
    }
    for document in documents() {
        for name in words(&document.value, "resources") {
            let there = document.file.with_file_name(&name);
            assert!(there.exists(), "{}: {name}", document.file.display());
        }
    }
}

#[test]
fn everything_has_the_version_of_the_workspace() {
    let mut images = BTreeSet::new();
    for (owner, template) in templates() {
        for container in containers(&template) {
            let image = container["image"].as_str().expect("an image");
            assert!(image.ends_with(&format!(":{VERSION}")), "{owner}: {image}");
            images.insert(image.to_owned());
        }
    }
    let expected = ["agent", "bench", "control"].map(|name| format!("duet/{name}:{VERSION}"));
    assert_eq!(images, BTreeSet::from(expected));
    for (file, text) in [
        (
            "base/kustomization.yaml",
            format!("app.kubernetes.io/version: {VERSION}}}"),
        ),
        (
            "base/injector.yaml",
            format!("duet/sidecar:{VERSION}\", init: \"duet/init:{VERSION}\""),
        ),
        ("Containerfile", format!("ARG VERSION={VERSION} ")),
        (
            "components/seccomp/kustomization.yaml",
            format!("image: duet/agent:{VERSION}\n"),
        ),
        (
            "components/seccomp/kustomization.yaml",
            format!("localhostProfile: duet-agent-{VERSION}.json}}"),
        ),
    ] {
        let found = fs::read_to_string(repository().join("deploy").join(file)).expect(file);
        assert!(found.contains(&text), "{file} lacks {text}");
    }
}

/// Each program reads its arguments before it comes to `--help`.
#[test]
fn programs_take_their_arguments() {
    let control = PathBuf::from(env!("CARGO_BIN_EXE_duet-control"));
    let mut tried = BTreeSet::new();
    for (owner, template) in templates() {
        for container in containers(&template) {
            let image = container["image"].as_str().expect("an image");
            let program = image.split([':', '/']).nth(1).expect("duet/PROGRAM:TAG");
            let binary = control.with_file_name(format!("duet-{program}"));
            if !binary.exists() {
                let _ = writeln!(
                    std::io::stderr().lock(),
                    "skipped: {owner}: no {}",
                    binary.display()
                );
                continue;
            }
            let mut command = Command::new(&binary);
            command.args(words(container, "args")).arg("--help");
            // As the container has them; what a pod's fields say could be anything.
            for variable in list(container, "/env") {
                if let (Some(name), Some(value)) =
                    (variable["name"].as_str(), variable["value"].as_str())
                {
                    command.env(name, value);
                }
            }
            let output = command.output().expect("it was just built");
            let problem = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{owner}: {problem}");
            tried.insert(program.to_owned());
        }
    }
    assert!(tried.contains("control"), "{tried:?}");
}

/// A variable that nobody reads is no error to anybody.
#[test]
fn the_sidecar_knows_the_variables_that_the_injector_sets() {
    let mut known = BTreeSet::new();
    for file in ["sidecar-mode/src/main.rs", "core/src/config.rs"] {
        let text = fs::read_to_string(repository().join(file)).expect(file);
        let names = text.split("env = \"").skip(1);
        known.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    // What the injector writes, and what pods were given in its own tests.
    let mut given = BTreeSet::new();
    let mut sources = files(&["control/tests/golden"], "txt");
    sources.insert(repository().join("control/src/injector/containers.rs"));
    for file in sources {
        let text = fs::read_to_string(&file).expect("readable");
        let words = text.split(|it: char| !it.is_ascii_uppercase() && it != '_');
        let names = words.filter(|word| word.starts_with("DUET_"));
        given.extend(names.map(str::to_owned));
    }
    assert!(given.contains("DUET_EXCLUDE_UIDS") && given.contains("DUET_CONTROL"));
    let unknown: Vec<_> = given.difference(&known).collect();
    assert!(unknown.is_empty(), "duet-sidecar does not read {unknown:?}");
}

/// A name that leads nowhere is no error to the API server.
#[test]
fn ports_and_probes_are_found_by_their_names() {
    let mut ports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (owner, template) in templates() {
        let label = |key: &str| {
            template["metadata"]["labels"][key]
                .as_str()
                .map(str::to_owned)
        };
        let named: BTreeSet<_> = containers(&template)
            .flat_map(|container| list(container, "/ports"))
            .filter_map(|port| port["name"].as_str().map(str::to_owned))
            .collect();
        for container in containers(&template) {
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                if let Some(port) = container[probe]["httpGet"]["port"].as_str() {
                    assert!(
                        named.contains(port),
                        "{owner}: {probe} at {port}, has {named:?}"
                    );
                }
            }
        }
        let app = label("app.kubernetes.io/name")
            .or(label("app"))
            .expect("a label");
        ports.insert(app, named);
    }
    for service in objects("Service") {
        let selector = &service.value["spec"]["selector"];
        let app = selector["app.kubernetes.io/name"]
            .as_str()
            .or(selector["app"].as_str());
        let named = &ports[app.expect("a selector")];
        for port in list(&service.value, "/spec/ports") {
            let target = port["targetPort"].as_str().expect("a port's name");
            assert!(
                named.contains(target),
                "{}: {target} is not in {named:?}",
                service.file.display()
            );
        }
    }
    let services: BTreeSet<_> = objects("Service")
        .iter()
        .filter_map(|service| {
            service.value["metadata"]["name"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    for configuration in objects("MutatingWebhookConfiguration") {
        for webhook in list(&configuration.value, "/webhooks") {
            let service = webhook["clientConfig"]["service"]["name"]
                .as_str()
                .expect("a service");
            assert!(services.contains(service), "{service}");
            // Else duet-control could not be started where it is not running.
            let excluded = list(webhook, "/namespaceSelector/matchExpressions")
                .iter()
                .any(|it| {
                    it["key"] == "kubernetes.io/metadata.name"
                        && it["operator"] == "NotIn"
                        && words(it, "values").iter().any(|name| name == "duet-system")
                });
            assert!(
                excluded,
                "{} is asked about duet-system's own pods",
                webhook["name"]
            );
        }
    }
}

#[test]
fn all_but_the_agent_pass_pod_securitys_restricted() {
    for (owner, template) in templates() {
        if EXEMPT.iter().any(|(exempt, _)| owner == *exempt) {
            continue;
        }
        let pod = &template["spec"]["securityContext"];
        assert_eq!(pod["runAsNonRoot"], true, "{owner}");
        assert_eq!(pod["seccompProfile"]["type"], "RuntimeDefault", "{owner}");
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(template["spec"][key].is_null(), "{owner}: {key}");
        }
        for container in containers(&template) {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{owner}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{owner}");
            assert_eq!(words(&security["capabilities"], "drop"), ["ALL"], "{owner}");
            assert!(security["capabilities"]["add"].is_null(), "{owner}");
        }
    }
}

#[test]
fn the_agent_and_its_cleanup_have_the_capabilities_they_need_and_no_more() {
    let mut found = Vec::new();
    for (owner, template) in templates() {
        let Some((exempt, capabilities)) = EXEMPT.iter().find(|(exempt, _)| owner == *exempt)
        else {
            continue;
        };
        found.push(*exempt);
        let pod = &template["spec"]["securityContext"];
        for container in containers(&template) {
            let owner = format!("{owner}, {}", container["name"]);
            let security = &container["securityContext"];
            assert_ne!(security["privileged"], true, "{owner}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{owner}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{owner}");
            assert_eq!(words(&security["capabilities"], "drop"), ["ALL"], "{owner}");
            let added = words(&security["capabilities"], "add");
            assert_eq!(added, *capabilities, "{owner}");
            // The container's goes before the pod's.
            let own = security.get("seccompProfile");
            let profile = own.unwrap_or(&pod["seccompProfile"]);
            assert_eq!(profile["type"], "RuntimeDefault", "{owner}");
        }
    }
    assert_eq!(found, EXEMPT.map(|(exempt, _)| exempt));
}

/// "resource.group" and the verbs that are granted on it.
fn granted() -> BTreeMap<String, BTreeSet<String>> {
    let mut granted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for role in objects("ClusterRole").into_iter().chain(objects("Role")) {
        for rule in list(&role.value, "/rules") {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    let name = if group.is_empty() {
                        resource
                    } else {
                        format!("{resource}.{group}")
                    };
                    granted
                        .entry(name)
                        .or_default()
                        .extend(words(rule, "verbs"));
                }
            }
        }
    }
    granted
}

/// The same, of what the code does.
fn called() -> BTreeMap<String, BTreeSet<String>> {
    let mut called: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, resource, verbs) in CALLS {
        let verbs = verbs.iter().map(|verb| (*verb).to_owned());
        called.entry(resource.to_owned()).or_default().extend(verbs);
    }
    let watches = fs::read_to_string(repository().join("control/src/source/kube/watch.rs"));
    let watches = watches.expect("the source's watches");
    let arms = watches
        .split_once("fn resource(")
        .expect("names of what is watched")
        .1;
    for arm in arms.lines().take_while(|line| *line != "    }") {
        if let Some(resource) = arm.split('"').nth(1) {
            let verbs = ["list", "watch"].map(str::to_owned);
            called.entry(resource.to_owned()).or_default().extend(verbs);
        }
    }
    assert!(
        called.contains_key("endpointslices.discovery.k8s.io"),
        "{called:?}"
    );
    called
}

#[test]
fn duet_control_may_do_what_it_does_and_no_more() {
    let granted = granted();
    let called = called();
    for (resource, verbs) in &called {
        let missing: Vec<_> = verbs
            .iter()
            .filter(|verb| {
                !granted
                    .get(resource)
                    .is_some_and(|granted| granted.contains(*verb))
            })
            .collect();
        assert!(
            missing.is_empty(),
            "rbac.yaml does not grant {missing:?} on {resource}"
        );
    }
    for (resource, verbs) in &granted {
        let used = called.get(resource).cloned().unwrap_or_default();
        let unused: Vec<_> = verbs.difference(&used).collect();
        assert!(
            unused.is_empty(),
            "rbac.yaml grants {unused:?} on {resource}, which no code uses"
        );
    }
}

/// What is asked of the API server somewhere is in [`CALLS`].
#[test]
fn no_call_is_forgotten() {
    let known: BTreeSet<_> = CALLS.iter().map(|(kind, _, _)| *kind).collect();
    let mut found = BTreeSet::new();
    for file in files(&["control/src"], "rs") {
        let text = fs::read_to_string(&file).expect("a file that was just listed");
        for opening in ["Api<", "Api::<", "PartialObjectMeta<"] {
            for (at, _) in text.match_indices(opening) {
                let rest = &text[at + opening.len()..];
                let name: String = rest
                    .chars()
                    .take_while(|it| it.is_alphanumeric() || *it == ':')
                    .collect();
                let name = name.rsplit("::").next().unwrap_or_default().to_owned();
                // Parameters and their aliases; what is in them is found by itself.
                if !["K", "Metadata", "PartialObjectMeta"].contains(&name.as_str()) {
                    assert!(
                        known.contains(name.as_str()),
                        "{}: Api<{name}> is not in CALLS",
                        file.display()
                    );
                    found.insert(name);
                }
            }
        }
    }
    let found: BTreeSet<_> = found.iter().map(String::as_str).collect();
    assert_eq!(found, known, "CALLS names what no code uses");
}

#[test]
fn rules_that_can_name_their_objects_do() {
    for role in objects("ClusterRole").into_iter().chain(objects("Role")) {
        for rule in list(&role.value, "/rules") {
            let [groups, resources, verbs] =
                ["apiGroups", "resources", "verbs"].map(|key| words(rule, key));
            for word in groups.iter().chain(&resources).chain(&verbs) {
                assert_ne!(word, "*", "{rule}");
            }
            let writes = verbs
                .iter()
                .any(|verb| ["update", "patch", "delete"].contains(&verb.as_str()));
            let is_status = resources
                .iter()
                .all(|resource| resource.ends_with("/status"));
            let is_secret =
                resources.iter().any(|resource| resource == "secrets") && verbs != ["create"];
            if (writes && !is_status) || is_secret {
                assert!(!words(rule, "resourceNames").is_empty(), "{rule}");
            }
        }
    }
    let mut roles = objects("ClusterRole");
    roles.retain(|role| granted_secrets(&role.value));
    assert!(roles.is_empty(), "Secrets are of one namespace alone");
}

fn granted_secrets(role: &Value) -> bool {
    let rules = list(role, "/rules").iter();
    rules
        .flat_map(|rule| words(rule, "resources"))
        .any(|resource| resource == "secrets")
}

// With a cluster.

fn kubectl(args: &[&str]) -> Output {
    Command::new("kubectl")
        .args(args)
        .output()
        .expect("kubectl is on the PATH")
}

/// Whether there is a cluster; if not, standard error says so.
fn has_cluster(needs: &[&str]) -> bool {
    let why = if std::env::var_os("KUBECONFIG").is_none() {
        "KUBECONFIG is not set".to_owned()
    } else {
        let output = kubectl(&[&["get"], needs].concat());
        if output.status.success() {
            return true;
        }
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    };
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // Past the harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr().lock(), "skipped: {test}: {why}");
    false
}

#[test]
fn an_api_server_takes_every_overlay_and_example() {
    if !has_cluster(&["namespace/duet-system"]) {
        return;
    }
    for overlay in ["sidecar", "agent", "both", "none"] {
        let folder = repository().join("deploy/overlays").join(overlay);
        let folder = folder.to_str().expect("UTF-8");
        let output = kubectl(&["apply", "--dry-run=server", "-k", folder]);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{overlay}: {problem}");
        let said = String::from_utf8_lossy(&output.stdout);
        for (what, overlays) in [
            (
                "deployment.apps/duet-control ",
                &["sidecar", "agent", "both", "none"][..],
            ),
            ("daemonset.apps/duet-agent ", &["agent", "both"]),
            (
                "mutatingwebhookconfiguration.admissionregistration.k8s.io/duet-injector ",
                &["sidecar", "agent", "both"],
            ),
        ] {
            assert_eq!(
                said.contains(what),
                overlays.contains(&overlay),
                "{overlay}: {what}"
            );
        }
    }
    for example in ["sidecar", "agent", "none", "two-modes"] {
        let folder = repository().join("deploy/examples").join(example);
        // Their namespaces do not exist, so that much only.
        let output = kubectl(&["kustomize", folder.to_str().expect("UTF-8")]);
        assert!(
            output.status.success(),
            "{example}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for example in ["network-policies.yaml", "authorization-policies.yaml"] {
        let path = repository().join("deploy/examples").join(example);
        let text = std::fs::read_to_string(path).expect("readable");
        // In a namespace that there is.
        let moved = tempfile::NamedTempFile::with_suffix(".yaml").expect("a place for it");
        let here = text
            .lines()
            .map(|line| line.replace("namespace: example-agent", "namespace: default"))
            .map(|line| line.replace("namespace: example-sidecar", "namespace: default") + "\n");
        std::fs::write(moved.path(), here.collect::<String>()).expect("written");
        let file = moved.path().to_str().expect("UTF-8");
        let output = kubectl(&["apply", "--dry-run=server", "-f", file]);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{example}: {problem}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("policy"), "{example}: {said}");
    }
}

#[test]
fn the_api_server_lets_duet_do_its_work_and_nothing_else() {
    if !has_cluster(&["clusterrolebinding/duet-control"]) {
        return;
    }
    #[rustfmt::skip]
    let questions: &[(&str, &str, bool)] = &[
        ("duet-control", "list pods --all-namespaces", true),
        ("duet-control", "watch nodes", true),
        ("duet-control", "watch endpointslices.discovery.k8s.io --all-namespaces", true),
        ("duet-control", "watch authorizationpolicies.duet.dev --all-namespaces", true),
        ("duet-control", "patch pods --subresource=status -n default", true),
        ("duet-control", "create tokenreviews.authentication.k8s.io", true),
        ("duet-control", "create configmaps -n default", true),
        ("duet-control", "patch configmaps/duet-trust-bundle -n default", true),
        ("duet-control", "get secrets/duet-ca -n duet-system", true),
        ("duet-control", "update leases.coordination.k8s.io/duet-control -n duet-system", true),
        ("duet-control", "patch mutatingwebhookconfigurations.admissionregistration.k8s.io/duet-injector", true),
        ("duet-control", "get secrets -n default", false),
        ("duet-control", "list secrets -n duet-system", false),
        ("duet-control", "get secrets/other -n duet-system", false),
        ("duet-control", "delete secrets/duet-ca -n duet-system", false),
        ("duet-control", "get configmaps/kube-root-ca.crt -n default", false),
        ("duet-control", "patch configmaps/other -n default", false),
        ("duet-control", "create pods -n default", false),
        ("duet-control", "patch pods -n default", false),
        ("duet-control", "delete pods -n default", false),
        ("duet-control", "create pods --subresource=exec -n default", false),
        ("duet-control", "create serviceaccounts --subresource=token -n default", false),
        ("duet-control", "patch services -n default", false),
        ("duet-control", "patch nodes", false),
        ("duet-control", "get nodes", false),
        ("duet-control", "patch namespaces", false),
        ("duet-control", "update leases.coordination.k8s.io -n kube-system", false),
        ("duet-control", "create mutatingwebhookconfigurations.admissionregistration.k8s.io", false),
        ("duet-control", "patch mutatingwebhookconfigurations.admissionregistration.k8s.io/other", false),
        ("duet-control", "escalate clusterroles.rbac.authorization.k8s.io", false),
        ("duet-control", "bind clusterroles.rbac.authorization.k8s.io", false),
        ("duet-control", "impersonate users", false),
        ("duet-agent", "list pods --all-namespaces", false),
        ("duet-agent", "get nodes", false),
        ("duet-agent", "get secrets -n duet-system", false),
        ("duet-agent", "get configmaps -n duet-system", false),
        ("duet-agent", "patch pods --subresource=status -n default", false),
    ];
    for (account, question, expected) in questions {
        let account = format!("--as=system:serviceaccount:duet-system:{account}");
        let mut args = vec!["auth", "can-i", &account];
        args.extend(question.split(' '));
        let answer = kubectl(&args);
        let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        assert_eq!(said == "yes", *expected, "{account} {question}: {said}");
    }
}
