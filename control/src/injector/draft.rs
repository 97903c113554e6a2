//! A pod that is being changed, and the patch that says how.
//!
//! Each change is recorded as it is made, so the patch holds what was meant and no
//! more: two containers put in front are two additions, whatever stood there before.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, MoveOperation, Patch, PatchOperation, RemoveOperation};
use serde_json::{Value, json};

pub struct Draft {
    pod: Value,
    patch: Vec<PatchOperation>,
}

// === impl Draft ===

impl Draft {
    /// `pod` is one that Kubernetes' own types could read: what may be a list or an
    /// object is one, or null, or not there.
    pub fn new(pod: Value) -> Self {
        Self {
            pod,
            patch: Vec::new(),
        }
    }

    /// The pod as it is now.
    pub fn pod(&self) -> &Value {
        &self.pod
    }

    pub fn finish(self) -> (Value, Patch) {
        (self.pod, Patch(self.patch))
    }

    /// Sets `key` in the object `parent`, unless it is that already.
    pub fn set(&mut self, parent: [&str; 2], key: &str, value: impl Into<Value>) {
        let value = value.into();
        let path = pointer(&parent);
        match self.pod.pointer(path.as_str()) {
            Some(Value::Object(object)) => {
                if object.get(key) != Some(&value) {
                    self.add(path.with_trailing_token(key), value);
                }
            }
            _ => self.add(path, json!({ key: value })),
        }
    }

    /// Removes `key` from the object `parent`, if it is there.
    pub fn unset(&mut self, parent: [&str; 2], key: &str) {
        let path = pointer(&parent).with_trailing_token(key);
        if self.pod.pointer(path.as_str()).is_some() {
            self.apply(PatchOperation::Remove(RemoveOperation { path }));
        }
    }

    /// Inserts `value` into the list at `path`, at `place` or at its end.
    pub fn insert(&mut self, path: [&str; 2], place: Option<usize>, value: Value) {
        let path = pointer(&path);
        match self.pod.pointer(path.as_str()) {
            Some(Value::Array(list)) => {
                let place = place.unwrap_or(list.len()).min(list.len());
                self.add(path.with_trailing_token(place), value);
            }
            _ => self.add(path, json!([value])),
        }
    }

    /// Moves an element of the list at `path`.
    pub fn shift(&mut self, path: [&str; 2], from: usize, to: usize) {
        if from != to {
            let list = pointer(&path);
            self.apply(PatchOperation::Move(MoveOperation {
                from: list.with_trailing_token(from),
                path: list.with_trailing_token(to),
            }));
        }
    }

    /// Removes the elements of the list at `path` whose `key` is `value`, and the
    /// list with its last one.
    pub fn drop_where(&mut self, path: [&str; 2], key: &str, value: &str) {
        let list = pointer(&path);
        let Some(Value::Array(elements)) = self.pod.pointer(list.as_str()) else {
            return;
        };
        let found: Vec<_> = (0..elements.len())
            .filter(|&at| elements[at][key] == value)
            .collect();
        if !found.is_empty() && found.len() == elements.len() {
            self.apply(PatchOperation::Remove(RemoveOperation { path: list }));
            return;
        }
        // From the end, so that places before stay what they are.
        for at in found.into_iter().rev() {
            self.apply(PatchOperation::Remove(RemoveOperation {
                path: list.with_trailing_token(at),
            }));
        }
    }

    fn add(&mut self, path: PointerBuf, value: Value) {
        // RFC 6902, 4.1: the parent has to be there.
        if let Some((parent, _)) = path.split_back()
            && !parent.is_root()
            && self.pod.pointer(parent.as_str()).is_none_or(Value::is_null)
        {
            self.add(parent.to_buf(), json!({}));
        }
        self.apply(PatchOperation::Add(AddOperation { path, value }));
    }

    fn apply(&mut self, operation: PatchOperation) {
        json_patch::patch(&mut self.pod, std::slice::from_ref(&operation))
            .expect("paths are looked up before they are used");
        self.patch.push(operation);
    }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANNOTATIONS: [&str; 2] = ["metadata", "annotations"];
    const INITS: [&str; 2] = ["spec", "initContainers"];

    /// The patch has to say what was done to the pod.
    fn changed(before: &Value, change: impl FnOnce(&mut Draft)) -> (Value, usize) {
        let mut draft = Draft::new(before.clone());
        change(&mut draft);
        let (after, patch) = draft.finish();
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, after);
        (after, patch.0.len())
    }

    #[test]
    fn parents_come_into_being() {
        for before in [
            json!({}),
            json!({"metadata": null}),
            json!({"metadata": {"annotations": null}}),
        ] {
            let (after, _) = changed(&before, |draft| draft.set(ANNOTATIONS, "a/b~c", "d"));
            assert_eq!(after, json!({"metadata": {"annotations": {"a/b~c": "d"}}}));
        }
    }

    #[test]
    fn what_is_so_already_is_no_change() {
        let before = json!({"metadata": {"annotations": {"a": "b"}}});
        let (_, operations) = changed(&before, |draft| {
            draft.set(ANNOTATIONS, "a", "b");
            draft.unset(ANNOTATIONS, "c");
            draft.shift(INITS, 1, 1);
            draft.drop_where(INITS, "name", "x");
        });
        assert_eq!(operations, 0);
    }

    #[test]
    fn lists_grow_shrink_and_are_reordered() {
        let before = json!({"spec": {"initContainers": [{"name": "a"}, {"name": "b"}]}});
        let (after, operations) = changed(&before, |draft| {
            draft.insert(INITS, Some(0), json!({"name": "first"}));
            draft.insert(INITS, None, json!({"name": "last"}));
            draft.shift(INITS, 2, 1);
            draft.drop_where(INITS, "name", "a");
        });
        assert_eq!(operations, 4);
        assert_eq!(
            after["spec"]["initContainers"],
            json!([{"name": "first"}, {"name": "b"}, {"name": "last"}])
        );
        let (after, _) = changed(&after, |draft| {
            for name in ["first", "b", "last"] {
                draft.drop_where(INITS, "name", name);
            }
        });
        assert_eq!(after, json!({"spec": {}}), "an empty list is none");
    }
}
