//! The maps. The agent pins them, so that they outlive it.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{HashMap, SkStorage, SockHash};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use duet_ebpf::{
    Appearance, Enrolled, ListenerKey, NetnsCookie, OwnAddress, Redirected, Source, Target,
};

/// Entries are a few hundred bytes or less and allocated as they come.
const AS_NEEDED: usize = BPF_F_NO_PREALLOC as usize;

/// Kubernetes supports 110 pods on a node, and people run 500.
const PODS: usize = 4096;

#[btf_map]
pub static ENROLLED: HashMap<NetnsCookie, Enrolled, PODS, AS_NEEDED> = HashMap::new();

#[btf_map]
pub static OWN: HashMap<OwnAddress, u32, { 8 * PODS }, AS_NEEDED> = HashMap::new();

#[btf_map]
pub static APPEARANCE: HashMap<NetnsCookie, Appearance, PODS, AS_NEEDED> = HashMap::new();

/// Connections that are established and that the agent has not accepted yet; at
/// most the sum of the listeners' backlogs.
#[btf_map]
pub static TARGETS: HashMap<Source, Target, 262_144, AS_NEEDED> = HashMap::new();

/// By the operator's choice.
#[btf_map]
pub static OPEN: HashMap<NetnsCookie, u64, PODS, AS_NEEDED> = HashMap::new();

/// Closing a listener, or the agent's death, takes it out.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, { 4 * PODS }> = SockHash::new();

#[btf_map]
pub static EXEMPT: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub static REDIRECTED: SkStorage<Redirected> = SkStorage::new();

/// The namespace that this instance of the sk_lookup program is attached to: a
/// helper for the cookie is missing there. The agent loads one instance for each.
#[unsafe(no_mangle)]
pub static NETNS: Global<NetnsCookie> = Global::new(0);

/// Whether a connection of `netns` may go around an agent that is away. It is counted.
#[inline(always)]
pub fn may_pass(netns: NetnsCookie) -> bool {
    let Some(count) = OPEN.get_ptr_mut(netns) else {
        return false;
    };
    // What AtomicU64 would do, if the target were known to have it.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    true
}

/// A socket's own slot, if it has one.
#[inline(always)]
pub fn stored<T>(map: &'static SkStorage<T>, socket: *mut bpf_sock) -> *mut T {
    let map = core::ptr::from_ref(map).cast_mut();
    unsafe { bpf_sk_storage_get(map.cast(), socket.cast(), core::ptr::null_mut(), 0) }.cast()
}

/// A socket's own slot, made if it has none.
#[inline(always)]
pub fn store<T>(map: &'static SkStorage<T>, socket: *mut bpf_sock) -> *mut T {
    let map = core::ptr::from_ref(map).cast_mut();
    let flags = BPF_SK_STORAGE_GET_F_CREATE.into();
    unsafe { bpf_sk_storage_get(map.cast(), socket.cast(), core::ptr::null_mut(), flags) }.cast()
}

#[inline(always)]
pub fn forget<T>(map: &'static SkStorage<T>, socket: *mut bpf_sock) {
    let map = core::ptr::from_ref(map).cast_mut();
    unsafe { bpf_sk_storage_delete(map.cast(), socket.cast()) };
}
