//! Tells duet-control how this agent's pods stand, until it has taken that in.
//!
//! With Kubernetes it keeps that as a condition of the pod, so there is nothing to
//! be told again when duet-control or the connection to it comes back. But somebody
//! may have undone it: that others are still not told to reach a pod through the
//! mesh though it was reported to be enrolled is a hint, and whatever else it may be
//! is put right by saying everything again from time to time.

use crate::enrolment::State;
use duet_core::api::EnrolmentReport;
use duet_core::api::enrolment_report::State as Told;
use duet_core::{Placed, Proxy, ReportError, WorkloadName};
use prometheus::IntCounter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Reports under way at once. A restarted agent has one for each of its pods.
const AT_ONCE: usize = 8;

/// After a failure: doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How long discovery may take to show what was reported, doubled up to the second;
/// after which everything is said again in any case.
const REPEAT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// What is to be known of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub uid: String,
    pub state: State,
    /// Why it is not enrolled; empty if it is.
    pub why: String,
}

pub struct Reports {
    proxy: Proxy,
    failures: IntCounter,
    permits: Arc<Semaphore>,
    reporting: HashMap<WorkloadName, Reporting>,
}

struct Reporting {
    wanted: watch::Sender<Wanted>,
    task: AbortHandle,
}

/// A report, and whether discovery contradicts it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    report: Report,
    is_unheard: bool,
}

// === impl Reports ===

impl Reports {
    pub fn new(proxy: Proxy) -> Result<Self, prometheus::Error> {
        let failures = IntCounter::new(
            "duet_agent_report_failures_total",
            "Reports of a pod's enrolment that duet-control did not take. They are repeated. One \
             of a pod that it does not know is counted from the second time on.",
        )?;
        proxy.registry().register(Box::new(failures.clone()))?;
        Ok(Self {
            proxy,
            failures,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            reporting: HashMap::new(),
        })
    }

    /// From now on `pod` is reported as `report` says.
    pub fn say(&mut self, pod: &Placed, report: Report) {
        let is_unheard = report.state == State::Enrolled && !pod.meshed;
        let wanted = Wanted { report, is_unheard };
        match self.reporting.get(&pod.name) {
            Some(reporting) => {
                reporting.wanted.send_if_modified(|known| {
                    let new = *known != wanted;
                    *known = wanted;
                    new
                });
            }
            None => {
                let (sender, receiver) = watch::channel(wanted);
                let task = Task {
                    name: pod.name.clone(),
                    proxy: self.proxy.clone(),
                    failures: self.failures.clone(),
                    permits: self.permits.clone(),
                };
                let reporting = Reporting {
                    wanted: sender,
                    task: tokio::spawn(task.run(receiver)).abort_handle(),
                };
                self.reporting.insert(pod.name.clone(), reporting);
            }
        }
    }

    /// Nothing more is said of other pods than these.
    pub fn only(&mut self, placed: &BTreeMap<WorkloadName, Placed>) {
        self.reporting.retain(|name, _| placed.contains_key(name));
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reports one pod.
struct Task {
    name: WorkloadName,
    proxy: Proxy,
    failures: IntCounter,
    permits: Arc<Semaphore>,
}

// === impl Task ===

impl Task {
    async fn run(self, mut wanted: watch::Receiver<Wanted>) {
        let mut said: Option<(Report, Instant)> = None;
        let mut not_before = Instant::now();
        let mut failed = 0;
        let mut repeats = 0;
        loop {
            let Wanted { report, is_unheard } = wanted.borrow_and_update().clone();
            let is_said = said.as_ref().is_some_and(|(known, _)| *known == report);
            if !is_unheard {
                repeats = 0;
            }
            let due = match &said {
                Some((_, at)) if is_said && is_unheard => *at + doubled(REPEAT, repeats),
                Some((_, at)) if is_said => *at + REPEAT.1,
                _ => not_before,
            };
            if due <= Instant::now() {
                match self.send(&report).await {
                    Ok(()) => {
                        said = Some((report, Instant::now()));
                        repeats += u32::from(is_said);
                        failed = 0;
                    }
                    Err(error) => {
                        let wait = doubled(RETRY, failed).mul_f64(0.5 + fastrand::f64() / 2.0);
                        // Of a pod that comes or goes the two may hear one after the other.
                        if failed > 0 || !error.is_out_of_step() {
                            self.failures.inc();
                            tracing::warn!(workload = %self.name, %error, retry = ?wait, "not reported");
                        }
                        not_before = Instant::now() + wait;
                        failed += 1;
                        said = None;
                    }
                }
                continue;
            }
            tokio::select! {
                () = sleep_until(due) => {}
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn send(&self, report: &Report) -> Result<(), ReportError> {
        // Never closed.
        let _permit = self.permits.acquire().await;
        let state = match report.state {
            State::Enrolled => Told::Enrolled,
            State::Pending => Told::Pending,
            State::Failed | State::Refused => Told::Failed,
        };
        let report = EnrolmentReport {
            workload: self.name.to_string(),
            uid: report.uid.clone(),
            state: state.into(),
            reason: report.why.clone(),
        };
        tracing::debug!(workload = %self.name, ?state, "reporting");
        self.proxy.report(report).await
    }
}

fn doubled((first, last): (Duration, Duration), times: u32) -> Duration {
    (first * 2u32.saturating_pow(times.min(16))).min(last)
}
