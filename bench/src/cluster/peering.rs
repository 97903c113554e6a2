//! Somebody else's proxy in a pod, in the place of Duet's sidecar.

use super::assembly::Inner;
use super::binaries::{binary, runnable_by_all};
use super::error::{ClusterError, Result};
use super::meshing::PROXY_UID;
use super::process::{Part, Spawn, run_tool};
use super::proxy::{Enrolment, Plan, Supervised};
use super::spec::Placement;
use super::topology::{PodEntry, sidecar_name};
use crate::peer::{Facts, FactsOfPod, FactsOfPort, FactsOfService, Peer};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A peer, and who signs its certificates, as long as the cluster lives.
pub(super) struct PeerMesh {
    pub peer: &'static Peer,
    authority: Authority,
}

struct Authority {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl PeerMesh {
    pub fn new(peer: &'static Peer) -> Result<Self> {
        let authority = Authority::new().map_err(uncertified)?;
        Ok(Self { peer, authority })
    }
}

impl Authority {
    fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { root, issuer })
    }

    /// duet-control's.
    fn of_control(state_dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = state_dir.join(name);
            fs::read_to_string(&path).map_err(ClusterError::io(format!("read {}", path.display())))
        };
        let (root, key) = (read("root.pem")?, read("ca.key")?);
        let issuer = KeyPair::from_pem(&key).and_then(|key| Issuer::from_ca_cert_pem(&root, key));
        Ok(Self {
            issuer: issuer.map_err(uncertified)?,
            root,
        })
    }

    /// Leaves a pod's certificate, key and root where its proxy finds them.
    fn certify(&self, dir: &Path, identity: &str) -> Result<()> {
        let make = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            // Named as its issuer it would be taken for one that signed itself.
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, "proxy");
            params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let certificate = params.signed_by(&key, &self.issuer)?.pem();
            Ok((certificate, key.serialize_pem()))
        };
        let (certificate, key) = make().map_err(uncertified)?;
        write(&dir.join("cert.pem"), &certificate)?;
        write(&dir.join("key.pem"), &key)?;
        write(&dir.join("ca.pem"), &self.root)
    }
}

impl Inner {
    pub(super) fn peer(&self, mesh: &PeerMesh, entry: &PodEntry) -> Result<Arc<Supervised>> {
        let pod = self.pod(entry);
        let peer = mesh.peer;
        let program = peer.program().ok_or_else(|| {
            ClusterError::Unsupported(format!(
                "the program of {} is not here: `make peers` installs those that come with the bench",
                peer.name
            ))
        })?;
        let uid = PROXY_UID.to_string();
        let ports: Vec<String> = peer.mesh_ports.iter().map(u16::to_string).collect();
        let ports = ports.join(",");
        let mut init = vec!["init", "--proxy-uid", &uid];
        if !ports.is_empty() {
            init.extend(["--exclude-inbound-ports", &ports]);
        }
        run_tool(binary("duet-sidecar")?, &init, "", Some(&pod.netns))?;

        let dir = self.state.dir().join("peers").join(&pod.name);
        fs::create_dir_all(&dir).map_err(ClusterError::io(format!("make {}", dir.display())))?;
        let facts = self.facts(entry, &dir);
        mesh.authority.certify(&dir, &facts.pod.identity)?;
        let unfit = |error: crate::peer::Unfit| ClusterError::Unsupported(error.to_string());
        let configuration = peer.configuration(&facts).map_err(unfit)?;
        write(&dir.join(peer.file()), &configuration)?;
        Ok(Supervised::new(Plan {
            name: sidecar_name(&pod.name),
            placement: Placement::Sidecar,
            node: pod.node,
            spawn: Spawn::in_pod(
                &pod.name,
                Part::Proxy,
                runnable_by_all(&program, &self.state.scratch)?,
            )
            .uid(PROXY_UID)
            .args(peer.arguments(&facts).map_err(unfit)?),
            cgroup: pod.part(Part::Proxy),
            logs: self.logs(),
            spawner: self.spawner.clone(),
            agent: None,
            pods: vec![Enrolment {
                workload: pod.workload(),
                netns: pod.netns.path(),
                pod: pod.name,
            }],
            netns: pod.netns,
        }))
    }

    /// A certificate of a pod's, for somebody who poses as its proxy.
    pub(super) fn certify(&self, pod: &str) -> Result<PathBuf> {
        let entry = self.topology().pod(pod)?.clone();
        let dir = self.state.dir().join("certified").join(pod);
        if dir.exists() {
            return Ok(dir);
        }
        fs::create_dir_all(&dir).map_err(ClusterError::io(format!("make {}", dir.display())))?;
        let identity = self.facts(&entry, &dir).pod.identity;
        match (&self.plans.peer, self.control_plane()) {
            (Some(mesh), _) => mesh.authority.certify(&dir, &identity)?,
            (None, Some(plane)) => {
                Authority::of_control(&plane.state_dir)?.certify(&dir, &identity)?;
            }
            (None, None) => {
                return Err(ClusterError::Unsupported(
                    "there is no mesh here, and so no certificates".to_owned(),
                ));
            }
        }
        Ok(dir)
    }

    fn facts<'a>(&self, entry: &PodEntry, dir: &'a Path) -> Facts<'a> {
        let topology = self.topology();
        let of_pod = |pod: &PodEntry| FactsOfPod {
            ip: self.addresses.pod(pod.spec.node, pod.host).v4,
            identity: format!(
                "spiffe://duet.local/ns/{}/sa/{}",
                pod.spec.namespace, pod.spec.service_account
            ),
        };
        let mine = topology
            .services
            .iter()
            .find(|service| service.pods.contains(&entry.spec.name));
        Facts {
            dir,
            pod: of_pod(entry),
            app_port: mine.and_then(|service| Some(service.ports.first()?.target_port)),
            services: topology
                .services
                .iter()
                .enumerate()
                .map(|(number, service)| FactsOfService {
                    name: service.name.clone(),
                    ip: self.addresses.service(number as u16).v4,
                    ports: service
                        .ports
                        .iter()
                        .map(|port| FactsOfPort {
                            port: port.port,
                            http2: matches!(
                                port.app_protocol.as_deref(),
                                Some("kubernetes.io/h2c" | "grpc")
                            ),
                        })
                        .collect(),
                    pods: topology.behind(service).map(of_pod).collect(),
                })
                .collect(),
        }
    }
}

/// Only the proxy's user may read it: one of them is a key.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o400))
        })
        .and_then(|()| chown(path, Some(PROXY_UID), Some(PROXY_UID)))
        .map_err(ClusterError::io(format!("write {}", path.display())))
}

fn uncertified(error: rcgen::Error) -> ClusterError {
    ClusterError::Unsupported(format!("a certificate for a peer: {error}"))
}
