//! `duet-bench list`: what can be asked, of which arms, how often, and how long that takes.

use crate::run::{self, Plan};
use crate::scenario::{self, Id};
use comfy_table::{ContentArrangement, Table, presets};
use std::time::Duration;

/// Everything there is; `plan` says what a run would do that is asked for these scenarios, or by default.
pub fn table(plan: impl Fn(&[Id]) -> Plan) -> String {
    let everything = plan(&[]);
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["", "question", "arms", "blocks", "time", "needs"]);
    let mut total = Duration::ZERO;
    for experiment in scenario::experiments() {
        let ids = experiment.scenarios();
        let alone = [experiment];
        let asked = everything.wants(ids);
        // What is only asked by name has a price, too.
        let plan = if asked { everything.clone() } else { plan(ids) };
        let cost = run::estimate(&plan, &alone);
        if asked {
            total += cost;
        }
        for (at, id) in ids.iter().enumerate() {
            let arms: Vec<&str> = plan.arms_of(*id).iter().map(|arm| arm.name()).collect();
            table.add_row([
                id.name().to_owned(),
                id.question().to_owned(),
                arms.join(" "),
                plan.blocks(*id).to_string(),
                match at {
                    _ if plan.scenarios.is_empty() => "–".to_owned(),
                    0 if asked => span(cost),
                    0 => format!("by name, {}", span(cost)),
                    _ => format!("with {}", ids[0]),
                },
                id.needs().to_owned(),
            ]);
        }
    }
    format!("{table}\nall together, about {}", span(total))
}

/// As a person would say it.
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}
