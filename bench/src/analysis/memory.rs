//! Memory against the number of pods: a line per arm, and where two lines cross.

use std::collections::BTreeMap;

use super::Study;
use super::Table;
use super::slowdown::estimate;
use super::words;
use crate::results::{Crossover, Estimate, MemoryLine, Placement, keys};
use crate::stats::{Line, fit_line, median, median_interval};

pub fn lines(study: &Study) -> Vec<MemoryLine> {
    meshes(study)
        .into_iter()
        .filter_map(|arm| {
            let fits = fits(study, &arm);
            let series = |pick: fn(&Line) -> f64| fits.values().map(pick).collect::<Vec<f64>>();
            Some(MemoryLine {
                scenario: study.scenario.id.clone(),
                base: estimate(&series(|fit| fit.base), study.seed(&format!("base/{arm}")))?,
                per_pod: estimate(
                    &series(|fit| fit.slope),
                    study.seed(&format!("per pod/{arm}")),
                )?,
                blocks: fits.len() as u32,
                measured: measured(study, &arm),
                arm,
            })
        })
        .collect()
}

/// Each agent against each sidecar arm.
pub fn crossovers(study: &Study) -> Vec<Crossover> {
    study
        .pairs()
        .into_iter()
        .filter(|(arm, baseline)| {
            (arm.placement, baseline.placement) == (Placement::Agent, Placement::Sidecar)
        })
        .filter_map(|(agent, sidecar)| {
            let sidecars = fits(study, &sidecar.name);
            let pods: Vec<f64> = fits(study, &agent.name)
                .iter()
                .filter_map(|(block, line)| Some(sidecars.get(block)?.overtaken_by(line)))
                .collect();
            let middle = median(&pods)?;
            let interval = median_interval(&pods, study.seed("crossover"))
                .filter(|bounds| bounds.high.is_finite());
            let crossing = middle.is_finite().then_some(Estimate {
                value: middle,
                interval,
            });
            Some(Crossover {
                scenario: study.scenario.id.clone(),
                metric: keys::PROXY_MEMORY.into(),
                sentence: sentence(&agent.name, &sidecar.name, crossing),
                pods: crossing,
            })
        })
        .collect()
}

fn sentence(agent: &str, sidecar: &str, pods: Option<Estimate>) -> String {
    match pods {
        Some(pods) if pods.value < 1.0 => {
            format!("the {agent} takes less memory than {sidecar}s from the first pod on")
        }
        Some(pods) => format!(
            "the {agent} takes less memory than {sidecar}s from {} pods on{}",
            pods.value.ceil(),
            words::brackets(pods.interval, |n| format!("{n:.1}"))
        ),
        None => format!("at no number of pods does the {agent} take less memory than {sidecar}s"),
    }
}

/// Arms that hold a proxy, copies left out.
fn meshes(study: &Study) -> Vec<String> {
    study
        .arms()
        .filter(|arm| arm.placement != Placement::None && arm.copy_of.is_none())
        .map(|arm| arm.name.clone())
        .collect()
}

fn fits(study: &Study, arm: &str) -> BTreeMap<u32, Line> {
    block_lines(&study.table, keys::PROXY_MEMORY, arm)
}

/// A metric against the number of pods: in each block a line of its own.
pub fn block_lines(table: &Table, metric: &str, arm: &str) -> BTreeMap<u32, Line> {
    let mut blocks: BTreeMap<u32, Vec<(f64, f64)>> = BTreeMap::new();
    for point in table.points() {
        for (block, value) in table.values(metric, point, arm) {
            blocks.entry(block).or_default().push((point.x, value));
        }
    }
    blocks
        .into_iter()
        .filter_map(|(block, points)| Some((block, fit_line(&points)?)))
        .collect()
}

fn measured(study: &Study, arm: &str) -> Vec<(f64, f64)> {
    study
        .table
        .points()
        .iter()
        .filter_map(|point| {
            let values = study.table.values(keys::PROXY_MEMORY, point, arm);
            let values: Vec<f64> = values.into_iter().map(|(_, value)| value).collect();
            Some((point.x, median(&values)?))
        })
        .collect()
}
