//! What the proxy asks the kernel, answered for one enrolled namespace.

use crate::interception::Interception;
use crate::netns::Netns;
use duet_core::capture::{INBOUND_PORT, canonical};
use duet_core::{Direction, Kernel, OrigDst};
use duet_ebpf::{Appearance, Ip};
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpSocket, TcpStream};

pub struct PodKernel {
    netns: Arc<Netns>,
    interception: Arc<Interception>,
    appearance: Mutex<Appearance>,
}

impl PodKernel {
    pub fn new(netns: Arc<Netns>, interception: Arc<Interception>) -> Self {
        let none = Appearance {
            v4: Ip::NONE,
            v6: Ip::NONE,
        };
        Self {
            netns,
            interception,
            appearance: Mutex::new(none),
        }
    }

    /// What the pod's redirected connections seem to come from, to itself and in what
    /// is told of them.
    pub fn appear(&self, as_: Appearance) {
        *self.appearance.lock() = as_;
    }
}

impl Kernel for PodKernel {
    fn original_dst(&self, accepted: &TcpStream, direction: Direction) -> io::Result<OrigDst> {
        match direction {
            Direction::Outbound => {
                let client = canonical(accepted.peer_addr()?);
                let maps = self.interception.maps();
                match maps.take_target(self.netns.cookie(), client)? {
                    Some(target) => Ok(OrigDst::new(target)),
                    None => Err(not_redirected(client)),
                }
            }
            // sk_lookup changes no address: the socket's own is what was asked for.
            Direction::Inbound => {
                let local = accepted.local_addr()?;
                if local.port() == INBOUND_PORT {
                    return Err(not_redirected(accepted.peer_addr()?));
                }
                Ok(OrigDst::new(local))
            }
        }
    }

    /// It called over loopback, to where connect(2) was redirected.
    fn client(&self, said: SocketAddr) -> SocketAddr {
        let appearance = *self.appearance.lock();
        let shown = match said {
            SocketAddr::V4(_) => appearance.v4,
            SocketAddr::V6(_) => appearance.v6,
        };
        // As the program that answers getsockname(2): another was the application's choice.
        let is_owed = [Ip::LOOPBACK4, Ip::LOOPBACK6].contains(&said.ip().into());
        match is_owed && shown != Ip::NONE {
            true => SocketAddr::new(shown.into(), said.port()),
            false => said,
        }
    }

    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        let make = || match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = self.netns.within(make)??;
        self.interception.maps().exempt(&socket)?;
        Ok(socket)
    }
}

/// A process of the pod has connected to the agent's listener by itself.
fn not_redirected(client: SocketAddr) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{client} connected to the agent itself: nothing says where it wants to go"),
    )
}
