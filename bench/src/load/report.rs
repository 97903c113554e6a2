//! What one run of the generator found: the JSON that `duet-bench load` prints and the runner reads.
//!
//! Two identities hold in every report and are checked where it is made:
//! `offered = completed + Σ errors`, and the timeline's columns add up to the same totals.
//!
//! Histograms hold **nanoseconds**. The range is 1 µs to 60 s with three significant digits; values are
//! recorded in nanoseconds so that the three digits hold at 1 µs too, and clamped to the range.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

use super::error::ErrorKind;

/// The lowest recorded duration: 1 µs in nanoseconds.
pub const LOWEST_NS: u64 = 1_000;
/// The highest recorded duration: 60 s in nanoseconds.
pub const HIGHEST_NS: u64 = 60_000_000_000;
/// Significant digits of every histogram.
pub const DIGITS: u8 = 3;
/// A send later than this after its intended time is a late send.
pub const LATE_SEND_NS: u64 = 1_000_000;

/// One run of the generator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadReport {
    /// The target as given on the command line.
    pub url: String,
    pub protocol: String,
    /// Requests per second of the Poisson schedule.
    pub rate: f64,
    pub seed: u64,
    pub connections: usize,
    pub new_connection_per_request: bool,
    /// Time-out of one request, counted from its send.
    pub timeout_ms: u64,
    /// True if a signal ended the measured window early.
    pub interrupted: bool,

    /// CLOCK_MONOTONIC of the measured window's beginning, in nanoseconds.
    pub start_ns: u64,
    /// Length of the measured window in seconds.
    pub window_s: f64,
    pub warmup: Warmup,

    /// Requests the schedule put into the measured window.
    pub offered: u64,
    /// Requests for which work began (a connection was taken or opened).
    pub sent: u64,
    /// Requests answered completely and correctly.
    pub completed: u64,
    /// Requests answered so within the window, whenever they were due: where more is asked than is carried, others wait.
    #[serde(default)]
    pub completed_in_window: u64,
    /// Every other request, by what became of it.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// Body bytes received in correct answers.
    pub received_bytes: u64,

    /// Requests which the generator itself picked up more than 1 ms after their intended time.
    /// Waiting for a busy connection is the system's doing and is not in here.
    pub late_sends: u64,
    /// Requests that had to wait more than 1 ms for a free connection.
    pub waited_for_connection: u64,
    /// Requests under way on the mean of the window, those not in the distribution of responses left out.
    #[serde(default)]
    pub mean_concurrency: f64,
    /// Connections during the measured window.
    pub connection_counts: ConnectionCounts,
    pub generator: GeneratorCost,

    pub histograms: LoadHistograms,
    pub timeline: Timeline,
}

/// How the warm-up went. None of its requests is in the counts or histograms.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Warmup {
    pub seconds: f64,
    pub requests: u64,
    /// Median response of each whole second, in µs; 0 where nothing was answered.
    pub medians_us: Vec<f64>,
    /// True if the last three medians agree within 10 %.
    pub settled: bool,
}

/// What happened to connections in the measured window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    pub opened: u64,
    /// Established connections that broke or were retired after a time-out.
    pub lost: u64,
    /// Attempts that failed, those made in the background included.
    pub failed_attempts: u64,
}

/// What the generator cost in the measured window, read by itself at the window's two
/// ends (getrusage and schedstat of its one thread).
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct GeneratorCost {
    pub cpu_user_s: f64,
    pub cpu_system_s: f64,
    /// Runnable, waiting for a processor or for quota, if the kernel tells.
    #[serde(default)]
    pub waited_s: Option<f64>,
    pub wall_s: f64,
}

impl GeneratorCost {
    /// CPU use as a share of one core: 0.7 is 70 %.
    pub fn core_share(&self) -> f64 {
        self.share(self.cpu_user_s + self.cpu_system_s)
    }

    /// Share of the window in which it waited for a processor.
    pub fn stall_share(&self) -> Option<f64> {
        self.waited_s.map(|waited| self.share(waited))
    }

    fn share(&self, seconds: f64) -> f64 {
        if self.wall_s > 0.0 {
            seconds / self.wall_s
        } else {
            0.0
        }
    }
}

/// The distributions. `response = done − intended`, `service = done − sent`, `lateness = sent − intended`.
///
/// Response and service hold correct answers and time-outs; other errors are counted apart, because a
/// refusal that comes quickly would flatter the distribution. Lateness holds every send.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadHistograms {
    pub response: EncodedHistogram,
    pub service: EncodedHistogram,
    pub lateness: EncodedHistogram,
    /// From the connect call to the established connection; only with a new connection per request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connect: Option<EncodedHistogram>,
    /// From the connect call to the response's beginning; only with a new connection per request.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_byte: Option<EncodedHistogram>,
}

/// What became of the requests, by the bin in which each was *intended* to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// CLOCK_MONOTONIC of the first bin's beginning, in nanoseconds.
    pub start_ns: u64,
    pub bin_ns: u64,
    pub offered: Vec<u32>,
    pub ok: Vec<u32>,
    pub error: Vec<u32>,
    /// The slowest correct answer of the bin in µs, from its intended time; 0 where there was none.
    pub slowest_us: Vec<u32>,
}

impl Timeline {
    /// Answered share of a bin's requests; `None` where nothing was offered.
    pub fn goodput(&self, bin: usize) -> Option<f64> {
        let offered = *self.offered.get(bin)?;
        (offered > 0).then(|| f64::from(self.ok[bin]) / f64::from(offered))
    }
}

/// A histogram of nanoseconds as HDR V2 (not deflated) in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EncodedHistogram(pub String);

/// The text is not a histogram that this program wrote.
#[derive(Debug, thiserror::Error)]
#[error("not an HDR V2 histogram in base64: {0}")]
pub struct DecodeError(String);

impl EncodedHistogram {
    pub fn encode(histogram: &Histogram<u64>) -> Self {
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(histogram, &mut bytes)
            .expect("writing a histogram of at most 60 s to memory cannot fail");
        Self(BASE64.encode(bytes))
    }

    pub fn decode(&self) -> Result<Histogram<u64>, DecodeError> {
        let bytes = BASE64
            .decode(&self.0)
            .map_err(|e| DecodeError(e.to_string()))?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|e| DecodeError(format!("{e:?}")))
    }
}

/// An empty histogram with the project's range and precision.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_NS, DIGITS).expect("constant bounds are valid")
}

/// Records a duration, clamped to the histogram's range.
pub fn record(histogram: &mut Histogram<u64>, nanoseconds: u64) {
    histogram.saturating_record(nanoseconds.clamp(LOWEST_NS, HIGHEST_NS));
}

impl LoadReport {
    /// Requests that failed in any way.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Share of sends that the generator itself made more than 1 ms late.
    pub fn late_share(&self) -> f64 {
        if self.sent == 0 {
            0.0
        } else {
            self.late_sends as f64 / self.sent as f64
        }
    }

    /// Little's law: requests under way by the clock ÷ (rate × mean response). 1 where every request is accounted
    /// for; none where nothing is in the distribution.
    pub fn littles_law(&self) -> Option<f64> {
        let response = self.histograms.response.decode().ok()?;
        let expected = response.len() as f64 * response.mean() / (self.window_s * 1e9);
        (expected > 0.0).then(|| self.mean_concurrency / expected)
    }

    /// Correct answers per second of the measured window.
    pub fn achieved_rate(&self) -> f64 {
        if self.window_s > 0.0 {
            self.completed as f64 / self.window_s
        } else {
            0.0
        }
    }
}
