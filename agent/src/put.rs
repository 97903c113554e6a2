//! A file put where others read it: whole or not at all, on the disk before it is there,
//! and with the owner of the one that it replaces.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file half written that is older was left behind by an agent that died.
const ABANDONED: Duration = Duration::from_secs(60);

/// What a file half written ends in.
const UNFINISHED: &str = ".duet-new";

/// By which a file is known again that nobody has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    changed: (i64, i64),
    length: u64,
    mode: u32,
    owner: (u32, u32),
}

impl Stamp {
    /// None where there is no file.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(found) => Ok(Some(Self {
                file: (found.dev(), found.ino()),
                changed: (found.mtime(), found.mtime_nsec()),
                length: found.len(),
                mode: found.mode() & 0o7777,
                owner: (found.uid(), found.gid()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn mode(&self) -> u32 {
        self.mode
    }
}

/// Puts what `write` writes at `place`, where `seen` was found before. Behind a symbolic
/// link it is put where that leads.
///
/// # Errors
/// Also when the file has changed since it was seen, or another agent is writing it just
/// now: look again.
pub fn put(
    place: &Path,
    seen: Option<Stamp>,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let place = match fs::canonicalize(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => place.to_owned(),
        found => found?,
    };
    let beside = beside(&place);
    let mut file = create(&beside)?;
    let finish = || {
        write(&mut file)?;
        if let Some(Stamp { owner, .. }) = seen
            && owner != owner_of(&file)?
        {
            fchown(&file, Some(owner.0), Some(owner.1))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        if Stamp::of(&place)? != seen {
            return Err(io::Error::other(
                "it was written by somebody else meanwhile",
            ));
        }
        fs::rename(&beside, &place)
    };
    finish().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })?;
    sync_directory(&place)
}

/// The names in a file's directory are on the disk.
pub fn sync_directory(of: &Path) -> io::Result<()> {
    let directory = of.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

/// A name that no runtime reads, and the same for every agent: two do not write at once.
fn beside(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}{UNFINISHED}"))
}

/// Whether a name is of a file that is being written by [`put`].
pub fn is_unfinished(name: &[u8]) -> bool {
    name.ends_with(UNFINISHED.as_bytes())
}

/// For nobody else to read until it has its mode.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let written = fs::symlink_metadata(path)?.modified()?;
            if written.elapsed().is_ok_and(|age| age < ABANDONED) {
                return Err(io::Error::other("another agent is writing it"));
            }
            fs::remove_file(path)?;
            options.open(path)
        }
        opened => opened,
    }
}

fn owner_of(file: &File) -> io::Result<(u32, u32)> {
    let metadata = file.metadata()?;
    Ok((metadata.uid(), metadata.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::SystemTime;

    /// A directory of the test's own.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("duet-put-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap().flatten();
            let mut names: Vec<_> = entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn say(text: &str) -> impl FnOnce(&mut File) -> io::Result<()> {
        move |file| file.write_all(text.as_bytes())
    }

    #[test]
    fn a_link_stays_one_and_what_it_leads_to_is_replaced() {
        let place = Place::new("keeps");
        let real = place.0.join("real.conflist");
        let link = place.0.join("10.conflist");
        put(&real, None, 0o644, say("one")).unwrap();
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o644);
        std::os::unix::fs::symlink(&real, &link).unwrap();
        put(&link, Stamp::of(&link).unwrap(), 0o600, say("two")).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "two");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(place.names(), ["10.conflist", "real.conflist"]);
    }

    #[test]
    fn what_another_has_written_meanwhile_is_not_lost() {
        let place = Place::new("meanwhile");
        let path = place.0.join("10.conflist");
        put(&path, None, 0o644, say("one")).unwrap();
        let seen = Stamp::of(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        put(&path, seen, 0o644, say("two")).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        assert_eq!(place.names(), ["10.conflist"]);
    }

    #[test]
    fn one_writes_at_a_time_and_what_is_abandoned_is_replaced() {
        let place = Place::new("abandoned");
        let path = place.0.join("duet-cni");
        let half = File::create(beside(&path)).unwrap();
        let error = put(&path, None, 0o755, say("whole")).unwrap_err();
        assert!(error.to_string().contains("another agent"), "{error}");
        half.set_modified(SystemTime::now() - 2 * ABANDONED)
            .unwrap();
        put(&path, None, 0o755, say("whole")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(place.names(), ["duet-cni"]);
    }
}
