//! Why a pod is not enrolled, in a word.

use super::State;
use crate::sandbox::Unfound;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NoProcess,
    HostNetwork,
    NoAddress,
    OtherAddress,
    OutsideCgroup,
    Namespace,
    /// No pod can be looked for.
    Unseen,
    /// Its listeners or eBPF programs.
    Redirection,
}

impl Reason {
    pub const ALL: [Self; 8] = [
        Self::NoProcess,
        Self::HostNetwork,
        Self::NoAddress,
        Self::OtherAddress,
        Self::OutsideCgroup,
        Self::Namespace,
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
            Self::Namespace => "namespace",
            Self::Unseen => "unseen",
            Self::Redirection => "redirection",
        }
    }

    /// A pod that starts may well be found like this.
    pub const fn state(self) -> State {
        match self {
            Self::NoProcess | Self::HostNetwork | Self::NoAddress => State::Pending,
            _ => State::Failed,
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
            Unfound::Netns { .. } | Unfound::Addresses(_) => Self::Namespace,
        }
    }
}
