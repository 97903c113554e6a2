//! What is kept of an AuthorizationPolicy.

use super::status::{Writing, condition, find};
use crate::crd::AuthorizationPolicy;
use duet_core::api;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// A pod of its namespace must have all of these.
    pub labels: BTreeMap<String, String>,
    /// What proxies are told.
    pub told: api::AuthorizationPolicy,
    /// Why it is not what they are told; one line.
    pub problem: Option<String>,
    generation: i64,
    resource_version: String,
    /// As it is.
    status: Value,
}

// === impl Policy ===

impl Policy {
    /// One that cannot be followed leaves in force what was before it, and refuses
    /// everything if there was nothing.
    pub fn read(policy: &AuthorizationPolicy, before: Option<&Self>) -> Self {
        let (told, problem) = match policy.to_api() {
            Ok(told) => (told, None),
            Err(problem) => {
                let last = before.map(|before| before.told.clone());
                (last.unwrap_or_else(|| policy.refusing()), Some(problem))
            }
        };
        Self {
            labels: policy.spec.selector.match_labels.clone(),
            told,
            problem,
            generation: policy.metadata.generation.unwrap_or_default(),
            resource_version: policy.metadata.resource_version.clone().unwrap_or_default(),
            status: policy
                .status
                .as_ref()
                .map_or(Value::Null, |status| json!(status)),
        }
    }

    /// What its status should be, with that many workloads; `None` if it is.
    pub fn judged(&self, workloads: usize) -> Option<Writing> {
        let accepted = AuthorizationPolicy::ACCEPTED;
        let known = find(&self.status["conditions"], accepted);
        let (reason, message) = match &self.problem {
            None => (accepted, ""),
            Some(problem) => ("Invalid", problem.as_str()),
        };
        let holds = self.problem.is_none();
        let accepted = condition(known, accepted, holds, reason, message, self.generation);
        let wanted = json!({ "workloads": workloads, "conditions": [accepted] });
        (self.status != wanted).then(|| Writing {
            resource_version: self.resource_version.clone(),
            status: wanted,
        })
    }

    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut wanted = self.labels.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
    }
}
