//! A node: many pods, each on a link of its own, routed by one namespace; and all that
//! passes those links on the node's side.

#![allow(dead_code, reason = "each test file uses some of it")]

use super::world::{TestPod, World};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{IoSliceMut, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::Scope;
use std::time::Duration;

/// Where a pod's packets go first.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 254);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 1, 0, 0, 0, 0xffff);

pub struct Node {
    pub pods: Vec<TestPod>,
    id: String,
    /// The routing one.
    inner: TestPod,
}

impl Node {
    pub fn new(world: &World, pods: u8) -> Self {
        let id = &world.id;
        let name = format!("duet-test-{id}-node");
        ip(&["netns", "add", &name], "");
        let inner = TestPod {
            path: Path::new("/run/netns").join(&name),
            v4: GATEWAY4.into(),
            v6: GATEWAY6.into(),
        };
        inner.run(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
            }
        });
        ip(&["-n", &name, "link", "set", "lo", "up"], "");
        let mut node = Self {
            pods: Vec::new(),
            id: id.clone(),
            inner,
        };
        for number in 0..pods {
            let pod = node.make(number);
            node.pods.push(pod);
        }
        node
    }

    /// Deletes every pod and makes it again, in the same place.
    pub fn make_again(&mut self) {
        for number in 0..self.pods.len() as u8 {
            self.remove(number);
            self.pods[usize::from(number)] = self.make(number);
        }
    }

    /// One more, which is the caller's to remove.
    pub fn another(&self, number: u8) -> TestPod {
        self.make(number)
    }

    pub fn remove(&self, number: u8) {
        ip(&["netns", "del", &self.name(number)], "");
        // Its end here goes when the namespace does, which is not at once.
        let link = format!("veth{number}");
        let _ = Command::new("ip")
            .args(["-n", &format!("duet-test-{}-node", self.id)])
            .args(["link", "del", &link])
            .output();
    }

    fn name(&self, number: u8) -> String {
        format!("duet-test-{}-p{number}", self.id)
    }

    fn make(&self, number: u8) -> TestPod {
        let (name, node) = (self.name(number), format!("duet-test-{}-node", self.id));
        let v4 = Ipv4Addr::new(10, 77, 1, number + 1);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 1, 0, 0, 0, u16::from(number) + 1);
        ip(&["netns", "add", &name], "");
        ip(
            &["-n", &name, "-batch", "-"],
            &format!(
                "link set lo up\n\
                 link add eth0 type veth peer name veth{number} netns {node}\n\
                 addr add {v4}/32 dev eth0\n\
                 addr add {v6}/128 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add {GATEWAY4} dev eth0 scope link\n\
                 route add default via {GATEWAY4} dev eth0\n\
                 route add {GATEWAY6} dev eth0\n\
                 route add default via {GATEWAY6} dev eth0\n"
            ),
        );
        ip(
            &["-n", &node, "-batch", "-"],
            &format!(
                "addr add {GATEWAY4}/32 dev veth{number}\n\
                 addr add {GATEWAY6}/128 dev veth{number} nodad\n\
                 link set veth{number} up\n\
                 route add {v4} dev veth{number} scope link\n\
                 route add {v6} dev veth{number}\n"
            ),
        );
        TestPod {
            path: PathBuf::from("/run/netns").join(&name),
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// What passes the node's ends of all links, both ways.
    pub fn tap(&self) -> Tap {
        let all = Protocol::from(i32::from(3u16.to_be()));
        let socket = self.inner.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).unwrap();
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            setsockopt(&socket, sockopt::RxqOvfl, &1).unwrap();
            socket
        });
        let patience = Duration::from_millis(50);
        socket.set_read_timeout(Some(patience)).unwrap();
        Tap {
            socket,
            seen: Seen::default(),
            stop: AtomicBool::new(false),
        }
    }
}

fn ip(arguments: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "ip {arguments:?} {input}");
}

/// Counts of what has passed.
#[derive(Default)]
pub struct Seen {
    pub packets: AtomicU64,
    /// Bytes of TCP to or from the mesh's port.
    pub meshed: AtomicU64,
    /// Bytes of TCP that are not, by themselves a breach.
    pub plain: AtomicU64,
    /// Packets that have the word in them, wherever they go.
    pub readable: AtomicU64,
    /// The kernel had no room for.
    pub missed: AtomicU64,
}

pub struct Tap {
    socket: Socket,
    pub seen: Seen,
    stop: AtomicBool,
}

impl Tap {
    /// Counts for as long as the answer is kept, and then what has passed by that time.
    pub fn watch<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        word: &'env [u8],
    ) -> Watch<'env> {
        scope.spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            loop {
                let Some((length, missed)) = receive(&self.socket, &mut buffer) else {
                    if self.stop.load(Relaxed) {
                        return;
                    }
                    continue;
                };
                self.seen.packets.fetch_add(1, Relaxed);
                self.seen.missed.fetch_max(missed, Relaxed);
                let packet = &buffer[..length];
                if packet.windows(word.len()).any(|found| found == word) {
                    self.seen.readable.fetch_add(1, Relaxed);
                }
                if let Some((ports, payload)) = tcp(packet) {
                    let count = match ports.contains(&15008) {
                        true => &self.seen.meshed,
                        false => &self.seen.plain,
                    };
                    count.fetch_add(payload as u64, Relaxed);
                }
            }
        });
        Watch(self)
    }
}

/// Ends the count also where a test fails, which would otherwise wait for it.
#[must_use]
pub struct Watch<'a>(&'a Tap);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// The bytes, and how many packets were lost so far; none if there is nothing.
fn receive(socket: &Socket, buffer: &mut [u8]) -> Option<(usize, u64)> {
    let mut control = nix::cmsg_space!(u32);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    );
    let received = received.ok()?;
    let missed = received.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::RxqOvfl(count) => Some(u64::from(count)),
        _ => None,
    });
    Some((received.bytes, missed.unwrap_or_default()))
}

/// The ports and the payload's length of a TCP packet.
fn tcp(packet: &[u8]) -> Option<([u16; 2], usize)> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let (segment, length) = match word(12)? {
        0x0800 if packet.get(23) == Some(&6) => {
            let header = usize::from(packet.get(14)? & 0xf) * 4;
            (14 + header, usize::from(word(16)?).checked_sub(header)?)
        }
        0x86dd if packet.get(20) == Some(&6) => (54, usize::from(word(18)?)),
        _ => return None,
    };
    let header = usize::from(packet.get(segment + 12)? >> 4) * 4;
    let ports = [word(segment)?, word(segment + 2)?];
    Some((ports, length.checked_sub(header)?))
}
