//! What the proxy asks the kernel, answered for one enrolled namespace.

use crate::interception::Interception;
use crate::netns::Netns;
use duet_core::capture::{INBOUND_PORT, canonical};
use duet_core::{Direction, Kernel, OrigDst};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpSocket, TcpStream};

pub struct PodKernel {
    pub(crate) netns: Arc<Netns>,
    pub(crate) interception: Arc<Interception>,
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
