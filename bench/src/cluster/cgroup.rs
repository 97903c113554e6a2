//! Control groups in both layouts: limits, what was used, and who is inside.
//!
//! On a v2 machine one directory holds everything. Where the controllers are
//! v1 hierarchies, a group is one directory in each, and beside them one in
//! the v2 tree: it has no controllers, but BPF programs attach to it and
//! `cgroup.kill` ends a whole tree at once.

use super::error::{ClusterError, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Length of the period in which a CPU quota is spent: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The smallest quota the kernel accepts.
const CPU_QUOTA_MIN_US: u64 = 1_000;
/// How long killed processes may take to leave their group.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// Where this machine keeps its controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The v2 tree, if one is mounted.
    pub unified: Option<PathBuf>,
    /// v1 hierarchies for cpu, cpuacct and memory; absent where v2 has them.
    pub cpu: Option<PathBuf>,
    pub cpuacct: Option<PathBuf>,
    pub memory: Option<PathBuf>,
}

/// One control group, in every hierarchy that this machine has.
#[derive(Clone, Debug)]
pub struct Cgroup {
    layout: Arc<Layout>,
    /// Below each hierarchy's root, e.g. `duet-x7/node-1/web-0/app`.
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUsage {
    /// CPU time used since the group was made, in µs.
    pub usage_us: u64,
    pub user_us: u64,
    pub system_us: u64,
    /// Quota periods that have passed, and those in which the group was held
    /// back. Both 0 without a quota.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_us: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// All that is charged, page cache included, in bytes.
    pub current: u64,
    /// The most that ever was, if the kernel tells.
    pub peak: Option<u64>,
    pub anon: u64,
    pub file: u64,
    /// Kernel memory: sockets' buffers, page tables, slabs.
    pub kernel: u64,
    /// `current` without inactive page cache: what a kubelet goes by.
    pub working_set: u64,
}

// === impl Layout ===

impl Layout {
    /// Reads the mount table.
    pub fn detect() -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/mounts").map_err(ClusterError::io("read /proc/mounts"))?;
        let layout = Self::parse(&mounts);
        if layout.unified.is_none() && layout.memory.is_none() {
            return Err(ClusterError::Unsupported(
                "no cgroup hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup`"
                    .to_owned(),
            ));
        }
        Ok(layout)
    }

    /// Another machine's controllers, as they are mounted below `dir` here.
    pub fn below(dir: &Path) -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/mounts").map_err(ClusterError::io("read /proc/mounts"))?;
        let there: String = mounts
            .lines()
            .filter(|line| {
                line.split(' ')
                    .nth(1)
                    .is_some_and(|at| Path::new(at).starts_with(dir))
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let layout = Self::parse(&there);
        if layout.unified.is_none() && layout.memory.is_none() {
            return Err(ClusterError::Unsupported(format!(
                "no cgroup hierarchy is mounted below {}",
                dir.display()
            )));
        }
        Ok(layout)
    }

    /// The tree in which every group with a memory limit has a directory.
    pub(crate) fn main_root(&self) -> Option<&Path> {
        self.memory.as_deref().or(self.unified.as_deref())
    }

    fn parse(mounts: &str) -> Self {
        let mut layout = Self {
            unified: None,
            cpu: None,
            cpuacct: None,
            memory: None,
        };
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(dir), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let has = |controller| options.split(',').any(|option| option == controller);
            let keep = |slot: &mut Option<PathBuf>| {
                slot.get_or_insert_with(|| PathBuf::from(dir));
            };
            match kind {
                "cgroup2" => keep(&mut layout.unified),
                "cgroup" => {
                    if has("cpu") {
                        keep(&mut layout.cpu);
                    }
                    if has("cpuacct") {
                        keep(&mut layout.cpuacct);
                    }
                    if has("memory") {
                        keep(&mut layout.memory);
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// For the report: `v2`, or `v1 + v2 without controllers`, or `v1`.
    pub fn describe(&self) -> &'static str {
        match (&self.memory, &self.unified) {
            (None, Some(_)) => "v2",
            (Some(_), Some(_)) => "v1, with a v2 tree beside it",
            _ => "v1",
        }
    }

    fn roots(&self) -> BTreeSet<&Path> {
        [&self.unified, &self.cpu, &self.cpuacct, &self.memory]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect()
    }
}

// === impl Cgroup ===

impl Cgroup {
    /// Names a group; `make` makes it.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self> {
        static LAYOUT: OnceLock<Arc<Layout>> = OnceLock::new();
        let layout = match LAYOUT.get() {
            Some(layout) => layout.clone(),
            None => {
                let layout = Arc::new(Layout::detect()?);
                LAYOUT.get_or_init(|| layout).clone()
            }
        };
        Ok(Self {
            layout,
            path: path.into(),
        })
    }

    /// A group that somebody else has made.
    pub(crate) fn found(layout: Arc<Layout>, path: impl Into<PathBuf>) -> Self {
        Self {
            layout,
            path: path.into(),
        }
    }

    /// Its parent.
    pub(crate) fn parent(&self) -> Option<Self> {
        Some(Self {
            layout: self.layout.clone(),
            path: self.path.parent()?.to_owned(),
        })
    }

    /// Names of the groups right below it.
    pub(crate) fn children(&self) -> Vec<String> {
        let Some(root) = self.layout.main_root() else {
            return Vec::new();
        };
        subdirs(&root.join(&self.path))
            .iter()
            .filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned()))
            .collect()
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    pub fn child(&self, name: &str) -> Self {
        Self {
            layout: self.layout.clone(),
            path: self.path.join(name),
        }
    }

    /// Whether it is that group or below it.
    pub fn is_within(&self, group: &Self) -> bool {
        self.path.starts_with(&group.path)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its directory in the v2 tree, where BPF programs attach.
    pub fn unified_dir(&self) -> Option<PathBuf> {
        Some(self.layout.unified.as_ref()?.join(&self.path))
    }

    /// Its directories, one per hierarchy.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        self.layout
            .roots()
            .into_iter()
            .map(|root| root.join(&self.path))
            .collect()
    }

    /// The same for a process of a real-time class. Kernels with real-time group
    /// scheduling refuse such a process in a v1 cpu group that was given no
    /// real-time budget, so it stays in that hierarchy's root; its CPU is counted
    /// in the cpuacct hierarchy all the same.
    pub(crate) fn realtime_dirs(&self) -> Result<Vec<PathBuf>> {
        let mut dirs = self.dirs();
        if let Some(cpu) = &self.layout.cpu
            && cpu.join("cpu.rt_runtime_us").exists()
        {
            if self.layout.cpuacct.as_ref() == Some(cpu) {
                return Err(ClusterError::Unsupported(
                    "a real-time class cannot be had here: the cpu and cpuacct controllers share a hierarchy"
                        .to_owned(),
                ));
            }
            dirs.retain(|dir| !dir.starts_with(cpu));
        }
        Ok(dirs)
    }

    /// Takes a process out of its v1 cpu group, for the same reason. True if there was
    /// anything to take it out of.
    pub(crate) fn free_for_realtime(&self, pid: u32) -> Result<bool> {
        let Some(cpu) = &self.layout.cpu else {
            return Ok(false);
        };
        if !cpu.join("cpu.rt_runtime_us").exists() || self.layout.cpuacct.as_ref() == Some(cpu) {
            return Ok(false);
        }
        let root = cpu.join("cgroup.procs");
        fs::write(&root, pid.to_string()).map_err(ClusterError::io(format!(
            "write {pid} to {}",
            root.display()
        )))?;
        Ok(true)
    }

    /// Makes the group and hands the controllers down to it. Groups above it
    /// are made too; in v2 only the lowest may hold processes.
    pub(crate) fn make(&self) -> Result<()> {
        for dir in self.dirs() {
            fs::create_dir_all(&dir)
                .map_err(ClusterError::io(format!("make cgroup {}", dir.display())))?;
        }
        if self.layout.memory.is_none()
            && let Some(unified) = &self.layout.unified
        {
            let mut dir = unified.clone();
            for part in self.path.components() {
                let control = dir.join("cgroup.subtree_control");
                let have = fs::read_to_string(&control).unwrap_or_default();
                let missing: Vec<String> = ["cpu", "memory"]
                    .iter()
                    .filter(|controller| !have.split_whitespace().any(|h| h == **controller))
                    .map(|controller| format!("+{controller}"))
                    .collect();
                if !missing.is_empty() {
                    fs::write(&control, missing.join(" ")).map_err(ClusterError::io(format!(
                        "enable the cpu and memory controllers in {}",
                        control.display()
                    )))?;
                }
                dir.push(part);
            }
        }
        Ok(())
    }

    /// Kills whatever is inside and removes the group with all below it.
    /// Nothing happens if it does not exist.
    pub(crate) fn remove(&self) -> Result<()> {
        self.kill_all()?;
        let deadline = Instant::now() + EMPTY_WITHIN;
        for dir in self.dirs() {
            loop {
                match remove_tree(&dir) {
                    Ok(()) => break,
                    Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                    Err(source) => {
                        return Err(ClusterError::Io {
                            what: format!("remove cgroup {}", dir.display()),
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// SIGKILLs every process of the group and below, and waits until they
    /// have left. Membership names them, so no recycled pid is ever hit.
    pub(crate) fn kill_all(&self) -> Result<()> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            if let Some(unified) = self.unified_dir() {
                // Absent before Linux 5.14; the loop below does it alone then.
                let _ = fs::write(unified.join("cgroup.kill"), "1");
            }
            let inside = self.pids_below();
            if inside.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ClusterError::Command {
                    what: format!("empty cgroup {}", self.path.display()),
                    said: format!("processes {inside:?} do not end"),
                });
            }
            for pid in inside {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Processes in this group itself.
    pub fn pids(&self) -> Vec<u32> {
        let found: BTreeSet<u32> = self.dirs().iter().flat_map(|dir| procs(dir)).collect();
        found.into_iter().collect()
    }

    /// Processes in this group and below it.
    pub fn pids_below(&self) -> Vec<u32> {
        fn walk(dir: &Path, found: &mut BTreeSet<u32>) {
            found.extend(procs(dir));
            for child in subdirs(dir) {
                walk(&child, found);
            }
        }
        let mut found = BTreeSet::new();
        for dir in self.dirs() {
            walk(&dir, &mut found);
        }
        found.into_iter().collect()
    }

    /// CPU used by this group and all below it.
    pub fn cpu(&self) -> Result<CpuUsage> {
        let (Some(cpu), Some(cpuacct)) = (&self.layout.cpu, &self.layout.cpuacct) else {
            let stat = self.read(self.unified_root()?, "cpu.stat")?;
            let field = |key| field(&stat, key).unwrap_or(0);
            return Ok(CpuUsage {
                usage_us: field("usage_usec"),
                user_us: field("user_usec"),
                system_us: field("system_usec"),
                periods: field("nr_periods"),
                throttled_periods: field("nr_throttled"),
                throttled_us: field("throttled_usec"),
            });
        };
        let nanos = |file| -> Result<u64> { number(&self.read(cpuacct, file)?) };
        let stat = self.read(cpu, "cpu.stat")?;
        let field = |key| field(&stat, key).unwrap_or(0);
        Ok(CpuUsage {
            usage_us: nanos("cpuacct.usage")? / 1000,
            user_us: nanos("cpuacct.usage_user")? / 1000,
            system_us: nanos("cpuacct.usage_sys")? / 1000,
            periods: field("nr_periods"),
            throttled_periods: field("nr_throttled"),
            throttled_us: field("throttled_time") / 1000,
        })
    }

    /// Memory charged to this group and all below it.
    pub fn memory(&self) -> Result<MemoryUsage> {
        let Some(memory) = &self.layout.memory else {
            let root = self.unified_root()?;
            let stat = self.read(root, "memory.stat")?;
            let field = |key| field(&stat, key).unwrap_or(0);
            let current = number(&self.read(root, "memory.current")?)?;
            return Ok(MemoryUsage {
                current,
                peak: self
                    .read(root, "memory.peak")
                    .ok()
                    .and_then(|text| number(&text).ok()),
                anon: field("anon"),
                file: field("file"),
                kernel: field("kernel") + field("sock"),
                working_set: current.saturating_sub(field("inactive_file")),
            });
        };
        let stat = self.read(memory, "memory.stat")?;
        let field = |key| field(&stat, key).unwrap_or(0);
        let current = number(&self.read(memory, "memory.usage_in_bytes")?)?;
        let kernel = |file| {
            self.read(memory, file)
                .and_then(|text| number(&text))
                .unwrap_or(0)
        };
        Ok(MemoryUsage {
            current,
            peak: Some(number(&self.read(memory, "memory.max_usage_in_bytes")?)?),
            anon: field("total_rss"),
            file: field("total_cache"),
            kernel: kernel("memory.kmem.usage_in_bytes") + kernel("memory.kmem.tcp.usage_in_bytes"),
            working_set: current.saturating_sub(field("total_inactive_file")),
        })
    }

    /// Starts the peak anew. False where the kernel cannot.
    pub fn reset_peak(&self) -> bool {
        match (&self.layout.memory, &self.layout.unified) {
            (Some(root), _) => {
                fs::write(root.join(&self.path).join("memory.max_usage_in_bytes"), "0").is_ok()
            }
            // Writing to memory.peak resets it for that file handle only.
            _ => false,
        }
    }

    /// How often the kernel has killed in this group for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        let (root, file) = match &self.layout.memory {
            Some(memory) => (memory.as_path(), "memory.oom_control"),
            None => (self.unified_root()?, "memory.events"),
        };
        Ok(field(&self.read(root, file)?, "oom_kill").unwrap_or(0))
    }

    /// Limits CPU to thousandths of a core; `None` lifts the limit.
    pub fn set_cpu_millis(&self, millis: Option<u32>) -> Result<()> {
        let quota =
            millis.map(|millis| (u64::from(millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US));
        match &self.layout.cpu {
            Some(cpu) => {
                self.write(cpu, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                let quota = quota.map_or("-1".to_owned(), |quota| quota.to_string());
                self.write(cpu, "cpu.cfs_quota_us", &quota)
            }
            None => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                self.write(
                    self.unified_root()?,
                    "cpu.max",
                    &format!("{quota} {CPU_PERIOD_US}"),
                )
            }
        }
    }

    /// Limits memory in bytes; `None` lifts the limit. Fails where more is in
    /// use and cannot be given back.
    pub fn set_memory(&self, bytes: Option<u64>) -> Result<()> {
        match &self.layout.memory {
            Some(memory) => {
                let bytes = bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
                self.write(memory, "memory.limit_in_bytes", &bytes)
            }
            None => {
                let bytes = bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
                self.write(self.unified_root()?, "memory.max", &bytes)
            }
        }
    }

    fn unified_root(&self) -> Result<&Path> {
        self.layout.unified.as_deref().ok_or_else(|| {
            ClusterError::Unsupported("no hierarchy with the cpu and memory controllers".to_owned())
        })
    }

    fn read(&self, root: &Path, file: &str) -> Result<String> {
        let path = root.join(&self.path).join(file);
        fs::read_to_string(&path).map_err(ClusterError::io(format!("read {}", path.display())))
    }

    fn write(&self, root: &Path, file: &str, value: &str) -> Result<()> {
        let path = root.join(&self.path).join(file);
        fs::write(&path, value).map_err(ClusterError::io(format!(
            "write {value} to {}",
            path.display()
        )))
    }
}

fn procs(dir: &Path) -> Vec<u32> {
    fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in subdirs(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(' ')?;
        (found == key).then(|| value.trim().parse().ok())?
    })
}

fn number(text: &str) -> Result<u64> {
    text.trim().parse().map_err(|_| ClusterError::Command {
        what: "read a cgroup's counter".to_owned(),
        said: format!("{:?} is not a number", text.trim()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_v2() {
        let layout = Layout::parse("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        assert_eq!(layout.describe(), "v2");
        assert_eq!(layout.roots().len(), 1);
    }

    #[test]
    fn finds_v1_with_joined_controllers_beside_v2() {
        let layout = Layout::parse(
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
             cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
             cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
        );
        assert_eq!(layout.cpu, layout.cpuacct);
        assert_eq!(
            layout.cpu.as_deref(),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(layout.roots().len(), 3);
        assert_eq!(layout.describe(), "v1, with a v2 tree beside it");
    }

    #[test]
    fn reads_keyed_counters() {
        assert_eq!(
            field("nr_periods 4\nnr_throttled 2\n", "nr_throttled"),
            Some(2)
        );
        assert_eq!(field("nr_periods 4\n", "periods"), None);
    }

    /// The v2 layout, acted out in a directory: this is what the files look like.
    #[test]
    fn reads_and_limits_v2() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup {
            layout: Arc::new(Layout {
                unified: Some(root.path().to_owned()),
                cpu: None,
                cpuacct: None,
                memory: None,
            }),
            path: PathBuf::from("duet-x/app"),
        };
        fs::write(
            root.path().join("cgroup.subtree_control"),
            "cpuset cpu memory",
        )
        .unwrap();
        group.make().unwrap();
        let dir = root.path().join("duet-x/app");
        let text = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(text("cgroup.subtree_control"), "cpuset cpu memory");
        assert_eq!(text("duet-x/cgroup.subtree_control"), "+cpu +memory");

        let cpu = "usage_usec 900\nuser_usec 600\nsystem_usec 300\nnr_periods 7\nnr_throttled 2\nthrottled_usec 55\n";
        fs::write(dir.join("cpu.stat"), cpu).unwrap();
        let expected = CpuUsage {
            usage_us: 900,
            user_us: 600,
            system_us: 300,
            periods: 7,
            throttled_periods: 2,
            throttled_us: 55,
        };
        assert_eq!(group.cpu().unwrap(), expected);

        fs::write(dir.join("memory.current"), "1000\n").unwrap();
        fs::write(dir.join("memory.peak"), "1500\n").unwrap();
        let stat = "anon 400\nfile 500\nkernel 80\nsock 20\ninactive_file 300\n";
        fs::write(dir.join("memory.stat"), stat).unwrap();
        let expected = MemoryUsage {
            current: 1000,
            peak: Some(1500),
            anon: 400,
            file: 500,
            kernel: 100,
            working_set: 700,
        };
        assert_eq!(group.memory().unwrap(), expected);
        fs::write(dir.join("memory.events"), "max 3\noom 1\noom_kill 1\n").unwrap();
        assert_eq!(group.oom_kills().unwrap(), 1);

        group.set_cpu_millis(Some(250)).unwrap();
        assert_eq!(text("duet-x/app/cpu.max"), "25000 100000");
        group.set_cpu_millis(None).unwrap();
        assert_eq!(text("duet-x/app/cpu.max"), "max 100000");
        group.set_memory(Some(4096)).unwrap();
        assert_eq!(text("duet-x/app/memory.max"), "4096");
    }
}
