//! `check`: is all well, and what to do where it is not. With `--pre`: could it be
//! installed?
//!
//! Each check looks at what was read and says one thing of it; those that read nothing
//! but objects are pure, and their tests are fixtures.

mod after;
mod before;
mod control_plane;
mod data_plane;
mod injection;

use crate::cli::{CheckArgs, Global, Output};
use crate::cluster::{Cluster, Error};
use crate::output::{print, print_json};
use serde::Serialize;
use std::process::ExitCode;

/// Names that a line holds; the rest is counted.
const NAMED: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub group: &'static str,
    pub what: String,
    pub result: Verdict,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// The checks of one kind, as they are found.
pub struct Group {
    name: &'static str,
    pub checks: Vec<Check>,
}

pub async fn run(cluster: &Cluster, global: &Global, args: &CheckArgs) -> Result<ExitCode, Error> {
    let mut checks = before::platform(cluster).await?;
    if args.pre {
        checks.extend(before::installable(cluster).await?);
    } else {
        checks.extend(after::installed(cluster, global).await?);
    }
    let failed = checks.iter().any(|check| check.result == Verdict::Failed);
    match global.output {
        Output::Json => print_json(&checks)?,
        Output::Table | Output::Wide => print(&render(&checks))?,
    }
    Ok(ExitCode::from(u8::from(failed)))
}

// === impl Group ===

impl Group {
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            checks: Vec::new(),
        }
    }

    pub fn ok(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.add(Verdict::Ok, what.into(), found.into(), None);
    }

    pub fn warn(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(
            Verdict::Warning,
            what.into(),
            found.into(),
            Some(remedy.into()),
        );
    }

    pub fn fail(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(
            Verdict::Failed,
            what.into(),
            found.into(),
            Some(remedy.into()),
        );
    }

    /// What may not be read cannot be checked, which is no failure of the mesh.
    pub fn unread(&mut self, what: impl Into<String>, error: &Error) {
        self.warn(
            what,
            error.to_string(),
            "run it as somebody who may, or ask for that verb",
        );
    }

    /// Good if nobody is named, else as bad as `verdict`.
    pub fn none_of(
        &mut self,
        verdict: Verdict,
        what: impl Into<String>,
        good: impl Into<String>,
        named: &[String],
        remedy: impl Into<String>,
    ) {
        if named.is_empty() {
            self.ok(what, good);
        } else {
            self.add(verdict, what.into(), some(named), Some(remedy.into()));
        }
    }

    fn add(&mut self, result: Verdict, what: String, found: String, remedy: Option<String>) {
        self.checks.push(Check {
            group: self.name,
            what,
            result,
            found,
            remedy,
        });
    }
}

/// The first few, and how many more.
pub fn some(named: &[String]) -> String {
    let mut text = named
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if named.len() > NAMED {
        text += &format!("; and {} more", named.len() - NAMED);
    }
    text
}

fn render(checks: &[Check]) -> String {
    let mut text = String::new();
    let mut group = "";
    for check in checks {
        if check.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            text += &format!("{gap}{}\n", check.group);
            group = check.group;
        }
        let sign = match check.result {
            Verdict::Ok => '✓',
            Verdict::Warning => '!',
            Verdict::Failed => '✗',
        };
        let found = match check.found.as_str() {
            "" => String::new(),
            found => format!(": {found}"),
        };
        text += &format!("{sign} {}{found}\n", check.what);
        if let Some(remedy) = &check.remedy {
            text += &format!("    {remedy}\n");
        }
    }
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.result == verdict)
            .count()
    };
    let plural = |count, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    text + &match (count(Verdict::Failed), count(Verdict::Warning)) {
        (0, 0) => "\nAll is well.\n".to_owned(),
        (0, warnings) => format!("\nAll is well, with {}.\n", plural(warnings, "warning")),
        (failed, 0) => format!("\n{}.\n", plural(failed, "failure")),
        (failed, warnings) => {
            format!(
                "\n{}, {}.\n",
                plural(failed, "failure"),
                plural(warnings, "warning")
            )
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A check in a line, for tests: its sign, and what it found.
    fn line(check: &Check) -> String {
        let sign = match check.result {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        };
        format!("{sign}: {}: {}", check.what, check.found)
    }

    pub fn checks(check: impl FnOnce(&mut Group)) -> Vec<String> {
        let mut group = Group::new("test");
        check(&mut group);
        group.checks.iter().map(line).collect()
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let mut api = Group::new("kubernetes");
        api.ok("the API server answers", "v1.36.2");
        let named: Vec<_> = (0..7).map(|n| format!("node-{n}")).collect();
        api.none_of(Verdict::Warning, "kernels", "", &named, "upgrade them");
        let mut mesh = Group::new("mesh");
        mesh.fail("a leader", "none", "look at its log");
        let checks: Vec<_> = api.checks.into_iter().chain(mesh.checks).collect();
        assert_eq!(
            render(&checks),
            "kubernetes\n✓ the API server answers: v1.36.2\n\
             ! kernels: node-0; node-1; node-2; node-3; node-4; and 2 more\n    upgrade them\n\
             \nmesh\n✗ a leader: none\n    look at its log\n\n1 failure, 1 warning.\n"
        );
        assert!(render(&checks[..1]).ends_with("\nAll is well.\n"));
        assert!(render(&checks[..2]).ends_with("\nAll is well, with 1 warning.\n"));
    }
}
