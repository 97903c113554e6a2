//! S3: whether a Job ends when its application does.
//!
//! The complaint as old as sidecars: a proxy that goes on keeps its Job from ever
//! ending. The Job asks a server once, ends, and is watched until Kubernetes says
//! that it is over, or for so long that it will not be.

use super::bed::Shape;
use super::steady::PATH;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::arm::Arm;
use crate::cluster::kube::{APP, Observed, Stage, exit_code};
use crate::cluster::monotonic_ns;
use crate::results::{Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the application may take to end.
const APP_ENDS: Duration = Duration::from_secs(60);
/// After its end, a Job that is not over by then hangs.
const HANGS_AFTER: Duration = Duration::from_secs(12);
/// From a CronJob's making to the end of its first Job: up to a minute until it is due.
const CRON_ENDS: Duration = Duration::from_secs(85);
/// From one look at a Job to the next.
const LOOK_EVERY: Duration = Duration::from_millis(40);
const EXIT_CODES: [i32; 2] = [0, 3];

/// How a Job is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    With(i32),
    ByCron,
}

#[derive(Default)]
pub struct Jobs {
    /// CronJobs that wait for their minute.
    waiting: Vec<(Arm, Stage, Instant)>,
}

impl Ends {
    fn point(self) -> Point {
        match self {
            Self::With(code) => Point::at(format!("exit {code}"), f64::from(code)),
            Self::ByCron => Point::at("CronJob", 100.0),
        }
    }
}

impl Experiment for Jobs {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::S3]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(keys::JOBS_ENDED, "Jobs that ended", "Jobs", Kind::Count)
                .higher_is_better(),
            Metric::value(
                keys::EXIT_CODES_KEPT,
                "Jobs that ended with their exit code",
                "Jobs",
                Kind::Count,
            )
            .higher_is_better(),
            Metric::value(
                keys::TERMINAL,
                "from the application's end to the Job's",
                "ms",
                Kind::Latency,
            ),
        ]
    }

    fn prepare_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_secs(1)
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_secs(7)
    }

    fn prepare(&mut self, lab: &Lab<'_>, arms: &[Arm]) -> Result<(), Failure> {
        lab.stand(Shape::Pair, arms)?;
        if !lab.plan.pace.cron {
            return Ok(());
        }
        for arm in arms {
            let stage = lab.stage(*arm)?;
            let url = lab.bed(Shape::Pair, *arm)?.url("near", "http1", PATH)?;
            stage.make::<CronJob>(cron_job(&stage, &url))?;
            self.waiting.push((*arm, stage, Instant::now()));
        }
        Ok(())
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("exit_codes".to_owned(), json!(EXIT_CODES)),
            ("hangs_after_s".to_owned(), json!(HANGS_AFTER.as_secs())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "A Job that is not over so long after its application ended is counted as hanging; it \
             would hang for ever, or until somebody notices."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let began = Instant::now();
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let url = bed.url("near", "http1", PATH)?;
        let stage = lab.stage(visit.arm)?;
        for code in EXIT_CODES {
            stage.make::<Job>(job(&stage, &url, code))?;
        }
        let mut found: Vec<(Ends, Outcome)> = Vec::new();
        for code in EXIT_CODES {
            found.push((Ends::With(code), outcome(lab, &stage, code)?));
        }
        // In the arm's last visit its CronJob has had the longest to become due.
        if visit.block + 1 == lab.plan.pace.life_blocks
            && let Some(at) = self.waiting.iter().position(|(arm, ..)| *arm == visit.arm)
        {
            let (_, stage, since) = self.waiting.remove(at);
            found.push((Ends::ByCron, of_cron(&stage, since)?));
        }
        Ok(found
            .into_iter()
            .map(|(ends, outcome)| {
                let trial = Trial {
                    arm: visit.arm.name().to_owned(),
                    point: ends.point(),
                    repeat: 0,
                    started_s: began.duration_since(lab.started).as_secs_f64(),
                    duration_s: began.elapsed().as_secs_f64(),
                    load: None,
                    histograms: Default::default(),
                    values: outcome.values(),
                    timelines: Vec::new(),
                    voids: Vec::new(),
                    notes: outcome.note.clone().into_iter().collect(),
                };
                (Id::S3, trial)
            })
            .collect())
    }
}

/// What became of a Job whose application ended.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    ended: bool,
    kept: bool,
    /// From the application's end to the Job's.
    terminal: Option<Duration>,
    note: Option<String>,
}

impl Outcome {
    fn values(&self) -> BTreeMap<String, f64> {
        let number = |yes: bool| f64::from(u8::from(yes));
        let mut values = BTreeMap::from([
            (keys::JOBS.to_owned(), 1.0),
            (keys::JOBS_ENDED.to_owned(), number(self.ended)),
            (keys::EXIT_CODES_KEPT.to_owned(), number(self.kept)),
        ]);
        if let Some(terminal) = self.terminal {
            values.insert(keys::TERMINAL.to_owned(), terminal.as_secs_f64() * 1000.0);
        }
        values
    }
}

fn name(code: i32) -> String {
    format!("exit-{code}")
}

fn template(stage: &Stage, name: &str, url: &str, code: i32) -> Value {
    let code = code.to_string();
    let app = stage.container(
        APP,
        &["errand", "--url", url, "--linger", "500ms", "--exit", &code],
    );
    let mut metadata = stage.pod_metadata(name);
    metadata["name"] = Value::Null;
    let mut spec = stage.pod_spec(1, json!([app]));
    spec["restartPolicy"] = json!("Never");
    json!({"metadata": metadata, "spec": spec})
}

fn job(stage: &Stage, url: &str, code: i32) -> Value {
    let name = name(code);
    json!({
        "metadata": stage.metadata(&name),
        "spec": {"backoffLimit": 0, "template": template(stage, &name, url, code)},
    })
}

fn cron_job(stage: &Stage, url: &str) -> Value {
    json!({
        "metadata": stage.metadata("cron"),
        "spec": {
            "schedule": "* * * * *",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {
                "metadata": {"labels": stage.metadata("cron")["labels"]},
                "spec": {"backoffLimit": 0, "template": template(stage, "cron", url, 0)},
            },
        },
    })
}

fn outcome(lab: &Lab<'_>, stage: &Stage, code: i32) -> Result<Outcome, Failure> {
    let name = name(code);
    let pod = stage.watch(&name, APP_ENDS, |pods| {
        let pod = pods.first()?;
        exit_code(pod, APP).map(|_| pod.clone())
    })?;
    let Some(pod) = pod else {
        let missing = stage.pods(&name)?.first().map(Observed::missing);
        return Err(Failure::Pod {
            pod: stage.named(&name),
            problem: format!(
                "its application has not ended after {APP_ENDS:?}: {}",
                missing.unwrap_or_default()
            ),
        });
    };
    let ended_ns = stage
        .last_words(&pod, APP)?
        .map_or_else(monotonic_ns, |errand| errand.ended_ns);
    let waited = Duration::from_nanos(monotonic_ns().saturating_sub(ended_ns));
    let kube = stage.kube();
    let over = kube.look_every(LOOK_EVERY, HANGS_AFTER.saturating_sub(waited), || {
        let job: Job = stage.get(&name)?;
        Ok(verdict(&job))
    })?;
    lab.interrupt.check()?;
    let seen = exit_code(&pod, APP);
    Ok(Outcome {
        ended: over.is_some(),
        kept: seen == Some(code) && over == Some(code == 0),
        terminal: over.map(|_| Duration::from_nanos(monotonic_ns().saturating_sub(ended_ns))),
        note: over.is_none().then(|| {
            format!(
                "it goes on: {}",
                still_there(stage, &name).unwrap_or_default()
            )
        }),
    })
}

/// Complete, failed, or not over.
fn verdict(job: &Job) -> Option<bool> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .filter(|condition| condition.status == "True")
        .find_map(|condition| match condition.type_.as_str() {
            "Complete" => Some(true),
            "Failed" => Some(false),
            _ => None,
        })
}

/// Which containers of a Job's pod still run.
fn still_there(stage: &Stage, name: &str) -> Option<String> {
    let pods = stage.pods(name).ok()?;
    let running: Vec<String> = pods
        .first()?
        .statuses()
        .into_iter()
        .filter(|status| {
            status
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some())
        })
        .map(|status| status.name.clone())
        .collect();
    Some(format!("{} runs", running.join(", ")))
}

fn of_cron(stage: &Stage, since: Instant) -> Result<Outcome, Failure> {
    let left = CRON_ENDS.saturating_sub(since.elapsed());
    let kube = stage.kube();
    let succeeded = kube.look(left, || {
        let cron: CronJob = stage.get("cron")?;
        let status = cron.status.unwrap_or_default();
        Ok(status.last_successful_time.map(drop))
    })?;
    let cron: CronJob = stage.get("cron")?;
    let status = cron.status.unwrap_or_default();
    let began = status.last_schedule_time.is_some();
    Ok(Outcome {
        ended: succeeded.is_some(),
        kept: succeeded.is_some(),
        terminal: None,
        note: match (began, succeeded) {
            (_, Some(())) => None,
            (true, None) => Some(
                "its first Job goes on, so the next is never started (concurrencyPolicy Forbid)"
                    .to_owned(),
            ),
            (false, None) => Some("it was not due in time".to_owned()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(condition: &str, status: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": {},
            "status": {"conditions": [{"type": condition, "status": status}]},
        }))
        .expect("a Job")
    }

    #[test]
    fn only_a_true_condition_ends_a_job() {
        assert_eq!(verdict(&job("Complete", "True")), Some(true));
        assert_eq!(verdict(&job("Failed", "True")), Some(false));
        assert_eq!(verdict(&job("Complete", "False")), None);
        assert_eq!(verdict(&job("SuccessCriteriaMet", "True")), None);
    }

    #[test]
    fn a_hanging_job_has_no_time() {
        let values = Outcome::default().values();
        assert_eq!(values[keys::JOBS_ENDED], 0.0);
        assert!(!values.contains_key(keys::TERMINAL));
    }
}
