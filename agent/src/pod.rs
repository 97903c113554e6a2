//! One enrolled network namespace, as far as the kernel is concerned.

use crate::interception::{Interception, InterceptionError, Steering};
use crate::kernel::PodKernel;
use crate::maps::MapsError;
use crate::netns::Netns;
use crate::passing::{Inherited, Place};
use crate::record::Record;
use duet_core::capture::{self, INBOUND_PORT, MESH_PORT, OUTBOUND_PORT};
use duet_core::{Capture, vital};
use duet_ebpf::{Appearance, Ip, ListenerKey};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixDatagram};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// So many of its addresses a pod reaches itself at past the agent: one that gives itself
/// more and more must not use up the node's room for them.
const OWN_ADDRESSES: usize = 256;

/// For documentation (RFC 5737, RFC 3849): nobody has a way there but the default one.
const BY_DEFAULT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// When addresses could not be read, or written down.
const READ_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("cannot listen on {address} in {netns}: {error}{hint}")]
    Listen {
        address: SocketAddr,
        netns: String,
        error: io::Error,
        hint: &'static str,
    },
    #[error("cannot keep the listeners of {netns}: {error}")]
    Share { netns: String, error: io::Error },
    #[error("cannot read the addresses of {netns}: {error}")]
    Addresses { netns: String, error: io::Error },
    #[error("{what} is longer than {max} bytes: {value}")]
    TooLong {
        what: &'static str,
        max: usize,
        value: String,
    },
    #[error(transparent)]
    Interception(#[from] InterceptionError),
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// Redirection of one namespace's connections. Dropping it changes nothing in the
/// kernel: that is what an agent's death looks like.
pub struct Pod {
    netns: Arc<Netns>,
    interception: Arc<Interception>,
    steering: Steering,
    watcher: JoinHandle<()>,
    /// Held by the watcher while it writes.
    is_over: Arc<Mutex<bool>>,
    /// The proxy's.
    door: Vec<(Place, OwnedFd)>,
}

impl Pod {
    /// Redirects `netns`'s connections into the capture that is returned.
    ///
    /// Outbound comes last, so that a failure leaves nothing behind and no
    /// connection is sent where nobody listens. Where an earlier agent had it
    /// enrolled, the order makes no difference: all is redirected already.
    pub fn enrol(
        interception: &Arc<Interception>,
        netns: Netns,
        record: &Record,
    ) -> Result<(Self, Capture), PodError> {
        Self::enrol_with(&[], interception, netns, record)
    }

    /// As [`Self::enrol`], with the listeners that an earlier process had, as far as
    /// there are any. They stay open whatever comes of it.
    pub fn enrol_with(
        inherited: &[(Place, OwnedFd)],
        interception: &Arc<Interception>,
        netns: Netns,
        record: &Record,
    ) -> Result<(Self, Capture), PodError> {
        let entry = record.write()?;
        let netns = Arc::new(netns);
        let maps = interception.maps();
        let addresses = |error| PodError::Addresses {
            netns: netns.path().display().to_string(),
            error,
        };
        let was_enrolled = maps.is_enrolled(netns.cookie());
        let kernel = Arc::new(PodKernel::new(netns.clone(), interception.clone()));
        let capture = listen(inherited, &netns, kernel.clone())?;
        let door = door(&capture).map_err(|error| PodError::Share {
            netns: netns.path().display().to_string(),
            error,
        })?;
        let changes = address_changes(&netns).map_err(addresses)?;
        let enrolled = (|| {
            let own = refresh_own(interception, &netns).map_err(addresses)?;
            let appearance = appearance(&netns, &own);
            kernel.appear(appearance);
            maps.appear(netns.cookie(), appearance)?;
            for (port, listeners) in [(INBOUND_PORT, &capture.inbound), (MESH_PORT, &capture.mesh)]
            {
                for listener in listeners {
                    maps.listen(key(&netns, port, listener), listener)?;
                }
            }
            let steering = interception.steer(&netns)?;
            maps.enrol(netns.cookie(), entry)?;
            Ok::<_, PodError>(steering)
        })();
        let steering = match enrolled {
            Ok(steering) => steering,
            Err(error) => {
                // What an earlier agent had enrolled stays closed.
                if !was_enrolled {
                    forget(interception, netns.cookie());
                }
                return Err(error);
            }
        };
        let is_over = Arc::new(Mutex::new(false));
        let watcher = tokio::spawn(vital(watch_addresses(
            changes,
            interception.clone(),
            netns.clone(),
            kernel.clone(),
            is_over.clone(),
        )));
        let pod = Self {
            netns,
            interception: interception.clone(),
            steering,
            watcher,
            is_over,
            door,
        };
        Ok((pod, capture))
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn verify(&self) -> Result<(), String> {
        self.steering.verify(&self.netns)
    }

    /// Steers to the same listeners again, after another agent's program did.
    pub fn steer_again(&mut self) -> Result<(), PodError> {
        self.steering = self.interception.steer(&self.netns)?;
        Ok(())
    }

    /// The listeners and the namespace, once more, to be kept or passed on.
    pub fn share(&self) -> io::Result<Inherited> {
        Inherited::share_of(&self.door, Some(self.netns.as_fd()))
    }

    /// Tells the next agent otherwise.
    pub fn amend(&self, record: &Record) -> Result<(), PodError> {
        let entry = record.write()?;
        Ok(self.interception.maps().enrol(self.netns.cookie(), entry)?)
    }

    /// Ends the redirection of new connections. Those that are there are the
    /// proxy's to end.
    pub fn remove(self) {
        self.watcher.abort();
        *self.is_over.lock() = true;
        forget(&self.interception, self.netns.cookie());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Takes every trace of a namespace out of the kernel. Outbound first, so that it
/// is not redirected to listeners that are about to close.
pub fn forget(interception: &Interception, netns: duet_ebpf::NetnsCookie) {
    let maps = interception.maps();
    let mut outcomes = vec![
        maps.expel(netns).map_err(|error| error.to_string()),
        maps.set_open(netns, false)
            .map_err(|error| error.to_string()),
        maps.disappear(netns).map_err(|error| error.to_string()),
        interception
            .release(netns)
            .map_err(|error| error.to_string()),
    ];
    for port in [INBOUND_PORT, MESH_PORT] {
        for family in [4, 6] {
            let key = ListenerKey {
                netns,
                port: port.into(),
                family,
            };
            outcomes.push(maps.stop_listening(key).map_err(|error| error.to_string()));
        }
    }
    for ip in maps.own(netns) {
        outcomes.push(
            maps.remove_own(netns, ip)
                .map_err(|error| error.to_string()),
        );
    }
    for error in outcomes.into_iter().filter_map(Result::err) {
        tracing::error!(netns, error, "removing a namespace");
    }
}

fn key(netns: &Netns, port: u16, listener: &TcpListener) -> ListenerKey {
    let v4 = listener.local_addr().is_ok_and(|address| address.is_ipv4());
    ListenerKey {
        netns: netns.cookie(),
        port: port.into(),
        family: if v4 { 4 } else { 6 },
    }
}

/// Opens the listeners in the namespace, but for those that are inherited. All are
/// bound to loopback: sk_lookup hands over connections whatever the listener's own
/// address is, and so nothing reaches a listener without having been steered to it.
fn listen(
    inherited: &[(Place, OwnedFd)],
    netns: &Netns,
    kernel: Arc<PodKernel>,
) -> Result<Capture, PodError> {
    let at = |address: SocketAddr| {
        let mut known = inherited.iter();
        match known.find(|(known, _)| *known == place(address)) {
            Some((_, listener)) => adopt(netns, address, listener.as_fd()),
            None => bound(netns, address),
        }
    };
    let on = |port| {
        let mut listeners = vec![at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?];
        match at(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
            Ok(listener) => listeners.push(listener),
            // The namespace does without IPv6.
            Err(PodError::Listen { error, .. })
                if matches!(
                    error.raw_os_error(),
                    Some(nix::libc::EADDRNOTAVAIL | nix::libc::EAFNOSUPPORT)
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(listeners)
    };
    Ok(Capture {
        outbound: on(OUTBOUND_PORT)?,
        inbound: on(INBOUND_PORT)?,
        mesh: on(MESH_PORT)?,
        kernel,
    })
}

fn place(address: SocketAddr) -> Place {
    Place {
        port: address.port(),
        family: if address.is_ipv4() { 4 } else { 6 },
    }
}

fn door(capture: &Capture) -> io::Result<Vec<(Place, OwnedFd)>> {
    let listeners = [&capture.outbound, &capture.inbound, &capture.mesh];
    listeners
        .into_iter()
        .flatten()
        .map(|listener| {
            let file = listener.as_fd().try_clone_to_owned()?;
            Ok((place(listener.local_addr()?), file))
        })
        .collect()
}

fn adopt(
    netns: &Netns,
    address: SocketAddr,
    listener: BorrowedFd<'_>,
) -> Result<TcpListener, PodError> {
    let adopted = listener.try_clone_to_owned().and_then(|listener| {
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    adopted.map_err(|error| PodError::Listen {
        address,
        netns: netns.path().display().to_string(),
        error,
        hint: "",
    })
}

fn bound(netns: &Netns, address: SocketAddr) -> Result<TcpListener, PodError> {
    let listener = netns
        .within(|| capture::listen(address))
        .flatten()
        .and_then(TcpListener::from_std);
    listener.map_err(|error| PodError::Listen {
        hint: match error.kind() {
            io::ErrorKind::AddrInUse => ": another process of the pod has the port",
            io::ErrorKind::AddrNotAvailable => ": is the loopback interface up?",
            _ => "",
        },
        address,
        netns: netns.path().display().to_string(),
        error,
    })
}

/// A socket that can be read from when the namespace's addresses or routes change. It is a
/// netlink socket: as far as reading goes, they are like Unix datagram sockets.
fn address_changes(netns: &Netns) -> io::Result<UnixDatagram> {
    const RTMGRP_IPV4_IFADDR: u32 = 0x10;
    const RTMGRP_IPV6_IFADDR: u32 = 0x100;
    const RTMGRP_IPV4_ROUTE: u32 = 0x40;
    const RTMGRP_IPV6_ROUTE: u32 = 0x400;
    const GROUPS: u32 =
        RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE;
    let open = || -> io::Result<OwnedFd> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = NetlinkAddr::new(0, GROUPS);
        bind(socket.as_raw_fd(), &groups)?;
        Ok(socket)
    };
    UnixDatagram::from_std(netns.within(open)??.into())
}

/// Keeps `OWN` and `APPEARANCE` true for as long as the namespace is enrolled.
async fn watch_addresses(
    changes: UnixDatagram,
    interception: Arc<Interception>,
    netns: Arc<Netns>,
    kernel: Arc<PodKernel>,
    is_over: Arc<Mutex<bool>>,
) {
    let path = netns.path().display();
    let mut buffer = [0; 8192];
    let mut is_stale = false;
    loop {
        // What has changed does not matter: all are read again. Nor does having
        // missed something.
        let again = if is_stale { READ_AGAIN } else { Duration::MAX };
        match timeout(again, changes.recv(&mut buffer)).await {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
            Ok(Err(error)) => {
                return tracing::error!(netns = %path, %error, "watching its addresses");
            }
        }
        while changes.try_recv(&mut buffer).is_ok() {}
        // What is removed by another thread meanwhile is not written again.
        let is_over = is_over.lock();
        if *is_over {
            return;
        }
        let refreshed = refresh_own(&interception, &netns).and_then(|own| {
            let appearance = appearance(&netns, &own);
            kernel.appear(appearance);
            let maps = interception.maps();
            maps.reappear(netns.cookie(), appearance)
                .map_err(io::Error::other)
        });
        if let Err(error) = &refreshed
            && !is_stale
        {
            tracing::error!(netns = %path, %error, "reading its addresses");
        }
        is_stale = refreshed.is_err();
    }
}

fn refresh_own(interception: &Interception, netns: &Netns) -> io::Result<HashSet<IpAddr>> {
    let maps = interception.maps();
    let known: HashSet<IpAddr> = maps.own(netns.cookie()).into_iter().collect();
    let mut wanted = netns.addresses()?;
    if wanted.len() > OWN_ADDRESSES {
        if known.len() < OWN_ADDRESSES {
            let (netns, addresses) = (netns.path().display(), wanted.len());
            tracing::warn!(%netns, addresses, "more than {OWN_ADDRESSES}: it reaches itself at the others by way of the agent");
        }
        let first = BY_DEFAULT.map(|there| netns.source_towards(there));
        let mut in_order: Vec<IpAddr> = wanted.into_iter().collect();
        in_order.sort_unstable_by_key(|ip| (!first.contains(&Some(*ip)), *ip));
        wanted = in_order.into_iter().take(OWN_ADDRESSES).collect();
    }
    // First: what is lost may be another pod's already, and there may be no room to add any.
    for &ip in known.difference(&wanted) {
        maps.remove_own(netns.cookie(), ip)
            .map_err(io::Error::other)?;
    }
    for &ip in wanted.difference(&known) {
        maps.add_own(netns.cookie(), ip).map_err(io::Error::other)?;
    }
    Ok(wanted)
}

/// Which of `own` its default routes lead out from; without one, the lowest. None is for
/// its link alone.
fn appearance(netns: &Netns, own: &HashSet<IpAddr>) -> Appearance {
    let is_wide = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let [v4, v6] = BY_DEFAULT.map(|there| {
        let chosen = netns.source_towards(there);
        let chosen = chosen.filter(|ip| own.contains(ip) && is_wide(ip));
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == there.is_ipv4() && is_wide(ip);
        let lowest = || own.iter().filter(of_family).min().copied();
        chosen.or_else(lowest).map_or(Ip::NONE, Ip::from)
    });
    Appearance { v4, v6 }
}
