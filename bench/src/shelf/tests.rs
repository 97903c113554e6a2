//! What a reader finds on the shelf, and what nobody gets from it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server::{ServeReportArgs, start};
use super::*;
use crate::results::synthetic::{run, unanalysed};
use crate::results::{self, Profile, Results};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ServeReportArgs,
}

fn args(dir: &Path, more: &[&str]) -> ServeReportArgs {
    let line = ["test", dir.to_str().unwrap()];
    let listen = ["--listen", "127.0.0.1:0"];
    let words = line
        .iter()
        .chain(if more.is_empty() { &listen[..] } else { more });
    Line::parse_from(words).args
}

fn put(dir: &Path, name: &str, results: &Results) {
    fs::create_dir(dir.join(name)).unwrap();
    results::write(results, &dir.join(name).join("results.json")).unwrap();
}

/// Three good runs, a void one, and a file that is none.
fn shelf() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (day, seed) in [(1, 5), (2, 6)] {
        let mut results = run(Profile::Quick, seed);
        results.started = format!("2026-01-0{day}T00:00:00Z");
        put(dir.path(), &format!("day-{day}"), &results);
    }
    put(dir.path(), "a smoke", &run(Profile::Smoke, 5));
    let mut void = unanalysed(Profile::Smoke, 5);
    void.interrupted = Some("<b>a signal</b>".into());
    crate::analysis::analyse(&mut void);
    put(dir.path(), "broken-off", &void);
    fs::create_dir(dir.path().join("no-results")).unwrap();
    fs::create_dir(dir.path().join("nonsense")).unwrap();
    fs::write(dir.path().join("nonsense/results.json"), "{}").unwrap();
    fs::write(dir.path().join("secret.json"), "secret").unwrap();
    dir
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    ask(address, &request).await
}

#[tokio::test]
async fn a_list_with_trends_and_each_run_as_its_page() {
    let dir = shelf();
    let address = start(&args(dir.path(), &[])).await.unwrap();
    let list = get(address, "/").await;
    assert!(list.starts_with("HTTP/1.1 200"));
    let at = |text: &str| list.find(text).unwrap_or_else(|| panic!("{text}: {list}"));
    assert!(
        at("href=\"/day-2\"") < at("href=\"/day-1\""),
        "newest first"
    );
    assert!(list.contains("VOID: ") && list.contains("&lt;b&gt;a signal"));
    assert!(list.contains("nonsense") && list.contains("not a results file"));
    assert!(!list.contains("no-results") && !list.contains("secret"));
    for trend in &super::entry::TRENDS {
        assert!(list.contains(trend.title), "{}", trend.title);
    }
    // In trends of times the smoke run is no point; in those of counts it is.
    let plot = |title: &str| {
        let from = at(title);
        &list[from..from + list[from..].find("</figure>").unwrap()]
    };
    assert!(!plot("L1 median response").contains("a smoke:"));
    assert!(plot("F1 pods hit").contains("a smoke:"));
    assert!(
        !list.contains("broken-off:"),
        "a void run is a point of a trend"
    );

    let page = get(address, "/day-1").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("Sidecar or node agent?"));
    assert!(page.contains("content-security-policy: default-src 'none'"));
    assert!(get(address, "/a%20smoke").await.contains("Smoke run"));
    assert!(get(address, "/nonsense").await.starts_with("HTTP/1.1 422"));
}

#[tokio::test]
async fn nothing_but_runs_is_read_and_by_nobody_else() {
    let dir = shelf();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let address = start(&args(&inner, &[])).await.unwrap();
    for path in [
        "/..",
        "/../day-1",
        "/..%2fday-1",
        "/%2e%2e/day-1",
        "/.",
        "/secret.json",
        "/%",
    ] {
        assert!(get(address, path).await.contains(" 404 "), "{path}");
    }
    let foreign = "GET / HTTP/1.1\r\nhost: attacker.example\r\nconnection: close\r\n\r\n";
    assert!(ask(address, foreign).await.starts_with("HTTP/1.1 403"));
    let post =
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
}

#[tokio::test]
async fn beyond_loopback_only_if_it_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let refused = start(&args(dir.path(), &["--listen", "0.0.0.0:0"])).await;
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("--expose") && !message.contains('\n'),
        "{message}"
    );
    let absent = start(&args(&dir.path().join("nowhere"), &[])).await;
    assert!(absent.unwrap_err().to_string().contains("nowhere"));
}

fn published(results: &Results) -> (tempfile::TempDir, Result<std::path::PathBuf, PublishError>) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "run", results);
    let result = publish(&PublishArgs {
        results: dir.path().join("run"),
        name: "mine".into(),
        into: dir.path().join("kept"),
    });
    (dir, result)
}

#[test]
fn what_is_published_is_the_run_and_smaller() {
    let run = run(Profile::Quick, 5);
    let (dir, kept) = published(&run);
    let kept = kept.unwrap();
    assert_eq!(results::read(&kept).unwrap(), run);
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let packed = size(&kept.join("results.json.gz"));
    assert!(
        packed * 3 < size(&dir.path().join("run/results.json")),
        "{packed} bytes"
    );
    let (again, _) = crate::report::rerender(&kept).unwrap();
    assert_eq!(again, run);
    assert!(kept.join("report.html").is_file() && kept.join("summary.md").is_file());
}

#[test]
fn void_and_debug_runs_are_not_published() {
    let mut void = unanalysed(Profile::Smoke, 5);
    void.interrupted = Some("a signal".into());
    let message = published(&void).1.unwrap_err().to_string();
    assert!(message.contains("void") && message.contains("a signal"));
    let mut debug = unanalysed(Profile::Smoke, 5);
    for arm in &mut debug.arms {
        arm.opt_level = arm.opt_level.take().map(|_| "0".into());
    }
    let message = published(&debug).1.unwrap_err().to_string();
    assert!(message.contains("opt-level 0"), "{message}");
}

/// Every published run can be read, is what the schema says, and renders.
#[test]
fn the_published_runs_of_this_project_can_be_read() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/results"));
    let validator = jsonschema::validator_for(&results::schema()).unwrap();
    for child in fs::read_dir(dir).unwrap() {
        let path = child.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let mut run = results::read(&path).unwrap();
        let json = serde_json::to_value(&run).unwrap();
        assert!(validator.is_valid(&json), "{}", path.display());
        crate::analysis::analyse(&mut run);
        assert!(crate::report::html(&run).len() < 2_000_000);
    }
}
