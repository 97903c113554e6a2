//! A straight line through points.

/// y = base + slope·x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub base: f64,
    pub slope: f64,
}

/// Ordinary least squares; `None` with fewer than two different x.
pub fn fit_line(points: &[(f64, f64)]) -> Option<Line> {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / n;
    let scatter: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if points.is_empty() || scatter == 0.0 {
        return None;
    }
    let together: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let slope = together / scatter;
    Some(Line {
        base: mean_y - slope * mean_x,
        slope,
    })
}

impl Line {
    /// The x from which `other` runs below this line; infinite if it never does for positive x.
    pub fn overtaken_by(&self, other: &Line) -> f64 {
        let steeper = self.slope - other.slope;
        if steeper <= 0.0 {
            return f64::INFINITY;
        }
        ((other.base - self.base) / steeper).max(0.0)
    }
}
