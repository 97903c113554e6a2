//! `duet-control inject`: what the webhook does, done to files.
//!
//! For looking at what a pod would become, and for clusters where no webhook may run.
//! A document in which nothing changes is written as it was read, comments and all;
//! one that changes is written anew.

mod documents;

use super::decision::{Injector, Namespace, Verdict};
use super::names;
use documents::{Content, Malformed};
use serde_json::Value;
use std::collections::BTreeMap;

/// A namespace that nobody names.
const DEFAULT_NAMESPACE: &str = "default";

/// What to do with a file.
#[derive(Clone, Debug)]
pub struct Offline {
    pub injector: Injector,
    /// For pods of which neither they nor their namespace say, if it is in the file.
    pub mode: Verdict,
    /// Where objects go that name no namespace.
    pub namespace: Option<String>,
}

#[derive(Debug)]
pub struct Injected {
    pub text: String,
    /// One line each.
    pub warnings: Vec<String>,
}

/// One line: where, what, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{place}: {problem}")]
    Refused { place: String, problem: String },
}

/// The objects of a file that matter here.
struct Walk<'a> {
    offline: &'a Offline,
    namespaces: BTreeMap<String, Namespace>,
    warnings: Vec<String>,
}

// === impl Offline ===

impl Offline {
    /// # Errors
    /// At the first document that cannot be read or that holds a pod which would be
    /// refused.
    pub fn inject(&self, text: &str) -> Result<Injected, OfflineError> {
        let mut documents = documents::read(text)?;
        let mut walk = Walk {
            offline: self,
            namespaces: BTreeMap::new(),
            warnings: Vec::new(),
        };
        for document in &documents {
            for object in document.content.objects() {
                walk.learn(object);
            }
        }
        let mut output = String::new();
        let mut number = 0;
        for document in &mut documents {
            let line = document.line();
            let mut changes = false;
            for object in document.content.objects_mut() {
                if object.is_null() {
                    continue;
                }
                number += 1;
                changes |= walk.inject(object, &format!("document {number} (line {line})"))?;
            }
            if changes {
                let rendered = document.render().map_err(|error| OfflineError::Refused {
                    place: format!("document {number} (line {line})"),
                    problem: error.to_string(),
                })?;
                output.push_str(&rendered);
            } else {
                output.push_str(document.text);
            }
        }
        Ok(Injected {
            text: output,
            warnings: walk.warnings,
        })
    }
}

// === impl Walk ===

impl Walk<'_> {
    /// Remembers what namespaces say, wherever they stand in the file.
    fn learn(&mut self, object: &Value) {
        match (text(object, "apiVersion"), text(object, "kind")) {
            ("v1", "Namespace") => {
                let strings = |field: &str| {
                    let map = object["metadata"][field].as_object().into_iter().flatten();
                    map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                        .collect()
                };
                let name = text(&object["metadata"], "name").to_owned();
                let namespace = Namespace {
                    name: name.clone(),
                    labels: strings("labels"),
                    annotations: strings("annotations"),
                };
                self.namespaces.insert(name, namespace);
            }
            ("v1", "List") => {
                for item in object["items"].as_array().into_iter().flatten() {
                    self.learn(item);
                }
            }
            _ => {}
        }
    }

    /// Whether anything changed. `place` is what errors call the object's document.
    fn inject(&mut self, object: &mut Value, place: &str) -> Result<bool, OfflineError> {
        let kind = text(object, "kind").to_owned();
        if (text(object, "apiVersion"), kind.as_str()) == ("v1", "List") {
            let mut changes = false;
            let items = object["items"].as_array_mut().into_iter().flatten();
            for (at, item) in items.enumerate() {
                changes |= self.inject(item, &format!("{place}, items[{at}]"))?;
            }
            return Ok(changes);
        }
        let Some(path) = template(text(object, "apiVersion"), &kind) else {
            return Ok(false);
        };
        let metadata = &object["metadata"];
        let namespace = match text(metadata, "namespace") {
            "" => self
                .offline
                .namespace
                .as_deref()
                .unwrap_or(DEFAULT_NAMESPACE),
            given => given,
        };
        let name = match text(metadata, "name") {
            "" => text(metadata, "generateName"),
            given => given,
        };
        let place = format!("{place}, {kind} {namespace}/{name}");
        let namespace = self.namespace(namespace);
        // A fragment, as kustomize's patches are, has none.
        let Some(pod) = object.pointer_mut(path).filter(|pod| pod.is_object()) else {
            return Ok(false);
        };

        let within = path.trim_start_matches('/').replace('/', ".");
        let place = if within.is_empty() {
            place
        } else {
            format!("{place}, {within}")
        };
        let decision = self
            .offline
            .injector
            .decide(pod, &namespace, None)
            .map_err(|refusal| OfflineError::Refused {
                place: place.clone(),
                problem: refusal.to_string(),
            })?;
        let warnings = decision.warnings.iter();
        self.warnings
            .extend(warnings.map(|warning| format!("{place}: {warning}")));
        *pod = decision.pod;
        Ok(!decision.patch.0.is_empty())
    }

    fn namespace(&self, name: &str) -> Namespace {
        let mut namespace = self.namespaces.get(name).cloned().unwrap_or_default();
        name.clone_into(&mut namespace.name);
        let mode = self.offline.mode.as_str();
        namespace
            .labels
            .entry(names::MODE.to_owned())
            .or_insert_with(|| mode.to_owned());
        namespace
    }
}

// === impl Content ===

impl Content {
    fn objects(&self) -> &[Value] {
        match self {
            Self::Yaml(value) => std::slice::from_ref(value),
            Self::Json(values) => values,
        }
    }

    fn objects_mut(&mut self) -> &mut [Value] {
        match self {
            Self::Yaml(value) => std::slice::from_mut(value),
            Self::Json(values) => values,
        }
    }
}

/// Where in an object of this kind the pod or its template is.
fn template(api_version: &str, kind: &str) -> Option<&'static str> {
    match (api_version, kind) {
        ("v1", "Pod") => Some(""),
        ("v1", "PodTemplate") => Some("/template"),
        ("v1", "ReplicationController")
        | ("apps/v1", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch/v1", "Job") => Some("/spec/template"),
        ("batch/v1", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}
