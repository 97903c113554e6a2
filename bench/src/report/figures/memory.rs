//! Memory against the number of pods, and where the agent becomes the cheaper one.

use super::super::svg::{Axis, Plot, Scale, Side, Size};
use super::{Figure, both, range, style};
use crate::analysis::words;
use crate::results::{MemoryLine, Results};

pub fn figure(results: &Results) -> Option<Figure> {
    let lines: Vec<&MemoryLine> = results.analysis.memory_lines.iter().collect();
    let measured = || lines.iter().flat_map(|line| &line.measured);
    let (_, most_pods) = range(measured().map(|(pods, _)| *pods))?;
    let (_, most_mib) = range(measured().map(|(_, mib)| *mib))?;
    let crossing = results.analysis.crossovers.first();
    let (wide, narrow) = both(|size| draw(size, results, &lines, most_pods, most_mib));
    let mut caption =
        "Memory of all idle proxies of a node. Marks are medians over blocks, lines the least-squares fit.".to_string();
    if let Some(crossing) = crossing {
        caption += &format!(" Result: {}.", crossing.sentence);
    }
    Some(Figure {
        title: "R1 Memory by number of pods".into(),
        caption,
        wide,
        narrow,
        arms: lines.iter().map(|line| line.arm.clone()).collect(),
    })
}

fn draw(
    size: Size,
    results: &Results,
    lines: &[&MemoryLine],
    most_pods: f64,
    most_mib: f64,
) -> maud::Markup {
    let x = Axis::new(
        Scale::linear(0.0, most_pods),
        "pods on the node",
        words::number,
    );
    let y = Axis::new(Scale::linear(0.0, most_mib * 1.08), "memory", |mib| {
        words::quantity(mib, "MiB")
    });
    let mut plot = Plot::new(size, x, y);
    let crossing = results.analysis.crossovers.first().and_then(|c| c.pods);
    if let Some(crossing) = crossing
        && crossing.value <= most_pods
    {
        // The label must not run out of the figure.
        if crossing.value < most_pods * 0.6 {
            plot.rule(crossing.value, "agent cheaper →", Side::Right);
        } else {
            plot.rule(crossing.value, "← sidecars cheaper", Side::Left);
        }
    }
    for line in lines {
        let (class, shape) = style(&line.arm);
        let at = |pods: f64| (pods, line.base.value + line.per_pod.value * pods);
        plot.line(&class, &[at(0.0), at(most_pods)]);
        for (pods, mib) in &line.measured {
            let tip = format!(
                "{}, {}: {}",
                line.arm,
                words::plural(*pods as u32, "pod"),
                words::quantity(*mib, "MiB")
            );
            plot.mark(&class, shape, *pods, *mib, &tip);
        }
    }
    plot.finish("Memory of the proxies of a node against its number of pods")
}
