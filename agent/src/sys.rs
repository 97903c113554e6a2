//! The system calls that no crate here wraps: a few commands of bpf(2), and one
//! socket option; and what a caller of tokio has to promise. This is the only unsafe
//! code in the agent.

use aya::Pod;
use duet_ebpf::{Appearance, Enrolled, ListenerKey, NetnsCookie, OwnAddress, Source, Target};
use nix::libc;
use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A key or value in a map, as both sides see it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Plain<T>(pub T);

// SAFETY: these are repr(C) structs of integers and integer arrays, without
// padding, for which any bytes are valid.
unsafe impl Pod for Plain<Enrolled> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Appearance> {}
// SAFETY: as above.
unsafe impl Pod for Plain<OwnAddress> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ListenerKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Source> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Target> {}

/// A type that [`map_insert`] and [`map_take`] may read and write as bytes.
pub trait Bytes: Copy + private::Bytes {}

mod private {
    pub trait Bytes {}
    impl Bytes for super::RawFd {}
    impl Bytes for u32 {}
    impl Bytes for duet_ebpf::Source {}
    impl Bytes for duet_ebpf::Target {}
}

impl<T: Copy + private::Bytes> Bytes for T {}

/// The cookie of the network namespace that `socket` lives in. Linux 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie: NetnsCookie = 0;
    let mut length = size_of::<NetnsCookie>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals, and `length` is `cookie`'s size.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// For a task to wait until there is something to read.
pub fn readable(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is open for as long as it is registered, and under the one number: both
    // have the one owner, who gives it away to nobody.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE)? })
}

/// Opens what is pinned at `path`. BPF_OBJ_GET.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: `path` outlives the call and ends with NUL.
    let fd = unsafe { bpf(7, &mut attr)? };
    // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins `object`, a map or a link, at `path`. BPF_OBJ_PIN.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: `path` outlives the call and ends with NUL.
    unsafe { bpf(6, &mut attr)? };
    Ok(())
}

/// Puts `program` in the place of the program that `link` attaches, so that no
/// connection meets both or neither. BPF_LINK_UPDATE.
pub fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attr = Attr {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: no pointers in it.
    unsafe { bpf(29, &mut attr)? };
    Ok(())
}

/// Detaches the program that `link` attaches, whoever else holds the link.
/// BPF_LINK_DETACH.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
    }
    let mut attr = Attr {
        link: link.as_raw_fd() as u32,
    };
    // SAFETY: no pointers in it.
    unsafe { bpf(34, &mut attr)? };
    Ok(())
}

/// What a link attaches, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub program: u32,
    pub target: LinkTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// The cgroup's inode number, 0 once it is gone.
    Cgroup(u64),
    /// The namespace's inode number, 0 once it is gone.
    Netns(u32),
    Other,
}

/// BPF_OBJ_GET_INFO_BY_FD.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        padding: u32,
        // A union: cgroup { u64 id, u32 } or netns { u32 inode, u32 } among others.
        target: [u32; 16],
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = MaybeUninit::<Info>::zeroed();
    let mut attr = Attr {
        fd: link.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `info` is live and `length` bytes long.
    unsafe { bpf(15, &mut attr)? };
    // SAFETY: all of it is integers, zeroed above.
    let info = unsafe { info.assume_init() };
    Ok(LinkInfo {
        program: info.program,
        target: match info.kind {
            3 => LinkTarget::Cgroup(u64::from(info.target[0]) | u64::from(info.target[1]) << 32),
            5 => LinkTarget::Netns(info.target[0]),
            _ => LinkTarget::Other,
        },
    })
}

/// Where a program can be attached: enum bpf_attach_type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachPoint {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    GetSockName4 = 31,
    GetSockName6 = 32,
    SkLookup = 36,
}

/// The programs that run at `point` of `target`, a cgroup (its ancestors' programs
/// included) or a network namespace. BPF_PROG_QUERY.
pub fn effective_programs(target: BorrowedFd<'_>, point: AttachPoint) -> io::Result<Vec<u32>> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    #[repr(C)]
    struct Attr {
        target: u32,
        point: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
        program_attach_flags: u64,
    }
    // The kernel allows 64 on one cgroup; its ancestors may have as many.
    let mut ids = vec![0u32; 1024];
    let mut attr = Attr {
        target: target.as_raw_fd() as u32,
        point: point as u32,
        query_flags: match point {
            AttachPoint::SkLookup => 0,
            _ => BPF_F_QUERY_EFFECTIVE,
        },
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
        program_attach_flags: 0,
    };
    // SAFETY: `ids` is live and `count` long.
    unsafe { bpf(16, &mut attr)? };
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// A connection that arrives, as the kernel's struct bpf_sk_lookup has it. Addresses in
/// network byte order; a port of one's own is not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The chosen socket's, afterwards.
    pub cookie: u64,
    /// AF_INET or AF_INET6.
    pub family: u32,
    pub protocol: u32,
    pub remote_ip4: u32,
    pub remote_ip6: [u32; 4],
    pub remote_port: u16,
    pub zero: u16,
    pub local_ip4: u32,
    pub local_ip6: [u32; 4],
    pub local_port: u32,
    pub interface: u32,
    pub padding: u32,
}

/// Runs an sk_lookup program on `arrival`, and returns its verdict. BPF_PROG_TEST_RUN,
/// Linux 5.12.
pub fn test_run(program: BorrowedFd<'_>, arrival: &mut Arrival) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        program: u32,
        verdict: u32,
        data_in_size: u32,
        data_out_size: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_in_size: u32,
        context_out_size: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        processor: u32,
        batch_size: u32,
        padding: u32,
    }
    let context_in = *arrival;
    let size = size_of::<Arrival>() as u32;
    let mut attr = Attr {
        program: program.as_raw_fd() as u32,
        verdict: 0,
        data_in_size: 0,
        data_out_size: 0,
        data_in: 0,
        data_out: 0,
        repeat: 1,
        duration: 0,
        context_in_size: size,
        context_out_size: size,
        context_in: std::ptr::from_ref(&context_in) as u64,
        context_out: std::ptr::from_mut(arrival) as u64,
        flags: 0,
        processor: 0,
        batch_size: 0,
        padding: 0,
    };
    // SAFETY: both contexts live through the call and are `size` bytes long; any bytes
    // are a valid Arrival.
    unsafe { bpf(10, &mut attr)? };
    Ok(attr.verdict)
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets `map[key]`. As aya's, but through a shared reference: the kernel does the
/// locking. BPF_MAP_UPDATE_ELEM.
pub fn map_insert<K: Bytes, V: Bytes>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = ElementAttr {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    // SAFETY: key and value live through the call; their sizes are the map's,
    // which `Maps::check` has made sure of.
    unsafe { bpf(2, &mut attr)? };
    Ok(())
}

/// Takes `map[key]` out, if it is there. BPF_MAP_LOOKUP_AND_DELETE_ELEM, for hash
/// maps from Linux 5.14.
pub fn map_take<K: Bytes, V: Bytes>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    let mut attr = ElementAttr {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: as above.
    match unsafe { bpf(21, &mut attr) } {
        // SAFETY: any bytes are a valid V, and the kernel has written them.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Safety
/// `attr` has the layout that `command` takes, and every pointer in it is valid for
/// what the command reads and writes there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: the caller's promise; the kernel reads no more than size_of::<T>().
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(outcome as RawFd)
    }
}
