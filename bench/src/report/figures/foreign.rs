//! What other load generators measured, beside L1: for contrast, and drawn so that nobody takes it
//! for an arm.

use super::spectrum::{self, Curve};
use super::{FOREIGN, Figure, both, drawn, range};
use crate::results::{Results, Stage};

pub fn figure(results: &Results) -> Option<Figure> {
    let foreign: Vec<Curve> = results
        .foreign
        .iter()
        .map(|foreign| (format!("{FOREIGN}{}", foreign.name), foreign.spectrum()))
        .filter(|(_, points)| points.len() > 1)
        .collect();
    foreign.first()?;
    let mut curves: Vec<Curve> = Vec::new();
    let mut beside = String::new();
    if let Some(l1) = results.scenario("L1")
        && let Some(point) = l1.headline()
    {
        curves.extend(drawn(results).filter_map(|arm| {
            let curve = spectrum::curve(l1, &arm.name, &point, Stage::Response)?;
            Some((arm.name.clone(), curve))
        }));
        beside = format!(" beside L1 ({})", point.title());
    }
    curves.extend(foreign);
    let (low, high) = range(curves.iter().flat_map(|c| &c.1).map(|(_, us)| *us))?;
    let (_, deepest) = range(curves.iter().flat_map(|c| &c.1).map(|(depth, _)| *depth))?;
    let (wide, narrow) = both(|size| spectrum::draw(size, &curves, (low, high), deepest));
    Some(Figure {
        title: format!("Foreign measurements{beside}"),
        caption: "Imported from other load generators, thin and grey. They are not paired with any block, most are closed \
                  loops, which wait while the system stalls, and nothing here is claimed of them."
            .into(),
        wide,
        narrow,
        arms: curves.into_iter().map(|(name, _)| name).collect(),
    })
}
