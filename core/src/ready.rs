//! Readiness: a set of named things that are still missing.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Missing>>);

#[derive(Default)]
struct Missing {
    next: u64,
    what: BTreeMap<u64, String>,
    draining: bool,
}

/// Something that /ready waits for. Dropping it says that it is there.
#[must_use = "dropping it says that what it stands for is ready"]
pub struct ReadyGuard {
    readiness: Readiness,
    key: u64,
}

impl Readiness {
    pub fn not_until(&self, what: impl Into<String>) -> ReadyGuard {
        let mut missing = self.0.lock();
        missing.next += 1;
        let key = missing.next;
        missing.what.insert(key, what.into());
        drop(missing);
        ReadyGuard {
            readiness: self.clone(),
            key,
        }
    }

    pub fn drain(&self) {
        self.0.lock().draining = true;
    }

    /// What is missing; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.0.lock();
        let draining = missing.draining.then(|| "draining".to_owned());
        missing.what.values().cloned().chain(draining).collect()
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.readiness.0.lock().what.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let readiness = Readiness::default();
        let identity = readiness.not_until("identity of default/web");
        let discovery = readiness.not_until("discovery");
        assert_eq!(
            readiness.missing(),
            ["identity of default/web", "discovery"]
        );
        drop(identity);
        assert_eq!(readiness.missing(), ["discovery"]);
        drop(discovery);
        assert!(readiness.missing().is_empty());
        readiness.drain();
        assert_eq!(readiness.missing(), ["draining"]);
    }
}
