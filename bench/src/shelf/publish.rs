//! A run that stays with the project: what others hold their own against, and CI its smoke run.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::analysis::analyse;
use crate::report::{self, ReportError};
use crate::results::{self, FileError, State};

/// `duet-bench publish`
#[derive(Args, Clone, Debug)]
pub struct PublishArgs {
    /// A directory that `run --out` wrote, or a results.json
    pub results: PathBuf,

    /// What to call it: a directory of that name is made, or replaced
    #[arg(long = "as", value_name = "NAME", value_parser = name)]
    pub name: String,

    /// Where published results stand
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    pub into: PathBuf,
}

/// A run that cannot be published; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("{path}: the run is void, and nothing may be concluded from it: {why}", path = path.display())]
    Void { path: PathBuf, why: String },
    #[error("{path}: built without optimisation (opt-level {level}); publish what `make build` built", path = path.display())]
    Debug { path: PathBuf, level: String },
    #[error("{path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

fn name(text: &str) -> Result<String, String> {
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && !text.starts_with('.') && text.chars().all(fit) {
        Ok(text.to_owned())
    } else {
        Err("give letters, digits, and - _ .".into())
    }
}

/// Writes results.json.gz, report.html and summary.md; gives their directory.
pub fn publish(args: &PublishArgs) -> Result<PathBuf, PublishError> {
    let mut results = results::read(&args.results)?;
    analyse(&mut results);
    let path = || args.results.clone();
    if results.status.state == State::Void {
        let why = results.status.reasons.join("; ");
        return Err(PublishError::Void { path: path(), why });
    }
    let unoptimised = |level: &&String| matches!(level.as_str(), "0" | "1");
    let levels = results.arms.iter().filter_map(|arm| arm.opt_level.as_ref());
    if let Some(level) = levels.clone().find(unoptimised) {
        let level = level.clone();
        return Err(PublishError::Debug {
            path: path(),
            level,
        });
    }
    let dir = args.into.join(&args.name);
    fs::create_dir_all(&dir).map_err(|source| PublishError::Io {
        path: dir.clone(),
        source,
    })?;
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).map_err(|source| PublishError::Io { path, source })
    };
    put("results.json.gz", &compressed(&results::text(&results)))?;
    put("report.html", report::html(&results).as_bytes())?;
    put("summary.md", report::markdown(&results).as_bytes())?;
    Ok(dir)
}

fn compressed(text: &str) -> Vec<u8> {
    // Without a time of its own: the same run gives the same file.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let written = encoder.write_all(text.as_bytes());
    written
        .and_then(|()| encoder.finish())
        .expect("writing to memory cannot fail")
}
