//! Two network namespaces with a cable between them: a pod, and a peer outside.
//!
//! The namespaces have no name and no process: they exist as long as the open
//! files do, so a test that dies leaves nothing behind.

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

/// Long enough for two packets on a busy machine, short enough to wait for.
const PATIENCE: Duration = Duration::from_secs(5);

pub const POD_V4: &str = "10.9.0.2";
pub const POD_V6: &str = "fd09::2";
pub const PEER_V4: &str = "10.9.0.1";
pub const PEER_V6: &str = "fd09::1";

/// Root and nftables, or the reason to skip.
pub fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Not eprintln, whose output a test that passes does not show.
        let why = "skipped: needs root, to make network namespaces";
        let _ = writeln!(io::stderr(), "{why}");
    }
    root
}

pub struct Netns(File);

// === impl Netns ===

impl Netns {
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            File::open("/proc/thread-self/ns/net").expect("it, as a file")
        })
        .join()
        .unwrap();
        let netns = Self(file);
        netns.ip("link set lo up");
        netns
    }

    /// Runs `f` on a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `f` on a thread inside the namespace, for the rest of the test.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        let netns = Self(self.0.try_clone().unwrap());
        thread::spawn(move || {
            netns.enter();
            f();
        });
    }

    fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
    }

    pub fn ip(&self, args: &str) {
        let output = self.run(|| Command::new("ip").args(args.split(' ')).output());
        let output = output.expect("iproute2 is installed");
        assert!(output.status.success(), "ip {args}: {output:?}");
    }

    pub fn nft(&self, args: &str) -> String {
        let output = self.run(|| Command::new("nft").args(args.split(' ')).output());
        let output = output.expect("nftables is installed");
        assert!(output.status.success(), "nft {args}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `duet-sidecar` with these arguments.
    pub fn sidecar(&self, args: &str) -> Output {
        self.run(|| {
            Command::new(env!("CARGO_BIN_EXE_duet-sidecar"))
                .args(args.split(' '))
                .output()
                .expect("the binary under test")
        })
    }

    pub fn init(&self, args: &str) {
        let output = self.sidecar(format!("init {args}").trim());
        assert!(output.status.success(), "{output:?}");
    }

    /// A server on every address that answers each line with
    /// `<name> <local address> <peer ip>`.
    pub fn serve(&self, name: &'static str, port: u16) {
        let listener = self.run(|| TcpListener::bind(("::", port)).unwrap());
        self.spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || answer(name, stream.unwrap()));
            }
        });
    }

    /// What whoever gets this connection has to say.
    pub fn ask(&self, to: &str) -> io::Result<String> {
        let mut conversation = self.connect(to)?;
        conversation.ask()
    }

    pub fn connect(&self, to: &str) -> io::Result<Conversation> {
        self.connect_from(
            if to.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            },
            to,
        )
    }

    /// Over a socket bound to an address that others may be bound to as well.
    pub fn connect_from(&self, from: &str, to: &str) -> io::Result<Conversation> {
        let [from, to]: [SocketAddr; 2] = [from, to].map(|address| address.parse().unwrap());
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(Conversation(BufReader::new(socket.into())))
        })
    }
}

/// A pod and a peer outside it, on one link.
pub fn pod_and_peer() -> (Netns, Netns) {
    let (pod, peer) = (Netns::new(), Netns::new());
    let there = format!("/proc/{}/fd/{}", std::process::id(), peer.0.as_raw_fd());
    pod.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {there}"
    ));
    for (netns, v4, v6) in [(&pod, POD_V4, POD_V6), (&peer, PEER_V4, PEER_V6)] {
        netns.ip(&format!("address add {v4}/24 dev eth0"));
        netns.ip(&format!("address add {v6}/64 dev eth0 nodad"));
        netns.ip("link set eth0 up");
    }
    (pod, peer)
}

/// An open connection, line by line.
pub struct Conversation(BufReader<TcpStream>);

// === impl Conversation ===

impl Conversation {
    pub fn ask(&mut self) -> io::Result<String> {
        self.0.get_mut().write_all(b"who are you?\n")?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Whether the other side closed without a word.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn answer(name: &str, stream: TcpStream) {
    let local = canonical(stream.local_addr().unwrap());
    let peer = canonical(stream.peer_addr().unwrap()).ip();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut stream = stream;
    while let Some(Ok(_)) = lines.next() {
        if writeln!(stream, "{name} {local} {peer}").is_err() {
            return;
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
