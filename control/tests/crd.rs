//! What the API server takes and what it refuses, and with which words.
//!
//! The tests need `KUBECONFIG`, but for the first; without it they say so and are
//! skipped. They put the definitions of this source into the cluster.

use duet_control::crd::{self, AuthorizationPolicy, AuthorizationPolicyStatus};
use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn the_manifest_is_what_the_types_give() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/crds.yaml");
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == crd::yaml(),
        "deploy/base/crds.yaml is not up to date: run `duet-control crds > deploy/base/crds.yaml`"
    );
}

#[test]
fn good_policies_are_accepted() {
    on_an_api_server("good", async |client, namespace| {
        for spec in good() {
            if let Err(error) = create(client, namespace, &spec).await {
                panic!("{spec:#}: {error}");
            }
            let policy: AuthorizationPolicy = serde_json::from_value(object(&spec)).unwrap();
            policy.to_api().unwrap();
        }
    });
}

#[test]
fn bad_policies_are_refused_with_a_remedy() {
    on_an_api_server("bad", async |client, namespace| {
        for (spec, field, message) in bad() {
            let refused = create(client, namespace, &spec).await;
            let told = match refused {
                Ok(_) => panic!("{spec:#} is accepted"),
                Err(kube::Error::Api(status)) => status.message,
                Err(error) => panic!("{error}"),
            };
            assert!(
                told.contains(field) && told.contains(message),
                "{spec:#}\n{told}"
            );
        }
    });
}

/// What a schema cannot say, and an API server would take for a block of addresses.
#[test]
fn what_the_api_server_lets_through_the_conversion_finds() {
    on_an_api_server("rest", async |client, namespace| {
        let spec = source(json!({ "ipBlocks": ["010.0.0.0/8"] }));
        create(client, namespace, &spec).await.unwrap();
        let policy: AuthorizationPolicy = serde_json::from_value(object(&spec)).unwrap();
        let problem = policy.to_api().unwrap_err();
        assert!(problem.starts_with("spec.rules[0].from[0].ipBlocks[0]: "));
    });
}

#[test]
fn a_status_is_kept_and_shown() {
    on_an_api_server("status", async |client, namespace| {
        let policies: Api<AuthorizationPolicy> = Api::namespaced(client.clone(), namespace);
        let spec = json!({ "action": "Deny", "rules": [{}] });
        let policy: AuthorizationPolicy = serde_json::from_value(object(&spec)).unwrap();
        let created = policies
            .create(&PostParams::default(), &policy)
            .await
            .unwrap();
        let status = AuthorizationPolicyStatus {
            workloads: 3,
            conditions: vec![Condition {
                type_: AuthorizationPolicy::ACCEPTED.to_owned(),
                status: "True".to_owned(),
                reason: "InForce".to_owned(),
                message: String::new(),
                observed_generation: created.metadata.generation,
                last_transition_time: Time("2025-01-01T00:00:00Z".parse().unwrap()),
            }],
        };
        let patch = Patch::Merge(json!({ "status": status }));
        let told = policies
            .patch_status("p", &PatchParams::default(), &patch)
            .await
            .unwrap();
        assert_eq!(told.status, Some(status));
        assert_eq!(told.metadata.generation, Some(1), "a status is no change");

        // By its short name, as a person would.
        let table = table(client, namespace).await;
        let columns = table["columnDefinitions"].as_array().unwrap();
        let names: Vec<_> = columns.iter().map(|column| &column["name"]).collect();
        assert_eq!(names, ["Name", "Action", "Workloads", "Accepted", "Age"]);
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(
            cells[..4],
            [json!("p"), json!("Deny"), json!(3), json!("True")]
        );
    });
}

fn good() -> Vec<Value> {
    let most = |word: &dyn Fn(usize) -> Value| (0..32).map(word).collect::<Vec<_>>();
    let path = "/".to_owned() + &"a".repeat(510) + "*";
    let identity = format!("duet.local/ns/{}/sa/{}", "n".repeat(63), "s".repeat(253));
    let everything = json!({
        "from": vec![json!({
            "identities": most(&|_| json!(identity)),
            "namespaces": most(&|_| json!("n".repeat(63))),
            "ipBlocks": most(&|_| json!("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128")),
        }); 8],
        "to": vec![json!({
            "ports": most(&|n| json!(65_535 - n)),
            "methods": most(&|_| json!("UPDATEREDIRECTREF")),
            "paths": most(&|_| json!(path)),
        }); 8],
    });
    vec![
        json!({ "action": "Allow" }),
        json!({ "action": "Allow", "rules": [] }),
        json!({ "action": "Deny", "rules": [{}] }),
        json!({ "action": "Audit", "rules": [{}], "selector": {} }),
        json!({
            "selector": { "matchLabels": { "app": "cart" } },
            "action": "Allow",
            "rules": [
                { "from": [{ "namespaces": ["web"] }, { "identities": ["*"] }] },
                { "to": [{ "ports": [8080], "methods": ["GET", "M-SEARCH"] }] },
                {
                    "from": [{ "identities": ["duet.local/ns/shop/sa/a.b-c", "duet.local/ns/*"] }],
                    "to": [{ "paths": ["*", "/", "/a/*", "/shop.Cart/List", "/caf%C3%A9"] }],
                },
            ],
        }),
        source(json!({ "ipBlocks": ["10.0.0.0/8", "10.1.2.3/32", "fd00::/8", "::/0"] })),
        // The largest there may be: within what an API server spends on its rules.
        json!({ "action": "Deny", "rules": vec![everything] }),
    ]
}

fn bad() -> Vec<(Value, &'static str, &'static str)> {
    let many = |count: usize| vec![json!({}); count];
    vec![
        (json!({ "rules": [{}] }), "spec.action", "Required value"),
        (
            json!({ "action": "deny", "rules": [{}] }),
            "spec.action",
            "\"Allow\", \"Deny\", \"Audit\"",
        ),
        (
            json!({ "action": "Deny" }),
            "spec",
            "without rules a Deny or an Audit matches nothing",
        ),
        (
            json!({ "action": "Audit", "rules": [] }),
            "spec",
            "`rules: [{}]` matches everything",
        ),
        (
            json!({ "action": "Allow", "rules": many(33) }),
            "spec.rules",
            "must have at most 32 items",
        ),
        (
            rule(json!({ "from": [] })),
            "spec.rules[0].from",
            "should have at least 1 items",
        ),
        (
            rule(json!({ "to": [] })),
            "spec.rules[0].to",
            "should have at least 1 items",
        ),
        (
            source(json!({})),
            "spec.rules[0].from[0]",
            "an empty source is everybody",
        ),
        (
            operation(json!({})),
            "spec.rules[0].to[0]",
            "an empty operation is everything",
        ),
        (
            source(json!({ "identities": [] })),
            "from[0].identities",
            "should have at least 1 items",
        ),
        (
            source(json!({ "identities": ["a/ns/b/sa/c", "spiffe://a/ns/b/sa/c"] })),
            "from[0].identities[1]",
            "write an identity without spiffe://",
        ),
        (
            source(json!({ "identities": ["a/ns/*/sa/c"] })),
            "from[0].identities[0]",
            "write * at the end of an identity only",
        ),
        (
            source(json!({ "identities": ["cart"] })),
            "from[0].identities[0]",
            "TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
        ),
        (
            source(json!({ "identities": ["a/ns/b/sa/c d"] })),
            "from[0].identities[0]",
            "letters, digits and -._/ only",
        ),
        (
            source(json!({ "namespaces": ["shop*"] })),
            "from[0].namespaces[0]",
            "write whole names of namespaces",
        ),
        (
            source(json!({ "namespaces": ["Shop"] })),
            "from[0].namespaces[0]",
            "write whole names of namespaces",
        ),
        (
            source(json!({ "ipBlocks": ["10.0.0.0/33"] })),
            "from[0].ipBlocks[0]",
            "must be of type cidr",
        ),
        (
            source(json!({ "ipBlocks": ["10.0.0.1"] })),
            "from[0].ipBlocks[0]",
            "must be of type cidr",
        ),
        (
            source(json!({ "ipBlocks": ["fd00::/129"] })),
            "from[0].ipBlocks[0]",
            "must be of type cidr",
        ),
        (
            operation(json!({ "ports": [0] })),
            "to[0].ports[0]",
            "greater than or equal to 1",
        ),
        (
            operation(json!({ "ports": [65536] })),
            "to[0].ports[0]",
            "less than or equal to 65535",
        ),
        (
            operation(json!({ "ports": ["http"] })),
            "to[0].ports[0]",
            "must be of type integer",
        ),
        (
            operation(json!({ "methods": ["get"] })),
            "to[0].methods[0]",
            "write methods in upper case",
        ),
        (
            operation(json!({ "paths": ["admin"] })),
            "to[0].paths[0]",
            "begin a path with /, or write *",
        ),
        (
            operation(json!({ "paths": ["/a", "/a/*/b"] })),
            "to[0].paths[1]",
            "write * at the end of a path only",
        ),
        (
            operation(json!({ "paths": ["/a?b=c"] })),
            "to[0].paths[0]",
            "without query and fragment",
        ),
        (
            operation(json!({ "paths": ["/".to_owned() + &"a".repeat(512)] })),
            "to[0].paths[0]",
            "may not be more than 512",
        ),
    ]
}

fn rule(rule: Value) -> Value {
    json!({ "action": "Allow", "rules": [rule] })
}

fn source(source: Value) -> Value {
    rule(json!({ "from": [source] }))
}

fn operation(operation: Value) -> Value {
    rule(json!({ "to": [operation] }))
}

fn object(spec: &Value) -> Value {
    json!({
        "apiVersion": "duet.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p" },
        "spec": spec,
    })
}

/// Has the API server say what it thinks of it, and keep nothing.
async fn create(client: &Client, namespace: &str, spec: &Value) -> kube::Result<DynamicObject> {
    let resource = ApiResource::erase::<AuthorizationPolicy>(&());
    let policies: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = serde_json::from_value(object(spec)).unwrap();
    policies.create(&dry_run, &object).await
}

/// What `kubectl get duetpol` prints.
async fn table(client: &Client, namespace: &str) -> Value {
    let uri = format!("/apis/duet.dev/v1alpha1/namespaces/{namespace}/authorizationpolicies");
    let request = http::Request::get(uri)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    client.request(request).await.unwrap()
}

/// Runs `test` in a namespace of its own, and leaves the definitions behind.
fn on_an_api_server(name: &str, test: impl AsyncFnOnce(&Client, &str)) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = match reachable().await {
            Ok(client) => client,
            Err(why) => {
                // Past the test harness, which keeps what a passing test prints to itself.
                let _ = writeln!(std::io::stderr().lock(), "skipped: {name}: {why}");
                return;
            }
        };
        define(&client).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({
            "metadata": { "generateName": format!("crd-{name}-") },
        }));
        let namespace = namespaces
            .create(&PostParams::default(), &namespace.unwrap())
            .await
            .unwrap()
            .name_any();
        let outcome = AssertUnwindSafe(test(&client, &namespace))
            .catch_unwind()
            .await;
        namespaces
            .delete(&namespace, &DeleteParams::default())
            .await
            .unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

async fn reachable() -> Result<Client, String> {
    if std::env::var_os("KUBECONFIG").is_none() {
        return Err("KUBECONFIG is not set".to_owned());
    }
    let client = Client::try_default()
        .await
        .map_err(|error| error.to_string())?;
    match tokio::time::timeout(PATIENCE, client.apiserver_version()).await {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(error)) => Err(format!("the API server: {error}")),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in crd::all() {
        let name = definition.name_any();
        let ours = PatchParams::apply("duet").force();
        definitions
            .patch(&name, &ours, &Patch::Apply(&definition))
            .await
            .unwrap();
        let established = conditions::is_crd_established();
        let established = await_condition(definitions.clone(), &name, established);
        tokio::time::timeout(PATIENCE, established)
            .await
            .expect("it is established in time")
            .unwrap();
    }
}
