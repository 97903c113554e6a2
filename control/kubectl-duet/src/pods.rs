//! `pods`: `kubectl get pods` for those who do not like to see sidecars in it. READY,
//! STATUS and RESTARTS are the application's; the proxy has a column to itself.

mod row;

use crate::cli::{Global, Output, PodsArgs};
use crate::cluster::{Cluster, Error};
use crate::mesh::{PROXY, Placement, Standing, by_name};
use crate::output::{print, print_json, since, table};
use crate::proxy::Agents;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use row::{Count, Row};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    namespace: String,
    name: String,
    #[serde(flatten)]
    row: Row,
    created: Option<String>,
    #[serde(skip)]
    age: String,
    mesh: Placement,
    /// Why its proxy takes no traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    ip: Option<String>,
    node: Option<String>,
}

pub async fn run(cluster: &Cluster, global: &Global, args: &PodsArgs) -> Result<ExitCode, Error> {
    let client = || cluster.client.clone();
    let scope = cluster.scope(global);
    let namespaces: Api<Namespace> = Api::all(client());
    let (api, namespaces): (Api<Pod>, Vec<Namespace>) = match scope {
        Some(name) => {
            let namespace = cluster.get(&namespaces, name).await?;
            (
                Api::namespaced(client(), name),
                namespace.into_iter().collect(),
            )
        }
        None => {
            let all = cluster.list(&namespaces, &ListParams::default()).await?;
            (Api::all(client()), all)
        }
    };
    let namespaces = by_name(namespaces);
    let mut selector = ListParams::default();
    if let Some(labels) = &args.selector {
        selector = selector.labels(labels);
    }
    let pods = cluster.list(&api, &selector).await?;
    let agents = match args.show_proxies {
        true => Agents::find(cluster).await?.map(|(_, agents)| agents),
        false => None,
    };
    let now = Timestamp::now();
    let listed: Vec<_> = pods
        .iter()
        .map(|pod| {
            let namespace = namespaces.get(&pod.namespace().unwrap_or_default());
            let standing = Standing::of(pod, namespace);
            let count = if args.show_proxies {
                Count::All
            } else {
                Count::Application
            };
            let mut listed = Listed::of(pod, standing, count, now);
            if args.show_proxies {
                listed.proxy = proxy(pod, listed.mesh, agents.as_ref());
            }
            listed
        })
        .collect();
    if global.output == Output::Json {
        print_json(&listed)?;
    } else if listed.is_empty() {
        match scope {
            Some(namespace) => eprintln!("No pods found in namespace {namespace}."),
            None => eprintln!("No pods found."),
        }
    } else {
        print(&render(
            &listed,
            scope.is_none(),
            global.output == Output::Wide,
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The proxy's container, or the agent's pod.
fn proxy(pod: &Pod, placement: Placement, agents: Option<&Agents>) -> Option<String> {
    match placement {
        Placement::None => None,
        Placement::Sidecar => {
            let status = pod.status.as_ref()?;
            let init = status.init_container_statuses.iter().flatten();
            let mut all = init.chain(status.container_statuses.iter().flatten());
            let restarts = all.find(|one| one.name == PROXY)?.restart_count;
            Some(match restarts {
                0 => PROXY.to_owned(),
                _ => format!("{PROXY} ({restarts} restarts)"),
            })
        }
        Placement::Agent => {
            let node = pod.spec.as_ref()?.node_name.as_deref()?;
            Some(agents?.on(node)?.name())
        }
    }
}

// === impl Listed ===

impl Listed {
    fn of(pod: &Pod, standing: Standing, count: Count, now: Timestamp) -> Self {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            row: Row::of(pod, count, now),
            created: created.map(|time| time.to_string()),
            age: created.map_or_else(|| "<unknown>".to_owned(), |time| since(time, now)),
            mesh: standing.placement,
            missing: standing.missing,
            proxy: None,
            ip: pod.status.as_ref().and_then(|status| status.pod_ip.clone()),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        }
    }

    fn mesh(&self) -> String {
        let mut mesh = match self.mesh {
            Placement::None => "-".to_owned(),
            placement => placement.to_string(),
        };
        if let Some(proxy) = &self.proxy {
            mesh = format!("{mesh} by {proxy}");
        }
        match &self.missing {
            Some(missing) => format!("{mesh}, not ready: {missing}"),
            None => mesh,
        }
    }
}

fn render(listed: &[Listed], with_namespace: bool, wide: bool) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "<none>".to_owned());
    let narrow = listed.iter().map(|one| {
        let row = &one.row;
        let ready = format!("{}/{}", row.ready, row.containers);
        let restarts = row.restarts_text.clone();
        [
            one.name.clone(),
            ready,
            row.status.clone(),
            restarts,
            one.age.clone(),
        ]
    });
    // Each of the four has a table type of its own.
    match (with_namespace, wide) {
        (false, false) => table(
            ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "MESH"],
            narrow
                .zip(listed)
                .map(|([a, b, c, d, e], one)| [a, b, c, d, e, one.mesh()]),
        ),
        (true, false) => table(
            [
                "NAMESPACE",
                "NAME",
                "READY",
                "STATUS",
                "RESTARTS",
                "AGE",
                "MESH",
            ],
            narrow
                .zip(listed)
                .map(|([a, b, c, d, e], one)| [one.namespace.clone(), a, b, c, d, e, one.mesh()]),
        ),
        (false, true) => table(
            [
                "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "MESH",
            ],
            narrow.zip(listed).map(|([a, b, c, d, e], one)| {
                [
                    a,
                    b,
                    c,
                    d,
                    e,
                    or_none(&one.ip),
                    or_none(&one.node),
                    one.mesh(),
                ]
            }),
        ),
        (true, true) => table(
            [
                "NAMESPACE",
                "NAME",
                "READY",
                "STATUS",
                "RESTARTS",
                "AGE",
                "IP",
                "NODE",
                "MESH",
            ],
            narrow.zip(listed).map(|([a, b, c, d, e], one)| {
                let (ip, node) = (or_none(&one.ip), or_none(&one.node));
                [one.namespace.clone(), a, b, c, d, e, ip, node, one.mesh()]
            }),
        ),
    }
}
