//! A node's pods, all of them in the mesh and served by one agent.

#![allow(dead_code, reason = "each test file uses some of it")]

use super::daemon::{self, Agent, eventually};
use super::discovery::Discovery;
use super::load::{Load, exchange};
use super::node::Node;
use super::world::{Process, World};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::Scope;
use std::time::Duration;

pub const PODS: u8 = 12;

pub struct Scene<'a> {
    pub world: &'a World,
    pub discovery: Discovery,
    pub node: Node,
    sandboxes: Vec<Process>,
    /// The pods' applications, in both families.
    pub servers: Vec<[SocketAddr; 2]>,
    /// How often the pods have been made.
    generation: u8,
}

impl<'a> Scene<'a> {
    pub fn new(world: &'a World) -> Self {
        let mut scene = Self {
            world,
            discovery: Discovery::start(world),
            node: Node::new(world, PODS),
            sandboxes: Vec::new(),
            servers: Vec::new(),
            generation: 0,
        };
        scene.furnish();
        scene
    }

    /// As a restart of the machine leaves it: others of the same names.
    pub fn make_again(&mut self) {
        self.node.make_again();
        self.generation += 1;
        self.furnish();
    }

    /// Sandboxes, servers, and what duet-control says of them.
    fn furnish(&mut self) {
        self.sandboxes.clear();
        self.servers.clear();
        for (number, pod) in self.node.pods.iter().enumerate() {
            let uid = self.world.uid(self.generation * PODS + number as u8);
            self.sandboxes.push(self.world.pause(&uid, Some(pod)));
            self.discovery
                .place(&format!("web-{number}"), &uid, &[pod.v4, pod.v6]);
            let v4 = pod.serve((Ipv4Addr::UNSPECIFIED, 0)).port();
            let v6 = pod.serve((Ipv6Addr::UNSPECIFIED, 0)).port();
            self.servers
                .push([SocketAddr::new(pod.v4, v4), SocketAddr::new(pod.v6, v6)]);
        }
    }

    pub fn supervised(&self) -> Agent {
        let agent = Agent::launch(self.world, &self.discovery.control(), "supervise", &[]);
        eventually(|| self.is_served(&agent));
        agent
    }

    /// Whether it is this agent that has all of them.
    pub fn is_served(&self, agent: &Agent) -> bool {
        agent.metric("duet_agent_workloads{reason=\"\",state=\"enrolled\"}") == f64::from(PODS)
            && daemon::try_get(agent.health, "/ready").is_ok_and(|(status, _)| status == 200)
    }

    /// Every pod calls its neighbour over and over: `clients` of each, each `every`.
    pub fn calls<'scope, 'env>(
        &'env self,
        load: &'env Load,
        scope: &'scope Scope<'scope, 'env>,
        clients: usize,
        every: Duration,
    ) {
        for (number, pod) in self.node.pods.iter().enumerate() {
            let to = &self.servers[(number + 1) % self.servers.len()];
            for client in 0..clients {
                // Both families, by turns.
                load.client(scope, pod, to[(number + client) % 2], every);
            }
        }
    }

    /// Whether everybody reaches the neighbour.
    pub fn all_are_well(&self) -> bool {
        let mut pods = self.node.pods.iter().zip(self.servers.iter().skip(1));
        pods.all(|(pod, to)| to.iter().all(|to| pod.run(|| exchange(*to)).is_ok()))
    }
}
