//! What the balancers know of their endpoints, looked up when somebody asks.
//!
//! One agent may know of ten thousand services, of which hardly any has an endpoint
//! that ever failed. So a service is told of from the first endpoint that was taken
//! out, and at most [`MAX_SERVICES`] are; which endpoints they are, `/config` tells.

use crate::breaker::State;
use crate::directory::Directory;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ports of services that are told of.
const MAX_SERVICES: usize = 1000;

struct Endpoints {
    directory: Arc<Directory>,
    described: [Desc; 2],
}

/// Of one port of a service, all its addresses together.
#[derive(Default)]
struct Count {
    by_state: [i64; 3],
    trips: u64,
}

/// # Panics
/// If the registry has metrics of these names.
pub fn expose_endpoints(registry: &Registry, directory: &Arc<Directory>) {
    let (states, trips) = families();
    let describe = |of: &dyn Collector| of.desc()[0].clone();
    let all = Endpoints {
        directory: directory.clone(),
        described: [describe(&states), describe(&trips)],
    };
    registry.register(Box::new(all)).expect("unique");
}

fn families() -> (IntGaugeVec, IntCounterVec) {
    let states = Opts::new(
        "duet_endpoints",
        "Endpoints of services that had one taken out because it failed, by state \
         (in, out, probation).",
    );
    let trips = Opts::new(
        "duet_endpoint_trips_total",
        "How often an endpoint was taken out because it failed, or left out for longer.",
    );
    (
        IntGaugeVec::new(states, &["service", "port", "state"]).expect("static"),
        IntCounterVec::new(trips, &["service", "port"]).expect("static"),
    )
}

impl Collector for Endpoints {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut counts: BTreeMap<(String, u16), Count> = BTreeMap::new();
        for (address, port) in self.directory.ports() {
            let trips = port.trips();
            if trips == 0 {
                continue;
            }
            let key = (port.service.clone(), address.port());
            if !counts.contains_key(&key) && counts.len() == MAX_SERVICES {
                continue;
            }
            let count = counts.entry(key).or_default();
            count.trips += trips;
            for endpoint in port.endpoints().iter() {
                count.by_state[endpoint.state() as usize] += 1;
            }
        }
        let (states, trips) = families();
        for ((service, port), count) in counts {
            let port = port.to_string();
            trips
                .with_label_values(&[&service, &port])
                .inc_by(count.trips);
            let names = [
                (State::In, "in"),
                (State::Out, "out"),
                (State::Probation, "probation"),
            ];
            for (state, name) in names {
                states
                    .with_label_values(&[&service, &port, name])
                    .set(count.by_state[state as usize]);
            }
        }
        let mut all = states.collect();
        all.extend(trips.collect());
        all
    }
}
