//! A container runtime, as far as networks go: cnitool, the directories it looks in, and the
//! plugin by itself.

use crate::daemon::{Agent, BINARY};
use crate::discovery::Discovery;
use crate::world::{self, TestPod, World};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where Debian, and where everybody else, has the plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

const CNITOOL: &str = "github.com/containernetworking/cni/cnitool";

pub const NETWORK: &str = "pods";

/// A container runtime's directories.
pub struct Runtime<'a> {
    pub world: &'a World,
    cnitool: PathBuf,
    plugins: &'static str,
}

/// How a pod's network was made.
pub struct Made {
    output: Output,
    pub took: Duration,
}

impl<'a> Runtime<'a> {
    /// None where what it takes is not there; says so.
    pub fn new(world: &'a World) -> Option<Self> {
        let there = plugins().and_then(|plugins| Ok((plugins, cnitool()?)));
        let (plugins, cnitool) = match there {
            Ok(there) => there,
            Err(why) => {
                assert!(std::env::var_os("DUET_NO_SKIPS").is_none(), "{why}");
                world::tell(&format!("SKIPPED: {why}"));
                return None;
            }
        };
        Some(Self::with(world, cnitool, plugins))
    }

    /// Its directories alone.
    pub fn without_plugins(world: &'a World) -> Self {
        Self::with(world, PathBuf::new(), "")
    }

    fn with(world: &'a World, cnitool: PathBuf, plugins: &'static str) -> Self {
        let runtime = Self {
            world,
            cnitool,
            plugins,
        };
        fs::create_dir(runtime.configurations()).unwrap();
        fs::create_dir(runtime.programs()).unwrap();
        runtime
    }

    pub fn configurations(&self) -> PathBuf {
        self.world.scratch().join("net.d")
    }

    pub fn programs(&self) -> PathBuf {
        self.world.scratch().join("cni-bin")
    }

    /// What another CNI writes there: pods on point-to-point links.
    pub fn network(&self) -> Value {
        self.network_of("ptp")
    }

    pub fn network_of(&self, kind: &str) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "plugins": [{
                "type": kind,
                // Of one of them: what its pods hang on.
                "bridge": "pods0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": "198.18.77.0/24" }]],
                    "dataDir": self.world.scratch().join("ipam"),
                },
            }],
        })
    }

    pub fn write(&self, network: &Value) {
        let path = self.configurations().join("10-pods.conflist");
        fs::write(path, network.to_string()).unwrap();
    }

    pub fn read(&self) -> Value {
        let path = self.configurations().join("10-pods.conflist");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_default()
    }

    /// The plugins of the network, in order.
    pub fn chain(&self) -> Vec<String> {
        let network = self.read();
        let plugins = network["plugins"].as_array().cloned().unwrap_or_default();
        let types = plugins.iter().filter_map(|plugin| plugin["type"].as_str());
        types.map(str::to_owned).collect()
    }

    pub fn cnitool(
        &self,
        verb: &str,
        pod: &TestPod,
        name: &str,
        uid: &str,
        stamp: Option<&str>,
    ) -> Made {
        let mut annotations = json!({ "some": "thing" });
        if let Some(stamp) = stamp {
            annotations["duet.dev/placement"] = stamp.into();
        }
        let runtime = json!({ "io.kubernetes.cri.pod-annotations": annotations });
        let pod_is = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}"
        );
        let began = Instant::now();
        let mut command = Command::new(&self.cnitool);
        command
            .args([verb, NETWORK])
            .arg(&pod.path)
            .env("NETCONFPATH", self.configurations())
            .env(
                "CNI_PATH",
                format!("{}:{}", self.programs().display(), self.plugins),
            )
            .env("CNI_IFNAME", "net1")
            .env("CNI_ARGS", pod_is)
            .env("CAP_ARGS", runtime.to_string());
        // The other namespace stands for the node's own, where links and bridges end.
        let output = self.world.b.run(|| command.output()).unwrap();
        Made {
            took: began.elapsed(),
            output,
        }
    }

    pub fn launch(&self, discovery: &Discovery, more: &[&str]) -> Agent {
        let (configurations, programs) = (self.configurations(), self.programs());
        let places = [
            "--cni-conf-dir",
            configurations.to_str().unwrap(),
            "--cni-bin-dir",
            programs.to_str().unwrap(),
        ];
        let more = [&places[..], more].concat();
        Agent::launch(self.world, &discovery.control(), "run", &more)
    }

    pub fn cleanup(&self) -> String {
        let output = self.try_cleanup();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn try_cleanup(&self) -> Output {
        Command::new(BINARY)
            .args(["cleanup", "--bpffs"])
            .arg(&self.world.bpffs)
            .arg("--socket")
            .arg(self.world.scratch().join("agent.sock"))
            .arg("--cni-conf-dir")
            .arg(self.configurations())
            .arg("--cni-bin-dir")
            .arg(self.programs())
            .output()
            .unwrap()
    }
}

impl Made {
    #[track_caller]
    pub fn succeeded(&self) -> Value {
        let said = String::from_utf8_lossy(&self.output.stdout);
        let error = String::from_utf8_lossy(&self.output.stderr);
        assert!(self.output.status.success(), "{said}{error}");
        serde_json::from_str(&said).unwrap_or_default()
    }

    #[track_caller]
    pub fn failed(&self) -> String {
        assert!(!self.output.status.success());
        let [said, error] =
            [&self.output.stdout, &self.output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{said}{error}")
    }
}

fn plugins() -> Result<&'static str, String> {
    let mut plugins = PLUGINS.into_iter();
    let there = plugins.find(|it| Path::new(it).join("ptp").exists());
    there.ok_or_else(|| "no package containernetworking-plugins: make test-deps".to_owned())
}

/// Built where `make h2spec` builds, outside the tree, and again when what pins it changes.
fn cnitool() -> Result<PathBuf, String> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/duet-tools"));
    let tools = std::env::var_os("DUET_TOOLS").map(PathBuf::from);
    let tools = tools.or_else(home).ok_or("HOME is not set")?;
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cnitool");
    let (program, new) = (tools.join("cnitool"), tools.join("cnitool.new"));
    let said = |error: std::io::Error| format!("cnitool: {error}");
    fs::create_dir_all(&tools).map_err(said)?;
    // One builds it, the others wait.
    let lock = File::create(tools.join("cnitool.lock")).map_err(said)?;
    lock.lock().map_err(said)?;
    let modified = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
    if modified(&program) < modified(&module.join("go.mod")) {
        let go = ["go", "/usr/local/go/bin/go"].into_iter();
        let mut go = go.filter(|go| Command::new(go).arg("version").output().is_ok());
        let built = Command::new(go.next().ok_or("no Go, in which cnitool is written")?)
            .args(["build", "-o"])
            .arg(&new)
            .arg(CNITOOL)
            .current_dir(module)
            .output()
            .map_err(said)?;
        let error = String::from_utf8_lossy(&built.stderr);
        if !built.status.success() {
            return Err(format!("cnitool: {error}"));
        }
        fs::rename(new, &program).map_err(said)?;
    }
    Ok(program)
}

/// The plugin by itself.
pub fn plugin(command: &str, configuration: &str) -> (bool, Value) {
    let mut child = Command::new(BINARY)
        .env("CNI_COMMAND", command)
        .env("CNI_NETNS", "/proc/self/ns/net")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(configuration.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.success(), said)
}

/// The plugin for a pod that is to be meshed, behind none that made its network.
pub fn add(world: &World, pod: &TestPod, name: &str, uid: &str) -> Result<(), String> {
    let configuration = json!({
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "type": "duet-cni",
        "socket": world.scratch().join("agent.sock"),
        "runtimeConfig": {
            "io.kubernetes.cri.pod-annotations": { "duet.dev/placement": "agent" },
        },
        "prevResult": { "cniVersion": "1.0.0" },
    });
    let pod_is = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}");
    let mut child = Command::new(BINARY)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_NETNS", &pod.path)
        .env("CNI_ARGS", pod_is)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(configuration.to_string().as_bytes())
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(output.stdout).unwrap()),
    }
}
