//! What the pinned map says of an enrolled namespace, written and read: all that the
//! next agent has to go by.
//!
//! `duet_ebpf::Enrolled` has two texts that end with NUL. A pod's UID stands behind
//! the path's, and behind that its bond, where an agent that does not know of it does not
//! look.

use crate::netns::{FileId, Netns};
use crate::pod::PodError;
use duet_core::{Placed, WorkloadName};
use duet_ebpf::Enrolled;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub workload: WorkloadName,
    /// The pod's, if discovery gave it to this node's agent; of a namespace that was
    /// enrolled by hand there is none.
    pub uid: Option<String>,
    pub bond: Bond,
    /// Where the namespace was found.
    pub path: PathBuf,
    /// What the path led to.
    pub file_id: FileId,
}

/// For how long a namespace is the agent's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bond {
    /// Until somebody says otherwise.
    #[default]
    Loose,
    /// For as long as it is there.
    Bound,
    /// The same, and its pod was deleted: it is refused.
    Deleted,
}

// === impl Bond ===

impl Bond {
    pub fn of(pod: &Placed) -> Self {
        if pod.stamped {
            Self::Bound
        } else {
            Self::Loose
        }
    }

    const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Loose => b"",
            Self::Bound => b"bound",
            // No longer than the other, whose room it takes.
            Self::Deleted => b"gone",
        }
    }

    fn read(text: Option<&[u8]>) -> Self {
        let all = [Self::Bound, Self::Deleted];
        let known = all.into_iter().find(|bond| Some(bond.as_bytes()) == text);
        known.unwrap_or_default()
    }
}

// === impl Record ===

impl Record {
    /// Of a namespace that was enrolled by hand.
    pub fn by_hand(netns: &Netns, workload: WorkloadName) -> Self {
        Self {
            workload,
            uid: None,
            bond: Bond::Loose,
            path: netns.path().to_owned(),
            file_id: netns.file_id(),
        }
    }

    pub fn of_pod(netns: &Netns, pod: &Placed) -> Self {
        Self {
            uid: Some(pod.uid.clone()),
            bond: Bond::of(pod),
            ..Self::by_hand(netns, pod.name.clone())
        }
    }

    /// The same, where the namespace was found now.
    pub fn found_at(self, netns: &Netns) -> Self {
        let place = Self::by_hand(netns, self.workload);
        Self {
            uid: self.uid,
            bond: self.bond,
            ..place
        }
    }

    /// # Errors
    /// When a text is longer than the map has room for.
    pub fn write(&self) -> Result<Enrolled, PodError> {
        let mut entry = Enrolled {
            workload: [0; 320],
            path: [0; 256],
            device: self.file_id.device,
            inode: self.file_id.inode,
        };
        let name = self.workload.to_string();
        put(&mut entry.workload, name.as_bytes(), "the workload's name")?;
        let path = self.path.as_os_str().as_bytes();
        put(&mut entry.path, path, "the namespace's path")?;
        if let Some(uid) = &self.uid {
            let rest = &mut entry.path[path.len() + 1..];
            put(rest, uid.as_bytes(), "the UID")?;
            if self.bond != Bond::Loose {
                put(&mut rest[uid.len() + 1..], self.bond.as_bytes(), "the bond")?;
            }
        }
        Ok(entry)
    }

    /// What an earlier agent wrote, if it can be understood.
    pub fn read(entry: &Enrolled) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let name = entry.workload.split(|&byte| byte == 0).next()?;
        let mut place = entry.path.split(|&byte| byte == 0);
        Some(Self {
            workload: text(name)?.parse().ok()?,
            path: Path::new(OsStr::from_bytes(place.next()?)).to_owned(),
            uid: match place.next().unwrap_or_default() {
                [] => None,
                uid => Some(text(uid)?),
            },
            bond: Bond::read(place.next()),
            file_id: FileId {
                device: entry.device,
                inode: entry.inode,
            },
        })
    }
}

fn put(field: &mut [u8], text: &[u8], what: &'static str) -> Result<(), PodError> {
    // One byte is for the NUL.
    let max = field.len().saturating_sub(1);
    if text.len() > max {
        return Err(PodError::TooLong {
            what,
            max,
            value: String::from_utf8_lossy(text).into_owned(),
        });
    }
    field[..text.len()].copy_from_slice(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: Option<&str>, path: &str) -> Record {
        Record {
            workload: WorkloadName::new("default", "web-0"),
            uid: uid.map(str::to_owned),
            bond: Bond::Loose,
            path: path.into(),
            file_id: FileId {
                device: 4,
                inode: 4026532400,
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for uid in [None, Some("1640a224-79e9-41aa-a24d-6c6c89a1d474")] {
            let mut written = record(uid, "/proc/228/ns/net");
            let bonds = [Bond::Loose, Bond::Bound, Bond::Deleted];
            for bond in bonds.into_iter().take(if uid.is_some() { 3 } else { 1 }) {
                written.bond = bond;
                let read = Record::read(&written.write().unwrap());
                assert_eq!(read.as_ref(), Some(&written));
            }
        }
    }

    #[test]
    fn what_has_no_room_is_refused_and_not_cut() {
        let long = "x".repeat(255);
        assert!(record(None, &long).write().is_ok());
        assert!(matches!(
            record(Some("1640a224"), &long).write(),
            Err(PodError::TooLong {
                what: "the UID",
                ..
            })
        ));
        let longer = "x".repeat(256);
        assert!(record(None, &longer).write().is_err());
    }
}
