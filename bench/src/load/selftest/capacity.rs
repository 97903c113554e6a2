//! The rate that the generator reaches with one core.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::super::target::Protocol;
use super::super::{LoadError, run_here};
use super::plan;
use super::responder::{Behaviour, Responder};
use crate::run::gates::{ACHIEVED, GENERATOR_CORE, LATE_SENDS};

/// Tried one after the other until one is not carried, requests per second.
const STEPS: [f64; 9] = [
    1_000.0, 2_000.0, 4_000.0, 8_000.0, 12_000.0, 16_000.0, 20_000.0, 28_000.0, 40_000.0,
];
const STEP: Duration = Duration::from_millis(700);
/// Enough that none of them is what limits.
const CONNECTIONS: usize = 32;

/// The highest step at which a trial would have counted.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests per second; 0 if no step was carried.
    pub rate: f64,
    /// Share of one core that the generator used there.
    pub core: f64,
    /// Processor time of one request there, µs.
    pub us_per_request: f64,
}

/// Steps up against a responder that answers at once.
pub fn find(protocol: Protocol) -> Result<Capacity, LoadError> {
    let responder = Responder::start(protocol, Behaviour::default()).map_err(LoadError::Timer)?;
    let mut best = Capacity {
        rate: 0.0,
        core: 0.0,
        us_per_request: 0.0,
    };
    for rate in STEPS {
        // One bad moment of the machine must not fix a rate: a step fails only if it does so twice.
        let carried = match step(&responder, protocol, rate)? {
            Some(carried) => Some(carried),
            None => step(&responder, protocol, rate)?,
        };
        match carried {
            Some(carried) => best = carried,
            None => break,
        }
    }
    Ok(best)
}

/// None if a trial at this rate would be void.
fn step(
    responder: &Responder,
    protocol: Protocol,
    rate: f64,
) -> Result<Option<Capacity>, LoadError> {
    let mut plan = plan(responder, protocol, rate, STEP)?;
    plan.connections = CONNECTIONS;
    let report = run_here(&plan, Arc::new(AtomicBool::new(false)))?;
    let core = report.generator.core_share();
    let achieved = report.completed as f64 / report.offered.max(1) as f64;
    let counts =
        core <= GENERATOR_CORE && achieved >= ACHIEVED && report.late_share() <= LATE_SENDS;
    Ok(counts.then(|| Capacity {
        rate,
        core,
        us_per_request: core * report.generator.wall_s * 1e6 / report.completed.max(1) as f64,
    }))
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rate == 0.0 {
            return write!(
                f,
                "not even {} requests/s within the gates of a trial",
                STEPS[0]
            );
        }
        write!(
            f,
            "{} requests/s within the gates of a trial, with {:.0} % of a core, {:.1} µs each: a whole core would \
             make {:.0}",
            self.rate,
            100.0 * self.core,
            self.us_per_request,
            1e6 / self.us_per_request
        )
    }
}
