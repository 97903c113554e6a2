//! One pod's fate.

use super::annotations::{Redirect, Settings, SidecarKind, oddities};
use super::config::{Config, Mode};
use super::draft::Draft;
use super::kubernetes::KubernetesVersion;
use super::{containers, fitness, names};
use json_patch::Patch;
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

const ANNOTATIONS: [&str; 2] = ["metadata", "annotations"];
const INITS: [&str; 2] = ["spec", "initContainers"];
const CONTAINERS: [&str; 2] = ["spec", "containers"];
const VOLUMES: [&str; 2] = ["spec", "volumes"];
const GATES: [&str; 2] = ["spec", "readinessGates"];
/// Whose pods are left alone, beside Duet's own: no mesh without them.
const SYSTEM: &str = "kube-system";

/// Decides about pods. Knows no server and no file.
#[derive(Clone, Debug)]
pub struct Injector {
    pub config: Config,
}

/// What a pod's namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of a pod.
#[derive(Clone, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    /// The pod as it is to be.
    pub pod: Value,
    /// RFC 6902, from the pod as it was.
    pub patch: Patch,
    /// For the pod's owner, one line each.
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has a proxy of its own.
    Sidecar,
    /// Its node's agent takes its connections.
    Agent,
    /// It is not in the mesh.
    None,
}

/// Why a pod must not come into being, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal(Vec<String>);

// === impl Injector ===

impl Injector {
    /// What becomes of `pod`, or of the pods of a template: an object with `metadata`
    /// and `spec`. `kubernetes` is the API server's version, where it is known.
    ///
    /// # Errors
    /// When the pod cannot be what it asks to be.
    pub fn decide(
        &self,
        pod: &Value,
        namespace: &Namespace,
        kubernetes: Option<KubernetesVersion>,
    ) -> Result<Decision, Refusal> {
        let template = read(pod)?;
        let empty = BTreeMap::new();
        let metadata = template.metadata.as_ref();
        let annotations = metadata
            .and_then(|it| it.annotations.as_ref())
            .unwrap_or(&empty);
        let labels = metadata.and_then(|it| it.labels.as_ref()).unwrap_or(&empty);
        let Some(spec) = &template.spec else {
            return Err(Refusal::because(
                "spec: is missing: write the pod's containers",
            ));
        };

        let draft = Draft::new(pod.clone());
        if [self.config.namespace.as_str(), SYSTEM].contains(&namespace.name.as_str()) {
            return Ok(draft.decided(Verdict::None, Vec::new()));
        }
        let mode = mode(labels, namespace)?;
        let stamp = annotations.get(names::PLACEMENT).map(String::as_str);
        let carried = if stamp == Some("sidecar") {
            carried(spec)
        } else {
            None
        };
        let outsider = fitness::outsider(&template);

        match (carried, mode) {
            (Some(kind), _) => {
                still_whole(spec, kind)?;
                let mut decision =
                    self.with_sidecar(draft, spec, annotations, namespace, kubernetes, Some(kind))?;
                if mode != Verdict::Sidecar {
                    decision.warnings.insert(
                        0,
                        "the pod has a sidecar already and keeps it, whatever its label or its \
                         namespace's says"
                            .to_owned(),
                    );
                }
                Ok(decision)
            }
            (None, Verdict::Sidecar | Verdict::Agent) if outsider.is_some() => {
                let why = outsider.unwrap_or_default();
                let warning = format!("the pod is not in the mesh: {why}");
                Ok(draft.decided(Verdict::None, vec![warning]))
            }
            (None, Verdict::Sidecar) if !self.config.modes.contains(&Mode::Sidecar) => {
                Err(not_installed("sidecars", mode))
            }
            (None, Verdict::Agent) if !self.config.modes.contains(&Mode::Agent) => {
                Err(not_installed("agents", mode))
            }
            (None, Verdict::Sidecar) => {
                self.with_sidecar(draft, spec, annotations, namespace, kubernetes, None)
            }
            (None, Verdict::Agent) => self.with_agent(draft, spec, annotations, namespace),
            (None, Verdict::None) => Ok(without(draft, stamp.is_some())),
        }
    }

    /// `carried` is what it has already.
    fn with_sidecar(
        &self,
        mut draft: Draft,
        spec: &PodSpec,
        annotations: &BTreeMap<String, String>,
        namespace: &Namespace,
        kubernetes: Option<KubernetesVersion>,
        carried: Option<SidecarKind>,
    ) -> Result<Decision, Refusal> {
        let mut settings = Settings::read(annotations, namespace, &self.config).map_err(Refusal)?;
        let mut others = spec.clone();
        if let Some(kind) = carried {
            settings.kind = kind;
            forget_ours(&mut others);
        }
        let mut problems = fitness::unfit_for_sidecar(&others);
        if let Some(version) = kubernetes
            && settings.kind == SidecarKind::Native
            && !version.has_native_sidecars()
        {
            problems.push(format!(
                "the API server is Kubernetes {version}, which drops restartPolicy from init \
                 containers, and the pod would never start: upgrade to 1.29, or label it \
                 {}: agent",
                names::MODE
            ));
        }
        if !problems.is_empty() {
            return Err(Refusal(problems));
        }

        if settings.redirect == Redirect::Init
            || draft.position(INITS, names::INIT_CONTAINER).is_some()
        {
            draft.put(INITS, names::INIT_CONTAINER, 0, || {
                containers::redirect(&settings, &self.config)
            });
        }
        let (list, place) = match settings.kind {
            // After the redirection, before whatever else may want to connect.
            SidecarKind::Native => {
                let redirect = draft.position(INITS, names::INIT_CONTAINER);
                (INITS, redirect.map_or(0, |at| at + 1))
            }
            SidecarKind::Classic => (CONTAINERS, 0),
        };
        draft.put(list, names::PROXY_CONTAINER, place, || {
            containers::proxy(
                &settings,
                &self.config,
                spec.termination_grace_period_seconds,
            )
        });
        if draft.position(VOLUMES, names::IDENTITY_VOLUME).is_none() {
            draft.insert(VOLUMES, None, containers::identity());
        }
        // Left over from a pod that this one is a copy of: no agent will ever meet it.
        draft.drop_where(GATES, "conditionType", names::ENROLLED);
        draft.set(ANNOTATIONS, names::PLACEMENT, "sidecar");
        let first = others.containers.first().map(|it| it.name.as_str());
        if let Some(first) = first
            && !annotations.contains_key(names::DEFAULT_CONTAINER)
        {
            draft.set(ANNOTATIONS, names::DEFAULT_CONTAINER, first);
        }

        let mut warnings = fitness::reservations(&others, &settings);
        warnings.extend(oddities(annotations, true));
        Ok(draft.decided(Verdict::Sidecar, warnings))
    }

    fn with_agent(
        &self,
        mut draft: Draft,
        spec: &PodSpec,
        annotations: &BTreeMap<String, String>,
        namespace: &Namespace,
    ) -> Result<Decision, Refusal> {
        Settings::read(annotations, namespace, &self.config).map_err(Refusal)?;
        let problems = fitness::unfit_for_agent(spec);
        if !problems.is_empty() {
            return Err(Refusal(problems));
        }
        let mut gates = spec.readiness_gates.iter().flatten();
        if !gates.any(|gate| gate.condition_type == names::ENROLLED) {
            draft.insert(GATES, None, json!({"conditionType": names::ENROLLED}));
        }
        draft.set(ANNOTATIONS, names::PLACEMENT, "agent");
        Ok(draft.decided(Verdict::Agent, oddities(annotations, false)))
    }
}

/// A stamp that was copied from another pod would make others believe that this one
/// speaks the mesh's protocol, and its gate would keep it from being ready.
fn without(mut draft: Draft, is_stamped: bool) -> Decision {
    if is_stamped {
        draft.unset(ANNOTATIONS, names::PLACEMENT);
        draft.drop_where(GATES, "conditionType", names::ENROLLED);
    }
    draft.decided(Verdict::None, Vec::new())
}

/// The pod's own label, or its namespace's.
fn mode(labels: &BTreeMap<String, String>, namespace: &Namespace) -> Result<Verdict, Refusal> {
    let (value, whose) = match (labels.get(names::MODE), namespace.labels.get(names::MODE)) {
        (Some(value), _) => (value, String::new()),
        (None, Some(value)) => (value, format!("namespace {}, ", namespace.name)),
        (None, None) => return Ok(Verdict::None),
    };
    match value.as_str() {
        "sidecar" => Ok(Verdict::Sidecar),
        "agent" => Ok(Verdict::Agent),
        "none" => Ok(Verdict::None),
        other => Err(Refusal::because(format!(
            "{whose}label {}: {other:?} is not known: write sidecar, agent or none",
            names::MODE
        ))),
    }
}

fn not_installed(what: &str, mode: Verdict) -> Refusal {
    let other = match mode {
        Verdict::Sidecar => Verdict::Agent,
        _ => Verdict::Sidecar,
    };
    Refusal::because(format!(
        "label {}: {}: Duet is installed without {what}: write {}, or have \
         deploy/overlays/both installed",
        names::MODE,
        mode.as_str(),
        other.as_str()
    ))
}

/// The kind of the sidecar that a stamped pod has.
fn carried(spec: &PodSpec) -> Option<SidecarKind> {
    let is_proxy = |it: &k8s_openapi::api::core::v1::Container| it.name == names::PROXY_CONTAINER;
    if spec.init_containers.iter().flatten().any(is_proxy) {
        Some(SidecarKind::Native)
    } else {
        spec.containers
            .iter()
            .any(is_proxy)
            .then_some(SidecarKind::Classic)
    }
}

/// What was injected may have met others since.
fn still_whole(spec: &PodSpec, kind: SidecarKind) -> Result<(), Refusal> {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    if spec.host_network == Some(true) {
        return Err(Refusal::because(format!(
            "spec.hostNetwork: {} would redirect the whole node's connections: remove it, or \
             take the proxy's containers out",
            names::INIT_CONTAINER
        )));
    }
    let proxy = inits
        .iter()
        .position(|it| it.name == names::PROXY_CONTAINER);
    match proxy {
        Some(at)
            if kind == SidecarKind::Native
                && inits[at].restart_policy.as_deref() != Some("Always") =>
        {
            Err(Refusal::because(format!(
                "spec.initContainers[{at}]: {} has lost its restartPolicy: Always, and the pod \
                 would never start: a webhook or tool built for a Kubernetes before 1.28 drops \
                 the field; update it (kubectl get mutatingwebhookconfigurations lists the \
                 webhooks)",
                names::PROXY_CONTAINER
            )))
        }
        _ => Ok(()),
    }
}

fn forget_ours(spec: &mut PodSpec) {
    let ours = [names::INIT_CONTAINER, names::PROXY_CONTAINER];
    spec.containers
        .retain(|it| !ours.contains(&it.name.as_str()));
    if let Some(inits) = &mut spec.init_containers {
        inits.retain(|it| !ours.contains(&it.name.as_str()));
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|it| it.name != names::IDENTITY_VOLUME);
    }
}

/// As Kubernetes reads it. An error says where.
fn read(pod: &Value) -> Result<PodTemplateSpec, Refusal> {
    let problem = match serde_json::from_value(pod.clone()) {
        Ok(template) => return Ok(template),
        Err(problem) => problem,
    };
    let fails = |part: Value| serde_json::from_value::<PodTemplateSpec>(part).is_err();
    for section in ["metadata", "spec"] {
        for (field, value) in pod[section].as_object().into_iter().flatten() {
            if !fails(json!({section: {field: value}})) {
                continue;
            }
            let element = value
                .as_array()
                .into_iter()
                .flatten()
                .position(|element| fails(json!({section: {field: [element]}})));
            let element = element.map_or(String::new(), |at| format!("[{at}]"));
            return Err(Refusal::because(format!(
                "{section}.{field}{element}: {problem}"
            )));
        }
    }
    Err(Refusal::because(format!("not a pod: {problem}")))
}

// === impl Draft ===

impl Draft {
    fn decided(self, verdict: Verdict, warnings: Vec<String>) -> Decision {
        let (pod, patch) = self.finish();
        Decision {
            verdict,
            pod,
            patch,
            warnings,
        }
    }

    fn position(&self, list: [&str; 2], name: &str) -> Option<usize> {
        let list = self.pod()[list[0]][list[1]].as_array()?;
        list.iter().position(|element| element["name"] == name)
    }

    /// Brings the element `name` to `place`, making it if it is not there.
    fn put(&mut self, list: [&str; 2], name: &str, place: usize, make: impl FnOnce() -> Value) {
        match self.position(list, name) {
            Some(at) => self.shift(list, at, place),
            None => self.insert(list, Some(place), make()),
        }
    }
}

// === impl Verdict ===

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Agent => "agent",
            Self::None => "none",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    fn because(problem: impl Into<String>) -> Self {
        Self(vec![problem.into()])
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}
