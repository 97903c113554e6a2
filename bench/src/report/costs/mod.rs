//! What a mesh costs a reader: cores, memory and money, from this run's coefficients and the
//! reader's own numbers.
//!
//! For one node with N pods, memory is R1's line a + b·N and the processor's idle use another one;
//! each request adds R2's CPU. Everything is kept by block and summed up only for the numbers that
//! are asked for, so that intervals are those of the result. The page does the same sums with the
//! reader's numbers (`costs.js`); a test holds the two against each other.

mod page;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::analysis::{Table, block_lines};
use crate::results::{Arm, Estimate, Placement, Point, Results, State, keys};
use crate::stats::{Bounds, Line, covering_interval, median};

pub use page::{section, summary};

/// What clouds bill by.
pub const HOURS_A_MONTH: f64 = 730.0;

/// What a reader has and pays. The defaults are round numbers and nobody's prices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reader {
    pub nodes: f64,
    pub pods_per_node: f64,
    /// Requests/s within the whole mesh, each counted once.
    pub requests: f64,
    pub core_hour: f64,
    pub gib_hour: f64,
}

/// A run's coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Meshes, and then agents less sidecars.
    pub rows: Vec<Row>,
    /// Beyond that, lines are drawn out.
    pub most_pods: f64,
    /// Where the CPU of a request was measured.
    pub point: Point,
    /// Whether a request's CPU is the whole machine's beyond no mesh, or only the proxies' own.
    pub beyond_none: bool,
    /// Why nothing may be claimed, if nothing may.
    pub silence: Option<&'static str>,
}

/// By block.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    /// The difference of two arms, paired by block.
    pub difference: bool,
    /// MiB of a node against its pods.
    pub memory: Vec<Line>,
    /// Millicores of a node's idle proxies against its pods.
    pub idle: Vec<Line>,
    /// CPU µs of a request.
    pub request: Vec<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub cores: Estimate,
    pub gib: Estimate,
    pub money: Estimate,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            nodes: 10.0,
            pods_per_node: 30.0,
            requests: 2000.0,
            core_hour: 0.04,
            gib_hour: 0.005,
        }
    }
}

// === impl Model ===

impl Model {
    /// `None` where the run has no memory lines or no CPU of requests.
    pub fn of(results: &Results) -> Option<Model> {
        let (idle, busy) = (results.scenario("R1")?, results.scenario("R2")?);
        let measured = Measured {
            idle: Table::of(idle),
            busy: Table::of(busy),
            point: busy.headline()?,
            none: placed(results, Placement::None).next(),
        };
        let meshes = || {
            results
                .arms
                .iter()
                .filter(|arm| arm.placement != Placement::None && arm.copy_of.is_none())
        };
        let mut rows: Vec<Row> = meshes().filter_map(|arm| measured.row(arm)).collect();
        for sidecar in placed(results, Placement::Sidecar).take(1) {
            rows.extend(
                placed(results, Placement::Agent)
                    .filter_map(|agent| measured.difference(agent, sidecar)),
            );
        }
        let most_pods = measured.idle.points().iter().map(|point| point.x);
        rows.first()?;
        Some(Model {
            most_pods: most_pods.fold(0.0, f64::max),
            beyond_none: measured.none.is_some_and(|none| {
                !measured
                    .busy
                    .values(keys::NODE_CPU_PER_REQUEST, &measured.point, &none.name)
                    .is_empty()
            }),
            point: measured.point,
            rows,
            silence: match results.status.state {
                State::Valid => None,
                State::Smoke => Some("~ smoke run"),
                State::Void => Some("void run: no claim"),
            },
        })
    }
}

fn placed(results: &Results, placement: Placement) -> impl Iterator<Item = &Arm> {
    let arms = results.arms.iter();
    arms.filter(move |arm| arm.placement == placement && arm.copy_of.is_none())
}

struct Measured<'a> {
    idle: Table,
    busy: Table,
    point: Point,
    none: Option<&'a Arm>,
}

impl Measured<'_> {
    fn row(&self, arm: &Arm) -> Option<Row> {
        let lines = |metric| block_lines(&self.idle, metric, &arm.name);
        let mut request: Vec<f64> = self
            .none
            .map(|none| self.beyond(arm, none))
            .unwrap_or_default();
        if request.is_empty() {
            let own = self
                .busy
                .values(keys::PROXY_CPU_PER_REQUEST, &self.point, &arm.name);
            request = own.into_iter().map(|(_, us)| us).collect();
        }
        let row = Row {
            name: arm.name.clone(),
            difference: false,
            memory: lines(keys::PROXY_MEMORY).into_values().collect(),
            idle: lines(keys::IDLE_CPU).into_values().collect(),
            request,
        };
        (!row.memory.is_empty() && !row.request.is_empty()).then_some(row)
    }

    fn difference(&self, agent: &Arm, sidecar: &Arm) -> Option<Row> {
        let lines = |metric| {
            let theirs: BTreeMap<u32, Line> = block_lines(&self.idle, metric, &sidecar.name);
            block_lines(&self.idle, metric, &agent.name)
                .into_iter()
                .filter_map(|(block, mine)| {
                    let theirs = theirs.get(&block)?;
                    Some(Line {
                        base: mine.base - theirs.base,
                        slope: mine.slope - theirs.slope,
                    })
                })
                .collect::<Vec<Line>>()
        };
        let row = Row {
            name: format!("{} − {}", agent.name, sidecar.name),
            difference: true,
            memory: lines(keys::PROXY_MEMORY),
            idle: lines(keys::IDLE_CPU),
            request: self.beyond(agent, sidecar),
        };
        (!row.memory.is_empty() && !row.request.is_empty()).then_some(row)
    }

    /// CPU µs of the whole machine for a request, less what it is with the other arm.
    fn beyond(&self, arm: &Arm, other: &Arm) -> Vec<f64> {
        let pairs = self.busy.pairs(
            keys::NODE_CPU_PER_REQUEST,
            &self.point,
            &arm.name,
            &other.name,
        );
        pairs.values.iter().map(|(mine, its)| mine - its).collect()
    }
}

// === impl Row ===

impl Row {
    pub fn cost(&self, reader: &Reader) -> Option<Cost> {
        let at = |line: &Line| line.base + line.slope * reader.pods_per_node;
        let on_a_node = |lines: &[Line]| summed(&lines.iter().map(at).collect::<Vec<f64>>());
        let gib = times(on_a_node(&self.memory)?, reader.nodes / 1024.0);
        let requests = times(summed(&self.request)?, reader.requests / 1e6);
        let cores = match on_a_node(&self.idle) {
            Some(idle) => plus(times(idle, reader.nodes / 1000.0), requests),
            None => requests,
        };
        let money = plus(
            times(cores, reader.core_hour * HOURS_A_MONTH),
            times(gib, reader.gib_hour * HOURS_A_MONTH),
        );
        Some(Cost { cores, gib, money })
    }
}

fn summed(blocks: &[f64]) -> Option<Estimate> {
    Some(Estimate {
        value: median(blocks)?,
        interval: covering_interval(blocks),
    })
}

/// By a positive factor.
fn times(estimate: Estimate, factor: f64) -> Estimate {
    Estimate {
        value: estimate.value * factor,
        interval: estimate
            .interval
            .map(|bounds| bounds.map(|end| end * factor)),
    }
}

/// The interval's ends are added too, which is wider than it need be.
fn plus(one: Estimate, other: Estimate) -> Estimate {
    Estimate {
        value: one.value + other.value,
        interval: one.interval.zip(other.interval).map(|(a, b)| Bounds {
            low: a.low + b.low,
            high: a.high + b.high,
        }),
    }
}
