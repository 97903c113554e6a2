//! What a redirected socket was meant for, made known to the agent.
//!
//! An entry lives from the client's end being established until the agent has
//! accepted the other end and read it, or until the client's end is reset. A
//! client may write and close before the agent gets to accept: its FIN was
//! acknowledged, so the other end exists and will be accepted. Nothing is ever
//! evicted, so nothing is ever wrong: if there is no room, the agent finds no entry
//! and closes the connection.

use crate::maps::{REDIRECTED, TARGETS, stored};
use crate::words;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_TCP_CLOSE, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use duet_ebpf::{Ip, NetnsCookie, Source};

const AF_INET6: u32 = 10;

/// Returns 1 and leaves the reply alone, whatever happens: other programs on the
/// same cgroup may have something to say.
#[sock_ops]
pub fn duet_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => match ctx.arg(0) {
            BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK => {}
            _ => closed(&ctx),
        },
        _ => {}
    }
    1
}

#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    let Some(redirected) = (unsafe { stored(&REDIRECTED, socket).as_ref() }) else {
        return;
    };
    let source = source(ctx, redirected.netns);
    if TARGETS.insert(source, redirected.target, 0).is_ok() {
        let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
        let _ = ctx.set_cb_flags(flags as i32);
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    let Some(redirected) = (unsafe { stored(&REDIRECTED, socket).as_ref() }) else {
        return;
    };
    let source = source(ctx, redirected.netns);
    let _ = TARGETS.remove(source);
}

#[inline(always)]
fn source(ctx: &SockOpsContext, netns: NetnsCookie) -> Source {
    let ip = if ctx.family() == AF_INET6 {
        words::read(unsafe { &raw const (*ctx.ops).local_ip6 })
    } else {
        Ip::v4(ctx.local_ip4())
    };
    Source {
        netns,
        ip,
        port: ctx.local_port(),
        zero: 0,
    }
}
