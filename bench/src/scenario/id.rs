//! The questions that a run can ask, by name.

use crate::arm::Arm;
use crate::results::Profile;
use std::fmt;
use std::str::FromStr;

/// A scenario's short name, as in the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// Latency over kept connections.
    L1,
    /// A new connection for every request.
    L2,
    /// Capacity within the objective.
    L3,
    /// Idle cost by number of pods.
    R1,
    /// Processor time per request.
    R2,
    /// Memory of idle connections.
    R3,
    /// Noisy neighbour.
    I1,
    /// A flood of new connections.
    I2,
    /// Connections that are hoarded.
    I3,
    /// The proxy runs out of memory.
    I8,
    /// The proxy is killed.
    F1,
    /// The proxy hangs.
    F2,
    /// The control plane is away.
    F4,
    /// Plaintext on the wire while the proxy is dead.
    F5,
    /// The application connects as its first act.
    S1,
    /// An init container needs the network.
    S2,
    /// A Job ends.
    S3,
    /// A pod is deleted under load.
    S4,
    /// What a person sees.
    S6,
    /// The proxy is upgraded under load.
    U1,
    /// Private keys in the proxies' memory.
    X1,
    /// Privileges of the proxies.
    X2,
}

/// Names a scenario that there is not.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a scenario: there are L1, L2, L3, R1, R2, R3, I1, I2, I3, I8, F1, F2, F4, F5, S1, S2, S3, S4, S6, \
     U1, X1 and X2 (`duet-bench list`)"
)]
pub struct UnknownScenario(String);

impl Id {
    /// All of them, in the order of the reports.
    pub const ALL: [Self; 22] = [
        Self::L1,
        Self::L2,
        Self::L3,
        Self::R1,
        Self::R2,
        Self::R3,
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I8,
        Self::F1,
        Self::F2,
        Self::F4,
        Self::F5,
        Self::S1,
        Self::S2,
        Self::S3,
        Self::S4,
        Self::S6,
        Self::U1,
        Self::X1,
        Self::X2,
    ];

    /// "L1".
    pub fn name(self) -> &'static str {
        match self {
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::R1 => "R1",
            Self::R2 => "R2",
            Self::R3 => "R3",
            Self::I1 => "I1",
            Self::I2 => "I2",
            Self::I3 => "I3",
            Self::I8 => "I8",
            Self::F1 => "F1",
            Self::F2 => "F2",
            Self::F4 => "F4",
            Self::F5 => "F5",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::S4 => "S4",
            Self::S6 => "S6",
            Self::U1 => "U1",
            Self::X1 => "X1",
            Self::X2 => "X2",
        }
    }

    /// A heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::L1 => "Latency over kept connections",
            Self::L2 => "A new connection for every request",
            Self::L3 => "Capacity",
            Self::R1 => "Idle cost by number of pods",
            Self::R2 => "Processor time per request",
            Self::R3 => "Memory of idle connections",
            Self::I1 => "Noisy neighbour",
            Self::I2 => "A flood of new connections",
            Self::I3 => "Hoarded connections",
            Self::I8 => "The proxy runs out of memory",
            Self::F1 => "The proxy is killed",
            Self::F2 => "The proxy hangs",
            Self::F4 => "The control plane is away",
            Self::F5 => "Plaintext on the wire with the proxy dead",
            Self::S1 => "The application connects as its first act",
            Self::S2 => "An init container needs the network",
            Self::S3 => "A Job ends",
            Self::S4 => "A pod is deleted under load",
            Self::S6 => "What a person sees",
            Self::U1 => "The proxy is upgraded under load",
            Self::X1 => "Private keys in the proxies' memory",
            Self::X2 => "Privileges of the proxies",
        }
    }

    /// As a platform owner would ask it.
    pub fn question(self) -> &'static str {
        match self {
            Self::L1 => "How much longer does a request take with the mesh?",
            Self::L2 => "How much longer does it take to connect and get the first byte?",
            Self::L3 => "How many requests per second does it carry within the objective?",
            Self::R1 => {
                "What do the proxies hold while nothing happens, and how does it grow with pods?"
            }
            Self::R2 => "How much processor time does the mesh take for one request?",
            Self::R3 => "What does a connection hold in the proxies that nobody uses?",
            Self::I1 => "How much does one service's flood slow its neighbours down?",
            Self::I2 => {
                "How much does one service's flood of new connections slow its neighbours down?"
            }
            Self::I3 => "What happens to the others when one pod opens connections and keeps them?",
            Self::I8 => "When one pod makes its proxy run out of memory, who goes down with it?",
            Self::F1 => "When a proxy dies, who notices, for how long, and what is lost?",
            Self::F2 => "When a proxy hangs for ten seconds, who waits with it?",
            Self::F4 => "What fails, and when, while the control plane is away?",
            Self::S1 => "Can an application use the network from its first line on?",
            Self::S2 => "Can an init container use the network?",
            Self::S3 => "Does a Job end when its application does, with its exit code?",
            Self::S4 => "What is lost when a pod is deleted under load?",
            Self::S6 => "What does somebody see who lists the pods and reads a log?",
            Self::U1 => "What does an upgrade of the proxy cost those that use it?",
            Self::F5 => "When a proxy is dead, does anything leave in plaintext?",
            Self::X1 => "Whose private keys does someone get who reads a proxy's memory?",
            Self::X2 => "What may someone do on the node who takes over a proxy?",
        }
    }

    /// What it needs beyond network namespaces and cgroups.
    pub fn needs(self) -> &'static str {
        match self {
            Self::L1
            | Self::L2
            | Self::L3
            | Self::I1
            | Self::I2
            | Self::I3
            | Self::R1
            | Self::R3 => "–",
            Self::R2 => "BPF statistics (Linux 5.8), for the eBPF share",
            Self::F1 => "–",
            Self::F2 | Self::F4 | Self::X2 => "network namespaces: --cluster netns",
            Self::F5 => "packet sockets",
            Self::X1 => "/proc/<pid>/mem of the proxies",
            Self::I8 | Self::S1 | Self::S2 | Self::S3 | Self::S4 | Self::S6 | Self::U1 => {
                "a kubelet: --cluster kube"
            }
        }
    }

    /// Whether it needs a kubelet, and so a real cluster.
    pub fn needs_kubelet(self) -> bool {
        matches!(
            self,
            Self::I8 | Self::S1 | Self::S2 | Self::S3 | Self::S4 | Self::S6 | Self::U1
        )
    }

    /// Whether it can only be asked of network namespaces so far.
    pub fn needs_netns(self) -> bool {
        matches!(self, Self::F2 | Self::F4 | Self::X2)
    }

    /// Whether a profile asks it by itself; whatever is named is asked in each. A quick run has
    /// eight minutes, and a smoke run two.
    pub fn asked_in(self, profile: Profile) -> bool {
        profile == Profile::Full
            || !matches!(
                self,
                Self::L3 | Self::R3 | Self::I2 | Self::I3 | Self::F2 | Self::F4
            )
    }

    /// Whether it kills or replaces proxies that others may be using.
    pub fn disturbs_agents(self) -> bool {
        matches!(
            self,
            Self::R1 | Self::F1 | Self::F2 | Self::F5 | Self::I8 | Self::U1
        )
    }

    /// Whether an arm has anything to say in it. The noise floor matters where
    /// something is timed; counts have none, and memory's is next to nothing.
    pub fn runs_in(self, arm: Arm, profile: Profile) -> bool {
        if arm == Arm::ClassicSidecar {
            return matches!(self, Self::S1 | Self::S2 | Self::S3 | Self::S4 | Self::S6);
        }
        if arm == Arm::AgentTenancy {
            return match self {
                Self::I1 | Self::I2 | Self::I3 => true,
                Self::L1 | Self::L2 | Self::L3 | Self::R2 => profile == Profile::Full,
                _ => false,
            };
        }
        if arm.peer().is_some() {
            return matches!(
                self,
                Self::L1 | Self::L2 | Self::L3 | Self::R1 | Self::R2 | Self::R3
            );
        }
        match self {
            Self::L1 | Self::L2 | Self::L3 | Self::R2 | Self::I1 | Self::I2 | Self::I3 => true,
            Self::R1 if profile == Profile::Full => arm.meshed(),
            Self::R1
            | Self::R3
            | Self::F1
            | Self::F2
            | Self::F4
            | Self::X1
            | Self::X2
            | Self::I8
            | Self::U1 => matches!(arm, Arm::Sidecar | Arm::Agent),
            Self::F5 | Self::S1 | Self::S2 | Self::S3 | Self::S4 | Self::S6 => arm != Arm::Aa,
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Id {
    type Err = UnknownScenario;
    fn from_str(name: &str) -> Result<Self, UnknownScenario> {
        Self::ALL
            .into_iter()
            .find(|id| id.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownScenario(name.to_owned()))
    }
}
