//! Programs of Debian's in pods. `make test-deps` installs them; what needs one that is
//! not there is skipped, and says so. With `DUET_NO_SKIPS` it fails.

use super::Mesh;
use super::app::App;
use anyhow::{Context, Result, bail, ensure};
use duet_bench::cluster::{Part, ProcessHandle, Spawn};
use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

/// Whoever refuses to be root is this one, whom every Debian has.
pub const NOBODY: u32 = 65534;
/// Where Debian has programs, beside the PATH.
const ELSEWHERE: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/sbin"];
/// For a program that hangs.
const SECONDS: &str = "240";

/// `None` if it is not installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let postgres = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let postgres = postgres.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let tools = std::env::var_os("DUET_TOOLS").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/duet-tools"));
    ELSEWHERE
        .iter()
        .map(PathBuf::from)
        .chain(tools.or_else(home))
        .chain(std::env::split_paths(&path))
        .chain(postgres)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether all of these are installed; if not, it is said what is skipped, where that may be.
pub fn are_there(what: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| find(program).is_none())
        .copied()
        .collect();
    if !missing.is_empty() {
        let why = format!(
            "{what}: {} is not there: make test-deps h2spec",
            missing.join(" and ")
        );
        assert!(std::env::var_os("DUET_NO_SKIPS").is_none(), "{why}");
        // Not eprintln, whose output a test that passes does not show.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
    }
    missing.is_empty()
}

fn spawn(pod: &str, program: &str, args: &[&str]) -> Spawn {
    let file = find(program).unwrap_or_else(|| panic!("{program} was there just now"));
    Spawn::in_pod(pod, Part::App, file)
        .args(args.iter().map(OsString::from))
        .name(format!("{pod}.{program}"))
}

/// A server, killed when it is dropped, once it takes connections.
pub async fn serve(
    mesh: &Mesh,
    pod: &str,
    uid: Option<u32>,
    program: &str,
    args: &[&str],
    port: u16,
) -> Result<ProcessHandle> {
    let mut spawn = spawn(pod, program, args);
    if let Some(uid) = uid {
        spawn = spawn.uid(uid);
    }
    let process = mesh.cluster.spawn(spawn)?;
    listens(mesh.app(pod), (Ipv4Addr::LOCALHOST, port).into())
        .await
        .with_context(|| format!("{program}: {}", log(&process)))?;
    Ok(process)
}

fn log(process: &ProcessHandle) -> String {
    let said = std::fs::read_to_string(process.log()).unwrap_or_default();
    let lines: Vec<_> = said.lines().rev().take(10).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Waits until somebody does.
pub async fn listens(app: &App, at: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = app.connect(at).await {
        ensure!(Instant::now() < deadline, "{at}: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Runs a program in a pod to its end: what it wrote, if it succeeded.
pub fn run(mesh: &Mesh, pod: &str, program: &str, args: &[&str]) -> Result<String> {
    let output = attempt(mesh, pod, program, args)?;
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    if !output.status.success() {
        bail!("{program} {args:?}: {}: {out}{err}", output.status);
    }
    Ok(out.into_owned())
}

/// The same, however it ended.
pub fn attempt(mesh: &Mesh, pod: &str, program: &str, args: &[&str]) -> Result<Output> {
    let file = find(program).with_context(|| format!("{program} is not installed"))?;
    let within = [SECONDS, file.to_str().context("a path")?];
    let spawn = spawn(pod, "timeout", &within)
        .args(args.iter().map(OsString::from))
        .name(format!("{pod}.{program}"));
    Ok(tokio::task::block_in_place(|| mesh.cluster.exec(spawn))?)
}
