//! Whether these binaries may be compared at all.
//!
//! The claim of every report is that placement alone differs. So both proxies
//! have to print the same core fingerprint, and nothing that takes part may have
//! been built without optimisation.

use crate::arm::Arm;
use crate::attend::protocol::Hello;
use crate::cluster::ClusterError;
use crate::cluster::kube::preflight::Programs;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a binary says of itself: `duet-x 0.1.0 core=<fingerprint> opt=<level>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// "0.1.0".
    pub version: String,
    /// Hash of core's sources, dependencies, features and compiler.
    pub core: String,
    /// rustc's opt-level.
    pub opt_level: String,
}

/// The binaries of a run.
#[derive(Clone, Debug, Default)]
pub struct Binaries {
    /// What each says of itself, by name.
    pub builds: BTreeMap<String, Build>,
    /// SHA-256 of each, by name.
    pub digests: BTreeMap<String, String>,
}

/// Why a run cannot start with these binaries.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A binary is missing or will not start.
    #[error("{path}: {problem}; build everything with `make build`", path = path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A binary was not found.
    #[error(transparent)]
    Missing(#[from] ClusterError),
    /// The proxies are not the same proxy.
    #[error(
        "{a} has core {a_core}, {b} has core {b_core}: the arms would differ in more than placement; \
         build all with one `make build`"
    )]
    Fingerprints {
        /// One binary,
        a: String,
        /// and its core;
        a_core: String,
        /// the other,
        b: String,
        /// and its.
        b_core: String,
    },
    /// A cluster's programs are not of one make.
    #[error(
        "{a} has core {a_core}, {b} has core {b_core}: the arms would differ in more than placement; \
         make all images with one `deploy/images/build` and put them where the nodes find them"
    )]
    Images {
        /// One program,
        a: String,
        /// and its core;
        a_core: String,
        /// the other,
        b: String,
        /// and its.
        b_core: String,
    },
    /// The image is not of this program's version.
    #[error(
        "image {image} is duet-bench {theirs}, this is {ours}: name one of the same version with --image"
    )]
    ImageVersion {
        /// Which.
        image: String,
        /// What it says.
        theirs: String,
        /// What this is.
        ours: &'static str,
    },
    /// Built without optimisation.
    #[error(
        "{what} was built without optimisation, so its timings mean nothing; build with \
         `make build`, or pass --allow-debug for a run that claims nothing"
    )]
    Debug {
        /// Which.
        what: String,
    },
}

impl Build {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let _name = fields.next()?;
        let version = fields.next()?.to_owned();
        let rest: Vec<&str> = fields.collect();
        let field = |key: &str| {
            rest.iter()
                .find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
                .map(str::to_owned)
        };
        Some(Self {
            version,
            core: field("core")?,
            opt_level: field("opt")?,
        })
    }

    /// Whether it was built with optimisation.
    pub fn optimised(&self) -> bool {
        self.opt_level != "0"
    }
}

impl Binaries {
    /// Asks each binary that these arms need; `find` says where they are.
    pub fn inspect(
        find: impl Fn(&str) -> Result<PathBuf, ClusterError>,
        arms: &[Arm],
    ) -> Result<Self, Refusal> {
        let mut names: Vec<&str> = arms.iter().filter_map(|arm| arm.program()).collect();
        if !names.is_empty() {
            names.push("duet-control");
        }
        names.sort_unstable();
        names.dedup();
        let mut found = Self::default();
        for name in names {
            let path = find(name)?;
            let unusable = |problem: String| Refusal::Unusable {
                path: path.clone(),
                problem,
            };
            let output = Command::new(&path)
                .arg("--version")
                .output()
                .map_err(|error| unusable(error.to_string()))?;
            let said = String::from_utf8_lossy(&output.stdout);
            let build = Build::parse(&said)
                .ok_or_else(|| unusable(format!("--version says {:?}", said.trim())))?;
            found.builds.insert(name.to_owned(), build);
            found.digests.insert(name.to_owned(), digest(&path)?);
        }
        let own = std::env::current_exe().map_err(|error| Refusal::Unusable {
            path: PathBuf::from("duet-bench"),
            problem: error.to_string(),
        })?;
        found.digests.insert("duet-bench".to_owned(), digest(&own)?);
        Ok(found)
    }

    /// Refuses what cannot be compared. With `allow_debug`, missing optimisation
    /// is returned as a note instead.
    pub fn check(&self, arms: &[Arm], allow_debug: bool) -> Result<Vec<String>, Refusal> {
        let proxies: Vec<(&str, &Build)> = arms
            .iter()
            .filter_map(|arm| arm.program())
            .filter_map(|name| Some((name, self.builds.get(name)?)))
            .collect();
        if let Some((a, first)) = proxies.first()
            && let Some((b, second)) = proxies.iter().find(|(_, build)| build.core != first.core)
        {
            return Err(Refusal::Fingerprints {
                a: (*a).to_owned(),
                a_core: first.core.clone(),
                b: (*b).to_owned(),
                b_core: second.core.clone(),
            });
        }
        let own = (duet_core::OPT_LEVEL == "0").then_some("duet-bench");
        self.optimised(own, allow_debug)
    }

    /// What the programs of a cluster say of themselves, and the generator's image.
    pub fn of_cluster(programs: &Programs, bench: &Hello) -> Result<Self, Refusal> {
        let mut found = Self {
            builds: BTreeMap::new(),
            digests: programs.digests.clone(),
        };
        for (name, line) in &programs.lines {
            let build = Build::parse(line).ok_or_else(|| Refusal::Unusable {
                path: PathBuf::from(name),
                problem: format!("--version says {line:?}"),
            })?;
            found.builds.insert(name.clone(), build);
        }
        let generator = Build {
            version: bench.version.clone(),
            core: bench.core.clone(),
            opt_level: bench.opt_level.clone(),
        };
        found.builds.insert("duet-bench".to_owned(), generator);
        found
            .digests
            .insert("duet-bench".to_owned(), bench.digest.clone());
        Ok(found)
    }

    /// The same for a cluster: everything in it has to be of one make. With
    /// `allow_debug`, what is no proxy may be of another, and a note says so.
    pub fn check_cluster(&self, allow_debug: bool) -> Result<Vec<String>, Refusal> {
        let is_proxy =
            |name: &str| name.starts_with("duet-agent") || name.starts_with("duet-sidecar");
        let mut proxies_first: Vec<(&String, &Build)> = self.builds.iter().collect();
        proxies_first.sort_by_key(|(name, _)| !is_proxy(name));
        let mut builds = proxies_first.into_iter();
        let mut notes = Vec::new();
        if let Some((a, first)) = builds.next() {
            for (b, second) in builds.filter(|(_, build)| build.core != first.core) {
                if is_proxy(b) || !allow_debug {
                    return Err(Refusal::Images {
                        a: a.clone(),
                        a_core: first.core.clone(),
                        b: b.clone(),
                        b_core: second.core.clone(),
                    });
                }
                notes.push(format!(
                    "{b} has core {}, the proxies have {}: nothing may be claimed",
                    second.core, first.core
                ));
            }
        }
        notes.extend(self.optimised(None, allow_debug)?);
        Ok(notes)
    }

    fn optimised(&self, also: Option<&str>, allow_debug: bool) -> Result<Vec<String>, Refusal> {
        let mut slow: Vec<&str> = self
            .builds
            .iter()
            .filter(|(_, build)| !build.optimised())
            .map(|(name, _)| name.as_str())
            .collect();
        slow.extend(also);
        match slow.first() {
            None => Ok(Vec::new()),
            Some(_) if allow_debug => Ok(vec![format!(
                "built without optimisation, nothing may be claimed: {}",
                slow.join(", ")
            )]),
            Some(first) => Err(Refusal::Debug {
                what: (*first).to_owned(),
            }),
        }
    }

    /// What the proxy of an arm says of itself.
    pub fn proxy(&self, arm: Arm) -> Option<&Build> {
        self.builds.get(arm.program()?)
    }
}

fn digest(path: &Path) -> Result<String, Refusal> {
    let unusable = |error: std::io::Error| Refusal::Unusable {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let mut file = std::fs::File::open(path).map_err(unusable)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(unusable)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(core: &str, opt: &str) -> Build {
        Build::parse(&format!("duet-x 0.1.0 core={core} opt={opt}\n")).expect("a version line")
    }

    fn binaries(sidecar: Build, agent: Build) -> Binaries {
        Binaries {
            builds: BTreeMap::from([
                ("duet-sidecar".to_owned(), sidecar),
                ("duet-agent".to_owned(), agent),
            ]),
            digests: BTreeMap::new(),
        }
    }

    #[test]
    fn different_cores_are_refused_whatever_is_allowed() {
        let error = binaries(build("aa", "3"), build("bb", "3"))
            .check(&Arm::ALL, true)
            .unwrap_err();
        assert!(matches!(error, Refusal::Fingerprints { .. }));
        assert!(!error.to_string().contains('\n'));
    }

    #[test]
    fn missing_optimisation_is_refused_unless_allowed() {
        let slow = binaries(build("aa", "0"), build("aa", "3"));
        assert!(matches!(
            slow.check(&Arm::ALL, false),
            Err(Refusal::Debug { .. })
        ));
        assert_eq!(slow.check(&Arm::ALL, true).unwrap().len(), 1);
    }

    #[test]
    fn a_cluster_is_of_one_make() {
        let bench = |core: &str| Hello {
            version: "0.1.0".to_owned(),
            core: core.to_owned(),
            opt_level: "3".to_owned(),
            boot: String::new(),
            kernel: String::new(),
            cpu: String::new(),
            cores: 1,
            memory_mib: 1,
            cgroups: None,
            congestion_control: String::new(),
            digest: "0ab".to_owned(),
        };
        let mut programs = Programs::default();
        for name in ["duet-agent", "duet-control"] {
            let line = format!("{name} 0.1.0 core=aa opt=3");
            programs.lines.insert(name.to_owned(), line);
        }
        let same = Binaries::of_cluster(&programs, &bench("aa")).expect("builds");
        assert_eq!(same.check_cluster(false).unwrap(), Vec::<String>::new());
        assert_eq!(same.digests["duet-bench"], "0ab");
        let other = Binaries::of_cluster(&programs, &bench("bb")).expect("builds");
        let error = other.check_cluster(false).unwrap_err();
        assert!(matches!(error, Refusal::Images { .. }), "{error}");
        assert_eq!(other.check_cluster(true).unwrap().len(), 1);
        let sidecar = "duet-sidecar 0.1.0 core=cc opt=3";
        programs
            .lines
            .insert("duet-sidecar".to_owned(), sidecar.to_owned());
        let mixed = Binaries::of_cluster(&programs, &bench("aa")).expect("builds");
        assert!(mixed.check_cluster(true).is_err(), "proxies differ");
        programs
            .lines
            .insert("duet-sidecar".to_owned(), "no".to_owned());
        assert!(Binaries::of_cluster(&programs, &bench("aa")).is_err());
    }

    #[test]
    fn only_the_arms_of_the_run_matter() {
        let mixed = binaries(build("aa", "3"), build("bb", "3"));
        assert!(mixed.check(&[Arm::None, Arm::Sidecar], true).is_ok());
    }

    #[test]
    fn a_version_line_without_a_core_is_not_one() {
        assert_eq!(Build::parse("duet-x 0.1.0"), None);
        assert_eq!(Build::parse(""), None);
    }
}
