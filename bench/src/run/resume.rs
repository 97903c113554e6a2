//! An interrupted run goes on: finished blocks are kept, everything that followed from the seed follows again.
//!
//! Blocks of two different programs, or of two machines, are no blocks of one run, so that is refused. What an
//! experiment found out before its first block (capacities) is taken from the file, because the points of the
//! missing blocks have to be those of the blocks that are there.

use super::execute::RunError;
use crate::results::{Machine, Results, Scenario};

/// The results so far, to be added to.
pub fn continued(earlier: &Results, machine: &Machine) -> Result<Results, RunError> {
    if let Some(why) = difference(&earlier.machine, machine) {
        return Err(RunError::Resume(why));
    }
    let mut results = earlier.clone();
    results.interrupted = None;
    results.analysis = Default::default();
    results.status = Default::default();
    let now = time::OffsetDateTime::now_utc()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default();
    results.notes.push(format!(
        "The run was interrupted after {:.0} s and went on at {now}, in clusters built anew.",
        earlier.duration_s
    ));
    Ok(results)
}

/// Why the blocks of now would not be the blocks of then.
fn difference(then: &Machine, now: &Machine) -> Option<String> {
    let short = |digest: &str| digest.chars().take(12).collect::<String>();
    let programs = then.binaries.keys().chain(now.binaries.keys());
    for program in programs {
        let (was, is) = (then.binaries.get(program), now.binaries.get(program));
        if was != is {
            let said = |digest: Option<&String>| {
                digest.map_or("absent".to_owned(), |digest| short(digest))
            };
            return Some(format!(
                "{program} is another one: {} then, {} now; build that one again, or begin anew with run",
                said(was),
                said(is)
            ));
        }
    }
    let differences = then.differences(now);
    (!differences.is_empty()).then(|| {
        format!(
            "the machine is another one ({}); begin anew with run",
            differences.join("; ")
        )
    })
}

/// How many blocks an experiment has, and how many of them without a void trial: those that all of its
/// scenarios have.
pub fn finished(scenarios: &[&Scenario]) -> (u32, u32) {
    let blocks = scenarios
        .iter()
        .map(|scenario| scenario.blocks.len())
        .min()
        .unwrap_or(0);
    let whole = |at: &usize| {
        scenarios.iter().all(|scenario| {
            scenario.blocks[*at]
                .trials
                .iter()
                .all(|trial| !trial.is_void())
        })
    };
    (blocks as u32, (0..blocks).filter(whole).count() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Profile, Void, synthetic};

    #[test]
    fn another_program_or_machine_is_refused_by_name() {
        let earlier = synthetic::run(Profile::Quick, 3);
        let same = earlier.machine.clone();
        let resumed = continued(&earlier, &same).expect("nothing differs");
        assert_eq!(resumed.scenarios, earlier.scenarios);
        assert!(resumed.notes.last().unwrap().contains("interrupted"));

        let mut other = same.clone();
        other
            .binaries
            .insert("duet-agent".to_owned(), "f".repeat(64));
        let said = continued(&earlier, &other).unwrap_err().to_string();
        assert!(
            said.contains("duet-agent") && said.contains("ffff"),
            "{said}"
        );
        let mut other = same;
        other.kernel = "9.9".to_owned();
        let said = continued(&earlier, &other).unwrap_err().to_string();
        assert!(said.contains("kernel"), "{said}");
    }

    #[test]
    fn the_shorter_of_two_scenarios_counts_and_voids_do_not() {
        let results = synthetic::run(Profile::Quick, 3);
        let latency = results.scenario("L1").unwrap();
        let mut shorter = latency.clone();
        shorter.blocks.truncate(4);
        shorter.blocks[1].trials[0].voids.push(Void {
            gate: "steal".to_owned(),
            measured: 1.0,
            limit: 0.0,
            message: String::new(),
        });
        let (blocks, whole) = finished(&[latency, &shorter]);
        assert_eq!(blocks, 4);
        assert!(whole < 4);
        assert_eq!(finished(&[]), (0, 0));
    }
}
