//! getsockname(2): the application sees the address that its default route leads out
//! from, not the loopback that leads to the agent. FTP among others tells it to the peer.

use crate::maps::{APPEARANCE, REDIRECTED, stored};
use crate::words;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use duet_ebpf::Ip;

#[cgroup_sock_addr(getsockname4)]
pub fn duet_sockname4(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let shown = Ip::v4(address.user_ip4);
    if let Some(ip) = appearance(address, shown) {
        address.user_ip4 = ip.0[3];
    }
    1
}

#[cgroup_sock_addr(getsockname6)]
pub fn duet_sockname6(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let shown = words::read(&raw const address.user_ip6);
    if let Some(ip) = appearance(address, shown) {
        words::write(&raw mut address.user_ip6, ip);
    }
    1
}

/// What to show instead. An address that the application has chosen stays, but for
/// loopback, from which nobody reaches the outside.
#[inline(always)]
fn appearance(address: &bpf_sock_addr, shown: Ip) -> Option<Ip> {
    if shown != Ip::LOOPBACK4 && shown != Ip::LOOPBACK6 {
        return None;
    }
    let socket = unsafe { address.__bindgen_anon_1.sk };
    let redirected = unsafe { stored(&REDIRECTED, socket).as_ref() }?;
    let appearance = unsafe { APPEARANCE.get(redirected.netns) }?;
    let ip = if shown.is_v4() {
        appearance.v4
    } else {
        appearance.v6
    };
    (ip != Ip::NONE).then_some(ip)
}
