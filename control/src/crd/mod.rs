//! What Duet adds to the Kubernetes API.
//!
//! The schemas come from these types, and say as much of what is wrong as an API
//! server can: `kubectl apply` refuses most mistakes at once, with the remedy. What
//! schemas cannot say, the conversion to the mesh's own words finds.
//!
//! Nothing newer than Kubernetes 1.29 is asked of the API server. CEL's own IP and
//! CIDR functions came with 1.30 and may be used in a schema from 1.31 on (an API
//! server takes only what its predecessor would understand too), so blocks of
//! addresses are checked by `format: cidr`, which every version knows.

mod authorization_policy;
mod schema;

pub use authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, AuthorizationPolicyStatus, Operation,
    Rule, Selector, Source,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The group of all of them.
pub const GROUP: &str = "duet.dev";

/// Every definition, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![AuthorizationPolicy::crd()]
}

/// What `duet-control crds` prints: a stream of YAML documents for `kubectl apply`.
///
/// # Panics
/// If a definition cannot be written as YAML, which a test would have seen.
pub fn yaml() -> String {
    let documents = all().into_iter().map(|definition| {
        let yaml = serde_saphyr::to_string(&definition).expect("a definition is plain data");
        format!("---\n{yaml}")
    });
    let heading = "# Written by `duet-control crds`; the types are in control/src/crd.\n";
    std::iter::once(heading.to_owned())
        .chain(documents)
        .collect()
}
