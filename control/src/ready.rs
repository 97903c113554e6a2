//! What keeps duet-control from being ready, by name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// A set of named things that are missing, and of those that are merely wrong.
/// Clones share it.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Lists>>);

#[derive(Default)]
struct Lists {
    missing: BTreeMap<&'static str, String>,
    wrong: BTreeMap<&'static str, String>,
}

// === impl Readiness ===

impl Readiness {
    /// Not ready until `what` is [`Self::is_well`]; `why` in one line.
    pub fn is_missing(&self, what: &'static str, why: impl Into<String>) {
        self.lists(|lists| lists.missing.insert(what, why.into()));
    }

    /// Told on /ready, which goes on to say that it is: what was served so far still
    /// is, and another replica would do no better.
    pub fn is_wrong(&self, what: &'static str, why: impl Into<String>) {
        self.lists(|lists| {
            lists.missing.remove(what);
            lists.wrong.insert(what, why.into())
        });
    }

    pub fn is_well(&self, what: &'static str) {
        self.lists(|lists| {
            lists.missing.remove(what);
            lists.wrong.remove(what)
        });
    }

    /// Whether it is ready, and the page that says so or why not.
    pub fn page(&self) -> (bool, String) {
        self.lists(|lists| {
            let ready = lists.missing.is_empty();
            let mut page = if ready { "ready\n" } else { "not ready\n" }.to_owned();
            for (what, why) in lists.missing.iter().chain(&lists.wrong) {
                let _ = writeln!(page, "{what}: {why}");
            }
            (ready, page)
        })
    }

    fn lists<T>(&self, act: impl FnOnce(&mut Lists) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_waits_for_and_what_is_wrong() {
        let readiness = Readiness::default();
        assert_eq!(readiness.page(), (true, "ready\n".to_owned()));
        readiness.is_missing("pods", "not listed yet");
        readiness.is_wrong("routes", "may not be watched");
        let expected = "not ready\npods: not listed yet\nroutes: may not be watched\n";
        assert_eq!(readiness.page(), (false, expected.to_owned()));
        readiness.is_well("pods");
        let (ready, page) = readiness.page();
        assert!(ready);
        assert_eq!(page, "ready\nroutes: may not be watched\n");
        readiness.is_well("routes");
        assert_eq!(readiness.page().1, "ready\n");
    }
}
