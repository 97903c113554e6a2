//! Other people's programs on the same cgroup: there before the agent, and after it.

mod world;

use duet_agent::cleanup::cleanup;
use nix::libc;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use world::{Outbound, TestAgent, World, test};

/// Program types and attach types of bpf(2).
const CONNECT4: (u32, u32) = (18, 10);
const SOCK_OPS: (u32, u32) = (13, 3);

/// A program that counts how often it is called and lets everything pass, attached as
/// most are: by BPF_PROG_ATTACH, with BPF_F_ALLOW_MULTI.
struct Neighbour {
    count: OwnedFd,
    program: OwnedFd,
    cgroup: File,
    attach_type: u32,
}

impl Neighbour {
    fn attach(world: &World, (kind, attach_type): (u32, u32)) -> Self {
        const ARRAY: u32 = 2;
        const ALLOW_MULTI: u32 = 2;
        let count = opened(bpf(0, &[[ARRAY, 4], [8, 1]])).unwrap();
        let instructions = counting(&count);
        let license = c"Apache-2.0";
        let attributes = [
            [kind, instructions.len() as u32],
            words(instructions.as_ptr() as u64),
            words(license.as_ptr() as u64),
            [0; 2],
            [0; 2],
            [0; 2],
            [0; 2],
            [0; 2],
            [0, attach_type],
        ];
        let program = opened(bpf(5, &attributes)).unwrap();
        let cgroup = File::open(&world.cgroup).unwrap();
        let [target, attached] = [cgroup.as_raw_fd(), program.as_raw_fd()].map(|fd| fd as u32);
        bpf(8, &[[target, attached], [attach_type, ALLOW_MULTI]]).unwrap();
        Self {
            count,
            program,
            cgroup,
            attach_type,
        }
    }

    fn count(&self) -> u64 {
        let (key, mut value) = (0u32, 0u64);
        let attributes = [
            [self.count.as_raw_fd() as u32, 0],
            words((&raw const key) as u64),
            words((&raw mut value) as u64),
            [0; 2],
        ];
        bpf(1, &attributes).unwrap();
        value
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let [target, program] =
            [self.cgroup.as_raw_fd(), self.program.as_raw_fd()].map(|fd| fd as u32);
        bpf(9, &[[target, program], [self.attach_type, 0]]).unwrap();
    }
}

/// Adds one to the array's first value, and returns 1.
fn counting(array: &OwnedFd) -> [u64; 11] {
    let instruction = |code: u8, to: u8, from: u8, offset: i16, value: i32| {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
    };
    const MAP: u8 = 1;
    const MAP_LOOKUP_ELEM: i32 = 1;
    [
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x62, 2, 0, 0, 0),
        instruction(0x18, 1, MAP, 0, array.as_raw_fd()),
        0,
        instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(0x15, 0, 0, 2, 0),
        instruction(0xb7, 1, 0, 0, 1),
        // An atomic addition.
        instruction(0xdb, 0, 1, 0, 0),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn bpf(command: i32, attributes: &[[u32; 2]]) -> io::Result<i32> {
    // SAFETY: the attributes' addresses are of values that their makers keep until this
    // returns, and the kernel reads no more than the length that it is told.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    match outcome {
        -1 => Err(io::Error::last_os_error()),
        outcome => Ok(outcome as i32),
    }
}

fn opened(outcome: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just opened it, and nobody else has it.
    outcome.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[test]
fn programs_of_others_are_called_before_ours_and_after() {
    test(
        "programs_of_others_are_called_before_ours_and_after",
        |world| {
            let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
            let mut neighbours = vec![
                ("connect4, before", Neighbour::attach(world, CONNECT4)),
                ("sockops, before", Neighbour::attach(world, SOCK_OPS)),
            ];
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            neighbours.push(("connect4, after", Neighbour::attach(world, CONNECT4)));
            neighbours.push(("sockops, after", Neighbour::attach(world, SOCK_OPS)));
            let all_are_called = || {
                let before: Vec<u64> = neighbours.iter().map(|(_, one)| one.count()).collect();
                // What ours says of the connection, if it is called as well.
                let said = world.a.ask(to);
                for ((which, one), before) in neighbours.iter().zip(before) {
                    assert!(one.count() > before, "{which}");
                }
                said
            };
            assert_eq!(all_are_called().unwrap(), to.to_string());
            // The next agent's programs come into the same places.
            drop(enrolled);
            agent.die();
            assert!(all_are_called().is_err(), "nobody is there");
            let agent = TestAgent::start(world);
            let enrolled = agent.enrol(&world.a, Outbound::Report);
            assert_eq!(all_are_called().unwrap(), to.to_string());
            agent.interception.verify().unwrap();
            drop(enrolled);
            agent.die();
            cleanup(&world.bpffs, &world.scratch().join("agent.sock")).unwrap();
            let there = world.b.serve((IpAddr::from([0, 0, 0, 0]), 0));
            let connect = || world.a.ask(SocketAddr::new(world.b.v4, there.port()));
            let before = neighbours[0].1.count();
            assert!(connect().is_ok());
            assert!(neighbours[0].1.count() > before, "after the clean-up");
        },
    );
}
