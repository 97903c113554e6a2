//! A real duet-control, which is told what the mesh is by the test.

#![allow(dead_code, reason = "each test file uses some of it")]

use super::daemon::Control;
use super::world::{Process, World};
use duet_control::{
    Caller, ControlPlane, Enrolments, MeshState, Rejected, Settings, Source, StateDir,
};
use duet_core::api::{MeshProtocol, Placement, Workload};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub struct Discovery {
    mesh: watch::Sender<MeshState>,
    state_dir: StateDir,
    // In this order they go.
    control: Option<ControlPlane>,
    runtime: Runtime,
    address: SocketAddr,
}

/// Yields whatever the test says.
struct Said(watch::Receiver<MeshState>);

impl Source for Said {
    async fn next(&mut self) -> Result<MeshState, Rejected> {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        Ok(self.0.borrow_and_update().clone())
    }
}

// === impl Discovery ===

impl Discovery {
    pub fn start(world: &World) -> Self {
        let mut discovery = Self {
            mesh: watch::Sender::new(MeshState::new("test.local")),
            state_dir: StateDir::open(world.scratch().join("control")).unwrap(),
            control: None,
            runtime: Runtime::new().unwrap(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        discovery.come_back();
        discovery
    }

    pub fn go_away(&mut self) {
        let control = self.control.take().unwrap();
        self.runtime.block_on(control.stop());
    }

    pub fn come_back(&mut self) {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let settings = Settings {
            listen: self.address,
            health: loopback,
            cert_lifetime: Duration::from_secs(3600),
            enrolments: Enrolments::Acknowledged,
        };
        let mut said = self.mesh.subscribe();
        said.mark_changed();
        let control = self.runtime.block_on(ControlPlane::start(
            settings,
            self.state_dir.authority().unwrap(),
            Arc::new(self.state_dir.token_key().unwrap()),
            Said(said),
        ));
        let control = control.unwrap();
        self.address = control.api_addr();
        self.control = Some(control);
    }

    /// For the agent on node-1.
    pub fn control(&self) -> Control {
        let key = self.state_dir.token_key().unwrap();
        Control {
            url: format!("https://{}", self.address),
            root_pem: std::fs::read_to_string(self.state_dir.root_path()).unwrap(),
            token: key.sign(&Caller::Node("node-1".to_owned()), None),
        }
    }

    /// Gives a pod to the agent on node-1.
    pub fn place(&self, name: &str, uid: &str, addresses: &[IpAddr]) {
        self.put(name, uid, addresses, "node-1", Placement::Agent);
    }

    /// Both pods, as web-a and web-b, whose sandboxes run as long as what it returns is
    /// kept.
    pub fn place_both(&self, world: &World) -> [Process; 2] {
        self.both(world, Self::place)
    }

    /// The same, as the webhook has stamped them: what runs in them may outlive them.
    pub fn place_both_for_life(&self, world: &World) -> [Process; 2] {
        self.both(world, Self::place_for_life)
    }

    fn both(&self, world: &World, place: fn(&Self, &str, &str, &[IpAddr])) -> [Process; 2] {
        let pods = [("web-a", 1, &world.a), ("web-b", 2, &world.b)];
        pods.map(|(name, number, pod)| {
            let uid = world.uid(number);
            let process = world.pause(&uid, Some(pod));
            place(self, name, &uid, &[pod.v4, pod.v6]);
            process
        })
    }

    pub fn put(&self, name: &str, uid: &str, addresses: &[IpAddr], node: &str, by: Placement) {
        self.put_workload(Self::workload(name, uid, addresses, node, by));
    }

    /// The same for as long as the pod runs, as the webhook decides when it is created.
    pub fn place_for_life(&self, name: &str, uid: &str, addresses: &[IpAddr]) {
        self.put_workload(Workload {
            stamped: true,
            ..Self::workload(name, uid, addresses, "node-1", Placement::Agent)
        });
    }

    fn put_workload(&self, workload: Workload) {
        self.mesh.send_modify(|mesh| mesh.put_workload(workload));
    }

    fn workload(
        name: &str,
        uid: &str,
        addresses: &[IpAddr],
        node: &str,
        by: Placement,
    ) -> Workload {
        Workload {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            node: node.to_owned(),
            addresses: addresses.iter().map(IpAddr::to_string).collect(),
            protocol: MeshProtocol::Duet.into(),
            uid: uid.to_owned(),
            placement: by.into(),
            ..Workload::default()
        }
    }

    pub fn take_away(&self, name: &str) {
        let name = format!("default/{name}");
        self.mesh.send_modify(|mesh| mesh.remove_workload(&name));
    }
}
