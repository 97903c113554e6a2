//! The plugin in the runtime's directories: put there, kept there, taken out.
//!
//! The runtime uses the first configuration by name, so that is the one to be chained
//! into, whoever's it is. Its owner may write it anew at any time: it is looked at when
//! the kernel tells of that ([`crate::watch`]) and every [`LOOK`], and completed again
//! ([`crate::put`] says how).
//!
//! It is never chained into a network of a version that it does not speak: the runtime
//! gives all plugins of a chain the one version, and none of its pods would start.
//!
//! A single plugin's `NAME.conf` becomes a list, `NAME.conflist`, beside it, and is then
//! put away as `NAME.conf.duet`, for `duet-agent cleanup` to bring back.

use super::NAME;
use super::plugin::SPOKEN;
use crate::put::{Stamp, put, sync_directory};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the directories that nobody asked for.
pub const LOOK: Duration = Duration::from_secs(1);

/// The plugin's mode.
const RUNNABLE: u32 = 0o755;

/// What a single configuration that was put away ends in.
const PUT_AWAY: &str = "duet";

/// Where the plugin goes, and what it is told.
#[derive(Clone, Debug)]
pub struct Install {
    pub configurations: PathBuf,
    pub programs: PathBuf,
    /// The agent's socket, as the runtime sees it.
    pub socket: PathBuf,
    pub on_failure: String,
    pub exclude: Vec<String>,
    /// The plugin as it was when its bytes were found to be this very program's: images
    /// may be built with one and the same time for all files.
    pub known: Arc<Mutex<Option<Stamp>>>,
}

/// How it stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Installed {
    /// Nothing was amiss.
    Already,
    Now,
    /// There is no configuration to be chained into yet.
    NoNetwork,
}

// === impl Install ===

impl Install {
    /// Completes what is missing.
    pub fn look(&self) -> io::Result<Installed> {
        let program = self.program()?;
        let configuration = self.configuration()?;
        Ok(match configuration {
            Installed::Already if program => Installed::Now,
            other => other,
        })
    }

    /// This very program. True if it was not there.
    fn program(&self) -> io::Result<bool> {
        let place = self.programs.join(NAME);
        let with_path = |error| at(&place, error);
        let found = Stamp::of(&place).map_err(with_path)?;
        let mut known = self.known.lock();
        if found.is_some() && found == *known {
            return Ok(false);
        }
        let is_same = found.is_some() && is_own_program(&place).map_err(with_path)?;
        if !is_same {
            let copy =
                |file: &mut File| io::copy(&mut File::open("/proc/self/exe")?, file).map(drop);
            put(&place, found, RUNNABLE, copy).map_err(with_path)?;
        }
        *known = Stamp::of(&place).map_err(with_path)?;
        Ok(!is_same)
    }

    fn configuration(&self) -> io::Result<Installed> {
        let Some(path) = active(&self.configurations)? else {
            return Ok(Installed::NoNetwork);
        };
        let seen = Stamp::of(&path).map_err(|error| at(&path, error))?;
        let mut network = read(&path)?;
        if let Err(why) = check_version(&network) {
            take_out(&path)?;
            return Err(at(&path, io::Error::other(why)));
        }
        let is_single = network.get("plugins").is_none();
        if is_single {
            network = json!({
                "cniVersion": network["cniVersion"],
                "name": network["name"],
                "plugins": [network],
            });
        }
        let plugins = plugins(&mut network, &path)?;
        let wanted = self.entry();
        if plugins.last() == Some(&wanted) && plugins.iter().filter(is_ours).count() == 1 {
            return Ok(Installed::Already);
        }
        plugins.retain(|plugin| !is_ours(&plugin));
        plugins.push(wanted);
        if is_single {
            let list = path.with_extension("conflist");
            let there = Stamp::of(&list).map_err(|error| at(&list, error))?;
            replace(&list, there, seen, &network)?;
            fs::rename(&path, put_away(&path))?;
            sync_directory(&path)?;
        } else {
            replace(&path, seen, seen, &network)?;
        }
        Ok(Installed::Now)
    }

    fn entry(&self) -> Value {
        json!({
            "type": NAME,
            "socket": self.socket,
            "onFailure": self.on_failure,
            "exclude": self.exclude,
            "capabilities": { "io.kubernetes.cri.pod-annotations": true },
        })
    }
}

/// Takes the plugin out of every configuration, then out of `programs`. Says each thing
/// it removed.
pub fn uninstall(configurations: &Path, programs: &Path) -> io::Result<Vec<String>> {
    let mut removed = unchain(configurations)?;
    let program = programs.join(NAME);
    match fs::remove_file(&program) {
        Ok(()) => removed.push(format!("plugin {}", program.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(&program, error)),
    }
    Ok(removed)
}

/// Takes the plugin out of every configuration. The program stays, for runtimes that end
/// pods with the chain they began with.
pub fn unchain(configurations: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for path in candidates(configurations)? {
        if take_out(&path)? {
            removed.push(format!("{NAME} from {}", path.display()));
        }
    }
    Ok(removed)
}

/// Takes the plugin out of one configuration. False if it was not in it.
fn take_out(path: &Path) -> io::Result<bool> {
    let seen = Stamp::of(path).map_err(|error| at(path, error))?;
    let Ok(mut network) = read(path) else {
        return Ok(false);
    };
    let Ok(plugins) = plugins(&mut network, path) else {
        return Ok(false);
    };
    if !plugins.iter().any(|plugin| is_ours(&plugin)) {
        return Ok(false);
    }
    let single = path.with_extension("conf");
    if put_away(&single).exists() {
        fs::rename(put_away(&single), &single)?;
        fs::remove_file(path)?;
    } else {
        plugins.retain(|plugin| !is_ours(&plugin));
        replace(path, seen, seen, &network)?;
    }
    Ok(true)
}

/// Whether the runtime will speak a version to the network's plugins that this one
/// knows. Of several, the runtime chooses.
fn check_version(network: &Value) -> Result<(), String> {
    let others = network.get("cniVersions").and_then(Value::as_array);
    let others = others.into_iter().flatten();
    let mut versions = std::iter::once(&network["cniVersion"]).chain(others);
    let is_spoken = |version: &&Value| version.as_str().is_some_and(|it| SPOKEN.contains(&it));
    let Some(unknown) = versions.find(|version| !is_spoken(version)) else {
        return Ok(());
    };
    let it_is = match unknown {
        Value::Null => "it has no cniVersion".to_owned(),
        version => format!("its cniVersion is {version}"),
    };
    let spoken = SPOKEN.join(", ");
    Err(format!(
        "{it_is}, and {NAME} speaks {spoken}: it is left as it is, for none of its pods would start"
    ))
}

fn is_ours(plugin: &&Value) -> bool {
    plugin["type"] == NAME
}

fn plugins<'a>(network: &'a mut Value, path: &Path) -> io::Result<&'a mut Vec<Value>> {
    let plugins = network.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or_else(|| at(path, io::Error::other("it has no list of plugins")))
}

/// What the runtime would use, by libcni's rules.
fn active(directory: &Path) -> io::Result<Option<PathBuf>> {
    Ok(candidates(directory)?.into_iter().next())
}

fn candidates(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(directory, error)),
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> io::Result<Value> {
    let text = fs::read(path).map_err(|error| at(path, error))?;
    serde_json::from_slice(&text).map_err(|error| at(path, error.into()))
}

/// `like` is what a new file takes its mode from: it has the same secrets, if any.
fn replace(
    path: &Path,
    seen: Option<Stamp>,
    like: Option<Stamp>,
    network: &Value,
) -> io::Result<()> {
    let mode = seen.or(like).map_or(0o600, |like| like.mode());
    let write = |file: &mut File| file.write_all(&serde_json::to_vec_pretty(network)?);
    put(path, seen, mode, write).map_err(|error| at(path, error))
}

/// Whether the file has this program's bytes, and may be run.
fn is_own_program(path: &Path) -> io::Result<bool> {
    let (own, found) = (File::open("/proc/self/exe")?, File::open(path)?);
    let is_runnable = Stamp::of(path)?.is_some_and(|stamp| stamp.mode() == RUNNABLE);
    if !is_runnable || own.metadata()?.len() != found.metadata()?.len() {
        return Ok(false);
    }
    let (mut own, mut found) = (BufReader::new(own), BufReader::new(found));
    let (mut here, mut there) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = own.read(&mut here)?;
        if length == 0 {
            return Ok(true);
        }
        found.read_exact(&mut there[..length])?;
        if here[..length] != there[..length] {
            return Ok(false);
        }
    }
}

fn put_away(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{PUT_AWAY}"))
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
