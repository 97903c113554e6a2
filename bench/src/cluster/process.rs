//! Processes of a cluster: started inside a namespace and in their cgroup from
//! the first instruction, ended with the harness.
//!
//! A small shell stands between: it enters the cgroups, raises the limit on
//! open files, and then *becomes* the program, by way of `setpriv`, which drops
//! privileges and asks the kernel to kill the process once its parent is gone.
//! So nothing is ever charged elsewhere, and no `unsafe` is needed. The kernel
//! counts the *thread* that spawned as the parent, so one thread per cluster
//! does it for all and lives as long as the cluster.

use super::clock::monotonic_ns;
use super::error::{ClusterError, Result};
use super::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a wait with a time-out looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Environment that is passed on; all else is dropped, so that what the user
/// happens to have set cannot reconfigure a proxy.
const KEPT_ENV: [&str; 4] = ["PATH", "LANG", "TMPDIR", "RUST_BACKTRACE"];

const BECOME: &str = r#"set -e
for dir in $1; do echo $$ > "$dir/cgroup.procs"; done
shift
ulimit -n "$(ulimit -Hn)"
exec "$@""#;

/// Which part of a pod a process is: each has a cgroup of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The application, under the application's limits.
    App,
    /// The mesh's proxy.
    Proxy,
    /// The load generator: never limited, counted apart.
    Load,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Pod(String, Part),
    Node(u32),
    Control,
}

/// A process to be started. It inherits nothing but `PATH` and the like.
#[derive(Clone, Debug)]
pub struct Spawn {
    pub(crate) place: Place,
    pub(crate) program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    uid: Option<u32>,
    capabilities: Option<&'static [&'static str]>,
    name: Option<String>,
    fifo: Option<u8>,
    nice: Option<i8>,
    cpus: Option<String>,
    pub(crate) split_output: bool,
    pub(crate) is_outside: bool,
}

/// A running process. Dropping it kills the process.
#[derive(Debug)]
pub struct ProcessHandle {
    process: Arc<Process>,
}

/// The process itself, shared with whoever watches over it.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    started: u64,
    child: Mutex<(Child, Option<ExitStatus>)>,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// The thread that spawns for a cluster.
#[derive(Debug)]
pub(crate) struct Spawner {
    open: Mutex<Option<(mpsc::Sender<Request>, JoinHandle<()>)>>,
}

#[derive(Debug)]
struct Request {
    netns: Netns,
    command: Command,
    reply: mpsc::Sender<Result<Child>>,
}

// === impl Part ===

impl Part {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Proxy => "proxy",
            Self::Load => "load",
        }
    }
}

// === impl Spawn ===

impl Spawn {
    /// In a pod's namespace and in the cgroup of that part of it.
    pub fn in_pod(pod: impl Into<String>, part: Part, program: impl Into<PathBuf>) -> Self {
        Self::at(Place::Pod(pod.into(), part), program)
    }

    /// In a node's namespace, beside its pods.
    pub fn in_node(node: u32, program: impl Into<PathBuf>) -> Self {
        Self::at(Place::Node(node), program)
    }

    /// In the control plane's namespace.
    pub fn in_control(program: impl Into<PathBuf>) -> Self {
        Self::at(Place::Control, program)
    }

    fn at(place: Place, program: impl Into<PathBuf>) -> Self {
        Self {
            place,
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            uid: None,
            capabilities: None,
            name: None,
            fifo: None,
            nice: None,
            cpus: None,
            split_output: false,
            is_outside: false,
        }
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Runs as this user and group, with no capabilities and no way to gain any.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Keeps root's user and these capabilities (as in "sys_admin") only, with no way to gain others.
    pub fn only_capabilities(mut self, names: &'static [&'static str]) -> Self {
        self.capabilities = Some(names);
        self
    }

    /// What its log files are called; the program's name by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Real-time class SCHED_FIFO with this priority, 1 to 99.
    pub fn fifo(mut self, priority: u8) -> Self {
        self.fifo = Some(priority);
        self
    }

    pub fn nice(mut self, nice: i8) -> Self {
        self.nice = Some(nice);
        self
    }

    /// CPUs it may run on, as in `0` or `0-1`.
    pub fn cpus(mut self, cpus: impl Into<String>) -> Self {
        self.cpus = Some(cpus.into());
        self
    }

    /// Standard output and standard error into two files instead of one.
    pub fn split_output(mut self) -> Self {
        self.split_output = true;
        self
    }

    /// In the namespace only, and in none of the cluster's cgroups: an agent does not redirect it.
    pub fn outside_cgroups(mut self) -> Self {
        self.is_outside = true;
        self
    }

    pub(crate) fn is_realtime(&self) -> bool {
        self.fifo.is_some()
    }

    pub(crate) fn log_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let program = self.program.file_name().unwrap_or_default();
            let program = program.to_string_lossy();
            match &self.place {
                Place::Pod(pod, _) => format!("{pod}.{program}"),
                Place::Node(node) => format!("node-{node}.{program}"),
                Place::Control => program.into_owned(),
            }
        })
    }

    fn command(&self, cgroups: &[PathBuf]) -> Command {
        let dirs: Vec<&str> = cgroups.iter().filter_map(|dir| dir.to_str()).collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", BECOME, "sh"]).arg(dirs.join(" "));
        if let Some(priority) = self.fifo {
            command.args(["chrt", "--fifo", &priority.to_string()]);
        }
        if let Some(nice) = self.nice {
            command.args(["nice", "-n", &nice.to_string()]);
        }
        if let Some(cpus) = &self.cpus {
            command.args(["taskset", "--cpu-list", cpus]);
        }
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        if let Some(uid) = self.uid {
            let uid = uid.to_string();
            command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
            command.args([
                "--inh-caps",
                "-all",
                "--bounding-set",
                "-all",
                "--no-new-privs",
            ]);
        }
        if let Some(names) = self.capabilities {
            let bounding = names
                .iter()
                .fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
            command.args(["--inh-caps", "-all", "--bounding-set", &bounding]);
            command.arg("--no-new-privs");
        }
        command.arg("--").arg(&self.program).args(&self.args);
        command.env_clear();
        for key in KEPT_ENV {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

// === impl Spawner ===

impl Spawner {
    pub(crate) fn start() -> Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let thread = thread::Builder::new()
            .name("cluster-spawner".to_owned())
            .spawn(move || {
                for mut request in inbox {
                    let child = request.netns.enter().and_then(|()| {
                        request.command.spawn().map_err(ClusterError::io(format!(
                            "start a process in namespace {}",
                            request.netns.name()
                        )))
                    });
                    // Whoever asked may have given up: then the child dies with its handle.
                    if let Err(mpsc::SendError(Ok(mut orphan))) = request.reply.send(child) {
                        let _ = orphan.kill();
                        let _ = orphan.wait();
                    }
                }
            })
            .map_err(ClusterError::io("start the spawning thread"))?;
        Ok(Self {
            open: Mutex::new(Some((requests, thread))),
        })
    }

    /// Starts a process; its output goes to files in `logs`.
    pub(crate) fn spawn(
        &self,
        spawn: &Spawn,
        netns: &Netns,
        cgroups: &[PathBuf],
        logs: &Path,
    ) -> Result<Arc<Process>> {
        if !spawn.program.is_file() && spawn.program.components().count() > 1 {
            return Err(ClusterError::NoBinary {
                program: spawn.program.display().to_string(),
            });
        }
        let (stdout, stderr) = log_files(logs, &spawn.log_name(), spawn.split_output)?;
        let mut command = spawn.command(cgroups);
        command
            .stdout(open_log(&stdout)?)
            .stderr(open_log(&stderr)?);
        let (reply, answer) = mpsc::channel();
        let gone = || {
            ClusterError::Unsupported("this cluster has been removed: nothing starts in it".into())
        };
        self.open
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .as_ref()
            .ok_or_else(gone)?
            .0
            .send(Request {
                netns: netns.clone(),
                command,
                reply,
            })
            .map_err(|_| gone())?;
        let started = monotonic_ns();
        let child = answer.recv().map_err(|_| gone())??;
        Ok(Arc::new(Process {
            pid: child.id(),
            started,
            child: Mutex::new((child, None)),
            stdout,
            stderr,
        }))
    }

    /// Nothing is started once this returns. What was started dies with the
    /// thread.
    pub(crate) fn close(&self) {
        let open = self
            .open
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some((requests, thread)) = open {
            drop(requests);
            let _ = thread.join();
        }
    }
}

/// One file, or two, that nothing else writes to.
fn log_files(logs: &Path, name: &str, split: bool) -> Result<(PathBuf, PathBuf)> {
    fs::create_dir_all(logs).map_err(ClusterError::io(format!("make {}", logs.display())))?;
    let free = |suffix: &str| -> PathBuf {
        (1..)
            .map(|n| match n {
                1 => logs.join(format!("{name}.{suffix}")),
                n => logs.join(format!("{name}.{n}.{suffix}")),
            })
            .find(|path| !path.exists())
            .unwrap_or_else(|| logs.join(format!("{name}.{suffix}")))
    };
    if split {
        Ok((free("out"), free("err")))
    } else {
        let log = free("log");
        Ok((log.clone(), log))
    }
}

fn open_log(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(ClusterError::io(format!("open {}", path.display())))
}

// === impl Process ===

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// When it was started, on CLOCK_MONOTONIC.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    pub(crate) fn log(&self) -> &Path {
        &self.stderr
    }

    /// Sends a signal. False if the process has ended. The lock keeps the pid
    /// from being reaped, and so from being reused, meanwhile.
    pub(crate) fn signal(&self, signal: Signal) -> Result<bool> {
        let child = self.lock();
        if child.1.is_some() {
            return Ok(false);
        }
        match kill(Pid::from_raw(self.pid as i32), signal) {
            Ok(()) => Ok(true),
            Err(nix::Error::ESRCH) => Ok(false),
            Err(errno) => Err(ClusterError::errno(format!(
                "send {signal} to process {}",
                self.pid
            ))(errno)),
        }
    }

    /// Waits until it ends. Several may wait.
    pub(crate) fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let ended = waitid(
                Id::Pid(Pid::from_raw(self.pid as i32)),
                WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
            );
            match ended {
                // Another waiter was quicker: its status is kept.
                Ok(_) | Err(nix::Error::EINTR | nix::Error::ECHILD) => {}
                Err(errno) => {
                    return Err(ClusterError::errno(format!(
                        "wait for process {}",
                        self.pid
                    ))(errno));
                }
            }
        }
    }

    pub(crate) fn try_wait(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.lock();
        if child.1.is_none() {
            child.1 = child
                .0
                .try_wait()
                .map_err(ClusterError::io(format!("wait for process {}", self.pid)))?;
        }
        Ok(child.1)
    }

    pub(crate) fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// SIGKILL, and the corpse is buried.
    pub(crate) fn kill(&self) {
        if let Ok(true) = self.signal(Signal::SIGKILL) {
            let _ = self.wait();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Child, Option<ExitStatus>)> {
        self.child
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl ProcessHandle ===

impl ProcessHandle {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        Self { process }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// When it was started, on CLOCK_MONOTONIC, in ns.
    pub fn started(&self) -> u64 {
        self.process.started()
    }

    /// Sends a signal. False if the process has ended already.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        self.process.signal(signal)
    }

    pub fn wait(&self) -> Result<ExitStatus> {
        self.process.wait()
    }

    /// None if it has not ended yet.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// None if it has not ended by then.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.process.wait_timeout(timeout)
    }

    /// SIGTERM, then SIGKILL once `grace` is over.
    pub fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        if let Some(status) = self.wait_timeout(grace)? {
            return Ok(status);
        }
        self.signal(Signal::SIGKILL)?;
        self.wait()
    }

    /// The file with its standard error (and standard output, unless split).
    pub fn log(&self) -> &Path {
        &self.process.stderr
    }

    /// The file with its standard output.
    pub fn stdout(&self) -> &Path {
        &self.process.stdout
    }

    /// What it has written to standard output so far.
    pub fn stdout_text(&self) -> Result<String> {
        read_lossy(&self.process.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr_text(&self) -> Result<String> {
        read_lossy(&self.process.stderr)
    }
}

impl Drop for ProcessHandle {
    fn drop(&mut self) {
        self.process.kill();
    }
}

fn read_lossy(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(ClusterError::io(format!("read {}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How a process ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

/// Runs a program to its end with `input`, inside `netns` if given; on failure
/// the error carries what it said.
pub(crate) fn run_tool(
    program: impl AsRef<OsStr>,
    args: &[&str],
    input: &str,
    netns: Option<&Netns>,
) -> Result<Vec<u8>> {
    let program = program.as_ref();
    let shown = || {
        let mut shown = Path::new(program)
            .file_name()
            .unwrap_or(program)
            .to_string_lossy()
            .into_owned();
        for arg in args {
            shown.push(' ');
            shown.push_str(arg);
        }
        if let Some(netns) = netns {
            shown.push_str(&format!(" (in {})", netns.name()));
        }
        shown
    };
    let run = || -> Result<Vec<u8>> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => ClusterError::Unsupported(format!(
                    "{} was not found: `duet-bench doctor` says what to install",
                    program.to_string_lossy()
                )),
                _ => ClusterError::Io {
                    what: shown(),
                    source,
                },
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            use std::io::Write;
            // A program that fails early closes its end; its own words matter more.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child
            .wait_with_output()
            .map_err(ClusterError::io(shown()))?;
        if !output.status.success() {
            let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if said.is_empty() {
                said = ending(output.status);
            }
            return Err(ClusterError::Command {
                what: shown(),
                said: said.replace('\n', "; "),
            });
        }
        Ok(output.stdout)
    };
    match netns {
        Some(netns) => netns.run(run)?,
        None => run(),
    }
}
