//! One trial: one arm, one point, one block, and everything it left.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::load::report::{EncodedHistogram, LoadHistograms, LoadReport};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    pub arm: String,
    pub point: Point,
    /// Counts several trials of the same arm and point within a block (fault injections).
    #[serde(default)]
    pub repeat: u32,
    /// Since the start of the run.
    pub started_s: f64,
    pub duration_s: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadCounts>,
    #[serde(default, skip_serializing_if = "Histograms::is_empty")]
    pub histograms: Histograms,
    /// Everything that is one number, by metric key (and more: what has no metric is kept too).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timelines: Vec<Timeline>,
    /// Gates this trial did not pass; non-empty voids it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voids: Vec<Void>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The swept parameter's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// What is held fixed beside the sweep: "HTTP/1.1 · cross node"; empty where nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub series: String,
    /// "10 %", "w=4", "8 pods"; empty where nothing is swept.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The label as a number: 10, 4, 8.
    pub x: f64,
}

/// What a generator's trial counted, after warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadCounts {
    /// Requests the schedule held.
    pub offered: u64,
    pub sent: u64,
    /// Answered well.
    pub completed: u64,
    /// By kind: "timeout", "refused", "status 503", …
    pub errors: BTreeMap<String, u64>,
    /// Sent more than 1 ms after the intended time.
    pub late: u64,
    pub generator_cpu_s: f64,
    pub wall_s: f64,
}

/// Which of the clocks of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// done − intended: what a user waits.
    Response,
    /// done − sent.
    Service,
    /// sent − intended: the generator's own delay.
    Lateness,
    /// Connection asked for → connection made, where each request makes its own.
    Connect,
    /// Connection asked for → the response begins, where each request makes its own.
    #[serde(rename = "first_byte")]
    FirstByte,
}

/// Raw histograms of one trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Histograms {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<Histogram>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Histogram>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lateness: Option<Histogram>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Histogram>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<Histogram>,
}

/// An HdrHistogram in its V2 encoding, base64; recorded values are nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Histogram(pub String);

/// A histogram that is not one.
#[derive(Debug, thiserror::Error)]
pub enum HistogramError {
    #[error("not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    #[error("not an HdrHistogram in V2 encoding: {0:?}")]
    Encoding(hdrhistogram::serialization::DeserializeError),
}

/// Goodput around an event, in bins by intended time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Whose requests: a pod's name.
    pub name: String,
    /// Whether the pod stood behind the proxy that was hit (and not beside it, or on another
    /// node).
    #[serde(default)]
    pub expected_hit: bool,
    /// Start of the first bin relative to the event (negative: before it).
    pub first_bin_ms: f64,
    pub bin_ms: f64,
    pub offered: Vec<u32>,
    /// Answered well, counted in the bin of the intended time.
    pub ok: Vec<u32>,
}

/// A gate that a trial did not pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Void {
    /// Short name, the same for all trials: "late sends".
    pub gate: String,
    pub measured: f64,
    pub limit: f64,
    /// "3.1 % of sends were over 1 ms late; 2 % are allowed".
    pub message: String,
}

// === impl Point ===

impl Point {
    /// For a scenario that sweeps nothing.
    pub fn only() -> Point {
        Point {
            series: String::new(),
            label: String::new(),
            x: 0.0,
        }
    }

    pub fn at(label: impl Into<String>, x: f64) -> Point {
        Point {
            series: String::new(),
            label: label.into(),
            x,
        }
    }

    pub fn in_series(mut self, series: impl Into<String>) -> Point {
        self.series = series.into();
        self
    }

    /// "HTTP/1.1 · cross node, 10 %".
    pub fn title(&self) -> String {
        match (self.series.is_empty(), self.label.is_empty()) {
            (true, _) => self.label.clone(),
            (false, true) => self.series.clone(),
            (false, false) => format!("{}, {}", self.series, self.label),
        }
    }
}

// === impl Stage ===

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Response => "response",
            Stage::Service => "service",
            Stage::Lateness => "lateness",
            Stage::Connect => "connect",
            Stage::FirstByte => "first_byte",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Stage::Response => "response",
            Stage::Service => "service time",
            Stage::Lateness => "lateness",
            Stage::Connect => "connect",
            Stage::FirstByte => "connect to first byte",
        }
    }
}

// === impl Histograms ===

impl Histograms {
    pub fn is_empty(&self) -> bool {
        self == &Histograms::default()
    }

    pub fn get(&self, stage: Stage) -> Option<&Histogram> {
        match stage {
            Stage::Response => self.response.as_ref(),
            Stage::Service => self.service.as_ref(),
            Stage::Lateness => self.lateness.as_ref(),
            Stage::Connect => self.connect.as_ref(),
            Stage::FirstByte => self.first_byte.as_ref(),
        }
    }
}

// === impl Histogram ===

impl Histogram {
    /// Encodes a histogram of nanoseconds.
    pub fn encode(histogram: &hdrhistogram::Histogram<u64>) -> Histogram {
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(histogram, &mut bytes)
            .expect("writing to memory cannot fail");
        Histogram(STANDARD.encode(bytes))
    }

    pub fn decode(&self) -> Result<hdrhistogram::Histogram<u64>, HistogramError> {
        let bytes = STANDARD.decode(&self.0)?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(HistogramError::Encoding)
    }
}

// === impl Trial ===

impl Trial {
    pub fn is_void(&self) -> bool {
        !self.voids.is_empty()
    }
}

// === impl LoadCounts ===

impl From<&LoadReport> for LoadCounts {
    fn from(report: &LoadReport) -> LoadCounts {
        let errors = report.errors.iter().map(|(kind, count)| {
            let name = serde_json::to_value(kind).expect("an error kind is JSON");
            (name.as_str().unwrap_or("other").to_string(), *count)
        });
        LoadCounts {
            offered: report.offered,
            sent: report.sent,
            completed: report.completed,
            errors: errors.collect(),
            late: report.late_sends,
            generator_cpu_s: report.generator.cpu_user_s + report.generator.cpu_system_s,
            wall_s: report.generator.wall_s,
        }
    }
}

impl From<&LoadHistograms> for Histograms {
    fn from(histograms: &LoadHistograms) -> Histograms {
        let take = |encoded: &EncodedHistogram| Some(Histogram(encoded.0.clone()));
        Histograms {
            response: take(&histograms.response),
            service: take(&histograms.service),
            lateness: take(&histograms.lateness),
            connect: histograms.connect.as_ref().and_then(take),
            first_byte: histograms.first_byte.as_ref().and_then(take),
        }
    }
}
