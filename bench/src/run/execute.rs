//! A run, from the command line's wishes to the files it leaves.
//!
//! Results are written after every block, by rename, so that whatever ends a run
//! ends it with all finished blocks on disk.

use super::ground::{Ground, Prepared};
use super::machine;
use super::parity;
use super::preflight::Refusal;
use super::{Interrupt, Interrupted, Plan, Progress};
use crate::cluster;
use crate::results::{self, Block, Results, SCHEMA, Scenario};
use crate::scenario::{Beds, Experiment, Failure, Id, Lab, Visit, experiments};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    for stale in ["results.json", "report.html", "summary.md"] {
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
    if plan.profile == results::Profile::Smoke {
        notes.push("A smoke run shows that everything works; it claims nothing.".to_owned());
    }

    let started = Instant::now();
    let tls_suite = machine.tls_suite.clone();
    let mut results = Results {
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
        arms: parity::arms(&plan.arms, &binaries, &[]),
        parity: Vec::new(),
        scenarios: Vec::new(),
        interrupted: None,
        notes,
        analysis: Default::default(),
        status: Default::default(),
    };

    let wanted: Vec<Box<dyn Experiment>> = experiments()
        .into_iter()
        .filter(|experiment| plan.wants(experiment.scenarios()))
        .collect();
    let progress = Progress::start(estimate(plan, &wanted));
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
    };
    let mut ended_early = None;
    for mut experiment in wanted {
        if let Err(error) = ask(&lab, experiment.as_mut(), &mut journal) {
            ended_early = Some(error);
            break;
        }
    }
    progress.doing("removing the clusters");
    let given = beds.parity();
    beds.keep_only(&[]);
    if let Some(kube) = &kube {
        results.machine.scheduler = kube.generator_class().to_owned();
        kube.remove();
    }
    progress.finish();

    results.arms = parity::arms(&plan.arms, &binaries, &given);
    results.parity = parity::rows(&plan.arms, &binaries, &given, &tls_suite);
    results.interrupted = ended_early.as_ref().map(ToString::to_string);
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
        ended_early,
    })
}

/// How long a plan takes, about.
pub fn estimate(plan: &Plan, experiments: &[Box<dyn Experiment>]) -> Duration {
    experiments
        .iter()
        .map(|experiment| {
            let id = leading(plan, experiment.as_ref());
            let visits = plan.blocks(id) * plan.arms_of(id).len() as u32;
            experiment.prepare_estimate(plan) + experiment.visit_estimate(plan) * visits
        })
        .sum()
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
}

impl Journal<'_> {
    fn save(&mut self) -> Result<(), RunError> {
        self.results.duration_s = self.started.elapsed().as_secs_f64();
        Ok(results::write(self.results, self.file)?)
    }
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
    let names = experiment
        .scenarios()
        .iter()
        .filter(|id| plan.scenarios.contains(id))
        .map(|id| id.name())
        .collect::<Vec<_>>()
        .join(", ");

    lab.beds.keep_only(&experiment.shapes(plan));
    experiment.prepare(lab, &arms).map_err(failed)?;
    lab.progress.done(
        &format!("{names}: prepared"),
        experiment.prepare_estimate(plan),
    );

    let kept: Vec<Id> = experiment
        .scenarios()
        .iter()
        .copied()
        .filter(|id| plan.scenarios.contains(id))
        .collect();
    let first = journal.results.scenarios.len();
    for id in &kept {
        journal.results.scenarios.push(Scenario {
            id: id.name().to_owned(),
            title: id.title().to_owned(),
            question: id.question().to_owned(),
            parameters: experiment.parameters(*id, plan),
            metrics: experiment.metrics(*id),
            blocks: Vec::new(),
            notes: experiment.notes(*id),
        });
    }

    let blocks = plan.blocks(id);
    let block_estimate = experiment.visit_estimate(plan) * arms.len() as u32;
    let mut complete = 0;
    for index in 0.. {
        if index >= blocks {
            if complete >= blocks || journal.spare < block_estimate {
                break;
            }
            journal.spare -= block_estimate;
            lab.progress
                .line(&format!("{names}: void trials; one block more"));
        }
        let order = plan.order(id, index, &arms);
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
            let visited = match experiment.visit(lab, visit) {
                // Nothing was measured, so there is nothing that could be hidden.
                Err(failure) if failure.measured_nothing() => {
                    lab.progress.line(&format!("once more: {failure}"));
                    experiment.visit(lab, visit)
                }
                visited => visited,
            };
            trials.extend(visited.map_err(failed)?);
            lab.progress.done(
                &format!("{names}: block {} of {blocks}, {arm}", index + 1),
                experiment.visit_estimate(plan),
            );
        }
        complete += u32::from(trials.iter().all(|(_, trial)| trial.voids.is_empty()));
        for (offset, id) in kept.iter().enumerate() {
            journal.results.scenarios[first + offset]
                .blocks
                .push(Block {
                    index,
                    order: order.iter().map(|arm| arm.name().to_owned()).collect(),
                    trials: trials
                        .iter()
                        .filter(|(of, _)| of == id)
                        .map(|(_, trial)| trial.clone())
                        .collect(),
                });
        }
        journal.save()?;
    }
    Ok(())
}
