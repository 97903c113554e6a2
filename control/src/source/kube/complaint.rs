//! What an object says that cannot be meant.

use tracing::warn;

/// One line each: what is wrong, and what to write instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Complaints(Box<[Box<str>]>);

// === impl Complaints ===

impl Complaints {
    pub fn add(&mut self, complaint: String) {
        let mut all = std::mem::take(&mut self.0).into_vec();
        all.push(complaint.into());
        self.0 = all.into();
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Logs what was not already said of this object.
    pub fn tell(&self, object: &str, name: &str, before: Option<&Self>) {
        for complaint in &self.0 {
            if before.is_none_or(|before| !before.0.contains(complaint)) {
                warn!("{object} {name}: {complaint}");
            }
        }
    }
}
