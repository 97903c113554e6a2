//! One run on the shelf, as its own analysis left it: listing hundreds must not mean to analyse each.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::results::{self, Estimate, Machine, Profile, Results, State, keys};

/// Directories that are looked at.
const MOST_ENTRIES: usize = 500;
/// A results file that is larger is not read.
const MOST_BYTES: u64 = 512 << 20;

/// What a list and its trends show of a run.
#[derive(Debug)]
pub struct Entry {
    pub started: String,
    pub version: String,
    pub profile: Profile,
    pub state: State,
    pub reasons: Vec<String>,
    pub cluster: String,
    pub duration_s: f64,
    pub machine: Machine,
    pub values: Vec<Value>,
}

/// A headline of one arm.
#[derive(Debug)]
pub struct Value {
    pub trend: &'static Trend,
    pub arm: String,
    pub estimate: Estimate,
}

/// What is followed from run to run.
#[derive(Debug)]
pub struct Trend {
    pub title: &'static str,
    pub unit: &'static str,
    /// A time or CPU: smoke runs are left out of it.
    pub timed: bool,
    find: fn(&Results) -> Vec<(String, Estimate)>,
}

pub static TRENDS: [Trend; 6] = [
    Trend {
        title: "L1 median response, ÷ no mesh",
        unit: "×",
        timed: true,
        find: |results| compared(results, "L1", "p50"),
    },
    Trend {
        title: "R1 memory per pod",
        unit: "MiB",
        timed: false,
        find: |results| {
            let lines = results.analysis.memory_lines.iter();
            lines.map(|line| (line.arm.clone(), line.per_pod)).collect()
        },
    },
    Trend {
        title: "R2 CPU of a request, ÷ no mesh",
        unit: "×",
        timed: true,
        find: |results| compared(results, "R2", keys::NODE_CPU_PER_REQUEST),
    },
    Trend {
        title: "I1 slowdown of the victim's median",
        unit: "×",
        timed: true,
        find: |results| {
            let curves = results.analysis.slowdowns.iter();
            curves
                .filter(|curve| curve.scenario == "I1" && curve.metric == "p50")
                .filter_map(|curve| Some((curve.arm.clone(), curve.points.last()?.slowdown?)))
                .collect()
        },
    },
    Trend {
        title: "F1 pods hit by the worst kill",
        unit: "pods",
        timed: false,
        find: |results| {
            let faults = results.analysis.faults.iter();
            faults
                .filter(|fault| fault.scenario == "F1")
                .filter_map(|fault| Some((fault.arm.clone(), plain(fault.pods_hit?.max))))
                .collect()
        },
    },
    Trend {
        title: "X1 keys in the most exposed process",
        unit: "keys",
        timed: false,
        find: |results| {
            let mut found: Vec<(String, Estimate)> = Vec::new();
            let rivals = results.analysis.comparisons.iter();
            for comparison in rivals.filter(|c| c.scenario == "X1" && c.metric == keys::KEYS_MAX) {
                let sides = [
                    (&comparison.baseline, comparison.baseline_value),
                    (&comparison.arm, comparison.arm_value),
                ];
                for (arm, value) in sides {
                    let known = found.iter().any(|(name, _)| name == arm);
                    if let (Some(value), false) = (value, known) {
                        found.push((arm.clone(), plain(value)));
                    }
                }
            }
            found
        },
    },
];

fn plain(value: f64) -> Estimate {
    Estimate {
        value,
        interval: None,
    }
}

/// Each mesh ÷ no mesh at the scenario's headline.
fn compared(results: &Results, scenario: &str, metric: &str) -> Vec<(String, Estimate)> {
    let point = results.scenario(scenario).and_then(|s| s.headline());
    let none = |name: &str| {
        let arm = results.arm(name);
        arm.is_some_and(|arm| arm.placement == results::Placement::None)
    };
    let all = results.analysis.comparisons.iter();
    all.filter(|c| c.scenario == scenario && c.metric == metric && none(&c.baseline))
        .filter(|c| Some(&c.point) == point.as_ref())
        .filter(|c| results.arm(&c.arm).is_some_and(|arm| arm.copy_of.is_none()))
        .filter_map(|c| Some((c.arm.clone(), c.estimate?)))
        .collect()
}

impl Entry {
    fn of(results: &Results) -> Entry {
        Entry {
            started: results.started.clone(),
            version: results.version.clone(),
            profile: results.profile,
            state: results.status.state,
            reasons: results.status.reasons.clone(),
            cluster: results.cluster.clone(),
            duration_s: results.duration_s,
            machine: results.machine.clone(),
            values: TRENDS
                .iter()
                .flat_map(|trend| {
                    (trend.find)(results)
                        .into_iter()
                        .map(move |(arm, estimate)| Value {
                            trend,
                            arm,
                            estimate,
                        })
                })
                .collect(),
        }
    }
}

/// A run's name, which is its directory's, and what it is, or why it cannot be read.
pub type Listed = (String, Arc<Result<Entry, String>>);

/// When a file was written and how long it is, and what was found in it.
type Known = (SystemTime, u64, Arc<Result<Entry, String>>);

/// A folder of directories that `run --out` wrote. What was read stays, until the file changes.
pub struct Shelf {
    dir: PathBuf,
    known: Mutex<HashMap<String, Known>>,
}

impl Shelf {
    pub fn at(dir: &Path) -> Shelf {
        Shelf {
            dir: dir.to_path_buf(),
            known: Mutex::default(),
        }
    }

    /// The runs, newest first; those that cannot be read, last.
    pub fn list(&self) -> std::io::Result<Vec<Listed>> {
        let mut names: Vec<String> = fs::read_dir(&self.dir)?
            .filter_map(|child| child.ok()?.file_name().into_string().ok())
            .filter(|name| self.find(name).is_some())
            .collect();
        names.sort();
        // Names of runs are times, unless somebody chose them.
        let surplus = names.len().saturating_sub(MOST_ENTRIES);
        let mut listed: Vec<Listed> = names
            .into_iter()
            .skip(surplus)
            .filter_map(|name| Some((name.clone(), self.entry(&name)?)))
            .collect();
        let started = |listed: &Listed| match &*listed.1 {
            Ok(entry) => entry.started.clone(),
            Err(_) => String::new(),
        };
        listed.sort_by_key(|one| std::cmp::Reverse(started(one)));
        Ok(listed)
    }

    /// The directory of a run that is on the shelf.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let dir = self.dir.join(name);
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        (plain && dir.is_dir() && results::file_of(&dir).is_file()).then_some(dir)
    }

    fn entry(&self, name: &str) -> Option<Arc<Result<Entry, String>>> {
        let file = results::file_of(&self.dir.join(name));
        let stat = fs::metadata(&file).ok()?;
        let state = (stat.modified().ok()?, stat.len());
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((modified, length, entry)) = lock().get(name)
            && (*modified, *length) == state
        {
            return Some(entry.clone());
        }
        let entry = if state.1 > MOST_BYTES {
            Err(format!("larger than {MOST_BYTES} bytes"))
        } else {
            let results = results::read(&file).map_err(|error| error.to_string());
            results.map(|results| Entry::of(&results))
        };
        let entry = Arc::new(entry);
        lock().insert(name.to_owned(), (state.0, state.1, entry.clone()));
        Some(entry)
    }
}
