//! What is left of workloads that have come and gone: nothing.

mod daemon;
mod world;

use daemon::{Agent, Control, eventually};
use duet_agent::api::{self, Request};
use duet_ebpf::names;
use nix::unistd::Pid;
use procfs::process::Process;
use std::fs;
use std::time::Instant;
use world::{World, entries_at, tell, test};

/// Enrolments and removals, unless the test is told otherwise.
const CYCLES: usize = 1000;

/// In these, threads, caches and lazily opened files come into being.
const WARM: usize = 50;

/// What a cycle may cost. Of a thousand it is a hundred or two, of twenty thousand 14 (all
/// together 0.3 MiB): the allocator's, and nothing that grows for ever.
const BYTES_A_CYCLE: u64 = 512;

/// What there is of a process.
#[derive(Clone, Copy)]
struct Size {
    descriptors: usize,
    resident: u64,
}

fn size(pid: Pid) -> Size {
    let process = Process::new(pid.as_raw()).unwrap();
    let status = process.status().unwrap();
    Size {
        descriptors: process.fd_count().unwrap(),
        resident: status.rssanon.unwrap() * 1024,
    }
}

/// Entries of all maps that can be counted, and pins of pods.
fn traces(world: &World) -> [usize; 7] {
    let map = |name: &str| world.bpffs.join("v1/maps").join(name);
    [
        entries_at::<8>(&map(names::ENROLLED)),
        entries_at::<24>(&map(names::OWN)),
        entries_at::<8>(&map(names::APPEARANCE)),
        entries_at::<32>(&map(names::TARGETS)),
        entries_at::<16>(&map(names::LISTENERS)),
        entries_at::<8>(&map(names::OPEN)),
        fs::read_dir(world.bpffs.join("v1/pods")).unwrap().count(),
    ]
}

#[test]
fn a_thousand_workloads_come_and_go_and_leave_nothing() {
    test(
        "a_thousand_workloads_come_and_go_and_leave_nothing",
        |world| {
            let agent = Agent::supervised(world, &Control::away());
            let socket = world.scratch().join("agent.sock");
            let workload = || "default/web-0".to_owned();
            let cycle = || {
                let enrol = Request::Enrol {
                    workload: workload(),
                    netns: world.a.path.clone(),
                };
                api::ask(&socket, &enrol).unwrap();
                let remove = Request::Remove {
                    workload: workload(),
                };
                api::ask(&socket, &remove).unwrap();
            };
            let proxy = agent.proxy().unwrap();
            (0..WARM).for_each(|_| cycle());
            let (before, keeper) = (size(proxy), size(agent.pid()));
            let cycles = std::env::var("DUET_TEST_CYCLES");
            let cycles = cycles.map_or(CYCLES, |cycles| cycles.parse().unwrap());
            let began = Instant::now();
            (0..cycles).for_each(|_| cycle());
            let took = began.elapsed();
            // What a removed workload's tasks have open goes when they do.
            eventually(|| size(proxy).descriptors <= before.descriptors);
            let after = size(proxy);
            let grown = after.resident.saturating_sub(before.resident);
            tell(&format!(
                "{cycles} cycles in {took:.1?}: descriptors {} -> {}, of the supervisor {} -> {}, \
                 anonymous memory {} -> {} KiB ({} bytes a cycle), entries and pins {:?}",
                before.descriptors,
                after.descriptors,
                keeper.descriptors,
                size(agent.pid()).descriptors,
                before.resident / 1024,
                after.resident / 1024,
                grown / cycles as u64,
                traces(world),
            ));
            assert_eq!(traces(world), [0; 7]);
            assert_eq!(size(agent.pid()).descriptors, keeper.descriptors);
            assert!(grown < BYTES_A_CYCLE * cycles as u64, "{grown} bytes more");
            assert_eq!(agent.proxy(), Some(proxy), "it is the same process");
        },
    );
}
