//! The proxy's end of the redirection: listeners, and `SO_ORIGINAL_DST`.
//!
//! Each port has one listener for IPv4 and one for IPv6, not one for both: the
//! kernel keeps original destinations per family, and a connection that comes
//! out of an IPv4 listener is asked for the right one without guessing. An
//! application's IPv4-mapped connection is IPv4 on the wire and arrives there.
//!
//! The outbound port listens on loopback only, which is where the kernel redirects
//! the pod's own connections: nobody outside may borrow the pod's identity by
//! connecting to it.

use duet_core::capture::{
    self, Capture, Direction, INBOUND_PORT, Kernel, MESH_PORT, OUTBOUND_PORT, OrigDst, canonical,
};
use socket2::SockRef;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Why the proxy cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct Error {
    address: SocketAddr,
    source: io::Error,
}

/// The pod's connections, once `init` redirects them. Must be called within a
/// tokio runtime.
pub fn listen() -> Result<Capture, Error> {
    let anywhere = |port| {
        listen_on([
            (Ipv4Addr::UNSPECIFIED, port).into(),
            (Ipv6Addr::UNSPECIFIED, port).into(),
        ])
    };
    Ok(Capture {
        outbound: listen_on([
            (Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into(),
            (Ipv6Addr::LOCALHOST, OUTBOUND_PORT).into(),
        ])?,
        inbound: anywhere(INBOUND_PORT)?,
        mesh: anywhere(MESH_PORT)?,
        kernel: Arc::new(Conntrack),
    })
}

/// A host without IPv6 has no connections of that family to lose.
fn listen_on([v4, v6]: [SocketAddr; 2]) -> Result<Vec<TcpListener>, Error> {
    let bind = |address| capture::listen(address).and_then(TcpListener::from_std);
    let mut listeners = vec![bind(v4).map_err(|source| Error {
        address: v4,
        source,
    })?];
    match bind(v6) {
        Ok(listener) => listeners.push(listener),
        Err(error) if has_no_ipv6(&error) => {
            tracing::info!(address = %v6, %error, "no IPv6 here");
        }
        Err(source) => {
            return Err(Error {
                address: v6,
                source,
            });
        }
    }
    Ok(listeners)
}

fn has_no_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
    )
}

/// What nftables changed, asked back from conntrack. Needs no privilege.
struct Conntrack;

impl Kernel for Conntrack {
    fn original_dst(&self, accepted: &TcpStream, _: Direction) -> io::Result<OrigDst> {
        let local = accepted.local_addr()?;
        let socket = SockRef::from(accepted);
        let original = match local {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        }
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("not redirected, or duet-sidecar init did not run: {error}"),
            )
        })?
        .as_socket()
        .ok_or_else(|| io::Error::other("an original destination that is not IP"))?;

        // Somebody connected to the proxy's port itself. Proxied, that would be a
        // connection to the proxy's port, and so on for ever.
        if canonical(original) == canonical(local) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("connected to {local} itself, which only takes redirected connections"),
            ));
        }
        Ok(OrigDst::new(original))
    }

    /// Any socket is in the pod's network, and exempt by the proxy's uid.
    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        match canonical(to) {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }
    }
}
