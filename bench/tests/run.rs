//! `duet-bench run` as a user meets it: exit codes, files, and what is left on
//! the machine. The arm without a mesh needs no other binary, so these tests run
//! wherever namespaces can be made.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_duet-bench"))
}

fn root() -> bool {
    let root = geteuid().is_root();
    if !root {
        // Not eprintln!, whose output a test that passes does not show.
        let _ = writeln!(std::io::stderr(), "skipped: network namespaces need root");
    }
    root
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Namespaces of clusters whose owner was this process id.
fn namespaces() -> Vec<String> {
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("duet-"))
        .collect()
}

fn states_of(owner: u32) -> usize {
    std::fs::read_dir("/run/duet-bench")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("state.json")).ok())
        .filter_map(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        .filter(|state| state["owner"]["pid"] == owner)
        .count()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("results")).expect("JSON")
}

#[test]
fn a_smoke_run_without_a_mesh_measures_and_leaves_nothing() {
    if !root() {
        return;
    }
    let out = tempfile::tempdir().expect("a directory");
    let child = bench()
        .args(["run", "--profile", "smoke", "--seed", "7"])
        .args([
            "--arms",
            "none",
            "--scenarios",
            "L1,R2,L2,I1,F5",
            "--allow-debug",
            "--out",
        ])
        .arg(out.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("duet-bench starts");
    let owner = child.id();
    let output = child.wait_with_output().expect("duet-bench ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(states_of(owner), 0, "a cluster is left");

    let printed = String::from_utf8_lossy(&output.stdout);
    let page = out.path().join("report.html");
    assert_eq!(printed.lines().last(), page.to_str());
    assert!(page.is_file() && out.path().join("summary.md").is_file());

    let results = json(&out.path().join("results.json"));
    assert_eq!(results["profile"], "smoke");
    assert_eq!(results["seed"], 7);
    let scenarios = results["scenarios"].as_array().expect("scenarios");
    let ids: Vec<_> = scenarios.iter().map(|one| one["id"].as_str()).collect();
    assert_eq!(ids, ["L1", "L2", "R2", "I1", "F5"].map(Some));
    let trial = &scenarios[0]["blocks"][0]["trials"][0];
    assert!(trial["load"]["completed"].as_u64() > Some(100));
    assert!(trial["histograms"]["response"].is_string());
    let seen = &scenarios[4]["blocks"][0]["trials"][0]["values"]["plaintext_bytes"];
    assert!(seen.as_f64() > Some(0.0), "the capture saw nothing");

    let check = bench()
        .arg("schema")
        .arg(out.path())
        .output()
        .expect("runs");
    assert_eq!(
        check.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
}

#[test]
fn an_interrupt_ends_a_run_and_leaves_nothing() {
    if !root() {
        return;
    }
    let out = tempfile::tempdir().expect("a directory");
    let child = bench()
        .args([
            "run",
            "--profile",
            "smoke",
            "--arms",
            "none",
            "--scenarios",
            "L1",
        ])
        .args(["--allow-debug", "--out"])
        .arg(out.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("duet-bench starts");
    let owner = child.id();
    let deadline = Instant::now() + Duration::from_secs(60);
    while states_of(owner) == 0 {
        assert!(Instant::now() < deadline, "no cluster was made");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(owner as i32), Signal::SIGINT).expect("it lives");
    let output = child.wait_with_output().expect("duet-bench ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(states_of(owner), 0, "a cluster is left: {:?}", namespaces());
}

/// A run that is killed outright keeps its finished blocks, goes on with them, and only with the same programs.
#[test]
fn a_killed_run_goes_on_where_it_was() {
    if !root() {
        return;
    }
    let out = tempfile::tempdir().expect("a directory");
    let mut child = bench()
        .args(["run", "--profile", "smoke", "--seed", "9", "--blocks", "3"])
        .args(["--arms", "none", "--scenarios", "L2", "--allow-debug"])
        .arg("--out")
        .arg(out.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("duet-bench starts");
    let owner = child.id();
    let file = out.path().join("results.json");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !file.is_file() {
        assert!(Instant::now() < deadline, "no block was finished");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it lives");
    child.wait().expect("it is dead");
    let before = json(&file);
    let first = &before["scenarios"][0]["blocks"][0];
    assert!(before["scenarios"][0]["blocks"].as_array().map(Vec::len) < Some(3));

    let resume = |dir: &Path| {
        let mut command = bench();
        command.arg("run").arg("--resume").arg(dir);
        command.output().expect("runs")
    };
    // Of another program.
    let foreign = tempfile::tempdir().expect("a directory");
    let mut changed = before.clone();
    changed["machine"]["binaries"]["duet-bench"] = "0".repeat(64).into();
    std::fs::write(foreign.path().join("results.json"), changed.to_string()).expect("written");
    let refused = resume(foreign.path());
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    let line = stderr(&refused);
    assert!(line.contains("duet-bench is another one"), "{line}");
    let contradiction = bench()
        .args(["run", "--seed", "1", "--resume"])
        .arg(out.path())
        .output()
        .expect("runs");
    assert_eq!(contradiction.status.code(), Some(3));

    let output = resume(out.path());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let after = json(&file);
    let blocks = after["scenarios"][0]["blocks"].as_array().expect("blocks");
    assert_eq!(blocks.len(), 3);
    assert_eq!(&blocks[0], first, "a finished block was made again");
    assert_eq!(blocks[2]["index"], 2);
    assert_eq!(after["seed"], 9);
    assert!(after["notes"].to_string().contains("interrupted"));
    assert!(after["duration_s"].as_f64() > before["duration_s"].as_f64());
    assert!(out.path().join("report.html").is_file());
    assert_eq!(states_of(owner), 0, "the killed run's cluster is left");

    // What is complete is not measured again.
    let again = resume(out.path());
    assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    assert_eq!(json(&file)["scenarios"], after["scenarios"]);
}

#[test]
fn mistakes_on_the_command_line_are_one_line_and_code_3() {
    for arguments in [
        &["run", "--profile", "huge"][..],
        &["run", "--scenarios", "L9"],
        &["run", "--arms", "both"],
        &["run", "--arms", "none", "--scenarios", "X1"],
        &["run", "--time-budget", "3s"],
        &["run", "--resume", "/nowhere/at/all"],
        &["plan", "/nowhere/at/all"],
        &["report", "/nowhere/at/all"],
        &["nonsense"],
    ] {
        let output = bench().args(arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert_eq!(
            stderr(&output).trim_end().lines().count(),
            1,
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn the_schema_and_the_list_are_printed() {
    let schema = bench().arg("schema").output().expect("runs");
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    assert_eq!(schema["title"], "Duet bench results");
    let list = bench().arg("list").output().expect("runs");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for id in ["L1", "L2", "R1", "R2", "I1", "F1", "F5", "X1"] {
        assert!(list.contains(id), "{id} is missing in\n{list}");
    }
}
