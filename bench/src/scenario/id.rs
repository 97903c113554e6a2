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
    /// Bulk transfer.
    L4,
    /// A chain of services.
    L5,
    /// Idle cost by number of pods.
    R1,
    /// Processor time per request.
    R2,
    /// Memory of idle connections.
    R3,
    /// The number of pods from which an agent is cheaper.
    R4,
    /// Who is charged for what.
    R5,
    /// Noisy neighbour.
    I1,
    /// A flood of TLS handshakes.
    I2,
    /// Connections that are hoarded.
    I3,
    /// Clients that are slow on purpose.
    I4,
    /// An elephant flow beside mice.
    I5,
    /// Equal tenants, all saturating.
    I6,
    /// The proxies' processor limit.
    I7,
    /// The proxy runs out of memory.
    I8,
    /// One tenant's poisonous configuration.
    I9,
    /// The proxy is killed.
    F1,
    /// The proxy hangs.
    F2,
    /// The proxy dies again and again.
    F3,
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
    /// Pods come and go.
    S5,
    /// What a person sees.
    S6,
    /// The proxy is upgraded under load.
    U1,
    /// Certificates that live for a minute.
    U2,
    /// Private keys in the proxies' memory.
    X1,
    /// Privileges of the proxies.
    X2,
    /// Forged identities, marks and destinations.
    X3,
    /// From an application to a proxy's key.
    X4,
}

/// Names a scenario that there is not.
#[derive(Debug, thiserror::Error)]
#[error("{wrong:?} is not a scenario: there are {} (`duet-bench list`)", Id::ALL.map(Id::name).join(", "))]
pub struct UnknownScenario {
    wrong: String,
}

impl Id {
    /// All of them, in the order of the reports.
    pub const ALL: [Self; 36] = [
        Self::L1,
        Self::L2,
        Self::L3,
        Self::L4,
        Self::L5,
        Self::R1,
        Self::R2,
        Self::R3,
        Self::R4,
        Self::R5,
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::F1,
        Self::F2,
        Self::F3,
        Self::F4,
        Self::F5,
        Self::S1,
        Self::S2,
        Self::S3,
        Self::S4,
        Self::S5,
        Self::S6,
        Self::U1,
        Self::U2,
        Self::X1,
        Self::X2,
        Self::X3,
        Self::X4,
    ];

    /// "L1".
    pub fn name(self) -> &'static str {
        self.said().0
    }

    /// A heading.
    pub fn title(self) -> &'static str {
        self.said().1
    }

    /// As a platform owner would ask it.
    pub fn question(self) -> &'static str {
        self.said().2
    }

    fn said(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::L1 => (
                "L1",
                "Latency over kept connections",
                "How much longer does a request take with the mesh?",
            ),
            Self::L2 => (
                "L2",
                "A new connection for every request",
                "How much longer does it take to connect and get the first byte?",
            ),
            Self::L3 => (
                "L3",
                "Capacity",
                "How many requests per second does it carry within the objective?",
            ),
            Self::L4 => (
                "L4",
                "Bulk transfer",
                "How fast do large answers come, and what do they cost?",
            ),
            Self::L5 => (
                "L5",
                "A chain of services",
                "How much does every further service on the way add?",
            ),
            Self::R1 => (
                "R1",
                "Idle cost by number of pods",
                "What do the proxies hold while nothing happens, and how does it grow with pods?",
            ),
            Self::R2 => (
                "R2",
                "Processor time per request",
                "How much processor time does the mesh take for one request?",
            ),
            Self::R3 => (
                "R3",
                "Memory of idle connections",
                "What does a connection hold in the proxies that nobody uses?",
            ),
            Self::R4 => (
                "R4",
                "Density",
                "From how many pods on a node is the agent cheaper?",
            ),
            Self::R5 => (
                "R5",
                "Attribution",
                "Is a pod charged for what it makes its proxy use?",
            ),
            Self::I1 => (
                "I1",
                "Noisy neighbour",
                "How much does one service's flood slow its neighbours down?",
            ),
            Self::I2 => (
                "I2",
                "A flood of handshakes",
                "How much does a stranger's flood of handshakes at one pod slow its neighbours down?",
            ),
            Self::I3 => (
                "I3",
                "Hoarded connections",
                "What happens to the others when one pod opens connections and keeps them?",
            ),
            Self::I4 => (
                "I4",
                "Slow clients",
                "What do clients that are slow on purpose do to the others, and to memory?",
            ),
            Self::I5 => (
                "I5",
                "An elephant beside mice",
                "How much does one service's bulk transfer slow its neighbours' requests down?",
            ),
            Self::I6 => (
                "I6",
                "Fair shares",
                "When all pods ask for more than there is, does each get its share?",
            ),
            Self::I7 => (
                "I7",
                "A tight processor limit",
                "How low may the proxies' processor limit be, and who feels it?",
            ),
            Self::I8 => (
                "I8",
                "The proxy runs out of memory",
                "When one pod makes its proxy run out of memory, who goes down with it?",
            ),
            Self::I9 => (
                "I9",
                "Poisonous configuration",
                "What does one tenant's excessive configuration do to the others?",
            ),
            Self::F1 => (
                "F1",
                "The proxy is killed",
                "When a proxy dies, who notices, for how long, and what is lost?",
            ),
            Self::F2 => (
                "F2",
                "The proxy hangs",
                "When a proxy hangs for ten seconds, who waits with it?",
            ),
            Self::F3 => (
                "F3",
                "A crash loop",
                "When a proxy dies again and again, what still works?",
            ),
            Self::F4 => (
                "F4",
                "The control plane is away",
                "What fails, and when, while the control plane is away?",
            ),
            Self::F5 => (
                "F5",
                "Plaintext on the wire with the proxy dead",
                "When a proxy is dead, does anything leave in plaintext?",
            ),
            Self::S1 => (
                "S1",
                "The application connects as its first act",
                "Can an application use the network from its first line on?",
            ),
            Self::S2 => (
                "S2",
                "An init container needs the network",
                "Can an init container use the network?",
            ),
            Self::S3 => (
                "S3",
                "A Job ends",
                "Does a Job end when its application does, with its exit code?",
            ),
            Self::S4 => (
                "S4",
                "A pod is deleted under load",
                "What is lost when a pod is deleted under load?",
            ),
            Self::S5 => (
                "S5",
                "Pods come and go",
                "What do others feel of pods that come and go, and what stays behind?",
            ),
            Self::S6 => (
                "S6",
                "What a person sees",
                "What does somebody see who lists the pods and reads a log?",
            ),
            Self::U1 => (
                "U1",
                "The proxy is upgraded under load",
                "What does an upgrade of the proxy cost those that use it?",
            ),
            Self::U2 => (
                "U2",
                "Short-lived certificates",
                "What does it cost to renew every certificate within a minute?",
            ),
            Self::X1 => (
                "X1",
                "Private keys in the proxies' memory",
                "Whose private keys does someone get who reads a proxy's memory?",
            ),
            Self::X2 => (
                "X2",
                "Privileges of the proxies",
                "What may someone do on the node who takes over a proxy?",
            ),
            Self::X3 => (
                "X3",
                "Forgery",
                "Does the mesh believe somebody who claims to be another?",
            ),
            Self::X4 => (
                "X4",
                "From an application to a key",
                "Can somebody who has taken over an application get at a proxy's key?",
            ),
        }
    }

    /// What it needs beyond network namespaces and cgroups.
    pub fn needs(self) -> &'static str {
        match self {
            Self::R2 => "BPF statistics (Linux 5.8), for the eBPF share",
            Self::F5 | Self::X3 => "packet sockets",
            Self::X1 | Self::U2 => "/proc/<pid>/mem of the proxies",
            _ if self.needs_kubelet() => "a kubelet: --cluster kube",
            _ if self.needs_netns() => "network namespaces: --cluster netns",
            _ => "–",
        }
    }

    /// Whether it needs a kubelet, and so a real cluster.
    pub fn needs_kubelet(self) -> bool {
        matches!(
            self,
            Self::I8 | Self::S1 | Self::S2 | Self::S3 | Self::S4 | Self::S6
        )
    }

    /// Whether it can only be asked of network namespaces so far.
    pub fn needs_netns(self) -> bool {
        matches!(
            self,
            Self::L4
                | Self::I2
                | Self::I6
                | Self::I7
                | Self::I9
                | Self::F3
                | Self::F4
                | Self::U2
                | Self::X3
                | Self::X4
        )
    }

    /// Whether a profile asks it by itself; whatever is named is asked in each. A quick run has
    /// eight minutes, and a smoke run two.
    pub fn asked_in(self, profile: Profile) -> bool {
        profile == Profile::Full
            || matches!(
                self,
                Self::L1
                    | Self::L2
                    | Self::R1
                    | Self::R2
                    | Self::R4
                    | Self::I1
                    | Self::F1
                    | Self::F5
                    | Self::X1
                    | Self::X2
            )
            || self.needs_kubelet()
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
                Self::I1 | Self::I2 | Self::I3 | Self::I5 | Self::I6 => true,
                Self::L1 | Self::L2 | Self::R2 => profile == Profile::Full,
                _ => false,
            };
        }
        if arm.redirects_only() {
            return matches!(self, Self::L1 | Self::L2 | Self::R2);
        }
        if arm.peer().is_some() {
            return match self {
                Self::L1 | Self::L2 | Self::R2 => true,
                // A full run has an hour.
                Self::L3 | Self::R1 | Self::R3 => profile != Profile::Full,
                _ => false,
            };
        }
        match self {
            Self::L1
            | Self::L2
            | Self::L3
            | Self::L4
            | Self::L5
            | Self::R2
            | Self::I1
            | Self::I2
            | Self::I3
            | Self::I4
            | Self::I5
            | Self::I6 => true,
            Self::I7 => arm.meshed(),
            Self::R1 | Self::R4 if profile == Profile::Full => arm.meshed(),
            Self::F5 | Self::S1 | Self::S2 | Self::S3 | Self::S4 | Self::S6 => arm != Arm::Aa,
            _ => matches!(arm, Arm::Sidecar | Arm::Agent),
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
            .ok_or_else(|| UnknownScenario {
                wrong: name.to_owned(),
            })
    }
}
