//! `duet-bench plan`: how many blocks a wanted resolution takes, and how long they take.
//!
//! The noise is that of an arm against its own copy, block by block, where the file has one: whatever differs
//! there is the machine's doing, and a difference between arms has to stand out from it. Without a copy two arms
//! have to do, and the table names them. The formula is that of [`crate::stats::blocks_for_difference`]:
//! 80 % power at a two-sided 5 %, a plan and not a promise.

use crate::analysis::{Table, words};
use crate::listing::span;
use crate::results::{self, Arm, Compare, FileError, Kind, Point, Results, Scenario};
use crate::stats::{blocks_for_difference, deviation, difference_shown, log_ratios, median};
use clap::Args;
use comfy_table::{CellAlignment, ContentArrangement, presets};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// `duet-bench plan`
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// A run's directory or results.json, from which the noise is taken
    pub results: PathBuf,

    /// The smallest difference that is to be seen, per cent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = per_cent)]
    pub resolution: f64,

    /// Metrics to plan for, as in p50,p99; all that are compared by ratio by default
    #[arg(long, value_delimiter = ',', value_name = "METRICS")]
    pub metrics: Vec<String>,
}

/// What one metric of one scenario takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    pub scenario: String,
    pub metric: String,
    pub label: String,
    /// The noisiest of its points.
    pub point: Point,
    /// Whose difference is the noise: (arm, baseline).
    pub pair: (String, String),
    /// Blocks behind it.
    pub seen: u32,
    /// Standard deviation of the blocks' log-ratios.
    pub noise: f64,
    /// Blocks that resolve what is wanted; none if it would take more than 9999.
    pub blocks: Option<u32>,
    /// Of one block of the scenario.
    pub block_time: Duration,
}

fn per_cent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|percent: &f64| percent.is_finite() && *percent > 0.0 && *percent <= 1000.0)
        .ok_or_else(|| "give a number of per cent, above 0 and at most 1000".into())
}

/// Prints the table.
pub fn run(args: &PlanArgs) -> Result<(), FileError> {
    let results = results::read(&args.results)?;
    let needs = needs(&results, args.resolution / 100.0, &args.metrics);
    let text = render(&needs, args.resolution);
    // A reader who has gone away has seen enough.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    Ok(())
}

/// What each metric takes to show a difference of `resolution` (0.05 is 5 %).
pub fn needs(results: &Results, resolution: f64, metrics: &[String]) -> Vec<Need> {
    let mut needs = Vec::new();
    for scenario in &results.scenarios {
        let table = Table::of(scenario);
        let block_time = block_time(scenario);
        let chosen = scenario.metrics.iter().filter(|metric| {
            metric.compare == Compare::Ratio
                && metric.kind != Kind::Count
                && (metrics.is_empty() || metrics.contains(&metric.key))
        });
        for metric in chosen {
            let noisiest = pairs(results)
                .into_iter()
                .find_map(|(arm, baseline)| noisiest(&table, &metric.key, arm, baseline));
            let Some((pair, point, seen, noise)) = noisiest else {
                continue;
            };
            needs.push(Need {
                scenario: scenario.id.clone(),
                metric: metric.key.clone(),
                label: metric.label.clone(),
                point,
                pair,
                seen,
                noise,
                blocks: blocks_for_difference(noise, (1.0 + resolution).ln()),
                block_time,
            });
        }
    }
    needs
}

/// Each copy with its original first; then any two arms.
fn pairs(results: &Results) -> Vec<(&Arm, &Arm)> {
    let arms = &results.arms;
    let copies = arms.iter().filter_map(|arm| {
        let original = arm.copy_of.as_deref()?;
        Some((arm, results.arm(original)?))
    });
    let others = arms
        .iter()
        .enumerate()
        .flat_map(|(at, baseline)| arms[at + 1..].iter().map(move |arm| (arm, baseline)))
        .filter(|(arm, baseline)| arm.copy_of.is_none() && baseline.copy_of.is_none());
    copies.chain(others).collect()
}

type Noise = ((String, String), Point, u32, f64);

fn noisiest(table: &Table, metric: &str, arm: &Arm, baseline: &Arm) -> Option<Noise> {
    table
        .points()
        .iter()
        .filter_map(|point| {
            let pairs = table.pairs(metric, point, &arm.name, &baseline.name).values;
            let noise = deviation(&log_ratios(&pairs)?)?;
            let pair = (arm.name.clone(), baseline.name.clone());
            Some((pair, point.clone(), pairs.len() as u32, noise))
        })
        .max_by(|a, b| a.3.total_cmp(&b.3))
}

/// The middle of the blocks' times.
fn block_time(scenario: &Scenario) -> Duration {
    let blocks = scenario.blocks.iter();
    let times: Vec<f64> = blocks
        .map(|block| block.trials.iter().map(|trial| trial.duration_s).sum())
        .collect();
    Duration::from_secs_f64(median(&times).unwrap_or(0.0).max(0.0))
}

/// The table, and one line on all of it.
fn render(needs: &[Need], resolution: f64) -> String {
    if needs.is_empty() {
        return "no metric of this file has two blocks of two arms: nothing is known of its noise"
            .to_owned();
    }
    let mut table = comfy_table::Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "".to_owned(),
            "metric".to_owned(),
            "noisiest at".to_owned(),
            "noise of".to_owned(),
            "a block".to_owned(),
            "this file shows".to_owned(),
            format!("blocks for {resolution} %"),
            "time".to_owned(),
        ]);
    let percent = |log: f64| format!("{:.1} %", 100.0 * log.exp_m1());
    for need in needs {
        table.add_row([
            need.scenario.clone(),
            need.label.clone(),
            need.point.title(),
            format!("{} ÷ {}", need.pair.0, need.pair.1),
            format!("±{}", percent(need.noise)),
            match difference_shown(need.noise, need.seen) {
                Some(shown) => format!("{} with {}", percent(shown), need.seen),
                None => format!("nothing with {}", words::plural(need.seen, "block")),
            },
            need.blocks
                .map_or("over 9999".to_owned(), |blocks| blocks.to_string()),
            need.blocks
                .map_or("–".to_owned(), |blocks| span(need.block_time * blocks)),
        ]);
    }
    for column in [4, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n{}", summary(needs, resolution))
}

/// What it takes for every line at once.
fn summary(needs: &[Need], resolution: f64) -> String {
    let Some(blocks) = needs.iter().map(|need| need.blocks).max().flatten() else {
        return String::new();
    };
    let hopeless = needs.iter().filter(|need| need.blocks.is_none()).count();
    let mut scenarios: Vec<(&str, Duration)> = Vec::new();
    for need in needs {
        if !scenarios.iter().any(|(id, _)| *id == need.scenario) {
            scenarios.push((&need.scenario, need.block_time));
        }
    }
    let ids: Vec<&str> = scenarios.iter().map(|(id, _)| *id).collect();
    let time: Duration = scenarios.iter().map(|(_, time)| *time * blocks).sum();
    let all_but = match hopeless {
        0 => String::new(),
        one => format!(" but {}", words::plural(one as u32, "hopeless line")),
    };
    format!(
        "{resolution} % in all of these{all_but}: duet-bench run --scenarios {} --blocks {blocks}, at most {} and what it \
         takes to prepare. Twice as fine takes four times as long.",
        ids.join(","),
        span(time)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Profile, synthetic};

    #[test]
    fn a_finer_resolution_takes_more_blocks() {
        let results = synthetic::run(Profile::Quick, 11);
        let only = ["p50".to_owned()];
        let (fine, coarse) = (needs(&results, 0.02, &only), needs(&results, 0.20, &only));
        assert!(!fine.is_empty() && fine.len() == coarse.len());
        for (fine, coarse) in fine.iter().zip(&coarse) {
            assert!(fine.blocks.unwrap_or(u32::MAX) >= coarse.blocks.expect("20 % is coarse"));
            assert_eq!(fine.metric, "p50");
            assert_eq!(
                fine.pair.0, "aa",
                "the noise floor is an arm against itself"
            );
            assert!(!fine.block_time.is_zero());
        }
    }

    #[test]
    fn what_is_planned_would_be_shown() {
        let results = synthetic::run(Profile::Quick, 11);
        for need in needs(&results, 0.05, &[]) {
            let Some(blocks) = need.blocks else { continue };
            let shown = difference_shown(need.noise, blocks).expect("enough blocks");
            assert!(shown <= 1.05_f64.ln() + 1e-9, "{need:?}");
        }
    }

    #[test]
    fn without_a_copy_two_arms_have_to_do() {
        let mut results = synthetic::run(Profile::Quick, 11);
        results.arms.retain(|arm| arm.copy_of.is_none());
        let needs = needs(&results, 0.05, &["p50".to_owned()]);
        assert!(!needs.is_empty() && needs.iter().all(|need| need.pair.0 != "aa"));
        let text = render(&needs, 5.0);
        assert!(text.contains("--blocks") && text.contains("L1"), "{text}");
    }
}
