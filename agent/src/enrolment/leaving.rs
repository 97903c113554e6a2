//! Pods that were deleted, for as long as their network namespaces are there: by force, for
//! one, while their containers run on. A pod that is bound to its agent is not opened then.

use super::{Enrolment, Member, Members, recovery};
use crate::pod::{self, PodError};
use crate::record::{Bond, Record};
use duet_core::{Placed, WorkloadName};
use duet_ebpf::NetnsCookie;
use tokio::sync::MutexGuard;

impl Enrolment {
    /// An earlier agent may not have known of it. It is never undone: whoever tells
    /// otherwise may be an older duet-control.
    pub(super) fn bind(&self, members: &mut Members, pod: &Placed) {
        let bond = Bond::of(pod);
        let present = members.present.get_mut(&pod.name);
        let present = present.map(|one| (one.pod.netns().cookie(), &mut one.record));
        let missing = members.missing.get_mut(&pod.name);
        let missing = missing.map(|one| (one.netns, &mut one.record));
        for (netns, record) in present.into_iter().chain(missing) {
            if record.bond >= bond {
                continue;
            }
            let bound = Record {
                bond,
                ..record.clone()
            };
            match self.write(netns, &bound) {
                Ok(()) => *record = bound,
                Err(error) => {
                    tracing::error!(workload = %pod.name, %error, "the next agent may open it");
                }
            }
        }
    }

    fn write(&self, netns: NetnsCookie, record: &Record) -> Result<(), PodError> {
        let entry = record.write()?;
        Ok(self.interception.maps().enrol(netns, entry)?)
    }

    /// Discovery does not give it to this agent any more. One that was bound to it has been
    /// deleted, and what may still run in it stays closed.
    pub(super) async fn let_go(&self, members: &mut MutexGuard<'_, Members>, name: &WorkloadName) {
        if members.is_bound(name) {
            self.shut(members, name).await;
        } else {
            self.expel(members, name).await;
        }
    }

    /// Ends what a deleted pod has here. What still runs in it is redirected as before, to
    /// where nobody listens.
    async fn shut(&self, members: &mut MutexGuard<'_, Members>, name: &WorkloadName) {
        if let Some(missing) = members.missing.remove(name) {
            self.leave(members, missing.netns, missing.record);
            members.close(missing.netns);
        }
        if let Some(Member {
            pod,
            workload,
            record,
            ..
        }) = members.present.remove(name)
        {
            let netns = pod.netns().cookie();
            self.leave(members, netns, record);
            drop(pod);
            workload.remove().await;
            members.close(netns);
            self.forget_targets(name, netns);
        }
        self.count(members);
    }

    /// From here on it may not go around an agent that is away, and the next agent knows.
    fn leave(&self, members: &mut Members, netns: NetnsCookie, mut record: Record) {
        record.bond = Bond::Deleted;
        self.close(netns, &record);
        let name = &record.workload;
        tracing::info!(workload = %name, "deleted: refused while its network namespace is there");
        members.leaving.insert(netns, record);
    }

    pub(super) fn close(&self, netns: NetnsCookie, deleted: &Record) {
        let name = &deleted.workload;
        if let Err(error) = self.interception.maps().set_open(netns, false) {
            tracing::error!(workload = %name, %error, "it may go around the mesh");
        }
        if let Err(error) = self.write(netns, deleted) {
            tracing::error!(workload = %name, %error, "the next agent may serve it again");
        }
    }

    /// Forgets deleted pods whose namespaces are gone. A link that leads nowhere may have been
    /// detached by somebody; then it is made again.
    pub(super) fn see_off(&self, members: &mut Members) {
        let gone = members.leaving.iter();
        let gone = gone.filter(|(netns, _)| self.interception.is_gone(**netns));
        let gone: Vec<_> = gone
            .map(|(netns, record)| (*netns, record.clone()))
            .collect();
        for (netns, record) in gone {
            match recovery::find(&record, netns, None) {
                Some(found) => {
                    if let Err(error) = self.interception.steer(&found) {
                        tracing::error!(workload = %record.workload, %error, "steering it again");
                    }
                }
                None => {
                    members.leaving.remove(&netns);
                    pod::forget(&self.interception, netns);
                    tracing::info!(workload = %record.workload, "removed");
                }
            }
        }
    }
}

// === impl Members ===

impl Members {
    /// Of the pod with this UID.
    pub(super) fn bond(&self, name: &WorkloadName, uid: &str) -> Bond {
        let mut records = self.records();
        let record =
            records.find(|record| record.workload == *name && record.uid.as_deref() == Some(uid));
        record.map_or(Bond::Loose, |record| record.bond)
    }

    fn is_bound(&self, name: &WorkloadName) -> bool {
        self.records()
            .any(|record| record.workload == *name && record.bond != Bond::Loose)
    }
}
