//! getpeername(2): the application sees whom it asked for, not the agent.

use crate::maps::{REDIRECTED, stored};
use crate::words;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

#[cgroup_sock_addr(getpeername4)]
pub fn duet_peername4(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let socket = unsafe { address.__bindgen_anon_1.sk };
    if let Some(redirected) = unsafe { stored(&REDIRECTED, socket).as_ref() } {
        address.user_ip4 = redirected.target.ip.0[3];
        address.user_port = redirected.target.port;
    }
    1
}

#[cgroup_sock_addr(getpeername6)]
pub fn duet_peername6(ctx: SockAddrContext) -> i32 {
    let address = unsafe { &mut *ctx.sock_addr };
    let socket = unsafe { address.__bindgen_anon_1.sk };
    if let Some(redirected) = unsafe { stored(&REDIRECTED, socket).as_ref() } {
        words::write(&raw mut address.user_ip6, redirected.target.ip);
        address.user_port = redirected.target.port;
    }
    1
}
