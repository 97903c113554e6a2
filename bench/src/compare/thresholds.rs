//! How much worse is a regression, by scenario, metric and arm.
//!
//! ```json
//! {
//!   "default": 10,
//!   "rules": [
//!     { "scenario": "R1", "metric": "proxy_memory_mib", "percent": 3 },
//!     { "metric": "p99", "percent": 40 },
//!     { "scenario": "F1", "arm": "sidecar", "ignore": true }
//!   ]
//! }
//! ```
//!
//! The first rule that matches a change decides; what a rule does not name, it does not ask for. No rule makes
//! a change a regression that may not be claimed.

use super::changes::Change;
use serde::Deserialize;
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// Per cent where nothing else is said.
pub const DEFAULT: f64 = 10.0;

/// A file that cannot be used; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ThresholdsError {
    #[error("--thresholds {path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "--thresholds {path}: {source}; write {{\"default\": 10, \"rules\": [{{\"metric\": \"p99\", \"percent\": 40}}]}}",
        path = path.display()
    )]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("--thresholds {path}: {rule}: {problem}", path = path.display())]
    Rule {
        path: PathBuf,
        /// "rule 2" or "default".
        rule: String,
        problem: &'static str,
    },
}

/// What a file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    default: Option<f64>,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    scenario: Option<String>,
    metric: Option<String>,
    arm: Option<String>,
    percent: Option<f64>,
    #[serde(default)]
    ignore: bool,
    /// Whether it has decided anything.
    #[serde(skip)]
    used: Cell<bool>,
}

/// Rules in their order.
#[derive(Clone, Debug)]
pub struct Thresholds {
    /// A share, not per cent.
    pub default: f64,
    rules: Vec<Rule>,
}

impl Thresholds {
    /// One for everything, per cent.
    pub fn all(percent: f64) -> Self {
        Self {
            default: percent / 100.0,
            rules: Vec::new(),
        }
    }

    /// Of a file; `percent` where it has no default.
    pub fn read(path: &Path, percent: f64) -> Result<Self, ThresholdsError> {
        let text = std::fs::read_to_string(path).map_err(|source| ThresholdsError::Io {
            path: path.to_owned(),
            source,
        })?;
        let written: Written =
            serde_json::from_str(&text).map_err(|source| ThresholdsError::Parse {
                path: path.to_owned(),
                source,
            })?;
        let wrong = |rule: String, problem| ThresholdsError::Rule {
            path: path.to_owned(),
            rule,
            problem,
        };
        let usable = |percent: f64| percent.is_finite() && percent >= 0.0;
        let default = written.default.unwrap_or(percent);
        if !usable(default) {
            return Err(wrong("default".to_owned(), "give per cent, 0 or more"));
        }
        for (at, rule) in written.rules.iter().enumerate() {
            let problem = match (rule.percent, rule.ignore) {
                (Some(percent), false) if usable(percent) => continue,
                (None, true) => continue,
                (Some(_), true) => "give either percent or ignore",
                (Some(_), false) => "give per cent, 0 or more",
                (None, false) => "give percent, or ignore: true",
            };
            return Err(wrong(format!("rule {}", at + 1), problem));
        }
        Ok(Self {
            default: default / 100.0,
            rules: written.rules,
        })
    }

    /// The share beyond which a change is a regression; none if it is to be ignored.
    pub fn of(&self, change: &Change) -> Option<f64> {
        let matching = |rule: &&Rule| {
            let asks = |wanted: &Option<String>, have: &str| {
                wanted
                    .as_ref()
                    .is_none_or(|wanted| wanted.eq_ignore_ascii_case(have))
            };
            asks(&rule.scenario, &change.scenario)
                && asks(&rule.metric, &change.metric)
                && asks(&rule.arm, &change.arm)
        };
        match self.rules.iter().find(matching) {
            Some(rule) => {
                rule.used.set(true);
                rule.percent.map(|percent| percent / 100.0)
            }
            None => Some(self.default),
        }
    }

    /// Rules that decided nothing: a misspelt one would pass for a strict one.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.rules.iter().enumerate();
        unused
            .filter(|(_, rule)| !rule.used.get())
            .map(|(at, _)| format!("rule {} of the thresholds decides nothing here", at + 1))
            .collect()
    }
}
