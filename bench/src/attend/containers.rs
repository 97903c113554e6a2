//! Where a container's processes are, among all control groups of a node.
//!
//! Runtimes name a container's group after its id and a pod's after its uid, and
//! agree on little else: `/kubepods/burstable/pod<uid>/<id>` with cgroupfs,
//! `kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope` with systemd, and
//! all of it below the node's own group where the node is a container itself.
//! So the tree is searched for the name, the shallowest first.

use crate::cluster::{Cgroup, Layout};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Deeper than any runtime puts a container, also one inside a container.
const DEEPEST: usize = 16;

/// Groups found so far.
#[derive(Debug)]
pub struct Containers {
    layout: Arc<Layout>,
    known: Mutex<HashMap<String, PathBuf>>,
}

impl Containers {
    /// Searches the hierarchies that are mounted below `dir`.
    pub fn below(dir: &Path) -> Result<Self, String> {
        let layout = Layout::below(dir).map_err(|error| error.to_string())?;
        Ok(Self {
            layout: Arc::new(layout),
            known: Mutex::default(),
        })
    }

    /// The layout of the node's control groups.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A container's group.
    pub fn container(&self, id: &str) -> Result<Cgroup, String> {
        self.find(id, &[id])
            .ok_or_else(|| format!("container {id} has no control group on this node"))
    }

    /// A pod's group.
    pub fn pod(&self, uid: &str) -> Result<Cgroup, String> {
        self.find(uid, &[uid, &uid.replace('-', "_")])
            .ok_or_else(|| format!("pod {uid} has no control group on this node"))
    }

    fn find(&self, key: &str, names: &[&str]) -> Option<Cgroup> {
        let root = self.layout.main_root()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = known.get(key).filter(|path| root.join(path).is_dir()) {
            return Some(Cgroup::found(self.layout.clone(), path));
        }
        let found = search(root, names)?;
        let path = found.strip_prefix(root).ok()?.to_owned();
        known.insert(key.to_owned(), path.clone());
        Some(Cgroup::found(self.layout.clone(), path))
    }
}

/// The shallowest directory whose name holds one of these.
fn search(root: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut waiting = VecDeque::from([(root.to_owned(), 0)]);
    while let Some((dir, depth)) = waiting.pop_front() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // CRI-O gives the process that watches over a container a group, too.
            if names.iter().any(|wanted| name.contains(wanted)) && !name.contains("conmon") {
                return Some(entry.path());
            }
            if depth < DEEPEST {
                waiting.push_back((entry.path(), depth + 1));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2b5c9e-1f5c-4c7a-9d0e-6a0f5b3c2d1e";
    const ID: &str = "4fe1c0ffee";

    fn tree(paths: &[String]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for path in paths {
            fs::create_dir_all(root.path().join(path)).expect("directories");
        }
        root
    }

    #[test]
    fn finds_what_either_driver_makes() {
        let cgroupfs = tree(&[format!("duet-kube/node-1/kubepods/burstable/pod{UID}/{ID}")]);
        let pod = search(cgroupfs.path(), &[UID]).expect("the pod");
        assert!(pod.ends_with(format!("pod{UID}")));
        assert_eq!(
            search(cgroupfs.path(), &[ID]).expect("the container"),
            pod.join(ID)
        );

        let slice = format!("kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
        let systemd = tree(&[
            format!("{slice}/crio-conmon-{ID}.scope"),
            format!("{slice}/crio-{ID}.scope/nested-{ID}"),
        ]);
        let found = search(systemd.path(), &[ID]).expect("the container");
        assert!(found.ends_with(format!("crio-{ID}.scope")), "{found:?}");
        assert!(search(systemd.path(), &[UID, &UID.replace('-', "_")]).is_some());
        assert_eq!(search(systemd.path(), &["another"]), None);
    }
}
