//! How one CA becomes another without a failed handshake.
//!
//! ```text
//!   supplied ≠ signing          overlap            longest leaf + slack
//! ──────────┬─────────────────────┬───────────────────────┬────────────
//! bundle    │ old, new            │ new, old              │ new
//! signs     │ old                 │ new                   │ new
//! ```
//!
//! Proxies are told of the new root as soon as a replica sees it. The overlap is
//! counted from when it has also been written to every namespace's ConfigMap: only
//! the kubelets, which bring that into pods, are slow. The order of the bundle tells
//! proxies which root is signed with, and that it is time to have their certificates
//! renewed. The old root is trusted until the last leaf below it has ended.
//!
//! Here is only what follows from what; [`super::keeper`] does it.

use super::secret::{Change, Keeper, Published, Retired, Stored};
use crate::ca::{Authority, Issuer, fingerprint};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Default of `--root-overlap`. A kubelet brings a changed ConfigMap into its pods
/// within two minutes, with its defaults (a sync each minute, a cache of another); a
/// proxy hears of the root at once, or within 5 s of when it can reach duet-control
/// again. Five times the slower of the two is for clusters under load.
pub const OVERLAP: Duration = Duration::from_secs(10 * 60);
/// Added to the lives of leaves before their root goes: for clocks that differ, and
/// for a replica that learns late that another root signs.
pub const SLACK: Duration = Duration::from_secs(10 * 60);
/// A root of our own making is replaced after this share of its life.
const RENEW_AT: f64 = 0.8;

/// How the CA is looked after.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of workload certificates.
    pub cert_lifetime: Duration,
    pub overlap: Duration,
    pub slack: Duration,
    /// Of roots that duet-control makes.
    pub root_lifetime: Duration,
    /// Label selector of the namespaces that get the trust bundle; `None`: every one.
    /// For meshes that share a cluster.
    pub namespaces: Option<String>,
}

/// What a replica goes by: the last good word of the Secret.
#[derive(Clone, Debug)]
pub struct Held {
    pub signing: Arc<Issuer>,
    /// What is to sign next.
    pub incoming: Option<Arc<Issuer>>,
    pub retired: Vec<Retired>,
    pub keeper: Keeper,
}

/// What the leader does next.
#[derive(Debug)]
pub enum Step {
    /// Nothing; at that time it may be something else.
    Wait(Option<SystemTime>),
    /// There is no Secret, and never was one.
    Create,
    /// The Secret is gone.
    Restore(Change),
    /// A root of our own making comes to its end.
    Renew,
    /// Nothing can be signed any more: another root at once.
    Replace,
    Write(Did, Change),
}

/// What a change is, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Note,
    Publish,
    Switch,
    Drop,
}

// === impl Held ===

impl Held {
    /// What `stored` says, and where it says nothing usable, what `before` held.
    pub fn from(stored: &Stored, before: Option<&Self>, now: SystemTime) -> Option<Self> {
        let is_good = |issuer: &Arc<Issuer>| SystemTime::from(issuer.not_after()) > now;
        let before = before.filter(|before| is_good(&before.signing));
        let noted = match &stored.signing {
            Some(Ok(signing)) => Some(signing),
            _ => None,
        };
        let signing = noted
            .or(before.map(|before| &before.signing))
            .or(stored.supplied.as_ref().ok())?
            .clone();
        let incoming = match &stored.supplied {
            Ok(supplied) => Some(supplied.clone()),
            Err(_) => before.and_then(|before| before.incoming.clone()),
        };
        // A Secret that does not say who signs says nothing of the past either.
        let retired = match (noted, before) {
            (None, Some(before)) => before.retired.clone(),
            _ => stored.retired.clone(),
        };
        Some(Self {
            incoming: incoming.filter(|incoming| !incoming.is(&signing) && is_good(incoming)),
            signing,
            retired,
            keeper: stored.keeper.clone(),
        })
    }

    /// Whom everybody is told to trust, and who signs.
    pub fn authority(&self) -> Authority {
        let incoming = self.incoming.iter();
        let roots = incoming
            .flat_map(|incoming| std::iter::once(incoming.root()).chain(incoming.others()))
            .chain(self.signing.others())
            .chain(self.retired.iter().map(|retired| &retired.root));
        Authority::new(self.signing.clone(), roots.cloned())
    }

    fn restored(&self, settings: &Settings) -> Change {
        Change {
            supplied: Some(self.incoming.as_ref().unwrap_or(&self.signing).clone()),
            made_here: self.keeper == Keeper::Ourselves,
            signing: Some(self.signing.clone()),
            retired: Some(self.retired.clone()),
            leaf_lifetime: Some(settings.cert_lifetime),
            ..Change::default()
        }
    }
}

// === impl Step ===

impl Step {
    /// `stored` is what the Secret says, `None` if there is none; `is_published` whether
    /// the bundle of `held` has come to every namespace.
    pub fn next(
        held: Option<&Held>,
        stored: Option<&Stored>,
        is_published: bool,
        settings: &Settings,
        now: SystemTime,
    ) -> Self {
        let (held, stored) = match (held, stored) {
            (None, None) => return Self::Create,
            (Some(held), None) => return Self::Restore(held.restored(settings)),
            (None, Some(stored)) if stored.ended && stored.keeper == Keeper::Ourselves => {
                return Self::Replace;
            }
            (None, Some(_)) => return Self::Wait(None),
            (Some(held), Some(stored)) => (held, stored),
        };

        let is_noted = matches!(&stored.signing, Some(Ok(signing)) if signing.is(&held.signing));
        let leaf_lifetime = stored.leaf_lifetime.unwrap_or_default();
        if !is_noted || leaf_lifetime < settings.cert_lifetime || !stored.ends_noted {
            let change = Change {
                signing: Some(held.signing.clone()),
                retired: Some(held.retired.clone()),
                leaf_lifetime: Some(leaf_lifetime.max(settings.cert_lifetime)),
                ..Change::default()
            };
            return Self::Write(Did::Note, change);
        }
        let left: Vec<_> = held
            .retired
            .iter()
            .filter(|retired| retired.until > now)
            .cloned()
            .collect();
        if left.len() < held.retired.len() {
            let change = Change {
                retired: Some(left),
                ..Change::default()
            };
            return Self::Write(Did::Drop, change);
        }
        let drops = left.iter().map(|retired| retired.until).min();
        let wait = |until: Option<SystemTime>| Self::Wait(until.into_iter().chain(drops).min());

        // What is not supplied any more, or cannot be read, is not told by every
        // replica: should it come back, its overlap begins anew.
        let incoming = held.incoming.as_ref().filter(|_| stored.supplied.is_ok());
        let incoming = incoming.map(|incoming| fingerprint(incoming.root()));
        let published = stored.published.as_ref();
        if published.is_some_and(|noted| incoming.as_ref() != Some(&noted.root)) {
            let change = Change {
                published: Some(None),
                ..Change::default()
            };
            return Self::Write(Did::Note, change);
        }
        let Ok(supplied) = &stored.supplied else {
            return wait(None);
        };
        if held.incoming.is_none() {
            if stored.keeper != Keeper::Ourselves {
                return wait(None);
            }
            let begin = SystemTime::from(supplied.not_before());
            let end = SystemTime::from(supplied.not_after());
            let life = end.duration_since(begin).unwrap_or_default();
            let due = begin + life.mul_f64(RENEW_AT);
            return if due <= now {
                Self::Renew
            } else {
                wait(Some(due))
            };
        }
        if supplied.root() == held.signing.root() {
            return Self::Write(Did::Switch, switch(held, supplied, stored, settings, now));
        }
        let root = fingerprint(supplied.root());
        // A time that is yet to come was noted by a clock that was wrong.
        let since = stored
            .published
            .as_ref()
            .filter(|noted| noted.root == root && noted.at <= now + settings.slack)
            .map(|noted| noted.at);
        match since {
            None if is_published => {
                let change = Change {
                    published: Some(Some(Published { root, at: now })),
                    ..Change::default()
                };
                Self::Write(Did::Publish, change)
            }
            None => wait(None),
            Some(at) if at + settings.overlap <= now => {
                Self::Write(Did::Switch, switch(held, supplied, stored, settings, now))
            }
            Some(at) => wait(Some(at + settings.overlap)),
        }
    }
}

fn switch(
    held: &Held,
    supplied: &Arc<Issuer>,
    stored: &Stored,
    settings: &Settings,
    now: SystemTime,
) -> Change {
    let mut retired: Vec<_> = held
        .retired
        .iter()
        .filter(|retired| retired.root != *supplied.root())
        .cloned()
        .collect();
    let lives = stored
        .leaf_lifetime
        .unwrap_or_default()
        .max(settings.cert_lifetime);
    let same_root = supplied.root() == held.signing.root();
    if !same_root {
        // No leaf outlives what it was signed with.
        let end = SystemTime::from(held.signing.not_after());
        retired.retain(|one| one.root != *held.signing.root());
        retired.push(Retired {
            root: held.signing.root().clone(),
            until: (now + lives).min(end) + settings.slack,
        });
    }
    Change {
        signing: Some(supplied.clone()),
        retired: Some(retired),
        published: Some(None),
        leaf_lifetime: Some(if same_root {
            lives
        } else {
            settings.cert_lifetime
        }),
        ..Change::default()
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "what signs now is noted in the Secret",
            Self::Publish => "a new root has come to every namespace",
            Self::Switch => "another CA signs from now on",
            Self::Drop => "a retired root is trusted no more",
        })
    }
}

#[cfg(test)]
mod tests;
