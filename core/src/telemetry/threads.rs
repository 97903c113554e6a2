//! What tokio tells of its workers, looked up when somebody asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounterVec, IntGauge, Opts, Registry};
use tokio::runtime::{Handle, RuntimeMetrics};

struct Threads {
    runtime: RuntimeMetrics,
    described: Vec<Desc>,
}

struct Families {
    tasks: IntGauge,
    queue: IntGauge,
    busy: CounterVec,
    parks: IntCounterVec,
}

/// Of the runtime that it is called in.
///
/// # Panics
/// If the registry has metrics of these names.
pub fn expose_threads(registry: &Registry) {
    let families = Families::new();
    let described = families.all().into_iter().flat_map(Collector::desc);
    let all = Threads {
        runtime: Handle::current().metrics(),
        described: described.cloned().collect(),
    };
    registry.register(Box::new(all)).expect("unique");
}

impl Families {
    fn new() -> Self {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("static");
        let busy = Opts::new(
            "duet_worker_busy_seconds_total",
            "Time that a worker thread was not waiting for something to do.",
        );
        let parks = Opts::new(
            "duet_worker_parks_total",
            "How often a worker thread had nothing to do.",
        );
        Self {
            tasks: gauge("duet_tasks", "Tasks that have begun and have not ended."),
            queue: gauge(
                "duet_tasks_queued",
                "Tasks that wait for any worker; those of one worker are not among them.",
            ),
            busy: CounterVec::new(busy, &["worker"]).expect("static"),
            parks: IntCounterVec::new(parks, &["worker"]).expect("static"),
        }
    }

    fn all(&self) -> [&dyn Collector; 4] {
        [&self.tasks, &self.queue, &self.busy, &self.parks]
    }
}

impl Collector for Threads {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = Families::new();
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        families.tasks.set(gauge(self.runtime.num_alive_tasks()));
        families.queue.set(gauge(self.runtime.global_queue_depth()));
        for worker in 0..self.runtime.num_workers() {
            let labels = [worker.to_string()];
            let busy = self.runtime.worker_total_busy_duration(worker);
            families
                .busy
                .with_label_values(&labels)
                .inc_by(busy.as_secs_f64());
            families
                .parks
                .with_label_values(&labels)
                .inc_by(self.runtime.worker_park_count(worker));
        }
        families
            .all()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}
