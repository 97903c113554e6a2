//! The binary: exit codes, one-line errors, signals, tokens.

mod mesh;

use mesh::{MESH, PATIENCE, Proxy, Site, get};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn duet_control(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duet-control"));
    command.args(args).env_clear();
    command
}

fn run(args: &[&str]) -> Output {
    duet_control(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Standard error, which must be one line.
#[track_caller]
fn one_line(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// A running duet-control, its log, and where it serves.
struct Server {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    api: SocketAddr,
    health: SocketAddr,
}

impl Server {
    fn start(site: &Site) -> Self {
        let mut child = duet_control(&[
            "--source",
            text(&site.file()),
            "--state-dir",
            text(&site.state_path()),
            "--listen",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn({
            let log = log.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    log.lock().unwrap().push(line);
                }
            }
        });
        let mut server = Self {
            child,
            log,
            api: SocketAddr::from(([0; 4], 0)),
            health: SocketAddr::from(([0; 4], 0)),
        };
        let serves = server.wait_for("duet-control serves");
        let address = |field: &str| {
            let word = serves[0]
                .split(' ')
                .find_map(|word| word.strip_prefix(field));
            word.expect(field).parse().unwrap()
        };
        server.api = address("api=");
        server.health = address("health=");
        server
    }

    /// The lines of the log that hold `what`, once there is one.
    fn wait_for(&self, what: &str) -> Vec<String> {
        let began = Instant::now();
        loop {
            let found: Vec<_> = self
                .log
                .lock()
                .unwrap()
                .iter()
                .filter(|line| line.contains(what))
                .cloned()
                .collect();
            if !found.is_empty() {
                return found;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "no {what:?} in {:?}",
                self.log.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_made_before_the_first_start_opens_the_door() {
    let site = Site::new(MESH);
    let state = site.state_path();
    let made = run(&[
        "token",
        "--state-dir",
        text(&state),
        "--workload",
        "default/web-0",
    ]);
    assert!(made.status.success());
    let token = String::from_utf8(made.stdout).unwrap();
    assert_eq!(token.lines().count(), 1);
    assert_eq!(mesh::count(&state), 1, "a token needs no root");

    let mut server = Server::start(&site);
    assert_eq!(get(server.health, "/ready").await.0, 200);
    let proxy = Proxy::connect(server.api, &site.root_pem(), token.trim().to_owned()).await;
    proxy.certify("default/web-0").await.unwrap();
    assert!(proxy.certify("default/web-1").await.is_err());
    let mut watch = proxy.watch().await.unwrap();
    watch.next().await;

    let began = Instant::now();
    assert_eq!(server.terminate(), Some(0), "SIGTERM is a good end");
    assert!(began.elapsed() < duet_control::server::SHUTDOWN_GRACE);
}

#[tokio::test]
async fn a_wrong_change_is_one_line_of_log() {
    let site = Site::new(MESH);
    let server = Server::start(&site);
    site.rename_over(&MESH.replace("addresses: [10.71.2.2]", "addresses: [10.71.2]"));
    let first = server.wait_for("ERROR");
    let line = MESH
        .lines()
        .position(|line| line.contains("10.71.2.2"))
        .unwrap()
        + 1;
    assert!(
        first[0].contains(&format!(
            "mesh.yaml:{line}: workloads[1].addresses[0]: \"10.71.2\" is not an address: write"
        )),
        "{first:?}"
    );
    // Said once, not at every look.
    tokio::time::sleep(duet_control::source::POLL_INTERVAL * 15).await;
    assert_eq!(server.wait_for("ERROR").len(), 1);
    let mentions = server.wait_for("mesh.yaml");
    assert_eq!(mentions.len(), 1, "{mentions:?}");
    site.rename_over("workloads: []\n");
    server.wait_for("the mesh changed");
}

#[test]
fn a_wrong_file_at_start_is_exit_78() {
    let site = Site::new("workloads:\n  - name: web-0\n    addresses: [nowhere]\n");
    let state = site.state_path();
    let output = run(&[
        "--source",
        text(&site.file()),
        "--state-dir",
        text(&state),
        "--listen",
        "127.0.0.1:0",
        "--health",
        "127.0.0.1:0",
    ]);
    assert_eq!(output.status.code(), Some(78));
    let error = one_line(&output);
    assert!(
        error.contains("mesh.yaml:3: workloads[0].addresses[0]: \"nowhere\""),
        "{error}"
    );

    let output = run(&["--source", "/nonexistent.yaml", "--state-dir", text(&state)]);
    assert_eq!(output.status.code(), Some(78));
    assert!(one_line(&output).contains("/nonexistent.yaml: cannot be read"));
}

#[test]
fn a_broken_state_directory_is_exit_78_and_stays_as_it_is() {
    let site = Site::new(MESH);
    let state = site.state_path();
    site.state_dir().authority().unwrap();
    std::fs::write(state.join("ca.key"), "rubbish").unwrap();
    let output = run(&["--source", text(&site.file()), "--state-dir", text(&state)]);
    assert_eq!(output.status.code(), Some(78));
    let error = one_line(&output);
    assert!(
        error.contains("ca.key: holds no private key: restore it"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_to_string(state.join("ca.key")).unwrap(),
        "rubbish"
    );
}

#[test]
fn a_busy_port_is_named() {
    let site = Site::new(MESH);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&[
        "--source",
        text(&site.file()),
        "--state-dir",
        text(&site.state_path()),
        "--listen",
        &address,
        "--log",
        "off",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains(&format!("--listen {address}: Address already in use")));
}

#[test]
fn wrong_usage_is_exit_64() {
    for args in [
        &["--nonsense"][..],
        &[],
        &["--source", "x", "--cert-lifetime", "1s"],
        &["--source", "x", "--log", "a=b=c"],
        &["token", "--state-dir", "/tmp"],
        &["token", "--node", ""],
        &["token", "--workload", "web-0"],
        &["token", "--workload", "a/b", "--node", "c"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
    }
}

#[test]
fn the_version_names_the_core() {
    let output = run(&["--version"]);
    let version = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_eq!(
        version.trim(),
        format!(
            "duet-control 0.1.0 core={} opt={}",
            duet_core::CORE_FINGERPRINT,
            duet_core::OPT_LEVEL
        )
    );
}
