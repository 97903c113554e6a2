//! Other people's proxies, for contrast.
//!
//! A peer stands in every meshed pod, where Duet's sidecar would: connections are
//! redirected by the same nftables rules, it runs as the same user and in the same
//! cgroup, is started and killed by the same supervisor, and carries the same load.
//! What is left to say of one is a small file: which program, with which arguments,
//! and with which configuration, a template that is given the pod and the services
//! (`bench/peers`). It is ready when `127.0.0.1:15021/ready` answers 200.

use minijinja::context;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::env;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Where `make peers` puts programs, unless `DUET_PEERS` says otherwise.
const PEERS: &str = ".cache/duet-peers";

/// Peers that come with the bench, and their templates.
const BUILT_IN: [&str; 3] = [
    include_str!("../peers/envoy-http.yaml"),
    include_str!("../peers/envoy-tcp.yaml"),
    include_str!("../peers/haproxy.yaml"),
];
const TEMPLATES: [(&str, &str); 2] = [
    (
        "envoy.yaml.jinja",
        include_str!("../peers/envoy.yaml.jinja"),
    ),
    (
        "haproxy.cfg.jinja",
        include_str!("../peers/haproxy.cfg.jinja"),
    ),
];

/// How somebody else's proxy is run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Peer {
    /// As on the command line and in the results.
    pub name: String,
    /// One sentence for the report.
    pub description: String,
    /// A path, or a name in `$DUET_PEERS/bin` or on the PATH.
    program: String,
    /// Each is a template, too.
    args: Vec<String>,
    /// A template beside this file; what it gives is in `{{ dir }}`, called the same without `.jinja`.
    config: String,
    /// What the template is told as `settings`.
    #[serde(default)]
    settings: BTreeMap<String, String>,
    /// Ports that other peers connect to, beside those of Duet's proxies.
    #[serde(default)]
    pub mesh_ports: Vec<u16>,
    #[serde(skip)]
    template: String,
}

/// What templates are given.
#[derive(Serialize)]
pub(crate) struct Facts<'a> {
    /// Has `cert.pem` and `key.pem` of the pod, and `ca.pem`.
    pub dir: &'a Path,
    pub pod: FactsOfPod,
    /// Where the pod's application listens, if it has one.
    pub app_port: Option<u16>,
    pub services: Vec<FactsOfService>,
}

#[derive(Serialize)]
pub(crate) struct FactsOfPod {
    pub ip: Ipv4Addr,
    /// Its SPIFFE ID.
    pub identity: String,
}

#[derive(Serialize)]
pub(crate) struct FactsOfService {
    pub name: String,
    pub ip: Ipv4Addr,
    pub ports: Vec<FactsOfPort>,
    pub pods: Vec<FactsOfPod>,
}

#[derive(Serialize)]
pub(crate) struct FactsOfPort {
    pub port: u16,
    pub http2: bool,
}

/// Why a file does not describe a peer.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {problem}")]
pub struct Unfit {
    what: String,
    problem: String,
}

/// The peers that come with the bench.
pub fn built_in() -> &'static [Peer] {
    static PEERS: LazyLock<Vec<Peer>> = LazyLock::new(|| {
        let template = |name: &str| {
            let (_, text) = TEMPLATES.iter().find(|(known, _)| *known == name)?;
            Some((*text).to_owned())
        };
        BUILT_IN
            .iter()
            .map(|text| {
                let mut peer: Peer = serde_saphyr::from_str(text).expect("tested");
                peer.template = template(&peer.config).expect("tested");
                peer
            })
            .collect()
    });
    &PEERS
}

/// The peer of a full run, if it is here.
pub fn envoy() -> Option<&'static Peer> {
    let known = |peer: &&Peer| peer.name == "envoy-http";
    built_in()
        .iter()
        .find(known)
        .filter(|peer| peer.program().is_some())
}

impl Peer {
    /// From a file; its template stands beside it.
    pub fn read(path: &Path) -> Result<Self, Unfit> {
        let unfit = |path: &Path, problem: &dyn ToString| Unfit {
            what: path.display().to_string(),
            problem: problem.to_string(),
        };
        let text = std::fs::read_to_string(path).map_err(|error| unfit(path, &error))?;
        let mut peer: Self = serde_saphyr::from_str(&text).map_err(|error| unfit(path, &error))?;
        let template = path.with_file_name(&peer.config);
        peer.template =
            std::fs::read_to_string(&template).map_err(|error| unfit(&template, &error))?;
        Ok(peer)
    }

    /// Its program, if it is here.
    pub fn program(&self) -> Option<PathBuf> {
        let runs =
            |path: &PathBuf| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
        if self.program.contains('/') {
            return Some(PathBuf::from(&self.program)).filter(runs);
        }
        let installed = env::var_os("DUET_PEERS")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(PEERS)))
            .map(|dir| dir.join("bin"));
        let on_path = env::var_os("PATH").unwrap_or_default();
        installed
            .into_iter()
            .chain(env::split_paths(&on_path))
            .map(|dir| dir.join(&self.program))
            .find(runs)
    }

    /// What its program is called with.
    pub(crate) fn arguments(&self, facts: &Facts<'_>) -> Result<Vec<String>, Unfit> {
        self.args
            .iter()
            .map(|arg| self.render(arg, facts))
            .collect()
    }

    /// What its configuration is called.
    pub(crate) fn file(&self) -> &str {
        self.config.strip_suffix(".jinja").unwrap_or(&self.config)
    }

    /// Its configuration in a pod.
    pub(crate) fn configuration(&self, facts: &Facts<'_>) -> Result<String, Unfit> {
        self.render(&self.template, facts)
    }

    fn render(&self, template: &str, facts: &Facts<'_>) -> Result<String, Unfit> {
        let mut environment = minijinja::Environment::new();
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        let settings = Serde(&self.settings);
        environment
            .render_str(template, context! { settings => settings, ..Serde(facts) })
            .map_err(|error| Unfit {
                what: format!("{} of {}", self.config, self.name),
                problem: error.to_string(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_come_with_the_bench_can_be_configured() {
        for peer in built_in() {
            let pod = || FactsOfPod {
                ip: Ipv4Addr::new(10, 64, 2, 2),
                identity: "spiffe://duet.local/ns/default/sa/far".to_owned(),
            };
            let facts = Facts {
                dir: Path::new("/run/x"),
                pod: pod(),
                app_port: Some(8080),
                services: vec![FactsOfService {
                    name: "far".to_owned(),
                    ip: Ipv4Addr::new(10, 96, 0, 10),
                    ports: vec![FactsOfPort {
                        port: 81,
                        http2: true,
                    }],
                    pods: vec![pod()],
                }],
            };
            let arguments = peer.arguments(&facts).unwrap();
            assert!(
                arguments.contains(&format!("/run/x/{}", peer.file())),
                "{arguments:?}"
            );
            let configuration = peer.configuration(&facts).unwrap();
            let mut needed = vec!["10.96.0.10", "10.64.2.2", "8080"];
            if peer.name.starts_with("envoy") {
                needed.extend(["/run/x/key.pem", "sa/far"]);
            }
            for needed in needed {
                assert!(configuration.contains(needed), "{}: {needed}", peer.name);
            }
        }
    }

    #[test]
    fn a_file_that_is_none_is_told_in_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.yaml");
        std::fs::write(&path, "name: x\nprogramme: y\n").unwrap();
        let error = Peer::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("x.yaml") && error.contains("programme"),
            "{error}"
        );
        assert!(Peer::read(Path::new("/nowhere.yaml")).is_err());
    }
}
