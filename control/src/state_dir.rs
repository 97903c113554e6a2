//! What has to outlive a restart: the mesh root's key, the trust bundle, the key
//! that tokens are signed with.
//!
//! | file        | mode | what |
//! |-------------|------|------|
//! | `ca.key`    | 0600 | the root's private key and certificate, PEM; one file, so that the two cannot part |
//! | `root.pem`  | 0644 | the trust bundle that proxies read; may hold further roots beside this one |
//! | `token.key` | 0600 | 32 random bytes, base64 |
//!
//! A file appears whole or not at all (written aside, then linked), so two
//! processes that start at once agree on one root. Nothing that exists is ever
//! written over: a proxy that trusts the old root would be cut off for good, so a
//! damaged directory is for its owner to judge, and the error says how.

use crate::auth::TokenKey;
use crate::ca::{Authority, NewRoot};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Private key and certificate of the mesh root.
pub const CA_KEY_FILE: &str = "ca.key";
/// The public trust bundle.
pub const ROOT_FILE: &str = "root.pem";
/// What bearer tokens are signed with.
pub const TOKEN_KEY_FILE: &str = "token.key";

/// The directory is open, so that proxies of any user may read `root.pem`.
const DIR_MODE: u32 = 0o755;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
/// A bigger file is none of ours.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The directory given by `--state-dir`.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// One line: which file, what is wrong with it, how to put it right.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct StateDirError {
    path: PathBuf,
    problem: String,
}

// === impl StateDir ===

impl StateDir {
    /// Creates the directory if it is not there yet.
    ///
    /// # Errors
    /// When it can be neither used nor made.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateDirError> {
        let path = path.into();
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&path)
            .map_err(|error| StateDirError {
                problem: format!(
                    "cannot be made ({error}): --state-dir takes a writable directory"
                ),
                path: path.clone(),
            })?;
        Ok(Self { path })
    }

    /// The mesh root, made at the first call and the same ever after.
    ///
    /// # Errors
    /// When a part of it is missing, damaged, readable by others, or out of date.
    pub fn authority(&self) -> Result<Authority, StateDirError> {
        let key_path = self.file(CA_KEY_FILE);
        let root_path = self.file(ROOT_FILE);
        let start_anew = format!(
            "restore it from a backup, or remove {CA_KEY_FILE} and {ROOT_FILE} to begin a new mesh \
             root (every proxy then needs the new {ROOT_FILE})"
        );
        // Looked at before the key, because it is written after it: so another
        // process in the middle of making both is not taken for damage.
        let has_root = root_path.exists();
        let pem = match self.secret(CA_KEY_FILE)? {
            Some(pem) => pem,
            None if has_root => {
                return Err(StateDirError {
                    problem: format!("is missing, and {ROOT_FILE} depends on it: {start_anew}"),
                    path: key_path,
                });
            }
            None => {
                let new = NewRoot::generate().map_err(|error| StateDirError {
                    problem: format!("no root could be made: {error}"),
                    path: key_path.clone(),
                })?;
                let pem = format!("{}{}", new.key, new.certificate);
                self.create(CA_KEY_FILE, &pem, SECRET_MODE)?;
                self.secret(CA_KEY_FILE)?.unwrap_or(pem)
            }
        };
        let mut authority = Authority::from_pem(&pem).map_err(|error| StateDirError {
            problem: format!("{error}: {start_anew}"),
            path: key_path,
        })?;

        if !root_path.exists() {
            self.create(ROOT_FILE, &authority.root_pem(), PUBLIC_MODE)?;
        }
        let bundle = read(&root_path).map_err(|error| unreadable(&root_path, &error))?;
        authority.trust(&bundle).map_err(|error| StateDirError {
            problem: format!(
                "{error}: remove it, and the next start writes it anew from {CA_KEY_FILE}"
            ),
            path: root_path,
        })?;
        Ok(authority)
    }

    /// The key that tokens are signed with, made at the first call.
    ///
    /// # Errors
    /// When it is damaged or readable by others.
    pub fn token_key(&self) -> Result<TokenKey, StateDirError> {
        let text = match self.secret(TOKEN_KEY_FILE)? {
            Some(text) => text,
            None => {
                let new = TokenKey::generate().encode();
                self.create(TOKEN_KEY_FILE, &new, SECRET_MODE)?;
                self.secret(TOKEN_KEY_FILE)?.unwrap_or(new)
            }
        };
        TokenKey::decode(&text).ok_or_else(|| StateDirError {
            problem: "is damaged: restore it from a backup, or remove it to begin a new one \
                      (every token must then be made again)"
                .to_owned(),
            path: self.file(TOKEN_KEY_FILE),
        })
    }

    /// The trust bundle's path, for `--trust-bundle` of proxies.
    pub fn root_path(&self) -> PathBuf {
        self.file(ROOT_FILE)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// `None` when there is no such file. A secret that others can read is none.
    fn secret(&self, name: &str) -> Result<Option<String>, StateDirError> {
        let path = self.file(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, &error)),
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                return Err(StateDirError {
                    problem: format!(
                        "is a secret and has mode {:04o}: chmod {SECRET_MODE:04o} it, or replace it if \
                         others may have read it",
                        found.permissions().mode() & 0o7777
                    ),
                    path,
                });
            }
            Ok(_) => {}
        }
        read(&path)
            .map(Some)
            .map_err(|error| unreadable(&path, &error))
    }

    /// Leaves what is there alone, even if it came into being just now.
    fn create(&self, name: &str, text: &str, mode: u32) -> Result<(), StateDirError> {
        let path = self.file(name);
        // Not the process id: two containers that share the directory are both 1.
        let aside = self.file(&format!(
            ".{name}.{:016x}.new",
            u64::from_be_bytes(crate::ca::random())
        ));
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&aside)?;
            // The umask may have taken bits away that proxies need.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            match fs::hard_link(&aside, &path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => File::open(&self.path)?.sync_all(),
            }
        })();
        // Best effort: a name beginning with a dot and ending in `.new` harms nobody.
        let _ = fs::remove_file(&aside);
        written.map_err(|error| StateDirError {
            problem: format!("cannot be written ({error}): --state-dir takes a writable directory"),
            path,
        })
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error) -> StateDirError {
    StateDirError {
        path: path.to_owned(),
        problem: format!("cannot be read ({error}): run as its owner, or restore it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn secrets_are_private_and_the_bundle_is_public() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path().join("a/b")).unwrap();
        state.authority().unwrap();
        state.token_key().unwrap();
        assert_eq!(mode(&state.file(CA_KEY_FILE)), 0o600);
        assert_eq!(mode(&state.file(TOKEN_KEY_FILE)), 0o600);
        assert_eq!(mode(&state.root_path()), 0o644);
        let names: Vec<_> = fs::read_dir(&state.path).unwrap().collect();
        assert_eq!(names.len(), 3, "nothing is left aside: {names:?}");
        assert!(
            !fs::read_to_string(state.root_path())
                .unwrap()
                .contains("PRIVATE")
        );
    }

    #[test]
    fn a_second_opening_finds_the_same_root_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let first = state.authority().unwrap().root_pem();
        let key = state.token_key().unwrap().encode();
        assert_eq!(state.authority().unwrap().root_pem(), first);
        assert_eq!(state.token_key().unwrap().encode(), key);
    }

    #[test]
    fn processes_that_start_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let roots: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let state = StateDir::open(dir.path()).unwrap();
                        (
                            state.authority().unwrap().root_pem(),
                            state.token_key().unwrap().encode(),
                        )
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
    }

    #[test]
    fn damage_is_refused_and_nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let good_root = state.authority().unwrap().root_pem();
        let key_path = state.file(CA_KEY_FILE);
        let good_key = fs::read(&key_path).unwrap();

        fs::write(&key_path, &good_key[..good_key.len() / 2]).unwrap();
        let error = state.authority().err().unwrap().to_string();
        assert!(
            error.contains("ca.key") && error.contains("restore it"),
            "{error}"
        );
        assert_eq!(fs::read(&key_path).unwrap(), good_key[..good_key.len() / 2]);

        fs::remove_file(&key_path).unwrap();
        let error = state.authority().err().unwrap().to_string();
        assert!(error.contains("ca.key: is missing"), "{error}");
        assert!(!key_path.exists());
        assert_eq!(fs::read_to_string(state.root_path()).unwrap(), good_root);

        fs::write(&key_path, &good_key).unwrap();
        fs::set_permissions(&key_path, Permissions::from_mode(0o644)).unwrap();
        let error = state.authority().err().unwrap().to_string();
        assert!(
            error.contains("0644") && error.contains("chmod 0600"),
            "{error}"
        );
        fs::set_permissions(&key_path, Permissions::from_mode(0o600)).unwrap();

        let other = tempfile::tempdir().unwrap();
        let other_root = StateDir::open(other.path())
            .unwrap()
            .authority()
            .unwrap()
            .root_pem();
        fs::write(state.root_path(), &other_root).unwrap();
        let error = state.authority().err().unwrap().to_string();
        assert!(
            error.contains("root.pem") && error.contains("remove it"),
            "{error}"
        );

        // Both roots: how one root is rotated into another.
        fs::write(state.root_path(), format!("{other_root}{good_root}")).unwrap();
        assert_eq!(state.authority().unwrap().bundle().len(), 2);

        // A lost bundle is made anew from the key.
        fs::remove_file(state.root_path()).unwrap();
        assert_eq!(state.authority().unwrap().root_pem(), good_root);
    }

    #[test]
    fn a_damaged_token_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.token_key().unwrap();
        fs::write(state.file(TOKEN_KEY_FILE), "short").unwrap();
        let error = state.token_key().err().unwrap().to_string();
        assert!(error.contains("token.key: is damaged"), "{error}");
    }
}
