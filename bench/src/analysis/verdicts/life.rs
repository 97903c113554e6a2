//! What the mesh does to the life of a pod: its start, its end, its Job, its
//! upgrade. All of it is counted, and said of how many.

use super::super::words;
use super::{Case, behind, subject};
use crate::results::{Arm, Basis, Placement, Trial, Verdict, keys};
use crate::stats::{CONFIDENCE, clopper_pearson, median};

/// S3's points by exit code lie below this, its CronJob above.
const CRON_X: f64 = 50.0;

pub fn first_act(case: &Case) -> Option<Verdict> {
    let seen = each(case, |arm| {
        Share::of(case, arm, (keys::STARTS_WITH_FAILURE, keys::STARTS), all)
    })?;
    let times: Vec<String> = each(case, |arm| middle(case, arm, keys::FIRST_EGRESS))
        .unwrap_or_default()
        .iter()
        .map(|(arm, ms)| format!("{} {}", words::quantity(*ms, "ms"), behind(arm)))
        .collect();
    let whole: Vec<String> = each(case, |arm| middle(case, arm, keys::ASKED_TO_ANSWERED))
        .unwrap_or_default()
        .iter()
        .map(|(arm, ms)| format!("{} {}", words::quantity(*ms, "ms"), behind(arm)))
        .collect();
    let mut verdict = case.verdict(
        "Does an application find the network when it starts?",
        Basis::Counted,
        format!(
            "Of the pods, a request failed before the first that succeeded in {}.{}{}",
            told(&seen, Share::in_words),
            sentence(
                "The first answer came this long after the application's first line: ",
                &times
            ),
            sentence("After the pod was asked for: ", &whole),
        ),
    );
    verdict.figures = figures(&seen, |share| format!("{} failed first", share.short()));
    Some(verdict)
}

pub fn init_container(case: &Case) -> Option<Verdict> {
    let seen = each(case, |arm| {
        Share::of(case, arm, (keys::INITS_ANSWERED, keys::INITS), all)
    })?;
    let mut verdict = case.verdict(
        "Can an init container use the network?",
        Basis::Counted,
        format!("Answered were {}.", told(&seen, Share::in_words)),
    );
    verdict.figures = figures(&seen, |share| format!("{} answered", share.short()));
    Some(verdict)
}

pub fn jobs(case: &Case) -> Option<Verdict> {
    let plain = |trial: &Trial| trial.point.x < CRON_X;
    let by_cron = |trial: &Trial| trial.point.x >= CRON_X;
    let seen = each(case, |arm| {
        Share::of(case, arm, (keys::JOBS_ENDED, keys::JOBS), plain)
    })?;
    let kept: Vec<String> = each(case, |arm| {
        Share::of(case, arm, (keys::EXIT_CODES_KEPT, keys::JOBS_ENDED), plain)
    })
    .unwrap_or_default()
    .iter()
    .filter(|(_, share)| share.hits < share.of)
    .map(|(arm, share)| format!("{} {}", share.in_words(), behind(arm)))
    .collect();
    let kept = if kept.is_empty() {
        " Every Job that ended kept its exit code.".to_string()
    } else {
        sentence("Exit codes were kept by only ", &kept)
    };
    let times: Vec<String> = each(case, |arm| middle(case, arm, keys::TERMINAL))
        .unwrap_or_default()
        .iter()
        .map(|(arm, ms)| format!("{} {}", words::quantity(*ms, "ms"), behind(arm)))
        .collect();
    let cron: Vec<String> = each(case, |arm| {
        Share::of(case, arm, (keys::JOBS_ENDED, keys::JOBS), by_cron)
    })
    .unwrap_or_default()
    .iter()
    .map(|(arm, share)| {
        let word = if share.hits == share.of {
            "ended"
        } else {
            "hung"
        };
        format!("{word} {}", behind(arm))
    })
    .collect();
    let mut verdict = case.verdict(
        "Does a Job end when its application does?",
        Basis::Counted,
        format!(
            "Ended did {}.{kept}{}{}",
            told(&seen, Share::in_words),
            sentence("From the application's end to the Job's it took ", &times),
            sentence("A CronJob's first Job ", &cron),
        ),
    );
    verdict.figures = figures(&seen, |share| format!("{} ended", share.short()));
    Some(verdict)
}

pub fn deleted_pod(case: &Case) -> Option<Verdict> {
    let inward = each(case, |arm| {
        Share::of(case, arm, (keys::INGRESS_FAILED, keys::INGRESS), all)
    })?;
    let outward = each(case, |arm| {
        Share::of(case, arm, (keys::EGRESS_FAILED, keys::EGRESS), all)
    })
    .unwrap_or_default();
    let order: Vec<String> = each(case, |arm| middle(case, arm, keys::PROXY_OUTLIVED))
        .unwrap_or_default()
        .iter()
        .map(|(arm, ms)| {
            let time = words::quantity(ms.abs(), "ms");
            if *ms >= 0.0 {
                format!("{time} after its application {}", behind(arm))
            } else {
                format!("{time} before its application {}", behind(arm))
            }
        })
        .collect();
    let mut verdict = case.verdict(
        "A pod is deleted under load: what is lost?",
        Basis::Counted,
        format!(
            "Of the requests to two servers of which one was deleted failed {}.{}{}",
            told(&inward, Share::in_words),
            sentence(
                "Of those that the deleted pod made itself until its application ended failed ",
                &lines(&outward, Share::in_words)
            ),
            sentence("The proxy ended ", &order),
        ),
    );
    verdict.figures = figures(&inward, |share| format!("{} lost inbound", share.hits));
    Some(verdict)
}

pub fn what_is_seen(case: &Case) -> Option<Verdict> {
    let seen = each(case, |arm| middle(case, arm, keys::CONTAINERS_SHOWN))?;
    let logs: Vec<String> = each(case, |arm| middle(case, arm, keys::LOGS_ARE_THE_APPS))
        .unwrap_or_default()
        .iter()
        .filter(|(_, yes)| *yes < 1.0)
        .map(|(arm, _)| behind(arm))
        .collect();
    let logs = if logs.is_empty() {
        "`kubectl logs` shows the application's log everywhere.".to_string()
    } else {
        format!(
            "`kubectl logs` does not show the application's log {}.",
            words::list(&logs)
        )
    };
    let counted: Vec<String> = seen
        .iter()
        .map(|(arm, count)| format!("{} {}", words::number(*count), behind(arm)))
        .collect();
    let mut verdict = case.verdict(
        "What does somebody see who lists the pods?",
        Basis::Counted,
        format!(
            "An application of one container is listed with {}. {logs}",
            words::list(&counted)
        ),
    );
    verdict.figures = figures(&seen, |count| words::plural(*count as u32, "container"));
    Some(verdict)
}

pub fn upgrade(case: &Case) -> Option<Verdict> {
    let failed = each(case, |arm| {
        let pair = (keys::NEW_CONNECTIONS_FAILED, keys::NEW_CONNECTIONS);
        Share::of(case, arm, pair, all)
    })?;
    let told: Vec<String> = failed
        .iter()
        .map(|(arm, share)| {
            let cut = Share::of(
                case,
                &arm.name,
                (keys::LONG_LIVED_RESET, keys::LONG_LIVED),
                all,
            )
            .map(|share| format!(", cut {} of {} open ones", share.hits, share.of))
            .unwrap_or_default();
            let restarted = middle(case, &arm.name, keys::APPS_RESTARTED)
                .map(|count| {
                    let apps = words::plural(count as u32, "application");
                    format!(", started {apps} again")
                })
                .unwrap_or_default();
            let time = middle(case, &arm.name, keys::UPGRADE_WALL)
                .map(|s| format!(" and took {}", words::quantity(s, "s")))
                .unwrap_or_default();
            format!(
                "replacing {} failed {} new connections{cut}{restarted}{time}",
                proxies_of(arm),
                share.in_words()
            )
        })
        .collect();
    let mut verdict = case.verdict(
        "What does an upgrade of the proxy cost?",
        Basis::Counted,
        format!("Under load, {}.", told.join("; ")),
    );
    verdict.figures = failed
        .iter()
        .map(|(arm, share)| {
            let restarted = middle(case, &arm.name, keys::APPS_RESTARTED).unwrap_or(0.0);
            (
                arm.name.clone(),
                format!(
                    "{} failed, {} restarted",
                    share.hits,
                    words::plural(restarted as u32, "app")
                ),
            )
        })
        .collect();
    Some(verdict)
}

pub fn exhausted_proxy(case: &Case) -> Option<Verdict> {
    let hit = each(case, |arm| {
        let pods = middle(case, arm, keys::PODS_HIT)?;
        Some((pods, middle(case, arm, keys::PODS_MESHED)?))
    })?;
    let told: Vec<String> = hit
        .iter()
        .map(|(arm, (pods, of))| {
            let lost = middle(case, &arm.name, keys::REQUESTS_LOST)
                .map(|count| format!(", lost {}", words::quantity(count, "requests")))
                .unwrap_or_default();
            let time = middle(case, &arm.name, keys::TIME_TO_RECOVER)
                .map(|ms| format!(" and was over after {}", words::quantity(ms, "ms")))
                .unwrap_or_default();
            let apps = middle(case, &arm.name, keys::APPS_RESTARTED)
                .filter(|count| *count > 0.0)
                .map(|count| {
                    let apps = words::plural(count as u32, "application");
                    format!(", started {apps} again")
                })
                .unwrap_or_default();
            format!(
                "{} of {} pods were hit {}{lost}{apps}{time}",
                words::number(*pods),
                words::number(*of),
                behind(arm)
            )
        })
        .collect();
    let mut verdict = case.verdict(
        "One pod exhausts its proxy's memory: who goes down with it?",
        Basis::Counted,
        format!("The kernel killed that proxy, and {}.", told.join("; ")),
    );
    verdict.figures = figures(&hit, |(pods, of)| {
        format!("{}/{} pods", words::number(*pods), words::number(*of))
    });
    Some(verdict)
}

/// k of n over all good trials of an arm, with Clopper and Pearson's interval.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    hits: u64,
    of: u64,
}

impl Share {
    fn of(
        case: &Case,
        arm: &str,
        (hits, of): (&str, &str),
        which: impl Fn(&Trial) -> bool,
    ) -> Option<Self> {
        let sum = |key: &str| -> u64 {
            good(case, arm)
                .filter(|trial| which(trial))
                .filter_map(|trial| trial.values.get(key))
                .sum::<f64>() as u64
        };
        let share = Self {
            hits: sum(hits),
            of: sum(of),
        };
        (share.of > 0).then_some(Self {
            // A connection that was cut and came back may be cut again.
            hits: share.hits.min(share.of),
            ..share
        })
    }

    /// "0 of 9 [0 %, 34 %]"
    fn in_words(&self) -> String {
        let bounds = clopper_pearson(self.hits, self.of, CONFIDENCE);
        format!(
            "{} of {}{}",
            self.hits,
            self.of,
            words::brackets(Some(bounds), words::percent)
        )
    }

    fn short(&self) -> String {
        format!("{}/{}", self.hits, self.of)
    }
}

fn all(_trial: &Trial) -> bool {
    true
}

fn good<'a>(case: &Case<'a>, arm: &str) -> impl Iterator<Item = &'a Trial> {
    case.scenario
        .trials()
        .filter(move |trial| trial.arm == arm && !trial.is_void())
}

/// The median over an arm's good trials.
fn middle(case: &Case, arm: &str, key: &str) -> Option<f64> {
    let values: Vec<f64> = good(case, arm)
        .filter_map(|trial| trial.values.get(key).copied())
        .collect();
    median(&values)
}

/// What there is of each arm; nothing if there is nothing of any.
fn each<'a, T>(case: &Case<'a>, of: impl Fn(&str) -> Option<T>) -> Option<Vec<(&'a Arm, T)>> {
    let seen: Vec<(&Arm, T)> = case
        .arms()
        .filter_map(|arm| Some((arm, of(&arm.name)?)))
        .collect();
    (!seen.is_empty()).then_some(seen)
}

fn lines<T>(seen: &[(&Arm, T)], say: impl Fn(&T) -> String) -> Vec<String> {
    seen.iter()
        .map(|(arm, value)| format!("{} {}", say(value), behind(arm)))
        .collect()
}

fn told<T>(seen: &[(&Arm, T)], say: impl Fn(&T) -> String) -> String {
    words::list(&lines(seen, say))
}

fn figures<T>(seen: &[(&Arm, T)], say: impl Fn(&T) -> String) -> Vec<(String, String)> {
    seen.iter()
        .map(|(arm, value)| (arm.name.clone(), say(value)))
        .collect()
}

/// " Beginning and what follows.", or nothing.
fn sentence(beginning: &str, items: &[String]) -> String {
    if items.is_empty() {
        String::new()
    } else {
        format!(" {beginning}{}.", words::list(items))
    }
}

/// "the sidecars", "the agents".
fn proxies_of(arm: &Arm) -> String {
    match arm.placement {
        Placement::Agent => "the agents".into(),
        _ => format!("the {}", subject(arm)),
    }
}

pub fn churn(case: &Case) -> Option<Verdict> {
    let points = case.scenario.points();
    let busy = points.iter().find(|point| point.x == 1.0)?;
    let after = points.last()?;
    let counted = |key| case.said(key, Some(after), super::sum);
    let pods = counted(keys::CHURNED)?;
    let left: Vec<String> = case
        .meshes()
        .filter_map(|arm| {
            let of = |key| Some(words::number(counted(key)?.of(arm)?));
            Some(format!(
                "{} namespaces, {} entries of maps and {} open files {}",
                of(keys::LEFT_NAMESPACES)?,
                of(keys::LEFT_ENTRIES)?,
                of(keys::LEFT_FILES)?,
                behind(arm)
            ))
        })
        .collect();
    let slower: Vec<String> = case
        .meshes()
        .filter_map(|arm| {
            let of = |point: &crate::results::Point| {
                let values: Vec<f64> = case
                    .scenario
                    .trials()
                    .filter(|trial| {
                        trial.arm == arm.name && !trial.is_void() && trial.point == *point
                    })
                    .filter_map(|trial| case.scenario.values(trial).first().copied().flatten())
                    .collect();
                median(&values)
            };
            let (quiet, busy) = (of(points.first()?)?, of(busy)?);
            Some(format!(
                "{} instead of {} {}",
                words::quantity(busy, "µs"),
                words::quantity(quiet, "µs"),
                behind(arm)
            ))
        })
        .collect();
    let slower = match slower.as_slice() {
        [] => String::new(),
        some => format!(" A bystander's median was {}.", words::list(some)),
    };
    let mut verdict = case.verdict(
        "Pods come and go: what do others feel, and what stays behind?",
        Basis::Counted,
        format!(
            "Came and went {}. Left behind: {}.{slower}",
            words::list(&pods.in_words()),
            left.join("; ")
        ),
    );
    verdict.figures = counted(keys::LEFT_ENTRIES)?.figures("left");
    Some(verdict)
}

pub fn renewals(case: &Case) -> Option<Verdict> {
    let failed = case.said(keys::RENEWING_FAILED, None, super::sum)?;
    let renewed = case.said(keys::RENEWED, None, super::sum)?;
    let old = case.said(keys::OLD_KEYS, None, super::sum)?;
    let cpu = case.said(keys::RENEWING_CPU, None, median)?;
    let mut verdict = case.verdict(
        "What does it cost to renew every certificate within a minute?",
        Basis::Counted,
        format!(
            "Renewed were {}; failed meanwhile {}; of expired certificates were still in memory {}. The proxies, under a \
             small load, used {}.",
            words::list(&renewed.in_words()),
            words::list(&failed.in_words()),
            words::list(&old.in_words()),
            words::list(&cpu.in_words())
        ),
    );
    verdict.figures = failed.figures("failed");
    Some(verdict)
}
