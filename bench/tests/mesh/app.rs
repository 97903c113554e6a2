//! Applications in pods, written as closures in a test.
//!
//! A connection is a pod's if its socket was made in the pod's network namespace
//! *and* in its cgroup: the first is all that nftables sees, the second is where
//! eBPF looks. A thread can visit a namespace, but not a cgroup. So each pod has
//! a process of its own, this test binary again, that only makes sockets and
//! passes them to the test, which connects, listens and talks.

use duet_bench::cluster::{NetnsCluster, Part, ProcessHandle, Spawn};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const FACTORY: &str = "mesh::app::socket_factory";
const ADDRESS: &str = "DUET_TEST_SOCKET_FACTORY";

pub struct App {
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    factory: Mutex<UnixStream>,
    _process: ProcessHandle,
    _dir: TempDir,
}

// === impl App ===

impl App {
    pub fn start(cluster: &NetnsCluster, pod: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let address = dir.path().join("sockets");
        let listener = UnixListener::bind(&address).unwrap();
        let this_binary = std::env::current_exe().unwrap();
        let spawn = Spawn::in_pod(pod, Part::App, this_binary)
            .args(["--exact", FACTORY, "--ignored", "--nocapture"])
            .env(ADDRESS, &address)
            .name("app");
        let process = cluster.spawn(spawn).unwrap();
        listener.set_nonblocking(true).unwrap();
        let factory = accept_within(Duration::from_secs(10), &listener)
            .unwrap_or_else(|error| panic!("pod {pod}: its socket factory: {error}"));
        let addresses = cluster.pod(pod).unwrap();
        Self {
            name: pod.to_owned(),
            v4: addresses.v4,
            v6: addresses.v6,
            factory: Mutex::new(factory),
            _process: process,
            _dir: dir,
        }
    }

    /// As the application would; an IPv4-mapped address is reached over an IPv6
    /// socket.
    pub async fn connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        self.socket(Domain::for_address(to))?.connect(to).await
    }

    /// On all addresses of both families.
    pub fn listen(&self, port: u16) -> TcpListener {
        let socket = self.socket(Domain::IPV6).unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket
            .bind((Ipv6Addr::UNSPECIFIED, port).into())
            .unwrap_or_else(|error| panic!("pod {}, port {port}: {error}", self.name));
        socket.listen(1024).unwrap()
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    pub fn at_v6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    fn socket(&self, domain: Domain) -> io::Result<TcpSocket> {
        let factory = self.factory.lock().unwrap();
        let wish = if domain == Domain::IPV4 { b"4" } else { b"6" };
        io::Write::write_all(&mut &*factory, wish)?;
        let socket: std::net::TcpStream = receive(&factory)?.into();
        socket.set_nonblocking(true)?;
        Ok(TcpSocket::from_std_stream(socket))
    }
}

/// The address without the IPv6 clothes that a dual-stack socket puts on it.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

fn accept_within(patience: Duration, listener: &UnixListener) -> io::Result<UnixStream> {
    let deadline = Instant::now() + patience;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            accepted => {
                let stream = accepted?.0;
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
    }
}

fn receive(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        from,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        })
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn send(socket: &Socket, to: &UnixStream) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = [socket.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(to, &[IoSlice::new(b"!")], &mut control, SendFlags::empty())?;
    Ok(())
}

#[test]
#[ignore = "not a test: what App::start runs in a pod"]
fn socket_factory() {
    let Some(address) = std::env::var_os(ADDRESS) else {
        return;
    };
    let mut test = UnixStream::connect(PathBuf::from(address)).unwrap();
    let mut wish = [0];
    while test.read_exact(&mut wish).is_ok() {
        let domain = if wish == *b"4" {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
        if domain == Domain::IPV6 {
            socket.set_only_v6(false).unwrap();
        }
        send(&socket, &test).unwrap();
    }
}
