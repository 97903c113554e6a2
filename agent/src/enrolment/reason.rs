//! Why a pod is not enrolled, in a word.

use super::{EnrolmentError, State};
use crate::pod::PodError;
use crate::sandbox::Unfound;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NoProcess,
    HostNetwork,
    NoAddress,
    OtherAddress,
    OutsideCgroup,
    /// It cannot be opened or read, or is not the pod's own.
    Netns,
    /// Another workload has its network namespace.
    Taken,
    /// No pod can be looked for.
    Unseen,
    /// Its listeners or eBPF programs.
    Redirection,
}

impl Reason {
    pub const ALL: [Self; 9] = [
        Self::NoProcess,
        Self::HostNetwork,
        Self::NoAddress,
        Self::OtherAddress,
        Self::OutsideCgroup,
        Self::Netns,
        Self::Taken,
        Self::Unseen,
        Self::Redirection,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoProcess => "no_process",
            Self::HostNetwork => "host_network",
            Self::NoAddress => "no_address",
            Self::OtherAddress => "other_address",
            Self::OutsideCgroup => "outside_cgroup",
            Self::Netns => "netns",
            Self::Taken => "taken",
            Self::Unseen => "unseen",
            Self::Redirection => "redirection",
        }
    }

    /// Pending is what a pod that starts may well be found like; the rest is a failure.
    pub const fn state(self) -> State {
        match self {
            Self::NoProcess | Self::HostNetwork | Self::NoAddress => State::Pending,
            Self::OtherAddress
            | Self::OutsideCgroup
            | Self::Netns
            | Self::Taken
            | Self::Unseen
            | Self::Redirection => State::Failed,
        }
    }
}

impl From<&Unfound> for Reason {
    fn from(unfound: &Unfound) -> Self {
        match unfound {
            Unfound::NoProcess => Self::NoProcess,
            Unfound::HostNetwork => Self::HostNetwork,
            Unfound::NoAddress => Self::NoAddress,
            Unfound::OtherAddress { .. } => Self::OtherAddress,
            Unfound::OutsideCgroup { .. } => Self::OutsideCgroup,
            Unfound::Netns { .. } | Unfound::Addresses(_) => Self::Netns,
        }
    }
}

impl From<&EnrolmentError> for Reason {
    fn from(error: &EnrolmentError) -> Self {
        match error {
            EnrolmentError::Netns(_)
            | EnrolmentError::NotAPods { .. }
            | EnrolmentError::Pod(PodError::Addresses { .. }) => Self::Netns,
            EnrolmentError::Taken { .. } => Self::Taken,
            _ => Self::Redirection,
        }
    }
}
