//! Which workloads this agent serves: enrolled and removed at run time, taken up
//! again after a restart, watched.
//!
//! The kernel's own map is the record, so there is no state that could disagree
//! with what connections really meet.

use crate::interception::Interception;
use crate::netns::{self, FileId, Netns, NetnsError};
use crate::pod::{self, Pod, PodError};
use duet_core::{Proxy, ReadyGuard, Workload, WorkloadName};
use duet_ebpf::{Enrolled, NetnsCookie};
use prometheus::IntGauge;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// How often programs, namespaces and what could not be taken up are looked at.
const SWEEP: Duration = Duration::from_secs(2);

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
        "{} is the agent's own network namespace: a workload in the host network cannot be enrolled",
        .0.display()
    )]
    OwnNetns(PathBuf),
    #[error("{} is already enrolled as {by}: remove that first", path.display())]
    Taken { path: PathBuf, by: WorkloadName },
    #[error("{0} is not enrolled: duet-agent list says what is")]
    Unknown(WorkloadName),
    #[error("cannot register a metric: {0}")]
    Metric(#[from] prometheus::Error),
}

pub struct Enrolment {
    interception: Arc<Interception>,
    proxy: Proxy,
    members: Mutex<Members>,
    enrolled: IntGauge,
    unenrolled: IntGauge,
}

#[derive(Default)]
struct Members {
    present: BTreeMap<WorkloadName, Member>,
    /// Enrolled by an earlier agent and not taken up yet: refused connections.
    missing: BTreeMap<WorkloadName, Missing>,
}

struct Member {
    pod: Pod,
    workload: Workload,
}

struct Missing {
    netns: NetnsCookie,
    path: PathBuf,
    file_id: FileId,
    why: String,
}

/// One line of `duet-agent list`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listed {
    pub workload: String,
    pub netns: PathBuf,
    /// Why its connections are refused, if they are.
    pub missing: Option<String>,
}

impl Enrolment {
    /// Takes up what an earlier agent had enrolled. /ready names this until the
    /// programs have been found in effect, and whenever they are not.
    pub async fn start(
        interception: Arc<Interception>,
        proxy: Proxy,
    ) -> Result<Arc<Self>, EnrolmentError> {
        let ready = proxy.not_ready_until("eBPF programs in effect");
        let gauge = |name, text| {
            let gauge = IntGauge::new(name, text)?;
            proxy.registry().register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let enrolment = Arc::new(Self {
            enrolled: gauge(
                "duet_agent_enrolled_workloads",
                "Workloads whose connections this agent serves.",
            )?,
            unenrolled: gauge(
                "duet_agent_unenrolled_workloads",
                "Workloads that should be enrolled and are not: their connections are refused.",
            )?,
            interception,
            proxy,
            members: Mutex::default(),
        });
        enrolment.recover().await?;
        tokio::spawn(enrolment.clone().watch(ready));
        Ok(enrolment)
    }

    /// Redirects the connections of the namespace at `path` to the proxy, in the
    /// name of `name`. A workload that is there already with another namespace is
    /// moved to this one.
    pub async fn enrol(&self, name: WorkloadName, path: &Path) -> Result<(), EnrolmentError> {
        let mut members = self.members.lock().await;
        let netns = Netns::open(path)?;
        let cookie = netns.cookie();
        if netns::current_cookie().is_ok_and(|own| own == cookie) {
            return Err(EnrolmentError::OwnNetns(path.to_owned()));
        }
        if let Some(by) = members.owner(cookie) {
            if *by != name {
                return Err(EnrolmentError::Taken {
                    path: path.to_owned(),
                    by: by.clone(),
                });
            }
            if members.present.contains_key(&name) {
                return Ok(());
            }
        } else {
            self.expel(&mut members, &name).await;
        }
        self.admit(&mut members, name, netns)?;
        Ok(())
    }

    pub async fn remove(&self, name: &WorkloadName) -> Result<(), EnrolmentError> {
        let mut members = self.members.lock().await;
        if self.expel(&mut members, name).await {
            Ok(())
        } else {
            Err(EnrolmentError::Unknown(name.clone()))
        }
    }

    pub async fn list(&self) -> Vec<Listed> {
        let members = self.members.lock().await;
        let present = members.present.iter().map(|(name, member)| Listed {
            workload: name.to_string(),
            netns: member.pod.netns().path().to_owned(),
            missing: None,
        });
        let missing = members.missing.iter().map(|(name, missing)| Listed {
            workload: name.to_string(),
            netns: missing.path.clone(),
            missing: Some(missing.why.clone()),
        });
        present.chain(missing).collect()
    }

    fn admit(
        &self,
        members: &mut MutexGuard<'_, Members>,
        name: WorkloadName,
        netns: Netns,
    ) -> Result<(), PodError> {
        let path = netns.path().display().to_string();
        let (pod, capture) = Pod::enrol(&self.interception, netns, &name)?;
        let uncertified = self
            .proxy
            .not_ready_until(format!("identity: no certificate for {name}"));
        let workload = self.proxy.add(name.clone(), capture);
        let certified = workload.ready();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CERTIFIED_WITHIN, certified).await;
            drop(uncertified);
        });
        tracing::info!(workload = %name, netns = path, "enrolled");
        members.missing.remove(&name);
        members.present.insert(name, Member { pod, workload });
        self.count(members);
        Ok(())
    }

    /// False if there is no such workload.
    async fn expel(&self, members: &mut MutexGuard<'_, Members>, name: &WorkloadName) -> bool {
        let missing = members.missing.remove(name);
        let present = members.present.remove(name);
        self.count(members);
        let known = missing.is_some() || present.is_some();
        if let Some(missing) = missing {
            pod::forget(&self.interception, missing.netns);
        }
        if let Some(Member { pod, workload }) = present {
            pod.remove();
            workload.remove().await;
        }
        if known {
            tracing::info!(workload = %name, "removed");
        }
        known
    }

    fn count(&self, members: &Members) {
        self.enrolled.set(members.present.len() as i64);
        self.unenrolled.set(members.missing.len() as i64);
    }

    async fn recover(&self) -> Result<(), EnrolmentError> {
        let mut members = self.members.lock().await;
        let entries = self.interception.maps().enrolled()?;
        let known: HashSet<NetnsCookie> = entries.iter().map(|(cookie, _)| *cookie).collect();
        // An agent that died in the middle of an enrolment leaves a link alone.
        for cookie in self.interception.steered().unwrap_or_default() {
            if !known.contains(&cookie) {
                pod::forget(&self.interception, cookie);
            }
        }
        for (cookie, entry) in entries {
            match read(&entry) {
                Some((name, missing)) => {
                    let missing = Missing {
                        netns: cookie,
                        ..missing
                    };
                    members.missing.insert(name, missing);
                }
                None => pod::forget(&self.interception, cookie),
            }
        }
        self.take_up(&mut members);
        Ok(())
    }

    /// Tries to serve again what is missing.
    fn take_up(&self, members: &mut MutexGuard<'_, Members>) {
        let names: Vec<WorkloadName> = members.missing.keys().cloned().collect();
        for name in names {
            let Some(missing) = members.missing.get(&name) else {
                continue;
            };
            let netns = missing.netns;
            let why = match self.find(missing) {
                Some(found) => match self.admit(members, name.clone(), found) {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                },
                None if self.interception.is_alive(netns) => {
                    "its network namespace cannot be found".to_owned()
                }
                None => {
                    tracing::info!(workload = %name, "its network namespace is gone");
                    members.missing.remove(&name);
                    pod::forget(&self.interception, netns);
                    continue;
                }
            };
            if let Some(missing) = members.missing.get_mut(&name)
                && missing.why != why
            {
                tracing::warn!(workload = %name, why, "not taken up: its connections are refused");
                missing.why = why;
            }
        }
        self.count(members);
    }

    fn find(&self, missing: &Missing) -> Option<Netns> {
        let at = |path: &Path| {
            Netns::open(path)
                .ok()
                .filter(|netns| netns.cookie() == missing.netns)
        };
        at(&missing.path).or_else(|| at(&netns::find_by_process(missing.file_id)?))
    }

    async fn watch(self: Arc<Self>, initial: ReadyGuard) {
        let mut initial = Some(initial);
        let mut guard: Option<(String, ReadyGuard)> = None;
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
            tokio::time::sleep(SWEEP).await;
        }
    }

    /// What is wrong with the redirection, if anything is.
    async fn sweep(&self) -> Option<String> {
        let mut members = self.members.lock().await;
        let gone: Vec<WorkloadName> = members
            .present
            .iter()
            .filter(|(_, member)| is_gone(member.pod.netns()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            tracing::info!(workload = %name, "its network namespace is gone");
            self.expel(&mut members, &name).await;
        }
        if !members.missing.is_empty() {
            self.take_up(&mut members);
        }
        let programs = self.interception.verify().err();
        programs.or_else(|| {
            let mut pods = members.present.values();
            pods.find_map(|member| member.pod.verify().err())
        })
    }
}

impl Members {
    fn owner(&self, netns: NetnsCookie) -> Option<&WorkloadName> {
        let mut present = self.present.iter();
        let mut missing = self.missing.iter();
        present
            .find(|(_, member)| member.pod.netns().cookie() == netns)
            .map(|(name, _)| name)
            .or_else(|| {
                missing
                    .find(|(_, missing)| missing.netns == netns)
                    .map(|(name, _)| name)
            })
    }
}

/// Whether nobody but this agent's own sockets keeps a namespace alive.
fn is_gone(netns: &Netns) -> bool {
    let there = FileId::of(netns.path()).is_ok_and(|found| found == netns.file_id());
    !there && netns::find_by_process(netns.file_id()).is_none()
}

/// What an earlier agent wrote.
fn read(entry: &Enrolled) -> Option<(WorkloadName, Missing)> {
    let text = |bytes: &[u8]| bytes.split(|&byte| byte == 0).next().map(<[u8]>::to_vec);
    let name = String::from_utf8(text(&entry.workload)?).ok()?;
    let missing = Missing {
        netns: 0,
        path: PathBuf::from(OsStr::from_bytes(&text(&entry.path)?)),
        file_id: FileId {
            device: entry.device,
            inode: entry.inode,
        },
        why: String::new(),
    };
    Some((name.parse().ok()?, missing))
}
