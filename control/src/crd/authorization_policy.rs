//! Who may ask a pod for what.

use super::schema::{self, MAX_PARTS, MAX_RULES};
use duet_core::api;
use duet_core::policy::{IdentityPattern, Method, Namespace, Network, PathPattern};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Says who may ask the selected pods for what. A request is refused if a Deny
/// matches it; it is refused if there are Allows and none of them matches. Audits
/// decide nothing. Without a policy everybody may ask for everything, as far as mTLS
/// is not strict. Probes that a pod declares always pass.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "duet.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "duetpol",
    category = "duet",
    namespaced,
    status = "AuthorizationPolicyStatus",
    derive = "PartialEq",
    doc = "Says who may ask the selected pods for what.",
    printcolumn = r#"{"name": "Action", "type": "string", "jsonPath": ".spec.action", "description": "What a match does."}"#,
    printcolumn = r#"{"name": "Workloads", "type": "integer", "jsonPath": ".status.workloads", "description": "How many meshed pods it selects."}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status", "description": "Whether it is in force."}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[x_kube(validation = Rule::new("self.action == 'Allow' || has(self.rules) && self.rules.size() > 0")
    .message("without rules a Deny or an Audit matches nothing: add a rule; `rules: [{}]` matches everything"))]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The pods of the policy's namespace that it is for. All, if it is empty.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub selector: Selector,
    /// What a match does.
    pub action: Action,
    /// One must match. Without rules nothing does, so that an Allow without rules
    /// refuses everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "rules")]
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// A pod must have all of these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,
}

/// What a match does: Allow, Deny; Audit tells of it and decides nothing.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Audit,
}

/// Matches if one of `from` and one of `to` match. Left out, each always does.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "sources")]
    pub from: Option<Vec<Source>>,
    /// What for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "operations")]
    pub to: Option<Vec<Operation>>,
}

/// All that is given must match.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.identities) || has(self.namespaces) || has(self.ipBlocks)")
    .message("an empty source is everybody: give identities, namespaces or ipBlocks, or leave `from` out"))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::identities")]
    pub identities: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::namespaces")]
    pub namespaces: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ip_blocks")]
    pub ip_blocks: Option<Vec<String>>,
}

/// All that is given must match.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.ports) || has(self.methods) || has(self.paths)")
    .message("an empty operation is everything: give ports, methods or paths, or leave `to` out"))]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    pub ports: Option<Vec<u16>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::methods")]
    pub methods: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::paths")]
    pub paths: Option<Vec<String>>,
}

/// What duet-control made of it.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicyStatus {
    /// How many meshed pods it selects.
    #[serde(default)]
    pub workloads: i32,
    /// Accepted: it is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

// === impl AuthorizationPolicy ===

impl AuthorizationPolicy {
    /// The type of the condition that says whether a policy is in force.
    pub const ACCEPTED: &'static str = "Accepted";

    /// In the words of the mesh.
    ///
    /// # Errors
    /// One line, `field: problem: remedy`, of the first thing that no proxy could
    /// follow. [`Self::refusing`] stands for the policy meanwhile.
    pub fn to_api(&self) -> Result<api::AuthorizationPolicy, String> {
        let rules = self.spec.rules.iter().enumerate();
        let rules = rules.map(|(index, rule)| rule.to_api(&format!("spec.rules[{index}]")));
        Ok(api::AuthorizationPolicy {
            action: self.spec.action.to_api().into(),
            rules: rules.collect::<Result<_, _>>()?,
            ..self.named()
        })
    }

    /// What stands for a policy that [`Self::to_api`] refuses, if no older version of
    /// it is known: it refuses everything, where an Audit would refuse nothing.
    pub fn refusing(&self) -> api::AuthorizationPolicy {
        let rules = match self.spec.action {
            // Without rules an ALLOW allows nothing, an empty rule is everything.
            Action::Allow | Action::Audit => Vec::new(),
            Action::Deny => vec![api::authorization_policy::Rule::default()],
        };
        api::AuthorizationPolicy {
            action: self.spec.action.to_api().into(),
            rules,
            ..self.named()
        }
    }

    /// Whether it is for a pod of its namespace with these labels.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let wanted = &self.spec.selector.match_labels;
        wanted
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }

    fn named(&self) -> api::AuthorizationPolicy {
        api::AuthorizationPolicy {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
            ..api::AuthorizationPolicy::default()
        }
    }
}

impl Selector {
    fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }
}

impl Action {
    fn to_api(self) -> api::authorization_policy::Action {
        match self {
            Self::Allow => api::authorization_policy::Action::Allow,
            Self::Deny => api::authorization_policy::Action::Deny,
            Self::Audit => api::authorization_policy::Action::Audit,
        }
    }
}

impl Rule {
    fn to_api(&self, field: &str) -> Result<api::authorization_policy::Rule, String> {
        Ok(api::authorization_policy::Rule {
            from: all(&format!("{field}.from"), self.from.as_ref(), Source::to_api)?,
            to: all(&format!("{field}.to"), self.to.as_ref(), Operation::to_api)?,
        })
    }
}

impl Source {
    fn to_api(&self, field: &str) -> Result<api::authorization_policy::Source, String> {
        let Self {
            identities,
            namespaces,
            ip_blocks,
        } = self;
        if identities.is_none() && namespaces.is_none() && ip_blocks.is_none() {
            return Err(format!(
                "{field}: an empty source is everybody: leave `from` out"
            ));
        }
        Ok(api::authorization_policy::Source {
            identities: words::<IdentityPattern>(&format!("{field}.identities"), identities)?,
            namespaces: words::<Namespace>(&format!("{field}.namespaces"), namespaces)?,
            ip_blocks: words::<Network>(&format!("{field}.ipBlocks"), ip_blocks)?,
        })
    }
}

impl Operation {
    fn to_api(&self, field: &str) -> Result<api::authorization_policy::Operation, String> {
        let Self {
            ports,
            methods,
            paths,
        } = self;
        if ports.is_none() && methods.is_none() && paths.is_none() {
            return Err(format!(
                "{field}: an empty operation is everything: leave `to` out"
            ));
        }
        Ok(api::authorization_policy::Operation {
            ports: all(
                &format!("{field}.ports"),
                ports.as_ref(),
                |port, field| match port {
                    0 => Err(format!(
                        "{field}: 0 is not a port: write one from 1 to 65535"
                    )),
                    port => Ok(u32::from(*port)),
                },
            )?,
            methods: words::<Method>(&format!("{field}.methods"), methods)?,
            paths: words::<PathPattern>(&format!("{field}.paths"), paths)?,
        })
    }
}

/// Each element in the mesh's words. What is left out is empty there; what is empty
/// here would be taken for it.
fn all<T, U>(
    field: &str,
    given: Option<&Vec<T>>,
    to_api: impl Fn(&T, &str) -> Result<U, String>,
) -> Result<Vec<U>, String> {
    let Some(given) = given else {
        return Ok(Vec::new());
    };
    if given.is_empty() {
        return Err(format!("{field}: it is empty: leave it out if any will do"));
    }
    let elements = given.iter().enumerate();
    elements
        .map(|(index, element)| to_api(element, &format!("{field}[{index}]")))
        .collect()
}

/// Words that a proxy will be able to read as `W`.
fn words<W: FromStr<Err: ToString>>(
    field: &str,
    given: &Option<Vec<String>>,
) -> Result<Vec<String>, String> {
    all(field, given.as_ref(), |word, field| {
        match word.parse::<W>() {
            Ok(_) => Ok(word.clone()),
            Err(error) => Err(format!("{field}: {}", error.to_string())),
        }
    })
}

fn rules(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<Vec<Rule>>();
    schema.insert("maxItems".to_owned(), MAX_RULES.into());
    schema
}

fn sources(generator: &mut SchemaGenerator) -> Schema {
    parts(generator.subschema_for::<Vec<Source>>())
}

fn operations(generator: &mut SchemaGenerator) -> Schema {
    parts(generator.subschema_for::<Vec<Operation>>())
}

fn parts(mut schema: Schema) -> Schema {
    schema.insert("minItems".to_owned(), 1.into());
    schema.insert("maxItems".to_owned(), MAX_PARTS.into());
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(spec: serde_json::Value) -> AuthorizationPolicy {
        serde_json::from_value(json!({
            "apiVersion": "duet.dev/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": { "namespace": "shop", "name": "cart" },
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn a_policy_says_the_same_to_the_mesh() {
        let policy = policy(json!({
            "selector": { "matchLabels": { "app": "cart" } },
            "action": "Deny",
            "rules": [{
                "from": [{ "namespaces": ["web"] }, { "ipBlocks": ["10.0.0.0/8"] }],
                "to": [{ "ports": [8080], "methods": ["POST"], "paths": ["/admin/*"] }],
            }, {}],
        }));
        let told = policy.to_api().unwrap();
        assert_eq!(
            (told.namespace.as_str(), told.name.as_str()),
            ("shop", "cart")
        );
        assert_eq!(told.action(), api::authorization_policy::Action::Deny);
        let [rule, everything] = told.rules.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(rule.from[0].namespaces, ["web"]);
        assert!(rule.from[0].ip_blocks.is_empty());
        assert_eq!(rule.from[1].ip_blocks, ["10.0.0.0/8"]);
        assert_eq!(rule.to[0].ports, [8080]);
        assert_eq!(rule.to[0].methods, ["POST"]);
        assert_eq!(rule.to[0].paths, ["/admin/*"]);
        assert_eq!(*everything, api::authorization_policy::Rule::default());
    }

    #[test]
    fn labels_select() {
        let labels = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            owned.collect::<BTreeMap<_, _>>()
        };
        let one = policy(json!({
            "selector": { "matchLabels": { "app": "cart", "tier": "front" } }, "action": "Allow",
        }));
        assert!(one.selects(&labels(&[("app", "cart"), ("tier", "front"), ("x", "y")])));
        assert!(!one.selects(&labels(&[("app", "cart")])));
        assert!(!one.selects(&labels(&[("app", "cart"), ("tier", "back")])));
        let every = policy(json!({ "action": "Allow" }));
        assert!(every.selects(&BTreeMap::new()));
    }

    #[test]
    fn what_no_proxy_could_follow_is_refused_by_field() {
        let refused = |rule: serde_json::Value| {
            let policy = policy(json!({ "action": "Allow", "rules": [{}, rule] }));
            policy.to_api().unwrap_err()
        };
        assert_eq!(
            refused(json!({ "from": [{ "ipBlocks": ["10.0.0.0/8", "010.0.0.0/8"] }] })),
            "spec.rules[1].from[0].ipBlocks[1]: \"010.0.0.0/8\" is not a block of addresses: write \
             it as 10.0.0.0/8, fd00::/8, or 10.0.0.1/32 for one"
        );
        assert_eq!(
            refused(json!({ "to": [{ "paths": [] }] })),
            "spec.rules[1].to[0].paths: it is empty: leave it out if any will do"
        );
        for (wrong, field) in [
            (json!({ "from": [] }), "spec.rules[1].from: "),
            (json!({ "from": [{}] }), "spec.rules[1].from[0]: "),
            (json!({ "to": [{}] }), "spec.rules[1].to[0]: "),
            (
                json!({ "to": [{ "ports": [0] }] }),
                "spec.rules[1].to[0].ports[0]: ",
            ),
            (
                json!({ "to": [{ "methods": ["get"] }] }),
                "spec.rules[1].to[0].methods[0]: ",
            ),
            (
                json!({ "to": [{ "paths": ["a"] }] }),
                "spec.rules[1].to[0].paths[0]: ",
            ),
            (
                json!({ "from": [{ "identities": ["a"] }] }),
                "spec.rules[1].from[0].identities[0]: ",
            ),
            (
                json!({ "from": [{ "namespaces": ["*"] }] }),
                "spec.rules[1].from[0].namespaces[0]: ",
            ),
        ] {
            let problem = refused(wrong);
            assert!(problem.starts_with(field), "{problem}");
        }
    }

    #[test]
    fn what_stands_for_it_meanwhile_refuses() {
        let refusing = |action: &str| policy(json!({ "action": action })).refusing();
        assert!(refusing("Allow").rules.is_empty());
        assert_eq!(refusing("Deny").rules.len(), 1);
        assert!(refusing("Audit").rules.is_empty());
        assert_eq!(refusing("Deny").name, "cart");
    }
}
