//! Reports derived from `results.json`: a page, a summary for a pull request, a table for the
//! terminal. Each says first, in words, what may be concluded, and only then shows numbers.

mod costs;
mod figures;
mod html;
mod markdown;
mod rows;
mod svg;
mod terminal;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use crate::analysis::analyse;
use crate::export;
use crate::results::{self, FileError, Results};

pub use figures::Series;
pub(crate) use html::STYLE;
pub use html::{page as html, trend};
pub use markdown::summary as markdown;
pub use terminal::{banner, verdict_table};

/// Names of the files that are made from `results.json`.
pub const DERIVED: [&str; 5] = [
    "report.html",
    "summary.md",
    export::BESIDE[0].1,
    export::BESIDE[1].1,
    export::BESIDE[2].1,
];

/// Files a report consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub json: PathBuf,
    pub html: PathBuf,
    pub summary: PathBuf,
}

/// A report that could not be written; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Analyses the results and writes them with everything that is made from them ([`DERIVED`]) into
/// `dir`, which is made if need be.
pub fn write(results: &mut Results, dir: &Path) -> Result<Written, ReportError> {
    analyse(results);
    fs::create_dir_all(dir).map_err(|source| ReportError::Write {
        path: dir.into(),
        source,
    })?;
    let written = Written {
        json: dir.join("results.json"),
        html: dir.join("report.html"),
        summary: dir.join("summary.md"),
    };
    results::write(results, &written.json)?;
    derive(results, &written, dir)?;
    Ok(written)
}

/// Renders old results anew, beside themselves: `path` is a results file or its directory. The
/// analysis is repeated, so that a report says what this version would say; the results file
/// itself stays as it is.
pub fn rerender(path: &Path) -> Result<(Results, Written), ReportError> {
    let mut results = results::read(path)?;
    analyse(&mut results);
    let json = results::file_of(path);
    let dir = json.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new(".")).to_path_buf();
    let written = Written {
        html: dir.join("report.html"),
        summary: dir.join("summary.md"),
        json,
    };
    derive(&results, &written, &dir)?;
    Ok((results, written))
}

/// Writes what is made from the results beside them.
fn derive(results: &Results, written: &Written, dir: &Path) -> Result<(), ReportError> {
    put(&written.html, &html(results))?;
    put(&written.summary, &markdown(results))?;
    for (format, name) in export::BESIDE {
        put(&dir.join(name), &export::text(format, results))?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), ReportError> {
    fs::write(path, text).map_err(|source| ReportError::Write {
        path: path.into(),
        source,
    })
}
