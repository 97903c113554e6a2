//! What goes over the wire: every packet on every interface of a node, and
//! whether something in it is in the clear that should not be.
//!
//! A packet that a node forwards is seen twice, as it comes and as it goes:
//! the report counts sightings, and names the interfaces.

use super::error::{ClusterError, Result};
use super::netns::Netns;
use nix::cmsg_space;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// Room for packets that wait to be read: bulk traffic comes in bursts.
const RECEIVE_BUFFER: usize = 64 << 20;
/// The kernel hands over segments that were never cut to the MTU: up to 64 KiB,
/// or more with BIG TCP.
const PACKET_MAX: usize = 512 << 10;
const LOOK_EVERY_MS: i64 = 20;
/// How many sightings are described.
const EXAMPLES_MAX: usize = 8;

/// A capture under way.
#[derive(Debug)]
pub struct WireCapture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<CaptureReport>>,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureReport {
    pub packets: u64,
    pub bytes: u64,
    /// Payload of TCP, without headers.
    pub tcp_payload_bytes: u64,
    /// Packets that the kernel had no room to hand over. Unless this is 0, an
    /// absence proves nothing.
    pub lost: u64,
    /// Packets in which a marker stood, and their TCP payload.
    pub plaintext_packets: u64,
    pub plaintext_bytes: u64,
    /// Sightings by interface.
    pub plaintext_by_interface: BTreeMap<String, u64>,
    /// The first few sightings: interface, source, destination.
    pub examples: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    interface: usize,
    from: SocketAddr,
    to: SocketAddr,
}

struct Watch {
    markers: Vec<Vec<u8>>,
    /// The end of each flow's last segment: a marker may be cut in two.
    tails: HashMap<Flow, Vec<u8>>,
    names: HashMap<usize, String>,
    report: CaptureReport,
}

// === impl WireCapture ===

impl WireCapture {
    /// Watches all interfaces of a namespace for any of the markers. Nothing
    /// sent after this returns is missed.
    pub fn start(netns: &Netns, markers: &[&[u8]]) -> Result<Self> {
        Self::start_in(Some(netns), markers)
    }

    /// The same in this process's own namespace.
    pub fn start_here(markers: &[&[u8]]) -> Result<Self> {
        Self::start_in(None, markers)
    }

    fn start_in(netns: Option<&Netns>, markers: &[&[u8]]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (opened, open) = mpsc::channel();
        let mut watch = Watch {
            markers: markers.iter().map(|marker| marker.to_vec()).collect(),
            tails: HashMap::new(),
            names: HashMap::new(),
            report: CaptureReport::default(),
        };
        let thread = thread::Builder::new()
            .name("wire-capture".to_owned())
            .spawn({
                let (netns, stop) = (netns.cloned(), stop.clone());
                move || {
                    let entered = netns.map_or(Ok(()), |netns| netns.enter());
                    let socket = match entered.and_then(|()| open_socket()) {
                        Ok(socket) => socket,
                        Err(error) => {
                            let _ = opened.send(Err(error));
                            return CaptureReport::default();
                        }
                    };
                    let _ = opened.send(Ok(()));
                    watch.until(&socket, &stop);
                    watch.report
                }
            })
            .map_err(ClusterError::io("start the capturing thread"))?;
        match open.recv() {
            Ok(Ok(())) => Ok(Self {
                stop,
                thread: Some(thread),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ClusterError::Unsupported(
                "the capturing thread ended early".to_owned(),
            )),
        }
    }

    /// Ends the capture, once all that has arrived is read.
    pub fn stop(mut self) -> Result<CaptureReport> {
        self.end()
            .ok_or_else(|| ClusterError::Unsupported("the capturing thread panicked".to_owned()))
    }

    fn end(&mut self) -> Option<CaptureReport> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for WireCapture {
    fn drop(&mut self) {
        self.end();
    }
}

fn open_socket() -> Result<OwnedFd> {
    let failed = || ClusterError::errno("open a packet socket");
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .map_err(failed())?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(failed())?;
    setsockopt(&socket, sockopt::RxqOvfl, &1).map_err(failed())?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::milliseconds(LOOK_EVERY_MS),
    )
    .map_err(failed())?;
    Ok(socket)
}

// === impl Watch ===

impl Watch {
    /// Reads until told to stop and nothing is left.
    fn until(&mut self, socket: &OwnedFd, stop: &AtomicBool) {
        let mut packet = vec![0; PACKET_MAX];
        let mut control = cmsg_space!(u32);
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            let mut parts = [IoSliceMut::new(&mut packet)];
            let received = recvmsg::<LinkAddr>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                // The last look must not wait for a pause in the traffic.
                if stopping {
                    MsgFlags::MSG_DONTWAIT
                } else {
                    MsgFlags::empty()
                },
            );
            match received {
                Ok(message) => {
                    if let Ok(notes) = message.cmsgs() {
                        for note in notes {
                            if let ControlMessageOwned::RxqOvfl(lost) = note {
                                self.report.lost = u64::from(lost);
                            }
                        }
                    }
                    let interface = message.address.map_or(0, |address| address.ifindex());
                    let length = message.bytes;
                    self.see(interface, &packet[..length]);
                }
                Err(nix::Error::EINTR) => {}
                // Nothing came for a while.
                Err(nix::Error::EAGAIN) if stopping => return,
                Err(nix::Error::EAGAIN) => {}
                // An interface that went down says so once.
                Err(nix::Error::ENETDOWN) => {}
                Err(_) => return,
            }
        }
    }

    fn see(&mut self, interface: usize, frame: &[u8]) {
        self.report.packets += 1;
        self.report.bytes += frame.len() as u64;
        let segment = tcp_segment(frame);
        let (flow, payload) = match segment {
            Some((from, to, payload)) => (
                Some(Flow {
                    interface,
                    from,
                    to,
                }),
                payload,
            ),
            None => (None, frame),
        };
        if flow.is_some() {
            self.report.tcp_payload_bytes += payload.len() as u64;
        }
        if payload.is_empty() || !self.has_marker(flow, payload) {
            return;
        }
        self.report.plaintext_packets += 1;
        self.report.plaintext_bytes += payload.len() as u64;
        let name = self
            .names
            .entry(interface)
            .or_insert_with(|| {
                if_indextoname(interface as u32)
                    .ok()
                    .and_then(|name| name.into_string().ok())
                    .unwrap_or_else(|| format!("interface {interface}"))
            })
            .clone();
        if self.report.examples.len() < EXAMPLES_MAX {
            let what = match flow {
                Some(Flow { from, to, .. }) => format!("{name}: {from} -> {to}"),
                None => format!("{name}: not TCP"),
            };
            self.report.examples.push(what);
        }
        *self.report.plaintext_by_interface.entry(name).or_default() += 1;
    }

    fn has_marker(&mut self, flow: Option<Flow>, payload: &[u8]) -> bool {
        let found_within = self.markers.iter().any(|marker| contains(payload, marker));
        let Some(flow) = flow else {
            return found_within;
        };
        let longest = self.markers.iter().map(Vec::len).max().unwrap_or(0);
        let keep = longest.saturating_sub(1);
        let tail = self.tails.entry(flow).or_default();
        let found_across = !found_within && !tail.is_empty() && {
            let mut seam = tail.clone();
            seam.extend_from_slice(&payload[..payload.len().min(keep)]);
            self.markers.iter().any(|marker| contains(&seam, marker))
        };
        if payload.len() >= keep {
            tail.clear();
            tail.extend_from_slice(&payload[payload.len() - keep..]);
        } else {
            tail.extend_from_slice(payload);
            let surplus = tail.len().saturating_sub(keep);
            tail.drain(..surplus);
        }
        if found_across {
            // Seen once is enough: what is kept must not hold it again.
            tail.clear();
        }
        found_within || found_across
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else {
        return false;
    };
    let mut left = haystack;
    while let Some(at) = left.iter().position(|byte| byte == first) {
        left = &left[at + 1..];
        if left.starts_with(rest) {
            return true;
        }
    }
    false
}

/// Source, destination and payload of an Ethernet frame that carries TCP.
fn tcp_segment(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    const TCP: u8 = 6;
    let word = |bytes: &[u8], at: usize| -> Option<usize> {
        Some(usize::from(u16::from_be_bytes(
            bytes.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let packet = frame.get(14..)?;
    let (from, to, segment): (IpAddr, IpAddr, &[u8]) = match word(frame, 12)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let length = word(packet, 2)?;
            if *packet.get(9)? != TCP {
                return None;
            }
            let address = |at: usize| -> Option<Ipv4Addr> {
                Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into())
            };
            // Frames are padded; 0 stands for a segment too long for the field.
            let end = if length == 0 {
                packet.len()
            } else {
                length.min(packet.len())
            };
            (
                address(12)?.into(),
                address(16)?.into(),
                packet.get(header..end)?,
            )
        }
        0x86dd => {
            if *packet.get(6)? != TCP {
                return None;
            }
            let length = word(packet, 4)?;
            let address = |at: usize| -> Option<Ipv6Addr> {
                Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into())
            };
            let end = if length == 0 {
                packet.len()
            } else {
                (40 + length).min(packet.len())
            };
            (
                address(8)?.into(),
                address(24)?.into(),
                packet.get(40..end)?,
            )
        }
        _ => return None,
    };
    let offset = usize::from(segment.get(12)? >> 4) * 4;
    let port = |at| word(segment, at).map(|port| port as u16);
    Some((
        SocketAddr::new(from, port(0)?),
        SocketAddr::new(to, port(2)?),
        segment.get(offset..)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        let length = (20 + 20 + payload.len()) as u16;
        frame.extend([0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([10, 64, 1, 2, 10, 64, 2, 2]);
        frame.extend([0x80, 0x00, 0x1f, 0x90]);
        frame.extend([0; 8]);
        frame.extend([0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn watch(marker: &str) -> Watch {
        Watch {
            markers: vec![marker.as_bytes().to_vec()],
            tails: HashMap::new(),
            names: HashMap::from([(3, "eth0".to_owned())]),
            report: CaptureReport::default(),
        }
    }

    #[test]
    fn reads_addresses_and_payload() {
        let mut bytes = frame(b"hello");
        bytes.extend([0; 6]); // Ethernet's padding
        let (from, to, payload) = tcp_segment(&bytes).unwrap();
        assert_eq!(from, "10.64.1.2:32768".parse().unwrap());
        assert_eq!(to, "10.64.2.2:8080".parse().unwrap());
        assert_eq!(payload, b"hello");
        assert_eq!(tcp_segment(&bytes[..40]), None);
    }

    #[test]
    fn finds_a_marker_within_and_across_segments() {
        let mut watch = watch("PLAINTEXT");
        watch.see(3, &frame(b"xx PLAINTEXT yy"));
        assert_eq!(watch.report.plaintext_packets, 1);
        watch.see(3, &frame(b"and once more PLAI"));
        watch.see(3, &frame(b"NT"));
        assert_eq!(watch.report.plaintext_packets, 1);
        watch.see(3, &frame(b"EXT"));
        watch.see(3, &frame(b"EXT"));
        assert_eq!(watch.report.plaintext_packets, 2);
        assert_eq!(watch.report.plaintext_by_interface["eth0"], 2);
        assert_eq!(watch.report.packets, 5);
    }

    #[test]
    fn ciphertext_is_not_plaintext() {
        let mut watch = watch("PLAINTEXT");
        watch.see(3, &frame(b"PLAINTEX-PLAINTE-PPLAINTEX"));
        assert_eq!(watch.report.plaintext_packets, 0);
    }
}
