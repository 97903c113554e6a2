//! The CNI plugin, driven by cnitool as a container runtime would, behind a real plugin.
//!
//! cnitool comes with the CNI project's Go module, pinned in cnitool/go.mod; the other
//! plugins with Debian's containernetworking-plugins. Where they are not, these tests are
//! skipped, and with `DUET_NO_SKIPS` they fail.

mod daemon;
mod discovery;
mod runtime;
mod world;

use daemon::{Agent, ask, eventually, log_of};
use discovery::Discovery;
use duet_agent::cni::LOOK;
use runtime::{Runtime, add, plugin};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use world::{PATIENCE, TestPod, Wire, leads_to_the_agent, tell, test};

/// What a pod says to another.
const SAID: &str = "how-do-you-do";

/// The first process of a pod: it says something to somebody, in a cgroup that is its own.
fn say_from(cgroup: &Path, pod: &TestPod, to: SocketAddr) {
    let own = cgroup.join("pod");
    fs::create_dir(&own).unwrap();
    let script = format!(
        "read -r && timeout 1 bash -c 'exec 3<>/dev/tcp/{}/{} && echo {SAID} >&3'",
        to.ip(),
        to.port()
    );
    let mut client = pod.run(|| {
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).stdin(Stdio::piped());
        bash.spawn().unwrap()
    });
    fs::write(own.join("cgroup.procs"), client.id().to_string()).unwrap();
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(client.wait().unwrap().success());
    eventually(|| fs::remove_dir(&own).is_ok());
}

fn is_redirected(pod: &TestPod, to: SocketAddr) -> bool {
    let stream = pod.run(|| TcpStream::connect_timeout(&to, PATIENCE));
    leads_to_the_agent(&stream.unwrap())
}

#[test]
fn a_pod_is_redirected_before_anything_runs_in_it() {
    is_redirected_behind("a_pod_is_redirected_before_anything_runs_in_it", "ptp");
}

#[test]
fn behind_a_bridge_too() {
    is_redirected_behind("behind_a_bridge_too", "bridge");
}

fn is_redirected_behind(name: &str, network: &'static str) {
    test(name, |world| {
        let Some(runtime) = Runtime::new(world) else {
            return;
        };
        runtime.write(&runtime.network_of(network));
        let discovery = Discovery::start(world);
        let agent = runtime.launch(&discovery, &[]);
        eventually(|| ask(world, "list", &[]).status.success() && agent.ready().0 == 200);
        assert_eq!(runtime.chain(), [network, "duet-cni"]);

        let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let out = SocketAddr::new(world.b.v4, there.port());
        let uid = world.uid(1);
        let made = std::thread::scope(|scope| {
            let making =
                scope.spawn(|| runtime.cnitool("add", &world.a, "web-0", &uid, Some("agent")));
            // Discovery takes its time, and the pod waits for it.
            std::thread::sleep(Duration::from_millis(500));
            assert!(!making.is_finished());
            discovery.place("web-0", &uid, &[]);
            making.join().unwrap()
        });
        // No process of the pod's has been there.
        assert!(is_redirected(&world.a, out));
        let result = made.succeeded();
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(address.starts_with("198.18.77."), "{result}");
        assert_eq!(result["cniVersion"], "1.0.0");
        let enrolled = "duet_agent_cni_requests_total{outcome=\"enrolled\"}";
        assert_eq!(agent.metric(enrolled), 1.0);

        let check = |name: &str| runtime.cnitool("check", &world.a, name, &uid, Some("agent"));
        check("web-0").succeeded();
        assert!(check("web-9").failed().contains("not enrolled"));

        // Its first process is found to be where it is expected.
        let _process = world.pause(&uid, Some(&world.a));
        eventually(|| daemon::is_enrolled(world, "web-0"));
        assert_eq!(agent.metric("duet_agent_enrolment_gap_seconds_count"), 0.0);
        runtime
            .cnitool("del", &world.a, "web-0", &uid, Some("agent"))
            .succeeded();
        discovery.take_away("web-0");
        eventually(|| daemon::told(world, "list", &[]).is_empty());
    });
}

#[test]
fn without_the_agent_a_meshed_pod_does_not_start_and_others_do() {
    test(
        "without_the_agent_a_meshed_pod_does_not_start_and_others_do",
        |world| {
            let Some(runtime) = Runtime::new(world) else {
                return;
            };
            runtime.write(&runtime.network());
            let discovery = Discovery::start(world);
            let uid = world.uid(1);
            let agent = runtime.launch(&discovery, &[]);
            eventually(|| ask(world, "list", &[]).status.success() && agent.ready().0 == 200);
            agent.kill();

            let refused = runtime.cnitool("add", &world.a, "web-0", &uid, Some("agent"));
            let why = refused.failed();
            assert!(
                why.contains("default/web-0 is to be meshed, and no agent listens on"),
                "{why}"
            );
            runtime
                .cnitool("del", &world.a, "web-0", &uid, Some("agent"))
                .succeeded();
            // Not stamped, not meant.
            let other = runtime.cnitool("add", &world.a, "web-1", &uid, None);
            other.succeeded();
            assert!(other.took < Duration::from_secs(4), "{:?}", other.took);
            runtime
                .cnitool("del", &world.a, "web-1", &uid, None)
                .succeeded();
            let sidecars = runtime.cnitool("add", &world.a, "web-2", &uid, Some("sidecar"));
            sidecars.succeeded();
            runtime
                .cnitool("del", &world.a, "web-2", &uid, Some("sidecar"))
                .succeeded();

            let mut lenient = runtime.read();
            lenient["plugins"][1]["onFailure"] = "passthrough".into();
            runtime.write(&lenient);
            runtime
                .cnitool("add", &world.a, "web-0", &uid, Some("agent"))
                .succeeded();
            runtime
                .cnitool("del", &world.a, "web-0", &uid, Some("agent"))
                .succeeded();
        },
    );
}

#[test]
fn no_pod_begins_on_a_cgroup_without_the_programs() {
    test("no_pod_begins_on_a_cgroup_without_the_programs", |world| {
        let below = world.below("pods");
        let cgroup = &below.cgroup;
        let discovery = Discovery::start(world);
        let control = discovery.control();
        // It is not told of another cgroup: the plugin is sooner than its next look.
        let agent = daemon::without_inotify(|| Agent::launch(&below, &control, "run", &[]));
        eventually(|| ask(world, "list", &[]).status.success() && agent.ready().0 == 200);
        let there = world.b.serve((Ipv4Addr::UNSPECIFIED, 0));
        let to = SocketAddr::new(world.b.v4, there.port());
        let said = |from: &TestPod| {
            let wire = Wire::tap(&world.b);
            say_from(cgroup, from, to);
            wire.count(SAID.as_bytes())
        };
        assert_ne!(said(&world.a), 0, "the tap sees what there is");

        let begin = |pod: &TestPod, number: u8| {
            let (name, uid) = (format!("web-{number}"), world.uid(number));
            discovery.place(&name, &uid, &[pod.v4, pod.v6]);
            add(world, pod, &name, &uid)
        };
        begin(&world.b, 2).unwrap();
        let gone = || eventually(|| fs::remove_dir(cgroup).is_ok());
        for round in 0..20 {
            gone();
            fs::create_dir(cgroup).unwrap();
            begin(&world.a, 1).unwrap();
            assert_eq!(said(&world.a), 0, "{round}: {}", log_of(world));
        }
        gone();
        let why = begin(&world.a, 1).unwrap_err();
        assert!(why.contains("cannot open cgroup"), "{why}");
        fs::create_dir(cgroup).unwrap();
        begin(&world.a, 1).unwrap();
        assert_eq!(said(&world.a), 0, "{}", log_of(world));
    });
}

/// How long it takes until the plugin is in the chain after `write`, which takes it out.
fn put_back(runtime: &Runtime<'_>, write: impl FnOnce()) -> Duration {
    write();
    let began = Instant::now();
    while runtime.chain() != ["ptp", "duet-cni"] {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_micros(200));
    }
    began.elapsed()
}

#[test]
fn it_is_put_back_at_once_however_the_network_is_written() {
    test(
        "it_is_put_back_at_once_however_the_network_is_written",
        |world| {
            let runtime = Runtime::without_plugins(world);
            let directory = runtime.configurations();
            let path = directory.join("10-pods.conflist");
            runtime.write(&runtime.network());
            let discovery = Discovery::start(world);
            let agent = runtime.launch(&discovery, &[]);
            eventually(|| ask(world, "list", &[]).status.success() && agent.ready().0 == 200);
            let installed = || log_of(world).matches("CNI plugin installed").count();
            assert_eq!(installed(), 1);

            let in_place = || runtime.write(&runtime.network());
            let by_name = || {
                let beside = directory.join("new");
                fs::write(&beside, runtime.network().to_string()).unwrap();
                fs::rename(beside, &path).unwrap();
            };
            let anew = || {
                fs::remove_file(&path).unwrap();
                runtime.write(&runtime.network());
            };
            let ways: [(&str, &dyn Fn()); 3] = [
                ("in place", &in_place),
                ("by rename", &by_name),
                ("anew", &anew),
            ];
            let mut took = Duration::ZERO;
            for round in 1..=3 {
                for (how, write) in ways {
                    let it_took = put_back(&runtime, write);
                    tell(&format!("written {how}, put back after {it_took:.1?}"));
                    took += it_took;
                }
                // What it writes itself is nothing to be told of.
                let written = fs::metadata(&path).unwrap().ino();
                std::thread::sleep(LOOK + LOOK / 2);
                assert_eq!(fs::metadata(&path).unwrap().ino(), written);
                assert_eq!(installed(), 1 + round * ways.len(), "{}", log_of(world));
            }
            // By the clock alone it would be half of one each time.
            assert!(took < 3 * LOOK, "{took:?}");
            assert!(
                !log_of(world).contains("not installed"),
                "{}",
                log_of(world)
            );

            // Another directory in its place.
            put_back(&runtime, || {
                fs::rename(&directory, world.scratch().join("old")).unwrap();
                fs::create_dir(&directory).unwrap();
                in_place();
            });
            // It may have been found by the clock, and is watched since.
            std::thread::sleep(LOOK + LOOK / 2);
            let took = put_back(&runtime, in_place) + put_back(&runtime, by_name);
            assert!(took < LOOK, "{took:?}");

            // Somebody who insists is answered, and not raced.
            std::thread::sleep(LOOK + LOOK / 2);
            let (before, began) = (installed(), Instant::now());
            while began.elapsed() < 3 * LOOK {
                put_back(&runtime, in_place);
            }
            let answers = installed() - before;
            assert!((3..60).contains(&answers), "{answers}");
            assert!(agent.stop().success());
        },
    );
}

#[test]
fn it_stays_in_the_chain_whoever_writes_there_and_cleanup_takes_it_out() {
    test(
        "it_stays_in_the_chain_whoever_writes_there_and_cleanup_takes_it_out",
        |world| {
            let scratch = world.scratch();
            let runtime = Runtime::without_plugins(world);
            let discovery = Discovery::start(world);
            // There is no network yet.
            let agent = runtime.launch(&discovery, &["--cni-on-failure", "passthrough"]);
            eventually(|| runtime.programs().join("duet-cni").exists());
            eventually(|| agent.ready().0 == 200);
            runtime.write(&runtime.network());
            eventually(|| runtime.chain() == ["ptp", "duet-cni"]);
            let entry = runtime.read()["plugins"][1].clone();
            assert_eq!(entry["onFailure"], "passthrough");
            let excluded = ["kube-system", "duet-system", "duet-cleanup"];
            assert_eq!(entry["exclude"], json!(excluded));

            let mut other = runtime.network();
            other["plugins"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": "portmap" }));
            runtime.write(&other);
            eventually(|| runtime.chain() == ["ptp", "portmap", "duet-cni"]);
            // Half written, for as long as that takes.
            let path = runtime.configurations().join("10-pods.conflist");
            fs::write(&path, "{\"cniVersion\":").unwrap();
            eventually(|| log_of(world).contains("CNI plugin not installed"));
            assert_eq!(fs::read_to_string(&path).unwrap(), "{\"cniVersion\":");
            runtime.write(&other);
            eventually(|| runtime.chain() == ["ptp", "portmap", "duet-cni"]);
            fs::remove_file(runtime.programs().join("duet-cni")).unwrap();
            eventually(|| runtime.programs().join("duet-cni").exists());

            // While it runs, nothing is removed, not even for a moment.
            let installed = fs::metadata(runtime.programs().join("duet-cni")).unwrap();
            assert_eq!(runtime.try_cleanup().status.code(), Some(78));
            assert_eq!(runtime.chain(), ["ptp", "portmap", "duet-cni"]);
            let still = fs::metadata(runtime.programs().join("duet-cni")).unwrap();
            assert_eq!(still.ino(), installed.ino());
            assert!(agent.stop().success());
            let removed = runtime.cleanup();
            assert!(removed.contains("removed duet-cni from "), "{removed}");
            assert!(removed.contains("removed plugin "), "{removed}");
            assert_eq!(runtime.read(), other);
            assert!(!runtime.programs().join("duet-cni").exists());
            let left = fs::read_dir(scratch.join("net.d")).unwrap().count();
            assert_eq!(left, 1);
        },
    );
}

/// Whether the plugin is in the chain at every moment, until `stop`.
fn stays_in_chain(runtime: &Runtime<'_>, stop: &AtomicBool) -> bool {
    while !stop.load(Relaxed) {
        if runtime.chain() != ["ptp", "duet-cni"] {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn it_leaves_the_chain_with_an_agent_that_does_without_and_with_no_other() {
    test(
        "it_leaves_the_chain_with_an_agent_that_does_without_and_with_no_other",
        |world| {
            let Some(runtime) = Runtime::new(world) else {
                return;
            };
            runtime.write(&runtime.network());
            let discovery = Discovery::start(world);
            let agent = runtime.launch(&discovery, &[]);
            eventually(|| ask(world, "list", &[]).status.success() && agent.ready().0 == 200);
            assert_eq!(runtime.chain(), ["ptp", "duet-cni"]);
            let taken_over = |agent: &Agent, handovers: f64| {
                eventually(|| agent.metric("duet_agent_handovers_total") == handovers);
            };
            // An upgrade, and an end with nobody there, are no reason to leave.
            let stop = AtomicBool::new(false);
            let agent = std::thread::scope(|scope| {
                let stays = scope.spawn(|| stays_in_chain(&runtime, &stop));
                let next = runtime.launch(&discovery, &[]);
                taken_over(&next, 1.0);
                assert!(agent.end().success());
                assert!(next.stop().success());
                let again = runtime.launch(&discovery, &[]);
                eventually(|| ask(world, "list", &[]).status.success());
                stop.store(true, Relaxed);
                assert!(stays.join().unwrap(), "{:?}", runtime.read());
                again
            });
            // The component is taken out of the manifests: the next sees no directories.
            let next = Agent::launch(world, &discovery.control(), "run", &[]);
            taken_over(&next, 1.0);
            eventually(|| runtime.read() == runtime.network());
            assert!(agent.end().success());
            assert!(log_of(world).contains("CNI plugin taken out"));
            // Whoever began with it may end with it.
            assert!(runtime.programs().join("duet-cni").exists());
            assert!(next.stop().success());
            let uid = world.uid(1);
            let add = || runtime.cnitool("add", &world.a, "web-0", &uid, Some("agent"));
            add().succeeded();
            runtime
                .cnitool("del", &world.a, "web-0", &uid, Some("agent"))
                .succeeded();
        },
    );
}

#[test]
fn a_single_plugin_becomes_a_chain_and_is_brought_back() {
    test(
        "a_single_plugin_becomes_a_chain_and_is_brought_back",
        |world| {
            let runtime = Runtime::without_plugins(world);
            let single = runtime.configurations().join("10-pods.conf");
            let text = r#"{"cniVersion":"0.4.0","name":"pods","type":"bridge"}"#;
            fs::write(&single, text).unwrap();
            let discovery = Discovery::start(world);
            let agent = runtime.launch(&discovery, &[]);
            eventually(|| !single.exists());
            assert_eq!(runtime.chain(), ["bridge", "duet-cni"]);
            assert_eq!(runtime.read()["name"], "pods");
            assert!(agent.stop().success());
            runtime.cleanup();
            assert_eq!(fs::read_to_string(&single).unwrap(), text);
            assert_eq!(fs::read_dir(runtime.configurations()).unwrap().count(), 1);
        },
    );
}

#[test]
fn a_network_of_another_version_is_left_alone() {
    test("a_network_of_another_version_is_left_alone", |world| {
        let runtime = Runtime::without_plugins(world);
        runtime.write(&runtime.network());
        let discovery = Discovery::start(world);
        let agent = runtime.launch(&discovery, &[]);
        eventually(|| runtime.chain() == ["ptp", "duet-cni"]);
        let with = |key: &str, value: Value| {
            let mut network = runtime.network();
            network[key] = value;
            network
        };
        let mut already = runtime.read();
        already["cniVersion"] = "0.2.0".into();
        for (network, why) in [
            (already, "its cniVersion is \\\"0.2.0\\\""),
            (with("cniVersion", Value::Null), "it has no cniVersion"),
            (
                with("cniVersions", json!(["1.0.0", "9.0.0"])),
                "its cniVersion is \\\"9.0.0\\\"",
            ),
        ] {
            runtime.write(&network);
            eventually(|| log_of(world).contains(why));
            assert_eq!(runtime.chain(), ["ptp"], "{why}");
            let log = log_of(world);
            let told = log.lines().filter(|line| line.contains(why));
            assert_eq!(told.count(), 1, "{log}");
        }
        runtime.write(&with("cniVersions", json!(["0.4.0", "1.1.0"])));
        eventually(|| runtime.chain() == ["ptp", "duet-cni"]);
        assert!(agent.stop().success());
    });
}

#[test]
fn it_speaks_as_the_specification_says() {
    let (ok, version) = plugin("VERSION", "{\"cniVersion\":\"1.1.0\"}");
    assert!(ok);
    assert_eq!(version["cniVersion"], "1.1.0");
    assert!(
        version["supportedVersions"]
            .as_array()
            .unwrap()
            .contains(&json!("1.1.0"))
    );
    let configuration = |version: &str| {
        format!(
            r#"{{"cniVersion":"{version}","name":"pods","type":"duet-cni","socket":"/nowhere"}}"#
        )
    };
    for command in ["DEL", "GC", "STATUS", "CHECK"] {
        // Nothing is said where all is well, and no agent is asked.
        assert_eq!(
            plugin(command, &configuration("1.1.0")),
            (true, Value::Null),
            "{command}"
        );
    }
    for command in ["DEL", "GC"] {
        for configuration in [
            &configuration("9.0.0"),
            "{\"name\":\"pods\"}",
            "nonsense",
            "",
        ] {
            assert_eq!(plugin(command, configuration), (true, Value::Null));
        }
    }
    for (command, configuration, code) in [
        ("ADD", configuration("1.1.0"), 7),
        ("ADD", configuration("9.0.0"), 1),
        ("ADD", "nonsense".to_owned(), 6),
        ("FLY", configuration("1.1.0"), 4),
    ] {
        let (ok, error) = plugin(command, &configuration);
        assert!(!ok);
        assert_eq!(error["code"], code, "{error}");
        assert!(!error["msg"].as_str().unwrap().is_empty());
    }
}
