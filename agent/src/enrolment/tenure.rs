//! Who decides: this agent, the one before it, or the one after it.

use super::{Enrolment, EnrolmentError, Members, Tenure};
use crate::keeper::Keeper;
use crate::passing::Inherited;
use crate::pod::{Pod, PodError};
use duet_core::WorkloadName;
use duet_ebpf::NetnsCookie;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::MutexGuard;

/// Workloads that another agent serves and this one does not.
#[derive(Debug, Default)]
pub struct Unserved {
    /// They may have a certificate in a moment.
    pub uncertified: Vec<WorkloadName>,
    /// Their namespace cannot be found, or not be enrolled.
    pub missing: Vec<WorkloadName>,
}

impl Enrolment {
    /// The members, to be changed.
    pub(super) async fn holding(&self) -> Result<MutexGuard<'_, Members>, EnrolmentError> {
        let members = self.members.lock().await;
        match members.tenure {
            Tenure::Holding => Ok(members),
            Tenure::Coming | Tenure::Going => Err(EnrolmentError::HandingOver),
        }
    }

    /// This agent decides from here on. What it has is kept by `keeper`, if there is
    /// one, and what it has not is no longer.
    pub async fn hold(&self, keeper: Option<Arc<Keeper>>) {
        let mut members = self.members.lock().await;
        members.tenure = Tenure::Holding;
        members.keeper = keeper;
        for member in members.present.values() {
            members.keep(&member.pod);
        }
        let missing: BTreeSet<NetnsCookie> =
            members.missing.values().map(|one| one.netns).collect();
        let mut inherited = std::mem::take(&mut members.inherited);
        for (netns, _) in inherited.extract_if(|netns, _| !missing.contains(netns)) {
            members.close(netns);
        }
        members.inherited = inherited;
    }

    /// All listeners, for a successor; from here on nobody is enrolled or removed.
    ///
    /// # Errors
    /// When a handover is under way already.
    pub async fn lay_down(&self) -> Result<HashMap<NetnsCookie, Inherited>, EnrolmentError> {
        let mut members = self.holding().await?;
        let share = |pod: &Pod| {
            pod.share().map_err(|error| PodError::Share {
                netns: pod.netns().path().display().to_string(),
                error,
            })
        };
        let mut doors = HashMap::new();
        for member in members.present.values() {
            let pod = &member.pod;
            doors.insert(pod.netns().cookie(), share(pod)?);
        }
        // Of those that this agent could not take up either.
        for (&netns, inherited) in &members.inherited {
            let shared = inherited.share().map_err(|error| PodError::Share {
                netns: netns.to_string(),
                error,
            })?;
            doors.insert(netns, shared);
        }
        members.tenure = Tenure::Going;
        Ok(doors)
    }

    /// The successor did not take it: everything is as it was before.
    pub async fn resume(&self) -> Result<(), EnrolmentError> {
        let mut members = self.members.lock().await;
        members.tenure = Tenure::Holding;
        // First, whatever fails then: the successor may have known nothing of it.
        for (netns, record) in &members.leaving {
            self.close(*netns, record);
        }
        self.interception.reattach().map_err(PodError::from)?;
        for member in members.present.values_mut() {
            member.pod.steer_again()?;
        }
        Ok(())
    }

    /// Lets go of what the successor has taken, all but the connections.
    pub async fn release(&self) {
        let mut members = self.members.lock().await;
        if let Some(keeper) = members.keeper.take()
            && let Err(error) = keeper.released()
        {
            tracing::error!(%error, "telling the supervisor of the handover");
        }
        members.present.clear();
        members.missing.clear();
        members.leaving.clear();
        members.inherited.clear();
        self.count(&members);
    }

    /// Those of `wanted` that this agent could not serve as yet.
    pub async fn unserved(&self, wanted: &BTreeSet<WorkloadName>) -> Unserved {
        let members = self.members.lock().await;
        let mut unserved = Unserved::default();
        for name in wanted {
            match members.present.get(name) {
                Some(member) if member.certified.load(Relaxed) => {}
                Some(_) => unserved.uncertified.push(name.clone()),
                None => unserved.missing.push(name.clone()),
            }
        }
        unserved
    }

    /// The workloads that have a certificate.
    pub async fn served(&self) -> BTreeSet<WorkloadName> {
        let members = self.members.lock().await;
        let served = members.present.iter();
        served
            .filter(|(_, member)| member.certified.load(Relaxed))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

// === impl Members ===

impl Members {
    /// With the supervisor, so that the listeners outlive this process.
    pub(super) fn keep(&self, pod: &Pod) {
        if let Some(keeper) = &self.keeper
            && let Err(error) = pod
                .share()
                .and_then(|door| keeper.keep(pod.netns().cookie(), &door))
        {
            let netns = pod.netns().path().display();
            tracing::error!(%netns, %error, "its listeners will not outlive this process");
        }
    }

    /// Wherever else they are kept.
    pub(super) fn close(&mut self, netns: NetnsCookie) {
        self.inherited.remove(&netns);
        if let Some(keeper) = &self.keeper
            && let Err(error) = keeper.close(netns)
        {
            tracing::error!(netns, %error, "the supervisor may still have its listeners");
        }
    }
}
