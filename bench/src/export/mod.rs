//! `duet-bench export`: the same results for other programs.
//!
//! | format | what it holds | who reads it |
//! |---|---|---|
//! | `csv` | every trial and number, one a line, void ones included | spreadsheets, R, pandas |
//! | `prometheus` | medians, effects and their intervals, validity | a textfile collector, Grafana |
//! | `junit` | one case for each gate and each verdict | CI |
//! | `fortio` | each distribution, blocks merged, as Fortio writes it | `fortio report`, its tools |
//!
//! All but the last are also left beside every report.

mod csv;
mod fortio;
pub(crate) mod junit;
mod prometheus;

use crate::analysis::analyse;
use crate::results::{self, FileError, Results};
use clap::{Args, ValueEnum};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `duet-bench export`
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// A directory that `run --out` wrote, or a results.json
    pub results: PathBuf,

    /// What to make of it
    #[arg(long, value_enum)]
    pub format: Format,

    /// File to write, or directory for fortio; stdout by default, and for fortio the folder "fortio" beside
    /// the results
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Every trial and number, one a line
    Csv,
    /// Prometheus' text format
    Prometheus,
    /// One test case for each gate and each verdict
    Junit,
    /// One file for each distribution, as Fortio writes them
    Fortio,
}

/// Files that are left beside every report.
pub const BESIDE: [(Format, &str); 3] = [
    (Format::Csv, "trials.csv"),
    (Format::Prometheus, "results.prom"),
    (Format::Junit, "junit.xml"),
];

/// An export that cannot be made; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {source}", path = path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: no trial here has a distribution of responses", path = path.display())]
    NoDistribution { path: PathBuf },
}

/// Reads, renders, writes.
pub fn run(args: &ExportArgs) -> Result<(), ExportError> {
    let mut results = results::read(&args.results)?;
    // What this version makes of it, whichever version wrote it.
    analyse(&mut results);
    if args.format == Format::Fortio {
        return fortio_files(args, &results);
    }
    let text = text(args.format, &results);
    match &args.out {
        Some(path) => put(path, &text),
        None => {
            // A reader who has gone away has seen enough.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            Ok(())
        }
    }
}

/// The whole of a format that is one file.
pub fn text(format: Format, results: &Results) -> String {
    match format {
        Format::Csv => csv::render(results),
        Format::Prometheus => prometheus::render(results),
        Format::Junit => junit::of_run(results),
        Format::Fortio => {
            let runs = fortio::runs(results).into_iter().map(|(_, run)| run);
            let all = serde_json::Value::Array(runs.collect());
            format!("{all:#}\n")
        }
    }
}

fn fortio_files(args: &ExportArgs, results: &Results) -> Result<(), ExportError> {
    let beside = if args.results.is_dir() {
        args.results.clone()
    } else {
        let parent = args.results.parent();
        parent.unwrap_or(Path::new(".")).to_owned()
    };
    let dir = args.out.clone().unwrap_or_else(|| beside.join("fortio"));
    let runs = fortio::runs(results);
    if runs.is_empty() {
        return Err(ExportError::NoDistribution {
            path: args.results.clone(),
        });
    }
    std::fs::create_dir_all(&dir).map_err(|source| ExportError::Write {
        path: dir.clone(),
        source,
    })?;
    for (name, run) in runs {
        put(&dir.join(format!("{name}.json")), &format!("{run:#}\n"))?;
    }
    println!("{}", dir.display());
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), ExportError> {
    std::fs::write(path, text).map_err(|source| ExportError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
