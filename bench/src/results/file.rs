//! Reading and writing `results.json`, and its schema.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{Results, SCHEMA};

/// A published run is compressed: what `gzip` begins with, and what is taken of it at most.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const THIS: &str = env!("CARGO_PKG_VERSION");
const MOST_UNPACKED: u64 = 2 << 30;

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
    #[error(
        "{path}: schema is {found:?}, and this version reads {SCHEMA:?}; duet-bench {version} wrote and reads it"
    )]
    Schema {
        path: PathBuf,
        found: String,
        version: String,
    },
    #[error(
        "{path}: not a results file of this version ({THIS}): {source}; duet-bench {version} wrote and reads it"
    )]
    Version {
        path: PathBuf,
        version: String,
        source: serde_json::Error,
    },
}

/// The results file that a path means: `results.json` of a directory, or as it was published,
/// `results.json.gz`.
pub fn file_of(path: &Path) -> PathBuf {
    let plain = path.join("results.json");
    let packed = path.join("results.json.gz");
    match path.is_dir() {
        true if !plain.is_file() && packed.is_file() => packed,
        true => plain,
        false => path.to_path_buf(),
    }
}

/// Reads a results file, or that of a directory.
pub fn read(path: &Path) -> Result<Results, FileError> {
    let file = file_of(path);
    if path.is_dir() && !file.is_file() {
        return Err(FileError::NoResults { path: path.into() });
    }
    let bytes = unpacked(&file).map_err(|source| FileError::Io {
        path: file.clone(),
        source,
    })?;
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|source| FileError::Parse {
            path: file.clone(),
            source,
        })?;
    // Before the types, so that a file of another version is named as such.
    let said = |field: &str| {
        value
            .get(field)
            .and_then(|said| said.as_str())
            .map(String::from)
    };
    let (schema, version) = (said("schema"), said("version"));
    if let Some(found) = schema
        && found != SCHEMA
    {
        return Err(FileError::Schema {
            path: file,
            found,
            version: version.unwrap_or_else(|| "?".into()),
        });
    }
    serde_json::from_value(value).map_err(|source| match version {
        Some(version) => FileError::Version {
            path: file,
            version,
            source,
        },
        None => FileError::Parse { path: file, source },
    })
}

fn unpacked(file: &Path) -> std::io::Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let mut text = Vec::new();
    let mut decoder = GzDecoder::new(bytes.as_slice()).take(MOST_UNPACKED + 1);
    if decoder.read_to_end(&mut text)? as u64 > MOST_UNPACKED {
        return Err(std::io::Error::other(format!(
            "larger than {MOST_UNPACKED} bytes once unpacked"
        )));
    }
    Ok(text)
}

/// Writes `results.json` so that a reader sees the old file or the new one, never half of it.
pub fn write(results: &Results, path: &Path) -> Result<(), FileError> {
    let io = |source| FileError::Io {
        path: path.into(),
        source,
    };
    let partial = path.with_extension("json.partial");
    fs::write(&partial, text(results)).map_err(io)?;
    fs::rename(&partial, path).map_err(io)
}

/// As it stands in a file.
pub fn text(results: &Results) -> String {
    let mut text = serde_json::to_string_pretty(results).expect("results are JSON");
    text.push('\n');
    text
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
