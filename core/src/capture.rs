//! The seam between the core and a placement.
//!
//! A mode redirects connections somehow, nftables or eBPF, and hands the core a
//! [`Capture`] for each workload: the listeners that its connections arrive on,
//! and a [`Kernel`] that knows what only the kernel knows. Which listener
//! accepted a connection says which workload it belongs to and in which direction
//! it goes; nothing else differs between the modes.

use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Where connections *from* the application are redirected to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where connections *to* the application that are not from the mesh arrive.
pub const INBOUND_PORT: u16 = 15006;
/// Where meshed peers connect: mTLS 1.3, ALPN `h2`.
pub const MESH_PORT: u16 = 15008;

/// One workload's connections.
pub struct Capture {
    /// On [`OUTBOUND_PORT`].
    pub outbound: Vec<TcpListener>,
    /// On [`INBOUND_PORT`].
    pub inbound: Vec<TcpListener>,
    /// On [`MESH_PORT`].
    pub mesh: Vec<TcpListener>,
    pub kernel: Arc<dyn Kernel>,
}

/// Connections that may wait to be accepted; the kernel caps it at
/// net.core.somaxconn, 4096 by default since Linux 5.4.
const BACKLOG: i32 = 4096;

/// Listens in the network namespace that the calling thread is in, for one family:
/// an IPv6 address does not stand for IPv4 too.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // An earlier proxy's connections may be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What a mode asks the kernel on the core's behalf.
pub trait Kernel: Send + Sync + 'static {
    /// Where the application meant `accepted` to go, before it was redirected to
    /// [`OUTBOUND_PORT`] or [`INBOUND_PORT`].
    fn original_dst(&self, accepted: &TcpStream, direction: Direction) -> io::Result<OrigDst>;

    /// Where an application that was redirected to [`OUTBOUND_PORT`] calls from: what the
    /// socket says, unless that is owed to the redirection.
    fn client(&self, said: SocketAddr) -> SocketAddr {
        said
    }

    /// A new socket in the workload's own network, exempt from redirection, for a
    /// connection to `to`: a peer, or the application itself.
    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The address a client asked for, as opposed to the one it was redirected to.
/// IPv4-mapped IPv6 addresses are IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

impl OrigDst {
    pub fn new(address: SocketAddr) -> Self {
        Self(canonical(address))
    }
}

impl fmt::Display for OrigDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `::ffff:a.b.c.d` is `a.b.c.d`.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A workload's name, `namespace/name`, unique in a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl WorkloadName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a workload: write namespace/name")]
pub struct InvalidWorkloadName(String);

impl FromStr for WorkloadName {
    type Err = InvalidWorkloadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::new(namespace, name))
            }
            _ => Err(InvalidWorkloadName(text.to_owned())),
        }
    }
}
