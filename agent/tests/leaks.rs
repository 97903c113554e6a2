//! What is left of workloads that have come and gone: nothing.

mod daemon;
mod discovery;
mod load;
mod node;
mod world;

use aya::maps::MapData;
use aya::programs::{loaded_links, loaded_programs};
use daemon::{Agent, ask, eventually, get};
use discovery::Discovery;
use duet_agent::api::{self, Request};
use duet_core::api::Placement;
use duet_ebpf::names;
use load::{exchange, hold};
use nix::unistd::Pid;
use node::Node;
use procfs::process::Process;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use world::{PATIENCE, TestPod, World, tell, test, traces};

/// Workloads that come and go, unless the test is told otherwise.
const CYCLES: usize = 1000;

/// Of so many, one is on the wire and calls a workload that stays.
const CALLER: usize = 10;

/// What callers are called, by turns: the workload that stays has series for each, for good.
const CALLERS: usize = 5;

/// In these, threads, caches and lazily opened files come into being, and all callers call.
const WARM: usize = CALLER * CALLERS;

/// How often memory is looked at.
const LOOKS: usize = 20;

/// What a cycle may cost for ever, by the second half of them. Of a thousand it is 140 at most,
/// of four thousand 30, the allocator's; 4 KiB lost in every tenth would be 540.
const BYTES_A_CYCLE: f64 = 256.0;

/// Longer than what has ended takes to be gone.
const SETTLED: Duration = Duration::from_millis(500);

/// The caller's number on its node.
const GUEST: u8 = 1;

/// An agent, a workload that stays, and those that come and go.
struct Stage<'a> {
    world: &'a World,
    discovery: Discovery,
    node: Node,
    agent: Agent,
    proxy: Pid,
    /// The application of the one that stays.
    server: SocketAddr,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World) -> Self {
        let discovery = Discovery::start(world);
        let node = Node::new(world, 1);
        let server = node.pods[0].serve((Ipv4Addr::UNSPECIFIED, 0));
        let server = SocketAddr::new(node.pods[0].v4, server.port());
        // So that there is something in every map.
        let open = ["--fail-open-namespaces", "default"];
        let agent = Agent::launch(world, &discovery.control(), "supervise", &open);
        eventually(|| ask(world, "list", &[]).status.success());
        let proxy = agent.proxy().unwrap();
        let stage = Self {
            world,
            discovery,
            node,
            agent,
            proxy,
            server,
        };
        stage.enrol("host", &stage.node.pods[0]);
        stage
    }

    fn enrol(&self, name: &str, pod: &TestPod) {
        let addresses = [pod.v4, pod.v6];
        self.discovery
            .put(name, "", &addresses, "node-1", Placement::Agent);
        self.ask(&Request::Enrol {
            workload: format!("default/{name}"),
            netns: pod.path.clone(),
        });
    }

    fn ask(&self, request: &Request) {
        api::ask(&self.world.scratch().join("agent.sock"), request).unwrap();
    }

    /// A workload comes and goes, and its namespace with it.
    fn cycle(&self, number: usize) {
        let is_caller = number.is_multiple_of(CALLER);
        let (name, pod) = match is_caller {
            true => {
                let name = format!("caller-{}", number / CALLER % CALLERS);
                (name, self.node.another(GUEST))
            }
            false => (format!("web-{number}"), self.unlinked(number)),
        };
        // So that it can be seen whether it is still there.
        let netns = pod.path.file_name().unwrap().to_str().unwrap();
        self.world.a.ip(&format!("netns set {netns} auto"));
        self.enrol(&name, &pod);
        let _open = is_caller.then(|| {
            // A new link loses a packet now and then, and the agent waits no second time.
            eventually(|| pod.run(|| exchange(self.server)).is_ok());
            // The removal ends it.
            hold(&pod, self.server)
        });
        // Every other one goes while it still asks for its certificate.
        if !is_caller && number % 2 == 1 {
            self.is_certified(&name);
            // It reaches the agent, which finds no way on.
            let nowhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
            let mut stream = pod.run(|| TcpStream::connect(nowhere)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = stream.read(&mut [0]);
        }
        self.ask(&Request::Remove {
            workload: format!("default/{name}"),
        });
        self.discovery.take_away(&name);
        match is_caller {
            true => self.node.remove(GUEST),
            false => ip(&["netns", "del", netns], ""),
        }
    }

    /// A pod that nobody reaches.
    fn unlinked(&self, number: usize) -> TestPod {
        let name = format!("duet-test-{}-{number}", self.world.id);
        let v4 = Ipv4Addr::new(10, 78, (number >> 8) as u8, number as u8);
        let v6 = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number as u16);
        ip(&["netns", "add", &name], "");
        ip(
            &["-n", &name, "-batch", "-"],
            &format!("link set lo up\naddr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"),
        );
        TestPod {
            path: Path::new("/run/netns").join(name),
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    fn is_certified(&self, name: &str) {
        let identity = format!("spiffe://test.local/ns/default/sa/{name}");
        let series = format!("duet_identity_expiry_timestamp_seconds{{identity=\"{identity}\"}}");
        let began = Instant::now();
        while self.agent.metric(&series) == 0.0 {
            assert!(began.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Of all that can be counted, how much there is.
    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (whose, pid) in self.processes() {
            for kind in descriptors(pid) {
                *counts.entry(format!("{whose}: {kind}")).or_default() += 1;
            }
        }
        let listeners = self.world.bpffs.join("v1/maps").join(names::LISTENERS);
        let programs = programs(&listeners);
        let links = loaded_links().flatten();
        let links = links.filter(|link| programs.contains(&link.program_id()));
        let (_, page) = get(self.agent.metrics, "/metrics");
        let series = page.lines().filter(|line| !line.starts_with('#'));
        // What it counts of callers' errors comes and stays.
        let series = series.filter(|line| !line.contains("workload=\"host\""));
        let certificates = series
            .clone()
            .filter(|line| line.starts_with("duet_identity_expiry"));
        let others = [
            ("links", links.count()),
            ("programs", programs.len()),
            ("namespaces", namespaces(&self.world.a)),
            ("tasks", self.agent.metric("duet_tasks") as usize),
            ("certificates", certificates.count()),
            ("series", series.count()),
        ];
        let all = traces(self.world).into_iter().chain(others);
        counts.extend(all.map(|(what, count)| (what.to_owned(), count)));
        counts
    }

    /// What there is more of than `before`, once nothing else is about to go: how much there
    /// was, and is.
    fn more_than(&self, before: &BTreeMap<String, usize>) -> Left {
        let began = Instant::now();
        loop {
            let now = self.counts().into_iter();
            let compared = now.map(|(what, count)| {
                let before = before.get(&what).copied().unwrap_or_default();
                (what, [before, count])
            });
            let left: Left = compared.filter(|(_, [before, now])| now > before).collect();
            if left.is_empty() || began.elapsed() > 2 * PATIENCE {
                return left;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn processes(&self) -> [(&'static str, Pid); 2] {
        [("proxy", self.proxy), ("supervisor", self.agent.pid())]
    }
}

type Left = BTreeMap<String, [usize; 2]>;

/// The kinds of what a process has open.
fn descriptors(pid: Pid) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let kind = |link: PathBuf| {
        let link = link.display().to_string();
        let numbered = link.split_once(":[");
        numbered
            .filter(|(_, number)| number.starts_with(|first: char| first.is_ascii_digit()))
            .map_or(link.clone(), |(kind, _)| kind.to_owned())
    };
    all.filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(kind)
        .collect()
}

/// The kernel's programs that use a map, whoever keeps them.
fn programs(pin: &Path) -> BTreeSet<u32> {
    let map = MapData::from_pin(pin).unwrap().info().unwrap().id();
    let uses_it = |ids: Option<Vec<u32>>| ids.is_some_and(|ids| ids.contains(&map));
    loaded_programs()
        .flatten()
        .filter(|program| program.map_ids().is_ok_and(uses_it))
        .map(|program| program.id())
        .collect()
}

/// How many of those that `pod` has a number for are still there, whatever keeps them: a
/// descriptor, a socket, a mount.
fn namespaces(pod: &TestPod) -> usize {
    let name = pod.path.file_name().unwrap();
    let list = Command::new("ip")
        .arg("-n")
        .arg(name)
        .args(["netns", "list-id"])
        .output();
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    list.lines().count()
}

fn ip(arguments: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "ip {arguments:?} {input}");
}

/// In bytes.
fn anonymous_memory(pid: Pid) -> f64 {
    let status = Process::new(pid.as_raw()).unwrap().status().unwrap();
    (status.rssanon.unwrap() * 1024) as f64
}

/// By how much a cycle makes it grow: the median of all pairs, which no single step moves.
fn slope(looks: &[(usize, f64)]) -> f64 {
    let mut slopes = Vec::new();
    for (index, (from, before)) in looks.iter().enumerate() {
        for (to, after) in &looks[index + 1..] {
            slopes.push((after - before) / (to - from) as f64);
        }
    }
    slopes.sort_by(f64::total_cmp);
    slopes[slopes.len() / 2]
}

#[test]
fn a_thousand_workloads_come_and_go_and_leave_nothing() {
    test(
        "a_thousand_workloads_come_and_go_and_leave_nothing",
        |world| {
            let stage = Stage::new(world);
            (0..WARM).for_each(|number| stage.cycle(number));
            std::thread::sleep(SETTLED);
            let before = stage.counts();
            let cycles = std::env::var("DUET_TEST_CYCLES");
            let cycles = cycles.map_or(CYCLES, |cycles| cycles.parse().unwrap());
            let began = Instant::now();
            let mut looks = [Vec::new(), Vec::new()];
            for number in 0..cycles {
                // In the first half it is the allocator that grows.
                if number >= cycles / 2 && number % (cycles / 2 / LOOKS) == 0 {
                    for (looks, (_, pid)) in looks.iter_mut().zip(stage.processes()) {
                        looks.push((number, anonymous_memory(pid)));
                    }
                }
                stage.cycle(WARM + number);
            }
            let took = began.elapsed();
            let left = stage.more_than(&before);
            let slopes = looks.map(|looks| slope(&looks));
            tell(&format!(
                "{cycles} namespaces came and went in {took:.1?}, {} of them calling: {} things \
                 counted before, more after: {:?}; in bytes a cycle, the proxy's memory grew by \
                 {:.0}, the supervisor's by {:.0}",
                cycles / CALLER,
                before.values().sum::<usize>(),
                left,
                slopes[0],
                slopes[1],
            ));
            assert_eq!(left, Left::new());
            // Of fewer, a page is too much of it.
            assert!(
                cycles < CYCLES || slopes.iter().all(|slope| *slope < BYTES_A_CYCLE),
                "{slopes:?} bytes a cycle"
            );
            assert_eq!(stage.agent.proxy(), Some(stage.proxy), "the same process");
        },
    );
}
