//! Whether a run can be made in a cluster at all, asked before anything is made
//! there, or as soon as it can be asked.

use super::api::Kube;
use super::mesh::{AGENT, AgentSet, SYSTEM};
use super::objects::{MANAGED_BY, MODE, OURS};
use super::pods::{self, Observed, PROXY};
use super::site::KubeSite;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::site::{Site, Wish};
use crate::cluster::spec::{Limits, Placement, PodSpec};
use futures_util::future::try_join_all;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{AttachParams, ListParams, PostParams};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The first version with native sidecars on by default.
const OLDEST: (u32, u32) = (1, 29);
/// Certificates and discovery.
const CONTROL: &str = "duet-control";
/// The webhook that injects.
const INJECTOR: &str = "duet-injector";
/// How long a program may take to say its version.
const VERSION: Duration = Duration::from_secs(20);
/// What a program prints of its version at most.
const VERSION_MAX: u64 = 4096;
/// What installs a mesh.
const INSTALL: &str = "kubectl apply -k deploy/overlays/both";

/// What a run takes for granted of a cluster.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Arms with a proxy.
    pub mesh: bool,
    /// The arm with node proxies.
    pub agents: bool,
    /// Proxies are going to be killed or replaced.
    pub disturbs: bool,
    /// That is allowed even where others use them.
    pub disturb_others: bool,
}

/// What is said by the programs of a cluster: `duet-x 0.1.0 core=… opt=…`.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// By program.
    pub lines: BTreeMap<String, String>,
    /// Digest of each one's image.
    pub digests: BTreeMap<String, String>,
}

/// The server's version, if it is new enough: `v1.36.2`.
pub fn version(kube: &Kube) -> Result<String> {
    let info = kube.ask(
        &format!("reach the API server of context {}", kube.context),
        kube.client.apiserver_version(),
    )?;
    let number = |text: &str| -> u32 {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    if (number(&info.major), number(&info.minor)) < OLDEST {
        return Err(ClusterError::Unsupported(format!(
            "Kubernetes is {}: native sidecars need {}.{} or later",
            info.git_version, OLDEST.0, OLDEST.1
        )));
    }
    Ok(info.git_version)
}

/// Whether the user may do what a run does.
pub fn permissions(kube: &Kube, needs: &Needs) -> Result<()> {
    let mut wanted = vec![
        ("create", "", "namespaces", "", None),
        ("delete", "", "namespaces", "", None),
        ("list", "", "nodes", "", None),
        ("create", "", "pods", "", None),
        ("delete", "", "pods", "", None),
        ("create", "", "pods", "exec", None),
        ("create", "", "services", "", None),
        ("create", "", "serviceaccounts", "", None),
        ("create", "apps", "deployments", "", None),
        ("create", "batch", "jobs", "", None),
        ("create", "batch", "cronjobs", "", None),
    ];
    if needs.agents {
        wanted.push(("get", "apps", "daemonsets", "", Some(SYSTEM)));
    }
    if needs.agents && needs.disturbs {
        wanted.push(("patch", "apps", "daemonsets", "", Some(SYSTEM)));
        wanted.push(("delete", "", "pods", "", Some(SYSTEM)));
    }
    let reviews: Api<SelfSubjectAccessReview> = Api::all(kube.client.clone());
    let asked = wanted
        .iter()
        .map(|(verb, group, resource, sub, namespace)| {
            let review: SelfSubjectAccessReview = super::objects::object(serde_json::json!({
                "spec": {"resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": sub,
                    "namespace": namespace,
                }},
            }));
            let reviews = reviews.clone();
            async move { reviews.create(&PostParams::default(), &review).await }
        });
    let answers = kube.ask("ask what is allowed", try_join_all(asked))?;
    let denied: Vec<String> = wanted
        .iter()
        .zip(answers)
        .filter(|(_, answer)| !answer.status.as_ref().is_some_and(|status| status.allowed))
        .map(|((verb, _, resource, sub, namespace), _)| {
            let sub = if sub.is_empty() {
                String::new()
            } else {
                format!("/{sub}")
            };
            let namespace = namespace
                .map(|name| format!(" in {name}"))
                .unwrap_or_default();
            format!("{verb} {resource}{sub}{namespace}")
        })
        .collect();
    if denied.is_empty() {
        Ok(())
    } else {
        Err(ClusterError::Unsupported(format!(
            "context {} may not {}: use one that may, as cluster-admin does",
            kube.context,
            denied.join(", ")
        )))
    }
}

/// Whether the mesh that the arms need is installed and at work.
pub fn mesh(kube: &Kube, needs: &Needs) -> Result<()> {
    if !needs.mesh {
        return Ok(());
    }
    let absent = |what: &str| {
        ClusterError::Unsupported(format!(
            "{what} in context {}: install the mesh with `{INSTALL}`, or run --arms none",
            kube.context
        ))
    };
    let deployments: Api<Deployment> = Api::namespaced(kube.client.clone(), SYSTEM);
    let control = kube
        .ask("look for duet-control", deployments.get_opt(CONTROL))?
        .ok_or_else(|| absent("no mesh is installed"))?;
    let available = control
        .status
        .and_then(|status| status.available_replicas)
        .unwrap_or(0);
    if available == 0 {
        return Err(ClusterError::Unsupported(format!(
            "{SYSTEM}/{CONTROL} has no pod that is available: `kubectl -n {SYSTEM} get pods`"
        )));
    }
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(kube.client.clone());
    let injector = kube
        .ask("look for the injector", webhooks.get_opt(INJECTOR))?
        .ok_or_else(|| absent("no injector is installed"))?;
    let trusted = injector
        .webhooks
        .iter()
        .flatten()
        .any(|webhook| webhook.client_config.ca_bundle.is_some());
    if !trusted {
        return Err(ClusterError::Unsupported(format!(
            "webhook {INJECTOR} has no caBundle, so the API server will not call it: `kubectl -n {SYSTEM} logs deploy/{CONTROL}`"
        )));
    }
    if needs.agents && AgentSet::find(kube)?.is_none() {
        return Err(absent("no agents are installed"));
    }
    Ok(())
}

/// Whether the agents are ready on the run's nodes, and whose they are besides.
pub fn agents(site: &KubeSite, needs: &Needs) -> Result<()> {
    let (true, Some(agents)) = (needs.agents, site.agents()) else {
        return Ok(());
    };
    for node in site.nodes() {
        let pod = agents.pod_on(site.kube(), &node.name)?;
        if !pod.is_ready() {
            return Err(ClusterError::Pod {
                pod: format!("{SYSTEM}/{}", pod.called()),
                problem: format!("not ready: {}", pod.missing()),
            });
        }
    }
    if !needs.disturbs || needs.disturb_others {
        return Ok(());
    }
    let others = others_with_agents(site)?;
    if others.is_empty() {
        return Ok(());
    }
    let some: Vec<&str> = others.iter().map(String::as_str).take(3).collect();
    Err(ClusterError::Unsupported(format!(
        "{} pods of others use the agents that this run is going to kill ({}{}): choose other nodes with --nodes, \
         leave out F1, F2, F5, I8 and U1, or pass --disturb-others",
        others.len(),
        some.join(", "),
        if others.len() > some.len() {
            ", …"
        } else {
            ""
        }
    )))
}

/// Pods on the run's nodes that use their agents and are not a bench's.
fn others_with_agents(site: &KubeSite) -> Result<Vec<String>> {
    let kube = site.kube();
    let namespaces: Api<Namespace> = Api::all(kube.client.clone());
    let spaces = kube.ask(
        "list the namespaces",
        namespaces.list(&ListParams::default()),
    )?;
    let by_default: BTreeMap<String, bool> = spaces
        .items
        .iter()
        .map(|space| {
            let labels = space.metadata.labels.clone().unwrap_or_default();
            let agent = labels.get(MODE).is_some_and(|mode| mode == "agent");
            let ours = labels.get(MANAGED_BY).is_some_and(|by| by == OURS);
            (
                space.metadata.name.clone().unwrap_or_default(),
                agent && !ours,
            )
        })
        .collect();
    let pods: Api<Pod> = Api::all(kube.client.clone());
    let all = kube.ask("list all pods", pods.list(&ListParams::default()))?;
    Ok(all
        .items
        .iter()
        .filter(|pod| site.nodes().iter().any(|node| node.name == pod.on_node()))
        .filter(|pod| {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let space = pod.metadata.namespace.clone().unwrap_or_default();
            let ours = labels.get(MANAGED_BY).is_some_and(|by| by == OURS);
            let host = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.host_network.unwrap_or(false));
            match labels.get(MODE) {
                Some(mode) => mode == "agent" && !ours && !host,
                None => by_default.get(&space).copied().unwrap_or(false) && !host,
            }
        })
        .map(|pod| {
            let space = pod.metadata.namespace.clone().unwrap_or_default();
            format!("{space}/{}", pod.called())
        })
        .collect())
}

/// Asks the programs that take part who they are. For the sidecar's sake a pod is
/// made: if it does not start here, it will not later.
pub fn programs(site: &KubeSite, needs: &Needs, sidecars: bool) -> Result<Programs> {
    let mut found = Programs::default();
    let kube = site.kube();
    if !needs.mesh {
        return Ok(found);
    }
    let control = pods::list(kube, SYSTEM, &control_selector(kube)?)?
        .into_iter()
        .find(|pod| pod.is_ready() && !pod.is_leaving())
        .ok_or_else(|| ClusterError::Unsupported(format!("no pod of {CONTROL} is ready")))?;
    found.meet(kube, &control, CONTROL, CONTROL)?;
    if let (true, Some(agents)) = (needs.agents, site.agents()) {
        for node in site.nodes() {
            let pod = agents.pod_on(kube, &node.name)?;
            let name = if node.number == 1 {
                AGENT.to_owned()
            } else {
                format!("{AGENT} on {}", node.name)
            };
            let line = say_version(kube, &pod, &agents.container, AGENT)?;
            found.lines.insert(name, line);
            found.note_image(&pod, &agents.container, AGENT);
        }
    }
    if sidecars {
        let bed = site.build(&Wish {
            name: "sidecar".to_owned(),
            placement: Placement::Sidecar,
            classic: false,
            peer: None,
            proxy_args: Vec::new(),
            limits: Limits::default(),
            pods: vec![PodSpec::new("probe").service_account("probe")],
            services: Vec::new(),
            servers: Vec::new(),
            certificates: None,
        })?;
        let space = site.space("sidecar", Placement::Sidecar)?;
        let selector = format!("{}=probe", super::objects::POD);
        let probe = pods::list(kube, &space, &selector)?
            .into_iter()
            .find(|pod| !pod.is_leaving())
            .ok_or_else(|| ClusterError::Unsupported("the probe has gone".to_owned()))?;
        if probe.container(PROXY).is_none() {
            return Err(ClusterError::Unsupported(format!(
                "the injector added no {PROXY} to a pod of {space}, which is labelled {MODE}=sidecar: \
                 `kubectl -n {SYSTEM} logs deploy/{CONTROL}`"
            )));
        }
        found.meet(kube, &probe, PROXY, "duet-sidecar")?;
        drop(bed);
    }
    Ok(found)
}

fn control_selector(kube: &Kube) -> Result<String> {
    let deployments: Api<Deployment> = Api::namespaced(kube.client.clone(), SYSTEM);
    let control = kube.ask("look for duet-control", deployments.get(CONTROL))?;
    let labels = control
        .spec
        .and_then(|spec| spec.selector.match_labels)
        .unwrap_or_default();
    let parts: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    Ok(parts.join(","))
}

impl Programs {
    fn meet(&mut self, kube: &Kube, pod: &Pod, container: &str, program: &str) -> Result<()> {
        let line = say_version(kube, pod, container, program)?;
        self.lines.insert(program.to_owned(), line);
        self.note_image(pod, container, program);
        Ok(())
    }

    fn note_image(&mut self, pod: &Pod, container: &str, program: &str) {
        let Some(status) = pod.status_of(container) else {
            return;
        };
        let id = status.image_id.rsplit(':').next().unwrap_or_default();
        self.digests.insert(program.to_owned(), id.to_owned());
    }
}

/// Runs `/<program> --version` in a container.
fn say_version(kube: &Kube, pod: &Pod, container: &str, program: &str) -> Result<String> {
    let space = pod.metadata.namespace.clone().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(kube.client.clone(), &space);
    let command = [format!("/{program}"), "--version".to_owned()];
    let parameters = AttachParams::default()
        .container(container)
        .stdout(true)
        .stderr(false);
    let what = format!(
        "ask {program} in pod {space}/{} for its version",
        pod.called()
    );
    let text = kube.until(&what, VERSION, async {
        let mut process = pods
            .exec(pod.called(), command, &parameters)
            .await
            .map_err(|error| super::api::one_line(&error))?;
        let mut text = String::new();
        if let Some(stdout) = process.stdout() {
            stdout
                .take(VERSION_MAX)
                .read_to_string(&mut text)
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(text)
    })?;
    Ok(text.trim().to_owned())
}
