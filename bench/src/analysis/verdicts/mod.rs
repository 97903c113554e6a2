//! Answers, one plain sentence per question, that say no more than the analysis allows.

mod bulk;
mod cost;
mod exposure;
mod harm;
mod life;
mod neighbours;

use super::words;
use crate::results::{
    Analysis, Arm, Basis, Claim, Comparison, Placement, Point, Results, Scenario, State, Verdict,
};

type Question = fn(&Case) -> Option<Verdict>;

/// What does it cost me, who gets hurt when something goes wrong, what does an attacker get.
const QUESTIONS: [(&str, Question); 37] = [
    ("L1", cost::added_latency),
    ("L1", cost::faster_of_two),
    ("L2", cost::new_connections),
    ("L3", cost::capacity),
    ("L4", bulk::transfer),
    ("L5", bulk::hops),
    ("R1", cost::memory),
    ("R2", cost::cpu_per_request),
    ("R3", cost::idle_connections),
    ("R4", bulk::density),
    ("R5", bulk::attribution),
    ("I1", neighbours::noisy_neighbour),
    ("I2", neighbours::handshakes),
    ("I3", harm::hoarder),
    ("I4", neighbours::slow_clients),
    ("I5", neighbours::elephant),
    ("I6", neighbours::fair_shares),
    ("I7", neighbours::tight_limit),
    ("I8", life::exhausted_proxy),
    ("I9", neighbours::poison),
    ("F1", harm::killed_proxy),
    ("F2", harm::hung_proxy),
    ("F3", harm::crash_loop),
    ("F4", harm::absent_control),
    ("F5", exposure::fail_open),
    ("S1", life::first_act),
    ("S2", life::init_container),
    ("S3", life::jobs),
    ("S4", life::deleted_pod),
    ("S5", life::churn),
    ("S6", life::what_is_seen),
    ("U1", life::upgrade),
    ("U2", life::renewals),
    ("X1", exposure::keys_in_memory),
    ("X2", exposure::privileges),
    ("X3", exposure::forgeries),
    ("X4", exposure::ways_to_a_key),
];

pub fn of(results: &Results, analysis: &Analysis) -> Vec<Verdict> {
    QUESTIONS
        .iter()
        .filter_map(|(id, ask)| {
            let scenario = results.scenario(id)?;
            let case = Case {
                results,
                analysis,
                scenario,
            };
            let verdict = ask(&case).unwrap_or_else(|| case.not_measured());
            Some(case.hedged(verdict))
        })
        .fold(Vec::new(), |mut verdicts: Vec<Verdict>, verdict| {
            // Two questions about one scenario that was not measured are one row.
            let repeated = verdict.basis == Basis::NotMeasured
                && verdicts
                    .last()
                    .is_some_and(|last| last.scenario == verdict.scenario);
            if !repeated {
                verdicts.push(verdict);
            }
            verdicts
        })
}

/// One scenario of a run, about to be judged.
struct Case<'a> {
    results: &'a Results,
    analysis: &'a Analysis,
    scenario: &'a Scenario,
}

impl<'a> Case<'a> {
    fn verdict(&self, question: &str, basis: Basis, answer: String) -> Verdict {
        Verdict {
            scenario: self.scenario.id.clone(),
            question: question.to_string(),
            answer,
            basis,
            figures: Vec::new(),
        }
    }

    fn not_measured(&self) -> Verdict {
        let trials = self.scenario.trials().count() as u32;
        let void = self
            .scenario
            .trials()
            .filter(|trial| trial.is_void())
            .count();
        let why = match (trials, void) {
            (0, _) if self.scenario.notes.is_empty() => "no trial was made".into(),
            (0, _) => self.scenario.notes.join(" "),
            (_, 0) => format!(
                "{} gave no number that may be printed (a median needs 200 requests)",
                words::plural(trials, "trial")
            ),
            _ => format!(
                "of {} {void} are void, and the others gave no number that may be printed (a median needs 200 requests)",
                words::plural(trials, "trial")
            ),
        };
        let answer = format!("Not measured: {}.", why.trim_end_matches('.'));
        self.verdict(&self.scenario.question, Basis::NotMeasured, answer)
    }

    /// In a run that claims nothing, every sentence begins by saying so.
    fn hedged(&self, mut verdict: Verdict) -> Verdict {
        let prefix = match self.results.status.state {
            State::Valid => return verdict,
            State::Void => "No claim, the run is void. Seen: ",
            State::Smoke => "No claim, this is a smoke run. Seen: ",
        };
        if verdict.basis != Basis::NotMeasured {
            verdict.answer.insert_str(0, prefix);
            verdict.basis = Basis::NotResolved;
        }
        verdict
    }

    fn comparisons(&self) -> impl Iterator<Item = &'a Comparison> {
        let id = &self.scenario.id;
        self.analysis
            .comparisons
            .iter()
            .filter(move |c| c.scenario == *id)
    }

    fn comparison(
        &self,
        metric: &str,
        point: &Point,
        arm: &str,
        baseline: &str,
    ) -> Option<&'a Comparison> {
        self.comparisons().find(|c| {
            c.metric == metric && c.point == *point && c.arm == arm && c.baseline == baseline
        })
    }

    /// The arms of the run that are no second copy, in their order.
    fn arms(&self) -> impl Iterator<Item = &'a Arm> {
        self.results.arms.iter().filter(|arm| arm.copy_of.is_none())
    }

    fn meshes(&self) -> impl Iterator<Item = &'a Arm> {
        self.arms().filter(|arm| arm.placement != Placement::None)
    }

    fn placed(&self, placement: Placement) -> Option<&'a Arm> {
        self.arms().find(|arm| arm.placement == placement)
    }

    /// A value of each arm, reduced over its valid trials; at one point, or at all.
    fn said(
        &self,
        key: &str,
        point: Option<&Point>,
        reduce: fn(&[f64]) -> Option<f64>,
    ) -> Option<Said<'a>> {
        let of = |arm: &'a Arm| {
            let trials = self.scenario.trials();
            let values: Vec<f64> = trials
                .filter(|trial| trial.arm == arm.name && !trial.is_void())
                .filter(|trial| point.is_none_or(|point| trial.point == *point))
                .filter_map(|trial| trial.values.get(key).copied())
                .collect();
            Some((arm, reduce(&values)?))
        };
        let unit = self
            .scenario
            .metric(key)
            .map_or("", |metric| metric.unit.as_str());
        let values: Vec<(&Arm, f64)> = self.arms().filter_map(of).collect();
        (!values.is_empty()).then_some(Said { values, unit })
    }

    /// Agent against sidecars at a point.
    fn rivals(&self, metric: &str, point: &Point) -> Option<&'a Comparison> {
        let (agent, sidecar) = (
            self.placed(Placement::Agent)?,
            self.placed(Placement::Sidecar)?,
        );
        self.comparison(metric, point, &agent.name, &sidecar.name)
    }

    /// Each mesh against no mesh at a point.
    fn against_none(&self, metric: &str, point: &Point) -> Vec<(&'a Arm, &'a Comparison)> {
        let Some(none) = self.placed(Placement::None) else {
            return Vec::new();
        };
        self.meshes()
            .filter_map(|arm| Some((arm, self.comparison(metric, point, &arm.name, &none.name)?)))
            .filter(|(_, comparison)| comparison.estimate.is_some())
            .collect()
    }
}

/// One value of each arm, with its unit.
struct Said<'a> {
    values: Vec<(&'a Arm, f64)>,
    unit: &'a str,
}

impl Said<'_> {
    /// "12 MiB behind sidecars", and so on.
    fn in_words(&self) -> Vec<String> {
        self.values
            .iter()
            .map(|(arm, value)| format!("{} {}", words::quantity(*value, self.unit), behind(arm)))
            .collect()
    }

    /// The same for the table.
    fn figures(&self, what: &str) -> Vec<(String, String)> {
        self.values
            .iter()
            .map(|(arm, value)| {
                let text = format!("{} {what}", words::quantity(*value, self.unit));
                (arm.name.clone(), text.trim_end().to_owned())
            })
            .collect()
    }

    fn of(&self, arm: &Arm) -> Option<f64> {
        let known = self.values.iter().find(|(known, _)| known.name == arm.name);
        known.map(|(_, value)| *value)
    }
}

/// The sum, where there is anything to add up.
fn sum(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum())
}

/// "behind sidecars", "behind the agent", "without a mesh".
fn behind(arm: &Arm) -> String {
    match arm.placement {
        Placement::None => "without a mesh".into(),
        _ => format!("behind {}", subject(arm)),
    }
}

/// "sidecars", "the agent".
fn subject(arm: &Arm) -> String {
    match (arm.placement, arm.name.as_str()) {
        (Placement::None, _) => "no mesh".into(),
        (Placement::Sidecar, "sidecar") => "sidecars".into(),
        (Placement::Agent, "agent") => "the agent".into(),
        (Placement::Sidecar, "classic") => "classic sidecars".into(),
        (Placement::External, "redirect-sidecar") => "redirection by nftables alone".into(),
        (Placement::External, "redirect-agent") => "redirection by eBPF alone".into(),
        (_, name) => name.into(),
    }
}

/// Claimed as soon as one of the comparisons behind a sentence is.
fn basis_of<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> Basis {
    let claimed = comparisons
        .into_iter()
        .any(|comparison| comparison.claim != Claim::NoClaim);
    if claimed {
        Basis::Claimed
    } else {
        Basis::NotResolved
    }
}
