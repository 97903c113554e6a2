//! `connections`: what is open now, as the proxies tell it.

use crate::cli::{ConnectionsArgs, Global, Output};
use crate::cluster::{Cluster, Error};
use crate::mesh::{Placement, Standing};
use crate::output::{age, bytes, print, print_json, table};
use crate::proxy::{Agents, ProxyPod, question, serving};
use crate::target::Target;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// As a proxy lists it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    id: u64,
    kind: String,
    direction: String,
    workload: String,
    client: String,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    age_ms: u64,
    sent_bytes: u64,
    received_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
}

#[derive(Deserialize)]
struct Page {
    connections: Vec<Connection>,
    omitted: u64,
}

pub async fn run(
    cluster: &Cluster,
    global: &Global,
    args: &ConnectionsArgs,
) -> Result<ExitCode, Error> {
    let proxies = find(cluster, global, &args.target).await?;
    let mut all = Vec::new();
    for (proxy, workloads) in proxies {
        let workloads = workloads.iter().map(|name| ("workload", name.as_str()));
        let direction = args.direction.map(|one| ("direction", one.as_str()));
        let question = question("/connections", workloads.chain(direction));
        let page: Page = proxy.json(cluster, &question).await?;
        if page.omitted > 0 {
            eprintln!(
                "kubectl duet: the proxy of {} has {} more",
                proxy.name(),
                page.omitted
            );
        }
        all.extend(page.connections);
    }
    match global.output {
        Output::Json => print_json(&all)?,
        _ if all.is_empty() => eprintln!("No connections are open."),
        Output::Table => print(&render(&all))?,
        Output::Wide => print(&render_wide(&all))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The proxies that serve a target, and the workloads to ask each of them about.
pub async fn find(
    cluster: &Cluster,
    global: &Global,
    target: &str,
) -> Result<BTreeMap<ProxyPod, Vec<String>>, Error> {
    let target = Target::read(target)?;
    let Some(namespace) = cluster.scope(global) else {
        return Err(Error::Usage(
            "-A: a target is in one namespace, write -n".to_owned(),
        ));
    };
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let of = cluster.get(&namespaces, namespace).await?;
    let pods: Vec<(Pod, Standing)> = target
        .pods(cluster, namespace)
        .await?
        .into_iter()
        .map(|pod| {
            let standing = Standing::of(&pod, of.as_ref());
            (pod, standing)
        })
        .collect();
    let by_agent = |(_, standing): &(Pod, Standing)| standing.placement == Placement::Agent;
    let agents = if pods.iter().any(by_agent) {
        Agents::find(cluster).await?.map(|(_, agents)| agents)
    } else {
        None
    };
    let (proxies, left_out) = serving(&pods, &agents.unwrap_or_else(Agents::none));
    if proxies.is_empty() {
        return Err(Error::Proxy(left_out.join("; ")));
    }
    for why in left_out {
        eprintln!("kubectl duet: {why}");
    }
    Ok(proxies)
}

fn render(connections: &[Connection]) -> String {
    let header = [
        "WORKLOAD",
        "DIRECTION",
        "KIND",
        "CLIENT",
        "DESTINATION",
        "PEER",
        "TRANSPORT",
        "PROTOCOL",
        "REQUESTS",
        "SENT",
        "RECEIVED",
        "AGE",
    ];
    table(header, connections.iter().map(Connection::row))
}

fn render_wide(connections: &[Connection]) -> String {
    let header = [
        "WORKLOAD",
        "DIRECTION",
        "KIND",
        "CLIENT",
        "DESTINATION",
        "PEER",
        "TRANSPORT",
        "PROTOCOL",
        "REQUESTS",
        "SENT",
        "RECEIVED",
        "AGE",
        "SERVER",
        "IDENTITY",
    ];
    let rows = connections.iter().map(|one| {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = one.row();
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let (server, identity) = (or_dash(&one.server), or_dash(&one.identity));
        [a, b, c, d, e, f, g, h, i, j, k, l, server, identity]
    });
    table(header, rows)
}

impl Connection {
    fn row(&self) -> [String; 12] {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        [
            self.workload.clone(),
            self.direction.clone(),
            self.kind.clone(),
            self.client.clone(),
            self.destination.clone(),
            self.peer_name(),
            or_dash(self.transport.as_deref().map(transport)),
            or_dash(self.protocol.as_deref()),
            self.requests
                .map_or_else(|| "-".to_owned(), |count| count.to_string()),
            bytes(self.sent_bytes),
            bytes(self.received_bytes),
            age(i64::try_from(self.age_ms / 1000).unwrap_or(i64::MAX)),
        ]
    }

    /// A pod where it is known; else a service account.
    fn peer_name(&self) -> String {
        let by_identity = || {
            let id = self.identity.as_deref()?;
            let mut parts = id.split('/').skip(4).step_by(2);
            Some(format!("{}/{}", parts.next()?, parts.next()?))
        };
        let known = self.peer.clone().or_else(by_identity);
        known.unwrap_or_else(|| match self.transport.as_deref() {
            Some("plaintext") if self.direction == "inbound" => "unmeshed".to_owned(),
            Some(_) => "external".to_owned(),
            None => "-".to_owned(),
        })
    }
}

fn transport(name: &str) -> &str {
    match name {
        "mtls" => "mTLS",
        "hbone" => "HBONE",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn connection(more: serde_json::Value) -> Connection {
        let mut value = json!({
            "id": 1, "kind": "client", "direction": "outbound", "workload": "shop/web-0",
            "client": "10.74.1.5:43210", "destination": "10.75.0.9:80", "ageMs": 125_300,
            "sentBytes": 1200, "receivedBytes": 5_300_000, "requests": 12,
        });
        let more = more.as_object().unwrap().clone();
        value.as_object_mut().unwrap().extend(more);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_row_says_with_whom_and_how() {
        let meshed = connection(json!({
            "server": "10.74.2.7:8080", "peer": "shop/cart-0", "transport": "mtls",
            "identity": "spiffe://duet.local/ns/shop/sa/cart", "protocol": "http/1",
        }));
        assert_eq!(
            render(std::slice::from_ref(&meshed)),
            "WORKLOAD     DIRECTION   KIND     CLIENT            DESTINATION    PEER          TRANSPORT   PROTOCOL   REQUESTS   SENT     RECEIVED   AGE\n\
             shop/web-0   outbound    client   10.74.1.5:43210   10.75.0.9:80   shop/cart-0   mTLS        http/1     12         1.2 kB   5.3 MB     2m5s\n"
        );
        assert!(
            render_wide(&[meshed])
                .contains("10.74.2.7:8080   spiffe://duet.local/ns/shop/sa/cart\n")
        );
    }

    #[test]
    fn the_other_end_has_a_name_in_any_case() {
        let name = |more| connection(more).peer_name();
        let id = "spiffe://duet.local/ns/shop/sa/cart";
        assert_eq!(
            name(json!({"identity": id, "transport": "mtls"})),
            "shop/cart"
        );
        let inbound = json!({"direction": "inbound", "transport": "plaintext"});
        assert_eq!(name(inbound), "unmeshed");
        assert_eq!(name(json!({"transport": "plaintext"})), "external");
        assert_eq!(name(json!({})), "-", "nobody has been reached yet");
    }
}
