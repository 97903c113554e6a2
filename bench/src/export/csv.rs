//! One number of one trial a line (RFC 4180): long rather than wide, because scenarios have different metrics.

use crate::results::{Results, Trial};

const HEADER: &str =
    "scenario,block,order,arm,series,point,x,repeat,void,started_s,duration_s,metric,unit,value";

pub fn render(results: &Results) -> String {
    let mut out = String::from(HEADER);
    out.push_str("\r\n");
    for scenario in &results.scenarios {
        for block in &scenario.blocks {
            for trial in &block.trials {
                let order = block.order.iter().position(|arm| *arm == trial.arm);
                let line = Line {
                    before: [
                        scenario.id.clone(),
                        block.index.to_string(),
                        order.map_or(String::new(), |order| order.to_string()),
                        trial.arm.clone(),
                        trial.point.series.clone(),
                        trial.point.label.clone(),
                        trial.point.x.to_string(),
                        trial.repeat.to_string(),
                        gates(trial),
                        trial.started_s.to_string(),
                        trial.duration_s.to_string(),
                    ]
                    .map(|field| quoted(&field))
                    .join(","),
                };
                let values = scenario.values(trial);
                for (metric, value) in scenario.metrics.iter().zip(values) {
                    if let Some(value) = value {
                        line.push(&mut out, &metric.key, &metric.unit, value);
                    }
                }
                // What has no metric is kept too.
                for (key, value) in &trial.values {
                    if scenario.metric(key).is_none() {
                        line.push(&mut out, key, "", *value);
                    }
                }
                if let Some(load) = &trial.load {
                    let failed: u64 = load.errors.values().sum();
                    for (key, count) in [
                        ("offered", load.offered),
                        ("completed", load.completed),
                        ("failed", failed),
                        ("late_sends", load.late),
                    ] {
                        line.push(&mut out, key, "requests", count as f64);
                    }
                }
            }
        }
    }
    out
}

struct Line {
    before: String,
}

impl Line {
    fn push(&self, out: &mut String, key: &str, unit: &str, value: f64) {
        out.push_str(&self.before);
        out.push_str(&format!(",{},{},{value}\r\n", quoted(key), quoted(unit)));
    }
}

/// The gates that a trial did not pass; empty for a valid one.
fn gates(trial: &Trial) -> String {
    let gates: Vec<&str> = trial.voids.iter().map(|void| void.gate.as_str()).collect();
    gates.join("; ")
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
