//! Readiness: a set of named things that are still missing.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Missing>>, Arc<Notify>);

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

    /// Waits until the next time that nothing is missing any more. One waits.
    pub async fn becomes_ready(&self) {
        self.1.notified().await;
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
        let mut missing = self.readiness.0.lock();
        missing.what.remove(&self.key);
        if missing.what.is_empty() {
            self.readiness.1.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn it_is_told_when_nothing_is_missing_any_more() {
        let readiness = Readiness::default();
        let told = || tokio::time::timeout(Duration::from_secs(1), readiness.becomes_ready());
        for _ in 0..2 {
            let identity = readiness.not_until("identity of default/web");
            drop(readiness.not_until("discovery"));
            assert!(told().await.is_err());
            drop(identity);
            assert!(told().await.is_ok(), "also if it was so before");
        }
    }

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
