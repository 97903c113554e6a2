//! What was held equal between the arms, and what was not, as facts in a table.

use super::preflight::Binaries;
use crate::arm::Arm;
use crate::results::{self, NOT_APPLICABLE, ParityRow};
use crate::scenario::{Parity, Shape};

/// An agent is installed with tenancy, unless that was turned off; here it is an arm of its own.
const AS_INSTALLED: &str =
    " As it was installed: with turns and budgets between workloads, unless they were turned off.";

/// The arms as they were in this run; on Kubernetes proxies are as they were installed.
pub fn arms(
    arms: &[Arm],
    binaries: &Binaries,
    given: &[Parity],
    installed: bool,
) -> Vec<results::Arm> {
    arms.iter()
        .map(|arm| {
            let build = binaries.proxy(*arm);
            let bed = given.iter().find(|one| one.arm == *arm);
            results::Arm {
                name: arm.name().to_owned(),
                description: match arm {
                    Arm::Agent if installed => arm.description().to_owned() + AS_INSTALLED,
                    _ => arm.description().to_owned(),
                },
                placement: arm.placed(),
                copy_of: arm.copy_of().map(|copied| copied.name().to_owned()),
                core_fingerprint: build.map(|build| build.core.clone()),
                opt_level: build.map(|build| build.opt_level.clone()),
                workers: bed
                    .filter(|_| arm.meshed())
                    .and_then(|bed| bed.given.workers),
                limits: bed.and_then(|bed| bed.given.limits.clone()),
            }
        })
        .collect()
}

/// The table.
pub fn rows(
    arms: &[Arm],
    binaries: &Binaries,
    given: &[Parity],
    tls_suite: &str,
) -> Vec<ParityRow> {
    let of_proxy = |what: &str, value: &dyn Fn(Arm) -> Option<String>| {
        let values: Vec<Option<String>> = arms.iter().map(|arm| value(*arm)).collect();
        row(what.to_owned(), values, None)
    };
    let mut rows = vec![
        of_proxy("core fingerprint", &|arm| {
            Some(binaries.proxy(arm)?.core.clone())
        }),
        of_proxy("optimisation level", &|arm| {
            Some(binaries.proxy(arm)?.opt_level.clone())
        }),
        of_proxy("TLS suite", &|arm| {
            (arm.meshed() && !arm.explains()).then(|| tls_suite.to_owned())
        }),
        row(
            "application and generator".to_owned(),
            arms.iter()
                .map(|_| binaries.digests.get("duet-bench").map(|hex| short(hex)))
                .collect(),
            None,
        ),
    ];
    let mut shapes: Vec<Shape> = Vec::new();
    for one in given {
        if !shapes.contains(&one.shape) {
            shapes.push(one.shape);
        }
    }
    for shape in shapes {
        let bed = |arm: Arm| {
            given
                .iter()
                .find(|one| one.shape == shape && one.arm == arm && arm.meshed())
        };
        let label = |what: &str| format!("{what} ({})", shape.title());
        rows.push(row(
            label("worker threads per node"),
            arms.iter()
                .map(|arm| Some(bed(*arm)?.given.workers?.to_string()))
                .collect(),
            Some(
                "each proxy has at least one thread, so many small proxies have more; the limit on \
                 their processor time is the same"
                    .to_owned(),
            ),
        ));
        let labels: Vec<&'static str> = arms
            .iter()
            .find_map(|arm| bed(*arm))
            .map(|one| one.given.rows.iter().map(|row| row.label).collect())
            .unwrap_or_default();
        for (at, what) in labels.into_iter().enumerate() {
            rows.push(row(
                label(what),
                arms.iter()
                    .map(|arm| Some(bed(*arm)?.given.rows.get(at)?.sum.clone()))
                    .collect(),
                None,
            ));
        }
    }
    rows
}

fn row(what: String, values: Vec<Option<String>>, note: Option<String>) -> ParityRow {
    let mut known = values.iter().flatten();
    let equal = match known.next() {
        Some(first) => known.all(|other| other == first),
        None => true,
    };
    ParityRow {
        what,
        values: values
            .into_iter()
            .map(|value| value.unwrap_or_else(|| NOT_APPLICABLE.to_owned()))
            .collect(),
        equal,
        note: note.filter(|_| !equal),
    }
}

fn short(hex: &str) -> String {
    hex.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_apply_does_not_differ() {
        let equal = row(
            "x".to_owned(),
            vec![None, Some("1".to_owned()), Some("1".to_owned())],
            Some("why".to_owned()),
        );
        assert!(equal.equal && equal.note.is_none());
        assert_eq!(equal.values[0], NOT_APPLICABLE);
        let sums = |sidecars: &str| {
            let values = [None, Some(sidecars.to_owned()), Some("2000m".to_owned())];
            row("x".to_owned(), values.into(), None)
        };
        assert!(sums("1992m").is_rounded() && !sums("1992m").equal);
        for other in ["1900m", "2000 MiB", "no limit"] {
            assert!(!sums(other).is_rounded(), "{other}");
        }
        let different = row(
            "x".to_owned(),
            vec![None, Some("2".to_owned()), Some("1".to_owned())],
            Some("why".to_owned()),
        );
        assert!(!different.equal && different.note.is_some());
    }
}
