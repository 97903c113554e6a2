//! What each workload costs and carries, looked up when somebody asks, so that nobody
//! pays for it meanwhile.
//!
//! Worker time is kept where workloads share the workers (see [`crate::tenancy`]). A
//! sidecar has one workload, which costs what the process does. Worker time is that of the
//! workload's own tasks: what the runtime does between them, and the process for all
//! together, is in `process_cpu_seconds_total` alone.

use crate::capture::{Direction, WorkloadName};
use crate::proxy::Shared;
use crate::telemetry::connections::{Bytes, Kind};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounterVec, IntGaugeVec, Opts};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

struct Workloads {
    shared: Weak<Shared>,
    described: Vec<Desc>,
    /// A connection that ends while its bytes are summed is in neither sum: what was told
    /// once is the least that is told again.
    told: Mutex<HashMap<(WorkloadName, Direction, Kind), Bytes>>,
}

struct Families {
    cpu: CounterVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    waits: IntCounterVec,
    windows: IntGaugeVec,
}

/// # Panics
/// If the registry has metrics of these names.
pub fn expose_workloads(shared: &Arc<Shared>) {
    let families = Families::new();
    let described = families.all().into_iter().flat_map(Collector::desc);
    let all = Workloads {
        shared: Arc::downgrade(shared),
        described: described.cloned().collect(),
        told: Mutex::default(),
    };
    let registry = shared.metrics.registry();
    registry.register(Box::new(all)).expect("unique");
}

impl Families {
    fn new() -> Self {
        let workload = ["namespace", "workload"];
        let connections = ["namespace", "workload", "direction", "kind"];
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("static")
        };
        let cpu = Opts::new(
            "duet_workload_cpu_seconds_total",
            "Time that worker threads spent on the workload's tasks; of a sidecar, all its time.",
        );
        let windows = Opts::new(
            "duet_tenancy_window_bytes",
            "What the workload's peers may send before it is passed on.",
        );
        Self {
            cpu: CounterVec::new(cpu, &workload).expect("static"),
            sent: counters(
                "duet_workload_sent_bytes_total",
                "Bytes from client to server, on the workload's connections.",
                &connections,
            ),
            received: counters(
                "duet_workload_received_bytes_total",
                "Bytes from server to client, on the workload's connections.",
                &connections,
            ),
            waits: counters(
                "duet_tenancy_waits_total",
                "How often something of the workload waited because of its budget.",
                &["namespace", "workload", "budget"],
            ),
            windows: IntGaugeVec::new(windows, &workload).expect("static"),
        }
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [
            &self.cpu,
            &self.sent,
            &self.received,
            &self.waits,
            &self.windows,
        ]
    }
}

impl Collector for Workloads {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = Families::new();
        let Some(shared) = self.shared.upgrade() else {
            return Vec::new();
        };
        let locals: Vec<_> = shared.locals.lock().values().cloned().collect();
        for local in &locals {
            let labels = [local.name.namespace(), local.name.name()];
            let alone = locals.len() == 1 && shared.is_of_one;
            let used = local.tenant.share().used();
            let used = used.map(|used| used.as_secs_f64());
            if let Some(used) = used.or_else(|| alone.then(process_seconds)) {
                families.cpu.with_label_values(&labels).inc_by(used);
            }
            for (budget, count) in local.tenant.waits() {
                let labels = [labels[0], labels[1], budget];
                families.waits.with_label_values(&labels).inc_by(count);
            }
            if let Some(bytes) = local.tenant.buffered() {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                families.windows.with_label_values(&labels).set(bytes);
            }
        }
        let mut told = self.told.lock();
        let mut now = shared.connections.bytes();
        now.retain(|(workload, ..), _| locals.iter().any(|local| local.name == *workload));
        for (key, bytes) in &mut now {
            if let Some(before) = told.get(key) {
                bytes.sent = bytes.sent.max(before.sent);
                bytes.received = bytes.received.max(before.received);
            }
            let (workload, direction, kind) = key;
            let labels = [
                workload.namespace(),
                workload.name(),
                direction.as_str(),
                kind.as_str(),
            ];
            families.sent.with_label_values(&labels).inc_by(bytes.sent);
            families
                .received
                .with_label_values(&labels)
                .inc_by(bytes.received);
        }
        *told = now;
        families
            .all()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}

fn process_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Exact for the first hundred days of it.
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}
