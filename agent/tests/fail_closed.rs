//! Twelve pods that talk to one another without a pause, while everything goes wrong that
//! can; and every packet on their links.

mod daemon;
mod discovery;
mod load;
mod node;
mod scene;
mod world;

use aya::maps::{Map, MapData, MapError};
use daemon::{Agent, eventually, log_of};
use duet_agent::interception::ON_CGROUP;
use duet_ebpf::{Source, Target, names};
use load::{Load, StopAtEnd, exchange};
use nix::sys::signal::{Signal, kill};
use node::Node;
use scene::{PODS, Scene};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};
use world::{World, tell, test};

/// Between a client's connections: 12 clients, 400 a second.
const EVERY: Duration = Duration::from_millis(30);

const CRASHES: &str = "duet_agent_proxy_restarts_total{reason=\"crash\"}";
const HANGS: &str = "duet_agent_proxy_restarts_total{reason=\"hang\"}";
const HANDOVERS: &str = "duet_agent_handovers_total";

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
                let full = Full::new(world);
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

/// A map without room, for as long as this is kept.
struct Full(aya::maps::HashMap<MapData, [u8; size_of::<Source>()], [u8; size_of::<Target>()]>);

impl Full {
    fn new(world: &World) -> Self {
        let pin = world.bpffs.join("v1/maps").join(names::TARGETS);
        let map = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
        let mut map = aya::maps::HashMap::try_from(map).unwrap();
        let target = [0; size_of::<Target>()];
        let (mut room, mut began) = (0, Instant::now());
        // Only E2BIG says that it is full; for a moment the kernel may have no memory at hand.
        loop {
            match map.insert(Self::key(room), target, 0) {
                Ok(()) => (room, began) = (room + 1, Instant::now()),
                Err(MapError::SyscallError(error)) if is_full(&error.io_error) => break,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(1), "{error:?}"),
            }
        }
        assert!(room > 200_000, "{room}");
        Self(map)
    }

    /// Of a connection that nobody has.
    fn key(number: u64) -> [u8; size_of::<Source>()] {
        let mut key = [0xff; size_of::<Source>()];
        key[..8].copy_from_slice(&(u64::MAX - number).to_ne_bytes());
        key
    }
}

fn is_full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::E2BIG as i32)
}

impl Drop for Full {
    fn drop(&mut self) {
        for number in 0.. {
            if self.0.remove(&Self::key(number)).is_err() {
                return;
            }
        }
    }
}

/// As `umount -l`: what has it open goes on with it.
fn unmount(world: &World) {
    nix::mount::umount2(&world.bpffs, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
