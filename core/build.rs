//! Generates the gRPC API and the core's fingerprint.
//!
//! The fingerprint is what makes two binaries "the same core": a hash of the
//! core's sources, the exact versions and checksums of every crate the core
//! resolves to, its features, the optimisation level, the compiler and its flags. Whether a
//! sidecar or an agent is wrapped around it does not enter.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs, process::Command};

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let protos = ["duet.proto", "otlp.proto"];
    for proto in protos {
        println!("cargo:rerun-if-changed=proto/{proto}");
    }
    let descriptors = protox::compile(protos, [here.join("proto")])
        .unwrap_or_else(|error| panic!("proto: {error}"));
    tonic_prost_build::configure()
        .compile_fds(descriptors)
        .expect("generating the gRPC API");

    println!("cargo:rustc-env=CORE_FINGERPRINT={}", fingerprint(&here));
    println!(
        "cargo:rustc-env=CORE_OPT_LEVEL={}",
        env::var("OPT_LEVEL").unwrap_or_default()
    );
}

fn fingerprint(here: &Path) -> String {
    let mut hash = Sha256::new();
    let mut field = |name: &str, value: &[u8]| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((value.len() as u64).to_le_bytes());
        hash.update(value);
    };

    for file in sources(here) {
        println!("cargo:rerun-if-changed={}", file.display());
        let name = file
            .strip_prefix(here)
            .unwrap_or(&file)
            .display()
            .to_string();
        field(
            &name,
            &fs::read(&file).expect("a source file that was just listed"),
        );
    }
    let lock = here.join("../Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock.display());
    for dependency in resolved(&fs::read_to_string(&lock).unwrap_or_default()) {
        field("dependency", dependency.as_bytes());
    }
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("CARGO_FEATURE_")) {
        field("feature", name.as_bytes());
    }
    for name in ["OPT_LEVEL", "DEBUG", "TARGET"] {
        field(name, env::var(name).unwrap_or_default().as_bytes());
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    for flag in flags.split('\x1f') {
        // Of a profile (core/profile), what is in it, which its name says, and not where it is.
        let flag = match flag.strip_prefix("-Cprofile-use=") {
            Some(profile) => profile.rsplit('/').next().unwrap_or_default(),
            None => flag,
        };
        field("flag", flag.as_bytes());
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc)
        .arg("-vV")
        .output()
        .expect("rustc -vV")
        .stdout;
    field("rustc", &version);

    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The core's own files, sorted, so that the order of a directory does not matter.
fn sources(here: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([here.join("Cargo.toml"), here.join("build.rs")]);
    let mut folders = vec![here.join("src"), here.join("proto")];
    while let Some(folder) = folders.pop() {
        println!("cargo:rerun-if-changed={}", folder.display());
        for entry in fs::read_dir(&folder).expect("core's own folders").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    found
}

/// Every package that duet-core reaches in Cargo.lock, as "name version checksum".
fn resolved(lock: &str) -> BTreeSet<String> {
    let mut packages: BTreeMap<String, Vec<(String, String, Vec<String>)>> = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
                .map(|text| text.trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        let dependencies = block
            .split_once("dependencies = [")
            .and_then(|(_, rest)| rest.split_once(']'))
            .map(|(list, _)| {
                list.lines()
                    .map(|line| {
                        line.trim()
                            .trim_end_matches(',')
                            .trim_matches('"')
                            .to_owned()
                    })
                    .filter(|line| !line.is_empty())
                    .collect()
            })
            .unwrap_or_default();
        packages.entry(value("name")).or_default().push((
            value("version"),
            value("checksum"),
            dependencies,
        ));
    }
    let mut seen = BTreeSet::new();
    let mut queue = vec!["duet-core".to_owned()];
    while let Some(wanted) = queue.pop() {
        // "name" or, where two versions are locked, "name version".
        let (name, version) = wanted.split_once(' ').unwrap_or((&wanted, ""));
        for (found, checksum, dependencies) in packages.get(name).into_iter().flatten() {
            if (version.is_empty() || version == found)
                && seen.insert(format!("{name} {found} {checksum}"))
            {
                queue.extend(dependencies.iter().cloned());
            }
        }
    }
    seen
}
