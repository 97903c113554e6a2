//! A run, from the command line's wishes to the files it leaves.
//!
//! Results are written after every block, by rename, so that whatever ends a run
//! ends it with all finished blocks on disk.

use super::ground::{Ground, Prepared};
use super::machine;
use super::parity;
use super::preflight::{Binaries, Refusal};
use super::resume;
use super::{Interrupt, Interrupted, Plan, Progress};
use crate::cluster;
use crate::report;
use crate::results::{self, Block, Results, SCHEMA, Scenario};
use crate::scenario::{Beds, Experiment, Failure, Id, Lab, Visit, experiments};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a generator may fail to begin in time before its scenario is given up.
const TRIES: u32 = 5;

/// What the command line asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is to be done.
    pub plan: Plan,
    /// What it is done on.
    pub ground: Ground,
    /// Where the files go.
    pub out: PathBuf,
    /// Whether binaries without optimisation are let through.
    pub allow_debug: bool,
    /// The command line, for the record.
    pub command: Vec<String>,
    /// What a reader has to know of it.
    pub notes: Vec<String>,
    /// What there is of this run already, if it goes on.
    pub earlier: Option<Results>,
}

/// A run that came to an end; its analysis is still to be made.
#[derive(Debug)]
pub struct Finished {
    /// What was measured.
    pub results: Results,
    /// Where it is.
    pub out: PathBuf,
    /// Why it ended early, if it did.
    pub ended_early: Option<RunError>,
}

/// Why there is no run, or only a part of one.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Somebody wanted it to end.
    #[error("interrupted; finished blocks are kept")]
    Interrupted,
    /// It would not be the same run.
    #[error("--resume: {0}")]
    Resume(String),
    /// The binaries cannot be compared.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Network namespaces and cgroups need root.
    #[error("this needs root: network namespaces, cgroups and eBPF; run it with sudo")]
    NotRoot,
    /// Something else is missing.
    #[error("{0}")]
    Machine(String),
    /// A scenario could not go on.
    #[error("{scenario}: {failure}")]
    Scenario {
        /// Which.
        scenario: String,
        /// Why.
        failure: Failure,
    },
    /// Files could not be written.
    #[error(transparent)]
    File(#[from] results::FileError),
    /// The directory for the files could not be made.
    #[error("--out {path}: {source}", path = path.display())]
    Out {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Signals could not be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The machine lacks something.
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
}

/// Runs a plan. An error means that nothing was measured; a run that ended early
/// says so in what it returns.
pub fn run(options: &Options) -> Result<Finished, RunError> {
    let plan = &options.plan;
    let binaries = options.ground.examine(options)?;
    std::fs::create_dir_all(&options.out).map_err(|source| RunError::Out {
        path: options.out.clone(),
        source,
    })?;
    // What an earlier run left there would pass for this one's if it is killed.
    let derived = report::DERIVED.into_iter();
    let own = options.earlier.is_none().then_some("results.json");
    for stale in derived.chain(own) {
        match std::fs::remove_file(options.out.join(stale)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(RunError::Out {
                    path: options.out.join(stale),
                    source,
                });
            }
            _ => {}
        }
    }
    let interrupt = Interrupt::listen().map_err(RunError::Signals)?;
    let Prepared {
        site,
        kube,
        binaries,
        machine,
        mut notes,
        claims_nothing,
    } = options.ground.prepare(options, binaries, &interrupt)?;
    notes.extend(options.notes.iter().cloned());
    if options.earlier.is_some() && options.ground == Ground::Netns {
        // What a killed run left would go on using the machine.
        cluster::clean_all(false)?;
    }
    if plan.profile == results::Profile::Smoke {
        notes.push("A smoke run shows that everything works; it claims nothing.".to_owned());
    }

    let tls_suite = machine.tls_suite.clone();
    let mut results = match &options.earlier {
        Some(earlier) => resume::continued(earlier, &machine)?,
        None => Results {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: time::OffsetDateTime::now_utc()
                .format(&time::format_description::well_known::Rfc3339)
                .unwrap_or_default(),
            duration_s: 0.0,
            profile: if claims_nothing {
                results::Profile::Smoke
            } else {
                plan.profile
            },
            seed: plan.seed,
            cluster: options.ground.name().to_owned(),
            command: options.command.clone(),
            machine,
            arms: parity::arms(&plan.arms, &binaries, &[], plan.kubelet),
            parity: Vec::new(),
            scenarios: Vec::new(),
            interrupted: None,
            foreign: Vec::new(),
            notes,
            analysis: Default::default(),
            status: Default::default(),
        },
    };
    // Of the whole run: what it ran before counts.
    let started = Instant::now()
        .checked_sub(Duration::from_secs_f64(results.duration_s.max(0.0)))
        .unwrap_or_else(Instant::now);

    let wanted: Vec<Box<dyn Experiment>> = experiments()
        .into_iter()
        .filter(|experiment| plan.wants(experiment.scenarios()))
        .collect();
    let progress = Progress::start(remaining(plan, &wanted, &results));
    let beds = Beds::default();
    let lab = Lab {
        plan,
        interrupt: &interrupt,
        progress: &progress,
        started,
        site: site.as_ref(),
        kube: kube.as_ref(),
        beds: &beds,
    };
    let file = options.out.join("results.json");
    let mut journal = Journal {
        results: &mut results,
        file: &file,
        started,
        spare: plan.pace.spare,
        record: Record {
            plan,
            binaries: &binaries,
            tls_suite: &tls_suite,
            beds: &beds,
        },
    };
    let mut failures = Vec::new();
    for mut experiment in wanted {
        match ask(&lab, experiment.as_mut(), &mut journal) {
            Ok(()) => {}
            // The others have their own clusters; --resume makes up for this one.
            Err(error @ RunError::Scenario { .. }) => {
                progress.line(&format!("given up: {error}"));
                beds.keep_only(&[]);
                failures.push(error);
            }
            Err(error) => {
                failures.push(error);
                break;
            }
        }
    }
    progress.doing("removing the clusters");
    journal.record.what_was_given(journal.results);
    beds.keep_only(&[]);
    if let Some(kube) = &kube {
        results.machine.scheduler = kube.generator_class().to_owned();
        kube.remove();
    }
    progress.finish();

    let why: Vec<String> = failures.iter().map(ToString::to_string).collect();
    results.interrupted = (!why.is_empty()).then(|| why.join("; "));
    if kube.is_none() {
        results.machine.pressure_after = machine::pressure();
    }
    results.duration_s = started.elapsed().as_secs_f64();
    let order = |id: &str| Id::ALL.iter().position(|known| known.name() == id);
    results
        .scenarios
        .sort_by_key(|scenario| order(&scenario.id));
    Ok(Finished {
        results,
        out: options.out.clone(),
        ended_early: failures.pop(),
    })
}

/// How long a plan takes, about.
pub fn estimate(plan: &Plan, experiments: &[Box<dyn Experiment>]) -> Duration {
    time_of(plan, experiments, |_| 0)
}

/// How long what is missing takes, about.
fn remaining(plan: &Plan, experiments: &[Box<dyn Experiment>], results: &Results) -> Duration {
    time_of(plan, experiments, |experiment| {
        done(plan, experiment, results).0
    })
}

fn time_of(
    plan: &Plan,
    experiments: &[Box<dyn Experiment>],
    finished: impl Fn(&dyn Experiment) -> u32,
) -> Duration {
    experiments
        .iter()
        .map(|experiment| {
            let id = leading(plan, experiment.as_ref());
            let blocks = finished(experiment.as_ref())..plan.blocks(id);
            if blocks.is_empty() {
                return Duration::ZERO;
            }
            let arms = plan.arms_of(id);
            let visits: Duration = blocks
                .flat_map(|block| plan.arms_in(id, block, &arms))
                .map(|arm| experiment.visit_estimate_of(plan, arm))
                .sum();
            experiment.prepare_estimate(plan) + visits
        })
        .sum()
}

/// The scenarios of an experiment that are wanted.
fn kept(plan: &Plan, experiment: &dyn Experiment) -> Vec<Id> {
    let all = experiment.scenarios().iter().copied();
    all.filter(|id| plan.scenarios.contains(id)).collect()
}

/// Blocks that an experiment has, and those of them without a void trial.
fn done(plan: &Plan, experiment: &dyn Experiment, results: &Results) -> (u32, u32) {
    let scenarios: Vec<&Scenario> = kept(plan, experiment)
        .iter()
        .filter_map(|id| results.scenario(id.name()))
        .collect();
    if scenarios.len() < kept(plan, experiment).len() {
        return (0, 0);
    }
    resume::finished(&scenarios)
}

/// The scenario that says how often an experiment's arms are visited.
fn leading(plan: &Plan, experiment: &dyn Experiment) -> Id {
    let all = experiment.scenarios();
    all.iter()
        .copied()
        .find(|id| plan.scenarios.contains(id))
        .unwrap_or(all[0])
}

/// Results as they grow.
struct Journal<'a> {
    results: &'a mut Results,
    file: &'a Path,
    started: Instant,
    /// What is left of the plan's.
    spare: Duration,
    record: Record<'a>,
}

/// What arms were given, which is known once their beds stand.
struct Record<'a> {
    plan: &'a Plan,
    binaries: &'a Binaries,
    tls_suite: &'a str,
    beds: &'a Beds,
}

impl Record<'_> {
    /// Writes it down, beside what the first part of a run that goes on was given.
    fn what_was_given(&self, results: &mut Results) {
        let given = self.beds.parity();
        let arms = &self.plan.arms;
        let mut rows = parity::rows(arms, self.binaries, &given, self.tls_suite);
        let earlier = std::mem::take(&mut results.parity);
        for row in earlier {
            if !rows.iter().any(|known| known.what == row.what) {
                rows.push(row);
            }
        }
        results.parity = rows;
        let mut now = parity::arms(arms, self.binaries, &given, self.plan.kubelet);
        for arm in &mut now {
            if arm.limits.is_none()
                && let Some(known) = results.arm(&arm.name)
            {
                arm.limits.clone_from(&known.limits);
                arm.workers = known.workers;
            }
        }
        results.arms = now;
    }
}

impl Journal<'_> {
    fn scenario(&mut self, id: Id) -> Option<&mut Scenario> {
        let mut all = self.results.scenarios.iter_mut();
        all.find(|scenario| scenario.id == id.name())
    }

    fn save(&mut self) -> Result<(), RunError> {
        self.results.duration_s = self.started.elapsed().as_secs_f64();
        self.record.what_was_given(self.results);
        Ok(results::write(self.results, self.file)?)
    }
}

/// Tries again where a generator did not begin in time: nothing was measured, so there is nothing that could be
/// hidden.
fn patiently<T>(
    lab: &Lab<'_>,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    for _ in 1..TRIES {
        match attempt() {
            Err(failure) if failure.measured_nothing() => {
                lab.progress.line(&format!("once more: {failure}"));
            }
            outcome => return outcome,
        }
    }
    attempt()
}

fn ask(
    lab: &Lab<'_>,
    experiment: &mut dyn Experiment,
    journal: &mut Journal<'_>,
) -> Result<(), RunError> {
    let plan = lab.plan;
    let id = leading(plan, experiment);
    let arms = plan.arms_of(id);
    if arms.is_empty() {
        return Ok(());
    }
    let failed = |failure: Failure| match failure {
        Failure::Interrupted(Interrupted) => RunError::Interrupted,
        failure => RunError::Scenario {
            scenario: id.name().to_owned(),
            failure,
        },
    };
    let kept = kept(plan, experiment);
    let names: Vec<&str> = kept.iter().map(|id| id.name()).collect();
    let names = names.join(", ");
    let blocks = plan.blocks(id);
    let (before, mut complete) = done(plan, experiment, journal.results);
    if before >= blocks {
        lab.progress.line(&format!("{names}: measured already"));
        return Ok(());
    }
    if let Some(known) = journal.results.scenario(id.name()).filter(|_| before > 0) {
        experiment.recall(&known.parameters);
    }

    lab.beds.keep_only(&experiment.shapes(plan));
    patiently(lab, || experiment.prepare(lab, &arms)).map_err(failed)?;
    lab.progress.done(
        &format!("{names}: prepared"),
        experiment.prepare_estimate(plan),
    );

    for id in &kept {
        let mut scenario = Scenario {
            id: id.name().to_owned(),
            title: id.title().to_owned(),
            question: id.question().to_owned(),
            parameters: experiment.parameters(*id, plan),
            metrics: experiment.metrics(*id),
            blocks: Vec::new(),
            notes: experiment.notes(*id),
        };
        match journal.scenario(*id) {
            Some(known) => {
                // Half a block, if one was under way, is made again.
                known.blocks.truncate(before as usize);
                scenario.blocks = std::mem::take(&mut known.blocks);
                *known = scenario;
            }
            None => journal.results.scenarios.push(scenario),
        }
    }

    for index in before.. {
        let order = plan.order(id, index, &plan.arms_in(id, index, &arms));
        if index >= blocks {
            let visits = order.iter();
            let takes: Duration = visits
                .map(|arm| experiment.visit_estimate_of(plan, *arm))
                .sum();
            if complete >= blocks || journal.spare < takes {
                break;
            }
            journal.spare -= takes;
            lab.progress
                .line(&format!("{names}: void trials; one block more"));
        }
        let mut trials = Vec::new();
        for arm in &order {
            lab.interrupt.check().map_err(|i| failed(i.into()))?;
            lab.progress.doing(&format!(
                "{names} · block {} of {blocks} · {arm}",
                index + 1
            ));
            let visit = Visit {
                block: index,
                arm: *arm,
            };
            let visited = patiently(lab, || experiment.visit(lab, visit));
            trials.extend(visited.map_err(failed)?);
            lab.progress.done(
                &format!("{names}: block {} of {blocks}, {arm}", index + 1),
                experiment.visit_estimate_of(plan, *arm),
            );
        }
        complete += u32::from(trials.iter().all(|(_, trial)| trial.voids.is_empty()));
        for id in &kept {
            let block = Block {
                index,
                order: order.iter().map(|arm| arm.name().to_owned()).collect(),
                trials: trials
                    .iter()
                    .filter(|(of, _)| of == id)
                    .map(|(_, trial)| trial.clone())
                    .collect(),
            };
            if let Some(scenario) = journal.scenario(*id) {
                scenario.blocks.push(block);
            }
        }
        journal.save()?;
    }
    Ok(())
}
