//! What the kernel programs and the agent tell each other: the keys and values of
//! the maps. Both sides see the same bytes, so every type is `repr(C)`, has no
//! padding, and keeps addresses in network byte order.
#![no_std]
#![forbid(unsafe_code)]

/// The maps' and programs' names, as they stand in the object and in bpffs.
pub mod names {
    pub const CONNECT4: &str = "duet_connect4";
    pub const CONNECT6: &str = "duet_connect6";
    pub const GETPEERNAME4: &str = "duet_peername4";
    pub const GETPEERNAME6: &str = "duet_peername6";
    pub const GETSOCKNAME4: &str = "duet_sockname4";
    pub const GETSOCKNAME6: &str = "duet_sockname6";
    pub const SOCKOPS: &str = "duet_sockops";
    pub const SK_LOOKUP: &str = "duet_sk_lookup";

    /// [`NetnsCookie`](crate::NetnsCookie) → [`Enrolled`](crate::Enrolled).
    pub const ENROLLED: &str = "ENROLLED";
    /// [`OwnAddress`](crate::OwnAddress) → 1.
    pub const OWN: &str = "OWN";
    /// [`NetnsCookie`](crate::NetnsCookie) → [`Appearance`](crate::Appearance).
    pub const APPEARANCE: &str = "APPEARANCE";
    /// [`Source`](crate::Source) → [`Target`](crate::Target).
    pub const TARGETS: &str = "TARGETS";
    /// [`ListenerKey`](crate::ListenerKey) → socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`NetnsCookie`](crate::NetnsCookie) → how many connections went around the agent:
    /// of those that may, while it is away.
    pub const OPEN: &str = "OPEN";
    /// Socket → 1: the agent's own.
    pub const EXEMPT: &str = "EXEMPT";
    /// Socket → [`Redirected`](crate::Redirected).
    pub const REDIRECTED: &str = "REDIRECTED";

    /// The global that tells an instance of the sk_lookup program its namespace.
    pub const NETNS: &str = "NETNS";
}

/// What identifies a network namespace for as long as the kernel runs; never used
/// twice. `SO_NETNS_COOKIE`, bpf_get_netns_cookie().
pub type NetnsCookie = u64;

pub const OUTBOUND_PORT: u16 = 15001;
pub const INBOUND_PORT: u16 = 15006;
pub const MESH_PORT: u16 = 15008;

/// An address as four words in network byte order. IPv4 is `::ffff:a.b.c.d`, so
/// that a dual-stack socket and an IPv4 socket mean the same by it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ip(pub [u32; 4]);

const MAPPED: u32 = 0xffffu32.to_be();

impl Ip {
    pub const LOOPBACK4: Ip = Ip::v4(0x7f00_0001u32.to_be());
    pub const LOOPBACK6: Ip = Ip([0, 0, 0, 1u32.to_be()]);
    /// Nobody's: where there is none.
    pub const NONE: Ip = Ip([0; 4]);

    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Connections to it cannot leave the host: loopback, and the unspecified
    /// address, which connect(2) takes for loopback.
    #[inline(always)]
    pub const fn stays_here(&self) -> bool {
        let [a, b, c, d] = self.0;
        if self.is_v4() {
            d == 0 || u32::from_be(d) >> 24 == 127
        } else {
            a == 0 && b == 0 && c == 0 && (d == 0 || d == 1u32.to_be())
        }
    }

    pub const fn octets(&self) -> [u8; 16] {
        let mut out = [0; 16];
        let mut i = 0;
        while i < 16 {
            out[i] = self.0[i / 4].to_ne_bytes()[i % 4];
            i += 1;
        }
        out
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(ip: core::net::IpAddr) -> Self {
        let octets = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let word =
            |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

/// IPv4-mapped addresses come out as IPv4.
impl From<Ip> for core::net::IpAddr {
    fn from(ip: Ip) -> Self {
        core::net::IpAddr::from(ip.octets()).to_canonical()
    }
}

/// An enrolled namespace, with all that a new agent needs to take it up again.
/// Both texts end at the first NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Enrolled {
    /// `namespace/name`. Kubernetes allows 63 + 1 + 253.
    pub workload: [u8; 320],
    /// Where the namespace was opened.
    pub path: [u8; 256],
    /// What the path led to.
    pub device: u64,
    pub inode: u64,
}

/// An address of an enrolled namespace's own, to which its connections are left
/// alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnAddress {
    pub netns: NetnsCookie,
    pub ip: Ip,
}

/// The addresses that an enrolled namespace's default routes lead out from, which its
/// redirected connections are shown to have; [`Ip::NONE`] in a family that it is without.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appearance {
    pub v4: Ip,
    pub v6: Ip,
}

/// The client's end of a connection that was redirected: what the agent reads
/// from the socket that it accepts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub netns: NetnsCookie,
    pub ip: Ip,
    /// Host byte order.
    pub port: u32,
    pub zero: u32,
}

/// Where a connection was meant to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub ip: Ip,
    /// Network byte order.
    pub port: u32,
}

/// What a client's socket remembers of its redirection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redirected {
    pub netns: NetnsCookie,
    pub target: Target,
    pub zero: u32,
}

/// Which of the agent's listeners.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    pub netns: NetnsCookie,
    /// [`INBOUND_PORT`] or [`MESH_PORT`].
    pub port: u32,
    /// 4 or 6.
    pub family: u32,
}
