//! Pods, found by the cgroups that a kubelet puts their processes into.

mod world;

use duet_agent::cgroup::Cgroup;
use duet_agent::enrolment::{Reason, State};
use duet_agent::netns::Netns;
use duet_agent::sandbox::{self, Sandbox, Unfound};
use duet_core::{Placed, WorkloadName};
use duet_ebpf::NetnsCookie;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;
use world::{TestPod, World, test, unified, v1};

fn pod(world: &World, addresses: &[IpAddr]) -> Placed {
    Placed {
        name: WorkloadName::new("default", "web-0"),
        uid: world.uid(1),
        stamped: false,
        addresses: addresses.to_vec(),
        meshed: false,
    }
}

fn find(world: &World, pod: Placed) -> Result<Sandbox, Unfound> {
    find_in(&Cgroup::open(Some(&world.cgroup)).unwrap(), pod)
}

fn find_in(cgroup: &Cgroup, pod: Placed) -> Result<Sandbox, Unfound> {
    let uid = pod.uid.clone();
    let mut found = sandbox::find(&[pod], cgroup).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(&uid).unwrap()
}

fn cookie(pod: &TestPod) -> NetnsCookie {
    Netns::open(&pod.path).unwrap().cookie()
}

fn burstable(world: &World) -> String {
    format!("kubepods/burstable/pod{}/0123abcd", world.uid(1))
}

#[test]
fn whatever_the_kubelet_and_the_runtime() {
    test("whatever_the_kubelet_and_the_runtime", |world| {
        let uid = world.uid(1);
        let escaped = uid.replace('-', "_");
        let slice = format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice"
        );
        for cgroup in [
            burstable(world),
            format!("kubepods/pod{uid}/0123abcd"),
            format!("{slice}/cri-containerd-0123abcd.scope"),
            format!("{slice}/crio-0123abcd.scope/container"),
            format!("{slice}/docker-0123abcd.scope"),
            format!("kubepods-burstable-pod{escaped}.slice:cri-containerd:0123abcd"),
        ] {
            let mut hierarchies = vec![unified()];
            match v1() {
                Some(v1) => hierarchies.push(v1),
                None => {
                    let _ = writeln!(std::io::stderr(), "SKIPPED: no hierarchy of version 1");
                }
            }
            for hierarchy in hierarchies {
                let what = format!("{} {cgroup}", hierarchy.display());
                let absent = find(world, pod(world, &[world.a.v4]));
                assert!(matches!(absent, Err(Unfound::NoProcess)), "{what}");
                let before = sandbox::since_boot();
                let _process = world.process(&hierarchy, &cgroup, Some(&world.a));
                let found = find(world, pod(world, &[world.a.v4])).unwrap();
                assert_eq!(found.netns.cookie(), cookie(&world.a), "{what}");
                // The kernel counts in steps of 10 ms.
                assert!(found.started + Duration::from_millis(10) >= before);
                assert!(found.started <= sandbox::since_boot());
            }
        }
    });
}

#[test]
fn the_nodes_own_namespace_is_no_pods() {
    test("the_nodes_own_namespace_is_no_pods", |world| {
        // As CRI-O's conmon, which is older than the pod's own processes.
        let _conmon = world.process(&unified(), &burstable(world), None);
        let found = find(world, pod(world, &[]));
        assert!(matches!(found, Err(Unfound::HostNetwork)), "{found:?}");
        let _pause = world.process(&unified(), &burstable(world), Some(&world.a));
        let found = find(world, pod(world, &[])).unwrap();
        assert_eq!(found.netns.cookie(), cookie(&world.a));
    });
}

#[test]
fn the_sandbox_counts_and_not_what_runs_in_it() {
    test("the_sandbox_counts_and_not_what_runs_in_it", |world| {
        let _pause = world.process(&unified(), &burstable(world), Some(&world.a));
        std::thread::sleep(Duration::from_millis(20));
        // A container engine in the pod makes namespaces and cgroups as it likes.
        let other = world.uid(2);
        let nested = format!("{}/kubepods/pod{other}/1", burstable(world));
        let _nested = world.process(&unified(), &nested, Some(&world.b));
        let found = find(world, pod(world, &[])).unwrap();
        assert_eq!(found.netns.cookie(), cookie(&world.a));
        let stranger = Placed {
            uid: other,
            ..pod(world, &[world.b.v4])
        };
        let found = find(world, stranger);
        assert!(matches!(found, Err(Unfound::NoProcess)), "{found:?}");
    });
}

#[test]
fn the_address_must_be_the_pods() {
    test("the_address_must_be_the_pods", |world| {
        let _process = world.process(&unified(), &burstable(world), Some(&world.a));
        let other: IpAddr = "10.77.0.9".parse().unwrap();
        let why = find(world, pod(world, &[other])).unwrap_err();
        assert!(Reason::from(&why).state() == State::Failed);
        assert_eq!(
            why.to_string(),
            "its network namespace has 10.77.0.1, fd77::1, and duet-control says 10.77.0.9"
        );
        assert!(find(world, pod(world, &[other, world.a.v6])).is_ok());
        // Nothing is told yet.
        assert!(find(world, pod(world, &[])).is_ok());

        let flush = || {
            for family in ["-4", "-6"] {
                let arguments = [family, "address", "flush", "dev", "eth0", "scope", "global"];
                let status = std::process::Command::new("ip").args(arguments).status();
                assert!(status.unwrap().success());
            }
        };
        world.a.run(flush);
        let why = find(world, pod(world, &[world.a.v4])).unwrap_err();
        assert!(matches!(why, Unfound::NoAddress), "{why}");
    });
}

#[test]
fn a_pod_that_would_not_be_redirected_is_not_enrolled() {
    test(
        "a_pod_that_would_not_be_redirected_is_not_enrolled",
        |world| {
            let _process = world.process(&unified(), &burstable(world), Some(&world.a));
            let elsewhere = world.cgroup.join("elsewhere");
            std::fs::create_dir(&elsewhere).unwrap();
            let cgroup = Cgroup::open(Some(&elsewhere)).unwrap();
            let why = find_in(&cgroup, pod(world, &[])).unwrap_err();
            assert!(matches!(why, Unfound::OutsideCgroup { .. }), "{why}");
            assert!(Reason::from(&why).state() == State::Failed);
            let whole = Cgroup::open(None).unwrap();
            assert!(find_in(&whole, pod(world, &[])).is_ok());
        },
    );
}
