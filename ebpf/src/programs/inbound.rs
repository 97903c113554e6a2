//! Which socket gets a connection that arrives in an enrolled namespace.
//!
//! Every port is the agent's, the mesh port included: steered, not merely
//! listened on, so that with the agent dead no other process of the pod can
//! receive in its place. What the namespace sends to itself is left alone, which
//! is also how the agent reaches the application: from the pod's own address.
//! ingress_ifindex cannot tell the two apart: over loopback it names the
//! interface that has the address.

use crate::maps::{LISTENERS, NETNS, OWN, may_pass};
use crate::words;
use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use duet_ebpf::{INBOUND_PORT, Ip, ListenerKey, MESH_PORT, OUTBOUND_PORT, OwnAddress};

const PASS: u32 = sk_action::SK_PASS;
/// TCP answers with a reset.
const DROP: u32 = sk_action::SK_DROP;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

#[sk_lookup]
pub fn duet_sk_lookup(ctx: SkLookupContext) -> u32 {
    let lookup: *const bpf_sk_lookup = ctx.lookup;
    let protocol = unsafe { (*lookup).protocol };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let netns = NETNS.load();
    let port = unsafe { (*lookup).local_port };
    let family = unsafe { (*lookup).family };
    if port == u32::from(MESH_PORT) {
        // Never an application's: who connects there wants to be sure of whom it reaches.
        return if steer(&ctx, netns, MESH_PORT, family) {
            PASS
        } else {
            DROP
        };
    }
    let (local, remote) = addresses(lookup, family);
    let own = OwnAddress { netns, ip: remote };
    if remote == local || remote.stays_here() || unsafe { OWN.get(own) }.is_some() {
        return PASS;
    }
    if port == u32::from(OUTBOUND_PORT) || port == u32::from(INBOUND_PORT) {
        return DROP;
    }
    if steer(&ctx, netns, INBOUND_PORT, family) || may_pass(netns) {
        PASS
    } else {
        DROP
    }
}

/// False if nobody listens.
#[inline(always)]
fn steer(ctx: &SkLookupContext, netns: u64, port: u16, family: u32) -> bool {
    let key = ListenerKey {
        netns,
        port: u32::from(port),
        family: if family == AF_INET { 4 } else { 6 },
    };
    let flags = u64::from(BPF_SK_LOOKUP_F_REPLACE);
    LISTENERS.redirect_sk_lookup(ctx, key, flags).is_ok()
}

#[inline(always)]
fn addresses(lookup: *const bpf_sk_lookup, family: u32) -> (Ip, Ip) {
    if family == AF_INET {
        let local = unsafe { (*lookup).local_ip4 };
        let remote = unsafe { (*lookup).remote_ip4 };
        return (Ip::v4(local), Ip::v4(remote));
    }
    let local = words::read(unsafe { &raw const (*lookup).local_ip6 });
    let remote = words::read(unsafe { &raw const (*lookup).remote_ip6 });
    (local, remote)
}
