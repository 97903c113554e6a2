//! Follows the CA's Secret, and, as the leader, takes care of it.

use super::bundles::Reached;
use super::rotation::{Did, Held, Settings, Step};
use super::secret::{Change, SECRET, Stored, rfc3339};
use super::{READY, Trust, TrustMetrics};
use crate::ca::{Authority, CaError, Issuer, NewRoot};
use crate::leader::Leader;
use crate::ready::Readiness;
use crate::source::kube::Trouble;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

/// The Secret is looked at again after this time at the latest: what was wrong with a
/// CA may have been the clock, and a wall clock may jump.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After a write that failed; doubled up to [`LOOK_AGAIN`].
const RETRY: Duration = Duration::from_secs(1);
/// A namespace that takes no ConfigMap keeps a rotation waiting for this long.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5 * 60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Keeper {
    api: Api<Secret>,
    settings: Settings,
    leader: Leader,
    tells: Tells,
    /// `None` until there is a CA.
    authorities: Option<watch::Sender<Arc<Authority>>>,
    seen: Seen,
    held: Option<Held>,
    /// What was wrong with the Secret when that was last said.
    problem: Option<String>,
    /// Since when the bundle in force has been waiting for namespaces.
    unreached: Option<Instant>,
}

/// Who hears of it, and of whom it hears.
pub(super) struct Tells {
    /// When there is a CA.
    pub first: Option<oneshot::Sender<Trust>>,
    pub reached: watch::Receiver<Reached>,
    pub metrics: TrustMetrics,
    pub readiness: Readiness,
}

enum Seen {
    NotYet,
    Absent,
    Present(Box<Secret>),
}

// === impl Keeper ===

impl Keeper {
    pub fn new(
        client: Client,
        namespace: &str,
        settings: Settings,
        leader: Leader,
        tells: Tells,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            settings,
            leader,
            tells,
            authorities: None,
            seen: Seen::NotYet,
            held: None,
            problem: None,
            unreached: None,
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut secrets = pin!(watch_object(self.api.clone(), SECRET).default_backoff());
        let mut retry = RETRY;
        loop {
            let wait = match self.look().await {
                Ok(wait) => {
                    retry = RETRY;
                    wait.min(LOOK_AGAIN)
                }
                Err(problem) => {
                    let line = format!("Secret {SECRET}: {problem}");
                    if self.held.is_none() {
                        self.tells.readiness.is_missing(READY, &line);
                    }
                    warn!("{line}");
                    retry = (retry * 2).min(LOOK_AGAIN);
                    retry / 2
                }
            };
            tokio::select! {
                event = secrets.next() => match event {
                    Some(Ok(Some(secret))) => self.seen = Seen::Present(Box::new(secret)),
                    Some(Ok(None)) => self.seen = Seen::Absent,
                    Some(Err(error)) => {
                        let trouble = Trouble::of_watch("secrets", &error);
                        let line = format!("Secret {SECRET}: {}", trouble.message());
                        if matches!(self.seen, Seen::NotYet) {
                            self.tells.readiness.is_missing(READY, &line);
                        }
                        warn!("{line}");
                    }
                    None => return,
                },
                () = self.leader.elected(), if !self.leader.is_leader() => {}
                changed = self.tells.reached.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Goes by what was seen last, and takes the next step if this replica leads.
    /// Returns how long nothing needs to be done.
    async fn look(&mut self) -> Result<Duration, String> {
        let now = SystemTime::now();
        let longest = self.settings.cert_lifetime + self.settings.slack;
        let stored = match &self.seen {
            Seen::NotYet => return Ok(LOOK_AGAIN),
            Seen::Absent => None,
            Seen::Present(secret) => Some(Stored::read(secret, now, longest)),
        };
        self.hold(stored.as_ref(), now);
        if !self.leader.is_leader() {
            return Ok(LOOK_AGAIN);
        }
        let published = self.is_published();
        let held = self.held.as_ref();
        let step = Step::next(held, stored.as_ref(), published, &self.settings, now);
        let (change, what) = match step {
            Step::Wait(None) => return Ok(LOOK_AGAIN),
            Step::Wait(Some(until)) => {
                return Ok(until.duration_since(now).unwrap_or_default());
            }
            Step::Create => {
                let change = self.new_root(true).map_err(|error| error.to_string())?;
                return self.create(&change, "the mesh has a new root").await;
            }
            Step::Restore(change) => {
                return self
                    .create(&change, "it was deleted, and is there again")
                    .await;
            }
            Step::Renew => {
                let change = self.new_root(false).map_err(|error| error.to_string())?;
                (change, "a new root is to follow the present one".to_owned())
            }
            Step::Replace => {
                let change = self.new_root(true).map_err(|error| error.to_string())?;
                (
                    change,
                    "the root had ended; the mesh has a new one".to_owned(),
                )
            }
            Step::Write(did, change) => {
                let missing = self.tells.reached.borrow().missing;
                if did == Did::Publish && missing > 0 {
                    warn!(
                        missing,
                        "namespaces without the new trust bundle for {UNREACHABLE_AFTER:?}: the \
                         rotation goes on without them"
                    );
                }
                (change, did.to_string())
            }
        };
        let Some(stored) = stored else {
            return Ok(LOOK_AGAIN);
        };
        self.write(&change, &stored, &what).await
    }

    /// Takes what the Secret says for what is in force, and says what is wrong with it.
    fn hold(&mut self, stored: Option<&Stored>, now: SystemTime) {
        let held = match stored {
            Some(stored) => Held::from(stored, self.held.as_ref(), now),
            None => self.held.clone(),
        };
        let problem = match stored {
            None if held.is_none() => {
                let waiting = format!("there is no Secret {SECRET}, and no leader has made it yet");
                self.tells.readiness.is_missing(READY, waiting);
                return;
            }
            None => Some("it is gone".to_owned()),
            Some(Stored {
                supplied: Err(problem),
                ..
            })
            | Some(Stored {
                signing: Some(Err(problem)),
                ..
            }) => Some(problem.clone()),
            Some(_) => None,
        };
        let line = problem.map(|problem| match &held {
            Some(_) => format!("Secret {SECRET}: {problem}; the last good CA stays in force"),
            None => format!(
                "Secret {SECRET}: {problem}; nothing can be signed: put a CA into tls.crt and \
                 tls.key, or delete the Secret to have one made"
            ),
        });
        match (&line, &held) {
            (None, _) => self.tells.readiness.is_well(READY),
            (Some(line), Some(_)) => self.tells.readiness.is_wrong(READY, line),
            (Some(line), None) => self.tells.readiness.is_missing(READY, line),
        }
        match &line {
            Some(line) if self.problem.as_ref() != Some(line) => error!("{line}"),
            None if self.problem.is_some() => info!("Secret {SECRET} is good again"),
            _ => {}
        }
        self.tells
            .metrics
            .secret_good
            .set(i64::from(line.is_none()));
        self.problem = line;
        self.held = held;

        let Some(held) = &self.held else { return };
        let new = Arc::new(held.authority());
        let changed = match &self.authorities {
            Some(authorities) => authorities.send_if_modified(|current| {
                let same = current.bundle() == new.bundle() && current.issuer().is(new.issuer());
                if !same {
                    *current = new;
                }
                !same
            }),
            None => {
                let (authorities, receiver) = watch::channel(new);
                self.authorities = Some(authorities);
                if let Some(first) = self.tells.first.take() {
                    let _ = first.send(Trust::following(receiver));
                }
                true
            }
        };
        if changed {
            self.unreached = None;
            self.tells.metrics.in_force(held);
            info!(
                root = crate::ca::fingerprint(held.signing.root()),
                ends = rfc3339(held.signing.not_after().into()),
                next = held
                    .incoming
                    .as_ref()
                    .map(|next| crate::ca::fingerprint(next.root())),
                retired = held.retired.len(),
                "CA in force"
            );
        }
    }

    /// Whether the bundle in force has come to every namespace that takes it.
    fn is_published(&mut self) -> bool {
        let Some(authorities) = &self.authorities else {
            return false;
        };
        let bundle = authorities.borrow().bundle_pem();
        let reached = self.tells.reached.borrow();
        if reached.bundle == bundle && reached.missing == 0 {
            self.unreached = None;
            return true;
        }
        let since = *self.unreached.get_or_insert_with(Instant::now);
        // One namespace's quota must not cost the mesh its CA.
        since.elapsed() > UNREACHABLE_AFTER && reached.bundle == bundle
    }

    fn new_root(&self, signs_at_once: bool) -> Result<Change, CaError> {
        let root = NewRoot::valid_for(self.settings.root_lifetime)?;
        let issuer = Issuer::from_pem(&root.certificate, &root.key, &root.certificate)?;
        let issuer = Arc::new(issuer);
        Ok(Change {
            supplied: Some(issuer.clone()),
            made_here: true,
            signing: signs_at_once.then_some(issuer),
            leaf_lifetime: signs_at_once.then_some(self.settings.cert_lifetime),
            ..Change::default()
        })
    }

    async fn create(&mut self, change: &Change, what: &str) -> Result<Duration, String> {
        let (parameters, secret) = (PostParams::default(), change.secret());
        let written = self.api.create(&parameters, &secret);
        self.done(tokio::time::timeout(REQUEST_TIMEOUT, written).await, what)
    }

    async fn write(
        &mut self,
        change: &Change,
        over: &Stored,
        what: &str,
    ) -> Result<Duration, String> {
        let patch = Patch::Merge(change.patch(over));
        let parameters = PatchParams::default();
        let written = self.api.patch(SECRET, &parameters, &patch);
        self.done(tokio::time::timeout(REQUEST_TIMEOUT, written).await, what)
    }

    fn done(
        &mut self,
        outcome: Result<kube::Result<Secret>, tokio::time::error::Elapsed>,
        what: &str,
    ) -> Result<Duration, String> {
        match outcome {
            Ok(Ok(secret)) => {
                info!("Secret {SECRET}: {what}");
                self.seen = Seen::Present(Box::new(secret));
                Ok(Duration::ZERO)
            }
            // Somebody else wrote: the watch brings what.
            Ok(Err(kube::Error::Api(status)))
                if status.is_conflict() || status.is_already_exists() =>
            {
                Ok(RETRY)
            }
            Ok(Err(error)) => Err(Trouble::of("write", "secrets", &error).message().to_owned()),
            Err(_) => Err(format!("no answer in {REQUEST_TIMEOUT:?}")),
        }
    }
}
