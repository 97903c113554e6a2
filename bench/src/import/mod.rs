//! `duet-bench import`: what another load generator measured, beside a run's own figures.
//!
//! For contrast only. Such a measurement is not paired with any block, its load is mostly a closed
//! loop, which waits while the system stalls, and nobody checked its generator; so it is kept apart
//! from the arms, drawn grey, and named as foreign wherever it appears.

mod fortio;
mod oha;
mod wrk2;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

use crate::report::{self, ReportError, Written};
use crate::results::{self, FileError, Foreign, Results};

/// More is no summary of a load generator.
const MOST_BYTES: u64 = 16 << 20;
const MOST_IMPORTED: usize = 16;
const MOST_QUANTILES: usize = 1000;
const LONGEST_NAME: usize = 32;

/// `duet-bench import`
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// What the other tool wrote
    pub file: PathBuf,

    /// Whose it is
    #[arg(long, value_enum)]
    pub format: Format,

    /// What to call it
    #[arg(long = "as", value_name = "NAME", value_parser = name)]
    pub name: String,

    /// The run to show it beside: a directory that `run --out` wrote, or a results.json
    #[arg(long, value_name = "RESULTS")]
    pub into: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text of `wrk2 --latency`
    Wrk2,
    /// JSON of `oha --output-format json`
    Oha,
    /// JSON of `fortio load -json`
    Fortio,
}

/// A measurement that cannot be imported; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("{path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: larger than {MOST_BYTES} bytes, which no summary of a load generator is", path = path.display())]
    TooLong { path: PathBuf },
    #[error("{path}: not {wanted}: {problem}", path = path.display())]
    Unfit {
        path: PathBuf,
        wanted: &'static str,
        problem: String,
    },
    #[error("{path}: published results stay as they are; import into the run before it is published", path = path.display())]
    Published { path: PathBuf },
    #[error("--as {name}: {into} has an arm or an import of that name; choose another", into = into.display())]
    Taken { name: String, into: PathBuf },
    #[error("--into {into}: has {MOST_IMPORTED} imports, and no report is readable with more", into = into.display())]
    TooMany { into: PathBuf },
}

/// What a parser finds.
struct Found {
    tool: String,
    load: &'static str,
    requests: u64,
    failed: u64,
    rate: f64,
    duration_s: f64,
    /// (share, µs), in any order.
    quantiles: Vec<(f64, f64)>,
}

fn name(text: &str) -> Result<String, String> {
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(fit) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "give at most {LONGEST_NAME} letters, digits, and - _ . +"
        ))
    }
}

/// Reads, adds, and makes the reports anew.
pub fn run(args: &ImportArgs) -> Result<(Results, Written), ImportError> {
    let foreign = read(args)?;
    let file = results::file_of(&args.into);
    if file.extension().is_some_and(|ending| ending == "gz") {
        return Err(ImportError::Published { path: file });
    }
    let mut results = results::read(&file)?;
    let into = || args.into.clone();
    let taken = results.foreign.iter().any(|other| other.name == args.name);
    if taken || results.arm(&args.name).is_some() {
        let name = args.name.clone();
        return Err(ImportError::Taken { name, into: into() });
    }
    if results.foreign.len() >= MOST_IMPORTED {
        return Err(ImportError::TooMany { into: into() });
    }
    results.foreign.push(foreign);
    results::write(&results, &file)?;
    Ok(report::rerender(&file)?)
}

/// The file as a measurement.
pub fn read(args: &ImportArgs) -> Result<Foreign, ImportError> {
    let path = &args.file;
    let io = |source| ImportError::Io {
        path: path.clone(),
        source,
    };
    if std::fs::metadata(path).map_err(io)?.len() > MOST_BYTES {
        return Err(ImportError::TooLong { path: path.clone() });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let text = String::from_utf8_lossy(&bytes);
    let (wanted, found) = match args.format {
        Format::Wrk2 => ("the text of wrk2 --latency", wrk2::parse(&text)),
        Format::Oha => ("oha's JSON", oha::parse(&text)),
        Format::Fortio => ("fortio's JSON", fortio::parse(&text)),
    };
    let found = found.and_then(checked);
    let found = found.map_err(|problem| ImportError::Unfit {
        path: path.clone(),
        wanted,
        problem,
    })?;
    Ok(Foreign {
        name: args.name.clone(),
        tool: found.tool,
        load: found.load.to_owned(),
        file: file_name(path),
        sha256: Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        requests: found.requests,
        failed: found.failed,
        rate: found.rate,
        duration_s: found.duration_s,
        quantiles: found.quantiles,
    })
}

/// Sorted, and nothing in it that no load generator can have measured.
fn checked(mut found: Found) -> Result<Found, String> {
    if found.requests == 0 {
        return Err("no request was timed".into());
    }
    let sound = |value: f64| value.is_finite() && value >= 0.0;
    if !sound(found.rate) || !sound(found.duration_s) {
        return Err("its rate or duration is no number".into());
    }
    // The largest value is no quantile that may be printed.
    found.quantiles.retain(|(share, _)| *share < 1.0);
    found.quantiles.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.quantiles.dedup_by(|a, b| (a.0 - b.0).abs() < 1e-9);
    if found.quantiles.is_empty() {
        return Err("it has no percentile of response times".into());
    }
    if found.quantiles.len() > MOST_QUANTILES {
        return Err(format!("it has more than {MOST_QUANTILES} percentiles"));
    }
    let fit = |(share, us): &(f64, f64)| sound(*share) && sound(*us);
    let rising = found
        .quantiles
        .windows(2)
        .all(|pair| pair[0].1 <= pair[1].1);
    if !found.quantiles.iter().all(fit) || !rising {
        return Err("its percentiles do not rise".into());
    }
    Ok(found)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
