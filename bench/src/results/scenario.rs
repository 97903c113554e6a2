//! A scenario: one question, its metrics, and the blocks in which it was asked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::trial::{Point, Stage, Trial};

/// The load at which a headline is read, as per cent of the smallest capacity.
pub const HEADLINE_LOAD: f64 = 50.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// "L1".
    pub id: String,
    /// "Latency over kept-alive connections".
    pub title: String,
    /// The question as a platform owner would put it.
    pub question: String,
    /// What was fixed for all arms: rates, sizes, capacities found, time-outs.
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub metrics: Vec<Metric>,
    pub blocks: Vec<Block>,
    /// What could not be run here and why, what deviates from the definition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// All arms once, in random order, on the same schedule: the unit of inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    pub index: u32,
    /// Names of the arms in the order in which they ran.
    pub order: Vec<String>,
    pub trials: Vec<Trial>,
}

/// One number a trial yields, and how arms are compared by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Unique within the scenario; see [`super::keys`] for those that verdicts read.
    pub key: String,
    /// "median response".
    pub label: String,
    /// "µs", "MiB", "requests", …
    pub unit: String,
    pub better: Better,
    pub compare: Compare,
    pub kind: Kind,
    pub source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
}

/// What is compared between the two arms of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// Their ratio, on the log scale. Pairs with a zero fall back to the difference.
    Ratio,
    /// Their difference in the metric's unit.
    Difference,
    /// Their difference; the sum over all trials is shown as well.
    Count,
}

/// How far a metric is trusted on a small machine, in this order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Count,
    Memory,
    Cpu,
    Latency,
}

/// Where a trial keeps the metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `values[key]`.
    Value,
    /// Nearest rank of a histogram, in µs; absent where n·(1−q) < 100.
    Quantile { stage: Stage, q: f64 },
    /// completed ÷ offered of the trial's load.
    Goodput,
}

impl Metric {
    /// A latency quantile in µs, lower is better, compared by ratio. `q` = 0.5 gives key `p50`.
    pub fn quantile(stage: Stage, q: f64) -> Metric {
        let percent = format!("{}", (q * 1e6).round() / 1e4);
        let prefix = match stage {
            Stage::Response => String::new(),
            other => format!("{}_", other.name()),
        };
        let label = if q == 0.5 {
            format!("median {}", stage.label())
        } else {
            format!("p{percent} {}", stage.label())
        };
        Metric {
            key: format!("{prefix}p{}", percent.replace('.', "")),
            label,
            unit: "µs".into(),
            better: Better::Lower,
            compare: Compare::Ratio,
            kind: Kind::Latency,
            source: Source::Quantile { stage, q },
        }
    }

    /// A number from `values[key]`; lower is better, compared by ratio unless changed below.
    pub fn value(key: &str, label: &str, unit: &str, kind: Kind) -> Metric {
        Metric {
            key: key.into(),
            label: label.into(),
            unit: unit.into(),
            better: Better::Lower,
            compare: match kind {
                Kind::Count => Compare::Count,
                _ => Compare::Ratio,
            },
            kind,
            source: Source::Value,
        }
    }

    /// The share of offered requests that were answered well, key `goodput`, 0…1.
    pub fn goodput() -> Metric {
        Metric {
            key: "goodput".into(),
            label: "goodput kept".into(),
            unit: "share".into(),
            better: Better::Higher,
            compare: Compare::Difference,
            kind: Kind::Count,
            source: Source::Goodput,
        }
    }

    pub fn higher_is_better(mut self) -> Metric {
        self.better = Better::Higher;
        self
    }

    pub fn by(mut self, compare: Compare) -> Metric {
        self.compare = compare;
        self
    }

    fn of(&self, trial: &Trial, decoded: &mut Decoded) -> Option<f64> {
        match self.source {
            Source::Value => trial.values.get(&self.key).copied(),
            Source::Quantile { stage, q } => {
                let histogram = decoded.of(trial, stage)?;
                crate::stats::quantile(histogram, q).map(|ns| ns as f64 / 1000.0)
            }
            Source::Goodput => {
                let load = trial.load.as_ref()?;
                (load.offered > 0).then(|| load.completed as f64 / load.offered as f64)
            }
        }
    }
}

/// The histograms of one trial that were needed so far: decoding is what an analysis spends its
/// time on.
#[derive(Default)]
struct Decoded(Vec<(Stage, Option<hdrhistogram::Histogram<u64>>)>);

impl Decoded {
    fn of(&mut self, trial: &Trial, stage: Stage) -> Option<&hdrhistogram::Histogram<u64>> {
        let known = self.0.iter().position(|(known, _)| *known == stage);
        let at = known.unwrap_or_else(|| {
            let histogram = trial.histograms.get(stage).and_then(|h| h.decode().ok());
            self.0.push((stage, histogram));
            self.0.len() - 1
        });
        self.0[at].1.as_ref()
    }
}

impl Scenario {
    pub fn metric(&self, key: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.key == key)
    }

    /// A trial's values in the order of the metrics; absent where one was not measured or may not
    /// be printed.
    pub fn values(&self, trial: &Trial) -> Vec<Option<f64>> {
        let mut decoded = Decoded::default();
        self.metrics
            .iter()
            .map(|metric| metric.of(trial, &mut decoded))
            .collect()
    }

    /// Every trial of the scenario, void ones included.
    pub fn trials(&self) -> impl Iterator<Item = &Trial> {
        self.blocks.iter().flat_map(|block| block.trials.iter())
    }

    /// The point that a headline is about: of the first series, the one nearest to half of
    /// capacity.
    pub fn headline(&self) -> Option<Point> {
        let points = self.points();
        let series = points.first()?.series.clone();
        let distance = |point: &Point| (point.x - HEADLINE_LOAD).abs();
        points
            .into_iter()
            .filter(|point| point.series == series)
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    /// The points that were measured, by series and then by x.
    pub fn points(&self) -> Vec<Point> {
        let mut points: Vec<Point> = Vec::new();
        for trial in self.trials() {
            if !points.contains(&trial.point) {
                points.push(trial.point.clone());
            }
        }
        let mut series: Vec<String> = Vec::new();
        for point in &points {
            if !series.contains(&point.series) {
                series.push(point.series.clone());
            }
        }
        let rank = |point: &Point| series.iter().position(|name| *name == point.series);
        points.sort_by(|a, b| rank(a).cmp(&rank(b)).then(a.x.total_cmp(&b.x)));
        points
    }
}
