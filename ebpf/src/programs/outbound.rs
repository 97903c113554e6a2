//! connect(2): where an enrolled namespace's TCP connections really go.
//!
//! The agent's own sockets are told apart by a slot that only the agent can give
//! them, through the map's file descriptor. A mark would not do: since Linux 5.17
//! CAP_NET_RAW, which container runtimes grant by default, is enough to set one.
//! Nor would the agent's process id: with the agent dead another process may get
//! it, and the namespace's plaintext would leave.

use crate::maps::{ENROLLED, EXEMPT, OPEN, OWN, REDIRECTED, forget, may_pass, store, stored};
use crate::words;
use aya_ebpf::bindings::{
    bpf_sock_addr, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ends4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ends6,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use duet_ebpf::{Ip, OUTBOUND_PORT, OwnAddress, Redirected, Target};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
/// Go programs among others ask for it; without it they would slip through.
const IPPROTO_MPTCP: u32 = 262;

enum Verdict {
    Leave,
    Redirect,
    Refuse,
}

#[cgroup_sock_addr(connect4)]
pub fn duet_connect4(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let target = Target {
        ip: Ip::v4(address.user_ip4),
        port: address.user_port,
    };
    match verdict(address, target) {
        Verdict::Leave => ALLOW,
        Verdict::Refuse => REFUSE,
        Verdict::Redirect => {
            address.user_ip4 = Ip::LOOPBACK4.0[3];
            address.user_port = u32::from(OUTBOUND_PORT.to_be());
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn duet_connect6(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let target = Target {
        ip: words::read(&raw const address.user_ip6),
        port: address.user_port,
    };
    match verdict(address, target) {
        Verdict::Leave => ALLOW,
        Verdict::Refuse => REFUSE,
        Verdict::Redirect => {
            let loopback = if target.ip.is_v4() {
                Ip::LOOPBACK4
            } else {
                Ip::LOOPBACK6
            };
            words::write(&raw mut address.user_ip6, loopback);
            address.user_port = u32::from(OUTBOUND_PORT.to_be());
            ALLOW
        }
    }
}

#[inline(always)]
fn verdict(address: &mut bpf_sock_addr, target: Target) -> Verdict {
    if address.type_ != SOCK_STREAM
        || (address.protocol != IPPROTO_TCP && address.protocol != IPPROTO_MPTCP)
    {
        return Verdict::Leave;
    }
    let netns = unsafe { bpf_get_netns_cookie(core::ptr::from_mut(address).cast()) };
    if unsafe { ENROLLED.get(netns) }.is_none() {
        return Verdict::Leave;
    }
    let socket = unsafe { address.__bindgen_anon_1.sk };
    if !stored(&EXEMPT, socket).is_null() {
        return Verdict::Leave;
    }
    let own = OwnAddress {
        netns,
        ip: target.ip,
    };
    if target.ip.stays_here() || unsafe { OWN.get(own) }.is_some() {
        // The socket may have been redirected, and refused, before.
        forget(&REDIRECTED, socket);
        return Verdict::Leave;
    }
    let is_open = OPEN.get_ptr(netns).is_some();
    if is_open && !is_served(address, target.ip.is_v4()) && may_pass(netns) {
        forget(&REDIRECTED, socket);
        return Verdict::Leave;
    }
    let slot = store(&REDIRECTED, socket);
    if slot.is_null() {
        return Verdict::Refuse;
    }
    let redirected = Redirected {
        netns,
        target,
        zero: 0,
    };
    unsafe { *slot = redirected };
    Verdict::Redirect
}

/// Whether somebody listens for the connections of this namespace.
#[inline(always)]
fn is_served(address: &mut bpf_sock_addr, v4: bool) -> bool {
    const OWN_NETNS: u64 = u64::MAX;
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let ends = &mut tuple.__bindgen_anon_1;
    let length = if v4 {
        ends.ipv4 = Ends4 {
            saddr: 0,
            daddr: Ip::LOOPBACK4.0[3],
            sport: 0,
            dport: OUTBOUND_PORT.to_be(),
        };
        size_of::<Ends4>()
    } else {
        ends.ipv6 = Ends6 {
            saddr: [0; 4],
            daddr: Ip::LOOPBACK6.0,
            sport: 0,
            dport: OUTBOUND_PORT.to_be(),
        };
        size_of::<Ends6>()
    };
    let context = core::ptr::from_mut(address).cast();
    let found = unsafe { bpf_sk_lookup_tcp(context, &mut tuple, length as u32, OWN_NETNS, 0) };
    if found.is_null() {
        return false;
    }
    unsafe { bpf_sk_release(found.cast()) };
    true
}
