//! What routes and policies are told in return, in a real API server.

mod mesh;
mod simulated;

use duet_control::crd::AuthorizationPolicy;
use duet_control::metrics::Metrics;
use duet_control::source::kube::{CONTROLLER, DEFAULT_TRUST_DOMAIN};
use duet_control::source::{KubeSource, Source};
use gateway_api::apis::standard::grpcroutes::GrpcRoute;
use gateway_api::apis::standard::httproutes::HttpRoute;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, CustomResourceExt};
use mesh::eventually;
use serde_json::{Value, json};
use simulated::{Corner, client, cluster, in_lab};
use tokio_util::task::AbortOnDropHandle;

/// Definitions that the cluster lacks, for the test's time.
struct Definitions {
    api: Api<CustomResourceDefinition>,
    made: Vec<String>,
}

// === impl Definitions ===

impl Definitions {
    async fn new(client: &Client, wanted: Vec<CustomResourceDefinition>) -> Self {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        let mut made = Vec::new();
        for mut definition in wanted {
            let name = definition.metadata.name.clone().unwrap();
            if api.get_opt(&name).await.unwrap().is_none() {
                // That group's definitions are approved by those whom the note names.
                definition.metadata.annotations = Some(
                    [(
                        "api-approved.kubernetes.io".to_owned(),
                        "unapproved, for a test".to_owned(),
                    )]
                    .into(),
                );
                api.create(&PostParams::default(), &definition)
                    .await
                    .unwrap();
                made.push(name.clone());
            }
            eventually("the definition is served", async || {
                let found = api.get_opt(&name).await.unwrap();
                let conditions = found
                    .and_then(|it| it.status?.conditions)
                    .unwrap_or_default();
                let mut conditions = conditions.iter();
                conditions.any(|it| it.type_ == "Established" && it.status == "True")
            })
            .await;
        }
        Self { api, made }
    }

    async fn remove(self) {
        for name in self.made {
            let _ = self.api.delete(&name, &simulated::now()).await;
        }
    }
}

/// A source that is followed, and the statuses that are written for it.
async fn serving() -> [AbortOnDropHandle<()>; 2] {
    let metrics = Metrics::new();
    let mut source = KubeSource::new(cluster().await.unwrap(), DEFAULT_TRUST_DOMAIN);
    source.report_to(&metrics, &duet_control::ready::Readiness::default());
    let writer = source.status_writer(&metrics);
    let follow = async move {
        loop {
            source.next().await.unwrap();
        }
    };
    [tokio::spawn(follow), tokio::spawn(writer.keep())].map(AbortOnDropHandle::new)
}

/// Reason and message of our condition on the only parent.
fn condition(route: &Value, kind: &str) -> Option<(String, String)> {
    let parents = route["status"]["parents"].as_array()?;
    let ours = parents
        .iter()
        .find(|it| it["controllerName"] == CONTROLLER)?;
    let conditions = ours["conditions"].as_array()?;
    let found = conditions.iter().find(|it| it["type"] == kind)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("reason"), text("message")))
}

async fn route<K>(ns: &Corner, name: &str) -> Value
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + serde::Serialize
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    json!(ns.api::<K>().get(name).await.unwrap())
}

#[tokio::test]
async fn routes_are_told_what_becomes_of_them() {
    let Some(client) = client().await else {
        return;
    };
    let definitions = vec![HttpRoute::crd(), GrpcRoute::crd()];
    let definitions = Definitions::new(&client, definitions).await;
    let outcome = tokio::spawn(routes()).await;
    definitions.remove().await;
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn routes() {
    in_lab("routes", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        ns.service("web", json!({})).await;
        let _serving = serving().await;
        let parent = json!([{ "group": "", "kind": "Service", "name": "web" }]);
        let to_web = json!([{ "name": "web", "port": 80 }]);
        ns.create::<HttpRoute>(json!({
            "metadata": { "name": "plain" },
            "spec": { "parentRefs": parent, "rules": [{ "backendRefs": to_web }] },
        }))
        .await;
        let headers = json!([{ "headers": [{ "name": "x-version", "value": "2" }] }]);
        let mirror = json!([{
            "type": "RequestMirror",
            "requestMirror": { "backendRef": { "name": "web", "port": 80 } },
        }]);
        ns.create::<HttpRoute>(json!({
            "metadata": { "name": "canary" },
            "spec": { "parentRefs": parent, "rules": [{ "matches": headers, "backendRefs": to_web }] },
        }))
        .await;
        ns.create::<HttpRoute>(json!({
            "metadata": { "name": "mirror" },
            "spec": { "parentRefs": parent, "rules": [{ "filters": mirror, "backendRefs": to_web }] },
        }))
        .await;
        let extension = json!([{
            "type": "ExtensionRef",
            "extensionRef": { "group": "example.org", "kind": "Filter", "name": "any" },
        }]);
        ns.create::<HttpRoute>(json!({
            "metadata": { "name": "extended" },
            "spec": { "parentRefs": parent, "rules": [{ "filters": extension, "backendRefs": to_web }] },
        }))
        .await;
        ns.create::<GrpcRoute>(json!({
            "metadata": { "name": "late" },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "late" }],
                "rules": [{ "backendRefs": [{ "name": "late", "port": 80 }] }],
            },
        }))
        .await;

        for name in ["plain", "canary", "mirror"] {
            eventually("what proxies can do is accepted", async || {
                condition(&route::<HttpRoute>(&ns, name).await, "Accepted")
                    .is_some_and(|(reason, _)| reason == "Accepted")
            })
            .await;
        }
        eventually("the other one is not, and told why", async || {
            condition(&route::<HttpRoute>(&ns, "extended").await, "Accepted").is_some_and(
                |(reason, message)| {
                    reason == "UnsupportedValue"
                        && message.starts_with("spec.rules[0].filters[0]: the filter \"ExtensionRef\"")
                },
            )
        })
        .await;
        let extended = route::<HttpRoute>(&ns, "extended").await;
        assert_eq!(condition(&extended, "ResolvedRefs").unwrap().0, "ResolvedRefs");
        eventually("its parent is missed", async || {
            condition(&route::<GrpcRoute>(&ns, "late").await, "Accepted")
                .is_some_and(|(reason, _)| reason == "NoMatchingParent")
        })
        .await;
        ns.service("late", json!({})).await;
        eventually("and found", async || {
            condition(&route::<GrpcRoute>(&ns, "late").await, "Accepted")
                .is_some_and(|(reason, _)| reason == "Accepted")
        })
        .await;

        // Others' words stay, and nothing is said twice.
        let mut both = route::<HttpRoute>(&ns, "plain").await["status"]["parents"].clone();
        let other = json!({
            "parentRef": parent[0], "controllerName": "example.org/other", "conditions": [],
        });
        both.as_array_mut().unwrap().insert(0, other.clone());
        let patch = Patch::Merge(json!({ "status": { "parents": both } }));
        let routes = ns.api::<HttpRoute>();
        routes.patch_status("plain", &PatchParams::default(), &patch).await.unwrap();
        let before = route::<HttpRoute>(&ns, "plain").await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        let after = route::<HttpRoute>(&ns, "plain").await;
        assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);

        let rules = json!([{ "filters": extension, "backendRefs": to_web }]);
        ns.patch::<HttpRoute>("plain", json!({ "spec": { "rules": rules } })).await;
        eventually("a change is judged", async || {
            condition(&route::<HttpRoute>(&ns, "plain").await, "Accepted")
                .is_some_and(|(reason, _)| reason == "UnsupportedValue")
        })
        .await;
        let parents = route::<HttpRoute>(&ns, "plain").await["status"]["parents"].clone();
        assert_eq!(parents[0]["controllerName"], "example.org/other");
        assert_eq!(parents.as_array().unwrap().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn policies_are_told_whom_they_select() {
    in_lab("policies", async |lab| {
        // They stay: whoever has Duet has them.
        Definitions::new(&lab.client, duet_control::crd::all()).await;
        let ns = lab.namespace("a", json!({}), json!({})).await;
        let _serving = serving().await;
        for name in ["web-1", "web-2"] {
            ns.sidecar(name, "web").await;
        }
        ns.sidecar("db", "db").await;
        ns.create::<AuthorizationPolicy>(json!({
            "metadata": { "name": "web" },
            "spec": { "action": "Allow", "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
        let status = async || {
            ns.api::<AuthorizationPolicy>()
                .get("web")
                .await
                .unwrap()
                .status
        };
        let selects = async |count: i32| {
            status().await.is_some_and(|it| {
                let mut conditions = it.conditions.iter();
                it.workloads == count
                    && conditions.any(|it| it.type_ == "Accepted" && it.status == "True")
            })
        };
        eventually("it selects two", async || selects(2).await).await;
        ns.sidecar("web-3", "web").await;
        eventually("it selects three", async || selects(3).await).await;
    })
    .await;
}
