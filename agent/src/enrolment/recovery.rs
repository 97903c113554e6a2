//! What an earlier agent had enrolled, taken up again.

use super::{Enrolment, EnrolmentError, Members, Missing, Tenure};
use crate::netns::{self, Netns};
use crate::passing::Inherited;
use crate::pod::{self, PodError};
use crate::record::{Bond, Record};
use duet_core::WorkloadName;
use duet_ebpf::NetnsCookie;
use std::collections::HashSet;
use std::path::Path;
use tokio::sync::MutexGuard;

impl Enrolment {
    pub(super) async fn recover(&self) -> Result<(), EnrolmentError> {
        let mut members = self.members.lock().await;
        let entries = self.interception.maps().enrolled()?;
        let known: HashSet<NetnsCookie> = entries.iter().map(|(cookie, _)| *cookie).collect();
        // An agent that died in the middle of an enrolment leaves the beginning of it.
        let mut begun: HashSet<_> = self
            .interception
            .steered()
            .unwrap_or_default()
            .into_iter()
            .collect();
        if members.tenure == Tenure::Holding {
            begun.extend(self.interception.maps().traces());
        }
        for &cookie in begun.difference(&known) {
            pod::forget(&self.interception, cookie);
        }
        for (netns, entry) in entries {
            let held = self.interception.hold_steering(netns);
            match Record::read(&entry) {
                Some(record) if record.bond == Bond::Deleted => {
                    self.close(netns, &record);
                    if held.is_err()
                        && let Some(found) = find(&record, netns, None)
                    {
                        self.interception.steer(&found).map_err(PodError::from)?;
                    }
                    members.leaving.insert(netns, record);
                }
                Some(record) => {
                    let missing = Missing {
                        netns,
                        record,
                        why: String::new(),
                    };
                    let name = missing.record.workload.clone();
                    members.missing.insert(name, missing);
                }
                None => pod::forget(&self.interception, netns),
            }
        }
        self.take_up(&mut members);
        Ok(())
    }

    /// Tries to serve again what is missing.
    pub(super) fn take_up(&self, members: &mut MutexGuard<'_, Members>) {
        let names: Vec<WorkloadName> = members.missing.keys().cloned().collect();
        for name in names {
            let Some(missing) = members.missing.get(&name) else {
                continue;
            };
            let netns = missing.netns;
            let record = missing.record.clone();
            let why = match find(&missing.record, netns, members.inherited.get(&netns)) {
                Some(found) => {
                    let ready = Some(self.ready_guard(&name));
                    let record = record.found_at(&found);
                    match self.admit(members, found, record, ready) {
                        Ok(()) => continue,
                        Err(error) => error.to_string(),
                    }
                }
                None if !self.interception.is_gone(netns) => {
                    "its network namespace cannot be found".to_owned()
                }
                None => {
                    tracing::info!(workload = %name, "its network namespace is gone");
                    members.missing.remove(&name);
                    pod::forget(&self.interception, netns);
                    members.close(netns);
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
}

/// By the file that an earlier process had open, or else by where it was found.
pub(super) fn find(
    record: &Record,
    cookie: NetnsCookie,
    inherited: Option<&Inherited>,
) -> Option<Netns> {
    let Record { path, file_id, .. } = record;
    let is_it = |netns: &Netns| netns.cookie() == cookie;
    let passed = || {
        let file = inherited?.file.as_ref()?.try_clone().ok()?;
        Netns::of(file.into(), path).ok().filter(is_it)
    };
    let at = |path: &Path| Netns::open(path).ok().filter(is_it);
    let elsewhere = || at(&netns::find_by_process(*file_id)?);
    passed().or_else(|| at(path)).or_else(elsewhere)
}
