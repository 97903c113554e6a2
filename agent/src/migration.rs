//! What an agent of another layout has pinned, taken over without a moment in which
//! connections are not redirected.
//!
//! Its record of enrolled namespaces is copied first, then its links are moved here, and
//! only then get this agent's programs, each in one step. In between, connections meet the
//! other's programs, whose listeners nobody has any more, and are refused.

use crate::bpffs::{Layout, VERSION};
use crate::cleanup;
use crate::maps::{Maps, MapsError};
use crate::sys::Plain;
use aya::maps::{HashMap, Map, MapData};
use duet_ebpf::{Enrolled, NetnsCookie, names};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error(
        "{} is of a version of duet-agent that this one cannot take over ({error}): run \
         duet-agent cleanup first",
        path.display()
    )]
    Unknown { path: PathBuf, error: MapsError },
    #[error("cannot move {} to this version's: {error}", path.display())]
    Move { path: PathBuf, error: io::Error },
}

/// Takes over what other versions have left. `maps` are new, or this version's own.
pub fn take_over(layout: &Layout, maps: &Maps) -> Result<(), MigrationError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| MigrationError::Move { path, error }
    };
    let base = layout.base();
    for version in cleanup::versions(base).map_err(at(base))? {
        if version.ends_with(VERSION) {
            continue;
        }
        let copied = copy(&version, maps).map_err(|error| MigrationError::Unknown {
            path: version.clone(),
            error,
        })?;
        for (from, to) in [("links", layout.links()), ("pods", layout.pods())] {
            let from = version.join(from);
            for pin in fs::read_dir(&from).map_err(at(&from))?.flatten() {
                let to = to.join(pin.file_name());
                if !to.exists() {
                    fs::rename(pin.path(), to).map_err(at(&pin.path()))?;
                }
            }
        }
        cleanup::remove_version(&version, &mut Vec::new()).map_err(|error| {
            let path = version.clone();
            let error = io::Error::other(error);
            MigrationError::Move { path, error }
        })?;
        let version = version.display();
        tracing::info!(%version, workloads = copied, "taken over from another layout");
    }
    Ok(())
}

/// The record, as far as it is understood: entries of another size are not.
fn copy(version: &Path, maps: &Maps) -> Result<usize, MapsError> {
    let pin = version.join("maps").join(names::ENROLLED);
    let map = Map::from_map_data(MapData::from_pin(pin).map_err(io::Error::other)?)?;
    let enrolled: HashMap<MapData, NetnsCookie, Plain<Enrolled>> = map.try_into()?;
    let mut copied = 0;
    for entry in enrolled.iter() {
        let (netns, record) = entry?;
        if !maps.is_enrolled(netns) {
            maps.enrol(netns, record.0)?;
        }
        copied += 1;
    }
    Ok(copied)
}
