//! A workload that this proxy serves, and what its connections share.

use crate::admission::Admitted;
use crate::capture::{Direction, Kernel, WorkloadName};
use crate::detect::Detected;
use crate::directory::Workload;
use crate::identity::{Certificate, Held};
use crate::limits::Limiter;
use crate::proxy::Shared;
use crate::relay::{RelayError, relay};
use crate::telemetry::{CUT, ConnectionLine, DONE, Failure, Meters, Peer};
use crate::tenancy::{Budgets, Tenancy, Tenant};
use crate::traffic::{Budget, Traffic};
use crate::upstream::{Io, UpstreamError, Upstreams};
use dashmap::DashMap;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a connection waits for what the proxy does not know yet: the first
/// snapshot, the workload's certificate.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lines of AUDIT policies, of one workload in a second; the counter has them all.
const MAX_AUDIT_LINES: u32 = 10;

#[derive(Default)]
struct AuditLines {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

pub(crate) struct Local {
    pub name: WorkloadName,
    pub shared: Arc<Shared>,
    pub kernel: Arc<dyn Kernel>,
    pub upstreams: Upstreams,
    /// What it may have of the process.
    pub tenant: Tenant,
    /// Graceful: what is open may finish.
    pub drain: CancellationToken,
    /// At once.
    pub cancel: CancellationToken,
    pub tasks: TaskTracker,
    identity: watch::Sender<Option<Arc<Held>>>,
    /// What discovery says of it.
    itself: watch::Receiver<Option<Arc<Workload>>>,
    audits: Mutex<AuditLines>,
    /// Of the services, by "namespace/name", that it may retry requests to.
    budgets: DashMap<String, Arc<Budget>>,
    pub limiter: Limiter,
    /// Connections that a failed lookup must not log again and again.
    last_warning: Mutex<Option<Instant>>,
}

/// An opaque connection that is open, until whoever relays it stops, for whatever reason:
/// then its end is counted, and a line is written.
struct Joined<'a> {
    local: &'a Local,
    meters: &'a Meters,
    since: Instant,
    sent: u64,
    received: u64,
    how: &'static str,
    error: Option<RelayError>,
    line: &'a ConnectionLine,
}

impl AuditLines {
    /// Whether one more may be written, and how many before it were not.
    fn next(&mut self, now: Instant) -> Option<u64> {
        let second = Duration::from_secs(1);
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= second)
        {
            self.since = Some(now);
            self.written = 0;
        }
        if self.written == MAX_AUDIT_LINES {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Joined<'_> {
    fn carried(&mut self, sent: u64, received: u64) {
        self.sent += sent;
        self.received += received;
        self.meters.sent.inc_by(sent);
        self.meters.received.inc_by(received);
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.meters.active.dec();
        self.meters.closed(self.how);
        let log = &self.local.shared.log;
        if log.is_on() {
            let (bytes, took) = ((self.sent, self.received), self.since.elapsed());
            let error = self.error.as_ref().map(ToString::to_string);
            let error = error.or_else(|| (self.how == CUT).then(|| CUT.to_owned()));
            log.connection(self.line, bytes, took, error);
        }
    }
}

impl Local {
    pub fn new(name: WorkloadName, kernel: Arc<dyn Kernel>, shared: Arc<Shared>) -> Arc<Self> {
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let tenancy = shared.tenancy.as_ref();
        let tenant = tenancy.map(Tenancy::tenant).unwrap_or_default();
        Arc::new(Self {
            upstreams: Upstreams::new(
                name.clone(),
                shared.connections.clone(),
                kernel.clone(),
                shared.args.connect_timeout,
                cancel.child_token(),
                tasks.clone(),
                tenant.clone(),
            ),
            tenant,
            drain: shared.drain.child_token(),
            tasks,
            identity: watch::Sender::new(None),
            itself: shared.directory.follow(&name),
            audits: Mutex::default(),
            budgets: DashMap::new(),
            limiter: Limiter::default(),
            last_warning: Mutex::default(),
            name,
            shared,
            kernel,
            cancel,
        })
    }

    /// Holds the identity that discovery says the workload has, while it says so.
    pub async fn follow_identity(self: Arc<Self>) {
        let mut version = self.shared.directory.version();
        let mut authorization = None;
        loop {
            let itself = self.itself();
            self.tenant.ask(
                itself
                    .as_ref()
                    .map_or_else(Budgets::default, |it| it.budgets),
            );
            let now = itself.and_then(|itself| itself.authorization.clone());
            if now != authorization {
                let still = |policy: &str| now.as_ref().is_some_and(|now| now.has(policy));
                self.shared.metrics.keep_decisions(&self.name, still);
                authorization = now;
            }
            let wanted = self
                .shared
                .directory
                .workload(&self.name)
                .map(|found| found.identity.clone());
            let held = self
                .identity
                .borrow()
                .as_ref()
                .map(|held| held.identity().clone());
            if wanted != held {
                // Connections made in the old name take no more streams; the key goes
                // with the last of them.
                let new = wanted.map(|wanted| self.shared.identities.hold(&wanted, &self.name));
                if let Some(old) = self.identity.send_replace(new) {
                    old.release(&self.name);
                }
                self.upstreams.clear();
            }
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    pub fn forget_identity(&self) {
        if let Some(held) = self.identity.send_replace(None) {
            held.release(&self.name);
        }
        self.upstreams.clear();
    }

    /// Changes when the workload becomes somebody else.
    pub fn watch_identity(&self) -> watch::Receiver<Option<Arc<Held>>> {
        self.identity.subscribe()
    }

    pub fn identity(&self) -> Option<Arc<Held>> {
        self.identity.borrow().clone()
    }

    /// The workload's certificate, waited for if it is not there yet.
    pub async fn certificate(&self) -> Result<Arc<Certificate>, UpstreamError> {
        if let Some(certificate) = self.identity().and_then(|held| held.certificate()) {
            return Ok(certificate);
        }
        let waited = tokio::time::timeout(PATIENCE, self.ready());
        waited
            .await
            .ok()
            .flatten()
            .ok_or_else(|| UpstreamError::NotReady(format!("the identity of {}", self.name)))
    }

    /// Waits, as long as it takes, for a certificate.
    pub async fn ready(&self) -> Option<Arc<Certificate>> {
        let mut identity = self.identity.subscribe();
        loop {
            let held = identity.borrow_and_update().clone();
            let Some(held) = held else {
                identity.changed().await.ok()?;
                continue;
            };
            // The identity may become another one before this one has a certificate.
            tokio::select! {
                certificate = held.ready() => return certificate,
                changed = identity.changed() => changed.ok()?,
            }
        }
    }

    /// Until the first snapshot nobody knows who is in the mesh, and nothing may
    /// leave in the belief that its destination is not.
    pub async fn discovered(&self) -> Result<(), UpstreamError> {
        let mut version = self.shared.directory.version();
        let known = tokio::time::timeout(PATIENCE, version.wait_for(|version| *version > 0)).await;
        match known {
            Ok(Ok(_)) => Ok(()),
            _ => Err(UpstreamError::NotReady("the mesh".to_owned())),
        }
    }

    /// Waits, within [`PATIENCE`], until discovery has told of this workload.
    pub async fn is_known(&self) {
        let mut itself = self.shared.directory.follow(&self.name);
        let known = itself.wait_for(Option::is_some);
        // Without it the lookup decides as it did.
        let _ = tokio::time::timeout(PATIENCE, known).await;
    }

    /// Waits, within [`PATIENCE`], while discovery knows of the workload and of no
    /// address of it: a new pod is reached, by the kubelet first, as soon as it has
    /// one, and the platform tells of that later.
    pub async fn is_addressed(&self) {
        let is_addressed = |itself: &Option<Arc<Workload>>| {
            itself
                .as_ref()
                .is_none_or(|itself| !itself.addresses.is_empty())
        };
        if is_addressed(&self.itself.borrow()) {
            return;
        }
        let mut itself = self.itself.clone();
        // Without one the connection is not this workload's.
        let _ = tokio::time::timeout(PATIENCE, itself.wait_for(is_addressed)).await;
    }

    /// What discovery says of the workload; `None` if it does not know it.
    pub fn itself(&self) -> Option<Arc<Workload>> {
        self.itself.borrow().clone()
    }

    pub fn watch_itself(&self) -> watch::Receiver<Option<Arc<Workload>>> {
        self.itself.clone()
    }

    /// Tells of an AUDIT policy's match; `asked` is who asked for what.
    pub fn audit(&self, policy: &str, asked: impl FnOnce() -> String) {
        let mut lines = self.audits.lock();
        if let Some(left_out) = lines.next(Instant::now()) {
            drop(lines);
            let asked = asked();
            tracing::info!(target: "duet_core::audit", workload = %self.name, policy, left_out, "{asked}");
        }
    }

    /// For its retries of requests to a service.
    pub fn budget(&self, service: &str, traffic: &Traffic) -> Arc<Budget> {
        if let Some(known) = self.budgets.get(service)
            && traffic.has(&known)
        {
            return known.clone();
        }
        let new = Arc::new(traffic.budget());
        self.budgets.insert(service.to_owned(), new.clone());
        new
    }

    pub fn meters(&self, direction: Direction, peer: Peer) -> Arc<Meters> {
        self.shared.metrics.meters(direction, &self.name, peer)
    }

    pub fn failed(&self, direction: Direction, why: Failure, error: &dyn std::fmt::Display) {
        self.shared.metrics.failed(direction, &self.name, why);
        let log = &self.shared.log;
        log.failed(direction, &self.name, why.as_str(), error);
        let mut last = self.last_warning.lock();
        // One line a second is enough for a person; the counter has them all.
        if last.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
            *last = Some(Instant::now());
            tracing::warn!(workload = %self.name, direction = direction.as_str(), reason = why.as_str(), "{error}");
        }
    }

    /// Opaque bytes between a client and a server, as long as they are `admitted`, and
    /// what is to be told of them. `ends` are the two's addresses.
    pub async fn join(
        &self,
        direction: Direction,
        (client, server): (SocketAddr, SocketAddr),
        peer: Peer,
        mut near: impl Io,
        mut far: impl Io,
        mut admitted: Option<Admitted>,
    ) {
        let meters = self.meters(direction, peer.clone());
        meters.opened.inc();
        meters.active.inc();
        let line = ConnectionLine {
            direction,
            workload: self.name.clone(),
            client,
            server,
            peer,
        };
        let mut joined = Joined {
            local: self,
            meters: &meters,
            since: Instant::now(),
            sent: 0,
            received: 0,
            how: CUT,
            error: None,
            line: &line,
        };
        let carried = |sent, received| joined.carried(sent, received);
        let relayed = relay(&mut near, &mut far, carried, |cx| match &mut admitted {
            Some(admitted) => admitted.poll_revoked(cx),
            None => Poll::Pending,
        })
        .await;
        if let Err(RelayError::Revoked(reason)) = &relayed {
            self.failed(direction, reason.failure(), reason);
        }
        joined.how = relayed.as_ref().err().map_or(DONE, RelayError::as_str);
        joined.error = relayed.err();
    }

    /// What the client speaks. How long that took to find out is counted.
    pub async fn detect<S: Io>(
        &self,
        stream: S,
        hint: Option<crate::detect::Protocol>,
        direction: Direction,
    ) -> std::io::Result<Detected<S>> {
        let began = Instant::now();
        let detected = crate::detect::detect(stream, hint, self.shared.args.detect_timeout).await?;
        let metrics = &self.shared.metrics;
        if hint.is_none() {
            metrics.detected(direction, &self.name, detected.protocol, began.elapsed());
        }
        if detected.timed_out {
            metrics.detection_timed_out(direction, &self.name);
        }
        Ok(detected)
    }
}
