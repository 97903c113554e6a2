//! The cluster itself: addresses, services, processes, limits, the lives of proxies,
//! and that nothing stays behind. Needs root; says so where it is not.

use duet_bench::cluster::{
    Cgroup, Endpoint, Layout, Limits, NetnsCluster, Part, Placement, PodSpec, Restart, ServiceSpec,
    Signal, Spawn, clean_all, monotonic_ns,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Set for the copy of this program that builds a cluster and is then killed.
const VICTIM: &str = "DUET_TEST_CLUSTER_VICTIM";
/// Where the copy of this program that is a client connects to.
const CLIENT: &str = "DUET_TEST_CLUSTER_CLIENT";
const SERVED: u16 = 8080;
const TIMEOUT: Duration = Duration::from_secs(5);

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Not eprintln!, whose output a test that passes does not show.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: namespaces and cgroups need root"
        );
    }
    root
}

/// Answers each connection with the address it came from, and its own name.
fn serve(cluster: &NetnsCluster, pod: &str, connections: usize) -> thread::JoinHandle<()> {
    let name = pod.to_owned();
    let listener = cluster
        .run_in_pod(pod, || TcpListener::bind(("::", SERVED)).unwrap())
        .unwrap();
    thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut asked = [0; 5];
            stream.read_exact(&mut asked).unwrap();
            writeln!(stream, "{name} {}", peer.ip().to_canonical()).unwrap();
        }
    })
}

/// Connects from a pod; who answered, and which address it saw.
fn ask(cluster: &NetnsCluster, from: &str, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    cluster
        .run_in_pod(from, || {
            let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(b"hello")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (name, seen) = answer.trim().split_once(' ').unwrap();
            Ok((name.to_owned(), seen.parse().unwrap()))
        })
        .unwrap()
}

fn namespaces(id: &str) -> Vec<String> {
    let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains(id))
        .map(str::to_owned)
        .collect()
}

fn cgroup_dirs(id: &str) -> Vec<PathBuf> {
    let layout = Layout::detect().unwrap();
    [layout.unified, layout.cpu, layout.cpuacct, layout.memory]
        .into_iter()
        .flatten()
        .map(|root| root.join(format!("duet-{id}")))
        .filter(|dir| dir.exists())
        .collect()
}

#[track_caller]
fn assert_nothing_left(id: &str) {
    assert_eq!(namespaces(id), Vec::<String>::new());
    assert_eq!(cgroup_dirs(id), Vec::<PathBuf>::new());
    assert!(!Path::new("/run/duet-bench").join(id).exists());
    for entry in std::fs::read_dir("/sys/fs/bpf")
        .into_iter()
        .flatten()
        .flatten()
    {
        assert!(!entry.file_name().to_string_lossy().contains(id));
    }
}

fn two_nodes() -> NetnsCluster {
    NetnsCluster::builder(Placement::None)
        .pod(PodSpec::new("client").node(1))
        .pod(PodSpec::new("near").node(1))
        .pod(PodSpec::new("far").node(2))
        .service(ServiceSpec::new("near").port(80, SERVED).pods(["near"]))
        .service(ServiceSpec::new("far").port(80, SERVED).pods(["far"]))
        .service(
            ServiceSpec::new("both")
                .port(80, SERVED)
                .pods(["near", "far"]),
        )
        .start()
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn pods_and_services_are_reached_from_near_and_far() {
    if !is_root() {
        return;
    }
    let cluster = two_nodes();
    let id = cluster.id().to_owned();
    let client = cluster.pod("client").unwrap();
    for name in ["near", "far"] {
        let serving = serve(&cluster, name, 4);
        let pod = cluster.pod(name).unwrap();
        let service = cluster.service(name).unwrap();
        for (address, port, seen) in [
            (IpAddr::V4(pod.v4), SERVED, IpAddr::V4(client.v4)),
            (IpAddr::V6(pod.v6), SERVED, IpAddr::V6(client.v6)),
            (IpAddr::V4(service.v4), 80, IpAddr::V4(client.v4)),
            (IpAddr::V6(service.v6), 80, IpAddr::V6(client.v6)),
        ] {
            let answer = ask(&cluster, "client", (address, port).into()).unwrap();
            assert_eq!(answer, (name.to_owned(), seen), "{address}:{port}");
        }
        serving.join().unwrap();
    }
    cluster.remove().unwrap();
    assert_nothing_left(&id);
}

#[test]
fn a_service_spreads_connections_and_a_pod_reaches_itself() {
    if !is_root() {
        return;
    }
    let cluster = two_nodes();
    let service = cluster.service("both").unwrap();
    let target = SocketAddr::from((service.v4, 80));
    // Served on detached threads: how many each one gets is left to chance.
    drop(serve(&cluster, "near", 1000));
    drop(serve(&cluster, "far", 1000));
    let mut near = 0;
    for _ in 0..40 {
        let (name, _) = ask(&cluster, "client", target).unwrap();
        near += usize::from(name == "near");
    }
    // Chance alone leaves this range once in ten million runs.
    assert!((4..=36).contains(&near), "{near} of 40");

    cluster.set_service_pods("both", &["near"]).unwrap();
    let (name, seen) = ask(&cluster, "near", target).unwrap();
    assert_eq!(name, "near");
    assert_ne!(
        seen,
        cluster.pod("near").unwrap().v4,
        "it would answer itself"
    );

    cluster.set_service_pods("both", &[]).unwrap();
    assert!(ask(&cluster, "client", target).is_err());
}

#[test]
fn pods_come_and_go() {
    if !is_root() {
        return;
    }
    let cluster = two_nodes();
    cluster.set_service_pods("both", &["late"]).unwrap();
    let late = cluster.add_pod(PodSpec::new("late").node(2)).unwrap();
    let service = cluster.service("both").unwrap();
    let serving = serve(&cluster, "late", 1);
    let (name, _) = ask(&cluster, "near", (service.v6, 80).into()).unwrap();
    assert_eq!(name, "late");
    serving.join().unwrap();

    cluster.remove_pod("late").unwrap();
    assert!(!late.netns.path().exists());
    assert!(late.cgroup.pids_below().is_empty());
    assert!(cluster.pod("late").is_err());
    // Its address is free again, and the next pod gets it.
    let next = cluster.add_pod(PodSpec::new("next").node(2)).unwrap();
    assert_eq!(next.v4, late.v4);
}

#[test]
fn a_process_is_placed_before_it_starts() {
    if !is_root() {
        return;
    }
    let cluster = two_nodes();
    let pod = cluster.pod("near").unwrap();
    let script = "id -u; grep CapBnd /proc/self/status; cat /proc/self/cgroup; readlink /proc/self/ns/net; env; echo gone >&2";
    let output = cluster
        .exec(
            Spawn::in_pod("near", Part::Load, "/bin/sh")
                .args(["-c", script])
                .env("GIVEN", "yes")
                .uid(2102),
        )
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    assert_eq!(output.stderr, b"gone\n");
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some("2102"));
    assert_eq!(lines.next(), Some("CapBnd:\t0000000000000000"));
    let place = format!("/duet-{}/node-1/pod-near/load", cluster.id());
    assert!(
        stdout.lines().filter(|line| line.ends_with(&place)).count() >= 1,
        "{stdout}"
    );
    assert!(stdout.contains("GIVEN=yes"));
    assert!(
        !stdout.contains("CARGO"),
        "the harness's environment leaked: {stdout}"
    );
    let inode = std::fs::metadata(pod.netns.path())
        .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
        .unwrap();
    assert!(stdout.contains(&format!("net:[{inode}]")));
}

#[test]
fn a_generator_may_have_a_real_time_class() {
    if !is_root() {
        return;
    }
    let cluster = NetnsCluster::builder(Placement::None)
        .nodes(1)
        .pod(PodSpec::new("load"))
        .start()
        .unwrap();
    let script =
        "chrt --pid $$; taskset --pid $$; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let output = cluster
        .exec(
            Spawn::in_pod("load", Part::Load, "/bin/sh")
                .args(["-c", script])
                .fifo(10)
                .cpus("0"),
        )
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("SCHED_FIFO"), "{stdout}");
    assert!(stdout.contains("priority: 10"), "{stdout}");
    assert!(stdout.contains("mask: 1\n"), "{stdout}");
    let load = cluster.pod("load").unwrap().part(Part::Load);
    assert!(
        load.cpu().unwrap().usage_us > 1000,
        "its CPU is counted all the same"
    );
}

#[test]
fn cpu_and_memory_are_counted_and_limited() {
    if !is_root() {
        return;
    }
    let limits = Limits {
        app_cpu_millis: Some(200),
        app_memory: Some(64 << 20),
        ..Limits::default()
    };
    let cluster = NetnsCluster::builder(Placement::None)
        .nodes(1)
        .limits(limits)
        .pod(PodSpec::new("busy"))
        .start()
        .unwrap();
    let app = cluster.pod("busy").unwrap().part(Part::App);
    let spin = cluster
        .spawn(Spawn::in_pod("busy", Part::App, "/bin/sh").args(["-c", "while :; do :; done"]))
        .unwrap();
    let begun = Instant::now();
    let before = app.cpu().unwrap();
    thread::sleep(Duration::from_secs(1));
    let after = app.cpu().unwrap();
    let share = (after.usage_us - before.usage_us) as f64 / begun.elapsed().as_micros() as f64;
    assert!(
        (0.05..0.3).contains(&share),
        "used {share} of a core, may use 0.2"
    );
    assert!(after.throttled_periods > before.throttled_periods);
    assert!(after.throttled_us > 0);
    let node = cluster.node(1).unwrap();
    assert!(node.cgroup.cpu().unwrap().usage_us >= after.usage_us);
    assert_eq!(app.pids(), vec![spin.pid()]);
    drop(spin);
    assert!(app.pids().is_empty());

    let memory = app.memory().unwrap();
    assert!(memory.current < 64 << 20);
    let eater = cluster
        .spawn(
            Spawn::in_pod("busy", Part::App, "/bin/sh")
                .args(["-c", "a=0123456789abcdef; while :; do a=$a$a; done"]),
        )
        .unwrap();
    let status = eater.wait_timeout(Duration::from_secs(60)).unwrap();
    assert!(status.is_some_and(|status| !status.success()), "{status:?}");
    assert!(app.oom_kills().unwrap() > 0);
    assert!(app.memory().unwrap().peak.unwrap() <= 64 << 20);
}

#[test]
fn a_handle_waits_signals_and_kills() {
    if !is_root() {
        return;
    }
    let cluster = NetnsCluster::builder(Placement::None)
        .nodes(1)
        .start()
        .unwrap();
    let before = monotonic_ns();
    let sleep = cluster
        .spawn(Spawn::in_node(1, "/bin/sleep").arg("60"))
        .unwrap();
    assert!(sleep.started() >= before);
    assert_eq!(sleep.wait_timeout(Duration::from_millis(20)).unwrap(), None);
    assert!(sleep.signal(Signal::SIGTERM).unwrap());
    let status = sleep.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(15)
    );
    assert!(
        !sleep.signal(Signal::SIGTERM).unwrap(),
        "its pid is no longer its own"
    );
    let pid = {
        let sleep = cluster
            .spawn(Spawn::in_control("/bin/sleep").arg("60"))
            .unwrap();
        sleep.pid()
    };
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let missing = cluster
        .spawn(Spawn::in_node(1, "/no/such/program"))
        .unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/no/such/program was not found")
    );
}

#[test]
fn the_wire_shows_what_is_in_the_clear() {
    if !is_root() {
        return;
    }
    let cluster = two_nodes();
    let far = cluster.pod("far").unwrap();
    let capture = cluster.capture(1, &[b"far 10.", b"no such thing"]).unwrap();
    let serving = serve(&cluster, "far", 1);
    ask(&cluster, "client", (far.v4, SERVED).into()).unwrap();
    serving.join().unwrap();
    let report = capture.stop().unwrap();
    assert_eq!(report.lost, 0);
    assert!(report.packets >= 12, "{report:?}");
    // In on the node's wire, out on the pod's link.
    assert_eq!(report.plaintext_packets, 2, "{report:?}");
    assert_eq!(report.plaintext_by_interface["eth0"], 1);
    assert!(report.examples[0].contains(&format!("{}:{SERVED} -> ", far.v4)));

    let quiet = cluster.capture(2, &[b"no such thing"]).unwrap();
    let serving = serve(&cluster, "far", 1);
    ask(&cluster, "client", (far.v4, SERVED).into()).unwrap();
    serving.join().unwrap();
    let report = quiet.stop().unwrap();
    assert!(report.packets > 0);
    assert_eq!(report.plaintext_packets, 0);
}

#[test]
fn clusters_live_side_by_side() {
    if !is_root() {
        return;
    }
    let one = two_nodes();
    let other = two_nodes();
    assert_ne!(one.id(), other.id());
    assert_ne!(one.pod("far").unwrap().v4, other.pod("far").unwrap().v4);
    for cluster in [&one, &other] {
        let serving = serve(cluster, "far", 1);
        let far = cluster.pod("far").unwrap();
        assert_eq!(
            ask(cluster, "client", (far.v4, SERVED).into()).unwrap().0,
            "far"
        );
        serving.join().unwrap();
    }
    let gone = one.id().to_owned();
    drop(one);
    assert_nothing_left(&gone);
    let serving = serve(&other, "near", 1);
    let service = other.service("near").unwrap();
    assert_eq!(
        ask(&other, "client", (service.v4, 80).into()).unwrap().0,
        "near"
    );
    serving.join().unwrap();
}

#[test]
fn a_failed_start_leaves_nothing() {
    if !is_root() {
        return;
    }
    let error = NetnsCluster::builder(Placement::None)
        .name("twins")
        .pod(PodSpec::new("same"))
        .pod(PodSpec::new("same"))
        .start()
        .unwrap_err();
    assert_eq!(error.to_string(), "there is a pod same already");
}

#[test]
fn fifty_pods_are_no_trouble() {
    if !is_root() {
        return;
    }
    let cluster = NetnsCluster::builder(Placement::None)
        .pods((0..50).map(|n| PodSpec::new(format!("p{n}")).node(1 + n % 2)))
        .start()
        .unwrap();
    let last = cluster.pod("p49").unwrap();
    let serving = serve(&cluster, "p49", 1);
    assert_eq!(
        ask(&cluster, "p0", (last.v6, SERVED).into()).unwrap().0,
        "p49"
    );
    serving.join().unwrap();
    let id = cluster.id().to_owned();
    drop(cluster);
    assert_nothing_left(&id);
}

/// Not a test by itself: it is what `what_a_killed_harness_left_is_cleaned_up` kills.
#[test]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let cluster = two_nodes();
    let sleep = cluster
        .spawn(Spawn::in_pod("far", Part::App, "/bin/sleep").arg("600"))
        .unwrap();
    println!("\n{} {}", cluster.id(), sleep.pid());
    thread::sleep(Duration::from_secs(600));
}

#[test]
fn what_a_killed_harness_left_is_cleaned_up() {
    if !is_root() {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (id, pid) = line.split_once(' ')?;
            Some((id.to_owned(), pid.parse::<u32>().ok()?))
        });
    let (id, sleeper) = said.expect("the victim said which cluster it made");

    assert!(
        clean_all(false).unwrap().left.contains(&id),
        "its owner is alive"
    );
    assert!(!namespaces(&id).is_empty());

    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(!namespaces(&id).is_empty(), "nothing else cleans up");
    let report = clean_all(false).unwrap();
    assert!(report.removed.contains(&id), "{report}");
    assert_nothing_left(&id);
    let group = Cgroup::at(format!("duet-{id}")).unwrap();
    assert!(group.pids_below().is_empty());
    // The kernel ends it with its parent, the clean-up at the latest.
    let deadline = Instant::now() + TIMEOUT;
    let alive = || {
        std::fs::read_to_string(format!("/proc/{sleeper}/cmdline"))
            .is_ok_and(|line| line.contains("sleep\u{0}600"))
    };
    while alive() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!alive(), "process {sleeper} survived");
}

/// Not a test by itself: a client that is a process of its pod, as an agent wants it.
#[test]
fn client() {
    let Ok(target) = std::env::var(CLIENT) else {
        return;
    };
    let mut stream = TcpStream::connect_timeout(&target.parse().unwrap(), TIMEOUT).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    println!("\nanswer {answer}");
}

/// Connects from a process of the pod; who answered, or what went wrong.
fn ask_as_process(cluster: &NetnsCluster, from: &str, to: SocketAddr) -> Result<String, String> {
    let output = cluster
        .exec(
            Spawn::in_pod(from, Part::App, std::env::current_exe().unwrap())
                .args(["client", "--exact", "--nocapture"])
                .env(CLIENT, to.to_string()),
        )
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines()
        .find_map(|line| Some(line.strip_prefix("answer ")?.split_once(' ')?.0.to_owned()))
        .ok_or_else(|| {
            let mut why = String::from_utf8_lossy(&output.stderr).into_owned();
            for log in cluster
                .proxies()
                .iter()
                .filter_map(|proxy| proxy.log.as_ref())
            {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                why.push_str(&format!("--- {}\n{text}", log.display()));
            }
            why
        })
}

fn meshed(placement: Placement) -> NetnsCluster {
    NetnsCluster::builder(placement)
        .pod(PodSpec::new("client").node(1))
        .pod(PodSpec::new("near").node(1))
        .pod(PodSpec::new("far").node(2))
        .pod(PodSpec::new("bare").node(1).meshed(false))
        .service(
            ServiceSpec::new("far")
                .port_as(80, SERVED, "tcp")
                .pods(["far"]),
        )
        .limits(Limits {
            proxy_total_cpu_millis: Some(1000),
            proxy_total_memory: Some(256 << 20),
            ..Limits::default()
        })
        .start()
        .unwrap_or_else(|error| panic!("{error}"))
}

fn a_mesh_lives(placement: Placement) {
    if !is_root() {
        return;
    }
    let cluster = meshed(placement);
    let id = cluster.id().to_owned();
    let agent = placement == Placement::Agent;

    assert_eq!(cluster.proxies().len(), if agent { 2 } else { 3 });
    assert!(cluster.proxy_of("bare").is_err());
    let proxy = cluster.proxy_of("client").unwrap();
    assert_eq!(
        proxy.pods,
        if agent {
            vec!["client", "near"]
        } else {
            vec!["client"]
        }
    );
    for proxy in cluster.proxies() {
        assert_eq!(proxy.get(Endpoint::Health, "/ready").unwrap().0, 200);
        let (status, metrics) = proxy.get(Endpoint::Metrics, "/metrics").unwrap();
        assert_eq!(status, 200);
        assert!(metrics.contains("# TYPE"), "{metrics}");
        assert!(proxy.cgroup.pids().contains(&proxy.pid.unwrap()));
        assert!(proxy.cgroup.memory().unwrap().anon > 0);
    }

    // Through the mesh, and unreadable on the wire between the nodes.
    let service = cluster.service("far").unwrap();
    let capture = cluster.capture(2, &[b"far 10."]).unwrap();
    drop(serve(&cluster, "far", 1000));
    let through = |from| ask_as_process(&cluster, from, (service.v4, 80).into());
    let gets_through = |from| match through(from) {
        Ok(name) => assert_eq!(name, "far"),
        Err(why) => panic!("{from} does not get through: {why}"),
    };
    gets_through("client");
    gets_through("near");
    let wire = capture.stop().unwrap();
    assert!(wire.packets > 0 && wire.lost == 0, "{wire:?}");
    assert_eq!(wire.plaintext_packets, 0, "{wire:?}");

    // Killed, it comes back by itself, and its lives tell when.
    let killed = cluster
        .kill_proxy(&proxy.name, Signal::SIGKILL, Restart::AtOnce)
        .unwrap();
    cluster
        .wait_proxy_ready(&proxy.name, Duration::from_secs(30))
        .unwrap();
    let lives = cluster.lives(&proxy.name).unwrap();
    assert_eq!(lives.len(), 2);
    assert_eq!(lives[0].killed, Some(killed));
    assert!(lives[0].detection_ns().is_some());
    assert!(lives[1].spawned >= lives[0].noticed.unwrap());
    assert!(lives[1].start_ns().is_some());
    assert_ne!(lives[0].pid, lives[1].pid);
    gets_through("client");

    // Or it stays dead until told otherwise, and then nothing gets through.
    cluster
        .kill_proxy(&proxy.name, Signal::SIGKILL, Restart::Never)
        .unwrap();
    assert!(cluster.wait_dead(&proxy.name, TIMEOUT).unwrap());
    assert_eq!(cluster.proxy(&proxy.name).unwrap().pid, None);
    assert!(through("client").is_err());
    cluster.start_proxy(&proxy.name).unwrap();
    gets_through("client");
    cluster
        .kill_proxy(&proxy.name, Signal::SIGKILL, Restart::Never)
        .unwrap();
    cluster.start_proxy(&proxy.name).unwrap();
    gets_through("client");

    // Pods come and go, and so does the control plane.
    cluster.add_pod(PodSpec::new("late").node(2)).unwrap();
    gets_through("late");
    cluster.restart_control().unwrap();
    gets_through("late");
    cluster.remove_pod("late").unwrap();
    assert!(cluster.proxy_of("late").is_err());
    gets_through("client");

    cluster.remove().unwrap();
    assert_nothing_left(&id);
}

#[test]
fn a_mesh_of_sidecars_lives() {
    a_mesh_lives(Placement::Sidecar);
}

#[test]
fn a_mesh_of_agents_lives() {
    a_mesh_lives(Placement::Agent);
}
