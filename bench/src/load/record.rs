//! Where every request's fate is written down: counts, histograms, timeline, warm-up.
//!
//! A request passes through at most three calls: [`Recorder::offered`] when it is due, [`Recorder::sent`] when a
//! connection is taken or opened for it, [`Recorder::finished`] when it is answered or given up. Requests
//! of the warm-up take the same path and end in the warm-up's medians instead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;

use super::concurrency::Concurrency;
use super::error::ErrorKind;
use super::report::{
    ConnectionCounts, EncodedHistogram, HIGHEST_NS, LATE_SEND_NS, LoadHistograms, Timeline,
    new_histogram, record,
};
use super::warmup::Settling;

/// One request of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub intended_ns: u64,
    /// Its number in the schedule; those of the warm-up have [`WARMUP_NUMBER`] added.
    pub number: u64,
    /// False during the warm-up.
    pub measured: bool,
}

/// Where the warm-up's numbers begin.
pub const WARMUP_NUMBER: u64 = 1 << 63;

/// The measured window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub start_ns: u64,
    pub length_ns: u64,
}

/// The recorder, shared by every connection of the generator. All of them run on one thread.
#[derive(Clone)]
pub struct SharedRecorder(Arc<Mutex<Recorder>>);

impl SharedRecorder {
    pub fn new(recorder: Recorder) -> Self {
        Self(Arc::new(Mutex::new(recorder)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Recorder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Recorder {
    timeout_ns: u64,
    window: Option<Window>,
    pub settling: Settling,
    pub warmup_requests: u64,

    pub offered: u64,
    pub sent: u64,
    pub completed: u64,
    pub completed_in_window: u64,
    pub errors: BTreeMap<ErrorKind, u64>,
    pub received_bytes: u64,
    pub late_sends: u64,
    pub waited_for_connection: u64,
    pub connections: ConnectionCounts,
    concurrency: Concurrency,
    timeline: Timeline,

    response: Histogram<u64>,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
    connect: Option<Histogram<u64>>,
    first_byte: Option<Histogram<u64>>,
}

impl Recorder {
    /// `first_bytes` adds the two histograms of new connections.
    pub fn new(timeout_ns: u64, bin_ns: u64, first_bytes: bool) -> Self {
        Self {
            timeout_ns,
            window: None,
            settling: Settling::default(),
            warmup_requests: 0,
            offered: 0,
            sent: 0,
            completed: 0,
            completed_in_window: 0,
            errors: BTreeMap::new(),
            received_bytes: 0,
            late_sends: 0,
            waited_for_connection: 0,
            connections: ConnectionCounts::default(),
            concurrency: Concurrency::default(),
            timeline: Timeline {
                bin_ns,
                ..Timeline::default()
            },
            response: new_histogram(),
            service: new_histogram(),
            lateness: new_histogram(),
            connect: first_bytes.then(new_histogram),
            first_byte: first_bytes.then(new_histogram),
        }
    }

    /// Opens the measured window: connection counts begin at zero and the timeline gets its bins.
    pub fn open_window(&mut self, window: Window) {
        let bins = window.length_ns.div_ceil(self.timeline.bin_ns) as usize;
        self.window = Some(window);
        self.connections = ConnectionCounts::default();
        self.timeline.start_ns = window.start_ns;
        self.timeline.offered = vec![0; bins];
        self.timeline.ok = vec![0; bins];
        self.timeline.error = vec![0; bins];
        self.timeline.slowest_us = vec![0; bins];
    }

    /// Cuts the timeline where a signal ended the window.
    pub fn close_window_at(&mut self, end_ns: u64) {
        if let Some(window) = &mut self.window {
            window.length_ns = window.length_ns.min(end_ns.saturating_sub(window.start_ns));
            let bins = window.length_ns.div_ceil(self.timeline.bin_ns) as usize;
            for column in [
                &mut self.timeline.offered,
                &mut self.timeline.ok,
                &mut self.timeline.error,
                &mut self.timeline.slowest_us,
            ] {
                column.truncate(bins);
            }
        }
    }

    pub fn window(&self) -> Option<Window> {
        self.window
    }

    /// Measured requests whose fate is still open.
    pub fn outstanding(&self) -> u64 {
        self.offered - self.completed - self.errors.values().sum::<u64>()
    }

    /// The schedule reached this request and the generator looked at it at `now_ns`.
    pub fn offered(&mut self, due: Due, now_ns: u64) {
        if !due.measured {
            self.warmup_requests += 1;
            return;
        }
        self.offered += 1;
        self.concurrency.arrived(due.intended_ns, now_ns);
        if now_ns.saturating_sub(due.intended_ns) > LATE_SEND_NS {
            self.late_sends += 1;
        }
        let bin = self.bin(due);
        self.timeline.offered[bin] += 1;
    }

    /// Work on this request began at `sent_ns`; `waited_ns` of the delay were spent without a free connection.
    pub fn sent(&mut self, due: Due, sent_ns: u64, waited_ns: u64) {
        if !due.measured {
            return;
        }
        self.sent += 1;
        if waited_ns > LATE_SEND_NS {
            self.waited_for_connection += 1;
        }
        record(&mut self.lateness, sent_ns.saturating_sub(due.intended_ns));
    }

    /// A sent request was answered (`Ok` with the body's bytes) or failed at `done_ns`.
    pub fn finished(
        &mut self,
        due: Due,
        sent_ns: u64,
        done_ns: u64,
        outcome: Result<u64, ErrorKind>,
    ) {
        let response_ns = done_ns.saturating_sub(due.intended_ns);
        let service_ns = done_ns.saturating_sub(sent_ns);
        let window = self.window.as_ref();
        let in_window = window.is_some_and(|window| {
            (window.start_ns..window.start_ns + window.length_ns).contains(&done_ns)
        });
        self.completed_in_window += u64::from(in_window && outcome.is_ok());
        if !due.measured {
            if outcome.is_ok() {
                self.settling.answered(done_ns, response_ns);
            }
            return;
        }
        match outcome {
            Ok(bytes) => {
                self.completed += 1;
                self.received_bytes += bytes;
                self.concurrency
                    .left(due.intended_ns, done_ns, Some(response_ns));
                record(&mut self.response, response_ns);
                record(&mut self.service, service_ns);
                let bin = self.bin(due);
                self.timeline.ok[bin] += 1;
                let us = u32::try_from(response_ns.min(HIGHEST_NS) / 1_000).unwrap_or(u32::MAX);
                self.timeline.slowest_us[bin] = self.timeline.slowest_us[bin].max(us);
            }
            Err(kind) => {
                let counted_ns = kind.is_timeout().then(|| response_ns.max(self.timeout_ns));
                self.concurrency.left(due.intended_ns, done_ns, counted_ns);
                if let Some(counted_ns) = counted_ns {
                    record(&mut self.response, counted_ns);
                    record(&mut self.service, service_ns.max(self.timeout_ns));
                }
                self.count_error(due, kind);
            }
        }
    }

    /// A request that was never sent: the queue was full, or its time ran out while it waited for a connection.
    pub fn unsent(&mut self, due: Due, now_ns: u64, kind: ErrorKind) {
        if due.measured {
            let counted_ns = kind.is_timeout().then_some(self.timeout_ns);
            self.concurrency.left(due.intended_ns, now_ns, counted_ns);
            if let Some(counted_ns) = counted_ns {
                record(&mut self.response, counted_ns);
            }
            self.count_error(due, kind);
        }
    }

    /// The two parts of a new connection's first answer, both from the connect call.
    pub fn new_connection(&mut self, due: Due, connect_ns: u64, first_byte_ns: u64) {
        if due.measured
            && let (Some(connect), Some(first_byte)) = (&mut self.connect, &mut self.first_byte)
        {
            record(connect, connect_ns);
            record(first_byte, first_byte_ns);
        }
    }

    /// Requests under way on the mean of the window, those that the distribution of responses leaves out not
    /// counted; see [`super::concurrency`].
    pub fn mean_concurrency(&self) -> f64 {
        self.concurrency
            .mean(self.window.map_or(0, |window| window.length_ns))
    }

    pub fn histograms(&self) -> LoadHistograms {
        LoadHistograms {
            response: EncodedHistogram::encode(&self.response),
            service: EncodedHistogram::encode(&self.service),
            lateness: EncodedHistogram::encode(&self.lateness),
            connect: self.connect.as_ref().map(EncodedHistogram::encode),
            first_byte: self.first_byte.as_ref().map(EncodedHistogram::encode),
        }
    }

    pub fn timeline(&self) -> Timeline {
        self.timeline.clone()
    }

    fn count_error(&mut self, due: Due, kind: ErrorKind) {
        *self.errors.entry(kind).or_default() += 1;
        let bin = self.bin(due);
        self.timeline.error[bin] += 1;
    }

    fn bin(&self, due: Due) -> usize {
        let bin = due.intended_ns.saturating_sub(self.timeline.start_ns) / self.timeline.bin_ns;
        (bin as usize).min(self.timeline.offered.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn recorder() -> Recorder {
        let mut recorder = Recorder::new(1_000 * MS, 10 * MS, false);
        recorder.open_window(Window {
            start_ns: 0,
            length_ns: 25 * MS,
        });
        recorder
    }

    fn due(intended_ns: u64) -> Due {
        Due {
            intended_ns,
            number: 0,
            measured: true,
        }
    }

    #[test]
    fn what_is_answered_after_the_window_is_told_apart() {
        let mut recorder = recorder();
        for done_ns in [24 * MS, 25 * MS, 90 * MS] {
            recorder.finished(due(MS), 2 * MS, done_ns, Ok(1));
        }
        assert_eq!((recorder.completed, recorder.completed_in_window), (3, 1));
        // Whenever it was due.
        let early = Due {
            measured: false,
            ..due(MS)
        };
        recorder.finished(early, 2 * MS, 24 * MS, Ok(1));
        recorder.finished(early, 2 * MS, 24 * MS, Err(ErrorKind::Timeout));
        assert_eq!((recorder.completed, recorder.completed_in_window), (3, 2));
    }

    #[test]
    fn only_the_generators_own_delay_makes_a_late_send() {
        let mut recorder = recorder();
        recorder.offered(due(0), MS);
        recorder.sent(due(0), 500 * MS, 499 * MS);
        assert_eq!(
            (recorder.late_sends, recorder.waited_for_connection),
            (0, 1)
        );
        recorder.offered(due(0), MS + 1);
        recorder.sent(due(0), MS + 1, 0);
        assert_eq!(
            (recorder.late_sends, recorder.waited_for_connection),
            (1, 1)
        );
        assert_eq!(recorder.lateness.max() / MS, 500);
    }

    #[test]
    fn bins_go_by_the_intended_time_whenever_the_answer_comes() {
        let mut recorder = recorder();
        for intended_ns in [0, 9 * MS, 24 * MS] {
            recorder.offered(due(intended_ns), intended_ns);
        }
        recorder.finished(due(9 * MS), 9 * MS, 800 * MS, Ok(1));
        recorder.finished(due(24 * MS), 24 * MS, 25 * MS, Err(ErrorKind::Reset));
        assert_eq!(recorder.outstanding(), 1);
        let timeline = recorder.timeline();
        assert_eq!(timeline.offered, [2, 0, 1]);
        assert_eq!(timeline.ok, [1, 0, 0]);
        assert_eq!(timeline.error, [0, 0, 1]);
        assert_eq!(timeline.slowest_us, [791_000, 0, 0]);
        assert_eq!(
            (timeline.goodput(0), timeline.goodput(1)),
            (Some(0.5), None)
        );
    }

    #[test]
    fn time_outs_stay_in_the_distribution_and_other_errors_do_not() {
        let mut recorder = recorder();
        for kind in [
            ErrorKind::Timeout,
            ErrorKind::ConnectTimeout,
            ErrorKind::ConnectRefused,
        ] {
            recorder.offered(due(0), 0);
            recorder.finished(due(0), 0, 2 * MS, Err(kind));
        }
        recorder.offered(due(0), 0);
        recorder.unsent(due(0), 3 * MS, ErrorKind::Timeout);
        assert_eq!(recorder.response.len(), 3);
        assert!(recorder.response.min() / MS >= 999);
        assert_eq!(recorder.errors.values().sum::<u64>(), 4);
        // Three time-outs of a second each in a window of 25 ms.
        assert!((recorder.mean_concurrency() - 120.0).abs() < 1e-9);
    }
}
