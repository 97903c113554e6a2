//! Twelve pods that talk to one another without a pause, while everything goes wrong that
//! can; and every packet on their links.

mod daemon;
mod discovery;
mod load;
mod node;
mod scene;
mod world;

use aya::maps::{HashMap, Map, MapData, MapError, SockHash};
use daemon::{Agent, enrol, eventually, is_enrolled, log_of, refused, told};
use duet_agent::interception::ON_CGROUP;
use duet_ebpf::{Appearance, Enrolled, ListenerKey, OwnAddress, Source, Target, names};
use load::{Load, StopAtEnd, exchange};
use nix::sys::signal::{Signal, kill};
use node::Node;
use scene::{PODS, Scene};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};
use world::{Process, TestPod, World, entries_at, leads_to_the_agent, tell, test, traces};

/// Between a client's connections: 12 clients, 400 a second.
const EVERY: Duration = Duration::from_millis(30);

const CRASHES: &str = "duet_agent_proxy_restarts_total{reason=\"crash\"}";
const HANGS: &str = "duet_agent_proxy_restarts_total{reason=\"hang\"}";
const HANDOVERS: &str = "duet_agent_handovers_total";
const ENROLLED: &str = "duet_agent_workloads{reason=\"\",state=\"enrolled\"}";
const REFUSED: &str = "duet_agent_workloads{reason=\"\",state=\"refused\"}";

/// What passes while every pod calls its neighbour over and over, and `happens`.
fn through(scene: &Scene<'_>, what: &str, happens: impl FnOnce(&Load)) {
    let meshed = watched(scene, what, |load| {
        load.more(50);
        happens(load);
    });
    assert!(meshed > 0, "{what}");
}

/// Returns how many bytes there were of what may pass.
fn watched(scene: &Scene<'_>, what: &str, happens: impl FnOnce(&Load)) -> u64 {
    let (load, tap) = (Load::default(), scene.node.tap());
    std::thread::scope(|scope| {
        let _watch = tap.watch(scope, load::SAID);
        std::thread::scope(|clients| {
            let _stop = StopAtEnd(&load);
            scene.calls(&load, clients, 1, EVERY);
            happens(&load);
        });
    });
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed);
    let [packets, meshed, plain, readable, missed] = [
        &tap.seen.packets,
        &tap.seen.meshed,
        &tap.seen.plain,
        &tap.seen.readable,
        &tap.seen.missed,
    ]
    .map(count);
    tell(&format!(
        "{what}: {} connections served, {} refused, {} lost; {packets} packets on {PODS} links, \
         {meshed} bytes of mTLS, {plain} bytes of plaintext, {missed} packets not seen",
        load.served(),
        load.refused().len(),
        load.failed().len() - load.refused().len(),
    ));
    assert_eq!((plain, readable), (0, 0), "{what}: {}", log_of(scene.world));
    assert_eq!(missed, 0, "{what}: packets that the tap has not seen");
    meshed
}

fn is_pinned(world: &World) -> bool {
    duet_agent::bpffs::is_bpffs(&world.bpffs)
        && fs::read_dir(world.bpffs.join("v1/links"))
            .is_ok_and(|links| links.count() == ON_CGROUP.len())
}

/// A client in a process of its own, in a cgroup that is made for it.
fn call_from_new_cgroup(scene: &Scene<'_>, number: usize) -> bool {
    let (pod, to) = (&scene.node.pods[number], scene.servers[number + 1][0]);
    let cgroup = scene.world.cgroup.join(format!("late-{number}"));
    fs::create_dir(&cgroup).unwrap();
    let said = String::from_utf8(load::SAID.to_vec()).unwrap();
    let script = format!(
        "read -r && exec 3<>/dev/tcp/{}/{} && printf '{}' >&3 && timeout 5 head -n 2 <&3",
        to.ip(),
        to.port(),
        said.trim_end().to_owned() + "\\n"
    );
    let mut client = pod.run(|| {
        Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    fs::write(cgroup.join("cgroup.procs"), client.id().to_string()).unwrap();
    std::io::Write::write_all(client.stdin.as_mut().unwrap(), b"\n").unwrap();
    let output = client.wait_with_output().unwrap();
    eventually(|| fs::remove_dir(&cgroup).is_ok());
    String::from_utf8_lossy(&output.stdout).contains(said.trim_end())
}

#[test]
fn the_tap_sees_plaintext_where_there_is_some() {
    test("the_tap_sees_plaintext_where_there_is_some", |world| {
        let node = Node::new(world, 2);
        let server = node.pods[1].serve((Ipv4Addr::UNSPECIFIED, 0));
        let to = SocketAddr::new(node.pods[1].v4, server.port());
        let tap = node.tap();
        std::thread::scope(|scope| {
            let _watch = tap.watch(scope, load::SAID);
            node.pods[0].run(|| exchange(to)).unwrap();
        });
        // On both links, there and back.
        assert_eq!(tap.seen.readable.load(Relaxed), 4);
        assert!(tap.seen.plain.load(Relaxed) >= 4 * load::SAID.len() as u64);
    });
}

#[test]
fn nothing_leaves_in_plaintext_whatever_happens_to_the_agent() {
    test(
        "nothing_leaves_in_plaintext_whatever_happens_to_the_agent",
        |world| {
            let scene = Scene::new(world);
            let mut agent = scene.supervised();
            through(&scene, "five crashes", |load| {
                for crash in 1..=5 {
                    kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
                    eventually(|| agent.metric(CRASHES) == f64::from(crash));
                    load.more(50);
                }
                assert_eq!(load.refused(), Vec::<String>::new());
            });
            through(&scene, "a hang", |load| {
                kill(agent.proxy().unwrap(), Signal::SIGSTOP).unwrap();
                eventually(|| agent.metric(HANGS) == 1.0);
                load.more(50);
            });
            through(&scene, "three handovers", |load| {
                for handover in 1..=3 {
                    let next = Agent::launch(world, &scene.discovery.control(), "supervise", &[]);
                    eventually(|| next.metric(HANDOVERS) == f64::from(handover));
                    let last = std::mem::replace(&mut agent, next);
                    assert!(last.end().success());
                    load.more(50);
                }
                assert_eq!(load.failed(), Vec::<String>::new(), "{}", log_of(world));
            });
            let mut agent = Some(agent);
            through(
                &scene,
                "the agent killed with its supervisor, and another",
                |load| {
                    let killed = agent.take().unwrap();
                    let proxy = killed.proxy().unwrap();
                    killed.kill();
                    eventually(|| !fs::exists(format!("/proc/{proxy}")).unwrap());
                    sleep(Duration::from_secs(1));
                    assert_ne!(load.refused().len(), 0, "nobody is there");
                    agent = Some(scene.supervised());
                    load.more(50);
                },
            );
            assert!(scene.all_are_well());
            assert!(agent.unwrap().stop().success());
            watched(&scene, "no agent, ended in good order", |load| {
                sleep(Duration::from_secs(1));
                assert_eq!(load.served(), 0);
                assert!(load.refused().len() > 50);
            });
        },
    );
}

#[test]
fn nothing_leaves_in_plaintext_whatever_happens_around_the_agent() {
    test(
        "nothing_leaves_in_plaintext_whatever_happens_around_the_agent",
        |world| {
            let scene = Scene::new(world);
            let agent = scene.supervised();
            through(&scene, "bpffs unmounted, then a crash", |load| {
                unmount(world);
                load.more(50);
                eventually(|| is_pinned(world));
                kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
                eventually(|| agent.metric(CRASHES) == 1.0);
                load.more(50);
                eventually(|| scene.is_served(&agent));
            });
            through(&scene, "clients in cgroups made after all of it", |_| {
                for number in [0, 5, 10] {
                    assert!(call_from_new_cgroup(&scene, number), "{}", log_of(world));
                    // Deleted and made again.
                    assert!(call_from_new_cgroup(&scene, number), "{}", log_of(world));
                }
            });
            through(&scene, "no room for another destination", |load| {
                let full = Full::of(world, names::TARGETS);
                load.fails(50);
                drop(full);
                load.more(50);
            });
            assert!(scene.all_are_well());
            drop(agent);
        },
    );
}

#[test]
fn pods_of_before_a_restart_are_none_of_those_after_it() {
    test(
        "pods_of_before_a_restart_are_none_of_those_after_it",
        |world| {
            let mut scene = Scene::new(world);
            let agent = scene.supervised();
            through(&scene, "before it", |load| load.more(50));
            agent.kill();
            // The pins stay; whom they were for has gone, and others have their names.
            scene.make_again();
            let agent = scene.supervised();
            through(&scene, "after it", |load| load.more(200));
            assert!(scene.all_are_well());
            let pods = fs::read_dir(world.bpffs.join("v1/pods")).unwrap().count();
            assert_eq!(pods, usize::from(PODS), "pins");
            drop(agent);
        },
    );
}

/// The number of a pod that comes late.
const LATE: u8 = PODS;

/// A pod that is not the agent's yet.
struct Latecomer<'a> {
    scene: &'a Scene<'a>,
    pod: TestPod,
    _sandbox: Process,
}

impl<'a> Latecomer<'a> {
    fn new(scene: &'a Scene<'a>, uid: u8) -> Self {
        let pod = scene.node.another(LATE);
        let uid = scene.world.uid(uid);
        let sandbox = scene.world.pause(&uid, Some(&pod));
        scene.discovery.place("late", &uid, &[pod.v4, pod.v6]);
        Self {
            scene,
            pod,
            _sandbox: sandbox,
        }
    }

    /// Why it is not enrolled.
    fn failure(&self) -> Option<String> {
        let list = told(self.scene.world, "list", &[]);
        let start = "default/late\t-\tfailed: ";
        list.lines()
            .find_map(|line| line.strip_prefix(start))
            .map(str::to_owned)
    }
}

impl Drop for Latecomer<'_> {
    fn drop(&mut self) {
        self.scene.discovery.take_away("late");
        self.scene.node.remove(LATE);
    }
}

#[test]
fn nothing_leaves_in_plaintext_where_a_map_is_full() {
    test("nothing_leaves_in_plaintext_where_a_map_is_full", |world| {
        let scene = Scene::new(world);
        let agent = scene.supervised();
        let maps = [
            names::ENROLLED,
            names::OWN,
            names::APPEARANCE,
            names::LISTENERS,
        ];
        for (map, round) in maps.into_iter().zip(1..) {
            through(&scene, &format!("no room in {map}"), |load| {
                let of_pods = || {
                    let all = traces(world).into_iter();
                    let is_known = |name: &str| name != map && name != names::TARGETS;
                    all.filter(|(name, _)| is_known(name)).collect::<Vec<_>>()
                };
                let before = of_pods();
                let full = Full::of(world, map);
                let late = Latecomer::new(&scene, PODS + round);
                eventually(|| late.failure().is_some());
                let netns = late.pod.path.to_str().unwrap();
                let by_hand = ["--workload", "default/by-hand", "--netns", netns];
                let why = refused(world, "enrol", &by_hand);
                assert!(why.contains(&format!("eBPF map {map} is full")), "{why}");
                tell(&format!("no room in {map}: {why:?}, {:?}", late.failure()));
                // Between two attempts there is nothing of it.
                eventually(|| of_pods() == before);
                load.more(50);
                assert_eq!(load.failed(), Vec::<String>::new());
                kill(agent.proxy().unwrap(), Signal::SIGKILL).unwrap();
                eventually(|| agent.metric(CRASHES) == f64::from(round));
                load.more(50);
                drop(full);
                eventually(|| is_enrolled(world, "late"));
                for to in scene.servers[0] {
                    late.pod.run(|| exchange(to)).unwrap();
                }
                load.more(50);
                assert_eq!(load.refused(), Vec::<String>::new());
                drop(late);
                eventually(|| of_pods() == before);
            });
        }
        assert!(scene.all_are_well());
        drop(agent);
    });
}

#[test]
fn pods_whose_listeners_have_no_room_are_refused_until_they_have() {
    test(
        "pods_whose_listeners_have_no_room_are_refused_until_they_have",
        |world| {
            let scene = Scene::new(world);
            let agent = scene.supervised();
            through(&scene, "no room for the next agent's listeners", |load| {
                agent.kill();
                // The places of those that are closed.
                eventually(|| entries_at::<16>(&pin(world, names::LISTENERS)) == 0);
                let full = Full::of(world, names::LISTENERS);
                let agent = Agent::launch(world, &scene.discovery.control(), "supervise", &[]);
                eventually(|| agent.metric(REFUSED) == f64::from(PODS));
                let served = load.served();
                load.fails(100);
                assert_eq!(load.served(), served);
                drop(full);
                eventually(|| scene.is_served(&agent));
                load.more(50);
                assert!(scene.all_are_well());
            });
        },
    );
}

/// It may go around the mesh when nobody is there, and is refused for want of room.
#[test]
fn a_pod_that_has_no_room_to_fail_open_fails_closed() {
    test(
        "a_pod_that_has_no_room_to_fail_open_fails_closed",
        |world| {
            let scene = Scene::new(world);
            let choice = ["--fail-open-namespaces", "open"];
            let launch = |pods: u8| {
                let control = scene.discovery.control();
                let agent = Agent::launch(world, &control, "supervise", &choice);
                eventually(|| agent.metric(ENROLLED) == f64::from(pods));
                agent
            };
            let kill = |agent: Agent| {
                let proxy = agent.proxy().unwrap();
                agent.kill();
                eventually(|| !fs::exists(format!("/proc/{proxy}")).unwrap());
            };
            let agent = launch(PODS);
            let pod = scene.node.another(LATE);
            let outside = scene.node.another(LATE + 1);
            let server = outside.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(outside.v4, server.port());
            let full = Full::of(world, names::OPEN);
            enrol(world, "open/late", &pod);
            watched(&scene, "no room in OPEN, no agent", |_| {
                kill(agent);
                for _ in 0..20 {
                    let error = pod.ask(to).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                }
            });
            let agent = launch(PODS + 1);
            assert!(log_of(world).contains("fail open: not as it should be"));
            drop(full);
            eventually(|| entries_at::<8>(&pin(world, names::OPEN)) == 1);
            kill(agent);
            pod.run(|| exchange(to)).unwrap();
        },
    );
}

/// A map without room, for as long as this is kept: what it is full of is nobody's.
struct Full(Box<dyn FnMut()>);

impl Full {
    fn of(world: &World, name: &str) -> Self {
        match name {
            names::ENROLLED => Self::filled::<8, { size_of::<Enrolled>() }>(world, name, 4000),
            names::OWN => Self::filled::<{ size_of::<OwnAddress>() }, 4>(world, name, 32_000),
            names::APPEARANCE => Self::filled::<8, { size_of::<Appearance>() }>(world, name, 4000),
            names::TARGETS => {
                const KEY: usize = size_of::<Source>();
                Self::filled::<KEY, { size_of::<Target>() }>(world, name, 200_000)
            }
            names::OPEN => Self::filled::<8, 8>(world, name, 4000),
            names::LISTENERS => Self::filled_with_listeners(world),
            _ => unreachable!("{name}"),
        }
    }

    fn filled<const KEY: usize, const VALUE: usize>(
        world: &World,
        name: &str,
        at_least: u64,
    ) -> Self {
        let map = pinned(world, name);
        let mut map: HashMap<_, [u8; KEY], [u8; VALUE]> = map.try_into().unwrap();
        let room = fill(|number| map.insert(foreign(number), [0; VALUE], 0));
        assert!(room > at_least, "{name}: {room}");
        Self(Box::new(move || {
            for number in 0..room {
                // An agent that has started meanwhile takes away what it does not know.
                let _ = map.remove(&foreign(number));
            }
        }))
    }

    /// With one that goes out of all its places when it is closed.
    fn filled_with_listeners(world: &World) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = listener.as_raw_fd();
        let map = pinned(world, names::LISTENERS);
        let mut map: SockHash<_, [u8; size_of::<ListenerKey>()]> = map.try_into().unwrap();
        let room = fill(|number| map.insert(foreign(number), socket, 0));
        assert!(room > 16_000, "{room}");
        let mut listener = Some(listener);
        Self(Box::new(move || drop(listener.take())))
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn pin(world: &World, name: &str) -> PathBuf {
    world.bpffs.join("v1/maps").join(name)
}

fn pinned(world: &World, name: &str) -> Map {
    Map::from_map_data(MapData::from_pin(pin(world, name)).unwrap()).unwrap()
}

/// How many there was room for.
fn fill(mut insert: impl FnMut(u64) -> Result<(), MapError>) -> u64 {
    let (mut room, mut began) = (0, Instant::now());
    // Only E2BIG says that it is full; for a moment the kernel may have no memory at hand.
    loop {
        match insert(room) {
            Ok(()) => (room, began) = (room + 1, Instant::now()),
            Err(MapError::SyscallError(error)) if is_full(&error.io_error) => return room,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(1), "{error:?}"),
        }
    }
}

/// A key of a namespace that there is not, or of one for each where there is no room for
/// more than that.
fn foreign<const KEY: usize>(number: u64) -> [u8; KEY] {
    let mut key = [0xff; KEY];
    key[KEY - 8..].copy_from_slice(&(u64::MAX - number).to_ne_bytes());
    key
}

fn is_full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::E2BIG as i32)
}

/// As `umount -l`: what has it open goes on with it.
fn unmount(world: &World) {
    nix::mount::umount2(&world.bpffs, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// An address that a pod has lost may be another's, to whom nothing goes in plaintext.
#[test]
fn an_address_that_is_lost_is_no_longer_a_pods_own_where_there_is_no_room() {
    test(
        "an_address_that_is_lost_is_no_longer_a_pods_own_where_there_is_no_room",
        |world| {
            let scene = Scene::new(world);
            let _agent = scene.supervised();
            let [pod, other] = [&scene.node.pods[0], &scene.node.another(LATE)];
            let server = other.serve((Ipv4Addr::UNSPECIFIED, 0));
            let to = SocketAddr::new(pod.v4, server.port());
            let own = || traces(world)[names::OWN];
            let before = own();
            let full = Full::of(world, names::OWN);
            pod.ip("addr add 10.77.1.200/32 dev eth0");
            pod.ip(&format!("addr del {}/32 dev eth0", pod.v4));
            pod.ip("route replace 10.77.1.254 dev eth0 scope link");
            pod.ip("route replace default via 10.77.1.254");
            other.ip(&format!("addr add {}/32 dev eth0", pod.v4));
            let is_redirected = || {
                let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
                pod.run(connect)
                    .is_ok_and(|stream| leads_to_the_agent(&stream))
            };
            eventually(is_redirected);
            // One that there was no room for is written down when there is, though nothing
            // has changed since.
            pod.ip("addr add 10.77.1.201/32 dev eth0");
            sleep(Duration::from_millis(300));
            drop(full);
            assert_eq!(own(), before);
            eventually(|| own() == before + 1);
        },
    );
}
