//! One port of a service: who is behind it, and how that is judged.

use super::parse_ip;
use crate::api;
use crate::balance::{Endpoint, Endpoints, Located};
use crate::breaker::{Accrual, State};
use crate::capture::WorkloadName;
use crate::detect::Protocol;
use crate::traffic::Traffic;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct ServicePort {
    /// "namespace/name".
    pub service: String,
    pub protocol: Option<Protocol>,
    live: Arc<Live>,
}

/// What changes under those who hold the port: connections go on with it.
#[derive(Debug, Default)]
struct Live {
    endpoints: ArcSwap<Endpoints>,
    traffic: ArcSwapOption<Traffic>,
    /// What `traffic` was compiled of.
    said: Mutex<Option<api::Service>>,
    /// Trips of endpoints that are gone: a counter does not fall.
    past_trips: AtomicU64,
}

// === impl ServicePort ===

impl ServicePort {
    /// `None` if `old` could take everything in.
    pub(super) fn read(
        service: &api::Service,
        port: &api::ServicePort,
        ipv4: bool,
        old: Option<&Self>,
    ) -> Option<Self> {
        let name = format!("{}/{}", service.namespace, service.name);
        let accrual = accrual(service.failure_accrual.as_ref());
        let protocol = Protocol::from_app_protocol(&port.app_protocol);
        let live = match old {
            Some(old) if old.service == name => old.live.clone(),
            // The address is another service's now.
            Some(old) => {
                old.close();
                Arc::default()
            }
            None => Arc::default(),
        };
        let known = live.endpoints.load_full();
        let endpoints = Endpoints::new(
            read_endpoints(port, ipv4, accrual, &known),
            service.traffic_distribution(),
            Duration::from_millis(service.slow_start_ms.into()),
        );
        live.forget_trips(&known, &endpoints);
        live.follow(service, port.port);
        live.endpoints.store(Arc::new(endpoints));
        match old {
            Some(old) if Arc::ptr_eq(&old.live, &live) && old.protocol == protocol => None,
            _ => Some(Self {
                service: name,
                protocol,
                live,
            }),
        }
    }

    /// There is nobody behind it any more.
    pub(super) fn close(&self) {
        self.live.endpoints.store(Arc::default());
    }

    pub fn endpoints(&self) -> arc_swap::Guard<Arc<Endpoints>> {
        self.live.endpoints.load()
    }

    /// How its requests travel; `None`: nothing was said.
    pub fn traffic(&self) -> Option<Arc<Traffic>> {
        self.live.traffic.load().as_ref().cloned()
    }

    /// How often endpoints were taken out, or left out for longer.
    pub fn trips(&self) -> u64 {
        let now: u64 = self.endpoints().iter().map(|one| one.trips()).sum();
        self.live.past_trips.load(Ordering::Relaxed) + now
    }

    /// The endpoints that are left out because they fail.
    pub fn out(&self) -> Vec<SocketAddr> {
        let endpoints = self.endpoints();
        let out = endpoints.iter().filter(|one| one.state() != State::In);
        out.map(|endpoint| endpoint.address).collect()
    }
}

impl Live {
    /// Compiled only when something was said that is new.
    fn follow(&self, service: &api::Service, port: u32) {
        let about = api::Service {
            timeouts: service.timeouts,
            retry: service.retry.clone(),
            retry_budget: service.retry_budget,
            routes: service.routes.clone(),
            ..api::Service::default()
        };
        let mut said = self.said.lock();
        if said.as_ref() != Some(&about) {
            let port = u16::try_from(port).unwrap_or_default();
            let traffic = Traffic::compile(service, port);
            self.traffic.store(traffic.map(Arc::new));
            *said = Some(about);
        }
    }

    fn forget_trips(&self, before: &[Arc<Endpoint>], now: &[Arc<Endpoint>]) {
        let gone = before
            .iter()
            .filter(|one| one.trips() > 0 && !now.iter().any(|new| Arc::ptr_eq(one, new)));
        let trips = gone.map(|one| one.trips()).sum();
        self.past_trips.fetch_add(trips, Ordering::Relaxed);
    }
}

/// Endpoints of the service address's own family; all, if there are none. Those that
/// were `known` keep what was learnt of them.
fn read_endpoints(
    port: &api::ServicePort,
    ipv4: bool,
    accrual: Accrual,
    known: &[Arc<Endpoint>],
) -> Vec<Located> {
    let mut all = Vec::with_capacity(port.endpoints.len());
    for endpoint in &port.endpoints {
        let (Some(ip), Ok(number)) = (parse_ip(&endpoint.address), u16::try_from(endpoint.port))
        else {
            tracing::warn!(address = endpoint.address, "ignored an endpoint");
            continue;
        };
        let address = SocketAddr::new(ip, number);
        let workload: Option<WorkloadName> = endpoint.workload.parse().ok();
        let same = |known: &&Arc<Endpoint>| known.address == address && known.workload == workload;
        let found = match known.iter().find(same) {
            Some(known) => {
                known.configure(accrual);
                known.clone()
            }
            None => {
                let new = Endpoint::new(address, workload, accrual);
                // With nobody else there it has to bear everything in any case.
                Arc::new(if known.is_empty() {
                    new
                } else {
                    new.new_since(Instant::now())
                })
            }
        };
        found.weigh(endpoint.weight);
        all.push(Located {
            endpoint: found,
            node: endpoint.node.clone(),
            zones: endpoint.zones.clone(),
        });
    }
    if all.iter().any(|one| one.endpoint.address.is_ipv4() == ipv4) {
        all.retain(|one| one.endpoint.address.is_ipv4() == ipv4);
    }
    all
}

/// What is not said is as Linkerd has it.
fn accrual(said: Option<&api::FailureAccrual>) -> Accrual {
    let default = Accrual::default();
    let Some(said) = said else {
        return default;
    };
    let or = |given: u32, default: u32| if given == 0 { default } else { given };
    let time = |given: u32, default: Duration| match given {
        0 => default,
        given => Duration::from_millis(given.into()),
    };
    let min_backoff = time(said.min_backoff_ms, default.min_backoff);
    Accrual {
        consecutive: default
            .consecutive
            .filter(|_| !said.off)
            .map(|default| or(said.consecutive, default)),
        success_rate: (!said.off && said.success_percent > 0)
            .then(|| f64::from(said.success_percent.min(100)) / 100.0),
        window: time(said.window_ms, default.window),
        min_requests: or(said.min_requests, default.min_requests),
        min_backoff,
        max_backoff: time(said.max_backoff_ms, default.max_backoff).max(min_backoff),
    }
}
