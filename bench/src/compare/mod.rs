//! Two or more results files against each other, in benchstat's manner: the first is the old
//! one, every other is held against it.
//!
//! Blocks of different runs are no pairs, so this is the unpaired analysis: Mann-Whitney's exact
//! test and the shift of Hodges and Lehmann over per-block values. A change is claimed only if
//! its 95 % interval excludes none *and* it is larger than what an arm shows against itself in
//! either file; else `~`. Two exceptions need no interval, because they are no estimates: a count
//! that is the same in every block of each file and differs between them, and plaintext on the
//! wire where there was none.
//!
//! Times of different machines are shown and not claimed, unless forced. A change of the arm
//! without a mesh is the machine's, not Duet's: it is named as drift and is never a regression.
//!
//! A loose comparison (`--loose`) infers nothing. It asks whether a run too short for claims still shows the
//! counts and the memory that a kept one showed, within thresholds, in either direction: a kill that hits nobody
//! any more is as suspicious as one that hits all.

mod changes;
mod html;
mod junit;
mod markdown;
mod text;
mod thresholds;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::analysis::{analyse, mismatched_cores};
use crate::results::{self, FileError, Results, State};

pub use changes::{Change, Comparison, Side};
pub use thresholds::{Thresholds, ThresholdsError};

/// Exit codes, as the command line documents them.
const FINE: u8 = 0;
const REGRESSION: u8 = 1;
const VOID: u8 = 2;

/// `duet-bench compare`
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Results files or their directories: the old one first
    #[arg(required = true, num_args = 2.., value_name = "RESULTS")]
    pub files: Vec<PathBuf>,

    /// How to print the comparison
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,

    /// Claimed changes for the worse beyond so many per cent are regressions (exit code 1)
    #[arg(long, value_name = "PERCENT", default_value_t = thresholds::DEFAULT, value_parser = threshold)]
    pub threshold: f64,

    /// JSON file with thresholds by scenario, metric and arm, as in
    /// {"default": 10, "rules": [{"scenario": "R1", "percent": 3}, {"metric": "p99", "ignore": true}]}
    #[arg(long, value_name = "FILE")]
    pub thresholds: Option<PathBuf>,

    /// Claims times of different machines too
    #[arg(long)]
    pub force: bool,

    /// For runs too short to claim anything: holds counts and memory against each other by their medians, leaves
    /// times and CPU out, and takes what differs beyond its threshold, or is missing, for a regression
    #[arg(long, conflicts_with = "force")]
    pub loose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Markdown,
    Html,
    Json,
    Junit,
}

/// A comparison that cannot be made; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Thresholds(#[from] ThresholdsError),
    #[error("{path}: {why}: its arms cannot be compared")]
    Cores { path: PathBuf, why: String },
    #[error("{old} and {new} have no scenario, arm and metric in common")]
    NothingInCommon { old: PathBuf, new: PathBuf },
    #[error("the comparison cannot be written: {0}")]
    Write(#[from] std::io::Error),
    #[error("the comparison cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

fn threshold(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|percent: &f64| percent.is_finite() && *percent >= 0.0)
        .ok_or_else(|| "give a number of per cent, 0 or more".into())
}

/// Compares, prints to standard output, warns on standard error; gives the exit code.
pub fn run(args: &CompareArgs) -> Result<u8, CompareError> {
    let comparison = compare(args)?;
    for warning in &comparison.warnings {
        eprintln!("duet-bench: warning: {warning}");
    }
    let colour = std::io::stdout().is_terminal();
    let mut rendered = match args.format {
        Format::Text => text::render(&comparison, colour),
        Format::Markdown => markdown::render(&comparison),
        Format::Html => html::render(&comparison),
        Format::Junit => junit::render(&comparison),
        Format::Json => serde_json::to_string_pretty(&comparison)?,
    };
    if !rendered.ends_with('\n') {
        rendered.push('\n');
    }
    let mut out = std::io::stdout().lock();
    match out
        .write_all(rendered.as_bytes())
        .and_then(|()| out.flush())
    {
        // A reader who has gone away has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(comparison.exit_code())
}

/// Reads and compares.
pub fn compare(args: &CompareArgs) -> Result<Comparison, CompareError> {
    let thresholds = match &args.thresholds {
        Some(path) => Thresholds::read(path, args.threshold)?,
        None => Thresholds::all(args.threshold),
    };
    let mut runs = Vec::new();
    for path in &args.files {
        let mut results = results::read(path)?;
        if let Some(why) = mismatched_cores(&results) {
            return Err(CompareError::Cores {
                path: path.clone(),
                why,
            });
        }
        // What this version makes of it, whichever version wrote it.
        analyse(&mut results);
        runs.push((path.clone(), results));
    }
    let comparison = changes::of(&runs, &thresholds, args);
    for (index, (path, _)) in runs.iter().enumerate().skip(1) {
        if !comparison.changes.iter().any(|change| change.file == index) {
            return Err(CompareError::NothingInCommon {
                old: runs[0].0.clone(),
                new: path.clone(),
            });
        }
    }
    Ok(comparison)
}

impl Comparison {
    /// 0 fine, 1 regression, 2 a file is void.
    pub fn exit_code(&self) -> u8 {
        if self.files.iter().any(|file| file.state == State::Void) {
            VOID
        } else if !self.missing.is_empty() || self.changes.iter().any(|change| change.regression) {
            REGRESSION
        } else {
            FINE
        }
    }
}

/// What a reader calls a run: the shortest tail of its path that tells it from the others.
fn names(runs: &[(PathBuf, Results)]) -> Vec<String> {
    let tails = |depth: usize| -> Vec<String> {
        runs.iter()
            .map(|(path, _)| {
                let parts: Vec<String> = path
                    .components()
                    .map(|part| part.as_os_str().to_string_lossy().into_owned())
                    .filter(|part| part != "results.json")
                    .collect();
                parts[parts.len().saturating_sub(depth)..].join("/")
            })
            .collect()
    };
    (1..5)
        .map(tails)
        .find(|names| {
            let mut unique = names.clone();
            unique.sort();
            unique.dedup();
            unique.len() == names.len()
        })
        .unwrap_or_else(|| {
            runs.iter()
                .enumerate()
                .map(|(i, _)| format!("#{}", i + 1))
                .collect()
        })
}
