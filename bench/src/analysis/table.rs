//! A scenario's trials as values by block, arm, point and metric.

use std::collections::BTreeMap;

use crate::results::{Point, Scenario, Trial};
use crate::stats::median;

/// Indices into the table's own lists of arms and points.
type Key = (u32, usize, usize);

/// Each histogram is decoded once; repeats within a block are reduced to their median.
pub struct Table {
    arms: Vec<String>,
    points: Vec<Point>,
    metrics: Vec<String>,
    cells: BTreeMap<Key, Cell>,
}

struct Cell {
    /// All repeats are void.
    void: bool,
    /// By metric, in the table's order.
    values: Vec<Option<f64>>,
}

/// The pairs of two arms, and the blocks that gave none because of a void trial.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs {
    /// (arm, baseline) by rising block.
    pub values: Vec<(f64, f64)>,
    pub void_blocks: u32,
}

impl Table {
    pub fn of(scenario: &Scenario) -> Table {
        let mut table = Table {
            arms: Vec::new(),
            points: scenario.points(),
            metrics: scenario.metrics.iter().map(|m| m.key.clone()).collect(),
            cells: BTreeMap::new(),
        };
        let mut trials: BTreeMap<Key, Vec<&Trial>> = BTreeMap::new();
        for block in &scenario.blocks {
            for trial in &block.trials {
                let arm = position_or_push(&mut table.arms, &trial.arm);
                let point = table
                    .points
                    .iter()
                    .position(|point| *point == trial.point)
                    .expect("every trial's point is among the scenario's");
                trials
                    .entry((block.index, arm, point))
                    .or_default()
                    .push(trial);
            }
        }
        for (key, trials) in trials {
            let good: Vec<&&Trial> = trials.iter().filter(|trial| !trial.is_void()).collect();
            let values: Vec<Vec<Option<f64>>> =
                good.iter().map(|trial| scenario.values(trial)).collect();
            let middle = |metric: usize| {
                let repeats: Vec<f64> = values.iter().filter_map(|trial| trial[metric]).collect();
                median(&repeats)
            };
            table.cells.insert(
                key,
                Cell {
                    void: good.is_empty(),
                    values: (0..scenario.metrics.len()).map(middle).collect(),
                },
            );
        }
        table
    }

    pub fn arms(&self) -> &[String] {
        &self.arms
    }

    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// (block, value) of the valid blocks, by rising block.
    pub fn values(&self, metric: &str, point: &Point, arm: &str) -> Vec<(u32, f64)> {
        self.cells(metric, point, arm)
            .filter_map(|(block, cell)| Some((block, cell?)))
            .collect()
    }

    /// The blocks in which both arms have a value.
    pub fn pairs(&self, metric: &str, point: &Point, arm: &str, baseline: &str) -> Pairs {
        let theirs: BTreeMap<u32, f64> = self.values(metric, point, baseline).into_iter().collect();
        let mine = self.values(metric, point, arm);
        let voids = |name: &str| self.void_blocks(point, name);
        let mut void: Vec<u32> = voids(arm).into_iter().chain(voids(baseline)).collect();
        void.sort_unstable();
        void.dedup();
        Pairs {
            values: mine
                .iter()
                .filter_map(|(block, value)| Some((*value, *theirs.get(block)?)))
                .collect(),
            void_blocks: void.len() as u32,
        }
    }

    fn void_blocks(&self, point: &Point, arm: &str) -> Vec<u32> {
        let (Some(arm), Some(point)) = (
            self.arms.iter().position(|name| name == arm),
            self.points.iter().position(|known| known == point),
        ) else {
            return Vec::new();
        };
        self.cells
            .iter()
            .filter(|((_, a, p), cell)| (*a, *p) == (arm, point) && cell.void)
            .map(|((block, _, _), _)| *block)
            .collect()
    }

    fn cells(
        &self,
        metric: &str,
        point: &Point,
        arm: &str,
    ) -> impl Iterator<Item = (u32, Option<f64>)> {
        let at = (
            self.arms.iter().position(|name| name == arm),
            self.points.iter().position(|known| known == point),
        );
        let metric = self.metrics.iter().position(|name| name == metric);
        self.cells
            .iter()
            .filter(move |((_, a, p), _)| at == (Some(*a), Some(*p)))
            .filter_map(move |((block, _, _), cell)| Some((*block, cell.values[metric?])))
    }
}

fn position_or_push(names: &mut Vec<String>, name: &str) -> usize {
    names
        .iter()
        .position(|known| known == name)
        .unwrap_or_else(|| {
            names.push(name.to_string());
            names.len() - 1
        })
}
