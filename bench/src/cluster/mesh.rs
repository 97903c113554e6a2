//! The control plane: its description of the mesh, its process, its tokens.

use super::binaries::binary;
use super::error::{ClusterError, Result};
use super::netns::Netns;
use super::network::Pair;
use super::process::run_tool;
use super::spec::{PodSpec, ServicePort};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const CONTROL_PORT: u16 = 15010;
pub(crate) const HEALTH_PORT: u16 = 15021;
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Who a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `namespace/name`.
    Workload(String),
    /// A node's name, e.g. `node-1`.
    Node(String),
}

/// The control plane of a meshed cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// What proxies are given as `--control`.
    pub url: String,
    pub address: SocketAddr,
    /// What proxies are given as `--trust-bundle`.
    pub trust_bundle: PathBuf,
    pub state_dir: PathBuf,
    /// What it is serving; a change takes effect at once.
    pub mesh_yaml: PathBuf,
    /// None while it is stopped.
    pub pid: Option<u32>,
}

/// A pod as the mesh's description has it.
pub(crate) struct DescribedPod<'a> {
    pub spec: &'a PodSpec,
    pub node: String,
    pub address: Pair,
}

/// A service as the mesh's description has it.
pub(crate) struct DescribedService<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub address: Pair,
    pub ports: &'a [ServicePort],
    /// `namespace/name`.
    pub workloads: Vec<String>,
}

/// Writes the description so that a reader sees the old one or the new one.
pub(crate) fn write_description(
    path: &Path,
    pods: &[DescribedPod<'_>],
    services: &[DescribedService<'_>],
    burden: &str,
) -> Result<()> {
    let draft = path.with_extension("yaml.draft");
    let text = describe(pods, services) + burden;
    fs::write(&draft, text)
        .and_then(|()| fs::rename(&draft, path))
        .map_err(ClusterError::io(format!("write {}", path.display())))
}

fn describe(pods: &[DescribedPod<'_>], services: &[DescribedService<'_>]) -> String {
    let mut yaml = String::from("trustDomain: duet.local\n");
    let list = |yaml: &mut String, key: &str, empty: bool| {
        let _ = writeln!(yaml, "{key}:{}", if empty { " []" } else { "" });
    };
    list(&mut yaml, "workloads", pods.is_empty());
    for DescribedPod {
        spec,
        node,
        address,
    } in pods
    {
        let _ = write!(
            yaml,
            "  - namespace: {:?}\n    name: {:?}\n    serviceAccount: {:?}\n    node: {node:?}\n    \
             addresses: [\"{}\", \"{}\"]\n    mesh: {}\n    mtls: {}\n    opaquePorts: {:?}\n",
            spec.namespace,
            spec.name,
            spec.service_account,
            address.v4,
            address.v6,
            if spec.meshed && spec.announced {
                "duet"
            } else {
                "none"
            },
            if spec.strict { "strict" } else { "permissive" },
            spec.opaque_ports,
        );
    }
    list(&mut yaml, "services", services.is_empty());
    for service in services {
        let _ = write!(
            yaml,
            "  - namespace: {:?}\n    name: {:?}\n    addresses: [\"{}\", \"{}\"]\n    ports:\n",
            service.namespace, service.name, service.address.v4, service.address.v6,
        );
        for port in service.ports {
            let _ = write!(
                yaml,
                "      - port: {}\n        targetPort: {}\n",
                port.port, port.target_port
            );
            if let Some(protocol) = &port.app_protocol {
                let _ = writeln!(yaml, "        appProtocol: {protocol:?}");
            }
        }
        let _ = writeln!(yaml, "    workloads: {:?}", service.workloads);
    }
    yaml
}

/// Has duet-control sign a token and stores it where only `uid` can read it.
pub(crate) fn issue_token(
    state_dir: &Path,
    subject: &Subject,
    uid: u32,
    path: &Path,
) -> Result<()> {
    let state_dir = state_dir.to_string_lossy();
    let (flag, name) = match subject {
        Subject::Workload(name) => ("--workload", name),
        Subject::Node(name) => ("--node", name),
    };
    let args = ["token", "--state-dir", &state_dir, flag, name];
    let token = run_tool(binary("duet-control")?, &args, "", None)?;
    let store = || -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let draft = path.with_extension("draft");
        let mut file = fs::File::create(&draft)?;
        file.set_permissions(fs::Permissions::from_mode(0o400))?;
        file.write_all(&token)?;
        chown(&draft, Some(uid), Some(uid))?;
        fs::rename(&draft, path)
    };
    store().map_err(ClusterError::io(format!("write {}", path.display())))
}

/// One HTTP GET to a loopback address, from within a namespace.
pub(crate) fn get(netns: &Netns, port: u16, path: &str) -> Result<(u16, String)> {
    netns
        .run(|| get_here(port, path))?
        .map_err(ClusterError::io(format!(
            "GET http://127.0.0.1:{port}{path} in {}",
            netns.name()
        )))
}

/// The same from the calling thread's namespace.
pub(crate) fn get_here(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP"))?;
    let chunked = head
        .lines()
        .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if chunked {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok((status, body))
}

fn unchunk(body: &str) -> String {
    let mut whole = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            break;
        };
        let (Some(chunk), Some(next)) = (after.get(..size), after.get(size..)) else {
            break;
        };
        whole.push_str(chunk);
        rest = next.strip_prefix("\r\n").unwrap_or(next);
        if size == 0 {
            break;
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::network::Addresses;

    #[test]
    fn describes_the_mesh() {
        let addresses = Addresses { index: 0 };
        let spec = PodSpec::new("web-0").strict().opaque_ports([9000]);
        let yaml = describe(
            &[DescribedPod {
                spec: &spec,
                node: "node-1".to_owned(),
                address: addresses.pod(1, 2),
            }],
            &[DescribedService {
                name: "web",
                namespace: "default",
                address: addresses.service(0),
                ports: &[ServicePort {
                    port: 80,
                    target_port: 8080,
                    app_protocol: Some("http".to_owned()),
                }],
                workloads: vec!["default/web-0".to_owned()],
            }],
        );
        assert_eq!(
            yaml,
            r#"trustDomain: duet.local
workloads:
  - namespace: "default"
    name: "web-0"
    serviceAccount: "default"
    node: "node-1"
    addresses: ["10.64.1.2", "fd71:0:1::2"]
    mesh: duet
    mtls: strict
    opaquePorts: [9000]
services:
  - namespace: "default"
    name: "web"
    addresses: ["10.96.0.10", "fd96::a"]
    ports:
      - port: 80
        targetPort: 8080
        appProtocol: "http"
    workloads: ["default/web-0"]
"#
        );
    }

    #[test]
    fn joins_chunks() {
        assert_eq!(unchunk("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), "hello!");
    }
}
