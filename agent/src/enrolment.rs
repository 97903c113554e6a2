//! Which workloads this agent serves: enrolled and removed at run time, taken up
//! again after a restart, watched.
//!
//! The kernel's own map is the record, so there is no state that could disagree
//! with what connections really meet.

mod leaving;
mod openness;
mod reason;
mod recovery;
mod tenure;

pub use openness::Openness;
pub use reason::Reason;

use crate::interception::Interception;
use crate::keeper::Keeper;
use crate::netns::{self, FileId, Netns, NetnsError};
use crate::passing::Inherited;
use crate::pod::{self, Pod, PodError};
use crate::record::Record;
use crate::sandbox;
use crate::watch::Watch;
use duet_core::{Placed, Proxy, ReadyGuard, Workload, WorkloadName, vital};
use duet_ebpf::NetnsCookie;
use prometheus::{IntGaugeVec, Opts};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, MutexGuard, Notify};

/// How often programs, namespaces and what could not be taken up are looked at.
pub const SWEEP: Duration = Duration::from_secs(2);

/// How often the cgroup is looked at besides, should the kernel not have told of another in
/// its place. That is without programs until it is found.
const GLANCE: Duration = Duration::from_millis(50);

/// How long /ready waits for a workload's certificate. One that nobody certifies
/// must not keep its neighbours' agent unready for ever.
const CERTIFIED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Maps(#[from] crate::maps::MapsError),
    #[error(
        "{} is the {whose} own network namespace: a workload in the host network cannot be enrolled",
        path.display()
    )]
    NotAPods { path: PathBuf, whose: &'static str },
    #[error("{} is already enrolled as {by}: remove that first", path.display())]
    Taken { path: PathBuf, by: WorkloadName },
    #[error("{0} is not enrolled: duet-agent list says what is")]
    Unknown(WorkloadName),
    #[error(
        "{0} is this agent's because duet-control says so: label the pod or its namespace \
         duet.dev/mode: none, or sidecar"
    )]
    Placed(WorkloadName),
    #[error("{0} was deleted: it is refused until its network namespace is gone")]
    Deleted(WorkloadName),
    #[error("this agent hands over to another: {}", crate::api::ASK_AGAIN)]
    HandingOver,
    #[error("cannot register a metric: {0}")]
    Metric(#[from] prometheus::Error),
}

pub struct Enrolment {
    interception: Arc<Interception>,
    proxy: Proxy,
    members: Mutex<Members>,
    workloads: IntGaugeVec,
    openness: Openness,
    /// A workload has got its first certificate.
    certified: Arc<Notify>,
}

#[derive(Default)]
struct Members {
    present: BTreeMap<WorkloadName, Member>,
    /// Enrolled by an earlier agent and not taken up yet: refused connections.
    missing: BTreeMap<WorkloadName, Missing>,
    /// Pods that were deleted, while their namespaces are there: refused connections.
    leaving: BTreeMap<NetnsCookie, Record>,
    /// Given to this agent by discovery and not enrolled yet.
    awaited: Awaited,
    /// Listeners of an earlier process, of those that are missing still.
    inherited: HashMap<NetnsCookie, Inherited>,
    tenure: Tenure,
    keeper: Option<Arc<Keeper>>,
}

/// Whether this agent decides who is enrolled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tenure {
    /// Its predecessor does, still.
    Coming,
    #[default]
    Holding,
    /// Its successor is about to.
    Going,
}

struct Member {
    pod: Pod,
    workload: Workload,
    record: Record,
    since: Instant,
    certified: Arc<AtomicBool>,
}

struct Missing {
    netns: NetnsCookie,
    record: Record,
    why: String,
}

/// Pods that are to be enrolled as soon as they can be, and why they are not.
pub type Awaited = BTreeMap<WorkloadName, (Reason, String)>;

/// How a workload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Enrolled,
    /// It is yet to start, as far as can be seen from here.
    Pending,
    /// Something is wrong; it is tried again.
    Failed,
    /// An earlier agent's, not taken up: connections are redirected, and refused.
    Refused,
}

/// One line of `duet-agent list`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listed {
    pub workload: String,
    /// None until it is found.
    pub netns: Option<PathBuf>,
    pub state: State,
    /// Why it is not enrolled, if it is not.
    pub why: Option<String>,
}

/// How far a pod that discovery gave to this agent has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Redirected, and in possession of a certificate.
    Served,
    /// Redirected; its connections wait for a certificate.
    Uncertified { for_so_long: Duration },
    /// Not by this agent.
    Not,
}

// === impl State ===

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

// === impl Enrolment ===

impl Enrolment {
    /// Takes up what an earlier agent had enrolled. /ready names this until the
    /// programs have been found in effect, and whenever they are not.
    pub async fn start(
        interception: Arc<Interception>,
        proxy: Proxy,
        inherited: HashMap<NetnsCookie, Inherited>,
        tenure: Tenure,
        openness: Openness,
    ) -> Result<Arc<Self>, EnrolmentError> {
        let ready = proxy.not_ready_until("eBPF programs in effect");
        let workloads = IntGaugeVec::new(
            Opts::new(
                "duet_agent_workloads",
                "Workloads of this agent, by state and the reason for it. Connections of enrolled \
                 ones are proxied, of pending and failed ones not yet; refused are those of an \
                 earlier agent whose connections this one cannot serve, and of deleted ones.",
            ),
            &["state", "reason"],
        )?;
        proxy.registry().register(Box::new(workloads.clone()))?;
        let enrolment = Arc::new(Self {
            workloads,
            openness,
            interception,
            proxy,
            members: Mutex::new(Members {
                inherited,
                tenure,
                ..Members::default()
            }),
            certified: Arc::default(),
        });
        enrolment.recover().await?;
        tokio::spawn(vital(enrolment.clone().watch(ready)));
        Ok(enrolment)
    }

    pub fn interception(&self) -> &Arc<Interception> {
        &self.interception
    }

    /// Redirects the connections of the namespace at `path` to the proxy, in the
    /// name of `name`. A workload that is there already with another namespace is
    /// moved to this one.
    pub async fn enrol(&self, name: WorkloadName, path: &Path) -> Result<(), EnrolmentError> {
        let mut members = self.holding().await?;
        let netns = Netns::open(path)?;
        check(&netns)?;
        if let Some(left) = members.leaving.get(&netns.cookie()) {
            let (path, by) = (path.to_owned(), left.workload.clone());
            return Err(EnrolmentError::Taken { path, by });
        } else if members.owner(netns.cookie(), &name, path)? {
            if members.present.contains_key(&name) {
                return Ok(());
            }
        } else if members.uid(&name).is_some() {
            return Err(EnrolmentError::Placed(name));
        } else {
            self.expel(&mut members, &name).await;
        }
        let ready = self.ready_guard(&name);
        let record = Record::by_hand(&netns, name);
        self.admit(&mut members, netns, record, Some(ready))?;
        Ok(())
    }

    /// As [`Self::enrol`], for a pod that discovery gave to this agent. True if its
    /// connections were not redirected before, by an earlier agent either.
    pub async fn enrol_pod(
        &self,
        pod: &Placed,
        netns: Netns,
        ready: Option<ReadyGuard>,
    ) -> Result<bool, EnrolmentError> {
        let mut members = self.holding().await?;
        check(&netns)?;
        let mut record = Record::of_pod(&netns, pod);
        record.bond = record.bond.max(members.bond(&pod.name, &pod.uid));
        let left = members.leaving.get(&netns.cookie());
        if let Some(left) = left.filter(|left| left.uid != record.uid) {
            let (path, by) = (netns.path().to_owned(), left.workload.clone());
            return Err(EnrolmentError::Taken { path, by });
        } else if !members.owner(netns.cookie(), &pod.name, netns.path())? {
            self.let_go(&mut members, &pod.name).await;
        } else if let Some(member) = members.present.get_mut(&pod.name) {
            member.pod.amend(&record)?;
            member.record = record;
            return Ok(false);
        }
        let new = !self.interception.maps().is_enrolled(netns.cookie());
        self.admit(&mut members, netns, record, ready)?;
        Ok(new)
    }

    pub async fn remove(&self, name: &WorkloadName) -> Result<(), EnrolmentError> {
        let mut members = self.holding().await?;
        if members.uid(name).is_some() {
            Err(EnrolmentError::Placed(name.clone()))
        } else if self.expel(&mut members, name).await {
            Ok(())
        } else if members.leaving.values().any(|left| left.workload == *name) {
            Err(EnrolmentError::Deleted(name.clone()))
        } else {
            Err(EnrolmentError::Unknown(name.clone()))
        }
    }

    /// Whatever has become of the programs or their cgroup, they are in effect for whom
    /// starts now.
    pub async fn assure(&self) -> Result<(), EnrolmentError> {
        let _members = self.holding().await?;
        Ok(self.attach_again()?)
    }

    /// Lets go of the pods that discovery no longer gives to this agent, by their
    /// UIDs. Returns those of `placed` that are not enrolled, or may have got
    /// another namespace since.
    pub async fn settle(&self, placed: &BTreeMap<WorkloadName, Placed>) -> Vec<Placed> {
        let Ok(mut members) = self.holding().await else {
            return Vec::new();
        };
        for (name, uid) in members.pods() {
            match placed.get(&name).filter(|pod| pod.uid == uid) {
                Some(pod) => self.bind(&mut members, pod),
                None => self.let_go(&mut members, &name).await,
            }
        }
        self.see_off(&mut members);
        self.count(&members);
        let is_settled = |pod: &&Placed| {
            members.present.get(&pod.name).is_some_and(|member| {
                member.record.uid.as_ref() == Some(&pod.uid)
                    && is_at(&member.record.path, member.record.file_id)
            })
        };
        let unsettled = placed.values().filter(|pod| !is_settled(pod));
        unsettled.cloned().collect()
    }

    /// Says of each pod that is not enrolled yet, why.
    pub async fn await_pods(&self, awaited: Awaited) {
        let mut members = self.members.lock().await;
        members.awaited = awaited;
        self.count(&members);
    }

    pub async fn standing(&self, name: &WorkloadName) -> Standing {
        match self.members.lock().await.present.get(name) {
            Some(member) if member.certified.load(Relaxed) => Standing::Served,
            Some(member) => Standing::Uncertified {
                for_so_long: member.since.elapsed(),
            },
            None => Standing::Not,
        }
    }

    /// Ends when a workload has come to a certificate.
    pub async fn certified(&self) {
        self.certified.notified().await;
    }

    pub async fn list(&self) -> Vec<Listed> {
        let members = self.members.lock().await;
        let present = members.present.values().map(|member| Listed {
            workload: member.record.workload.to_string(),
            netns: Some(member.record.path.clone()),
            state: State::Enrolled,
            why: None,
        });
        let missing = members.missing.values().map(|missing| Listed {
            workload: missing.record.workload.to_string(),
            netns: Some(missing.record.path.clone()),
            state: State::Refused,
            why: Some(missing.why.clone()),
        });
        let leaving = members.leaving.values().map(|record| Listed {
            workload: record.workload.to_string(),
            netns: Some(record.path.clone()),
            state: State::Refused,
            why: Some("it was deleted, and its network namespace is still there".to_owned()),
        });
        let awaited = members.awaited.iter().map(|(name, (reason, why))| Listed {
            workload: name.to_string(),
            netns: None,
            state: reason.state(),
            why: Some(why.clone()),
        });
        present
            .chain(missing)
            .chain(leaving)
            .chain(awaited)
            .collect()
    }

    /// What keeps the agent unready until `name` has a certificate, or for as long
    /// as is sensible.
    pub fn ready_guard(&self, name: &WorkloadName) -> ReadyGuard {
        self.proxy
            .not_ready_until(format!("identity: no certificate for {name}"))
    }

    fn admit(
        &self,
        members: &mut MutexGuard<'_, Members>,
        netns: Netns,
        record: Record,
        ready: Option<ReadyGuard>,
    ) -> Result<(), PodError> {
        // Nothing runs in it before the programs are where they have to be.
        self.follow_cgroup()?;
        let path = netns.path().display().to_string();
        let name = record.workload.clone();
        let cookie = netns.cookie();
        // Connections wait in them, so they are kept if this fails, for the next attempt.
        let inherited = members.inherited.get(&cookie);
        let inherited = inherited.map_or(&[][..], |inherited| &inherited.listeners);
        let (pod, capture) = Pod::enrol_with(inherited, &self.interception, netns, &record)?;
        self.openness.set(self.interception.maps(), cookie, &name);
        members.inherited.remove(&cookie);
        members.keep(&pod);
        let workload = self.proxy.add(name.clone(), capture);
        let certified = Arc::new(AtomicBool::new(false));
        self.follow_certificate(&workload, certified.clone(), ready);
        let uid = record.uid.as_deref().unwrap_or_default();
        tracing::info!(workload = %name, uid, netns = path, "enrolled");
        members.missing.remove(&name);
        members.leaving.remove(&cookie);
        members.awaited.remove(&name);
        let member = Member {
            pod,
            workload,
            record,
            since: Instant::now(),
            certified,
        };
        members.present.insert(name, member);
        self.count(members);
        Ok(())
    }

    fn follow_certificate(
        &self,
        workload: &Workload,
        flag: Arc<AtomicBool>,
        ready: Option<ReadyGuard>,
    ) {
        let certified = workload.ready();
        let changed = self.certified.clone();
        tokio::spawn(async move {
            let mut certified = std::pin::pin!(certified);
            if tokio::time::timeout(CERTIFIED_WITHIN, certified.as_mut())
                .await
                .is_err()
            {
                drop(ready);
                certified.await;
            }
            flag.store(true, Relaxed);
            changed.notify_one();
        });
    }

    /// False if there is no such workload.
    async fn expel(&self, members: &mut MutexGuard<'_, Members>, name: &WorkloadName) -> bool {
        let missing = members.missing.remove(name);
        let present = members.present.remove(name);
        self.count(members);
        let known = missing.is_some() || present.is_some();
        if let Some(missing) = missing {
            pod::forget(&self.interception, missing.netns);
            members.close(missing.netns);
            self.forget_targets(name, missing.netns);
        }
        if let Some(Member { pod, workload, .. }) = present {
            let netns = pod.netns().cookie();
            pod.remove();
            workload.remove().await;
            members.close(netns);
            self.forget_targets(name, netns);
        }
        if known {
            tracing::info!(workload = %name, "removed");
        }
        known
    }

    /// Nobody listens there any more.
    fn forget_targets(&self, name: &WorkloadName, netns: NetnsCookie) {
        if let Err(error) = self.interception.maps().forget_targets(netns) {
            tracing::warn!(workload = %name, %error, "destinations are left in the kernel");
        }
    }

    fn count(&self, members: &Members) {
        let set = |state: State, reason, count: usize| {
            let gauge = self.workloads.with_label_values(&[state.as_str(), reason]);
            gauge.set(count as i64);
        };
        set(State::Enrolled, "", members.present.len());
        set(State::Refused, "", members.missing.len());
        set(State::Refused, "deleted", members.leaving.len());
        for reason in Reason::ALL {
            let awaited = members.awaited.values();
            let count = awaited.filter(|(why, _)| *why == reason).count();
            set(reason.state(), reason.as_str(), count);
        }
    }

    async fn watch(self: Arc<Self>, initial: ReadyGuard) {
        let mut initial = Some(initial);
        let mut guard: Option<(String, ReadyGuard)> = None;
        let mut cgroups = Watch::new();
        loop {
            let trouble = self.sweep().await;
            match trouble {
                Some(why) if guard.as_ref().is_none_or(|(known, _)| *known != why) => {
                    tracing::error!(why, "not in effect");
                    let new = self.proxy.not_ready_until(why.clone());
                    guard = Some((why, new));
                }
                Some(_) => {}
                None => guard = None,
            }
            initial.take();
            self.rest(&mut cgroups).await;
        }
    }

    /// Until it is time for the next sweep.
    async fn rest(&self, cgroups: &mut Watch) {
        let until = Instant::now() + SWEEP;
        loop {
            let _ = tokio::time::timeout(GLANCE, cgroups.changed(|_| true)).await;
            cgroups.on(self.interception.cgroup().above());
            if Instant::now() >= until || self.interception.is_displaced() {
                return;
            }
        }
    }

    /// What is wrong with the redirection, if anything is.
    async fn sweep(&self) -> Option<String> {
        let mut members = self.members.lock().await;
        if members.tenure != Tenure::Going {
            // Before all else: for so long its processes go around the mesh. What fails is
            // told below.
            let _ = self.follow_cgroup();
        }
        self.interception.maps().forget_remains();
        match members.tenure {
            // The links have this agent's programs already, and it removes nobody.
            Tenure::Coming => return self.interception.verify().err(),
            Tenure::Going => return None,
            Tenure::Holding => {}
        }
        // A pod is there for as long as discovery says so. It may be without a
        // process: with CRI-O between a container's end and its next start, which
        // must not find the door open.
        let by_hand = members
            .present
            .values()
            .filter(|one| one.record.uid.is_none());
        let gone: Vec<WorkloadName> = by_hand
            .filter(|member| is_gone(&member.record))
            .map(|member| member.record.workload.clone())
            .collect();
        for name in gone {
            tracing::info!(workload = %name, "its network namespace is gone");
            self.expel(&mut members, &name).await;
        }
        if !members.missing.is_empty() {
            self.take_up(&mut members);
        }
        self.openness.count(self.interception.maps(), &members);
        if let Err(why) = self.heal(&mut members) {
            return Some(why.to_string());
        }
        let programs = self.interception.verify().err();
        programs.or_else(|| {
            let mut pods = members.present.values();
            pods.find_map(|member| member.pod.verify().err())
        })
    }

    /// The programs went with their cgroup, and belong on the one in its place.
    fn follow_cgroup(&self) -> Result<(), PodError> {
        match self.interception.is_displaced() {
            true => self.attach_again(),
            false => Ok(()),
        }
    }

    fn attach_again(&self) -> Result<(), PodError> {
        if self.interception.heal()? {
            tracing::error!("the eBPF programs were no longer in effect: attached again");
        }
        Ok(())
    }

    /// Whatever somebody has taken out of the kernel's way is put back.
    fn heal(&self, members: &mut Members) -> Result<(), PodError> {
        self.attach_again()?;
        for member in members.present.values_mut() {
            if let Err(why) = member.pod.verify() {
                member.pod.steer_again()?;
                tracing::error!(why, "attached again");
            }
        }
        let again = self.interception.pin_again()?;
        if again > 0 {
            tracing::error!(again, "links and maps were no longer pinned: pinned again");
        }
        Ok(())
    }
}

// === impl Members ===

impl Members {
    /// Whether `name` has this namespace.
    ///
    /// # Errors
    /// When somebody else has it.
    fn owner(
        &self,
        netns: NetnsCookie,
        name: &WorkloadName,
        path: &Path,
    ) -> Result<bool, EnrolmentError> {
        let mut present = self.present.values();
        let mut missing = self.missing.values();
        let owner = present
            .find(|member| member.pod.netns().cookie() == netns)
            .map(|member| &member.record.workload)
            .or_else(|| {
                let missing = missing.find(|missing| missing.netns == netns);
                missing.map(|missing| &missing.record.workload)
            });
        match owner {
            Some(by) if by != name => Err(EnrolmentError::Taken {
                path: path.to_owned(),
                by: by.clone(),
            }),
            owner => Ok(owner.is_some()),
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        let present = self.present.values().map(|member| &member.record);
        present.chain(self.missing.values().map(|missing| &missing.record))
    }

    fn namespaces(&self) -> impl Iterator<Item = (NetnsCookie, &WorkloadName)> {
        let present = self.present.iter();
        let present = present.map(|(name, member)| (member.pod.netns().cookie(), name));
        let missing = self.missing.iter();
        present.chain(missing.map(|(name, missing)| (missing.netns, name)))
    }

    fn uid(&self, name: &WorkloadName) -> Option<&String> {
        let mut records = self.records();
        records
            .find(|record| record.workload == *name)?
            .uid
            .as_ref()
    }

    /// What discovery gave to this agent, or to an earlier one.
    fn pods(&self) -> BTreeSet<(WorkloadName, String)> {
        let records = self.records();
        let pods =
            records.filter_map(|record| Some((record.workload.clone(), record.uid.clone()?)));
        pods.collect()
    }
}

fn check(netns: &Netns) -> Result<(), EnrolmentError> {
    let refused = |whose| {
        Err(EnrolmentError::NotAPods {
            path: netns.path().to_owned(),
            whose,
        })
    };
    if netns::current_cookie().is_ok_and(|own| own == netns.cookie()) {
        refused("agent's")
    } else if sandbox::host_netns().is_ok_and(|host| host == netns.file_id()) {
        refused("node's")
    } else {
        Ok(())
    }
}

fn is_at(path: &Path, file_id: FileId) -> bool {
    FileId::of(path).is_ok_and(|found| found == file_id)
}

/// Whether nobody but this agent's own sockets keeps a namespace alive.
fn is_gone(record: &Record) -> bool {
    !is_at(&record.path, record.file_id) && netns::find_by_process(record.file_id).is_none()
}
