//! Network namespaces: opened, told apart, worked in.

use crate::sys;
use duet_ebpf::NetnsCookie;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use socket2::{Domain, Socket, Type};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// NSFS_MAGIC, include/uapi/linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open network namespace {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error(
        "{} is not a network namespace: give a file such as /run/netns/NAME or /proc/PID/ns/net",
        path.display()
    )]
    NotOne { path: PathBuf },
    #[error("{} cannot be entered: {error}", path.display())]
    Enter { path: PathBuf, error: io::Error },
    #[error("the kernel does not tell network namespaces apart (SO_NETNS_COOKIE, Linux 5.14): {0}")]
    Cookie(io::Error),
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    cookie: NetnsCookie,
    file_id: FileId,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Netns {
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open = |error| NetnsError::Open {
            path: path.to_owned(),
            error,
        };
        Self::of(File::open(path).map_err(open)?, path)
    }

    /// One that is open already; `path` is how others call it.
    pub fn of(file: File, path: &Path) -> Result<Self, NetnsError> {
        let metadata = file.metadata().map_err(|error| NetnsError::Open {
            path: path.to_owned(),
            error,
        })?;
        let is_namespace = fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == NSFS);
        if !is_namespace {
            return Err(NetnsError::NotOne {
                path: path.to_owned(),
            });
        }
        let mut netns = Self {
            file,
            path: path.to_owned(),
            cookie: 0,
            file_id: FileId {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
        };
        let cookie = netns.within(current_cookie).map_err(|error| {
            // setns(2) says so of another kind of namespace.
            if error.kind() == io::ErrorKind::InvalidInput {
                NetnsError::NotOne {
                    path: path.to_owned(),
                }
            } else {
                NetnsError::Enter {
                    path: path.to_owned(),
                    error,
                }
            }
        })?;
        netns.cookie = cookie.map_err(NetnsError::Cookie)?;
        Ok(netns)
    }

    pub fn cookie(&self) -> NetnsCookie {
        self.cookie
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Runs `work` in this namespace, on this thread. It must not block for long,
    /// nor let a panic out, nor leave the thread.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let home = home()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let _back = Back(home);
        Ok(work())
    }

    /// The addresses of this namespace's own, loopback aside.
    pub fn addresses(&self) -> io::Result<HashSet<IpAddr>> {
        let found = self.within(getifaddrs)??;
        Ok(found
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            })
            .filter(|ip| !ip.is_loopback())
            .collect())
    }

    /// From which of its addresses a connection goes out, by the routes that it has.
    pub fn source_towards(&self, there: IpAddr) -> Option<IpAddr> {
        let here: IpAddr = match there {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Of UDP this asks the routes, and sends nothing.
        let ask = || -> io::Result<IpAddr> {
            let socket = UdpSocket::bind((here, 0))?;
            socket.connect((there, 9))?;
            Ok(socket.local_addr()?.ip())
        };
        self.within(ask).flatten().ok()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home, whatever happened.
struct Back(&'static File);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // A thread that stays in a pod would proxy other pods' connections
            // with that pod's addresses.
            eprintln!("duet-agent: cannot return to the node's network namespace: {error}");
            std::process::abort();
        }
    }
}

/// The namespace that the process was started in.
fn home() -> io::Result<&'static File> {
    static HOME: OnceLock<File> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let home = File::open("/proc/self/ns/net")?;
    Ok(HOME.get_or_init(|| home))
}

/// The cookie of the namespace that this thread is in.
pub fn current_cookie() -> io::Result<NetnsCookie> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    sys::netns_cookie(socket.as_fd())
}

/// A path to a namespace that processes are in, though its own path is gone.
pub fn find_by_process(wanted: FileId) -> Option<PathBuf> {
    let processes = procfs::process::all_processes().ok()?;
    processes
        .flatten()
        .map(|process| PathBuf::from(format!("/proc/{}/ns/net", process.pid)))
        .find(|path| FileId::of(path).is_ok_and(|found| found == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_refused_by_name() {
        let error = Netns::open(Path::new("/proc/self/stat")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/proc/self/stat is not a network namespace")
        );
        let error = Netns::open(Path::new("/nowhere")).unwrap_err();
        assert!(matches!(error, NetnsError::Open { .. }));
    }
}
