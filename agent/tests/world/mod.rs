//! Two pods on one wire, and an agent.
//!
//! Each test runs in a process of its own, in a cgroup of its own, with a BPF file
//! system of its own: agents that attach to different cgroups do not meet. What a
//! test has made is removed by the parent, however the child ends.

#![allow(dead_code, reason = "each test file uses some of it")]

use duet_agent::interception::{Interception, ON_CGROUP};
use duet_agent::netns::Netns;
use duet_agent::pod::Pod;
use duet_agent::record::Record;
use duet_agent::sys::effective_programs;
use duet_core::{Capture, Direction, Kernel, WorkloadName};
use duet_ebpf::names;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::runtime::Runtime;

const CHILD: &str = "DUET_TEST_WORLD";

/// What begins a line that is told.
const FIGURES: &str = "figures: ";

/// Longer than anything here takes; a hang is a failure.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Longer than any test takes, on a machine that has little time for it.
const LONGEST: Duration = Duration::from_secs(300);

/// Runs `body` as described above. `name` is the test's own.
pub fn test(name: &str, body: impl FnOnce(&World)) {
    if !nix::unistd::geteuid().is_root() {
        // Not eprintln!, which is shown only for tests that fail.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {name}: needs root, for network namespaces and eBPF"
        );
        return;
    }
    if let Ok(id) = std::env::var(CHILD) {
        return body(&World::enter(id));
    }
    let id = format!("{:x}", std::process::id() ^ hash(name));
    let executable = std::env::current_exe().unwrap();
    let (ended, end) = mpsc::channel::<()>();
    let output = std::thread::scope(|scope| {
        let id = &id;
        scope.spawn(move || {
            if end.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{name} was killed: it took longer than {LONGEST:?}");
                remove_cgroups(id);
            }
        });
        let ended = ended;
        let mut child = Command::new(executable);
        child.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        let output = child.env(CHILD, id).output().unwrap();
        drop(ended);
        output
    });
    let log = fs::read_to_string(scratch(&id).join("log")).unwrap_or_default();
    sweep(&id);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n{}\n{}\n{log}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    for line in text(&output.stdout).lines() {
        if let Some(figures) = line.strip_prefix(FIGURES) {
            let _ = writeln!(std::io::stderr(), "{name}: {figures}");
        }
    }
}

/// Tells whoever runs the tests what one has measured, and asserts nothing.
pub fn tell(figures: &str) {
    // The test harness's own line may not have ended.
    println!("\n{FIGURES}{figures}");
}

fn hash(name: &str) -> u32 {
    name.bytes().fold(7, |hash: u32, byte| {
        hash.wrapping_mul(31).wrapping_add(byte.into())
    })
}

pub struct World {
    pub id: String,
    pub cgroup: PathBuf,
    pub bpffs: PathBuf,
    pub a: TestPod,
    pub b: TestPod,
}

#[derive(Clone)]
pub struct TestPod {
    pub path: PathBuf,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

pub fn unified() -> PathBuf {
    duet_agent::cgroup::Cgroup::open(None)
        .unwrap()
        .path()
        .to_owned()
}

/// A hierarchy of version 1 that needs no settings, if there is one.
pub fn v1() -> Option<PathBuf> {
    let mounts = procfs::process::Process::myself().unwrap().mountinfo();
    let is_named = |mount: &procfs::process::MountInfo| {
        mount.fs_type == "cgroup" && mount.super_options.contains_key("name")
    };
    let mount = mounts.unwrap().into_iter().find(is_named);
    mount.map(|mount| mount.mount_point)
}

fn cgroup(id: &str) -> PathBuf {
    unified().join(format!("duet-test-{id}"))
}

fn scratch(id: &str) -> PathBuf {
    PathBuf::from(format!("/run/duet-test-{id}"))
}

fn netns_name(id: &str, pod: char) -> String {
    format!("duet-test-{id}-{pod}")
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}

fn sweep(id: &str) {
    let mine = format!("duet-test-{id}-");
    for netns in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = netns.file_name();
        if name.to_string_lossy().starts_with(&mine) {
            let _ = Command::new("ip").args(["netns", "del"]).arg(name).output();
        }
    }
    let bpffs = scratch(id).join("bpf");
    if duet_agent::bpffs::is_bpffs(&bpffs) {
        // An agent that was killed just now may not be gone yet.
        nix::mount::umount2(&bpffs, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    let _ = fs::remove_dir_all(scratch(id));
    remove_cgroups(id);
}

fn remove_cgroups(id: &str) {
    for hierarchy in [Some(unified()), v1()].into_iter().flatten() {
        remove_cgroup(&hierarchy.join(format!("duet-test-{id}")));
    }
}

/// With the cgroups below it, and all processes in them.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    // A killed process is in its cgroup until it is reaped.
    for _ in 0..50 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => break,
        }
    }
}

/// Whether all programs are on a cgroup, besides those that the one above it has.
pub fn has_programs(cgroup: &Path) -> bool {
    let [above, own] = [cgroup.parent().unwrap(), cgroup].map(|it| File::open(it).unwrap());
    ON_CGROUP.into_iter().all(|(_, point)| {
        let count = |cgroup: &File| effective_programs(cgroup.as_fd(), point).unwrap().len();
        count(&own) > count(&above)
    })
}

/// A process that does nothing, for as long as this is kept.
pub struct Process(Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    fn enter(id: String) -> Self {
        let cgroup = cgroup(&id);
        fs::create_dir(&cgroup).unwrap();
        fs::create_dir(scratch(&id)).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        let [a, b] = ['a', 'b'].map(|pod| netns_name(&id, pod));
        for netns in [&a, &b] {
            ip(&format!("netns add {netns}"));
            ip(&format!("-n {netns} link set lo up"));
        }
        ip(&format!(
            "link add eth0 netns {a} type veth peer name eth0 netns {b}"
        ));
        for (netns, last) in [(&a, 1), (&b, 2)] {
            ip(&format!("-n {netns} addr add 10.77.0.{last}/24 dev eth0"));
            ip(&format!(
                "-n {netns} addr add fd77::{last}/64 dev eth0 nodad"
            ));
            ip(&format!("-n {netns} link set eth0 up"));
        }
        let pod = |netns: &str, last: u8| TestPod {
            path: Path::new("/run/netns").join(netns),
            v4: [10, 77, 0, last].into(),
            v6: [0xfd77, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
        };
        Self {
            a: pod(&a, 1),
            b: pod(&b, 2),
            bpffs: scratch(&id).join("bpf"),
            id,
            cgroup,
        }
    }

    pub fn scratch(&self) -> PathBuf {
        scratch(&self.id)
    }

    /// The same, for an agent whose cgroup is one below that is made for it.
    pub fn below(&self, name: &str) -> Self {
        let cgroup = self.cgroup.join(name);
        fs::create_dir(&cgroup).unwrap();
        Self {
            id: self.id.clone(),
            cgroup,
            bpffs: self.bpffs.clone(),
            a: self.a.clone(),
            b: self.b.clone(),
        }
    }

    /// A pod's UID that no other test has.
    pub fn uid(&self, pod: u8) -> String {
        format!("{:0>8}-0000-4000-8000-{pod:012}", self.id)
    }

    /// A process in `cgroup`, which is below the test's own in `hierarchy`; and in
    /// the pod's network namespace, or else in the machine's.
    pub fn process(&self, hierarchy: &Path, cgroup: &str, pod: Option<&TestPod>) -> Process {
        let directory = hierarchy
            .join(format!("duet-test-{}", self.id))
            .join(cgroup);
        fs::create_dir_all(&directory).unwrap();
        let spawn = || Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process(match pod {
            Some(pod) => pod.run(spawn),
            None => spawn(),
        });
        let pid = process.pid().to_string();
        fs::write(directory.join("cgroup.procs"), pid).unwrap();
        process
    }

    /// What a runtime makes of a pod: its sandbox.
    pub fn pause(&self, uid: &str, netns: Option<&TestPod>) -> Process {
        let cgroup = format!("kubepods/burstable/pod{uid}/0123abcd");
        let process = self.process(&unified(), &cgroup, netns);
        // What is started next is younger by the kernel's count as well.
        std::thread::sleep(Duration::from_millis(20));
        process
    }

    pub fn interception(&self) -> Arc<Interception> {
        Arc::new(Interception::start(&self.bpffs, Some(&self.cgroup)).unwrap())
    }
}

impl TestPod {
    /// Runs `work` in the pod's network namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let netns = File::open(&self.path).unwrap();
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Runs ip(8) on the pod.
    pub fn ip(&self, arguments: &str) {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        ip(&format!("-n {name} {arguments}"));
    }

    /// An application that answers each connection with its own view of it,
    /// "local peer", and then what it is sent.
    pub fn serve(&self, address: impl Into<SocketAddr>) -> SocketAddr {
        let address = address.into();
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        let bound = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let local = stream.local_addr().unwrap();
                    let peer = stream.peer_addr().unwrap();
                    let _ = writeln!(stream, "{local} {peer}");
                    let mut read = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut read, &mut stream);
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        bound
    }

    /// Connects from this pod and reads all that it is told.
    pub fn ask(&self, to: SocketAddr) -> std::io::Result<String> {
        self.run(|| {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            read_all(stream)
        })
    }
}

/// Loopback's packets are longer than any wire's. Its address is not shown.
pub fn leads_to_the_agent<'s>(stream: impl Into<SockRef<'s>>) -> bool {
    stream.into().tcp_mss().unwrap() > 16384
}

pub fn read_all(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// What the agent does with connections, in place of the proxy.
#[derive(Clone, Copy, PartialEq)]
pub enum Outbound {
    /// Say where it was meant to go.
    Report,
    /// Take it there.
    Relay,
}

pub struct TestAgent {
    pub interception: Arc<Interception>,
    pub runtime: Runtime,
}

impl TestAgent {
    pub fn start(world: &World) -> Self {
        Self::with(world.interception())
    }

    pub fn with(interception: Arc<Interception>) -> Self {
        Self {
            interception,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    pub fn enrol(&self, pod: &TestPod, outbound: Outbound) -> Enrolled {
        let (pod, capture) = self.capture(pod);
        let kernel = capture.kernel.clone();
        let mut tasks = Vec::new();
        let Capture {
            outbound: out,
            inbound,
            mesh,
            ..
        } = capture;
        for listener in out {
            let kernel = kernel.clone();
            tasks.push(self.runtime.spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let Ok(to) = kernel.original_dst(&stream, Direction::Outbound) else {
                        let _ = stream.write_all(b"not redirected\n").await;
                        continue;
                    };
                    match outbound {
                        Outbound::Report => drop(tokio::spawn(async move {
                            // To close with something unread would be a reset.
                            let (mut read, mut write) = stream.split();
                            let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
                            let _ = write.write_all(format!("{to}\n").as_bytes()).await;
                        })),
                        Outbound::Relay => drop(tokio::spawn(relay(stream, to.0, kernel.clone()))),
                    }
                }
            }));
        }
        for listener in inbound {
            let kernel = kernel.clone();
            tasks.push(self.runtime.spawn(async move {
                loop {
                    let (mut stream, peer) = listener.accept().await.unwrap();
                    let Ok(to) = kernel.original_dst(&stream, Direction::Inbound) else {
                        let _ = stream.write_all(b"not redirected\n").await;
                        continue;
                    };
                    let _ = stream
                        .write_all(format!("inbound {to} {}\n", peer.ip()).as_bytes())
                        .await;
                    tokio::spawn(relay(stream, to.0, kernel.clone()));
                }
            }));
        }
        for listener in mesh {
            tasks.push(self.runtime.spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ = stream.write_all(b"mesh\n").await;
                }
            }));
        }
        Enrolled {
            pod: Some(pod),
            kernel,
            tasks,
        }
    }

    pub fn capture(&self, pod: &TestPod) -> (Pod, Capture) {
        let _entered = self.runtime.enter();
        let netns = Netns::open(&pod.path).unwrap();
        let name = WorkloadName::new("default", pod.path.file_name().unwrap().to_str().unwrap());
        let record = Record::by_hand(&netns, name);
        Pod::enrol(&self.interception, netns, &record).unwrap()
    }

    /// What a SIGKILL leaves: listeners are closed, nothing else is done.
    pub fn die(self) {
        self.runtime.shutdown_timeout(PATIENCE);
    }
}

async fn relay(mut stream: tokio::net::TcpStream, to: SocketAddr, kernel: Arc<dyn Kernel>) {
    let connected = async { kernel.socket(to)?.connect(to).await };
    match connected.await {
        Ok(mut onward) => drop(copy_bidirectional(&mut stream, &mut onward).await),
        Err(error) => drop(stream.write_all(format!("{error}\n").as_bytes()).await),
    }
}

pub struct Enrolled {
    pod: Option<Pod>,
    pub kernel: Arc<dyn Kernel>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Enrolled {
    pub fn pod(&self) -> &Pod {
        self.pod.as_ref().unwrap()
    }

    pub fn pod_mut(&mut self) -> &mut Pod {
        self.pod.as_mut().unwrap()
    }

    /// As the agent does it.
    pub fn remove(mut self) {
        self.end_redirection();
    }

    /// The listeners stay.
    pub fn end_redirection(&mut self) {
        self.pod.take().unwrap().remove();
    }
}

/// The listeners go with the tasks.
impl Drop for Enrolled {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for task in &self.tasks {
            while !task.is_finished() {
                std::thread::yield_now();
            }
        }
    }
}

/// How many entries a pinned map has.
pub fn entries<const KEY: usize>(interception: &Interception, map: &str) -> usize {
    entries_at::<KEY>(&interception.layout().map(map))
}

pub fn entries_at<const KEY: usize>(pin: &Path) -> usize {
    let data = aya::maps::MapData::from_pin(pin).unwrap();
    match aya::maps::Map::from_map_data(data).unwrap() {
        map @ aya::maps::Map::HashMap(_) => {
            // Keys only; the value's size is checked, so it has to be right.
            keys::<KEY>(map)
        }
        map => {
            let map: aya::maps::SockHash<_, [u8; KEY]> = map.try_into().unwrap();
            map.keys().flatten().count()
        }
    }
}

/// How much there is of pods in the kernel: the maps' entries, and pins.
pub fn traces(world: &World) -> BTreeMap<&'static str, usize> {
    let map = |name| world.bpffs.join("v1/maps").join(name);
    let pins = fs::read_dir(world.bpffs.join("v1/pods")).unwrap();
    BTreeMap::from([
        (names::ENROLLED, entries_at::<8>(&map(names::ENROLLED))),
        (names::OWN, entries_at::<24>(&map(names::OWN))),
        (names::APPEARANCE, entries_at::<8>(&map(names::APPEARANCE))),
        (names::TARGETS, entries_at::<32>(&map(names::TARGETS))),
        (names::LISTENERS, entries_at::<16>(&map(names::LISTENERS))),
        (names::OPEN, entries_at::<8>(&map(names::OPEN))),
        ("pins", pins.count()),
    ])
}

fn keys<const KEY: usize>(map: aya::maps::Map) -> usize {
    use duet_ebpf::{Appearance, Enrolled, Target};
    macro_rules! count {
        ($($value:ty),*) => {$(
            if let aya::maps::Map::HashMap(data) = &map
                && data.info().unwrap().value_size() as usize == size_of::<$value>()
            {
                let map: aya::maps::HashMap<_, [u8; KEY], [u8; size_of::<$value>()]> =
                    map.try_into().unwrap();
                return map.keys().flatten().count();
            }
        )*};
    }
    count!(Enrolled, Appearance, Target, u32, u64);
    unreachable!("a map of other values")
}

/// Counts TCP packets that pass a pod's eth0, in either direction.
pub struct Wire {
    socket: socket2::Socket,
}

impl Wire {
    pub fn tap(pod: &TestPod) -> Self {
        use socket2::{Domain, Protocol, Socket, Type};
        let all = Protocol::from(i32::from(3u16.to_be()));
        let socket =
            pod.run(|| Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(all)).unwrap());
        Self { socket }
    }

    /// TCP packets so far that carry `payload`, or any if it is empty.
    pub fn count(&self, payload: &[u8]) -> usize {
        let mut buffer = [0; 65536];
        let mut found = 0;
        // On loopback a connection to 127.0.0.1 shows too; the wire is 10.77/16.
        while let Ok(length) = (&self.socket).read(&mut buffer) {
            let packet = &buffer[..length];
            // Nor is what a pod sends to itself, as the agent does to the application.
            let tcp = match packet.get(12..14) {
                Some([0x08, 0x00]) => {
                    packet[23] == 6 && packet[26] == 10 && packet[26..30] != packet[30..34]
                }
                Some([0x86, 0xdd]) => {
                    packet[20] == 6 && packet[22] == 0xfd && packet[22..38] != packet[38..54]
                }
                _ => false,
            };
            let carries = payload.is_empty() || packet.windows(payload.len()).any(|w| w == payload);
            found += usize::from(tcp && carries);
        }
        found
    }
}
