//! The arms: ways of running one and the same workload.

use crate::cluster::Placement;
use crate::peer::{self, Peer};
use crate::results;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// One way of running the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arm {
    /// No mesh: what the machine and the applications cost by themselves.
    None,
    /// A proxy in every pod.
    Sidecar,
    /// A proxy on every node, that does not tell its workloads apart.
    Agent,
    /// The same, and each workload has its turns and budgets. Only where one may harm others, and where
    /// something is timed.
    AgentTenancy,
    /// A second, independent copy of `sidecar`: what an arm shows against itself
    /// is the noise floor of every comparison.
    Aa,
    /// A proxy in every pod, as an ordinary container beside the application: what
    /// sidecars were before Kubernetes knew them. Only where life cycles matter.
    ClassicSidecar,
    /// Sidecars that are told of no mesh and pass on bytes: what redirection by nftables and two more
    /// sockets cost by themselves. Only where something is timed.
    RedirectSidecar,
    /// The same with the agent and eBPF.
    RedirectAgent,
    /// Somebody else's proxy in every pod. Only where it is asked for by name.
    Peer(&'static Peer),
}

/// Names an arm that there is not.
#[derive(Debug, thiserror::Error)]
pub enum UnknownArm {
    #[error(
        "{0:?} is not an arm: there are none, sidecar, agent, agent+tenancy, aa, classic, redirect-sidecar, redirect-agent, envoy-http, envoy-tcp, haproxy and files that describe \
         others, as bench/peers/envoy-http.yaml does"
    )]
    Name(String),
    #[error(transparent)]
    File(#[from] peer::Unfit),
}

impl Arm {
    /// All that are Duet's or no mesh at all, in the order of the reports.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Sidecar,
        Self::Agent,
        Self::AgentTenancy,
        Self::Aa,
        Self::ClassicSidecar,
        Self::RedirectSidecar,
        Self::RedirectAgent,
    ];

    /// As on the command line and in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sidecar => "sidecar",
            Self::Agent => "agent",
            Self::AgentTenancy => "agent+tenancy",
            Self::Aa => "aa",
            Self::ClassicSidecar => "classic",
            Self::RedirectSidecar => "redirect-sidecar",
            Self::RedirectAgent => "redirect-agent",
            Self::Peer(peer) => &peer.name,
        }
    }

    /// One sentence for the report.
    pub fn description(self) -> &'static str {
        match self {
            Self::None => "No mesh: the same pods on the same network, without any proxy.",
            Self::Sidecar => "One proxy in every pod, reached by nftables in the pod's namespace.",
            Self::Agent => "One proxy on every node, reached by eBPF in the pods' namespaces.",
            Self::AgentTenancy => {
                "The same as agent, and each workload has turns on the proxy's threads (--tenancy on)."
            }
            Self::Aa => {
                "A second, independent copy of the sidecar arm; its difference from the first is \
                 the noise floor."
            }
            Self::ClassicSidecar => {
                "One proxy in every pod, as an ordinary container: what sidecars were before \
                 Kubernetes started them first and ended them last."
            }
            Self::RedirectSidecar => {
                "Redirection alone: the sidecars know of no mesh and pass on bytes, unread and in plaintext."
            }
            Self::RedirectAgent => {
                "Redirection alone: the agents know of no mesh and pass on bytes, unread and in plaintext."
            }
            Self::Peer(peer) => &peer.description,
        }
    }

    /// Where its proxies stand.
    pub fn placement(self) -> Placement {
        match self {
            Self::None => Placement::None,
            Self::Sidecar
            | Self::Aa
            | Self::ClassicSidecar
            | Self::RedirectSidecar
            | Self::Peer(_) => Placement::Sidecar,
            Self::Agent | Self::AgentTenancy | Self::RedirectAgent => Placement::Agent,
        }
    }

    /// The arm it repeats.
    pub fn copy_of(self) -> Option<Self> {
        (self == Self::Aa).then_some(Self::Sidecar)
    }

    /// Whether it has a proxy.
    pub fn meshed(self) -> bool {
        self != Self::None
    }

    /// The executable of Duet's whose proxy it runs.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Peer(_) => None,
            Self::Sidecar | Self::Aa | Self::ClassicSidecar | Self::RedirectSidecar => {
                Some("duet-sidecar")
            }
            Self::Agent | Self::AgentTenancy | Self::RedirectAgent => Some("duet-agent"),
        }
    }

    /// What its proxies are told beside the usual.
    pub fn proxy_args(self) -> &'static [&'static str] {
        match self {
            Self::Agent | Self::RedirectAgent => &["--tenancy", "off"],
            Self::AgentTenancy => &["--tenancy", "on"],
            _ => &[],
        }
    }

    /// In the results' words.
    pub fn placed(self) -> results::Placement {
        match self {
            Self::None => results::Placement::None,
            Self::Sidecar | Self::Aa | Self::ClassicSidecar => results::Placement::Sidecar,
            Self::Agent | Self::AgentTenancy => results::Placement::Agent,
            // No mesh, and so none of the two that are compared.
            Self::RedirectSidecar | Self::RedirectAgent | Self::Peer(_) => {
                results::Placement::External
            }
        }
    }

    /// Whether its proxies only pass on what is redirected to them.
    pub fn redirects_only(self) -> bool {
        matches!(self, Self::RedirectSidecar | Self::RedirectAgent)
    }

    /// Whether it stands beside the comparison to explain it, and so is measured at its headlines only.
    pub fn explains(self) -> bool {
        self.redirects_only() || self.peer().is_some()
    }

    /// Whose it is, if not Duet's.
    pub fn peer(self) -> Option<&'static Peer> {
        match self {
            Self::Peer(peer) => Some(peer),
            _ => None,
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arm {
    type Err = UnknownArm;
    fn from_str(name: &str) -> Result<Self, UnknownArm> {
        if name.contains('/') {
            // As long as the program: an arm is named in many places.
            let peer = Peer::read(Path::new(name))?;
            return Ok(Self::Peer(Box::leak(Box::new(peer))));
        }
        Self::ALL
            .into_iter()
            .chain(peer::built_in().iter().map(Self::Peer))
            .find(|arm| arm.name() == name)
            .ok_or_else(|| UnknownArm::Name(name.to_owned()))
    }
}
