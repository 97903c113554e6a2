//! I6: when all pods of a node ask for more than there is, does each get its share?
//!
//! Equal tenants, each a client with a server of its own on the other node, offer the same rate at
//! the same time: together more than the proxies' limits let through. What each was answered is
//! summed up as Jain's index, (Σx)² ÷ (n·Σx²), which is 1 if all got the same and 1/n if one got
//! everything, and as the smallest share against the largest.

use super::bed::{self, Shape};
use super::drive::Drive;
use super::steady::PATH;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::results::{Compare, Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const TENANTS: u32 = 4;
/// Requests per second of each: several times what a quarter of the limit carries.
const RATE: f64 = 2000.0;
/// Longer than the few requests that are under way for each tenant take. Whoever gives up closes a connection, and to make
/// the next one costs more than was saved: clients that are less patient get next to nothing, all of them.
const IMPATIENCE: Duration = Duration::from_millis(2_550);
/// Load before the window. What it takes to open everybody's connections is some periods of the limit.
const SETTLING: Duration = Duration::from_millis(1_000);

pub struct Fairness;

impl Experiment for Fairness {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::I6]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Tenants(TENANTS)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::JAIN,
                "Jain's index of what was answered",
                "",
                Kind::Count,
            )
            .by(Compare::Difference)
            .higher_is_better(),
            Metric::value(
                keys::MIN_MAX,
                "smallest share against the largest",
                "share",
                Kind::Count,
            )
            .by(Compare::Difference)
            .higher_is_better(),
            Metric::value(
                keys::ALL_ANSWERED,
                "answered, all together",
                "requests/s",
                Kind::Latency,
            )
            .higher_is_better(),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::I6).len()) * 2
    }

    fn visit_estimate(&self, plan: &Plan) -> Duration {
        SETTLING + plan.pace.window + IMPATIENCE + Duration::from_millis(250)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("tenants".to_owned(), json!(TENANTS)),
            ("requests_per_s_and_tenant".to_owned(), json!(RATE)),
            ("body_bytes".to_owned(), json!(1024)),
            ("timeout_ms".to_owned(), json!(IMPATIENCE.as_millis())),
            ("warmup_ms".to_owned(), json!(SETTLING.as_millis())),
            ("window_ms".to_owned(), json!(plan.pace.window.as_millis())),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "Generators have a real-time class and outrank what they ask, in all arms alike.".to_owned(),
            "Answers that come after the window are not counted: until then what was given up is worked off."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Tenants(TENANTS), visit.arm)?;
        let began = Instant::now();
        let window = lab.plan.pace.window;
        let begin = Drive::appointment(&bed, SETTLING);
        let mut generators = Vec::new();
        for tenant in 0..TENANTS {
            let url = bed.url(&bed::tenant_server(tenant), "http1", PATH)?;
            let mut one = Drive::new(&bed::fleet_name(tenant), &url, RATE);
            // The same for all: they are equal.
            one.seed = lab.plan.schedule(Id::I6, visit.block, "");
            one.connections = 32;
            one.timeout = IMPATIENCE;
            one.warmup = SETTLING;
            one.window = window;
            generators.push(one.start(&bed, begin)?);
        }
        let mut answered = Vec::new();
        let mut busiest: f64 = 0.0;
        for generator in generators {
            let report = generator.report(lab.interrupt)?;
            answered.push(report.completed_in_window as f64 / report.window_s);
            busiest = busiest.max(report.generator.core_share());
        }
        let all: f64 = answered.iter().sum();
        let values = [
            (keys::JAIN, jain(&answered)),
            (keys::MIN_MAX, min_max(&answered)),
            (keys::ALL_ANSWERED, all),
            ("busiest_generator_core_share", busiest),
        ];
        let mut trial = lab.trial(visit.arm, Point::only(), began, values);
        let offered = RATE * f64::from(TENANTS);
        // Without a mesh there is no limit to share.
        if visit.arm.meshed() && all > 0.9 * offered {
            trial.voids.push(Void {
                gate: "saturated".to_owned(),
                measured: all / offered,
                limit: 0.9,
                message: "more than 90 % of all requests were answered: nobody had to share"
                    .to_owned(),
            });
        }
        Ok(vec![(Id::I6, trial)])
    }
}

/// (Σx)² ÷ (n·Σx²); 1 where nobody got anything, because then all got the same.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares == 0.0 {
        return 1.0;
    }
    sum * sum / (shares.len() as f64 * squares)
}

fn min_max(shares: &[f64]) -> f64 {
    let most = shares.iter().copied().fold(0.0, f64::max);
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    if most == 0.0 { 1.0 } else { least / most }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_are_fair_and_one_winner_is_not() {
        assert_eq!(jain(&[5.0; 4]), 1.0);
        assert_eq!(jain(&[8.0, 0.0, 0.0, 0.0]), 0.25);
        assert!((jain(&[1.0, 2.0, 3.0]) - 36.0 / 42.0).abs() < 1e-12);
        assert_eq!(jain(&[0.0; 3]), 1.0);
        assert_eq!(min_max(&[1.0, 4.0, 2.0]), 0.25);
        assert_eq!(min_max(&[0.0; 2]), 1.0);
    }
}
