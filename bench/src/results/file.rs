//! Reading and writing `results.json`, and its schema.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{Results, SCHEMA};

/// A results file that cannot be used; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{path}: no results.json in this directory; give a directory that `duet-bench run --out` wrote"
    )]
    NoResults { path: PathBuf },
    #[error("{path}: not a results file: {source}")]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path}: schema is {found:?}, this version reads {SCHEMA:?}")]
    Schema { path: PathBuf, found: String },
}

/// Names of a results file in a directory, as a run writes it and as it is published.
const NAMES: [&str; 2] = ["results.json", "results.json.gz"];
/// More than any run writes: a small file must not unpack to fill memory.
const LARGEST: u64 = 1 << 30;

/// Reads a results file, or that of a directory; one that ends in `.gz` is unpacked.
pub fn read(path: &Path) -> Result<Results, FileError> {
    let file = if path.is_dir() {
        let inside = NAMES.map(|name| path.join(name));
        let found = inside.into_iter().find(|inside| inside.is_file());
        found.ok_or_else(|| FileError::NoResults { path: path.into() })?
    } else {
        path.to_path_buf()
    };
    let text = text(&file).map_err(|source| FileError::Io {
        path: file.clone(),
        source,
    })?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|source| FileError::Parse {
            path: file.clone(),
            source,
        })?;
    // Before the types, so that a file of another version is named as such.
    let found = value.get("schema").and_then(|schema| schema.as_str());
    if let Some(found) = found
        && found != SCHEMA
    {
        return Err(FileError::Schema {
            path: file,
            found: found.into(),
        });
    }
    serde_json::from_value(value).map_err(|source| FileError::Parse { path: file, source })
}

fn text(file: &Path) -> std::io::Result<String> {
    if file.extension().is_none_or(|extension| extension != "gz") {
        return fs::read_to_string(file);
    }
    let mut text = String::new();
    let packed = fs::File::open(file)?;
    GzDecoder::new(packed)
        .take(LARGEST)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Writes `results.json` so that a reader sees the old file or the new one, never half of it.
pub fn write(results: &Results, path: &Path) -> Result<(), FileError> {
    let io = |source| FileError::Io {
        path: path.into(),
        source,
    };
    let mut text = serde_json::to_string_pretty(results)
        .map_err(|source| io(std::io::Error::other(source)))?;
    text.push('\n');
    let partial = path.with_extension("json.partial");
    fs::write(&partial, text).map_err(io)?;
    fs::rename(&partial, path).map_err(io)
}

/// The JSON Schema of [`Results`].
pub fn schema() -> serde_json::Value {
    let schema = schemars::schema_for!(Results);
    serde_json::to_value(schema).expect("a schema is JSON")
}

/// [`schema`] as it stands in `bench/schema/results.schema.json`.
pub fn schema_text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).expect("a schema is JSON");
    text.push('\n');
    text
}
