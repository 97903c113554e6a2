//! Enrols the pods that discovery gives to this node's agent, and lets go of those
//! that it takes away.
//!
//! Discovery may tell of a pod before the node has begun with it, so a pod without
//! a sandbox is looked for every [`EAGER`] at first: what it sends before it is found
//! leaves as if there were no mesh, and nobody can count it afterwards.
//!
//! # Readiness
//!
//! A DaemonSet's rollout takes the next node's agent down once this one is ready. So
//! /ready waits for what a new agent owes the pods that it finds: for each of them
//! one honest attempt, and [`START_WITHIN`] for those that take longer. Afterwards no
//! pod makes the agent unready, because no other agent would do better: one pod whose
//! sandbox never comes up would stop the rollout on its node, with the fix in it, and
//! a pod that is unready for being unenrolled says so itself, in its own condition.
//! What is left over is in `duet_agent_workloads`. But an agent that cannot look for
//! pods at all, for want of a capability, is unready: let it be the last of its kind.

use crate::enrolment::{Awaited, Enrolment, EnrolmentError, Reason, SWEEP, Standing, State};
use crate::report::{Report, Reports};
use crate::sandbox::{self, Sandbox, Unfound};
use duet_core::{Placed, Proxy, ReadyGuard, WorkloadName};
use prometheus::{Histogram, HistogramOpts, IntCounter};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How often a pod is looked for that was told of lately.
pub const EAGER: Duration = Duration::from_millis(20);

/// How long that is. Sandboxes are made within seconds, or something is amiss.
pub const EAGER_FOR: Duration = Duration::from_secs(30);

/// How often it is looked for later on. When the platform comes to know more of it,
/// that is told by discovery, and it is looked for at once.
const PATIENT: Duration = Duration::from_secs(1);

/// Looking takes at most this share of one core: with so many processes that it is
/// more, it is done less often...
const SHARE: u32 = 10;

/// ...but not less often than this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A pod that takes no longer is not worth a word.
const REMARKABLE: Duration = Duration::from_secs(3);

/// How long /ready waits for pods that are there when the agent starts.
pub const START_WITHIN: Duration = Duration::from_secs(10);

/// Names in one line of /ready.
const NAMED: usize = 5;

/// From what is hardly noticed to a client's patience, and what happens to a pod that
/// an absent agent has missed.
const GAP_BUCKETS: [f64; 14] = [
    0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 60.0,
];

pub struct Reconciler {
    enrolment: Arc<Enrolment>,
    proxy: Proxy,
    reports: Reports,
    pending: BTreeMap<WorkloadName, Pending>,
    /// The processor's time that the last look at all processes took.
    cost: Duration,
    start: Start,
    /// While pods cannot be looked for.
    blind: Option<ReadyGuard>,
    gap: Histogram,
    late: IntCounter,
}

/// A pod that is not enrolled.
struct Pending {
    pod: Placed,
    since: Instant,
    due: Instant,
    reason: Reason,
    why: String,
    is_logged: bool,
}

/// The agent's own beginning.
enum Start {
    /// The pods that were there have this long.
    Until {
        end: Instant,
        _ready: ReadyGuard,
    },
    Over,
}

// === impl Reconciler ===

impl Reconciler {
    pub fn new(enrolment: Arc<Enrolment>, proxy: Proxy) -> Result<Self, prometheus::Error> {
        let gap = Histogram::with_opts(
            HistogramOpts::new(
                "duet_agent_enrolment_gap_seconds",
                "From the start of a pod's first process, its sandbox, to the moment at which its \
                 connections are redirected, for pods that this agent was running before and that \
                 no agent had enrolled. Connections that a pod makes in that time go around the \
                 mesh, and are not counted anywhere.",
            )
            .buckets(GAP_BUCKETS.to_vec()),
        )?;
        let late = IntCounter::new(
            "duet_agent_late_enrolments_total",
            "Pods that ran before this agent did and had not been enrolled: until then their \
             connections went around the mesh.",
        )?;
        proxy.registry().register(Box::new(gap.clone()))?;
        proxy.registry().register(Box::new(late.clone()))?;
        let guard = proxy.not_ready_until("pods: none has been looked for yet");
        Ok(Self {
            reports: Reports::new(proxy.clone())?,
            enrolment,
            proxy,
            pending: BTreeMap::new(),
            cost: Duration::ZERO,
            // Of discovery's absence /ready tells in its own words.
            start: Start::Until {
                end: Instant::now() + START_WITHIN,
                _ready: guard,
            },
            blind: None,
            gap,
            late,
        })
    }

    /// For as long as the agent takes new connections.
    pub async fn run(mut self) {
        let mut discovered = self.proxy.discovered();
        if discovered.wait_for(|version| *version > 0).await.is_err() {
            return;
        }
        if let Start::Until { end, .. } = &mut self.start {
            *end = Instant::now() + START_WITHIN;
        }
        loop {
            discovered.mark_unchanged();
            let next = self.round().await;
            self.wait(&mut discovered, next).await;
        }
    }

    async fn wait(&self, discovered: &mut watch::Receiver<u64>, next: Instant) {
        let pause = (self.cost * SHARE).min(LONGEST_PAUSE);
        let rested = Instant::now() + pause;
        tokio::select! {
            () = sleep_until(next) => {}
            _ = discovered.changed() => {}
            () = self.enrolment.certified() => {}
        }
        sleep_until(rested).await;
    }

    /// One comparison of what is with what should be. Returns when the next is due.
    async fn round(&mut self) -> Instant {
        let placed: BTreeMap<WorkloadName, Placed> = self
            .proxy
            .placed_here()
            .into_iter()
            .filter(|pod| !pod.uid.is_empty())
            .map(|pod| (pod.name.clone(), pod))
            .collect();
        let unsettled = self.enrolment.settle(&placed).await;
        self.note(unsettled);
        self.look_for_due().await;
        let waited_for = self.tell(&placed).await;
        self.begin(&waited_for);
        self.enrolment.await_pods(waited_for).await;
        let due = self.pending.values().map(|one| one.due);
        let sweep = Instant::now() + SWEEP;
        due.fold(sweep, Instant::min)
    }

    /// Takes notice of what is not as it should be.
    fn note(&mut self, unsettled: Vec<Placed>) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.pending);
        for pod in unsettled {
            let known = before.remove(&pod.name);
            let pending = match known.filter(|known| known.pod.uid == pod.uid) {
                Some(known) if known.pod.addresses == pod.addresses => known,
                // More is known of it: worth another look.
                Some(known) => Pending {
                    pod,
                    due: now,
                    ..known
                },
                None => Pending {
                    pod,
                    since: now,
                    due: now,
                    reason: Reason::NoProcess,
                    why: Unfound::NoProcess.to_string(),
                    is_logged: false,
                },
            };
            self.pending.insert(pending.pod.name.clone(), pending);
        }
    }

    async fn look_for_due(&mut self) {
        let now = Instant::now();
        let due = self.pending.values().filter(|one| one.due <= now);
        let due: Vec<Placed> = due.map(|one| one.pod.clone()).collect();
        if due.is_empty() {
            return;
        }
        let interception = self.enrolment.interception().clone();
        let pods = due.clone();
        let look = move || {
            let began = sandbox::thread_time();
            let found = sandbox::find(&pods, &interception.cgroup());
            (found, sandbox::thread_time().saturating_sub(began))
        };
        // Not on a thread that connections are waiting for.
        let looked = match tokio::task::spawn_blocking(look).await {
            Ok((found, cost)) => {
                self.cost = cost;
                found.map_err(|error| error.to_string())
            }
            Err(panic) => Err(panic.to_string()),
        };
        let mut found = match looked {
            Ok(found) => {
                self.blind = None;
                found
            }
            Err(why) => {
                let guard = || self.proxy.not_ready_until(format!("pods: {why}"));
                self.blind.get_or_insert_with(guard);
                return self.put_off_all(&due, &why).await;
            }
        };
        for pod in due {
            match found.remove(&pod.uid).unwrap_or(Err(Unfound::NoProcess)) {
                Ok(sandbox) => self.enrol(&pod, sandbox).await,
                Err(why) => {
                    self.put_off(&pod, Reason::from(&why), why.to_string())
                        .await
                }
            }
        }
    }

    async fn enrol(&mut self, pod: &Placed, sandbox: Sandbox) {
        let Sandbox { netns, started } = sandbox;
        let ready = match self.start {
            Start::Until { .. } => Some(self.enrolment.ready_guard(&pod.name)),
            Start::Over => None,
        };
        match self.enrolment.enrol_pod(pod, netns, ready).await {
            Ok(is_new) => {
                self.pending.remove(&pod.name);
                if is_new {
                    self.measure(pod, started);
                }
            }
            // Whoever takes over says how it stands.
            Err(EnrolmentError::HandingOver) => {
                if let Some(pending) = self.pending.get_mut(&pod.name) {
                    pending.due = Instant::now() + SWEEP;
                }
            }
            Err(error) => {
                self.put_off(pod, Reason::from(&error), error.to_string())
                    .await
            }
        }
    }

    /// For how long the pod has been outside the mesh.
    fn measure(&self, pod: &Placed, started: Duration) {
        let gap = sandbox::since_boot().saturating_sub(started);
        if sandbox::own_start().is_some_and(|own| started < own) {
            self.late.inc();
            tracing::info!(workload = %pod.name, ?gap, "it ran before this agent did");
        } else {
            self.gap.observe(gap.as_secs_f64());
            tracing::debug!(workload = %pod.name, ?gap, "from its start to its enrolment");
        }
    }

    async fn put_off_all(&mut self, pods: &[Placed], why: &str) {
        for pod in pods {
            self.put_off(pod, Reason::Unseen, why.to_owned()).await;
        }
    }

    async fn put_off(&mut self, pod: &Placed, reason: Reason, why: String) {
        let state = reason.state();
        let is_redirected = self.enrolment.standing(&pod.name).await != Standing::Not;
        let Some(pending) = self.pending.get_mut(&pod.name) else {
            return;
        };
        let now = Instant::now();
        let age = now - pending.since;
        pending.due = now
            + match state {
                State::Pending if is_redirected => SWEEP,
                State::Pending if age < EAGER_FOR => EAGER,
                State::Pending => PATIENT,
                _ => SWEEP,
            };
        let is_news = !pending.is_logged || pending.why != why;
        if is_news && (state != State::Pending || age >= REMARKABLE) {
            tracing::warn!(workload = %pod.name, state = state.as_str(), why, "not enrolled");
            pending.is_logged = true;
        }
        pending.reason = reason;
        pending.why = why;
    }

    /// Reports how each pod stands. Returns those that are not enrolled.
    async fn tell(&mut self, placed: &BTreeMap<WorkloadName, Placed>) -> Awaited {
        self.reports.only(placed);
        let mut waited_for = BTreeMap::new();
        for (name, pod) in placed {
            let (state, why, age) = match self.enrolment.standing(name).await {
                Standing::Served => (State::Enrolled, String::new(), Duration::ZERO),
                Standing::Uncertified { for_so_long } => {
                    let why = "it has no certificate yet".to_owned();
                    (State::Pending, why, for_so_long)
                }
                Standing::Not => match self.pending.get(name) {
                    Some(pending) => {
                        let why = pending.why.clone();
                        waited_for.insert(name.clone(), (pending.reason, why.clone()));
                        (pending.reason.state(), why, pending.since.elapsed())
                    }
                    None => continue,
                },
            };
            // What will be otherwise in a moment is not worth two changes of a pod.
            if state != State::Pending || age >= REMARKABLE {
                let uid = pod.uid.clone();
                self.reports.say(pod, Report { uid, state, why });
            }
        }
        waited_for
    }

    /// Keeps /ready's word about the agent's beginning.
    fn begin(&mut self, waited_for: &Awaited) {
        let Start::Until { end, .. } = self.start else {
            return;
        };
        self.start = if waited_for.is_empty() || end <= Instant::now() {
            Start::Over
        } else {
            let named = waited_for.iter().take(NAMED);
            let named: Vec<String> = named
                .map(|(name, (_, why))| format!("{name} ({why})"))
                .collect();
            let more = waited_for.len().saturating_sub(NAMED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let what = format!("pods not enrolled yet: {}{more}", named.join(", "));
            let _ready = self.proxy.not_ready_until(what);
            Start::Until { end, _ready }
        };
    }
}
